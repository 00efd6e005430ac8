"""Published laws by name: fits with the coefficients, ranges and errors that a paper prints.

``data/laws.toml`` holds the coefficients with their sources. A published law is a
:class:`shapelaw.scaling.fitting.result.Fit`, so every function of fits accepts it. Its resamples
are the other fits of the same law in the paper, and its noise is the held-out error of the paper.
"""

import hashlib
import tomllib
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Law, reference_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.solver.objectives import FitObjective


def printed_laws() -> dict[str, dict[str, Any]]:
    """Return the entries of ``data/laws.toml`` by name.

    Returns
    -------
    dict
        Law, coefficients, ranges, held-out error, citation and notes by name.
    """
    return tomllib.loads((data_folder() / "laws.toml").read_text(encoding="utf-8"))


def printed_fit(name: str) -> Fit:
    """Return a published law as a fit.

    The level of the best loss, ``A/N^alpha``, is a line through the measured losses of the anchors
    of the law, each divided by the effect of its shape according to the law.

    Parameters
    ----------
    name
        Name of the law in ``data/laws.toml``.

    Returns
    -------
    Fit
        Fit with the published coefficients.

    Raises
    ------
    InputError
        There is no published law of that name.
    """
    entries = printed_laws()
    if name not in entries:
        raise InputError(f"a printed law must be one of {', '.join(entries)}, but got {name!r}")
    entry = entries[name]
    law = law_named(entry["law"])
    anchors = load_runs(entry["table"]).frame.set_index("run_id", drop=False).loc[entry["anchors"]]
    at = reference_of({column: anchors[column].to_numpy(float) for column in law.columns})
    theta = _anchored(law, entry["coefficients"], anchors, at)
    others = [_anchored(law, other, anchors, at) for other in entry["others"]]
    return Fit(
        law_name=entry["law"],
        names=list(law.names),
        theta=theta,
        draws=np.stack([theta, *others]),
        covariance=np.zeros((len(theta), len(theta))),
        reference=at,
        held={},
        objective=0.0,
        minimised=FitObjective(kind="squares", on="raw", delta=1.0),
        delta_rule="as the paper says",
        status=f"printed in {entry['citation']}: {entry['about']}; not fitted here",
        notes=list(entry["notes"]),
        starts=0,
        basins=[],
        gradient_norm=0.0,
        at_bounds=[],
        dead_terms=[],
        seconds=0.0,
        run_ids=[],
        left_out={},
        ranges={column: (float(low), float(high)) for column, (low, high) in _ranges(entry, at)},
        size_convention="non-embedding",
        noise=float(np.sqrt(entry["mean_squared_error"]) / anchors["loss"].mean()),
        noise_degrees=int(entry["degrees"]),
        replicate_noise=None,
        replicate_degrees=0,
        effects={},
        delta_sweep=[],
        bootstrap="none: the other coefficients that the paper prints",
        data_sha256=hashlib.sha256(repr(sorted(entry.items())).encode()).hexdigest(),
        seed=0,
    )


def _ranges(entry: dict[str, Any], at: dict[str, float]) -> list[tuple[str, list[float]]]:
    """Return the fitted ranges by column, N and tokens first."""
    ranges = entry["ranges"]
    order = [N, D, *(name for name in (*at, *ranges) if name not in (N, D))]
    return [(name, ranges[name]) for name in dict.fromkeys(order) if name in ranges]


def _anchored(
    law: Law, coefficients: dict[str, float], anchors: pd.DataFrame, at: dict[str, float]
) -> np.ndarray:
    """Return internal parameters (p,) whose level and slope in N fit the losses of the anchors."""
    columns = {name: anchors[name].to_numpy(float) for name in law.columns}
    flat = law.internal(coefficients | {"A": 1.0, "alpha": 0.0}, at)
    best = np.log(anchors["loss"].to_numpy(float) / law.predict(flat, columns, at))
    slope, level = np.polyfit(np.log(columns[N] / at[N]), best, 1)
    theta = flat.copy()
    theta[law.index["A"]], theta[law.index["alpha"]] = level, -slope
    return theta
