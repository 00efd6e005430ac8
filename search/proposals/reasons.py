"""The reasons, warnings and notes of ranked proposals, as text."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.units import format_count
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.proposal import BASELINE, FAST, LOSS_OPTIMAL, Proposal
from shapelaw.search.proposals.ranking import Proposals

MIN_RATIO_TO_MENTION = 1.1  # ratio of a quantity to the baseline's
MIN_SIZE_RATIO_TO_MENTION = 1.02  # ratio of N, on which the loss depends directly
OUTSIDE = re.compile(r"(\w+) (\S+) is (\S+ decades (?:above|below)) the runs' (\S+)")
LETTERS = {N: "N", D: "D", "hidden_over_sqrt_n": "d/√N", "mlp_to_attention": "MLP/attention"}
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
                proposals.ranked, reasons(proposals.ranked), warnings, strict=True
            )
        ),
        notes=(
            *(f"the runs of the law: {text}" for text in fit.table_warnings),
            *fit.notes,
            *missing_terms(fit, held=("gqa",) if candidates.gqa_held else ()),
            proposals.form_spread.note,
        ),
        extrapolation=tuple(sentence for sentence in warnings[0] if concerns_budget(sentence)),
    )


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


def missing_terms(fit: Fit, held: Sequence[str] = ()) -> list[str]:
    """Describe the shape ratios that a law has no term for.

    Parameters
    ----------
    held
        Ratios for which only the baseline's value is proposed.
    """
    kept = 'only shapes of the baseline\'s are proposed; --where "{0} <= 8" lets it vary'
    free = "a change of it costs no predicted loss"
    return [
        f"the law has no term for {name}: {(kept if name in held else free).format(name)}"
        for name in RATIOS
        if name not in fit.law.columns
    ]


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
    return warning.split()[0] in (N, D)


def reasons(ranked: Sequence[Proposal]) -> list[str]:
    """Describe why each proposal is on the front; the first proposal is the baseline.

    Returns
    -------
    A reason for the baseline and for each proposal on the front; an empty text for all others.
    """
    base = ranked[0]
    fastest = max((p for p in ranked if p.on_front), key=lambda p: p.speedup or 0.0, default=None)
    return [_reason(p, base, first=p is fastest) if p.on_front or p is base else "" for p in ranked]


def _reason(proposal: Proposal, base: Proposal, *, first: bool) -> str:
    if proposal.role == BASELINE:
        return "the model to beat" + (", itself not beaten" if proposal.on_front else "")
    if proposal.role == LOSS_OPTIMAL:
        reason = "least loss near the runs"
    elif proposal.role == FAST:
        reason = "fastest at no more loss than the baseline"
    elif first:
        reason = "fastest of all"
    elif proposal.speedup is None:
        reason = "not beaten"
    elif proposal.difference <= 0:
        reason = "less loss" if proposal.difference_high < 0 else "perhaps less loss"
        reason += " and faster" if proposal.speedup > 1 else ", slower"
    else:
        reason = "trades loss for speed" if proposal.speedup > 1 else "not beaten"
    changes = _changes(proposal.shape, base.shape)
    return f"{reason}: {', '.join(changes)}" if changes else reason


def _changes(shape: Shape, base: Shape) -> list[str]:
    """Describe the largest differences from the baseline's shape."""
    quantities, reference = _quantities(shape), _quantities(base)
    sizes = {name: abs(np.log(quantities[name] / reference[name])) for name in quantities}
    large = [name for name, size in sizes.items() if size > np.log(MIN_RATIO_TO_MENTION)]
    large.sort(key=lambda name: -sizes[name])
    changes = [
        f"{name} ×\u00a0{quantities[name] / reference[name]:.2g}" for name in large[:MAX_CHANGES]
    ]
    growth = (
        shape.n_non_embedding / base.n_non_embedding
    )  # explains a part of the difference in loss
    if abs(np.log(growth)) > np.log(MIN_SIZE_RATIO_TO_MENTION):
        changes.append(f"N ×\u00a0{growth:.3g}")
    return changes


def _quantities(shape: Shape) -> dict[str, float]:
    return {
        "KV cache": shape.kv_bytes(),
        "layers": shape.num_hidden_layers,
        "hidden size": shape.hidden_size,
        "MLP/attention": shape.mlp_to_attention,
    }
