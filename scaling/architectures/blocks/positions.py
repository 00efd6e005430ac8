"""Rotary positions (arXiv 2104.09864) and their scaling to longer contexts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Scaling of the rotation frequencies.

    Parameters
    ----------
    kind
        ``"linear"`` divides every frequency by ``factor``. ``"llama3"`` divides low frequencies
        only. ``"yarn"`` (arXiv 2309.00071) does so with a ramp, and scales the cosines and sines.
    original_length
        Context in tokens before the scaling.
    low, high
        Rotations within the original context below which a frequency is divided, and above which
        it is kept.
    rotation_scale
        Factor of cosines and sines.
    truncate
        The ends of yarn's ramp are whole dimensions.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: float = 1.0
    low: float = 1.0
    high: float = 1.0
    rotation_scale: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class RotaryPositions:
    """Rotary positions of base ``theta``, on the first ``share`` of the dimensions of a head.

    A rotation mixes dimension i with i + h/2, or 2·i with 2·i + 1 if ``interleaved``. The angle
    grows with the position, or falls if ``reversed`` (nanochat).
    """

    theta: float = 10_000.0
    interleaved: bool = False
    reversed: bool = False
    share: float = 1.0
    scaling: RotaryScaling | None = None


ROTARY = RotaryPositions()
INTERLEAVED = RotaryPositions(interleaved=True)
