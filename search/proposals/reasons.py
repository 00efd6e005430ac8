"""What to say about a proposal: service level, differences, why it stands on the front."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import LEVEL, Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.space.pareto import front
from shapelaw.scaling.units import format_count
from shapelaw.search.engines._base import broken_limits
from shapelaw.search.proposals.proposal import BASELINE, FAST, LOSS_OPTIMAL, Proposal
from shapelaw.search.workload import LIMITS, Workload

TOLD = 1.1  # a quantity that differs from the baseline's by less is not worth a word
LARGER = 1.02  # the same for N, on which the loss depends directly
OUTSIDE = re.compile(r"(\w+) (\S+) is (\S+ decades (?:above|below)) the runs' (\S+)")
LETTERS = {N: "N", D: "D", "hidden_over_sqrt_n": "d/√N", "mlp_to_attention": "MLP/attention"}
LONGEST = 160  # letters of an engine's reason that are shown beside a row; files have all
SAID = 2  # changes that are named for each shape


def require_service(ttft: np.ndarray, tpot: np.ndarray, workload: Workload) -> None:
    """Refuse a service level that no shape meets; times of every known shape in seconds, NaN: none.

    Raises
    ------
    InputError
        The best of the shapes breaks a limit, or none meets both.
    """
    most = [np.inf if getattr(workload, name) is None else getattr(workload, name)
            for name in LIMITS]  # fmt: skip
    if np.any((ttft <= most[0]) & (tpot <= most[1])):
        return
    shown = " and ".join(
        f"`{name} <= {limit:g}` s (the best shape has {np.nanmin(times):.3g} s)"
        for name, limit, times in zip(LIMITS, most, (ttft, tpot), strict=True)
        if np.isfinite(limit)
    )
    raise InputError(
        f"no shape of the budget meets {shown} under {workload.name} with {workload.concurrency} "
        "at once; raise the limit, lower the concurrency or choose faster hardware"
    )


def differences(fit: Fit, frame: pd.DataFrame, baseline: int) -> pd.DataFrame:
    """Loss minus the baseline's for every row, in nats per token, with the law's 95 % interval.

    Resample by resample as a ratio, so that what both losses have in common cancels; the ends are
    the ratio's, times the baseline's predicted loss.

    Returns
    -------
    ``difference``, ``difference_low``, ``difference_high``; the interval holds the difference.
    """
    program = fit.law.program(fit.columns(frame), fit.reference)
    central, spread = program.log_loss(fit.theta[None])[0], program.log_loss(fit.spread)
    apart = spread - spread[:, [baseline]]
    ends = np.percentile(apart, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
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


def unseen_by(fit: Fit, held: Sequence[str] = ()) -> list[str]:
    """In words: the shape ratios that a law has no term for; ``held`` are kept as they are."""
    kept = 'only shapes of the baseline\'s are proposed; --where "{0} <= 8" lets it vary'
    free = "a change of it costs no predicted loss"
    return [
        f"the law has no term for {name}: {(kept if name in held else free).format(name)}"
        for name in RATIOS
        if name not in fit.law.columns
    ]


def plainly(warning: str) -> str:
    """A warning about a range as people read it: N and D for their columns, counts with a suffix.

    Examples
    --------
    >>> plainly("n_non_embedding 9.73e+08 is 0.52 decades above the runs' 2.97e+08")
    "N 973M: 0.52 decades above the runs' 297M"
    """
    match = OUTSIDE.fullmatch(warning)
    if match is None:
        return textwrap.shorten(warning, LONGEST, placeholder=" …")
    name, value, apart, end = match.groups()
    if name in LETTERS:
        value, end = format_count(float(value)), format_count(float(end))
    return f"{LETTERS.get(name, name)} {value}: {apart} the runs' {end}"


def of_the_budget(warning: str) -> bool:
    """Whether a warning is about N or D, which a budget decides, not a shape."""
    return warning.split()[0] in (N, D)


def mark_front(proposals: list[Proposal], workload: Workload | None = None) -> list[Proposal]:
    """Set ``on_front`` among the proposals that have a throughput and meet the service level."""
    speeds = [
        p.throughput.output_tokens_per_second
        if p.throughput and not (workload and broken_limits(p.throughput, workload))
        else 0.0
        for p in proposals
    ]
    mask = front([p.predicted_loss for p in proposals], speeds)
    return [
        replace(proposal, on_front=bool(on and speed))
        for proposal, on, speed in zip(proposals, mask, speeds, strict=True)
    ]


def with_reasons(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Say of each proposal on the front why it stands there; the baseline comes first."""
    base = proposals[0]
    fastest = max(
        (p for p in proposals if p.on_front), key=lambda p: p.speedup or 0.0, default=None
    )
    return [
        replace(p, why=_why(p, base, first=p is fastest)) if p.on_front or p is base else p
        for p in proposals
    ]


def _why(proposal: Proposal, base: Proposal, *, first: bool) -> str:
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
    """The largest differences from the baseline's shape, in words."""
    own, reference = _amounts(shape), _amounts(base)
    ratios = {name: own[name] / reference[name] for name in own}
    told = [name for name, ratio in ratios.items() if abs(np.log(ratio)) > np.log(TOLD)]
    told.sort(key=lambda name: -abs(np.log(ratios[name])))
    changes = [f"{name} ×\u00a0{ratios[name]:.2g}" for name in told[:SAID]]
    size = shape.n_non_embedding / base.n_non_embedding  # a part of what it gains or loses
    return changes + ([f"N ×\u00a0{size:.3g}"] if abs(np.log(size)) > np.log(LARGER) else [])


def _amounts(shape: Shape) -> dict[str, float]:
    return {
        "KV cache": shape.kv_bytes(),
        "layers": shape.num_hidden_layers,
        "hidden size": shape.hidden_size,
        "MLP/attention": shape.mlp_to_attention,
    }
