"""Corpora of every kind of source, made of a fixed text, and their digests."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.options import CorpusOptions
from shapelaw.trainers.corpus.preparation import prepare, prepare_from_options
from support.mixtures import END

WORDS = [
    "the",
    "of",
    "and",
    "größer",
    "語",
    "zoé",
    "🙂",
    "law\tfit\nloss",
    "depth",
    "width\r\nhead",
    "token",
    "naïve",
    "scale\n\n",
]
PARTS = (5, 31, 17, 101)  # coefficients of a fixed sequence of the words


def document(number: int, name: str) -> str:
    """Return a text of 60 to 160 words that is a function of its number and name."""
    count = 60 + number * 37 % 101
    places = (number * PARTS[1] + word * word * PARTS[2] + word * PARTS[3] for word in range(count))
    text = " ".join(WORDS[place % len(WORDS)] for place in places)
    return f"{name} {number} {text}{' ' * (number % 3)}"


def documents(name: str, count: int) -> list[str]:
    """Return numbered texts, among them two equal ones, a blank one and one with a zero byte."""
    texts = [document(number, name) for number in range(count)]
    return [*texts[:7], texts[3], " \n ", "zero\0byte " + texts[5], *texts[7:]]


def write_sources(folder: Path) -> None:
    """Write the texts in every format."""

    def joined(name: str, count: int) -> str:
        return f"\n{END}\n".join(documents(name, count))

    def lines(name: str, count: int) -> str:
        return "\n".join(json.dumps({"text": text}) for text in documents(name, count))

    def put(path: str, text: str, *, pieces: int = 0) -> None:
        content, file = text.encode(), folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        step = len(content) // pieces + 1 if pieces else 0
        frames = [content[at : at + step] for at in range(0, len(content), step)] if step else []
        file.write_bytes(b"".join(map(zstandard.compress, frames)) if pieces else content)

    put("many.txt", joined("many", 120).replace(f"\n{END}\n", f"\r\n{END}\r\n", 20))
    put("few.md", joined("few", 41))
    put("one.txt", "\n".join(documents("one", 70)))
    put("lines.jsonl", lines("lines", 90) + "\n\n")
    put("packed.txt.zst", joined("packed", 80), pieces=3)
    put("packed.jsonl.zst", lines("json", 80), pieces=1)
    for number in range(66):
        put(f"tree/{number % 4}/{number:02d}.py", document(number, "tree"))
    put("pairs/red.train.txt", joined("red", 70))
    put("pairs/red.val.txt", joined("scarlet", 20))
    put("pairs/blue.train.jsonl", lines("blue", 60))
    put("exam.txt", f"\n{END}\n".join([document(9, "many"), *documents("exam", 12)]))
    rows: list[str | None] = [*documents("rows", 75), None, ""]
    pq.write_table(pa.table({"text": rows}), folder / "rows.parquet")
    save_tokenizer(folder / "words.json", 0)
    save_tokenizer(folder / "large.json", 65_280)


def save_tokenizer(path: Path, words: int) -> None:
    """Write a tokenizer of bytes, numbered words and a token that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    vocabulary |= {f"word{number}": 256 + number for number in range(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path))


class StreamedRows:
    """Replacement for a dataset of the Hub that is read as a stream."""

    def iter(self, batch_size: int) -> Iterator[dict[str, list[str]]]:
        """Yield batches of rows."""
        rows = documents("stream", 300)
        for begin in range(0, len(rows), batch_size):
            yield {"text": rows[begin : begin + batch_size]}


def from_options(**options: Any) -> Callable[[Path, Path], Corpus]:
    """Return a function that prepares sources; ``@/`` in options stands for their folder."""

    def case(sources: Path, out: Path) -> Corpus:
        named = {
            key: value.replace("@/", f"{sources}/") if isinstance(value, str) else value
            for key, value in options.items()
        }
        return prepare_from_options(CorpusOptions(**named), out)

    return case


CASES: dict[str, Callable[[Path, Path], Corpus]] = {
    "text": from_options(corpus="@/many.txt"),
    "few documents": from_options(corpus="@/few.md"),
    "one document": from_options(corpus="@/one.txt"),
    "json lines": from_options(corpus="@/lines.jsonl"),
    "parquet": from_options(corpus="@/rows.parquet"),
    "zstd text in three frames": from_options(corpus="@/packed.txt.zst"),
    "zstd json lines": from_options(corpus="@/packed.jsonl.zst"),
    "folder": from_options(corpus="@/tree"),
    "folder of pairs": from_options(corpus="@/pairs"),
    "mixture with weights": from_options(
        corpus="a=@/many.txt:2,b=@/rows.parquet:1,c=@/few.md:0.5", validation="exam=@/exam.txt"
    ),
    "mixture without weights": from_options(corpus="@/lines.jsonl,@/packed.txt.zst,@/few.md"),
    "held-out text": from_options(corpus="@/many.txt", validation="@/exam.txt"),
    "further validation set": from_options(corpus="@/many.txt", validation="exam=@/exam.txt"),
    "number of tokens": from_options(corpus="@/many.txt:1,@/lines.jsonl:3", tokens=23_456),
    "limit": lambda sources, out: prepare(f"{sources}/many.txt", out, limit=30_001),
    "loaded tokenizer": from_options(corpus="@/many.txt", tokenizer="@/words.json"),
    "tokenizer of 32 bits": from_options(
        corpus="@/few.md", tokenizer="@/large.json", tokens=40_000
    ),
    "stream": from_options(corpus="hf:org/name", tokens=50_000),
    "stream in a mixture": from_options(
        corpus="hf:org/name:2,@/many.txt:1", validation="many=@/exam.txt", tokens=40_000
    ),
}


def identity_of(corpus: Corpus) -> dict[str, Any]:
    """Return label, counts and digests of a prepared corpus, which identify it."""
    record = json.loads((Path(corpus.folder) / "corpus.json").read_text())
    files = {name: about["sha256"][:16] for name, about in record["files"].items()}
    left_out = (
        "request",
        "files",
        "tokenizer",
    )  # they depend on paths and on the version of the library
    about = json.dumps({name: record[name] for name in record if name not in left_out})
    return {
        "label": corpus.label,
        "tokenizer": corpus.tokenizer.partition(":")[0],
        "tokens": [corpus.tokens_train, corpus.tokens_validation],
        "record": hashlib.sha256(about.encode()).hexdigest()[:16],
        "files": {name: digest for name, digest in files.items() if name.endswith(".npy")},
    }
