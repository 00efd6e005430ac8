"""The stages of a search for proposals: enumerate, measure, estimate, rank, explain.

Each stage takes the value of the previous stage and returns its own:
:class:`~shapelaw.search.proposals.candidate_set.CandidateSet` → :class:`Measured` →
:class:`Estimated` → :class:`~shapelaw.search.proposals.ranking.Proposals`.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from shapelaw.scaling.display.progress import working
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import nothing_left
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines.accelerators import device_of
from shapelaw.search.proposals.basis import LossBasis, loss_basis
from shapelaw.search.proposals.candidate_set import CandidateSet, candidate_set, computed_cost
from shapelaw.search.proposals.family_candidates import family_candidates
from shapelaw.search.proposals.family_request import FamilyRequest
from shapelaw.search.proposals.leaders import (
    require_service,
    rows_ahead,
    runnable,
    served_rates,
    within_service,
)
from shapelaw.search.proposals.ranking import Proposals, rank
from shapelaw.search.proposals.reasons import explain
from shapelaw.search.proposals.request import ProposalRequest
from shapelaw.search.study.confirmation import measure_again
from shapelaw.search.study.problem import Goal, SearchProblem
from shapelaw.search.study.storage import Address, check_study
from shapelaw.search.study.study import Report, SearchResult, explore
from shapelaw.search.time_model.cross_validation import (
    MIN_MEASUREMENTS,
    CrossValidation,
    cross_validate,
)
from shapelaw.search.time_model.estimates import Estimates, estimate
from shapelaw.search.workload import Workload

STUDY = "study.log"  # Optuna's journal in a folder of proposals
OPENING = 6  # shapes of the front of computed cost that are measured first
ROUNDS = 3  # rounds of measuring further shapes in place of refused ones
LEADER_SHARE = 3  # one in LEADER_SHARE measurements goes to the leaders of the time model


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Candidates with the engine's results for some of them.

    Attributes
    ----------
    results
        By row, the measurement, or the engine's reason why it cannot run the shape.
    front_probability
        By row, the probability that a shape is on the front of the shapes measured again at the
        end.
    """

    candidates: CandidateSet
    results: dict[int, Measurement | str]
    front_probability: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """Measured candidates with the time model's estimates for some of the others.

    Attributes
    ----------
    answers
        By row, the engine's result, or else the time model's estimate.
    cross_validation
        The time model's leave-one-out cross-validation on the measured shapes, in their order; None
        if nothing was estimated or there are too few measurements.
    """

    measured: Measured
    answers: dict[int, Measurement | str]
    cross_validation: CrossValidation | None = None


def propose(
    request: ProposalRequest,
    basis: LossBasis | Fit | str | Path | None,
    *,
    out: Path | None = None,
    report: Report | None = None,
) -> Proposals:
    """Search the shapes of a budget for the front of predicted loss against throughput.

    Parameters
    ----------
    request
        Budget, space, serving and effort of the search.
    basis
        The law that predicts losses: :func:`shapelaw.search.proposals.basis.loss_basis` loads or
        fits one, and ``LossBasis(fit=..., runs=...)`` holds one that is fitted already. Another
        value is given to ``loss_basis``.
    out
        Folder for ``proposals.json``, ``fit.json``, a config for every shape, and the study if the
        request names no other storage. A study that exists there is continued.
    report
        Called with the number of shapes measured so far; None: a progress bar, if the command
        shows one.

    Returns
    -------
    The baseline first, then the front from accurate to fast, then the rest by predicted loss.

    Raises
    ------
    InputError
        No shape of the budget lies in the fitted ranges, the engine runs none, or none meets the
        service level.

    Examples
    --------
    Shapes of a billion parameters for chat on one H100, by its roofline and a published law:

    >>> import pandas, shapelaw
    >>> request = shapelaw.ProposalRequest(
    ...     budget=shapelaw.Budget(parameters=1_000_000_000, tokens=100_000_000_000),
    ...     space=shapelaw.SpaceOptions(baseline="llama-3.2-1b", where=("gqa <= 8",)),
    ...     serving=shapelaw.Serving(
    ...         workload=shapelaw.parse_workload("chat@64:bf16"),
    ...         engine=shapelaw.engine_named("roofline:h100"),
    ...     ),
    ...     effort=shapelaw.SearchEffort(measurements=8, estimated=0),
    ... )
    >>> proposals = shapelaw.propose(request, shapelaw.loss_basis("paper-2510.18245"))
    >>> proposals[0].role, proposals[0].name
    ('baseline', 'd2048-L16-h32-8x64-f8192')
    >>> table = pandas.DataFrame([proposal.row() for proposal in proposals]).set_index("role")
    >>> bool(table.loc["fast", "speedup"] > 1)
    True
    >>> bool(table.loc["fast", "predicted_loss"] <= table.loc["baseline", "predicted_loss"])
    True
    """
    if not isinstance(basis, LossBasis):
        basis = loss_basis(basis)
    if out is not None and request.effort.storage is None:
        request = replace(request, effort=replace(request.effort, storage=out / STUDY))
    with nullcontext() if out is None else nothing_left(out):
        enumerated = family_candidates if isinstance(request, FamilyRequest) else candidate_set
        candidates = enumerated(request, basis)  # type: ignore[arg-type]
        measured = measure_candidates(candidates, report)
        estimated = estimate_others(measured)
        proposals = explain(rank(estimated))
    if out is not None:
        proposals.write(out)
    return proposals


def measure_candidates(candidates: CandidateSet, report: Report | None = None) -> Measured:
    """Measure the shapes that a study proposes, then the leaders of the time model and the study.

    Raises
    ------
    InputError
        The engine can run none of the shapes.
    """
    request = candidates.request
    if request.serving.engine.is_formula:
        return _compute_candidates(candidates)
    max_loss = float(candidates.losses[candidates.baseline])
    problem = SearchProblem(
        table=candidates.table,
        losses=candidates.losses,
        workload=_search_workload(request),
        goal=Goal(max_loss=max_loss, fastest=True) if request.space.fastest else Goal(),
        device=device_of(request.serving.engine),
        about={
            "baseline": request.space.baseline,
            "baseline_shape": candidates.table[candidates.baseline].name,
        },
    )
    with working("measuring shapes", total=request.effort.measurements) as show:
        searched = _search(problem, candidates, report or show)
    if request.serving.engine.kind != "measured" or request.effort.leaders < 1:
        return Measured(candidates=candidates, results=searched.results)
    with working("measuring the leaders again"):
        again = measure_again(
            searched,
            request.serving.engine,
            workload=request.serving.workload,
            most=request.effort.leaders,
            always=[candidates.baseline],
        )
    same_workload = problem.workload == request.serving.workload
    return Measured(
        candidates=candidates,
        results={**searched.results, **again.again} if same_workload else again.again,
        front_probability=again.probability,
    )


def _compute_candidates(candidates: CandidateSet) -> Measured:
    """Compute the speed of every candidate, and keep the answers for those ahead."""
    request = candidates.request
    engine, workload = request.serving.engine, request.serving.workload
    check_study(request.effort.storage)
    rates, ttft, tpot = engine.speeds(candidates.table, workload)
    if np.isfinite(ttft).any():
        require_service(ttft, tpot, workload)
    rates = within_service(rates, ttft, tpot, workload)
    most = request.effort.measurements + request.effort.estimated
    rows = list(dict.fromkeys([candidates.baseline, *rows_ahead(rates, candidates, most - 1)]))
    answers = engine.measure_all([candidates.table[row] for row in rows], workload)
    if not any(isinstance(answer, Measurement) for answer in answers):
        raise InputError(f"the engine ran none of the shapes: {answers[0]}")
    return Measured(candidates=candidates, results=dict(zip(rows, answers, strict=True)))


def _search_workload(request: ProposalRequest) -> Workload:
    workload, short = request.serving.workload, request.effort.short
    return workload if short is None else workload.shortened(short)


def _search(problem: SearchProblem, candidates: CandidateSet, report: Report) -> SearchResult:
    """Run the study, then measure leaders of the time model, also in place of refused shapes."""
    engine, effort = candidates.request.serving.engine, candidates.request.effort
    storage = _in_memory() if effort.storage is None else effort.storage

    def measure(rows: list[int], wanted: int) -> SearchResult:
        limited = replace(effort, first=list(dict.fromkeys(rows)), measurements=wanted)
        return explore(problem, engine, limited, storage=storage, report=report)

    wanted = effort.measurements
    if effort.estimated:
        wanted -= effort.measurements // LEADER_SHARE
    searched = measure(_opening(candidates)[: max(2, wanted)], wanted)
    if not searched.measured:
        raise InputError(
            f"the engine ran none of the shapes: {next(iter(searched.results.values()))}"
        )
    for _ in range(
        ROUNDS if effort.estimated and len(searched.results) < len(problem.table) else 0
    ):
        missing = effort.measurements - len(searched.measured)
        model = estimate(problem.table, searched.results, engine, problem.workload)
        rates = served_rates(model, searched.results)
        can_run = runnable(problem.table, searched.results)
        known = np.isin(np.arange(len(rates)), list(searched.results))
        rates = np.where(can_run | known, rates, 0.0)
        rows = rows_ahead(rates, candidates, missing, known=searched.results)
        if not rows:
            break
        searched = measure([*searched.results, *rows], len(searched.results) + len(rows))
    return searched


def _in_memory() -> Address:
    from optuna.storages import InMemoryStorage

    return InMemoryStorage()


def _opening(candidates: CandidateSet) -> list[int]:
    """Choose the rows to measure first: baseline, lowest loss, and a front of computed cost.

    The cost is FLOPs and cache bytes per token. It needs no measurement and only decides where the
    search begins.
    """
    losses, apart = candidates.losses, candidates.apart
    speed = np.where(apart, 0.0, 1 / computed_cost(candidates.table, candidates.request))
    rows = np.flatnonzero(front(losses, speed) & ~apart)
    rows = rows[np.argsort(losses[rows])]
    picked = np.linspace(0, len(rows) - 1, min(OPENING, len(rows))).round().astype(int)
    return [candidates.baseline, *(int(row) for row in rows[picked])]


def estimate_others(measured: Measured) -> Estimated:
    """Fit the time model to the measured shapes and estimate others that may be on the front.

    Raises
    ------
    InputError
        No shape meets the service level.
    """
    candidates, results = measured.candidates, measured.results
    table, request = candidates.table, candidates.request
    engine, workload = request.serving.engine, request.serving.workload
    short_search = _search_workload(request) != workload
    if engine.is_formula:
        return Estimated(measured=measured, answers=results)
    if not request.effort.estimated or len(results) >= len(table) or short_search:
        _check_service(results, None, workload)
        return Estimated(measured=measured, answers=results)
    model = estimate(table, results, engine, workload)
    _check_service(results, model, workload)
    rates = served_rates(model, results)
    rows = rows_ahead(rates, candidates, request.effort.estimated, known=results)
    measured_rows = [row for row, result in results.items() if isinstance(result, Measurement)]
    return Estimated(
        measured=measured,
        answers={**results, **{row: model.measurement(row) for row in rows}},
        cross_validation=None
        if len(measured_rows) < MIN_MEASUREMENTS
        else cross_validate(
            table.take(np.array(measured_rows)),
            [result for result in results.values() if isinstance(result, Measurement)],
            workload,
            folds=len(measured_rows),
            device=device_of(engine),
        ),
    )


def _check_service(
    results: Mapping[int, Measurement | str], model: Estimates | None, workload: Workload
) -> None:
    """Check that a measured or estimated shape meets the service level."""
    measurements = [result for result in results.values() if isinstance(result, Measurement)]
    ttft = np.array([measurement.ttft for measurement in measurements])
    tpot = np.array([measurement.tpot for measurement in measurements])
    if model is not None:
        ttft, tpot = np.append(ttft, model.ttft), np.append(tpot, model.tpot)
    require_service(ttft, tpot, workload)
