"""What a run will cost on this machine: seconds per step, measured on a few shapes.

Seconds of a step are a sum of what the machine does: a constant (the optimiser's Python, the
loss), a cost per layer, per matrix FLOP, per element of the attention's scores and per feature
that a norm or an activation touches. The coefficients are fitted to timed steps, none below zero.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.spec import RunSpec

ASSUMED_FLOPS_PER_SECOND = 20e9  # of one CPU core, small shapes, when nothing is measured
CALIBRATION_SECONDS = 60.0
WARM_STEPS, TIMED_STEPS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Price:
    """Seconds per step of training, fitted or assumed.

    ``coefficients`` belong to :func:`step_work`; ``rate`` says in words what they stand on.
    """

    coefficients: tuple[float, ...]
    rate: str

    def seconds(self, spec: RunSpec) -> float:
        """Predicted seconds of a run, its branches too."""
        return float(np.dot(self.coefficients, step_work(spec))) * spec.all_steps


ASSUMED = Price(
    coefficients=(0.0, 0.0, 1 / ASSUMED_FLOPS_PER_SECOND, 0.0, 0.0, 1 / ASSUMED_FLOPS_PER_SECOND),
    rate=f"at an assumed {ASSUMED_FLOPS_PER_SECOND / 1e9:g} GFLOP/s",
)


def step_work(spec: RunSpec) -> np.ndarray:
    """Work of one step: steps, layers, matrix FLOPs, scores, features, attention FLOPs, (6,)."""
    shape, recipe = spec.shape, spec.recipe
    tokens = recipe.batch_tokens
    width = shape.num_attention_heads * shape.head_dim
    scores = tokens * recipe.context_length * shape.num_attention_heads * shape.num_hidden_layers
    layer = 6 * shape.hidden_size + 3 * shape.intermediate_size + 4 * width
    features = tokens * (shape.num_hidden_layers * layer + shape.vocab_size)
    flops = float(shape.training_flops(recipe.context_length)) * tokens
    attention = 6.0 * width * recipe.context_length * shape.num_hidden_layers * tokens
    work = (1, shape.num_hidden_layers, flops - attention, scores, features, attention)
    return np.array(work, dtype=float)


def calibrate(specs: Sequence[RunSpec], *, seconds: float = CALIBRATION_SECONDS) -> Price:
    """Time a few steps of shapes that differ most in their work, and fit the price of a step.

    Parameters
    ----------
    specs
        The runs whose price is wanted.
    seconds
        Stop timing further shapes after this long.
    """
    from scipy.optimize import nnls

    different = {(spec.shape, spec.recipe): spec for spec in specs}
    chosen = _spread(list(different.values()), most=12)
    begun, timed, taken = time.perf_counter(), [], []
    for spec in chosen:
        timed.append(spec)
        taken.append(time_step(spec))
        if time.perf_counter() - begun > seconds:
            break
    work, measured = np.array([step_work(spec) for spec in timed]), np.array(taken)
    scale = work.max(axis=0)
    relative = work / scale / measured[:, None]  # errors count as shares of the step
    coefficients, _ = nnls(relative, np.ones(len(measured)))
    error = float(np.sqrt(np.mean((relative @ coefficients - 1) ** 2)))
    return Price(
        coefficients=tuple(coefficients / scale),
        rate=f"measured on {len(timed)} shapes here, {100 * error:.2g} % apart from the fit",
    )


def _spread(specs: Sequence[RunSpec], most: int) -> list[RunSpec]:
    """Specs that lie far apart in their work, the farthest first."""
    work = np.log(np.array([step_work(spec)[1:] for spec in specs]))
    rows = [int(work.sum(axis=1).argmax())]
    apart = np.full(len(specs), np.inf)
    while len(rows) < min(most, len(specs)):
        apart = np.minimum(apart, ((work - work[rows[-1]]) ** 2).sum(axis=1))
        rows.append(int(apart.argmax()))
    return [specs[row] for row in rows]


def time_step(spec: RunSpec) -> float:
    """Seconds of one training step of a run here: the quickest of a few, after a warm-up.

    The quickest is the one that other processes disturbed least.
    """
    import torch

    from trainers.evaluate import token_losses
    from trainers.loop import build
    from trainers.optim import Optimizer

    torch.set_num_threads(1)
    recipe = spec.recipe
    model = build(spec.with_engine())
    optimizer = Optimizer(model, recipe, 1000)
    size = (recipe.sequences, recipe.context_length + 1)
    batch = torch.from_numpy(
        np.random.default_rng(0).integers(spec.shape.vocab_size, size=size, dtype=np.int64)
    )
    taken = []
    for step in range(WARM_STEPS + TIMED_STEPS):
        begun = time.perf_counter()
        token_losses(model, batch, recipe).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step(step)
        taken.append(time.perf_counter() - begun)
    return float(np.min(taken[WARM_STEPS:]))
