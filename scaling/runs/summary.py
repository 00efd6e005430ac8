"""Summary of a run table: ranges with units, levels, replicates, warnings and source."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.runs.columns import COLUMNS, MORE_COLUMNS
from shapelaw.scaling.runs.levels import count_distinct
from shapelaw.scaling.runs.table import RunTable, as_run_table
from shapelaw.scaling.units import format_count, kind_mark

UNITS = {
    "n_total": "parameters",
    "n_active": "parameters",
    "n_non_embedding": "parameters",
    "tokens": "tokens",
    "tokens_per_parameter": "tokens per parameter (non-embedding, else total)",
    "loss": "",  # that of the table
    "bits_per_byte": "bits per byte",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "hidden_over_sqrt_n": "hidden size / √N",
    "mlp_to_attention": "parameters / parameters",
    "gqa": "query heads / KV heads",
    "aspect_ratio": "hidden size / layers",
    "batch_tokens": "tokens per step",
    "learning_rate": "peak",
}
NAMES = ("corpus", "tokenizer", "validation", "schedule", "optimizer", "family")
RANGE = ["column", "unit", "lowest", "highest", "levels", "missing"]
MAX_LISTED_NAMES = 4  # further names are only counted


@dataclass(frozen=True, kw_only=True, repr=False)
class Description(Result):
    """Summary statistics of a run table.

    ``ranges`` has a row per numeric column: ``column``, ``unit``, ``lowest``, ``highest``,
    ``levels`` (:func:`shapelaw.scaling.runs.levels.level_of`) and ``missing`` (rows). ``noise`` is
    :attr:`shapelaw.scaling.runs.table.RunTable.noise_by_size`.
    """

    name: str
    loss_kind: str
    rows: int
    ranges: pd.DataFrame
    names: dict[str, list[str]]
    others: list[str]
    noise: pd.DataFrame
    deviation: float | None
    degrees: int
    left_out: dict[str, str]
    warnings: list[str]
    notes: list[str]
    source: dict[str, str]

    def frame(self) -> pd.DataFrame:
        """Return the ranges with formatted numbers."""
        counts = self.ranges["unit"].isin(("parameters", "tokens", "tokens per step"))
        table = self.ranges.astype(object)
        for name in ("lowest", "highest"):
            table[name] = list(map(_format_number, self.ranges[name], counts))
        return table

    def lines(self) -> list[str]:
        """Return the notes on the table, one sentence each."""
        names = [
            f"{column}: {listed(values, MAX_LISTED_NAMES)}" for column, values in self.names.items()
        ]
        noise = "no replicates: this table does not determine the noise between runs"
        if self.deviation is not None:
            noise = (
                f"replicates: ln loss varies by {self.deviation:.2%} between runs of one shape and "
                f"recipe ({counted(self.degrees, 'degree')} of freedom)"
            )
        reasons = pd.Series(self.left_out, dtype=object).value_counts()
        dropped = [f"left out: {counted(count, 'run')}, {why}" for why, count in reasons.items()]
        meanings = {**COLUMNS, **MORE_COLUMNS}
        shown = [f"{name} ({meanings[name]})" if name in meanings else name for name in self.others]
        others = [f"other columns: {', '.join(shown)}"] if shown else []
        origin = [f"{key}: {text}" for key, text in self.source.items() if key != "name"]
        warned = [f"warning: {text}" for text in self.warnings]
        return [*names, noise, *dropped, *self.notes, *warned, *others, *origin]

    def view(self) -> View:
        """Return the table of ranges with the notes."""
        title = f"{self.name}: {counted(self.rows, 'run')}{kind_mark(self.loss_kind)}"
        return View(title=title, tables={"ranges": self.frame()}, notes=self.lines())

    def document(self) -> dict[str, Any]:
        """Return all figures for JSON; missing ones are null."""
        return {
            "name": self.name,
            "loss_kind": self.loss_kind,
            "rows": self.rows,
            "ranges": self.ranges,
            "names": self.names,
            "other_columns": self.others,
            "noise": self.deviation,
            "noise_degrees": self.degrees,
            "noise_by_size": self.noise,
            "left_out": self.left_out,
            "warnings": self.warnings,
            "notes": self.notes,
            "source": self.source,
        }


def describe(runs: RunTable | pd.DataFrame) -> Description:
    """Summarise the columns, replicates, warnings and source of a run table.

    Raises
    ------
    InputError
        A column that describes N, tokens or the loss holds values other than numbers.
    """
    runs = as_run_table(runs)
    table = runs.frame
    if runs.has_sizes and "tokens" in runs:
        table = table.assign(tokens_per_parameter=table["tokens"] / table[runs.size_column])
    numeric = [name for name in UNITS if name in table]
    named = [name for name in NAMES if name in runs and runs[name].notna().any()]
    bound = ", an upper bound" * (runs.loss_kind == "bound")
    units = UNITS | {"loss": runs.loss_unit + bound, "bits_per_byte": "bits per byte" + bound}
    ranges = [_range(name, units[name], table[name]) for name in numeric]
    deviation, degrees = runs.noise if "loss" in runs else (np.nan, 0)
    return Description(
        name=runs.source.get("name", "run table"),
        loss_kind=runs.loss_kind,
        rows=len(runs),
        ranges=pd.DataFrame(ranges, columns=RANGE),
        names={name: sorted(map(str, runs[name].dropna().unique())) for name in named},
        others=[name for name in runs if name not in {*UNITS, *NAMES, "run_id"}],
        noise=runs.noise_by_size if degrees else pd.DataFrame(),
        deviation=deviation if degrees else None,
        degrees=degrees,
        left_out=dict(runs.left_out),
        warnings=list(runs.warnings),
        notes=list(runs.remarks),
        source=dict(runs.source),
    )


def _format_number(value: float, count: bool) -> str:
    """Format a value, as a count with a suffix or to four significant digits."""
    if np.isnan(value):
        return "-"
    return format_count(value) if count else f"{value:.4g}"


def _range(name: str, unit: str, values: pd.Series) -> dict[str, Any]:
    """Return the row of a column in the table of ranges."""
    present = values.dropna().astype(float)
    return {
        "column": name,
        "unit": unit,
        "lowest": float(present.min()) if len(present) else np.nan,
        "highest": float(present.max()) if len(present) else np.nan,
        "levels": count_distinct(present[present > 0].to_numpy()),
        "missing": int(values.isna().sum()),
    }
