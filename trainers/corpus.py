"""Text -> documents -> tokens -> memory-mapped shards, all a function of the content."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import InputError, WorkError
from scaling.files import read_json
from trainers.documents import STDLIB, read_documents

BYTE_SEPARATOR = b"\0"  # stands between documents of a byte corpus; text never holds it
END_OF_TEXT = "<|endoftext|>"
VALIDATION_SHARE = 10  # one document in ten, or the last tenth
BYTES = "bytes"
LIMIT = 256_000_000  # bytes of text that are read at the most
MINIMUM = 20_000  # bytes; less text than that trains nothing


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token shards on disk and where they come from.

    ``tokens_train`` and ``tokens_validation`` count tokens; ``bytes_per_token`` is that of the
    validation text, so that bits per byte = nats per token / ln 2 / bytes_per_token.
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

    def train(self) -> np.ndarray:
        """Training tokens, memory-mapped."""
        return _mapped(Path(self.folder) / "train.npy")

    def validation(self) -> np.ndarray:
        """Held-out tokens, memory-mapped."""
        return _mapped(Path(self.folder) / "validation.npy")

    @property
    def label(self) -> str:
        """Name and hash, as the run table records it."""
        return f"{self.name}:{self.sha256[:12]}"

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Read a prepared corpus, wherever its folder was moved to."""
        record = read_json(folder / "corpus.json")
        return cls(**(record | {"folder": str(folder)}))


def _mapped(path: Path) -> np.ndarray:
    tokens: np.ndarray = np.load(path, mmap_mode="r")
    return tokens


def prepare(
    source: str, folder: Path, *, vocab_size: int | None = None, limit: int = LIMIT
) -> Corpus:
    """Read, split and tokenize a corpus into ``folder``; what is there and fits is reused.

    Parameters
    ----------
    source
        ``"stdlib"``, or the path of a file or folder (.txt, .jsonl, .parquet, .zst of these).
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
    """
    if vocab_size is not None and not 257 <= vocab_size <= 65_536:
        raise InputError(f"`257 <= --vocab <= 65536` must hold, but got {vocab_size}")
    documents, size, truncated = _collect(source, limit)
    if size < MINIMUM:
        raise InputError(
            f"a corpus needs at least {MINIMUM} bytes of text, but {source} has {size}"
        )
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document).digest())
    tokenizer = BYTES if vocab_size is None else f"bpe-{vocab_size}"
    if (folder / "corpus.json").exists():
        return _kept(folder, source, digest.hexdigest(), tokenizer)
    train, validation, split = _split(documents)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}-stdlib"
    name = name if source == STDLIB else Path(source).name.split(".")[0]
    temporary = _beside(folder)
    try:
        record = _tokenize(train, validation, temporary, vocab_size)
        corpus = Corpus(
            folder=str(folder),
            name=name,
            source=_described(source),
            sha256=digest.hexdigest(),
            documents=len(documents),
            split=split,
            truncated=truncated,
            **record,
        )
        text = json.dumps(asdict(corpus), indent=1)
        (temporary / "corpus.json").write_text(text + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # a temporary folder starts out private
        temporary.rename(folder)
    except OSError as error:
        raise WorkError(f"{folder} could not be written ({error.strerror}); free space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return corpus


def _kept(folder: Path, source: str, digest: str, tokenizer: str) -> Corpus:
    """The corpus that a folder holds, if it is the one that was asked for."""
    kept = Corpus.load(folder)
    if kept.sha256 == digest and kept.tokenizer.split(":")[0] == tokenizer:
        return kept
    raise InputError(
        f"{folder} holds the corpus {kept.label} ({kept.tokenizer}), but {source} is "
        f"{digest[:12]} ({tokenizer}); choose another --out folder"
    )


def _beside(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise WorkError(
            f"{folder.parent} cannot be written to ({error.strerror}); choose another --out folder"
        ) from error


def _described(source: str) -> str:
    if source == STDLIB:
        return f"source files of the standard library of Python {sys.version.split()[0]}"
    return Path(source).name


def _collect(source: str, limit: int) -> tuple[list[bytes], int, bool]:
    """Documents (UTF-8), their total size, and whether the limit cut the source off."""
    documents: list[bytes] = []
    size = 0
    try:
        for document in read_documents(source):
            encoded = document.replace("\0", "").encode("utf-8")
            if not encoded.strip():
                continue
            if size + len(encoded) > limit:
                remaining = encoded[: limit - size] if not documents else b""
                return documents + ([remaining] if remaining else []), limit, True
            documents.append(encoded)
            size += len(encoded)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # undecodable text and JSON are ValueErrors
        raise InputError(
            f"the corpus {source} cannot be read: {error}; give UTF-8 .txt, .jsonl, .parquet, "
            "one of these as .zst, or a folder of them"
        ) from None
    return documents, size, False


def _split(documents: list[bytes]) -> tuple[list[bytes], list[bytes], str]:
    """Hold out one document in ten by its hash; a few documents by contiguous blocks.

    Training documents are ordered by hash: a fixed shuffle.
    """
    if len(documents) >= 5 * VALIDATION_SHARE:
        hashed = sorted((hashlib.sha256(document).digest(), document) for document in documents)
        held_out = len(hashed) // VALIDATION_SHARE
        while held_out < len(hashed) - 1 and hashed[held_out][0] == hashed[held_out - 1][0]:
            held_out += 1
        validation = [document for _, document in hashed[:held_out]]
        return [document for _, document in hashed[held_out:]], validation, "by document"
    whole = BYTE_SEPARATOR.join(documents)
    cut = len(whole) - len(whole) // VALIDATION_SHARE
    while cut < len(whole) and whole[cut] & 0xC0 == 0x80:  # not inside a UTF-8 character
        cut += 1
    return [whole[:cut]], [whole[cut:]], "the last tenth of the text"


def _tokenize(
    train: list[bytes], validation: list[bytes], folder: Path, vocab_size: int | None
) -> dict[str, Any]:
    """Write both shards and return what the record says of them."""
    if vocab_size is None:
        shards = [
            np.frombuffer(BYTE_SEPARATOR.join(part), dtype=np.uint8).astype(np.uint16)
            for part in (train, validation)
        ]
        name, size = BYTES, 256
    else:
        shards, name, size = _byte_level_bpe(train, validation, folder, vocab_size)
    held_out_bytes = sum(map(len, validation)) + len(validation) - 1
    for shard, file in zip(shards, ("train.npy", "validation.npy"), strict=True):
        np.save(folder / file, shard)
    return {
        "tokenizer": name,
        "vocab_size": size,
        "tokens_train": len(shards[0]),
        "tokens_validation": len(shards[1]),
        "bytes_per_token": held_out_bytes / len(shards[1]),
    }


def _byte_level_bpe(
    train: list[bytes], validation: list[bytes], folder: Path, vocab_size: int
) -> tuple[list[np.ndarray], str, int]:
    """Train a byte-level BPE on the training part and encode both parts with it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode("utf-8", "ignore") for text in train), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    shards = []
    for part in (train, validation):
        encoded = tokenizer.encode_batch([text.decode("utf-8", "ignore") for text in part])
        ids = [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encoded]
        shards.append(np.concatenate(ids)[:-1])
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    return shards, f"bpe-{vocab_size}:{digest[:12]}", tokenizer.get_vocab_size()


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
