"""JSON documents: plain values, null for numbers that are not finite, and a schema version."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

SCHEMA_VERSION = 1  # of every document that a command prints with --json


def finite(value: float) -> float | None:
    """Return a number, or None for NaN and the infinities, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def json_ready(value: Any) -> Any:
    """Convert a value to plain values that :mod:`json` can write.

    A dataclass becomes the object that its method ``document()`` returns, or an object of its
    fields; a data frame becomes a list of rows; NumPy arrays and numbers become lists and Python
    numbers; NaN and the infinities become None.

    Parameters
    ----------
    value
        A result, data frame, array, mapping, sequence, number, text or path.

    Returns
    -------
    Dictionaries, lists, numbers, texts, booleans and None.

    Examples
    --------
    >>> json_ready({"loss": float("nan"), "sizes": (1, 2)})
    {'loss': None, 'sizes': [1, 2]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        document = getattr(value, "document", None)
        names = [each.name for each in fields(value)]
        value = document() if document else {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return {str(name): json_ready(item) for name, item in value.items()}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        value = value.to_dict("records")
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return finite(value)
    return str(value) if isinstance(value, PurePath) else value


def printed_document(value: Any) -> dict[str, Any]:
    """Return the object that a command prints for a result or a mapping.

    Parameters
    ----------
    value
        A result or a mapping.

    Returns
    -------
    The content of the value, with the schema version first.

    Raises
    ------
    TypeError
        The value is a list, a number or a text, which cannot hold the schema version.
    """
    content = json_ready(value)
    if not isinstance(content, dict):
        raise TypeError(
            f"`--json` must print an object, but got a {type(content).__name__}; "
            "print a result or a mapping"
        )
    return {"schema_version": SCHEMA_VERSION} | content
