"""Laws as papers print them, by name: a fit that nobody here made, with what the paper says of it.

``data/laws.toml`` has the coefficients with their sources. The outcome is a
:class:`shapelaw.scaling.fitting.result.Fit`, so everything that takes a fit takes it; its resamples
are the paper's other fits of the same law, its noise the paper's held-out error.
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
    """What is known of every printed law, by name."""
    return tomllib.loads((data_folder() / "laws.toml").read_text(encoding="utf-8"))


def printed_fit(name: str) -> Fit:
    """A printed law as a fit.

    The level of the best loss, ``A/N^alpha``, runs through the measured losses of the law's
    anchors, each divided by what the law says of its shape.

    Raises
    ------
    InputError
        There is none of that name.
    """
    known = printed_laws()
    if name not in known:
        raise InputError(f"a printed law must be one of {', '.join(known)}, but got {name!r}")
    entry = known[name]
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
    """The fitted ranges, N and tokens first."""
    ranges = entry["ranges"]
    order = [N, D, *(name for name in (*at, *ranges) if name not in (N, D))]
    return [(name, ranges[name]) for name in dict.fromkeys(order) if name in ranges]


def _anchored(
    law: Law, coefficients: dict[str, float], anchors: pd.DataFrame, at: dict[str, float]
) -> np.ndarray:
    """Internal parameters (p,) with the level and slope in N that the anchors' losses give."""
    columns = {name: anchors[name].to_numpy(float) for name in law.columns}
    flat = law.internal(coefficients | {"A": 1.0, "alpha": 0.0}, at)
    best = np.log(anchors["loss"].to_numpy(float) / law.predict(flat, columns, at))
    slope, level = np.polyfit(np.log(columns[N] / at[N]), best, 1)
    theta = flat.copy()
    theta[law.index["A"]], theta[law.index["alpha"]] = level, -slope
    return theta
