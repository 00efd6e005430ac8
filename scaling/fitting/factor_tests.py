"""Tests of the factors of a law: a factor that noise hides is held at no effect."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2
from scipy.stats import f as fisher

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.laws.part import Factor
from shapelaw.scaling.solver.identifiability import neutral
from shapelaw.scaling.solver.multistart import solve_at
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.robust_covariance import pseudo_variance

SIGNIFICANCE = 0.05  # level of the F test and of the comparison with the noise between seeds


@dataclass(frozen=True, kw_only=True)
class UnresolvedFactor:
    """Factor whose effect is not resolved above the noise.

    Parameters
    ----------
    factor
        Factor of the law.
    effect
        Change of ln loss over the runs that the factor has when fitted: size, low and high.
    chance
        p-value of the F test.
    why
        Effect and p-value as a sentence.
    """

    factor: Factor
    effect: dict[str, float]
    chance: float
    why: str

    @property
    def column(self) -> str:
        """Ratio on which the factor depends."""
        return self.factor.of


def solve_with_factor_tests(
    problem: Problem,
    delta: float | str,
    starts: int | np.ndarray,
    seed: int,
    between: tuple[float, int],
) -> tuple[Problem, Solution, list[UnresolvedFactor]]:
    """Solve a problem, holding the factors that noise hides one by one, the weakest first.

    Parameters
    ----------
    problem
        Problem with every factor free.
    delta, starts, seed
        As in :func:`shapelaw.scaling.fitting.fit_law.fit`.
    between
        Standard deviation of ln loss between seeds, and its degrees of freedom.

    Returns
    -------
    tuple
        The problem with unresolved factors held, its optimum, and the unresolved factors.
    """
    unresolved: list[UnresolvedFactor] = []
    while True:
        problem, best = solve_at(problem, delta, starts, seed)
        weakest = _weakest(problem, best, between)
        if weakest is None:
            return problem, best, unresolved
        unresolved.append(weakest)
        effectless = neutral(problem.law, weakest.factor, problem.columns, weakest.why)
        problem = problem.but(held={**problem.held, **effectless})


def _weakest(
    problem: Problem, best: Solution, between: tuple[float, int]
) -> UnresolvedFactor | None:
    """Find the factor with the least support in the data, if noise hides it.

    Noise hides a factor if its removal costs no more than chance would (a robust F test, Huber
    & Ronchetti 2009, chapter 13), or if its whole effect is below the noise between seeds. The
    latter is an estimate with few degrees of freedom: it counts only if the true noise is larger
    than the effect with a confidence of 95 %.
    """
    rows, degrees = len(problem.log_loss), len(problem.log_loss) - int(problem.free.sum())
    worst: UnresolvedFactor | None = None
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
        small = is_below_noise(effect["size"], between)
        if (chance > SIGNIFICANCE or small) and (worst is None or chance > worst.chance):
            why = f"effect of {100 * effect['size']:.2f} % over the {rows} runs is not resolved"
            if between[1]:
                why += f" (noise between seeds {100 * between[0]:.2f} % with "
                why += f"{counted(between[1], 'degree')} of freedom, p = {chance:.2f})"
            else:
                why += f" (p = {chance:.2f})"
            worst = UnresolvedFactor(factor=factor, effect=effect, chance=chance, why=why)
    return worst


def is_below_noise(effect: float, between: tuple[float, int]) -> bool:
    """Test if the noise between seeds is larger than an effect, by its chi-squared distribution."""
    deviation, degrees = between
    if not degrees:
        return False
    confidence = chi2.cdf(degrees * (deviation / max(effect, 1e-300)) ** 2, degrees)
    return bool(confidence >= 1 - SIGNIFICANCE)


def effects_of(problem: Problem, theta: np.ndarray) -> dict[str, dict[str, float]]:
    """Measure how much each factor changes the loss over the observed runs.

    Parameters
    ----------
    problem
        Problem with the columns of the runs.
    theta
        Internal parameters, (p,).

    Returns
    -------
    dict
        Range (``size``), lowest and highest change of ln loss by column.
    """
    return {factor.of: _effect(problem, theta, factor) for factor in problem.law.shapes}


def _effect(problem: Problem, theta: np.ndarray, factor: Factor) -> dict[str, float]:
    change = problem.law.effect(factor, theta[None], problem.columns, problem.reference)[0]
    return {
        "size": float(np.ptp(change)),
        "low": float(change.min()),
        "high": float(change.max()),
    }
