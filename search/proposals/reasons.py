"""The reasons, warnings and notes of ranked proposals, as text."""

import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import EXPERT_RATIOS, D, N
from shapelaw.scaling.units import format_count
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.candidate_set import AXES, accepted_axes
from shapelaw.search.proposals.family_candidates import PRICES, accepted_fields
from shapelaw.search.proposals.family_request import FamilyRequest, pattern_of
from shapelaw.search.proposals.leaders import MIN_SPEEDUP
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    EVEN,
    FAST,
    LOSS_OPTIMAL,
    Proposal,
)
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.request import CONFIDENCE, ProposalRequest

MIN_RATIO_TO_MENTION = 1.1  # ratio of a quantity to the baseline's
MIN_SIZE_RATIO_TO_MENTION = 1.02  # ratio of N, on which the loss depends directly
OUTSIDE = re.compile(r"(\w+) (\S+) is (\S+ decades (?:above|below)) the runs' (\S+)")
LETTERS = {N: "N", D: "D", "hidden_over_sqrt_n": "d/√N", "mlp_to_attention": "MLP/attention"}
AXIS_LABELS = {
    "gqa": "GQA",
    "num_hidden_layers": "layers",
    "head_dim": "head dimension",
    "sparsity": "sparsity (all over active parameters)",
}
AXIS_LETTERS = {"gqa": "GQA", "num_hidden_layers": "L", "head_dim": "h"}
EXPERT_FIELDS = {name for name, prices in PRICES.items() if prices & set(EXPERT_RATIOS)}
MAX_REASON = 160  # characters of an engine's reason in a table; files hold all of it
MAX_CHANGES = 2  # changes of a shape that its reason names


def explain(proposals: Proposals) -> Proposals:
    """Add reasons and warnings to ranked proposals, and the notes that hold for all of them."""
    candidates = proposals.estimated.measured.candidates
    fit = candidates.basis.fit
    warnings = [proposal_warnings(proposals, place) for place in range(len(proposals.ranked))]
    return replace(
        proposals,
        ranked=tuple(
            replace(proposal, why=why, warnings=sentences)
            for proposal, why, sentences in zip(
                proposals.ranked,
                reasons(proposals.ranked, candidates.request.space.confidence),
                warnings,
                strict=True,
            )
        ),
        notes=(
            *(f"the runs of the law: {text}" for text in fit.table_warnings),
            *fit.notes,
            *baseline_notes(proposals),
            *missing_terms(fit, apart=set(candidates.not_in_law) - accepted_of(candidates.request)),
            proposals.form_spread.note,
        ),
        extrapolation=tuple(sentence for sentence in warnings[0] if concerns_budget(sentence)),
    )


def accepted_of(request: ProposalRequest) -> set[str]:
    """Return the fields without a term in the law of which a request accepts a change."""
    if isinstance(request, FamilyRequest):
        return accepted_fields(request)
    return accepted_axes(request)


def proposal_warnings(proposals: Proposals, place: int) -> list[str]:
    """Describe where a shape leaves the law's range, and the defects of its measurement.

    Parameters
    ----------
    place
        Place of the shape in the ranking.
    """
    measured = proposals.estimated.measured
    candidates, row = measured.candidates, proposals.rows[place]
    fit, columns = candidates.basis.fit, candidates.frame.iloc[row]
    sentences = fit.warnings({name: columns[name] for name in fit.ranges})
    result: Measurement | str = proposals.estimated.answers[row]
    if isinstance(result, str):
        return [*sentences, f"not measured: {result}"]
    if result.disturbed:
        sentences.append("the measurement was disturbed: something else used the core")
    return sentences + broken_limits(result, candidates.request.serving.workload)


def baseline_notes(proposals: Proposals) -> list[str]:
    """Describe the size at which shapes are compared, and the rules that they keep."""
    request = proposals.estimated.measured.candidates.request
    count = request.shape_space.counted
    size = format_count(getattr(request.baseline, count))
    kind = (
        f"has the proportions of {request.baseline_name}"
        if request.rescaled
        else f"is {request.baseline_name} itself"
    )
    same = f"losses are compared at exactly the baseline's N, {size}; the baseline {kind}"
    time, lifetime, rules = request.budget.time, request.budget.lifetime, request.rules
    notes = [same] if rules is None else [same, str(rules)]
    notes += request.layer_notes()
    notes += [] if time is None else time.notes(request.baseline)
    if lifetime is None:
        return notes
    return notes + lifetime.notes(float(getattr(request.baseline, count)), request.tokens)


def missing_terms(fit: Fit, apart: Collection[str] = ()) -> list[str]:
    """Describe the shape ratios that a law has no term for.

    Parameters
    ----------
    apart
        Fields for which shapes that differ from the baseline are listed apart.
    """
    free = [name for name in RATIOS if name not in (*fit.law.columns, *apart)]
    notes = [
        f"the law has no term for {name}: a change of it costs no predicted loss" for name in free
    ]
    if apart:
        experts = EXPERT_FIELDS & set(apart)
        ordered = [*(name for name in AXES if name in apart), *sorted(set(apart) - set(AXES))]
        names = " or ".join(AXIS_LABELS.get(name, name) for name in ordered)
        notes.append(
            f"the law has no term for {names}: shapes that differ in it from the baseline are "
            "listed apart and have no role; --where on it, --layers or --head-dim accept a change "
            "of it at no loss"
        )
        if experts:
            notes.append(
                "at equal active N, models with fewer or narrower experts have more loss (arXiv "
                "2507.17702): "
                "their speed is no gain until a law with terms of experts, such as sparse, or a "
                "training run prices it"
            )
    return notes


def format_warning(warning: str) -> str:
    """Format a warning about a range with the symbols N and D and suffixes for counts.

    Examples
    --------
    >>> format_warning("n_non_embedding 9.73e+08 is 0.52 decades above the runs' 2.97e+08")
    "N 973M: 0.52 decades above the runs' 297M"
    """
    match = OUTSIDE.fullmatch(warning)
    if match is None:
        return textwrap.shorten(warning, MAX_REASON, placeholder=" …")
    name, value, apart, end = match.groups()
    if name in LETTERS:
        value, end = format_count(float(value)), format_count(float(end))
    return f"{LETTERS.get(name, name)} {value}: {apart} the runs' {end}"


def concerns_budget(warning: str) -> bool:
    """Return whether a warning is about N or D, which depend on the budget and not on the shape."""
    return warning.partition(" ")[0] in (N, D)


def reasons(ranked: Sequence[Proposal], confidence: float = CONFIDENCE) -> list[str]:
    """Describe why each proposal is on the front; the first proposal is the baseline.

    Returns
    -------
    A reason for the baseline and for each proposal with a role or on the front; an empty text for
    all others.
    """
    base = ranked[0]
    told = [p for p in ranked if p is base or p.on_front or p.role != CANDIDATE]
    fastest = max((p for p in told if not p.apart), key=lambda p: p.speedup or 0.0, default=None)
    also = _second_roles(ranked, confidence)
    return [
        _reason(p, base, first=p is fastest, also=also.get(p.name, "")) if p in told else ""
        for p in ranked
    ]


def _second_roles(ranked: Sequence[Proposal], confidence: float) -> dict[str, str]:
    """Return what else holds of a shape that has the lowest loss: that it is the fastest, too."""
    listed = {p.role for p in ranked}
    best = next((p for p in ranked if p.role == LOSS_OPTIMAL), None)
    if best is None or FAST in listed or (best.speedup or 0.0) <= MIN_SPEEDUP:
        return {}
    if (best.p_less_loss or 0.0) < confidence:
        return {}
    return {best.name: f", and the fastest at no more loss (P {best.chance})"}


def _reason(proposal: Proposal, base: Proposal, *, first: bool, also: str) -> str:
    if proposal.role == BASELINE:
        return "the model to beat" + (", itself not beaten" if proposal.on_front else "")
    if proposal.role == LOSS_OPTIMAL:
        reason = f"lowest predicted loss (P {proposal.chance} of less than the baseline){also}"
    elif proposal.role == FAST:
        reason = f"fastest at no more loss than the baseline (P {proposal.chance})"
    elif proposal.role == EVEN:
        reason = f"fastest at even odds of no more loss (P {proposal.chance})"
    elif first:
        reason = "fastest of all"
    elif proposal.speedup is None:
        reason = "not beaten"
    elif proposal.difference_nats <= 0:
        reason = "less loss" if proposal.difference_nats_high < 0 else "perhaps less loss"
        reason += " and faster" if proposal.speedup > 1 else ", slower"
    else:
        reason = "trades loss for speed" if proposal.speedup > 1 else "not beaten"
    if proposal.not_in_law:
        differs = changes_not_in_law(proposal.shape, base.shape, proposal.not_in_law)
        reason += f"; not in the law: {', '.join(differs)}"
    changes = _changes(proposal.shape, base.shape)
    return f"{reason}: {', '.join(changes)}" if changes else reason


def changes_not_in_law(
    shape: Shape | Architecture, base: Shape | Architecture, fields: Collection[str] = tuple(AXES)
) -> list[str]:
    """Describe how a shape differs from the baseline in given fields: ``GQA 4→8``."""
    values = {name: (_value_of(base, name), _value_of(shape, name)) for name in fields}
    return [
        f"{AXIS_LETTERS.get(name, name)} {before}→{after}"
        for name, (before, after) in values.items()
        if before != after
    ]


def _value_of(shape: Shape | Architecture, name: str) -> str:
    """Write the value of a field of a shape, or of the config of an architecture."""
    value: Any = None
    if name in (*AXES, "sparsity"):
        value = getattr(shape, name)
    elif isinstance(shape, Architecture):
        value = dict(shape.fields).get(name)
    if isinstance(value, list):
        return "/".join(pattern_of(value))
    return f"{value:.4g}" if isinstance(value, int | float) else str(value or "none")


def _changes(shape: Shape | Architecture, base: Shape | Architecture) -> list[str]:
    """Describe the largest differences from the baseline's shape."""
    quantities, reference = _quantities(shape), _quantities(base)
    sizes = {name: abs(np.log(quantities[name] / reference[name])) for name in quantities}
    large = [name for name, size in sizes.items() if size > np.log(MIN_RATIO_TO_MENTION)]
    large.sort(key=lambda name: -sizes[name])
    changes = [
        f"{name} ×\u00a0{quantities[name] / reference[name]:.2g}" for name in large[:MAX_CHANGES]
    ]
    growth = _size(shape) / _size(base)  # explains a part of the difference in loss
    if abs(np.log(growth)) > np.log(MIN_SIZE_RATIO_TO_MENTION):
        changes.append(f"N ×\u00a0{growth:.3g}")
    return changes


def _size(shape: Shape | Architecture) -> float:
    """Return the non-embedding parameters that one token uses."""
    if isinstance(shape, Architecture):
        return float(shape.n_active_non_embedding)
    return float(shape.n_non_embedding)


def _quantities(shape: Shape | Architecture) -> dict[str, float]:
    memory = {"weights": shape.n_total} if isinstance(shape, Architecture) else {}
    return {
        **memory,
        "KV cache": shape.kv_bytes_per_token(),
        "layers": shape.num_hidden_layers,
        "hidden size": shape.hidden_size,
        "MLP/attention": shape.mlp_to_attention,
    }
