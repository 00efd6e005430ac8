"""Columns of a run table that contradict one another: epochs, FLOPs and parameter counts."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import SIZES, D
from shapelaw.scaling.runs.ratios import table_of
from shapelaw.scaling.runs.validation import as_floats

MAX_EPOCHS_DEVIATION = 0.1  # relative; a held-out share of the text is no contradiction
MAX_FLOPS_FACTOR = 1.5  # between flops_6nd and 6ND by every count of N
MAX_COUNT_DEVIATION = 0.02  # relative, between n_total and the parameters counted from the shape
MAX_LINES = 6  # named in an error


def refuse_contradictions(runs: pd.DataFrame, source: str) -> None:
    """Refuse rows whose columns cannot all be true.

    Raises
    ------
    InputError
        ``epochs`` differs from tokens / unique_tokens, ``flops_6nd`` from 6ND, or ``n_total`` from
        the parameters of the shape; the message names the lines and values.
    """
    for rule, broken, stated, right, way_out in (
        *_epochs(runs), *_flops(runs), *_parameters(runs),
    ):  # fmt: skip
        if not broken.any():
            continue
        lines = [str(number + 2) for number in runs.index[broken]]
        more = f" and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
        first = int(np.argmax(broken))
        raise InputError(
            f"{source} lines {', '.join(lines[:MAX_LINES])}{more}: {rule} must hold, but the first "
            f"has {stated[first]:.4g} against {right[first]:.4g}; {way_out}"
        )


def _floats(runs: pd.DataFrame, *names: str) -> list[np.ndarray] | None:
    """Return columns as floats, None unless the table has all of them."""
    return [as_floats(runs[name]) for name in names] if set(names) <= set(runs.columns) else None


def _differs(stated: np.ndarray, right: np.ndarray, deviation: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray((abs(stated / right - 1) > deviation) & np.isfinite(stated / right))


def _epochs(runs: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, str]]:
    columns = _floats(runs, "epochs", D, "unique_tokens")
    if columns is None:
        return []
    epochs, tokens, unique = columns
    with np.errstate(all="ignore"):
        right = tokens / unique
    broken = _differs(epochs, right, MAX_EPOCHS_DEVIATION) & (np.maximum(epochs, right) > 1)
    return [
        ("`epochs = tokens / unique_tokens`", broken, epochs, right,
         "correct the wrong column, or ignore it with --columns epochs=")
    ]  # fmt: skip


def _flops(runs: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, str]]:
    sizes = [name for name in SIZES.values() if name in runs]
    if not sizes or not {"flops_6nd", D} <= set(runs.columns):
        return []
    flops, tokens = as_floats(runs["flops_6nd"]), as_floats(runs[D])
    right = 6 * tokens * as_floats(runs[sizes[0]])
    broken = flops > 0
    for name in sizes:
        with np.errstate(all="ignore"):
            apart = abs(np.log(flops / (6 * tokens * as_floats(runs[name]))))
        broken &= np.isfinite(apart) & (apart > np.log(MAX_FLOPS_FACTOR))
    return [
        ("`flops_6nd = 6 N D`", broken, flops, right,
         "correct the wrong column, or ignore it with --columns flops_6nd=")
    ]  # fmt: skip


def _parameters(runs: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, str]]:
    if not {*INTEGER_FIELDS, "n_total"} <= set(runs.columns):
        return []
    stated, right = as_floats(runs["n_total"]), np.asarray(table_of(runs).n_total, dtype=float)
    return [
        ("`n_total` = the parameters counted from the shape, within 2 %",
         _differs(stated, right, MAX_COUNT_DEVIATION), stated, right,
         "correct the shape (an MLP without a gate has `gated` false), or ignore the count with "
         "--columns n_total=")
    ]  # fmt: skip
