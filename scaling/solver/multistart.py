"""Multi-start solution of a fitting problem: batches of starts, the best basins by SciPy."""

from dataclasses import replace
from functools import reduce

import numpy as np
from scipy.stats import norm

from shapelaw.scaling.display.progress import track
from shapelaw.scaling.solver.levenberg_marquardt import Minima
from shapelaw.scaling.solver.problem import Problem, Solution

HUBER = 1.345  # threshold over residual scale: 95 % efficiency on normal residuals
SMALLEST_DELTA = 1e-6
SMOOTH_DELTA = 0.05  # threshold of the first stages, in ln loss: smooth far from an optimum
FIRST_STEPS, SECOND_STEPS = 6, 10
SECOND, POLISHED, FINISHED = 1024, 128, 3  # starts that continue to each stage
SHORT, LONG = 60, 400  # steps of polishing, and for slow starts that may be the best
MAX_COST_RATIO = 2.0  # objective over the lowest one, up to which a slow start is continued
MIN_ROWS_FOR_TAILS = 40  # rows from which the scale of a new run follows heavy tails
BLOCK = 4096  # starts minimised at once
# Starts minimised without the smooth stages, for objectives that redescend and for others.
DIRECT, DIRECT_CONVEX = 512, 64
SAME_BASIN = 1e-7  # relative difference of objectives
# Alternations of scale and fit: three are enough for a Huber threshold, which follows the residuals
# of a rough fit; the scale of Student's t and the parameters are estimated jointly, to convergence.
ROBUST_ROUNDS, JOINT_ROUNDS, SCALE_TOLERANCE = 3, 60, 1e-9
SAME_BASIN_DISTANCE = 0.05  # share of the range of starts: rough ends this close share a basin


def solve_at(
    problem: Problem, delta: float | str, starts: int | np.ndarray, seed: int
) -> tuple[Problem, Solution]:
    """Solve a problem at a given delta, or at a delta estimated from the residuals.

    Parameters
    ----------
    problem
        The problem; its objective gives the first delta.
    delta
        ``auto`` to estimate threshold or scale from the residuals; a number keeps that of the
        objective.
    starts
        Number of starts, or internal parameters of the starts, (S, p).
    seed
        Seed of the starts.

    Returns
    -------
    The problem with the final objective, and its solution.
    """
    points = problem.starts(starts, seed) if isinstance(starts, int) else starts
    best = multi_start(problem, points)
    if delta == "auto" and problem.objective.robust:
        rounds = JOINT_ROUNDS if problem.objective.kind == "student" else ROBUST_ROUNDS
        for _ in range(rounds):
            scale = max(estimate_scale(problem, best.theta), SMALLEST_DELTA)
            settled = abs(scale / problem.objective.delta - 1) < SCALE_TOLERANCE
            problem = problem.but(objective=problem.objective.at(scale))
            best = warm_start(problem, best)
            if settled:
                break
    return problem, finish(problem, best)


def estimate_scale(problem: Problem, theta: np.ndarray) -> float:
    """Estimate the threshold or scale of the objective from the residuals at θ (p,).

    The Huber threshold is 1.345 times the robust residual scale; the scale of Student's t is the
    maximum-likelihood estimate. Both are in the unit of the objective's residuals.
    """
    residuals = problem.residuals(theta[problem.free])
    if problem.objective.kind != "student":
        return HUBER * residual_scale(residuals, int(problem.free.sum()))
    degrees, scale = problem.objective.degrees, problem.objective.delta
    for _ in range(500):
        shares = (degrees + 1) / (degrees + (residuals / scale) ** 2)
        update = float(np.sqrt(np.average(shares * residuals**2, weights=problem.weights)))
        if abs(update / scale - 1) < 1e-12:
            break
        scale = max(update, SMALLEST_DELTA)
    return scale


def multi_start(problem: Problem, points: np.ndarray, *, full: bool = False) -> Solution:
    """Minimise from every start, in stages.

    All starts take a few steps with a smooth objective, and the better ones take some more; the
    distinct ones of those are minimised to convergence. The smooth objective may miss the best of
    several basins, so some starts are also minimised without it, and many for an objective that
    redescends, such as Student's t.

    Parameters
    ----------
    points
        Internal parameters of the starts, (S, p).
    full
        Minimise every start to convergence; slow, a check of the stages.

    Returns
    -------
    The best optimum, with the basins and their numbers of starts.
    """
    if not problem.free.any():
        return _given(problem, points)
    smooth = _smoothed(problem)
    first = _in_blocks(smooth, points, "starts", steps=FIRST_STEPS, reweighted=FIRST_STEPS)
    chosen = np.argsort(first.cost, kind="stable")
    rough = first.theta
    if not full:
        chosen = chosen[: max(SECOND, len(points) // 4)]
        second = smooth.minimise(first.theta[chosen], steps=SECOND_STEPS, reweighted=SECOND_STEPS)
        rough = first.theta.copy()
        rough[chosen] = second.theta
        kept = _distinct(problem, second, POLISHED)
        chosen = chosen[kept]
    polished = _polished(problem, rough[chosen], full=full)
    direct = points[: _unsmoothed(problem)]
    if len(direct):
        polished = polished.joined(_polished(problem, direct, full=False))
    number, costs = _basins(polished, problem.data.rounding)
    staged, unsmoothed = number[: len(chosen)], number[len(chosen) :]
    basins = staged[np.argsort(chosen)] if full else _nearest_basin(problem, rough, chosen, staged)
    basins[: len(direct)] = np.where(unsmoothed >= 0, unsmoothed, basins[: len(direct)])
    counts = np.bincount(basins[basins >= 0], minlength=len(costs))
    order = np.argsort(polished.cost, kind="stable")
    leaders = [order[number[order] == basin][0] for basin in range(min(len(costs), 5))]
    best = leaders[0]
    return Solution(
        theta=polished.theta[best],
        cost=float(polished.cost[best]),
        gradient_norm=float(polished.gradient_norm[best]),
        converged=bool(polished.converged[best]),
        basins=[
            {"objective": float(cost), "starts": int(count)}
            for cost, count in zip(costs[:5], counts[:5], strict=False)
        ],
        others=polished.theta[leaders],
    )


def _polished(problem: Problem, starts: np.ndarray, *, full: bool) -> Minima:
    """Minimise to convergence; slow starts that are not among the best stop early."""
    minima = _in_blocks(problem, starts, "polishing", steps=LONG if full else SHORT)
    slow = ~minima.converged & (minima.cost <= MAX_COST_RATIO * minima.cost.min())
    if slow.any() and not full:
        continued = problem.minimise(minima.theta[slow], steps=LONG)
        for name in ("theta", "cost", "gradient_norm", "converged"):
            getattr(minima, name)[slow] = getattr(continued, name)
    return minima


def _in_blocks(problem: Problem, starts: np.ndarray, label: str, **settings: int) -> Minima:
    """Minimise block by block, which bounds the memory and feeds the progress bar."""
    blocks = [starts[i : i + BLOCK] for i in range(0, len(starts), BLOCK)]
    minima = [
        problem.minimise(block, **settings) for block in track(blocks, label, total=len(blocks))
    ]
    return reduce(Minima.joined, minima)


def _unsmoothed(problem: Problem) -> int:
    """Return the number of starts that are minimised without the smooth stages."""
    if not problem.objective.robust:
        return 0
    return DIRECT if problem.objective.redescends else DIRECT_CONVEX


def _smoothed(problem: Problem) -> Problem:
    """Widen the threshold of a problem, so that the objective is smooth far from the optimum."""
    if not problem.objective.robust:
        return problem
    unit = SMOOTH_DELTA * (
        np.exp(problem.log_loss.mean()) if problem.objective.on == "raw" else 1.0
    )
    wide = problem.objective.at(max(problem.objective.delta, float(unit)))
    return problem.but(objective=wide)


def _given(problem: Problem, points: np.ndarray) -> Solution:
    """Return the solution of a problem without free parameters."""
    theta = problem.with_held(points[:1])
    cost = float(problem.data.cost(theta)[0])
    return Solution(
        theta=theta[0],
        cost=cost,
        gradient_norm=0.0,
        converged=True,
        basins=[{"objective": cost, "starts": len(points)}],
        others=theta,
    )


def _distinct(problem: Problem, minima: Minima, count: int) -> np.ndarray:
    """Return positions of the best ``count`` end points that differ in some free parameter."""
    order = np.argsort(minima.cost, kind="stable")
    widths = np.array([p.starts[1] - p.starts[0] for p in problem.parameters])[problem.free]
    grid = np.round(minima.theta[:, problem.free] / (1e-3 * np.maximum(widths, 1e-9)))
    _, first = np.unique(grid[order], axis=0, return_index=True)
    return np.asarray(order[np.sort(first)][:count])


def _basins(minima: Minima, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Assign each start to a basin, best first, and return the objectives of the basins.

    Starts that did not converge get basin -1. The best start always gets a basin.
    """
    counted = minima.converged | (minima.cost <= minima.cost.min())
    order = np.flatnonzero(counted)[np.argsort(minima.cost[counted], kind="stable")]
    ordered = minima.cost[order]
    new = np.concatenate([[False], np.diff(ordered) > SAME_BASIN * np.abs(ordered[:-1]) + rounding])
    number = np.full(len(minima.cost), -1)
    number[order] = np.cumsum(new)
    return number, ordered[np.concatenate([[0], np.flatnonzero(new)]).astype(int)]


def _nearest_basin(
    problem: Problem, rough: np.ndarray, chosen: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """Return the basin of the converged start nearest to each rough end point, or -1."""
    widths = np.array([p.starts[1] - p.starts[0] for p in problem.parameters])[problem.free]
    places = rough[:, problem.free] / np.maximum(widths, 1e-9)
    nearest, distance = np.full(len(rough), -1), np.full(len(rough), SAME_BASIN_DISTANCE)
    for polished, basin in zip(chosen, number, strict=True):
        apart = np.abs(places - places[polished]).max(axis=1)
        closer = apart < distance
        nearest[closer], distance[closer] = basin, apart[closer]
    return nearest


def warm_start(problem: Problem, best: Solution) -> Solution:
    """Solve again from the basins of a similar problem; basins that coincide are merged."""
    minima = problem.minimise(best.others)
    number, costs = _basins(minima, problem.data.rounding)
    order = np.argsort(minima.cost, kind="stable")
    leaders = [order[number[order] == basin][0] for basin in range(len(costs))]
    starts = np.array([basin["starts"] for basin in best.basins])
    counts = [starts[number == basin].sum() for basin in range(len(costs))]
    first = leaders[0]
    return replace(
        best,
        theta=minima.theta[first],
        cost=float(minima.cost[first]),
        gradient_norm=float(minima.gradient_norm[first]),
        converged=bool(minima.converged[first]),
        basins=[
            {"objective": float(cost), "starts": int(count)}
            for cost, count in zip(costs, counts, strict=True)
        ],
        others=minima.theta[leaders],
    )


def finish(problem: Problem, best: Solution) -> Solution:
    """Minimise the best basins with SciPy too; keep the lower optimum and note a disagreement."""
    free = problem.free
    if not free.any():
        return replace(best, converged=True)
    results = [problem.solve(start[free]) for start in best.others[:FINISHED]]
    lowest = min(results, key=lambda result: result.cost)
    difference = lowest.cost - best.cost
    if difference < 0:
        theta = problem.complete(lowest.x)
        polished = problem.minimise(theta[None], reweighted=0)
        if polished.cost[0] <= lowest.cost:
            theta = polished.theta[0]
        best = replace(
            best, theta=theta, cost=min(float(polished.cost[0]), float(lowest.cost)),
            gradient_norm=float(polished.gradient_norm[0]), converged=bool(lowest.status > 0),
            basins=[dict(basin) for basin in best.basins],
        )  # fmt: skip
        best.basins[0]["objective"] = best.cost
    if abs(difference) > 1e-6 * abs(best.cost) + 1e-12:
        side = "below" if difference < 0 else "above"
        note = f"SciPy's least_squares ends {abs(difference):.3g} {side} the batched optimum; "
        return replace(best, disagreement=note + "the lower optimum is reported, check it")
    return best


def residual_scale(residuals: np.ndarray, fitted: int) -> float:
    """Estimate a robust standard deviation of residuals, corrected for the fitted parameters.

    Parameters
    ----------
    residuals
        Residuals, (n,).
    fitted
        Number of fitted parameters p.

    Returns
    -------
    1.4826 times the median absolute deviation, times √(n/(n - p)).
    """
    rows = len(residuals)
    median = float(np.median(np.abs(residuals - np.median(residuals))))
    return 1.4826 * median * float(np.sqrt(rows / max(rows - fitted, 1)))


def new_run_scale(residuals: np.ndarray, fitted: int) -> float:
    """Estimate the standard deviation from which a new run gets its 95 % prediction interval.

    The estimate is the robust scale or, with at least 40 rows, the 95 % quantile of the absolute
    residuals over 1.96 if that is larger. The estimate thus follows tails that are heavier than
    normal, but not single outliers.
    """
    scale = residual_scale(residuals, fitted)
    rows = len(residuals)
    if rows < MIN_ROWS_FOR_TAILS:
        return scale
    beyond = float(np.quantile(np.abs(residuals - np.median(residuals)), 0.95)) / norm.ppf(0.975)
    return max(scale, float(beyond * np.sqrt(rows / max(rows - fitted, 1))))
