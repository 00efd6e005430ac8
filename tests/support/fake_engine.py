"""Engine whose speeds follow a formula."""

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.workload import Workload


class FakeEngine(Engine):
    """Engine whose speed follows a formula, with a record of its calls.

    The engine refuses shapes with ``refuse`` key-value heads, and is interrupted at call
    ``stop_at``.
    """

    name, kind = "fake", "predicted"

    def __init__(self, *, refuse: int | None = None, stop_at: int | None = None) -> None:
        self.calls: list[Shape] = []
        self.refuse, self.stop_at = refuse, stop_at

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        self.calls.append(shape)
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        if shape.num_key_value_heads == self.refuse:
            raise InputError(f"{shape} has {self.refuse} key-value heads")
        rate = 1e9 / shape.forward_flops(20) / shape.num_hidden_layers
        return Measurement(
            engine="fake", kind="predicted", workload=str(workload), device="none", version="1",
            repeats=1, output_tokens_per_second=rate, low=rate, high=rate, ttft=1.0, tpot=1.0,
            prefill_tokens_per_second=1.0, decode_tokens_per_second=1.0, wall_seconds=0.0,
            cpu_seconds=0.0, load=None, disturbed=False,
        )  # fmt: skip
