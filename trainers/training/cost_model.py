"""What a run will cost on this machine: seconds per step, measured on a few shapes.

The engine knows what a forward and a backward pass cost on the core that it was measured on
(:func:`shapelaw.trainers.training.execution.step_seconds`). Here and now a step takes a multiple of
that, a constant, and what the optimiser needs for every layer and weight: four coefficients, fitted
to timed steps, none below zero.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.display.tables import counted
from shapelaw.trainers.training.execution import (
    ATTENTION_PATHS,
    Execution,
    compile_seconds,
    step_seconds,
)
from shapelaw.trainers.training.spec import RunSpec

ASSUMED_OPTIMISER = 0.1  # of the passes, when nothing is measured
CALIBRATION_SECONDS = 60.0
WARM_STEPS, TIMED_STEPS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Price:
    """Seconds of training, fitted or assumed.

    ``coefficients`` belong to :func:`step_work`; ``rate`` says in words what they stand on.
    """

    coefficients: tuple[float, ...]
    rate: str

    def seconds(self, spec: RunSpec) -> float:
        """Predicted seconds of a run, its branches too, with the engine that it will have."""
        engine = spec.with_engine().engine or Execution()
        step = float(np.dot(self.coefficients, step_work(spec, engine)))
        return compile_seconds(spec.shape, engine) + step * spec.all_steps


ASSUMED = Price(
    coefficients=(0.0, 0.0, 0.0, 1 + ASSUMED_OPTIMISER),
    rate=f"of the core that engines were measured on, {ASSUMED_OPTIMISER:.0%} for the optimiser",
)


def step_work(spec: RunSpec, engine: Execution) -> np.ndarray:
    """Work of one step: 1, layers, weights, seconds of the passes by the engine's model, (4,)."""
    shape = spec.shape
    passes = step_seconds(shape, spec.recipe, engine)
    return np.array([1, shape.num_hidden_layers, shape.n_total, passes], dtype=float)


def measure_price(specs: Sequence[RunSpec], *, seconds: float = CALIBRATION_SECONDS) -> Price:
    """Time a few steps of shapes that differ most in their work, and fit the price of a step.

    Parameters
    ----------
    specs
        The runs whose price is wanted.
    seconds
        Stop timing further shapes after this long.
    """
    from scipy.optimize import nnls

    different = {(spec.shape, spec.recipe): with_eager_execution(spec) for spec in specs}
    chosen = _spread(list(different.values()), most=12)
    begun, timed, taken = time.perf_counter(), [], []
    for spec in chosen:
        timed.append(spec)
        taken.append(time_step(spec))
        if time.perf_counter() - begun > seconds:
            break
    work, measured = np.array([_eager_work(spec) for spec in timed]), np.array(taken)
    scale = work.max(axis=0)
    relative = work / scale / measured[:, None]  # errors count as shares of the step
    coefficients, _ = nnls(relative, np.ones(len(measured)))
    error = float(np.sqrt(np.mean((relative @ coefficients - 1) ** 2)))
    return Price(
        coefficients=tuple(coefficients / scale),
        rate=f"measured on {counted(len(timed), 'shape')} here, {100 * error:.2g} % apart from "
        "the fit",
    )


def with_eager_execution(spec: RunSpec) -> RunSpec:
    """The spec with the best engine that does not compile: what can be timed at once."""
    engines = [Execution(attention=path, compilation="none") for path in ATTENTION_PATHS]
    best = min(engines, key=lambda engine: step_seconds(spec.shape, spec.recipe, engine))
    return replace(spec, engine=best)


def _eager_work(spec: RunSpec) -> np.ndarray:
    return step_work(spec, with_eager_execution(spec).engine or Execution())


def _spread(specs: Sequence[RunSpec], most: int) -> list[RunSpec]:
    """Specs that lie far apart in their work, the farthest first."""
    work = np.log(np.array([_eager_work(spec)[1:] for spec in specs]))
    rows = [int(work.sum(axis=1).argmax())]
    apart = np.full(len(specs), np.inf)
    while len(rows) < min(most, len(specs)):
        apart = np.minimum(apart, ((work - work[rows[-1]]) ** 2).sum(axis=1))
        rows.append(int(apart.argmax()))
    return [specs[row] for row in rows]


def time_step(spec: RunSpec) -> float:
    """Seconds of one training step of a run here: the quickest of a few, after a warm-up.

    The seconds of the processor on one thread: those of the clock would count other programs too.
    """
    import torch

    from shapelaw.trainers.objectives.objective import Batch
    from shapelaw.trainers.objectives.registry import objective_of
    from shapelaw.trainers.optimizers.optimizer import Optimizer
    from shapelaw.trainers.training.loop import build_model

    torch.set_num_threads(1)
    recipe = spec.recipe
    model = build_model(with_eager_execution(spec))
    optimizer = Optimizer(model, recipe, 1000)
    size = (recipe.sequences, recipe.context_length + 1)
    tokens = np.random.default_rng(0).integers(spec.shape.vocab_size, size=size, dtype=np.int64)
    batch, draws = Batch(torch.from_numpy(tokens)), torch.Generator()
    objective = objective_of(recipe)
    taken = []
    for step in range(WARM_STEPS + TIMED_STEPS):
        begun = time.process_time()
        loss, _ = objective.loss(model, batch, draws)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step(step)
        taken.append(time.process_time() - begun)
    return float(np.min(taken[WARM_STEPS:]))
