"""From a law and a budget to ranked proposals: enumerate, predict, search, name the roles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape, ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import D
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.proposals.candidate_set import (
    Target,
    best_of,
    candidates,
    cheap_front,
    holds_gqa,
)
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    FAST,
    LOSS_OPTIMAL,
    Proposal,
)
from shapelaw.search.proposals.reasons import (
    broken_limits,
    differences,
    mark_front,
    require_service,
    unseen_by,
    with_reasons,
)
from shapelaw.search.study.confirmation import measure_again
from shapelaw.search.study.problem import Goal, Question
from shapelaw.search.study.sampler import CALIBRATED
from shapelaw.search.study.storage import Address
from shapelaw.search.study.study import Effort, Found, explore
from shapelaw.search.time_model.estimates import (
    Check,
    Estimates,
    ahead_of,
    check,
    device_of,
    estimate,
    runnable,
    thinned,
)
from shapelaw.search.workload import Workload

ROUNDS = 3  # times that refused shapes are made up for
LEADERS = 3  # one in so many measurements goes to the leaders of the time model
Answers = dict[int, Measurement | str]


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


@dataclass(frozen=True, kw_only=True)
class Search:
    """How shapes are found.

    Attributes
    ----------
    measurements
        Shapes that the engine is asked about.
    estimated
        The most shapes to add that only the time model answers for; with any, a third of the
        measurements, and one for each shape that the engine refused, goes to the leaders that the
        time model names.
    leaders
        Shapes that an engine which really measures is asked about again at the end, beside the
        baseline and in turns with it.
    short
        Output tokens of the search, where that is fewer than the workload's; then only the leaders
        are measured at full length and proposed (arXiv 2510.18245 and 2508.10251 do so).
    sampler
        One of :data:`shapelaw.search.study.sampler.SAMPLERS`.
    """

    measurements: int = 24
    estimated: int = 0
    leaders: int = 8
    short: int | None = None
    sampler: str = CALIBRATED
    seed: int = 0


def propose(
    fit: Fit,
    target: Target,
    *,
    storage: Address,
    measurements: int = 24,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> list[Proposal]:
    """Measure the shapes that a study proposes and rank them: the proposals of :func:`find`.

    Leaders are not measured again: who starts the same study again gets the same proposals.
    """
    effort = Search(measurements=measurements, leaders=0, seed=seed)
    return find(fit, target, effort, storage=storage, report=report).proposals


def find(
    fit: Fit,
    target: Target,
    effort: Search,
    *,
    storage: Address,
    report: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Measure the shapes that a study proposes, let the time model add to them, and rank them.

    The baseline is a known model where it has the budget's size, else a shape of its proportions.
    Every other shape lies within 10 % of the ratios that the law was fitted on.

    Returns
    -------
    The baseline first, then the front from accurate to fast, then the rest by predicted loss.

    Raises
    ------
    InputError
        No shape of the budget lies in the fitted ranges, the engine runs none, or none meets the
        service level.
    """
    table, baseline, enumerated = candidates(fit, target)
    frame = table.frame().assign(**{D: target.tokens})
    losses = fit.central(frame)
    best = best_of(fit, table, np.where(np.arange(len(table)) == baseline, np.inf, losses))
    first = [baseline, best, *cheap_front(table, losses, target.workload)]
    goal = Goal(max_loss=float(losses[baseline]), fastest=True) if target.fastest else Goal()
    work = target.workload if effort.short is None else target.workload.shortened(effort.short)
    question = Question(
        table=table, losses=losses, workload=work, goal=goal, device=device_of(target.engine)
    )
    answers = _answers(question, target.engine, effort, first, storage, report)
    found, probability = _confirmed(answers, target, effort, baseline)
    speaks = effort.estimated > 0 and len(found) < len(table) and work == target.workload
    added: dict[int, Measurement] = {}
    model = estimate(table, found, target.engine, target.workload) if speaks else None
    if model is not None:
        ahead = ahead_of(model, found, losses, baseline)
        added = {row: model.measurement(row) for row in thinned(ahead, effort.estimated)}
    _served(found, model, target.workload)
    everything: Answers = {**found, **added}
    roles = _roles(everything, losses, baseline, best, target.workload)
    held_out = check(table, found, target.engine, target.workload) if speaks else None
    return Outcome(
        proposals=_ranked(fit, target, table, frame, everything, roles, probability),
        enumerated=enumerated,
        considered=len(table),
        notes=unseen_by(fit, held=("gqa",) if holds_gqa(fit, target.space) else ()),
        check=held_out,
        answered_shapes=tuple(table[row] for row in held_out.rows) if held_out else (),
    )


def _answers(
    question: Question,
    engine: Engine,
    effort: Search,
    first: list[int],
    storage: Address,
    report: Callable[[int], None],
) -> Found:
    """What the engine says of the shapes that the study, and then the time model, ask about."""
    baseline = first[0]

    def ask(rows: list[int], wanted: int) -> Found:
        asked = Effort(
            first=list(dict.fromkeys(rows)), measurements=wanted, sampler=effort.sampler,
            seed=effort.seed,
        )  # fmt: skip
        return explore(question, engine, asked, storage=storage, report=report)

    leaders = effort.measurements // LEADERS if effort.estimated else 0
    wanted = effort.measurements - leaders
    found = ask(first[: max(2, wanted)], wanted)
    if not found.measured:
        raise InputError(f"the engine ran none of the shapes: {next(iter(found.known.values()))}")
    for _ in range(ROUNDS if effort.estimated and len(found.known) < len(question.table) else 0):
        missing = effort.measurements - len(found.measured)
        before = estimate(question.table, found.known, engine, question.workload)
        among = runnable(question.table, found.known)
        ahead = ahead_of(before, found.known, question.losses, baseline, among=among)
        rows = thinned(ahead, missing)
        if not rows:
            break
        found = ask([*found.known, *rows], len(found.known) + len(rows))
    return found


def _confirmed(
    found: Found, target: Target, effort: Search, baseline: int
) -> tuple[Answers, dict[int, float]]:
    """The answers with the leaders measured again, and these rows' chances of being in front."""
    if target.engine.kind != "measured" or effort.leaders < 1:
        return found.known, {}
    full = target.workload
    again = measure_again(found, target.engine, workload=full, most=effort.leaders,
                          always=[baseline])  # fmt: skip
    if found.question.workload != full:
        return again.again, again.probability
    return {**found.known, **again.again}, again.probability


def _served(found: Answers, model: Estimates | None, workload: Workload) -> None:
    """Refuse a service level that nothing meets, by what was answered and what is estimated."""
    answered = [result for result in found.values() if isinstance(result, Measurement)]
    ttft = np.array([result.ttft for result in answered])
    tpot = np.array([result.tpot for result in answered])
    if model is not None:
        ttft, tpot = np.append(ttft, model.ttft), np.append(tpot, model.tpot)
    require_service(ttft, tpot, workload)


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
    found: Answers,
    roles: dict[int, str],
    probability: Mapping[int, float],
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
                front_probability=probability.get(row),
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
