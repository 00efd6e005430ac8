"""The loss of imbalance between experts: values and gradients from loops and from transformers."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock, Router
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.mixture_of_experts import (
    MixtureOfExperts,
    TokenRouter,
    set_balance_loss,
)
from shapelaw.trainers.training.loop import build_model, train_run
from support.small_runs import RECIPE, Killed, killed_at, small_corpus, spec

WIDTH, EXPERTS, ACTIVE, SEQUENCES, POSITIONS = 6, 5, 2, 3, 7
MOE = {
    "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def block(score: str) -> ExpertsBlock:
    expert = FeedForwardBlock(hidden_size=WIDTH, intermediate_size=4)
    router = Router(score=score, balance_bias=score == "sigmoid")
    return ExpertsBlock(expert=expert, experts=EXPERTS, active=ACTIVE, router=router)


def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SEQUENCES, POSITIONS, WIDTH, generator=generator) + 0.3


def router_of(score: str, *, coefficient: float, per_sequence: bool) -> TokenRouter:
    router = TokenRouter(block(score))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        router.weight.normal_(0.0, 0.7, generator=generator)
    set_balance_loss(router, coefficient, per_sequence=per_sequence)
    return router


def loss_by_loops(weight: np.ndarray, x: np.ndarray, score: str, *, per_sequence: bool) -> float:
    """Compute Σ_e f_e P_e token by token: equations 17 to 20 of arXiv 2412.19437 without alpha."""
    groups = list(x) if per_sequence else [x.reshape(-1, WIDTH)]
    total = 0.0
    for tokens in groups:
        used, share = [0.0] * EXPERTS, [0.0] * EXPERTS
        for token in tokens:
            logits = [sum(w * value for w, value in zip(row, token, strict=True)) for row in weight]
            scores = [1 / (1 + math.exp(-z)) if score == "sigmoid" else math.exp(z) for z in logits]
            ranked = sorted(range(EXPERTS), key=lambda e: -logits[e])
            for e in ranked[:ACTIVE]:
                used[e] += EXPERTS / (ACTIVE * len(tokens))
            for e in range(EXPERTS):
                share[e] += scores[e] / sum(scores) / len(tokens)
        total += sum(f * p for f, p in zip(used, share, strict=True)) / len(groups)
    return total


@pytest.mark.parametrize("per_sequence", [False, True], ids=["batch", "sequence"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_of_chosen"])
def test_added_gradient_is_that_of_the_loss_of_imbalance(score: str, per_sequence: bool) -> None:
    router = router_of(score, coefficient=0.5, per_sequence=per_sequence)
    _, weights = router(inputs().flatten(0, 1), sequences=SEQUENCES)
    (0.0 * weights).sum().backward()
    weight, x = router.weight.detach().double().numpy(), inputs().double().numpy()
    numeric = np.zeros_like(weight)
    for place in np.ndindex(*weight.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = weight.copy()
            moved[place] += step
            ends.append(loss_by_loops(moved, x, score, per_sequence=per_sequence))
        numeric[place] = 0.5 * (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(router.weight.grad.numpy(), numeric, rtol=1e-4, atol=1e-6)
    assert abs(numeric).max() > 1e-3


def test_loss_over_the_batch_is_that_of_transformers_over_active_experts() -> None:
    """transformers sums over the k choices of a token; here a balanced load has a loss of 1."""
    modelling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    router = router_of("softmax", coefficient=1.0, per_sequence=False)
    tokens = inputs().flatten(0, 1)
    logits = (tokens @ router.weight.T).detach()
    theirs = modelling.load_balancing_loss_func((logits,), EXPERTS, ACTIVE)
    chosen, _ = router(tokens)
    ours = router._imbalance(logits, chosen, 1)
    assert float(ours) == pytest.approx(float(theirs) / ACTIVE, rel=1e-5)
    expected = loss_by_loops(
        router.weight.detach().double().numpy(), inputs().double().numpy(), "softmax",
        per_sequence=False,
    )  # fmt: skip
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_values_and_passes_without_gradients_are_unchanged() -> None:
    torch.manual_seed(0)
    mixture, x = MixtureOfExperts(block("softmax")), inputs()
    plain = mixture(x)
    with torch.no_grad():
        without_gradients = mixture(x)
    set_balance_loss(mixture, 10.0, per_sequence=True)
    assert torch.equal(mixture(x), plain)
    with torch.no_grad():
        assert torch.equal(mixture(x), without_gradients)


def test_training_on_the_loss_evens_out_a_router_that_prefers_an_expert() -> None:
    router = router_of("softmax", coefficient=1.0, per_sequence=False)
    tokens = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(3)) + 0.5
    with torch.no_grad():
        router.weight[0] = 1.0
    rule = torch.optim.SGD([router.weight], lr=0.5)
    imbalances = []
    for _ in range(100):
        rule.zero_grad()
        _, weights = router(tokens)
        (0.0 * weights).sum().backward()
        rule.step()
        imbalances.append(router.balance(0.0))
    assert imbalances[0] > 0.5
    assert imbalances[-1] < 0.3 * imbalances[0]


@pytest.mark.parametrize("over", ["batch", "sequence"])
def test_run_with_the_loss_resumes_with_the_same_bits(over: str, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "text")
    shape = read_architecture({**MOE, "vocab_size": corpus.vocab_size})
    run = spec(shape=shape, recipe=replace(RECIPE, balance_loss=0.1, balance_over=over))
    wanted = train_run(run, corpus, tmp_path / "whole")[-1]
    with pytest.raises(Killed):
        train_run(run, corpus, tmp_path / "killed", watch=killed_at(5), checkpoint_seconds=0)
    got = train_run(run, corpus, tmp_path / "killed", checkpoint_seconds=0)[-1]
    free = train_run(spec(shape=shape), corpus, tmp_path / "free")[-1]
    assert got["loss"] == wanted["loss"] != free["loss"]


def test_recipe_sets_the_loss_of_every_router() -> None:
    shape = read_architecture({**MOE, "vocab_size": 64})
    model = build_model(spec(shape=shape, recipe=replace(RECIPE, balance_loss=0.1)))
    routers = [module for module in model.modules() if isinstance(module, TokenRouter)]
    assert [(each.balance_loss, each.per_sequence) for each in routers] == [(0.1, False)] * 2


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"balance_loss": -0.1}, "`0 <= balance_loss <="),
        ({"balance_over": "token"}, "`balance_over` must be one of batch, sequence"),
    ],
)
def test_settings_of_the_loss_are_checked(setting: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        replace(RECIPE, **setting)
