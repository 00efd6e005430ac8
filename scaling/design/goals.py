"""Goals of a design: a prediction, the optimum of a ratio, a difference or a decision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.design.linearised import Points, law_columns, points_at
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import best_ratios
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.mapping import read_rows
from shapelaw.scaling.units import format_count, parse_count

NAMES = {"n": N, "d": D, "tokens": D, "params": N}  # short names of columns in typed goals
MAX_DRAWS = 1000  # of the posterior, for a decision
SYNTAX = (
    '"predict:n=1e9,tokens=2e10" (further rows after ";"), "predict:FILE", '
    '"optimum:mlp_to_attention" (at another size: "optimum:mlp_to_attention@1e9") '
    '"choice:FILE" with two rows, or "decision:FILE" with two or more'
)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Linear combinations, (m, q), of ln loss or of parameters at q points."""

    points: Points
    combination: np.ndarray
    description: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of ln loss at the rows of a table.

    One row gives a c-optimal design, several rows an I-optimal one (their mean squared error).
    ``at`` has the columns of the law, or the fields of shapes and ``tokens``. The target is the
    loss of a run without its noise, the sum of law and misfit.
    """

    at: pd.DataFrame

    def targets(self, fit: Fit, deviations: np.ndarray) -> Targets:
        """Convert the rows to targets.

        Parameters
        ----------
        fit
            The fitted law.
        deviations
            Prior standard deviations of its parameters, (p,).
        """
        columns = law_columns(fit, self.at, "the goal's table")
        points = points_at(fit, columns, deviations)
        place = f"{len(points)} places"
        if len(points) == 1:
            place = f"N = {format_count(columns[N][0])}, D = {format_count(columns[D][0])}"
        identity = np.eye(len(points))
        return Targets(points=points, combination=identity, description=f"ln loss at {place}")


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The ln of the optimum of a U-shaped ratio; where it drifts with N, at ``size`` parameters.

    Without ``size`` the goal is the optimum at the geometric mean size of the fitted runs.
    """

    of: str
    size: float | None = None

    def targets(self, fit: Fit, deviations: np.ndarray) -> Targets:
        """Convert the optimum (and its drift) to a target.

        Parameters
        ----------
        fit
            The fitted law.
        deviations
            Prior standard deviations of its parameters, (p,).

        Raises
        ------
        InputError
            The law has no such optimum, or the fit did not resolve it.
        """
        ratios = [factor.of for factor in fit.law.shapes if isinstance(factor, UShape)]
        name = f"{self.of}_optimum"
        if self.of not in ratios:
            choices = ", ".join(ratios) or "none in this law; fit a law with a U-shape"
            raise InputError(f"an optimum must be of one of {choices}, but got {self.of!r}")
        if name in fit.held:
            raise InputError(
                f"`{name}` must be fitted, but is held: {fit.held[name].why}; first train runs "
                f"that tell shapes apart, with the goal `choice` of two values of {self.of}"
            )
        gradient = np.zeros((1, len(fit.names)))
        gradient[0, fit.names.index(name)] = 1.0
        description = f"ln of the best {self.of}"
        if self.size is not None:
            description += f" at N = {format_count(self.size)}"
            if f"{self.of}_drift" in fit.names:
                distance = np.log(self.size / fit.reference[N])
                gradient[0, fit.names.index(f"{self.of}_drift")] = distance
        points = Points(
            gradient=gradient * deviations,
            place=np.zeros((1, len(fit.law.columns))),
            size=np.ones(1),
            shares=np.zeros(1),
        )
        return Targets(points=points, combination=np.eye(1), description=description)


@dataclass(frozen=True, kw_only=True)
class GoalRanking:
    """The ln loss of one shape minus that of another, each with its N, D and ratios."""

    first: pd.DataFrame | Mapping[str, float]
    second: pd.DataFrame | Mapping[str, float]

    def targets(self, fit: Fit, deviations: np.ndarray) -> Targets:
        """Convert the difference to a target.

        Parameters
        ----------
        fit
            The fitted law.
        deviations
            Prior standard deviations of its parameters, (p,).

        Raises
        ------
        InputError
            A shape is not one row, or the two shapes have equal columns of the law.
        """
        pair = [_row(self.first, "first"), _row(self.second, "second")]
        columns = law_columns(fit, pd.concat(pair, ignore_index=True), "the choice")
        points = points_at(fit, columns, deviations)
        if np.ptp(points.place, axis=0).max() < 1e-9:
            raise InputError(
                "the two shapes of a choice must differ in a column of the law "
                f"({', '.join(fit.law.columns)}), but are the same; use another law"
            )
        return Targets(
            points=points,
            combination=np.array([[1.0, -1.0]]),
            description="ln loss of the first shape minus the second",
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The choice of the best of two or more shapes: runs are chosen to reduce its expected regret.

    ``among`` has one row per shape: the columns of the law, or the fields of shapes and ``tokens``.
    """

    among: pd.DataFrame

    def draws(
        self, fit: Fit, candidates: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw ln losses of shapes (S, n) and candidates (S, c) jointly, and noise of a run (S,).

        Parameters
        ----------
        fit
            The fitted law, with draws.
        candidates
            Columns of the law, (c,) each.

        Raises
        ------
        InputError
            There are fewer than two shapes, the fit has no draws, or no draw tells them apart.
        """
        if len(self.among) < 2:
            raise InputError(
                f"a decision must be among two or more rows, but got {len(self.among)}; give one "
                "row per shape"
            )
        shapes = law_columns(fit, self.among, "the decision")
        pairs = list(zip(fit.law.columns, fit.source_columns, strict=True))
        both = {column: np.append(shapes[name], candidates[name]) for name, column in pairs}
        drawn = fit.log_loss_draws(pd.DataFrame(both))
        noise = fit.run_noise_draws((len(drawn), 1), [1])[:, 0]
        kept = np.linspace(0, len(drawn) - 1, min(MAX_DRAWS, len(drawn))).astype(int)
        drawn, noise, count = drawn[kept], noise[kept], len(self.among)
        if np.ptp(drawn[:, :count] - drawn[:, :1], axis=0).max() < 1e-12:
            raise InputError(
                "the shapes of a decision must differ in a column of the law "
                f"({', '.join(fit.law.columns)}), but are the same; use another law"
            )
        return drawn[:, :count], drawn[:, count:], noise

    @property
    def description(self) -> str:
        """Name of the decision."""
        return f"the choice of the best of {len(self.among)} shapes"


Goal = Prediction | Optimum | GoalRanking | Decision


def _row(value: pd.DataFrame | Mapping[str, float], which: str) -> pd.DataFrame:
    frame = value if isinstance(value, pd.DataFrame) else pd.DataFrame([dict(value)])
    if len(frame) != 1:
        raise InputError(f"the {which} shape of a choice must be one row, but got {len(frame)}")
    return frame


def parse_goal(text: str, fit: Fit, read: Callable[[Path], pd.DataFrame] = read_rows) -> Goal:
    """Parse the text of ``--goal``.

    In ``predict:n=1e9,tokens=20B``, ratios that are not given are at the law's optimum, or at the
    middle of the observed range where the law has none.

    Parameters
    ----------
    text
        A goal as typed by the user.
    fit
        The fit whose law has the columns and optima of the goal.
    read
        Function that reads the tables of goals.

    Raises
    ------
    InputError
        The text is not a goal; the error shows the syntax.
    """
    kind, _, rest = text.partition(":")
    if kind == "predict" and "=" in rest:
        return Prediction(at=pd.DataFrame([_values(row, fit) for row in rest.split(";")]))
    if kind == "predict" and rest:
        return Prediction(at=read(Path(rest)))
    if kind == "optimum" and rest:
        of, _, size = rest.partition("@")
        return Optimum(of=of, size=float(parse_count(size)) if size else None)
    if kind == "choice" and rest:
        table = read(Path(rest))
        if len(table) != 2:
            raise InputError(f"a choice must be between two rows, but {rest} has {len(table)}")
        return GoalRanking(first=table.iloc[[0]], second=table.iloc[[1]])
    if kind == "decision" and rest:
        return Decision(among=read(Path(rest)))
    raise InputError(f"`--goal` must be {SYNTAX}, but got {text!r}")


def _values(row: str, fit: Fit) -> dict[str, float]:
    given: dict[str, float] = {}
    for part in row.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        column = NAMES.get(name, name)
        if column not in fit.law.columns:
            names = ", ".join(["n", "tokens", *(c for c in fit.law.columns if c not in (N, D))])
            raise InputError(f"`--goal predict` must name {names}, but got {part.strip()!r}")
        given[column] = float(parse_count(value)) if column in (N, D) else _number(name, value)
    for name in (N, D):
        if name not in given:
            raise InputError(f"`--goal predict` must give n and tokens, but got {row!r}")
    ratios = [column for column in fit.law.columns if column not in given]
    return given | {column: _default_ratio(fit, column, given[N]) for column in ratios}


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise InputError(f"`{name} > 0` must hold in `--goal`, but got {text!r}")
    return value


def _default_ratio(fit: Fit, column: str, size: float) -> float:
    """Return the law's optimum inside the observed range, else the middle of the range.

    Fields of a shape are rounded to whole numbers.
    """
    low, high = fit.ranges[column]
    best = float(np.clip(best_ratios(fit, np.array([size]))[column][0], low, high))
    return float(round(best)) if column in INTEGER_FIELDS else best
