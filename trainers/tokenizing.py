"""Tokenizers of a corpus: bytes, or a byte-level BPE trained on its training text."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.errors import InputError

BYTES = "bytes"
BYTE_SEPARATOR = b"\0"  # stands between documents of a byte corpus; text never holds it
END_OF_TEXT = "<|endoftext|>"
BATCH = 4_194_304  # bytes of text that are encoded at once


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as the shards need it.

    ``encode`` takes documents (UTF-8) and returns their tokens, each document with a separator at
    its end, one after the other, and the number of tokens of each.
    """

    name: str
    vocab_size: int
    encode: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]]

    def parts(self, documents: Iterable[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Encode documents in batches of bounded size."""
        batch: list[bytes] = []
        size = 0
        for document in documents:
            batch.append(document)
            size += len(document)
            if size >= BATCH:
                yield self.encode(batch)
                batch, size = [], 0
        if batch:
            yield self.encode(batch)


def byte_encoder() -> Encoder:
    """One token per byte of UTF-8; a zero byte ends a document."""
    return Encoder(BYTES, 256, _encode_bytes)


def _encode_bytes(documents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    joined = BYTE_SEPARATOR.join([*documents, b""])
    sizes = np.array([len(document) + 1 for document in documents])
    return np.frombuffer(joined, dtype=np.uint8), sizes


def check_vocabulary(vocab_size: int | None) -> None:
    """Refuse a size that no BPE of 16 bits has.

    Raises
    ------
    InputError
        It is out of range.
    """
    if vocab_size is not None and not 257 <= vocab_size <= 65_536:
        raise InputError(f"`257 <= --vocab <= 65536` must hold, but got {vocab_size}")


def train_bpe(documents: Iterable[bytes], folder: Path, vocab_size: int) -> Encoder:
    """Train a byte-level BPE and keep it as ``tokenizer.json``."""
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
    tokenizer.train_from_iterator((text.decode("utf-8", "ignore") for text in documents), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)

    def encode(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        encodings = tokenizer.encode_batch([text.decode("utf-8", "ignore") for text in texts])
        tokens = [np.array([*encoding.ids, end], dtype=np.uint32) for encoding in encodings]
        return np.concatenate(tokens), np.array([len(ids) for ids in tokens])

    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    return Encoder(f"bpe-{vocab_size}:{digest[:12]}", tokenizer.get_vocab_size(), encode)
