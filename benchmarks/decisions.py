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
from contextlib import redirect_stdout

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pandas as pd
from record import RESULTS, finish

from shapelaw.scaling.checks.decisions import DecisionReport, backtest_decisions
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.fitting.refits import FitSettings
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import SIZES
from shapelaw.scaling.runs.table import RunTable

PATH = RESULTS / "decisions.json"

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
CONVENTIONS = {
    "non-embedding": ("non-embedding", "non-embedding"),
    "total": ("total", "total"),
    "mixed": ("non-embedding", "total"),
}

PROBABILITIES = {"p_best_run": "scores", "p_best": "scores_of_p_best"}  # and where their scores are
SCORES = (  # heads of the Markdown tables in docs/trust.md
    "| settings | N | probability | decisions | right | Brier score | log score "
    "| sharpness, of the oracle's | stated at 90 % or more | mean of these | of these held |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)
BINS = (
    "| settings | N | stated | decisions | mean stated | held "
    "| 90 % interval of the share that held |",
    "|---|---|---|---|---|---|---|",
)


def load(name: str, pairs: str, law_size: str) -> RunTable | None:
    """Load a table that counts N by both conventions; None for a table that cannot."""
    runs = load_runs(name, where=FILTERS.get(name))
    return runs.counting(pairs) if {SIZES[pairs], SIZES[law_size]} <= set(runs) else None


def earlier(label: str, key: str) -> dict[str, DecisionReport]:
    """Read the reports by table that an earlier run with the same settings has written."""
    if not PATH.exists():
        return {}
    figures = json.loads(PATH.read_text())["settings"].get(label, {}).get(key)
    if figures is None:
        return {}
    rows, missing = pd.DataFrame(figures["decisions"]), figures["not_available"]
    return {
        name: DecisionReport(
            law_name=figures["law"],
            decisions=rows[rows["table"] == name],
            unavailable={key: why for key, why in missing.items() if key.split(" ")[0] == name},
        )
        for name in figures["tables"]
    }


def merged(reports: dict[str, DecisionReport]) -> DecisionReport:
    """Join the reports of several tables."""
    ordered = [reports[name] for name in TABLES if name in reports]
    return DecisionReport(
        law_name=ordered[0].law_name,
        decisions=pd.concat([each.decisions for each in ordered if len(each.decisions)]),
        unavailable={key: why for each in ordered for key, why in each.unavailable.items()},
    )


def write(label: str, key: str, reports: dict[str, DecisionReport]) -> None:
    """Write the results so far, so that a killed benchmark keeps its finished tables."""
    if not any(len(report.decisions) for report in reports.values()):
        return
    before = json.loads(PATH.read_text())["settings"] if PATH.exists() else {}
    figures = json_ready(merged(reports).document()) | {"tables": list(reports)}
    before[label] = before.get(label, {}) | {key: figures}
    with redirect_stdout(None):
        finish("decisions", {"settings": before})


def markdown_of(settings: dict[str, dict[str, dict]]) -> str:
    """Write scores and reliability of recorded settings as the Markdown tables of docs/trust.md."""
    scores, bins = [], []
    for pairs, size in CONVENTIONS.values():
        key = f"pairs by {pairs} N, law in {size} N"
        for label in (label for label, found in settings.items() if key in found):
            figures = settings[label][key]
            about = f"| {label} | {pairs if pairs == size else f'{pairs}, law in {size}'} "
            scores += [
                f"{about}| `{probability}` {_score_cells(figures[name])}"
                for probability, name in PROBABILITIES.items()
            ]
            bins += [about + _bin_cells(line) for line in figures["reliability"]]
    return "\n\n".join("\n".join([*head, *rows]) for head, rows in ((SCORES, scores), (BINS, bins)))


def _score_cells(scored: dict[str, float]) -> str:
    """Return the cells of one line of scores."""
    held = "–"
    if scored["sure"]:
        ends = f"{100 * scored['sure_low']:.0f} to {100 * scored['sure_high']:.0f} %"
        held = f"{scored['sure_held']:g} of {scored['sure']} ({ends})"
    mean = f"{100 * scored['sure_mean_stated']:.0f} %" if scored["sure"] else "–"
    return (
        f"| {scored['decisions']} | {100 * scored['share_right']:.0f} % | {scored['brier']:.3f} "
        f"| {scored['log_score']:.3f} | {100 * scored['sharpness_of_oracle']:.0f} % "
        f"| {100 * scored['share_sure']:.0f} % | {mean} | {held} |"
    )


def _bin_cells(line: dict[str, float]) -> str:
    """Return the cells of one bin of the stated probability."""
    low, high, mean, share = (
        100 * line[name] for name in ("stated_from", "stated_to", "mean_stated", "share_held")
    )
    ends = f"{100 * line['held_low']:.0f} to {100 * line['held_high']:.0f} %"
    return f"| {low:.0f} to {high:.0f} % | {line['n']} | {mean:.0f} % | {share:.0f} % | {ends} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--law", default="conditional")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", default="weak", help="weak, pooled, none or the file of a fit")
    parser.add_argument("--n", nargs="+", choices=CONVENTIONS, default=list(CONVENTIONS))
    parser.add_argument("--label", default="", help="name of the settings in the results")
    options = parser.parse_args()
    settings: FitSettings = {
        "resamples": options.resamples,
        "starts": options.starts,
        "seed": options.seed,
        "prior": options.prior,
    }
    label = options.label or f"prior {options.prior}"
    for pairs, law_size in (CONVENTIONS[name] for name in options.n):
        key = f"pairs by {pairs} N, law in {law_size} N"
        reports = earlier(label, key)
        for name in options.tables:
            runs = load(name, pairs, law_size)
            if runs is not None:
                reports[name] = backtest_decisions(
                    options.law, {name: runs}, size=law_size, **settings
                )
                write(label, key, reports)
        report = merged(reports)
        print(f"## {key}\n\n{report.markdown()}", *report.view().notes, sep="\n", flush=True)
    print(markdown_of(json.loads(PATH.read_text())["settings"]))


if __name__ == "__main__":
    main()
