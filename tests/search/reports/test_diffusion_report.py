"""Table and picture of quality against decoding speed of diffusion models."""

import json
from pathlib import Path

import pandas as pd
import pytest

from shapelaw.search.reports import diffusion_report
from shapelaw.search.reports.diffusion_report import plot_quality_and_speed, quality_and_speed

BITS = {"ar": 2.0, "masked": 3.0, "block": 2.9, "d2f": 3.1}
DECODERS = {"ar": ["ar"], "masked": ["llada:block=16"],
            "block": ["block:block=16,confidence=0.3", "block:block=16,confidence=0.9"],
            "d2f": ["d2f:block=16,confidence=0.3"]}  # fmt: skip


def measured() -> pd.DataFrame:
    rows = []
    for tokens in (1000, 2000):
        for paradigm, bits in BITS.items():
            key = {"tokens": tokens, "seed": 0, "paradigm": paradigm}
            kind = "exact" if paradigm == "ar" else "bound"
            rows.append(key | {"part": "loss", "bits_per_byte": bits * 1000 / tokens,
                               "bits_per_byte_se": 0.01, "loss_kind": kind,
                               "trained_tokens": tokens})  # fmt: skip
            rows += [
                key | {"part": "decoding", "decoder": decoder, "batch": batch,
                       "tokens_per_forward": 1.5, "tokens_per_second": 100.0 * batch,
                       "seconds_per_answer": 0.5}
                for decoder in DECODERS[paradigm] for batch in (1, 8)
            ]  # fmt: skip
            if paradigm != "d2f":
                rows.append(key | {"part": "blimp", "accuracy": 0.6, "accuracy_se": 0.01})
    return pd.DataFrame(rows)


def test_table_joins_speed_and_quality_of_the_largest_budget() -> None:
    table = quality_and_speed(measured())
    assert len(table) == 2 * 5
    assert set(table["trained_tokens"]) == {2000}

    def cells(paradigm: str, batch: int, column: str) -> list[object]:
        rows = (table["paradigm"] == paradigm) & (table["batch"] == batch)
        return table.loc[rows, column].tolist()

    assert cells("masked", 8, "bits_per_byte") == [1.5]
    assert cells("masked", 8, "tokens_per_second") == [800.0]
    assert cells("ar", 1, "loss_kind") == ["exact"]
    assert cells("block", 1, "blimp") == [0.6, 0.6]
    assert pd.isna(cells("d2f", 1, "blimp")).all()


def test_picture_has_a_panel_for_each_batch_and_says_which_losses_are_bounds() -> None:
    figure = plot_quality_and_speed(quality_and_speed(measured()))
    assert [axes.get_title() for axes in figure.axes] == ["batch of 1", "batch of 8"]
    [legend] = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        "next token, decoder ar", "masked diffusion (bound), decoder llada",
        "block diffusion (bound), decoder block", "D2F (bound), decoder d2f",
    ]  # fmt: skip
    assert figure.get_suptitle().endswith("after 2K tokens")


def test_files_are_written_from_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "measurement.jsonl"
    lines = [json.dumps(row.dropna().to_dict()) for _, row in measured().iterrows()]
    rows.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(diffusion_report, "measured_rows", lambda: rows)
    diffusion_report.measurement_csv(tmp_path / "table.csv")
    diffusion_report.measurement_png(tmp_path / "picture.png")
    assert len(pd.read_csv(tmp_path / "table.csv")) == 10
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
