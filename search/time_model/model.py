"""The time model, which predicts the speed of shapes from the measurements of others.

ln(seconds of a stage) = ln(terms · θ) + features · w + noise, with θ ≥ 0 (bytes over bandwidth,
FLOPs over peak, per layer, per step; see :mod:`shapelaw.search.time_model.terms`). θ is the robust
least-squares solution on ln seconds, penalised for leaving its prior, the roofline of a device. The
model is linearised around θ, so that the posterior of θ and of the ridge weights w gives every
prediction a standard deviation. The standard deviations of w and of the noise maximise the
marginal likelihood of the measurements (empirical Bayes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import least_squares, minimize

from shapelaw.search.engines._base import bytes_served
from shapelaw.search.time_model.terms import (
    TermPrior,
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

EXPECTED_MISFIT = 0.1  # of the terms alone, in ln seconds; larger residuals are downweighted
FEATURE_SD, NOISE_SD = 0.1, 0.03  # used with fewer than MIN_TO_LEARN measurements
MIN_TO_LEARN = 6  # measurements from which both standard deviations are estimated
CHUNK = 1 << 16  # rows predicted at once
CONCURRENCIES = 6  # numbers of sequences among which a prediction chooses an automatic concurrency


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predictions of the time model for each shape of a table, (n,) each.

    Attributes
    ----------
    rate, deviation
        Median output tokens/s, and the standard deviation of their natural logarithm.
    ttft, tpot
        Seconds to the first token and per output token after it.
    ttft_deviation, tpot_deviation
        Standard deviations of the natural logarithms of both.
    concurrency
        Sequences at once.
    """

    rate: np.ndarray
    deviation: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray
    ttft_deviation: np.ndarray
    tpot_deviation: np.ndarray
    concurrency: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """Return the lower end of the 95 % interval of output tokens/s."""
        return np.asarray(self.rate * np.exp(-1.96 * self.deviation))

    @property
    def high(self) -> np.ndarray:
        """Return the upper end of the 95 % interval of output tokens/s."""
        return np.asarray(self.rate * np.exp(1.96 * self.deviation))


@dataclass(frozen=True)
class TimeStage:
    """The fitted model of one stage of serving, prefill or decode.

    Attributes
    ----------
    terms, features
        Terms and features of the measured shapes, (n, 5) and (n, p).
    residual
        ln(measured seconds) minus ln(terms · θ), (n,).
    variances
        Variances of the measurements, in ln seconds, (n,).
    seconds
        θ: seconds per unit of each term, (5,).
    feature_sd, noise_sd
        TermPrior standard deviations of the ridge weights and of the noise, in ln seconds.
    """

    prior: TermPrior
    terms: np.ndarray
    features: np.ndarray
    residual: np.ndarray
    variances: np.ndarray
    seconds: np.ndarray
    feature_sd: float
    noise_sd: float

    @classmethod
    def fit(
        cls, prior: TermPrior, terms: np.ndarray, features: np.ndarray, measured: np.ndarray,
        variances: np.ndarray,
    ) -> "TimeStage":  # fmt: skip
        """Fit to measured seconds, (n,), with the variances of their logarithms; n may be 0."""
        seconds = _fit_coefficients(prior, terms, np.log(measured))
        residual = np.log(measured) - np.log(terms @ seconds)
        start = cls(prior, terms, features, residual, variances, seconds, FEATURE_SD, NOISE_SD)
        return start.with_estimated_deviations() if len(measured) >= MIN_TO_LEARN else start

    def with_estimated_deviations(self) -> "TimeStage":
        """Return the model with the standard deviations of the largest marginal likelihood."""
        sizes = np.log([FEATURE_SD, NOISE_SD])

        def cost(logs: np.ndarray) -> float:
            stage = self._with_deviations(*np.exp(logs))
            factor, _ = stage._factor
            half = np.log(np.diag(factor)).sum()
            # A weak prior at the usual sizes: six measurements alone may fit without noise.
            penalty = ((logs - sizes) ** 2).sum() / (2 * 1.5**2)
            return float(stage._centred_residual @ stage._weights / 2 + half + penalty)

        best = minimize(cost, sizes, method="L-BFGS-B", bounds=[(-7.0, 0.0), (-7.0, 0.0)])
        return self._with_deviations(*np.exp(best.x))

    def _with_deviations(self, feature_sd: float, noise_sd: float) -> "TimeStage":
        return TimeStage(
            self.prior, self.terms, self.features, self.residual, self.variances, self.seconds,
            float(feature_sd), float(noise_sd),
        )  # fmt: skip

    def predict(self, terms: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the mean and standard deviation of ln seconds, (n,) each, noise included."""
        sensitivity = self._design(terms, features)
        mean = np.log(terms @ self.seconds) + sensitivity @ self._posterior_mean
        variance = (sensitivity**2).sum(axis=1) + self.noise_sd**2
        if len(self.residual):
            shared = sensitivity @ self._design_matrix.T
            factor, _ = self._factor
            explained = solve_triangular(factor, shared.T, lower=True)
            variance -= (explained**2).sum(axis=0)
        return mean, np.sqrt(np.maximum(variance, 1e-12))

    def with_predictions_as_data(self, terms: np.ndarray, features: np.ndarray) -> "TimeStage":
        """Return the model with the predictions for some shapes added as measurements.

        Its mean predictions stay the same, and their standard deviations near those shapes shrink.
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
        """Make the design matrix, scaled so that every weight has a standard normal prior."""
        parts = terms * self.seconds
        shares = parts / parts.sum(axis=1, keepdims=True)
        return np.concatenate([shares * self.prior.deviations, features * self.feature_sd], axis=1)

    @cached_property
    def _design_matrix(self) -> np.ndarray:
        return self._design(self.terms, self.features)

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        noise = self.noise_sd**2 + self.variances
        factor, lower = cho_factor(
            self._design_matrix @ self._design_matrix.T + np.diag(noise), lower=True
        )
        return factor, lower

    @cached_property
    def _prior_mean(self) -> np.ndarray:
        """Return the prior mean of the weights, which is not 0 because θ differs from its prior."""
        moved = np.log(self.prior.seconds / self.seconds) / self.prior.deviations
        return np.concatenate([moved, np.zeros(self.features.shape[1])])

    @cached_property
    def _centred_residual(self) -> np.ndarray:
        return np.asarray(self.residual - self._design_matrix @ self._prior_mean)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.asarray(cho_solve(self._factor, self._centred_residual))

    @cached_property
    def _posterior_mean(self) -> np.ndarray:
        """Return the posterior mean of the weights."""
        if not len(self.residual):
            return self._prior_mean
        return np.asarray(self._prior_mean + self._design_matrix.T @ self._weights)


@dataclass(frozen=True)
class TimeModel:
    """The time model of one engine and workload, made by :meth:`fit`.

    Attributes
    ----------
    prefill, decode
        Models of both stages.
    first_token
        Ratio of TTFT to the seconds of the prefill, as the parts of the total time give them.
    device
        Hardware whose memory bounds an automatic concurrency; None: no bound.
    concurrencies
        Numbers of sequences among which a prediction chooses, in ascending order: the fastest
        within the service level.
    """

    workload: "Workload"
    prefill: TimeStage
    decode: TimeStage
    first_token: float = 1.0
    device: "Hardware | None" = None
    concurrencies: tuple[int, ...] = ()

    @classmethod
    def fit(
        cls,
        table: "ShapeTable",
        measurements: Sequence["Measurement"],
        workload: "Workload",
        *,
        device: "Hardware | None" = None,
    ) -> "TimeModel":
        """Fit the model to the measurements of the shapes of a table, in order; both may be empty.

        Parameters
        ----------
        device
            Hardware whose roofline is the prior; None: a wide prior for a processor's core.
        """
        at_once = np.array([_concurrency(each, workload) for each in measurements], dtype=int)
        parts = np.array([_stage_seconds(measurement, workload) for measurement in measurements])
        parts = parts.reshape(-1, 3)
        features = alignment_features(table)
        before, during = priors(workload, device)
        first = np.array([measurement.ttft for measurement in measurements])
        return cls(
            workload,
            TimeStage.fit(
                before, prefill_terms(table, workload, at_once), features, parts[:, 0], parts[:, 2]
            ),
            TimeStage.fit(
                during, decode_terms(table, workload, at_once), features, parts[:, 1], parts[:, 2]
            ),
            float(np.exp(np.median(np.log(first / parts[:, 0])))) if len(first) else 1.0,
            device,
            _concurrencies(at_once, workload),
        )

    def predict(self, table: "ShapeTable") -> tuple[np.ndarray, np.ndarray]:
        """Predict the mean and standard deviation of ln output tokens/s, (n,) each."""
        forecast = self.forecast(table)
        return np.log(forecast.rate), forecast.deviation

    def forecast(self, table: "ShapeTable") -> Forecast:
        """Predict the speed of every shape of a table."""
        pieces = [
            self._stages(table.take(np.arange(begin, min(begin + CHUNK, len(table)))))
            for begin in range(0, max(len(table), 1), CHUNK)
        ]
        before, before_sd, during, during_sd, at_once = np.concatenate(pieces, axis=1)
        total = before + during
        work = self.workload
        return Forecast(
            rate=at_once * work.output_tokens / total,
            # Both stages run the same matrices: their errors correlate, so their deviations add.
            deviation=(before * before_sd + during * during_sd) / total,
            ttft=before * self.first_token,
            tpot=during / (work.output_tokens - 1),
            ttft_deviation=before_sd,
            tpot_deviation=during_sd,
            concurrency=at_once.astype(int),
        )

    def with_predictions_as_data(self, table: "ShapeTable") -> "TimeModel":
        """Return the model with the predictions for the shapes of a table added as measurements.

        With it, parallel workers propose different shapes (the kriging believer of Ginsbourger, Le
        Riche and Carraro, 2010).
        """
        features, work = alignment_features(table), self.workload
        at_once = self.forecast(table).concurrency
        prefill, decode = (terms(table, work, at_once) for terms in (prefill_terms, decode_terms))
        return replace(
            self,
            prefill=self.prefill.with_predictions_as_data(prefill, features),
            decode=self.decode.with_predictions_as_data(decode, features),
        )

    def _stages(self, table: "ShapeTable") -> np.ndarray:
        """Predict the stages of every shape at its concurrency, as :meth:`_stages_at` does."""
        numbers = self.concurrencies or (self.workload.concurrency,)
        best = self._stages_at(table, numbers[0])
        for at_once in numbers[1:]:
            other = self._stages_at(table, at_once)
            better = self._is_served(table, other) & (_rate(other) > _rate(best))
            best = np.where(better, other, best)
        return best

    def _stages_at(self, table: "ShapeTable", at_once: int) -> np.ndarray:
        """Predict seconds and ln deviations of both stages, and add the concurrency, (5, n)."""
        features, work = alignment_features(table), self.workload
        before, before_sd = self.prefill.predict(prefill_terms(table, work, at_once), features)
        during, during_sd = self.decode.predict(decode_terms(table, work, at_once), features)
        number = np.full(len(table), float(at_once))
        return np.stack([np.exp(before), before_sd, np.exp(during), during_sd, number])

    def _is_served(self, table: "ShapeTable", stages: np.ndarray) -> np.ndarray:
        """Return the mask of the shapes that are within the service level and the memory, (n,)."""
        work = self.workload
        ttft = stages[0] * self.first_token <= (work.max_ttft or np.inf)
        tpot = stages[2] / (work.output_tokens - 1) <= (work.max_tpot or np.inf)
        if self.device is None:
            return np.asarray(ttft & tpot)
        return np.asarray(
            ttft & tpot & (bytes_served(table, work, stages[4]) <= self.device.memory)
        )


def _rate(stages: np.ndarray) -> np.ndarray:
    """Compute sequences per second of stages as :meth:`TimeModel._stages_at` returns them, (n,)."""
    return np.asarray(stages[4] / (stages[0] + stages[2]))


def _concurrency(measurement: "Measurement", workload: "Workload") -> int:
    """Return the sequences at once of a measurement, which is the workload's unless automatic."""
    chosen = measurement.concurrency if workload.automatic else None
    return chosen or workload.concurrency


def _concurrencies(measured: np.ndarray, workload: "Workload") -> tuple[int, ...]:
    """Return the numbers among which to choose: within those measured, and half the smallest."""
    if not workload.automatic or not len(measured):
        return (workload.concurrency,)
    numbers = np.geomspace(max(measured.min() / 2, 1), measured.max(), CONCURRENCIES)
    return tuple(np.unique(numbers.round().astype(int)).tolist())


def _stage_seconds(measurement: "Measurement", workload: "Workload") -> tuple[float, float, float]:
    """Split the total seconds into prefill and decode; also return the variance of their logs.

    TTFT and TPOT of an engine may overlap (continuous batching), so only their ratio is used; the
    total follows from the output tokens/s.
    """
    rate = measurement.output_tokens_per_second
    total = _concurrency(measurement, workload) * workload.output_tokens / rate
    later = measurement.tpot * (workload.output_tokens - 1)
    share = min(max(measurement.ttft / (measurement.ttft + later), 1e-6), 1 - 1e-6)
    error = (measurement.high - measurement.low) / (2 * 1.96 * rate)
    return total * share, total * (1 - share), error**2


def _fit_coefficients(prior: TermPrior, terms: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Fit the non-negative seconds per unit of each term by penalised robust regression."""
    if not len(logs):
        return prior.seconds

    def residuals(moved: np.ndarray) -> np.ndarray:
        seconds = prior.seconds * np.exp(moved * prior.deviations)
        return np.concatenate([(np.log(terms @ seconds) - logs) / EXPECTED_MISFIT, moved])

    def jacobian(moved: np.ndarray) -> np.ndarray:
        parts = terms * prior.seconds * np.exp(moved * prior.deviations)
        shares = parts / parts.sum(axis=1, keepdims=True) * prior.deviations / EXPECTED_MISFIT
        return np.concatenate([shares, np.eye(len(moved))])

    start = np.zeros(len(prior.seconds))
    # Start at the common factor that fits the total, because the prior may be off by one.
    common = np.median(logs - np.log(terms @ prior.seconds))
    start += common / prior.deviations
    best = least_squares(residuals, start, jac=jacobian, loss="soft_l1", max_nfev=200)
    return np.asarray(prior.seconds * np.exp(best.x * prior.deviations))
