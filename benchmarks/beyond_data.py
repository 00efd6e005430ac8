"""Coverage beyond the data: 95 % intervals of new runs against the largest runs of public tables.

A law is fitted without the top fifth of a table by compute, and predicts it. Aim: 95 % of the
held-out losses lie in their interval. Held-out rows of one table share the errors of one fit, so
their number says little about the certainty of the share. Public tables come from the mirror in
SHAPELAW_MIRROR or are downloaded.
"""

import argparse
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
from record import finish

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.refits import FitSettings
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import RunTable

TABLES = ("chinchilla", "mlfoundations", "olmo-ladder")
FILTERS = {"chinchilla": "not outlier"}  # as arXiv 2404.10102 fits them
PRIORS = ("weak", "none")
FITTED_SHARE = 0.8  # of the rows, by compute


def cover(law: str, runs: RunTable, settings: FitSettings) -> dict[str, float]:
    """Fit the rows below the top fifth of compute and compare the others with their intervals."""
    compute = runs.compute
    inside = compute < np.quantile(compute, FITTED_SHARE)
    fitted = fit(law, runs.take(inside), **settings)
    held_out = runs.take(~inside)
    predicted = fitted.predict(held_out).reset_index(drop=True)
    losses = held_out.losses
    within = (losses >= predicted["loss_low"]) & (losses <= predicted["loss_high"])
    width = np.log(predicted["loss_high"] / predicted["loss_low"]) / 2
    return {
        "rows_fitted": int(inside.sum()),
        "rows_held_out": len(held_out),
        "decades_beyond": float(np.log10(compute.max() / compute[inside].max())),
        "covered": int(within.sum()),
        "covered_percent": 100 * float(within.mean()),
        "mean_error_percent": 100 * float(np.mean(predicted["predicted_loss"] / losses - 1)),
        "median_half_width_percent": 100 * float(np.median(width)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--law", default="chinchilla")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for name in options.tables:
        runs = load_runs(name, where=FILTERS.get(name))
        for prior in PRIORS:
            settings: FitSettings = {
                "resamples": options.resamples, "starts": options.starts,
                "seed": options.seed, "prior": prior,
            }  # fmt: skip
            rows.append({"table": name, "prior": prior} | cover(options.law, runs, settings))
            print(rows[-1], flush=True)
    finish("beyond-data", {"law": options.law, "rows": rows})


if __name__ == "__main__":
    main()
