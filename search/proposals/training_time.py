"""Training for a time on given hardware, and the tokens that a shape is trained on in that time."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import format_bytes
from shapelaw.search.engines._roofline import hardware_named
from shapelaw.search.engines.accelerators import Hardware, hardware_names

MFU = 0.4  # model FLOPs utilisation where none is given; Llama 3 reports 0.38 to 0.43
TRAINING_CONTEXT = 4096  # tokens of a training sequence
STATE_BYTES = 16  # per parameter: weights, gradients and Adam's states, arXiv 1910.02054
FLOPS_PER_PARAMETER = 6  # forward and backward pass of one token
MAX_HOURS, MAX_DEVICES = 1e6, 10**6
MAX_DIGITS = 9  # of a number of devices: Python converts no text of thousands of digits
HOUR = 3600.0  # seconds


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """Hours of training on a number of equal devices.

    D = hours · devices · MFU · peak / FLOPs per token, where the peak is that of bfloat16 (float32
    on devices without it), and a token costs a forward and a backward pass at 4,096 tokens of
    context. MFU is the model FLOPs utilisation of arXiv 2204.02311.

    Raises
    ------
    InputError
        A number is out of range.
    """

    hours: float
    hardware: Hardware
    devices: int = 1
    mfu: float = MFU

    def __post_init__(self) -> None:
        if not 0 < self.hours <= MAX_HOURS:
            raise InputError(
                f"`0 < --train-hours <= {MAX_HOURS:,.0f}` must hold, but got {self.hours:g}; "
                "give the hours of one training run"
            )
        if self.dtype not in self.hardware.peak_flops:
            raise InputError(
                f"`--hardware` must have bfloat16 or float32 arithmetic, but {self.hardware.name} "
                f"has {', '.join(self.hardware.peak_flops) or 'none'}; choose another device"
            )
        if not 0 < self.mfu <= 1:
            raise InputError(
                f"`0 < --mfu <= 1` must hold, but got {self.mfu:g}; {MFU:g} is usual on many GPUs"
            )

    @property
    def dtype(self) -> str:
        """Return the number format of the arithmetic."""
        return "bfloat16" if "bfloat16" in self.hardware.peak_flops else "float32"

    @property
    def flops(self) -> float:
        """Return the FLOPs of the whole training."""
        peak = self.hardware.peak_flops[self.dtype]
        return self.hours * HOUR * self.devices * self.mfu * peak

    def tokens(self, shapes: Costs, more_parameters: Any = 0) -> Any:
        """Compute the training tokens of each shape; (n,) for a table of n shapes.

        Parameters
        ----------
        shapes
            One shape or a table.
        more_parameters
            Parameters by which each shape is thought larger, such as those that it lacks to another
            shape of exactly equal N.
        """
        per_token = shapes.training_flops(TRAINING_CONTEXT) + FLOPS_PER_PARAMETER * more_parameters
        return self.flops / per_token

    def notes(self, shape: Costs) -> list[str]:
        """Describe what is assumed about the training, and a memory that is too small for it."""
        peak = self.hardware.peak_flops[self.dtype] / 1e12
        sentences = [
            f"each shape is trained on the tokens of {self}: an MFU of {self.mfu:g} is assumed "
            f"({peak:g} TFLOP/s {self.dtype} of each device, {TRAINING_CONTEXT:,} tokens of "
            "context), and no run measured it; --mfu gives another (Llama 3 reports 0.38 to 0.43 "
            "on H100, arXiv 2407.21783)"
        ]
        state, memory = STATE_BYTES * shape.n_total, self.devices * self.hardware.memory
        if state > memory:
            sentences.append(
                f"weights, gradients and Adam's states of the baseline need {format_bytes(state)} "
                f"at {STATE_BYTES} bytes per parameter (arXiv 1910.02054), and {self.devices} × "
                f"{self.hardware.name} have {format_bytes(memory)}: training needs more devices"
            )
        return sentences

    def document(self) -> dict[str, Any]:
        """Return the fields that ``proposals.json`` has."""
        hardware = self.hardware.key
        return {"hours": self.hours, "hardware": hardware, "devices": self.devices, "mfu": self.mfu}

    def __str__(self) -> str:
        unit = "hour" if self.hours == 1 else "hours"
        return f"{self.hours:g} {unit} on {self.devices} × {self.hardware.name}"


def parse_hardware(text: str) -> tuple[Hardware, int]:
    """Read devices of one kind: ``h100x8``, or ``h100`` for one.

    Returns
    -------
    hardware
        The device, an entry of ``data/hardware.toml``, ``this`` or a .toml file as for the engine
        ``roofline``.
    devices
        Their number.

    Raises
    ------
    InputError
        The device is unknown, or the number is out of range.

    Examples
    --------
    >>> device, number = parse_hardware("rtx4090x8")
    >>> device.key, number
    ('rtx4090', 8)
    """
    names = hardware_names()
    key, _, count = text.rpartition("x")
    if not key or not count.isdecimal() or text in names:
        key, count = text, "1"
    if key not in (*names, "this") and not key.endswith(".toml"):
        raise InputError(
            f"`--hardware` must be one of {', '.join(names)}, with a number as h100x8, or this, or "
            f"a .toml file, but got {shown(text)}"
        )
    if len(count) > MAX_DIGITS or not 1 <= int(count) <= MAX_DEVICES:
        raise InputError(
            f"`--hardware` must have 1 to {MAX_DEVICES:,} devices, but got {shown(text)}; "
            "write h100x8"
        )
    return hardware_named(key), int(count)
