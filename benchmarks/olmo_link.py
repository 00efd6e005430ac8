"""Fit of the shipped accuracy link to the OLMo ladder, with a test on held-out models.

    SHAPELAW_MIRROR=FOLDER python benchmarks/olmo_link.py

The choice of the form does not use the test models: every form is fitted to 190M to 760M and
evaluated on 1.3B. The form with the smallest mean absolute error per task is fitted to 190M to
1.3B, tested on 3B and on the 13B model of 5T tokens, and written to
data/accuracy/olmo-ladder.json. Accuracies are five-shot, by ranked classification; only the final
checkpoint of each run is used.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from record import finish

from shapelaw.scaling.accuracy.curves import FORMS, Form, Sigmoid, TwoStep
from shapelaw.scaling.accuracy.files import save_links
from shapelaw.scaling.accuracy.fit import fit_links, held_out, with_hold_out
from shapelaw.scaling.accuracy.link import Links
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.runs.catalog import MIRROR

# Total parameters without the input embedding, as the ladder counts N (arXiv 2412.04403).
SIZES = {
    "190M": 190354176,
    "370M": 371262464,
    "760M": 758220288,
    "1B": 1279395840,
    "3B": 3169537280,
    "peteish13": 13202396160,
}
FITTED = ("190M", "370M", "760M", "1B")
# The eight tasks of the paper, which leaves out boolq and winogrande as too noisy to predict.
TASKS = (
    *("mmlu", "hellaswag", "arc_challenge", "arc_easy"),
    *("piqa", "csqa", "socialiqa", "openbookqa"),
)
PARTS = {
    **dict.fromkeys(("hellaswag", "piqa", "csqa", "socialiqa"), "val"),
    **dict.fromkeys(("arc_challenge", "arc_easy", "openbookqa"), "test"),
}
# Questions of the four parts in which MMLU is reported, which weight their mean.
MMLU = {"stem": 3018, "humanities": 4705, "social_sciences": 3077, "other": 3242}
PROVENANCE = {
    "source": "allenai/OLMo-ladder (67a3f440f7), src/scripts/paper/data/ladder-runs",
    "paper": "arXiv 2412.04403",
    "licence": "Apache-2.0",
    "date": "2026-11-21",
    "models": "final checkpoints of 190M to 1.3B at 20, 40, 100 and 200 tokens per parameter",
    "metric": "five-shot ranked classification, length-normalised accuracy",
    "tokenizer": "allenai/dolma2-tokenizer",
}
FORMS_TRIED: dict[str, Form] = {
    **FORMS,
    "sigmoid, ceiling 1": Sigmoid(ceiling=1.0),
    "two-step, ceiling 1": TwoStep(second=Sigmoid(ceiling=1.0)),
}


def read_ladder(mirror: Path) -> pd.DataFrame:
    """Read one row per run at its final checkpoint: loss_<set>, bpb_<task>, accuracy_<task>."""
    rows = []
    for path in sorted((mirror / "olmo_ladder" / "ladder-runs").glob("*.csv")):
        final = pd.read_csv(path).iloc[-1]
        size = path.stem.split("-")[0].split("_")[0]
        row = {
            "run_id": path.stem,
            "size": size,
            "n_total": SIZES[size],
            "tokens": final["_step"] * final["batch_size_in_tokens"],
            "loss_c4_en": final["eval/c4_en-validation/CrossEntropyLoss"],
        }
        rows.append(row | {name: value for task in TASKS for name, value in _task(final, task)})
    if not rows:
        raise InputError(f"`{MIRROR}` is {mirror}, which lacks olmo_ladder/ladder-runs; set it")
    return pd.DataFrame(rows)


def _task(final: pd.Series, task: str) -> list[tuple[str, float]]:
    """Return accuracy and bits per byte of a task at a checkpoint, by column name."""
    weights = MMLU if task == "mmlu" else {"": 1}
    names = [f"mmlu_{part}_test" if part else f"{task}_{PARTS[task]}" for part in weights]
    scores = [final[f"eval/downstream/{name}_rc_5shot_len_norm"] for name in names]
    losses = [final[f"eval/downstream_bpb/{name}_rc_5shot_bpb"] for name in names]
    shares = list(weights.values())
    return [
        (f"accuracy_{task}", float(np.average(scores, weights=shares))),
        (f"bpb_{task}", float(np.average(losses, weights=shares))),
    ]


def tested(table: pd.DataFrame, form: Form, fitted: tuple[str, ...], test: str) -> pd.DataFrame:
    """Fit a form to some sizes and return its errors on the models of another size."""
    links = fit_links(table[table["size"].isin(fitted)], TASKS, form=form)
    return held_out(links, table[table["size"] == test])


def figures(errors: pd.DataFrame) -> dict[str, float]:
    """Compute mean absolute errors in percentage points, and the coverage of the intervals."""
    single = errors[errors["task"] != "mean"]
    mean = errors[errors["task"] == "mean"]
    return {
        "per_task_points": 100 * float(single["error"].abs().mean()),
        "mean_points": 100 * float(mean["error"].abs().mean()),
        "mean_bias_points": 100 * float(mean["error"].mean()),
        "inside_per_task": float(single["inside"].mean()),
        "inside_mean": float(mean["inside"].mean()),
    }


def chosen_form(table: pd.DataFrame) -> tuple[str, dict[str, dict[str, float]]]:
    """Choose the form with the smallest error per task on the largest fitted size, held out."""
    results = {
        name: figures(tested(table, form, FITTED[:-1], FITTED[-1]))
        for name, form in FORMS_TRIED.items()
    }
    return min(results, key=lambda name: results[name]["per_task_points"]), results


def shipped_links(table: pd.DataFrame, form: str) -> Links:
    """Fit links to 190M to 1.3B, and add their errors on 3B and 13B."""
    fitted = table[table["size"].isin(FITTED)]
    links = fit_links(fitted, TASKS, form=FORMS_TRIED[form], provenance=PROVENANCE)
    return with_hold_out(links, held_out(links, table[~table["size"].isin(FITTED)]))


def main() -> None:
    begun = time.perf_counter()
    table = read_ladder(Path(os.environ[MIRROR]))
    form, selection = chosen_form(table)
    links = shipped_links(table, form)
    save_links(data_folder() / "accuracy" / "olmo-ladder.json", links)
    print(links.summary())
    errors = pd.DataFrame(links.hold_out)
    sizes = {"3B": errors["run_id"].str.startswith("3B")}
    sizes["13B"] = ~sizes["3B"]
    print(errors.round(3).to_string(index=False))
    finish(
        "olmo-link",
        {
            "models_fitted": len(links.measured.run_ids),
            "chosen_on_1B": form,
            "tested_on_1B": selection,
            "tested_on_3B": {
                name: figures(tested(table, tried, FITTED, "3B"))
                for name, tried in FORMS_TRIED.items()
            },
            "tested_on_13B": {
                name: figures(tested(table, tried, FITTED, "peteish13"))
                for name, tried in FORMS_TRIED.items()
            },
            "shipped": {
                size: {
                    task: {
                        "error_points": 100 * float(rows["error"].mean()),
                        "absolute_error_points": 100 * float(rows["error"].abs().mean()),
                        "inside": f"{int(rows['inside'].sum())} of {len(rows)}",
                        "chance": float(rows["chance"].iloc[0]),
                    }
                    for task, rows in errors[chosen].groupby("task", sort=False)
                }
                for size, chosen in sizes.items()
            },
            "seconds": time.perf_counter() - begun,
        },
    )


if __name__ == "__main__":
    try:
        main()
    except (InputError, KeyError) as error:
        sys.exit(f"{error}; set {MIRROR} to a folder that holds olmo_ladder/")
