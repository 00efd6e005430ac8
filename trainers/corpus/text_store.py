"""Documents of a source on disk: collected once, split, mixed and cut by their numbers alone.

Text goes through a file, so that memory holds 80 bytes per document whatever their size.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.corpus.documents import read_documents

VALIDATION_SHARE = 10  # one document in ten, or the last tenth
SPLIT_BY_DOCUMENT = 5 * VALIDATION_SHARE  # with fewer documents the last tenth is held out


class Spool:
    """A nameless file of text, for a ``with``; it goes with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Open one on the disk of ``folder``, which need not exist yet."""
        place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        try:
            self.file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise WorkError(
                f"{folder} cannot be written to ({error.strerror}); choose another --out folder"
            ) from error
        self.size = 0

    def append(self, text: bytes) -> int:
        """Add a text and return where it stands."""
        try:
            self.file.seek(self.size)
            self.file.write(text)
        except OSError as error:
            raise WorkError(
                f"the text could not be kept while it is read ({error.strerror}); free space"
            ) from error
        begin, self.size = self.size, self.size + len(text)
        return begin

    def read(self, offset: int, size: int) -> bytes:
        """Text from a place on."""
        self.file.seek(offset)
        return self.file.read(size)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@dataclass(frozen=True)
class Text:
    """Documents in a spool, in an order.

    ``offsets`` and ``sizes`` are in bytes, (documents,) int64; ``hashes`` are their SHA-256 and
    ``contents`` that of what stands between white space at both ends, (documents,) ``S32``.
    ``truncated`` says that the source had more than the limit.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    contents: np.ndarray
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> int:
        """Bytes of all the documents."""
        return int(self.sizes.sum())

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the documents in their order."""
        return hashlib.sha256(self.hashes.tobytes()).hexdigest()

    def take(self, index: np.ndarray) -> "Text":
        """Some of the documents, by number or mask, in that order."""
        return Text(
            self.offsets[index],
            self.sizes[index],
            self.hashes[index],
            self.contents[index],
            self.truncated,
        )

    def first(self, size: int) -> "Text":
        """The documents that begin before a number of bytes."""
        return self.take(np.cumsum(self.sizes) - self.sizes < size)

    def shuffled(self) -> "Text":
        """All of them in the order of their hashes: a fixed shuffle."""
        return self.take(np.argsort(self.hashes, kind="stable"))

    def documents(self, spool: Spool) -> Iterator[bytes]:
        """The documents themselves."""
        for offset, size in zip(self.offsets.tolist(), self.sizes.tolist(), strict=True):
            yield spool.read(offset, size)


def collect(source: str, spool: Spool, limit: int) -> Text:
    """Read a source into the spool; at most ``limit`` bytes, as whole documents where possible.

    Raises
    ------
    InputError
        It cannot be read.
    """
    sizes: list[int] = []
    hashes: list[tuple[bytes, bytes]] = []
    begin, room, truncated = spool.size, limit, False
    try:
        for document in read_documents(source):
            encoded = document.replace("\0", "").encode("utf-8")
            if not encoded.strip():
                continue
            if len(encoded) > room:
                truncated = True
                if sizes or not room:
                    break
                encoded = encoded[:room]
            spool.append(encoded)
            sizes.append(len(encoded))
            hashes.append(_hashes(encoded))
            room -= len(encoded)
            if truncated:
                break
    except (InputError, WorkError):
        raise
    except (OSError, ValueError) as error:  # undecodable text and JSON are ValueErrors
        raise InputError(
            f"the corpus {source} cannot be read: {error}; give UTF-8 .txt, .jsonl, .parquet, "
            "one of these as .zst, or a folder of them"
        ) from None
    lengths = np.array(sizes, dtype=np.int64)
    exact, contents = np.array(hashes, dtype="S32").reshape(-1, 2).T
    return Text(begin + np.cumsum(lengths) - lengths, lengths, exact, contents, truncated)


def _hashes(encoded: bytes) -> tuple[bytes, bytes]:
    """SHA-256 of a document as it is, and of what stands between white space."""
    exact, content = hashlib.sha256(encoded).digest(), encoded.strip()
    return exact, exact if len(content) == len(encoded) else hashlib.sha256(content).digest()


def split(text: Text, spool: Spool) -> tuple[Text, Text, str]:
    """Hold out one document in ten by its hash; of a few documents, the last tenth of the text.

    Returns the training part, the held-out part and how it was split.
    """
    if len(text) < SPLIT_BY_DOCUMENT:
        return *_last_tenth(text, spool), "the last tenth of the text"
    hashed = text.shuffled()
    held_out = len(hashed) // VALIDATION_SHARE
    while held_out < len(hashed) - 1 and hashed.hashes[held_out] == hashed.hashes[held_out - 1]:
        held_out += 1  # equal documents stay on one side
    numbers = np.arange(len(hashed))
    return hashed.take(numbers[held_out:]), hashed.take(numbers[:held_out]), "by document"


def _last_tenth(text: Text, spool: Spool) -> tuple[Text, Text]:
    """Cut the text as it stands in a shard, one separator between two documents."""
    ends = np.cumsum(text.sizes + 1) - 1
    whole = int(ends[-1])
    cut = whole - whole // VALIDATION_SHARE
    number = int(np.searchsorted(ends, cut))
    before = max(0, cut - int(ends[number] - text.sizes[number]))
    before += _continuation(spool.read(int(text.offsets[number]), int(text.sizes[number])), before)
    keep = np.arange(number + 1)
    train = _shortened(text.take(keep), number, before, spool)
    rest = text.take(np.arange(number, len(text)))
    rest.offsets[0] += before
    validation = _shortened(rest, 0, int(rest.sizes[0]) - before, spool)
    return train.take(train.sizes > 0), validation.take(validation.sizes > 0)


def _continuation(encoded: bytes, place: int) -> int:
    """How many bytes after a place belong to the UTF-8 character before it."""
    more = 0
    while place + more < len(encoded) and encoded[place + more] & 0xC0 == 0x80:
        more += 1
    return more


def _shortened(text: Text, number: int, size: int, spool: Spool) -> Text:
    """The same documents with one cut short."""
    sizes, hashes, contents = text.sizes.copy(), text.hashes.copy(), text.contents.copy()
    sizes[number] = size
    hashes[number], contents[number] = _hashes(spool.read(int(text.offsets[number]), size))
    return Text(text.offsets, sizes, hashes, contents, text.truncated)


def without(text: Text, contents: np.ndarray) -> Text:
    """The documents that say nothing of what these do."""
    return text.take(~np.isin(text.contents, contents))


def mixed(
    texts: list[Text], weights: list[float] | None, spool: Spool, *, limit: int | None = None
) -> tuple[Text, np.ndarray]:
    """Interleave texts so that every beginning of the result has about their proportions.

    Document i of a text with weight w goes to place (bytes before its middle) / w, so that a
    beginning is at most half a document of each text off. No document is repeated: the mixture
    ends where the first text does, and the document of every other text that lies across that end
    is cut there.

    Parameters
    ----------
    texts
        In their own fixed order each.
    weights
        Shares of the bytes, in any scale; None takes every text whole.
    limit
        Bytes of the mixture at the most; None for no limit.

    Returns
    -------
    The documents in order, and the number of the text that each comes from.
    """
    totals = np.array([text.size for text in texts], dtype=float)
    shares = totals / totals.sum() if weights is None else np.array(weights) / sum(weights)
    end = min(math.inf if limit is None else limit, float((totals / shares).min()))
    places, parts = [], []
    for text, share, total in zip(texts, shares, totals, strict=True):
        begin = np.cumsum(text.sizes) - text.sizes
        wanted = total if weights is None and end >= totals.sum() else round(end * share)
        part = replace(text, sizes=np.clip(int(wanted) - begin, 0, text.sizes))
        places.append((begin + text.sizes / 2) / share)
        parts.append(_whole_characters(part, text, spool))
    order = np.argsort(np.concatenate(places), kind="stable")
    origin = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    together = Text(
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.contents for part in parts]),
        any(text.truncated for text in texts),
    ).take(order)
    kept = together.sizes > 0
    return together.take(kept), origin[order][kept]


def _whole_characters(part: Text, text: Text, spool: Spool) -> Text:
    """A part that was cut by bytes, cut between two characters."""
    for number in np.flatnonzero((part.sizes > 0) & (part.sizes < text.sizes)).tolist():
        encoded = spool.read(int(text.offsets[number]), int(text.sizes[number]))
        size = int(part.sizes[number])
        while size and encoded[size] & 0xC0 == 0x80:
            size -= 1
        part = _shortened(part, number, size, spool)
    return part
