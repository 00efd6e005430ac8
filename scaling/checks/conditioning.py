"""What a table can tell about a law's parameters, in numbers, and what to train where it cannot."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, fit_quickly
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Columns
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import count_levels, level_of
from shapelaw.scaling.runs.table import RunTable

POOR, HOPELESS = 100.0, 1000.0  # condition numbers; the Chinchilla data have 33
COLLINEAR = 0.98
CONSTANT = np.log(1.05)
LOADING = 0.3  # of a unit direction: parameters that take part in it
ROWS_PER_PARAMETER = 3
LEVELS = 3  # that an exponent beside its scale needs


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that the table cannot tell, and what would help."""

    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Identifiability(Result):
    """How well the rows fix the free parameters of a law.

    ``condition`` is that of the Jacobian of ln loss at the optimum, columns scaled to length 1,
    logarithms centred at the table; ``directions`` are the combinations of parameters that hardly
    move any prediction; ``correlation`` is the one that the Jacobian implies, (p, p); ``levels``
    count distinct values, 10 % apart.
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
        """In words: identified, poorly conditioned or not identifiable."""
        if self.condition > HOPELESS:
            return "not identifiable"
        return "poorly conditioned" if self.condition > POOR else "identified"

    def frame(self) -> pd.DataFrame:
        """Findings and remedies."""
        lines = [vars(finding) for finding in self.findings]
        return pd.DataFrame(lines, columns=["what", "remedy"])

    def extremes(self, count: int = 3) -> pd.DataFrame:
        """The most correlated pairs of parameters."""
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
                "what the table cannot tell": self.frame(),
                "distinct values (10 % apart)": pd.DataFrame([self.levels]),
                "most correlated parameters": self.extremes(),
                "directions that hardly move a prediction": self.directions,
            },
        )

    def document(self) -> dict[str, Any]:
        """Return everything in the tables."""
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
    """Report what the runs can and cannot tell about a law, with a remedy for each gap.

    Parameters
    ----------
    subject
        A fit to these runs, or a law to fit to them.

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
        *_trades(condition, directions),
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
    """Names of the free internal parameters, and ln loss's gradient by them, (n, free)."""
    jacobian = fitted.law.log_loss(fitted.theta, columns, fitted.reference)[1]
    free = np.array([name not in fitted.held for name in fitted.names], dtype=bool)
    return [name for name in fitted.names if name not in fitted.held], jacobian[:, free]


def _geometry(free: list[str], jacobian: np.ndarray) -> tuple[float, pd.DataFrame, pd.DataFrame]:
    """Condition number, correlation of the parameters, and near-null directions."""
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
        if size < sizes[0] / POOR
    ]
    directions = pd.DataFrame(weak, columns=["condition", "combination"])
    return float(sizes[0]) / smallest, table, directions


def _combination(free: list[str], direction: np.ndarray) -> str:
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    order = np.argsort(-np.abs(direction))
    return ", ".join(f"{free[i]} {direction[i]:+.2f}" for i in order if abs(direction[i]) > LOADING)


def _levels(runs: RunTable, columns: Columns) -> dict[str, int]:
    """Count the levels of every column of the law, of N, of D and of D/N."""
    levels = {name: level_of(values) for name, values in columns.items() if name not in (N, D)}
    if runs.has_sizes and D in runs:
        levels |= {N: runs.size_level, D: runs.token_level}
        levels["tokens / N"] = level_of(runs.tokens / runs.sizes)
    names = [*columns, *(name for name in levels if name not in columns)]
    return {name: count_levels(levels[name]) for name in names}


def _counts(levels: dict[str, int], rows: int, free: int) -> list[Finding]:
    found = []
    for name, one, more in (
        (N, "distinct size", "distinct sizes"),
        (D, "distinct token count", "distinct token counts"),
        ("tokens / N", "distinct ratio of D to N", "distinct ratios of D to N"),
    ):
        count = levels.get(name, LEVELS)
        if count < LEVELS:
            what = f"{counted(count, one, more)}: {LEVELS} fix an exponent beside its scale"
            how = "vary tokens at fixed size"
            if name == N:
                how = f"train {counted(LEVELS - count, 'more size')}"
            found.append(Finding(what=what, remedy=how))
    if rows < ROWS_PER_PARAMETER * free:
        what = f"{counted(rows, 'row')} for {counted(free, 'free parameter')}, fewer than "
        what += f"{ROWS_PER_PARAMETER} each"
        missing = counted(ROWS_PER_PARAMETER * free - rows, "more run")
        remedy = f"train {missing}, choose a smaller law, or hold alpha = beta"
        found.append(Finding(what=what, remedy=remedy))
    return found


def _collinear(columns: Columns) -> list[Finding]:
    """Find D = kN, and columns that are constant or move together."""
    found = []
    logs = {name: np.log(values) for name, values in columns.items()}
    for name, column in logs.items():
        if np.ptp(column) < CONSTANT and name not in (N, D):
            found.append(
                Finding(
                    what=f"{name} is the same in all runs: its effect cannot be seen",
                    remedy=f"train runs that differ in {name} at the same N and D",
                )
            )
    moving = [name for name, column in logs.items() if np.ptp(column) >= CONSTANT]
    for one, two in combinations(moving, 2):
        correlation = float(np.corrcoef(logs[one], logs[two])[0, 1])
        if abs(correlation) <= COLLINEAR:
            continue
        if {one, two} == {N, D}:
            what = f"D moves with N (correlation {correlation:.3f}): alpha and beta trade places"
            remedy = "vary tokens at fixed size, or hold alpha = beta"
        else:
            what = f"{one} moves with {two} (correlation {correlation:.3f})"
            remedy = f"train runs that differ in {two} at the same {one}"
        found.append(Finding(what=what, remedy=remedy))
    return found


def _trades(condition: float, directions: pd.DataFrame) -> list[Finding]:
    if condition <= POOR:
        return []
    words = "; ".join(directions["combination"])
    remedy = "train more extreme sizes and token counts, hold one of these, or use a smaller law"
    return [Finding(what=f"these trade against each other: {words}", remedy=remedy)]


def _held(fitted: Fit) -> list[Finding]:
    """What the fit did not fit: one finding per reason."""
    reasons: dict[str, list[str]] = {}
    for name, held in fitted.held.items():
        if held.why != "the optimum does not move with N":  # so by the definition of the law
            reasons.setdefault(held.why, []).append(name)
    return [
        Finding(what=f"{', '.join(names)} held: {why}", remedy=_remedy(names, why))
        for why, names in reasons.items()
    ]


def _remedy(names: list[str], why: str) -> str:
    if {"alpha", "A"} & set(names) and {"beta", "B"} & set(names):
        return "train more sizes, and vary tokens at fixed size"
    if {"beta", "B"} & set(names):
        return "vary tokens at fixed size: three token counts or more"
    if {"alpha", "A"} & set(names) or all(name.endswith("_drift") for name in names):
        return "train more sizes: three or more, a factor of two apart"
    column = names[0].rsplit("_", 1)[0]
    if "not resolved" in why:
        return f"train replicate seeds and shapes farther apart in {column}"
    return f"train runs that differ in {column} alone"
