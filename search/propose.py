"""From a law and a budget to ranked proposals: enumerate, predict, search, name the roles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.composition import D
from scaling.errors import InputError
from scaling.fits import Fit
from scaling.links import Links
from scaling.shape import RATIOS, Shape, ShapeTable
from scaling.space import CONVENTIONS, Space, nearest_proportions, within
from search.estimating import (
    Check,
    Estimates,
    ahead_of,
    check,
    device_of,
    estimate,
    runnable,
    thinned,
)
from search.judging import (
    broken_limits,
    differences,
    mark_front,
    require_service,
    unseen_by,
    with_reasons,
)
from search.proposals import (
    BASELINE,
    CANDIDATE,
    FAST,
    LOSS_OPTIMAL,
    SHAPE_KEY,
    Proposal,
    front,
)
from search.question import Question
from search.study import Effort, explore
from search.throughput._base import Engine, Measurement
from search.workload import Workload

RATIO_SLACK = 1.1  # how far outside the fitted range of a ratio a proposal may lie
MOST_SHAPES = 2_000_000  # the time model speaks of all of them after every answer
FLAT = 1e-3  # predicted losses this close, as a fraction, are one
SPREAD = 6  # shapes of the cheap front that are measured first
ROUNDS = 3  # times that refused shapes are made up for
LEADERS = 3  # one in so many measurements goes to the leaders of the time model
Found = dict[int, Measurement | str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked for: a space, a token budget, a workload on an engine, a model to beat.

    ``worse`` is the fraction by which a candidate's predicted loss may exceed the baseline's.
    ``links`` give accuracies where the law's losses are on the ``validation`` set that they hold
    for.
    """

    space: Space
    tokens: int
    workload: Workload
    engine: Engine
    baseline_name: str
    baseline: Shape
    worse: float = np.inf
    links: Links | None = None
    validation: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Proposals, and what is to be known about how they were found.

    ``enumerated`` counts the shapes of the budget, ``considered`` those in reach of the law;
    ``check`` holds the time model against the engine, where it spoke for any shape.
    """

    proposals: list[Proposal]
    enumerated: int
    considered: int
    notes: list[str]
    check: Check | None = None
    answered_shapes: tuple[Shape, ...] = ()  # of ``check``, in its order


def propose(
    fit: Fit,
    target: Target,
    *,
    storage: Path,
    measurements: int = 24,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> list[Proposal]:
    """Measure the shapes that a study proposes and rank them: the proposals of :func:`find`."""
    found = find(fit, target, storage=storage, measurements=measurements, seed=seed, report=report)
    return found.proposals


def find(
    fit: Fit,
    target: Target,
    *,
    storage: Path,
    measurements: int = 24,
    estimated: int = 0,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Measure the shapes that a study proposes, let the time model add to them, and rank them.

    The baseline is a known model where it has the budget's size, else a shape of its proportions.
    Every other shape lies within 10 % of the ratios that the law was fitted on.

    Parameters
    ----------
    measurements
        Shapes that the engine is asked about.
    estimated
        The most shapes to add that only the time model answers for; with any, a third of the
        measurements, and one for each shape that the engine refused, goes to the leaders that the
        time model names.

    Returns
    -------
    The baseline first, then the front from accurate to fast, then the rest by predicted loss.

    Raises
    ------
    InputError
        No shape of the budget lies in the fitted ranges, the engine runs none, or none meets the
        service level.
    """
    table, baseline, enumerated = _candidates(fit, target)
    frame = table.frame().assign(**{D: target.tokens})
    losses = fit.central(frame)
    best = _best(fit, table, np.where(np.arange(len(table)) == baseline, np.inf, losses))
    first = [baseline, best, *_cheap_front(table, losses, target.workload)]
    question = Question(
        table=table, losses=losses, workload=target.workload, device=device_of(target.engine)
    )

    def ask(rows: list[int], wanted: int) -> Found:
        effort = Effort(first=list(dict.fromkeys(rows)), measurements=wanted, seed=seed)
        return explore(question, target.engine, effort, storage=storage, report=report).known

    leaders = measurements // LEADERS if estimated else 0
    found = ask(first[: max(2, measurements - leaders)], measurements - leaders)
    if not any(isinstance(result, Measurement) for result in found.values()):
        raise InputError(f"the engine ran none of the shapes: {next(iter(found.values()))}")
    speaks = estimated > 0 and len(found) < len(table)
    for _ in range(ROUNDS if speaks else 0):
        missing = measurements - sum(isinstance(result, Measurement) for result in found.values())
        before = estimate(table, found, target.engine, target.workload)
        ahead = ahead_of(before, found, losses, baseline, among=runnable(table, found))
        wanted = thinned(ahead, missing)
        if not wanted:
            break
        found = ask([*found, *wanted], len(found) + len(wanted))
    added: dict[int, Measurement] = {}
    model = estimate(table, found, target.engine, target.workload) if speaks else None
    if model is not None:
        ahead = ahead_of(model, found, losses, baseline)
        added = {row: model.measurement(row) for row in thinned(ahead, estimated)}
    _served(found, model, target.workload)
    everything: Found = {**found, **added}
    roles = _roles(everything, losses, baseline, best, target.workload)
    held_out = check(table, found, target.engine, target.workload) if speaks else None
    return Outcome(
        proposals=_ranked(fit, target, table, frame, everything, roles),
        enumerated=enumerated,
        considered=len(table),
        notes=unseen_by(fit),
        check=held_out,
        answered_shapes=tuple(table[row] for row in held_out.rows) if held_out else (),
    )


def _candidates(fit: Fit, target: Target) -> tuple[ShapeTable, int, int]:
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
    if np.isfinite(target.worse):
        losses = fit.central(everything.frame().assign(**{D: target.tokens}))
        near = mask & (losses <= losses[baseline] * (1 + target.worse))
        if not near.any():
            raise InputError(
                f"`predicted loss <= {1 + target.worse:g} x the baseline's` leaves none of the "
                f"{mask.sum()} shapes in the fitted ranges: the best of them has "
                f"{losses[mask].min() / losses[baseline]:.3f} times the baseline's; raise --worse"
            )
        mask = near
    mask[baseline] = True
    return everything.take(mask), int(mask[:baseline].sum()), len(everything)


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
    one = ShapeTable.of([own])
    columns = {f.name: np.append(getattr(table, f.name), getattr(one, f.name)) for f in fields(one)}
    return ShapeTable(**columns), len(table)


def _served(found: Found, model: Estimates | None, workload: Workload) -> None:
    """Refuse a service level that nothing meets, by what was answered and what is estimated."""
    answered = [result for result in found.values() if isinstance(result, Measurement)]
    ttft = np.array([result.ttft for result in answered])
    tpot = np.array([result.tpot for result in answered])
    if model is not None:
        ttft, tpot = np.append(ttft, model.ttft), np.append(tpot, model.tpot)
    require_service(ttft, tpot, workload)


def _best(fit: Fit, table: ShapeTable, losses: np.ndarray) -> int:
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


def _cheap_front(table: ShapeTable, losses: np.ndarray, workload: Workload) -> list[int]:
    """A few shapes along the front of predicted loss against FLOPs and cache per token.

    The cost is a stand-in that needs no measurement: it only decides where the search begins.
    """
    context = workload.input_tokens + workload.output_tokens / 2
    cost = table.forward_flops(context) + table.kv_bytes(4) * context
    rows = np.flatnonzero(front(losses, 1 / cost))
    rows = rows[np.argsort(losses[rows])]
    picked = np.linspace(0, len(rows) - 1, min(SPREAD, len(rows))).round().astype(int)
    return [int(row) for row in rows[picked]]


def _roles(
    found: Mapping[int, Measurement | str],
    losses: np.ndarray,
    baseline: int,
    best: int,
    workload: Workload,
) -> dict[int, str]:
    """Who is who: the baseline, the lowest predicted loss, the fastest of no more loss than it.

    ``fast`` is the fastest shape that meets the service level, whose predicted loss is at most the
    baseline's, and that is not the loss-optimal one.
    """
    roles = dict.fromkeys(found, CANDIDATE)
    speeds = {
        row: result.output_tokens_per_second
        for row, result in found.items()
        if isinstance(result, Measurement) and not broken_limits(result, workload)
    }
    equal = [
        row for row in speeds if losses[row] <= losses[baseline] and row not in (baseline, best)
    ]
    if equal:
        roles[max(equal, key=lambda row: speeds[row])] = FAST
    roles[best] = LOSS_OPTIMAL
    roles[baseline] = BASELINE
    return roles


def _ranked(
    fit: Fit,
    target: Target,
    table: ShapeTable,
    frame: pd.DataFrame,
    found: Found,
    roles: dict[int, str],
) -> list[Proposal]:
    baseline = next(row for row, role in roles.items() if role == BASELINE)
    rows = [baseline, *(row for row in found if row != baseline)]
    own = frame.iloc[rows]
    predicted = pd.concat([fit.predict(own), differences(fit, own, 0)], axis=1)
    reference = found[baseline]
    proposals = []
    for row, (_, prediction) in zip(rows, predicted.iterrows(), strict=True):
        result = found[row]
        measured = result if isinstance(result, Measurement) else None
        numbers = {str(name): float(value) for name, value in prediction.items()}
        numbers = {name: value for name, value in numbers.items() if not name.startswith("mean_")}
        proposals.append(
            Proposal(
                shape=table[row],
                role=roles[row],
                tokens=int(frame[D].iloc[row]),
                throughput=measured,
                warnings=_warnings(fit, frame.iloc[row], result, target.workload),
                speedup=_speedup(measured, reference),
                **numbers,  # type: ignore[arg-type]
            )
        )
    proposals = _with_accuracy(proposals, target)
    return with_reasons(_sorted(mark_front(proposals, target.workload)))


def _warnings(
    fit: Fit, row: "pd.Series[Any]", result: Measurement | str, workload: Workload
) -> list[str]:
    """Where a shape lies outside of what was fitted, and what is wrong with its speed."""
    words = fit.warnings({name: row[name] for name in fit.ranges})
    if isinstance(result, str):
        return [*words, f"not measured: {result}"]
    if result.disturbed:
        words.append("the measurement was disturbed: something else used the core")
    return words + broken_limits(result, workload)


def _speedup(measured: Measurement | None, reference: Measurement | str) -> float | None:
    if measured is None or isinstance(reference, str):
        return None
    return measured.output_tokens_per_second / reference.output_tokens_per_second


def _with_accuracy(proposals: list[Proposal], target: Target) -> list[Proposal]:
    """Mean accuracy over the links' tasks, where they hold for the law's losses."""
    links = target.links
    if links is None:
        return proposals
    return [
        replace(
            p,
            accuracy=links.predict(
                p.predicted_loss,
                validation=target.validation,
                loss_low=min(p.loss_low, p.predicted_loss),
                loss_high=max(p.loss_high, p.predicted_loss),
            ).mean,
        )
        for p in proposals
    ]


def _sorted(proposals: list[Proposal]) -> list[Proposal]:
    return sorted(
        proposals,
        key=lambda p: (p.role != BASELINE, not p.on_front, p.predicted_loss),
    )
