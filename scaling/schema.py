"""Validation of documents from files, against the types that annotate their classes.

A document is described once, where it is written, by a dataclass or a ``TypedDict``:
:func:`read_document` reads a file and checks every field of it, and :func:`conform` checks a value.
A boolean is no number, NaN and the infinities are none either, and an integer fits 64 bits.
"""

import dataclasses
import math
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from shapelaw.scaling.display.printable import MAX_VALUE, shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json

Kind = TypeVar("Kind")
MAX_INTEGER = 2**63 - 1
MAX_TEXT = 100_000  # characters of one text


@dataclass(frozen=True)
class Within:
    """Bounds of a number, or of the length of a text or a list; they annotate a type.

    Attributes
    ----------
    low, high
        Smallest and largest value.
    """

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}"


TINY = 5e-324  # the smallest number above 0
Count = Annotated[int, Within(0)]
Positive = Annotated[int, Within(1)]
PositiveFloat = Annotated[float, Within(TINY)]
NonNegative = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1)]
Name = Annotated[str, Within(1, 500)]


@dataclass(frozen=True)
class ReadBy:
    """Mark of a type whose values a function reads, given a value and its place."""

    read: Callable[[object, str], Any]


class PlainFileName:
    """Mark of a text that names a file in the document's own folder, and no other place."""


FileName = Annotated[str, Within(1, 200), PlainFileName]


def read_document(path: Path, kind: type[Kind], way_out: str) -> Kind:
    """Read a JSON file as a dataclass or a ``TypedDict``.

    Parameters
    ----------
    path
        The file.
    kind
        Class whose annotations describe the document.
    way_out
        End of an error, such as ``write it again with `shapelaw fit --out```.

    Raises
    ------
    InputError
        The file cannot be read, or a field is missing or has another type, length or range.
    """
    document = read_json(path)
    try:
        checked: Kind = conform(document, kind)
    except InputError as error:
        raise damaged(path, error, way_out) from None
    return checked


def damaged(path: Path, error: object, way_out: str) -> InputError:
    """Return the error of a file with a damage and the way out."""
    return InputError(f"{path} is damaged ({error}); {way_out}")


def conform(value: object, kind: Any, place: str = "") -> Any:
    """Return a value of a JSON document as a type demands, or refuse it.

    Parameters
    ----------
    value
        Dictionaries, lists, numbers, texts, booleans and None.
    kind
        Type with its parameters: a dataclass, ``TypedDict``, NumPy array (of finite numbers), list,
        tuple, dictionary, ``Literal``, union, plain type, or ``Annotated`` with :class:`Within` or
        :class:`ReadBy`.
    place
        Name of the value for errors, such as ``state.theta``.

    Returns
    -------
    The value, in which dataclasses, tuples and arrays are made and integers are floats where the
    type says float.

    Raises
    ------
    InputError
        The value, or one inside it, has another type, length or range.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (Required, NotRequired):
        return conform(value, parts[0], place)
    if origin is Annotated:
        for mark in parts[1:]:
            if isinstance(mark, ReadBy):
                return mark.read(value, place)
        return _bounded(conform(value, parts[0], place), parts[1:], place)
    if origin in (Union, types.UnionType):
        return _one_of(value, parts, place)
    if origin is Literal:
        if not any(value == part and type(value) is type(part) for part in parts):
            raise _wrong(place, f"one of {', '.join(map(str, parts))}", value)
        return value
    if origin in (list, tuple, dict):
        return _container(value, origin, parts, place)
    if kind is np.ndarray:
        return _array(value, place)
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _fields(value, kind, place)
    return _plain(value, kind, place)


def _plain(value: object, kind: Any, place: str) -> Any:
    """Check a number, text, boolean or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        if not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
            raise _wrong(place, "a finite number", value)
        return float(value)  # type: ignore[arg-type]
    if kind is int and is_number and isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise _wrong(place, "an integer of 64 bits", value)
        return value
    if kind is str and isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise _wrong(place, f"a text of at most {MAX_TEXT} characters", value)
        return value
    if kind in (bool, types.NoneType, None) and (value is None or isinstance(value, bool)):
        if (value is None) == (kind is not bool):
            return value
    elif kind in (list, dict) and isinstance(value, kind):
        return value
    raise _wrong(place, _description(kind), value)


def _bounded(value: Any, limits: tuple[Any, ...], place: str) -> Any:
    for bounds in (limit for limit in limits if isinstance(limit, Within)):
        number = len(value) if isinstance(value, str | list | tuple | dict) else value
        if not bounds.low <= number <= bounds.high:
            what = "" if number is value else "of a length "
            raise _wrong(place, f"{what}{bounds if bounds.low != TINY else 'above 0'}", value)
    if PlainFileName in limits and (
        not value.isprintable() or set(value) & set("/\\:") or value.startswith(".")
    ):
        raise _wrong(place, "the name of a file without a path", value)
    return value


def _one_of(value: object, kinds: tuple[Any, ...], place: str) -> Any:
    """Check a value against the first kind that takes it; the error is that of the likeliest."""
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):  # the likeliest first
        try:
            return conform(value, kind, place)
        except InputError as error:
            errors.append((kind, error))
    if value is not None and type(None) in kinds and len(kinds) == 2:
        raise next(error for kind, error in errors if kind is not type(None))
    raise _wrong(place, " or ".join(map(_description, kinds)), value)


def _container(value: object, origin: Any, parts: tuple[Any, ...], place: str) -> Any:
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(place, "an object", value)
        return {
            conform(name, parts[0], place or "key"): conform(item, parts[1], _join(place, name))
            for name, item in value.items()
        }
    if not isinstance(value, list | tuple):
        raise _wrong(place, "a list", value)
    if origin is tuple and parts[-1] is not ...:
        if len(value) != len(parts):
            raise _wrong(place, f"a list of {len(parts)} values", value)
        kinds = parts
    else:
        kinds = (parts[0],) * len(value)
    items = [
        conform(item, kind, f"{place}[{index}]")
        for index, (item, kind) in enumerate(zip(value, kinds, strict=True))
    ]
    return tuple(items) if origin is tuple else items


def _array(value: object, place: str) -> np.ndarray:
    """Check a list of numbers, or of equally long lists of them."""
    if not isinstance(value, list):
        raise _wrong(place, "a list of numbers", value)
    try:
        array = np.array(value)
        numbers = np.array(value, dtype=float)
    except (ValueError, TypeError, OverflowError):
        raise _wrong(place, "a list of numbers or of equally long lists of them", value) from None
    flat = value
    for _ in range(array.ndim - 1):
        flat = [item for row in flat for item in row]
    if array.size and (not {int, float} >= set(map(type, flat)) or not np.isfinite(numbers).all()):
        raise _wrong(place, "a list of finite numbers", value)
    return numbers


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the annotations of a class, whose evaluation takes longer than a check."""
    return get_type_hints(kind, include_extras=True)


def _fields(value: object, kind: Any, place: str) -> Any:
    """Check the fields of an object, and make the dataclass of them."""
    if not isinstance(value, Mapping):
        raise _wrong(place, "an object", value)
    hints = _hints(kind)
    if is_typeddict(kind):
        names, needed = set(hints), kind.__required_keys__
    else:
        fields = [each for each in dataclasses.fields(kind) if each.init]
        names = {each.name for each in fields}
        missing = dataclasses.MISSING
        needed = {f.name for f in fields if f.default is missing and f.default_factory is missing}
    lacking = [name for name in hints if name in needed and name not in value]
    if lacking:
        raise InputError(f"`{_join(place, lacking[0])}` is missing")
    checked = {
        name: conform(value[name], hints[name], _join(place, name))
        for name in hints
        if name in names and name in value
    }
    if is_typeddict(kind):
        return {**value, **checked}
    if unknown := [name for name in value if name not in names]:
        raise InputError(f"`{_join(place, shown(unknown[0]).strip(chr(39)))}` is not a field")
    try:
        return kind(**checked)
    except InputError as error:
        raise InputError(f"{place}: {error}" if place else str(error)) from None


def _join(place: str, name: object) -> str:
    text = str(name)
    if not (text.isidentifier() and text.isascii() and len(text) < MAX_VALUE):
        text = shown(text).strip("'\"")
    return f"{place}.{text}" if place else text


def _description(kind: Any) -> str:
    names = {
        int: "an integer", float: "a finite number", str: "a text", bool: "true or false",
        type(None): "null", None: "null", list: "a list", dict: "an object", tuple: "a list",
    }  # fmt: skip
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return names.get(get_origin(plain) or plain, "an object")


def _wrong(place: str, rule: str, value: object) -> InputError:
    return InputError(f"`{place or 'the document'}` must be {rule}, but is {shown(value)}")
