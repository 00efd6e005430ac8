"""Tables and pictures that docs/ takes from the rows of a comparison of families."""

import json
from pathlib import Path

import pandas as pd
import pytest

from shapelaw.search.families.budget import models_of_budget, variant_named
from shapelaw.search.reports import families_report
from shapelaw.search.reports.families_report import (
    comparison_csv,
    comparison_png,
    rates_csv,
    rates_png,
)

NAMES = ("llama", "gpt2", "llama+canon-AC")


def row(name: str, rate: float, loss: float, *, role: str, seed: int = 0) -> dict[str, object]:
    variant = variant_named(name)
    (model,) = models_of_budget([variant], 100_000, context=64, vocabulary=256).values()
    return {
        "run_id": f"{name}-{role}-{rate}-{seed}", "family": variant.family, "role": role,
        "config": model.config_text(), "loss": loss, "tokens": 1000 if role == "family" else 500,
        "seed": seed, "context_length": 64, "learning_rate": rate, "tokens_per_second": 50.0,
    }  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of a comparison in a data folder; the highest rate of one family is not trained yet."""
    rates = {0.005: 2.1, 0.01: 2.0, 0.02: 2.05}
    rows = [
        row(name, rate, loss + place / 10, role="lr-check")
        for place, name in enumerate(NAMES)
        for rate, loss in rates.items()
        if (name, rate) != ("gpt2", 0.02)
    ]
    rows += [
        row(name, 0.01, 1.9 + place / 10 + seed / 100, role="family", seed=seed)
        for place, name in enumerate(NAMES)
        for seed in range(3)
    ]
    folder = tmp_path / "data" / "families"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "tiny-runs.csv", index=False)
    monkeypatch.setattr(families_report, "data_folder", lambda: tmp_path / "data")
    return tmp_path


def test_rates_of_unfinished_families_are_listed_without_a_choice(data: Path) -> None:
    rates_csv(data / "tiny-rates.csv")
    table = pd.read_csv(data / "tiny-rates.csv").set_index("family")
    assert list(table.index) == list(NAMES)
    assert list(table.loc["llama"][["loss_lr_0.005", "loss_lr_0.01", "chosen"]]) == [2.1, 2.0, 0.01]
    assert table.loc["gpt2"].isna()[["loss_lr_0.02", "chosen", "at_edge"]].all()


def test_comparison_is_made_of_the_rows_of_families_only(data: Path) -> None:
    comparison_csv(data / "tiny.csv")
    table = pd.read_csv(data / "tiny.csv").set_index("family")
    assert list(table.index) == list(NAMES)
    assert list(table["runs"]) == [3, 3, 3]
    assert table.loc["gpt2", "difference_percent"] == pytest.approx(100 * (0.1 / 1.91), rel=2e-3)
    assert json.loads(pd.read_csv(data / "data/families/tiny-runs.csv")["config"][0])


def test_pictures_are_the_same_bytes_each_time(data: Path) -> None:
    for draw, name in ((rates_png, "tiny-rates.png"), (comparison_png, "tiny.png")):
        draw(data / name)
        first = (data / name).read_bytes()
        draw(data / name)
        assert (data / name).read_bytes() == first
        assert len(first) > 5000
