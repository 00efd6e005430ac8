"""Masked and block diffusion: invariants of the loss and of the bound, by enumeration and loops."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import CAUSAL, FULL, Visibility
from shapelaw.trainers.objectives.diffusion import Diffusion
from shapelaw.trainers.objectives.objective import Batch, LossModule
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.noise import VARIANTS, Noise, check_objective, parse_objective
from shapelaw.trainers.optimizers.recipe import Recipe
from support.loop_model import QWEN3

TOKENS, MASK = 11, 11  # real tokens, and the id of the mask
RECIPE = Recipe(context_length=8, sequences=2)
ALWAYS = Noise(draw="block", epsilon=0.0, low=1.0, high=1.0, normaliser="length")


def model(dtype: torch.dtype = torch.float64, **fields: object) -> Transformer:
    config = {**QWEN3, "vocab_size": TOKENS + 1, "mask_token_id": MASK, **fields}
    built = Transformer(read_architecture(config), context_length=32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in built.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4, generator=generator)
    return built.to(dtype).eval()


def text(sequences: int = 2, length: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TOKENS, (sequences, length + 1), generator=generator)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def named(name: str, **changes: Any) -> Diffusion:
    objective = objective_of(replace(RECIPE, objective=name))
    assert isinstance(objective, Diffusion)
    return replace(objective, noise=replace(objective.noise, **changes))


class ContextFree(torch.nn.Module):
    """Predictor that ignores its input: the logits of every token are the same."""

    mask_token = MASK

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.row = logits

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        return torch.zeros((*tokens.shape, 1))

    def logits(self, hidden: Tensor) -> Tensor:
        row = torch.cat((self.row, torch.tensor([-math.inf])))
        return row.expand(*hidden.shape[:-1], -1)


def losses_of(
    trained: Transformer, clean: Tensor, hidden: set[int], block: int
) -> dict[int, float]:
    """Compute the cross-entropy of masked tokens of one sequence (T,), block by block."""
    noisy = torch.tensor([MASK if i in hidden else int(t) for i, t in enumerate(clean)])
    found = {}
    for i in hidden:
        begin, end = i - i % block, i - i % block + block
        seen = torch.cat((clean[:begin], noisy[begin:end]))[None]
        logits = trained.logits(trained(seen, visibility=Visibility("block", block)))[0, i]
        p = torch.exp(logits[:TOKENS] - torch.logsumexp(logits[:TOKENS], 0))
        found[i] = -math.log(float(p[clean[i]]))
    return found


@torch.no_grad()
def bound_by_subsets(trained: Transformer, clean: Tensor, block: int) -> float:
    """Compute Σ over blocks and sizes k of (1/k)·mean over subsets of size k of their loss."""
    total = 0.0
    for begin in range(0, len(clean), block):
        places = range(begin, begin + block)
        for k in range(1, block + 1):
            sums = [
                sum(losses_of(trained, clean, set(subset), block).values())
                for subset in itertools.combinations(places, k)
            ]
            total += np.mean(sums) / k
    return total


@torch.no_grad()
def test_bound_equals_the_mean_over_all_orders_of_the_autoregressive_loss() -> None:
    trained, clean = model(), text(1, 4)[0, 1:]
    orders = []
    for order in itertools.permutations(range(4)):
        loss = 0.0
        for done, token in enumerate(order):
            loss += losses_of(trained, clean, set(order[done:]), 4)[token]
        orders.append(loss)
    assert np.std(orders) > 0.1  # the control: the order matters
    assert bound_by_subsets(trained, clean, 4) == pytest.approx(np.mean(orders), rel=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "block"), [("masked_diffusion", 8), ("block:4", 4), ("block:2", 2)]
)
def test_held_out_losses_have_the_mean_of_the_enumerated_bound(name: str, block: int) -> None:
    trained, tokens = model(), text(1)
    wanted = bound_by_subsets(trained, tokens[0, 1:], block)
    rows = 3000
    losses, counted = named(name).held_out_losses(trained, Batch(tokens.expand(rows, -1)), draws())
    sums = losses.sum(dim=1).double().numpy()
    assert bool((counted == 1).all())
    error = sums.std() / math.sqrt(rows)
    assert error < 0.02 * wanted
    assert abs(sums.mean() - wanted) < 4 * error


@torch.no_grad()
def test_training_loss_has_the_mean_of_the_enumerated_bound() -> None:
    """With rates from 0 to 1 and the weight 1/t, training minimises the bound itself."""
    trained, tokens = model(), text(1)
    wanted = bound_by_subsets(trained, tokens[0, 1:], 8) / 8
    objective = named("masked_diffusion/llada", epsilon=1e-6)
    rows = 20_000
    loss, count = objective.loss(trained, Batch(tokens.expand(rows, -1)), draws())
    assert count == rows * 8
    assert loss.item() == pytest.approx(wanted, rel=0.03)


@torch.no_grad()
@pytest.mark.parametrize("name", ["masked_diffusion", "block:1", "block:4"])
def test_uniform_predictor_has_the_loss_ln_v_of_the_tokens_without_the_mask(name: str) -> None:
    uniform = ContextFree(torch.zeros(TOKENS))
    losses, counted = named(name).held_out_losses(uniform, Batch(text(50)), draws())
    sums = losses.sum(dim=1) / counted.sum(dim=1)
    torch.testing.assert_close(sums, torch.full_like(sums, math.log(TOKENS)))
    loss, _ = named(f"{name}/llada2").loss(uniform, Batch(text(50)), draws())
    assert loss.item() == pytest.approx(math.log(TOKENS))
    for variant in ("llada", "dllm", "bd3lm"):
        loss, _ = named(f"{name}/{variant}").loss(uniform, Batch(text(20_000)), draws())
        assert loss.item() == pytest.approx(math.log(TOKENS), rel=0.05), variant


@torch.no_grad()
@pytest.mark.parametrize("name", ["masked_diffusion", "block:4"])
def test_context_free_predictor_has_the_cross_entropy_of_its_tokens(name: str) -> None:
    row = torch.randn(TOKENS, generator=draws(5))
    tokens = text(4000)
    wanted = -torch.log_softmax(row, 0)[tokens[:, 1:]].mean()
    losses, counted = named(name).held_out_losses(ContextFree(row), Batch(tokens), draws())
    sums = losses.sum(dim=1) / counted.sum(dim=1)
    assert abs(sums.mean() - wanted) < 4 * sums.std() / math.sqrt(len(sums))


@torch.no_grad()
def test_block_of_one_at_rate_one_is_autoregression() -> None:
    trained, tokens = model(), text()
    clean = tokens[:, 1:]
    wanted = torch.zeros(clean.shape, dtype=torch.float64)
    for i in range(8):  # one token after the other, from a mask in its place
        seen = torch.cat((clean[:, :i], torch.full((2, 1), MASK)), dim=1)
        logits = trained.logits(trained(seen, visibility=CAUSAL))[:, i]
        wanted[:, i] = F.cross_entropy(logits, clean[:, i], reduction="none")
    loss, count = Diffusion(RECIPE, 1, ALWAYS).loss(trained, Batch(tokens), draws())
    assert count == 16
    assert loss.item() == pytest.approx(float(wanted.mean()), rel=1e-6)
    losses, _ = named("block:1").held_out_losses(trained, Batch(tokens), draws())
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("block", [2, 4, 8])
def test_token_losses_are_those_of_each_block_after_its_clean_text(block: int) -> None:
    trained, tokens = model(canon_set="AB"), text()
    masked = torch.rand((2, 8), generator=draws(4)) < 0.5
    found = Diffusion(RECIPE, block, ALWAYS).token_losses(trained, Batch(tokens), masked)
    for row in range(2):
        hidden = set(torch.nonzero(masked[row]).flatten().tolist())
        wanted = losses_of(trained, tokens[row, 1:], hidden, block)
        for i in range(8):
            assert float(found[row, i]) == pytest.approx(wanted.get(i, 0.0), rel=1e-5)


@torch.no_grad()
def test_block_of_the_whole_sequence_is_masked_diffusion() -> None:
    trained, batch = model(), Batch(text())
    full = named("masked_diffusion", draw="block")
    whole = named("block:8")
    for method in ("loss", "held_out_losses"):
        ours, _ = getattr(whole, method)(trained, batch, draws(2))
        other, _ = getattr(full, method)(trained, batch, draws(2))
        assert torch.equal(ours, other)
    noisy, clean = text(seed=3)[:, 1:], batch.tokens[:, 1:]
    both = trained(torch.cat((noisy, clean), 1), visibility=Visibility("noisy_and_clean", 8))
    torch.testing.assert_close(both[:, :8], trained(noisy, visibility=FULL))


def test_mask_token_is_never_predicted_and_the_clean_half_has_no_loss() -> None:
    trained, tokens = model(tie_word_embeddings=False), text()
    logits = trained.logits(trained(tokens, visibility=FULL))
    assert bool((logits[..., MASK] == -math.inf).all())
    probabilities = logits[..., :TOKENS].softmax(-1)
    torch.testing.assert_close(logits.softmax(-1)[..., :TOKENS], probabilities)
    losses = Diffusion(RECIPE, 4, ALWAYS).token_losses(
        trained, Batch(tokens), torch.ones((2, 8), dtype=torch.bool)
    )
    losses.sum().backward()
    assert not trained.lm_head.weight.grad[MASK].any()
    assert trained.lm_head.weight.grad[:MASK].any()
    # The clean text of the last block is seen by no masked token, and has no loss of its own.
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % TOKENS
    masked = torch.zeros((2, 8), dtype=torch.bool)
    masked[:, 4:] = True
    one, two = (
        trained.logits(
            trained(
                torch.cat((torch.where(masked, MASK, each[:, 1:]), each[:, 1:]), 1),
                visibility=Visibility("noisy_and_clean", 4),
            )[:, :8]
        )
        for each in (tokens, other)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["masked_diffusion", "block:2"])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    trained = model(hidden_size=4, num_hidden_layers=1, canon_set="A", tie_word_embeddings=True)
    # The loss is computed in float32 from the logits, so that it is taken by hand in float64.
    masked = torch.rand((1, 4), generator=draws(4)) < 0.6
    batch, objective = Batch(text(1, 4)), named(name)

    def loss(*weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        replaced = {f"model.{key}": value for key, value in given.items()}

        class Losses(LossModule):
            def forward(self, batch: Batch, masked: Tensor) -> Tensor:
                return self.objective.token_losses(self.model, batch, masked)

        return functional_call(Losses(trained, objective), replaced, (batch, masked)).sum()

    names = ["embed_tokens.weight", "layers.0.canon_a.weight", "layers.0.self_attn.o_proj.weight"]
    weights = [trained.get_parameter(each) for each in names]
    assert torch.autograd.gradcheck(loss, weights, eps=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["masked_diffusion", "block:4"])
def test_documents_of_a_packed_sequence_have_the_losses_of_each_alone(name: str) -> None:
    trained, tokens = model(canon_set="ABCD"), text(1, 16)
    documents = torch.tensor([[3] + [3] * 8 + [5] * 4 + [-1] * 4])
    masked = torch.rand((1, 16), generator=draws(6)) < 0.5
    masked[:, 12:] = False
    objective = named(name)
    packed = objective.token_losses(trained, Batch(tokens, documents=documents), masked)
    for begin, end in ((0, 8), (8, 12)):
        own = Batch(torch.cat((tokens[:, :1], tokens[:, 1 + begin : 1 + end]), dim=1))
        alone = objective.token_losses(trained, own, masked[:, begin:end])
        torch.testing.assert_close(packed[:, begin:end], alone)


@pytest.mark.parametrize("name", ["masked_diffusion", "block:4"])
def test_padding_changes_neither_loss_nor_gradient_nor_bound(name: str) -> None:
    mask = torch.ones((2, 8), dtype=torch.bool)
    mask[:, 5:] = False
    documents = torch.tensor([[0] * 6 + [-1] * 3] * 2)
    found = []
    for filler in (0, 7):
        tokens = text()
        tokens[:, 6:] = filler
        trained, batch = model(), Batch(tokens, mask, documents)
        loss, count = named(name).loss(trained, batch, draws(1))
        loss.backward()
        losses, counted = named(name).held_out_losses(trained, batch, draws(1))
        assert count == 10
        assert torch.equal(counted.bool(), mask)
        found.append(
            (loss.detach(), losses.detach(), trained.layers[0].self_attn.o_proj.weight.grad)
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][0] > 0


def test_bound_of_maskable_tokens_weighs_by_their_number() -> None:
    uniform = ContextFree(torch.zeros(TOKENS))
    mask = torch.rand((40, 8), generator=draws(2)) < 0.6
    mask[0] = False
    for name in ("masked_diffusion", "block:4"):
        losses, _ = named(name).held_out_losses(uniform, Batch(text(40), mask), draws())
        torch.testing.assert_close(losses.sum(1), mask.sum(1) * math.log(TOKENS))


@pytest.mark.parametrize(
    ("name", "size"), [("masked_diffusion", 8), ("block:4", 4), ("block:1", 1)]
)
def test_draws_of_the_bound_mask_one_number_of_tokens_in_each_quarter(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    masks: list[Tensor] = []

    def count(self: Diffusion, model: object, batch: Batch, masked: Tensor) -> Tensor:
        masks.append(masked)
        return masked.float()

    monkeypatch.setattr(Diffusion, "token_losses", count)
    losses, _ = named(name).held_out_losses(model(), Batch(text(50)), draws())
    numbers = torch.stack([each.view(50, -1, size).sum(2) for each in masks])
    assert len(masks) == (1 if size == 1 else 4)
    for part, chosen in enumerate(numbers):
        assert int(chosen.min()) >= 1 + part * size // 4
        assert int(chosen.max()) <= max((part + 1) * size // 4, 1)
    # Σ over masked tokens of L/l is L for every draw.
    torch.testing.assert_close(losses.sum(1), torch.full((50,), 8.0))
    chances = torch.stack(masks).float().mean(dim=(0, 1))
    assert float(chances.max() - chances.min()) < 0.3 or size == 1


FORMULAS = {  # the loss of each variant from losses, rates and masks, (S, T)
    "llada": lambda ce, p, m, able: (ce / p * m).sum() / ce.size,
    "dllm": lambda ce, p, m, able: (ce / (p + 1e-6) * m).sum() / able.sum(),
    "bd3lm": lambda ce, p, m, able: (ce / p * m).sum() / able.sum(),
    "bd3lm-clip4": lambda ce, p, m, able: (ce / p * m).sum() / able.sum(),
    "bd3lm-clip16": lambda ce, p, m, able: (ce / p * m).sum() / able.sum(),
    "llada2": lambda ce, p, m, able: (ce * m).sum() / m.sum(),
    "d2f": lambda ce, p, m, able: (ce / p * m).sum() / m.sum(),
}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_of_every_variant_is_its_published_formula(variant: str) -> None:
    trained, objective = model(), named(f"block:2/{variant}")
    able = torch.rand((4, 8), generator=draws(9)) < 0.8
    batch = Batch(text(4), able)
    noise = objective.draw(4, 8, draws(3)).numpy()
    rates = noise[:, 8:].repeat(2, axis=1)
    masked = (noise[:, :8] < rates) & able.numpy()
    cross = objective.token_losses(trained, batch, torch.from_numpy(masked)).double().numpy()
    wanted = FORMULAS[variant](cross, rates, masked, able.numpy())
    loss, _ = objective.loss(trained, batch, draws(3))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    given, _ = objective.loss(trained, batch._replace(noise=torch.from_numpy(noise)), draws(8))
    assert given == loss


RANGES = {  # smallest and largest rate, and the mean of the first and last block
    "llada": (0.001, 1.0, 0.5005, 0.5005),
    "dllm": (0.001, 1.0, 0.5005, 0.5005),
    "bd3lm": (0.001, 1.0, 0.5005, 0.5005),
    "bd3lm-clip4": (0.45, 0.95, 0.7, 0.7),
    "bd3lm-clip16": (0.3, 0.8, 0.55, 0.55),
    "llada2": (0.3, 0.8, 0.55, 0.55),
    "d2f": (0.2, 0.7, 0.45, 0.575),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_of_every_variant_have_the_published_range_and_means(variant: str) -> None:
    rates = named(f"block:2/{variant}").draw(8000, 8, draws())[:, 8:].numpy()
    low, high, first, last = RANGES[variant]
    assert rates.min() == pytest.approx(low, abs=2e-3)
    assert rates.min() >= low - 1e-6
    assert rates.max() == pytest.approx(high, abs=4e-2 if variant == "d2f" else 2e-3)
    assert rates.max() <= high + 1e-6
    assert rates[:, 0].mean() == pytest.approx(first, abs=0.01)
    assert rates[:, -1].mean() == pytest.approx(last, abs=0.01)
    same = (rates == rates[:, :1]).all()
    assert same == (VARIANTS[variant].draw == "sequence")
    if variant == "d2f":
        assert (np.diff(rates, axis=1) >= 0).all()


@pytest.mark.parametrize(("draw", "count"), [("sequence", 16), ("block", 64)])
def test_stratified_rates_fall_once_into_each_part_and_in_random_order(
    draw: str, count: int
) -> None:
    objective = named("block:2", draw=draw, epsilon=0.0, weight="none")
    rates = objective.draw(16, 8, draws())[:, 8:].numpy()
    values = rates[:, 0] if draw == "sequence" else rates.flatten()
    assert sorted((values * count).astype(int).tolist()) == list(range(count))
    assert (np.diff(values) < 0).any()
    free = replace(objective, noise=replace(objective.noise, stratified=False))
    values = free.draw(16, 8, draws())[:, 8:].numpy().flatten()
    assert len(set((values * 64).astype(int).tolist())) < 64


def test_tokens_are_masked_independently_with_the_rate_of_their_block() -> None:
    noise = named("block:4").draw(40_000, 8, draws()).numpy()
    rates = noise[:, 8:].repeat(4, axis=1)
    masked = noise[:, :8] < rates
    for low in (0.1, 0.4, 0.8):
        near = (rates > low) & (rates < low + 0.1)
        assert masked[near].mean() == pytest.approx(low + 0.05, abs=0.01)
    residual = masked - rates
    correlation = np.corrcoef(residual.T)
    assert np.abs(correlation - np.eye(8)).max() < 0.03


def test_parts_of_a_batch_combine_to_the_loss_of_the_whole() -> None:
    trained, able = model(), torch.rand((4, 8), generator=draws(9)) < 0.8
    for variant in VARIANTS:
        objective = named(f"block:4/{variant}")
        batch = Batch(text(4), able, noise=objective.draw(4, 8, draws(1)))
        wanted, total = objective.loss(trained, batch, draws())
        parts = [objective.loss(trained, batch.rows(rows), draws()) for rows in
                 (slice(1), slice(1, None))]  # fmt: skip
        assert sum(count for _, count in parts) == total
        combined = sum(loss * count for loss, count in parts) / total
        torch.testing.assert_close(combined, wanted)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("masked", "`objective` must be next_token, masked_diffusion or block:SIZE"),
        ("block", "`objective` must be next_token, masked_diffusion or block:SIZE"),
        ("block:0", "but got 'block:0'; give for example block:16"),
        ("block:-4", "but got 'block:-4'"),
        ("block:4.5", "but got 'block:4.5'"),
        ("block:99999999999999999999", "`objective` must be"),
        ("masked_diffusion:4", "but got 'masked_diffusion:4'"),
        ("block:4/llada3", "the variant of `objective` must be one of llada, dllm, bd3lm"),
        ("next_token/llada", "`objective` must be next_token"),
        ("", "`objective` must be"),
        ("block:48", "must divide `context_length`, but got 48 and 128; give for example block:32"),
        (
            "block:256",
            "must divide `context_length`, but got 256 and 128; give for example block:1",
        ),
    ],
)
def test_objective_that_cannot_be_is_refused(name: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Recipe(objective=name)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"draw": "token"}, "`draw` must be one of sequence, block, monotone, but got 'token'"),
        ({"weight": "t"}, "`weight` must be one of 1/t, 1/p,"),
        ({"normaliser": "all"}, "`normaliser` must be one of length, maskable, masked"),
        ({"low": 0.8, "high": 0.3}, "`0 <= low <= high <= 1`"),
        ({"epsilon": 0.0}, "`epsilon > 0` or `low > 0` must hold for a weight that divides"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Noise(**changes)


def test_model_without_a_mask_token_is_refused() -> None:
    plain = Transformer(read_architecture({**QWEN3, "vocab_size": 12}), context_length=32)
    with pytest.raises(InputError, match="`mask_token_id` of a model must be set"):
        named("masked_diffusion").loss(plain, Batch(text()), draws())


def test_bound_is_exact_only_for_blocks_of_one_token() -> None:
    kinds = {name: parse_objective(name).loss_kind for name in
             ("next_token", "masked_diffusion", "block:1", "block:2/llada2")}  # fmt: skip
    assert kinds == {
        "next_token": "exact", "masked_diffusion": "bound", "block:1": "exact",
        "block:2/llada2": "bound",
    }  # fmt: skip
    assert check_objective("block:16", 128).block == 16
