"""The ranking of shapes by role, front and predicted loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.documents import finite
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import LEVEL
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.law_forms import FormSpread, spread_over_forms
from shapelaw.search.proposals.probabilities import (
    probability_faster,
    probability_of_best,
    probability_of_less_loss,
)
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    FAST,
    LOSS_OPTIMAL,
    Proposal,
    write_proposals,
)
from shapelaw.search.workload import Workload

if TYPE_CHECKING:
    from shapelaw.search.proposals.pareto_search import Estimated

Answers = dict[int, Measurement | str]


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The ranked proposals of a search, with the stages that they come from.

    Attributes
    ----------
    ranked
        The baseline first, then the front from accurate to fast, then the rest by predicted loss.
    rows
        Rows of the proposals in the table of candidates.
    form_spread
        Spread of the predicted losses over alternative forms of the law.
    notes, extrapolation
        Sentences that hold for every proposal: about the law, and about the distance of the budget
        from the runs.
    """

    estimated: "Estimated"
    ranked: tuple[Proposal, ...]
    rows: tuple[int, ...]
    form_spread: FormSpread
    notes: tuple[str, ...] = ()
    extrapolation: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Proposal]:
        return iter(self.ranked)

    def __len__(self) -> int:
        return len(self.ranked)

    def __getitem__(self, place: int) -> Proposal:
        return self.ranked[place]

    def about(self) -> dict[str, Any]:
        """Return the fields of ``proposals.json`` about the search, beside the rows."""
        candidates = self.estimated.measured.candidates
        request, basis, space = candidates.request, candidates.basis, candidates.request.shape_space
        worse = request.space.worse_percent
        return {
            "baseline": request.space.baseline,
            "workload": str(request.serving.workload),
            "engine": request.serving.engine.label,
            "parameters": space.parameters,
            "convention": space.convention,
            "tolerance": space.tolerance,
            "where": list(request.space.where),
            "tokens": request.budget.tokens,
            "worse": None if worse is None else worse / 100,
            "fit_sha256": basis.fit.data_sha256,
            "basis": basis.description,
            "notes": list(self.notes),
            "extrapolation": list(self.extrapolation),
            "noise": basis.fit.noise,
            "shapes": {"enumerated": candidates.enumerated, "considered": len(candidates.table)},
            "time_model": self._time_model(),
        }

    def _time_model(self) -> dict[str, Any] | None:
        """Return the time model's leave-one-out error, with the names of the shapes shown."""
        checked, measured = self.estimated.cross_validation, self.estimated.measured
        if checked is None:
            return None
        names = dict(zip(self.rows, (p.name for p in self.ranked), strict=True))
        measured_rows = [
            row for row, result in measured.results.items() if isinstance(result, Measurement)
        ]
        return {
            "shapes": [names.get(row, "") for row in measured_rows],
            "answered": checked.measured.tolist(),
            "predicted": checked.predicted.tolist(),
            "error": checked.mape,
            "rank_correlation": finite(checked.spearman),
        }

    def write(self, folder: Path) -> None:
        """Write ``proposals.json``, ``fit.json`` and a Hugging Face config for every shape."""
        candidates = self.estimated.measured.candidates
        workload = candidates.request.serving.workload
        length = workload.input_tokens + workload.output_tokens
        write_proposals(folder, self.ranked, self.about(), context=length)
        candidates.basis.fit.save(folder / "fit.json")


def rank(estimated: "Estimated") -> Proposals:
    """Rank every measured or estimated shape, with its role and predictions."""
    measured = estimated.measured
    candidates = measured.candidates
    fit, links = candidates.basis.fit, candidates.basis.links
    answers = estimated.answers
    baseline, workload = candidates.baseline, candidates.request.serving.workload
    roles = assign_roles(answers, candidates.losses, baseline, candidates.best, workload)
    rows = [baseline, *(row for row in answers if row != baseline)]
    frame = candidates.frame.iloc[rows]
    form_spread = spread_over_forms(candidates.basis, frame)
    predicted = pd.concat([fit.predict(frame), differences(fit, frame, 0)], axis=1)
    on_front = front_of(predicted["predicted_loss"].tolist(), [answers[r] for r in rows], workload)
    probabilities = _probabilities(fit.log_loss_draws(frame), [answers[r] for r in rows], workload)
    proposals = []
    for place, row in enumerate(rows):
        result = answers[row]
        numbers = {str(name): float(value) for name, value in predicted.iloc[place].items()}
        proposals.append(
            Proposal(
                shape=candidates.table[row],
                role=roles[row],
                tokens=candidates.request.budget.tokens,
                throughput=result if isinstance(result, Measurement) else None,
                on_front=on_front[place],
                speedup=_speedup(result, answers[baseline]),
                front_probability=measured.front_probability.get(row),
                loss_form_spread=form_spread.at(place),
                accuracy=None
                if links is None
                else links.predict(
                    numbers["predicted_loss"],
                    validation=candidates.basis.validation,
                    loss_low=min(numbers["loss_low"], numbers["predicted_loss"]),
                    loss_high=max(numbers["loss_high"], numbers["predicted_loss"]),
                ).mean,
                **probabilities[place],  # type: ignore[arg-type]
                **{name: numbers[name] for name in LOSS_FIELDS},  # type: ignore[arg-type]
            )
        )
    order = sorted(range(len(rows)), key=lambda place: _order(proposals[place]))
    return Proposals(
        estimated=estimated,
        ranked=tuple(proposals[place] for place in order),
        rows=tuple(rows[place] for place in order),
        form_spread=form_spread,
    )


LOSS_FIELDS = (
    *("predicted_loss", "loss_low", "loss_high"),
    *("difference", "difference_low", "difference_high"),
)


def _probabilities(
    draws: np.ndarray, answers: Sequence[Measurement | str], workload: Workload
) -> list[dict[str, float | str | None]]:
    """Compute the probabilities of every proposal against the first one, the baseline.

    Parameters
    ----------
    draws
        Joint draws of ln loss, (S, n).
    answers
        Speeds or reasons, in the order of the columns.
    """
    less_loss = probability_of_less_loss(draws, 0)
    allowed = [isinstance(a, Measurement) and not broken_limits(a, workload) for a in answers]
    best = probability_of_best(draws, allowed)
    faster = [probability_faster(answer, answers[0]) for answer in answers]
    rows: list[dict[str, float | str | None]] = [
        {
            "p_less_loss": float(less_loss[place]),
            "p_faster": faster[place][0],
            "p_faster_basis": faster[place][1],
            "p_best": best[place],
        }
        for place in range(len(answers))
    ]
    rows[0] = {"p_best": best[0]}
    return rows


def _order(proposal: Proposal) -> tuple[bool, bool, float]:
    return proposal.role != BASELINE, not proposal.on_front, proposal.predicted_loss


def assign_roles(
    answers: Answers, losses: np.ndarray, baseline: int, best: int, workload: Workload
) -> dict[int, str]:
    """Assign the roles ``baseline``, ``loss-optimal`` and ``fast``; all other rows are candidates.

    ``fast`` is the fastest shape that meets the service level, has at most the baseline's predicted
    loss, and is not the loss-optimal one.

    Parameters
    ----------
    losses
        Predicted losses of all candidates, (n,).
    baseline, best
        Rows of the baseline and of the lowest predicted loss.
    """
    roles = dict.fromkeys(answers, CANDIDATE)
    speeds = {
        row: result.output_tokens_per_second
        for row, result in answers.items()
        if isinstance(result, Measurement) and not broken_limits(result, workload)
    }
    no_worse = [
        row for row in speeds if losses[row] <= losses[baseline] and row not in (baseline, best)
    ]
    if no_worse:
        roles[max(no_worse, key=lambda row: speeds[row])] = FAST
    roles[best] = LOSS_OPTIMAL
    roles[baseline] = BASELINE
    return roles


def front_of(
    losses: Sequence[float],
    answers: Sequence[Measurement | str | None],
    workload: Workload | None = None,
) -> list[bool]:
    """Mark the front of loss against speed among shapes that run and meet the service level.

    Parameters
    ----------
    losses, answers
        Predicted loss of each shape, and its speed or the reason why it has none.
    workload
        Workload with the service level; None: no limits.
    """
    speeds = [
        result.output_tokens_per_second
        if isinstance(result, Measurement) and not (workload and broken_limits(result, workload))
        else 0.0
        for result in answers
    ]
    return [bool(on and speed) for on, speed in zip(front(losses, speeds), speeds, strict=True)]


def _speedup(result: Measurement | str, reference: Measurement | str) -> float | None:
    if isinstance(result, str) or isinstance(reference, str):
        return None
    return result.output_tokens_per_second / reference.output_tokens_per_second


def differences(fit: Fit, frame: pd.DataFrame, baseline: int) -> pd.DataFrame:
    """Predict the loss of every row minus the baseline's, with a 95 % confidence interval.

    The interval is that of the ratio of both true losses in each joint draw of the fit, times the
    baseline's predicted loss: uncertainty common to both cancels, the misfit of the law does not.

    Parameters
    ----------
    baseline
        Row of the baseline.

    Returns
    -------
    ``difference``, ``difference_low`` and ``difference_high`` in nats per token, (n,) each. The
    interval always includes the difference.
    """
    central, draws = np.log(fit.central(frame)), fit.log_loss_draws(frame)
    log_ratio = draws - draws[:, [baseline]]
    ends = np.percentile(log_ratio, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    reference = float(np.exp(central[baseline]))
    low, high = reference * np.expm1(ends)
    middle = reference * np.expm1(central - central[baseline])
    return pd.DataFrame(
        {
            "difference": middle,
            "difference_low": np.minimum(low, middle),
            "difference_high": np.maximum(high, middle),
        },
        index=frame.index,
    )
