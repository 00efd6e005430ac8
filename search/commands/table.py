"""The printed table of proposals."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.units import format_bytes, format_count, format_seconds
from shapelaw.search.engines._base import broken_limits
from shapelaw.search.proposals.leaders import MIN_SPEEDUP
from shapelaw.search.proposals.probabilities import NO_SPREAD, probability_text
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    DIFFERENCES,
    LOSS_OPTIMAL,
    Proposal,
)
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.reasons import (
    changes_not_in_law,
    concerns_budget,
    format_warning,
)

MAX_ROWS = 12  # of the front in the printed table
APART = ("shape", "loss − baseline", "not in law", "served on", "speed")
MAX_FACTOR = 100  # of compute in the table
NARROW = ("shape", "loss − baseline", "P(less)", "worth", "not in law", "served on", "speed")
MIN_DISTANCE = 0.05  # between two printed shapes, as a part of the front's width


def proposals_table(proposals: Sequence[Proposal], *, wide: bool = False) -> pd.DataFrame:
    """Format the baseline and the front as a table of at most :data:`MAX_ROWS` rows.

    Shapes with a role are in the table also where they are not on the front.

    Parameters
    ----------
    wide
        Show every column; by default those of :data:`NARROW`, which fit 80 characters.
    """
    off_front = [p for p in proposals[1:] if p.role != CANDIDATE and not p.on_front]
    front = [p for p in proposals if p is proposals[0] or (p.on_front and not p.apart)]
    base, *others = _thinned(front, MAX_ROWS - len(off_front))
    return _formatted([base, *off_front, *others], proposals[0], None if wide else NARROW)


def table_apart(proposals: Sequence[Proposal], *, wide: bool = False) -> pd.DataFrame:
    """Format for each set of differences not in the law the fastest shape of no more loss.

    The parameters are those of :func:`proposals_table`; the table may be empty.
    """
    return _formatted(fastest_apart(proposals), proposals[0], None if wide else APART)


def fastest_apart(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Return for each set of differences not in the law the fastest shape of no more loss.

    Only shapes that are faster than the baseline, and than those with a part of their differences,
    count. Those of fewer differences come first.
    """
    best: dict[tuple[str, ...], Proposal] = {}
    for p in sorted(proposals, key=lambda p: -(p.speedup or 0.0)):
        if p.apart and p.difference_nats <= 0 and (p.speedup or 0.0) > MIN_SPEEDUP:
            best.setdefault(p.not_in_law, p)
    ordered = sorted(best.values(), key=lambda p: (len(p.not_in_law), p.speedup or 0.0))
    kept: list[Proposal] = []
    for p in ordered:
        parts = [q.speedup or 0.0 for q in kept if set(q.not_in_law) < set(p.not_in_law)]
        if (p.speedup or 0.0) > MIN_SPEEDUP * max(parts, default=1.0):
            kept.append(p)
    return kept


def _formatted(
    shown: list[Proposal], base: Proposal, columns: Sequence[str] | None
) -> pd.DataFrame:
    """Format proposals as cells of some columns, None for all, without those that say nothing.

    Tokens that differ between shapes stand below the name, or in a column if all are shown.
    """
    tokens_below = columns is not None and _tokens_differ(shown, base)
    cells: dict[str, Callable[[Proposal], str]] = {
        "shape": lambda p: _shape_text(p, with_tokens=tokens_below),
        "N": lambda p: format_count(_counted(p)),
        "tokens": lambda p: format_count(p.tokens),
        "loss − baseline": _difference_text,
        "P(less)": lambda p: p.chance,
        "worth": _worth_text,
        "not in law": lambda p: "\n".join(changes_not_in_law(p.shape, base.shape, p.not_in_law)),
        "predicted loss": lambda p: (
            f"{p.predicted_loss:.4f}\n[{p.loss_low:.4f}, {p.loss_high:.4f}]"
        ),
        "spread over law forms": lambda p: (
            "–" if p.loss_form_spread is None else f"{p.loss_form_spread:.4f}"
        ),
        "predicted accuracy": lambda p: "–" if p.accuracy is None else _accuracy_text(p),
        "served on": _setting_text,
        "speed": _speedup_text,
        "P(faster)": _faster_text,
        "P(best)": lambda p: probability_text(p.p_best),
        "training speed": lambda p: (
            "–" if p.training_speedup is None else f"{p.training_speedup:.2f} ×"
        ),
        "lifetime FLOPs": lambda p: "–" if p.lifetime_flops is None else f"{p.lifetime_flops:.3g}",
        "tokens/s": lambda p: (
            f"{p.throughput.output_tokens_per_second:,.0f}" if p.throughput else "–"
        ),
        "per 1M tokens": lambda p: "–" if p.cost is None else f"{p.cost:.3g}",
        "TTFT, TPOT": lambda p: (
            f"{format_seconds(p.throughput.ttft)}\n{format_seconds(p.throughput.tpot)}"
            if p.throughput
            else "–"
        ),
        "tokens/pass": lambda p: _decoder_text(p, "tokens_per_forward", "{:.3g}".format),
        "per answer": lambda p: _decoder_text(p, "seconds_per_answer", format_seconds),
        "KV/token": lambda p: format_bytes(p.kv_bytes),
        "weights": lambda p: format_bytes(p.weight_bytes),
        "in front": lambda p: (
            "–" if p.front_probability is None else f"{100 * p.front_probability:.0f} %"
        ),
        "why": lambda p: p.why,
        "beyond the runs": lambda p: "; ".join(
            format_warning(warning) for warning in p.warnings if not concerns_budget(warning)
        ),
    }
    empty = _empty_columns(shown, base, wide=columns is None)
    names = [name for name in cells if (columns is None or name in columns) and not empty.get(name)]
    return pd.DataFrame([{name: cells[name](p) for name in names} for p in shown])


def _tokens_differ(shown: list[Proposal], base: Proposal) -> bool:
    return any(p.tokens != base.tokens for p in shown)


def _empty_columns(shown: list[Proposal], base: Proposal, *, wide: bool) -> dict[str, bool]:
    """Mark the columns that would say nothing, or for which 80 characters have no room."""
    workload = base.workload
    chosen = workload is not None and (workload.automatic or workload.tensor_parallel != (1,))
    return {
        "tokens": not _tokens_differ(shown, base),
        "lifetime FLOPs": all(p.lifetime_flops is None for p in shown),
        "per 1M tokens": all(p.cost is None for p in shown),
        "worth": (chosen and not wide) or all(p.equivalent_compute is None for p in shown),
        "served on": not chosen,
        "not in law": not any(p.not_in_law for p in shown),
        "predicted accuracy": all(p.accuracy is None for p in shown),
        "in front": all(p.front_probability is None for p in shown),
        "spread over law forms": all(p.loss_form_spread is None for p in shown),
    }


def _shape_text(p: Proposal, *, with_tokens: bool) -> str:
    """Write the name of a shape, and below it the role and perhaps the training tokens."""
    tokens = f", {format_count(p.tokens)} tokens" if with_tokens else ""
    return f"{p.name}\n{p.role}{tokens}{_memory(p)}{_off_front(p)}"


def _counted(p: Proposal) -> int:
    """Return the non-embedding parameters that one token uses."""
    shape = p.shape
    if isinstance(shape, Architecture):
        return int(shape.n_active_non_embedding)
    return int(shape.n_non_embedding)


def _memory(p: Proposal) -> str:
    """Write the weights of a model with experts, which its active parameters do not tell."""
    sparse = isinstance(p.shape, Architecture) and p.shape.n_total > p.shape.n_active
    return f", {format_bytes(p.weight_bytes)}" if sparse else ""


def _decoder_text(proposal: Proposal, name: str, text: Callable[[float], str]) -> str:
    """Return a number of the decoder that was asked for; a dash without one."""
    measured = proposal.throughput
    asked = measured is not None and measured.decoder is not None
    return text(getattr(measured, name)) if asked else "–"


def _thinned(proposals: list[Proposal], most: int) -> list[Proposal]:
    """Select at most ``most`` proposals that differ most from each other.

    Proposals with a role and the last one are always kept. Others are added while they lie at least
    :data:`MIN_DISTANCE` of the front's width away from those kept.
    """
    last = len(proposals) - 1
    kept = [i for i, p in enumerate(proposals) if p.role != CANDIDATE or i == last]
    speeds = [p.throughput.output_tokens_per_second if p.throughput else np.nan for p in proposals]
    places = np.column_stack([[p.predicted_loss for p in proposals], np.log(speeds)])
    places = np.nan_to_num(places / np.maximum(np.nanmax(places, 0) - np.nanmin(places, 0), 1e-12))
    while len(kept) < most:
        nearest = np.linalg.norm(places[:, None] - places[kept], axis=2).min(axis=1)
        if nearest.max() < MIN_DISTANCE:
            break
        kept.append(int(nearest.argmax()))
    return [proposals[i] for i in sorted(kept)]


def _off_front(p: Proposal) -> str:
    return "" if p.on_front or p.apart or p.role == BASELINE else ", not on the front"


def off_front_notes(proposals: Proposals) -> list[str]:
    """Say why a shape with a role is not on the front or a role is missing, one sentence each."""
    candidates = proposals.estimated.measured.candidates
    workload = candidates.request.serving.workload
    notes = []
    for p in proposals.ranked:
        if p.role in (BASELINE, CANDIDATE) or p.on_front:
            continue
        if p.throughput is None:
            why = format_warning(p.warnings[-1])  # the engine's reason
        elif limits := broken_limits(p.throughput, workload):
            why = "; ".join(limits)
        else:
            why = "another shape is faster at no more predicted loss, but less surely so"
        notes.append(f"the {p.role} shape {p.name} is not on the front: {why}")
    confidence = candidates.request.space.confidence
    if not any(
        (p.speedup or 0) > MIN_SPEEDUP and _surely_no_worse(p, confidence)
        for p in proposals.ranked[1:]
    ):
        notes.append(
            f"no shape is faster than the baseline at no more loss with P >= {confidence:g}: "
            "keep the baseline, or accept more loss or more doubt"
        )
    if LOSS_OPTIMAL not in {p.role for p in proposals}:
        notes.append("no shape has a lower predicted loss than the baseline")
    return notes


def _surely_no_worse(p: Proposal, confidence: float) -> bool:
    return not p.apart and p.p_less_loss is not None and p.p_less_loss >= confidence


def _worth_text(p: Proposal) -> str:
    """Format the equivalent compute with its interval."""
    values = (p.equivalent_compute, p.equivalent_compute_low, p.equivalent_compute_high)
    if p.role == BASELINE or values[0] is None:
        return "1 ×" if p.role == BASELINE else "–"
    middle, low, high = map(_factor_text, values)
    return f"{middle} ×\n[{low}, {high}]"


def _factor_text(value: float | str | None) -> str:
    """Format a factor of compute with two digits, and very small and large ones as bounds."""
    if value is None:
        return "–"
    if isinstance(value, str) or value > MAX_FACTOR:
        return f">{MAX_FACTOR}"
    return f"<{1 / MAX_FACTOR:g}" if value < 1 / MAX_FACTOR else f"{value:.2g}"


def _difference_text(p: Proposal) -> str:
    if p.role == BASELINE:
        return "0"
    middle, low, high = (p.percent(name) for name in DIFFERENCES)
    return f"{middle:+.2f} %\n[{low:+.2f}, {high:+.2f}]"


def _accuracy_text(p: Proposal) -> str:
    accuracy = p.accuracy
    if accuracy is None:
        return "–"
    if accuracy.value is None or accuracy.low is None or accuracy.high is None:
        return accuracy.status
    return f"{100 * accuracy.value:.1f} %\n[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _speedup_text(p: Proposal) -> str:
    if p.throughput is None:
        return "–"
    ratio = "–" if p.speedup is None else f"{p.speedup:.2f} ×"
    return f"{ratio}\n{p.throughput.kind}"


def _setting_text(p: Proposal) -> str:
    """Format the number of GPUs and of sequences at once that a speed is of."""
    if p.throughput is None:
        return "–"
    gpus, at_once = p.throughput.gpus, p.throughput.concurrency
    devices = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return devices if at_once is None else f"{devices}\n{at_once} at once"


def _faster_text(p: Proposal) -> str:
    """Format P(faster); 1 or 0 with the kind of the speed where no spread is known."""
    if p.p_faster is None or p.throughput is None:
        return "–"
    if p.p_faster_basis.startswith(NO_SPREAD):
        return f"{p.p_faster:g}\n{p.throughput.kind}"
    return probability_text(p.p_faster)
