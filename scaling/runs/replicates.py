"""Noise between replicates: runs that differ only in their seeds."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, SWITCH_FIELDS
from shapelaw.scaling.runs.columns import EXPERT_COLUMNS
from shapelaw.scaling.runs.levels import level_of

SHAPE_COLUMNS = (
    *(*INTEGER_FIELDS, "tie_word_embeddings", "qk_norm", "rope_theta", *SWITCH_FIELDS),
    *(*EXPERT_COLUMNS, "num_shared_experts", "config"),
)
RECIPE_COLUMNS = (
    *("tokens", "corpus", "tokenizer", "context_length", "batch_tokens"),
    *("learning_rate", "schedule", "optimizer", "dtype", "residual_init"),
    "objective",
)


SEEDS = ("seed", "data_seed")
OUTCOME_COLUMNS = {  # names and results of a run, which differ between replicates
    *("run_id", "role", "run_group", "config_hash", "status", "device", "git_commit", "versions"),
    *("loss", "loss_se", "best_loss", "bits_per_byte", "bits_per_byte_se", "seconds"),
    *("tokens_per_second", *SEEDS),
}
OUTCOME_PREFIXES = ("loss_", "bits_per_byte_", "bpb_", "accuracy_")
INPUTS = {"loss_unit", "loss_kind"}  # despite the prefix


def replicates_of(frame: pd.DataFrame) -> np.ndarray:
    """Assign the number of its shape and recipe to each row, (n,).

    Rows with equal numbers are replicates. Where fields of a shape are missing, replicates are rows
    with different seeds that agree in all columns but names and results. If such a group repeats
    or lacks a seed, its rows may differ in what the table does not record, and are no replicates.
    """
    every = np.arange(len(frame))
    if "tokens" not in frame:
        return every
    if set(INTEGER_FIELDS) - {"vocab_size"} <= set(frame.columns):
        keys = [name for name in (*SHAPE_COLUMNS, *RECIPE_COLUMNS) if name in frame]
        return frame.groupby(keys, dropna=False).ngroup().to_numpy()
    seeds = [name for name in SEEDS if name in frame]
    if not seeds:
        return every
    keys = [
        name
        for name in map(str, frame)
        if name not in OUTCOME_COLUMNS and (name in INPUTS or not name.startswith(OUTCOME_PREFIXES))
    ]
    group = frame.groupby(keys, dropna=False).ngroup().to_numpy()
    unclear = frame[seeds].isna().all(axis=1)
    unclear |= frame[seeds].assign(group=group).duplicated(keep=False)
    alone = np.isin(group, group[unclear.to_numpy()])
    return np.where(alone, len(frame) + every, group)


def squares_of(replicates: np.ndarray, log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum squared deviations of ln loss within replicates, and count their degrees of freedom.

    Parameters
    ----------
    replicates
        Number of each run's shape and recipe, (n,).
    log_loss
        ln loss of each run, (n,).

    Returns
    -------
    Sums of squares and degrees of freedom of each group of replicates, (g,) each; both are 0 in a
    group of one run.
    """
    groups, inverse = np.unique(replicates, return_inverse=True)
    count = np.bincount(inverse, minlength=len(groups))
    means = np.bincount(inverse, weights=log_loss) / count
    squares = np.bincount(inverse, weights=(log_loss - means[inverse]) ** 2)
    return squares, count - 1


def noise_by_size(replicates: np.ndarray, log_loss: np.ndarray, sizes: np.ndarray) -> pd.DataFrame:
    """Estimate the standard deviation of ln loss between seeds for each size with replicates.

    Sizes of one level (:func:`shapelaw.scaling.runs.levels.level_of`) are pooled.

    Parameters
    ----------
    replicates
        Number of each run's shape and recipe, (n,).
    log_loss
        ln loss of each run, (n,).
    sizes
        Non-embedding parameters of each run, (n,).

    Returns
    -------
    ``n_non_embedding`` (geometric mean over the level's shapes, parameters), ``deviation`` (a
    fraction of the loss) and ``degrees`` of freedom, smallest size first; no rows without
    replicates.
    """
    squares, degrees = squares_of(replicates, log_loss)
    logs = np.log(sizes[np.unique(replicates, return_index=True)[1]])
    repeated = degrees > 0
    logs, squares, degrees = logs[repeated], squares[repeated], degrees[repeated]
    level = level_of(np.exp(logs))
    grouped = pd.DataFrame({"size": logs, "squares": squares, "degrees": degrees}).groupby(level)
    totals = grouped["degrees"].sum().to_numpy(dtype=int)
    return pd.DataFrame(
        {
            "n_non_embedding": np.exp(grouped["size"].mean().to_numpy(dtype=float)),
            "deviation": np.sqrt(grouped["squares"].sum().to_numpy(dtype=float) / totals),
            "degrees": totals,
        }
    )
