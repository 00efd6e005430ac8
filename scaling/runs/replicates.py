"""Noise between runs that differ in their seeds only."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.runs.table import table_of

SAME_SIZE = 1.2  # sizes within this ratio are one level


SIGNATURE = (*INTEGER_FIELDS, "tie_word_embeddings", "qk_norm", "rope_theta")


SIGNATURE_RECIPE = (
    *("tokens", "corpus", "tokenizer", "context_length", "batch_tokens"),
    *("learning_rate", "schedule", "optimizer", "dtype", "residual_init"),
)


def replicate_noise(runs: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation of ln loss between seeds, pooled over all shapes that have replicates.

    Returns
    -------
    The deviation (a fraction of the loss) and its degrees of freedom; NaN and 0 without replicates.
    """
    deviations = _from_replicates(runs)
    degrees = int(deviations["degrees"].sum())
    if degrees == 0:
        return np.nan, 0
    return float(np.sqrt(deviations["squares"].sum() / degrees)), degrees


def replicate_noise_by_size(runs: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation of ln loss between seeds, for each model size that has replicates.

    Sizes of which each is within 20 % of the next smaller one are one level.

    Returns
    -------
    ``n_non_embedding`` (geometric mean of the level's rows, parameters), ``deviation`` (a fraction
    of the loss) and ``degrees`` of freedom, smallest size first; no rows without replicates.
    """
    deviations = _from_replicates(runs)
    deviations = deviations[deviations["degrees"] > 0].sort_values("size")
    logs = np.log(deviations["size"].to_numpy(dtype=float))
    level = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log(SAME_SIZE))])[: len(logs)]
    grouped = deviations.assign(level=level, size=logs).groupby("level")
    degrees = grouped["degrees"].sum().to_numpy(dtype=int)
    return pd.DataFrame(
        {
            "n_non_embedding": np.exp(grouped["size"].mean().to_numpy(dtype=float)),
            "deviation": np.sqrt(grouped["squares"].sum().to_numpy(dtype=float) / degrees),
            "degrees": degrees,
        }
    )


def _from_replicates(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per shape and recipe: its size, squared deviations of ln loss, and their degrees."""
    shape = set(INTEGER_FIELDS) - {"vocab_size"}
    if not {*shape, "tokens"} <= set(runs.columns):
        return pd.DataFrame({"size": [], "squares": [], "degrees": []})
    keys = [runs[name] for name in (*SIGNATURE, *SIGNATURE_RECIPE) if name in runs]
    logs = np.log(runs["loss"])
    means = logs.groupby(keys, dropna=False).transform("mean")
    size = runs.get("n_non_embedding", pd.Series(table_of(runs).n_non_embedding, runs.index))
    rows = pd.DataFrame({"size": size, "squares": (logs - means) ** 2, "degrees": 1})
    grouped = rows.groupby(keys, dropna=False)
    return pd.DataFrame(
        {
            "size": grouped["size"].first().to_numpy(),
            "squares": grouped["squares"].sum().to_numpy(),
            "degrees": grouped["degrees"].sum().to_numpy() - 1,
        }
    )
