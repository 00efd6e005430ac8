"""The benchmark of the start of the command."""

import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import startup


def test_start_is_measured_where_the_command_is_not_on_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert startup.seconds_of_help() > 0
