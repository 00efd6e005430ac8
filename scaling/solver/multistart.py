"""Solve one problem of a law: many starts in batches, the best basins finished by SciPy."""

from dataclasses import replace
from functools import reduce

import numpy as np
from scipy.stats import norm

from shapelaw.scaling.display.progress import track
from shapelaw.scaling.solver.levenberg_marquardt import Minima
from shapelaw.scaling.solver.problem import Problem, Solution

HUBER = 1.345  # times the residual scale: 95 % as efficient as least squares on normal residuals
SMALLEST_DELTA = 1e-6
SMOOTH = 0.05  # threshold of the first stage, in ln loss: a wide bowl leads from everywhere
FIRST_STEPS, SECOND_STEPS = 6, 10
SECOND, POLISHED, FINISHED = 1024, 128, 3  # starts that go on to each stage
SHORT, LONG = 60, 400  # steps of polishing, and for what is slow and may be the best
RIVAL = 2.0
ROWS_FOR_TAILS = 40
BLOCK = 4096  # starts minimised at once
# Starts minimised without the smooth stages: where the objective redescends, and where it does not.
DIRECT, DIRECT_CONVEX = 512, 64
SAME_BASIN = 1e-7  # relative difference of objectives
# Rounds of scale and fit: Huber's follows the residuals of a rough fit (three are enough), that of
# Student's t is estimated jointly, to the end.
ROBUST_ROUNDS, JOINT_ROUNDS, SETTLED = 3, 60, 1e-9
NEAR = 0.05  # of the box of starts: a first stage this close belongs to the same basin


def solve_at(
    problem: Problem, delta: float | str, starts: int | np.ndarray, seed: int
) -> tuple[Problem, Solution]:
    """Solve at the given delta, or at the one that the residuals ask for."""
    points = problem.starts(starts, seed) if isinstance(starts, int) else starts
    best = multi_start(problem, points)
    if delta == "auto" and problem.objective.robust:
        rounds = JOINT_ROUNDS if problem.objective.kind == "student" else ROBUST_ROUNDS
        for _ in range(rounds):
            scale = max(own_scale(problem, best.theta), SMALLEST_DELTA)
            settled = abs(scale / problem.objective.delta - 1) < SETTLED
            problem = problem.but(objective=problem.objective.at(scale))
            best = warm_start(problem, best)
            if settled:
                break
    return problem, finish(problem, best)


def own_scale(problem: Problem, theta: np.ndarray) -> float:
    """Threshold or scale that the residuals ask for, in units of the objective's residuals.

    Huber: 1.345 times the robust residual scale. Student-t: the maximum-likelihood scale.
    """
    residuals = problem.residuals(theta[problem.free])
    if problem.objective.kind != "student":
        return HUBER * residual_scale(residuals, int(problem.free.sum()))
    degrees, scale = problem.objective.degrees, problem.objective.delta
    for _ in range(500):
        shares = (degrees + 1) / (degrees + (residuals / scale) ** 2)
        found = float(np.sqrt(np.average(shares * residuals**2, weights=problem.weights)))
        if abs(found / scale - 1) < 1e-12:
            break
        scale = max(found, SMALLEST_DELTA)
    return scale


def multi_start(problem: Problem, points: np.ndarray, *, full: bool = False) -> Solution:
    """Minimise from every start, in stages.

    All starts take a few steps with a smooth objective; the better ones some more; of those, what
    is distinct is polished to the end. A smooth bowl may lead past the best of several basins: so
    some starts are minimised without it as well, many for an objective such as Student's.

    Parameters
    ----------
    points
        Internal parameters of the starts, (S, p).
    full
        Polish every start: slow, and the check of the stages.
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
    own = number[: len(chosen)]
    belongs = own[np.argsort(chosen)] if full else _belonging(problem, rough, chosen, own)
    found = number[len(chosen) :]
    belongs[: len(direct)] = np.where(found >= 0, found, belongs[: len(direct)])
    counts = np.bincount(belongs[belongs >= 0], minlength=len(costs))
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
    """Minimise to the end; what takes long and is not among the best is left where it is."""
    found = _in_blocks(problem, starts, "polishing", steps=LONG if full else SHORT)
    slow = ~found.converged & (found.cost <= RIVAL * found.cost.min())
    if slow.any() and not full:
        again = problem.minimise(found.theta[slow], steps=LONG)
        for name in ("theta", "cost", "gradient_norm", "converged"):
            getattr(found, name)[slow] = getattr(again, name)
    return found


def _in_blocks(problem: Problem, starts: np.ndarray, words: str, **settings: int) -> Minima:
    """Minimise block by block: bounded memory, and something to show while it runs."""
    blocks = [starts[i : i + BLOCK] for i in range(0, len(starts), BLOCK)]
    found = [
        problem.minimise(block, **settings) for block in track(blocks, words, total=len(blocks))
    ]
    return reduce(Minima.joined, found)


def _unsmoothed(problem: Problem) -> int:
    """How many starts are minimised without the smooth stages."""
    if not problem.objective.robust:
        return 0
    return DIRECT if problem.objective.redescends else DIRECT_CONVEX


def _smoothed(problem: Problem) -> Problem:
    """The same with a wide bowl, in which every start finds its way."""
    if not problem.objective.robust:
        return problem
    unit = SMOOTH * (np.exp(problem.log_loss.mean()) if problem.objective.on == "raw" else 1.0)
    wide = problem.objective.at(max(problem.objective.delta, float(unit)))
    return problem.but(objective=wide)


def _given(problem: Problem, points: np.ndarray) -> Solution:
    """The answer where every parameter is held: nothing to minimise."""
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


def _distinct(problem: Problem, found: Minima, count: int) -> np.ndarray:
    """Positions of the best that differ from each other in some free parameter."""
    order = np.argsort(found.cost, kind="stable")
    widths = np.array([p.starts[1] - p.starts[0] for p in problem.parameters])[problem.free]
    grid = np.round(found.theta[:, problem.free] / (1e-3 * np.maximum(widths, 1e-9)))
    _, first = np.unique(grid[order], axis=0, return_index=True)
    return np.asarray(order[np.sort(first)][:count])


def _basins(found: Minima, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Number of each start's basin, best first, and the basins' objectives.

    What has not converged is in none (-1), unless nothing has or it is the best.
    """
    counted = found.converged | (found.cost <= found.cost.min())
    order = np.flatnonzero(counted)[np.argsort(found.cost[counted], kind="stable")]
    ordered = found.cost[order]
    new = np.concatenate([[False], np.diff(ordered) > SAME_BASIN * np.abs(ordered[:-1]) + rounding])
    number = np.full(len(found.cost), -1)
    number[order] = np.cumsum(new)
    return number, ordered[np.concatenate([[0], np.flatnonzero(new)]).astype(int)]


def _belonging(
    problem: Problem, rough: np.ndarray, chosen: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """The basin of the polished start next to which each start ended its last stage, or -1."""
    widths = np.array([p.starts[1] - p.starts[0] for p in problem.parameters])[problem.free]
    places = rough[:, problem.free] / np.maximum(widths, 1e-9)
    nearest, distance = np.full(len(rough), -1), np.full(len(rough), NEAR)
    for polished, basin in zip(chosen, number, strict=True):
        apart = np.abs(places - places[polished]).max(axis=1)
        closer = apart < distance
        nearest[closer], distance[closer] = basin, apart[closer]
    return nearest


def warm_start(problem: Problem, best: Solution) -> Solution:
    """Solve again from the basins of a neighbouring problem; those that meet become one."""
    found = problem.minimise(best.others)
    number, costs = _basins(found, problem.data.rounding)
    order = np.argsort(found.cost, kind="stable")
    leaders = [order[number[order] == basin][0] for basin in range(len(costs))]
    starts = np.array([basin["starts"] for basin in best.basins])
    counts = [starts[number == basin].sum() for basin in range(len(costs))]
    first = leaders[0]
    return replace(
        best,
        theta=found.theta[first],
        cost=float(found.cost[first]),
        gradient_norm=float(found.gradient_norm[first]),
        converged=bool(found.converged[first]),
        basins=[
            {"objective": float(cost), "starts": int(count)}
            for cost, count in zip(costs, counts, strict=True)
        ],
        others=found.theta[leaders],
    )


def finish(problem: Problem, best: Solution) -> Solution:
    """Finish the best basins with SciPy and report the lower optimum; say where they disagree."""
    free = problem.free
    if not free.any():
        return replace(best, converged=True)
    found = [problem.solve(start[free]) for start in best.others[:FINISHED]]
    lowest = min(found, key=lambda result: result.cost)
    apart = lowest.cost - best.cost
    if apart < 0:
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
    if abs(apart) > 1e-6 * abs(best.cost) + 1e-12:
        lower = "lower than" if apart < 0 else "above"
        words = f"SciPy's least_squares ends {abs(apart):.3g} {lower} the batched optimum: "
        return replace(best, disagreement=words + "the lower of both is reported, check it")
    return best


def residual_scale(residuals: np.ndarray, fitted: int) -> float:
    """Robust standard deviation of residuals, corrected for the fitted parameters."""
    rows = len(residuals)
    median = float(np.median(np.abs(residuals - np.median(residuals))))
    return 1.4826 * median * float(np.sqrt(rows / max(rows - fitted, 1)))


def new_run_scale(residuals: np.ndarray, fitted: int) -> float:
    """Standard deviation that gives a new run its 95 % interval.

    The robust scale, or with at least 40 rows the 95 % quantile of the residuals' size over 1.96
    where that is larger: tails heavier than the normal's are seen, single outliers are not.
    """
    scale = residual_scale(residuals, fitted)
    rows = len(residuals)
    if rows < ROWS_FOR_TAILS:
        return scale
    beyond = float(np.quantile(np.abs(residuals - np.median(residuals)), 0.95)) / norm.ppf(0.975)
    return max(scale, float(beyond * np.sqrt(rows / max(rows - fitted, 1))))
