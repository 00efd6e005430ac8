"""Export of a trained model in Hugging Face's format, and its import.

Transformers, vLLM and llama.cpp's converter load the exported folder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shapelaw.scaling.architectures.config import architecture_config
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.architectures.shape_config import read_trainable
from shapelaw.scaling.architectures.weight_names import LLAMA_NAMES, stored_weight
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json, write_text, write_whole
from shapelaw.scaling.schema import Within, read_document
from shapelaw.trainers.models.transformer import Transformer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


Positions = Annotated[int, Within(1, 2**20)]


class ExportedConfig(TypedDict, total=False):
    """Longest sequence in ``config.json``, by one of the names that families give it."""

    max_position_embeddings: Positions | None
    n_positions: Positions


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
    """Copy the weights of a model under the names that its class in transformers gives them.

    Fused projections are split into their parts.
    """
    return {
        piece.name: piece.view.clone(memory_format=torch.contiguous_format).view(piece.shape)
        for piece in weight_pieces(model, _checkpoint_names(model))
    }


class Piece(NamedTuple):
    """Part of a weight of a model: its name and shape in a checkpoint, and a view of it here."""

    name: str
    shape: torch.Size
    view: torch.Tensor


def _checkpoint_names(model: Transformer) -> dict[str, str]:
    return LLAMA_NAMES | dict(FAMILIES[model.architecture.model_type].names)


def weight_pieces(model: Transformer, names: Mapping[str, str]) -> Iterator[Piece]:
    """Return views of the parts of all weights that a file keeps under names of their own.

    Parameters
    ----------
    names
        Names in the file, see :mod:`shapelaw.scaling.architectures.weight_names`.
    """
    rows = model.rows()
    for name, weight in model.tensors().items():
        if name.startswith("next_predictions."):  # of training; no class loads them
            continue
        yield from _pieces_of(name, weight.detach(), names, rows)


def _pieces_of(
    name: str,
    weight: torch.Tensor,
    names: Mapping[str, str],
    rows: Mapping[str, tuple[int, ...]],
) -> Iterator[Piece]:
    """Return views of the parts of one weight: its projections, and each matrix of a stack."""
    stored = stored_weight(name, names)
    if stored.transposed:
        weight = weight.transpose(-1, -2)
    parts: Sequence[torch.Tensor] = (weight,)
    if len(stored.names) > 1:
        sizes = rows[re.sub(r"(\.weight|[._]bias)$", "", name)]
        parts = weight.split(sizes, dim=-1 if name.endswith("bias") else -2)
    for own, part in zip(stored.names, parts, strict=True):
        shape = part.shape
        if stored.alternating:
            part = part.unflatten(-1, (2, -1)).transpose(-1, -2)
        if "*" not in own:
            yield Piece(own, shape, part)
            continue
        for number, matrix in enumerate(part):
            yield Piece(own.replace("*", str(number)), matrix.shape, matrix)


def config_of_model(model: Transformer, max_position_embeddings: int) -> dict[str, Any]:
    """Write the Hugging Face config of a model."""
    if hasattr(model, "shape"):
        return model.shape.to_config(max_position_embeddings=max_position_embeddings)
    without = replace(model.architecture, predictions=0)
    return architecture_config(without, max_position_embeddings=max_position_embeddings)


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
    write_whole(folder / WEIGHTS, lambda target: save_tensors(weights, target))
    end = None if tokenizer is None else tokenizer.separator
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = config_of_model(model, max_position_embeddings)
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


def save_tensors(tensors: dict[str, torch.Tensor], target: Path) -> None:
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
    config = read_document(folder / CONFIG, ExportedConfig, "train the run again")
    description = read_trainable(dict(config))
    length = config.get("max_position_embeddings") or config.get("n_positions")
    if length is None:
        raise InputError(f"{folder / CONFIG} lacks `max_position_embeddings`; train the run again")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({error}); give the folder of a finished run"
        ) from None
    count = sum(tensor.numel() for tensor in tensors.values())
    if description.n_total > 2 * count:  # before the config's size is allocated
        raise InputError(
            f"{folder / WEIGHTS} must hold the {description.n_total:,} parameters of {CONFIG}, "
            f"but has {count:,}; train the run again"
        )
    model = Transformer(description, context_length=length, attention=attention)
    for piece in weight_pieces(model, _checkpoint_names(model)):
        tensor = tensors.get(piece.name)
        if tensor is None or tensor.shape != piece.shape:
            raise InputError(
                f"{folder / WEIGHTS} must hold `{piece.name}` of shape "
                f"{tuple(piece.shape)} as {CONFIG} says, but has "
                f"{'none' if tensor is None else tuple(tensor.shape)}; train the run again"
            )
        piece.view.copy_(tensor.view(piece.view.shape))
    return model.eval()
