import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import COLUMNS
from shapelaw.search.autopilot.record import LoopSettings, locked_folder
from shapelaw.search.autopilot.run_plan import (
    CONFIRMATION_SEEDS,
    LAYERS,
    PROXY_SIZES,
    PROXY_TOKENS,
    confirmation_specs,
    proxy_specs,
)
from shapelaw.search.autopilot.stages import seed_noise
from shapelaw.search.proposals.proposal import read_proposals
from support.command import SMALL, shapelaw

CONCLUSION = (
    r"^The \S+ shape \S+ serves at least \d+\.\d times as fast as the baseline at no more loss "
    r"with probability [01]\.\d\d; trained: \d+\.\d\d times, loss [+-]\d+\.\d % ± \d+\.\d %\.$"
)
pytestmark = pytest.mark.xdist_group("loop")


def test_plan_of_proxies_separates_sizes_token_counts_and_ratios() -> None:
    specs = proxy_specs(LoopSettings(), 256)
    table = pd.DataFrame(
        {
            "n": [spec.shape.n_non_embedding for spec in specs],
            "tokens": [spec.tokens for spec in specs],
            "hidden": [spec.shape.hidden_over_sqrt_n for spec in specs],
            "mlp": [spec.shape.mlp_to_attention for spec in specs],
            "gqa": [spec.shape.gqa for spec in specs],
            "layers": [spec.shape.num_hidden_layers for spec in specs],
        }
    )
    assert len({spec.run_id for spec in specs}) == len(specs)
    sizes = np.array(list(PROXY_SIZES))
    targets = sizes[abs(np.log(table["n"].to_numpy()[:, None] / sizes)).argmin(axis=1)]
    assert (abs(table["n"] / targets - 1) < 0.02).all()
    for size, shapes in PROXY_SIZES.items():
        part = table[targets == size]
        assert (
            len(part[part["tokens"] == PROXY_TOKENS].drop(columns="tokens").drop_duplicates())
            == shapes
        )
        assert set(part["tokens"]) == {PROXY_TOKENS, 2 * PROXY_TOKENS}
    assert set(table["layers"]) <= set(LAYERS)
    assert table["layers"].nunique() >= 4
    between = np.log(table).corr().to_numpy()
    assert abs(between[np.triu_indices(len(between), 1)]).max() < 0.45


def test_plan_repeats_one_proxy_with_another_seed() -> None:
    specs = proxy_specs(LoopSettings(seed=5), 256)
    shapes = [(spec.shape, spec.tokens) for spec in specs]
    twice = [spec for spec in specs if shapes.count((spec.shape, spec.tokens)) == 2]
    assert {spec.seed for spec in twice} == {5, 6}
    assert {spec.data_seed for spec in specs} == {0}


def test_seed_of_the_settings_changes_no_shape() -> None:
    plans = [proxy_specs(LoopSettings(seed=seed), 256) for seed in (0, 9)]
    first, second = ([(spec.shape, spec.tokens) for spec in plan] for plan in plans)
    assert first == second


def test_confirmation_trains_every_shape_with_two_seeds() -> None:
    shapes = [spec.shape for spec in proxy_specs(LoopSettings(), 256)[:2]]
    specs = confirmation_specs(LoopSettings(seed=3), shapes)
    assert sorted((spec.shape == shapes[0], spec.seed) for spec in specs) == [
        (False, 3), (False, 4), (True, 3), (True, 4),
    ]  # fmt: skip
    assert {spec.tokens for spec in specs} == {1_000_000}


def test_confirmed_shapes_are_ranked_right_where_they_differ_by_twice_the_standard_error() -> None:
    """The shipped quickstart, with the prior that a quickstart takes: its proxies alone decide."""
    proxies = load_runs("quickstart", where="role == 'proxy'")
    confirmed = load_runs("quickstart", where="role == 'confirmation'").frame
    fitted = fit("conditional", proxies, prior="pooled", starts=16, resamples=200)
    error = 2**0.5 * seed_noise(proxies)[0]
    measured, predicted = np.log(confirmed["loss"].to_numpy()), np.log(fitted.central(confirmed))
    pairs = [
        (i, j) for i, j in combinations(range(3), 2) if abs(measured[i] - measured[j]) > 2 * error
    ]
    assert len(pairs) == 2
    for i, j in pairs:
        assert np.sign(predicted[i] - predicted[j]) == np.sign(measured[i] - measured[j])
        assert abs(predicted[i] - predicted[j] - (measured[i] - measured[j])) < 2 * error


def test_seed_noise_of_a_quickstart_is_pooled_with_that_of_the_shipped_runs() -> None:
    proxies, shipped = load_runs("quickstart", where="role == 'proxy'"), load_runs("proxies")
    deviation, degrees = seed_noise(proxies)
    parts = [proxies.noise, shipped.noise]
    assert degrees == parts[0][1] + parts[1][1] > 40
    assert deviation**2 * degrees == pytest.approx(sum(s**2 * f for s, f in parts))
    assert seed_noise(proxies.take(np.arange(4))) == pytest.approx(shipped.noise)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"effort": 0.0}, "--effort"), ({"measurements": 2}, "--measurements >= 3")],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LoopSettings(**changes)  # type: ignore[arg-type]


def test_second_quickstart_in_a_locked_folder_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(WorkError, match="another quickstart is at work")
    with locked_folder(tmp_path), refused, locked_folder(tmp_path):
        pass
    with locked_folder(tmp_path):
        assert (tmp_path / "work").is_dir()


def test_loop_writes_every_file_and_a_complete_run_table(loop_folder: Path) -> None:
    for name in ("runs.csv", "fit.json", "study.log", "proposals.json", "pareto.png", "law.png"):
        assert (loop_folder / name).stat().st_size > 100, name
    runs = load_runs(loop_folder / "runs.csv").frame
    assert set(COLUMNS) <= set(runs.columns)
    proxies = runs["role"] == "proxy"
    assert proxies.sum() == sum(PROXY_SIZES.values()) + len(PROXY_SIZES) + 1
    named = [row["role"] for row in read_proposals(loop_folder / "proposals.json")[0]]
    roles = {"loss-optimal", "fast" if "fast" in named else "even odds", "baseline"}
    assert (~proxies).sum() == CONFIRMATION_SEEDS * len(roles & set(named))
    assert Fit.load(loop_folder / "fit.json").run_ids == list(runs["run_id"][proxies])
    assert not list(loop_folder.glob(".*"))


def test_every_proposal_has_a_config_that_transformers_loads(loop_folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    rows = json.loads((loop_folder / "proposals.json").read_text())["proposals"]
    assert [row["role"] for row in rows].count("baseline") == 1
    for row in rows:
        config = transformers.AutoConfig.from_pretrained(loop_folder / "proposals" / row["name"])
        assert config.hidden_size == row["hidden_size"]
        assert config.num_key_value_heads == row["num_key_value_heads"]
        assert config.rope_parameters["rope_theta"] == row["rope_theta"]


def test_second_start_trains_no_run_again(
    loop_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(loop_folder, folder)
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("work/runs/*/*")}
    before = (folder / "runs.csv").read_bytes()
    done = shapelaw("quickstart", "--corpus", text_folder, "--out", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs.csv").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    printed = json.loads(done.stdout)
    assert printed["confirmation"]
    assert re.search(CONCLUSION, printed["conclusion"])


def test_another_setting_in_the_same_folder_is_refused(
    loop_folder: Path, text_folder: Path
) -> None:
    done = shapelaw("quickstart", "--corpus", text_folder, "--out", loop_folder, "--seed", "7")
    assert done.returncode == 2
    assert "holds a run of `shapelaw quickstart` with another" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_quickstart_killed_at_random_moments_ends_with_the_same_losses(
    loop_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", "from shapelaw.search.cli import main; main()", "quickstart"]
    arguments = ["--corpus", str(text_folder), "--out", str(folder), *SMALL]
    moments = random.Random(time.time_ns())
    waits = [moments.uniform(3, 12) for _ in range(3)]
    for wait in waits:
        started = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
        try:
            started.wait(wait)
        except subprocess.TimeoutExpired:
            os.kill(started.pid, signal.SIGKILL)
            started.wait()
    done = shapelaw("quickstart", *arguments)
    assert done.returncode == 0, (waits, done.stderr)
    wanted, got = (load_runs(path / "runs.csv").frame for path in (loop_folder, folder))
    proxies = wanted["role"] == "proxy"
    pd.testing.assert_series_equal(got["loss"][proxies], wanted["loss"][proxies], check_exact=True)
    common = wanted.merge(got, on="run_id", suffixes=("", "_killed"))
    assert len(common) >= proxies.sum() + 2  # the fast shape depends on measured speeds
    assert (common["loss"] == common["loss_killed"]).all(), waits
    assert (folder / "report.html").exists()
