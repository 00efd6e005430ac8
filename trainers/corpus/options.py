"""The request for a corpus: one value that goes from the command down to the preparation."""

from dataclasses import dataclass
from pathlib import Path

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import parse_count
from shapelaw.trainers.corpus.encoding import BYTES
from shapelaw.trainers.corpus.mixing import MINIMUM
from shapelaw.trainers.corpus.mixture import Mixture, parse_mixture
from shapelaw.trainers.corpus.tokenizers import check_vocabulary, named_with_hash

LIMIT = 256_000_000  # bytes of text that are read where no number of tokens is given
LONGEST_TOKEN = 6  # bytes of text that a token stands for at the most, on average over a text
WITH_HELD_OUT = 1.25  # text that is read for a number of tokens: a tenth of it is held out


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """The options of a corpus, as the commands take them.

    ``corpus`` and ``validation`` are what :func:`shapelaw.trainers.corpus.mixture.parse_mixture`
    reads; ``vocab_size`` (a BPE to train) and ``tokenizer`` (the path of one) exclude each other,
    and without them every byte is a token; ``tokens`` ends the training text. ``limit_bytes`` ends
    what is read; by default the number of tokens decides that.
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
        """Make it of options as they are typed, with a number of tokens such as 100M."""
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
        if self.tokens is not None and self.tokens < MINIMUM:
            raise InputError(f"`--corpus-tokens >= {MINIMUM}` must hold, but got {self.tokens}")

    @property
    def wanted_tokenizer(self) -> str:
        """The tokenizer's name as the record gives it; of one that is yet to train without hash."""
        if self.tokenizer is not None:
            return named_with_hash(Path(self.tokenizer))
        return BYTES if self.vocab_size is None else f"bpe-{self.vocab_size}"

    def mixture(self) -> Mixture:
        """Parse the sources.

        Raises
        ------
        InputError
            They cannot be told, or a stream has no end.
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
        """Bytes of text that are read at the most."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        if self.tokens is None:
            return LIMIT
        per_token = 1 if self.wanted_tokenizer == BYTES else LONGEST_TOKEN
        return round(self.tokens * per_token * WITH_HELD_OUT)
