"""Counts of 10^6 shapes of a mixture-of-experts space as columns; promise: under 2 CPU seconds.

The shapes are DeepSeek's: hidden sizes, expert widths, numbers of experts and of chosen ones, and
layers. Counted are total, active and non-embedding parameters, FLOPs per token and the cache.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from dataclasses import replace

import numpy as np
from record import finish

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture

PROMISE, REPEATS = 2.0, 5
AXES = {
    "hidden": np.arange(1024, 8193, 128),
    "width": np.arange(256, 4097, 256),
    "experts": np.array([32, 64, 96, 128, 192, 256, 384, 512]),
    "active": np.array([2, 4, 6, 8, 12, 16, 24]),
    "layers": np.arange(16, 96, 4),
}


def space() -> Architecture:
    """Return all combinations of the axes as one architecture of columns."""
    hidden, width, experts, active, layers = (
        axis.ravel() for axis in np.meshgrid(*AXES.values(), indexing="ij")
    )
    base = read_architecture({"model_type": "deepseek_v3"})
    dense, sparse = (layer for layer, _ in base.layers)
    attention = replace(dense.attention, hidden_size=hidden)
    mlp = replace(dense.feed_forward, hidden_size=hidden, intermediate_size=4 * hidden)
    expert = replace(mlp, intermediate_size=width)
    mixture = replace(
        sparse.feed_forward, expert=expert, shared=expert, experts=experts, active=active
    )
    return replace(
        base,
        embedding=replace(base.embedding, hidden_size=hidden),
        layers=(
            (replace(dense, attention=attention, feed_forward=mlp), 3),
            (replace(sparse, attention=attention, feed_forward=mixture), layers - 3),
        ),
    )


def count(shapes: Architecture) -> tuple[np.ndarray, ...]:
    """Count parameters, FLOPs and cache of all shapes."""
    return (
        *(shapes.n_total, shapes.n_active, shapes.n_non_embedding, shapes.n_active_non_embedding),
        *(shapes.mean_forward_flops(4096), shapes.kv_bytes(), shapes.cache_bytes(32_768)),
    )


def main() -> None:
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        totals = count(space())[0]
        seconds.append(time.process_time() - begun)
    figures = {"promise_s": PROMISE, "shapes": len(totals), "cpu_s": sorted(seconds)}
    finish("count_sparse", figures | {"within_promise": min(seconds) < PROMISE})


if __name__ == "__main__":
    main()
