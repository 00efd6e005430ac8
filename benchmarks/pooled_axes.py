"""Axes of the pooled law: hidden size, depth and head dimension, compared on runs left out.

At fixed N and MLP ratio, hidden size, depth and the width of attention are tied: two of them
determine the third. The benchmark pools the three sources of benchmarks/pooled_law.py with one law
for each choice of axes, and compares the laws in two ways. First, a pool predicts the shape effects
of a table that it has not seen: each of its own sources, left out once, and two tables that are in
no pool. Second, a law alone is fitted to the smaller half of the sizes of a table and predicts the
larger ones. A pool is the sum of normal approximations to the fits of its sources, because a joint
fit of every law without every source would take hours. The benchmark prints both as Markdown tables
and writes results/pooled-axes.json, which keeps what an earlier call has finished. Public tables
come from the mirror in SHAPELAW_MIRROR or are downloaded.
"""

import argparse
import json
import os
from contextlib import redirect_stdout
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
import pooled_law
from record import RESULTS, finish

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.pooled import REFERENCE_SIZE, PooledFit, with_sources
from shapelaw.scaling.fitting.priors import (
    BETWEEN,
    coordinates_of,
    kind_of,
    moved_to,
    shape_names,
    weak_shape_prior,
)
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import RunTable

PATH = RESULTS / "pooled-axes.json"
REST = "UShape('mlp_to_attention', drift=True) * GroupedQuery()"
LAWS = {  # axes -> the law that has them, beside MLP ratio and GQA
    "d/√N": "conditional",
    "d/√N, depth": "conditional+depth",
    "d/√N, head": "conditional+head",
    "depth": f"Chinchilla() * UShape('num_hidden_layers', drift=True) * {REST}",
    "d/L": f"Chinchilla() * UShape('aspect_ratio', drift=True) * {REST}",
    "d/√N, depth, head": "conditional+depth+head",
}
RATIOS = ("num_hidden_layers", "head_dim", "aspect_ratio")
# Tables to predict -> levels that the shapes of a group share. In mlfoundations-grid tokens follow
# N with embeddings, so that few shapes have equal N and D.
TESTS = {
    "proxies": ["size", "tokens_level"],
    "gemstones": ["size", "tokens_level"],
    "mlfoundations-grid": ["size"],
    pooled_law.PAPER: ["size", "tokens_level"],
    "quickstart": ["size", "tokens_level"],
}
DRAWS = 1000  # of a pool
ALONE = ("proxies", "gemstones", "mlfoundations-grid", "quickstart")
NONE = "no shape term"
ALONE_LAWS = {NONE: "chinchilla"} | LAWS


def split_by_size(runs: RunTable) -> tuple[RunTable, RunTable]:
    """Split a table into the runs of the smaller half of its sizes and those of the larger half.

    A middle size counts as smaller.
    """
    order = pd.Series(runs.sizes).groupby(runs.size_level).mean().sort_values().index
    larger = np.isin(runs.size_level, order[(len(order) + 1) // 2 :])
    return runs.take(~larger), runs.take(larger)


def predict_larger(law: str, runs: RunTable, starts: int) -> dict[str, float]:
    """Fit the smaller half of the sizes and predict the larger: error of ln loss and of effects."""
    smaller, larger = split_by_size(runs)
    fitted = fit(law, smaller, resamples=0, starts=starts)
    error = pd.Series(np.log(fitted.central(larger) / larger.losses))
    centred = error - error.groupby([larger.size_level, larger.token_level]).transform("mean")
    return {
        "fitted": len(smaller),
        "larger": len(larger),
        "error_percent": 100 * float(np.sqrt((error**2).mean())),
        "effect_error_percent": 100 * float(np.sqrt((centred**2).mean())),
    }


class Results:
    """Figures by law and table, written whenever one is finished and read by the next call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        before = json.loads(PATH.read_text()) if PATH.exists() else {}
        kept = before if before.get("settings") == settings else {}
        self.settings = settings
        self.unseen: dict[str, dict[str, Any]] = kept.get("unseen_tables", {})
        self.larger: dict[str, dict[str, Any]] = kept.get("larger_sizes", {})

    def write(self) -> None:
        """Write all figures."""
        with redirect_stdout(None):
            finish("pooled-axes", {
                "settings": self.settings, "laws": LAWS, "unseen_tables": self.unseen,
                "larger_sizes": self.larger,
            })  # fmt: skip


def combine(law_name: str, fits: dict[str, Fit], runs: dict[str, RunTable], seed: int) -> PooledFit:
    """Pool the fits of several sources by normal approximations of their posteriors.

    A fit says about its shape parameters what its posterior has beyond its own prior. Deviations
    between sources are normal with the variance that their half-normal prior has.

    Parameters
    ----------
    law_name
        Law of the fits.
    fits
        Fit of every source alone, with draws and a weak prior.
    runs
        Table of every source.
    seed
        Seed of the draws.
    """
    law = law_named(law_name)
    names = shape_names(law)
    problems = {name: problem_of(law, table) for name, table in runs.items()}
    given = weak_shape_prior(list(problems.values()))
    widths = np.array([BETWEEN[kind_of(name)] for name in names])
    precision = np.linalg.inv(given.covariance)
    moment = precision @ given.mean
    identity = np.eye(len(names))
    for name, fitted in fits.items():
        about, own_moment = information(fitted, names)
        shrink = np.linalg.inv(identity + about * widths**2)  # marginal over the deviation
        move = moved_to(
            law, names, identity, {N: REFERENCE_SIZE}, problems[name].reference
        ).T  # fmt: skip
        precision += move.T @ shrink @ about @ move
        moment += move.T @ shrink @ own_moment
    covariance = np.linalg.inv(precision)
    generator = np.random.default_rng(seed)
    shared = generator.multivariate_normal(
        covariance @ moment, (covariance + covariance.T) / 2, DRAWS
    )
    between = widths * np.abs(generator.standard_normal(shared.shape))
    empty = PooledFit(
        law_name=law_name, names=names, reference_size=REFERENCE_SIZE, shared=shared,
        between=between, sources={}, notes=[], fits={},
    )  # fmt: skip
    return with_sources(empty, fits)


def information(fitted: Fit, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the precision (k, k) that the runs of a fit add to its prior, and precision · mean."""
    places = [fitted.names.index(name) for name in names]
    coordinates = coordinates_of(fitted.law, 1.0).take(places)
    t = coordinates.t(fitted.draws[:, places])
    prior = np.array([1 / fitted.prior[name]["deviation"] ** 2 for name in names])
    mean = np.array([fitted.prior[name]["mean"] for name in names])
    posterior = np.linalg.inv(np.cov(t, rowvar=False).reshape(len(names), -1))
    # In units of the prior; rounding and the number of draws may leave negative precisions.
    scale = np.sqrt(prior)
    values, vectors = np.linalg.eigh(posterior / np.outer(scale, scale) - np.eye(len(names)))
    added = (vectors * np.maximum(values, 0.0)) @ vectors.T * np.outer(scale, scale)
    return added, (added + np.diag(prior)) @ t.mean(axis=0) - prior * mean


def measure_unseen(results: Results, axes: str, tables: dict[str, RunTable]) -> None:
    """Predict the effects of every table from a pool without it."""
    if axes in results.unseen:
        return
    law, seed = LAWS[axes], results.settings["seed"]
    fits = {key: fit(law, tables[key], **results.settings) for key in pooled_law.SOURCES}
    done: dict[str, Any] = {}
    for key in TESTS:
        members = {name: fitted for name, fitted in fits.items() if name != key}
        pooled = combine(law, members, {name: tables[name] for name in members}, seed)
        cells = pooled_law.shape_effects(tables[key], TESTS[key], RATIOS)
        done[key] = pooled_law.score_effects(pooled, cells, seed)
        print(axes, key, done[key], flush=True)
    pooled = combine(law, fits, {name: tables[name] for name in fits}, seed)
    done["shared"] = pooled.frame().to_dict("records")
    done["decisions"] = pooled_law.decisions(pooled, seed)
    done["notes"] = pooled.notes
    results.unseen[axes] = done
    results.write()


def markdown_of(results: Results) -> str:
    """Write the two Markdown tables of docs/pooled.md."""
    head = ["| axes |", *(f" `{key}` |" for key in TESTS)]
    first = ["".join(head), "|---" * (len(TESTS) + 1) + "|"]
    plain = next(iter(results.unseen.values()))
    cells = [f" {_million(plain[key]['mean_squared_error_without_shape'])} |" for key in TESTS]
    first.append(f"| {NONE} |" + "".join(cells))
    for axes, found in results.unseen.items():
        cells = [
            f" {_million(found[key]['mean_squared_error'])} "
            f"({found[key]['rank_correlation']:.2f}) |".replace("-", "−")
            for key in TESTS
        ]
        first.append(f"| {axes} |" + "".join(cells))
    second = ["| axes |" + "".join(f" `{key}` |" for key in ALONE)]
    second.append("|---" * (len(ALONE) + 1) + "|")
    for axes in (axes for axes in ALONE_LAWS if axes in results.larger):
        found = results.larger[axes]
        cells = [
            f" {found[key]['error_percent']:.2f} ({found[key]['effect_error_percent']:.2f}) % |"
            for key in ALONE
        ]
        second.append(f"| {axes} |" + "".join(cells))
    return "\n\n".join("\n".join(lines) for lines in (first, second))


def _million(value: float) -> str:
    """Format a mean squared error of ln loss in units of 1e-6."""
    return f"{1e6 * value:.1f}" if value < 1e-4 else f"{1e6 * value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=512)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--axes", nargs="+", choices=LAWS, default=list(LAWS))
    options = parser.parse_args()
    results = Results(
        {"resamples": options.resamples, "starts": options.starts, "seed": options.seed}
    )
    tables = {key: pooled_law.load(key) for key in TESTS}
    for axes in options.axes:
        measure_unseen(results, axes, tables)
    for axes in (NONE, *options.axes):
        done = results.larger.setdefault(axes, {})
        for key in ALONE:
            if key not in done:
                done[key] = predict_larger(ALONE_LAWS[axes], tables[key], options.starts)
                results.write()
    print(markdown_of(results))


if __name__ == "__main__":
    main()
