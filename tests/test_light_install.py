"""An installation without extras: fit, check, plan and propose work, and torch is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("light installation")]
RUNS = ROOT / "data" / "quickstart" / "runs.csv"
INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps")


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment with what ``pip install .`` brings, as locked."""
    folder = tmp_path_factory.mktemp("light") / "venv"
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    python = folder / "bin" / "python"
    for more in (
        ("--require-hashes", "-r", ROOT / "locks" / "core.txt"),
        ("--no-build-isolation", ROOT),
    ):
        done = run(python, *INSTALL, *more)
        assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_an_installation_without_extras_is_complete_and_has_no_torch(environment: Path) -> None:
    assert run(environment / "python", "-m", "pip", "check").returncode == 0
    listed = run(environment / "python", "-m", "pip", "list", "--format", "json")
    names = {package["name"] for package in json.loads(listed.stdout)}
    assert "shapelaw" in names
    assert names.isdisjoint({"torch", "transformers", "tokenizers", "ray", "triton"})


def test_fit_check_plan_and_propose_work_without_torch(environment: Path, tmp_path: Path) -> None:
    for command in (
        ("fit", RUNS, "--out", "fit.json"),
        ("predict", "fit.json", RUNS),
        ("check", RUNS),
        ("space", "--params", "1B"),
        ("sweep", "plan", "--sizes", "50K,100K", "--shapes", "8", "--out", "plan.csv"),
        (
            "propose",
            "--params",
            "1B",
            "--tokens",
            "100B",
            "--engine",
            "roofline:h100",
            "--out",
            "p",
        ),
        ("doctor",),
    ):
        done = run(environment / "shapelaw", *command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "plan.csv").exists()
    assert (tmp_path / "p" / "report.html").exists()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("quickstart",), "train"),
        (("train", "config.json", "--tokens", "1M"), "train"),
        (("measure", "config.json", "--engine", "torch"), "train"),
        (("measure", "config.json", "--engine", "transformers"), "hf"),
        (("measure", "config.json", "--engine", "aiconfigurator:h100"), "predict"),
        (("propose", "--params", "200K", "--tokens", "2M", "--engine", "torch"), "train"),
        (("sweep", "run", "plan.csv"), "train"),
        (("convert", "sweep/runs/first", "--to", "diffusion", "--tokens", "1M"), "train"),
    ],
)
def test_a_command_that_needs_an_absent_extra_names_it(
    environment: Path, tmp_path: Path, command: tuple[str, ...], extra: str
) -> None:
    shape = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    done = run(environment / "shapelaw", *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f'`pip install "shapelaw[{extra}]"`' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "shapelaw-quickstart").exists()
