"""The settings of an autopilot, its first runs and their price."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.space import usual_steps
from shapelaw.scaling.units import parse_numbers
from shapelaw.search.autopilot.record import CorpusSettings
from shapelaw.search.autopilot.rounds import HOUR, ROUND_SHARE
from shapelaw.search.autopilot.stopping import StoppingRule
from shapelaw.search.engines._base import Engine
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.request import (
    Budget,
    ProposalRequest,
    SearchEffort,
    Serving,
    SpaceOptions,
    baseline_model,
    scaled_depth,
)
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.ladder.grid import PROXY, LadderAllocation, LadderGrid, Rung
from shapelaw.trainers.ladder.plan import Ladder
from shapelaw.trainers.ladder.planner import plan_ladder
from shapelaw.trainers.training.spec import RunSpec, run_name

# Sizes of the first runs as divisors of the target's size, and their numbers of shapes. Fewer than
# three sizes do not show that the best ratio changes with the size.
FIRST_SIZES = {8: 8, 4: 8, 2: 6}
ALLOCATION = {"anchors": 2, "anchor_seeds": 2, "branches": (0.25, 0.5)}
MAX_CHOICES = 300  # shapes that are compared by joint draws
SPREAD_OVER = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa")
BYTES = 256  # vocabulary without a tokenizer


@dataclass(frozen=True, kw_only=True)
class AutopilotSettings(CorpusSettings):
    """The settings of an autopilot.

    Attributes
    ----------
    params, tokens
        Non-embedding parameters and training tokens of the shape to choose.
    workload, engine, baseline
        Names as ``shapelaw propose`` takes them.
    layers, head_dim
        Numbers of layers and head dimensions of all shapes, or ``auto``.
    speedup
        Least output tokens/s of an allowed shape over the baseline's.
    measurements
        Shapes that the engine measures in each round.
    certainty, indifference, budget_hours, patience
        As in :class:`~shapelaw.search.autopilot.stopping.StoppingRule`.

    Raises
    ------
    InputError
        A value is out of range, or a name is unknown.
    """

    command: ClassVar[str] = "autopilot"

    params: int
    tokens: int
    workload: str = "balanced"
    engine: str = "torch"
    baseline: str = "llama-3.2-1b"
    layers: str = "auto"
    head_dim: str = "auto"
    speedup: float = 1.0
    measurements: int = 12
    certainty: float = 0.9
    indifference: float = 0.005
    budget_hours: float
    patience: int = 8

    def __post_init__(self) -> None:
        _ = self.rule
        parse_workload(self.workload)
        if not 0 < self.speedup < np.inf:
            raise InputError(f"`--speedup > 0` must hold, but got {self.speedup:g}")
        if self.measurements < 3:
            raise InputError(f"`--measurements >= 3` must hold, but got {self.measurements}")

    @cached_property
    def rule(self) -> StoppingRule:
        """Return the stopping rule."""
        names = ("certainty", "indifference", "budget_hours", "patience")
        return StoppingRule(**{name: getattr(self, name) for name in names})

    def request(self, engine: Engine, vocab_size: int) -> ProposalRequest:
        """Return the request for proposals at the target's size."""
        grid, layers = LadderGrid(), _numbers("--layers", self.layers)
        if layers is None:  # proxies of one depth say more about the other ratios
            layers = (scaled_depth(baseline_model(self.baseline), self.params),)
        return ProposalRequest(
            budget=Budget(parameters=self.params, tokens=self.tokens),
            space=SpaceOptions(
                baseline=self.baseline,
                layers=layers,
                head_dims=_numbers("--head-dim", self.head_dim),
                vocab_size=vocab_size,
                qk_norm=grid.qk_norm,
                rope_theta=grid.rope_theta,
                worse_percent=None,
            ),
            serving=Serving(
                workload=parse_workload(self.workload, dtype=engine.default_dtype), engine=engine
            ),
            effort=SearchEffort(measurements=self.measurements, leaders=0, seed=self.seed),
        )


def _numbers(option: str, text: str) -> tuple[int, ...] | None:
    return None if text == "auto" else parse_numbers(option, text)


def price_of(settings: AutopilotSettings) -> pd.DataFrame:
    """Return the stages of an autopilot with their runs, FLOPs and core-hours, without any work.

    Core-hours are those of one CPU core; the last row is the alternative, one run of every allowed
    shape at the target's size.
    """
    vocab_size = settings.vocab_size or BYTES
    request = settings.request(engine_named(settings.engine), vocab_size)
    ladder = first_ladder(request, settings.seed)
    plan = ladder.frame().assign(core_hours=ladder.seconds / HOUR)
    rows = [
        {"stage": f"train {size}", "runs": len(part), "flops": part["flops_counted"].sum(),
         "core_hours": part["core_hours"].sum()}
        for size, part in plan.groupby("size", sort=False)
    ]  # fmt: skip
    flops, hours = plan["flops_counted"].sum(), plan["core_hours"].sum()
    rounds = {"stage": f"each further round, at most {ROUND_SHARE:.0%} of all runs before"}
    rows += [
        {"stage": "first round", "runs": len(plan), "flops": flops, "core_hours": hours},
        rounds | {"flops": ROUND_SHARE * flops, "core_hours": ROUND_SHARE * hours},
        {"stage": "budget", "flops": flops * settings.budget_hours / hours,
         "core_hours": settings.budget_hours},
    ]  # fmt: skip
    shapes = request.shape_space.enumerate()
    specs = [
        spec_of(shapes[row], settings.tokens, 0, ladder.runs[0].spec)
        for row in spread_rows(shapes.frame(), MAX_CHOICES)
    ]
    grid = {
        "stage": "instead: a grid of shapes at the target's size",
        "runs": len(specs),
        "flops": sum(spec.flops for spec in specs),
        "core_hours": sum(ladder.price.seconds(spec) for spec in specs) / HOUR,
    }
    return pd.DataFrame([*rows, grid])


def first_ladder(request: ProposalRequest, seed: int) -> Ladder:
    """Plan the first runs: three sizes below the target's, at its tokens per parameter."""
    budget = request.budget
    return plan_ladder(
        [
            Rung(parameters=budget.parameters // part, shapes=shapes, **depths_of(request))
            for part, shapes in FIRST_SIZES.items()
        ],
        grid=grid_of(request, budget.parameters // max(FIRST_SIZES)),
        allocation=LadderAllocation(
            tokens_per_parameter=request.tokens / budget.parameters,
            **ALLOCATION,  # type: ignore[arg-type]
        ),
        seed=seed,
    )


def depths_of(request: ProposalRequest) -> dict[str, Any]:
    """Return the depths of all shapes as fields of a rung."""
    layers = request.shape_space.layers
    return {"layers": (min(layers), max(layers)), "depths": layers}


def grid_of(request: ProposalRequest, parameters: int) -> LadderGrid:
    """Return the grid of the proxies, which share the target's head dimension and settings."""
    space = request.shape_space
    hidden_step, mlp_step, _ = usual_steps(parameters)
    return LadderGrid(
        vocab_size=space.vocab_size,
        head_dim=space.head_dims[0],
        hidden_step=hidden_step,
        mlp_step=mlp_step,
        tolerance=space.tolerance,
        qk_norm=space.qk_norm,
        rope_theta=space.rope_theta,
        tie_word_embeddings=space.tie_word_embeddings,
    )


def spec_of(shape: Shape, tokens: int, seed: int, like: RunSpec) -> RunSpec:
    """Specify one run of a shape with the recipe of another run."""
    name = run_name(shape, tokens, seed)
    return replace(
        like, run_id=name, shape=shape, tokens=tokens, seed=seed, role=PROXY, branches=()
    )


def spread_rows(shapes: pd.DataFrame, most: int, first: int = 0) -> list[int]:
    """Choose rows whose ratios are far apart, the farthest from all chosen ones next.

    Parameters
    ----------
    first
        Row that is chosen first.
    """
    points = np.log(shapes[list(SPREAD_OVER)].to_numpy(dtype=float))
    points = points / np.maximum(points.std(axis=0), 1e-12)
    rows, distances = [first], np.full(len(points), np.inf)
    while len(rows) < min(most, len(points)):
        distances = np.minimum(distances, ((points - points[rows[-1]]) ** 2).sum(axis=1))
        rows.append(int(distances.argmax()))
    return rows
