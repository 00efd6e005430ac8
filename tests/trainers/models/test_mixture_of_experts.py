"""Grouped products, balance of the load, initial values and Muon on stacks of experts."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock, Router
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.mixture_of_experts import (
    MixtureOfExperts,
    TokenRouter,
    multiply_by_group,
)
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.optimizers.updates import muon_update
from shapelaw.trainers.training import checkpoint

EXPERT = FeedForwardBlock(hidden_size=16, intermediate_size=12)
BLOCK = ExpertsBlock(
    expert=EXPERT, experts=6, active=2, router=Router(score="sigmoid", balance_bias=True)
)
SMALL_MOE = {
    "model_type": "deepseek_v3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}


def small_model(seed: int = 0) -> Transformer:
    model = Transformer(read_architecture(SMALL_MOE), context_length=32)
    model.initialise(seed)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 8), (7, 13), (16, 13)])
def test_grouped_product_equals_a_product_per_row_with_empty_groups(dtype, outputs, inputs):
    groups = torch.tensor([0, 0, 2, 2, 2, 4])
    rows = torch.randn(6, inputs, dtype=dtype)
    matrices = torch.randn(5, outputs, inputs, dtype=dtype)
    ends = torch.bincount(groups, minlength=5).cumsum(0).int()
    expected = torch.stack(
        [matrices[g].double() @ row.double() for g, row in zip(groups, rows, strict=True)]
    )
    close = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    product = multiply_by_group(rows, matrices, ends)
    assert product.dtype == dtype
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=close)


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 8), (7, 13)])
def test_gradients_of_a_grouped_product_equal_those_of_products_per_row(outputs, inputs):
    groups = torch.tensor([0, 0, 2, 2, 2, 4])
    rows = torch.randn(6, inputs, requires_grad=True)
    matrices = torch.randn(5, outputs, inputs, requires_grad=True)
    weights = torch.randn(6, outputs)
    ends = torch.bincount(groups, minlength=5).cumsum(0).int()
    grouped = multiply_by_group(rows, matrices, ends)
    single = torch.einsum("moi,mi->mo", matrices[groups], rows)
    results = [
        torch.autograd.grad((product * weights).sum(), (rows, matrices))
        for product in (grouped, single)
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighs_input", [False, True])
def test_every_token_passes_all_its_experts(weighs_input):
    router = replace(BLOCK.router, weighs_input=weighs_input)
    block = MixtureOfExperts(replace(BLOCK, router=router, shared=EXPERT))
    x = torch.randn(2, 9, 16)
    chosen, weights = block.router(x.flatten(0, 1))
    results = []
    for token, experts, shares in zip(x.flatten(0, 1), chosen, weights, strict=True):
        mixed = block.shared_expert(token)
        for expert, share in zip(experts, shares, strict=True):
            given = token * share if weighs_input else token
            gate, up = (block.experts.gate_up_proj[expert] @ given).chunk(2)
            result = block.experts.down_proj[expert] @ (F.silu(gate) * up)
            mixed = mixed + (result if weighs_input else result * share)
        results.append(mixed)
    torch.testing.assert_close(block(x).flatten(0, 1), torch.stack(results), rtol=0, atol=1e-6)
    passes, tokens = 2, 18  # routed once above and once in the block
    assert int(block.router.load.sum()) == passes * tokens * 2
    assert chosen.shape == (tokens, 2)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weighs_input", [False, True])
@pytest.mark.parametrize(("tokens", "in_one_go"), [(2, False), (3, True), (42, True), (43, False)])
def test_few_tokens_on_every_expert_equal_tokens_sorted_by_expert(
    tokens, in_one_go, weighs_input, bias
):
    """6 experts of which 2 are active: 3 tokens choose 6 at most, and 42 make 252 rows of all."""
    router = replace(BLOCK.router, weighs_input=weighs_input)
    experts = MixtureOfExperts(
        replace(BLOCK, router=router, expert=replace(EXPERT, bias=bias))
    ).experts
    for weight in experts.parameters():
        weight.normal_(0.0, 0.5)
    x, chosen = torch.randn(tokens, 16), torch.stack([torch.randperm(6)[:2] for _ in range(tokens)])
    weights = torch.rand(tokens, 2) + 0.1
    assert experts._for_all(tokens, 2) == in_one_go
    with torch.enable_grad():
        assert not experts._for_all(tokens, 2)
        expected = experts(x, chosen, weights)
    torch.testing.assert_close(experts(x, chosen, weights), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        experts._every_expert(x, chosen, weights), expected, rtol=1e-5, atol=1e-5
    )


def test_mixture_under_autocast_keeps_the_router_in_float32():
    block = MixtureOfExperts(BLOCK)
    x = torch.randn(4, 8, 16)
    exact = block.router(x.flatten(0, 1))[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.router(x.flatten(0, 1))[1], exact)
        assert block(x).dtype == torch.bfloat16


def test_balance_moves_the_bias_against_the_load_and_clears_it():
    router = TokenRouter(BLOCK)
    router.load.copy_(torch.tensor([4, 0, 2, 2, 3, 1]))
    assert router.balance(0.1) == pytest.approx(4 / 2 - 1)
    torch.testing.assert_close(router.balance_bias, torch.tensor([-0.1, 0.1, 0, 0, -0.1, 0.1]))
    assert not router.load.any()


def test_balance_updates_even_out_a_router_that_prefers_some_experts():
    torch.manual_seed(0)
    router = TokenRouter(BLOCK)
    with torch.no_grad():
        router.weight.mul_(20)
        router.weight[0] = 1.0
    tokens = torch.randn(512, 16) + 0.5  # of positive sum, which the first expert wants
    imbalances = []
    for _ in range(200):
        router(tokens)
        imbalances.append(router.balance(0.01))
    assert imbalances[0] > 0.4
    assert max(imbalances[-20:]) < 0.2 * imbalances[0]


def test_passes_without_gradients_do_not_count_as_load():
    router = TokenRouter(BLOCK)
    with torch.no_grad():
        router(torch.randn(5, 16))
    assert not router.load.any()


def test_experts_without_a_gate_are_refused():
    with pytest.raises(InputError, match="`gated` of experts must be true"):
        MixtureOfExperts(replace(BLOCK, expert=replace(EXPERT, gated=False)))


def test_initial_stacks_have_the_scale_of_single_matrices():
    model = small_model()
    experts = model.layers[1].mlp.experts
    assert experts.gate_up_proj.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert experts.down_proj.std().item() == pytest.approx(16**-0.5 / 6**0.5, rel=0.05)
    assert len(experts.down_proj.detach().mean(dim=(1, 2)).unique()) == 8


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_optimiser_updates_every_weight_and_decays_no_biases(optimizer):
    model = small_model()
    rules = Optimizer(model, Recipe(optimizer=optimizer), 10)
    updated = [id(weight) for part in rules.parts for weight in part.param_groups[0]["params"]]
    assert sorted(updated) == sorted(id(weight) for weight in model.parameters())
    biased = ExpertsBlock(expert=replace(EXPERT, bias=True), experts=4, active=1, router_bias=True)
    names = dict(MixtureOfExperts(biased).named_parameters())
    gpt_oss = Transformer(
        read_architecture(
            {
                **{k: SMALL_MOE[k] for k in ("vocab_size", "hidden_size", "intermediate_size")},
                "model_type": "gpt_oss",
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "num_local_experts": 4,
            }
        ),
        context_length=8,
    )
    decayed = {
        id(weight)
        for part in Optimizer(gpt_oss, Recipe(optimizer=optimizer), 10).parts
        if part.param_groups[0]["weight_decay"]
        for weight in part.param_groups[0]["params"]
    }
    biases = {n: w for n, w in gpt_oss.named_parameters() if n.endswith("bias")}
    assert {n.removeprefix("layers.0.mlp.") for n in biases} >= {n for n in names if "bias" in n}
    assert not decayed & {id(weight) for weight in biases.values()}


def test_muon_updates_each_matrix_of_a_stack_by_itself():
    stack, direction = torch.randn(3, 8, 4), torch.randn(3, 8, 4)
    direction[1] *= 1000  # would drown the others if they shared a norm
    single = [matrix.clone() for matrix in stack]
    settings = {"rate": 0.1, "weight_decay": 0.1, "scale": lambda rows, columns: rows / columns}
    muon_update([stack], [direction], [(4, 4)], **settings)
    muon_update(single, list(direction), [(4, 4)] * 3, **settings)
    torch.testing.assert_close(stack, torch.stack(single), rtol=0, atol=1e-6)


def test_checkpoint_keeps_the_balance_bias(tmp_path):
    model, recipe = small_model(), Recipe()
    optimizer = Optimizer(model, recipe, 10)
    model(torch.randint(64, (2, 32)))
    (imbalance,) = model.balance_experts().values()
    assert imbalance > 0
    progress = checkpoint.Progress(step=1, seconds=0.0, identity="a")
    checkpoint.save(tmp_path / "c.safetensors", model, optimizer, progress)
    other = small_model(seed=1)
    checkpoint.resume(tmp_path / "c.safetensors", other, Optimizer(other, recipe, 10), "a")
    router = model.layers[1].mlp.router
    assert router.balance_bias.any()
    assert torch.equal(other.layers[1].mlp.router.balance_bias, router.balance_bias)
    other.initialise(0)
    assert not other.layers[1].mlp.router.balance_bias.any()


def test_model_without_experts_has_no_balance_to_log():
    dense = read_architecture({**SMALL_MOE, "first_k_dense_replace": 3})
    assert Transformer(dense, context_length=8).balance_experts() == {}
