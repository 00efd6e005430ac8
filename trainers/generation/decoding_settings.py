"""Settings of a decoder, as texts such as ``d2f:block=16,confidence=0.8``, and what it returns."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:  # the texts are read where torch is not installed
    from torch import Tensor

# Options of each decoder beside those of all: temperature, seed, end and end_last.
DECODERS = {
    "ar": (),
    "llada": ("block", "steps"),
    "threshold": ("block", "confidence"),
    "block": ("block", "confidence", "steps"),
    "d2f": ("block", "confidence", "add", "activate"),
}
WHOLE_DECODERS = ("llada", "threshold")  # every pass sees the whole text, without a cache
EVERY_DECODER = ("temperature", "seed")
MAX_BLOCK = 2**20
SHARES = ("confidence", "add", "activate")


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """Settings by which a model generates text.

    Parameters
    ----------
    decoder
        ``ar``: one token after the other. ``llada`` (arXiv 2502.09992): the whole text is seen in
        both directions, and blocks are decided one after the other, in each forward pass the most
        confident positions. ``threshold`` (Fast-dLLM, arXiv 2505.22618): the same, in each pass all
        positions above ``confidence``, at least one. ``block`` (arXiv 2503.09573): tokens see their
        block and earlier ones, whose keys and values are cached. ``d2f`` (arXiv 2508.09192): the
        same, and blocks begin before those before them are decided.
    block
        Tokens of a block, counted from the end of the prompt.
    steps
        Forward passes of a block, each of which decides equally many positions (the first ones one
        more if they do not divide); None: one per token in ``llada``, and ``confidence`` decides in
        ``block``.
    confidence
        Probability above which a position is decided, τ_conf.
    add
        Decided share of the last block from which on the next one begins, τ_add.
    activate
        Decided share of the block before it from which on a block decides at least one position in
        each pass, τ_act.
    temperature
        Divisor of the logits; 0 takes the most probable token. Confidences are without it.
    seed
        Seed of the noise that samples tokens.
    end
        Token after which a text ends; None for texts of full length.
    end_last
        Positions that would become ``end`` are decided last in their block.

    Raises
    ------
    InputError
        The decoder does not exist, or a number is out of range.
    """

    decoder: str = "block"
    block: int = 32
    steps: int | None = None
    confidence: float = 0.9
    add: float = 0.1
    activate: float = 0.95
    temperature: float = 0.0
    seed: int = 0
    end: int | None = None
    end_last: bool = False

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise InputError(
                f"`--decoder` must be one of {', '.join(DECODERS)}, but got {shown(self.decoder)}"
            )
        if not 1 <= self.block <= MAX_BLOCK:
            raise InputError(
                f"`block` of --decoder must be from 1 to {MAX_BLOCK:,} tokens, but got "
                f"{self.block}; use 16 or 32"
            )
        if self.steps is not None and not 1 <= self.steps <= self.block:
            raise InputError(
                f"`1 <= steps <= block` must hold for --decoder, but got {self.steps} and "
                f"{self.block}; use at most {self.block} steps"
            )
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"`{name}` of --decoder must be from 0 to 1, but got {getattr(self, name):g}; "
                    f"use {getattr(DecodingSettings, name):g}"
                )
        if not 0 <= self.temperature <= 100:
            raise InputError(
                "`temperature` of --decoder must be from 0 to 100, but got "
                f"{self.temperature:g}; use 0 for the most probable tokens"
            )

    @property
    def masked(self) -> bool:
        """True for the decoders that fill in masked tokens."""
        return self.decoder != "ar"

    def passes(self) -> list[int] | None:
        """Return how many positions each pass of a block decides; None if confidence does."""
        steps = self.steps
        if steps is None:
            if self.decoder != "llada":
                return None
            steps = self.block
        least, more = divmod(self.block, steps)
        return [least + (index < more) for index in range(steps)]

    def __str__(self) -> str:
        names = (*DECODERS[self.decoder], *EVERY_DECODER)
        given = {name: getattr(self, name) for name in names}
        changed = [
            f"{name}={value:g}"
            for name, value in given.items()
            if value is not None and (name == "block" or value != getattr(DecodingSettings, name))
        ]
        return f"{self.decoder}:{','.join(changed)}" if changed else self.decoder


def parse_decoder(text: str) -> DecodingSettings:
    """Read the settings of a decoder from ``NAME`` or ``NAME:OPTION=NUMBER,...``.

    Raises
    ------
    InputError
        The decoder does not exist or does not take an option, or a number is out of range.

    Examples
    --------
    >>> parse_decoder("d2f:block=16,add=0.5").add
    0.5
    """
    name, _, options = text.partition(":")
    settings = DecodingSettings(decoder=name)
    names = (*DECODERS[name], *EVERY_DECODER)
    changes: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if key not in names or not equals or key in changes:
            raise InputError(
                f"`--decoder {name}` takes {', '.join(names)}, each once and as NAME=NUMBER, but "
                f"got {shown(option)}; write --decoder {name}:{names[0]}=..."
            )
        changes[key] = _number(key, value)
    return replace(settings, **changes)


def require_mask_token(settings: DecodingSettings, model: Shape | Architecture) -> None:
    """Refuse a decoder that fills in masked tokens for a model without a mask token.

    Raises
    ------
    InputError
        The model has none, or predicts the token after each position.
    """
    kind = model.model_type if isinstance(model, Architecture) else "a dense shape"
    if not isinstance(model, Architecture) or model.embedding.mask_token is None:
        raise InputError(
            f"`--decoder {settings.decoder}` needs a model with a mask token (`mask_token_id` in "
            f"its config), but {kind} has none; use --decoder ar"
        )
    if kind == "Dream":
        raise InputError(
            f"`--decoder {settings.decoder}` needs a model that predicts the token at each "
            "position, but Dream predicts the next one; it is counted and trained only"
        )
    if model.embedding.shifted and settings.decoder not in WHOLE_DECODERS:
        raise InputError(
            f"`--decoder {settings.decoder}` needs a model that predicts the token at each "
            "position, but this one has `shift_predictions`; use --decoder "
            + " or ".join(WHOLE_DECODERS)
        )


def _number(key: str, text: str) -> int | float:
    """Read the number of an option: whole for those that count."""
    kinds = {field.name: str(field.type) for field in fields(DecodingSettings)}
    kind: Callable[[str], int | float] = float if "float" in kinds[key] else int
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > 2**53:
        what = "a number" if kind is float else "a whole number"
        raise InputError(f"`{key}` of --decoder must be {what}, but got {shown(text)}; correct it")
    return number


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Generated text and what it cost.

    Parameters
    ----------
    tokens
        Token ids without the prompt, (B, n); after the first ``end`` all are that token.
    useful
        Tokens of each sequence before its first ``end``.
    forwards
        Forward passes, that of the prompt included.
    passed_tokens
        Tokens of one sequence in all forward passes.
    seconds
        Wall time, and ``first_seconds`` up to the first pass that decided tokens.
    """

    tokens: "Tensor"
    useful: tuple[int, ...]
    forwards: int
    passed_tokens: int
    seconds: float
    first_seconds: float

    @property
    def tokens_per_forward(self) -> float:
        """Useful tokens of a sequence per forward pass."""
        return sum(self.useful) / (len(self.useful) * self.forwards)

    @property
    def tokens_per_second(self) -> float:
        """Useful tokens of all sequences per second."""
        return sum(self.useful) / self.seconds
