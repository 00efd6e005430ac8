"""A time model fitted to measurements: it predicts the speed of shapes that were not measured.

ln(seconds of a stage) = ln(terms · θ) + features · w + noise, with θ ≥ 0 (bytes over bandwidth,
FLOPs over peak, per layer, per step; see :mod:`shapelaw.search.time_model.terms`). θ is the robust
least-squares solution on log seconds, kept near a prior; around it the model is linear, so that the
spread of θ and of the ridge weights w gives every prediction a standard deviation. The sizes of w
and of the noise are those that make the measurements most likely (empirical Bayes). With no
measurement, the prior speaks: the roofline of a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import least_squares, minimize

from shapelaw.search.time_model.terms import (
    Prior,
    alignment_features,
    decode_terms,
    prefill_terms,
    priors,
)

if TYPE_CHECKING:
    from shapelaw.scaling.architectures.shape_table import ShapeTable
    from shapelaw.search.engines._base import Measurement
    from shapelaw.search.engines.accelerators import Hardware
    from shapelaw.search.workload import Workload

EXPECTED_MISFIT = 0.1  # of the terms alone, in ln seconds; what is far beyond counts less
FEATURE_SD, NOISE_SD = 0.1, 0.03  # where there is too little to learn them from
LEARNABLE = 6  # measurements from which both are learned
CHUNK = 1 << 16  # rows predicted at once


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the time model says of each shape of a table, (n,) each.

    ``rate`` is output tokens/s (the median), ``deviation`` the standard deviation of its natural
    logarithm; ``ttft`` and ``tpot`` are seconds, with ``ttft_deviation`` and ``tpot_deviation`` of
    their logarithms.
    """

    rate: np.ndarray
    deviation: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray
    ttft_deviation: np.ndarray
    tpot_deviation: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """Lower end of the 95 % interval of output tokens/s."""
        return np.asarray(self.rate * np.exp(-1.96 * self.deviation))

    @property
    def high(self) -> np.ndarray:
        """Upper end of the 95 % interval of output tokens/s."""
        return np.asarray(self.rate * np.exp(1.96 * self.deviation))


@dataclass(frozen=True)
class TimeStage:
    """One stage of serving: its terms and features at the measured shapes, and what was learned.

    Attributes
    ----------
    terms, features
        Of the shapes that were measured, (n, 5) and (n, p).
    residual
        ln(measured seconds) minus ln(terms · θ), (n,).
    variances
        Of the measurements themselves, in ln seconds, (n,).
    seconds
        θ: seconds per unit of each term.
    feature_sd, noise_sd
        Prior standard deviation of the ridge weights, and of what nothing explains.
    """

    prior: Prior
    terms: np.ndarray
    features: np.ndarray
    residual: np.ndarray
    variances: np.ndarray
    seconds: np.ndarray
    feature_sd: float
    noise_sd: float

    @classmethod
    def fit(
        cls, prior: Prior, terms: np.ndarray, features: np.ndarray, measured: np.ndarray,
        variances: np.ndarray,
    ) -> "TimeStage":  # fmt: skip
        """Fit to seconds, (n,), with the variances of their logarithms; n may be 0."""
        seconds = _coefficients(prior, terms, np.log(measured))
        residual = np.log(measured) - np.log(terms @ seconds)
        start = cls(prior, terms, features, residual, variances, seconds, FEATURE_SD, NOISE_SD)
        return start.learned() if len(measured) >= LEARNABLE else start

    def learned(self) -> "TimeStage":
        """The same with the spreads that make the measurements most likely."""
        sizes = np.log([FEATURE_SD, NOISE_SD])

        def cost(logs: np.ndarray) -> float:
            stage = self._with(*np.exp(logs))
            factor, _ = stage._factor
            half = np.log(np.diag(factor)).sum()
            # A weak pull towards the usual sizes keeps six measurements from saying "no noise".
            pull = ((logs - sizes) ** 2).sum() / (2 * 1.5**2)
            return float(stage._offset @ stage._weights / 2 + half + pull)

        best = minimize(cost, sizes, method="L-BFGS-B", bounds=[(-7.0, 0.0), (-7.0, 0.0)])
        return self._with(*np.exp(best.x))

    def _with(self, feature_sd: float, noise_sd: float) -> "TimeStage":
        return TimeStage(
            self.prior, self.terms, self.features, self.residual, self.variances, self.seconds,
            float(feature_sd), float(noise_sd),
        )  # fmt: skip

    def predict(self, terms: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of ln seconds, (n,) each, noise of one shape included."""
        sensitivity = self._design(terms, features)
        mean = np.log(terms @ self.seconds) + sensitivity @ self._shift
        variance = (sensitivity**2).sum(axis=1) + self.noise_sd**2
        if len(self.residual):
            shared = sensitivity @ self._own.T
            factor, _ = self._factor
            explained = solve_triangular(factor, shared.T, lower=True)
            variance -= (explained**2).sum(axis=0)
        return mean, np.sqrt(np.maximum(variance, 1e-12))

    def believing(self, terms: np.ndarray, features: np.ndarray) -> "TimeStage":
        """The same model as if shapes had been measured exactly as predicted.

        Its predictions stay where they are; near those shapes they are surer.
        """
        mean, _ = self.predict(terms, features)
        return TimeStage(
            self.prior,
            np.concatenate([self.terms, terms]),
            np.concatenate([self.features, features]),
            np.concatenate([self.residual, mean - np.log(terms @ self.seconds)]),
            np.concatenate([self.variances, np.zeros(len(terms))]),
            self.seconds,
            self.feature_sd,
            self.noise_sd,
        )

    def _design(self, terms: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Rows of the linear model, scaled so that every weight has a standard normal prior."""
        parts = terms * self.seconds
        shares = parts / parts.sum(axis=1, keepdims=True)
        return np.concatenate([shares * self.prior.deviations, features * self.feature_sd], axis=1)

    @cached_property
    def _own(self) -> np.ndarray:
        return self._design(self.terms, self.features)

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        noise = self.noise_sd**2 + self.variances
        factor, lower = cho_factor(self._own @ self._own.T + np.diag(noise), lower=True)
        return factor, lower

    @cached_property
    def _start(self) -> np.ndarray:
        """The prior mean of the weights: θ is not where the prior put it."""
        moved = np.log(self.prior.seconds / self.seconds) / self.prior.deviations
        return np.concatenate([moved, np.zeros(self.features.shape[1])])

    @cached_property
    def _offset(self) -> np.ndarray:
        return np.asarray(self.residual - self._own @ self._start)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.asarray(cho_solve(self._factor, self._offset))

    @cached_property
    def _shift(self) -> np.ndarray:
        """The posterior mean of the weights."""
        if not len(self.residual):
            return self._start
        return np.asarray(self._start + self._own.T @ self._weights)


@dataclass(frozen=True)
class TimeModel:
    """Speed of every shape under a workload, from the measurements of a few.

    Make it with :meth:`fit`.
    """

    workload: "Workload"
    prefill: TimeStage
    decode: TimeStage
    first_token: float = 1.0  # TTFT over the seconds that prefill takes of the whole

    @classmethod
    def fit(
        cls,
        table: "ShapeTable",
        measurements: Sequence["Measurement"],
        workload: "Workload",
        *,
        device: "Hardware | None" = None,
    ) -> "TimeModel":
        """Fit to the measurements of the shapes of a table, in order; both may be empty.

        Parameters
        ----------
        device
            Whose roofline is the prior; by default a vague guess at a processor's core.
        """
        parts = np.array([_parts(measurement, workload) for measurement in measurements])
        parts = parts.reshape(-1, 3)
        features = alignment_features(table)
        before, during = priors(workload, device)
        first = np.array([measurement.ttft for measurement in measurements])
        return cls(
            workload,
            TimeStage.fit(
                before, prefill_terms(table, workload), features, parts[:, 0], parts[:, 2]
            ),
            TimeStage.fit(
                during, decode_terms(table, workload), features, parts[:, 1], parts[:, 2]
            ),
            float(np.exp(np.median(np.log(first / parts[:, 0])))) if len(first) else 1.0,
        )

    def predict(self, table: "ShapeTable") -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of ln output tokens/s, (n,) each."""
        forecast = self.forecast(table)
        return np.log(forecast.rate), forecast.deviation

    def forecast(self, table: "ShapeTable") -> Forecast:
        """Predict every shape of a table."""
        pieces = [
            self._stages(table.take(np.arange(begin, min(begin + CHUNK, len(table)))))
            for begin in range(0, max(len(table), 1), CHUNK)
        ]
        before, before_sd, during, during_sd = np.concatenate(pieces, axis=1)
        total = before + during
        work = self.workload
        return Forecast(
            rate=work.concurrency * work.output_tokens / total,
            # Both stages run the same matrices: they err together, so their deviations add.
            deviation=(before * before_sd + during * during_sd) / total,
            ttft=before * self.first_token,
            tpot=during / (work.output_tokens - 1),
            ttft_deviation=before_sd,
            tpot_deviation=during_sd,
        )

    def believing(self, table: "ShapeTable") -> "TimeModel":
        """The same model as if the shapes of a table had been measured as predicted."""
        features = alignment_features(table)
        return TimeModel(
            self.workload,
            self.prefill.believing(prefill_terms(table, self.workload), features),
            self.decode.believing(decode_terms(table, self.workload), features),
            self.first_token,
        )

    def _stages(self, table: "ShapeTable") -> np.ndarray:
        """Seconds of prefill, their deviation, seconds of decode, their deviation, (4, n)."""
        features = alignment_features(table)
        before, before_sd = self.prefill.predict(prefill_terms(table, self.workload), features)
        during, during_sd = self.decode.predict(decode_terms(table, self.workload), features)
        return np.stack([np.exp(before), before_sd, np.exp(during), during_sd])


def _parts(measurement: "Measurement", workload: "Workload") -> tuple[float, float, float]:
    """Seconds of prefill and of decode, which add up to the whole, and the variance of their logs.

    An engine's TTFT and TPOT may overlap (continuous batching): they share out the seconds that
    the output tokens/s say.
    """
    rate = measurement.output_tokens_per_second
    total = workload.concurrency * workload.output_tokens / rate
    later = measurement.tpot * (workload.output_tokens - 1)
    share = min(max(measurement.ttft / (measurement.ttft + later), 1e-6), 1 - 1e-6)
    error = (measurement.high - measurement.low) / (2 * 1.96 * rate)
    return total * share, total * (1 - share), error**2


def _coefficients(prior: Prior, terms: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Seconds per unit of each term, non-negative: robust on log seconds, kept near the prior."""
    if not len(logs):
        return prior.seconds

    def apart(moved: np.ndarray) -> np.ndarray:
        seconds = prior.seconds * np.exp(moved * prior.deviations)
        return np.concatenate([(np.log(terms @ seconds) - logs) / EXPECTED_MISFIT, moved])

    def slope(moved: np.ndarray) -> np.ndarray:
        parts = terms * prior.seconds * np.exp(moved * prior.deviations)
        shares = parts / parts.sum(axis=1, keepdims=True) * prior.deviations / EXPECTED_MISFIT
        return np.concatenate([shares, np.eye(len(moved))])

    start = np.zeros(len(prior.seconds))
    # Everything is off by one factor at first: begin where the whole is right.
    whole = np.median(logs - np.log(terms @ prior.seconds))
    start += whole / prior.deviations
    best = least_squares(apart, start, jac=slope, loss="soft_l1", max_nfev=200)
    return np.asarray(prior.seconds * np.exp(best.x * prior.deviations))
