import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shapelaw.trainers.optimizers.rules import SCALES, AdamW, Muon, Rule, match_rms_adamw
from shapelaw.trainers.optimizers.updates import orthogonalise

SIZES = [(8, 8), (12, 8), (8, 12), (8, 8), (12, 8), (1, 16)]
SETTINGS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]


def set_gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("scale", SCALES)
def test_batched_steps_are_those_of_torch(scale: str) -> None:
    ours, theirs = matrices(0), matrices(0)
    batched = Muon(ours, [(rows,) for rows, _ in SIZES], scale=scale, **SETTINGS)
    plain = torch.optim.Muon(theirs, adjust_lr_fn=scale, **SETTINGS)
    for step in range(5):
        for weights, optimizer in ((ours, batched), (theirs, plain)):
            set_gradients(weights, step)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # Newton-Schulz runs in bfloat16


def test_a_fused_matrix_is_updated_as_its_pieces_would_be() -> None:
    fused = nn.Parameter(torch.randn(20, 8, generator=torch.Generator().manual_seed(1)))
    pieces = [nn.Parameter(part.detach().clone()) for part in fused.split((8, 8, 4))]
    gradient = torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    fused.grad = gradient
    for piece, part in zip(pieces, gradient.split((8, 8, 4)), strict=True):
        piece.grad = part.clone()
    Muon([fused], [(8, 8, 4)], **SETTINGS).step()
    Muon(pieces, [(8,), (8,), (4,)], **SETTINGS).step()
    assert torch.equal(fused, torch.cat(pieces))


@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 1000))
def test_singular_values_come_near_one(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stack = torch.randn(2, 3, rows, columns, generator=generator)
    turned = orthogonalise(stack, steps=10)
    assert turned.shape == stack.shape
    assert turned.dtype == torch.bfloat16
    values = torch.linalg.svdvals(turned.float()).numpy()
    assert values.max() < 1.35
    # The smallest of a square matrix may be almost none, and grows by 3.4 a step.
    assert np.median(values) > 0.6


def test_a_batch_is_each_matrix_alone() -> None:
    stack = torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([orthogonalise(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, rtol=0, atol=0.02)


def test_a_zero_gradient_moves_nothing_but_the_decay() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], [(4,)], **SETTINGS).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 1 - 0.02 * 0.1))


def test_the_scale_of_kimi_gives_the_size_of_an_adamw_update() -> None:
    update = match_rms_adamw(64, 16) * torch.linalg.qr(torch.randn(64, 16))[0]
    assert update.square().mean().sqrt() == pytest.approx(0.2)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_steps_equal_those_of_torch_bit_for_bit(decay: float) -> None:
    ours, theirs = matrices(0), matrices(0)
    own = AdamW(ours, lr=0.02, weight_decay=decay)
    plain = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.95), weight_decay=decay)
    for step in range(5):
        for weights, optimizer in ((ours, own), (theirs, plain)):
            set_gradients(weights, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert own.state[a].keys() == plain.state[b].keys()
        assert all(torch.equal(own.state[a][key], plain.state[b][key]) for key in own.state[a])


def rules(weights: list[nn.Parameter]) -> list[Rule]:
    pieces = [(3, 5), (12,), (4, 4), (8,), (6, 6), (1,)]
    return [AdamW(weights, lr=0.02, weight_decay=0.1), Muon(weights, pieces, **SETTINGS)]


@pytest.mark.parametrize("index", [0, 1], ids=["adamw", "muon"])
def test_update_of_a_stack_equals_the_updates_of_its_models(index: int) -> None:
    rates, decays, momenta = [0.02, 0.005, 0.1], [0.1, 0.0, 0.3], [0.9, 0.8, 0.95]
    alone = [matrices(seed) for seed in range(3)]
    optimizers = [rules(weights)[index] for weights in alone]
    stack = [torch.stack([w.detach() for w in same]) for same in zip(*alone, strict=True)]
    kept = [[torch.zeros_like(w) for _ in optimizers[0].moments] for w in stack]
    settings = {
        "lr": torch.tensor(rates).double(), "weight_decay": torch.tensor(decays).double(),
        "momentum": torch.tensor(momenta).double(),
    }  # fmt: skip
    for step in range(4):
        for optimizer, weights, *own in zip(optimizers, alone, rates, decays, momenta, strict=True):
            optimizer.param_groups[0] |= dict(
                zip(("lr", "weight_decay", "momentum"), own, strict=True)
            )
            set_gradients(weights, step)
        gradients = [torch.stack([w.grad for w in same]) for same in zip(*alone, strict=True)]
        for optimizer in optimizers:
            optimizer.step()
        count = torch.tensor(step + 1.0).double()
        optimizers[0].update(stack, gradients, kept, settings, count)
    for place, stacked in enumerate(stack):
        for model, weights in enumerate(alone):
            # AdamW to the last bits; Newton-Schulz runs in bfloat16
            tolerance = 1e-6 if index == 0 else 2e-3
            torch.testing.assert_close(stacked[model], weights[place], rtol=0, atol=tolerance)
