"""Fit a law again and again, to parts of a run table: what every check does."""

from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.solver.objectives import FitObjective

LawLike = str | Law


class FitSettings(TypedDict, total=False):
    """How the fits inside a check are made: the keywords of :func:`fit`."""

    objective: str | FitObjective
    delta: float | str
    size: str
    starts: int
    resamples: int
    seed: int


QUICK: FitSettings = {"starts": 64, "resamples": 0}


def fit_quickly(
    law: LawLike, runs: RunTable | pd.DataFrame, **settings: Unpack[FitSettings]
) -> Fit:
    """Fit a law with few starts and no resamples unless the settings say otherwise.

    Raises
    ------
    InputError
        As :func:`shapelaw.scaling.fitting.fit_law.fit` does.
    """
    chosen: FitSettings = {**QUICK, **settings}
    return fit(law, runs, **chosen)


def law_label(law: LawLike) -> str:
    """Label a law before it is fitted: as it was given."""
    return law if isinstance(law, str) else repr(law)


def settings_like(fitted: Fit) -> FitSettings:
    """Choose settings that fit as a fit was made, with at most 64 starts and 100 resamples."""
    given = fitted.delta_rule == "as given"
    return {
        "objective": fitted.minimised,
        "delta": fitted.delta if given else "auto",
        "starts": min(fitted.starts, 64),
        "resamples": min(len(fitted.draws), 100),
        "seed": fitted.seed,
    }


def public_parameters(fitted: Fit, theta: np.ndarray | None = None) -> dict[str, float]:
    """Parameters of the equation at the optimum (or at theta), with a_opt = β/(α+β)."""
    values = dict(fitted.law.public(fitted.theta if theta is None else theta, fitted.reference))
    if {"alpha", "beta"} <= set(values):
        values["a_opt"] = values["beta"] / (values["alpha"] + values["beta"])
    return values
