"""Verdict on a learning-rate rule from the losses at three rates, with the optima and their trend.

The rule passes at a shape if its loss is within one standard deviation between seeds of the best of
the three losses. A parabola in ln rate through the three losses gives the optimum of each shape. A
plane through the optima gives the powers of width and depth that the rule lacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import FailedCheckError, InputError
from shapelaw.scaling.units import format_count
from shapelaw.trainers.training.spec import RunSpec

RULE = 1.0  # factor of the rule's own learning rate


@dataclass(frozen=True, kw_only=True)
class LRTrial:
    """One run of a check. ``factor`` multiplies the learning rates of the rule."""

    shape: Shape
    factor: float
    spec: RunSpec


@dataclass(frozen=True, kw_only=True)
class ShapeRates:
    """Result of a check at one shape.

    Attributes
    ----------
    shape
        The shape.
    losses
        Mean loss over seeds by factor, nats per token; infinite if a run diverged.
    excess, excess_in_sds
        Difference between the loss of the rule and the best loss, in ln units and in standard
        deviations between seeds.
    passed
        True if the excess is at most one standard deviation between seeds.
    optimum, optimum_se
        Factor at the minimum of the parabola and the standard error of its logarithm. Both are NaN
        if the three rates do not enclose a minimum.
    """

    shape: Shape
    losses: dict[float, float]
    excess: float
    excess_in_sds: float
    passed: bool
    optimum: float
    optimum_se: float

    @property
    def best(self) -> float:
        """Factor with the lowest loss."""
        return min(self.losses, key=lambda factor: self.losses[factor])


@dataclass(frozen=True, kw_only=True, repr=False)
class RateCheck(Result):
    """Result of a learning-rate check.

    Attributes
    ----------
    shapes
        Result at each shape.
    tokens
        Training tokens of the runs, ascending.
    seeds
        Number of seeds.
    seed_sd, seed_sd_from
        Standard deviation of ln loss between seeds, and its source.
    exponents
        Powers of hidden size and depth that the rule lacks, each with its standard error; empty if
        the shapes or the optima do not determine them.
    """

    shapes: tuple[ShapeRates, ...]
    tokens: tuple[int, ...]
    seeds: int
    seed_sd: float
    seed_sd_from: str
    exponents: dict[str, tuple[float, float]]

    @property
    def passed(self) -> bool:
        """True if the rule passes at every shape."""
        return all(shape.passed for shape in self.shapes)

    def require(self) -> None:
        """Raise an error if the rule does not pass.

        Raises
        ------
        FailedCheckError
            Another rate is better by more than one standard deviation at some shape.
        """
        failed = [shape for shape in self.shapes if not shape.passed]
        if failed:
            raise FailedCheckError(
                f"`loss at the rule's rate - best <= 1 seed SD` must hold at every shape, but not "
                f"at {len(failed)} of {len(self.shapes)}: "
                + "; ".join(
                    f"{shape.shape}, x{shape.best:g} is better by {shape.excess_in_sds:.2g} SD"
                    for shape in failed
                )
                + "; change the learning rate or its rule"
            )

    def frame(self) -> pd.DataFrame:
        """Return losses by rate, best rate, excess of the rule and fitted optimum of each shape."""
        return pd.DataFrame(
            [
                {
                    "shape": str(result.shape),
                    "hidden_size": result.shape.hidden_size,
                    "num_hidden_layers": result.shape.num_hidden_layers,
                    "n_non_embedding": result.shape.n_non_embedding,
                    **{f"loss_x{factor:g}": loss for factor, loss in result.losses.items()},
                    "best": result.best,
                    "excess_percent": 100 * result.excess,
                    "excess_in_sds": result.excess_in_sds,
                    "optimum": result.optimum,
                    "optimum_ln_se": result.optimum_se,
                    "passed": result.passed,
                }
                for result in self.shapes
            ]
        )

    def view(self) -> View:
        """Return the verdict, the losses by rate, the noise between seeds and the trend."""
        good, rates = sum(shape.passed for shape in self.shapes), len(self.shapes[0].losses)
        shapes = counted(len(self.shapes), "shape")
        trend = " and ".join(
            f"{name}^{value:.2f} (± {se:.2f})" for name, (value, se) in self.exponents.items()
        )
        notes = [
            f"seed SD {100 * self.seed_sd:.3g} % of the loss ({self.seed_sd_from})",
            f"the optima are at the rule's rate times {trend}"
            if trend
            else "the optima do not determine a trend with width and depth",
        ]
        outside = [shape for shape in self.shapes if not np.isfinite(shape.optimum)]
        if outside:
            best = ", ".join(f"x{shape.best:g} ({shape.shape})" for shape in outside)
            notes.append(
                f"no optimum between the three rates at {len(outside)} of {shapes}, best at {best}"
            )
        return View(
            title=f"{'pass' if self.passed else 'fail'}: the rule's rate is within one seed SD of "
            f"the best of {rates} at {good} of {shapes} ({_span(self.tokens)} tokens, "
            f"{counted(self.seeds, 'seed')} each)",
            tables={"loss by rate": self.frame()},
            notes=notes,
        )

    def document(self) -> dict[str, Any]:
        """Return the stable document that ``sweep lr-check --json`` prints."""
        return {
            "passed": self.passed,
            "tokens": self.tokens,
            "seeds": self.seeds,
            "seed_sd": self.seed_sd,
            "seed_sd_from": self.seed_sd_from,
            "exponents": {
                name: {"value": value, "se": se} for name, (value, se) in self.exponents.items()
            },
            "shapes": self.frame(),
        }


def _span(counts: Sequence[int]) -> str:
    least, most = format_count(min(counts)), format_count(max(counts))
    return least if least == most else f"{least} to {most}"


def judge(
    runs: pd.DataFrame, tried: Sequence[LRTrial], *, seed_sd: float | None = None
) -> RateCheck:
    """Evaluate the run table of a check.

    Parameters
    ----------
    runs
        Rows with ``run_id`` and ``loss``. A missing loss means that the run diverged.
    tried
        Trials of these runs.
    seed_sd
        Standard deviation of ln loss between seeds; by default pooled over the seeds at the rate of
        the rule of all shapes.

    Raises
    ------
    InputError
        No shape has two seeds to compare, and ``seed_sd`` is not given.
    """
    losses = runs.set_index("run_id")["loss"].astype(float)
    by_shape: dict[Shape, dict[float, list[float]]] = {}
    for trial in tried:
        value = float(losses.loc[trial.spec.run_id])
        cell = by_shape.setdefault(trial.shape, {}).setdefault(trial.factor, [])
        cell.append(value if np.isfinite(value) else np.inf)
    spread, source = _seed_sd([cells[RULE] for cells in by_shape.values()], seed_sd)
    shapes = tuple(_judge_shape(shape, cells, spread) for shape, cells in by_shape.items())
    return RateCheck(
        shapes=shapes,
        tokens=tuple(sorted({trial.spec.tokens for trial in tried})),
        seeds=len(next(iter(by_shape.values()))[RULE]),
        seed_sd=spread,
        seed_sd_from=source,
        exponents=_exponents(shapes),
    )


def _seed_sd(cells: Sequence[Sequence[float]], given: float | None) -> tuple[float, str]:
    """Return the standard deviation of ln loss between seeds and a description of its source."""
    if given is not None:
        return given, "given"
    logs = [np.log(cell) for cell in cells if len(cell) > 1 and np.all(np.isfinite(cell))]
    freedom = sum(len(values) - 1 for values in logs)
    if not freedom:
        raise InputError(
            "`seeds >= 2` must hold at a shape whose runs did not diverge, to measure the noise "
            "between seeds; train more seeds or give --seed-sd"
        )
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logs)
    shapes, degrees = counted(len(logs), "shape"), counted(freedom, "degree")
    source = f"pooled over {shapes} at the rule's rate, {degrees} of freedom"
    return float(np.sqrt(squares / freedom)), source


def _judge_shape(shape: Shape, cells: dict[float, list[float]], spread: float) -> ShapeRates:
    """Evaluate one shape from its losses by factor and the noise between seeds."""
    factors = sorted(cells)
    means = {factor: float(np.mean(cells[factor])) for factor in factors}
    best = min(means.values())
    finite = np.isfinite(means[RULE])
    excess = float(np.log(means[RULE] / best)) if finite else np.inf
    count = len(cells[RULE])
    optimum, error = _vertex(
        np.log([means[factor] for factor in factors]), np.log(factors[-1]), spread / np.sqrt(count)
    )
    in_sds = excess / spread if spread else (0.0 if excess == 0 else np.inf)
    return ShapeRates(
        shape=shape,
        losses=means,
        excess=excess,
        excess_in_sds=in_sds,
        passed=bool(excess <= spread),
        optimum=float(np.exp(optimum)),
        optimum_se=error,
    )


def _vertex(logs: np.ndarray, step: float, noise: float) -> tuple[float, float]:
    """Return the minimum of the parabola through three equidistant values around 0, and its error.

    Both are NaN if the parabola is not convex or its minimum lies outside the three values.
    """
    low, middle, high = logs
    curvature = low - 2 * middle + high
    if not np.isfinite(curvature) or curvature <= 0:
        return np.nan, np.nan
    tilt = low - high
    vertex = step * tilt / (2 * curvature)
    if abs(vertex) > step:
        return np.nan, np.nan
    inverse, ratio = 1 / curvature, tilt / curvature**2
    gradient = step / 2 * np.array([inverse - ratio, 2 * ratio, -inverse - ratio])
    return float(vertex), float(noise * np.sqrt((gradient**2).sum()))


def _exponents(shapes: Sequence[ShapeRates]) -> dict[str, tuple[float, float]]:
    """Fit the powers of hidden size and depth in the optima, with errors from the seed noise."""
    fitted = [shape for shape in shapes if np.isfinite(shape.optimum)]
    axes = {
        name: np.log([getattr(result.shape, name) for result in fitted])
        for name in ("hidden_size", "num_hidden_layers")
    }
    varying = {name: values for name, values in axes.items() if len(fitted) and np.ptp(values) > 0}
    if not varying or len(fitted) < len(varying) + 1:
        return {}
    design = np.column_stack([np.ones(len(fitted)), *varying.values()])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    weights = 1 / np.array([max(result.optimum_se, 1e-9) for result in fitted])
    covariance = np.linalg.inv((design * weights[:, None] ** 2).T @ design)
    optima = np.log([result.optimum for result in fitted])
    slopes = covariance @ (design.T @ (weights**2 * optima))
    errors = np.sqrt(np.diag(covariance))
    return {name: (float(slopes[i]), float(errors[i])) for i, name in enumerate(varying, start=1)}
