"""Training speed of diffusion objectives on a CPU core relative to next-token prediction.

The promise: block diffusion, which passes the noisy and the clean text, takes at most 2.2 times
the time per token of next-token prediction of the same shape. Steps of all objectives take turns,
so that load of the machine affects all alike. A ratio is that of the median CPU seconds of a step,
with bf16 autocast, Muon and one thread.

    python benchmarks/diffusion_speed.py [--turns 12] [--steps 3]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from record import finish

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.objectives.objective import Batch, reseed
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.execution import ATTENTION_PATHS, Execution, keep_freed_memory
from shapelaw.trainers.training.loop import build_model
from shapelaw.trainers.training.spec import RunSpec, model_for

MAX_RATIO = 2.2
OBJECTIVES = ("next_token", "masked_diffusion", "block:4", "block:16", "block:64")
COMMON = {"vocab_size": 256, "qk_norm": True, "num_key_value_heads": 1}
SHAPES = {
    "0.1M": Shape(hidden_size=64, intermediate_size=68, num_hidden_layers=4,
                  num_attention_heads=2, head_dim=32, **COMMON),
    "0.3M": Shape(hidden_size=96, intermediate_size=160, num_hidden_layers=5,
                  num_attention_heads=3, head_dim=32, **COMMON),
    "1M": Shape(hidden_size=160, intermediate_size=320, num_hidden_layers=5,
                num_attention_heads=5, head_dim=32, **COMMON),
}  # fmt: skip
RECIPE = Recipe(context_length=256, sequences=4, dtype="bfloat16")
Step = Callable[[int], None]


def training_step(shape: Shape, objective: str, attention: str) -> Step:
    """Make a training step of an objective, without compilation."""
    recipe = replace(RECIPE, objective=objective)
    spec = RunSpec(run_id="speed", shape=model_for(recipe, shape), tokens=10**6, recipe=recipe,
                   engine=Execution(attention=attention))  # fmt: skip
    model, loss_of = build_model(spec), objective_of(recipe)
    optimizer, draws = Optimizer(model, recipe, spec.steps), torch.Generator()
    size = (recipe.sequences, recipe.context_length + 1)
    batch = Batch(torch.randint(256, size, generator=draws.manual_seed(0)))

    def step(index: int) -> None:
        loss, _ = loss_of.loss(model, batch, reseed(draws, 0, index))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step(index)

    return step


def measure(shape: Shape, attention: str, turns: int, steps: int) -> dict[str, float]:
    """Return the median CPU milliseconds of a step of each objective."""
    made = {name: training_step(shape, name, attention) for name in OBJECTIVES}
    taken: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(turns + 1):  # the first one warms up
        for name, step in made.items():
            begun = time.process_time()
            for index in range(steps):
                step(turn * steps + index)
            if turn:
                taken[name].append((time.process_time() - begun) / steps * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Measure every shape on both attention paths, each objective against next-token prediction."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=12, help="measured turns of each objective")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for name, shape in SHAPES.items():
        for attention in ATTENTION_PATHS:
            times = measure(shape, attention, options.turns, options.steps)
            base = times["next_token"]
            ratios = {key: round(value / base, 2) for key, value in times.items()}
            rows.append({"shape": name, "attention": attention, "ms": round(base, 1)} | ratios)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    fastest = table.sort_values("ms").groupby("shape", sort=False).first()
    blocks = [name for name in OBJECTIVES if name.startswith("block")]
    worst = float(fastest[blocks].to_numpy().max())
    finish("diffusion_speed", {"rows": rows, "worst_of_blocks": worst, "promise": MAX_RATIO})


if __name__ == "__main__":
    main()
