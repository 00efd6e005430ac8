"""Export of a trained model in Hugging Face's format, and its import.

Transformers, vLLM and llama.cpp's converter load the exported folder.
"""

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
    """Tokenizer for export; :class:`~shapelaw.trainers.corpus.encoding.Encoding` is an example."""

    @property
    def separator(self) -> int:
        """Id of the token between documents."""

    @property
    def separator_text(self) -> str:
        """Text of the token between documents."""

    @property
    def document(self) -> str:
        """Content of ``tokenizer.json``."""


def hugging_face_weights(model: Transformer) -> dict[str, torch.Tensor]:
    """Copy the weights of a model under the names that Hugging Face's Llama or Qwen3 gives them.

    Fused projections are split into their parts.
    """
    weights = {}
    for name, weight in model.named_parameters():  # yields a tied head only once
        for part, piece in _pieces(name, weight.detach(), model.shape).items():
            full = part if part.startswith("lm_head") else f"model.{part}"
            weights[full] = piece.clone()
    return weights


def _pieces(name: str, weight: torch.Tensor, shape: Shape) -> dict[str, torch.Tensor]:
    """Return views of a weight by the names that Hugging Face gives its parts."""
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
    """Write a model to a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` can load.

    The files are ``model.safetensors``, ``config.json`` and ``generation_config.json``, and with a
    tokenizer also ``tokenizer.json`` and ``tokenizer_config.json``.

    Parameters
    ----------
    folder
        Folder to write to.
    model
        Trained model.
    max_position_embeddings
        Longest sequence in tokens.
    tokenizer
        Tokenizer to export. Its separator begins and ends a text. Without a tokenizer the config
        sets these tokens to null, because transformers would otherwise use Llama's 1 and 2.
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
    """Save tensors; raise an OSError where safetensors raises its own error (a full disk)."""
    try:
        save_file(tensors, target, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(0, str(error)) from error


def load_export(folder: Path, *, attention: str = "sdpa") -> Transformer:
    """Load a model that :func:`export` wrote, in evaluation mode.

    Parameters
    ----------
    folder
        Folder written by :func:`export`.
    attention
        Attention path, as in :class:`Transformer`.

    Raises
    ------
    InputError
        A file is missing or damaged, or the weights do not match the config.
    """
    config = read_json(folder / CONFIG)
    shape = Shape.from_config(config)
    length = int(config["max_position_embeddings"])
    model = Transformer(shape, context_length=length, attention=attention)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({error}); give the folder of a finished run"
        ) from None
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for part, piece in _pieces(name, weight, shape).items():
                full = part if part.startswith("lm_head") else f"model.{part}"
                tensor = tensors.get(full)
                if tensor is None or tensor.shape != piece.shape:
                    raise InputError(
                        f"{folder / WEIGHTS} must hold `{full}` of shape {tuple(piece.shape)} as "
                        f"{CONFIG} says, but has "
                        f"{'none' if tensor is None else tuple(tensor.shape)}; train the run again"
                    )
                piece.copy_(tensor)
    return model.eval()
