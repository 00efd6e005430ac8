"""Rank proposals: roles, warnings and order."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.candidate_set import (
    Target,
)
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    FAST,
    LOSS_OPTIMAL,
    Proposal,
)
from shapelaw.search.proposals.reasons import differences, mark_front, with_reasons
from shapelaw.search.workload import Workload

Answers = dict[int, Measurement | str]


def assign_roles(
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


def ranked_proposals(
    fit: Fit,
    target: Target,
    table: ShapeTable,
    frame: pd.DataFrame,
    found: Answers,
    roles: dict[int, str],
    probability: Mapping[int, float],
) -> list[Proposal]:
    """Make the proposals of the shapes that have a role, with reasons, best first."""
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
