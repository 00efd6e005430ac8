"""Decoding of every family: tokens as of full forward passes, and caches of the counted size."""

import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.trainers.generation.step_decoder import StepDecoder
from shapelaw.trainers.models.transformer import Transformer
from support.tiny_configs import TINY_CONFIGS

PROMPT, OUTPUTS = 21, 12


@torch.inference_mode()
@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_greedy_tokens_equal_those_of_full_forward_passes(name: str) -> None:
    config = {"model_type": name.partition("-")[0], **TINY_CONFIGS[name]}
    model = Transformer(read_architecture(config), context_length=256).eval()
    model.initialise(0)
    tokens = torch.randint(97, (2, PROMPT), generator=torch.Generator().manual_seed(1))
    decoder = StepDecoder(model, batch=2, length=PROMPT + OUTPUTS)
    logits = decoder.prefill(tokens)
    for position in range(PROMPT, PROMPT + OUTPUTS):
        torch.testing.assert_close(logits, model.logits(model(tokens)[:, -1]), rtol=0, atol=1e-4)
        token = logits.argmax(dim=-1)
        tokens = torch.cat((tokens, token[:, None]), dim=1)
        logits = decoder.step(token, position)
    assert decoder.cache_bytes == 2 * model.architecture.cache_bytes(PROMPT + OUTPUTS, 4)
