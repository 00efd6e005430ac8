"""Smaller models inside a trained one: nested widths of its MLPs, and some of its layers.

MatFormer (arXiv 2310.07707) trains the first channels of every MLP as a model of its own. Gemma 3n
E2B is the first 8,192 of 16,384 channels and 30 of 35 layers of E4B.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer


def slice_model(
    model: Transformer, smaller: Architecture, *, layers: Sequence[int] | None = None
) -> Transformer:
    """Copy a smaller model out of a trained one.

    Parameters
    ----------
    model
        Trained model.
    smaller
        Architecture of its slice: as the model's, but for narrower MLPs and fewer layers.
    layers
        Layers of the model that are kept, from 0, in order; None for the first ones.

    Returns
    -------
    Transformer
        A model whose weights are copies of the first channels of each MLP, and of all else.

    Raises
    ------
    InputError
        The architecture is no slice of the model's.
    """
    kept = range(smaller.num_hidden_layers) if layers is None else layers
    require_slice(model.architecture, smaller, kept)
    example = model.embed_tokens.weight
    sliced = Transformer(smaller, context_length=model.context_length)
    sliced = sliced.to(example.device, example.dtype).train(model.training)
    sliced.set_context_length(model.context_length)  # tables in float32
    weights, rows, sliced_rows = model.tensors(), model.rows(), sliced.rows()
    with torch.no_grad():
        for name, target in sliced.tensors().items():
            origin = name
            if name.startswith("layers."):
                _, number, path = name.split(".", 2)
                origin = f"layers.{kept[int(number)]}.{path}"
            source = _of_layers(name, weights[origin], model.architecture, kept)
            if source.shape == target.shape:
                target.copy_(source)
                continue
            parts = source.split(_sizes(rows, origin, source))
            targets = target.split(_sizes(sliced_rows, name, target))
            for part, piece in zip(parts, targets, strict=True):
                piece.copy_(part[tuple(slice(size) for size in piece.shape)])
    return sliced


def _sizes(rows: dict[str, tuple[int, ...]], name: str, weight: Tensor) -> list[int]:
    """Return the number of rows of each projection that a weight or a bias stacks."""
    module = name.rpartition(".")[0]
    return list(rows.get(module, (weight.shape[0],)))


def _of_layers(name: str, weight: Tensor, model: Architecture, kept: Sequence[int]) -> Tensor:
    """Return the part of a weight beside the layers that belongs to the kept layers."""
    layers, places = model.num_hidden_layers, list(kept)
    if name == "model_streams.embed_tokens_per_layer.weight":
        return weight.unflatten(1, (layers, -1))[:, places].flatten(1)
    if name == "model_streams.per_layer_model_projection.weight":
        return weight.unflatten(0, (layers, -1))[places].flatten(0, 1)
    return weight


def require_slice(model: Architecture, smaller: Architecture, kept: Sequence[int]) -> None:
    """Refuse an architecture that is no slice of another.

    Parameters
    ----------
    model, smaller
        Architectures of the whole model and of the slice.
    kept
        Layers of the model that are kept.

    Raises
    ------
    InputError
        They differ in more than narrower MLPs and fewer layers.
    """
    number, wanted = model.num_hidden_layers, smaller.num_hidden_layers
    if len(kept) != wanted or list(kept) != sorted(set(kept) & set(range(number))):
        raise InputError(
            f"`layers` must be {wanted} of the numbers 0 to {number - 1} in order, but got "
            f"{str(list(kept))[:60]}; name the layers that are kept"
        )
    tables = model.embedding, replace(smaller.embedding, other_tables=model.embedding.other_tables)
    if tables[0] != tables[1] or model.norm != smaller.norm:
        raise InputError(
            "`embedding and last norm of a slice == those of the model` must hold, but they "
            "differ; change widths of MLPs and layers only"
        )
    whole = list(model.each_layer())
    for index, layer in zip(kept, smaller.each_layer(), strict=True):
        if not _is_slice(whole[index], layer):
            raise InputError(
                f"`layer of a slice == layer {index} of the model but for a narrower MLP` must "
                "hold, but they differ in more; change widths of MLPs and layers only"
            )


def _is_slice(layer: DecoderLayer, smaller: DecoderLayer) -> bool:
    mlp, narrow = layer.feed_forward, smaller.feed_forward
    if not isinstance(mlp, FeedForwardBlock) or not isinstance(narrow, FeedForwardBlock):
        return layer == smaller
    wide = replace(narrow, intermediate_size=mlp.intermediate_size)
    fits = bool(narrow.intermediate_size <= mlp.intermediate_size)
    return fits and layer == replace(smaller, feed_forward=wide)
