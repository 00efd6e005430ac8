"""Text -> documents -> tokens -> memory-mapped shards, all a function of the content."""

import contextlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import InputError, WorkError
from scaling.files import read_json
from trainers.blend import Blend, Part, blend
from trainers.shards import Shard, checksums, read_shard, verify, write_shard
from trainers.sources import Mixture, parse_mixture
from trainers.text import Spool, Text
from trainers.tokenizing import BYTES, Encoder, byte_encoder, check_vocabulary, train_bpe

LIMIT = 256_000_000  # bytes of text that are read at the most


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What ``corpus.json`` says of one validation set; ``shard`` names its files."""

    name: str
    shard: str
    source: str
    sha256: str
    documents: int
    tokens: int
    bytes_per_token: float


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
    parts: tuple[Part, ...] = ()
    held_out: tuple[HeldOut, ...] = ()

    def train(self) -> np.ndarray:
        """Training tokens, memory-mapped."""
        return self.train_shard().tokens

    def train_shard(self) -> Shard:
        """Training tokens and where their documents start."""
        return read_shard(Path(self.folder), "train")

    def validation(self) -> np.ndarray:
        """Held-out tokens of the whole corpus, memory-mapped; of a mixture in its proportions."""
        return read_shard(Path(self.folder), "validation").tokens

    def validation_sets(self) -> dict[str, ValidationSet]:
        """The held-out text of every source by the source's name, and the further sets."""
        sets = {}
        for about in self.held_out:
            shard = read_shard(Path(self.folder), about.shard)
            sets[about.name] = ValidationSet(
                name=about.name,
                tokens=shard.tokens,
                starts=shard.starts,
                bytes_per_token=about.bytes_per_token,
            )
        return sets

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
            A shard is missing, cut short or changed; see :func:`trainers.shards.verify`.
        """
        record = read_json(folder / "corpus.json")
        verify(folder, record.pop("files", {}))
        return cls._from_record(folder, record)

    @classmethod
    def _from_record(cls, folder: Path, record: dict[str, Any]) -> "Corpus":
        nested = {
            "folder": str(folder),
            "parts": tuple(Part(**part) for part in record.get("parts", ())),
            "held_out": tuple(HeldOut(**part) for part in record.get("held_out", ())),
        }
        return cls(**(record | nested))


def prepare(
    source: str | Mixture, folder: Path, *, vocab_size: int | None = None, limit: int = LIMIT
) -> Corpus:
    """Read, split and tokenize a corpus into ``folder``; what is there and fits is reused.

    Parameters
    ----------
    source
        ``"stdlib"``, the path of a file or folder (.txt, .jsonl, .parquet, .zst of these), a
        mixture as :func:`trainers.sources.parse_mixture` reads it, or what that returns.
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
    check_vocabulary(vocab_size)
    mixture = parse_mixture(source) if isinstance(source, str) else source
    with contextlib.closing(Spool(folder)) as spool:
        text = blend(mixture, spool, limit=limit)
        if (folder / "corpus.json").exists():
            return _kept(folder, mixture, text, vocab_size)
        temporary = _beside(folder)
        try:
            record = _write(mixture, text, spool, temporary, vocab_size)
            temporary.chmod(0o755)  # a temporary folder starts out private
            temporary.rename(folder)
        except OSError as error:
            raise WorkError(
                f"{folder} could not be written ({error.strerror}); free space"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Corpus._from_record(folder, record)


def _kept(folder: Path, mixture: Mixture, text: Blend, vocab_size: int | None) -> Corpus:
    """The corpus that a folder holds, if it is the one that was asked for."""
    kept = Corpus.load(folder)
    tokenizer = BYTES if vocab_size is None else f"bpe-{vocab_size}"
    if kept.sha256 != text.sha256 or kept.tokenizer.split(":")[0] != tokenizer:
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


def _write(
    mixture: Mixture, text: Blend, spool: Spool, folder: Path, vocab_size: int | None
) -> dict[str, Any]:
    """Write every shard and ``corpus.json``; returns the record."""
    encoder = (
        byte_encoder()
        if vocab_size is None
        else train_bpe(text.train.documents(spool), folder, vocab_size)
    )
    parts = encoder.parts(text.train.documents(spool))
    tokens_train, _ = write_shard(folder, "train", parts, vocab_size=encoder.vocab_size)
    tokens_validation, per_token = _held_out(text.validation, encoder, spool, folder, "validation")
    sets = []
    for name, (source, held_out) in text.sets.items():
        alone = held_out is text.validation
        shard = "validation" if alone else f"validation-{name}"
        count, ratio = tokens_validation, per_token
        if not alone:
            count, ratio = _held_out(held_out, encoder, spool, folder, shard)
        sets.append(
            HeldOut(
                name=name,
                shard=shard,
                source=source,
                sha256=held_out.sha256,
                documents=len(held_out),
                tokens=count,
                bytes_per_token=ratio,
            )
        )
    corpus = Corpus(
        folder="",
        name=mixture.name,
        source=", ".join(source.described for source in mixture.sources),
        sha256=text.sha256,
        documents=text.documents,
        split=text.split,
        tokenizer=encoder.name,
        vocab_size=encoder.vocab_size,
        tokens_train=tokens_train,
        tokens_validation=tokens_validation,
        bytes_per_token=per_token,
        truncated=any(part.truncated for part in text.parts),
        parts=text.parts,
        held_out=tuple(sets),
    )
    record = asdict(corpus)
    content = json.dumps(record | {"files": checksums(folder)}, indent=1)
    (folder / "corpus.json").write_text(content + "\n", encoding="utf-8")
    return record


def _held_out(
    text: Text, encoder: Encoder, spool: Spool, folder: Path, shard: str
) -> tuple[int, float]:
    """Write a validation shard; returns its tokens and its bytes per token."""
    parts = encoder.parts(text.documents(spool))
    count, documents = write_shard(folder, shard, parts, vocab_size=encoder.vocab_size)
    return count, (text.size + documents - 1) / count


def count_windows(tokens: int, context_length: int) -> int:
    """How many training sequences a corpus gives.

    Raises
    ------
    InputError
        It gives none.
    """
    windows = (tokens - context_length) // context_length
    if windows < 1:
        raise InputError(
            f"a corpus must hold at least {2 * context_length} tokens for a context of "
            f"{context_length}, but has {tokens}; give more text"
        )
    return windows


class Batches:
    """Training sequences in an order that is a function of (seed, step) alone.

    The corpus is cut into windows of ``context_length`` tokens (each predicts the token after it);
    every epoch visits all windows once, in its own order and from its own offset. Nothing is kept
    between steps, so a resumed run sees exactly what an uninterrupted one sees.
    """

    def __init__(
        self, tokens: np.ndarray, *, context_length: int, sequences: int, seed: int
    ) -> None:
        self.tokens, self.length, self.sequences, self.seed = (
            tokens,
            context_length,
            sequences,
            seed,
        )
        self.windows = count_windows(len(tokens), context_length)
        self._epoch: tuple[int, np.ndarray, int] | None = None

    def epochs(self, steps: int) -> float:
        """How often ``steps`` steps visit each window."""
        return steps * self.sequences / self.windows

    def __call__(self, step: int) -> np.ndarray:
        """Sequences of a step with their next token, (sequences, context_length + 1), int64."""
        rows = [self._window(step * self.sequences + i) for i in range(self.sequences)]
        return np.stack(rows).astype(np.int64)

    def _window(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.windows)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            offset = int(generator.integers(self.length))
            self._epoch = (epoch, generator.permutation(self.windows), offset)
        _, order, offset = self._epoch
        start = int(order[position]) * self.length + offset
        start = min(start, len(self.tokens) - self.length - 1)
        return self.tokens[start : start + self.length + 1]
