"""Passes of the model in a training step, by objective and conversion.

FLOPs and predicted time of a step are both computed from these passes. This module does not import
torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.optimizers.noise import parse_objective
from shapelaw.trainers.training.conversion import D2F, Conversion


@dataclass(frozen=True, kw_only=True)
class TrainingPass:
    """One kind of forward and backward pass of a training step.

    Parameters
    ----------
    share
        Share of the steps, or of a forward and backward pass: 1/3 is a forward pass alone.
    causal
        Tokens see themselves and earlier ones.
    block
        Tokens that see each other in both directions, and all earlier ones; None for the sequence.
    doubled
        The noisy and the clean sequence are read, and the head is applied to the noisy one only.
    """

    share: float = 1.0
    causal: bool = False
    block: int | None = None
    doubled: bool = False

    @property
    def copies(self) -> int:
        """Tokens that pass the layers for each training token."""
        return 1 + self.doubled


NEXT_TOKENS = (TrainingPass(causal=True),)


def training_passes(
    objective: str, length: int, conversion: Conversion | None = None
) -> tuple[TrainingPass, ...]:
    """Return the passes of a step; those of a conversion are averaged over its phases by ``share``.

    D2F has a forward pass of the teacher over the whole sequence, and a pass of the student.

    Parameters
    ----------
    objective
        Name of the objective.
    length
        Tokens of a sequence.
    conversion
        Conversion of which the step is a part.
    """
    name = parse_objective(objective)
    if not name.is_diffusion:
        return NEXT_TOKENS
    if conversion is None:
        return (_diffusion_pass(name.block, length),)
    if conversion.method == D2F:
        return (TrainingPass(share=1 / 3), TrainingPass(block=conversion.phases[0].block))
    return tuple(_diffusion_pass(phase.block, length, phase.share) for phase in conversion.phases)


def _diffusion_pass(block: int, length: int, share: float = 1.0) -> TrainingPass:
    """Return the pass for blocks of a size; 0 is the whole sequence."""
    if block in (0, length):
        return TrainingPass(share=share)
    return TrainingPass(share=share, block=block, doubled=True)


def training_flops_per_token(
    model: Shape | Architecture, length: int, passes: Sequence[TrainingPass]
) -> float:
    """Count the training FLOPs per token of some passes, with output head and attention.

    In masked diffusion a token sees all T tokens. Block diffusion passes 2T tokens without a head
    for half of them; with blocks of B each sees (T + B)/2 on average. The weights of D2F count as
    trained, although only its adapters are.
    """
    flops = 0.0
    for part in passes:
        if part.causal:
            flops += part.share * model.training_flops(length)
        else:
            assert isinstance(model, Architecture)
            block, doubled = part.block, part.doubled
            flops += part.share * model.diffusion_training_flops(length, block, doubled=doubled)
    return flops
