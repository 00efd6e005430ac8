"""Back-test of decisions on all public tables that vary shape at nearly equal N and D.

A law is fitted to the smaller models of a table and states which of two larger shapes has the lower
loss. No run is decided about twice under one convention of N. The benchmark prints reliability and
scores as Markdown, and writes results/decisions.json. Aims: the 90 % Wilson interval of the
decisions stated at 90 % or more includes their mean stated probability, a third of all decisions is
stated that surely, and the Brier score is at most 0.15. Public tables come from the mirror in
SHAPELAW_MIRROR or are downloaded.
"""

import argparse
import json
import os
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from record import RESULTS, finish

from shapelaw.scaling.checks.decisions import backtest_decisions
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import SIZES
from shapelaw.scaling.runs.table import RunTable

# Tables that share no run. Left out for that: gemstones-hot (runs that gemstones continues) and
# gemstones-hot-long, mlfoundations-grid (mlfoundations selects from it), gemstones-chinchilla.
TABLES = (
    *("quickstart", "proxies", "paper-2510.18245", "gemstones", "gemstones-lr-ablation"),
    *("mlfoundations", "mlfoundations-overtrained", "steplaw", "olmo-ladder"),
)
FILTERS = {
    "steplaw": "best_of_grid",  # one learning rate and batch for each shape and token count
    "mlfoundations-overtrained": "corpus == 'c4_original'",
}
# Convention by which the shapes of a pair have nearly equal N, and the N of the law.
CONVENTIONS = (("non-embedding", "non-embedding"), ("non-embedding", "total"), ("total", "total"))


def load(size: str) -> dict[str, RunTable]:
    """Load the tables that can count N by a convention."""
    tables = {name: load_runs(name, where=FILTERS.get(name)) for name in TABLES}
    return {name: runs.counting(size) for name, runs in tables.items() if SIZES[size] in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--law", default="conditional")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--label", default="", help="name of the settings in results, such as prior"
    )
    options = parser.parse_args()
    settings = {"resamples": options.resamples, "seed": options.seed}
    figures: dict[str, object] = {}
    for pairs, law_size in CONVENTIONS:
        begun = time.perf_counter()
        tables = load(pairs)
        tables = {name: runs for name, runs in tables.items() if SIZES[law_size] in runs}
        report = backtest_decisions(options.law, tables, size=law_size, **settings)
        key = f"pairs by {pairs} N, law in {law_size} N"
        figures[key] = json_ready(report.document()) | {
            "seconds": round(time.perf_counter() - begun, 1),
        }
        print(f"## {key}\n\n{report.markdown()}", *report.view().notes, sep="\n", flush=True)
    path = RESULTS / "decisions.json"
    before = json.loads(path.read_text())["settings"] if path.exists() else {}
    name = options.label or options.law
    finish("decisions", {"tables": TABLES, "settings": before | {name: figures}})


if __name__ == "__main__":
    main()
