"""From a mixture of sources to one training text and its held-out texts, none of them shared."""

import hashlib
import json
import math
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.mixture import Mixture, Source, described
from shapelaw.trainers.corpus.text_store import Spool, Text, collect, mixed, split, without

MINIMUM = 20_000  # bytes; less text than that trains nothing
MINIMUM_HELD_OUT = 2_000  # bytes of a validation set
LARGEST_HELD_OUT = 64_000_000  # bytes that are read of a validation text
OWN = "a text of its own"  # how the held-out text of a source was chosen: it was given


@dataclass(frozen=True, kw_only=True)
class MixturePart:
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
class Reading:
    """A source as it was read: the whole, its two sides, and how they were told apart.

    ``free`` is the training side without what stands in any validation set.
    """

    source: Source
    whole: Text
    train: Text
    held_out: Text
    split: str
    free: Text


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Texts to tokenize: training, main held-out, and the held-out sets by name.

    ``origin`` numbers the source of each training document; ``sets`` holds where a set comes from
    and its text; ``sha256`` tells apart what decides the numbers of a run.
    """

    readings: tuple[Reading, ...]
    train: Text
    origin: np.ndarray
    validation: Text
    sets: dict[str, tuple[str, Text]]
    sha256: str

    @property
    def documents(self) -> int:
        """All that were read of the sources."""
        return sum(len(reading.whole) for reading in self.readings)

    @property
    def truncated(self) -> bool:
        """Whether some source had more text than was read."""
        return any(reading.whole.truncated for reading in self.readings)

    @property
    def split(self) -> str:
        """How the held-out text was chosen."""
        return "; ".join(dict.fromkeys(reading.split for reading in self.readings))

    def parts(self, documents: int) -> tuple[MixturePart, ...]:
        """What each source gave to the first so many documents of the training text."""
        origin, sizes = self.origin[:documents], self.train.sizes[:documents]
        return tuple(
            MixturePart(
                name=reading.source.name,
                source=reading.source.described,
                weight=reading.source.weight,
                documents=int((origin == number).sum()),
                bytes=int(sizes[origin == number].sum()),
                bytes_available=reading.free.size,
                dropped=len(reading.train) - len(reading.free),
                split=reading.split,
                truncated=reading.whole.truncated,
            )
            for number, reading in enumerate(self.readings)
        )


def blend(mixture: Mixture, spool: Spool, *, limit: int, tokens: int | None = None) -> Blend:
    """Read the sources, keep what is held out away from the training text, and mix the rest.

    Parameters
    ----------
    limit
        Bytes of text that are read at the most: of the whole mixture where the sources have
        weights, else of each source, of which a mixture of no more than that is made.
    tokens
        Where the training shard will end; it decides the digest only.

    Raises
    ------
    InputError
        A source cannot be read or holds too little text.
    """
    total = sum(source.weight or 0 for source in mixture.sources)
    readings = [
        _read(source, spool, math.ceil(limit * (source.weight or 1) / (total or 1)))
        for source in mixture.sources
    ]
    size = sum(reading.whole.size for reading in readings)
    if size < MINIMUM:
        raise _too_little(" and ".join(source.path for source in mixture.sources), size)
    further = {
        source.name: (source.described, _held_out(source.path, spool)) for source in mixture.further
    }
    kept_away = np.concatenate(
        [reading.held_out.contents for reading in readings]
        + [text.contents for _, text in further.values()]
    )
    readings = [_kept_apart(reading, kept_away) for reading in readings]
    weights = [source.weight for source in mixture.sources if source.weight is not None]
    texts = [reading.free for reading in readings]
    train, origin = mixed(texts, weights or None, spool, limit=limit)
    shares = np.bincount(origin, weights=train.sizes, minlength=len(texts)).tolist()
    held_out = [reading.held_out for reading in readings]
    validation = held_out[0] if len(held_out) == 1 else mixed(held_out, shares, spool)[0]
    own = {
        reading.source.name: (
            described(reading.source.held_out or reading.source.path),
            reading.held_out,
        )
        for reading in readings
    }
    return Blend(
        readings=tuple(readings),
        train=train,
        origin=origin,
        validation=validation,
        sets=own | further,
        sha256=_digest(readings, train, tokens),
    )


def _read(source: Source, spool: Spool, limit: int) -> Reading:
    whole = collect(source.path, spool, limit)
    if not len(whole):
        raise _too_little(source.path, 0)
    if source.held_out is None:
        train, held_out, how = split(whole, spool)
    else:
        train, held_out, how = whole.shuffled(), _held_out(source.held_out, spool), OWN
    return Reading(
        source=source, whole=whole, train=train, held_out=held_out, split=how, free=train
    )


def _held_out(path: str, spool: Spool) -> Text:
    text = collect(path, spool, LARGEST_HELD_OUT)
    if text.size < MINIMUM_HELD_OUT:
        raise InputError(
            f"a validation set needs at least {MINIMUM_HELD_OUT} bytes of text, but {path} has "
            f"{text.size}; give more text"
        )
    return text.shuffled()


def _kept_apart(reading: Reading, kept_away: np.ndarray) -> Reading:
    free = without(reading.train, kept_away)
    if not free.size:
        raise InputError(
            f"the source {reading.source.name} has no text left to train on: all of its documents "
            "are held out; give another --validation"
        )
    return replace(reading, free=free)


def _too_little(what: str, size: int) -> InputError:
    return InputError(f"a corpus needs at least {MINIMUM} bytes of text, but {what} has {size}")


def _digest(readings: list[Reading], train: Text, tokens: int | None) -> str:
    """Of one source that is split the digest of its documents; else of what was made of them."""
    first = readings[0]
    whole = len(first.free) == len(first.train) and tokens is None
    if len(readings) == 1 and first.source.held_out is None and whole:
        return first.whole.sha256
    held_out = [reading.held_out.sha256 for reading in readings]
    contents = [train.sha256, train.sizes.tolist(), *held_out, *([tokens] if tokens else [])]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
