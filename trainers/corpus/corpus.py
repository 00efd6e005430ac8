"""Prepared corpus on disk: its record ``corpus.json`` and its memory-mapped token shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.scaling.schema import (
    Count,
    FileName,
    Name,
    NonNegative,
    Positive,
    PositiveFloat,
    conform,
    damaged,
)
from shapelaw.trainers.corpus.shards import Shard, read_shard, verify

RECORD = "corpus.json"
MAKE_AGAIN = "delete its folder and give the same command again, which prepares the corpus anew"
MAIN = "validation"  # name of the shard with the held-out text of the whole corpus


class ShardFile(TypedDict):
    """Size and checksum of a file beside ``corpus.json``."""

    bytes: Count
    sha256: Name


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """Share of one source in the training text, as recorded in ``corpus.json``.

    ``weight`` is the requested weight. ``documents`` and ``bytes`` are the used ones of
    ``bytes_available``. ``dropped`` counts documents that are also in a validation set.
    """

    name: str
    source: str
    weight: NonNegative | None
    documents: Count
    bytes: Count
    bytes_available: Count
    dropped: Count
    split: str
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """One validation set, as recorded in ``corpus.json``; ``shard`` names its files."""

    name: str
    shard: FileName
    source: str
    sha256: str
    documents: Count
    tokens: Positive
    bytes_per_token: PositiveFloat
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Memory-mapped held-out tokens, the starts of their documents, and their bytes per token."""

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    bytes_per_token: float


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token shards on disk and their origin.

    ``tokens_train`` and ``tokens_validation`` count tokens. ``bytes_per_token`` belongs to the
    validation text: bits per byte = nats per token / ln 2 / bytes_per_token. ``parts`` are the
    shares of the sources of a mixture, ``held_out`` the validation sets.
    """

    folder: str
    name: str
    source: str
    sha256: str
    documents: Count
    split: str
    tokenizer: str
    vocab_size: Positive
    tokens_train: Positive
    tokens_validation: Positive
    bytes_per_token: PositiveFloat
    truncated: bool
    parts: tuple[MixturePart, ...] = ()
    held_out: tuple[HeldOutText, ...] = ()

    def train(self) -> np.ndarray:
        """Map the training tokens."""
        return self.train_shard().tokens

    def train_shard(self) -> Shard:
        """Map the training tokens and where their documents start."""
        return read_shard(Path(self.folder), "train")

    def validation(self) -> np.ndarray:
        """Map the held-out tokens of the whole corpus; those of a mixture in its proportions."""
        return self.validation_shard().tokens

    def validation_shard(self) -> Shard:
        """Map the held-out tokens of the whole corpus and where their documents start."""
        return read_shard(Path(self.folder), MAIN)

    def validation_sets(self) -> dict[str, ValidationSet]:
        """Map the further validation sets by name.

        For a mixture, these include the held-out text of every source. The held-out
        text of a single source is only in :meth:`validation`.
        """
        sets = {}
        for held_out in self.held_out:
            if held_out.shard == MAIN:
                continue
            shard = read_shard(Path(self.folder), held_out.shard)
            sets[held_out.name] = ValidationSet(
                name=held_out.name,
                tokens=shard.tokens,
                starts=shard.starts,
                bytes_per_token=held_out.bytes_per_token,
            )
        return sets

    def seen(self, tokens: int) -> dict[str, float]:
        """Return the columns of the run table for the repetition of tokens in a run.

        ``unique_tokens`` counts the tokens trained on at least once; ``epochs`` is the number of
        passes over the training text.
        """
        unique = min(tokens, self.tokens_train)
        return {"unique_tokens": unique, "epochs": tokens / self.tokens_train}

    @property
    def label(self) -> str:
        """Name and hash of the corpus, as recorded in the run table."""
        return f"{self.name}:{self.sha256[:12]}"

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Read a prepared corpus; its folder may have been moved.

        Raises
        ------
        InputError
            The record is damaged, or a shard is missing, cut short or changed; see
            :func:`shapelaw.trainers.corpus.shards.verify`.
        """
        record = read_json(folder / RECORD)
        try:
            files = conform(record.pop("files", {}), dict[FileName, ShardFile], "files")
            record.pop("request", None)
            corpus = cls.from_record(folder, record)
        except InputError as error:
            raise damaged(folder / RECORD, error, MAKE_AGAIN) from None
        verify(folder, files)
        corpus.check_sizes()
        return corpus

    @classmethod
    def from_record(cls, folder: Path, record: dict[str, Any]) -> "Corpus":
        """Create a corpus from its record and folder.

        Raises
        ------
        InputError
            A field is missing or unknown, or has another type or range.
        """
        corpus: Corpus = conform(record | {"folder": str(folder)}, cls)
        return corpus

    def check_sizes(self) -> None:
        """Refuse shards that do not have the numbers of tokens of the record.

        Raises
        ------
        InputError
            A shard is damaged or has another length.
        """
        wanted = {"train": self.tokens_train, MAIN: self.tokens_validation}
        wanted |= {text.shard: text.tokens for text in self.held_out}
        for name, tokens in wanted.items():
            if (count := len(read_shard(Path(self.folder), name).tokens)) != tokens:
                path = Path(self.folder) / RECORD
                raise damaged(path, f"{name}.npy has {count} tokens, not {tokens}", MAKE_AGAIN)
