"""Conversion of a finished model to another objective: its phases and settings.

The phases are those of LLaDA 2.0 (arXiv 2512.15745): warm-up over growing block sizes from 1, which
is autoregression; stable training at the whole length, which is masked diffusion; and a decay back
to the block size of decoding. This module does not import torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.schema import Count
from shapelaw.trainers.optimizers.noise import BLOCK, MASKED

D2F = "d2f"
D2F_BLOCK = 16
WARMUP_BLOCKS = (1, 4, 16, 64)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Part of a conversion with one block size.

    Parameters
    ----------
    block
        Tokens of a block; the context length is masked diffusion over the whole sequence.
    share
        Share of the training tokens.
    """

    block: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Settings of the conversion of a finished run.

    Parameters
    ----------
    parent
        Id of the finished run, whose folder stands beside that of the conversion.
    weights
        SHA-256 of its weights.
    parent_tokens
        Tokens that it was trained on.
    phases
        Block sizes in their order; the shares sum to 1. One for a direct conversion and for D2F.
    method
        ``"diffusion"`` trains all weights on the masked objective; ``"d2f"`` trains adapters by
        distillation from the model itself (arXiv 2508.09192).
    mask_noise
        Standard deviation of the Gaussian noise that the mask token's embedding begins with, as a
        multiple of the root mean square of the other embeddings. The row would decay to 0 in
        autoregressive training, which makes gradients explode at the start (arXiv 2512.15745).
    average
        Number of weights that are averaged at the end; 0 keeps the last weights.
    candidates
        Number of times in the last third of the steps that weights are evaluated for the average.
    rank
        Rank of the adapters of ``"d2f"``, which are scaled by 1.
    """

    parent: str
    weights: str
    parent_tokens: Count
    phases: tuple[Phase, ...]
    method: str = "diffusion"
    mask_noise: float = 1.0
    average: int = 0
    candidates: int = 6
    rank: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.mask_noise <= 1e3:
            raise InputError(f"`0 <= mask_noise <= 1000` must hold, but got {self.mask_noise}")
        if not 0 <= self.average <= self.candidates <= 1000:
            raise InputError(
                "`0 <= average <= candidates <= 1000` must hold, but got "
                f"{self.average} and {self.candidates}"
            )

    @property
    def label(self) -> str:
        """Phases in the run table: ``direct``, ``d2f``, or blocks with their shares."""
        if self.method == D2F:
            return D2F
        if len(self.phases) == 1:
            return "direct"
        return " ".join(f"{phase.block}:{phase.share:.4g}" for phase in self.phases)

    def columns(self, tokens: int) -> dict[str, str | int]:
        """Return the columns of the run table that tell the origin of the weights.

        Parameters
        ----------
        tokens
            Tokens of the conversion.
        """
        return {
            "converted_from": self.parent,
            "conversion": self.label,
            "parent_tokens": self.parent_tokens,
            "conversion_tokens": tokens,
        }

    def block(self, step: int, steps: int) -> int:
        """Return the block size of a step."""
        reached = 0.0
        for phase in self.phases[:-1]:
            reached += phase.share
            if step < round(reached * steps):
                return phase.block
        return self.phases[-1].block

    def objective(self, step: int, steps: int, length: int) -> str:
        """Return the objective of a step on sequences of a length."""
        return objective_name(self.block(step, steps), length)

    def candidate_steps(self, steps: int) -> list[int]:
        """Return the numbers of steps after which weights are evaluated for the average.

        They are spread evenly over the last third of the steps and the last phase, the last step
        included.
        """
        if not self.average:
            return []
        begin = max(2 * steps // 3, round(sum(phase.share for phase in self.phases[:-1]) * steps))
        span = steps - begin
        count = min(self.candidates, span)
        return sorted({steps - i * span // count for i in range(count)})


def objective_name(block: int, length: int) -> str:
    """Return the objective of a block size on sequences of a length."""
    return MASKED if block == length else f"{BLOCK}:{block}"


def check_block(block: int, length: int, option: str) -> int:
    """Return a block size that divides the length.

    Raises
    ------
    InputError
        It does not; the message names the nearest that do.
    """
    if 1 <= block <= length and length % block == 0:
        return block
    divisors = [size for size in range(1, length + 1) if length % size == 0]
    nearest = [size for size in divisors if size < block][-1:]
    nearest += [size for size in divisors if size > block][:1]
    raise InputError(
        f"`{option}` must divide the context length of {length}, but got {block}; use "
        + " or ".join(map(str, nearest))
    )


def plan_phases(
    target: int,
    length: int,
    *,
    warmup: Sequence[int] | None = None,
    warmup_share: float = 0.4,
    decay_share: float = 0.2,
) -> tuple[Phase, ...]:
    """Plan the phases of a conversion with warm-up, stable part and decay.

    Parameters
    ----------
    target
        Block size at the end; the length for masked diffusion, which has no decay.
    length
        Context length.
    warmup
        Block sizes of the warm-up, ascending, of equal shares; by default those of 1, 4, 16 and 64
        that divide the length and are below it. An empty one is no warm-up.
    warmup_share, decay_share
        Shares of the tokens. The decay halves the block size until the target, as far as the sizes
        divide the length, with equal shares.

    Raises
    ------
    InputError
        A block size does not divide the length or the sizes do not ascend, or a share is not
        between 0 and 1.
    """
    check_block(target, length, "--to")
    for name, share in (("warmup_share", warmup_share), ("decay_share", decay_share)):
        if not 0 <= share < 1:
            raise InputError(f"`0 <= {name} < 1` must hold, but got {share}")
    if target < length and not decay_share:
        raise InputError(
            f"`decay_share > 0` must hold for blocks of {target}, which the decay trains, but got "
            "0; give a share, or --direct"
        )
    if warmup_share + decay_share >= 1:
        raise InputError(
            "`warmup_share + decay_share < 1` must hold, but got "
            f"{warmup_share} and {decay_share}; the rest is the stable part"
        )
    if warmup is None:
        warmup = [size for size in WARMUP_BLOCKS if size < length and length % size == 0]
    for size in warmup:
        check_block(size, length, "--warmup")
    if any(a >= b for a, b in pairwise(warmup)):
        raise InputError(
            f"`--warmup` must be block sizes that ascend, but got {','.join(map(str, warmup))}"
        )
    sizes = decay_sizes(target, length)
    begin = [Phase(block=b, share=warmup_share / len(warmup)) for b in warmup if warmup_share]
    end = [Phase(block=size, share=decay_share / len(sizes)) for size in sizes]
    stable = 1 - warmup_share * bool(begin) - decay_share * bool(end)
    return (*begin, Phase(block=length, share=stable), *end)


def decay_sizes(target: int, length: int) -> list[int]:
    """Return the block sizes from the length, excluded, down to the target, each at least halved.

    Every size divides the length and is a multiple of the target.

    Examples
    --------
    >>> decay_sizes(16, 256)
    [128, 64, 32, 16]
    >>> decay_sizes(8, 72)
    [24, 8]
    """
    sizes, size = [], length
    while size > target:
        size = max(
            part
            for part in range(target, size // 2 + 1)
            if length % part == 0 and part % target == 0
        )
        sizes.append(size)
    return sizes
