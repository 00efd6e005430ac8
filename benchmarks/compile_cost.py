"""CPU seconds that a compilation takes, and how many steps of a small model pay for it.

Proxies of the quickstart are trained for a few steps on one thread without compilation and by every
way of compiling: one layer that all layers share or the whole step, with sizes as constants, and
one layer with symbolic sizes, which other shapes could use again. Each way has a process of its own
and an empty cache (cold), then a second process with the same cache (warm). Times are CPU seconds
of the process and its compilers, and the compiled and uncompiled step take turns. Each way prints
the steps after which it has gained what its compilation cost; a proxy has 488 or 977.

    python benchmarks/compile_cost.py [--turns 6] [--proxies 0 15] [--ways layers whole dynamic]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from record import finish

from shapelaw.search.autopilot.record import LoopSettings
from shapelaw.search.autopilot.run_plan import proxy_specs
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.training.cost_model import with_eager_execution
from shapelaw.trainers.training.execution import Execution, compile_seconds, keep_freed_memory
from shapelaw.trainers.training.loop import build_model
from shapelaw.trainers.training.spec import RunSpec

VOCABULARY, STEPS_PER_TURN = 256, 3
DYNAMIC = "dynamic"
Step = Callable[[], float]


def step_of(spec: RunSpec, way: str, cache: Path) -> Step:
    """Make the forward and backward pass of a run, compiled by one of the ways or not at all."""
    engine = spec.engine or Execution()
    model, objective, draws = build_model(spec), objective_of(spec.recipe), torch.Generator()
    if way == DYNAMIC:
        Execution(compilation="layers").compile_loss(objective, model, cache)  # sets the folder
        for layer in model.layers:
            layer.compile(dynamic=True)
        loss_of = objective.loss
    else:
        loss_of = engine.compile_loss(objective, model, cache)
    size = (spec.recipe.sequences, spec.recipe.context_length + 1)
    batch = Batch(torch.randint(VOCABULARY, size, generator=torch.Generator().manual_seed(0)))

    def step() -> float:
        model.zero_grad()
        loss, _ = loss_of(model, batch, draws)
        loss.backward()
        return loss.item()

    return step


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the compilers that it ran."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, whose))


def serve(way: str, specs: list[RunSpec], cache: Path, turns: int, results: Connection) -> None:
    """Measure one way on all proxies in turn, in a process that has compiled nothing yet."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_freed_memory()
    if way == DYNAMIC:
        import torch._dynamo.config as tracing
        import torch.fx.experimental._config as symbols

        tracing.force_parameter_static_shapes = False
        tracing.allow_unspec_int_on_nn_module = True
        symbols.use_duck_shape = False  # equal sizes of one shape differ in the next
    for spec in specs:
        eager = step_of(with_eager_execution(spec), "none", cache)
        compilation = "layers" if way == DYNAMIC else way
        engine = Execution(attention="matmul", compilation=compilation)
        compiled = step_of(spec.computed_by(engine), way, cache)
        begun = cpu_seconds()
        loss = compiled()
        first = cpu_seconds() - begun
        taken: dict[Step, list[float]] = {eager: [], compiled: []}
        difference = abs(eager() - loss)
        for _ in range(turns):
            for step, seconds in taken.items():
                for _ in range(STEPS_PER_TURN):
                    begun = time.process_time()
                    step()
                    seconds.append(time.process_time() - begun)
        plain, fast = (1e3 * statistics.median(taken[step]) for step in (eager, compiled))
        results.send(
            {
                "run": spec.run_id,
                "compilation_seconds": round(first, 1),
                "predicted_seconds": round(compile_seconds(spec.shape, engine), 1),
                "eager_ms": round(plain, 1),
                "compiled_ms": round(fast, 1),
                "ratio": round(plain / fast, 2),
                "steps_to_break_even": round(1e3 * first / (plain - fast))
                if fast < plain
                else None,
                "loss_difference": difference,
            }
        )
    results.close()


def measure(way: str, specs: list[RunSpec], cache: Path, turns: int) -> list[dict[str, object]]:
    """Measure one way in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(way, specs, cache, turns, theirs))
    process.start()
    theirs.close()
    rows = []
    for _ in specs:
        rows.append(mine.recv())
        print(way, rows[-1], flush=True)
    process.join()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument(
        "--proxies", type=int, nargs="+", default=[0, 15], help="places in the plan"
    )
    parser.add_argument("--ways", nargs="+", default=["layers", "whole", DYNAMIC])
    options = parser.parse_args()
    plan = proxy_specs(LoopSettings(), VOCABULARY)
    specs = [replace(plan[place], engine=None) for place in options.proxies]
    figures = {}
    for way in options.ways:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                print(f"{way}, {state} cache", flush=True)
                figures[f"{way}, {state}"] = measure(way, specs, Path(cache), options.turns)
    finish("compile_cost", {"ways": figures, "torch": torch.__version__})


if __name__ == "__main__":
    main()
