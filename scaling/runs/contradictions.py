"""Columns of a run table that contradict one another: epochs, FLOPs and parameter counts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import SIZES, D
from shapelaw.scaling.runs.mapping import COMPUTE_NAMES
from shapelaw.scaling.runs.ratios import table_of
from shapelaw.scaling.runs.validation import as_floats, name_lines

MAX_EPOCHS_DEVIATION = 0.1  # relative; a held-out share of the text is no contradiction
MAX_FLOPS_FACTOR = 1.5  # between flops_6nd and 6ND by every count of N
# Of FLOPs of another name over 6ND: the head and attention of a small model come on top. Beyond it
# in most rows, the unit is another.
MIN_OTHER_FACTOR, MAX_OTHER_FACTOR = 1 / 3, 30.0
MAX_COUNT_DEVIATION = 0.02  # relative, between n_total and the parameters counted from the shape
IGNORE = "correct the wrong column, or ignore it with --columns "


class Contradiction(NamedTuple):
    """Rule over columns, with the mask of rows that break it, both values and the way out.

    ``ignored`` is the column without which the rule does not apply.
    """

    rule: str
    broken: np.ndarray
    stated: np.ndarray
    right: np.ndarray
    way_out: str
    ignored: str


def refuse_contradictions(runs: pd.DataFrame, source: str) -> None:
    """Refuse rows whose columns cannot all be true.

    Raises
    ------
    InputError
        ``epochs`` differs from tokens / unique_tokens, ``flops_6nd`` from 6ND, or ``n_total`` from
        the parameters of the shape; the message names the lines and values.
    """
    every = [each for each in (*_epochs(runs), *_flops(runs), *_parameters(runs))
             if each.broken.any()]  # fmt: skip
    if not every:
        return
    found, *others = every
    first = int(np.argmax(found.broken))
    way_out = found.way_out
    if others:
        rules = " and ".join(
            f"{each.rule} in {counted(each.broken.sum(), 'row')}" for each in others
        )
        ignored = ",".join(f"{each.ignored}=" for each in every)
        way_out = f"nor does {rules}; correct them, or ignore columns with --columns {ignored}"
    raise InputError(
        f"{source} {name_lines(runs, found.broken)}: {found.rule} must hold, but the first "
        f"has {found.stated[first]:.4g} against {found.right[first]:.4g}; {way_out}"
    )


def _differs(stated: np.ndarray, right: np.ndarray, deviation: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray((abs(stated / right - 1) > deviation) & np.isfinite(stated / right))


def _epochs(runs: pd.DataFrame) -> Iterator[Contradiction]:
    if not {"epochs", D, "unique_tokens"} <= set(runs.columns):
        return
    epochs, tokens, unique = (as_floats(runs[name]) for name in ("epochs", D, "unique_tokens"))
    with np.errstate(all="ignore"):
        right = tokens / unique
    broken = _differs(epochs, right, MAX_EPOCHS_DEVIATION) & (np.maximum(epochs, right) > 1)
    yield Contradiction(
        "`epochs = tokens / unique_tokens`", broken, epochs, right, IGNORE + "epochs=", "epochs"
    )


def _flops(runs: pd.DataFrame) -> Iterator[Contradiction]:
    sizes = [name for name in SIZES.values() if name in runs]
    others = [str(name) for name in runs if str(name).lower() in COMPUTE_NAMES]
    for column in ("flops_6nd", "flops_counted", *others) if sizes and D in runs else ():
        if column not in runs:
            continue
        flops, tokens = as_floats(runs[column]), as_floats(runs[D])
        with np.errstate(all="ignore"):
            ratios = np.array([flops / (6 * tokens * as_floats(runs[name])) for name in sizes])
        low, high = MIN_OTHER_FACTOR, MAX_OTHER_FACTOR
        if column == "flops_6nd":
            low, high = 1 / MAX_FLOPS_FACTOR, MAX_FLOPS_FACTOR
        beyond = (ratios < low) | (ratios > high)
        broken = np.all(beyond & np.isfinite(ratios) & (flops > 0), axis=0)
        if column != "flops_6nd" and broken.mean() >= 0.5:
            continue
        rule = f"`{column} = 6 N D`" + ("" if column == "flops_6nd" else " beyond a small factor")
        right = 6 * tokens * as_floats(runs[sizes[0]])
        yield Contradiction(rule, broken, flops, right, f"{IGNORE}{column}=", column)


def _parameters(runs: pd.DataFrame) -> Iterator[Contradiction]:
    if not {*INTEGER_FIELDS, "n_total"} <= set(runs.columns):
        return
    shapes, stated = table_of(runs), as_floats(runs["n_total"])
    right = np.asarray(shapes.n_total, dtype=float)
    broken = _differs(stated, right, MAX_COUNT_DEVIATION)
    if "config" in runs:  # the shape is that of one token's path
        broken &= runs["config"].isna().to_numpy()
    way_out = "correct the shape, or ignore the count with --columns n_total="
    no = np.zeros(len(runs), dtype=bool)
    for names in (("gated",), ("tie_word_embeddings",), ("gated", "tie_word_embeddings")):
        other = replace(shapes, **dict.fromkeys(names, no))
        counted = np.asarray(other.n_total, dtype=float)
        if not _differs(stated, counted, MAX_COUNT_DEVIATION)[broken].any():
            way_out = f"the counts agree with --columns {','.join(f'{name}=0' for name in names)}"
            break
    rule = "`n_total` = the parameters counted from the shape, within 2 %"
    yield Contradiction(rule, broken, stated, right, way_out, "n_total")
