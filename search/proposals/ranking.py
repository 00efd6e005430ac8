"""The ranking of shapes by role, front and predicted loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shapelaw.scaling.accuracy.link import Links
from shapelaw.scaling.accuracy.predictions import Accuracy
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.decisions.equivalent_compute import equivalent_compute
from shapelaw.scaling.display.documents import finite
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import LEVEL
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.family_request import FamilyRequest
from shapelaw.search.proposals.law_forms import FormSpread, spread_over_forms
from shapelaw.search.proposals.leaders import served_rate
from shapelaw.search.proposals.paper_models import paper_models
from shapelaw.search.proposals.probabilities import (
    probability_faster,
    probability_of_best,
    probability_of_less_loss,
)
from shapelaw.search.proposals.proposal import (
    BASELINE,
    DIFFERENCES,
    EQUIVALENT,
    Proposal,
    write_proposals,
)
from shapelaw.search.proposals.request import ProposalRequest
from shapelaw.search.proposals.roles import assign_roles, front_of
from shapelaw.search.proposals.training_time import TRAINING_CONTEXT
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
        The baseline first, then the front from accurate to fast, then the rest by predicted loss,
        those of the other front (:attr:`Proposal.apart`) among them.
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

    @cached_property
    def paper_models(self) -> pd.DataFrame:
        """Return the models of a printed law's paper; see :func:`paper_models`."""
        candidates = self.estimated.measured.candidates
        return paper_models(candidates.basis, candidates.request.baseline)

    def about(self) -> dict[str, Any]:
        """Return the fields of ``proposals.json`` about the search, beside the rows."""
        candidates = self.estimated.measured.candidates
        request, basis, space = candidates.request, candidates.basis, candidates.request.shape_space
        worse = request.space.worse_percent
        return {
            "baseline": request.baseline_name,
            **({"family": request.family} if isinstance(request, FamilyRequest) else {}),
            "workload": str(request.serving.workload),
            "engine": request.serving.engine.label,
            "speed_basis": request.serving.engine.basis,
            "interval": basis.interval,
            "paper_models": self.paper_models.to_dict("records"),
            "parameters": space.parameters,
            "convention": space.convention,
            "tolerance": space.tolerance,
            "rules": None if request.rules is None else str(request.rules),
            "confidence": request.space.confidence,
            "not_in_law": list(candidates.not_in_law),
            "where": list(request.space.where),
            "tokens": request.tokens,
            "lifetime": request.budget.lifetime and request.budget.lifetime.document(),
            "training_time": request.budget.time and request.budget.time.document(),
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
    request, answers = candidates.request, estimated.answers
    workload, baseline = request.serving.workload, candidates.baseline
    rows = [baseline, *(row for row in answers if row != baseline)]
    frame, listed = candidates.frame.iloc[rows], [answers[row] for row in rows]
    form_spread = spread_over_forms(candidates.basis, frame)
    draws = fit.log_loss_draws(frame)
    predicted = pd.concat([fit.predict(frame), differences(fit, frame, 0)], axis=1)
    predicted = predicted.join(_worth(fit, frame, draws)).assign(
        training_speedup=_training_speedups(candidates.table.take(np.array(rows)))
    )
    losses, apart = predicted["predicted_loss"].to_numpy(), candidates.apart[rows]
    probabilities = _probabilities(draws, listed, workload)
    roles = assign_roles(
        losses,
        np.array([served_rate(answer, workload) for answer in listed]),
        probability_of_less_loss(draws, 0),
        ~apart,
        confidence=request.space.confidence,
    )
    on_front = front_of(losses, listed, workload, apart)
    proposals = [
        Proposal(
            shape=candidates.table[row],
            role=roles[place],
            tokens=int(request.budget.tokens_of(candidates.table[row])),
            lifetime_flops=_lifetime_flops(request, candidates.table[row]),
            workload=workload,
            throughput=answer if isinstance(answer, Measurement) else None,
            on_front=on_front[place],
            speedup=_speedup(answer, listed[0]),
            front_probability=measured.front_probability.get(row),
            loss_form_spread=form_spread.at(place),
            accuracy=None
            if links is None
            else _accuracy(links, candidates.basis.validation, predicted.iloc[place]),
            not_in_law=tuple(name for name, mask in candidates.not_in_law.items() if mask[row]),
            apart=bool(apart[place]),
            printed_fits=len(fit.draws) if candidates.basis.published else None,
            **probabilities[place],  # type: ignore[arg-type]
            **_numbers(predicted.iloc[place]),  # type: ignore[arg-type]
        )
        for place, (row, answer) in enumerate(zip(rows, listed, strict=True))
    ]
    order = sorted(range(len(rows)), key=lambda place: _order(proposals[place]))
    return Proposals(
        estimated=estimated,
        ranked=tuple(proposals[place] for place in order),
        rows=tuple(rows[place] for place in order),
        form_spread=form_spread,
    )


def _worth(fit: Fit, frame: pd.DataFrame, draws: np.ndarray) -> pd.DataFrame:
    """Compute the factor of compute that gives the first row the loss of each row."""
    columns = [name for name in fit.law.columns if name not in frame]
    if columns:
        return pd.DataFrame(np.nan, index=frame.index, columns=list(EQUIVALENT))
    return equivalent_compute(fit, frame, draws, relative=True)


def _training_speedups(table: ShapeTable) -> np.ndarray:
    """Compute training tokens/s over those of the first shape, at equal FLOP/s, (n,)."""
    flops = table.training_flops(TRAINING_CONTEXT)
    return np.asarray(flops[0] / flops)


def _lifetime_flops(request: ProposalRequest, shape: Shape) -> float | None:
    """Count the FLOPs of training and serving a shape, at the mean context of the workload."""
    lifetime, workload = request.budget.lifetime, request.serving.workload
    if lifetime is None:
        return None
    context = (workload.input_tokens + workload.output_tokens) / 2
    return float(lifetime.flops(shape, request.tokens, TRAINING_CONTEXT, context))


def _accuracy(links: Links, validation: str, row: pd.Series) -> Accuracy:
    """Predict the mean accuracy at the predicted loss and the ends of its interval."""
    loss = float(row["predicted_loss"])
    return links.predict(
        loss,
        validation=validation,
        loss_low=min(float(row["loss_low"]), loss),
        loss_high=max(float(row["loss_high"]), loss),
    ).mean


def _numbers(row: pd.Series) -> dict[str, float | str | None]:
    """Return the predicted fields of a proposal; None for those that are unknown."""
    numbers: dict[str, float | str | None] = {}
    for name in (*LOSS_FIELDS, *EQUIVALENT, "training_speedup"):
        value = row[name]
        is_text = isinstance(value, str)
        numbers[name] = value if is_text else None if np.isnan(value) else float(value)
    return numbers


LOSS_FIELDS = ("predicted_loss", "loss_low", "loss_high", *DIFFERENCES)


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
    last = proposal.apart or not proposal.on_front
    return proposal.role != BASELINE, last, proposal.predicted_loss


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
    ``difference_nats``, ``difference_nats_low`` and ``difference_nats_high``, (n,) each, per token.
    The interval always includes the difference.
    """
    central, draws = np.log(fit.expected(frame)), fit.log_loss_draws(frame)
    log_ratio = draws - draws[:, [baseline]]
    ends = np.percentile(log_ratio, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    reference = float(np.exp(central[baseline]))
    low, high = reference * np.expm1(ends)
    middle = reference * np.expm1(central - central[baseline])
    return pd.DataFrame(
        {
            "difference_nats": middle,
            "difference_nats_low": np.minimum(low, middle),
            "difference_nats_high": np.maximum(high, middle),
        },
        index=frame.index,
    )
