"""The models that a paper trained, beside what its printed law predicts for them."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.fitting.published_laws import printed_laws
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import N
from shapelaw.search.proposals.basis import LossBasis

NEAR = 0.1  # largest relative difference in N of the models that are shown


def paper_models(basis: LossBasis, baseline: Shape) -> pd.DataFrame:
    """Compare predicted with measured differences of loss, for the paper's models of one size.

    Returns
    -------
    ``model``, ``predicted_percent`` and ``measured_percent``: the loss over that of the first
    model, one of those that give the law its level. Empty for a law that was fitted here, and where
    the paper has no two models of the baseline's size.
    """
    columns = ["model", "predicted_percent", "measured_percent"]
    entry = printed_laws().get(basis.published)
    if entry is None:
        return pd.DataFrame(columns=columns)
    runs = load_runs(entry["table"]).frame
    near = runs[(runs[N] / baseline.n_non_embedding - 1).abs() <= NEAR]
    anchors = near["run_id"].isin(entry["anchors"])
    if len(near) < 2 or not anchors.any():
        return pd.DataFrame(columns=columns)
    place = int(anchors.to_numpy().argmax())
    losses = {"predicted": basis.fit.expected(near), "measured": near["loss"].to_numpy(float)}
    percent = {f"{k}_percent": 100 * (v / v[place] - 1) for k, v in losses.items()}
    table = pd.DataFrame({"model": near["run_id"].to_numpy(), **percent})
    order = np.argsort(np.arange(len(table)) != place, kind="stable")
    return table.iloc[order].reset_index(drop=True)
