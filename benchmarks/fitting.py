"""CPU time and exactness of fits, with other packages; promise: 4,500 starts in 1.5 s.

The 240 Chinchilla points (sum of Huber, delta 1e-3 on ln loss) are fitted from the 4,500 starts of
arXiv 2404.10102 and on 4,000 bootstrap resamples; a width-depth law is fitted to the Gemstones from
135,000 starts with intervals. Other packages fit the same points where they are installed
(``pip install chinchilla iminuit``). Seconds are CPU seconds of one core, children included.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import argparse
import importlib.util
import resource
import tempfile
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from record import finish
from scipy.optimize import least_squares, minimize

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.solver.multistart import finish as finished
from shapelaw.scaling.solver.multistart import multi_start
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem
from shapelaw.scaling.uncertainty.resampling import bootstrap

DELTA = 1e-3
GOLDEN = 0.001018274017801  # lowest objective known for the Chinchilla points


def cpu() -> float:
    """Return the CPU seconds of this process and of its finished children."""
    process, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return process.ru_utime + process.ru_stime + children.ru_utime + children.ru_stime


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; return its result and its CPU seconds."""
    begun = cpu()
    answer = function()
    return answer, round(cpu() - begun, 3)


def grid() -> np.ndarray:
    """Return the 4,500 starts of arXiv 2404.10102's notebook: ln A, ln B, ln E, alpha, beta."""
    steps = np.arange(0, 30, 5)
    exponents = np.arange(0, 2.5, 0.5)
    return np.array(list(product(steps, steps, np.arange(-1, 1.5, 0.5), exponents, exponents)))


def ours(problem: Problem) -> dict[str, Any]:
    """Time our fits from the grid of starts, and our bootstrap."""
    n0, d0 = (float(np.log(problem.reference[name])) for name in problem.law.columns)
    a, b, e, alpha, beta = grid().T
    starts = np.stack([e, a - alpha * n0, alpha, b - beta * d0, beta], axis=1)
    finished(problem, multi_start(problem, starts[:64]))  # warm up
    staged, seconds = timed(lambda: finished(problem, multi_start(problem, starts)))
    full, slow = timed(lambda: multi_start(problem, starts, full=True))
    draws, resampling = timed(
        lambda: bootstrap(problem, staged, method="rows", resamples=4000, seed=0)
    )
    return {
        "staged_4500_starts": {
            "cpu_s": seconds, "promise_s": 1.5, "objective": staged.cost,
            "gap_to_golden": staged.cost - GOLDEN, "basins": staged.basins,
            "scipy_disagrees": staged.disagreement,
        },
        "full_4500_starts": {"cpu_s": slow, "objective": full.cost, "basins": full.basins[:2]},
        "bootstrap_4000": {
            "cpu_s": resampling, "promise_s": 1.5, **certified(problem, draws),
        },
    }  # fmt: skip


def certified(problem: Problem, draws: np.ndarray) -> dict[str, float]:
    """Compare fits of resamples with the best of 16 starts, and the first 100 with SciPy."""
    rows = len(problem.log_loss)
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=len(draws))
    resampled = problem.but(weights=counts.astype(float))
    costs = resampled.data.cost(draws)
    lowest = costs.copy()
    smooth = resampled.but(objective=FitObjective(delta=0.05))
    for start in problem.starts(16, 1):
        rough = smooth.minimise(np.repeat(start[None], len(draws), axis=0), steps=16, reweighted=16)
        lowest = np.minimum(lowest, resampled.minimise(rough.theta).cost)
    gaps = []
    for resample in range(100):
        chosen = np.repeat(np.arange(rows), counts[resample])
        columns = {name: column[chosen] for name, column in problem.columns.items()}
        plain = Problem(
            law=problem.law, columns=columns, log_loss=problem.log_loss[chosen],
            reference=problem.reference, held={}, objective=problem.objective,
        )  # fmt: skip
        starts = problem.starts(2, resample)
        gaps.append(costs[resample] - min(plain.solve(start).cost for start in starts))
    return {
        "largest_gap_to_16_starts": float((costs - lowest).max()),
        "largest_gap_to_scipy_first_100": float(max(gaps)),
    }


def gemstones() -> dict[str, Any]:
    """Time the width-depth law on the Gemstones."""
    runs = load_runs("gemstones")
    found, seconds = timed(
        lambda: fit("width-depth", runs, delta=1e-4, size="total", starts=135_000, resamples=1000)
    )
    return {
        "rows": len(runs), "starts": 135_000, "resamples": 1000, "cpu_s": seconds, "promise_s": 60,
        "objective": found.objective, "basins": found.basins, "parameters": found.parameters(),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }  # fmt: skip


def peers(runs: pd.DataFrame, quick: bool) -> dict[str, Any]:
    """Time other procedures on the same points, from a fraction of their starts."""
    n, d = np.log(runs["n_total"].to_numpy()), np.log(runs["tokens"].to_numpy())
    y = np.log(runs["loss"].to_numpy())

    def predicted(x: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = x
        parts = np.stack([a - alpha * n, b - beta * d, np.full(len(n), e)])
        top = parts.max(axis=0)
        return top + np.log(np.exp(parts - top).sum(axis=0))

    def objective(x: np.ndarray) -> float:
        size = np.abs(predicted(x) - y)
        inside = size <= DELTA
        return float(np.where(inside, size**2 / 2, DELTA * (size - DELTA / 2)).sum())

    share = 45 if quick else 9
    starts = grid()[::share]
    found: dict[str, Any] = {}
    costs, seconds = timed(
        lambda: [minimize(objective, start, method="L-BFGS-B").fun for start in starts]
    )
    found["L-BFGS-B, numeric gradient (the notebook's procedure)"] = {
        "starts": len(starts), "cpu_s": seconds, "cpu_s_for_4500": round(seconds * share, 1),
        "gap": min(costs) - GOLDEN, "arrived": float((np.array(costs) < GOLDEN + 1e-9).mean()),
    }  # fmt: skip
    costs, seconds = timed(
        lambda: [
            least_squares(lambda x: predicted(x) - y, start, loss="huber", f_scale=DELTA).cost
            for start in starts
        ]
    )
    found["SciPy least_squares multi-start, no Jacobian"] = {
        "starts": len(starts), "cpu_s": seconds, "cpu_s_for_4500": round(seconds * share, 1),
        "gap": min(costs) - GOLDEN, "arrived": float((np.array(costs) < GOLDEN + 1e-9).mean()),
    }  # fmt: skip
    generator = np.random.default_rng(0)
    best = minimize(objective, [6, 7.6, 0.6, 0.35, 0.37], method="L-BFGS-B").x

    def resample(_: int) -> float:
        chosen = generator.integers(len(y), size=len(y))

        def resampled(x: np.ndarray) -> float:
            size = np.abs((predicted(x) - y)[chosen])
            return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())

        return float(minimize(resampled, best, method="L-BFGS-B").fun)

    count = 40 if quick else 200
    _, seconds = timed(lambda: [resample(i) for i in range(count)])
    found["bootstrap by L-BFGS-B from the optimum"] = {
        "resamples": count,
        "cpu_s": seconds,
        "cpu_s_for_4000": round(seconds * 4000 / count, 1),
    }
    if importlib.util.find_spec("iminuit"):
        found["iminuit, one start"] = one_start_of_iminuit(objective)
    found["chinchilla (PyPI)"] = chinchilla_package(runs, share) if _has("chinchilla") else MISSING
    found["simple-scaling-laws (PyPI)"] = (
        "not measured here" if _has("simple_scaling_laws") else "needs Python 3.12 or later"
    )
    return found


MISSING = "not installed"


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def one_start_of_iminuit(objective: Callable[[np.ndarray], float]) -> dict[str, float]:
    """Time iminuit from one start near the optimum."""
    from iminuit import Minuit

    def run() -> float:
        minuit = Minuit(objective, np.array([6.0, 7.6, 0.6, 0.35, 0.37]))
        minuit.errordef, minuit.strategy = 0.5, 2
        minuit.migrad(ncall=20000)
        return float(minuit.fval)

    value, seconds = timed(run)
    return {"starts": 1, "cpu_s": seconds, "gap": value - GOLDEN}


def chinchilla_package(runs: pd.DataFrame, share: int) -> dict[str, float]:
    """Time the fit of the package ``chinchilla`` with log-Huber, from at most 5^5 starts."""
    from chinchilla import Chinchilla  # type: ignore[import-not-found]
    from chinchilla._metrics import log_huber  # type: ignore[import-not-found]

    points = 5 if share < 20 else 3
    axes = {"e": (-1, 1), "a": (0, 25), "b": (0, 25), "alpha": (0, 2), "beta": (0, 2)}
    with tempfile.TemporaryDirectory() as folder:
        model = Chinchilla(
            project_dir=folder + "/project",
            param_grid={name: np.linspace(*ends, points) for name, ends in axes.items()},
            loss_fn=lambda y, p: log_huber(y, p, delta=DELTA),
            log_level=50,
        )
        table = pd.DataFrame({"N": runs["n_total"], "D": runs["tokens"], "loss": runs["loss"]})
        model.database.df = table.assign(C=6 * table["N"] * table["D"]).astype(float)
        model.visualizer.optim = lambda *args, **kwargs: None
        _, seconds = timed(lambda: model.fit(parallel=False))
    at = np.log(
        model.E
        + model.A / table["N"].to_numpy() ** model.alpha
        + model.B / table["D"].to_numpy() ** model.beta
    )
    size = np.abs(at - np.log(table["loss"].to_numpy()))
    cost = np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum()
    return {"starts": points**5, "cpu_s": seconds, "gap": float(cost - GOLDEN), "A": float(model.A)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="Use fewer starts for the other packages."
    )
    quick = parser.parse_args().quick
    runs = load_runs("chinchilla", where="not outlier", size="total")
    problem = problem_of(law_named("chinchilla"), runs, FitObjective(), DELTA)
    figures = {"ours": ours(problem), "gemstones": gemstones(), "peers": peers(runs.frame, quick)}
    finish("fitting", figures)


if __name__ == "__main__":
    main()
