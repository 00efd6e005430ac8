"""Number of seeds that tells two shapes apart, from the noise between seeds.

The resolution is the half width of the 95 % interval of the difference of ln loss of two shapes of
one size and token count, t √V, with t the 97.5 % point of Student's t for the degrees of freedom of
the noise. With n seeds of every shape and noise σ between seeds,

    V = 2 σ²/n                                  if both shapes are trained,
    V = 2 (τ² + k/(S - 1) (τ² + σ²/n))          if a law predicts both.

The law has k shape parameters and is fitted to S shapes; every shape deviates from it by an own
amount of standard deviation τ, the misfit. k/(S - 1) is the mean over all pairs of the variance of
a fitted difference in a linear regression. More seeds reduce the noise but not the misfit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.levels import LEVEL_TOLERANCE, level_of
from shapelaw.scaling.runs.replicates import noise_by_size, squares_of
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import format_count

COVERAGE = 0.975  # of the upper end of a 95 % interval
MAX_SEEDS = 1000  # seeds of a shape; a wish that needs more is refused
SAME_NOISE_CHANCE = 0.05  # of Bartlett's test, below which sizes have a noise of their own


@dataclass(frozen=True, kw_only=True)
class NoiseEstimate:
    """Standard deviation of ln loss between seeds and its degrees of freedom.

    Infinite degrees of freedom stand for a noise that is known exactly.
    """

    deviation: float
    degrees: float = np.inf

    def __post_init__(self) -> None:
        if not 0 < self.deviation < 1:
            raise InputError(f"`0 < noise < 100 %` must hold, but got {100 * self.deviation:g} %")
        if not self.degrees >= 1:
            raise InputError(f"`degrees of freedom >= 1` must hold, but got {self.degrees:g}")

    @property
    def quantile(self) -> float:
        """Half width of a 95 % interval in standard errors."""
        return float(stats.t.ppf(COVERAGE, self.degrees))


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """Noise between seeds of the runs of a table at one number of tokens per parameter.

    ``sizes`` are in non-embedding parameters, ascending, ``of_sizes`` their estimates.
    """

    tokens_per_parameter: float
    sizes: tuple[float, ...]
    of_sizes: tuple[NoiseEstimate, ...]

    @property
    def nominal(self) -> float:
        """Tokens per parameter in two digits; runs scatter because shapes do not hit their size."""
        return float(f"{self.tokens_per_parameter:.2g}")

    @property
    def pooled(self) -> NoiseEstimate:
        """Estimate from all sizes together."""
        degrees = np.array([part.degrees for part in self.of_sizes])
        variances = np.array([part.deviation**2 for part in self.of_sizes])
        pooled = float(np.sqrt(degrees @ variances / degrees.sum()))
        return NoiseEstimate(deviation=pooled, degrees=float(degrees.sum()))

    @property
    def same_noise_chance(self) -> float:
        """Compute the p value of Bartlett's test of equal noise at all sizes; 1 for one size."""
        count = len(self.of_sizes)
        if count < 2:
            return 1.0
        degrees = np.array([part.degrees for part in self.of_sizes])
        logs = np.log([part.deviation**2 for part in self.of_sizes])
        total = degrees.sum()
        excess = total * 2 * np.log(self.pooled.deviation) - degrees @ logs
        correction = 1 + ((1 / degrees).sum() - 1 / total) / (3 * (count - 1))
        return float(stats.chi2.sf(excess / correction, count - 1))

    def at(self, size: float) -> NoiseEstimate:
        """Return the estimate for a size: that of all sizes, or of the nearest if they differ."""
        if self.same_noise_chance >= SAME_NOISE_CHANCE:
            return self.pooled
        return self.of_sizes[int(np.abs(np.log(np.array(self.sizes) / size)).argmin())]

    def summary(self) -> str:
        """Describe the noise, and that of each size where there are several."""
        pooled = self.pooled
        text = (
            f"{100 * pooled.deviation:.2f} % at {self.nominal:g} tokens per parameter "
            f"({pooled.degrees:.0f} degrees of freedom"
        )
        if len(self.sizes) < 2:
            return f"{text})"
        parts = ", ".join(
            f"{100 * part.deviation:.2f} % at N = {format_count(size)}"
            for size, part in zip(self.sizes, self.of_sizes, strict=True)
        )
        return f"{text}: {parts}; all sizes alike: p = {self.same_noise_chance:.2g})"


def measure_noise_levels(runs: RunTable) -> tuple[NoiseLevel, ...]:
    """Measure the noise between seeds at every number of tokens per parameter with replicates.

    Parameters
    ----------
    runs
        Run table with replicates: runs that differ only in their seeds.

    Returns
    -------
    Levels of tokens per parameter, ascending.

    Raises
    ------
    InputError
        The table has no replicates.
    """
    if not runs.noise[1]:
        raise InputError(
            "`two runs that differ only in their seeds` must be in the table to measure the noise, "
            "but it has none; train a second seed, or give --noise"
        )
    ratio, log_loss = runs.tokens / runs.sizes, np.log(runs.losses)
    label = level_of(ratio)
    levels = []
    for number in np.unique(label):
        rows = label == number
        if not squares_of(runs.replicates[rows], log_loss[rows])[1].sum():
            continue
        table = noise_by_size(runs.replicates[rows], log_loss[rows], runs.sizes[rows])
        pairs = zip(table["deviation"], table["degrees"], strict=True)
        levels.append(
            NoiseLevel(
                tokens_per_parameter=float(np.exp(np.log(ratio[rows]).mean())),
                sizes=tuple(table["n_non_embedding"]),
                of_sizes=tuple(NoiseEstimate(deviation=s, degrees=float(df)) for s, df in pairs),
            )
        )
    return tuple(sorted(levels, key=lambda level: level.tokens_per_parameter))


def noise_at(
    levels: Sequence[NoiseLevel], size: float, tokens_per_parameter: float
) -> NoiseEstimate:
    """Interpolate the noise, a power of the tokens per parameter between measured levels.

    Beyond them the nearest level holds. The degrees of freedom are the fewest of any level.
    """
    estimates = [level.at(size) for level in levels]
    measured = np.log([level.tokens_per_parameter for level in levels])
    logs = np.log([estimate.deviation for estimate in estimates])
    return NoiseEstimate(
        deviation=float(np.exp(np.interp(np.log(tokens_per_parameter), measured, logs))),
        degrees=min(estimate.degrees for estimate in estimates),
    )


@dataclass(frozen=True, kw_only=True)
class LawReading:
    """A law that predicts the difference: misfit τ, k shape parameters, S fitted shapes."""

    misfit: float
    parameters: int
    shapes: int

    def __post_init__(self) -> None:
        if self.shapes <= self.parameters + 1:
            raise InputError(
                f"`shapes > shape parameters + 1` must hold to fit a law, but the plan has "
                f"{self.shapes} shapes for {self.parameters} parameters; plan more shapes"
            )

    @property
    def leverage(self) -> float:
        """Mean variance of half a fitted difference, in units of the variance of a shape."""
        return self.parameters / (self.shapes - 1)


def half_width(noise: NoiseEstimate, seeds: float, law: LawReading | None = None) -> float:
    """Compute the half width of the 95 % interval of a difference of ln loss of two shapes.

    Parameters
    ----------
    noise
        Noise between seeds.
    seeds
        Seeds of every shape; infinitely many give the limit.
    law
        Law that predicts both shapes; None if both are trained.
    """
    variance = noise.deviation**2 / seeds
    if law is not None:
        variance = law.misfit**2 + law.leverage * (law.misfit**2 + variance)
    return float(noise.quantile * np.sqrt(2 * variance))


def seeds_for(wanted: float, noise: NoiseEstimate, law: LawReading | None = None) -> int:
    """Compute the fewest seeds of every shape whose resolution is at most the wanted one.

    Parameters
    ----------
    wanted
        Half width of the 95 % interval of the difference of ln loss.
    noise
        Noise between seeds.
    law
        Law that predicts both shapes; None if both are trained.

    Raises
    ------
    InputError
        No number of seeds is enough, because of the misfit of the law, or more than 1,000 are
        needed.
    """
    spare = (wanted / noise.quantile) ** 2 / 2
    if law is not None:
        least = half_width(noise, np.inf, law)
        if wanted <= least:
            raise InputError(
                f"`--resolve` must be above {100 * least:.2f} %, but is {100 * wanted:.3g} %: more "
                f"seeds cannot help beyond it, because shapes deviate from the law by "
                f"{100 * law.misfit:.2f} % (its misfit, measured), which is no noise; train the "
                "shapes that you compare (--resolve-by runs), or take a larger --resolve"
            )
        spare = (spare - law.misfit**2) / law.leverage - law.misfit**2
    seeds = max(1, int(np.ceil(noise.deviation**2 / spare * (1 - 1e-12))))
    if seeds > MAX_SEEDS:
        raise InputError(
            f"`seeds <= {MAX_SEEDS}` must hold, but a resolution of {100 * wanted:.3g} % needs "
            f"{seeds} seeds of every shape at a noise of {100 * noise.deviation:.2f} %; take a "
            "larger --resolve, or a recipe with less noise"
        )
    return seeds


def misfit_of(fit: Fit) -> float:
    """Compute the standard deviation of shapes around a law beyond the noise between seeds.

    Parameters
    ----------
    fit
        Fit without a prior, whose noise is the scatter of the runs around the law.

    Raises
    ------
    InputError
        The fitted table has no replicates.
    """
    if fit.replicate_noise is None:
        raise InputError(
            "`two runs that differ only in their seeds` must be in the table to tell the misfit of "
            "a law from noise, but it has none; train a second seed"
        )
    return float(np.sqrt(max(fit.noise**2 - fit.replicate_noise**2, 0.0)))


@dataclass(frozen=True, kw_only=True)
class InformationRatio:
    """Information about a shape per FLOP of a short run over that of a long run.

    ``low`` and ``high`` are the ends of the 95 % interval from the F distribution.
    """

    value: float
    low: float
    high: float


def information_ratio(short: NoiseLevel, long: NoiseLevel) -> InformationRatio:
    """Compare the inverse variance per FLOP of runs at two numbers of tokens per parameter.

    A run's FLOPs are proportional to its tokens, so the ratio is (σ₂/σ₁)² D₂/D₁.
    """
    first, second = short.pooled, long.pooled
    ratio = (second.deviation / first.deviation) ** 2
    ratio *= long.tokens_per_parameter / short.tokens_per_parameter
    low, high = (
        float(stats.f.ppf(chance, first.degrees, second.degrees))
        for chance in (1 - COVERAGE, COVERAGE)
    )
    return InformationRatio(value=ratio, low=ratio * low, high=ratio * high)


@dataclass(frozen=True, kw_only=True)
class TokensInteraction:
    """Deviation of differences between shapes at two token counts from each other, beyond noise.

    ``deviation`` is the standard deviation over shapes of ln loss of the short run minus that of
    the long run; ``chance`` is the p value of the F test that it is zero, ``shapes`` their number.
    """

    deviation: float
    chance: float
    shapes: int


def tokens_interaction(
    runs: RunTable, short: NoiseLevel, long: NoiseLevel
) -> TokensInteraction | None:
    """Test if short runs order shapes as long runs do, by an analysis of variance of the pairs.

    A pair is the ln loss of one shape and seed at both numbers of tokens per parameter. The mean of
    every size is removed, since the law has a term for tokens.

    Parameters
    ----------
    runs
        Run table with replicates at both levels.
    short, long
        Levels of tokens per parameter.

    Returns
    -------
    The interaction; None where fewer than two shapes of one size have two or more pairs.
    """
    if runs.shapes is None or "seed" not in runs.frame:
        return None
    ratio = np.log(runs.tokens / runs.sizes)
    frame = pd.DataFrame(
        {
            "shape": runs.shapes,
            "seed": runs.frame["seed"].to_numpy(),
            "size": level_of(runs.sizes),
            "log_loss": np.log(runs.losses),
        }
    )
    sides = []
    for level in (short, long):
        near = np.abs(ratio - np.log(level.tokens_per_parameter)) < np.log1p(LEVEL_TOLERANCE)
        sides.append(frame[near].groupby(["size", "shape", "seed"])["log_loss"].mean())
    pairs = (sides[0] - sides[1]).dropna()
    count = pairs.groupby(["size", "shape"]).transform("size")
    pairs = pairs[count > 1]
    shapes = pairs.groupby(["size", "shape"])
    means, size = shapes.transform("mean"), pairs.groupby("size").transform("mean")
    between = shapes.ngroups - pairs.groupby("size").ngroups
    within = len(pairs) - shapes.ngroups
    if between < 1:
        return None
    noise = float(((pairs - means) ** 2).sum() / within)
    excess = float(((means - size) ** 2).sum() / between)
    return TokensInteraction(
        deviation=float(np.sqrt(max(excess - noise, 0) / (len(pairs) / shapes.ngroups))),
        chance=float(stats.f.sf(excess / noise, between, within)),
        shapes=shapes.ngroups,
    )
