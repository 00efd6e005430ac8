"""A prepared corpus on disk: its record ``corpus.json`` and its memory-mapped token shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.files import read_json
from shapelaw.trainers.corpus.shards import Shard, read_shard, verify

RECORD = "corpus.json"
MAIN = "validation"  # the shard of the held-out text of the whole corpus


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """The share of one source in the training text, as ``corpus.json`` records it.

    ``weight`` is the one that was asked for; ``documents`` and ``bytes`` were used of
    ``bytes_available``; ``dropped`` documents also stand in a validation set.
    """

    name: str
    source: str
    weight: float | None
    documents: int
    bytes: int
    bytes_available: int
    dropped: int
    split: str
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """One validation set, as ``corpus.json`` records it; ``shard`` names its files."""

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
        """Map the further validation sets by name: of a mixture every source's held-out text, too.

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
        """Return the columns of a run over so many tokens that say whether it saw any twice.

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
        return cls.from_record(folder, record)

    @classmethod
    def from_record(cls, folder: Path, record: dict[str, Any]) -> "Corpus":
        """Make the corpus in a folder of its record."""
        nested = {
            "folder": str(folder),
            "parts": tuple(MixturePart(**part) for part in record.get("parts", ())),
            "held_out": tuple(HeldOutText(**part) for part in record.get("held_out", ())),
        }
        return cls(**(record | nested))
