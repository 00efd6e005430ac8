"""Cost model of training on this machine: seconds per step, calibrated on a few shapes.

:func:`shapelaw.trainers.training.execution.step_seconds` predicts the forward and backward pass on
the core on which it was calibrated. On this machine a step takes a multiple of that, a constant,
and the time of the optimiser per layer and per weight. These four non-negative coefficients are
fitted to timed steps.
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

ASSUMED_OPTIMISER = 0.1  # share of the passes, if nothing is measured
CALIBRATION_SECONDS = 60.0
WARM_STEPS, TIMED_STEPS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Price:
    """Model of the seconds of training, fitted or assumed.

    ``coefficients`` are the weights of :func:`step_work`; ``rate`` describes their source.
    """

    coefficients: tuple[float, ...]
    rate: str

    def seconds(self, spec: RunSpec) -> float:
        """Predict the seconds of a run with its branches and its execution."""
        engine = spec.with_engine().engine or Execution()
        step = float(np.dot(self.coefficients, step_work(spec, engine)))
        return compile_seconds(spec.shape, engine) + step * spec.all_steps


ASSUMED = Price(
    coefficients=(0.0, 0.0, 0.0, 1 + ASSUMED_OPTIMISER),
    rate=f"of the core that engines were measured on, {ASSUMED_OPTIMISER:.0%} for the optimiser",
)


def step_work(spec: RunSpec, engine: Execution) -> np.ndarray:
    """Return the work of one step: 1, layers, weights and predicted seconds of the passes, (4,)."""
    shape = spec.shape
    passes = step_seconds(shape, spec.recipe, engine, spec.passes)
    return np.array([1, shape.num_hidden_layers, shape.n_total, passes], dtype=float)


def measure_price(specs: Sequence[RunSpec], *, seconds: float = CALIBRATION_SECONDS) -> Price:
    """Time a few steps of the shapes that differ most in their work, and fit the price of a step.

    Parameters
    ----------
    specs
        Runs to price.
    seconds
        Seconds after which no further shape is timed.
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
    relative = work / scale / measured[:, None]  # least squares of relative errors
    coefficients, _ = nnls(relative, np.ones(len(measured)))
    error = float(np.sqrt(np.mean((relative @ coefficients - 1) ** 2)))
    return Price(
        coefficients=tuple(coefficients / scale),
        rate=f"measured on {counted(len(timed), 'shape')} here, {100 * error:.2g} % apart from "
        "the fit",
    )


def with_eager_execution(spec: RunSpec) -> RunSpec:
    """Return the spec with its fastest execution without compilation, to time it."""
    engines = [Execution(attention=path, compilation="none") for path in ATTENTION_PATHS]
    best = min(
        engines, key=lambda engine: step_seconds(spec.shape, spec.recipe, engine, spec.passes)
    )
    return replace(spec, engine=best)


def _eager_work(spec: RunSpec) -> np.ndarray:
    return step_work(spec, with_eager_execution(spec).engine or Execution())


def _spread(specs: Sequence[RunSpec], most: int) -> list[RunSpec]:
    """Select specs that are far apart in their work, the farthest first."""
    work = np.log(np.array([_eager_work(spec)[1:] for spec in specs]))
    rows = [int(work.sum(axis=1).argmax())]
    distances = np.full(len(specs), np.inf)
    while len(rows) < min(most, len(specs)):
        distances = np.minimum(distances, ((work - work[rows[-1]]) ** 2).sum(axis=1))
        rows.append(int(distances.argmax()))
    return [specs[row] for row in rows]


def time_step(spec: RunSpec) -> float:
    """Measure the seconds of one training step: the fastest of a few after a warm-up.

    These are CPU seconds on one thread, because wall-clock time would include other programs.
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
