"""The law that proposals rest on: a file, a published law, or the shipped runs."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.published_laws import printed_fit, printed_laws
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.units import format_count
from shapelaw.search.proposals.request import ProposalRequest

SHIPPED = "proxies"  # the table that the shipped law is fitted on


FITTED_ROLES = ("proxy", "anchor")


COUNTED = 1e3  # parameters or tokens below which a law cannot count single ones


FIELDS = {field.name for field in fields(Shape)} | {"n_total", "n_active", N, D, *RATIOS}


def law_of(request: ProposalRequest) -> tuple[Fit, str]:
    """The law and what it rests on, in a line."""
    if request.law is None:
        return shipped_law(request.seed)
    if request.law in printed_laws():
        return printed_fit(request.law), f"{request.law}: {printed_fit(request.law).status}"
    path = Path(request.law)
    if not path.is_file() and path.suffix != ".json":
        raise InputError(
            f"`--law` must be a file that `shapelaw fit --out` wrote, or one of "
            f"{', '.join(printed_laws())}, but got {request.law!r}"
        )
    fitted = Fit.load(path)
    _usable(fitted, request.law)
    name = fitted.law_name if len(fitted.law_name) < 40 else "composed"
    return fitted, f"{name} law on {len(fitted.run_ids)} runs, {request.law}"


def shipped_law(seed: int = 0) -> tuple[Fit, str]:
    """The law for those who have none, fitted on the shipped runs, and what it rests on."""
    runs = load_runs(SHIPPED)
    fitted = fit("conditional", runs[runs["role"].isin(FITTED_ROLES)], seed=seed)
    sizes = [format_count(size) for size in fitted.ranges[N]]
    vocabularies = ", ".join(f"{size:,}" for size in sorted(set(runs["vocab_size"])))
    return fitted, (
        f"the law of {len(fitted.run_ids)} shipped runs of {sizes[0]} to {sizes[1]} parameters, as "
        f"no --law is given (data/{SHIPPED}, losses in nats per token of a vocabulary of "
        f"{vocabularies}); fit your own runs for a real decision"
    )


def _usable(fitted: Fit, source: str) -> None:
    """Refuse a law whose columns a shape does not have, or that counts in other units."""
    missing = [name for name in fitted.law.columns if name not in FIELDS]
    if missing:
        raise InputError(
            f"`--law` {source} needs `{missing[0]}`, which a shape and a token budget do not give; "
            "fit a law of n_non_embedding, tokens and shape ratios, such as `conditional`"
        )
    for column in (N, D):
        high = fitted.ranges.get(column, (0.0, np.inf))[1]
        if high < COUNTED:
            raise InputError(
                f"`{column} >= {COUNTED:g}` must hold for some run of a law, but {source} was "
                f"fitted up to {high:g}: it counts in other units; fit it in single parameters "
                "and tokens"
            )
