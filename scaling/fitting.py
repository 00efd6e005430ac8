"""Fit a law to a run table: many starts, a robust loss on ln loss, and what the optimum rests on.

The objective is the sum over runs of Huber(ln L - ln L_predicted), unrounded and without weights
(arXiv 2203.15556, appendix D.4, with the sum instead of the mean). SciPy's ``least_squares`` with
``loss="huber"`` has exactly this cost, and the laws give it closed-form gradients.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import f as fisher
from scipy.stats import qmc

from scaling.errors import InputError
from scaling.fits import Fit
from scaling.identifiability import (
    Held,
    hold_base,
    hold_drifts,
    hold_factors,
    neutral,
    optimum_status,
)
from scaling.laws import Columns, D, Law, N, Parameter, UShape, columns_of, law_named
from scaling.runs import fingerprint, replicate_noise, require_columns, same_losses
from scaling.uncertainty import bootstrap

HUBER = 1.345  # times the residual scale: 95 % as efficient as least squares on normal residuals
DELTA_SWEEP = (1e-4, 1e-3, 1e-2, 1e-1)
STARTING_DELTA = 1e-2
ROUGH_STEPS = 40  # evaluations of each start before the best are solved to the end
POLISHED = 6
SIGNIFICANCE = 0.05
SMALLEST_DELTA = 1e-6
Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law, its data and what is held: everything that a solve needs."""

    law: Law
    columns: Columns
    log_loss: np.ndarray
    reference: Mapping[str, float]
    held: Mapping[str, Held]
    delta: float

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Internal parameters of the law on these data."""
        return self.law.parameters(self.columns, np.exp(self.log_loss))

    @cached_property
    def free(self) -> np.ndarray:
        """Mask of the internal parameters that are fitted."""
        return np.array([parameter.name not in self.held for parameter in self.parameters])

    @cached_property
    def bounds(self) -> Bounds:
        """Lower and upper bounds of the free parameters."""
        ends = np.array([parameter.bounds for parameter in self.parameters])[self.free]
        return ends[:, 0], ends[:, 1]

    def complete(self, free: np.ndarray) -> np.ndarray:
        """All internal parameters from the free ones."""
        theta = np.array([self._held_value(parameter.name) for parameter in self.parameters])
        theta[self.free] = free
        return theta

    def _held_value(self, name: str) -> float:
        return self.held[name].value if name in self.held else 0.0

    def residuals(self, free: np.ndarray) -> np.ndarray:
        """Predicted minus observed ln loss, (n,)."""
        theta = self.complete(free)
        predicted = self.law.log_loss(theta, self.columns, self.reference)[0]
        return np.asarray(predicted - self.log_loss)

    def jacobian(self, free: np.ndarray) -> np.ndarray:
        """Gradient of the residuals by the free parameters, (n, p)."""
        theta = self.complete(free)
        return self.law.log_loss(theta, self.columns, self.reference)[1][:, self.free]

    def objective(self, free: np.ndarray) -> float:
        """The sum-Huber objective."""
        size = np.abs(self.residuals(free))
        linear = self.delta * (size - self.delta / 2)
        return float(np.where(size <= self.delta, size**2 / 2, linear).sum())

    def solve(self, start: np.ndarray, steps: int = 2000) -> OptimizeResult:
        """Minimise from one start (free parameters)."""
        lower, upper = self.bounds
        margin = 1e-9 * (upper - lower)
        return least_squares(
            self.residuals,
            np.clip(start, lower + margin, upper - margin),
            jac=self.jacobian,
            bounds=self.bounds,
            loss="huber",
            f_scale=self.delta,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-12,
            gtol=1e-15,
            max_nfev=steps,
        )

    def starts(self, count: int, seed: int) -> np.ndarray:
        """A scrambled Sobol set of starts over the parameters' boxes, (count, p)."""
        boxes = np.array([parameter.starts for parameter in self.parameters])[self.free]
        low, high = boxes[:, 0], np.maximum(boxes[:, 1], boxes[:, 0] + 1e-9)
        exponent = int(np.ceil(np.log2(count)))
        points = qmc.Sobol(len(boxes), seed=seed).random_base2(exponent)[:count]
        return np.asarray(qmc.scale(points, low, high))


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best optimum over all starts."""

    free: np.ndarray
    objective: float
    gradient_norm: float
    converged: bool
    basins: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """A factor whose effect noise hides: its size when fitted, the p-value, and both in words."""

    column: str
    effect: dict[str, float]
    chance: float
    why: str


def fit(
    law_name: str,
    runs: pd.DataFrame,
    *,
    delta: float | str = "auto",
    starts: int = 64,
    resamples: int = 400,
    seed: int = 0,
) -> Fit:
    """Fit a law to the runs of a table.

    Parameters
    ----------
    law_name
        A name in :data:`scaling.laws.LAWS`.
    runs
        Rows as :func:`scaling.runs.load_runs` gives them.
    delta
        Huber's threshold on ln loss, or ``"auto"``: 1.345 times the robust scale of the residuals.
    starts
        How many starts; the best are solved to the end.
    resamples
        Of the bootstrap behind every interval.
    seed
        Of starts and resamples.

    Raises
    ------
    InputError
        A column is missing, losses are not comparable, or there are too few rows.
    """
    begun = time.perf_counter()
    law = law_named(law_name)
    runs, convention = _sized(runs, law)
    same_losses(runs, "the run table")
    columns = columns_of(runs, law.columns)
    reference = {name: float(np.exp(np.log(columns[name]).mean())) for name in (N, D)}
    problem = Problem(
        law=law,
        columns=columns,
        log_loss=np.log(runs["loss"].to_numpy(dtype=float)),
        reference=reference,
        held=_held_before(law, columns),
        delta=STARTING_DELTA if delta == "auto" else float(delta),
    )
    _enough_rows(problem, law_name)
    problem, best, noise, hidden = _settle(problem, delta, starts, seed, replicate_noise(runs))
    theta = problem.complete(best.free)
    draws, method = _resample(problem, best, resamples, seed)
    degrees = max(len(runs) - int(problem.free.sum()), 0)
    between, between_degrees = replicate_noise(runs)
    fitted = Fit(
        law_name=law_name,
        names=[parameter.name for parameter in problem.parameters],
        theta=theta,
        draws=draws,
        reference=reference,
        held=dict(problem.held),
        objective=best.objective,
        delta=problem.delta,
        delta_rule="1.345 x residual scale" if delta == "auto" else "as given",
        status="",
        notes=[],
        starts=starts,
        basins=best.basins,
        gradient_norm=best.gradient_norm,
        seconds=0.0,
        run_ids=[str(name) for name in runs.get("run_id", [f"row-{i}" for i in range(len(runs))])],
        left_out=dict(runs.attrs.get("left_out", {})),
        ranges={name: (float(c.min()), float(c.max())) for name, c in columns.items()},
        size_convention=convention,
        noise=max(noise, between) if between_degrees > 2 else noise,
        noise_degrees=degrees,
        replicate_noise=between if between_degrees else None,
        replicate_degrees=between_degrees,
        effects=_effects(problem, theta) | {h.column: h.effect for h in hidden},
        delta_sweep=_sweep(problem, best),
        bootstrap=f"{resamples} resamples of {method}",
        data_sha256=fingerprint(runs),
        seed=seed,
    )
    notes = _notes(fitted, hidden)
    status = _status(fitted, best)
    return replace(fitted, notes=notes, status=status, seconds=time.perf_counter() - begun)


def _sized(runs: pd.DataFrame, law: Law) -> tuple[pd.DataFrame, str]:
    """Name the size convention; total parameters stand in where no others are given."""
    convention = "non-embedding"
    if N not in runs and "n_total" in runs:
        runs, convention = runs.assign(**{N: runs["n_total"]}), "total"
    require_columns(runs, ("loss", *law.columns), "the run table")
    return runs, convention


def _held_before(law: Law, columns: Columns) -> dict[str, Held]:
    held = hold_base(columns) | hold_drifts(law, columns)
    unseen = hold_factors(law, columns)
    for factor in law.factors:
        if factor.of in unseen:
            held |= neutral(factor, columns, unseen[factor.of])
    return held


def _enough_rows(problem: Problem, law_name: str) -> None:
    free, rows = int(problem.free.sum()), len(problem.log_loss)
    if rows < free:
        raise InputError(
            f"a fit of `{law_name}` to this table needs at least {free} finished runs, "
            f"but got {rows}; train more, or choose a smaller law with --law chinchilla"
        )


def _settle(
    problem: Problem,
    delta: float | str,
    starts: int,
    seed: int,
    between: tuple[float, int],
) -> tuple[Problem, Solution, float, list["Hidden"]]:
    """Solve; hold the factors that noise hides, one by one, weakest first; solve again."""
    hidden: list[Hidden] = []
    while True:
        problem, best, noise = _solve_at(problem, delta, starts, seed)
        weakest = _weakest(problem, best, between)
        if weakest is None:
            return problem, best, noise, hidden
        hidden.append(weakest)
        factor = next(f for f in problem.law.factors if f.of == weakest.column)
        held = {**problem.held, **neutral(factor, problem.columns, weakest.why)}
        problem = replace(problem, held=held)


def _solve_at(
    problem: Problem, delta: float | str, starts: int, seed: int
) -> tuple[Problem, Solution, float]:
    """Solve at the given delta, or at the one that the residuals ask for (three rounds)."""
    best = multi_start(problem, starts, seed)
    for _ in range(3 if delta == "auto" else 0):
        scale = _residual_scale(problem, best.free)
        problem = replace(problem, delta=max(HUBER * scale, SMALLEST_DELTA))
        best = _warm(problem, best)
    return problem, best, _residual_scale(problem, best.free)


def multi_start(problem: Problem, starts: int, seed: int) -> Solution:
    """Solve roughly from every start, then the best ones to the end."""
    rough = [problem.solve(start, ROUGH_STEPS) for start in problem.starts(starts, seed)]
    rough.sort(key=lambda result: result.cost)
    results = [problem.solve(result.x) for result in rough[:POLISHED]]
    best = min(results, key=lambda result: result.cost)
    basins = _basins([result.cost for result in [*rough, best]])
    return _solution(problem, best, basins)


def _basins(costs: list[float]) -> list[dict[str, float]]:
    """Group the objectives that the starts reached: {objective, starts}, the best five."""
    ordered = np.sort(costs)
    groups = np.split(ordered, 1 + np.flatnonzero(np.diff(ordered) > 1e-4 * ordered[:-1] + 1e-15))
    return [{"objective": float(group[0]), "starts": len(group)} for group in groups[:5]]


def _warm(problem: Problem, best: Solution) -> Solution:
    return _solution(problem, problem.solve(best.free), best.basins)


def _solution(problem: Problem, result: OptimizeResult, basins: list[dict[str, float]]) -> Solution:
    return Solution(
        free=result.x,
        objective=problem.objective(result.x),
        gradient_norm=float(result.optimality),
        converged=bool(result.status > 0),
        basins=basins,
    )


def _residual_scale(problem: Problem, free: np.ndarray) -> float:
    """Robust standard deviation of the residuals, corrected for the fitted parameters."""
    residuals = problem.residuals(free)
    rows, fitted = len(residuals), int(problem.free.sum())
    median = float(np.median(np.abs(residuals - np.median(residuals))))
    return 1.4826 * median * float(np.sqrt(rows / max(rows - fitted, 1)))


def _weakest(problem: Problem, best: Solution, between: tuple[float, int]) -> Hidden | None:
    """The factor that the data support least, if noise hides it.

    A factor is hidden where leaving it out costs no more than chance would (an F test on the
    robust objective), or where its whole effect is below the noise between seeds.
    """
    rows, degrees = len(problem.log_loss), len(problem.log_loss) - int(problem.free.sum())
    worst: Hidden | None = None
    effects = _effects(problem, problem.complete(best.free))
    for factor in problem.law.factors:
        names = [parameter.name for parameter in factor.parameters(problem.columns)]
        if names[0] in problem.held or degrees < 1:
            continue
        reason = "leaving it out"
        held = {**problem.held, **neutral(factor, problem.columns, reason)}
        without = replace(problem, held=held)
        kept = problem.complete(best.free)[without.free]
        cost = without.objective(without.solve(kept).x)
        fitted = sum(name not in problem.held for name in names)
        ratio = (cost - best.objective) / fitted / max(best.objective / degrees, 1e-300)
        chance = float(fisher.sf(max(ratio, 0.0), fitted, degrees))
        size = effects[factor.of]["size"]
        small = between[1] > 0 and size < between[0]
        if (chance > SIGNIFICANCE or small) and (worst is None or chance > worst.chance):
            words = f"effect of {100 * size:.2f} % over the {rows} runs is not resolved"
            if between[1]:
                words += f" (noise between seeds {100 * between[0]:.2f} %, p = {chance:.2f})"
            else:
                words += f" (p = {chance:.2f})"
            worst = Hidden(column=factor.of, effect=effects[factor.of], chance=chance, why=words)
    return worst


def _effects(problem: Problem, theta: np.ndarray) -> dict[str, dict[str, float]]:
    """How much each factor moves the loss over the observed runs: {column: {size, low, high}}."""
    _, *own = problem.law.split(theta)
    effects = {}
    for factor, part in zip(problem.law.factors, own, strict=True):
        moved = np.log1p(factor.effect(part, problem.columns, problem.reference)[0])
        effects[factor.of] = {
            "size": float(np.ptp(moved)),
            "low": float(moved.min()),
            "high": float(moved.max()),
        }
    return effects


def _resample(
    problem: Problem, best: Solution, resamples: int, seed: int
) -> tuple[np.ndarray, str]:
    def refit(rows: np.ndarray, log_loss: np.ndarray, held: Mapping[str, Held]) -> np.ndarray:
        columns = {name: column[rows] for name, column in problem.columns.items()}
        resampled = replace(problem, columns=columns, log_loss=log_loss[rows], held=held)
        # The bounds are those of the whole table, whatever rows were drawn.
        object.__setattr__(resampled, "parameters", problem.parameters)
        return resampled.complete(resampled.solve(best.free, 200).x)

    return bootstrap(
        refit,
        log_loss=problem.log_loss,
        fitted=problem.log_loss + problem.residuals(best.free),
        free=int(problem.free.sum()),
        held=problem.held,
        resamples=resamples,
        seed=seed,
    )


def _sweep(problem: Problem, best: Solution) -> list[dict[str, float]]:
    """Public parameters at other thresholds, warm-started: how much the robust loss decides."""
    rows = []
    for delta in DELTA_SWEEP:
        moved = replace(problem, delta=delta)
        theta = moved.complete(moved.solve(best.free).x)
        rows.append({"delta": delta, **problem.law.public(theta, problem.reference)})
    return rows


def _notes(fitted: Fit, hidden: list[Hidden]) -> list[str]:
    notes = [f"{factor.column}: {factor.why}; held at no effect" for factor in hidden]
    explained = tuple(f"{factor.column}_" for factor in hidden)
    for name, held in fitted.held.items():
        steady = name.endswith("_drift") and held.low == held.high
        if not name.startswith(explained) and not name.endswith("_optimum") and not steady:
            shown = "no effect" if held.low == held.high and held.value <= 0 else f"{held.value:g}"
            notes.append(f"{name} held at {shown}: {held.why}")
    parameters = fitted.parameters()
    for factor in fitted.law.factors:
        name = f"{factor.of}_optimum"
        if isinstance(factor, UShape) and name not in fitted.held:
            found = parameters[name]
            ends = (found["value"], found["low"], found["high"])
            note = optimum_status(factor.of, *ends, fitted.ranges[factor.of])[1]
            notes += [note] if note else []
    if fitted.noise_degrees == 0:
        notes.append("as many runs as free parameters: the noise is unknown, intervals too narrow")
    if fitted.size_convention == "total":
        notes.append("N is total parameters: the table has no n_non_embedding")
    if fitted.left_out:
        shown = ", ".join(f"{name} ({why})" for name, why in list(fitted.left_out.items())[:8])
        notes.append(f"{len(fitted.left_out)} rows left out: {shown}")
    return notes


def _status(fitted: Fit, best: Solution) -> str:
    solved = "converged" if best.converged else "stopped before it converged: do not trust it"
    reached = best.basins[0]["starts"] if best.basins else 0
    words = f"{solved}; {reached:.0f} of {fitted.starts} starts reached the best optimum roughly"
    if fitted.held:
        words += f"; held: {', '.join(fitted.held)}"
    return words


def parse_delta(text: str) -> float | str:
    """Read ``auto`` or a positive number.

    Raises
    ------
    InputError
        It is neither.
    """
    if text == "auto":
        return text
    try:
        delta = float(text)
    except ValueError:
        delta = float("nan")
    if not 0 < delta < float("inf"):
        raise InputError(f"`--delta` must be auto or a positive number, but got {text!r}")
    return delta
