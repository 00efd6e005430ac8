"""Mixture of experts: a router, routed experts, and experts that every token passes."""

from dataclasses import dataclass
from typing import Any, Literal

from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock


@dataclass(frozen=True, kw_only=True)
class Router:
    """Choice of the experts of a token.

    Parameters
    ----------
    score
        ``"softmax"`` over all experts, ``"softmax_of_chosen"``, or ``"sigmoid"``, in float32.
    normalised
        The weights of the chosen experts are divided by their sum.
    scale
        Factor of the weights.
    groups, chosen_groups
        Experts lie in groups of one size; only those of the groups with the largest sums of two
        scores can be chosen.
    balance_bias
        A buffer of one number per expert is added to the scores for the choice only; the trainer
        moves it to balance the load (arXiv 2408.15664). It is no parameter.
    weighs_input
        The weight multiplies the input of the expert instead of its output (Llama 4).
    """

    score: Literal["softmax", "softmax_of_chosen", "sigmoid"] = "softmax"
    normalised: bool = True
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    balance_bias: bool = False
    weighs_input: bool = False


SOFTMAX = Router()


@dataclass(frozen=True, kw_only=True)
class ExpertsBlock:
    """E routed experts of which each token passes ``active``, and an optional shared expert.

    ``router_bias`` counts a bias of the router as a parameter; a buffer that only balances the
    load, as DeepSeek-V3's, is none. ``clamp`` is (c, a): gate and up projections are cut at c, and
    the expert computes (up + 1)·gate·sigmoid(a·gate) (gpt-oss).
    """

    expert: FeedForwardBlock
    experts: Any
    active: Any
    shared: FeedForwardBlock | None = None
    router: Router = SOFTMAX
    router_bias: bool = False
    clamp: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """Sizes in names: chosen and all experts, their width, and that of the shared expert."""
        shared = f"-s{self.shared.intermediate_size}" if self.shared else ""
        return f"e{self.active}of{self.experts}-{self.expert.label}{shared}"

    @property
    def _router_parameters(self) -> Any:
        return self.expert.hidden_size * self.experts

    @property
    def active_width(self) -> Any:
        """Width that one token passes: f of the chosen and of the shared experts."""
        shared = self.shared.intermediate_size if self.shared else 0
        return self.active * self.expert.intermediate_size + shared

    @property
    def path_parameters(self) -> Any:
        """Parameters of the matrices of the chosen and shared experts, without the router."""
        shared = self.shared.matmul_parameters if self.shared else 0
        return self.active * self.expert.matmul_parameters + shared

    @property
    def active_matmul_parameters(self) -> Any:
        """Parameters of the matrices that one token uses: router, chosen and shared experts."""
        return self._router_parameters + self.path_parameters

    def chosen_experts(self, tokens: Any) -> Any:
        """Mean number of different experts that tokens choose together: E·(1 - (1 - k/E)^tokens).

        Each token chooses k of E at random, as with a balanced router and unrelated tokens.
        """
        return self.experts * (1 - (1 - self.active / self.experts) ** tokens)

    def idle_parameters(self, tokens: Any) -> Any:
        """Parameters that a step over so many tokens does not read: experts that none chooses."""
        return (self.experts - self.chosen_experts(tokens)) * self.expert.parameters

    @property
    def parameters(self) -> Any:
        """All parameters, of all experts."""
        return self._with_experts(self.experts)

    @property
    def active_parameters(self) -> Any:
        """Parameters that one token uses: router, chosen and shared experts."""
        return self._with_experts(self.active)

    def _with_experts(self, number: Any) -> Any:
        shared = self.shared.parameters if self.shared else 0
        router = self._router_parameters + self.experts * self.router_bias
        return router + number * self.expert.parameters + shared
