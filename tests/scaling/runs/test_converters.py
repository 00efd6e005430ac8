"""Tests of the converters, on published files in a mirror and on small files of their layout."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.converters import (
    OLMO_SHAPES,
    gemstones,
    mlfoundations_grid,
    mlfoundations_overtrained,
    mlfoundations_tuned,
    olmo_ladder,
    steplaw,
)
from shapelaw.scaling.runs.ratios import table_of
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.runs.validation import require_comparable_losses

GEMSTONES = ("gemstones", "gemstones-hot", "gemstones-hot-long", "gemstones-lr-ablation")


def chinchilla_mse(runs: pd.DataFrame, size: str) -> float:
    """Return the mean squared error of E + A/N^α + B/D^β, fitted to the loss by least squares."""
    logs = np.log(runs[[size, "tokens"]].to_numpy(dtype=float))
    n, d = (logs - logs.mean(axis=0)).T
    loss = runs["loss"].to_numpy()

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[0] + np.exp(p[1] - p[2] * n) + np.exp(p[3] - p[4] * d) - loss

    fitted = least_squares(residuals, [2.0, -0.5, 0.3, -1.0, 0.3], x_scale="jac", max_nfev=2000)
    return 2 * fitted.cost / len(loss)


@pytest.mark.parametrize("name", GEMSTONES)
def test_the_shapes_of_the_gemstones_have_the_published_parameters_exactly(mirror, name):
    runs = load_runs(name)
    np.testing.assert_array_equal(table_of(runs.frame).n_total, runs["n_total"])
    np.testing.assert_array_equal(
        runs["n_total"] - runs["n_non_embedding"], 2 * 50_304 * runs["hidden_size"]
    )
    assert set(runs["intermediate_size"] / runs["hidden_size"]) == {4}
    assert runs["run_id"].is_unique


def test_the_annealed_gemstones_are_20_shapes_at_10_token_counts(mirror):
    runs = load_runs("gemstones")
    assert len(runs) == 199
    counts = runs.frame.groupby("run_group")["tokens"].nunique()
    assert len(counts) == 20
    assert sorted(counts)[:2] == [9, 10]
    assert runs["decayed"].all()
    assert runs.warnings == ()
    np.testing.assert_array_equal(
        runs["aspect_ratio"], runs["hidden_size"] / runs["num_hidden_layers"]
    )


@pytest.mark.parametrize("name", GEMSTONES[1:])
def test_checkpoints_at_a_constant_rate_come_with_a_warning(mirror, name):
    (warning,) = load_runs(name).warnings
    assert "checkpoints in mid-schedule" in warning


def test_chinchilla_fit_of_the_gemstones_has_the_recorded_error(mirror):
    runs = load_runs("gemstones")
    assert chinchilla_mse(runs.frame, "n_total") == pytest.approx(2.28e-3, abs=5e-6)
    assert chinchilla_mse(runs.frame, "n_non_embedding") == pytest.approx(1.11e-3, abs=2e-5)


def test_the_slim_chinchilla_points_are_among_those_of_chinchilla(mirror):
    slim, all_points = load_runs("gemstones-chinchilla"), load_runs("chinchilla")
    distance = np.abs(slim["loss"].to_numpy()[:, None] - all_points["loss"].to_numpy())
    assert distance.min(axis=1).max() < 1e-9


def test_the_grid_has_the_published_shapes_and_tokens_exactly(mirror):
    grid = load_runs("mlfoundations-grid")
    np.testing.assert_array_equal(grid["tokens"], 20 * grid["n_total"])
    flat = pd.read_csv(mirror / "mlfoundations_scaling" / "grid_flat.csv")
    np.testing.assert_array_equal(grid["loss"], flat["loss"])
    np.testing.assert_array_equal(grid["intermediate_size"], flat["ffn_open_lm"])
    np.testing.assert_array_equal(grid["warmup_steps"], flat["warmup"])
    assert grid.noise[1] == 0  # another warmup is another recipe


def test_a_tuned_shape_is_its_best_run_and_the_others_are_named(mirror):
    tuned, grid = load_runs("mlfoundations"), load_runs("mlfoundations-grid")
    assert len(tuned) == 130
    assert (tuned["n_total"] > 50e6).sum() == 91
    shape = ["hidden_size", "num_hidden_layers", "num_attention_heads"]
    lowest = grid.frame.groupby(shape)["loss"].min()
    np.testing.assert_array_equal(
        tuned.frame.set_index(shape)["loss"].sort_index(), lowest.sort_index()
    )
    left_out = tuned.left_out
    assert set(left_out) | set(tuned["run_id"]) == set(grid["run_id"])
    assert set(left_out.values()) == {"another warmup gave this shape a lower loss"}
    assert tuned["warmups_tried"].sum() == len(grid)


def test_the_overtrained_models_have_the_published_parameters_and_eight_losses(mirror):
    runs = load_runs("mlfoundations-overtrained")
    flat = pd.read_csv(mirror / "mlfoundations_scaling" / "models_flat.csv")
    published = flat.drop_duplicates("name").set_index("name")
    np.testing.assert_array_equal(runs["n_total"], published.loc[runs["run_id"], "N"])
    assert len([name for name in runs if name.startswith("loss_")]) == 8
    np.testing.assert_array_equal(runs["loss"], runs["loss_c4_val"])
    with pytest.raises(ValueError, match="`corpus` must be the same for all rows"):
        require_comparable_losses(runs.frame, "overtrained")


def test_step_law_counts_attention_and_mlp_parameters(mirror):
    runs = load_runs("steplaw")
    assert len(runs) == 1911
    shapes = table_of(runs.frame)
    body = shapes.num_hidden_layers * (shapes.attention_parameters + shapes.mlp_parameters)
    np.testing.assert_array_equal(runs["n_non_embedding"], body)
    np.testing.assert_allclose(runs["batch_tokens"] * runs["steps"], runs["tokens"], rtol=0.003)
    cells = runs.frame.groupby(["n_non_embedding", "tokens"])
    assert runs["best_of_grid"].sum() == len(cells) == 17
    assert "n_total" not in runs
    assert sorted({round(ratio, 2) for ratio in runs["mlp_to_attention"]}) == [
        3,
        5.3,
        5.55,
        7,
        7.32,
    ]


def test_the_ladder_has_the_published_parameters_and_last_losses(mirror):
    runs = load_runs("olmo-ladder").frame.set_index("run_id")
    sizes = json.loads((mirror / "olmo_ladder" / "final.json").read_text())
    for label, run in [("190M", "190M-1xC"), ("370M", "370M-5xC"), ("1.3B", "1B-2xC")]:
        assert runs.loc[f"olmo-{run}", "n_published"] == sizes[label]["n"]
    assert runs.loc["olmo-2-13B", "n_published"] == sizes["13B-5T"]["n"]
    assert runs.loc["olmo-2-13B", "tokens"] == 5_000_088_518_656  # README of the authors' scripts
    last = pd.read_csv(mirror / "olmo_ladder/ladder-runs/760M-10xC.csv").iloc[-1]
    row = runs.loc["olmo-760M-10xC"]
    assert row["loss"] == row["loss_c4_en"] == last["eval/c4_en-validation/CrossEntropyLoss"]
    assert row["bpb_arc_easy_test_rc"] == last["eval/downstream_bpb/arc_easy_test_rc_5shot_bpb"]
    assert row["accuracy_boolq_val_rc"] == last["eval/downstream/boolq_val_rc_5shot_acc"]


def test_the_ladder_pairs_losses_and_accuracies_of_the_same_tasks(mirror):
    runs = load_runs("olmo-ladder")
    tasks = {name.removeprefix("bpb_") for name in runs if name.startswith("bpb_")}
    assert len(tasks) == 20
    assert tasks == {name.removeprefix("accuracy_") for name in runs if "accuracy_" in name}
    scores = runs.frame.filter(regex="^(loss_|bpb_|accuracy_)")
    assert scores.notna().all(axis=None)
    assert ((scores.filter(regex="^accuracy_") > 0) & (scores.filter(regex="^accuracy_") < 1)).all(
        axis=None
    )
    assert (runs["part"] == "ladder").sum() == 16
    multiple = runs["tokens"] / 20 / runs["n_published"]
    ladder = runs["part"] == "ladder"
    np.testing.assert_allclose(multiple[ladder], runs["chinchilla_multiple"][ladder], rtol=2e-3)


def test_the_shipped_models_of_the_paper_are_those_of_its_tables(mirror):
    runs = load_runs("paper-2510.18245")
    printed = pd.read_csv(mirror / "paper_2510.18245" / "table1_table2_models.csv")
    assert runs["run_id"].tolist() == printed["model"].str.lower().tolist()
    assert runs["loss"].tolist() == printed["loss"].tolist()
    np.testing.assert_allclose(runs["n_non_embedding"], printed["N_nonembed_derived"], rtol=1e-4)
    np.testing.assert_allclose(runs["mlp_to_attention"], printed["r_derived"], rtol=1e-4)
    np.testing.assert_array_equal(runs["gqa"], printed["gqa"])
    np.testing.assert_allclose(100 * runs["accuracy_mean_of_9"], printed["avg_acc9"], rtol=1e-12)
    assert (runs["tokens"] == 100e9).all()


def test_3b_models_of_the_paper_have_the_printed_proportions():
    runs = load_runs("paper-2510.18245").frame.set_index("run_id")
    assert runs.loc["panda-3b", "mlp_to_attention"] == 1
    assert runs.loc["surefire-3b", "gqa"] == 7
    assert runs.loc["panda-3b-circ", "hidden_over_sqrt_n"] == pytest.approx(0.0764, abs=1e-4)


# Small files in the published layout, so that converters are tested without a mirror.


def test_a_gemstone_checkpoint_becomes_a_row(tmp_path):
    row = {
        "run_name": "PyGemma-384x13_pretrain", "params_active_precise": 66_758_784, "width": 384,
        "depth": 13, "tokens": 8_388_608, "step": 2, "num_nodes": 1, "seconds_per_step": 0.5,
        "final_loss": 3.5,
    }  # fmt: skip
    (tmp_path / "cool.jsonl").write_text(json.dumps(row) + "\n")
    table = gemstones({"cool": tmp_path / "cool.jsonl"}, schedule="constant", decayed=False)
    runs = RunTable.of(table, "gemstones")
    (made,) = runs.frame.to_dict("records")
    assert made["run_id"] == "384x13-step2"
    assert (made["num_attention_heads"], made["num_key_value_heads"], made["gqa"]) == (3, 1, 3)
    assert table_of(runs.frame).n_total.tolist() == [66_758_784]
    assert made["batch_tokens"] == 4_194_304
    assert made["mlp_to_attention"] == pytest.approx(4.5)


GRID = {
    "d=96_l=4_h=4-8-0.003-0.033-8-202523520-100-3e-05": 5.3,
    "d=96_l=4_h=4-8-0.003-0.033-8-202523520-200-3e-05": 5.2,
    "d=488_l=4_h=12-64-0.003-0.033-64-1239373600-400-3e-05": 3.6,
}


def test_the_names_of_the_grid_are_read_and_the_best_warmup_is_kept(tmp_path):
    (tmp_path / "grid.json").write_text(json.dumps(GRID))
    files = {"grid": tmp_path / "grid.json"}
    grid = RunTable.of(mlfoundations_grid(files), "grid")
    np.testing.assert_array_equal(grid["tokens"], 20 * grid["n_total"])
    assert grid["head_dim"].tolist() == [24, 24, 40]  # 12 heads of 40 in a width of 488
    tuned = mlfoundations_tuned(files)
    assert tuned["loss"].tolist() == [5.2, 3.6]
    assert tuned["warmups_tried"].tolist() == [2, 1]
    assert list(tuned.attrs["left_out"]) == ["d=96_l=4_h=4-warmup100"]


def test_losses_on_several_texts_become_columns(tmp_path):
    rows = [
        ("c4-d=96_l=8_h=4-1", "c4", "d=96_l=8_h=4.json", text, loss)
        for text, loss in [("c4_val", 5.0), ("de-en", 7.0)]
    ]
    rows.append(("c4-open_lm_1b-1", "c4", "open_lm_1b", "c4_val", 3.0))
    flat = pd.DataFrame(rows, columns=["name", "dataset", "model", "val", "loss"])
    flat.assign(D=2e8, lr=3e-3, wd=0.033, global_bs=64, warmup=400).to_csv(tmp_path / "m.csv")
    table = mlfoundations_overtrained({"m": tmp_path / "m.csv"})
    assert table["n_total"].tolist() == [10_569_312, 1_439_795_200]
    assert table["loss_de_en"].tolist()[0] == 7
    assert np.isnan(table["loss_de_en"].tolist()[1])


def test_step_law_run_keeps_smoothed_and_last_step_loss(tmp_path):
    row = {"h": 960, "ffnh": 9368, "numh": 15, "numl": 7, "lr": 1e-3, "bs": 736, "ti": 66342,
           "loss": 2.41, "smooth loss": 2.4, "exp_name": "one", "D": 10**11, "N": 214_663_680,
           "D/N": 465.8}  # fmt: skip
    path = tmp_path / "s.csv"
    pd.DataFrame([row, {**row, "lr": 2e-3, "smooth loss": 2.5, "exp_name": "two"}]).to_csv(path)
    table = steplaw({"s": path})
    assert table["loss"].tolist() == [2.4, 2.5]
    assert table["loss_last_step"].tolist() == [2.41, 2.41]
    assert table["best_of_grid"].tolist() == [True, False]
    assert table["mlp_to_attention"].iloc[0] == pytest.approx(3 * 9368 / (4 * 960))


def test_the_last_checkpoint_of_a_ladder_run_is_its_row(tmp_path):
    evaluations = pd.DataFrame(
        {
            "_step": [10, 20],
            "eval/c4_en-validation/CrossEntropyLoss": [4.0, 3.5],
            "eval/dolma_common-crawl-validation/CrossEntropyLoss": [4.1, 3.6],
            "eval/downstream_bpb/piqa_val_rc_5shot_bpb": [2.0, 1.5],
            "eval/downstream/piqa_val_rc_5shot_len_norm": [0.5, 0.6],
            "eval/downstream_soft/piqa_val_rc_5shot_soft": [0.5, 0.6],
            "learning_rate_peak": 1e-3,
            "batch_size_in_tokens": 1000,
        }
    )
    path = tmp_path / "downloaded-under-another-name"
    evaluations.to_csv(path)
    table = olmo_ladder({"olmo_ladder/ladder-runs/3B-2xC.csv": path})
    (row,) = table.to_dict("records")
    assert row["run_id"] == "olmo-3B-2xC"
    assert row["tokens"] == 20_000
    assert row["loss_dolma_common_crawl"] == 3.6
    assert (row["bpb_piqa_val_rc"], row["accuracy_piqa_val_rc"]) == (1.5, 0.6)
    assert row["n_published"] == 3_169_537_280  # ladder.py of the authors' repository
    assert not [name for name in row if "soft" in name]
    assert OLMO_SHAPES["3B"][0] == row["hidden_size"]
