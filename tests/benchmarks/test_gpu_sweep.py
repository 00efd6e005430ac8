import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from support.paths import ROOT
from support.small_runs import SHAPE, small_corpus

SCRIPT = ROOT / "benchmarks" / "gpu_sweep.py"
# A machine of that kind may have torch, NumPy and little else.
ABSENT = ["pandas", "safetensors", "pyarrow", "zstandard", "rich", "optuna", "matplotlib", "pooch",
          "transformers", "scipy", "typer", "tokenizers", "hypothesis"]  # fmt: skip
WITHOUT = f"""
import importlib.abc, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {ABSENT!r} else found(name, *rest)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def sweep(*arguments: object) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The last document of a call on a machine with little on it, and the lines before it."""
    command = [sys.executable, "-c", WITHOUT, SCRIPT, "--device", "cpu", "--dtype", "float32",
               "--trial-seconds", "0.05", "--most-replicas", "4", "--most-processes", "1",
               *arguments]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, last = [json.loads(line) for line in done.stdout.splitlines()]
    return last, lines


def write_plan(path: Path) -> list[str]:
    shapes = [SHAPE, replace(SHAPE, intermediate_size=48)]
    rows = [
        {**asdict(shape), "tokens": 640 * (1 + number), "seed": seed, "run_id": f"{number}-{seed}",
         "context_length": 16, "sequences": 4, "optimizer": "adamw", "warmup_steps": 1,
         "branches": "320" if number else ""}
        for number, shape in enumerate(shapes)
        for seed in range(2)
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [str(row["run_id"]) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-sweep")
    small_corpus(folder)
    return folder


@pytest.mark.slow
def test_a_plan_is_trained_checked_and_resumed_without_the_toolkit_s_dependencies(
    folder: Path, tmp_path: Path
) -> None:
    names = write_plan(folder / "plan.csv")
    given = [
        "--plan",
        folder / "plan.csv",
        "--corpus",
        folder / "corpus",
        "--out",
        tmp_path / "out",
    ]
    document, lines = sweep(*given)
    rows: list[dict[str, object]] = document["rows"]  # type: ignore[assignment]
    assert {row["run_group"] for row in rows} == set(names)
    assert sorted(row["run_id"] for row in rows if row["tokens"] == 320) == ["1-0-b320", "1-1-b320"]
    assert all(row["status"] == "done" and 0 < row["loss"] < 6 for row in rows)  # type: ignore[operator]
    assert document["undone"] == []
    assert document == json.loads((tmp_path / "out" / "gpu_sweep.json").read_text())
    checks: dict[str, dict[str, object]] = document["checks"]  # type: ignore[assignment]
    assert checks.pop("notes") == []
    assert set(checks) == {"device_against_cpu", "packed_against_single",
                           "captured_against_eager", "chunked_against_plain"}  # fmt: skip
    assert all(check["ok"] for check in checks.values())
    assert {line["event"] for line in lines} == {"begin", "checks", "packing", "pack"}
    again, later = sweep(*given)
    assert {line["event"] for line in later} == {"begin"}
    assert again["rows"] == rows


@pytest.mark.slow
def test_what_does_not_fit_the_time_is_named_and_left(folder: Path, tmp_path: Path) -> None:
    names = write_plan(folder / "plan.csv")
    given = ["--plan", folder / "plan.csv", "--text", folder / "small.txt"]
    out = tmp_path / "out"
    document, lines = sweep(*given, "--out", out, "--no-checks", "--limit-seconds", 0)
    assert document["rows"] == []
    assert document["undone"] == names
    assert sum(line["event"] == "skipped" for line in lines) >= 1


def test_the_speed_models_have_the_sizes_that_they_are_named_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_sweep

    for name, shape in gpu_sweep.SPEED.items():
        size = shape.n_total if name == "8.4M" else shape.n_non_embedding
        assert size == pytest.approx(float(name[:-1]) * 1e6, rel=0.2), name
    assert gpu_sweep.SPEED["8.4M"].n_total == 8_392_960


def test_utilisation_is_model_flops_over_the_published_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_sweep

    from shapelaw.trainers.optimizers.recipe import Recipe
    from support.small_runs import spec

    run = spec(recipe=Recipe(dtype="bfloat16"))
    cpu = gpu_sweep.device_named("cpu")
    assert gpu_sweep.utilisation(run, 1e6, cpu) is None
    monkeypatch.setattr(gpu_sweep, "device_label", lambda device: "NVIDIA H200")
    wanted = 1e6 * SHAPE.training_flops(128) / 989.4e12
    assert gpu_sweep.utilisation(run, 1e6, cpu) == pytest.approx(wanted)
    assert np.isfinite(wanted)
