"""Tokenizers of a corpus: bytes, a byte-level BPE trained on its text, or a tokenizer.json."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import sha256
from shapelaw.trainers.corpus.document import Document
from shapelaw.trainers.corpus.encoding import BYTES, TOKENIZER_FILE, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE_SEPARATOR = b"\0"  # stands between documents of a byte corpus; text never holds it
END_OF_TEXT = "<|endoftext|>"
PARALLEL = "TOKENIZERS_PARALLELISM"
BATCH = 4_194_304  # bytes of text that are encoded at once


class TokenBlock(NamedTuple):
    """Tokens of several documents, each ending with a separator, and their token counts."""

    tokens: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Encoder:
    """Tokenizer of a corpus; ``encode`` converts the texts of documents to one block."""

    name: str
    vocab_size: int
    encode: Callable[[list[bytes]], TokenBlock]

    def blocks(self, documents: Iterable[Document]) -> Iterator[TokenBlock]:
        """Encode documents in blocks of bounded size."""
        batch: list[bytes] = []
        size = 0
        for document in documents:
            batch.append(document.text)
            size += len(document.text)
            if size >= BATCH:
                yield self.encode(batch)
                batch, size = [], 0
        if batch:
            yield self.encode(batch)


def byte_encoder() -> Encoder:
    """Return the encoder with one token per byte of UTF-8; a zero byte ends a document."""
    return Encoder(BYTES, 256, _encode_bytes)


def _encode_bytes(texts: list[bytes]) -> TokenBlock:
    joined = BYTE_SEPARATOR.join([*texts, b""])
    lengths = np.array([len(text) + 1 for text in texts])
    return TokenBlock(np.frombuffer(joined, dtype=np.uint8), lengths)


def check_vocabulary(vocab_size: int | None) -> None:
    """Refuse a vocabulary size that is out of range for a BPE with 16-bit tokens.

    Raises
    ------
    InputError
        The size is out of range.
    """
    if vocab_size is not None and not 257 <= vocab_size <= 65_536:
        raise InputError(f"`257 <= --vocab <= 65536` must hold, but got {vocab_size}")


def train_bpe(documents: Iterable[Document], folder: Path, vocab_size: int) -> Encoder:
    """Train a byte-level BPE and write it to ``tokenizer.json``."""
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
    texts = (document.text.decode("utf-8", "ignore") for document in documents)
    with _threads("false"):  # so that a vocabulary cannot depend on the machine
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    digest = sha256(folder / TOKENIZER_FILE)
    end = tokenizer.get_vocab()[END_OF_TEXT]
    return _encoder(tokenizer, end, f"bpe-{vocab_size}:{digest[:12]}")


def load_tokenizer(path: Path) -> Encoder:
    """Load any tokenizer.json; ``path`` is the file or its folder.

    Raises
    ------
    InputError
        The file is missing or damaged, or has no token that ends a text.
    """
    path = tokenizer_file(path)
    tokenizer, _, end = open_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _encoder(tokenizer, end, named_with_hash(path))


def tokenizer_file(path: Path) -> Path:
    """Find the file of the option ``--tokenizer``.

    Raises
    ------
    InputError
        The file does not exist.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"the tokenizer {file} does not exist; give a tokenizer.json or the folder of one"
        )
    return file


@contextlib.contextmanager
def _threads(parallel: str) -> Iterator[None]:
    """Let the library use all cores or one, unless the environment sets this."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = before or parallel
    try:
        yield
    finally:
        os.environ[PARALLEL] = before or "false"  # a process that forks later needs it set


def named_with_hash(path: Path) -> str:
    """Return the name of a loaded tokenizer with the beginning of the SHA-256 of its file."""
    file = tokenizer_file(path)
    name = file.parent.absolute().name if file.name == TOKENIZER_FILE else file.stem
    return f"{name}:{sha256(file)[:12]}"


def _encoder(tokenizer: "Tokenizer", end: int, name: str) -> Encoder:
    tokenizer.encode_special_tokens = True  # a text that holds such words does not end there

    def encode(texts: list[bytes]) -> TokenBlock:
        decoded = [text.decode("utf-8", "ignore") for text in texts]
        with _threads("true"):
            encodings = tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        tokens = [np.array([*encoding.ids, end], dtype=np.uint32) for encoding in encodings]
        return TokenBlock(np.concatenate(tokens), np.array([len(ids) for ids in tokens]))

    return Encoder(name, max(tokenizer.get_vocab().values()) + 1, encode)
