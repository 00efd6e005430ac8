"""Writing and reading of fit.json: its state is checked against the annotations of a fit."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.scaling.runs.columns import SIZES, D, N
from shapelaw.scaling.schema import conform, damaged

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit

SCHEMA_VERSION = 2
WAY_OUT = "write it again with `shapelaw fit --out`"
MAX_INTERNAL = 1000.0  # of an internal parameter: logarithms, shares and exponents


def document_of(fit: "Fit") -> dict[str, Any]:
    """Return the stable document that ``fit --json`` prints."""
    parameters: dict[str, dict[str, Any]] = {**fit.parameters()}
    for name, sides in fit.open_sides().items():
        if sides:
            parameters[name]["open"] = sides
    return {
        "schema_version": SCHEMA_VERSION,
        "law": fit.law_name,
        "n_runs": len(fit.run_ids),
        "parameters": parameters,
        "optima": fit.optima(),
        "objective": fit.objective,
        "status": fit.status,
        "warnings": fit.table_warnings,
        "starts": fit.starts,
        "seconds": fit.seconds,
    }


def write_fit(path: Path, fit: "Fit") -> None:
    """Write the printed document of a fit, and the state that its predictions need."""
    arrays = {name: getattr(fit, name).tolist() for name in ("theta", "draws", "covariance")}
    state = asdict(replace(fit, posterior=None)) | arrays
    state["posterior"] = None if fit.posterior is None else fit.posterior.document()
    write_json(path, {**fit.as_json(), "state": state})


def read_fit(path: Path, kind: "type[Fit]") -> "Fit":
    """Read a saved fit.

    Parameters
    ----------
    path
        File that :meth:`shapelaw.scaling.fitting.result.Fit.save` wrote.
    kind
        Class of fits.

    Raises
    ------
    InputError
        The file is not a fit, has another schema version, or is damaged.
    """
    document = read_json(path)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} must be a fit of schema version {SCHEMA_VERSION}, but has "
            f"{document.get('schema_version')!r}; {WAY_OUT}"
        )
    try:
        fitted: Fit = conform(document.get("state"), kind, "state")
        _check(fitted)
    except InputError as error:
        raise damaged(path, error, WAY_OUT) from None
    return fitted


def _check(fitted: "Fit") -> None:
    """Refuse a fit whose parts do not belong together."""
    law, count = fitted.law, len(fitted.names)
    if not len(fitted.draws):
        object.__setattr__(fitted, "draws", np.zeros((0, count)))
    matrices = (fitted.theta, fitted.draws)
    rules = {
        "`names` must be the parameters of its law": list(law.names) == fitted.names,
        "`size_convention` must be one of " + ", ".join(SIZES): fitted.size_convention in SIZES,
        "`theta` must be one number for each parameter": fitted.theta.shape == (count,),
        "`draws` must be rows of one number for each parameter": fitted.draws.shape[1:] == (count,),
        "`covariance` must be square in its parameters": fitted.covariance.shape == (count, count),
        f"`theta` and `draws` must be within {MAX_INTERNAL:g}": all(
            (np.abs(part) <= MAX_INTERNAL).all() for part in matrices
        ),
        "`reference` must have N and D of its law": {N, D} & set(law.columns)
        <= set(fitted.reference),
        "`ranges` must have the columns of its law": not fitted.run_ids  # a printed law
        or set(law.columns) <= set(fitted.ranges),
        "`ranges` must ascend": all(low <= high for low, high in fitted.ranges.values()),
        "`held` must name parameters of its law": set(fitted.held) <= set(fitted.names),
        "`ends` must name parameters of its equation": set(fitted.ends) <= set(law.every_name),
    }
    posterior = fitted.posterior
    if posterior is not None:
        misfit, rows = posterior.misfit, len(fitted.draws)
        rules |= {
            "`posterior` must have one row for each draw": all(
                part.shape == (rows,) for part in (posterior.amplitude, posterior.sigma,
                                                   posterior.tau)
            )
            and misfit.points.shape[1:] == (len(misfit.columns),)
            and posterior.latent.shape == (rows, misfit.size),
            "`posterior.misfit.columns` must be those of its law": set(misfit.columns)
            <= set(law.columns),
            "`posterior.misfit.centre` must be one number for each column": misfit.centre.shape
            == (len(misfit.columns),),
        }  # fmt: skip
    for rule, holds in rules.items():
        if not holds:
            raise InputError(rule)
