"""How runs scatter around a law: noise between runs, and misfit that neighbouring runs share.

ln loss = law + misfit(place) + noise, with noise σ(N) = σ0 (N/N0)^-κ drawn anew by every run, and
misfit a smooth random surface of standard deviation τ over the logarithms of the law's columns.
Noise averages away when runs are repeated at one place, misfit does not: that decides between a
replicate and a new place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from shapelaw.scaling.errors import InputError

# Misfit is shared over a factor of about 8 in every column: with factors of 2, expected errors on
# held-out runs of public tables come out far too small, with 16 misfit cannot be told from the law.
REACH = float(np.log(8.0))
SMALLEST = 1e-5  # of ln loss: no table resolves less
SURE = 1.92  # half the 95 % point of chi-squared with one degree: what κ must earn
OUTLYING = 4.0  # robust deviations at which residuals are cut off
MOST_ROWS = 300  # for the estimate: its cost grows with the cube
FEWEST = 6  # rows beyond the parameters; below, noise and misfit cannot be told apart
PRIOR = 1.5  # standard deviation of ln(misfit / noise): a few rows say little of their ratio


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Noise and misfit of ln loss.

    Parameters
    ----------
    noise
        Standard deviation between runs at one place at size ``reference``.
    misfit
        Standard deviation of what the law leaves, shared by neighbouring runs.
    noise_slope
        κ of σ(N) = noise · (N/reference)^-κ.
    reference
        N at which ``noise`` holds; parameters.
    reach
        Length of the squared-exponential correlation, in ln of every column.
    residual
        Standard deviation of the runs around the fitted law, smaller than noise and misfit
        together where the law takes up part of the misfit; None: as large as both.

    Raises
    ------
    InputError
        The noise is not positive, the misfit is negative, or the reach is not positive.
    """

    noise: float
    misfit: float
    noise_slope: float = 0.0
    reference: float = 1.0
    reach: float = REACH
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
        """Of one run around the fitted law."""
        both = self.noise**2 + self.misfit**2
        return both if self.residual is None else self.residual**2

    def noise_at(self, size: np.ndarray) -> np.ndarray:
        """Standard deviation of ln loss between runs of these sizes (parameters)."""
        return np.asarray(self.noise * (size / self.reference) ** -self.noise_slope)

    def shared(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Covariance of the misfit between places, (a, k) and (b, k) in ln units: (a, b)."""
        apart = (first**2).sum(-1)[:, None] + (second**2).sum(-1)[None] - 2 * first @ second.T
        return np.asarray(self.misfit**2 * np.exp(-np.maximum(apart, 0) / (2 * self.reach**2)))

    def summary(self) -> str:
        """In words."""
        words = f"noise between runs {100 * self.noise:.2f} %"
        if self.noise_slope:
            way = "falling" if self.noise_slope > 0 else "rising"
            words += f" at N = {self.reference:.3g}, {way} as N^{-self.noise_slope:.2f}"
        shared = f"shared over factors of about {np.exp(self.reach):.3g}"
        return f"{words}; misfit of the law {100 * self.misfit:.2f} %, {shared}"


def estimate_scatter(
    residuals: np.ndarray, gradient: np.ndarray, place: np.ndarray, size: np.ndarray
) -> Scatter:
    """Noise, its slope over N and misfit by restricted maximum likelihood.

    Parameters
    ----------
    residuals
        Observed minus predicted ln loss, (n,); cut off at four robust deviations.
    gradient
        Of the predictions by the parameters, in units of their prior deviations, (n, p).
    place
        Ln of the law's columns, (n, k).
    size
        N, (n,).

    Returns
    -------
    The slope is 0 unless a likelihood ratio test at 5 % asks for one. Tables with fewer than six
    rows beyond their parameters count half of their variance as misfit.
    """
    free = int((np.abs(gradient).sum(axis=0) > 0).sum())
    reference = float(np.exp(np.log(size).mean()))
    median = np.median(residuals)
    robust = max(1.4826 * float(np.median(np.abs(residuals - median))), SMALLEST)
    if len(residuals) < free + FEWEST:
        half = max(float(np.sqrt(np.mean(residuals**2) / 2)), SMALLEST)
        return Scatter(noise=half, misfit=half, reference=reference)
    cut = np.clip(residuals, median - OUTLYING * robust, median + OUTLYING * robust)
    rows = np.arange(len(cut))
    if len(rows) > MOST_ROWS:
        rows = np.random.default_rng(0).permutation(rows)[:MOST_ROWS]
    relative = size[rows] / reference
    cost = _restricted_likelihood(cut[rows], gradient[rows], place[rows], relative)
    values, least = _minimum(cost, np.log([robust, robust]))
    if np.ptp(np.log(relative)) > 1:
        sloped, lower = _minimum(cost, np.append(values, 0.0))
        values = sloped if lower < least - SURE else values
    noise, misfit = np.maximum(np.exp(values[:2]), SMALLEST)
    return Scatter(
        noise=float(noise),
        misfit=float(misfit),
        noise_slope=float(values[2]) if len(values) == 3 else 0.0,
        reference=reference,
        residual=float(np.sqrt(np.mean(cut**2))),
    )


def _minimum(cost: Callable[[np.ndarray], float], start: np.ndarray) -> tuple[np.ndarray, float]:
    options = {"xatol": 0.02, "fatol": 0.01, "maxiter": 200}
    found = minimize(cost, start, method="Nelder-Mead", options=options)  # type: ignore[call-overload]
    return found.x, float(found.fun)


def _restricted_likelihood(
    residuals: np.ndarray, gradient: np.ndarray, place: np.ndarray, size: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Minus its logarithm, with a weak prior on misfit / noise, by (ln noise, ln misfit[, κ])."""
    correlation = Scatter(noise=1.0, misfit=1.0).shared(place, place)
    logs = np.log(size)

    def cost(values: np.ndarray) -> float:
        noise, misfit = values[:2]
        slope = values[2] if len(values) == 3 else 0.0
        if max(abs(noise), abs(misfit)) > 20 or abs(slope) > 2:
            return 1e12
        variance = np.exp(2 * (noise - slope * logs)) + SMALLEST**2
        lower = np.linalg.cholesky(np.exp(2 * misfit) * correlation + np.diag(variance))
        white = solve_triangular(lower, np.column_stack((gradient, residuals)), lower=True)
        by, left = white[:, :-1], white[:, -1]
        information = np.linalg.cholesky(np.eye(by.shape[1]) + by.T @ by)
        explained = solve_triangular(information, by.T @ left, lower=True)
        quadratic = left @ left - explained @ explained
        determinant = np.log(np.diag(lower)).sum() + np.log(np.diag(information)).sum()
        return float(determinant + quadratic / 2 + ((misfit - noise) / PRIOR) ** 2 / 2)

    return cost
