"""CPU time of seeds of one shape trained as one stacked model, against each seed alone.

Every way trains the same shape with the recipe of the shipped ladder on one thread: alone without
compilation, alone with the execution that a run of that length gets, and in stacks of 1, 2, 4 and 8
seeds as `sweep run --pack` trains them. The ways take turns of a few steps, so that load of the
machine affects all alike. A ratio is the median CPU seconds of a step alone, without compilation,
over those of a step of the other way divided by its seeds; above 1 the other way is faster.

    python benchmarks/stack_seeds.py [--turns 9] [--steps 4] [--size 300K]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from record import finish

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.runs.reader import read_table
from shapelaw.trainers.gpu.packed_step import EAGER, Feed, PackedStep
from shapelaw.trainers.gpu.resident_batches import resident
from shapelaw.trainers.gpu.stack import Stack
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.cost_model import with_eager_execution
from shapelaw.trainers.training.execution import keep_freed_memory
from shapelaw.trainers.training.loop import build_model
from shapelaw.trainers.training.spec import RunSpec

PLAN = Path(__file__).parent.parent / "data" / "proxies" / "plan.csv"
STACKS = (1, 2, 4, 8)
SCHEDULE_STEPS = 10**6  # so many that no step reaches the decay
Steps = Callable[[int], None]


def alone(spec: RunSpec, tokens: np.ndarray) -> Steps:
    """Make the steps of a run alone with the execution of its spec."""
    assert spec.engine is not None
    model, recipe = build_model(spec), spec.recipe
    optimizer = Optimizer(model, recipe, SCHEDULE_STEPS)
    objective, draws = objective_of(recipe), torch.Generator()
    compute_loss = spec.engine.compile_loss(objective, model, Path(tempfile.mkdtemp()))
    size = (recipe.sequences, recipe.context_length + 1)
    batch = Batch(torch.from_numpy(tokens[: np.prod(size)].astype(np.int64).reshape(size)))

    def steps(count: int) -> None:
        for step in range(count):
            loss, _ = compute_loss(model, batch, draws)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step(step)

    return steps


def stacked(spec: RunSpec, tokens: np.ndarray, seeds: int) -> Steps:
    """Make the steps of a stack of seeds."""
    device = torch.device("cpu")
    stack = Stack([replace(spec, run_id=str(seed), seed=seed) for seed in range(seeds)], device)
    step = PackedStep(stack, Feed(stack, tokens, resident(tokens, device)), EAGER)
    return lambda count: step.block(0, count, SCHEDULE_STEPS)


def compare(spec: RunSpec, tokens: np.ndarray, turns: int, steps: int) -> dict[str, object]:
    """Time all ways in turns; return the milliseconds of a step alone, and the ratios."""
    eager, chosen = with_eager_execution(spec), spec.with_engine()
    seeds = {"alone": 1, f"alone, compilation {chosen.engine.compilation}": 1}
    seeds |= {f"stack of {count}": count for count in STACKS}
    ways = [alone(eager, tokens), alone(chosen, tokens)]
    ways += [stacked(spec, tokens, count) for count in STACKS]
    taken: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way(2)
    for _ in range(turns):
        for way, count, times in zip(ways, seeds.values(), taken, strict=True):
            begun = time.process_time()
            way(steps)
            times.append((time.process_time() - begun) / steps / count)
    each = [statistics.median(times) for times in taken]
    ratios = {name: round(each[0] / one, 3) for name, one in zip(seeds, each, strict=True)}
    return {"shape": spec.run_id, "milliseconds_alone": round(1e3 * each[0], 2), "ratio": ratios}


def main() -> None:
    """Compare stacks for one shape of each size of the shipped ladder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", help="only this size of the ladder, such as 300K")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    tokens = np.random.default_rng(0).integers(256, size=200_000).astype(np.uint16)
    plan = read_table(PLAN)
    columns = ("context_length", "sequences")
    recipe = Recipe(**{name: int(plan[name][0]) for name in columns})
    rows = []
    for size, part in plan[plan["seed"] == 0].groupby("size", sort=False):
        if options.size not in (None, size):
            continue
        row = part.iloc[len(part) // 2]
        shape = Shape.from_config({str(name): value for name, value in row.items()})
        spec = RunSpec(
            run_id=str(row["run_id"]), shape=shape, tokens=int(row["tokens"]), recipe=recipe
        )
        rows.append(compare(spec, tokens, options.turns, options.steps))
        print(rows[-1], flush=True)
    finish("stack_seeds", {"shapes": rows})


if __name__ == "__main__":
    main()
