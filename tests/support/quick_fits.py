"""Fast fits to runs of a known law, and labels of their figures."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N

NOISE = 0.004

RATIOS = {"hidden_over_sqrt_n": (0.05, 0.4), "mlp_to_attention": (0.5, 8.0), "gqa": (1.0, 8.0)}


def known_runs(rows: int = 60, seed: int = 0, heavy: bool = False) -> pd.DataFrame:
    """Draw runs of a known law with normal noise and every column that a law may need."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "run_id": [f"synthetic-{row}" for row in range(rows)],
            N: np.resize([1e6, 4e6, 1.6e7, 6.4e7], rows),
            D: np.resize([2e7, 8e7, 3.2e8, 1.28e9, 5.12e9], rows),
        }
    )
    for name, (low, high) in RATIOS.items():
        frame[name] = np.exp(generator.uniform(np.log(low), np.log(high), rows))
    frame["num_hidden_layers"] = generator.integers(4, 33, rows)
    frame["head_dim"] = np.resize([32, 64, 128, 64, 96], rows)
    frame["hidden_size"] = (frame["hidden_over_sqrt_n"] * np.sqrt(frame[N])).round()
    frame["aspect_ratio"] = frame["hidden_size"] / frame["num_hidden_layers"]
    frame["best_loss"] = 1.8 + 60 / frame[N] ** 0.34 + 300 / frame[D] ** 0.37
    loss = frame["best_loss"]
    for name, optimum, curvature in (
        ("hidden_over_sqrt_n", 0.15, 0.1),
        ("mlp_to_attention", 2, 0.05),
    ):
        x = frame[name] / optimum
        loss = loss * (1 + curvature * (np.log(x) + 1 / x - 1))
    errors = generator.standard_t(1.5, rows) if heavy else generator.standard_normal(rows)
    frame["loss"] = loss * np.exp(NOISE * errors)
    return frame


def with_experts(runs: pd.DataFrame) -> pd.DataFrame:
    """Add the ratios of experts that laws of sparse models need, without an effect."""
    generator = np.random.default_rng(6)
    ranges = {
        "sparsity": (2, 20), "expert_sparsity": (4, 40), "active_experts": (1, 8),
        "granularity": (1, 12),
    }  # fmt: skip
    drawn = {
        name: np.exp(generator.uniform(*np.log(ends), len(runs))) for name, ends in ranges.items()
    }
    return runs.assign(**drawn)


def quick_fit(law_name: str, runs: pd.DataFrame, **settings) -> Fit:
    """Fit a law with few starts and resamples."""
    return fit(law_name, runs, **({"starts": 16, "resamples": 20, "delta": 0.01} | settings))


def labels(figure: Figure) -> list[str]:
    """Return the label of every horizontal axis of a figure."""
    return [axes.get_xlabel() for axes in figure.axes]
