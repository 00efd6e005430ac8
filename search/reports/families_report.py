"""Tables and pictures of the shipped comparison of families, from the rows in ``data/families``.

``NAME-runs.csv`` are the rows of a comparison, ``NAME-speeds.csv`` its decoding speeds. From them
come ``families/NAME-rates.csv`` and ``families/NAME.csv`` in ``docs/``, each with a picture.
"""

from pathlib import Path

import pandas as pd

from shapelaw.scaling.files import data_folder, write_text
from shapelaw.scaling.plots.style import save_figure
from shapelaw.search.families.comparison import FamilyComparison, compare_rows
from shapelaw.search.families.figure import plot_families, plot_rates
from shapelaw.search.families.rates import rates_of_rows

DIGITS = "%.9g"


def _rows(path: Path, ending: str) -> pd.DataFrame | None:
    """Read a table of the comparison that a file of ``docs/`` shows; None if there is none."""
    name = path.stem.removesuffix("-rates")
    table = data_folder() / "families" / f"{name}-{ending}.csv"
    if not table.is_file():
        return None
    return pd.read_csv(table, keep_default_na=False, na_values=[""])


def shipped_rates(path: Path) -> pd.DataFrame:
    """Return the losses at each learning rate of the rows that a file of ``docs/`` shows."""
    rows = _rows(path, "runs")
    assert rows is not None
    return rates_of_rows(rows)


def shipped_comparison(path: Path) -> FamilyComparison:
    """Return the comparison of the rows that a file of ``docs/`` shows."""
    rows = _rows(path, "runs")
    assert rows is not None
    return compare_rows(rows, speeds=_rows(path, "speeds"))


def rates_csv(path: Path) -> None:
    """Write the losses at each learning rate."""
    _write(path, shipped_rates(path))


def rates_png(path: Path) -> None:
    """Draw the losses at each learning rate."""
    save_figure(plot_rates(shipped_rates(path)), path)


def comparison_csv(path: Path) -> None:
    """Write the differences of loss between families."""
    _write(path, shipped_comparison(path).table)


def comparison_png(path: Path) -> None:
    """Draw the differences of loss between families."""
    save_figure(plot_families(shipped_comparison(path)), path)


def _write(path: Path, table: pd.DataFrame) -> None:
    text = table.to_csv(index=False, float_format=DIGITS, lineterminator="\n")
    write_text(path, text)
