"""Mixture of experts: y = Σ of g_e·MLP_e(x) over chosen experts e, + MLP_shared(x) if it has one.

    s = score(W x + b) in float32;  chosen = the k largest of s + balance bias, within the groups
    whose two largest sum highest;  g = s of the chosen, normalised and scaled as the router says.

No token is dropped: tokens are sorted by expert, and each expert multiplies its own (grouped
products). The balance bias follows the load of the experts (DeepSeek-V3, arXiv 2408.15664). A loss
of imbalance may be added in training: over groups G of n tokens, the whole batch (Switch, arXiv
2101.03961) or each sequence (DeepSeek-V3, arXiv 2412.19437, equations 17 to 20),

    L = α/G Σ_G Σ_e f_e P_e,  f_e = E/(k n)·(tokens that chose e),  P_e = mean of s_e / Σ_e s_e.

Shape letters: N tokens, d hidden size, f width of an expert, E experts, k experts of a token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.added_loss import AddedLoss
from shapelaw.trainers.models.feed_forward import FeedForward, activation_of

ALIGNMENT = 16  # bytes; grouped products want rows of multiples of it
MIN_SUM = 1e-20  # added to a sum of weights
MAX_ROWS_OF_ALL = 256  # of experts times tokens, up to which each expert may take every token


class MixtureOfExperts(nn.Module):
    """Router, routed experts and optional shared expert, d -> d."""

    def __init__(self, block: ExpertsBlock) -> None:
        super().__init__()
        self.router = TokenRouter(block)
        self.experts = ExpertStack(block)
        self.shared_expert = FeedForward(block.shared) if block.shared else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, d)."""
        tokens = x.flatten(0, 1)
        chosen, weights = self.router(tokens, sequences=len(x))
        mixed = self.experts(tokens, chosen, weights).view(x.shape)
        return mixed if self.shared_expert is None else mixed + self.shared_expert(x)


class TokenRouter(nn.Module):
    """Choice of experts for each token.

    Attributes
    ----------
    load : torch.Tensor
        Tokens of each expert in forward passes with gradients since the last :meth:`balance`, (E,).
    balance_loss : float
        Coefficient α of the loss of imbalance; 0 adds none.
    per_sequence : bool
        Whether the groups of this loss are the sequences; else the batch is the only one.
    """

    load: Tensor
    balance_bias: Tensor

    def __init__(self, block: ExpertsBlock) -> None:
        super().__init__()
        self.rule, self.active = block.router, block.active
        self.balance_loss, self.per_sequence = 0.0, False
        self.weight = nn.Parameter(torch.empty(block.experts, block.expert.hidden_size))
        nn.init.normal_(self.weight, 0.0, 0.02)
        self.bias = nn.Parameter(torch.zeros(block.experts)) if block.router_bias else None
        if self.rule.balance_bias:
            self.register_buffer("balance_bias", torch.zeros(block.experts))
        load = torch.zeros(block.experts, dtype=torch.long)
        self.register_buffer("load", load, persistent=False)

    def forward(self, tokens: Tensor, *, sequences: int = 1) -> tuple[Tensor, Tensor]:
        """Choose experts for (N, d) -> their numbers and float32 weights, (N, k) each.

        The tokens are those of so many ``sequences`` of one length.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            logits = F.linear(tokens.float(), self.weight.float(), bias)
            scores = logits
            if self.rule.score != "softmax_of_chosen":
                scores = logits.sigmoid() if self.rule.score == "sigmoid" else logits.softmax(-1)
            chosen = self._choose(scores)
            weights = scores.gather(1, chosen)
            if self.rule.score == "softmax_of_chosen":
                weights = weights.softmax(-1)
            if self.rule.normalised:
                weights = weights / (weights.sum(-1, keepdim=True) + MIN_SUM)
            weights = weights * self.rule.scale
            if self.balance_loss and torch.is_grad_enabled():
                groups = sequences if self.per_sequence else 1
                loss = self.balance_loss * self._imbalance(logits, chosen, groups)
                weights = AddedLoss.apply(weights, loss)
        if torch.is_grad_enabled():
            self.load += tokens_per_expert(chosen, len(self.load))
        return chosen, weights

    def _imbalance(self, logits: Tensor, chosen: Tensor, groups: int) -> Tensor:
        """Compute Σ_e f_e P_e of logits (N, E), the mean over groups: 1 for equal loads."""
        shares = logits.softmax(-1)
        if self.rule.score == "sigmoid":
            shares = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
        used = torch.zeros_like(shares).scatter(1, chosen, shares.shape[1] / self.active)
        used, shares = (part.unflatten(0, (groups, -1)).mean(1) for part in (used, shares))
        return (used * shares).sum(1).mean()

    def _choose(self, scores: Tensor) -> Tensor:
        """Return the experts with the largest scores, (N, E) -> (N, k)."""
        if self.rule.balance_bias:
            scores = scores + self.balance_bias
        if self.rule.groups > 1:
            grouped = scores.unflatten(1, (self.rule.groups, -1))
            best_two = grouped.topk(min(2, grouped.shape[2]), dim=2).values.sum(2)
            groups = best_two.topk(self.rule.chosen_groups, dim=1).indices
            hidden = torch.ones_like(best_two, dtype=torch.bool).scatter(1, groups, False)
            scores = grouped.masked_fill(hidden[:, :, None], -torch.inf).flatten(1)
        return scores.topk(self.active, dim=1).indices

    @torch.no_grad()
    def balance(self, rate: float) -> float:
        """Move the balance bias by ``rate`` towards experts below the mean load; clear the load.

        Returns
        -------
        float
            Largest load over the mean load, minus 1: 0 if all experts had as many tokens.
        """
        load = self.load.double()
        if self.rule.balance_bias:
            self.balance_bias += rate * (load.mean() - load).sign()
        self.load.zero_()
        return float(load.max() / load.mean().clamp(min=1e-12)) - 1.0


def set_balance_loss(model: nn.Module, coefficient: float, *, per_sequence: bool) -> None:
    """Let every router of a model add a loss of imbalance, over the batch or each sequence."""
    for module in model.modules():
        if isinstance(module, TokenRouter):
            module.balance_loss, module.per_sequence = coefficient, per_sequence


class ExpertStack(nn.Module):
    """E gated MLPs of one size, (N, d) -> (N, d), each matrix of which is a slice of a stack."""

    def __init__(self, block: ExpertsBlock) -> None:
        super().__init__()
        expert, number = block.expert, block.experts
        d, f = expert.hidden_size, expert.intermediate_size
        if not expert.gated:
            raise InputError("`gated` of experts must be true to be computed; use gated experts")
        self.weighs_input, self.clamp = block.router.weighs_input, block.clamp
        self.activation = activation_of(expert.activation)
        self.parts = {"gate_up_proj": (f, f)}
        self.gate_up_proj = nn.Parameter(torch.empty(number, 2 * f, d))
        self.down_proj = nn.Parameter(torch.empty(number, d, f))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, 0.0, 0.02)
        biases = (torch.zeros(number, 2 * f), torch.zeros(number, d))
        up, down = (nn.Parameter(bias) if expert.bias else None for bias in biases)
        self.gate_up_proj_bias, self.down_proj_bias = up, down

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Apply the experts of each token, (N, k), and sum their weighted results."""
        device = tokens.device.type
        if torch.is_autocast_enabled(device):
            tokens = tokens.to(torch.get_autocast_dtype(device))
        active = chosen.shape[1]
        if self._for_all(len(tokens), active):
            return self._every_expert(tokens, chosen, weights)
        experts, order = chosen.flatten().sort(stable=True)
        ends = tokens_per_expert(chosen, len(self.down_proj)).cumsum(0).int()
        shares = weights.flatten()[order, None].to(tokens.dtype)
        rows = tokens.index_select(0, order // active)
        if self.weighs_input:
            rows = rows * shares
        rows = multiply_by_group(rows, self.gate_up_proj, ends)
        if self.gate_up_proj_bias is not None:
            rows = rows + self.gate_up_proj_bias[experts].to(rows.dtype)
        rows = multiply_by_group(self._gated(rows), self.down_proj, ends)
        if self.down_proj_bias is not None:
            rows = rows + self.down_proj_bias[experts].to(rows.dtype)
        if not self.weighs_input:
            rows = rows * shares
        return rows.index_select(0, order.argsort()).unflatten(0, (-1, active)).sum(1)

    def _for_all(self, tokens: int, active: int) -> bool:
        """Return True if few tokens choose so many experts that every expert takes each of them.

        Batched products then need no sorting: a step of decoding takes 0.45 to 0.85 of the time.
        """
        experts = len(self.down_proj)
        few = experts <= tokens * active and experts * tokens <= MAX_ROWS_OF_ALL
        return few and not torch.is_grad_enabled()

    def _every_expert(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Apply every expert to every token, (N, d), and sum what the tokens chose."""
        shares = tokens.new_zeros(len(tokens), len(self.down_proj))
        shares = shares.scatter(1, chosen, weights.to(tokens.dtype)).T[:, :, None]
        rows = tokens.expand(len(shares), -1, -1)
        if self.weighs_input:
            rows = rows * shares
        rows = torch.bmm(rows, self.gate_up_proj.to(rows.dtype).transpose(1, 2))
        if self.gate_up_proj_bias is not None:
            rows = rows + self.gate_up_proj_bias[:, None].to(rows.dtype)
        rows = torch.bmm(self._gated(rows), self.down_proj.to(rows.dtype).transpose(1, 2))
        if self.down_proj_bias is not None:
            rows = rows + self.down_proj_bias[:, None].to(rows.dtype)
        return (rows * ((shares != 0) if self.weighs_input else shares)).sum(0)

    def _gated(self, rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, dim=-1)
        if self.clamp is None:
            return self.activation(gate) * up
        limit, slope = self.clamp
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * gate * torch.sigmoid(slope * gate)


def tokens_per_expert(chosen: Tensor, experts: int) -> Tensor:
    """Count how often each expert was chosen, (N, k) -> (E,)."""
    flat = chosen.flatten()
    return flat.new_zeros(experts).index_add(0, flat, torch.ones_like(flat))


def multiply_by_group(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Multiply sorted rows by the matrices of their groups.

    The grouped product of PyTorch gives the bits of a loop over groups in 0.4 to 0.9 of its time on
    a CPU (64 to 256 features, forward and backward). The loop serves sizes that it refuses. Both
    are one operation for the compiler, since they need the sizes of the groups.

    Parameters
    ----------
    rows
        Rows, those of one group beside each other, (M, in).
    matrices
        One matrix for each group, (E, out, in).
    ends
        Row after the last one of each group, (E,) in int32.

    Returns
    -------
    torch.Tensor
        Products, (M, out).
    """
    product: Tensor = _products(rows, matrices.to(rows.dtype), ends)
    return product


@library.custom_op("shapelaw::products", mutates_args=())
def _products(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Compute rows·matrixᵀ of each group, (M, in), (E, out, in) -> (M, out)."""
    if _grouped(rows, matrices.shape[1:]):
        return F.grouped_mm(rows, matrices.transpose(1, 2), offs=ends)
    groups = rows.tensor_split(ends[:-1].tolist())
    return torch.cat([F.linear(*pair) for pair in zip(groups, matrices, strict=True)])


@library.custom_op("shapelaw::outer_products", mutates_args=())
def _outer_products(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Compute leftᵀ·right of each group, (M, out), (M, in) -> (E, out, in)."""
    if _grouped(left, (left.shape[1], right.shape[1])):
        return F.grouped_mm(left.T, right, offs=ends)
    cuts = ends[:-1].tolist()
    pairs = zip(left.tensor_split(cuts), right.tensor_split(cuts), strict=True)
    return torch.stack([group.T @ other for group, other in pairs])


def _grouped(rows: Tensor, sizes: Sequence[int]) -> bool:
    """Return True where PyTorch has a grouped product: on a GPU for bfloat16 only."""
    aligned = all(size * rows.element_size() % ALIGNMENT == 0 for size in sizes)
    return aligned and (rows.device.type == "cpu" or rows.dtype == torch.bfloat16)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, matrices, ends = ctx.saved_tensors
    gradient = gradient.contiguous()
    to_rows = _products(gradient, matrices.transpose(1, 2), ends)
    return to_rows, _outer_products(gradient, rows, ends), None


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_products.register_fake(lambda rows, matrices, ends: rows.new_empty(len(rows), matrices.shape[1]))
_outer_products.register_fake(
    lambda left, right, ends: left.new_empty(len(ends), left.shape[1], right.shape[1])
)
_products.register_autograd(_gradients, setup_context=_keep_inputs)
