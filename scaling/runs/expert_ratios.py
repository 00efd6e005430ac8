"""Active parameters and ratios of experts of the rows of a table, for laws of sparse models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import parse_json
from shapelaw.scaling.runs.columns import EXPERT_COLUMNS, EXPERT_RATIOS, N
from shapelaw.scaling.runs.validation import as_floats

COUNTS = (N, "n_total", "n_active", "n_active_non_embedding")


def expert_ratios(model: Architecture) -> dict[str, float]:
    """Compute the ratios of experts of an architecture; a dense one has 1 active expert of 1.

    Shared experts count as many experts as they are wide, active ones all the same. Layers without
    experts do not count. Granularity is 2 · hidden size / width of an expert, of the MLP in a dense
    model (arXiv 2507.17702, section 2).
    """
    blocks = [(layer.feed_forward, number) for layer, number in model.layers]
    mixtures = [(block, number) for block, number in blocks if isinstance(block, ExpertsBlock)]
    if not mixtures:
        fine = 2 * model.hidden_size / model.intermediate_size
        return {"expert_sparsity": 1.0, "active_experts": 1.0, "granularity": fine}
    layers = sum(number for _, number in mixtures)
    shared = sum(
        number * block.shared.intermediate_size / block.expert.intermediate_size
        for block, number in mixtures
        if block.shared
    )
    every = sum(number * block.experts for block, number in mixtures) + shared
    active = sum(number * block.active for block, number in mixtures) + shared
    width = sum(number * block.expert.intermediate_size for block, number in mixtures) / layers
    return {
        "expert_sparsity": every / active,
        "active_experts": active / layers,
        "granularity": 2 * model.hidden_size / width,
    }


def configs_counted(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Count the models of the column ``config``.

    Returns
    -------
    Parameters and ratios of experts of every row, NaN in those without a config; None where the
    table has no config that can be read.
    """
    if "config" not in frame or not frame["config"].notna().any():
        return None
    counted = {text: _counts_of(text) for text in frame["config"].dropna().unique()}
    rows = [counted.get(text) or {} for text in frame["config"]]
    return pd.DataFrame(rows, index=frame.index) if any(rows) else None


def _counts_of(text: Any) -> dict[str, float] | None:
    """Count one config; None if it is not that of a known family, which other checks refuse."""
    try:
        model = read_architecture(parse_json(str(text), "the column `config`"))
    except InputError:
        return None
    return {name: float(getattr(model, name)) for name in COUNTS} | expert_ratios(model)


def with_expert_ratios(
    frame: pd.DataFrame, configs: pd.DataFrame | None, *, dense_too: bool = False
) -> pd.DataFrame:
    """Add active parameters and the ratios of experts to a table of models with experts.

    They come from ``configs`` (see :func:`configs_counted`), else from the columns of experts and
    of parameters. A row that has no experts in either is that of a dense model. A table without
    any model with experts stays as it is, unless ``dense_too``.
    """
    sizes = {name: as_floats(frame[name]) for name in COUNTS if name in frame}
    sizes = {name: np.where(values > 0, values, np.nan) for name, values in sizes.items()}
    number = as_floats(frame["num_experts"]) if "num_experts" in frame else np.zeros(len(frame))
    mixed = set(EXPERT_COLUMNS) <= set(frame.columns) and bool((number > 0).any())
    if configs is not None:
        mixed |= bool((configs["expert_sparsity"] > 1).any())
    if {"n_total", "n_active"} <= set(sizes):
        mixed |= bool((sizes["n_active"] < sizes["n_total"]).any())
    if not (mixed or dense_too):
        return frame
    added = _stated_ratios(frame)
    added |= _active_counts(sizes, added["expert_sparsity"] > 1)
    if configs is not None:
        for name in set(map(str, configs)) & set(added):
            added[name] = np.where(configs[name].isna(), added[name], configs[name])
    unknown = (added["expert_sparsity"] == 1) & (added["n_active"] < sizes.get("n_total", 0.0))
    for name in ("expert_sparsity", "active_experts", "granularity"):  # sparse, without its experts
        added[name] = np.where(unknown, np.nan, added[name])
    if N in sizes:
        added["sparsity"] = sizes[N] / added["n_active_non_embedding"]
    known = {name: values for name, values in added.items() if (values > 0).all()}
    return frame.assign(**{name: known[name] for name in known if name not in frame})


def require_expert_ratios(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse a law of sparse models on a table that says nothing of experts.

    Raises
    ------
    InputError
        A ratio of experts among the names is missing; the message says what it follows from.
    """
    sources = {"sparsity": "`n_total` and `n_active`", "granularity": "`hidden_size`"}
    for name in names:
        if name in EXPERT_RATIOS and name not in frame:
            also = f" and {sources[name]}" if name in sources else ""
            raise InputError(
                f"the run table lacks the column `{name}`: none of its models is known to have "
                f"experts; give {', '.join(EXPERT_COLUMNS)}{also}, or a `config` per row, or "
                "choose --law conditional for dense models"
            )


def _active_counts(sizes: dict[str, np.ndarray], sparse: np.ndarray) -> dict[str, np.ndarray]:
    """Return the active parameters, NaN where a sparse model does not state them."""
    total = sizes.get("n_total", np.full(len(sparse), np.nan))
    active = sizes.get("n_active", np.where(sparse, np.nan, total))
    unused = np.where(sparse, total - active, np.nan_to_num(total - active))
    without = sizes.get(N, np.full(len(sparse), np.nan)) - unused
    return {"n_active": active, "n_active_non_embedding": without}


def _stated_ratios(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Compute the ratios of experts from the columns of experts; without these, of dense models."""
    rows = len(frame)
    nothing = pd.Series(np.nan, index=frame.index)
    number, top, width, shared, hidden, mlp = (
        as_floats(frame.get(name, nothing))
        for name in (*EXPERT_COLUMNS, "num_shared_experts", "hidden_size", "intermediate_size")
    )
    sparse = (number > 0) & (top > 0) & (width > 0)
    shared = np.where(shared > 0, shared, 0.0)
    one = np.ones(rows)
    return {
        "expert_sparsity": np.where(sparse, (number + shared) / (top + shared), one),
        "active_experts": np.where(sparse, top + shared, one),
        "granularity": 2 * hidden / np.where(sparse, width, mlp),
    }
