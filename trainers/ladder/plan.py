"""Plans of runs: their rows, their cost, and the confounding of their axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ladder.confounding_check import MAX_CORRELATION, Confounding, confounding
from shapelaw.trainers.ladder.grid import ANCHOR
from shapelaw.trainers.training.cost_model import ASSUMED, Price
from shapelaw.trainers.training.spec import RunSpec

SHAPE_AXES = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa", "num_hidden_layers", "head_dim")
CHOSEN_AXES = SHAPE_AXES[:4]
HOUR = 3600  # seconds
WHOLE_AXES = (*SHAPE_AXES, "n_non_embedding", "tokens_per_parameter")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a plan, a row of ``plan.csv``, with the label of its size.

    The ``branches`` of the spec are the smaller token counts at which the run is measured too.
    """

    spec: RunSpec
    size: str

    @property
    def shape(self) -> Shape:
        """Shape of the run."""
        return self.spec.dense_shape

    @property
    def counts(self) -> tuple[int, ...]:
        """Token counts at which a loss will be measured, ascending."""
        return (*sorted(self.spec.branches), self.spec.tokens)


def points_of(runs: Sequence[Planned]) -> pd.DataFrame:
    """Return each different (shape, tokens) at which a loss is measured, whatever the seed."""
    points: dict[tuple[Shape, int], str] = {}
    for run in runs:
        for tokens in run.counts:
            points.setdefault((run.shape, tokens), run.size)
    table = ShapeTable.of([shape for shape, _ in points]).frame()
    trained = np.array([tokens for _, tokens in points], dtype=float)
    return table.assign(
        size=list(points.values()),
        tokens=trained,
        tokens_per_parameter=trained / table["n_non_embedding"],
    )


def confounding_of(runs: Sequence[Planned]) -> list[Confounding]:
    """Compute the confounding of the shapes of each size and of the whole plan."""
    points = points_of(runs)
    parts = []
    for size, part in points.groupby("size", sort=False):
        unique = part.drop_duplicates(list(INTEGER_FIELDS))
        parts.append(confounding(unique, SHAPE_AXES, part=f"shapes of {size}"))
    whole = confounding(points, WHOLE_AXES, part="the whole plan")
    return [*parts, whole]


def largest_correlation(runs: Sequence[Planned]) -> float:
    """Return the largest absolute correlation between two axes in any part of a plan."""
    return max(part.worst for part in confounding_of(runs))


@dataclass(frozen=True, kw_only=True, repr=False)
class Ladder(Result):
    """Plan of runs.

    Parameters
    ----------
    runs
        Runs in their order of training.
    settings
        Fields of the recipe that are columns of the plan.
    method
        Method by which the shapes were chosen.
    candidates
        Number of candidate shapes by size.
    price
        Model of the seconds per step on this machine.
    joins
        Axes of runs trained before. If given, the confounding is checked over them and the plan
        together.
    """

    runs: tuple[Planned, ...]
    settings: tuple[str, ...] = ()
    method: str
    candidates: Mapping[str, int] = field(default_factory=dict)
    price: Price = ASSUMED
    joins: pd.DataFrame | None = None

    @cached_property
    def flops(self) -> np.ndarray:
        """Training FLOPs of every run, with output head, attention and branches."""
        return np.array([run.spec.flops for run in self.runs])

    @cached_property
    def seconds(self) -> np.ndarray:
        """Predicted seconds of every run."""
        return np.array([self.price.seconds(run.spec) for run in self.runs])

    def priced(self, price: Price) -> "Ladder":
        """Return the same plan with another price."""
        return replace(self, price=price)

    def frame(self) -> pd.DataFrame:
        """Return one row per run with the columns of ``plan.csv``."""
        rows = [
            {
                "run_id": run.spec.run_id,
                "size": run.size,
                "role": run.spec.role,
                **run.shape.row(),
                "tokens": run.spec.tokens,
                "branches": ";".join(map(str, run.spec.branches)),
                "seed": run.spec.seed,
                "data_seed": run.spec.data_seed,
                **{name: getattr(run.spec.recipe, name) for name in self.settings},
                "n_non_embedding": run.shape.n_non_embedding,
                **{name: round(float(getattr(run.shape, name)), 4) for name in RATIOS},
            }
            for run in self.runs
        ]
        return pd.DataFrame(rows).assign(
            flops_counted=self.flops, predicted_seconds=self.seconds.round(1)
        )

    def points(self) -> pd.DataFrame:
        """Return each different (shape, tokens) at which a loss is measured, whatever the seed."""
        return points_of(self.runs)

    def confounding(self) -> list[Confounding]:
        """Compute the confounding of the shapes of each size and of the whole plan.

        With ``joins``, the only part is the whole plan together with the runs trained before.
        """
        if self.joins is None:
            return confounding_of(self.runs)
        axes = list(self.joins.columns)
        both = pd.concat((self.joins, points_of(self.runs)[axes])).drop_duplicates()
        return [
            confounding(
                both, axes, part=f"the plan and {counted(len(self.joins), 'run')} trained before"
            )
        ]

    @cached_property
    def worst(self) -> float:
        """Largest absolute correlation in any part of the plan."""
        return max(part.worst for part in self.confounding())

    def refusals(self, most: float = MAX_CORRELATION) -> list[str]:
        """Return the pairs of axes that are too correlated for a law to separate their effects."""
        return [
            f"{part.part}: ln {a} and ln {b} correlate by {r:.2f}"
            for part in self.confounding()
            for a, b, r in part.pairs()
            if abs(r) > most
        ]

    def require_unconfounded(self, most: float = MAX_CORRELATION) -> None:
        """Refuse a plan with a larger absolute correlation between two axes than ``most``.

        Raises
        ------
        InputError
            A correlation is larger. The error names all such pairs.
        """
        reasons = self.refusals(most)
        if reasons:
            raise InputError(
                f"`|correlation| <= {most:g}` must hold between the log axes, but "
                + "; ".join(reasons)
                + "; plan more shapes, narrow a range, take finer steps, or give --force"
            )

    def require_affordable(self, budget_flops: float) -> None:
        """Refuse a plan that costs more than a budget.

        Raises
        ------
        InputError
            The plan costs more. The error gives the cost of each part of the plan and the number of
            shapes that the budget allows.
        """
        total = float(self.flops.sum())
        if total <= budget_flops:
            return
        costs = self.flops_by("size")
        once = self.flops[[run.spec.seed == 0 for run in self.runs]].sum()
        short = sum(run.spec.step_flops * run.spec.ends[0] for run in self.runs)
        raise InputError(
            f"`total FLOPs <= --budget-flops` must hold, but the plan costs {total:.3g} and the "
            f"budget is {budget_flops:.3g}, {budget_flops / total:.0%} of it; by size: "
            + ", ".join(f"{size} {cost:.3g}" for size, cost in costs.items())
            + f"; with one seed each it costs {once:.3g}, with the smallest token counts "
            f"{short:.3g}; the budget buys about {self._affordable(budget_flops)}; take fewer "
            "shapes, anchors, seeds or tokens, leave a size out, or raise the budget"
        )

    def flops_by(self, name: str) -> dict[str, float]:
        """Sum the FLOPs by the values of a column of the frame, in their order."""
        frame = self.frame()
        sums = frame.groupby(name, sort=False)["flops_counted"].sum()
        return {str(key): float(value) for key, value in sums.items()}

    def _affordable(self, budget_flops: float) -> str:
        """Describe how many shapes of each size a budget allows at the size's share of the cost."""
        shapes = {run.size: 0 for run in self.runs}
        for run in {(run.size, run.shape): run for run in self.runs}.values():
            shapes[run.size] += 1
        share = budget_flops / float(self.flops.sum())
        return ", ".join(f"{int(share * n)} shapes of {size}" for size, n in shapes.items())

    def view(self) -> View:
        """Return the cost of the plan, its sizes, and the correlations of its axes."""
        frame = self.frame()
        hours = self.seconds.sum() / HOUR
        sizes = counted(frame["size"].nunique(), "size")
        parts = [part.view() for part in self.confounding()]
        return View(
            title=f"{counted(len(self.runs), 'run')} of {sizes}, {self.flops.sum():.3g} FLOP, "
            f"{hours:.2g} core-hours ({self.price.rate}); shapes chosen by {self.method}",
            tables={
                "sizes": pd.DataFrame(
                    [self._size_row(str(s), part) for s, part in frame.groupby("size", sort=False)]
                ),
                **{part.title: table for part in parts for table in part.tables.values()},
            },
            notes=[part.title for part in parts if not part.tables],
        )

    def _size_row(self, size: str, runs: pd.DataFrame) -> dict[str, object]:
        """Return the shapes, costs and ranges of one size for the table of sizes."""
        shapes = runs.drop_duplicates([each.name for each in fields(Shape) if each.name in runs])
        chosen = f" of {self.candidates[size]} candidates" if size in self.candidates else ""
        ranges = {
            name: f"{shapes[name].min():.3g} to {shapes[name].max():.3g}"
            for name in SHAPE_AXES
            if shapes[name].min() < shapes[name].max()
        }
        return {
            "size": size,
            "shapes": f"{len(shapes)}{chosen}",
            "anchors": int((shapes["role"] == ANCHOR).sum()),
            "runs": len(runs),
            "FLOP": runs["flops_counted"].sum(),
            "core-hours": runs["predicted_seconds"].sum() / HOUR,
            **ranges,
        }

    def document(self) -> dict[str, Any]:
        """Return the stable document that ``sweep plan --json`` prints."""
        return {
            "method": self.method,
            "candidates": self.candidates,
            "flops": self.flops.sum(),
            "flops_by_size": self.flops_by("size"),
            "predicted_seconds": self.seconds.sum(),
            "price": self.price.rate,
            "refusals": self.refusals(),
            "confounding": self.confounding(),
            "runs": self.frame(),
        }
