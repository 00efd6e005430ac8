"""The ``propose`` command: from what a person types to ranked proposals."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.files import nothing_left
from shapelaw.scaling.fitting.result import Fit
from shapelaw.search.proposals.basis import law_of
from shapelaw.search.proposals.candidate_set import Target
from shapelaw.search.proposals.pareto_search import Outcome, Search, find
from shapelaw.search.proposals.proposal import Proposal, write_proposals
from shapelaw.search.proposals.reasons import of_the_budget, plainly
from shapelaw.search.proposals.request import MEASUREMENTS, ProposalRequest, target_of


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Proposals with what they rest on: ``basis`` in a line, ``notes`` that hold for every row."""

    proposals: list[Proposal]
    basis: str
    notes: list[str]
    about: dict[str, Any]


def answer(request: ProposalRequest, out: Path | None) -> Answer:
    """Find proposals and, where ``out`` is given, write them there.

    Raises
    ------
    InputError
        Something cannot be read, or no shape fits.
    """
    target = target_of(request)
    fitted, basis = law_of(request)
    with tempfile.TemporaryDirectory() as scratch, nothing_left(out or Path(scratch)):
        outcome = find(
            fitted,
            target,
            Search(
                measurements=request.measurements or MEASUREMENTS,
                estimated=request.estimated,
                short=request.short,
                sampler=request.sampler,
                seed=request.seed,
            ),
            storage=request.storage or (out or Path(scratch)) / "study.log",
        )
    about = _about(request, target, fitted, basis, outcome)
    if out is not None:
        work = target.workload
        length = work.input_tokens + work.output_tokens
        write_proposals(out, outcome.proposals, about, context=length)
        fitted.save(out / "fit.json")
    return Answer(
        proposals=outcome.proposals,
        basis=basis,
        notes=[*map(plainly, about["extrapolation"]), *about["notes"]],
        about=about,
    )


def _about(
    request: ProposalRequest, target: Target, fitted: Fit, basis: str, outcome: Outcome
) -> dict[str, Any]:
    """What ``proposals.json`` says of the search beside its rows."""
    found = outcome.check
    names = {p.shape: p.name for p in outcome.proposals}
    return {
        "baseline": request.baseline,
        "workload": str(target.workload),
        "engine": target.engine.label,
        "parameters": target.space.parameters,
        "convention": target.space.convention,
        "tolerance": target.space.tolerance,
        "where": list(request.where),
        "tokens": target.tokens,
        "worse": target.worse if np.isfinite(target.worse) else None,
        "fit_sha256": fitted.data_sha256,
        "basis": basis,
        "notes": [*fitted.notes, *outcome.notes],
        "extrapolation": common_warnings(outcome.proposals),
        "noise": fitted.noise,
        "shapes": {"enumerated": outcome.enumerated, "considered": outcome.considered},
        "time_model": found
        and {
            "shapes": [names.get(shape, "") for shape in outcome.answered_shapes],
            "answered": found.answered,
            "predicted": found.predicted,
            "error": found.error,
            "rank_correlation": found.rank_correlation,
        },
    }


def common_warnings(proposals: list[Proposal]) -> list[str]:
    """What is true of the budget, not of one shape: how far N and tokens lie from the runs.

    The words are those of the baseline.
    """
    return [words for words in proposals[0].warnings if of_the_budget(words)]
