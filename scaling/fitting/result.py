"""Result of a fit: parameters, status and predictions, with storage in fit.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_parts import Basin, Effect, ParameterEnds, PriorNote
from shapelaw.scaling.fitting.fit_text import equation_of, noise_in_words, parameter_table, view_of
from shapelaw.scaling.fitting.parameter_intervals import (
    open_sides_of,
    optima_of,
    parameters_of,
)
from shapelaw.scaling.fitting.posterior_state import PosteriorState
from shapelaw.scaling.fitting.run_intervals import predict_rows
from shapelaw.scaling.fitting.saved_fit import document_of, read_fit, write_fit
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import SIZES, N, columns_of
from shapelaw.scaling.runs.table import RunsLike, RunTable, as_frame, as_run_table
from shapelaw.scaling.schema import Count, NonNegative, PositiveFloat
from shapelaw.scaling.solver.identifiability import Held, outside
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.units import NATS, loss_name

ROWS_PER_CHUNK = 1024  # rows predicted at once, to bound memory


@dataclass(frozen=True, kw_only=True, repr=False)
class Fit(Result):
    """Fit of a law to a run table.

    Parameters
    ----------
    law_name
        Name or expression of the law.
    names
        Names of the internal parameters, p of them.
    theta
        Internal parameters at the optimum, (p,).
    draws
        Internal parameters of each bootstrap resample, (S, p).
    covariance
        Sandwich covariance of the internal parameters, (p, p).
    reference
        Geometric mean by column, at which logarithms are centred.
    held
        Parameters that are held, with value, range and reason.
    objective
        Value of the objective at the optimum.
    minimised
        Objective that was minimised.
    delta_rule
        Choice of the threshold of the objective.
    status
        Outcome of the solver in one line.
    notes
        Held parameters, unclear optima and doubts, one sentence each.
    starts
        Number of starts.
    basins
        Local optima with the number of starts that reach them, the best first.
    gradient_norm
        Largest gradient at the optimum, relative to sqrt(curvature · objective).
    at_bounds, dead_terms
        Parameters that ended at a bound, and scales whose term has no effect.
    seconds
        Time of the fit, seconds.
    run_ids
        Names of the fitted runs.
    left_out
        Reason by run for each run that was omitted.
    ranges
        Observed range of every column of the law.
    size_convention
        Parameters that N counts: non-embedding, total or active.
    loss_unit
        Unit of the losses and of every prediction, such as nats per token.
    loss_kind
        Kind of the losses and of every prediction: exact, or bound (an upper bound).
    noise, noise_degrees
        Standard deviation of ln loss of a new run around the law, and its degrees of freedom.
    replicate_noise, replicate_degrees
        Standard deviation of ln loss between seeds, None without replicates, and its degrees of
        freedom.
    effects
        Change of ln loss over the runs by factor: size, low and high.
    delta_sweep
        Public parameters at other thresholds of the objective.
    bootstrap
        Number of resamples and their method.
    data_sha256
        Hash of the content of the run table.
    seed
        Seed of the starts and of the bootstrap.
    noise_by_size
        Standard deviation of ln loss between seeds for each size with replicates.
    scatter
        Robust scale of the residuals of ln loss.
    prior
        Prior of each free parameter in its coordinate, its source, and the share of its variance
        that is left in the posterior; empty for a fit without a prior.
    posterior
        Draws of deviation and noise; None for a fit without a prior or without draws.
    table_warnings
        Properties of the run table that may bias the fit, one sentence each, the most harmful
        first.
    ends
        Ends of the 95 % interval of each public parameter, and which sides are open; empty for a
        fit with few draws, whose ends are percentiles of its draws.
    """

    law_name: str
    names: list[str]
    theta: np.ndarray
    draws: np.ndarray
    covariance: np.ndarray
    reference: dict[str, PositiveFloat]
    held: dict[str, Held]
    objective: float
    minimised: FitObjective
    delta_rule: str
    status: str
    notes: list[str]
    starts: Count
    basins: list[Basin]
    gradient_norm: float
    at_bounds: list[str]
    dead_terms: list[str]
    seconds: NonNegative
    run_ids: list[str]
    left_out: dict[str, str]
    ranges: dict[str, tuple[PositiveFloat, PositiveFloat]]
    size_convention: str
    noise: NonNegative
    noise_degrees: Count
    replicate_noise: NonNegative | None
    replicate_degrees: Count
    effects: dict[str, Effect]
    delta_sweep: list[dict[str, float]]
    bootstrap: str
    data_sha256: str
    seed: int
    noise_by_size: list[dict[str, float]] = field(default_factory=list)
    scatter: NonNegative = 0.0
    prior: dict[str, PriorNote] = field(default_factory=dict)
    posterior: PosteriorState | None = None
    table_warnings: list[str] = field(default_factory=list)
    loss_unit: str = NATS
    loss_kind: str = "exact"
    ends: dict[str, ParameterEnds] = field(default_factory=dict)

    @property
    def law(self) -> Law:
        """Law of the fit."""
        return law_named(self.law_name)

    @property
    def loss_name(self) -> str:
        """Name of the loss in headings and on axes."""
        return loss_name(self.loss_kind)

    @property
    def delta(self) -> float:
        """Threshold or scale of the objective."""
        return self.minimised.delta

    @property
    def spread(self) -> np.ndarray:
        """Internal parameters of the resamples, (S, p); the optimum alone if there are none."""
        return self.draws if len(self.draws) else self.theta[None]

    @property
    def has_intervals(self) -> bool:
        """True if the fit has the resamples from which intervals are computed."""
        return len(self.draws) > 1

    def parameters(self) -> dict[str, dict[str, float]]:
        """Return the public parameters with 95 % intervals, NaN without resamples.

        A held parameter has the range in which it is held. :attr:`ends` says which ends are open.
        """
        return parameters_of(self)

    def open_sides(self) -> dict[str, str]:
        """Return the sides on which the interval of each parameter has no end.

        They are "below", "above", "below and above" or empty. An end is open where the runs do not
        determine it, and that of an optimum beyond the observed range of its ratio, where runs
        locate no optimum.
        """
        return open_sides_of(self)

    def count_as_fitted(self, runs: RunsLike) -> RunTable:
        """Return a run table that counts N as the fit does.

        Parameters
        ----------
        runs
            Run table or data frame.

        Returns
        -------
        RunTable
            Table with N by the size convention of the fit.

        Raises
        ------
        InputError
            The table lacks that count.
        """
        return as_run_table(runs, self.size_convention if N in self.law.columns else "auto")

    def columns(self, frame: RunTable | pd.DataFrame | Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Read the columns of the law from a table, N by the size convention of the fit.

        Parameters
        ----------
        frame
            Run table, data frame, or values by column.

        Returns
        -------
        dict
            Values by column of the law, (n,) each.

        Raises
        ------
        InputError
            The table lacks that count.
        """
        table = frame if isinstance(frame, Mapping) else as_frame(frame)
        size = SIZES[self.size_convention]
        if N in self.law.columns and size not in table:
            raise InputError(
                f"`{size}` must be in the table, for the fit counts {self.size_convention} "
                f"parameters as N; it has {', '.join(map(str, table))}"
            )
        names = zip(self.law.columns, self.source_columns, strict=True)
        return {name: columns_of(table, (source,))[source] for name, source in names}

    @property
    def source_columns(self) -> list[str]:
        """Columns of a table that hold the columns of the law, N by the convention of the fit."""
        return [SIZES[self.size_convention] if name == N else name for name in self.law.columns]

    def optima(self) -> dict[str, dict[str, object]]:
        """Return the best value of each U-shaped ratio by column, with interval and status."""
        return optima_of(self)

    def predict(self, frame: RunTable | pd.DataFrame) -> pd.DataFrame:
        """Predict the loss of every row.

        Parameters
        ----------
        frame
            Rows with the columns of the law (:attr:`shapelaw.scaling.laws.registry.Law.columns`).

        Returns
        -------
        pandas.DataFrame
            ``predicted_loss`` in ``loss_unit``, as :meth:`expected` gives it; ``loss_low`` and
            ``loss_high``, the 95 % interval of one new run (from draws of the fit, held exponents
            and noise between runs);
            ``mean_low`` and ``mean_high``, the 95 % interval of the law itself. Without draws, the
            first is that of the noise alone and the second has no width.

        Raises
        ------
        InputError
            The table has no rows, lacks a column of the law, or has one without numbers.
        """
        frame = as_frame(frame)
        if not len(frame):
            raise InputError("`len(frame) >= 1` must hold for a prediction, but got no rows")
        parts = [
            predict_rows(self, frame.iloc[i : i + ROWS_PER_CHUNK])
            for i in range(0, len(frame), ROWS_PER_CHUNK)
        ]
        return pd.concat(parts).set_axis(frame.index)

    def expected(self, frame: RunTable | pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """Predict the loss of every row without intervals, fast enough for a whole space of shapes.

        That is the loss of the printed equation, times the mean deviation from it that the runs
        show near a row where the fit has a posterior.

        Parameters
        ----------
        frame
            Rows with the columns of the law.

        Returns
        -------
        numpy.ndarray
            Predicted loss in ``loss_unit``, (n,).

        Raises
        ------
        InputError
            The table lacks a column of the law.
        """
        losses = self.central(frame)
        if self.posterior is None:
            return losses
        return np.asarray(losses * np.exp(self.posterior.mean_deviation(self.columns(frame))))

    def central(self, frame: RunTable | pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """Evaluate the printed equation at every row.

        Parameters
        ----------
        frame
            Rows with the columns of the law.

        Returns
        -------
        numpy.ndarray
            Loss of the law in ``loss_unit``, (n,).

        Raises
        ------
        InputError
            The table lacks a column of the law.
        """
        return self.law.predict(self.theta, self.columns(frame), self.reference)

    def log_loss_draws(self, frame: RunTable | pd.DataFrame) -> np.ndarray:
        """Draw ln of the true loss of all rows jointly, from the uncertainty of the fit.

        Parameters
        ----------
        frame
            Rows with the columns of the law.

        Returns
        -------
        numpy.ndarray
            One row per draw, (S, n). Errors that the rows share are equal within a draw.

        Raises
        ------
        InputError
            The fit has no draws, or the table lacks a column of the law.
        """
        if not len(self.draws):
            raise InputError(
                "`resamples >= 1` must hold for probabilities, but the fit has no draws; fit again "
                "with more resamples, such as 1000"
            )
        return self.joint_or_marginal_draws(frame, joint=True)

    def joint_or_marginal_draws(self, frame: RunTable | pd.DataFrame, *, joint: bool) -> np.ndarray:
        """Draw ln of the true loss of all rows, (S, n), with or without joint deviations."""
        columns = self.columns(frame)
        logs = self.law.program(columns, self.reference).log_loss(self.spread)
        if self.posterior is None:
            return logs
        return np.asarray(logs + self.posterior.deviations(columns, self.seed, joint=joint))

    def run_noise_draws(self, shape: tuple[int, int], runs: ArrayLike = 1) -> np.ndarray:
        """Draw the deviation in ln loss of the mean of new runs from the true loss.

        Parameters
        ----------
        shape
            Number of draws S and of rows n.
        runs
            Number of new runs of each row, (n,), or one number for all rows. The noise of
            different runs is independent.

        Returns
        -------
        numpy.ndarray
            One row per draw, (S, n).
        """
        count = np.broadcast_to(np.asarray(runs, dtype=int), shape[1])
        if self.posterior is not None:
            return self.posterior.run_noise(count, self.seed)
        generator = np.random.default_rng(self.seed)
        around = generator.standard_t(max(self.noise_degrees, 1), size=shape)
        # The tails are those of an uncertain scale, which the runs share.
        return np.asarray(self.noise * around / np.sqrt(count))

    def warnings(self, row: Mapping[str, float]) -> list[str]:
        """Return a sentence for each column in which a row lies outside of the fitted range."""
        return outside(row, self.ranges)

    def view(self) -> View:
        """Return the status, the parameters, the equation and the notes of the fit."""
        return view_of(self)

    def equation(self, *, latex: bool = False) -> str:
        """Return the law with its fitted parameters, as text or LaTeX."""
        return equation_of(self, latex=latex)

    def frame(self) -> pd.DataFrame:
        """Return one row per parameter: value, 95 % interval, unit and the reason if it is held."""
        return parameter_table(self)

    def _repr_html_(self) -> str:
        """Return the fit for a notebook, its equation in LaTeX."""
        return f"<p>${self.equation(latex=True)}$</p>\n{super()._repr_html_()}"

    def noise_in_words(self) -> str:
        """Describe the noise of a run around the law and the noise between seeds."""
        return noise_in_words(self)

    def document(self) -> dict[str, Any]:
        """Return the stable document that ``fit --json`` prints."""
        return document_of(self)

    def save(self, path: str | Path) -> None:
        """Write fit.json: the printed document, and the state that predictions need."""
        write_fit(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> "Fit":
        """Read fit.json; predictions equal those of the saved fit to 1e-12.

        Parameters
        ----------
        path
            File that :meth:`save` wrote.

        Returns
        -------
        Fit
            The saved fit.

        Raises
        ------
        InputError
            The file is not a fit, has another schema version, or is damaged.
        """
        return read_fit(Path(path), cls)


def as_fit(fit: Fit | str | Path) -> Fit:
    """Return a fit, loaded where its file is given.

    Raises
    ------
    InputError
        The value is neither a fit nor the path of one, or the file is damaged.
    """
    if isinstance(fit, str | Path):
        return Fit.load(Path(fit))
    if not isinstance(fit, Fit):
        raise InputError(
            f"`fit` must be a Fit or the path of its file, but got {type(fit).__name__}; make one "
            "with shapelaw.fit(law, runs)"
        )
    return fit
