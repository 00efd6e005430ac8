"""Small synthetic tables and the densities of their laws, for tests of the posterior."""

import numpy as np
import pandas as pd

import shapelaw
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.posterior_fit import prior_of, source_of, without_weak_holds
from shapelaw.scaling.fitting.priors import Prior
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RUN_GROUP, as_run_table
from shapelaw.scaling.solver.problem import Problem
from shapelaw.scaling.uncertainty.posterior import SourcePosterior

MLP, HIDDEN = "mlp_to_attention", "hidden_over_sqrt_n"
ONE_RATIO = shapelaw.Chinchilla() * shapelaw.UShape(MLP)
TWO_RATIOS = ONE_RATIO * shapelaw.UShape(HIDDEN, drift=True)


def small_table(
    *, rows: int = 24, noise: float = 0.004, seed: int = 0, checkpoints: int = 1,
    scale: float = 1.0, floor: float = 1.8, drift: float = 0.0, optimum: float = 0.1,
) -> pd.DataFrame:  # fmt: skip
    """Draw runs of a known law with two U-shapes.

    The optimum of ``hidden_over_sqrt_n`` is ``optimum`` (N/1e8)^``drift``. The sizes are 1e6 to
    1.6e7 times ``scale``; ``checkpoints`` rows in a row belong to one run.
    """
    generator = np.random.default_rng(seed)
    n = scale * np.resize([1e6, 4e6, 1.6e7], rows)
    d = n * np.resize([5, 15, 15, 45, 135], rows)
    mlp, hidden = np.exp(
        generator.uniform(np.log([[0.5], [0.04]]), np.log([[4], [0.3]]), (2, rows))
    )
    loss = floor + 0.5 * (n / 1e7 / scale) ** -0.35 + 0.6 * (d / 2e8 / scale) ** -0.37
    best = optimum * (n / 1e8) ** drift
    loss *= 1 + 0.05 * (np.log(mlp / 1.3) + 1.3 / mlp - 1)
    loss *= 1 + 0.08 * (np.log(hidden / best) + best / hidden - 1)
    loss *= np.exp(noise * generator.standard_normal(rows))
    table = pd.DataFrame({N: n, D: d, MLP: mlp, HIDDEN: hidden, "loss": loss})
    if checkpoints > 1:
        table[RUN_GROUP] = [f"run-{row // checkpoints}" for row in range(rows)]
    return table


def problem(law: Law, table: pd.DataFrame) -> Problem:
    """Make the problem of a fit with a prior."""
    return without_weak_holds(problem_of(law, as_run_table(table, "auto")))


def density_of(law: Law, table: pd.DataFrame) -> tuple[SourcePosterior, Prior]:
    """Make the density of a table, with clusters if it has runs, and its weak prior."""
    clusters = table[RUN_GROUP].to_numpy() if RUN_GROUP in table else None
    made = problem(law, table)
    return source_of(made, prior_of(made, None), clusters)


def points_of(
    source: SourcePosterior, prior: Prior, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw coordinates (S, f) and latent values (S, latent) in the range of the prior."""
    generator = np.random.default_rng(seed)
    deviation = np.sqrt(np.diag(prior.covariance))
    t = prior.mean + 0.5 * deviation * generator.standard_normal((count, source.free))
    latent = source.first_latent() + 0.5 * generator.standard_normal((count, source.latent))
    return t, latent


def numeric_gradient(function, points: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Differentiate a function of points (S, q) to values (S,) by central differences, (S, q)."""
    columns = []
    for place in range(points.shape[1]):
        shift = np.zeros(points.shape[1])
        shift[place] = step
        columns.append((function(points + shift) - function(points - shift)) / (2 * step))
    return np.stack(columns, axis=1)
