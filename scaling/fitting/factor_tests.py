"""Which factors of a law the data support: what noise hides is held at no effect."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import f as fisher

from shapelaw.scaling.laws.law import Factor
from shapelaw.scaling.solver.identifiability import neutral
from shapelaw.scaling.solver.multistart import solve_at
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.robust_covariance import pseudo_variance

SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """A factor whose effect noise hides: its size when fitted, the p-value, and both in words."""

    factor: Factor
    effect: dict[str, float]
    chance: float
    why: str

    @property
    def column(self) -> str:
        """The ratio that the factor acts on."""
        return self.factor.of


def settle(
    problem: Problem,
    delta: float | str,
    starts: int | np.ndarray,
    seed: int,
    between: tuple[float, int],
) -> tuple[Problem, Solution, list[Hidden]]:
    """Solve; hold the factors that noise hides, one by one, weakest first; solve again."""
    hidden: list[Hidden] = []
    while True:
        problem, best = solve_at(problem, delta, starts, seed)
        weakest = _weakest(problem, best, between)
        if weakest is None:
            return problem, best, hidden
        hidden.append(weakest)
        effectless = neutral(problem.law, weakest.factor, problem.columns, weakest.why)
        problem = problem.but(held={**problem.held, **effectless})


def _weakest(problem: Problem, best: Solution, between: tuple[float, int]) -> Hidden | None:
    """The factor that the data support least, if noise hides it.

    A factor is hidden where leaving it out costs no more than chance would (a robust F test, Huber
    & Ronchetti 2009, chapter 13), or where its whole effect is below the noise between seeds.
    """
    rows, degrees = len(problem.log_loss), len(problem.log_loss) - int(problem.free.sum())
    worst: Hidden | None = None
    unit = pseudo_variance(problem, best.theta) / 2
    for factor in problem.law.shapes:
        fitted = [name for name in factor.names if name in problem.law.names]
        fitted = [name for name in fitted if name not in problem.held]
        if not fitted or not factor.optional or degrees < 1:
            continue
        if any(n.endswith("_curvature") and n in problem.held for n in factor.names):
            continue
        without = problem.but(
            held={**problem.held, **neutral(problem.law, factor, problem.columns, "left out")}
        )
        cost = float(without.minimise(best.others).cost.min())
        ratio = (cost - best.cost) / len(fitted) / max(unit, 1e-300)
        chance = float(fisher.sf(max(ratio, 0.0), len(fitted), degrees))
        effect = _effect(problem, best.theta, factor)
        small = between[1] > 0 and effect["size"] < between[0]
        if (chance > SIGNIFICANCE or small) and (worst is None or chance > worst.chance):
            words = f"effect of {100 * effect['size']:.2f} % over the {rows} runs is not resolved"
            if between[1]:
                words += f" (noise between seeds {100 * between[0]:.2f} %, p = {chance:.2f})"
            else:
                words += f" (p = {chance:.2f})"
            worst = Hidden(factor=factor, effect=effect, chance=chance, why=words)
    return worst


def effects_of(problem: Problem, theta: np.ndarray) -> dict[str, dict[str, float]]:
    """How much each factor moves the loss over the observed runs: {column: {size, low, high}}."""
    return {factor.of: _effect(problem, theta, factor) for factor in problem.law.shapes}


def _effect(problem: Problem, theta: np.ndarray, factor: Factor) -> dict[str, float]:
    moved = problem.law.effect(factor, theta[None], problem.columns, problem.reference)[0]
    return {
        "size": float(np.ptp(moved)),
        "low": float(moved.min()),
        "high": float(moved.max()),
    }
