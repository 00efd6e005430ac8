"""The stopping rule of the autopilot: certainty, budget and patience."""

from collections.abc import Sequence
from dataclasses import dataclass

from shapelaw.scaling.errors import InputError


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """A rule that says after every decision why the autopilot should stop, if it should.

    Attributes
    ----------
    certainty
        Stop once the proposed shape is the best one, within the indifference, with this
        probability.
    indifference
        Relative difference of two losses up to which a shape counts as the best: 0.005 is 0.5 %.
    budget_hours
        Core-hours of training after which no run is started.
    patience
        Decisions in a row without a higher certainty after which the autopilot gives up.

    Raises
    ------
    InputError
        A value is out of range.
    """

    certainty: float = 0.9
    indifference: float = 0.005
    budget_hours: float
    patience: int = 8

    def __post_init__(self) -> None:
        for name in ("certainty", "indifference"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"`0 < --{name} < 1` must hold, but got {getattr(self, name):g}")
        if not 0 < self.budget_hours < float("inf"):
            raise InputError(
                f"`--budget-hours > 0` must hold, but got {self.budget_hours:g}; "
                "--plan-only prints the price of a plan"
            )
        if self.patience < 1:
            raise InputError(f"`--patience >= 1` must hold, but got {self.patience}")

    def reason(self, certainties: Sequence[float], hours: float) -> str:
        """Return the reason to stop as a sentence, empty to continue.

        Parameters
        ----------
        certainties
            Certainty of every decision so far, oldest first.
        hours
            Core-hours of training so far.
        """
        if certainties[-1] >= self.certainty:
            return f"the certainty {certainties[-1]:.3f} reaches {self.certainty:g}"
        if hours >= self.budget_hours:
            return f"the budget of {self.budget_hours:g} core-hours is spent"
        recent = certainties[-self.patience :]
        if len(certainties) > self.patience and max(recent) <= max(certainties[: -self.patience]):
            return f"the certainty has not risen in {self.patience} decisions"
        return ""
