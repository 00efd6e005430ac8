"""Reading of fit.json: the state of a fit, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.scaling.fitting.posterior_state import PosteriorState
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import SIZES, D, N
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.objectives import FitObjective

SCHEMA_VERSION = 2


def read_state(path: Path) -> dict[str, Any]:
    """Read the fields of a saved fit.

    Parameters
    ----------
    path
        File that :meth:`shapelaw.scaling.fitting.result.Fit.save` wrote.

    Returns
    -------
    dict
        Fields of a fit by name.

    Raises
    ------
    InputError
        The file is not a fit, has another schema version, or is damaged.
    """
    document = read_json(path)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} must be a fit of schema version {SCHEMA_VERSION}, but has "
            f"{document.get('schema_version')!r}; write it again with `shapelaw fit --out`"
        )
    try:
        state = dict(document["state"])
        state["theta"] = np.array(state["theta"], dtype=float)
        state["draws"] = np.array(state["draws"], dtype=float).reshape(-1, len(state["theta"]))
        state["covariance"] = np.array(state["covariance"], dtype=float)
        state["minimised"] = FitObjective(**state["minimised"])
        state["held"] = {name: Held(**held) for name, held in state["held"].items()}
        state["ranges"] = {name: tuple(ends) for name, ends in state["ranges"].items()}
        if state.get("posterior") is not None:
            state["posterior"] = PosteriorState.read(state["posterior"])
        for name in ("objective", "seconds", "noise", "noise_degrees"):
            state[name] = _number(state[name], name)
        state["reference"] = {
            name: _number(value, name) for name, value in dict(state["reference"]).items()
        }
        if not {N, D} & set(law_named(state["law_name"]).columns) <= set(state["reference"]):
            raise ValueError("its reference lacks N or D of its law")
        if state["size_convention"] not in SIZES:
            raise ValueError("its size_convention is none of " + ", ".join(SIZES))
        if list(law_named(state["law_name"]).names) != state["names"]:
            raise ValueError("its parameters are not those of its law")
        if state["theta"].shape != (len(state["names"]),):
            raise ValueError("its theta is not one number for each parameter")
        if state["covariance"].shape != (len(state["names"]),) * 2:
            raise ValueError("its covariance is not square in its parameters")
        return state
    except (TypeError, KeyError, ValueError, AttributeError, InputError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error of a fit.json that cannot be read, with its damage."""
    return InputError(f"{path} is damaged ({error}); write it again with `shapelaw fit --out`")


def _posterior(state: Mapping[str, Any]) -> PosteriorState:
    """Read the draws of deviation and noise; raise ValueError if they do not fit the law."""
    posterior = PosteriorState.read(state["posterior"])
    if len(posterior.sigma) != len(state["draws"]):
        raise ValueError("its posterior has not one row for each draw")
    if not set(posterior.misfit.columns) <= set(law_named(state["law_name"]).columns):
        raise ValueError("the columns of its misfit are not those of its law")
    return posterior


def _number(value: object, name: str) -> float:
    """Return a number of a saved fit; raise ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"its {name} is not a number")
    return value
