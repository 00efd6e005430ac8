"""Text of a fit: its parameters as a table, its equation, its noise and its notes."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import View, counted
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.units import kind_mark, short_unit

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit

CENTRES = {N: ("N0", "N_0"), D: ("D0", "D_0")}  # symbols of the geometric means in an equation


def view_of(fit: "Fit") -> View:
    """Return the status, the parameters, the equation and the notes of a fit."""
    minimised = f"{fit.minimised.describe()}, {fit.delta_rule}"
    sweep = "; ".join(_format_sweep(row) for row in fit.delta_sweep)
    heading = f"parameters {'with 95 % intervals' if fit.has_intervals else 'without intervals'}"
    return View(
        title=f"{fit.law_name} on {counted(len(fit.run_ids), 'run')}{kind_mark(fit.loss_kind)}: "
        f"{fit.status}",
        tables={heading: fit.frame().dropna(axis=1, how="all").reset_index()},
        notes=[
            *(f"warning: {text}" for text in fit.table_warnings),
            fit.equation(),
            f"objective {fit.objective:.9g} ({minimised}); "
            f"{counted(fit.starts, 'start')}, {fit.seconds:.1f} s",
            fit.noise_in_words(),
            *fit.notes,
            *([f"delta sweep: {sweep}"] if sweep else []),
        ],
    )


def equation_of(fit: "Fit", *, latex: bool) -> str:
    """Return the law with its fitted parameters, as text or LaTeX."""
    text = fit.law.describe(fit.law.public(fit.theta, fit.reference), latex=latex)
    for column, (plain, tex) in CENTRES.items():
        if (tex if latex else plain) in text:
            text += rf",\quad {tex} = " if latex else f", {plain} = "
            text += f"{fit.reference[column]:.4g}"
    return text


def parameter_table(fit: "Fit") -> pd.DataFrame:
    """Return one row per parameter: value, 95 % interval, unit and the reason if it is held.

    An interval has no end where the runs do not determine it, and is marked as open there.
    """
    open_sides = fit.open_sides()
    rows = [
        {
            "parameter": name,
            **_without_open_ends(ends, open_sides[name]),
            "unit": unit_of(name, fit.loss_unit),
            "held": _why_held(fit, name),
        }
        for name, ends in fit.parameters().items()
    ]
    table = pd.DataFrame(rows).set_index("parameter")
    if "open" in table:
        table["open"] = table["open"].fillna("")
    return table


def _without_open_ends(ends: dict[str, float], sides: str) -> dict[str, object]:
    """Leave out the open ends of an interval, and name their sides."""
    closed: dict[str, object] = {
        **ends,
        "low": np.nan if "below" in sides else ends["low"],
        "high": np.nan if "above" in sides else ends["high"],
    }
    return {**closed, "open": sides} if sides else closed


def _why_held(fit: "Fit", name: str) -> str:
    internal = fit.law.names[fit.law.index[name]]
    at_bound = "ended at its bound" if internal in fit.at_bounds else ""
    return fit.held[internal].why if internal in fit.held else at_bound


def unit_of(name: str, loss_unit: str) -> str:
    """Return the unit of a public parameter; empty if it has none."""
    if name in ("E", "A", "B", "C", "G"):
        return short_unit(loss_unit)
    if name.endswith(("_curvature", "_slope")):
        return "share of the loss"
    return "per ln N" if name.endswith("_drift") or name == "beta_n" else ""


def noise_in_words(fit: "Fit") -> str:
    """Describe the noise of a run around the law and the noise between seeds."""
    around = f"noise of a run around the law {100 * fit.noise:.2f} %"
    if fit.replicate_noise is None:
        return f"{around}; no replicate seeds, so the noise between seeds is unknown"
    text = f"{around}; between seeds {100 * fit.replicate_noise:.2f} % "
    text += f"({counted(fit.replicate_degrees, 'degree')} of freedom)"
    if len(fit.noise_by_size) > 1:
        parts = [
            f"{100 * row['deviation']:.2f} % at N = {row['n_non_embedding']:.3g}"
            for row in fit.noise_by_size
        ]
        text += f": {', '.join(parts)}"
    return text


def _format_sweep(row: dict[str, float]) -> str:
    """Format the parameters at one threshold of the objective."""
    names: list[str] = [name for name in ("alpha", "beta") if name in row]
    names += [name for name in row if name.endswith(("_optimum", "_slope"))]
    return f"{row['delta']:.0e}: " + " ".join(f"{name} {row[name]:.3g}" for name in names)
