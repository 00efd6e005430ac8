"""Synthetic accuracies with a known link from loss."""

from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.accuracy.fit import fit_links
from shapelaw.scaling.accuracy.link import Link
from shapelaw.scaling.accuracy.predictions import Task


def fit_link(table: pd.DataFrame, task: str | Task, **settings: Any) -> Link:
    """Fit the link of one task."""
    return fit_links(table, [task], **settings).links[0]


def synthetic(seed: int, *, noise: float = 0.01, rows: int = 16, tasks: str = "a") -> pd.DataFrame:
    """Draw models of random loss around the synthetic truth; tasks share half of the noise."""
    generator = np.random.default_rng(seed)
    loss = np.sort(generator.uniform(2.8, 3.6, rows))
    table = pd.DataFrame({"run_id": [f"run-{i}" for i in range(rows)], "loss_c4_en": loss})
    shared = generator.normal(0, noise / np.sqrt(2), rows)
    for task in tasks:
        between = task_loss(loss) + generator.normal(0, noise, rows)
        errors = shared + generator.normal(0, noise / np.sqrt(2), rows)
        table[f"bpb_{task}"] = between
        table[f"accuracy_{task}"] = true_accuracy(loss) if not noise else None
        if noise:
            exact = 0.25 + 0.65 / (1 + np.exp(-4 * (1.0 - between)))
            table[f"accuracy_{task}"] = np.clip(exact + errors, 0, 1)
    return table


def task_loss(loss: np.ndarray | float) -> np.ndarray:
    """Evaluate the synthetic first step, bits per byte."""
    return 1.2 * (np.asarray(loss) / 3.2) ** 1.8


def true_accuracy(loss: np.ndarray | float, height: float = 0.65) -> np.ndarray:
    """Evaluate the synthetic second step, a fraction."""
    return 0.25 + height / (1 + np.exp(-4 * (1.0 - task_loss(loss))))
