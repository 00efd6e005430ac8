"""Back-test of ``next_runs`` with a decision as its goal, on public tables.

For each cut of a table the most different pair of larger shapes is to be decided. Each strategy
begins with the same third of the smaller runs and adds runs for a share of the cost of the others.
The law is fitted again, and its stated probability is scored against the measured losses. A line of
results/decision-runs.jsonl has one fit; lines that exist are not measured again, so that a stopped
benchmark goes on. Public tables come from the mirror in SHAPELAW_MIRROR or are downloaded.
"""

import argparse
import json
import os
from collections.abc import Iterator

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from decisions import load
from record import RESULTS

from shapelaw.scaling.checks.decision_cases import DecisionCase, decision_cases
from shapelaw.scaling.decisions.decide import decide
from shapelaw.scaling.design.candidates import Limits, costs
from shapelaw.scaling.design.goals import Decision
from shapelaw.scaling.design.next_batch import next_runs
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import fit_quickly
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable

PATH = RESULTS / "decision-runs.jsonl"
TABLES = ("proxies", "gemstones", "mlfoundations", "quickstart")
STRATEGIES = ("design", "random", "cheapest")
BOOTSTRAP = 4000


def in_order(price: np.ndarray, budget: float, order: np.ndarray) -> list[int]:
    """Choose runs in an order, each if the remaining budget pays for it."""
    chosen: list[int] = []
    for position in order:
        if price[position] <= budget:
            budget -= price[position]
            chosen.append(int(position))
    return chosen


def choose(
    strategy: str, fitted: Fit, tables: tuple[RunTable, RunTable], pair: pd.DataFrame,
    budget: float, generator: np.random.Generator,
) -> list[int]:  # fmt: skip
    """Choose positions in the pool for the decision between the shapes of a pair."""
    trained, pool = tables
    price = costs(pool)
    if strategy == "random":
        return in_order(price, budget, generator.permutation(len(pool)))
    cheapest = np.argsort(price, kind="stable")
    if strategy == "cheapest":
        return in_order(price, budget, cheapest)
    limits = Limits(stretch=1e6, most_runs=len(pool), most_repeats=1, smallest_gain=0.0)
    rows = pool.frame.reset_index(drop=True)
    goal = Decision(among=pair)
    design = next_runs(fitted, rows, budget, goal=goal, runs=trained, limits=limits)
    return list(design.rows.index)


def scored(fitted: Fit, pair: pd.DataFrame, losses: np.ndarray) -> dict[str, float]:
    """Score the stated decision between two shapes against their measured losses."""
    stated = decide(fitted, pair)
    lower = int(losses.argmin())
    predicted = float(np.diff(np.log(fitted.expected(pair)))[0])
    return {
        "p_lower": float(stated["p_best_run"].iloc[lower]),
        "error": abs(predicted - float(np.diff(np.log(losses))[0])),
    }


def replays(
    runs: RunTable, case: DecisionCase, seed: int, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Replay every strategy from one start set."""
    pool = runs.take(case.fitted)
    pool = pool.take(np.argsort(costs(pool), kind="stable"))
    generator = np.random.default_rng(seed)
    begin = np.sort(generator.permutation(round(2 * len(pool) / 3))[: round(len(pool) / 3)])
    left = np.setdiff1d(np.arange(len(pool)), begin)
    budget = options.share * float(costs(pool)[left].sum())
    pair = runs.frame.iloc[[case.first[0], case.second[0]]]
    losses = np.array([runs.losses[rows].mean() for rows in (case.first, case.second)])
    settings = {"starts": options.starts, "resamples": options.resamples, "prior": "weak"}
    trained = pool.take(begin)
    fitted = fit_quickly("conditional", trained, **settings)
    yield {"strategy": "start", "runs": len(begin), **scored(fitted, pair, losses)}
    for strategy in STRATEGIES:
        chosen = choose(
            strategy, fitted, (trained, pool.take(left)), pair, budget, np.random.default_rng(seed)
        )
        rows = np.concatenate((begin, left[chosen])).astype(int)
        after = fit_quickly("conditional", pool.take(rows), **settings)
        yield {"strategy": strategy, "runs": len(rows), **scored(after, pair, losses)}


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Compare the design with each other strategy: mean differences with 90 % intervals."""
    lines = lines.assign(brier=(1 - lines["p_lower"]) ** 2)
    keys = ["table", "cut", "seed"]
    rows = []
    for table, part in (*lines.groupby("table", sort=False), ("all", lines)):
        for score in ("brier", "error"):
            wide = part.pivot_table(values=score, index=keys, columns="strategy").dropna()
            for other in ("random", "cheapest", "start"):
                if len(wide) and other in wide and "design" in wide:
                    gap = (wide["design"] - wide[other]).to_numpy()
                    drawn = np.random.default_rng(0).integers(len(gap), size=(BOOTSTRAP, len(gap)))
                    low, high = np.percentile(gap[drawn].mean(axis=1), (5, 95))
                    rows.append({
                        "table": table, "score": score, "replays": len(gap), "against": other,
                        "design": wide["design"].mean(), "other": wide[other].mean(),
                        "difference": gap.mean(), "low": low, "high": high,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.1, help="of the cost of the other runs")
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--resamples", type=int, default=128)
    options = parser.parse_args()
    known = set()
    if PATH.exists():
        known = {tuple(json.loads(line)["key"]) for line in PATH.read_text().splitlines()}
    for seed in range(options.seeds):
        for name in options.tables:
            runs = load(name, "non-embedding", "non-embedding")
            cases = decision_cases(runs, name) if runs is not None else []
            widest = {case.cut: case for case in sorted(cases, key=lambda case: case.distance)}
            for cut, case in sorted(widest.items()):
                key = (name, f"{cut:.6g}", seed, options.share, options.resamples)
                if key in known:
                    continue
                try:
                    lines = list(replays(runs, case, seed, options))
                except InputError as error:
                    print(*key, error, sep=" | ", flush=True)
                    continue
                with PATH.open("a") as file:
                    for line in lines:
                        about = {"key": key, "table": name, "cut": cut, "seed": seed}
                        file.write(json.dumps(about | line) + "\n")
                        print(*key, line, flush=True)
    lines = pd.DataFrame([json.loads(line) for line in PATH.read_text().splitlines()])
    print(summary(lines).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
