"""Synthetic space, losses and engine with known speeds, for tests of the search."""

import time
from collections.abc import Sequence

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.space import Space
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.time_model.terms import decode_terms, prefill_terms
from shapelaw.search.workload import Workload, parse_workload

SPACE = Space(
    parameters=60_000, layers=(2, 3), head_dims=(8, 16), vocab_size=256, hidden_step=24,
    mlp_step=16, tolerance=0.1, max_heads=4,
)  # fmt: skip
TABLE = SPACE.enumerate()
WORKLOAD = parse_workload("16/4@2")
LOSSES = 2 + np.abs(np.log(TABLE.hidden_size / 48)) / 10 - np.log(TABLE.n_total) / 20
# Seconds per unit of each term of the true time model.
PREFILL = np.array([5e-11, 2e-11, 9e-11, 2e-5, 3e-5])
DECODE = np.array([4e-11, 1e-10, 5e-11, 4e-5, 2e-5])


def made_up_problem(**options: object) -> SearchProblem:
    """Make the synthetic search problem with changed fields."""
    usual: dict[str, object] = {"table": TABLE, "losses": LOSSES, "workload": WORKLOAD}
    return SearchProblem(**(usual | options))  # type: ignore[arg-type]


def true_seconds(
    table: ShapeTable, workload: Workload, *, misfit: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the true seconds of prefill and decode, slower off a grid of 48 by ``misfit``."""
    slower = 1 + misfit * (table.hidden_size % 48 > 0) + misfit * (table.head_dim < 16)
    return (
        prefill_terms(table, workload) @ PREFILL * slower,
        decode_terms(table, workload) @ DECODE * slower,
    )


def measured(
    table: ShapeTable, workload: Workload = WORKLOAD, *, noise: float = 0.0, misfit: float = 0.0,
    seed: int = 0,
) -> list[Measurement]:  # fmt: skip
    """Make the measurements of an engine whose seconds follow the true time model."""
    draw = np.random.default_rng(seed)
    measurements = []
    for prefill, decode in zip(*true_seconds(table, workload, misfit=misfit), strict=True):
        measurements.append(
            measurement(workload, *(np.array([prefill, decode]) * np.exp(draw.normal(0, noise, 2))))
        )
    return measurements


def measurement(
    workload: Workload, prefill: float, decode: float, *, spread: float = 0.0, repeats: int = 5
) -> Measurement:
    """Make a measurement from its seconds; ``spread`` is half its interval, as a fraction."""
    rate = workload.concurrency * workload.output_tokens / (prefill + decode)
    return Measurement(
        engine="made-up", kind="measured", workload=str(workload), device="none", version="1",
        repeats=repeats, output_tokens_per_second=float(rate), low=float(rate * (1 - spread)),
        high=float(rate * (1 + spread)), ttft=float(prefill),
        tpot=float(decode / (workload.output_tokens - 1)), prefill_tokens_per_second=1.0,
        decode_tokens_per_second=1.0, wall_seconds=0.0, cpu_seconds=0.0, load=None,
        disturbed=False, concurrency=workload.concurrency,
    )  # fmt: skip


class MadeUpEngine(Engine):
    """Engine with the true speeds that records its calls.

    The engine refuses shapes with ``refuse`` key-value heads, and a call takes ``seconds``.
    """

    name, kind = "made-up", "measured"

    def __init__(self, *, refuse: int | None = None, seconds: float = 0.0, together: int = 1):
        self.calls: list[Shape] = []
        self.batches: list[int] = []
        self.refuse, self.seconds, self.together = refuse, seconds, together

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        self.batches.append(len(shapes))
        return super().measure_all(shapes, workload)

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        self.calls.append(shape)
        time.sleep(self.seconds)
        if shape.num_key_value_heads == self.refuse:
            raise InputError(f"{shape} has {self.refuse} key-value heads")
        return measured(ShapeTable.of([shape]), workload, misfit=0.2)[0]
