"""Central value of a prediction: equation, equation with mean deviation, or median of the draws.

A law is fitted to the smaller models of a table and predicts the larger ones, by every cut of
benchmarks/decisions.py that leaves two sizes, and without the top fifth of compute as in
benchmarks/beyond_data.py. Each cut gives the root mean square error of ln loss over the larger
models for three central values: the equation at the mode of the posterior, the same times the mean
deviation that the runs show nearby (the value of ``predict``), and the median of the draws. The
benchmark prints a Markdown table and writes results/central-value.json. Public tables come from the
mirror in SHAPELAW_MIRROR or are downloaded.
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import beyond_data
import decisions
import numpy as np
import pandas as pd
from record import RESULTS, finish

from shapelaw.scaling.checks.decision_cases import MIN_SIZE_STEP, decision_cases
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.refits import FitSettings
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import RunTable

PATH = RESULTS / "central-value.json"
VALUES = ("equation", "predicted", "median")
CONVENTIONS = ("non-embedding", "total")
MIN_SIZES = 2  # levels of N among the fitted runs: one size predicts no larger one
SIMILAR = 0.05  # ln of the ratio of two errors below which neither value is better
RESAMPLED = 10_000
HEAD = (
    "| table | N | cuts | larger runs | equation | with mean deviation | median of draws "
    "| the same, differences of two shapes |",
    "|---|---|---|---|---|---|---|---|",
)


def errors_of(fitted: Fit, runs: RunTable) -> dict[str, np.ndarray]:
    """Return predicted minus measured ln loss of every run for each central value, (n,) each."""
    measured = np.log(runs.losses)
    return {
        "equation": np.log(fitted.central(runs)) - measured,
        "predicted": np.log(fitted.expected(runs)) - measured,
        "median": np.median(fitted.log_loss_draws(runs), axis=0) - measured,
    }


def scored(errors: dict[str, np.ndarray], pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Return the root mean square error of ln loss, and of the differences of pairs, in %.

    Parameters
    ----------
    errors
        Predicted minus measured ln loss by central value, (n,) each.
    pairs
        Positions of the runs of the first and the second shape of each decision.
    """
    rows = {}
    for name, error in errors.items():
        rows[f"{name}_percent"] = 100 * float(np.sqrt((error**2).mean()))
        gaps = np.array([error[first].mean() - error[second].mean() for first, second in pairs])
        rows[f"{name}_difference_percent"] = (
            100 * float(np.sqrt((gaps**2).mean())) if len(gaps) else None
        )
    return rows


def cuts_of(name: str, size: str) -> Iterator[tuple[RunTable, RunTable, list, float]]:
    """Yield the smaller and larger runs of every cut, pairs of the larger, and the cut's N."""
    runs = decisions.load(name, size, size)
    cases = [] if runs is None else decision_cases(runs, name)
    for cut in sorted({case.cut for case in cases if case.sizes >= MIN_SIZES}):
        part = [case for case in cases if case.cut == cut]
        larger = np.flatnonzero(runs.sizes >= MIN_SIZE_STEP * cut)
        pairs = [
            tuple(np.searchsorted(larger, rows) for rows in (case.first, case.second))
            for case in part
        ]
        yield runs.take(part[0].fitted), runs.take(larger), pairs, cut


def row_of(
    about: dict, law: str, smaller: RunTable, larger: RunTable, pairs: list, settings: FitSettings
) -> dict:
    """Fit the smaller runs and score the central values on the larger ones."""
    fitted = fit(law, smaller, size=smaller.size, **settings)
    figures = scored(errors_of(fitted, larger), pairs)
    return about | {"fitted": len(smaller), "larger": len(larger), "pairs": len(pairs)} | figures


def mean_square(rows: pd.DataFrame, name: str) -> float:
    """Return the root of the mean over cuts of the squared error, in %; NaN without pairs."""
    return float(np.sqrt((rows[name].astype(float) ** 2).mean()))


def summary(rows: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare every other value with the equation: ratio of errors, and tables where it is better.

    The ratio is the geometric mean over cuts, then over tables and conventions of N; its 90 %
    interval resamples these.
    """
    keys = rows.groupby(["table", "size"]).ngroup().to_numpy()
    generator = np.random.default_rng(seed)
    found = {}
    for name in VALUES[1:]:
        logs = np.log((rows[f"{name}_percent"] / rows["equation_percent"]).to_numpy())
        means = np.array([logs[keys == key].mean() for key in range(keys.max() + 1)])
        picked = generator.integers(0, len(means), (RESAMPLED, len(means)))
        found[name] = {
            "ratio": float(np.exp(means.mean())),
            "ratio_90": np.exp(np.percentile(means[picked].mean(axis=1), [5, 95])).tolist(),
            "tables": len(means),
            "better_tables": int((means < -SIMILAR).sum()),
            "worse_tables": int((means > SIMILAR).sum()),
            "better_cuts": int((logs < -SIMILAR).sum()),
            "worse_cuts": int((logs > SIMILAR).sum()),
        }
    return found


def markdown_of(rows: pd.DataFrame) -> str:
    """Write the Markdown table of docs/trust.md: one row per table and convention of N."""
    lines = list(HEAD)
    for (table, size), part in rows.groupby(["table", "size"], sort=False):
        errors = [f"{mean_square(part, f'{name}_percent'):.2f} %" for name in VALUES]
        gaps = [mean_square(part, f"{name}_difference_percent") for name in VALUES]
        shown = "–" if np.isnan(gaps).any() else ", ".join(f"{gap:.2f}" for gap in gaps) + " %"
        about = (f"`{table}`", size, str(len(part)), str(part["larger"].sum()))
        lines.append(f"| {' | '.join((*about, *errors, shown))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings: FitSettings = {
        "resamples": options.resamples, "starts": options.starts, "seed": options.seed,
        "prior": "weak",
    }  # fmt: skip
    before = json.loads(PATH.read_text()) if PATH.exists() else {}
    rows = before["rows"] if before.get("settings") == settings else []
    done = {(row["table"], row["size"], row["cut"]) for row in rows}

    def add(about: dict, law: str, smaller: RunTable, larger: RunTable, pairs: list) -> None:
        if (about["table"], about["size"], about["cut"]) in done:
            return
        try:
            rows.append(row_of(about, law, smaller, larger, pairs, settings))
        except InputError as error:  # too few smaller models for the law
            print(about, error, flush=True)
            return
        print(rows[-1], flush=True)
        with redirect_stdout(None):
            finish("central-value", {"settings": settings, "rows": rows})

    for size in CONVENTIONS:
        for name in decisions.TABLES:
            for smaller, larger, pairs, cut in cuts_of(name, size):
                add(
                    {"table": name, "size": size, "cut": cut}, "conditional", smaller, larger, pairs
                )
    for name in beyond_data.TABLES:
        runs = load_runs(name, where=beyond_data.FILTERS.get(name))
        limit = float(np.quantile(runs.compute, beyond_data.FITTED_SHARE))
        inside = runs.compute < limit
        about = {"table": f"{name}, by compute", "size": runs.size, "cut": limit}
        add(about, "chinchilla", runs.take(inside), runs.take(~inside), [])
    frame = pd.DataFrame(rows)
    print(markdown_of(frame))
    finish("central-value", {"settings": settings, "rows": rows, "summary": summary(frame)})


if __name__ == "__main__":
    main()
