"""The problem of a search: a space with predicted losses, a workload, and a goal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.search.study.encoding import SpaceEncoding
from shapelaw.search.workload import Workload

if TYPE_CHECKING:
    from shapelaw.scaling.architectures.shape_table import ShapeTable
    from shapelaw.search.engines._base import Measurement
    from shapelaw.search.engines.accelerators import Hardware


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The goal of a search: the front of loss against throughput, or the fastest shape.

    Attributes
    ----------
    max_loss
        Upper limit of the predicted loss (usually the baseline's); None: no limit.
    fastest
        One objective only, as in arXiv 2510.18245: the most output tokens/s within ``max_loss``.

    Raises
    ------
    InputError
        ``fastest`` is set without a ``max_loss``, so that the shape with the highest loss would
        win.
    """

    max_loss: float | None = None
    fastest: bool = False

    def __post_init__(self) -> None:
        if self.fastest and self.max_loss is None:
            raise InputError(
                "`fastest` needs a `max_loss`, but got None; give the predicted loss of a baseline"
            )


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """A space of shapes with their predicted losses, a workload and a goal.

    Attributes
    ----------
    table, losses
        The enumerated shapes, and their predicted losses in nats per token, (n,).
    device
        Hardware whose roofline is the time model's prior; None where it is unknown.
    about
        Texts by name that the study shows beside its workload and engine, such as the baseline.

    Raises
    ------
    InputError
        No shape has a loss within the goal's limit.
    """

    table: "ShapeTable"
    losses: np.ndarray
    workload: Workload
    goal: Goal = field(default_factory=Goal)
    device: "Hardware | None" = None
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.allowed.any():
            raise InputError(
                f"`predicted loss <= {self.goal.max_loss:.6g}` must hold for some shape, but the "
                f"lowest of {len(self.losses)} is {self.losses.min():.6g}; raise the limit or "
                "widen the space"
            )

    @cached_property
    def encoding(self) -> SpaceEncoding:
        """Return the space as parameters of a study."""
        return SpaceEncoding.of(self.table)

    @cached_property
    def allowed(self) -> np.ndarray:
        """Return the mask of the shapes whose predicted loss is within the limit, (n,)."""
        if self.goal.max_loss is None:
            return np.ones(len(self.losses), dtype=bool)
        return np.asarray(self.losses <= self.goal.max_loss)

    @property
    def directions(self) -> "list[Literal['minimize', 'maximize']]":
        """Return the directions of Optuna's objectives."""
        return ["maximize"] if self.goal.fastest else ["minimize", "maximize"]

    @property
    def metric_names(self) -> list[str]:
        """Return the names of Optuna's objectives."""
        names = ["predicted loss", "ln output tokens/s"]
        return names[1:] if self.goal.fastest else names

    def values(self, row: int, measurement: "Measurement") -> list[float]:
        """Compute the values of Optuna's objectives for a measured row."""
        speed = float(np.log(measurement.output_tokens_per_second))
        return [speed] if self.goal.fastest else [float(self.losses[row]), speed]

    @property
    def constrained(self) -> bool:
        """Return whether the loss, TTFT or TPOT is limited."""
        limits = self.goal.max_loss, self.workload.max_ttft, self.workload.max_tpot
        return any(limit is not None for limit in limits)

    def constraints(self, row: int, measurement: "Measurement") -> list[float]:
        """Compute the values of Optuna's constraints for a measured row: above 0 is violated."""
        work, values = self.workload, list[float]()
        if self.goal.max_loss is not None:
            values.append(float(self.losses[row]) - self.goal.max_loss)
        if work.max_ttft is not None:
            values.append(float(np.log(measurement.ttft / work.max_ttft)))
        if work.max_tpot is not None:
            values.append(float(np.log(measurement.tpot / work.max_tpot)))
        return values

    def within_limits(self, row: int, measurement: "Measurement") -> bool:
        """Return whether a measured row is within all limits."""
        return all(value <= 0 for value in self.constraints(row, measurement))

    def identity(self, engine: str) -> list[object]:
        """Return the fields that distinguish problems with the same space and losses."""
        return [engine, asdict(self.workload), asdict(self.goal)]
