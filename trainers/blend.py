"""From a mixture of sources to one training text and its held-out texts, none of them shared."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.errors import InputError
from trainers.sources import Mixture, Source
from trainers.text import Spool, Text, collect, mixed, split, without

MINIMUM = 20_000  # bytes; less text than that trains nothing
MINIMUM_HELD_OUT = 2_000  # bytes of a validation set
OWN = "a text of its own"  # how the held-out text of a source was chosen: it was given


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a source gave to the training text, as ``corpus.json`` records it.

    ``weight`` is the one that was asked for; ``documents`` and ``bytes`` were used of
    ``bytes_available``; ``dropped`` documents also stand in a validation set.
    """

    name: str
    source: str
    weight: float | None
    documents: int
    bytes: int
    bytes_available: int
    dropped: int
    split: str
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Texts to tokenize: training, main held-out, and the held-out sets by name.

    ``sha256`` tells apart what decides the numbers of a run; ``documents`` counts all that was
    read of the sources.
    """

    train: Text
    validation: Text
    sets: dict[str, tuple[str, Text]]
    parts: tuple[Part, ...]
    sha256: str
    documents: int

    @property
    def split(self) -> str:
        """How the held-out text was chosen."""
        return "; ".join(dict.fromkeys(part.split for part in self.parts))


@dataclass(frozen=True)
class _Read:
    """A source as it was read, and its two sides."""

    source: Source
    whole: Text
    train: Text
    held_out: Text
    split: str


def blend(mixture: Mixture, spool: Spool, *, limit: int) -> Blend:
    """Read the sources, keep what is held out away from the training text, and mix the rest.

    Parameters
    ----------
    limit
        Bytes of text that are read at the most: of the whole mixture where the sources have
        weights, else of each source, of which a mixture of no more than that is made.

    Raises
    ------
    InputError
        A source cannot be read or holds too little text.
    """
    total = sum(source.weight or 0 for source in mixture.sources)
    reads = [
        _read(source, spool, -(-limit * (source.weight or 1) // (total or 1)))
        for source in mixture.sources
    ]
    _check_size(mixture, sum(read.whole.size for read in reads))
    further = {source.name: (source, _held_out(source, spool)) for source in mixture.further}
    kept_away = np.concatenate(
        [read.held_out.contents for read in reads] + [text.contents for _, text in further.values()]
    )
    texts = [without(read.train, kept_away) for read in reads]
    for read, text in zip(reads, texts, strict=True):
        if not text.size:
            raise InputError(
                f"the source {read.source.name} has no text left to train on: all of its "
                "documents are held out; give another --validation"
            )
    weights = [source.weight for source in mixture.sources if source.weight is not None]
    train, origin = mixed(texts, weights or None, spool, limit=limit)
    shares = np.bincount(origin, weights=train.sizes, minlength=len(texts)).tolist()
    held_out = [read.held_out for read in reads]
    validation = held_out[0] if len(reads) == 1 else mixed(held_out, shares, spool, limit=limit)[0]
    parts = tuple(
        Part(
            name=read.source.name,
            source=read.source.described,
            weight=read.source.weight,
            documents=int((origin == number).sum()),
            bytes=int(shares[number]),
            bytes_available=text.size,
            dropped=len(read.train) - len(text),
            split=read.split,
            truncated=read.whole.truncated,
        )
        for number, (read, text) in enumerate(zip(reads, texts, strict=True))
    )
    named = {
        read.source.name: (Path(read.source.held_out or read.source.path).name, read.held_out)
        for read in reads
    }
    return Blend(
        train=train,
        validation=validation,
        sets=named | {name: (source.described, text) for name, (source, text) in further.items()},
        parts=parts,
        sha256=_digest(reads, train, sum(part.dropped for part in parts)),
        documents=sum(len(read.whole) for read in reads),
    )


def _read(source: Source, spool: Spool, limit: float) -> _Read:
    whole = collect(source.path, spool, int(limit))
    if source.held_out is None:
        if not len(whole):
            raise InputError(_too_little(source.path, 0))
        return _Read(source, whole, *split(whole, spool))
    own = Source(name=source.name, path=source.held_out)
    held_out = _held_out(own, spool)
    return _Read(source, whole, whole.shuffled(), held_out, OWN)


def _held_out(source: Source, spool: Spool) -> Text:
    text = collect(source.path, spool, 2**62)
    if text.size < MINIMUM_HELD_OUT:
        raise InputError(
            f"a validation set needs at least {MINIMUM_HELD_OUT} bytes of text, but {source.path} "
            f"has {text.size}; give more text"
        )
    return text.shuffled()


def _check_size(mixture: Mixture, size: int) -> None:
    if size < MINIMUM:
        raise InputError(_too_little(" and ".join(s.path for s in mixture.sources), size))


def _too_little(what: str, size: int) -> str:
    return f"a corpus needs at least {MINIMUM} bytes of text, but {what} has {size}"


def _digest(reads: list[_Read], train: Text, dropped: int) -> str:
    """Of one source that is split the digest of its documents; else of what was made of them."""
    (first, *others) = reads
    if not others and first.source.held_out is None and not dropped:
        return first.whole.sha256
    contents = [train.sha256, train.sizes.tolist(), *(read.held_out.sha256 for read in reads)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
