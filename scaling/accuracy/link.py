"""A link is data: loss on one validation set -> accuracy on one task, or on a fixed set of tasks.

Every answer carries the chance level of its task, an interval, and a status in words. An interval
covers one new model, evaluated on the same test items: the coefficients of all steps, the noise of
models around each step, and the uncertainty of the loss, where given. Coefficients enter by the
delta method and Student's t; a loss with an interval or draws is integrated over, not linearised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from shapelaw.scaling.accuracy.curves import Curve
from shapelaw.scaling.accuracy.predictions import (
    ENDS,
    QUANTILES,
    Accuracies,
    Accuracy,
    LinkSource,
    Task,
    loss_nodes,
)
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

WITHIN_NOISE = 2.0  # standard errors above chance below which a prediction is "at chance"
MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class LinkStage:
    """One fitted step of a link: the curve with its constants, and its internal parameters."""

    curve: Curve
    theta: np.ndarray
    at_bound: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Link(Result):
    """Loss on one validation set -> accuracy on one task, by one step or by two.

    ``covariance`` (p, p) is that of the internal parameters of all stages, in order; ``noise``
    (stages, stages) the covariance of a new model around each stage, with ``degrees`` degrees of
    freedom; ``status`` says how the fit ended. ``other`` is the same link with its ceiling held
    at 1, where the ceiling was fitted: beyond the fitted losses intervals span both.
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
        """What guessing scores."""
        return self.task.chance

    @property
    def ceiling(self) -> float:
        """The highest accuracy that the curve can reach; 1 where it has none of its own."""
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
        """Accuracy at losses (n,), its gradients by parameters (n, p) and by noise (n, stages)."""
        value = np.asarray(loss, dtype=float)
        by_parameters = np.empty((len(value), 0))
        by_noise = np.empty((len(value), 0))
        for stage in self.stages:
            value, own, slope = stage.curve.value(stage.theta, value)
            by_parameters = np.hstack((by_parameters * slope[:, None], own))
            by_noise = np.hstack((by_noise * slope[:, None], np.ones((len(value), 1))))
        return value, by_parameters, by_noise

    def coefficients(self) -> list[dict[str, Any]]:
        """Per step: the equation, its fixed constants, coefficients with standard errors."""
        rows, begin = [], 0
        for stage in self.stages:
            names, values, gradient = stage.curve.public(stage.theta)
            own = slice(begin, begin := begin + len(stage.theta))
            errors = np.sqrt(np.diag(gradient @ self.covariance[own, own] @ gradient.T))
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
        """Accuracy at a loss, with an interval, or why it is not available.

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
            The tokenizer of the loss; checked where the link knows its own.

        Raises
        ------
        InputError
            The loss or its interval is not a positive number, or out of order.
        """
        given = loss_nodes(loss, loss_low, loss_high, draws)
        reason = self.measured.refusal(validation, tokenizer)
        if reason is not None:
            return Accuracy(task=self.task.name, chance=self.chance, status=reason, loss=loss)
        return _answer(self.task, self.alone(), loss, given)

    def alone(self) -> "Links":
        """A set of this task alone."""
        other = None if self.other is None else self.other.alone()
        return Links(links=(self,), covariance=self.covariance, noise=self.noise, other=other)

    def view(self) -> View:
        """Return how the link was fitted, its coefficients, and for what losses it holds."""
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
        """Return the stable document for display; files carry more (:mod:`files`)."""
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
        """One row per coefficient; the chance level and the ceiling stand in every row."""
        import pandas as pd

        rows = [
            {
                "task": self.task.name,
                "chance": self.chance,
                "ceiling": self.ceiling,
                "equation": step["equation"],
                "coefficient": name,
                **found,
            }
            for step in self.coefficients()
            for name, found in step["coefficients"].items()
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True, repr=False)
class Links(Result):
    """Links of a fixed task set, fitted on the same models, and the mean over exactly that set.

    ``covariance`` (p, p) and ``noise`` (k, k) are joint over all links, in order: tasks of one
    model share its luck, so the mean is less certain than independent tasks would make it.
    ``hold_out`` keeps measured against predicted accuracies of models that were not fitted,
    ``other`` the set with ceilings held at 1 (:class:`Link`).
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
        """What the links were fitted on; the same for all of them."""
        return self.links[0].measured

    def __getitem__(self, task: str) -> Link:
        """The link of one task."""
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
        """Accuracy of every task and their mean; parameters as for :meth:`Link.predict`."""
        ends: dict[str, Any] = {"loss_low": loss_low, "loss_high": loss_high, "draws": draws}
        tasks = tuple(
            link.predict(loss, validation=validation, tokenizer=tokenizer, **ends)
            for link in self.links
        )
        mean = Task(name=MEAN, chance=self.chance)
        reason = self.measured.refusal(validation, tokenizer)
        if reason is not None:
            answer = Accuracy(task=MEAN, chance=self.chance, status=reason, loss=loss)
        else:
            answer = _answer(mean, self, loss, loss_nodes(loss, **ends))
        return Accuracies(tasks=tasks, mean=answer)

    def view(self) -> View:
        """Return the fixed set of tasks, the coefficients, and every link in lines."""
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
    """Links whose intervals span another set of the same tasks beyond the fitted losses."""
    if other is None:
        return links
    if other.tasks != links.tasks:
        raise ValueError(f"{', '.join(other.tasks)} are not its tasks")
    both = zip(links.links, other.links, strict=True)
    return replace(links, other=other, links=tuple(replace(one, other=two) for one, two in both))


def _answer(task: Task, links: Links, loss: float, nodes: np.ndarray) -> Accuracy:
    """The unweighted mean of links at one loss; of one link, itself."""
    here = np.array([loss])
    value = float(_mean(links, here)[0][0])
    low, high, mean_low, mean_high, standard_error = _spread(links, nodes)
    words = _status(links, loss)
    if links.other is not None and not links.measured.holds(loss):
        beside = _spread(links.other, nodes)
        low, high = min(low, beside[0]), max(high, beside[1])
        words += f"; {100 * float(_mean(links.other, here)[0][0]):.1f} % with ceiling 1"
    sampling = [link.task.sampling_error(float(link.curve(here)[0][0])) for link in links.links]
    known = [error for error in sampling if error is not None]
    everywhere = len(known) == len(sampling)
    return Accuracy(
        task=task.name,
        chance=task.chance,
        status=words,
        loss=float(loss),
        value=value,
        low=low,
        high=high,
        mean_low=mean_low,
        mean_high=mean_high,
        standard_error=standard_error,
        sampling_error=float(np.linalg.norm(known) / len(known)) if everywhere else None,
    )


def _mean(links: Links, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean accuracy at losses (n,), its standard error, and the standard error of a new model."""
    parts = [link.curve(losses) for link in links.links]
    value = np.mean([np.clip(part[0], 0, 1) for part in parts], axis=0)
    by_parameters = np.hstack([part[1] for part in parts]) / len(parts)
    by_noise = np.hstack([part[2] for part in parts]) / len(parts)
    curve = np.einsum("np,pq,nq->n", by_parameters, links.covariance, by_parameters)
    around = np.einsum("np,pq,nq->n", by_noise, links.noise, by_noise)
    return value, np.sqrt(np.maximum(curve, 0)), np.sqrt(np.maximum(curve + around, 0))


def _spread(links: Links, nodes: np.ndarray) -> tuple[float, float, float, float, float]:
    """Interval of a new model, interval of the link, standard error; a mixture over the losses."""
    value, curve, new = _mean(links, nodes)
    degrees = min(link.degrees for link in links.links)
    alone = len(nodes) == 1  # then the two ends are all that is needed of Student's t
    noise = student.ppf(np.array(ENDS) / 100 if alone else QUANTILES, degrees)
    low, high, mean_low, mean_high = (
        float(np.clip(end, 0, 1))
        for spread in (new, curve)
        for end in np.percentile(
            value[:, None] + np.outer(spread, noise), (0, 100) if alone else ENDS
        )
    )
    return low, high, mean_low, mean_high, float(np.sqrt(np.mean(new**2) + np.var(value)))


def _status(links: Links, loss: float) -> str:
    """Where the prediction stands: inside the data, beyond them, at chance, beyond 1."""
    words = links.measured.distance(loss)
    if any(link.curve(np.array([loss]))[0][0] > 1 for link in links.links):
        words += "; a curve passes 1 here, cut"
    at_chance = [link.task.name for link in links.links if is_at_chance(link, loss)]
    if at_chance and len(links.links) == 1:
        return f"at chance: within noise of {links.chance:.4g}; {words}"
    if at_chance:
        words += f"; at chance: {', '.join(at_chance)}"
    return words


def is_at_chance(link: Link, loss: float) -> bool:
    """Whether the predicted accuracy is within two standard errors of guessing."""
    noise = max(link.deviation, link.task.sampling_error(link.chance) or 0.0)
    value = float(link.curve(np.array([loss]))[0][0])
    return value - link.chance < WITHIN_NOISE * noise
