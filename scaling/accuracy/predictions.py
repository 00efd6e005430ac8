"""Tasks with chance levels, and predicted accuracies with intervals and a status."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError

LEVEL = 95.0  # per cent, of every interval
ENDS = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)
QUANTILES = (np.arange(201) + 0.5) / 201
NOT_AVAILABLE = "not available"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark: its name, the accuracy of guessing, and its number of test items if known."""

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
                "leave `items` out where the number is not known"
            )

    def sampling_error(self, accuracy: float) -> float | None:
        """Compute the standard error of a score on the test items: √(p (1 - p) / items).

        Parameters
        ----------
        accuracy
            The true accuracy p, a fraction; clipped to 0 and 1.

        Returns
        -------
        The standard error, a fraction, or None where the number of items is not known.
        """
        if self.items is None:
            return None
        clipped = min(max(accuracy, 0.0), 1.0)
        return float(np.sqrt(clipped * (1 - clipped) / self.items))


@dataclass(frozen=True, kw_only=True, repr=False)
class Accuracy(Result):
    """A predicted accuracy, or the reason why it is not available.

    All accuracies are fractions. ``low`` to ``high`` is the 95 % interval of one new model on these
    test items; beyond the fitted losses the interval spans the fitted ceiling and a ceiling of 1.
    ``mean_low`` to ``mean_high`` is the interval of the link itself at this loss.
    ``standard_error`` is that of a new model. ``sampling_error`` comes from the finite number of
    items: the standard deviation between scores on different samples of items. The intervals do
    not include it.
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
            tables={"fractions": pd.DataFrame([accuracy.as_json() for accuracy in self])},
            notes=[task.view().title for task in self.tasks],
        )


@dataclass(frozen=True, kw_only=True)
class LinkSource:
    """The data that a link was fitted on.

    ``validation`` names the text that the losses were measured on, ``loss_range`` is in nats per
    token, ``data_sha256`` is the fingerprint of the fitted columns, ``provenance`` describes the
    table (source, licence, tokenizer, metric and the like).
    """

    validation: str
    loss_range: tuple[float, float]
    run_ids: tuple[str, ...]
    data_sha256: str
    provenance: dict[str, str] = field(default_factory=dict)

    def refusal(self, validation: str, tokenizer: str | None) -> str | None:
        """Explain why the link does not hold for a loss; None where the link holds.

        Parameters
        ----------
        validation
            The validation set of the loss.
        tokenizer
            The tokenizer of the loss, where known.
        """
        if validation != self.validation:
            return (
                f"{NOT_AVAILABLE}: the link holds for losses on `{self.validation}`, "
                f"not on `{validation}`"
            )
        fitted = self.provenance.get("tokenizer")
        if tokenizer is not None and fitted is not None and tokenizer != fitted:
            return (
                f"{NOT_AVAILABLE}: the link holds for losses per token of `{fitted}`, "
                f"not of `{tokenizer}`"
            )
        return None

    def holds(self, loss: float) -> bool:
        """Test if a loss lies inside the fitted range."""
        return self.loss_range[0] <= loss <= self.loss_range[1]

    def distance(self, loss: float) -> str:
        """Describe the distance of a loss from the fitted range."""
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
    """Represent the uncertainty of a loss by a set of equally likely losses.

    Parameters
    ----------
    loss
        Nats per token.
    loss_low, loss_high
        The 95 % interval of the loss, taken as normal in ln loss on either side; or None.
    draws
        Draws of the loss, (n,), instead of an interval; or None.

    Returns
    -------
    Losses in nats per token: the loss itself, (1,), quantiles of its interval, (201,), or the
    draws, (n,).

    Raises
    ------
    InputError
        A loss is not a positive number, or the interval does not contain the loss.
    """
    complete = (loss_low is None) == (loss_high is None)
    if not complete or (draws is not None and loss_low is not None):
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
            f"`loss_low <= loss <= loss_high` must hold, but got {low}, {loss} and {high}; "
            "give an interval that contains the loss"
        )
    if low == high:
        return nodes
    normal = norm.ppf(QUANTILES) / norm.ppf(ENDS[1] / 100)
    side = np.where(normal > 0, np.log(high / loss), np.log(loss / low))
    return np.asarray(loss * np.exp(normal * side))


def mixture_interval(value: np.ndarray, spread: np.ndarray, degrees: int) -> tuple[float, float]:
    """Compute the 95 % interval of a mixture of Student's t over equally likely losses.

    Parameters
    ----------
    value, spread
        Accuracy and its standard error at every loss, (n,).
    degrees
        Degrees of freedom.

    Returns
    -------
    The low and high end, clipped to 0 and 1.
    """
    single = len(value) == 1  # the two ends of Student's t are the interval
    noise = student.ppf(np.array(ENDS) / 100 if single else QUANTILES, degrees)
    mixture = value[:, None] + np.outer(spread, noise)
    low, high = np.clip(np.percentile(mixture, (0, 100) if single else ENDS), 0, 1)
    return float(low), float(high)
