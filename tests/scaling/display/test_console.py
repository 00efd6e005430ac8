"""Lines beside the output of a command."""

import warnings

import pytest

from shapelaw.scaling.display.console import hide_warnings, note
from shapelaw.scaling.display.printable import listed


def test_long_note_is_one_line_of_at_most_300_characters_with_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    note(f"note: {'many words ' * 100}\nof \x1b[31mtwo lines; give --where")
    printed = capsys.readouterr().err
    assert len(printed) == 301
    assert printed.startswith("note: many words")
    assert printed.endswith("two lines; give --where\n")
    assert printed.count("\n") == 1
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more")]
)
def test_list_in_a_note_names_the_first_items(count: int, text: str) -> None:
    assert listed(range(count)) == text


def test_warnings_of_libraries_are_hidden_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with warnings.catch_warnings():
        monkeypatch.setattr("sys.warnoptions", ["error"])
        hide_warnings()
        with pytest.raises(UserWarning):
            warnings.warn("a change to come", stacklevel=1)
        monkeypatch.setattr("sys.warnoptions", [])
        hide_warnings()
        warnings.warn("a change to come", stacklevel=1)
