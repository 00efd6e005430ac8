"""Options of a corpus, passed from the command to the preparation."""

from dataclasses import dataclass
from pathlib import Path

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import parse_count
from shapelaw.trainers.corpus.encoding import BYTES
from shapelaw.trainers.corpus.mixing import MIN_BYTES
from shapelaw.trainers.corpus.mixture import Mixture, parse_mixture
from shapelaw.trainers.corpus.tokenizers import check_vocabulary, named_with_hash

LIMIT = 256_000_000  # bytes of text that are read where no number of tokens is given
LONGEST_TOKEN = 6  # bytes of text that a token stands for at the most, on average over a text
WITH_HELD_OUT = 1.25  # text that is read for a number of tokens: a tenth of it is held out


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Options of a corpus.

    :func:`shapelaw.trainers.corpus.mixture.parse_mixture` parses ``corpus`` and ``validation``.
    ``vocab_size`` (of a BPE to train) and ``tokenizer`` (path of a tokenizer) exclude each other;
    without them every byte is a token. ``tokens`` limits the training text, ``limit_bytes`` the
    text to read; by default the latter follows from the number of tokens.
    """

    corpus: str = "stdlib"
    validation: str | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    tokens: int | None = None
    limit_bytes: int | None = None

    @classmethod
    def from_command(
        cls,
        corpus: str = "stdlib",
        *,
        validation: str | None = None,
        vocab: int | None = None,
        tokenizer: str | None = None,
        corpus_tokens: str | None = None,
    ) -> "CorpusOptions":
        """Parse the options of a command, with a number of tokens such as 100M."""
        return cls(
            corpus=corpus,
            validation=validation,
            vocab_size=vocab,
            tokenizer=tokenizer,
            tokens=None if corpus_tokens is None else round(parse_count(corpus_tokens)),
        )

    def __post_init__(self) -> None:
        check_vocabulary(self.vocab_size)
        if self.vocab_size is not None and self.tokenizer is not None:
            raise InputError(
                f"either --vocab {self.vocab_size} (a tokenizer to train) or --tokenizer "
                f"{self.tokenizer} (one to load) can be given, but not both; leave one out"
            )
        if self.tokens is not None and self.tokens < MIN_BYTES:
            raise InputError(f"`--corpus-tokens >= {MIN_BYTES}` must hold, but got {self.tokens}")

    @property
    def wanted_tokenizer(self) -> str:
        """Name of the tokenizer in the record; without hash if it is still to be trained."""
        if self.tokenizer is not None:
            return named_with_hash(Path(self.tokenizer))
        return BYTES if self.vocab_size is None else f"bpe-{self.vocab_size}"

    def mixture(self) -> Mixture:
        """Parse the sources.

        Raises
        ------
        InputError
            The sources are invalid, or a stream has no limit.
        """
        mixture = parse_mixture(self.corpus, self.validation)
        if self.tokens is None and self.limit_bytes is None and mixture.has_streams:
            raise InputError(
                "a stream has no end that could be waited for: `--corpus-tokens` must say how many "
                "training tokens to prepare, such as 100M"
            )
        return mixture

    @property
    def limit(self) -> int:
        """Largest number of bytes of text to read."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        if self.tokens is None:
            return LIMIT
        per_token = 1 if self.wanted_tokenizer == BYTES else LONGEST_TOKEN
        return round(self.tokens * per_token * WITH_HELD_OUT)
