"""The spread of predicted losses over alternative forms of a law, which no interval includes.

A confidence interval assumes that its law is true. Runs rarely decide if an optimum drifts with
size, and if a shape effect adds to the loss or multiplies it, but the choice matters far away from
the runs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from shapelaw.scaling.display.progress import working
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import FitSettings, fit_quickly, settings_like
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.factors import GroupedQuery, UShape
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.laws.part import Factor
from shapelaw.search.proposals.basis import LossBasis

STARTS = 8  # optimiser starts for each form
MAX_SCATTER_RATIO = 1.25  # largest residual scatter of an alternative form over the law's
NOT_INCLUDED = "the spread over law forms is not included: "


@dataclass(frozen=True, kw_only=True)
class FormSpread:
    """Highest minus lowest predicted loss over the forms of a law, in nats per token.

    Attributes
    ----------
    nats
        Spread for every shape, (n,); None if no form could be fitted.
    note
        A sentence that names the forms, or says why there are none.
    """

    nats: np.ndarray | None
    note: str

    def at(self, place: int) -> float | None:
        """Return the spread for the shape at a place."""
        return None if self.nats is None else float(self.nats[place])


def spread_over_forms(basis: LossBasis, frame: pd.DataFrame) -> FormSpread:
    """Refit a law in other forms on its runs and compute the spread of their predicted losses.

    Parameters
    ----------
    frame
        Rows to predict, (n,).

    Returns
    -------
    The spread, without a value if the runs are not available or no other form fits as well.
    """
    if basis.runs is None:
        missing = "the runs of the law are not beside its file"
        why = missing if basis.fit.run_ids else "a published law comes without its runs"
        return FormSpread(nats=None, note=NOT_INCLUDED + why)
    runs = basis.fit.count_as_fitted(basis.runs)
    settings: FitSettings = {**settings_like(basis.fit), "starts": STARTS, "resamples": 0}
    if basis.fit.minimised.robust and not basis.fit.prior:
        settings["delta"] = basis.fit.delta  # the same objective for all forms
    losses = [basis.fit.central(frame)]
    names = []
    with working("comparing law forms"):
        for name, law in alternatives(basis.fit.law).items():
            try:
                fitted = fit_quickly(law, runs, **settings)
                predicted = fitted.central(frame)
            except InputError:  # too few runs for this form
                continue
            if _fits_as_well(fitted, basis.fit):
                names.append(name)
                losses.append(predicted)
    if not names:
        return FormSpread(nats=None, note=f"{NOT_INCLUDED}no other form fits the runs as well")
    nats = np.ptp(losses, axis=0)
    percent = 100 * float((nats / losses[0]).max())
    return FormSpread(
        nats=nats,
        note=f"other forms of the law that fit the runs about as well ({'; '.join(names)}) differ "
        f"by up to {percent:.2g} % of the loss at these shapes (loss_form_spread); the intervals "
        "leave this out",
    )


def alternatives(law: Law) -> dict[str, Law]:
    """Return the law with its shape effects in other forms, by the name of the change.

    Examples
    --------
    >>> from shapelaw.scaling.laws.registry import law_named
    >>> list(alternatives(law_named("conditional")))
    ['optima that stay with size', 'shape effects in nats', "GQA by its cache's share"]
    """
    forms: dict[str, Law] = {}
    if law.ties or law.pins or not law.shapes:
        return forms
    drifts = any(isinstance(factor, UShape) and factor.drift for factor in law.shapes)
    if any(isinstance(factor, UShape) for factor in law.shapes):
        name = "optima that stay with size" if drifts else "optima that drift with size"
        forms[name] = _with_factors(law, lambda factor: _drifting(factor, not drifts))
    if not law.extras and all(factor.offset for factor in law.factors):
        forms["shape effects in nats"] = replace(law, factors=(), extras=law.factors)
    if any(isinstance(factor, GroupedQuery) and factor.form == "log" for factor in law.shapes):
        forms["GQA by its cache's share"] = _with_factors(law, _by_share)
    return forms


def _with_factors(law: Law, change: Callable[[Factor], Factor]) -> Law:
    def changed(factors: Iterable[Factor]) -> tuple[Factor, ...]:
        return tuple(change(factor) for factor in factors)

    return replace(law, factors=changed(law.factors), extras=changed(law.extras))


def _drifting(factor: Factor, drift: bool) -> Factor:
    return replace(factor, drift=drift) if isinstance(factor, UShape) else factor


def _by_share(factor: Factor) -> Factor:
    return replace(factor, form="share") if isinstance(factor, GroupedQuery) else factor


def _fits_as_well(fitted: Fit, reference: Fit) -> bool:
    return fitted.scatter <= MAX_SCATTER_RATIO * reference.scatter
