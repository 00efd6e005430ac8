"""Synthetic runs with the shape columns that a search needs."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.runs.ratios import with_ratios

LAYERS, HEAD_DIM, ROPE_THETA = 4, 16, 500.0


def fill(size: int, hidden: int, heads: int, groups: int, vocab_size: int) -> Shape:
    """Choose the MLP width that brings a shape nearest to a non-embedding size."""

    def at(width: int) -> Shape:
        return Shape(
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=LAYERS,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=HEAD_DIM,
            vocab_size=vocab_size,
            qk_norm=True,
            rope_theta=ROPE_THETA,
        )

    per_width = at(2).n_non_embedding - at(1).n_non_embedding
    return at(max(1, round(1 + (size - at(1).n_non_embedding) / per_width)))


def synthetic_runs() -> pd.DataFrame:
    """Make a run table of valid shapes with the losses of a known law and 0.1 % noise."""
    rows = []
    choices = [(24, 6, 2), (32, 4, 1), (32, 4, 4), (48, 3, 1), (64, 4, 2), (64, 2, 2), (96, 2, 1)]
    for size in (50_000, 100_000):
        for hidden, heads, groups in choices:
            for ratio in (10, 20):
                shape = fill(size, hidden, heads, groups, 256)
                rows.append(vars(shape) | {"tokens": size * ratio})
    runs = with_ratios(pd.DataFrame(rows))
    loss = 1.2 + 20 / runs["n_non_embedding"] ** 0.3 + 60 / runs["tokens"] ** 0.35
    for name, optimum, curvature in (
        ("hidden_over_sqrt_n", 0.2, 0.2),
        ("mlp_to_attention", 2, 0.04),
    ):
        x = runs[name] / optimum
        loss *= 1 + curvature * (np.log(x) + 1 / x - 1)
    noise = np.random.default_rng(0).normal(0, 0.001, len(runs))
    runs["loss"] = loss * (1 + 0.01 * np.log(runs["gqa"])) * np.exp(noise)
    runs["run_id"] = [f"synthetic-{number:02d}" for number in range(len(runs))]
    return runs
