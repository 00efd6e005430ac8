"""Memory needs, prompts and number formats of the engines that run a shape in torch."""

import torch

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.workload import Workload

CPU_LIMIT = 8 * 2**30  # bytes of weights, cache and activations
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def refuse_oversized(
    shape: Shape | Architecture,
    workload: Workload,
    *,
    engine: str,
    limit: float = CPU_LIMIT,
    copies: int = 1,
) -> None:
    """Refuse a workload that needs too much memory or a cache of another number format.

    Parameters
    ----------
    limit
        Available bytes.
    copies
        Copies of the weights that the engine holds.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The workload needs more than ``limit`` bytes, or its cache has another number format than
        its weights.
    """
    if workload.kv_dtype not in (None, workload.dtype):
        raise InputError(
            f"`kv_dtype == dtype` must hold in the {engine} engine, but got {workload.kv_dtype} "
            f"and {workload.dtype}; leave ,kv= out or choose another engine"
        )
    needed = bytes_needed(shape, workload, copies)
    if needed > limit:
        raise InputError(
            f"{shape} under {workload} needs {needed / 2**30:.0f} GiB in the {engine} engine, "
            f"the limit is {limit / 2**30:.0f}; choose a smaller workload or "
            "--engine roofline:HARDWARE"
        )


def bytes_needed(shape: Shape | Architecture, workload: Workload, copies: int) -> int:
    """Compute the bytes of all copies of the weights, of the cache and of the activations."""
    size = torch.finfo(TORCH_DTYPES[workload.dtype]).bits // 8
    length = workload.input_tokens + workload.output_tokens
    cache = workload.concurrency * shape.cache_bytes(length, size)
    # Prefill holds the MLP's activations of all prompts at once.
    width = 3 * shape.intermediate_size + 4 * shape.hidden_size
    activations = workload.concurrency * workload.input_tokens * width * size
    return int(cache + activations + copies * shape.weight_bytes(size))


def random_prompt(shape: Shape | Architecture, workload: Workload) -> torch.Tensor:
    """Draw prompt tokens, (concurrency, input_tokens), the same ones for every engine."""
    generator = torch.Generator().manual_seed(0)
    size = (workload.concurrency, workload.input_tokens)
    return torch.randint(shape.vocab_size, size, generator=generator)
