"""Noise of masked diffusion as settings: mask rates, weights, normaliser, and published variants.

An objective is named ``next_token``, ``masked_diffusion`` or ``block:SIZE``; the last two may name
a variant of :data:`VARIANTS`, such as ``block:16/llada2``. This module does not import torch.
"""

from dataclasses import dataclass, replace

from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError

NEXT_TOKEN, MASKED, BLOCK = "next_token", "masked_diffusion", "block"
DRAWS = ("sequence", "block", "monotone")
WEIGHTS = ("1/t", "1/p", "1/(t + 1e-6)", "none")
NORMALISERS = ("length", "maskable", "masked")
MAX_BLOCK = 2**24


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Distribution of the masks of a training step, and the loss of the masked tokens.

    The loss is Σ w·CE over masked tokens / normaliser. Each token is masked independently with the
    rate p = t of its time t (the linear schedule), so that 1/t and 1/p are the same number.

    Parameters
    ----------
    draw
        Number of draws u ~ U(0, 1): one per ``sequence`` or per ``block``. ``monotone`` rates grow
        over the blocks of a sequence: p₀ ~ U(low, high) and increments U(0, 1)·(high - p₀)/(n - 1),
        for n blocks (D2F's code).
    stratified
        The draws of a batch lie one in each of equal parts of (0, 1), in random order, instead of
        independently.
    epsilon
        Smallest rate: p = ε + (1 - ε)·u.
    low, high
        Range to which the rates are scaled: low + (high - low)·p.
    weight
        Weight w of a masked token: ``1/t``, ``1/p``, ``1/(t + 1e-6)`` or ``none`` (1).
    normaliser
        ``length``: sequences × length; ``maskable``: tokens that are neither padding nor given;
        ``masked``: masked tokens.
    """

    draw: str = "sequence"
    stratified: bool = True
    epsilon: float = 1e-3
    low: float = 0.0
    high: float = 1.0
    weight: str = "1/p"
    normaliser: str = "maskable"

    def __post_init__(self) -> None:
        for name, allowed in (("draw", DRAWS), ("weight", WEIGHTS), ("normaliser", NORMALISERS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"`{name}` must be one of {', '.join(allowed)}, but got {getattr(self, name)!r}"
                )
        if not (0 <= self.low <= self.high <= 1 and 0 <= self.epsilon < 1):
            raise InputError(
                "`0 <= low <= high <= 1` and `0 <= epsilon < 1` must hold, but got "
                f"{self.low}, {self.high} and {self.epsilon}"
            )
        if self.weight != "none" and not (self.low > 0 or self.epsilon > 0):
            raise InputError(
                "`epsilon > 0` or `low > 0` must hold for a weight that divides by the rate, but "
                f"got {self.epsilon} and {self.low}; give epsilon=0.001 or weight none"
            )


# Variants by the code that they are of. LLaDA's random lengths of 1 % of the batches are left out.
VARIANTS = {
    # LLaDA (arXiv 2502.09992), pre-training.
    "llada": Noise(draw="sequence", stratified=False, weight="1/p", normaliser="length"),
    # ZHZisZZ/dllm, its MDLM and BD3LM trainers with the linear schedule: t is the rate.
    "dllm": Noise(
        draw="sequence", stratified=False, weight="1/(t + 1e-6)", normaliser="maskable"
    ),
    # MDLM and BD3-LM (arXiv 2503.09573), kuleshov-group: over batch × blocks.
    "bd3lm": Noise(draw="block", weight="1/t", normaliser="maskable"),
    # The same with the rates of its training: clipped by the size of the block.
    "bd3lm-clip4": Noise(
        draw="block", epsilon=0.0, low=0.45, high=0.95, weight="1/t", normaliser="maskable"
    ),
    "bd3lm-clip16": Noise(
        draw="block", epsilon=0.0, low=0.3, high=0.8, weight="1/t", normaliser="maskable"
    ),
    # LLaDA 2.0 (arXiv 2512.15745), dFactory's fine-tuning.
    "llada2": Noise(
        draw="block", stratified=False, epsilon=0.0, low=0.3, high=0.8, weight="none",
        normaliser="masked",
    ),
    # The rates of D2F (arXiv 2508.09192), released code; its loss is a distillation.
    "d2f": Noise(
        draw="monotone", stratified=False, epsilon=0.0, low=0.2, high=0.7, weight="1/p",
        normaliser="masked",
    ),
}  # fmt: skip
DEFAULT = "bd3lm"


@dataclass(frozen=True, kw_only=True)
class ObjectiveName:
    """Parts of the name of an objective.

    Parameters
    ----------
    kind
        ``next_token``, ``masked_diffusion`` or ``block``.
    block
        Tokens of a block; 0 for the other kinds.
    noise
        Noise of a diffusion objective; None for next-token prediction.
    """

    kind: str
    block: int = 0
    noise: Noise | None = None

    @property
    def is_diffusion(self) -> bool:
        """True for the objectives that need a mask token."""
        return self.noise is not None

    @property
    def loss_kind(self) -> str:
        """Kind of the held-out loss: exact, or an upper bound on it.

        With blocks of one token each order of a block is the same, and the bound is exact.
        """
        return "bound" if self.is_diffusion and self.block != 1 else "exact"


def parse_objective(text: str) -> ObjectiveName:
    """Parse the name of an objective.

    Raises
    ------
    InputError
        The kind or variant is unknown, or the block has no size.
    """
    name, slash, variant = text.partition("/")
    kind, colon, size = name.partition(":")
    if text == NEXT_TOKEN:
        return ObjectiveName(kind=NEXT_TOKEN)
    if slash and variant not in VARIANTS:
        raise InputError(
            f"the variant of `objective` must be one of {', '.join(VARIANTS)}, but got "
            f"{shown(variant)}; leave it out for {DEFAULT}"
        )
    noise = VARIANTS[variant or DEFAULT]
    if kind == MASKED and not colon:
        if noise.draw == "block":  # the whole sequence is the block
            noise = replace(noise, draw="sequence")
        return ObjectiveName(kind=MASKED, noise=noise)
    if kind == BLOCK and size.isascii() and size.isdigit() and 0 < int(size[:12]) <= MAX_BLOCK:
        return ObjectiveName(kind=BLOCK, block=int(size[:12]), noise=noise)
    raise InputError(
        f"`objective` must be {NEXT_TOKEN}, {MASKED} or block:SIZE with a number of tokens, but "
        f"got {shown(text)}; give for example block:16"
    )


def check_objective(text: str, length: int) -> ObjectiveName:
    """Parse the name of an objective for sequences of a length.

    Raises
    ------
    InputError
        The name cannot be read, or the block does not divide the length.
    """
    name = parse_objective(text)
    if name.block and length % name.block:
        divisors = [size for size in range(1, min(length, 4096) + 1) if length % size == 0]
        nearest = min(divisors, key=lambda size: (abs(size - name.block), size))
        raise InputError(
            f"the block of `objective` must divide `context_length`, but got {name.block} and "
            f"{length}; give for example block:{nearest}"
        )
    return name
