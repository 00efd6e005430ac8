"""Requests for the least cost of training and serving at a target loss."""

from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.lifetime import (
    life_flops,
    lifetime_optimum,
    tokens_at_loss,
)
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.space.space import CONVENTIONS
from shapelaw.scaling.units import format_count
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.lifetime import Lifetime
from shapelaw.search.proposals.request import (
    Budget,
    ProposalRequest,
    SearchEffort,
    Serving,
    SpaceOptions,
    baseline_model,
)

AROUND = 4.0  # factor around the N of the law's optimum within which baselines are tried
SIZES = 25  # their number


@dataclass(frozen=True, kw_only=True)
class TargetLoss:
    """A loss to reach in place of a size and tokens.

    Attributes
    ----------
    loss
        Loss to reach, in nats per token.
    served_tokens
        Tokens that the model reads and writes over its life.
    tolerance, extrapolate
        As of :class:`shapelaw.search.proposals.request.Budget`.
    """

    loss: float
    served_tokens: int = 0
    tolerance: float | None = None
    extrapolate: bool = False


def request_at_loss(
    target: TargetLoss,
    basis: LossBasis,
    *,
    space: SpaceOptions,
    serving: Serving,
    effort: SearchEffort,
) -> ProposalRequest:
    """Make a request with the N and D of the least cost of training and serving at a loss.

    The baseline is the cheapest shape that reaches the loss among those with the proportions of the
    model at sizes around the optimum of the law: proportions cannot be kept exactly at every size.
    D brings the equation of the law to exactly the loss, and better shapes of that N and D come
    below it.

    Raises
    ------
    InputError
        The law needs more than N, D and ratios, or does not reach the loss.
    """
    fit, served = basis.fit, target.served_tokens
    no_draws = replace(fit, draws=fit.draws[:0])
    ratios = _ratios(fit, baseline_model(space.baseline))
    best = lifetime_optimum(no_draws, target.loss, served, shape=ratios)
    tried: list[tuple[float, ProposalRequest]] = []
    for factor in np.geomspace(1 / AROUND, AROUND, SIZES):
        budget = Budget(
            parameters=max(round(factor * (best.n["value"] or 0.0)), 1),
            tokens=1,
            convention=fit.size_convention,
            tolerance=target.tolerance,
            extrapolate=target.extrapolate,
        )
        try:
            request = ProposalRequest(budget=budget, space=space, serving=serving, effort=effort)
            baseline = request.baseline
        except InputError:  # no valid shape has this size
            continue
        size = float(getattr(baseline, CONVENTIONS[budget.convention]))
        ratios = _ratios(fit, baseline)
        tokens = tokens_at_loss(fit, fit.theta, np.array([size]), target.loss, ratios)[0]
        if np.isfinite(tokens):
            exact = replace(budget, tokens=max(round(tokens), 1))
            cost = life_flops(size, float(tokens), served)
            tried.append((cost, replace(request, budget=exact)))
    if not tried:
        raise InputError(
            f"no shape with the proportions of {space.baseline} reaches a loss of {target.loss:g} "
            f"near {format_count(best.n['value'] or 0.0)} parameters; give a higher loss, or "
            "another --baseline"
        )
    request = min(tried, key=lambda each: each[0])[1]
    ratios = _ratios(fit, request.baseline)
    best = lifetime_optimum(fit, target.loss, served, shape=ratios)
    trained = lifetime_optimum(no_draws, target.loss, shape=ratios) if served else None
    return replace(
        request, budget=replace(request.budget, lifetime=Lifetime(best=best, trained=trained))
    )


def _ratios(fit: Fit, model: Shape) -> dict[str, float]:
    """Return the ratios of a shape that a law has terms for."""
    columns = [name for name in fit.law.columns if name not in (N, D)]
    if absolute := [name for name in columns if name not in RATIOS]:
        raise InputError(
            f"`--target-loss` needs a law of N, D and shape ratios ({', '.join(RATIOS)}), but this "
            f"one has {absolute[0]}, which changes with N; choose another law"
        )
    return {name: float(getattr(model, name)) for name in columns}
