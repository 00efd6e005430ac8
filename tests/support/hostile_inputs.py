"""Malformed documents, and a command that runs on them in a forked process with limits."""

import contextlib
import copy
import gzip
import json
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

MAX_SECONDS = 60  # of processor time, which a busy machine does not change
MAX_WAIT = 900  # seconds until a command that waits for ever is ended
MAX_BYTES = 2 * 10**9  # of memory beyond that of the process which forks
MAX_LINE = 300  # characters of an error
ESCAPE = "\x1b[31mred\x1b[0m"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 2**31, 2**63, 10**30, 10**400, 1e308, -1e308, 1e-320,
    float("nan"), float("inf"), -float("inf"), "", "abc", "1e5", "7", ESCAPE, "two\nlines", "x_$",
    "{{ script }}", "{% raw %}", "$x_{$", "../../escaped", "/absolute", "..", "<script>", "é",
    "x" * 5000, "\u202e", "\ud800", [], [1], [None], ["abc"], [[1, 2], [3]], {}, {"a": 1},
    {"": None}, {ESCAPE: ESCAPE},
]  # fmt: skip


def paths_of(document: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the places of a JSON document; of long lists the first, second and last."""
    if before:
        yield before
    if isinstance(document, dict):
        for name in document:
            yield from paths_of(document[name], (*before, name))
    elif isinstance(document, list):
        for index in sorted({0, 1, len(document) - 1} & set(range(len(document)))):
            yield from paths_of(document[index], (*before, index))


def edited(document: Any, path: Sequence[Any], action: str, value: Any) -> Any:
    """Return a copy of a JSON document that is changed at one place."""
    changed = copy.deepcopy(document)
    place = changed
    for step in path[:-1]:
        place = place[step]
    last = path[-1]
    if action == "remove":
        del place[last]
    elif action == "rename" and isinstance(place, dict):
        place[f"{last}{value}"[:200]] = place.pop(last)
    elif action == "more" and isinstance(place, list):
        place.insert(last, value)
    elif action == "fewer" and isinstance(place[last], list):
        del place[last][len(place[last]) // 2 :]
    else:
        place[last] = value
    return changed


class Content(bytes):
    """Bytes of a file, of which a report of a failing example shows the first ones."""

    def __repr__(self) -> str:
        return f"{bytes(self[:500])!r} of {len(self)} bytes"


def damaged_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Return files that are cut, changed, empty, packed, or of another kind."""
    size = len(content)
    place = st.integers(0, max(size - 1, 0))
    junk = st.sampled_from(
        [b"", b"\0", b"\xff\xfe", b"\n", b'"', b",", b"}", b"\x1b[31m", b"9" * 5000]
    )
    return st.one_of(
        place.map(lambda at: content[:at]),
        st.tuples(place, junk).map(lambda p: content[: p[0]] + p[1] + content[p[0] + 1 :]),
        st.tuples(place, place).map(lambda p: content[: min(p)] + content[max(p) :]),
        st.sampled_from([
            b"", b"\n", b"null", b"[]", b"{}", b'"text"', b"1", b"NaN", b"[" * 100_000,
            b'{"a":' * 50_000, b"\xef\xbb\xbf" + content,
            content.decode("latin-1").encode("utf-16"),
            gzip.compress(content), b"PK\x03\x04" + content, b"PAR1" + content + b"PAR1",
            b"\x28\xb5\x2f\xfd" + content, b"\x1f\x8b" + content, b"\xfd7zXZ\0" + content,
            b"\0" * 1000, content + content, ESCAPE.encode(),
        ]),
        st.binary(max_size=200),
    )  # fmt: skip


def bad_documents(content: bytes) -> st.SearchStrategy[bytes]:
    """Return changed copies of a JSON file: of its values, its structure and its bytes."""
    document = json.loads(content)
    places = list(paths_of(document))
    edits = st.builds(
        lambda path, action, value: json.dumps(edited(document, path, action, value)).encode(),
        st.sampled_from(places),
        st.sampled_from(["set", "set", "set", "remove", "rename", "more", "fewer"]),
        st.sampled_from(VALUES),
    )
    damages = damaged_bytes(content)
    return st.integers(0, 3).flatmap(lambda number: edits if number else damages)


def bad_lines(content: bytes) -> st.SearchStrategy[bytes]:
    """Return changed copies of a file of JSON lines: of one line, of their order, and of bytes."""
    lines = content.splitlines(keepends=True)
    place = st.integers(0, len(lines) - 1)

    def changed(at: int) -> st.SearchStrategy[bytes]:
        edited = bad_documents(lines[at])
        return edited.map(lambda line: b"".join([*lines[:at], line, b"\n", *lines[at + 1 :]]))

    moved = st.permutations(lines).map(b"".join)
    return st.one_of(place.flatmap(changed), place.flatmap(changed), moved, damaged_bytes(content))


def bad_texts(content: bytes) -> st.SearchStrategy[bytes]:
    """Return changed copies of a table or of TOML: of one name or value, of lines, and of bytes."""
    text = content.decode()
    words = [match.span() for match in re.finditer(r"[^\s,;={}\[\]\"]+", text)]
    words = words[:60] + words[60 :: max(len(words) // 60, 1)]
    values = st.sampled_from([str(value) for value in VALUES if value != 10**400 and value])
    replaced = st.builds(
        lambda span, value: (text[: span[0]] + value + text[span[1] :]).encode(
            errors="surrogatepass"
        ),
        st.sampled_from(words),
        values,
    )
    lines = content.splitlines(keepends=True)
    rows = st.lists(st.sampled_from(lines), max_size=2 * len(lines)).map(b"".join)
    return st.one_of(replaced, replaced, replaced, rows, damaged_bytes(content))


OPTION_TEXTS = [
    "", "abc", "nan", "inf", "-1", "0", "1e18", "1e400", "1e-400", "9" * 400, "1.5", "true", "a=b",
    "two\nlines", "../../x", "/absolute", "x" * 5000, "{{ script }}", "$x_{$", ",", ":", "=", "é",
    "1:2:3", "1,,2", "\u202e", "12:1", "-5M", "200%", "postgresql://u:secret@[bad/x", "*", "N >",
    "postgresql://u:secret@host:port/x", "mysql://a:secret@h/x", "postgresql:u:secret@h",
    "runs.csv", "config.json", "text", "/dev/null", "nowhere.json", ";", "'", '"', "`",
    "--json", ESCAPE, "__import__('os').system('touch left')", "512/256@99999999999", "rag:fp9",
    "chat,ttft=", "\\", "a.b.c > 1",
    "gqa <= 4 and", "loss.__class__", "(" * 500, "1" + "+1" * 3000, "not " * 2000,
]  # fmt: skip


def bad_options() -> st.SearchStrategy[str]:
    """Return texts of options: usual mistakes, and any text."""
    legal = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    return st.one_of(st.sampled_from(OPTION_TEXTS), st.text(legal, max_size=30))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: exit code, printed texts, cost and new files."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[str]

    def broken_promises(self) -> list[str]:
        """List what breaks the promise of one clear error line, exit code 2, nothing left."""
        lines = [line for line in self.err.splitlines() if line.lower().startswith("error:")]
        printed = self.out + self.err
        odd = sorted({c for c in printed if not c.isprintable() and c not in "\n\t"})
        broken = {
            f"exit code {self.code}": self.code not in (0, 2),
            "traceback": "Traceback" in printed,
            "unexpected": "please report" in self.err,
            "python warning": "Warning" in self.err,
            "panic": "panicked" in self.err,
            f"{len(lines)} error lines": self.code == 2 and len(lines) != 1,
            "long line": any(len(line) > MAX_LINE for line in self.err.splitlines()),
            f"control characters {odd}": bool(odd),
            "slow": self.seconds > MAX_SECONDS,
            f"files left {self.left[:3]}": self.code == 2 and bool(self.left),
        }
        return [what for what, is_so in broken.items() if is_so]


def files_in(folder: Path) -> set[str]:
    """List files and folders, without locks."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


def run_forked(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run the command in a fork of this process, which has the modules, within the limits.

    A fork costs a hundredth of a new process; its memory and time are limited, and what it changes
    in modules is lost with it.
    """
    before = files_in(folder)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _be_the_command(arguments, folder, out.fileno(), err.fileno())
        _, status, used = os.wait4(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(10**7).decode(errors="replace"))
    return Outcome(
        code=os.waitstatus_to_exitcode(status), out=texts[0], err=texts[1],
        seconds=used.ru_utime + used.ru_stime, left=sorted(files_in(folder) - before),
    )  # fmt: skip


def _be_the_command(arguments: Sequence[str], folder: Path, out: int, err: int) -> None:
    """Run the command and end this process."""
    code = 99
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES,) * 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS + 1, MAX_SECONDS + 2))
        signal.alarm(MAX_WAIT)
        os.setsid()
        os.chdir(folder)
        os.environ["SHAPELAW_CACHE"] = str(folder / "cache")
        for target, source in ((1, out), (2, err)):
            os.dup2(source, target)
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 -- until the end
        sys.stdout, sys.stderr = (
            os.fdopen(n, "w", encoding="utf-8", errors="backslashreplace") for n in (1, 2)
        )
        sys.argv = ["shapelaw", *arguments]
        import warnings

        warnings.resetwarnings()
        from shapelaw.search.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
