"""Fit a law to a run table: many starts, a robust loss on ln loss, and what the optimum rests on.

The objective is the sum over runs of Huber(ln L - ln L_predicted), unrounded and without weights
(arXiv 2203.15556, appendix D.4, with the sum instead of the mean). SciPy's ``least_squares`` with
``loss="huber"`` has exactly this cost, and the laws give it closed-form gradients.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import f as fisher

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
from scaling.laws import Columns, D, Law, N, UShape, columns_of, law_named
from scaling.runs import fingerprint, replicate_noise, require_columns, same_losses
from scaling.solving import Problem, Solution, solve_at
from scaling.uncertainty import bootstrap

DELTA_SWEEP = (1e-4, 1e-3, 1e-2, 1e-1)
STARTING_DELTA = 1e-2
SIGNIFICANCE = 0.05


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
    problem = _problem(law, runs, STARTING_DELTA if delta == "auto" else float(delta))
    _enough_rows(problem, law_name)
    between = replicate_noise(runs)
    problem, best, noise, hidden = _settle(problem, delta, starts, seed, between)
    draws, method = _resample(problem, best, resamples, seed)
    fitted = Fit(
        law_name=law_name,
        draws=draws,
        bootstrap=f"{resamples} resamples of {method}",
        delta_rule="1.345 x residual scale" if delta == "auto" else "as given",
        starts=starts,
        seed=seed,
        size_convention=convention,
        status="",
        notes=[],
        seconds=0.0,
        **_about_runs(runs, problem.columns),
        **_about_optimum(problem, best, hidden),
        **_about_noise(problem, noise, between),
    )
    notes, status = _notes(fitted, hidden), _status(fitted, best)
    return replace(fitted, notes=notes, status=status, seconds=time.perf_counter() - begun)


def _problem(law: Law, runs: pd.DataFrame, delta: float) -> Problem:
    columns = columns_of(runs, law.columns)
    return Problem(
        law=law,
        columns=columns,
        log_loss=np.log(runs["loss"].to_numpy(dtype=float)),
        reference={name: float(np.exp(np.log(columns[name]).mean())) for name in (N, D)},
        held=_held_before(law, columns),
        delta=delta,
    )


def _about_runs(runs: pd.DataFrame, columns: Columns) -> dict[str, Any]:
    names = runs.get("run_id", [f"row-{i}" for i in range(len(runs))])
    return {
        "run_ids": [str(name) for name in names],
        "left_out": dict(runs.attrs.get("left_out", {})),
        "ranges": {name: (float(c.min()), float(c.max())) for name, c in columns.items()},
        "data_sha256": fingerprint(runs),
    }


def _about_optimum(problem: Problem, best: Solution, hidden: list["Hidden"]) -> dict[str, Any]:
    theta = problem.complete(best.free)
    return {
        "names": [parameter.name for parameter in problem.parameters],
        "theta": theta,
        "reference": dict(problem.reference),
        "held": dict(problem.held),
        "objective": best.objective,
        "delta": problem.delta,
        "basins": best.basins,
        "gradient_norm": best.gradient_norm,
        "effects": _effects(problem, theta) | {h.column: h.effect for h in hidden},
        "delta_sweep": _sweep(problem, best),
    }


def _about_noise(problem: Problem, noise: float, between: tuple[float, int]) -> dict[str, Any]:
    """The noise of a new run: around the law, or between seeds where that is larger and known."""
    deviation, degrees = between
    return {
        "noise": max(noise, deviation) if degrees > 2 else noise,
        "noise_degrees": max(len(problem.log_loss) - int(problem.free.sum()), 0),
        "replicate_noise": deviation if degrees else None,
        "replicate_degrees": degrees,
    }


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
        problem, best, noise = solve_at(problem, delta, starts, seed)
        weakest = _weakest(problem, best, between)
        if weakest is None:
            return problem, best, noise, hidden
        hidden.append(weakest)
        factor = next(f for f in problem.law.factors if f.of == weakest.column)
        held = {**problem.held, **neutral(factor, problem.columns, weakest.why)}
        problem = replace(problem, held=held)


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
