"""Table and picture of quality against decoding speed of diffusion models, from measured rows.

``benchmarks/diffusion_measurement.py`` writes the rows, ``data/diffusion/measurement.jsonl``. Those
of the largest number of training tokens are shown.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from shapelaw.scaling.files import data_folder, write_text
from shapelaw.scaling.plots.style import (
    BLUE,
    GREEN,
    MARKERS,
    PURPLE,
    VERMILLION,
    add_legend,
    log_axis,
    save_figure,
    styled,
)
from shapelaw.scaling.units import format_count

DIGITS = "%.9g"
MARGIN = 1.2  # factor by which an axis of speeds reaches beyond them
COLOURS = {"ar": VERMILLION, "masked": BLUE, "block": GREEN, "d2f": PURPLE}
NAMES = {
    "ar": "next token",
    "masked": "masked diffusion (bound)",
    "block": "block diffusion (bound)",
    "d2f": "D2F (bound)",
}
SPEEDS = ["tokens_per_forward", "tokens_per_second", "seconds_per_answer"]
QUALITY = ["bits_per_byte", "bits_per_byte_se", "loss_kind", "trained_tokens"]
BLIMP = {"accuracy": "blimp", "accuracy_se": "blimp_se"}


def measured_rows() -> Path:
    """Return the file of the shipped rows, which may be missing."""
    return data_folder() / "diffusion" / "measurement.jsonl"


def quality_and_speed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each paradigm, decoder and batch size: speed, bits per byte and BLiMP.

    Parameters
    ----------
    rows
        Rows of all parts of the measurement.
    """
    rows = rows[rows["tokens"] == rows["tokens"].max()]
    key = ["seed", "paradigm"]
    parts = {name: part.drop(columns="part") for name, part in rows.groupby("part")}
    table = parts["decoding"][[*key, "decoder", "batch", *SPEEDS]].astype({"batch": int})
    table = table.merge(parts["loss"][[*key, *QUALITY]], on=key, how="left")
    scores = parts.get("blimp", pd.DataFrame(columns=[*key, *BLIMP]))
    return table.merge(scores[[*key, *BLIMP]].rename(columns=BLIMP), on=key, how="left")


@styled
def plot_quality_and_speed(table: pd.DataFrame) -> Figure:
    """Draw bits per byte against decoding speed, one panel for each batch size.

    A decoder's points are its confidences: they change the speed, and the text that is generated,
    but not the likelihood of the held-out text.
    """
    batches = sorted(table["batch"].unique())
    figure = Figure(figsize=(4.6 * len(batches), 4.2), layout="constrained")
    drawn = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    kinds = table["decoder"].str.partition(":")[0]
    marks = dict(zip(dict.fromkeys(kinds), MARKERS, strict=False))
    for axes, batch in zip(drawn, batches, strict=True):
        part = table[table["batch"] == batch].assign(kind=kinds)
        for (paradigm, kind), points in part.groupby(["paradigm", "kind"], sort=False):
            axes.errorbar(
                points["tokens_per_second"], points["bits_per_byte"],
                yerr=1.96 * points["bits_per_byte_se"], fmt=marks[kind], ms=6, lw=1,
                color=COLOURS[paradigm], label=f"{NAMES[paradigm]}, decoder {kind}",
            )  # fmt: skip
        low, high = part["tokens_per_second"].min(), part["tokens_per_second"].max()
        log_axis(axes, "x", low / MARGIN, high * MARGIN, form=format_count, most=5)
        axes.set_xlabel("decoded tokens/s")
        axes.set_title(f"batch of {batch}")
    drawn[0].set_ylabel("held-out bits per byte, 95 % interval")
    add_legend(figure, list(drawn))
    tokens = format_count(float(np.max(table["trained_tokens"])))
    figure.suptitle(f"Quality against decoding speed after {tokens} tokens")
    return figure


def _shipped() -> pd.DataFrame:
    lines = measured_rows().read_text(encoding="utf-8").splitlines()
    return quality_and_speed(pd.DataFrame(map(json.loads, lines)))


def measurement_csv(path: Path) -> None:
    """Write the table of the shipped rows."""
    write_text(path, _shipped().to_csv(index=False, float_format=DIGITS, lineterminator="\n"))


def measurement_png(path: Path) -> None:
    """Draw the picture of the shipped rows."""
    save_figure(plot_quality_and_speed(_shipped()), path)
