"""Candidate shapes for a parameter budget, restricted to the law's range."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import RATIOS
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.proportions import nearest_proportions, within
from shapelaw.scaling.space.space import CONVENTIONS
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.proposal import SHAPE_KEY
from shapelaw.search.proposals.request import ProposalRequest

RATIO_SLACK = 1.1  # factor outside the fitted range of a ratio within which a candidate may lie
MAX_SHAPES = 2_000_000  # the time model predicts all of them after every measurement
EQUAL_LOSS = 1e-3  # relative difference up to which predicted losses count as equal


@dataclass(frozen=True, kw_only=True)
class CandidateSet:
    """Candidate shapes with their predicted losses.

    Attributes
    ----------
    table, frame, losses
        The shapes, their columns for a law (the token budget included), and their predicted losses
        in nats per token, (n,) each.
    baseline, best
        Row of the baseline, and of the lowest predicted loss near the runs.
    enumerated
        Number of shapes of the budget, including those outside of the law's range.
    gqa_held
        Whether only shapes with the baseline's GQA are candidates, because the law has no term for
        GQA and the request has no condition on it.
    """

    request: ProposalRequest
    basis: LossBasis
    table: ShapeTable
    frame: pd.DataFrame
    losses: np.ndarray
    baseline: int
    best: int
    enumerated: int
    gqa_held: bool


def candidate_set(request: ProposalRequest, basis: LossBasis) -> CandidateSet:
    """Enumerate the shapes of a budget and keep those within the range of a law.

    The baseline is the named model if it has the budget's size, or else the shape nearest to its
    proportions, and is always a candidate. Every other candidate lies within 10 % of the fitted
    ranges of the shape ratios.

    Raises
    ------
    InputError
        The space is too large, or no shape lies within the fitted ranges and the loss limit.
    """
    if (size := request.shape_space.size()) > MAX_SHAPES:
        raise InputError(
            f"a search takes at most {MAX_SHAPES:,} shapes, but the space has about {size:.1e}; "
            "give fewer --layers or --head-dim, a smaller --tolerance, or --where on layers, "
            "hidden size and heads"
        )
    shapes, baseline = _with_baseline(request.shape_space.enumerate(), request)
    mask, gqa_held = _in_range(shapes, baseline, request, basis.fit)
    frame = shapes.frame().assign(**{D: request.budget.tokens})
    losses = basis.fit.central(frame)
    mask = _within_loss_limit(mask, losses, baseline, request.space.max_loss_ratio)
    mask[baseline] = True
    table, row, losses = shapes.take(mask), int(mask[:baseline].sum()), losses[mask]
    others = np.where(np.arange(len(table)) == row, np.inf, losses)
    return CandidateSet(
        request=request,
        basis=basis,
        table=table,
        frame=frame[mask].reset_index(drop=True),
        losses=losses,
        baseline=row,
        best=_lowest_loss(basis.fit, table, others),
        enumerated=len(shapes),
        gqa_held=gqa_held,
    )


def _with_baseline(table: ShapeTable, request: ProposalRequest) -> tuple[ShapeTable, int]:
    """Return the shapes, with the baseline added if it is missing, and the baseline's row."""
    space = request.shape_space
    model = replace(request.baseline, vocab_size=space.vocab_size)
    size = getattr(model, CONVENTIONS[space.convention])
    if abs(size / space.parameters - 1) > space.tolerance:
        return table, nearest_proportions(table, request.baseline, space.parameters)
    equal = np.all([getattr(table, name) == getattr(model, name) for name in SHAPE_KEY], axis=0)
    if equal.any():
        return table, int(np.flatnonzero(equal)[0])
    return ShapeTable.joined([table, ShapeTable.of([model])]), len(table)


def _in_range(
    table: ShapeTable, baseline: int, request: ProposalRequest, fit: Fit
) -> tuple[np.ndarray, bool]:
    """Return the mask of the shapes near the fitted ratios, (n,), and whether GQA is held.

    If a law has no term for GQA, a change of GQA costs no predicted loss and every search would end
    at one key-value head. Then only shapes with the baseline's GQA are candidates, unless the
    request has a condition on it.
    """
    ranges = {name: ends for name, ends in fit.ranges.items() if name in RATIOS}
    mask = within(table, ranges, RATIO_SLACK)
    if not mask.any():
        shown = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())
        raise InputError(
            f"none of the {len(table)} shapes of the budget lies in the fitted ranges "
            f"({shown}); change --layers or --head-dim, or fit on other runs"
        )
    conditioned = set().union(*map(names_in, request.space.where))
    if "gqa" in fit.law.columns or conditioned & {"gqa", "num_key_value_heads"}:
        return mask, False
    with_baseline_gqa = mask & np.isclose(table.gqa, table.gqa[baseline])
    return (with_baseline_gqa if with_baseline_gqa.any() else mask), True


def _within_loss_limit(
    mask: np.ndarray, losses: np.ndarray, baseline: int, max_ratio: float | None
) -> np.ndarray:
    """Remove the shapes whose predicted loss exceeds ``max_ratio`` times the baseline's."""
    if max_ratio is None:
        return mask
    near = mask & (losses <= losses[baseline] * max_ratio)
    if not near.any():
        raise InputError(
            f"`predicted loss <= {max_ratio:g} x the baseline's` leaves none of the "
            f"{mask.sum()} shapes in the fitted ranges: the best of them has "
            f"{losses[mask].min() / losses[baseline]:.3f} times the baseline's; raise --worse"
        )
    return np.asarray(near)


def _lowest_loss(fit: Fit, table: ShapeTable, losses: np.ndarray) -> int:
    """Return the row of the lowest loss; among equal losses, the one nearest to the runs.

    Where the law is flat (an unresolved factor has no effect), the lowest value alone would select
    an arbitrary extreme.
    """
    lowest = np.flatnonzero(losses <= losses.min() * (1 + EQUAL_LOSS))
    distance = np.zeros(len(lowest))
    for name in RATIOS:
        if name in fit.ranges:
            low, high = np.log(fit.ranges[name])
            values = np.log(getattr(table, name)[lowest])
            distance += ((values - (low + high) / 2) / max(high - low, 1e-9)) ** 2
    return int(lowest[np.argmin(distance)])
