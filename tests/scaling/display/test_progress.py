"""Progress bars of commands."""

import io

import pytest
from rich.console import Console

from shapelaw.scaling.display.progress import (
    QUIET_SECONDS,
    late_progress,
    progress_shown,
    track,
    working,
)


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, False), (QUIET_SECONDS, True)])
def test_bar_appears_only_after_its_quiet_seconds(seconds: float, shown: bool) -> None:
    times = iter([0.0])
    bar = late_progress(Console(file=io.StringIO()), lambda: next(times, seconds))
    bar.add_task("measuring shapes", total=3)
    assert bool(list(bar.get_renderables())) is shown


def test_bar_without_a_terminal_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_shown(), working("measuring", total=2) as show:
        show(1)
    assert capsys.readouterr() == ("", "")


def test_bar_of_a_quiet_command_is_not_shown_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    monkeypatch.setattr("shapelaw.scaling.display.progress.QUIET_SECONDS", 0.0)
    with progress_shown(quiet=True), working("measuring"):
        pass
    assert capsys.readouterr().err == ""
    with progress_shown(), working("measuring"):
        pass
    assert "measuring" in capsys.readouterr().err


def test_tracked_items_are_the_given_ones_with_and_without_a_bar() -> None:
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    with progress_shown():
        assert list(track("abc", "letters", total=3)) == ["a", "b", "c"]
