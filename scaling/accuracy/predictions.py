"""Predicted accuracies as data: tasks with chance levels, answers with intervals and a status."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    pass

LEVEL = 95.0
ENDS = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)
QUANTILES = (np.arange(201) + 0.5) / 201
NOT_AVAILABLE = "not available"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark: its name, what guessing scores, and its number of test items where known."""

    name: str
    chance: float
    items: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.chance < 1:
            raise InputError(
                f"`0 <= chance < 1` must hold for a task, but {self.name!r} has {self.chance}; "
                "give 1 / (number of choices), or 0 for free answers"
            )
        if self.items is not None and self.items < 1:
            raise InputError(
                f"`items >= 1` must hold for a task, but {self.name!r} has {self.items}; "
                "leave it out where it is not known"
            )

    def sampling_error(self, accuracy: float) -> float | None:
        """Standard error of a score on this many items: √(p (1 - p) / items)."""
        if self.items is None:
            return None
        inside = min(max(accuracy, 0.0), 1.0)
        return float(np.sqrt(inside * (1 - inside) / self.items))


@dataclass(frozen=True, kw_only=True, repr=False)
class Accuracy(Result):
    """A predicted accuracy, or in words why there is none.

    All are fractions. ``low`` to ``high`` is the 95 % interval of one new model on these test
    items and, beyond the fitted losses, spans ceilings fitted and 1; ``mean_low`` to ``mean_high``
    is that of the link itself at this loss. ``standard_error`` is that of a new model.
    ``sampling_error`` comes from the finite number of items: it says how far the score may be from
    that on other items of the kind, and is not part of the intervals.
    """

    task: str
    chance: float
    status: str
    loss: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    mean_low: float | None = None
    mean_high: float | None = None
    standard_error: float | None = None
    sampling_error: float | None = None

    def view(self) -> View:
        """Return the accuracy in per cent as a line, and every field as a table of fractions."""
        import pandas as pd

        chance = f"chance {100 * self.chance:.1f} %"
        title = f"{self.task}: {self.status}; {chance}"
        if self.value is not None:
            ends = f"[{100 * (self.low or 0):.1f}, {100 * (self.high or 0):.1f}]"
            title = f"{self.task}: {100 * self.value:.1f} % {ends}, {chance}; {self.status}"
        return View(title=title, tables={"fractions": pd.DataFrame([self.as_json()])})


@dataclass(frozen=True, kw_only=True, repr=False)
class Accuracies(Result):
    """Predicted accuracies of a fixed task set and their unweighted mean."""

    tasks: tuple[Accuracy, ...]
    mean: Accuracy

    def __iter__(self) -> Iterator[Accuracy]:
        return iter((*self.tasks, self.mean))

    def view(self) -> View:
        """Return the mean, a table with a row per task and one for the mean, and the tasks."""
        import pandas as pd

        return View(
            title=self.mean.view().title,
            tables={"fractions": pd.DataFrame([one.as_json() for one in self])},
            notes=[task.view().title for task in self.tasks],
        )


@dataclass(frozen=True, kw_only=True)
class LinkSource:
    """What a link was fitted on.

    ``validation`` names the text that the losses were measured on, ``loss_range`` is in nats per
    token, ``data_sha256`` is the fingerprint of the fitted columns, ``provenance`` says in words
    where the table came from (source, licence, tokenizer, metric, ...).
    """

    validation: str
    loss_range: tuple[float, float]
    run_ids: tuple[str, ...]
    data_sha256: str
    provenance: dict[str, str] = field(default_factory=dict)

    def refusal(self, validation: str, tokenizer: str | None) -> str | None:
        """Why a loss on this validation set has no accuracy here, if so."""
        if validation != self.validation:
            return (
                f"{NOT_AVAILABLE}: the link holds for losses on `{self.validation}`, "
                f"not on `{validation}`"
            )
        own = self.provenance.get("tokenizer")
        if tokenizer is not None and own is not None and tokenizer != own:
            return (
                f"{NOT_AVAILABLE}: the link holds for losses per token of `{own}`, "
                f"not of `{tokenizer}`"
            )
        return None

    def holds(self, loss: float) -> bool:
        """Whether a loss lies inside the fitted range."""
        return self.loss_range[0] <= loss <= self.loss_range[1]

    def distance(self, loss: float) -> str:
        """Whether a loss lies inside the fitted range, in words."""
        low, high = self.loss_range
        if self.holds(loss):
            return "inside the fitted losses"
        below = loss < low
        end = low if below else high
        return (
            f"extrapolated: loss {loss:.3f} is {abs(loss - end):.3f} "
            f"{'below' if below else 'above'} the fitted {low:.3f} to {high:.3f}"
        )


def loss_nodes(
    loss: float,
    loss_low: float | None,
    loss_high: float | None,
    draws: Sequence[float] | np.ndarray | None,
) -> np.ndarray:
    """Losses that stand for the uncertainty of one: itself, quantiles of its interval, or draws.

    Raises
    ------
    InputError
        A loss is not a positive number, or the interval does not hold the loss.
    """
    both = (loss_low is None) == (loss_high is None)
    if not both or (draws is not None and loss_low is not None):
        raise InputError(
            "an uncertain loss needs `loss_low` and `loss_high`, or `draws`, but got "
            f"{loss_low}, {loss_high} and {'draws' if draws is not None else 'no draws'}"
        )
    low, high = (loss, loss) if loss_low is None or loss_high is None else (loss_low, loss_high)
    nodes = np.array([loss] if draws is None else draws, dtype=float).ravel()
    for name, values in (("loss", [low, loss, high]), ("draws", nodes)):
        numbers = np.array(values, dtype=float)
        if not len(numbers) or not np.all(np.isfinite(numbers) & (numbers > 0)):
            raise InputError(
                f"`{name} > 0` and finite must hold, but got {values}; give nats per token"
            )
    if not low <= loss <= high:
        raise InputError(
            f"`loss_low <= loss <= loss_high` must hold, but got {low}, {loss} and {high}"
        )
    if low == high:
        return nodes
    normal = norm.ppf(QUANTILES) / norm.ppf(ENDS[1] / 100)
    side = np.where(normal > 0, np.log(high / loss), np.log(loss / low))
    return np.asarray(loss * np.exp(normal * side))
