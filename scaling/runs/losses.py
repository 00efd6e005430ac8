"""Losses of a run table: their unit, conversions, and rules that a loss must obey."""

from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import SIZES, D
from shapelaw.scaling.runs.validation import REMEDY, as_floats, line
from shapelaw.scaling.units import NATS, unit_named

NATS_PER_BIT = float(np.log(2))
MAX_LOSS_OVER_UNIFORM = 1.05  # loss over ln(vocabulary), the loss of a uniform guess, at most
# L(N, D) of arXiv 2203.15556 (E, A, alpha, B, beta), nats per token of web text.
PUBLISHED = (1.69, 406.4, 0.34, 410.7, 0.28)
MIN_SHARE_OF_PUBLISHED = 0.4  # of L(N, D), below which a loss needs its unit; code reaches 0.5
SMALL_VOCABULARY = 1024  # bytes and characters, whose losses are lower


def in_one_unit(
    runs: pd.DataFrame, source: str, unit: str | None
) -> tuple[pd.DataFrame, str, list[str]]:
    """Convert bits per token and perplexity to nats per token; keep bits per byte or character.

    Parameters
    ----------
    runs
        Table, with a column ``loss_unit`` or without.
    source
        Name of the table in errors.
    unit
        Unit of all losses, where the table has no column for it.

    Returns
    -------
    table
        Table with losses in one unit.
    unit
        That unit, such as ``nats per token``.
    notes
        A note on each conversion.

    Raises
    ------
    InputError
        A unit is unknown, the table mixes units or contradicts ``unit``, or the losses cannot be
        nats per token and have no unit.
    """
    declared = _declared_unit(runs, source)
    chosen = unit_named(unit) if unit is not None else None
    if declared and chosen and declared != chosen:
        raise InputError(
            f"{source}: `loss_unit` says {declared}, but `--loss-unit` is {chosen}; leave one out"
        )
    found = declared or chosen
    if "loss" not in runs:
        return runs, found or NATS, []
    if found is None:
        _refuse_other_units(runs, source)
        return runs, NATS, []
    converted: dict[str, Any] = {name: runs[name] for name in ("loss", "loss_se") if name in runs}
    notes = []
    if found == "bits per token":
        converted = {name: values * NATS_PER_BIT for name, values in converted.items()}
        notes = [f"{' and '.join(converted)} converted from bits to nats per token"]
        found = NATS
    elif found == "perplexity":
        losses = runs["loss"].astype(float)
        if (losses < 1).any():
            row = line(runs, (losses < 1).to_numpy())
            raise InputError(
                f"{source} line {row}: a perplexity must be at least 1, but is "
                f"{losses[losses < 1].iloc[0]:g}; give the unit that the losses have"
            )
        if "loss_se" in converted:
            converted["loss_se"] = runs["loss_se"] / losses
        converted["loss"] = np.log(losses)
        notes = ["loss is ln of the perplexity, in nats per token"]
        found = NATS
    if declared and notes:
        converted["loss_unit"] = "nats"
    return runs.assign(**converted), found, notes


def _declared_unit(runs: pd.DataFrame, source: str) -> str | None:
    """Return the unit in the column ``loss_unit``, None without one."""
    if "loss_unit" not in runs:
        return None
    texts = runs["loss_unit"].astype(object)
    lines: dict[str, int] = {}  # first line of each unit
    for text in texts.unique():
        first = line(runs, (texts.isna() if pd.isna(text) else texts == text).to_numpy())
        try:
            unit = unit_named(str(text))
        except InputError as error:
            raise InputError(f"{source} line {first}: {error}") from None
        lines[unit] = min(first, lines.get(unit, first))
    if len(lines) > 1:
        (one, first), (other, second) = list(lines.items())[:2]
        raise InputError(
            f"{source}: `loss_unit` must be the same for all rows, but is {one} on line {first} "
            f"and {other} on line {second}; convert them (a bit is {NATS_PER_BIT:.4f} nats), or "
            f"choose with --where \"loss_unit == '{texts.iloc[0]}'\""
        )
    return next(iter(lines), None)


def _refuse_other_units(runs: pd.DataFrame, source: str) -> None:
    """Refuse losses without a unit that are too low to be nats per token at their N and D."""
    size = next((name for name in SIZES.values() if name in runs), None)
    if size is None or D not in runs:
        return
    base, a, alpha, b, beta = PUBLISHED
    with np.errstate(all="ignore"):
        expected = base + a / as_floats(runs[size]) ** alpha + b / as_floats(runs[D]) ** beta
    vocabulary = as_floats(runs["vocab_size"]) if "vocab_size" in runs else np.inf
    losses = as_floats(runs["loss"])
    low = (losses < MIN_SHARE_OF_PUBLISHED * expected) & (losses < base)
    low &= np.asarray(vocabulary) > SMALL_VOCABULARY
    if low.mean() > 0.5:
        row = int(np.argmax(low))
        n, d = as_floats(runs[size])[row], as_floats(runs[D])[row]
        raise InputError(
            f"{source} line {line(runs, low)}: a loss of {losses[row]:g} cannot be nats per token "
            f"at N = {n:.3g} and D = {d:.3g} (a published law gives {expected[row]:.2g}); "
            'give its unit: --loss-unit "bits per byte", "bits per character" or nats'
        )


def refuse_losses_above_uniform(runs: pd.DataFrame, source: str) -> None:
    """Refuse losses above ln(vocabulary), the loss of a uniform guess in nats.

    Raises
    ------
    InputError
        A row breaks the rule; the message names its line.
    """
    if not {"loss", "vocab_size"} <= set(runs.columns):
        return
    vocabulary = runs["vocab_size"].to_numpy(dtype=float)
    loss = runs["loss"].to_numpy(dtype=float)
    broken = (vocabulary > 1) & (loss > MAX_LOSS_OVER_UNIFORM * np.log(vocabulary))
    if broken.any():
        size, value = vocabulary[broken][0], loss[broken][0]
        raise InputError(
            f"{source} line {line(runs, broken)}: `loss <= {MAX_LOSS_OVER_UNIFORM} ln(vocab_size)` "
            f"must hold, but got {value:.6g} with a vocabulary of {size:.0f} (ln "
            f"{np.log(size):.4g}): worse than guessing uniformly; is it in bits per token (declare "
            f"it in a column `loss_unit`) or diverged? {REMEDY}"
        )
