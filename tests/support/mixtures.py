"""Small mixtures of text files."""

from pathlib import Path

import numpy as np

from shapelaw.trainers.corpus.corpus import Corpus

END = "<|endoftext|>"


def written(path: Path, name: str, count: int = 80, words: int = 60) -> str:
    """Write a text of numbered documents that begin with its name; return its path."""
    documents = [f"{name} {number} " + f"{name}{number:04d} " * words for number in range(count)]
    path.write_text(f"\n{END}\n".join(documents), encoding="utf-8")
    return str(path)


def train_documents(corpus: Corpus) -> list[str]:
    """Return the training documents of a corpus."""
    shard = corpus.train_shard()
    return documents_of(shard.tokens, shard.starts)


def documents_of(tokens: np.ndarray, starts: np.ndarray) -> list[str]:
    """Decode the documents of a shard of bytes from their starts."""
    ends = [*(starts[1:] - 1).tolist(), len(tokens)]
    return [
        tokens[begin:end].astype(np.uint8).tobytes().decode()
        for begin, end in zip(starts.tolist(), ends, strict=True)
    ]
