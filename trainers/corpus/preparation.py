"""Preparation of a corpus: documents -> mixture -> tokens -> shards, a function of the content.

Every stage processes the documents or blocks of the previous stage one by one:

1. :func:`~shapelaw.trainers.corpus.documents.read_documents` reads each source;
2. :meth:`~shapelaw.trainers.corpus.text_store.TextStore.keep` stores its documents on disk, because
   the held-out part and the used part of each source depend on all documents;
3. :func:`~shapelaw.trainers.corpus.mixing.blend` splits and mixes them;
4. :meth:`~shapelaw.trainers.corpus.tokenizers.Encoder.blocks` encodes them;
5. :func:`~shapelaw.trainers.corpus.shards.write_shard` writes the tokens.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json
from shapelaw.trainers.corpus.corpus import MAIN, RECORD, Corpus, HeldOutText
from shapelaw.trainers.corpus.encoding import TOKENIZER_FILE
from shapelaw.trainers.corpus.mixing import Blend, blend
from shapelaw.trainers.corpus.mixture import Mixture
from shapelaw.trainers.corpus.options import LIMIT, CorpusOptions
from shapelaw.trainers.corpus.shards import checksums, write_shard
from shapelaw.trainers.corpus.text_store import StoredDocuments, TextStore
from shapelaw.trainers.corpus.tokenizers import (
    Encoder,
    byte_encoder,
    load_tokenizer,
    tokenizer_file,
    train_bpe,
)


def prepare(
    corpus: str,
    folder: Path,
    *,
    validation: str | None = None,
    vocab_size: int | None = None,
    limit: int = LIMIT,
) -> Corpus:
    """Read, split and tokenize a corpus into ``folder``, or reuse the same corpus in it.

    Parameters
    ----------
    corpus
        ``"stdlib"``, the path of a file or folder (.txt, .jsonl, .parquet, .zst of these), or a
        mixture as for :func:`shapelaw.trainers.corpus.mixture.parse_mixture`.
    folder
        Folder for ``train.npy``, ``validation.npy``, ``corpus.json`` (and ``tokenizer.json``).
    validation
        Held-out texts as for :func:`shapelaw.trainers.corpus.mixture.parse_mixture`.
    vocab_size
        Size of a byte-level BPE to train on the training part; None for the 256 bytes.
    limit
        Largest number of bytes of text to read; the record notes whether there was more.

    Raises
    ------
    InputError
        The source cannot be read, holds too little text, or does not match the corpus in the
        folder.
    WorkError
        The folder cannot be written to, or a shard in it is damaged.
    """
    options = CorpusOptions(
        corpus=corpus, validation=validation, vocab_size=vocab_size, limit_bytes=limit
    )
    return prepare_from_options(options, folder)


def prepare_from_options(options: CorpusOptions, folder: Path) -> Corpus:
    """Prepare the corpus that the options of a command describe; see :func:`prepare`."""
    mixture = options.mixture()
    encoder = None
    if options.tokenizer is not None:
        encoder = load_tokenizer(Path(options.tokenizer))  # a broken one is found before the work
    request = _request(mixture, options)
    if mixture.has_streams and (folder / RECORD).exists():
        return _kept_stream(folder, mixture, request)
    with TextStore(folder) as store:
        mixed = blend(mixture, store, limit=options.limit, tokens=options.tokens)
        if (folder / RECORD).exists():
            return _kept(folder, mixture, mixed, options.wanted_tokenizer)
        with _written_whole(folder) as temporary:
            encoder = encoder or _new_encoder(options.vocab_size, mixed.train, temporary)
            if options.tokenizer is not None:
                shutil.copyfile(tokenizer_file(Path(options.tokenizer)), temporary / TOKENIZER_FILE)
            record = _write_shards(mixture, mixed, encoder, temporary, options.tokens)
            about = {"request": request, "files": checksums(temporary)}
            content = json.dumps(record | about, indent=1) + "\n"
            (temporary / RECORD).write_text(content, encoding="utf-8")
    return Corpus.from_record(folder, record)


def _request(mixture: Mixture, options: CorpusOptions) -> str:
    """Digest the request, which identifies a corpus of streams without fetching them."""
    sources = [asdict(source) for source in (*mixture.sources, *mixture.further)]
    text = json.dumps([sources, options.wanted_tokenizer, options.tokens, options.limit])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept_stream(folder: Path, mixture: Mixture, request: str) -> Corpus:
    """Load the corpus in a folder if the same request made it."""
    kept = Corpus.load(folder)
    if read_json(folder / RECORD).get("request") != request:
        raise InputError(
            f"{folder} holds the corpus {kept.label} ({kept.tokenizer}), but {mixture.name} was "
            "asked for with other sources, weights or limits; choose another --out folder"
        )
    return kept


def _kept(folder: Path, mixture: Mixture, mixed: Blend, tokenizer: str) -> Corpus:
    """Load the corpus in a folder if it is the requested one."""
    kept = Corpus.load(folder)
    known = kept.tokenizer if ":" in tokenizer else kept.tokenizer.split(":")[0]
    if kept.sha256 != mixed.sha256 or known != tokenizer:
        raise InputError(
            f"{folder} holds the corpus {kept.label} ({kept.tokenizer}), but {mixture.name} is "
            f"{mixed.sha256[:12]} ({tokenizer}); choose another --out folder"
        )
    wanted = {name: documents.sha256 for name, (_, documents) in mixed.sets.items()}
    held = {about.name: about.sha256 for about in kept.held_out}
    if held and held != wanted:
        raise InputError(
            f"{folder} holds the validation sets {', '.join(held)}, but {', '.join(wanted)} with "
            "other texts are asked for; choose another --out folder"
        )
    return kept


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder`` that is moved there in one step at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise WorkError(
            f"{folder.parent} cannot be written to ({error.strerror}); choose another --out folder"
        ) from error
    try:
        yield temporary
        temporary.chmod(0o755)  # a temporary folder starts out private
        temporary.rename(folder)
    except OSError as error:
        raise WorkError(f"{folder} could not be written ({error.strerror}); free space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _new_encoder(vocab_size: int | None, train: StoredDocuments, folder: Path) -> Encoder:
    if vocab_size is None:
        return byte_encoder()
    return train_bpe(train.first(LIMIT), folder, vocab_size)


def _write_shards(
    mixture: Mixture, mixed: Blend, encoder: Encoder, folder: Path, tokens: int | None
) -> dict[str, Any]:
    """Write every shard and return the record of the corpus; ``tokens`` limits training."""

    def write(documents: StoredDocuments, shard: str, limit: int | None = None) -> tuple[int, int]:
        blocks = encoder.blocks(documents)
        return write_shard(folder, shard, blocks, vocab_size=encoder.vocab_size, limit=limit)

    def write_held_out(
        name: str, source: str, documents: StoredDocuments, shard: str
    ) -> HeldOutText:
        count, pieces = write(documents, shard)
        return HeldOutText(
            name=name,
            shard=shard,
            source=source,
            sha256=documents.sha256,
            documents=len(documents),
            truncated=documents.truncated,
            tokens=count,
            bytes_per_token=(documents.size + pieces - 1) / count,
        )

    tokens_train, used = write(mixed.train, "train", tokens)
    main = write_held_out("", "", mixed.validation, MAIN)
    held_out = tuple(
        replace(main, name=name, source=source)
        if documents is mixed.validation
        else write_held_out(name, source, documents, f"{MAIN}-{name}")
        for name, (source, documents) in mixed.sets.items()
    )
    corpus = Corpus(
        folder="",
        name=mixture.name,
        source=", ".join(source.described for source in mixture.sources),
        sha256=mixed.sha256,
        documents=sum(len(reading.whole) for reading in mixed.readings),
        split="; ".join(dict.fromkeys(reading.split for reading in mixed.readings)),
        tokenizer=encoder.name,
        vocab_size=encoder.vocab_size,
        tokens_train=tokens_train,
        tokens_validation=main.tokens,
        bytes_per_token=main.bytes_per_token,
        truncated=any(reading.whole.truncated for reading in mixed.readings),
        parts=mixed.parts(used),
        held_out=held_out,
    )
    return asdict(corpus)
