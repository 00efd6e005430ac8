"""Enumeration of 10^6 models of a mixture-of-experts space; promise: under 2 CPU seconds.

The models are those of Qwen3-MoE at 10^9 active parameters: layers, hidden sizes, heads, experts
and chosen experts, each with the width of experts that meets the budget, and total, active and
non-embedding parameters, weights and cache of each.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time

from record import finish

from shapelaw.scaling.space.family_space import FamilySpace, family_space

PROMISE, REPEATS, MODELS = 2.0, 5, 10**6
COUNTED = ("n_total", "n_active", "n_active_non_embedding", "weight_bytes", "kv_bytes")
AXES = {
    "num_hidden_layers": (24, 32, 40, 48),
    "hidden_size": tuple(range(1024, 2560, 64)),
    "num_attention_heads": tuple(range(4, 68, 4)),
    "num_key_value_heads": (1, 2, 4),
    "head_dim": (64, 128),
    "num_experts": tuple(range(16, 272, 16)),
    "num_experts_per_tok": (2, 3, 4, 6, 8, 10, 12, 16),
}


def space() -> FamilySpace:
    """Return the space of the benchmark."""
    return family_space(
        "qwen3_moe", 10**9, given=AXES, mlp_step=8, tolerance=0.03, deployable=False
    )


def enumerate_and_count() -> int:
    """Enumerate the space with its counts, and return the number of models."""
    found, models = 0, space()
    for table in models.chunks():
        columns = models.columns(table)
        for name in COUNTED:
            _ = columns[name]
        found += len(table)
    return found


def main() -> None:
    seconds, found = [], 0
    for _ in range(REPEATS):
        begun = time.process_time()
        found = enumerate_and_count()
        seconds.append(time.process_time() - begun)
    per_million = sorted(second * MODELS / found for second in seconds)
    figures = {"promise_s": PROMISE, "models": found, "cpu_s_per_million": per_million}
    within = found >= MODELS and per_million[0] < PROMISE
    finish("family_space", figures | {"within_promise": within})


if __name__ == "__main__":
    main()
