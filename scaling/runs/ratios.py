"""Parameter counts and shape ratios of the rows of a table, from the fields of their shapes."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.architectures.shape_table import FIELD_TYPES, ShapeTable
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import EXPERT_RATIOS, N
from shapelaw.scaling.runs.expert_ratios import configs_counted, with_expert_ratios
from shapelaw.scaling.runs.validation import (
    SWITCHES,
    as_floats,
    check_numbers,
    parse_switches,
    refuse_oversized_shapes,
)

WITHOUT_GATE = ("gelu", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu2", "relu_squared",
                "squared_relu")  # fmt: skip
ACTIVE = ("n_active", "n_active_non_embedding")
WITH_GATE = ("silu", "swish", "swiglu", "geglu", "reglu")


def with_ratios(
    frame: pd.DataFrame, source: str = "the table", *, needed: Collection[str] = ()
) -> pd.DataFrame:
    """Add parameter counts and shape ratios to a table, as far as it has the fields of a shape.

    The aspect ratio needs only the hidden size and the number of layers; the counts and the other
    ratios need all fields. Counts are those of the column ``config`` where a row has one, and a
    table of models with experts gets their ratios.

    Parameters
    ----------
    frame
        One row per run. Columns that it already has are kept.
    source
        Name of the table in error messages.
    needed
        Columns of a law: if ratios of experts are among them, dense models get theirs as well.

    Returns
    -------
    A copy with the added columns.

    Raises
    ------
    InputError
        A field is not a positive whole number, or a shape is too large to count.
    """
    frame, configs = frame.copy(), configs_counted(frame)
    if set(INTEGER_FIELDS) - {"vocab_size"} <= set(frame.columns):
        check_numbers(frame, [name for name in INTEGER_FIELDS if name in frame], source)
        refuse_oversized_shapes(frame, np.asarray(_shapes(frame, np.float64).n_total), source)
        derived = table_of(frame)
        counted = {"n_non_embedding", *RATIOS} | ({"n_total"} if "vocab_size" in frame else set())
        for name in sorted(counted - set(frame.columns)):
            frame[name] = getattr(derived, name)
            if configs is not None and name in configs:  # the shape is that of one token's path
                frame[name] = configs[name].fillna(frame[name])
    if configs is not None:
        for name in (N, "n_total"):
            if name not in frame and configs[name].notna().all():
                frame[name] = configs[name]
    if {"hidden_size", "num_hidden_layers"} <= set(frame.columns) and "aspect_ratio" not in frame:
        # Invalid numbers become NaN here; the checks of the table name their line.
        with np.errstate(divide="ignore", invalid="ignore"):
            frame["aspect_ratio"] = as_floats(frame["hidden_size"]) / as_floats(
                frame["num_hidden_layers"]
            )
    dense_too = not {*EXPERT_RATIOS, *ACTIVE}.isdisjoint(needed)
    return with_expert_ratios(frame, configs, dense_too=dense_too)


def sizes_without_embedding(frame: pd.DataFrame, *, otherwise: str) -> np.ndarray | None:
    """Read or count the non-embedding parameters of the rows, (n,).

    Where neither works, read the column ``otherwise``; None where the table lacks it.
    """
    if N in frame:
        return frame[N].to_numpy(dtype=float)
    if set(INTEGER_FIELDS) - {"vocab_size"} <= set(frame.columns):
        return np.asarray(table_of(frame).n_non_embedding, dtype=float)
    return frame[otherwise].to_numpy(dtype=float) if otherwise in frame else None


def table_of(frame: pd.DataFrame) -> ShapeTable:
    """Return the shapes of the rows; by default vocabulary 1, tied, no QK-norm, a gated MLP."""
    return _shapes(frame, np.int64)


def _shapes(frame: pd.DataFrame, number: type) -> ShapeTable:
    """Read the shapes of a frame's rows, counts as integers or as floats, which do not overflow."""
    defaults = {"vocab_size": 1, "rope_theta": 10_000.0, **SWITCHES}
    frame = parse_switches(frame, "the table")
    columns: dict[str, Any] = {}
    for name, kind in FIELD_TYPES.items():
        values = frame[name] if name in frame else pd.Series(defaults[name], index=frame.index)
        if kind is np.bool_:
            columns[name] = values.to_numpy(dtype=bool)
        elif name in INTEGER_FIELDS:
            columns[name] = as_floats(values).astype(number)
        else:
            floats = as_floats(values)
            columns[name] = np.where(np.isnan(floats), defaults[name], floats)
    return ShapeTable(**columns | {"gated": _gates(frame)})


def notes_on_gates(frame: pd.DataFrame) -> list[str]:
    """Return a note if parameters are counted with a gate in shapes that look like ones without."""
    told = {"gated", "hidden_act", "n_total", N} & set(frame.columns)
    if told or not set(INTEGER_FIELDS) - {"vocab_size"} <= set(frame.columns):
        return []
    if (as_floats(frame["intermediate_size"]) != 4 * as_floats(frame["hidden_size"])).any():
        return []
    return [
        "parameters are counted with three matrices per MLP, but the intermediate size is 4 times "
        "the hidden size, as in an MLP without a gate: --columns gated=0 counts two"
    ]


def _gates(frame: pd.DataFrame) -> np.ndarray:
    """Read whether the MLP of each row has a gate, from ``gated`` or ``hidden_act``, (n,)."""
    if "gated" in frame:
        return frame["gated"].to_numpy(dtype=bool)
    if "hidden_act" not in frame:
        return np.full(len(frame), SWITCHES["gated"])
    words = frame["hidden_act"].astype(object).fillna("silu").astype(str).str.strip().str.lower()
    unknown = ~words.isin(WITHOUT_GATE + WITH_GATE)
    if unknown.any():
        raise InputError(
            "`hidden_act` must say whether the MLP has a gate, but MLPs of both kinds have "
            f"{shown(words[unknown].iloc[0])}; give a column `gated`, or --columns gated=0 or "
            "gated=1"
        )
    return words.isin(WITH_GATE).to_numpy()
