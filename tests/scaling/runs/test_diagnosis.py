"""Tests of the warnings of run tables, their ways out, and the fits that carry them."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.checks.comparison import compare
from shapelaw.scaling.checks.report import check
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.diagnosis import list_remarks, list_warnings
from shapelaw.scaling.runs.table import RunTable
from support.run_tables import run_table

QUICK = {"starts": 8, "resamples": 0}


def grid_of_runs(**columns: object) -> pd.DataFrame:
    """Return 25 runs on a grid of N and D with losses of a known law, and further columns."""
    sizes, tokens = map(
        np.ravel, np.meshgrid(np.geomspace(2e7, 1e9, 5), np.geomspace(1e9, 4e10, 5))
    )
    noise = 1 + 0.002 * np.random.default_rng(0).standard_normal(25)
    losses = (1.82 + 482 / sizes**0.348 + 2085 / tokens**0.366) * noise
    names = [f"r{row}" for row in range(25)]
    frame = pd.DataFrame({"run_id": names, N: sizes, "tokens": tokens, "loss": losses})
    return frame.assign(**columns)


def test_a_plain_table_has_no_warnings():
    assert RunTable.of(run_table()).warnings == ()


def test_counted_flops_within_a_factor_of_6nd_are_a_remark_and_beyond_it_a_warning():
    close = run_table(flops_6nd=1e12, flops_counted=[1.04e12, 0.96e12, 1e12, np.nan])
    assert list_remarks(close) == []
    small = close.assign(flops_counted=[1.06e12, 2e12, 1e12, 0.0])
    (remark,) = list_remarks(small)
    assert "differ from 6ND by more than 5% in 2 of 4 rows (1.00 to 2.00 times)" in remark
    assert list_warnings(small) == []
    assert RunTable(frame=small).remarks == (remark,)
    large = close.assign(flops_counted=[1.06e12, 5e12, 1e12, np.nan], unique_tokens=1e6)
    assert list_remarks(large) == []
    repeated, warning = list_warnings(large)
    assert "repeated text" in repeated
    assert "(1.00 to 5.00 times)" in warning


def test_warnings_come_in_the_order_of_harm():
    frame = grid_of_runs(
        outlier=np.arange(25) == 0, decayed=np.arange(25) > 3, epochs=2.0, warmup_tokens=1e9,
        curve=1, flops_6nd=1.0, flops_counted=9.0, n_total=1e12,
    )  # fmt: skip
    again = frame.assign(run_id=frame["run_id"] + "b", loss=frame["loss"] * 1.01)
    frame = pd.concat([frame.assign(learning_rate=1e-3), again.assign(learning_rate=2e-3)])
    frame["loss"] = frame["loss"].round(2)
    listed = list_warnings(frame.reset_index(drop=True), "n_total", ["a column explains residuals"])
    words = (
        "flagged as outliers", "in mid-schedule", "within the warm-up", "repeated text",
        "explains residuals", "mix several values", "embeddings are most of N",
        "several rows belong to one run", "grid of 0.01", "counted FLOPs differ",
    )  # fmt: skip
    assert len(listed) == len(words)
    for word, text in zip(words, listed, strict=True):
        assert word in text


def test_fit_says_what_rows_flagged_as_outliers_change(mirror):
    runs = load_runs("chinchilla")
    (warning,) = fit("chinchilla", runs, delta=1e-3, starts=64, resamples=200).table_warnings
    # beta by arXiv 2404.10102 without these rows: 0.3658; with them its table B gives 0.47.
    change = re.search(r"drops them \(.*?beta is then ([\d.]+) instead of ([\d.]+)", warning)
    assert change is not None
    assert float(change[1]) == pytest.approx(0.3658, abs=0.002)
    assert float(change[2]) > 0.44
    assert "outliers" not in " ".join(fit("chinchilla", runs.select("not outlier"), **QUICK).notes)


def test_flagged_rows_that_change_nothing_are_said_to():
    frame = grid_of_runs(outlier=np.arange(25) == 7)
    (warning,) = fit("chinchilla", frame, starts=8, resamples=100).table_warnings
    assert warning.endswith("drops them (every parameter then stays well within its interval)")
    (plain,) = fit("chinchilla", frame, **QUICK).table_warnings
    assert plain.endswith("drops them")


def test_repeated_text_is_warned_of():
    assert list_warnings(run_table(unique_tokens=4e6)) == []
    (warning,) = list_warnings(run_table(unique_tokens=[2e6, 1e6, np.nan, 0.0]))
    assert warning.startswith("1 of 4 rows trained on repeated text, up to 2.00 epochs")


def test_checkpoints_in_mid_schedule_are_warned_of():
    assert list_warnings(run_table(decayed=True, run_group="one")) == []
    (warning,) = list_warnings(run_table(decayed=[True, False, True, False]))
    assert warning.startswith("2 of 4 rows are checkpoints in mid-schedule")
    (unknown,) = RunTable.of(run_table(decayed=["true", None, "true", "1"])).warnings
    assert unknown.startswith("1 of 4 rows")


def test_several_token_counts_of_one_run_without_decayed_column_are_warned_of():
    assert list_warnings(run_table(run_group=list("abcd"))) == []
    (warning,) = list_warnings(run_table(run_group=list("aabb")))
    assert warning.startswith("2 of 4 rows are checkpoints in mid-schedule unless")
    assert list_warnings(run_table(run_group=list("aabb"), decayed=True)) == []


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ({"learning_rate": [1e-3, 2e-3, 1e-3, 1e-3]}, 2),
        ({"batch_tokens": [1, 2, 3, 4]}, 4),
        ({"batch_size": [1, 1, 2, 2]}, 0),
        ({"learning_rate": 1e-3}, 0),
    ],
)
def test_rows_that_mix_rates_or_batches_at_equal_size_and_tokens_are_warned_of(columns, rows):
    frame = pd.DataFrame({"n_total": [1e6, 1e6, 4e6, 4e6], "tokens": 1e8, "loss": [3, 3.1, 2, 2.1]})
    warnings = RunTable.of(frame.assign(**columns)).warnings
    (name,) = columns
    expected = f"{rows} of 4 rows mix several values of `{name}` at equal N and D: a fit takes"
    assert [warning.startswith(expected) for warning in warnings] == [True] * (rows > 0)


def test_flagged_rows_are_named_with_the_switch_that_drops_them(mirror):
    runs = load_runs("chinchilla")
    (warning,) = runs.warnings
    assert (
        "chinchilla-000, chinchilla-001, chinchilla-002, chinchilla-003, chinchilla-004" in warning
    )
    assert warning.endswith('--where "not outlier" drops them')
    kept = runs.select("not outlier")
    assert (len(kept), kept.warnings) == (240, ())


def test_filter_keeps_the_last_checkpoint_of_every_run():
    frame = run_table(run_group=list("aabb"), tokens=[1e6, 2e6, 5e6, 3e6])
    assert RunTable.of(frame, where="last_of_group")["tokens"].tolist() == [2e6, 5e6]
    (warning,) = RunTable.of(frame).warnings
    assert warning.endswith("--where last_of_group keeps the last of each")


def test_checkpoints_within_the_warm_up_are_warned_of():
    frame = run_table(warmup_tokens=1.5e6, tokens=[1e6, 2e6, 3e6, 4e6])
    (warning,) = list_warnings(frame)
    assert warning.startswith("1 of 4 rows are within the warm-up")
    assert list_warnings(frame.assign(warmup_tokens=5e5)) == []
    frame = run_table(run_group=list("aabb"), tokens=[1e4, 2e6, 3e6, 4e6], decayed=True)
    (warning,) = list_warnings(frame)
    assert warning.startswith("1 of 4 rows may be within the warm-up")


def test_epochs_of_a_table_without_unique_tokens_are_warned_of():
    (warning,) = list_warnings(run_table(epochs=[1, 1, 2, 8]))
    assert warning.startswith("2 of 4 rows trained on repeated text, up to 8.00 epochs")
    assert '--where "epochs <= 1"' in warning


def test_filter_keeps_the_best_recipe_of_every_cell():
    rates = pd.DataFrame(
        {
            "run_id": list("abcdef"), N: [1e6] * 3 + [4e6] * 3, "tokens": 1e8,
            "learning_rate": [1e-3, 2e-3, 4e-3] * 2, "loss": [3.11, 3.0, 3.2, 2.537, 2.41, 2.3],
        }
    )  # fmt: skip
    runs = RunTable.of(rates)
    assert runs.select("best_of_cell")["run_id"].tolist() == ["b", "f"]
    several, edge = runs.warnings
    assert "--where best_of_cell keeps the best recipe of each cell" in several
    assert edge.startswith(
        "the best `learning_rate` is at the edge of its grid in 1 of 2 cells of equal N and D "
        "(1 at the highest)"
    )
    assert RunTable.of(rates, where="best_of_cell").warnings == ()


@pytest.mark.parametrize("unit", [1.0, np.log(2)])
def test_losses_on_a_grid_of_rounding_are_warned_of(unit):
    exact = grid_of_runs()
    assert list_warnings(exact) == []
    (warning,) = list_warnings(exact.assign(loss=unit * (exact["loss"] / unit).round(2)))
    assert warning.startswith(f"all losses lie on a grid of {0.01 * unit:.3g}: rounding alone")
    assert list_warnings(exact.assign(loss=exact["loss"].round(4))) == []


def test_embeddings_are_warned_of_only_where_n_counts_them():
    frame = grid_of_runs()
    frame["n_total"] = frame[N] + 50_000 * 4096
    runs = RunTable.of(frame)
    assert runs.warnings == ()
    rows = int((frame[N] < 50_000 * 4096).sum())
    (warning,) = runs.counting("total").warnings
    assert warning.startswith(f"embeddings are most of N in {rows} of 25 rows")


def test_column_that_explains_the_residuals_is_named_by_the_fit():
    batch = np.arange(25) % 2
    frame = grid_of_runs(code=np.array(["v1", "v2"])[batch], seed=np.arange(25) % 3)
    assert fit("chinchilla", frame, **QUICK).table_warnings == []
    frame["loss"] *= 1 + 0.02 * batch
    (warning,) = fit("chinchilla", frame, **QUICK).table_warnings
    assert warning.startswith("the column `code` (2 values), which the law does not have, explains")
    assert "--where \"code == 'v1'\"" in warning


def test_warnings_come_once_in_order_of_harm_with_every_result(tmp_path):
    frame = grid_of_runs(outlier=[True] + [False] * 24, decayed=np.arange(25) > 3, epochs=2.0)
    runs = RunTable.of(frame)
    starts = [text.split(" (")[0] for text in runs.warnings]
    assert starts == [
        "1 row of 25 flagged as outliers", "4 of 25 rows are checkpoints in mid-schedule",
        "25 of 25 rows trained on repeated text, up to 2.00 epochs: D counts tokens seen, and a "
        "repeated token teaches less than a new one",
    ]  # fmt: skip
    fitted = fit("chinchilla", runs, **QUICK)
    assert tuple(fitted.table_warnings) == runs.warnings
    fitted.save(tmp_path / "fit.json")
    assert json.loads((tmp_path / "fit.json").read_text())["warnings"] == fitted.table_warnings
    assert Fit.load(tmp_path / "fit.json").table_warnings == fitted.table_warnings
    checked = check(fitted, runs, starts=2, resamples=0)
    compared = compare(["chinchilla", "kaplan"], runs, starts=2, resamples=0)
    for result in (fitted, checked, compared):
        printed = result.summary()
        for text in runs.warnings:
            assert printed.count(text) == 1
    assert checked.warnings[:3] == runs.warnings
    assert compared.document()["warnings"] == runs.warnings
