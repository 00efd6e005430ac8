"""Untrusted text made fit for a terminal: names, paths and values from files and options."""

import re
import unicodedata
from collections.abc import Sequence

MAX_LINE = 300  # characters of an error or a note
MAX_VALUE = 60  # characters of a value in an error
KEPT_END = 110  # characters of the end of a shortened line, where the way out stands


def printable(text: str, keep: str = "") -> str:
    r"""Escape control characters, terminal sequences and marks that reorder text.

    Parameters
    ----------
    text
        Text that may come from a file or an option.
    keep
        Control characters that stay, such as line feeds between lines of the program's own.

    Examples
    --------
    >>> print(printable("run\x1b[31m-1\n"))
    run\x1b[31m-1\n
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )  # fmt: skip


def without_passwords(text: str) -> str:
    """Hide the passwords of addresses of databases, well-formed or not.

    Examples
    --------
    >>> without_passwords("postgresql://ada:secret@[host/runs?password=secret is no address")
    'postgresql://ada:***@[host/runs?password=*** is no address'
    """
    text = re.sub(r"(\b[a-z+]+:/{0,2})([^\s:/@]*):(?!password@)\S*@", r"\1\2:***@", text)
    return re.sub(r"(password=)[^&\s'\"]*", r"\1***", text)


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return text as one printable line whose middle is left out beyond a limit.

    Parameters
    ----------
    text
        An error: rule and value at its begin, the way out at its end.
    limit
        Largest number of characters.

    Examples
    --------
    >>> len(one_line("x" * 1000))
    300
    """
    short = " ".join(text[: 20 * limit].split("\n")) + text[20 * limit :][-KEPT_END:]
    line = printable(without_passwords(short))
    if len(line) <= limit:
        return line
    end = min(KEPT_END, limit // 2)
    return f"{line[: limit - end - 3]} … {line[len(line) - end :]}"


def listed(items: Sequence[object], most: int = 5) -> str:
    """Write the first items of a list, and the number of the others.

    Examples
    --------
    >>> listed("abc"), listed(range(17))
    ('a, b, c', '0, 1, 2, 3, 4 and 12 more')
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def shown(value: object, limit: int = MAX_VALUE) -> str:
    """Return the shortened representation of a value for an error.

    Examples
    --------
    >>> shown("abc"), shown([1] * 1000, 12)
    ("'abc'", '[1, 1, 1, 1…')
    """
    if isinstance(value, str):
        value = value[: limit + 1]  # a long text is not copied whole
    elif isinstance(value, list | tuple | dict) and len(value) > limit:
        value = list(value)[:limit]
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
