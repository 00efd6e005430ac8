"""Which shapes of a budget a law can speak of, the baseline among them; where a search begins."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.accuracy.link import Links
from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.pareto import front
from shapelaw.scaling.space.space import CONVENTIONS, Space, nearest_proportions, within
from shapelaw.search.engines._base import Engine, Measurement, broken_limits
from shapelaw.search.proposals.proposal import SHAPE_KEY
from shapelaw.search.time_model.estimates import Estimates
from shapelaw.search.workload import Workload

RATIO_SLACK = 1.1  # how far outside the fitted range of a ratio a proposal may lie
MOST_SHAPES = 2_000_000  # the time model speaks of all of them after every answer
FLAT = 1e-3  # predicted losses this close, as a fraction, are one
SPREAD = 6  # shapes of the cheap front that are measured first


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked for: a space, a token budget, a workload on an engine, a model to beat.

    ``worse`` is the fraction by which a candidate's predicted loss may exceed the baseline's.
    With ``fastest`` the search has one goal, the most throughput of no more predicted loss than
    the baseline's, as in arXiv 2510.18245. ``links`` give
    accuracies where the law's losses are on the ``validation`` set that they hold for.
    """

    space: Space
    tokens: int
    workload: Workload
    engine: Engine
    baseline_name: str
    baseline: Shape
    worse: float = np.inf
    fastest: bool = False
    links: Links | None = None
    validation: str = ""


def candidates(fit: Fit, target: Target) -> tuple[ShapeTable, int, int]:
    """The shapes in reach of the law, the baseline's row, and how many the budget has."""
    if (size := target.space.size()) > MOST_SHAPES:
        raise InputError(
            f"a search takes at most {MOST_SHAPES:,} shapes, but the space has about {size:.1e}; "
            "give fewer --layers or --head-dim, a smaller --tolerance, or --where on layers, "
            "hidden size and heads"
        )
    everything = target.space.enumerate()
    everything, baseline = _with_baseline(everything, target)
    ranges = {name: ends for name, ends in fit.ranges.items() if name in RATIOS}
    mask = within(everything, ranges, RATIO_SLACK)
    if not mask.any():
        shown = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())
        raise InputError(
            f"none of the {len(everything)} shapes of the budget lies in the fitted ranges "
            f"({shown}); change --layers or --head-dim, or fit on other runs"
        )
    mask = _with_known_gqa(mask, fit, target.space, everything.gqa, baseline)
    worse = 0.0 if target.fastest else target.worse
    if np.isfinite(worse):
        losses = fit.central(everything.frame().assign(**{D: target.tokens}))
        near = mask & (losses <= losses[baseline] * (1 + worse))
        if not near.any():
            raise InputError(
                f"`predicted loss <= {1 + worse:g} x the baseline's` leaves none of the "
                f"{mask.sum()} shapes in the fitted ranges: the best of them has "
                f"{losses[mask].min() / losses[baseline]:.3f} times the baseline's; raise --worse"
            )
        mask = near
    mask[baseline] = True
    return everything.take(mask), int(mask[:baseline].sum()), len(everything)


def holds_gqa(fit: Fit, space: Space) -> bool:
    """Whether a law must not choose GQA: it has no term for it, and nobody asked for other values.

    A change of GQA would cost no predicted loss, so every search would end at one key-value head.
    """
    asked = set().union(*map(names_in, space.constraints))
    return "gqa" not in fit.law.columns and not asked & {"gqa", "num_key_value_heads"}


def _with_known_gqa(
    mask: np.ndarray, fit: Fit, space: Space, gqa: np.ndarray, baseline: int
) -> np.ndarray:
    """Of the shapes in reach those of the baseline's GQA, where the law cannot choose."""
    same = mask & np.isclose(gqa, gqa[baseline])
    return same if holds_gqa(fit, space) and same.any() else mask


def _with_baseline(table: ShapeTable, target: Target) -> tuple[ShapeTable, int]:
    """The baseline's row: the model itself where it has the size, else its proportions."""
    space = target.space
    own = replace(target.baseline, vocab_size=space.vocab_size)
    size = getattr(own, CONVENTIONS[space.convention])
    if abs(size / space.parameters - 1) > space.tolerance:
        return table, nearest_proportions(table, target.baseline, space.parameters)
    same = np.all([getattr(table, name) == getattr(own, name) for name in SHAPE_KEY], axis=0)
    if same.any():
        return table, int(np.flatnonzero(same)[0])
    return ShapeTable.joined([table, ShapeTable.of([own])]), len(table)


def best_of(fit: Fit, table: ShapeTable, losses: np.ndarray) -> int:
    """The shape of the lowest predicted loss; in its flat valley, the one nearest to the runs.

    Where the law has no slope (a factor that is not resolved is held at no effect), the lowest
    value alone would pick an arbitrary extreme.
    """
    valley = np.flatnonzero(losses <= losses.min() * (1 + FLAT))
    apart = np.zeros(len(valley))
    for name in RATIOS:
        if name in fit.ranges:
            low, high = np.log(fit.ranges[name])
            values = np.log(getattr(table, name)[valley])
            apart += ((values - (low + high) / 2) / max(high - low, 1e-9)) ** 2
    return int(valley[np.argmin(apart)])


def cheap_front(table: ShapeTable, losses: np.ndarray, workload: Workload) -> list[int]:
    """A few shapes along the front of predicted loss against FLOPs and cache per token.

    The cost is a stand-in that needs no measurement: it only decides where the search begins.
    """
    context = workload.input_tokens + workload.output_tokens / 2
    cost = table.forward_flops(context) + table.kv_bytes(4) * context
    rows = np.flatnonzero(front(losses, 1 / cost))
    rows = rows[np.argsort(losses[rows])]
    picked = np.linspace(0, len(rows) - 1, min(SPREAD, len(rows))).round().astype(int)
    return [int(row) for row in rows[picked]]


def runnable(table: ShapeTable, found: Mapping[int, Measurement | str]) -> np.ndarray:
    """Mask of the shapes whose number of key-value heads the engine has run, (n,).

    Engines lack kernels or tables for some: asking for more of these would waste the questions.
    """
    rows = [row for row, result in found.items() if isinstance(result, Measurement)]
    groups = table.num_key_value_heads
    return np.asarray(np.isin(groups, groups[rows]))


def ahead_of(
    model: Estimates,
    found: Mapping[int, Measurement | str],
    losses: np.ndarray,
    baseline: int,
    *,
    among: np.ndarray | None = None,
) -> list[int]:
    """Unanswered rows on the front of the time model and the answers: accurate to fast.

    The fastest of no more loss than the baseline comes first: it is what most people want.
    """
    speeds = np.where(np.isfinite(model.rate), model.rate, 0.0)
    if among is not None:
        speeds = np.where(among, speeds, 0.0)
    work = model.workload
    for times, limit in ((model.ttft, work.max_ttft), (model.tpot, work.max_tpot)):
        if limit is not None:
            speeds = np.where(times <= limit, speeds, 0.0)
    for row, result in found.items():
        fine = isinstance(result, Measurement) and not broken_limits(result, work)
        speeds[row] = result.output_tokens_per_second if fine else 0.0  # type: ignore[union-attr]
    rows = np.flatnonzero(front(losses, speeds) & (speeds > 0))
    ahead = [int(row) for row in rows[np.argsort(losses[rows])] if int(row) not in found]
    equal = [row for row in ahead if losses[row] <= losses[baseline]]
    first = max(equal, key=lambda row: speeds[row], default=None)
    return ahead if first is None else [first, *(row for row in ahead if row != first)]


def thinned(rows: list[int], most: int) -> list[int]:
    """The first, and the others thinned evenly."""
    if len(rows) <= most:
        return rows
    if most < 1:
        return []
    others = np.linspace(1, len(rows) - 1, max(most - 1, 0)).round().astype(int)
    return [rows[0], *(rows[place] for place in others)][:most]
