"""Back-test of ``next_runs``; promise: fewer FLOPs than random runs for the same held-out error.

The benchmark back-tests ``next_runs`` on public tables (from the mirror in SHAPELAW_MIRROR), prints
the ratios of its FLOPs to those of a random order, times its choices, and draws
docs/next_runs.png.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from record import finish

from shapelaw.scaling.design.backtests import STARTS, Backtest, backtest
from shapelaw.scaling.design.candidates import Limits, grid_candidates
from shapelaw.scaling.design.goals import Prediction
from shapelaw.scaling.design.next_batch import next_runs
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import RunTable

PICTURE = Path(__file__).parent.parent / "docs" / "next_runs.png"
TARGETS = (
    1.1,
    1.25,
    1.5,
    2.0,
)  # times the error of the whole pool; 1.25 was chosen before the test
COLOURS = {"design": "#0072b2", "random": "#999999", "cheapest": "#d55e00"}  # Okabe and Ito
NAMES = {"design": "next_runs", "random": "random", "cheapest": "cheapest first"}


def table(name: str) -> tuple[str, RunTable]:
    """Load a public table; return the law that its columns support, and its runs."""
    if name == "chinchilla":
        return "chinchilla", load_runs(name, where="not outlier")
    return "width", load_runs(name, where="n_total > 5e7")


def fit_runs(law: str, runs: RunTable) -> Fit:
    return fit(law, runs, starts=16, resamples=0)


def choice_seconds() -> dict[str, float]:
    """Time one choice out of 400, and a whole design, on the Chinchilla points."""
    law, runs = table("chinchilla")
    fitted = fit_runs(law, runs)
    candidates = grid_candidates(fitted, sizes=20, token_counts=20)
    goal = Prediction(at=pd.DataFrame([{"n_non_embedding": 7e10, "tokens": 1.4e12}]))
    scatter = next_runs(fitted, candidates, 1e21, goal=goal, runs=runs).scatter
    seconds = {}
    for most in (1, 32):
        limits, times = Limits(most_runs=most, smallest_gain=0.0, stretch=1e6), []
        for _ in range(20):
            begun = time.perf_counter()
            next_runs(
                fitted, candidates, 1e22, goal=goal, runs=runs, limits=limits, scatter=scatter
            )
            times.append(time.perf_counter() - begun)
        seconds[f"seconds_for_{most}_of_400"] = float(np.median(times))
    return seconds


def run(job: tuple[str, str], *, seeds: int, steps: int) -> tuple[Backtest, float]:
    begun = time.perf_counter()
    law, runs = table(job[0])
    result = backtest(runs, partial(fit_runs, law), seeds=seeds, start=job[1], steps=steps)
    return result, time.perf_counter() - begun


def last_errors(result: Backtest) -> dict[str, float]:
    """Return each strategy's median error over seeds after its last run; it may leave runs out."""
    return {str(name): rows["median"].iloc[-1] for name, rows in result.bands().groupby("strategy")}


def draw(results: dict[tuple[str, str], Backtest]) -> None:
    from matplotlib.figure import Figure

    from shapelaw.scaling.plots.style import log_axis, save_figure

    names = list(dict.fromkeys(name for name, _ in results))
    starts = list(dict.fromkeys(start for _, start in results))
    figure = Figure(figsize=(4.4 * len(names), 3.6 * len(starts)), layout="constrained")
    panels = figure.subplots(len(starts), len(names), squeeze=False)
    for (name, start), result in results.items():
        axes = panels[starts.index(start), names.index(name)]
        for strategy, rows in result.bands().groupby("strategy", sort=False):
            x, colour = rows["budget_flops"], COLOURS[str(strategy)]
            band = 100 * rows["lower_quartile"], 100 * rows["upper_quartile"]
            axes.fill_between(x, *band, color=colour, alpha=0.2, lw=0)
            axes.plot(x, 100 * rows["median"], color=colour, label=NAMES[str(strategy)])
        axes.axhline(125 * result.full_error, color="black", lw=0.8, ls=":")
        bands = result.bands()
        spent = bands["budget_flops"]
        log_axis(axes, "x", spent.min() / 1.03, spent.max() * 1.03, most=4)
        low, high = bands["lower_quartile"].min(), bands["upper_quartile"].max()
        log_axis(axes, "y", 95 * low, 105 * max(high, 1.25 * result.full_error))
        axes.set_title(f"{name}, from a third: {start}")
        axes.set_xlabel("FLOPs, including those of the start")
        axes.set_ylabel("error on the largest runs (%)")
        axes.grid(alpha=0.25)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save_figure(figure, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tables", nargs="+", default=["chinchilla", "gemstones", "mlfoundations"])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    options = parser.parse_args()
    jobs = [(name, start) for name in options.tables for start in options.starts]
    results, figures = {}, {}
    with ProcessPoolExecutor(options.workers) as pool:
        run_job = partial(run, seeds=options.seeds, steps=options.steps)
        for (name, start), (result, seconds) in zip(jobs, pool.map(run_job, jobs), strict=True):
            results[name, start] = result
            figures[f"{name}, {start}"] = {
                "law": table(name)[0],
                "held_out": result.held_out,
                "pool": result.pool,
                "full_error": result.full_error,
                "last_error_median": last_errors(result),
                "ratios": {str(t): result.ratios(t * result.full_error) for t in TARGETS},
                "seconds": seconds,
            }
            print(name, result.summary(), result.bands().to_string(), sep="\n", flush=True)
    draw(results)
    finish(
        "next-runs",
        {
            **choice_seconds(),
            "promise": "ratios to random below 1 at 1.25 times the error of the whole pool",
            "seeds": options.seeds,
            "tables": figures,
        },
    )


if __name__ == "__main__":
    main()
