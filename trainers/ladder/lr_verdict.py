"""What three learning rates gave at each shape: the verdict on a rule, the optima, their trend.

The rule passes where its loss is within one standard deviation between seeds of the best of the
three. A parabola in ln rate through the three gives each shape's optimum, and a plane through the
optima the powers of width and depth that the rule lacks.
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

RULE = 1.0


@dataclass(frozen=True, kw_only=True)
class LRTrial:
    """One run of a check: ``factor`` multiplies the learning rates of ``spec``'s rule."""

    shape: Shape
    factor: float
    spec: RunSpec


@dataclass(frozen=True, kw_only=True)
class ShapeRates:
    """What the rates gave at one shape.

    ``losses`` is the mean over seeds by factor, nats per token, infinite where a run diverged;
    ``excess`` how far the rule's loss is above the best, in ln units, and ``excess_in_sds`` in
    standard deviations between seeds. ``optimum`` is the factor at the parabola's lowest point and
    ``optimum_se`` the standard error of its logarithm, both NaN where the three do not enclose a
    minimum.
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
        """The factor of the lowest loss."""
        return min(self.losses, key=lambda factor: self.losses[factor])


@dataclass(frozen=True, kw_only=True, repr=False)
class RateCheck(Result):
    """The answer of a check.

    ``seed_sd`` is the standard deviation of ln loss between seeds and ``seed_sd_from`` where it
    comes from; ``exponents`` are the powers of hidden size and depth that the rule lacks, each with
    its standard error, empty where the shapes or the optima do not tell.
    """

    shapes: tuple[ShapeRates, ...]
    tokens: tuple[int, ...]
    seeds: int
    seed_sd: float
    seed_sd_from: str
    exponents: dict[str, tuple[float, float]]

    @property
    def passed(self) -> bool:
        """Whether the rule passes at every shape."""
        return all(shape.passed for shape in self.shapes)

    def require(self) -> None:
        """Fail where the rule does not pass.

        Raises
        ------
        FailedCheckError
            At some shape another rate is better by more than one standard deviation.
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
        """One row per shape: loss by rate, the best, the rule's excess, the fitted optimum."""
        return pd.DataFrame(
            [
                {
                    "shape": str(found.shape),
                    "hidden_size": found.shape.hidden_size,
                    "num_hidden_layers": found.shape.num_hidden_layers,
                    "n_non_embedding": found.shape.n_non_embedding,
                    **{f"loss_x{factor:g}": loss for factor, loss in found.losses.items()},
                    "best": found.best,
                    "excess_percent": 100 * found.excess,
                    "excess_in_sds": found.excess_in_sds,
                    "optimum": found.optimum,
                    "optimum_ln_se": found.optimum_se,
                    "passed": found.passed,
                }
                for found in self.shapes
            ]
        )

    def view(self) -> View:
        """Return the verdict, the losses by rate, the noise between seeds and the trend."""
        good, rates = sum(shape.passed for shape in self.shapes), len(self.shapes[0].losses)
        shapes = counted(len(self.shapes), "shape")
        asked = " and ".join(
            f"{name}^{value:.2f} (± {se:.2f})" for name, (value, se) in self.exponents.items()
        )
        notes = [
            f"seed SD {100 * self.seed_sd:.3g} % of the loss ({self.seed_sd_from})",
            f"the optima ask for the rule's rate times {asked}"
            if asked
            else "the optima do not tell a trend with width and depth",
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
    """Read the run table of a check.

    Parameters
    ----------
    runs
        Rows with ``run_id`` and ``loss``; a loss that is missing is a run that diverged.
    tried
        The trials that gave them.
    seed_sd
        Standard deviation of ln loss between seeds, where it is known; else it is pooled over the
        seeds of the rule's rate at each shape.

    Raises
    ------
    InputError
        No shape has two seeds that can be compared, and ``seed_sd`` is not given.
    """
    losses = runs.set_index("run_id")["loss"].astype(float)
    found: dict[Shape, dict[float, list[float]]] = {}
    for trial in tried:
        value = float(losses.loc[trial.spec.run_id])
        cell = found.setdefault(trial.shape, {}).setdefault(trial.factor, [])
        cell.append(value if np.isfinite(value) else np.inf)
    spread, source = _seed_sd([cells[RULE] for cells in found.values()], seed_sd)
    shapes = tuple(_judge_shape(shape, cells, spread) for shape, cells in found.items())
    return RateCheck(
        shapes=shapes,
        tokens=tuple(sorted({trial.spec.tokens for trial in tried})),
        seeds=len(next(iter(found.values()))[RULE]),
        seed_sd=spread,
        seed_sd_from=source,
        exponents=_exponents(shapes),
    )


def _seed_sd(cells: Sequence[Sequence[float]], given: float | None) -> tuple[float, str]:
    """Standard deviation of ln loss between seeds, and its source in words."""
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
    """The verdict on one shape from its losses by factor and the noise between seeds."""
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
    """Lowest point of the parabola through three equidistant values around 0, and its error.

    NaN for both where the values do not bend upwards, or the lowest point lies outside them.
    """
    low, middle, high = logs
    bend = low - 2 * middle + high
    if not np.isfinite(bend) or bend <= 0:
        return np.nan, np.nan
    tilt = low - high
    place = step * tilt / (2 * bend)
    if abs(place) > step:
        return np.nan, np.nan
    gradient = step / 2 * np.array([1 / bend - tilt / bend**2, 2 * tilt / bend**2,
                                    -1 / bend - tilt / bend**2])  # fmt: skip
    return float(place), float(noise * np.sqrt((gradient**2).sum()))


def _exponents(shapes: Sequence[ShapeRates]) -> dict[str, tuple[float, float]]:
    """Powers of hidden size and depth in the optima, with standard errors from the seeds' noise."""
    known = [shape for shape in shapes if np.isfinite(shape.optimum)]
    axes = {
        name: np.log([getattr(found.shape, name) for found in known])
        for name in ("hidden_size", "num_hidden_layers")
    }
    moving = {name: values for name, values in axes.items() if len(known) and np.ptp(values) > 0}
    if not moving or len(known) < len(moving) + 1:
        return {}
    design = np.column_stack([np.ones(len(known)), *moving.values()])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    weights = 1 / np.array([max(found.optimum_se, 1e-9) for found in known])
    covariance = np.linalg.inv((design * weights[:, None] ** 2).T @ design)
    optima = np.log([found.optimum for found in known])
    slopes = covariance @ (design.T @ (weights**2 * optima))
    errors = np.sqrt(np.diag(covariance))
    return {name: (float(slopes[i]), float(errors[i])) for i, name in enumerate(moving, start=1)}
