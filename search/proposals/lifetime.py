"""The optimum of training and serving that gave a budget, and its costs and notes."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.fitting.compute_optimal import Range
from shapelaw.scaling.fitting.lifetime import LifetimeOptimum, life_flops
from shapelaw.scaling.units import format_count

MAX_UNREACHED = 0.025  # share of draws without which an interval is unknown


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """The N and D of the least cost of training and serving at a target loss.

    Attributes
    ----------
    best
        N and D of the least total cost.
    trained
        N and D of the least training compute for the same loss; None if no token is served.
    """

    best: LifetimeOptimum
    trained: LifetimeOptimum | None

    def flops(self, shapes: Costs, tokens: Any, training_context: int, context: float) -> Any:
        """Count the FLOPs of training and serving each shape; (n,) for a table of n shapes.

        Parameters
        ----------
        shapes
            One shape or a table.
        tokens
            Training tokens of each.
        training_context
            Length of the training sequences, in tokens.
        context
            Mean number of tokens that a served token attends to.
        """
        served = self.best.served_tokens * shapes.forward_flops(context)
        return shapes.training_flops(training_context) * tokens + served

    def document(self) -> dict[str, Any]:
        """Return the fields that ``proposals.json`` has."""
        return {**self.best.as_json(), "without_serving": self.trained and self.trained.as_json()}

    def notes(self, size: float, tokens: int) -> list[str]:
        """Describe the baseline and the optimum, and the model of least training compute.

        Parameters
        ----------
        size, tokens
            Parameters of the baseline, as the law counts them, and its training tokens.
        """
        best, trained = self.best, self.trained
        served = f" and serving {format_count(best.served_tokens)} tokens" if trained else ""
        costs = "6ND + 2N for each served token, arXiv 2401.00448" if trained else "6ND"
        total = life_flops(size, tokens, best.served_tokens)
        optimum = (
            f"the law's optimum in the baseline's proportions is N {_with_ends(best.n)} and D "
            f"{_with_ends(best.tokens)}, {best.total_flops:.3g} FLOPs"
        )
        if best.unreached > MAX_UNREACHED:
            share = 100 * best.unreached
            optimum += f" (no interval: {share:.0f} % of the draws of the law do not reach it)"
        if trained is not None:
            least, usual = trained.n["value"] or 0.0, trained.tokens["value"] or 0.0
            factor = life_flops(least, usual, best.served_tokens) / best.total_flops
            optimum += (
                f"; that of training alone has N {format_count(least)} and D {format_count(usual)} "
                f"and costs {factor:.3g} times as much when it serves"
            )
        return [
            f"a loss of {best.loss:g} at the least cost of training{served} ({costs}): the "
            f"baseline reaches it with N {format_count(size)} and D {format_count(tokens)}, "
            f"{total:.3g} FLOPs",
            optimum,
        ]


def _with_ends(ends: Range) -> str:
    """Format a count with its interval."""
    value, low, high = (ends[name] for name in ("value", "low", "high"))
    if low is None or high is None:
        return format_count(value or 0.0)
    return f"{format_count(value or 0.0)} [{format_count(low)}, {format_count(high)}]"
