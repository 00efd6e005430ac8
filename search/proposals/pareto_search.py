"""From a law and a budget to ranked proposals: enumerate, predict, search, name the roles."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.accelerators import device_of
from shapelaw.search.proposals.candidate_set import (
    Target,
    ahead_of,
    best_of,
    candidates,
    cheap_front,
    holds_gqa,
    runnable,
    thinned,
)
from shapelaw.search.proposals.proposal import (
    Proposal,
)
from shapelaw.search.proposals.ranking import Answers, assign_roles, ranked_proposals
from shapelaw.search.proposals.reasons import require_service, unseen_by
from shapelaw.search.study.confirmation import measure_again
from shapelaw.search.study.problem import Goal, Question
from shapelaw.search.study.sampler import CALIBRATED
from shapelaw.search.study.storage import Address
from shapelaw.search.study.study import Effort, Found, explore
from shapelaw.search.time_model.estimates import Estimates, TimeModelCheck, check, estimate
from shapelaw.search.workload import Workload

ROUNDS = 3  # times that refused shapes are made up for
LEADERS = 3  # one in so many measurements goes to the leaders of the time model


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
    check: TimeModelCheck | None = None
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
    roles = assign_roles(everything, losses, baseline, best, target.workload)
    held_out = check(table, found, target.engine, target.workload) if speaks else None
    return Outcome(
        proposals=ranked_proposals(fit, target, table, frame, everything, roles, probability),
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
