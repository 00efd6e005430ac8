"""What the next runs are for: a prediction, the optimum of a ratio, or the choice of a shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.design.linearised import Points, law_columns, points_at
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.units import format_count, parse_count

NAMES = {"n": N, "d": D, "tokens": D, "params": N}
SYNTAX = (
    '"predict:n=1e9,tokens=2e10" (further rows after ";"), "predict:FILE", '
    '"optimum:mlp_to_attention" (at another size: "optimum:mlp_to_attention@1e9") '
    'or "choice:FILE" with two rows'
)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Linear combinations, (m, q), of ln loss or of parameters at q points."""

    points: Points
    combination: np.ndarray
    words: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Ln loss at the rows of a table: one row is c-optimal, several are I-optimal (their mean).

    ``at`` has the columns of the law, or the fields of shapes and ``tokens``. The target is the
    loss of a run there without its noise: law and misfit.
    """

    at: pd.DataFrame

    def targets(self, fit: Fit, deviations: np.ndarray) -> Targets:
        """The rows as targets."""
        columns = law_columns(fit, self.at, "the goal's table")
        points = points_at(fit, columns, deviations)
        shown = f"{len(points)} places"
        if len(points) == 1:
            shown = f"N = {format_count(columns[N][0])}, D = {format_count(columns[D][0])}"
        words = f"ln loss at {shown}"
        return Targets(points=points, combination=np.eye(len(points)), words=words)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Ln of the best value of a U-shaped ratio; where it drifts with N, at ``size`` parameters.

    Without ``size`` it is the optimum at the geometric mean size of the fitted runs.
    """

    of: str
    size: float | None = None

    def targets(self, fit: Fit, deviations: np.ndarray) -> Targets:
        """The parameter (and its drift) as target.

        Raises
        ------
        InputError
            The law has no such optimum, or the fit did not resolve it.
        """
        ratios = [factor.of for factor in fit.law.shapes if isinstance(factor, UShape)]
        name = f"{self.of}_optimum"
        if self.of not in ratios:
            known = ", ".join(ratios) or "none in this law; fit a law with a U-shape"
            raise InputError(f"an optimum must be of one of {known}, but got {self.of!r}")
        if name in fit.held:
            raise InputError(
                f"`{name}` must be fitted, but is held: {fit.held[name].why}; first train runs "
                f"that tell shapes apart, with the goal `choice` of two values of {self.of}"
            )
        gradient = np.zeros((1, len(fit.names)))
        gradient[0, fit.names.index(name)] = 1.0
        words = f"ln of the best {self.of}"
        if self.size is not None:
            words += f" at N = {format_count(self.size)}"
            if f"{self.of}_drift" in fit.names:
                moved = np.log(self.size / fit.reference[N])
                gradient[0, fit.names.index(f"{self.of}_drift")] = moved
        points = Points(
            gradient=gradient * deviations,
            place=np.zeros((1, len(fit.law.columns))),
            size=np.ones(1),
            shares=np.zeros(1),
        )
        return Targets(points=points, combination=np.eye(1), words=words)


@dataclass(frozen=True, kw_only=True)
class GoalRanking:
    """Ln loss of the first shape minus that of the second, each with its N, D and ratios."""

    first: pd.DataFrame | Mapping[str, float]
    second: pd.DataFrame | Mapping[str, float]

    def targets(self, fit: Fit, deviations: np.ndarray) -> Targets:
        """The difference as target.

        Raises
        ------
        InputError
            One of the two is not one row, or they are the same to the law.
        """
        pair = [_row(self.first, "first"), _row(self.second, "second")]
        columns = law_columns(fit, pd.concat(pair, ignore_index=True), "the choice")
        points = points_at(fit, columns, deviations)
        if np.ptp(points.place, axis=0).max() < 1e-9:
            raise InputError(
                "the two shapes of a choice must differ in a column of the law "
                f"({', '.join(fit.law.columns)}), but are the same; use another law"
            )
        words = "ln loss of the first shape minus the second"
        return Targets(points=points, combination=np.array([[1.0, -1.0]]), words=words)


Goal = Prediction | Optimum | GoalRanking


def _row(value: pd.DataFrame | Mapping[str, float], which: str) -> pd.DataFrame:
    frame = value if isinstance(value, pd.DataFrame) else pd.DataFrame([dict(value)])
    if len(frame) != 1:
        raise InputError(f"the {which} shape of a choice must be one row, but got {len(frame)}")
    return frame


def parse_goal(text: str, fit: Fit) -> Goal:
    """Read a goal as it is typed.

    ``predict:n=1e9,tokens=20B`` takes ratios that are not given at the law's optimum, or at the
    middle of the observed range where there is none.

    Raises
    ------
    InputError
        The text is not a goal; the error shows the syntax.
    """
    kind, _, rest = text.partition(":")
    if kind == "predict" and "=" in rest:
        return Prediction(at=pd.DataFrame([_values(row, fit) for row in rest.split(";")]))
    if kind == "predict" and rest:
        return Prediction(at=read_table(Path(rest)))
    if kind == "optimum" and rest:
        of, _, size = rest.partition("@")
        return Optimum(of=of, size=float(parse_count(size)) if size else None)
    if kind == "choice" and rest:
        table = read_table(Path(rest))
        if len(table) != 2:
            raise InputError(f"a choice must be between two rows, but {rest} has {len(table)}")
        return GoalRanking(first=table.iloc[[0]], second=table.iloc[[1]])
    raise InputError(f"`--goal` must be {SYNTAX}, but got {text!r}")


def _values(row: str, fit: Fit) -> dict[str, float]:
    given: dict[str, float] = {}
    for part in row.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        column = NAMES.get(name, name)
        if column not in fit.law.columns:
            known = ", ".join(["n", "tokens", *(c for c in fit.law.columns if c not in (N, D))])
            raise InputError(f"`--goal predict` must name {known}, but got {part.strip()!r}")
        given[column] = float(parse_count(value)) if column in (N, D) else _number(name, value)
    for name in (N, D):
        if name not in given:
            raise InputError(f"`--goal predict` must give n and tokens, but got {row!r}")
    ratios = [column for column in fit.law.columns if column not in given]
    return given | {column: _usual(fit, column, given[N]) for column in ratios}


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise InputError(f"`{name} > 0` must hold in `--goal`, but got {text!r}")
    return value


def _usual(fit: Fit, column: str, size: float) -> float:
    """The law's optimum inside the observed range, else its middle; fields of a shape are whole."""
    found = _best(fit, column, size)
    return float(round(found)) if column in INTEGER_FIELDS else found


def _best(fit: Fit, column: str, size: float) -> float:
    low, high = fit.ranges[column]
    position = {name: place for place, name in enumerate(fit.names)}
    optimum = position.get(f"{column}_optimum")
    if optimum is None or f"{column}_optimum" in fit.held:
        return float(np.sqrt(low * high))
    log = fit.theta[optimum]
    if f"{column}_drift" in position:
        log = log + fit.theta[position[f"{column}_drift"]] * np.log(size / fit.reference[N])
    return float(np.clip(np.exp(log), low, high))
