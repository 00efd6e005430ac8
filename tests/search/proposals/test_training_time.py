"""Tests of budgets in time: the tokens of each shape are those of its training speed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.search.cli import app
from shapelaw.search.proposals.proposal import read_proposals
from shapelaw.search.proposals.training_time import TrainingTime, parse_hardware
from support.quick_fits import known_runs
from support.usual_proposals import propose_usual

H100_PEAK = 989.4e12  # dense FLOP/s in bfloat16, NVIDIA's data sheet of 2023
OPTIONS = ("--params", "1B", "--engine", "roofline:h100", "--workload", "rag", "--extrapolate")


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("law") / "fit.json"
    fit("conditional-steady", known_runs(), starts=16, resamples=20).save(path)
    return path


def output(law: Path, *options: str) -> str:
    command = ["propose", *OPTIONS, "--law", str(law), *options]
    return CliRunner().invoke(app, command, catch_exceptions=False).output


def document(law: Path, *options: str) -> dict[str, Any]:
    command = ["propose", *OPTIONS, "--law", str(law), "--json", *options]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    return dict(json.loads(result.stdout))


def flops_per_token(row: dict[str, Any]) -> float:
    """Three forward passes: 2 FLOPs per matrix parameter and the causal half of 4,096 tokens."""
    head = row["vocab_size"] * row["hidden_size"]
    width = row["num_attention_heads"] * row["head_dim"]
    attention = 4 * width * 2048 * row["num_hidden_layers"]
    return float(3 * (2 * (row["n_non_embedding"] + head) + attention))


@pytest.mark.parametrize(("options", "mfu"), [((), 0.4), (("--mfu", "0.5"), 0.5)])
def test_hours_give_every_shape_the_tokens_of_its_own_training_speed(
    law: Path, options: tuple[str, ...], mfu: float
) -> None:
    found = document(law, "--train-hours", "8", "--hardware", "h100x8", *options)
    rows = found["proposals"]
    for row in rows:
        expected = 8 * 3600 * 8 * mfu * H100_PEAK / flops_per_token(row)
        assert row["tokens"] == pytest.approx(expected, rel=1e-9, abs=1)
    assert len({row["tokens"] for row in rows}) > 1
    assert found["tokens"] == rows[0]["tokens"], "the baseline trains for the same time"
    assert found["training_time"] == {"hours": 8, "hardware": "h100", "devices": 8, "mfu": mfu}
    (note,) = (text for text in found["notes"] if "MFU" in text)
    assert f"an MFU of {mfu:g} is assumed" in note
    assert "no run measured it" in note


def test_loss_of_a_shape_is_that_of_the_law_at_the_baselines_size_and_its_own_tokens(
    law: Path,
) -> None:
    fitted = Fit.load(law)
    base, *others = document(law, "--train-hours", "8", "--hardware", "h100x8")["proposals"]
    seconds_times_flops = 8 * 3600 * 8 * 0.4 * H100_PEAK
    for row in (base, *others):
        lacking = base["n_non_embedding"] - row["n_non_embedding"]
        at_equal_size = row | {
            "n_non_embedding": base["n_non_embedding"],
            "tokens": seconds_times_flops / (flops_per_token(row) + 6 * lacking),
        }
        expected = float(fitted.expected({k: np.array([v]) for k, v in at_equal_size.items()
                                          if k in fitted.law.columns})[0])  # fmt: skip
        assert row["predicted_loss"] == pytest.approx(expected, rel=1e-6)


def test_equal_tokens_give_a_faster_training_no_gain_and_equal_hours_do(law: Path) -> None:
    hours = document(law, "--train-hours", "8", "--hardware", "h100x8")
    equal = document(law, "--tokens", str(hours["tokens"]))
    assert equal["training_time"] is None
    losses = [
        {row["name"]: row["difference_nats"] for row in found["proposals"]}
        for found in (hours, equal)
    ]
    speeds = {row["name"]: row["training_speedup"] for row in hours["proposals"]}
    both = [name for name in losses[0] if name in losses[1] and abs(speeds[name] - 1) > 0.02]
    assert both
    for name in both:
        assert (losses[0][name] < losses[1][name]) == (speeds[name] > 1)


def test_printed_table_has_the_tokens_of_every_shape(law: Path) -> None:
    text = output(law, "--train-hours", "8", "--hardware", "h100x8")
    tokens = re.findall(r"^[a-z -]+, (\S+)B tokens", text, re.M)
    assert len(set(tokens)) > 1
    assert len(tokens) == len(re.findall(r"^d\d+-L", text, re.M)), "below each name, on one line"
    wide = output(law, "--train-hours", "8", "--hardware", "h100x8", "--wide")
    assert re.search(r"^shape +N +tokens ", wide, re.M)
    assert "B tokens" not in output(law, "--tokens", "10B")


def test_page_of_a_budget_in_time_asks_about_the_hours(law: Path, tmp_path: Path) -> None:
    text = output(law, "--train-hours", "8", "--hardware", "h100x8", "--out", str(tmp_path / "out"))
    assert "report.html" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Which shape for 973M parameters and 8 hours of 8 × h100?" in page
    rows, about = read_proposals(tmp_path / "out" / "proposals.json", for_page=True)
    assert about["training_time"]["hours"] == 8
    assert len({row["tokens"] for row in rows}) > 1


HOURS = ("--train-hours", "8")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "neither": ((), "exactly one of `--tokens` and `--train-hours` must be given, but got none"),
    "both": (
        (*HOURS, "--hardware", "h100x8", "--tokens", "1B"),
        "exactly one of `--tokens` and `--train-hours` must be given, but got both",
    ),
    "no hardware": (HOURS, "`--train-hours` needs --hardware"),
    "hardware alone": (("--tokens", "1B", "--hardware", "h100x8"), "belongs to --train-hours"),
    "mfu alone": (("--tokens", "1B", "--mfu", "0.4"), "`--mfu` belongs to --train-hours"),
    "unknown hardware": (
        (*HOURS, "--hardware", "h900x8"),
        r"`--hardware` must be one of a100, h100, h200, .*rtx4090.* but got 'h900x8'",
    ),
    "no devices": ((*HOURS, "--hardware", "h100x0"), "must have 1 to 1,000,000 devices"),
    "endless devices": ((*HOURS, "--hardware", "h100x" + "9" * 5000), "must have 1 to 1,000,000"),
    "many devices": ((*HOURS, "--hardware", "h100x9999999"), "must have 1 to 1,000,000 devices"),
    "zero hours": (("--train-hours", "0", "--hardware", "h100"), "`0 < --train-hours <="),
    "negative hours": (("--train-hours=-1", "--hardware", "h100"), "but got -1"),
    "hours that are no number": (("--train-hours", "nan", "--hardware", "h100"), "but got nan"),
    "endless hours": (("--train-hours", "inf", "--hardware", "h100"), "but got inf"),
    "mfu above 1": ((*HOURS, "--hardware", "h100", "--mfu", "40"), "`0 < --mfu <= 1` must hold"),
    "mfu of 0": ((*HOURS, "--hardware", "h100", "--mfu", "0"), "`0 < --mfu <= 1` must hold"),
    "no token": (("--train-hours", "1e-18", "--hardware", "h100"), "the training tokens of the"),
    "calibration that lacks": ((*HOURS, "--hardware", "thisx2"), "calibration of this machine"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_invalid_budget_in_time_is_a_one_line_error(
    law: Path, options: tuple[str, ...], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path))
    result = CliRunner().invoke(app, ["propose", *OPTIONS, "--law", str(law), *options])
    assert isinstance(result.exception, InputError)
    assert re.search(message, str(result.exception))
    assert len(str(result.exception)) <= 300


def test_law_in_which_tokens_change_nothing_is_refused_for_a_budget_in_time() -> None:
    device, devices = parse_hardware("h100x8")
    time = TrainingTime(hours=8, hardware=device, devices=devices)
    assert "tokens" not in printed_fit("paper-2510.18245").law.columns
    with pytest.raises(InputError, match="`--train-hours` needs a law with a term in training"):
        propose_usual(time=time)


@pytest.mark.parametrize(
    ("text", "key", "devices"),
    [("h100", "h100", 1), ("h100x8", "h100", 8), ("rtx4090", "rtx4090", 1),
     ("rtx4090x2", "rtx4090", 2), ("mi300x", "mi300x", 1), ("mi300xx16", "mi300x", 16)],
)  # fmt: skip
def test_hardware_with_an_x_in_its_name_is_read_with_and_without_a_number(
    text: str, key: str, devices: int
) -> None:
    device, number = parse_hardware(text)
    assert (device.key, number) == (key, devices)


def test_memory_too_small_for_the_training_state_is_said() -> None:
    device, _ = parse_hardware("h100")
    small = TrainingTime(hours=8, hardware=device)
    large = TrainingTime(hours=8, hardware=device, devices=8)
    base = propose_usual().ranked[0].shape  # 1.24B parameters at 16 bytes: 20 GB
    assert len(small.notes(base)) == 1
    wide = replace(base, intermediate_size=8 * base.intermediate_size)
    assert 16 * wide.n_total > 80e9
    assert "needs more devices" not in large.notes(wide)[-1]
    assert "needs more devices" in small.notes(wide)[-1]
