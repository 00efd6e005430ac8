"""Named sources with weights, parsed from ``--corpus`` and ``--validation``."""

import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.documents import STDLIB, is_text
from shapelaw.trainers.corpus.hf_streams import is_stream, parse_stream

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LONGEST_NAME = 60  # characters of a mixture's name that lists its sources


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of text: ``path`` is a file, a folder, ``hf:NAME`` or ``stdlib``.

    ``weight`` is the share of the source in the training text in any scale; None if the shares
    follow the sizes. ``held_out`` is the path of a separate validation text; None splits one off
    the source.
    """

    name: str
    path: str
    weight: float | None = None
    held_out: str | None = None

    @property
    def described(self) -> str:
        """Description of the source of the text, without its folders."""
        return source_description(self.path)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources of the training text, and further texts only for evaluation."""

    name: str
    sources: tuple[Source, ...]
    further: tuple[Source, ...] = ()

    @property
    def has_streams(self) -> bool:
        """True if a part of the text is streamed from a dataset."""
        paths = [source.path for source in (*self.sources, *self.further)]
        return any(map(is_stream, [*paths, *(s.held_out for s in self.sources if s.held_out)]))


def parse_mixture(corpus: str, validation: str | None = None) -> Mixture:
    """Parse the values of the two options.

    Parameters
    ----------
    corpus
        ``stdlib``; a file; a folder; a stream ``hf:NAME``; or ``NAME=PATH:WEIGHT,...`` with the
        names and weights optional. A folder that holds ``X.train.txt`` (or .jsonl,
        .parquet, .zst of these) is a mixture of every such X, with ``X.val.txt`` as its held-out
        text if that exists.
    validation
        ``NAME=PATH,...``. With the name of a source, the text is the held-out text of that source,
        and nothing is split off the source. Any other name adds a validation set. A single path
        without a name belongs to the only source of a corpus.

    Raises
    ------
    InputError
        A part is invalid, a name occurs twice, or only some sources have a weight.

    Examples
    --------
    >>> mixture = parse_mixture("wiki=wiki.txt:0.7,books.txt.zst:0.3", "wiki=held-out.txt")
    >>> [(source.name, source.weight, source.held_out) for source in mixture.sources]
    [('wiki', 0.7, 'held-out.txt'), ('books', 0.3, None)]
    """
    sources = _sources(corpus, "--corpus")
    name = source_name(corpus) if _is_one_path(corpus) else _joined(sources)
    if validation is None:
        return Mixture(name=name, sources=sources)
    others = _sources(validation, "--validation")
    if any(source.weight is not None for source in others):
        raise InputError(f"`--validation NAME=PATH` takes no weight, but got {validation!r}")
    if len(sources) == len(others) == 1 and "=" not in validation:
        others = (replace(others[0], name=sources[0].name),)
    held_out = {source.name: source.path for source in others}
    names = {source.name for source in sources}
    return Mixture(
        name=name,
        sources=tuple(
            replace(source, held_out=held_out.get(source.name, source.held_out))
            for source in sources
        ),
        further=tuple(source for source in others if source.name not in names),
    )


def source_name(path: str) -> str:
    """Return the name of a text: the file name up to its first dot."""
    if is_stream(path):
        return parse_stream(path).short
    if path == STDLIB:
        return f"python{sys.version_info[0]}.{sys.version_info[1]}-stdlib"
    return Path(path).name.split(".")[0] or Path(path).absolute().name


def source_description(path: str) -> str:
    """Return the description of a source in a record, without its folders."""
    if is_stream(path):
        return parse_stream(path).described
    if path == STDLIB:
        return f"source files of the standard library of Python {sys.version.split()[0]}"
    return Path(path).name


def _is_one_path(text: str) -> bool:
    return text == STDLIB or Path(text).exists() or not ("=" in text or "," in text)


def _sources(text: str, option: str) -> tuple[Source, ...]:
    """Parse the sources of one option and check that they are consistent."""
    if _is_one_path(text):
        path, weight = _weighted(text, option)
        sources = _pairs(Path(path)) if weight is None and path != STDLIB else ()
        sources = sources or (Source(name=source_name(path), path=path, weight=weight),)
    else:
        sources = tuple(_source(part.strip(), option) for part in text.split(",") if part.strip())
    doubled = [
        name for name, count in Counter(source.name for source in sources).items() if count > 1
    ]
    if doubled:
        raise InputError(
            f"every source of {option} needs its own name, but {doubled[0]!r} stands twice; "
            "write NAME=PATH"
        )
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        bare = next(source for source in sources if source.weight is None)
        raise InputError(
            f"either every source of {option} has a weight or none has, but {bare.name!r} lacks "
            "one; write NAME=PATH:WEIGHT"
        )
    if len(sources) > 1 and not weighted and option == "--corpus":
        for source in sources:
            if is_stream(source.path):
                raise InputError(
                    f"a stream has no size that its share could follow: give {source.name} and "
                    "every other source a weight, NAME=PATH:WEIGHT"
                )
    return sources


def _source(part: str, option: str) -> Source:
    name, equals, rest = part.partition("=")
    if not equals:
        name, rest = "", part
    path, weight = _weighted(rest, option)
    name = name or source_name(path)
    if not NAME.fullmatch(name):
        raise InputError(
            f"the name of a source in {option} must be letters, digits, `_`, `.` and `-`, but got "
            f"{name!r}; write NAME=PATH"
        )
    return Source(name=name, path=path, weight=weight)


def _weighted(text: str, option: str) -> tuple[str, float | None]:
    """Split a weight off the end of a path."""
    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        return text, None
    if not path or Path(text).exists():
        return text, None
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(f"`0 < WEIGHT` must hold for {path} in {option}, but got {last}")
    return path, weight


def _pairs(folder: Path) -> tuple[Source, ...]:
    """Find the pairs X.train.*, X.val.* of a folder, by name; none if it has no X.train.*."""
    if not folder.is_dir():
        return ()
    held_out = dict(_parts(folder, "val"))
    return tuple(
        Source(name=name, path=path, held_out=held_out.get(name))
        for name, path in _parts(folder, "train")
    )


def _parts(folder: Path, part: str) -> list[tuple[str, str]]:
    """List names and paths of the texts NAME.part.* in a folder."""
    return [
        (path.name.partition(f".{part}.")[0], str(path))
        for path in sorted(folder.iterdir())
        if f".{part}." in path.name and path.is_file() and is_text(path)
    ]


def _joined(sources: tuple[Source, ...]) -> str:
    name = "+".join(source.name for source in sources)
    return name if len(name) <= LONGEST_NAME else f"mixture-of-{len(sources)}"
