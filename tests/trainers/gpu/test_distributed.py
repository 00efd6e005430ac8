import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.gpu.distributed import joined, main
from shapelaw.trainers.gpu.sharding import World
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec, model_for
from support.small_runs import RECIPE, SHAPE, STEPS, Killed, killed_at, small_corpus, spec

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Runs several cases in one pair of processes: most of the time is their start.
DRIVER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.gpu.distributed import joined, train_distributed
from shapelaw.trainers.training.spec import RunSpec

folder = Path(sys.argv[1])
rows = {}

def keep(name, step):
    if name == "fsdp-resumed" and step == 9:
        source = folder / name / "checkpoint.safetensors"
        (folder / "kept.safetensors").write_bytes(source.read_bytes())

with joined("ddp") as world:
    for path in sorted(folder.glob("*-*.json")):
        spec, mode = RunSpec.from_json(path.read_text()), path.stem.partition("-")[0]
        row = train_distributed(
            spec, Corpus.load(folder / "corpus"), folder / path.stem,
            world=replace(world, mode=mode),
            checkpoint_seconds=0.0 if "resumed" in path.stem else 1e9,
            watch=lambda step: keep(path.stem, step),
        )
        if world.rank == 0:
            rows[path.stem] = row
if rows:
    (folder / "rows.out").write_text(json.dumps(rows))
"""
RUNS = {
    "ddp-muon": {"optimizer": "muon"},
    "fsdp-muon": {"optimizer": "muon"},
    "fsdp-adamw": {"optimizer": "adamw"},
    "fsdp-resumed": {"optimizer": "muon"},
    "ddp-masked": {"objective": "masked_diffusion"},
    "fsdp-blocks": {"objective": "block:4"},
}


def run_of(name: str) -> RunSpec:
    recipe = replace(RECIPE, learning_rate=2e-3, matrix_learning_rate=4e-3, **RUNS[name])  # type: ignore[arg-type]
    return spec(run_id=name, shape=model_for(recipe, SHAPE), recipe=recipe, seed=3, data_seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that trained every run of :data:`RUNS`, one of them from step 7 on."""
    folder = tmp_path_factory.mktemp("distributed")
    corpus = small_corpus(folder, document_bytes=150)
    for name in RUNS:
        (folder / f"{name}.json").write_text(run_of(name).as_json())
    with pytest.raises(Killed):
        train_run(run_of("fsdp-resumed"), corpus, folder / "fsdp-resumed",
              watch=killed_at(8), checkpoint_seconds=0.0)  # fmt: skip
    (folder / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [*LAUNCH, folder / "driver.py", folder], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_like_one(folder: Path, tmp_path: Path, name: str) -> None:
    row = json.loads((folder / "rows.out").read_text())[name]
    [alone] = train_run(run_of(name), Corpus.load(folder / "corpus"), tmp_path)
    assert row["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert row["loss_se"] == pytest.approx(alone["loss_se"], rel=1e-2)
    assert row["loss_se_clusters"] == alone["loss_se_clusters"]
    assert str(row["loss_se_clusters"]).endswith(" documents")
    assert row["device"].startswith("2 x cpu (")
    assert row["device"].endswith(name.split("-")[0])
    same = [key for key in alone if not key.startswith(("loss", "bits", "seconds", "tokens_"))]
    ours = {key: row[key] for key in same if key not in ("device", "compilation", "attention")}
    assert ours == {key: alone[key] for key in ours}
    weights = load_file(folder / name / "model.safetensors")
    wanted = load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(wanted)
    for key, weight in weights.items():
        torch.testing.assert_close(weight, wanted[key], rtol=0, atol=1e-3, msg=key)
    names = [sorted(p.name for p in place.iterdir()) for place in (folder / name, tmp_path)]
    assert names[0] == names[1]
    windows = np.load(folder / name / "windows.npy")
    assert windows.mean() == pytest.approx(row["loss"])


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes((folder / "kept.safetensors").read_bytes())
    steps: list[int] = []
    corpus = Corpus.load(folder / "corpus")
    [row] = train_run(run_of("fsdp-resumed"), corpus, tmp_path, watch=steps.append)
    assert steps == list(range(10, STEPS + 1))
    two = json.loads((folder / "rows.out").read_text())["fsdp-resumed"]
    assert row["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_a_run_that_cannot_be_distributed_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(InputError, match="`--mode` must be one of ddp, fsdp, but got 'zero'"), \
            joined("zero"):  # fmt: skip
        pass
    with pytest.raises(InputError, match="is started by torchrun"), joined("ddp"):
        pass


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"recipe": replace(RECIPE, sequences=5)}, "got 5 sequences for 2 processes"),
        (
            {"recipe": replace(RECIPE, warmup_steps=2), "branches": (6 * 64,)},
            "`branches` of a distributed run must be empty, but tiny has 1",
        ),
    ],
)
def test_a_run_that_does_not_fit_the_world_is_refused(
    change: dict[str, object], text: str, tmp_path: Path
) -> None:
    from shapelaw.trainers.gpu.distributed import train_distributed

    world = World(mode="ddp", rank=0, size=2, device=torch.device("cpu"), mesh=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=text):
        train_distributed(spec(**change), None, tmp_path, world=world)  # type: ignore[arg-type]


def test_the_command_names_a_file_that_holds_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "run.json"), "--corpus", str(tmp_path), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "run.json is not a run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_under_torchrun_prints_the_row(folder: Path, tmp_path: Path) -> None:
    command = [*LAUNCH, "-m", "shapelaw.trainers.gpu.distributed", folder / "fsdp-adamw.json",
               "--corpus", folder / "corpus", "--out", tmp_path, "--mode", "fsdp"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.strip().splitlines()[-1])
    assert row == json.loads((tmp_path / "row.json").read_text())
    known = json.loads((folder / "rows.out").read_text())["fsdp-adamw"]
    assert row["loss"] == known["loss"]
    assert SHAPE.n_total == row["n_total"]
    assert row["tokens"] == STEPS * RECIPE.batch_tokens
