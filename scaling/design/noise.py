"""Scatter of runs around a law: noise between runs, and misfit that neighbouring runs share.

ln loss = law + misfit(place) + noise, with independent noise of every run, σ(N) = σ0 (N/N0)^-κ, and
misfit a smooth random surface of standard deviation τ over the logarithms of the law's columns.
Replicates at one place average out the noise but not the misfit, so their ratio determines if a
design prefers a replicate or a new place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from shapelaw.scaling.errors import InputError

# The correlation length of misfit is a factor of 8 in every column. With a factor of 2, expected
# errors on held-out runs of public tables are far too small; with a factor of 16, misfit cannot be
# distinguished from the law.
CORRELATION_LENGTH = float(np.log(8.0))
MIN_DEVIATION = 1e-5  # of ln loss; no table resolves less
MIN_SLOPE_GAIN = 1.92  # of ln likelihood by κ: half the 95 % point of chi-squared, one degree
MAX_ROBUST_DEVIATIONS = 4.0  # beyond these residuals are clipped
MAX_ROWS = 300  # for the estimate, whose cost grows with the cube of the rows
MIN_SPARE_ROWS = 6  # rows beyond the parameters; fewer cannot separate noise from misfit
PRIOR_DEVIATION = 1.5  # of ln(misfit / noise), since few rows hardly determine their ratio


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Noise and misfit of ln loss.

    Parameters
    ----------
    noise
        Standard deviation of ln loss between runs at one place of size ``reference``.
    misfit
        Standard deviation of the systematic deviation of ln loss from the law, which neighbouring
        runs share.
    noise_slope
        κ of σ(N) = noise · (N/reference)^-κ.
    reference
        N of ``noise``, in parameters.
    reach
        Correlation length of the squared-exponential kernel, in ln of every column.
    residual
        Standard deviation of the runs around the fitted law, smaller than noise and misfit
        together where the fit absorbs part of the misfit; None: as large as both together.

    Raises
    ------
    InputError
        The noise is not positive, the misfit is negative, or the reach is not positive.
    """

    noise: float
    misfit: float
    noise_slope: float = 0.0
    reference: float = 1.0
    reach: float = CORRELATION_LENGTH
    residual: float | None = None

    def __post_init__(self) -> None:
        rules = {"noise > 0": self.noise > 0, "misfit >= 0": self.misfit >= 0}
        rules |= {"reach > 0": self.reach > 0, "reference > 0": self.reference > 0}
        for rule, kept in rules.items():
            if not kept:
                name = rule.split()[0]
                raise InputError(f"`{rule}` must hold, but got {getattr(self, name)}")

    @property
    def residual_variance(self) -> float:
        """Variance of ln loss of one run around the fitted law."""
        both = self.noise**2 + self.misfit**2
        return both if self.residual is None else self.residual**2

    def noise_at(self, size: np.ndarray) -> np.ndarray:
        """Compute the standard deviation of ln loss between runs of sizes in parameters, (n,)."""
        return np.asarray(self.noise * (size / self.reference) ** -self.noise_slope)

    def shared(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compute the covariance of the misfit between places.

        Parameters
        ----------
        first, second
            Places in ln of every column, (a, k) and (b, k).

        Returns
        -------
        The covariance, (a, b).
        """
        squared = (first**2).sum(-1)[:, None] + (second**2).sum(-1)[None] - 2 * first @ second.T
        return np.asarray(self.misfit**2 * np.exp(-np.maximum(squared, 0) / (2 * self.reach**2)))

    @property
    def misfit_at_runs(self) -> float:
        """Standard deviation of the misfit that the fit leaves at its runs."""
        if self.residual is None:
            return self.misfit
        return float(np.sqrt(max(self.residual**2 - self.noise**2, 0.0)))

    def summary(self) -> str:
        """Describe noise and misfit in one line.

        A fit absorbs most of a misfit that its runs share, so the misfit at the runs is smaller
        than elsewhere.
        """
        noise = f"noise between runs {100 * self.noise:.2f} %"
        if self.noise_slope:
            direction = "falling" if self.noise_slope > 0 else "rising"
            noise += f" at N = {self.reference:.3g}, {direction} as N^{-self.noise_slope:.2f}"
        misfit = f"misfit of the law {100 * self.misfit_at_runs:.2f} % at the runs"
        if self.residual is not None:
            misfit += f", which lie {100 * self.residual:.2f} % around it,"
            misfit += f" and {100 * self.misfit:.2f} % far from them"
        return f"{noise}; {misfit}, shared over factors of about {np.exp(self.reach):.3g}"


def estimate_scatter(
    residuals: np.ndarray, gradient: np.ndarray, place: np.ndarray, size: np.ndarray
) -> Scatter:
    """Estimate noise, its slope over N, and misfit by restricted maximum likelihood.

    Parameters
    ----------
    residuals
        Observed minus predicted ln loss, (n,); clipped at four robust standard deviations.
    gradient
        Gradient of the predictions by the parameters, in units of their prior standard
        deviations, (n, p).
    place
        Ln of the law's columns, (n, k).
    size
        N in parameters, (n,).

    Returns
    -------
    Noise and misfit. The slope is 0 unless a likelihood ratio test at the 5 % level rejects 0.
    Tables with fewer than six rows beyond their parameters count half of their variance as misfit.
    """
    free = int((np.abs(gradient).sum(axis=0) > 0).sum())
    reference = float(np.exp(np.log(size).mean()))
    median = np.median(residuals)
    robust = max(1.4826 * float(np.median(np.abs(residuals - median))), MIN_DEVIATION)
    if len(residuals) < free + MIN_SPARE_ROWS:
        half = max(float(np.sqrt(np.mean(residuals**2) / 2)), MIN_DEVIATION)
        return Scatter(noise=half, misfit=half, reference=reference)
    limit = MAX_ROBUST_DEVIATIONS * robust
    clipped = np.clip(residuals, median - limit, median + limit)
    rows = np.arange(len(clipped))
    if len(rows) > MAX_ROWS:
        rows = np.random.default_rng(0).permutation(rows)[:MAX_ROWS]
    relative = size[rows] / reference
    cost = _restricted_likelihood(clipped[rows], gradient[rows], place[rows], relative)
    values, least = _minimum(cost, np.log([robust, robust]))
    if np.ptp(np.log(relative)) > 1:
        with_slope, lower = _minimum(cost, np.append(values, 0.0))
        values = with_slope if lower < least - MIN_SLOPE_GAIN else values
    noise, misfit = np.maximum(np.exp(values[:2]), MIN_DEVIATION)
    return Scatter(
        noise=float(noise),
        misfit=float(misfit),
        noise_slope=float(values[2]) if len(values) == 3 else 0.0,
        reference=reference,
        residual=float(np.sqrt(np.mean(clipped**2))),
    )


def _minimum(cost: Callable[[np.ndarray], float], start: np.ndarray) -> tuple[np.ndarray, float]:
    options = {"xatol": 0.02, "fatol": 0.01, "maxiter": 200}
    result = minimize(cost, start, method="Nelder-Mead", options=options)  # type: ignore[call-overload]
    return result.x, float(result.fun)


def _restricted_likelihood(
    residuals: np.ndarray, gradient: np.ndarray, place: np.ndarray, size: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Build minus the ln of the restricted likelihood, by (ln noise, ln misfit[, κ]).

    The function includes a weak prior on ln(misfit / noise).
    """
    correlation = Scatter(noise=1.0, misfit=1.0).shared(place, place)
    logs = np.log(size)

    def cost(values: np.ndarray) -> float:
        noise, misfit = values[:2]
        slope = values[2] if len(values) == 3 else 0.0
        if max(abs(noise), abs(misfit)) > 20 or abs(slope) > 2:
            return 1e12
        variance = np.exp(2 * (noise - slope * logs)) + MIN_DEVIATION**2
        lower = np.linalg.cholesky(np.exp(2 * misfit) * correlation + np.diag(variance))
        white = solve_triangular(lower, np.column_stack((gradient, residuals)), lower=True)
        by, left = white[:, :-1], white[:, -1]
        information = np.linalg.cholesky(np.eye(by.shape[1]) + by.T @ by)
        explained = solve_triangular(information, by.T @ left, lower=True)
        quadratic = left @ left - explained @ explained
        determinant = np.log(np.diag(lower)).sum() + np.log(np.diag(information)).sum()
        return float(determinant + quadratic / 2 + ((misfit - noise) / PRIOR_DEVIATION) ** 2 / 2)

    return cost
