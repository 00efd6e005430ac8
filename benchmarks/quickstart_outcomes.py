"""Do the differences that a quickstart predicts come out when its shapes are trained?

`collect FOLDER...` adds the runs of finished quickstarts to data/quickstart/outcomes.csv. Without
arguments every recorded quickstart is fitted again, with the law of the quickstart and with the
same law without depth, and the predicted differences of the confirmed shapes to the baseline are
compared with those of the trained models. A shape is chosen by the law of the version that
searched it, so both laws are judged on the same shapes.
"""

import json
import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from record import finish

from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.search.autopilot.run_plan import LAW, PRIOR
from shapelaw.search.autopilot.stages import seed_noise

PATH = data_folder() / "quickstart" / "outcomes.csv"
LAWS = {"with depth": LAW, "without depth": "conditional"}
LABELS = ["quickstart", "seed_of_quickstart", "shape_role", "speedup"]
BASELINE = "baseline"


def collect(folder: Path) -> pd.DataFrame:
    """Read the runs of a finished quickstart, with the role and the speed of every shape."""
    record = json.loads((folder / "quickstart.json").read_text())
    proposals = json.loads((folder / "proposals.json").read_text())["proposals"]
    roles = {each["name"]: each["role"] for each in proposals}
    base = next(record["served"][name] for name in record["served"] if roles[name] == BASELINE)
    runs = pd.read_csv(folder / "runs.csv")
    shapes = runs["run_id"].str.replace("-qk.*", "", regex=True)
    trained = runs["role"] != "proxy"
    labels = pd.DataFrame(
        {
            "quickstart": record["corpus"]["name"],
            "seed_of_quickstart": record["settings"]["seed"],
            "shape_role": shapes.map(roles).where(trained),
            "speedup": (shapes.map(record["served"]) / base).where(trained).round(3),
        }
    )
    return labels.join(runs)


def outcomes(runs: pd.DataFrame) -> list[dict]:
    """Return one row for each shape that one quickstart confirmed beside its baseline."""
    runs = with_ratios(runs)
    proxies = as_run_table(runs[runs["role"] == "proxy"].drop(columns=LABELS))
    confirmed = runs[runs["role"] != "proxy"]
    deviation, _ = seed_noise(proxies)
    means = np.log(confirmed["loss"]).groupby(confirmed["shape_role"]).mean()
    counts = confirmed.groupby("shape_role").size()
    shapes = confirmed.drop_duplicates("shape_role").set_index("shape_role")
    shapes = shapes.loc[[BASELINE, *(role for role in shapes.index if role != BASELINE)]]
    about = dict(zip(LABELS[:2], runs[LABELS[:2]].iloc[0].tolist(), strict=True))
    rows = [
        about
        | {
            "role": role,
            "layers": int(shapes.loc[role, "num_hidden_layers"]),
            "speedup": float(shapes.loc[role, "speedup"]),
            "measured_percent": 100 * float(means[role] - means[BASELINE]),
            "standard_error_percent": 100
            * float(deviation * np.sqrt(1 / counts[role] + 1 / counts[BASELINE])),
        }
        for role in shapes.index[1:]
    ]
    for label, law in LAWS.items():
        fitted = fit(law, proxies, prior=PRIOR, seed=int(about["seed_of_quickstart"]))
        predicted = np.log(fitted.expected(shapes))
        draws = fitted.log_loss_draws(shapes)
        for place, row in enumerate(rows, start=1):
            row[f"predicted_percent {label}"] = 100 * float(predicted[place] - predicted[0])
            row[f"p_less {label}"] = float((draws[:, place] < draws[:, 0]).mean())
    return rows


def summary(table: pd.DataFrame) -> dict[str, dict]:
    """Score both laws: error of the differences, right signs, Brier score, and resolved ranks."""
    measured, better = table["measured_percent"], table["measured_percent"] < 0
    resolved = measured.abs() > 2 * table["standard_error_percent"]
    scores = {}
    for label in LAWS:
        error = table[f"predicted_percent {label}"] - measured
        right = (table[f"predicted_percent {label}"] < 0) == better
        scores[label] = {
            "shapes": len(table),
            "root_mean_square_error_percent": float(np.sqrt((error**2).mean())),
            "right_sign": int(right.sum()),
            "brier": float(((table[f"p_less {label}"] - better) ** 2).mean()),
            "resolved": int(resolved.sum()),
            "resolved_right": int((right & resolved).sum()),
        }
    return scores


def main() -> None:
    known = [pd.read_csv(PATH)] if PATH.exists() else []
    if sys.argv[1:2] == ["collect"]:
        parts = [*known, *(collect(Path(folder)) for folder in sys.argv[2:])]
        pd.concat(parts).drop_duplicates([*LABELS[:2], "run_id"]).to_csv(PATH, index=False)
        return
    rows = [
        row
        for _, part in known[0].groupby(LABELS[:2], sort=False)
        for row in outcomes(part.reset_index(drop=True))
    ]
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    finish("quickstart-outcomes", json_ready({"shapes": rows, "summary": summary(table)}))


if __name__ == "__main__":
    main()
