"""Execution of the steps of a run: attention path, compilation and memory, by predicted cost.

The choice affects only rounding and time. It is made once per planned run and stored in the ledger,
so that a resumed run keeps it.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.passes import TrainingPass, training_passes

if TYPE_CHECKING:
    import torch

    from shapelaw.trainers.models.transformer import Transformer
    from shapelaw.trainers.objectives.objective import LossFunction, Objective

# Parameters of glibc's mallopt and their values.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MEBIBYTE = 2**20
MALLOC_SETTINGS = {
    M_MMAP_THRESHOLD: 32 * MEBIBYTE,  # the maximum that glibc allows
    M_TOP_PAD: 64 * MEBIBYTE,
    M_TRIM_THRESHOLD: 1024 * MEBIBYTE,
}

ATTENTION_PATHS = ("sdpa", "matmul")
COMPILATIONS = ("none", "layers", "whole")
# Milliseconds of a step in bfloat16: constant; per layer; per GFLOP of products with weights; per
# million attention scores; per million features of norms and MLP. They are fitted to measured steps
# of ladder shapes on a Zen 4 core (LOG.md) and only serve to rank executions.
MILLISECONDS = {
    ("sdpa", "none"): (0.0, 3.0, 5.1, 13.3, 7.3),
    ("matmul", "none"): (0.0, 4.2, 7.2, 7.3, 6.6),
    ("sdpa", "layers"): (10.3, 0.0, 5.3, 12.6, 0.0),
    ("matmul", "layers"): (10.3, 0.0, 5.3, 6.6, 0.0),
    ("sdpa", "whole"): (8.3, 0.0, 4.0, 12.1, 3.0),
    ("matmul", "whole"): (8.3, 0.0, 4.0, 4.1, 3.0),
}
# Factors for float32: products take longer, PyTorch's fused attention less time.
FLOAT32 = {
    "sdpa": (1.0, 1.0, 1.7, 0.75, 1.2),
    "matmul": (1.0, 1.0, 1.7, 1.3, 1.2),
}
# Seconds of compilation of a new shape: constant, per layer. The C++ compiler runs once for each
# kernel, and each time reads the same headers for 0.7 s (benchmarks/compile_cost.py).
COMPILING = {"none": (0.0, 0.0), "layers": (28.0, 0.0), "whole": (40.0, 12.0)}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Attention path and compilation mode of the steps of a run.

    Parameters
    ----------
    attention
        ``"sdpa"`` (PyTorch's fused kernel) or ``"matmul"`` (attention scores computed explicitly).
    compilation
        ``"none"``; ``"layers"`` compiles one layer and uses it for all, which compiles fast;
        ``"whole"`` compiles everything from tokens to loss, which runs faster.
    """

    attention: str = "sdpa"
    compilation: str = "none"

    def __post_init__(self) -> None:
        for name, allowed in (("attention", ATTENTION_PATHS), ("compilation", COMPILATIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"`{name}` must be one of {', '.join(allowed)}, but got {getattr(self, name)!r}"
                )

    def compile_loss(
        self, objective: "Objective", model: "Transformer", cache: Path | None = None
    ) -> "LossFunction":
        """Return the loss function of an objective, compiled as this execution specifies.

        ``cache`` is a folder for compiled code that runs of one shape share, separate from the
        caches of other programs. Compilation happens at the first call and its backward pass.
        """
        import torch

        if self.compilation == "none":
            for layer in model.layers:  # removes the compiled code of a failed execution
                layer._compiled_call_impl = None
            return objective.loss
        _prepare_compiler(cache)
        if self.compilation == "layers":
            for layer in model.layers:
                layer.compile(dynamic=False)
            return objective.loss
        return torch.compile(objective.loss, dynamic=False)


def _prepare_compiler(cache: Path | None) -> None:
    """Use one compiler process per run and a separate folder for compiled code."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def without_compiled_code() -> "torch._dynamo.decorators.set_stance":
    """Return a context in which compiled models run without their compiled code."""
    import torch

    return torch.compiler.set_stance("force_eager")


def fastest_execution(
    shape: Shape | Architecture,
    recipe: Recipe,
    *,
    steps: int,
    device: str = "cpu",
    passes: Sequence[TrainingPass] | None = None,
) -> Execution:
    """Choose the execution with the least predicted time for a run.

    On a GPU the fused kernel is always used, and the training loop of the GPU compiles the step.
    ``passes`` are those of the recipe's objective by default.
    """
    if device != "cpu":
        return Execution(attention="sdpa", compilation="none")
    engines = [Execution(attention=a, compilation=c) for a in ATTENTION_PATHS for c in COMPILATIONS]
    return min(
        engines,
        key=lambda engine: predicted_seconds(shape, recipe, engine, steps=steps, passes=passes),
    )


def predicted_seconds(
    shape: Shape | Architecture,
    recipe: Recipe,
    engine: Execution,
    *,
    steps: int,
    passes: Sequence[TrainingPass] | None = None,
) -> float:
    """Predict the seconds of a run on one CPU core, including compilation."""
    return compile_seconds(shape, engine) + steps * step_seconds(shape, recipe, engine, passes)


def compile_seconds(shape: Shape | Architecture, engine: Execution) -> float:
    """Predict the seconds of compilation of an execution."""
    constant, per_layer = COMPILING[engine.compilation]
    return constant + per_layer * shape.num_hidden_layers


def step_seconds(
    shape: Shape | Architecture,
    recipe: Recipe,
    engine: Execution,
    passes: Sequence[TrainingPass] | None = None,
) -> float:
    """Predict the seconds of the forward and backward passes of one step.

    Block diffusion passes twice the tokens through the layers. A token that sees the whole sequence
    takes as long as one that sees the earlier half of it, because its scores need no mask: 0.94 to
    1.09 times, measured by ``benchmarks/diffusion_speed.py``.
    """
    chosen = passes or training_passes(recipe.objective, recipe.context_length)
    read = sum(part.share * part.copies for part in chosen)  # tokens through the layers, of a token
    predicted = sum(part.share for part in chosen)
    layers, tokens = shape.num_hidden_layers, recipe.batch_tokens
    weights = read * shape.n_non_embedding + predicted * shape.vocab_size * shape.hidden_size
    scores = read * tokens * recipe.context_length * layers * shape.num_attention_heads
    features = read * tokens * layers * (shape.hidden_size + shape.intermediate_size)
    work = (1.0, layers, 6 * tokens * weights / 1e9, scores / 1e6, features / 1e6)
    costs = MILLISECONDS[engine.attention, engine.compilation]
    factors = FLOAT32[engine.attention] if recipe.dtype == "float32" else (1.0,) * 5
    return sum(w * c * f for w, c, f in zip(work, costs, factors, strict=True)) / 1e3


def attention_path(device: "torch.device") -> str:
    """Return the attention path of a stack; vmap supports the fused kernels of GPUs only."""
    return "sdpa" if device.type == "cuda" else "matmul"


@cache
def keep_freed_memory() -> bool:
    """Configure glibc to keep freed memory, once per process; return False without glibc.

    By default glibc returns large blocks to the system at once and requests them again, page by
    page, in the next step. This takes a tenth to a quarter of the time of a small model's step on a
    CPU (LOG.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return all(mallopt(name, value) == 1 for name, value in MALLOC_SETTINGS.items())
