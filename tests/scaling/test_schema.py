"""Values of JSON documents against the types that annotate their fields."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import pytest

from shapelaw.scaling.display.printable import one_line, printable, shown, without_passwords
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import MAX_DEPTH, parse_json
from shapelaw.scaling.schema import Count, FileName, Fraction, ReadBy, conform


@dataclass(frozen=True)
class Part:
    size: Count
    share: Fraction = 0.5
    names: tuple[str, ...] = ()


class Whole(TypedDict):
    part: Part
    table: NotRequired[np.ndarray]


def test_document_becomes_its_dataclasses_tuples_and_arrays() -> None:
    document = {"part": {"size": 3, "names": ["a"]}, "table": [[1, 2.5], [3, 4]], "more": None}
    whole = conform(document, Whole)
    assert whole["part"] == Part(3, 0.5, ("a",))
    assert whole["table"].tolist() == [[1.0, 2.5], [3.0, 4.0]]
    assert whole["more"] is None


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "must be an integer, but is True"), (1.0, int, "must be an integer"),
        (2**63, int, "64 bits"), (False, float, "finite number"), ("1", float, "finite number"),
        (float("nan"), float, "finite"), (10**400, float, "finite"), (-1, Count, "at least 0"),
        (1.5, Fraction, "from 0 to 1"), (1, str, "a text"), (1, bool, "true or false"),
        (0, Literal["a", "b"], "one of a, b"), ([1], tuple[int, int], "2 values"),
        ({"a": "x"}, dict[str, int], "`a` must be an integer"), ({}, Whole, "`part` is missing"),
        ({"part": {"size": 1, "x": 2}}, Whole, "`part.x` is not a field"),
        ({"part": [1]}, Whole, "`part` must be an object"), ([[1], [1, 2]], np.ndarray, "equally"),
        ([1, True], np.ndarray, "finite numbers"), ([1, None], np.ndarray, "list of"),
        ("x", int | None, "an integer"), ("../x", FileName, "without a path"),
    ],
)  # fmt: skip
def test_value_of_another_type_or_range_is_refused(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conform(value, kind)


@pytest.mark.parametrize(
    "text",
    ["NaN", "-Infinity", "1e999", "1" * 40, "[" * 100_000, "[" * (MAX_DEPTH + 2) + "]" * 99,
     '"\\ud800"', "{", b"\xff"],
)  # fmt: skip
def test_json_that_would_break_a_command_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="the file is not JSON"):
        parse_json(text, "the file")


def test_text_for_a_terminal_has_no_control_characters_and_one_short_line() -> None:
    assert printable("a\x1b[31m\r\u202e\n×\xa02") == r"a\x1b[31m\r\u202e\n×" + "\xa02"
    line = one_line("`rule` must hold\nbut got " + "x" * 10_000 + "; the way out")
    assert len(line) == 300
    assert line.startswith("`rule` must hold but got xxx")
    assert line.endswith("; the way out")
    assert shown("x" * 1000) == "'" + "x" * 58 + "…"


def test_value_with_a_reader_is_read_by_it_with_its_place() -> None:
    def read(value: object, place: str) -> str:
        return f"{place} is {conform(value, int, place)}"

    kind = list[Annotated[str, ReadBy(read)]]
    assert conform([1, 2], kind, "counts") == ["counts[0] is 1", "counts[1] is 2"]
    with pytest.raises(InputError, match=r"`counts\[1\]` must be an integer"):
        conform([1, "2"], kind, "counts")


@pytest.mark.parametrize(
    "address",
    ["postgresql://u:secret@[bad/x", "postgresql://u:a@secret@h", "postgresql:u:secret@h",
     "postgresql://h/x?user=u&password=secret", "mysql://:secret@h"],
)  # fmt: skip
def test_password_is_hidden_in_any_address(address: str) -> None:
    assert "secret" not in without_passwords(f"but got {address!r}; correct it")
