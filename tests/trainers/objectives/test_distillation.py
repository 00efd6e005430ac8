"""The distillation loss of D2F against loops, and what it trains."""

from dataclasses import replace

import pytest
import torch

from shapelaw.trainers.models.lora import (
    LoraSettings,
    adapted_layers,
    adapters_off,
    add_adapters,
)
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import FULL, Visibility
from shapelaw.trainers.models.vocabulary import grow_vocabulary
from shapelaw.trainers.objectives.distillation import Distillation
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.training.spec import model_for
from support.small_runs import RECIPE, SHAPE

LENGTH, BLOCK, MASK = 16, 4, SHAPE.vocab_size
RECIPE_OF_BLOCKS = replace(RECIPE, objective=f"block:{BLOCK}")


def student(*, dropout: float = 0.0, trained: bool = True) -> Transformer:
    plain = Transformer(SHAPE, context_length=LENGTH, attention="matmul")
    plain.initialise(0)
    model = grow_vocabulary(
        plain, model_for(RECIPE_OF_BLOCKS, SHAPE), noise=1.0, seed=1, attention="matmul"
    ).double()
    add_adapters(model, LoraSettings(rank=3, alpha=3.0, dropout=dropout), seed=2)
    generator = torch.Generator().manual_seed(3)
    for layer in adapted_layers(model).values() if trained else ():
        torch.nn.init.normal_(layer.lora_b, std=0.5, generator=generator)
    return model


def batch() -> Batch:
    draws = torch.Generator().manual_seed(4)
    return Batch(torch.randint(SHAPE.vocab_size, (3, LENGTH + 1), generator=draws))


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(seed: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the rates of the blocks and the masks of a step again."""
    drawn = Distillation(RECIPE_OF_BLOCKS, block=block).draw(3, LENGTH, generator(seed))
    numbers, rates = drawn[:, :LENGTH], drawn[:, LENGTH:]
    assert rates.shape == (3, LENGTH // block)
    return rates, numbers < rates.repeat_interleave(block, dim=1)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of all tokens but the mask, by their definition."""
    kept = logits[..., :MASK]
    return kept - kept.exp().sum(dim=-1, keepdim=True).log()


def test_rates_grow_from_a_mean_of_045_to_0575() -> None:
    drawn = Distillation(RECIPE_OF_BLOCKS, block=2).draw(40_000, LENGTH, generator())
    rates = drawn[:, LENGTH:]
    assert rates.shape == (40_000, 8)
    assert (rates.diff(dim=1) >= 0).all()
    assert rates.min() >= 0.2
    assert rates.max() <= 0.7 + 1e-6
    # Standard errors: U(0.2, 0.7) has a standard deviation of 0.144, so 0.0007 in the mean.
    assert rates[:, 0].mean().item() == pytest.approx(0.45, abs=0.003)
    assert rates[:, -1].mean().item() == pytest.approx(0.575, abs=0.003)
    middle = 0.45 + 3 / 7 * 0.125  # three of seven increments
    assert rates[:, 3].mean().item() == pytest.approx(middle, abs=0.003)


def test_loss_is_that_of_loops_in_float64() -> None:
    model, text = student(), batch()
    loss, count = Distillation(RECIPE_OF_BLOCKS, block=BLOCK).loss(model, text, generator())
    rates, masked = noise_of(5, BLOCK)
    noisy = torch.where(masked, torch.tensor(MASK), text.tokens[:, 1:])
    with torch.no_grad():
        with adapters_off(model):
            teacher = log_softmax(model.logits(model(noisy, visibility=FULL)))
        own = log_softmax(model.logits(model(noisy, visibility=Visibility("block", BLOCK))))
    total, number = 0.0, 0
    for sequence in range(3):
        for position in range(LENGTH):
            if not masked[sequence, position]:
                continue
            number += 1
            for token in range(MASK):
                p = teacher[sequence, position, token].exp().item()
                q = own[sequence, position, token].item()
                total -= p * q / rates[sequence, position // BLOCK].item()
    assert count.item() == number > 0
    assert loss.item() == pytest.approx(total / number, rel=1e-10)


def test_student_without_training_that_sees_everything_is_its_teacher() -> None:
    model, text = student(trained=False), batch()
    loss, _ = Distillation(RECIPE_OF_BLOCKS, block=LENGTH).loss(model, text, generator())
    rates, masked = noise_of(5, LENGTH)
    noisy = torch.where(masked, torch.tensor(MASK), text.tokens[:, 1:])
    with torch.no_grad():
        teacher = log_softmax(model.logits(model(noisy, visibility=FULL)))
    entropy = -(teacher.exp() * teacher).sum(dim=-1)
    wanted = (entropy / rates)[masked].mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    loss.backward()  # at the minimum
    norms = [w.grad.norm().item() for w in model.parameters() if w.grad is not None]
    assert max(norms) < 1e-12


def test_student_that_does_not_see_later_blocks_differs_from_its_teacher() -> None:
    model = student(trained=False)
    Distillation(RECIPE_OF_BLOCKS, block=BLOCK).loss(model, batch(), generator())[0].backward()
    norms = [w.grad.norm().item() for w in model.parameters() if w.grad is not None]
    assert max(norms) > 1e-6


def test_only_adapters_get_a_gradient() -> None:
    model = student()
    loss, _ = Distillation(RECIPE_OF_BLOCKS, block=BLOCK).loss(model, batch(), generator())
    loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trained) == 2 * 2 * SHAPE.num_hidden_layers


def test_training_the_adapters_moves_the_student_to_a_teacher_that_stays() -> None:
    model, objective = student(trained=False), Distillation(RECIPE_OF_BLOCKS, block=BLOCK)
    tokens = batch().tokens[:, 1:]
    with torch.no_grad():
        teacher = model(tokens)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=0.02), []
    for _ in range(30):
        loss, _ = objective.loss(model, batch(), generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    with torch.no_grad(), adapters_off(model):
        assert torch.equal(model(tokens), teacher)


def test_gradient_is_that_of_finite_differences() -> None:
    model, text = student(), batch()
    objective = Distillation(RECIPE_OF_BLOCKS, block=BLOCK)
    objective.loss(model, text, generator())[0].backward()
    weight = adapted_layers(model)["layers.1.self_attn.qkv_proj"].lora_b
    assert weight.grad is not None
    for row, column in [(0, 0), (5, 1), (20, 2)]:
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[row, column] += shift
                values.append(objective.loss(model, text, generator())[0].item())
                weight[row, column] -= shift
        slope = (values[0] - values[1]) / 2e-5
        assert weight.grad[row, column].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_noise_and_dropout_are_a_function_of_the_generator() -> None:
    objective, model = Distillation(RECIPE_OF_BLOCKS, block=BLOCK), student(dropout=0.3)
    losses = [objective.loss(model, batch(), generator(seed))[0].item() for seed in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]
    without = objective.loss(student(), batch(), generator())[0].item()
    assert losses[0] != without


def test_last_tokens_do_not_change_what_the_student_learns_of_earlier_blocks() -> None:
    model = student()
    tokens = batch().tokens[:, 1:]
    other = tokens.clone()
    other[:, -BLOCK:] = (other[:, -BLOCK:] + 1) % SHAPE.vocab_size
    with torch.no_grad():
        own, changed = (
            model(each, visibility=Visibility("block", BLOCK)) for each in (tokens, other)
        )
    torch.testing.assert_close(own[:, :-BLOCK], changed[:, :-BLOCK], rtol=0, atol=1e-12)
    assert (own[:, -BLOCK:] - changed[:, -BLOCK:]).abs().max() > 1e-6
