"""Ctrl-C and SIGTERM end a command and its workers with one line, and the same command goes on."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from support.command import SMALL, shapelaw, started_shapelaw
from support.waiting import wait_until

pytestmark = pytest.mark.slow
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 256,
}  # fmt: skip
PLAN = (
    "hidden_size,intermediate_size,num_hidden_layers,num_attention_heads,num_key_value_heads,"
    "head_dim,tokens,run_id\n"
    + "".join(f"16,32,2,2,1,8,{tokens},run{tokens}\n" for tokens in (40_000, 40_064, 40_128))
)
SETTINGS = ("--set", "context_length=16", "--set", "sequences=4")
PROPOSE = (
    "propose", "--params", "200K", "--tokens", "2M", "--vocab", "256", "--layers", "4",
    "--head-dim", "16", "--workload", "128/64@8", "--engine", "torch", "--measurements", "5",
    "--estimated", "0", "--no-cache", "--storage", "study.log",
)  # fmt: skip


@dataclass(frozen=True)
class Cancelled:
    """A command, and the moments at which it is cancelled: when files of these patterns exist.

    ``before`` is a command that makes what it needs; it leaves one file of each pattern among the
    arguments.
    """

    arguments: tuple[str, ...]
    moments: tuple[str, ...]
    result: str
    before: tuple[str, ...] = ()

    def reached(self, folder: Path, moment: str) -> Callable[[], bool]:
        return lambda: any(folder.glob(moment))


COMMANDS = {
    "sweep run": Cancelled(
        ("sweep", "run", "plan.csv", "--corpus", "text", "--out", "out", "--workers", "2",
         *SETTINGS),
        ("out/corpus/corpus.json", "out/runs/*/metrics.csv"), "out/runs.csv",
    ),
    "train": Cancelled(
        ("train", "config.json", "--tokens", "40K", "--corpus", "text", "--out", "out", *SETTINGS),
        ("out/corpus/corpus.json", "out/runs/*/metrics.csv"), "out/runs.csv",
    ),
    "convert": Cancelled(
        ("convert", "out/runs/*", "--to", "diffusion", "--tokens", "40K"),
        ("out/runs/*-diffusion-*/metrics.csv",), "out/runs/*-diffusion-*/model.safetensors",
        ("train", "config.json", "--tokens", "2K", "--corpus", "text", "--out", "out", *SETTINGS),
    ),
    "quickstart": Cancelled(
        ("quickstart", "--corpus", "text", "--out", "out", *SMALL),
        ("out/quickstart.json", "out/**/metrics.csv", "out/fit.json"), "out/report.html",
    ),
    "propose": Cancelled(PROPOSE, ("study.log",), "study.log"),
    "compare-families": Cancelled(
        ("compare-families", "--params", "20K", "--tokens", "4K", "--families", "gpt2", "--seeds",
         "2", "--corpus", "text", "--out", "out", "--workers", "2", *SETTINGS),
        ("out/corpus/corpus.json", "out/runs/*/metrics.csv"), "out/table.csv",
    ),
}  # fmt: skip


def cancel(command: Cancelled, folder: Path, moment: str, number: signal.Signals) -> str | None:
    """Cancel a command at a moment; return its standard error, None if it had ended before."""
    started = started_shapelaw(*command.arguments, cwd=folder)
    try:
        reached = command.reached(folder, moment)
        wait_until(lambda: reached() or started.poll() is not None, moment)
        if started.poll() is None:
            os.killpg(started.pid, number)
        err = started.communicate()[1]
    finally:
        started.kill()
    return None if started.returncode == 0 else f"{started.returncode}: {err}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("name", COMMANDS)
def test_cancelled_command_ends_with_one_line_and_goes_on(
    name: str, number: signal.Signals, text_folder: Path, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    (tmp_path / "text").symlink_to(text_folder)
    (tmp_path / "plan.csv").write_text(PLAN)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if command.before:
        assert shapelaw(*command.before, cwd=tmp_path).returncode == 0
        found = {each: list(tmp_path.glob(each)) for each in command.arguments if "*" in each}
        assert all(len(paths) == 1 for paths in found.values())
        named = (str(found[each][0]) if each in found else each for each in command.arguments)
        command = replace(command, arguments=tuple(named))
    ended = [cancel(command, tmp_path, moment, number) for moment in command.moments]
    assert any(ended), "no moment came before the end of the command"
    for text in filter(None, ended):
        assert text.startswith(f"{128 + number}: "), text
        assert "Traceback" not in text, text
        assert text.count("error: stopped; the same command goes on from here\n") == 1, text
        assert text.count("error:") == 1, text
    done = shapelaw(*command.arguments, cwd=tmp_path)
    assert (done.returncode, any(tmp_path.glob(command.result))) == (0, True), done.stderr
