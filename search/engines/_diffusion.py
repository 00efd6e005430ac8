"""Serving of the embedded engine with the decoders of diffusion models."""

import time
from pathlib import Path

import torch

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.search.engines._memory import random_prompt
from shapelaw.search.engines._timed import Server, Timing, require_token_count
from shapelaw.search.workload import Workload
from shapelaw.trainers.generation.decoding_settings import DecodingSettings
from shapelaw.trainers.generation.diffusion import decode, require_decodable
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.models.transformer import Transformer


def with_mask_token(shape: Shape) -> Architecture:
    """Return the architecture of a shape with one token more, the mask token."""
    vocabulary = shape.vocab_size
    config = shape.to_config() | {"vocab_size": vocabulary + 1, "mask_token_id": vocabulary}
    return read_architecture(config)


class DecodingServer(Server):
    """A model in memory and its prompts, decoded as some settings say.

    Parameters
    ----------
    model
        Model in evaluation mode, in the number format of the workload.
    """

    def __init__(self, model: Transformer, workload: Workload, settings: DecodingSettings) -> None:
        torch.set_num_threads(1)
        require_decodable(
            model, settings, length=workload.output_tokens, prompt=workload.input_tokens
        )
        self.model, self.settings = model, settings
        mask = model.architecture.embedding.mask_token
        prompt = random_prompt(model.architecture, workload)
        if mask is not None:
            prompt[prompt == mask] = int(mask == 0)
        self.prompt = prompt.to(model.embed_tokens.weight.device)

    def close(self) -> None:
        """Free the weights."""
        del self.model

    def serve(self, outputs: int) -> Timing:
        """Decode all prompts; a warm-up of few tokens decodes a whole block."""
        size = self.settings.block if self.settings.masked else 1
        length = -(-outputs // size) * size
        cpu = time.process_time()
        result = decode(self.model, self.prompt, self.settings, length=length)
        spent = time.process_time() - cpu
        require_token_count(result.tokens, (len(self.prompt), length))
        return Timing(
            result.first_seconds,
            result.seconds - result.first_seconds,
            spent,
            forwards=result.forwards,
        )


def trained_model(
    folder: Path, length: int, dtype: torch.dtype, device: torch.device
) -> Transformer:
    """Load the model of an exported run for texts of a length."""
    model = load_export(folder).to(device, dtype)
    model.set_context_length(max(length, model.context_length))
    return model
