"""Candidate shapes for a parameter budget, restricted to the law's range."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in
from shapelaw.scaling.fitting.compute_optimal import has_effect
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.family_table import FamilyTable
from shapelaw.scaling.space.pareto import front
from shapelaw.scaling.space.proportions import within
from shapelaw.scaling.space.space import CONVENTIONS
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.proposal import SHAPE_KEY
from shapelaw.search.proposals.request import ProposalRequest

RATIO_SLACK = 1.1  # factor outside the fitted range of a ratio within which a candidate may lie
MAX_SHAPES = 2_000_000  # the time model predicts all of them after every measurement
# Fields that a search varies though a law may lack a term for them, the columns that price them,
# and the names by which a request may accept a change of them at no loss.
AXES: dict[str, tuple[set[str], set[str]]] = {
    "gqa": ({"gqa"}, {"gqa", "num_key_value_heads"}),
    "num_hidden_layers": ({"num_hidden_layers", "aspect_ratio"}, {"num_hidden_layers"}),
    "head_dim": ({"head_dim"}, {"head_dim"}),
}


@dataclass(frozen=True, kw_only=True)
class CandidateSet:
    """Candidate shapes with their predicted losses at exactly the baseline's N.

    Attributes
    ----------
    table, frame, losses
        The shapes, their columns for a law (the training tokens included, N that of the baseline),
        and their predicted losses in nats per token, (n,) each.
    baseline
        Row of the baseline.
    enumerated
        Number of shapes of the budget, including those outside of the law's range.
    not_in_law
        By field that the law has no term for, the mask of the shapes that differ in it from the
        baseline, (n,) each. Their predicted loss leaves this difference out.
    kinds
        Number of the set of such fields in which a shape differs from the baseline, without those
        that the request names, (n,); 0: none.
    """

    request: ProposalRequest
    basis: LossBasis
    table: ShapeTable
    frame: pd.DataFrame
    losses: np.ndarray
    baseline: int
    enumerated: int
    not_in_law: dict[str, np.ndarray]
    kinds: np.ndarray

    @property
    def apart(self) -> np.ndarray:
        """Return the mask of the shapes with differences that are not in the law, (n,).

        They have no role, and push no other shape off the front.
        """
        return np.asarray(self.kinds > 0)


def candidate_set(request: ProposalRequest, basis: LossBasis) -> CandidateSet:
    """Enumerate the shapes of the baseline's size and keep those within the range of a law.

    The baseline is always a candidate. Every other candidate lies within 10 % of the fitted ranges
    of the shape ratios. Of deployable shapes that differ in MLP width alone, only the one whose N
    is nearest to the baseline's is a candidate: the others are faster or slower by their N. Losses
    are predicted at exactly the baseline's N, so that a difference is one of shape.

    Raises
    ------
    InputError
        The space is too large, no shape lies within the fitted ranges and the loss limit, or
        tokens of a training time change no loss of the law.
    """
    if (size := request.shape_space.size()) > MAX_SHAPES:
        raise InputError(
            f"a search takes at most {MAX_SHAPES:,} shapes, but the space has about {size:.1e}; "
            "give fewer --layers or --head-dim, a smaller --tolerance, or --where on layers, "
            "hidden size and heads"
        )
    every, baseline = _with_baseline(request.shape_space.enumerate(), request.baseline)
    shapes, baseline = _of_nearest_size(every, baseline, request)
    mask = in_range(shapes, baseline, basis.fit)
    require_tokens_in_law(request, basis.fit)
    frame = _at_equal_size(shapes, baseline, request)
    losses = basis.fit.expected(frame)
    mask = within_loss_limit(mask, losses, baseline, request.space.max_loss_ratio)
    mask[baseline] = True
    differing = differing_axes(basis.fit.law, shapes, baseline)
    accepted = accepted_axes(request)
    kinds = np.zeros(len(shapes), dtype=int)  # one number for each set of differing fields
    for bit, (name, differs) in enumerate(differing.items()):
        kinds += (differs & (name not in accepted)) << bit
    cost = computed_cost(shapes, request)
    for kind in set(kinds[mask]) - {0}:
        mask &= (kinds != kind) | cheapest(losses, cost, mask & (kinds == kind))
    return CandidateSet(
        request=request,
        basis=basis,
        table=shapes.take(mask),
        frame=frame[mask].reset_index(drop=True),
        losses=losses[mask],
        baseline=int(mask[:baseline].sum()),
        enumerated=len(every),
        not_in_law={name: differs[mask] for name, differs in differing.items()},
        kinds=kinds[mask],
    )


def computed_cost(table: ShapeTable, request: ProposalRequest) -> np.ndarray:
    """Compute FLOPs plus cache bytes per token, a cost that needs no engine, (n,)."""
    workload = request.serving.workload
    context = workload.input_tokens + workload.output_tokens / 2
    return np.asarray(table.forward_flops(context) + table.kv_bytes(4) * context)


def differing_axes(law: Law, table: ShapeTable, baseline: int) -> dict[str, np.ndarray]:
    """Return by field without a term in the law which shapes differ in it, (n,) each."""
    columns = set(law.columns)
    values = {name: getattr(table, name) for name, (priced, _) in AXES.items()
              if not priced & columns}  # fmt: skip
    return {name: ~np.isclose(value, value[baseline]) for name, value in values.items()}


def accepted_axes(request: ProposalRequest) -> set[str]:
    """Return the fields of :data:`AXES` that a request names itself."""
    named = set().union(*map(names_in, request.space.where))
    accepted = {name for name, (_, names) in AXES.items() if named & names}
    given = {"num_hidden_layers": request.space.layers, "head_dim": request.space.head_dims}
    return accepted | {name for name, values in given.items() if values is not None}


def _with_baseline(table: ShapeTable, shape: Shape) -> tuple[ShapeTable, int]:
    """Return the shapes, with the baseline added if it is missing, and the baseline's row."""
    equal = np.all([getattr(table, name) == getattr(shape, name) for name in SHAPE_KEY], axis=0)
    if equal.any():
        return table, int(np.flatnonzero(equal)[0])
    return ShapeTable.joined([table, ShapeTable.of([shape])]), len(table)


def _of_nearest_size(
    table: ShapeTable, baseline: int, request: ProposalRequest
) -> tuple[ShapeTable, int]:
    """Keep one of the shapes that differ in MLP width alone; return also the row of the baseline.

    The shape with the N nearest to the baseline's is kept. Without rules for deployable shapes, all
    shapes remain.
    """
    if request.rules is None:
        return table, baseline
    sizes = getattr(table, request.shape_space.counted)
    fixed = [name for name in SHAPE_KEY if name != "intermediate_size"]
    frame = pd.DataFrame({name: getattr(table, name) for name in fixed})
    nearest = frame.assign(gap=np.abs(sizes - sizes[baseline])).groupby(fixed)["gap"].idxmin()
    rows = np.sort(nearest.to_numpy())
    return table.take(rows), int(np.searchsorted(rows, baseline))


def _at_equal_size(table: ShapeTable, baseline: int, request: ProposalRequest) -> pd.DataFrame:
    """Return the columns of the shapes with the counted parameters of exactly the baseline.

    All counts of a shape are moved by the difference, which is at most the tolerance of the space,
    and the tokens of a training time are those of the size moved; the ratios are those of the shape
    as it is.
    """
    frame = table.frame()
    counted = frame[request.shape_space.counted]
    lacking = counted.iloc[baseline] - counted
    counts = list(CONVENTIONS.values())
    moved = frame[counts].add(lacking, axis=0)
    tokens = request.budget.tokens_of(table, lacking.to_numpy())
    return frame.assign(**{name: moved[name] for name in counts}, **{D: tokens})


def require_tokens_in_law(request: ProposalRequest, fit: Fit) -> None:
    """Refuse a training time with a law in which tokens change no loss."""
    if request.budget.time is not None and not has_effect(fit, D):
        raise InputError(
            "`--train-hours` needs a law with a term in training tokens, but this one has none "
            "with an effect, so that a faster training would gain nothing; give --tokens, or "
            "leave --law out or name a fit of N and D"
        )


def in_range(
    table: ShapeTable | FamilyTable, baseline: int, fit: Fit, *, as_baseline: bool = False
) -> np.ndarray:
    """Return the mask of the shapes near the fitted ratios, (n,).

    Parameters
    ----------
    as_baseline
        Ratios of the baseline outside of the fitted ranges widen these.
    """
    ranges = {name: ends for name, ends in fit.ranges.items() if name in RATIOS}
    if as_baseline:
        own = table.take(np.array([baseline])).frame().iloc[0]
        ranges = {
            name: (min(low, own[name]), max(high, own[name]))
            for name, (low, high) in ranges.items()
        }
    mask = within(table, ranges, RATIO_SLACK)
    if not np.delete(mask, baseline).any():
        shown = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())
        raise InputError(
            f"none of the {len(table)} shapes of the budget lies in the fitted ranges "
            f"({shown}); change --layers or --head-dim, or fit on other runs"
        )
    return mask


def cheapest(losses: np.ndarray, cost: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mask of the shapes on the front of predicted loss and cost, (n,)."""
    rows = np.flatnonzero(mask)
    kept = np.zeros(len(losses), dtype=bool)
    kept[rows[front(losses[rows], 1 / cost[rows])]] = True
    return kept


def within_loss_limit(
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
