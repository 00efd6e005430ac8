import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shapelaw.trainers.optimizers.muon import SCALES, Muon, match_rms_adamw, orthogonalise

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
