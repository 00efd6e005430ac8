"""Identifiability of the parameters of a law on a run table, with a remedy for every gap."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, fit_quickly
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.bases import COUPLINGS
from shapelaw.scaling.laws.part import Columns
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import count_levels, level_of
from shapelaw.scaling.runs.table import RunTable

POOR_CONDITION, SINGULAR_CONDITION = 100.0, 1000.0  # condition numbers; the Chinchilla data have 33
MIN_COLLINEAR_CORRELATION = 0.98  # absolute correlation of the logarithms of two columns
MAX_CONSTANT_RANGE = np.log(1.05)  # range of ln of a column that counts as constant
MIN_LOADING = 0.3  # absolute component of a unit direction for a parameter to be named
MIN_ROWS_PER_PARAMETER = 3
MIN_LEVELS = 3  # distinct values that identify an exponent beside its scale


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Gap in the information of a run table (``what``) and the runs that close it (``remedy``)."""

    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Identifiability(Result):
    """Identifiability of the free parameters of a law from the rows of a run table.

    Parameters
    ----------
    law_name
        Name of the law.
    rows
        Number of runs.
    condition
        Condition number of the Jacobian of ln loss at the optimum, with columns scaled to length 1
        and logarithms centred at the table.
    correlation
        Correlation of the parameters that the Jacobian implies, (p, p).
    directions
        Combinations of parameters that hardly change any prediction.
    levels
        Number of distinct values by column; values 10 % apart are distinct.
    findings
        Gaps in the information of the table, with their remedies.
    """

    law_name: str
    rows: int
    condition: float
    correlation: pd.DataFrame
    directions: pd.DataFrame
    levels: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def status(self) -> str:
        """Identified, poorly conditioned or not identifiable."""
        if self.condition > SINGULAR_CONDITION:
            return "not identifiable"
        return "poorly conditioned" if self.condition > POOR_CONDITION else "identified"

    def frame(self) -> pd.DataFrame:
        """Return one row per finding, with its remedy."""
        lines = [vars(finding) for finding in self.findings]
        return pd.DataFrame(lines, columns=["what", "remedy"])

    def extremes(self, count: int = 3) -> pd.DataFrame:
        """Return the most correlated pairs of parameters."""
        values, names = self.correlation.to_numpy(), list(self.correlation)
        pairs = [
            {"first": names[i], "second": names[j], "correlation": float(values[i, j])}
            for i, j in combinations(range(len(names)), 2)
        ]
        table = pd.DataFrame(pairs, columns=["first", "second", "correlation"])
        return table.sort_values("correlation", key=lambda c: -c.abs()).head(count)

    def view(self) -> View:
        """Return the status, findings, levels, correlations and directions."""
        return View(
            title=f"{self.law_name} on {counted(self.rows, 'row')}: {self.status}; condition "
            f"number {self.condition:.3g} of the scaled Jacobian",
            tables={
                "what the table does not identify": self.frame(),
                "distinct values (10 % apart)": pd.DataFrame([self.levels]),
                "most correlated parameters": self.extremes(),
                "directions that hardly change a prediction": self.directions,
            },
        )

    def document(self) -> dict[str, Any]:
        """Return the status, the condition number and every table."""
        return {
            "law": self.law_name,
            "rows": self.rows,
            "status": self.status,
            "condition": self.condition,
            "levels": self.levels,
            "findings": self.frame(),
            "correlations": self.extremes(),
            "directions": self.directions,
        }


def identifiability_report(
    subject: LawLike | Fit, runs: RunTable | pd.DataFrame, **settings: Unpack[FitSettings]
) -> Identifiability:
    """Report how well a run table identifies the parameters of a law.

    Parameters
    ----------
    subject
        Fit to these runs, or a law to fit to them.
    runs
        Run table with the columns of the law and loss.
    settings
        Settings of the fit of a law.

    Returns
    -------
    Identifiability
        Condition number, correlations, poorly determined directions, and a remedy for each gap.

    Raises
    ------
    InputError
        The law cannot be fitted, or a column is missing.
    """
    fitted = subject if isinstance(subject, Fit) else fit_quickly(subject, runs, **settings)
    runs = fitted.count_as_fitted(runs)
    columns = fitted.columns(runs)
    free, jacobian = free_jacobian(fitted, columns)
    condition, correlation, directions = _geometry(free, jacobian)
    levels = _levels(runs, columns)
    findings = [
        *_counts(levels, len(runs), len(free)),
        *_collinear(columns),
        *_confounded(condition, directions),
        *_held(fitted),
    ]
    return Identifiability(
        law_name=fitted.law_name,
        rows=len(runs),
        condition=condition,
        correlation=correlation,
        directions=directions,
        levels=levels,
        findings=tuple(findings),
    )


def free_jacobian(fitted: Fit, columns: Columns) -> tuple[list[str], np.ndarray]:
    """Compute the Jacobian of ln loss with respect to the free internal parameters.

    Parameters
    ----------
    fitted
        Fit at whose optimum the Jacobian is evaluated.
    columns
        Columns of the law, (n,) each.

    Returns
    -------
    names
        Names of the free internal parameters.
    jacobian
        Gradient of ln loss by these parameters, (n, free).
    """
    jacobian = fitted.law.log_loss(fitted.theta, columns, fitted.reference)[1]
    free = np.array([name not in fitted.held for name in fitted.names], dtype=bool)
    return [name for name in fitted.names if name not in fitted.held], jacobian[:, free]


def _geometry(free: list[str], jacobian: np.ndarray) -> tuple[float, pd.DataFrame, pd.DataFrame]:
    """Return the condition number, the correlation of the parameters and near-null directions."""
    lengths = np.linalg.norm(jacobian, axis=0)
    scaled = jacobian / np.where(lengths > 0, lengths, 1.0)
    _, sizes, rotation = np.linalg.svd(scaled, full_matrices=False)
    smallest = max(float(sizes[-1]), 1e-300) if len(jacobian) >= len(free) else 1e-300
    inverse = (rotation.T / np.maximum(sizes, sizes[0] * 1e-12) ** 2) @ rotation
    deviation = np.sqrt(np.diag(inverse))
    table = pd.DataFrame(inverse / np.outer(deviation, deviation), index=free, columns=free)
    weak = [
        {"condition": float(sizes[0] / max(size, 1e-300)), "combination": _combination(free, row)}
        for size, row in zip(sizes, rotation, strict=True)
        if size < sizes[0] / POOR_CONDITION
    ]
    directions = pd.DataFrame(weak, columns=["condition", "combination"])
    return float(sizes[0]) / smallest, table, directions


def _combination(free: list[str], direction: np.ndarray) -> str:
    """Format a direction by its largest components, the largest one positive."""
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    order = np.argsort(-np.abs(direction))
    return ", ".join(
        f"{free[i]} {direction[i]:+.2f}" for i in order if abs(direction[i]) > MIN_LOADING
    )


def _levels(runs: RunTable, columns: Columns) -> dict[str, int]:
    """Count the levels of every column of the law, of N, of D and of D/N."""
    levels = {name: level_of(values) for name, values in columns.items() if name not in (N, D)}
    if runs.has_sizes and D in runs:
        levels |= {N: runs.size_level, D: runs.token_level}
        levels["tokens / N"] = level_of(runs.tokens / runs.sizes)
    names = [*columns, *(name for name in levels if name not in columns)]
    return {name: count_levels(levels[name]) for name in names}


def _counts(levels: dict[str, int], rows: int, free: int) -> list[Finding]:
    """Find columns with too few distinct values, and too few rows for the free parameters."""
    findings = []
    for name, singular, plural in (
        (N, "distinct size", "distinct sizes"),
        (D, "distinct token count", "distinct token counts"),
        ("tokens / N", "distinct ratio of D to N", "distinct ratios of D to N"),
    ):
        count = levels.get(name, MIN_LEVELS)
        if count < MIN_LEVELS:
            what = (
                f"{counted(count, singular, plural)}: an exponent and its scale need {MIN_LEVELS}"
            )
            remedy = "vary tokens at fixed size"
            if name == N:
                remedy = f"train {counted(MIN_LEVELS - count, 'more size')}"
            findings.append(Finding(what=what, remedy=remedy))
    if rows < MIN_ROWS_PER_PARAMETER * free:
        what = f"{counted(rows, 'row')} for {counted(free, 'free parameter')}, fewer than "
        what += f"{MIN_ROWS_PER_PARAMETER} each"
        missing = counted(MIN_ROWS_PER_PARAMETER * free - rows, "more run")
        remedy = f"train {missing}, choose a smaller law, or hold alpha = beta"
        findings.append(Finding(what=what, remedy=remedy))
    return findings


def _collinear(columns: Columns) -> list[Finding]:
    """Find columns that are constant or collinear, D = kN among them."""
    findings = []
    logs = {name: np.log(values) for name, values in columns.items()}
    for name, column in logs.items():
        if np.ptp(column) < MAX_CONSTANT_RANGE and name not in (N, D):
            findings.append(
                Finding(
                    what=f"{name} is the same in all runs: its effect is not identified",
                    remedy=f"train runs that differ in {name} at the same N and D",
                )
            )
    varying = [name for name, column in logs.items() if np.ptp(column) >= MAX_CONSTANT_RANGE]
    for first, second in combinations(varying, 2):
        correlation = float(np.corrcoef(logs[first], logs[second])[0, 1])
        if abs(correlation) <= MIN_COLLINEAR_CORRELATION:
            continue
        if {first, second} == {N, D}:
            what = f"D varies with N (correlation {correlation:.3f}): alpha and beta are confounded"
            remedy = "vary tokens at fixed size, or hold alpha = beta"
        else:
            what = f"{first} varies with {second} (correlation {correlation:.3f})"
            remedy = f"train runs that differ in {second} at the same {first}"
        findings.append(Finding(what=what, remedy=remedy))
    return findings


def _confounded(condition: float, directions: pd.DataFrame) -> list[Finding]:
    """Find the combinations of parameters that a large condition number belongs to."""
    if condition <= POOR_CONDITION:
        return []
    combinations_listed = "; ".join(directions["combination"])
    remedy = "train more extreme sizes and token counts, hold one of these, or use a smaller law"
    return [Finding(what=f"parameters are confounded: {combinations_listed}", remedy=remedy)]


def _held(fitted: Fit) -> list[Finding]:
    """Find the parameters that the fit holds, one finding per reason."""
    reasons: dict[str, list[str]] = {}
    for name, held in fitted.held.items():
        if held.why != "the optimum does not move with N":  # held by the definition of the law
            reasons.setdefault(held.why, []).append(name)
    return [
        Finding(what=f"{', '.join(names)} held: {why}", remedy=_remedy(names, why))
        for why, names in reasons.items()
    ]


def _remedy(names: list[str], why: str) -> str:
    """Return the runs that would let a fit estimate these held parameters."""
    if {"alpha", "A"} & set(names) and {"beta", "B"} & set(names):
        return "train more sizes, and vary tokens at fixed size"
    if {"beta", "B"} & set(names):
        return "vary tokens at fixed size: three token counts or more"
    if set(COUPLINGS) & set(names):
        return "vary tokens at fixed size, at three sizes and three token counts or more"
    column = names[0].rsplit("_", 1)[0]
    drifts = all(name.endswith("_drift") for name in names)
    if drifts and f"values of {column}" in why:
        return f"train three or more values of {column} at each of three sizes"
    if {"alpha", "A"} & set(names) or drifts:
        return "train more sizes: three or more, a factor of two apart"
    if "not resolved" in why:
        return f"train replicate seeds and shapes farther apart in {column}"
    return f"train runs that differ in {column} alone"
