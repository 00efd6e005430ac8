"""Mixture of experts: a router, routed experts, and experts that every token passes."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock


@dataclass(frozen=True, kw_only=True)
class ExpertsBlock:
    """E routed experts of which each token passes ``active``, and an optional shared expert.

    ``router_bias`` counts a bias of the router as a parameter; a buffer that only balances the
    load, as DeepSeek-V3's, is none.
    """

    expert: FeedForwardBlock
    experts: Any
    active: Any
    shared: FeedForwardBlock | None = None
    router_bias: bool = False

    @property
    def _router(self) -> Any:
        return self.expert.hidden_size * self.experts

    @property
    def active_matmul_parameters(self) -> Any:
        """Parameters of the matrices that one token uses: router, chosen and shared experts."""
        shared = self.shared.matmul_parameters if self.shared else 0
        return self._router + self.active * self.expert.matmul_parameters + shared

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
        router = self._router + self.experts * self.router_bias
        return router + number * self.expert.parameters + shared
