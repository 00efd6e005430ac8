"""Text -> documents -> tokens -> memory-mapped shards, all a function of the content."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json
from shapelaw.trainers.corpus.mixing import Blend, MixturePart, blend
from shapelaw.trainers.corpus.mixture import Mixture, parse_mixture
from shapelaw.trainers.corpus.options import LIMIT, CorpusOptions
from shapelaw.trainers.corpus.shards import Shard, checksums, read_shard, verify, write_shard
from shapelaw.trainers.corpus.text_store import Spool, Text
from shapelaw.trainers.corpus.tokenizers import (
    Encoder,
    byte_encoder,
    load_tokenizer,
    tokenizer_file,
    train_bpe,
)

RECORD = "corpus.json"
TOKENIZER = "tokenizer.json"
MAIN = "validation"  # the shard of the held-out text of the whole corpus


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """What ``corpus.json`` says of one validation set; ``shard`` names its files."""

    name: str
    shard: str
    source: str
    sha256: str
    documents: int
    tokens: int
    bytes_per_token: float
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Held-out tokens, memory-mapped, where their documents start, and their bytes per token."""

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    bytes_per_token: float


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token shards on disk and where they come from.

    ``tokens_train`` and ``tokens_validation`` count tokens; ``bytes_per_token`` is that of the
    validation text, so that bits per byte = nats per token / ln 2 / bytes_per_token. ``parts``
    says what each source of a mixture gave, ``held_out`` which validation sets there are.
    """

    folder: str
    name: str
    source: str
    sha256: str
    documents: int
    split: str
    tokenizer: str
    vocab_size: int
    tokens_train: int
    tokens_validation: int
    bytes_per_token: float
    truncated: bool
    parts: tuple[MixturePart, ...] = ()
    held_out: tuple[HeldOutText, ...] = ()

    def train(self) -> np.ndarray:
        """Training tokens, memory-mapped."""
        return self.train_shard().tokens

    def train_shard(self) -> Shard:
        """Training tokens and where their documents start."""
        return read_shard(Path(self.folder), "train")

    def validation(self) -> np.ndarray:
        """Held-out tokens of the whole corpus, memory-mapped; of a mixture in its proportions."""
        return self.validation_shard().tokens

    def validation_shard(self) -> Shard:
        """Held-out tokens of the whole corpus and where their documents start."""
        return read_shard(Path(self.folder), MAIN)

    def validation_sets(self) -> dict[str, ValidationSet]:
        """Further validation sets by name: of a mixture the held-out text of every source, too.

        The text of :meth:`validation` is none of them: that of a single source stands there only.
        """
        sets = {}
        for about in self.held_out:
            if about.shard == MAIN:
                continue
            shard = read_shard(Path(self.folder), about.shard)
            sets[about.name] = ValidationSet(
                name=about.name,
                tokens=shard.tokens,
                starts=shard.starts,
                bytes_per_token=about.bytes_per_token,
            )
        return sets

    def seen(self, tokens: int) -> dict[str, float]:
        """What the run table says of a run over so many tokens: whether it saw any twice.

        ``unique_tokens`` counts those that were trained on at least once, ``epochs`` how often the
        text was gone through.
        """
        unique = min(tokens, self.tokens_train)
        return {"unique_tokens": unique, "epochs": tokens / self.tokens_train}

    @property
    def label(self) -> str:
        """Name and hash, as the run table records it."""
        return f"{self.name}:{self.sha256[:12]}"

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Read a prepared corpus, wherever its folder was moved to.

        Raises
        ------
        WorkError
            A shard is missing, cut short or changed; see
            :func:`shapelaw.trainers.corpus.shards.verify`.
        """
        record = read_json(folder / RECORD)
        verify(folder, record.pop("files", {}))
        record.pop("request", None)
        return cls._from_record(folder, record)

    @classmethod
    def _from_record(cls, folder: Path, record: dict[str, Any]) -> "Corpus":
        nested = {
            "folder": str(folder),
            "parts": tuple(MixturePart(**part) for part in record.get("parts", ())),
            "held_out": tuple(HeldOutText(**part) for part in record.get("held_out", ())),
        }
        return cls(**(record | nested))


def prepare_from_options(options: CorpusOptions, folder: Path) -> Corpus:
    """Prepare the corpus that the options of a command describe; see :func:`prepare`."""
    return _prepared(options.mixture(), options, folder, options.limit)


def prepare(
    source: str | Mixture, folder: Path, *, vocab_size: int | None = None, limit: int = LIMIT
) -> Corpus:
    """Read, split and tokenize a corpus into ``folder``; what is there and fits is reused.

    Parameters
    ----------
    source
        ``"stdlib"``, the path of a file or folder (.txt, .jsonl, .parquet, .zst of these), a
        mixture as :func:`shapelaw.trainers.corpus.mixture.parse_mixture` reads it, or what that
        returns.
    folder
        Where ``train.npy``, ``validation.npy``, ``corpus.json`` (and ``tokenizer.json``) go.
    vocab_size
        None for the 256 bytes, else the size of a byte-level BPE trained on the training part.
    limit
        Bytes of text read at the most; the record says if there was more.

    Raises
    ------
    InputError
        The source cannot be read, holds too little text, or does not fit what the folder holds.
    WorkError
        The folder cannot be written to, or a shard that it holds is damaged.
    """
    mixture = parse_mixture(source) if isinstance(source, str) else source
    return _prepared(mixture, CorpusOptions(vocab_size=vocab_size), folder, limit)


def _prepared(mixture: Mixture, options: CorpusOptions, folder: Path, limit: int) -> Corpus:
    encoder = None
    if options.tokenizer is not None:
        encoder = load_tokenizer(Path(options.tokenizer))  # a broken one is found before the work
    request = _request(mixture, options, limit)
    if mixture.has_streams and (folder / RECORD).exists():
        return _kept_stream(folder, mixture, request)
    with Spool(folder) as spool:
        text = blend(mixture, spool, limit=limit, tokens=options.tokens)
        if (folder / RECORD).exists():
            return _kept(folder, mixture, text, options.wanted_tokenizer)
        temporary = _beside(folder)
        try:
            encoder = encoder or _new_encoder(options.vocab_size, text, spool, temporary)
            if options.tokenizer is not None:
                shutil.copyfile(tokenizer_file(Path(options.tokenizer)), temporary / TOKENIZER)
            record = _write(mixture, text, Writer(encoder, spool, temporary), options.tokens)
            about = {"request": request, "files": checksums(temporary)}
            content = json.dumps(record | about, indent=1) + "\n"
            (temporary / RECORD).write_text(content, encoding="utf-8")
            temporary.chmod(0o755)  # a temporary folder starts out private
            temporary.rename(folder)
        except OSError as error:
            raise WorkError(
                f"{folder} could not be written ({error.strerror}); free space"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Corpus._from_record(folder, record)


def _request(mixture: Mixture, options: CorpusOptions, limit: int) -> str:
    """Digest of what was asked for, by which a corpus of streams is known without fetching them."""
    sources = [asdict(source) for source in (*mixture.sources, *mixture.further)]
    text = json.dumps([sources, options.wanted_tokenizer, options.tokens, limit])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept_stream(folder: Path, mixture: Mixture, request: str) -> Corpus:
    kept = Corpus.load(folder)
    if read_json(folder / RECORD).get("request") != request:
        raise InputError(
            f"{folder} holds the corpus {kept.label} ({kept.tokenizer}), but {mixture.name} was "
            "asked for with other sources, weights or limits; choose another --out folder"
        )
    return kept


def _kept(folder: Path, mixture: Mixture, text: Blend, tokenizer: str) -> Corpus:
    """The corpus that a folder holds, if it is the one that was asked for."""
    kept = Corpus.load(folder)
    known = kept.tokenizer if ":" in tokenizer else kept.tokenizer.split(":")[0]
    if kept.sha256 != text.sha256 or known != tokenizer:
        raise InputError(
            f"{folder} holds the corpus {kept.label} ({kept.tokenizer}), but {mixture.name} is "
            f"{text.sha256[:12]} ({tokenizer}); choose another --out folder"
        )
    wanted = {name: held_out.sha256 for name, (_, held_out) in text.sets.items()}
    found = {about.name: about.sha256 for about in kept.held_out}
    if found and found != wanted:
        raise InputError(
            f"{folder} holds the validation sets {', '.join(found)}, but {', '.join(wanted)} with "
            "other texts are asked for; choose another --out folder"
        )
    return kept


def _beside(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise WorkError(
            f"{folder.parent} cannot be written to ({error.strerror}); choose another --out folder"
        ) from error


def _new_encoder(vocab_size: int | None, text: Blend, spool: Spool, folder: Path) -> Encoder:
    if vocab_size is None:
        return byte_encoder()
    return train_bpe(text.train.first(LIMIT).documents(spool), folder, vocab_size)


@dataclass(frozen=True)
class Writer:
    """Writes texts of one spool as shards of one folder."""

    encoder: Encoder
    spool: Spool
    folder: Path

    def __call__(self, text: Text, shard: str, tokens: int | None = None) -> tuple[int, int]:
        """Write a text and return its tokens and documents; no more than ``tokens``."""
        parts = self.encoder.parts(text.documents(self.spool))
        size = self.encoder.vocab_size
        return write_shard(self.folder, shard, parts, vocab_size=size, limit=tokens)

    def held_out(self, text: Text, shard: str) -> tuple[int, float]:
        """Write a validation text and return its tokens and bytes per token."""
        count, documents = self(text, shard)
        return count, (text.size + documents - 1) / count


def _write(mixture: Mixture, text: Blend, write: Writer, tokens: int | None) -> dict[str, Any]:
    """Write every shard and return the record of the corpus."""
    tokens_train, documents = write(text.train, "train", tokens)
    tokens_validation, bytes_per_token = write.held_out(text.validation, MAIN)
    sets = []
    for name, (source, held_out) in text.sets.items():
        shard, about = MAIN, (tokens_validation, bytes_per_token)
        if held_out is not text.validation:
            shard = f"{MAIN}-{name}"
            about = write.held_out(held_out, shard)
        sets.append(
            HeldOutText(
                name=name,
                shard=shard,
                source=source,
                sha256=held_out.sha256,
                documents=len(held_out),
                truncated=held_out.truncated,
                tokens=about[0],
                bytes_per_token=about[1],
            )
        )
    corpus = Corpus(
        folder="",
        name=mixture.name,
        source=", ".join(source.described for source in mixture.sources),
        sha256=text.sha256,
        documents=text.documents,
        split=text.split,
        tokenizer=write.encoder.name,
        vocab_size=write.encoder.vocab_size,
        tokens_train=tokens_train,
        tokens_validation=tokens_validation,
        bytes_per_token=bytes_per_token,
        truncated=text.truncated,
        parts=text.parts(documents),
        held_out=tuple(sets),
    )
    return asdict(corpus)
