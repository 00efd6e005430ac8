"""Choice of the learning rate of each family from one run at each of three rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from shapelaw.scaling.errors import WorkError
from shapelaw.search.families.budget import Variant, variant_named
from shapelaw.search.families.comparison import RATE_ROLE, variant_of_row

RATE_COUNT = 3
LOSS_AT = "loss_lr_"  # beginning of the columns of losses, before the rate
# Gain of loss below which the middle rate is kept: one standard deviation between seeds at these
# sizes (data/proxies/README.md), since every rate is tried with one seed.
MIN_RATE_GAIN = 0.005


@dataclass(frozen=True, kw_only=True)
class RateChoice:
    """Learning rate of a variant, from one run at each of three.

    Attributes
    ----------
    losses
        Loss at each rate, infinite if the run diverged.
    rate
        The rate to train at: the middle one, unless another has less loss by half a percent.
    """

    variant: Variant
    losses: Mapping[float, float]
    rate: float

    @property
    def at_edge(self) -> bool:
        """True if the rate is the lowest or highest, so that a better one may lie beyond."""
        return self.rate in (min(self.losses), max(self.losses))


def choose_rate(variant: Variant, losses: Mapping[float, float]) -> RateChoice:
    """Choose the learning rate of a variant from the losses at three rates.

    Raises
    ------
    WorkError
        The runs diverged at every rate.
    """
    best = min(losses, key=lambda rate: losses[rate])
    if not np.isfinite(losses[best]):
        raise WorkError(
            f"{variant.name} diverged at every learning rate "
            f"({', '.join(f'{rate:g}' for rate in losses)}); give lower --lr-values"
        )
    middle = sorted(losses)[len(losses) // 2]
    gain = np.log(losses[middle] / losses[best])
    return RateChoice(variant=variant, losses=losses, rate=best if gain > MIN_RATE_GAIN else middle)


def rate_table(choices: Sequence[RateChoice]) -> pd.DataFrame:
    """Tabulate the losses at each learning rate, and the chosen one."""
    return pd.DataFrame(
        [
            {
                "family": choice.variant.name,
                **{f"{LOSS_AT}{rate:g}": loss for rate, loss in choice.losses.items()},
                "chosen": choice.rate,
                "at_edge": choice.at_edge,
            }
            for choice in choices
        ]
    )


def rates_of_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the losses of the rows of a check of learning rates, as far as they exist.

    Parameters
    ----------
    runs
        Rows of a run table; those of other roles than ``lr-check`` are left out.

    Returns
    -------
    The table of :func:`rate_table`, sorted by the best loss; a family whose runs are not all there
    has missing losses and no chosen rate.
    """
    rows = runs[runs["role"] == RATE_ROLE]
    names = [variant_of_row(row).name for row in rows.to_dict("records")]
    losses = rows.assign(family=names).pivot_table(
        index="family", columns="learning_rate", values="loss", aggfunc="first"
    )
    lines = []
    for name, line in losses.iterrows():
        tried = {float(rate): float(loss) for rate, loss in line.items()}  # type: ignore[arg-type]
        choice = None
        if len(tried) == RATE_COUNT and np.all(np.isfinite(list(tried.values()))):
            choice = choose_rate(variant_named(str(name)), tried)
        lines.append(
            {
                "family": name,
                **{f"{LOSS_AT}{rate:g}": loss for rate, loss in tried.items()},
                "chosen": np.nan if choice is None else choice.rate,
                "at_edge": None if choice is None else choice.at_edge,
            }
        )
    table = pd.DataFrame(lines)
    best = table.filter(like=LOSS_AT).min(axis=1)
    return table.loc[best.sort_values().index].reset_index(drop=True)
