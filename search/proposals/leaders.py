"""Choice of the rows of a search that are worth a measurement, an estimate or a listing."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.candidate_set import CandidateSet
from shapelaw.search.proposals.probabilities import probability_of_less_loss
from shapelaw.search.time_model.estimates import Estimates
from shapelaw.search.workload import LIMITS, Workload

EVEN_ODDS = 0.5
MIN_SPEEDUP = 1.01  # of a shape that counts as faster: more than a difference of 1 % in N gives
SPEED_BINS = 40  # groups of similar speed, faster than the baseline
PER_BIN = 3  # shapes of the lowest loss in each group, for which a probability is computed


def runnable(table: ShapeTable, results: Mapping[int, Measurement | str]) -> np.ndarray:
    """Return the mask of the shapes whose number of key-value heads the engine has run, (n,).

    Engines lack kernels or tables for some numbers of key-value heads, and would refuse further
    shapes with them.
    """
    rows = [row for row, result in results.items() if isinstance(result, Measurement)]
    groups = table.num_key_value_heads
    return np.asarray(np.isin(groups, groups[rows]))


def rows_ahead(
    rates: np.ndarray, candidates: CandidateSet, most: int, *, known: Collection[int] = ()
) -> list[int]:
    """Return at most ``most`` rows that may be proposed and are not known, the most useful first.

    First come the fastest shapes with no more loss than the baseline at the confidence of the
    request and at even odds, then the front from accurate to fast. Shapes with differences that
    are not in the law follow: for each set of differences the fastest with no more predicted loss.

    Parameters
    ----------
    rates
        Output tokens/s of all candidates, 0 where a shape cannot be served, (n,).
    known
        Rows to leave out.
    """
    losses = candidates.losses
    levels = (candidates.request.space.confidence, EVEN_ODDS)
    rows = fastest_likely_no_worse(rates, candidates, levels)
    speeds = np.where(candidates.apart, 0.0, rates)
    ahead = np.flatnonzero(front(losses, speeds) & (speeds > 0))
    near = [int(row) for row in ahead[np.argsort(losses[ahead])]]
    no_worse = (losses <= losses[candidates.baseline]) & (rates > 0)
    apart = [
        int(np.where(no_worse & (candidates.kinds == kind), rates, -1.0).argmax())
        for kind in sorted(set(candidates.kinds[no_worse]) - {0})
    ]
    rows += thinned(near, most - len(apart)) + apart
    return [row for row in dict.fromkeys(rows) if row not in known][: max(most, 0)]


def fastest_likely_no_worse(
    rates: np.ndarray, candidates: CandidateSet, levels: Sequence[float]
) -> list[int]:
    """Return for each probability the fastest shape with no more loss at that probability.

    The shapes are faster than the baseline. Of the shapes of similar speed only those of the lowest
    predicted losses are considered.

    Returns
    -------
    At most one row for each probability; those that no shape reaches are left out.
    """
    base = MIN_SPEEDUP * rates[candidates.baseline]
    faster = np.flatnonzero((rates > base) & ~candidates.apart)
    if not len(faster):
        return []
    faster = faster[np.lexsort((candidates.losses[faster], -rates[faster]))]
    ends = np.geomspace(rates[faster[0]], max(base, rates[faster[-1]]), SPEED_BINS + 1)
    groups = np.searchsorted(-ends, -rates[faster])
    rows = [
        row
        for group in np.unique(groups)
        for row in sorted(faster[groups == group], key=lambda row: candidates.losses[row])[:PER_BIN]
    ]
    frame = candidates.frame.iloc[[candidates.baseline, *rows]]
    likely = probability_of_less_loss(candidates.basis.fit.log_loss_draws(frame), 0)[1:]
    fastest = []
    for level in levels:
        enough = [row for row, chance in zip(rows, likely, strict=True) if chance >= level]
        if enough:
            fastest.append(int(max(enough, key=lambda row: rates[row])))
    return fastest


def served_rates(model: Estimates, results: Mapping[int, Measurement | str]) -> np.ndarray:
    """Return output tokens/s of every shape, measured or estimated, (n,).

    The rate is 0 for shapes that the engine refuses or that break the service level.
    """
    workload = model.workload
    rates = within_service(model.rate, model.ttft, model.tpot, workload)
    for row, result in results.items():
        rates[row] = served_rate(result, workload)
    return rates


def within_service(
    rates: np.ndarray, ttft: np.ndarray, tpot: np.ndarray, workload: Workload
) -> np.ndarray:
    """Return rates with 0 where they are unknown or a time exceeds its limit, (n,)."""
    rates = np.where(np.isfinite(rates), rates, 0.0)
    for times, limit in ((ttft, workload.max_ttft), (tpot, workload.max_tpot)):
        if limit is not None:
            rates = np.where(times <= limit, rates, 0.0)
    return rates


def served_rate(result: Measurement | str, workload: Workload) -> float:
    """Return output tokens/s of a result, 0 where it is a refusal or breaks the service level."""
    valid = isinstance(result, Measurement) and not broken_limits(result, workload)
    return result.output_tokens_per_second if valid else 0.0  # type: ignore[union-attr]


def thinned(rows: list[int], most: int) -> list[int]:
    """Keep at most ``most`` rows at even distances, both ends among them."""
    if len(rows) <= most:
        return rows
    places = np.linspace(0, len(rows) - 1, max(most, 0)).round().astype(int)
    return [rows[place] for place in places]


def require_service(ttft: np.ndarray, tpot: np.ndarray, workload: Workload) -> None:
    """Check that some shape meets the service level of a workload.

    Parameters
    ----------
    ttft, tpot
        Seconds of each shape, (n,); NaN where they are unknown.

    Raises
    ------
    InputError
        No shape meets all limits.
    """
    limits = [getattr(workload, name) for name in LIMITS]
    most = [np.inf if limit is None else limit for limit in limits]
    if np.any((ttft <= most[0]) & (tpot <= most[1])):
        return
    best = np.nanmin(ttft), np.nanmin(tpot)
    tests = [test for test in zip(LIMITS, most, best, strict=True) if np.isfinite(test[1])]
    # Limits that some shape meets are only named where every limit is met, each by other shapes.
    unmet = [test for test in tests if test[2] > test[1]] or tests
    shown = " and ".join(
        f"`{name} <= {limit:g}` s (the best shape has {time:.3g} s)" for name, limit, time in unmet
    )
    at_once = (
        "even alone; raise the limit "
        if workload.automatic
        else f"with {workload.concurrency} at once; raise the limit, lower the concurrency "
    )
    raise InputError(
        f"no shape of the budget meets {shown} under {workload.name} {at_once}or choose faster "
        "hardware"
    )
