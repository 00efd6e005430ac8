"""Coverage of the 95 % intervals that a fit without a prior has, method by method.

Every table is synthetic, with known parameters of the law and a known noise distribution. For each
case and method the benchmark prints the share of tables whose interval contains the true value,
with the binomial 95 % interval of this share. No factor tests, drifts or automatic thresholds
are involved; ``coverage.py`` goes through the whole fit.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from record import RESULTS, finish
from scipy.stats import binomtest

from shapelaw.scaling.fitting.run_intervals import new_run_intervals
from shapelaw.scaling.laws.law import reference_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N, columns_of
from shapelaw.scaling.solver.multistart import HUBER, new_run_scale
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.intervals import bca, normal_interval, percentile
from shapelaw.scaling.uncertainty.profiles import profile
from shapelaw.scaling.uncertainty.resampling import bootstrap, method_for

TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
SHAPE = {
    "hidden_over_sqrt_n_curvature": 0.15,
    "hidden_over_sqrt_n_optimum": 0.08,
    "mlp_to_attention_curvature": 0.05,
    "mlp_to_attention_optimum": 1.6,
    "gqa_slope": 0.006,
}


PROFILED = ("loss at 4N, 4D",)  # a profile takes 0.1 to 0.3 s


@dataclass(frozen=True, kw_only=True)
class Case:
    """Design, law and noise of simulated tables; each of ``clusters`` shares a random shift."""

    law: str = "chinchilla"
    sizes: int = 6
    tokens: int = 10
    shapes: int = 1
    noise: float = 0.005
    degrees: float = np.inf
    clusters: int = 0
    objective: str = "huber"
    truth: dict[str, float] = field(default_factory=lambda: dict(TRUTH))


CASES = {
    "chinchilla, 60 rows, normal": Case(),
    "chinchilla, 60 rows, heavy tails (t, 3)": Case(degrees=3.0),
    "conditional, 90 rows, normal": Case(
        law="conditional-steady", sizes=3, tokens=3, shapes=10, truth=TRUTH | SHAPE
    ),
    "conditional, 36 rows, normal": Case(
        law="conditional-steady", sizes=3, tokens=3, shapes=4, truth=TRUTH | SHAPE, noise=0.003
    ),
    "chinchilla, 60 clusters of 4": Case(sizes=20, tokens=12, clusters=60),
    "chinchilla, 12 clusters of 10": Case(sizes=12, tokens=10, clusters=12),
}


def design(case: Case) -> pd.DataFrame:
    """Make the rows of a table: a grid of sizes and tokens, with random ratios."""
    generator = np.random.default_rng(7)
    sizes = np.geomspace(5e7, 5e9, case.sizes)
    tokens = np.geomspace(1e9, 2e11, case.tokens)
    rows = [(n, d) for n in sizes for d in tokens for _ in range(case.shapes)]
    frame = pd.DataFrame(rows, columns=[N, D])
    for name, low, high in (
        ("hidden_over_sqrt_n", 0.03, 0.25),
        ("mlp_to_attention", 0.4, 6.0),
        ("gqa", 1.0, 8.0),
    ):
        frame[name] = np.exp(generator.uniform(np.log(low), np.log(high), len(frame)))
    if case.clusters:
        frame["cluster"] = np.arange(len(frame)) // (len(frame) // case.clusters)
    return frame


def noise(case: Case, frame: pd.DataFrame, generator: np.random.Generator) -> np.ndarray:
    """Draw the noise of ln loss, of which a cluster shares half of the variance."""
    if np.isfinite(case.degrees):
        drawn = generator.standard_t(case.degrees, len(frame))
        return case.noise * drawn / np.sqrt(case.degrees / (case.degrees - 2))
    errors = generator.standard_normal(len(frame))
    if case.clusters:
        shared = generator.standard_normal(case.clusters)[frame["cluster"]]
        errors = (errors + shared) / np.sqrt(2)
    return case.noise * errors


def simulate(task: tuple[str, int, int, int]) -> dict[str, list[bool]]:
    """Test which intervals contain the true value, for some tables of a case."""
    name, first, tables, resamples = task
    case = CASES[name]
    frame, law = design(case), law_named(case.law)
    columns = columns_of(frame, law.columns)
    at = reference_of(columns)
    theta = law.internal(case.truth, at)
    target = {key: np.array([value[0]]) for key, value in columns.items()}
    target |= {N: np.array([columns[N].max() * 4]), D: np.array([columns[D].max() * 4])}
    beyond = law.program(target, at)
    quantities = {"alpha": lambda t: t[:, 2], "loss at 4N, 4D": lambda t: beyond.log_loss(t)[:, 0]}
    if len(theta) > 5:
        quantities["optimum of MLP ratio"] = lambda t: t[:, 8]
    truths = {key: float(function(theta[None])[0]) for key, function in quantities.items()}
    exact = law.program(columns, at).log_loss(theta[None])[0]
    clusters = frame["cluster"].to_numpy() if case.clusters else None
    hits: dict[str, list[bool]] = {}
    for table in range(first, first + tables):
        generator = np.random.default_rng([table, 11])
        observed = exact + noise(case, frame, generator)
        problem = Problem(
            law=law, columns=columns, log_loss=observed, reference=at, held={},
            objective=FitObjective(kind=case.objective, delta=HUBER * case.noise),
        )  # fmt: skip
        best = solved(problem, theta)
        free = len(theta)
        methods = {method_for(len(frame), free, clusters)}
        methods |= {"cluster", "wild-cluster"} if case.clusters else {"rows", "residuals"}
        for method in sorted(methods):
            draws = bootstrap(
                problem, best, method=method, resamples=resamples, seed=table, clusters=clusters
            )
            for key, function in quantities.items():
                interval = percentile(function, best, draws, 95.0)
                hits.setdefault(f"{key} | bootstrap of {method}", []).append(
                    interval.low <= truths[key] <= interval.high
                )
                if method in ("rows", "cluster"):
                    interval = bca(problem, best, function, draws, clusters=clusters)
                    hits.setdefault(f"{key} | BCa of {method}", []).append(
                        interval.low <= truths[key] <= interval.high
                    )
            scale = new_run_scale(problem.log_residuals(best.theta), free)
            spread = beyond.log_loss(draws)
            low, high = new_run_intervals(spread, scale, len(frame) - free)[0]
            new = truths["loss at 4N, 4D"] + noise(case, frame, generator)[0]
            hits.setdefault(f"new run at 4N, 4D | bootstrap of {method}", []).append(
                low <= new <= high
            )
        for key, function in quantities.items():
            methods_of = [normal_interval(problem, best, function, clusters=clusters)]
            if key in PROFILED:
                methods_of.append(profile(problem, best, function, clusters=clusters))
            for interval in methods_of:
                hits.setdefault(f"{key} | {interval.method}", []).append(
                    interval.low <= truths[key] <= interval.high
                )
    return hits


def solved(problem: Problem, theta: np.ndarray) -> Solution:
    """Find the optimum next to the true parameters; ``fitting.py`` measures multi-start."""
    minimum = problem.minimise(theta[None])
    return Solution(
        theta=minimum.theta[0], cost=float(minimum.cost[0]), gradient_norm=0.0, converged=True,
        basins=[{"objective": float(minimum.cost[0]), "starts": 1}], others=minimum.theta,
    )  # fmt: skip


def document(resamples: int, figures: dict[str, object]) -> None:
    """Write the finished cases, and those of an earlier run that were not run again."""
    path = RESULTS / "interval_coverage.json"
    before = json.loads(path.read_text())["cases"] if path.exists() else {}
    cases = {name: case for name, case in before.items() if name in CASES} | figures
    finish("interval_coverage", {"resamples": resamples, "nominal": 95.0, "cases": cases})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--case", choices=CASES, action="append")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    for name in options.case or CASES:
        begun = time.perf_counter()
        step = max(1, options.tables // (8 * options.processes))
        tasks = [(name, i, step, options.resamples) for i in range(0, options.tables, step)]
        hits: dict[str, list[bool]] = {}
        with ProcessPoolExecutor(options.processes) as pool:
            for part in pool.map(simulate, tasks):
                for key, values in part.items():
                    hits.setdefault(key, []).extend(values)
        rows = {}
        for key, values in sorted(hits.items()):
            interval = binomtest(sum(values), len(values)).proportion_ci(0.95)
            rows[key] = {
                "coverage": round(100 * sum(values) / len(values), 2),
                "binomial_95": [round(100 * interval.low, 2), round(100 * interval.high, 2)],
            }
            shown = f"{rows[key]['coverage']:6.2f} % {rows[key]['binomial_95']}"
            print(f"{name:42} {key:46} {shown}", flush=True)
        figures[name] = {"tables": len(values), "methods": rows}
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        document(options.resamples, figures)  # so that a killed benchmark keeps its finished cases


if __name__ == "__main__":
    main()
