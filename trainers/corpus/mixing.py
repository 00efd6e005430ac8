"""Mixing of sources into a training text and held-out texts without shared documents."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import MixturePart
from shapelaw.trainers.corpus.documents import read_documents
from shapelaw.trainers.corpus.mixture import Mixture, Source, source_description
from shapelaw.trainers.corpus.text_store import StoredDocuments, TextStore, concatenated

MIN_BYTES = 20_000  # of the whole corpus
MIN_HELD_OUT_BYTES = 2_000  # of a validation set
MAX_HELD_OUT_BYTES = 64_000_000  # read from a validation text
VALIDATION_SHARE = 10  # one document in ten, or the last tenth
SPLIT_BY_DOCUMENT = 5 * VALIDATION_SHARE  # with fewer documents the last tenth is held out
OWN = "a text of its own"  # recorded as the split of a source with a given held-out text


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Documents of a source with their split into training and held-out documents.

    ``split`` describes the split. ``free`` are the training documents that are in no validation
    set.
    """

    source: Source
    whole: StoredDocuments
    train: StoredDocuments
    held_out: StoredDocuments
    split: str
    free: StoredDocuments


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Documents to tokenize: training text, main held-out text, and held-out sets by name.

    ``sets`` contains the description and the documents of each set. ``sha256`` is a digest of
    everything that affects the numbers of a run.
    """

    readings: tuple[Reading, ...]
    train: StoredDocuments
    validation: StoredDocuments
    sets: dict[str, tuple[str, StoredDocuments]]
    sha256: str

    def parts(self, documents: int) -> tuple[MixturePart, ...]:
        """Return the share of each source in the first ``documents`` of the training text."""
        used = self.train.take(slice(documents))
        return tuple(
            MixturePart(
                name=reading.source.name,
                source=reading.source.described,
                weight=reading.source.weight,
                documents=int((used.sources == number).sum()),
                bytes=int(used.sizes[used.sources == number].sum()),
                bytes_available=reading.free.size,
                dropped=len(reading.train) - len(reading.free),
                split=reading.split,
                truncated=reading.whole.truncated,
            )
            for number, reading in enumerate(self.readings)
        )


def blend(mixture: Mixture, store: TextStore, *, limit: int, tokens: int | None = None) -> Blend:
    """Read the sources, remove held-out documents from the training text, and mix the rest.

    Parameters
    ----------
    mixture
        Sources and further validation sets.
    store
        Store for the documents.
    limit
        Largest number of bytes to read: of the whole mixture if the sources have weights, else of
        each source, from which a mixture of at most this size is made.
    tokens
        Number of tokens in the training shard; affects only the digest.

    Raises
    ------
    InputError
        A source cannot be read or holds too little text.
    """
    weights = [source.weight for source in mixture.sources if source.weight is not None]
    total = sum(weights) or 1
    readings = [
        _read(source, number, store, math.ceil(limit * (source.weight or 1) / total))
        for number, source in enumerate(mixture.sources)
    ]
    size = sum(reading.whole.size for reading in readings)
    if size < MIN_BYTES:
        raise _too_little(" and ".join(source.path for source in mixture.sources), size)
    of_sources = {
        reading.source.name: (
            source_description(reading.source.held_out or reading.source.path),
            reading.held_out,
        )
        for reading in readings
    }
    further = {
        source.name: (source.described, _held_out(source.path, store)) for source in mixture.further
    }
    kept_away = np.concatenate(
        [documents.content_digests for _, documents in (*of_sources.values(), *further.values())]
    )
    readings = [_kept_apart(reading, kept_away) for reading in readings]
    texts = [reading.free for reading in readings]
    train = interleaved(texts, weights or None, limit=limit)
    shares = np.bincount(train.sources, weights=train.sizes, minlength=len(texts)).tolist()
    held_out = [reading.held_out for reading in readings]
    return Blend(
        readings=tuple(readings),
        train=train,
        validation=held_out[0] if len(held_out) == 1 else interleaved(held_out, shares),
        sets=of_sources | further,
        sha256=_digest(readings, train, tokens),
    )


def _read(source: Source, number: int, store: TextStore, limit: int) -> Reading:
    whole = store.keep(read_documents(source.path), limit, source=number)
    if not len(whole):
        raise _too_little(source.path, 0)
    if source.held_out is None:
        train, held_out, how = split(whole)
    else:
        train, held_out, how = whole.shuffled(), _held_out(source.held_out, store, number), OWN
    return Reading(
        source=source, whole=whole, train=train, held_out=held_out, split=how, free=train
    )


def _held_out(path: str, store: TextStore, number: int = 0) -> StoredDocuments:
    documents = store.keep(read_documents(path), MAX_HELD_OUT_BYTES, source=number)
    if documents.size < MIN_HELD_OUT_BYTES:
        raise InputError(
            f"a validation set needs at least {MIN_HELD_OUT_BYTES} bytes of text, but {path} has "
            f"{documents.size}; give more text"
        )
    return documents.shuffled()


def _kept_apart(reading: Reading, kept_away: np.ndarray) -> Reading:
    free = reading.train.without(kept_away)
    if not free.size:
        raise InputError(
            f"the source {reading.source.name} has no text left to train on: all of its documents "
            "are held out; give another --validation"
        )
    return replace(reading, free=free)


def _too_little(path: str, size: int) -> InputError:
    return InputError(
        f"a corpus needs at least {MIN_BYTES} bytes of text, but {path} has {size}, which are at "
        f"most {size} tokens; a tenth is held out, and a window takes `context_length` + 1 "
        "tokens (129 by default); give more text"
    )


def _digest(readings: list[Reading], train: StoredDocuments, tokens: int | None) -> str:
    """Digest the documents of a single split source, or else the resulting texts."""
    first = readings[0]
    whole = len(first.free) == len(first.train) and tokens is None
    if len(readings) == 1 and first.source.held_out is None and whole:
        return first.whole.sha256
    held_out = [reading.held_out.sha256 for reading in readings]
    contents = [train.sha256, train.sizes.tolist(), *held_out, *([tokens] if tokens else [])]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def split(documents: StoredDocuments) -> tuple[StoredDocuments, StoredDocuments, str]:
    """Hold out one document in ten by its digest, or of few documents the last tenth of the text.

    Returns
    -------
    train, held_out : StoredDocuments
        Training and held-out documents.
    description : str
        Description of the split.
    """
    if len(documents) < SPLIT_BY_DOCUMENT:
        return *_last_tenth(documents), "the last tenth of the text"
    hashed = documents.shuffled()
    end = len(hashed) // VALIDATION_SHARE
    while end < len(hashed) - 1 and hashed.digests[end] == hashed.digests[end - 1]:
        end += 1  # equal documents stay in the same part
    return hashed.take(slice(end, None)), hashed.take(slice(end)), "by document"


def _last_tenth(documents: StoredDocuments) -> tuple[StoredDocuments, StoredDocuments]:
    """Split the text of a shard, which has one separator between two documents."""
    ends = np.cumsum(documents.sizes + 1) - 1
    whole = int(ends[-1])
    place = whole - whole // VALIDATION_SHARE
    number = int(np.searchsorted(ends, place))
    size = int(documents.sizes[number])
    before = max(0, place - (int(ends[number]) - size))
    before += _continuation(documents.text(number), before)
    train = documents.take(slice(number + 1)).cut(number, 0, before)
    validation = documents.take(slice(number, None)).cut(0, before, size)
    return train.take(train.sizes > 0), validation.take(validation.sizes > 0)


def _continuation(encoded: bytes, place: int) -> int:
    """Count the bytes from a position on that belong to the UTF-8 character before it."""
    more = 0
    while place + more < len(encoded) and encoded[place + more] & 0xC0 == 0x80:
        more += 1
    return more


def interleaved(
    texts: Sequence[StoredDocuments], weights: list[float] | None, *, limit: int | None = None
) -> StoredDocuments:
    """Interleave texts so that every prefix of the result has about their proportions.

    Document i of a text with weight w is sorted by (bytes before its middle) / w, so that a prefix
    deviates by at most half a document of each text. No document is repeated. The mixture ends at
    the end of the first text that ends, and the document of every other text at this position is
    cut there.

    Parameters
    ----------
    texts
        Documents of each text in a fixed order.
    weights
        Shares of the bytes, in any scale; None takes every text whole.
    limit
        Largest number of bytes of the mixture; None for no limit.
    """
    totals = np.array([text.size for text in texts], dtype=float)
    shares = totals / totals.sum() if weights is None else np.array(weights) / sum(weights)
    end = min(math.inf if limit is None else limit, float((totals / shares).min()))
    places, parts = [], []
    for text, share, total in zip(texts, shares, totals, strict=True):
        begin = np.cumsum(text.sizes) - text.sizes
        wanted = total if weights is None and end >= totals.sum() else round(end * share)
        places.append((begin + text.sizes / 2) / share)
        parts.append(_shortened(text, np.clip(int(wanted) - begin, 0, text.sizes)))
    order = np.argsort(np.concatenate(places), kind="stable")
    together = concatenated(parts).take(order)
    return together.take(together.sizes > 0)


def _shortened(text: StoredDocuments, sizes: np.ndarray) -> StoredDocuments:
    """Shorten documents to at most the given sizes, cutting between two characters."""
    part = replace(text, sizes=sizes)
    for number in np.flatnonzero((sizes > 0) & (sizes < text.sizes)).tolist():
        encoded, size = text.text(number), int(sizes[number])
        while size and encoded[size] & 0xC0 == 0x80:
            size -= 1
        part = part.cut(number, 0, size)
    return part
