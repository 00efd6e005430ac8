"""A trained model as transformers, vLLM and llama.cpp's converter load it, and back."""

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json, write_text, write_whole
from shapelaw.trainers.models.transformer import Transformer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Tokenizer(Protocol):
    """What is exported of a tokenizer; :class:`Encoding` is one."""

    @property
    def separator(self) -> int:
        """Token between documents."""

    @property
    def separator_text(self) -> str:
        """Its name."""

    @property
    def document(self) -> str:
        """Content of ``tokenizer.json``."""


def hugging_face_weights(model: Transformer) -> dict[str, torch.Tensor]:
    """Weights under the names and in the pieces of Hugging Face's Llama or Qwen3, copied."""
    weights = {}
    for name, weight in model.named_parameters():  # a tied head once
        for part, piece in _pieces(name, weight.detach(), model.shape).items():
            full = part if part.startswith("lm_head") else f"model.{part}"
            weights[full] = piece.clone()
    return weights


def _pieces(name: str, weight: torch.Tensor, shape: Shape) -> dict[str, torch.Tensor]:
    """Views of a weight by the names that Hugging Face gives its parts."""
    if "qkv_proj" in name:
        heads, groups = shape.num_attention_heads, shape.num_key_value_heads
        sizes = [count * shape.head_dim for count in (heads, groups, groups)]
        parts = zip("qkv", weight.split(sizes), strict=True)
        return {name.replace("qkv_proj", f"{letter}_proj"): part for letter, part in parts}
    if "gate_up_proj" in name:
        halves = zip(("gate", "up"), weight.chunk(2), strict=True)
        return {name.replace("gate_up_proj", f"{half}_proj"): part for half, part in halves}
    return {name: weight}


def export(
    folder: Path,
    model: Transformer,
    *,
    max_position_embeddings: int,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load as it is.

    ``model.safetensors``, ``config.json`` and ``generation_config.json``; with a tokenizer also
    ``tokenizer.json`` and ``tokenizer_config.json``. Its separator is the token that begins and
    ends a text; without a tokenizer none does, where transformers would take Llama's 1 and 2.
    """
    weights = {name: value.cpu() for name, value in hugging_face_weights(model).items()}
    write_whole(folder / WEIGHTS, lambda target: _write(weights, target))
    end = None if tokenizer is None else tokenizer.separator
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = model.shape.to_config(max_position_embeddings=max_position_embeddings)
    write_json(folder / CONFIG, config | ends)
    write_json(folder / "generation_config.json", ends)
    if tokenizer is not None:
        write_text(folder / "tokenizer.json", tokenizer.document)
        names = ("bos_token", "eos_token", "pad_token")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            **dict.fromkeys(names, tokenizer.separator_text),
        }
        write_json(folder / "tokenizer_config.json", settings)


def _write(tensors: dict[str, torch.Tensor], target: Path) -> None:
    """Safetensors' own error for a full disk is no OSError."""
    try:
        save_file(tensors, target, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(0, str(error)) from error


def load_export(folder: Path, *, attention: str = "sdpa") -> Transformer:
    """The model that :func:`export` wrote, ready to evaluate; ``attention`` as in Transformer.

    Raises
    ------
    InputError
        A file is missing or damaged, or the weights are not those of the config.
    """
    config = read_json(folder / CONFIG)
    shape = Shape.from_config(config)
    length = int(config["max_position_embeddings"])
    model = Transformer(shape, context_length=length, attention=attention)
    try:
        written = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({error}); give the folder of a finished run"
        ) from None
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for part, piece in _pieces(name, weight, shape).items():
                full = part if part.startswith("lm_head") else f"model.{part}"
                found = written.get(full)
                if found is None or found.shape != piece.shape:
                    raise InputError(
                        f"{folder / WEIGHTS} must hold `{full}` of shape {tuple(piece.shape)} as "
                        f"{CONFIG} says, but has "
                        f"{'none' if found is None else tuple(found.shape)}; train the run again"
                    )
                piece.copy_(found)
    return model.eval()
