"""Refits of a law on subsets of a run table, as every check needs them."""

from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.priors import recorded_prior
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.with_prior import PriorLike
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.solver.objectives import FitObjective

LawLike = str | Law


class FitSettings(TypedDict, total=False):
    """Keywords of :func:`shapelaw.scaling.fitting.fit_law.fit` for the fits inside a check."""

    objective: str | FitObjective
    delta: float | str
    size: str
    starts: int
    resamples: int
    seed: int
    prior: PriorLike


QUICK: FitSettings = {"starts": 64, "resamples": 0}


def fit_quickly(
    law: LawLike, runs: RunTable | pd.DataFrame, **settings: Unpack[FitSettings]
) -> Fit:
    """Fit a law with 64 starts and no resamples unless the settings say otherwise.

    Parameters
    ----------
    law
        Law by name or as an object.
    runs
        Run table, or a subset of one.
    settings
        Keywords of :func:`shapelaw.scaling.fitting.fit_law.fit`.

    Returns
    -------
    Fit
        Fit with the chosen settings.

    Raises
    ------
    InputError
        As :func:`shapelaw.scaling.fitting.fit_law.fit`.
    """
    chosen: FitSettings = {**QUICK, **settings}
    return fit(law, runs, **chosen)


def law_label(law: LawLike) -> str:
    """Label a law before it is fitted.

    Parameters
    ----------
    law
        Law by name or as an object.

    Returns
    -------
    str
        Name as given, or the expression of the law.
    """
    return law if isinstance(law, str) else repr(law)


def settings_like(fitted: Fit) -> FitSettings:
    """Copy the settings of a fit for refits, with at most 64 starts and 100 resamples.

    Parameters
    ----------
    fitted
        Fit whose settings are copied.

    Returns
    -------
    FitSettings
        Objective, threshold, starts, resamples, seed and prior.
    """
    if fitted.prior:
        return {
            "starts": min(fitted.starts, 64),
            "resamples": min(len(fitted.draws), 100),
            "seed": fitted.seed,
            "prior": recorded_prior(fitted),
        }
    given = fitted.delta_rule == "as given"
    return {
        "objective": fitted.minimised,
        "delta": fitted.delta if given else "auto",
        "starts": min(fitted.starts, 64),
        "resamples": min(len(fitted.draws), 100),
        "seed": fitted.seed,
        "prior": "none",
    }


def public_parameters(fitted: Fit, theta: np.ndarray | None = None) -> dict[str, float]:
    """Compute the public parameters of the equation, with a_opt = β/(α+β) where β is constant.

    Parameters
    ----------
    fitted
        Fit that gives the law and its reference.
    theta
        Internal parameters, (p,); by default those at the optimum.

    Returns
    -------
    dict
        Value by parameter. Source of a_opt: arXiv 2203.15556, equation 4.
    """
    values = dict(fitted.law.public(fitted.theta if theta is None else theta, fitted.reference))
    if {"alpha", "beta"} <= set(values) and "beta_n" not in values:
        values["a_opt"] = values["beta"] / (values["alpha"] + values["beta"])
    return values
