"""Reasons, warnings and notes of finished proposals, in words."""

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

MIN_RATIO_TO_MENTION = 1.1  # of a quantity to the baseline's
MIN_SIZE_RATIO_TO_MENTION = 1.02  # of N, on which the loss depends directly
OUTSIDE = re.compile(r"(\w+) (\S+) is (\S+ decades (?:above|below)) the runs' (\S+)")
LETTERS = {N: "N", D: "D", "hidden_over_sqrt_n": "d/√N", "mlp_to_attention": "MLP/attention"}
MAX_REASON = 160  # characters of an engine's reason that are shown beside a row; files have all
MAX_CHANGES = 2  # changes that are named for each shape


def explain(proposals: Proposals) -> Proposals:
    """Add to finished proposals their reasons and warnings, and the notes that hold for all."""
    candidates = proposals.estimated.measured.candidates
    fit = candidates.basis.fit
    warnings = [warnings_of(proposals, place) for place in range(len(proposals.ranked))]
    return replace(
        proposals,
        ranked=tuple(
            replace(proposal, why=why, warnings=words)
            for proposal, why, words in zip(
                proposals.ranked, reasons(proposals.ranked), warnings, strict=True
            )
        ),
        notes=(
            *fit.notes,
            *missing_terms(fit, held=("gqa",) if candidates.gqa_held else ()),
            proposals.form_spread.note,
        ),
        extrapolation=tuple(words for words in warnings[0] if of_the_budget(words)),
    )


def warnings_of(proposals: Proposals, place: int) -> list[str]:
    """Say where one shape lies outside of the law's range, and what is wrong with its speed."""
    measured = proposals.estimated.measured
    candidates, row = measured.candidates, proposals.rows[place]
    fit, columns = candidates.basis.fit, candidates.frame.iloc[row]
    words = fit.warnings({name: columns[name] for name in fit.ranges})
    result: Measurement | str = proposals.estimated.answers[row]
    if isinstance(result, str):
        return [*words, f"not measured: {result}"]
    if result.disturbed:
        words.append("the measurement was disturbed: something else used the core")
    return words + broken_limits(result, candidates.request.serving.workload)


def missing_terms(fit: Fit, held: Sequence[str] = ()) -> list[str]:
    """Name the shape ratios that a law has no term for; ``held`` stay at the baseline's."""
    kept = 'only shapes of the baseline\'s are proposed; --where "{0} <= 8" lets it vary'
    free = "a change of it costs no predicted loss"
    return [
        f"the law has no term for {name}: {(kept if name in held else free).format(name)}"
        for name in RATIOS
        if name not in fit.law.columns
    ]


def plainly(warning: str) -> str:
    """Write a warning about a range with N and D for their columns and suffixes for counts.

    Examples
    --------
    >>> plainly("n_non_embedding 9.73e+08 is 0.52 decades above the runs' 2.97e+08")
    "N 973M: 0.52 decades above the runs' 297M"
    """
    match = OUTSIDE.fullmatch(warning)
    if match is None:
        return textwrap.shorten(warning, MAX_REASON, placeholder=" …")
    name, value, apart, end = match.groups()
    if name in LETTERS:
        value, end = format_count(float(value)), format_count(float(end))
    return f"{LETTERS.get(name, name)} {value}: {apart} the runs' {end}"


def of_the_budget(warning: str) -> bool:
    """Tell whether a warning is about N or D, which the budget decides and not the shape."""
    return warning.split()[0] in (N, D)


def reasons(ranked: Sequence[Proposal]) -> list[str]:
    """Say of each proposal on the front why it stands there; the baseline comes first."""
    base = ranked[0]
    fastest = max((p for p in ranked if p.on_front), key=lambda p: p.speedup or 0.0, default=None)
    return [_reason(p, base, first=p is fastest) if p.on_front or p is base else "" for p in ranked]


def _reason(proposal: Proposal, base: Proposal, *, first: bool) -> str:
    if proposal.role == BASELINE:
        return "the model to beat" + (", itself not beaten" if proposal.on_front else "")
    if proposal.role == LOSS_OPTIMAL:
        words = "least loss near the runs"
    elif proposal.role == FAST:
        words = "fastest at no more loss than the baseline"
    elif first:
        words = "fastest of all"
    elif proposal.speedup is None:
        words = "not beaten"
    elif proposal.difference <= 0:
        words = "less loss" if proposal.difference_high < 0 else "perhaps less loss"
        words += " and faster" if proposal.speedup > 1 else ", slower"
    else:
        words = "trades loss for speed" if proposal.speedup > 1 else "not beaten"
    changes = _changes(proposal.shape, base.shape)
    return f"{words}: {', '.join(changes)}" if changes else words


def _changes(shape: Shape, base: Shape) -> list[str]:
    """Name the largest differences from the baseline's shape."""
    amounts, reference = _amounts(shape), _amounts(base)
    sizes = {name: abs(np.log(amounts[name] / reference[name])) for name in amounts}
    large = [name for name, size in sizes.items() if size > np.log(MIN_RATIO_TO_MENTION)]
    large.sort(key=lambda name: -sizes[name])
    changes = [
        f"{name} ×\u00a0{amounts[name] / reference[name]:.2g}" for name in large[:MAX_CHANGES]
    ]
    growth = shape.n_non_embedding / base.n_non_embedding  # a part of what it gains or loses
    if abs(np.log(growth)) > np.log(MIN_SIZE_RATIO_TO_MENTION):
        changes.append(f"N ×\u00a0{growth:.3g}")
    return changes


def _amounts(shape: Shape) -> dict[str, float]:
    return {
        "KV cache": shape.kv_bytes(),
        "layers": shape.num_hidden_layers,
        "hidden size": shape.hidden_size,
        "MLP/attention": shape.mlp_to_attention,
    }
