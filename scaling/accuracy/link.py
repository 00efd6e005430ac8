"""Fitted links from the loss on one validation set to accuracy on a task or a fixed task set.

Every prediction carries the chance level of its task, an interval, and a status text. An interval
covers one new model, evaluated on the same test items. The interval includes the uncertainty of
the coefficients of all steps, the noise of models around each step, and the uncertainty of the
loss, where given. Coefficients enter by the delta method and Student's t; a loss with an interval
or draws is integrated over, not linearised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.accuracy.curves import Curve
from shapelaw.scaling.accuracy.predictions import (
    Accuracies,
    Accuracy,
    LinkSource,
    Task,
    loss_nodes,
    mixture_interval,
)
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MAX_ERRORS_AT_CHANCE = 2.0  # standard errors above chance; closer predictions are "at chance"
MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class LinkStage:
    """A fitted step of a link: the curve with its constants, and its internal parameters."""

    curve: Curve
    theta: np.ndarray
    at_bound: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Link(Result):
    """A link from the loss on one validation set to accuracy on one task, in one step or two.

    ``covariance`` (p, p) is that of the internal parameters of all stages, in order. ``noise``
    (stages, stages) is the covariance of a new model around each stage, with ``degrees`` degrees
    of freedom. ``status`` describes how the fit ended. ``other`` is the same link with its ceiling
    held at 1, where the ceiling was fitted: beyond the fitted losses intervals span both links.
    """

    task: Task
    form: str
    stages: tuple[LinkStage, ...]
    covariance: np.ndarray
    noise: np.ndarray
    degrees: int
    measured: LinkSource
    status: str
    other: "Link | None" = None

    @property
    def chance(self) -> float:
        """Accuracy of guessing, a fraction."""
        return self.task.chance

    @property
    def ceiling(self) -> float:
        """Highest accuracy that the curve can reach; 1 where the curve has no ceiling."""
        last = self.stages[-1]
        names, values, _ = last.curve.public(last.theta)
        given = getattr(last.curve, "ceiling", None)
        fitted = dict(zip(names, values, strict=True)).get("ceiling", 1.0)
        return float(fitted if given is None else given)

    @property
    def deviation(self) -> float:
        """Standard deviation of a new model around the last step, as a fraction."""
        return float(np.sqrt(self.noise[-1, -1]))

    def curve(self, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluate the accuracy at losses and its gradients.

        Parameters
        ----------
        loss
            Losses in nats per token, (n,).

        Returns
        -------
        Accuracies (n,), their gradient by the internal parameters of all stages (n, p), and their
        gradient by the noise of each stage (n, stages).
        """
        value = np.asarray(loss, dtype=float)
        by_parameters = np.empty((len(value), 0))
        by_noise = np.empty((len(value), 0))
        for stage in self.stages:
            value, gradient, slope = stage.curve.value(stage.theta, value)
            by_parameters = np.hstack((by_parameters * slope[:, None], gradient))
            by_noise = np.hstack((by_noise * slope[:, None], np.ones((len(value), 1))))
        return value, by_parameters, by_noise

    def coefficients(self) -> list[dict[str, Any]]:
        """List the equation, constants and coefficients with standard errors of every step."""
        rows, begin = [], 0
        for stage in self.stages:
            names, values, gradient = stage.curve.public(stage.theta)
            part = slice(begin, begin := begin + len(stage.theta))
            errors = np.sqrt(np.diag(gradient @ self.covariance[part, part] @ gradient.T))
            rows.append(
                {
                    "equation": stage.curve.equation,
                    "constants": {
                        name: getattr(stage.curve, name) for name in stage.curve.__dict__
                    },
                    "coefficients": {
                        name: {"value": float(value), "standard_error": float(error)}
                        for name, value, error in zip(names, values, errors, strict=True)
                    },
                    "at_bound": list(stage.at_bound),
                }
            )
        return rows

    def predict(
        self,
        loss: float,
        *,
        validation: str,
        loss_low: float | None = None,
        loss_high: float | None = None,
        draws: Sequence[float] | np.ndarray | None = None,
        tokenizer: str | None = None,
    ) -> Accuracy:
        """Predict the accuracy at a loss, with an interval.

        Parameters
        ----------
        loss
            Nats per token on ``validation``.
        validation
            The validation set that the loss was measured on or predicted for.
        loss_low, loss_high
            The 95 % interval of the loss, taken as normal in ln loss on either side.
        draws
            Draws of the loss, instead of an interval.
        tokenizer
            The tokenizer of the loss; checked where the link has the tokenizer of its fit.

        Returns
        -------
        The accuracy; without a value, and with the reason as its status, where the loss is of
        another validation set or tokenizer.

        Raises
        ------
        InputError
            The loss or its interval is not a positive number, or out of order.
        """
        nodes = loss_nodes(loss, loss_low, loss_high, draws)
        reason = self.measured.refusal(validation, tokenizer)
        if reason is not None:
            return Accuracy(task=self.task.name, chance=self.chance, status=reason, loss=loss)
        return _predict(self.task, self.alone(), loss, nodes)

    def is_at_chance(self, loss: float) -> bool:
        """Test if the accuracy at a loss is within two standard errors of guessing."""
        noise = max(self.deviation, self.task.sampling_error(self.chance) or 0.0)
        above = float(self.curve(np.array([loss]))[0][0]) - self.chance
        return above < MAX_ERRORS_AT_CHANCE * noise

    def alone(self) -> "Links":
        """Make a set of this task alone."""
        other = None if self.other is None else self.other.alone()
        return Links(links=(self,), covariance=self.covariance, noise=self.noise, other=other)

    def view(self) -> View:
        """Return the form and status of the link, its coefficients, and its range of losses."""
        low, high = self.measured.loss_range
        return View(
            title=f"{self.task.name}: {self.form} on "
            f"{counted(len(self.measured.run_ids), 'model')}, chance {self.chance:.4g}, ceiling "
            f"{self.ceiling:.4g}: {self.status}",
            tables={"coefficients ± standard errors": self.frame()},
            notes=[
                f"losses on {self.measured.validation} from {low:.3f} to {high:.3f} nats per "
                f"token; a new model deviates by {100 * self.deviation:.2f} points"
            ],
        )

    def document(self) -> dict[str, Any]:
        """Return the stable document for display; files hold more (:mod:`files`)."""
        return {
            "task": self.task.name,
            "chance": self.chance,
            "ceiling": self.ceiling,
            "form": self.form,
            "steps": self.coefficients(),
            "deviation": self.deviation,
            "validation": self.measured.validation,
            "loss_range": self.measured.loss_range,
            "models": len(self.measured.run_ids),
            "status": self.status,
        }

    def frame(self) -> "pd.DataFrame":
        """Return one row per coefficient; every row has the chance level and the ceiling."""
        import pandas as pd

        rows = [
            {
                "task": self.task.name,
                "chance": self.chance,
                "ceiling": self.ceiling,
                "equation": step["equation"],
                "coefficient": name,
                **estimate,
            }
            for step in self.coefficients()
            for name, estimate in step["coefficients"].items()
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True, repr=False)
class Links(Result):
    """Links of a fixed task set, fitted on the same models, and the mean over exactly that set.

    ``covariance`` (p, p) and ``noise`` (k, k) are joint over all links, in order: accuracies of
    one model share random errors, so the mean is less certain than it would be for independent
    tasks. ``hold_out`` has measured and predicted accuracies of models that were not fitted,
    ``other`` is the set with ceilings held at 1 (:class:`Link`).
    """

    links: tuple[Link, ...]
    covariance: np.ndarray
    noise: np.ndarray
    hold_out: tuple[dict[str, Any], ...] = ()
    other: "Links | None" = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the fixed task set."""
        return tuple(link.task.name for link in self.links)

    @property
    def chance(self) -> float:
        """Mean chance level of the set."""
        return float(np.mean([link.chance for link in self.links]))

    @property
    def measured(self) -> LinkSource:
        """Source of the fit, the same for all links."""
        return self.links[0].measured

    def __getitem__(self, task: str) -> Link:
        """Return the link of one task."""
        for link in self.links:
            if link.task.name == task:
                return link
        raise InputError(f"a task must be one of {', '.join(self.tasks)}, but got {task!r}")

    def predict(
        self,
        loss: float,
        *,
        validation: str,
        loss_low: float | None = None,
        loss_high: float | None = None,
        draws: Sequence[float] | np.ndarray | None = None,
        tokenizer: str | None = None,
    ) -> Accuracies:
        """Predict the accuracy of every task and their mean, as :meth:`Link.predict` does."""
        ends: dict[str, Any] = {"loss_low": loss_low, "loss_high": loss_high, "draws": draws}
        tasks = tuple(
            link.predict(loss, validation=validation, tokenizer=tokenizer, **ends)
            for link in self.links
        )
        mean = Task(name=MEAN, chance=self.chance)
        reason = self.measured.refusal(validation, tokenizer)
        if reason is not None:
            predicted = Accuracy(task=MEAN, chance=self.chance, status=reason, loss=loss)
        else:
            predicted = _predict(mean, self, loss, loss_nodes(loss, **ends))
        return Accuracies(tasks=tasks, mean=predicted)

    def view(self) -> View:
        """Return the fixed set of tasks, the coefficients, and notes on every link."""
        views = [link.view() for link in self.links]
        return View(
            title=f"mean over exactly {', '.join(self.tasks)}: chance {self.chance:.4g}",
            tables={"coefficients ± standard errors": self.frame()},
            notes=[line for view in views for line in (view.title, *view.notes)],
        )

    def document(self) -> dict[str, Any]:
        """Return the stable document for display."""
        return {"tasks": self.links, "chance": self.chance, "hold_out": self.hold_out}

    def frame(self) -> "pd.DataFrame":
        """Return one row per task and coefficient."""
        import pandas as pd

        return pd.concat([link.frame() for link in self.links], ignore_index=True)


def with_other(links: Links, other: Links | None) -> Links:
    """Extend the intervals of links beyond the fitted losses by those of other links.

    Parameters
    ----------
    links
        Links whose ceilings were fitted.
    other
        Links of the same tasks with ceilings held at 1, or None.

    Raises
    ------
    ValueError
        The other links are of other tasks.
    """
    if other is None:
        return links
    if other.tasks != links.tasks:
        raise ValueError(
            f"the tasks with ceiling 1 must be {', '.join(links.tasks)}, "
            f"but are {', '.join(other.tasks)}"
        )
    pairs = zip(links.links, other.links, strict=True)
    extended = tuple(replace(link, other=held) for link, held in pairs)
    return replace(links, other=other, links=extended)


def _predict(task: Task, links: Links, loss: float, nodes: np.ndarray) -> Accuracy:
    """Predict the unweighted mean of links at one loss, or the accuracy of a single link."""
    at_loss = np.array([loss])
    value = float(_mean(links, at_loss)[0][0])
    low, high, mean_low, mean_high, standard_error = _spread(links, nodes)
    status = _status(links, loss)
    if links.other is not None and not links.measured.holds(loss):
        other_low, other_high = _spread(links.other, nodes)[:2]
        low, high = min(low, other_low), max(high, other_high)
        status += f"; {100 * float(_mean(links.other, at_loss)[0][0]):.1f} % with ceiling 1"
    sampling = [link.task.sampling_error(float(link.curve(at_loss)[0][0])) for link in links.links]
    errors = [error for error in sampling if error is not None]
    complete = len(errors) == len(sampling)
    return Accuracy(
        task=task.name,
        chance=task.chance,
        status=status,
        loss=float(loss),
        value=value,
        low=low,
        high=high,
        mean_low=mean_low,
        mean_high=mean_high,
        standard_error=standard_error,
        sampling_error=float(np.linalg.norm(errors) / len(errors)) if complete else None,
    )


def _mean(links: Links, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean accuracy at losses (n,), its standard error, and that of a new model."""
    parts = [link.curve(losses) for link in links.links]
    value = np.mean([np.clip(part[0], 0, 1) for part in parts], axis=0)
    by_parameters = np.hstack([part[1] for part in parts]) / len(parts)
    by_noise = np.hstack([part[2] for part in parts]) / len(parts)
    curve = np.einsum("np,pq,nq->n", by_parameters, links.covariance, by_parameters)
    around = np.einsum("np,pq,nq->n", by_noise, links.noise, by_noise)
    return value, np.sqrt(np.maximum(curve, 0)), np.sqrt(np.maximum(curve + around, 0))


def _spread(links: Links, nodes: np.ndarray) -> tuple[float, float, float, float, float]:
    """Compute the intervals of a new model and of the link, and the standard error.

    The distribution is a mixture over the losses in ``nodes``.
    """
    value, curve, new = _mean(links, nodes)
    degrees = min(link.degrees for link in links.links)
    low, high = mixture_interval(value, new, degrees)
    mean_low, mean_high = mixture_interval(value, curve, degrees)
    return low, high, mean_low, mean_high, float(np.sqrt(np.mean(new**2) + np.var(value)))


def _status(links: Links, loss: float) -> str:
    """Describe a prediction: inside the fitted losses, extrapolated, at chance, or beyond 1."""
    status = links.measured.distance(loss)
    if any(link.curve(np.array([loss]))[0][0] > 1 for link in links.links):
        status += "; a curve exceeds 1 here and is clipped"
    at_chance = [link.task.name for link in links.links if link.is_at_chance(loss)]
    if at_chance and len(links.links) == 1:
        return f"at chance: within noise of {links.chance:.4g}; {status}"
    if at_chance:
        status += f"; at chance: {', '.join(at_chance)}"
    return status
