import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.chunked_loss import chunked_cross_entropy

D, V = 12, 37


def inputs(
    *positions: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*positions, D, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, V, positions, generator=generator)


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden, weight)
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return F.cross_entropy(logits.to(exact).flatten(0, -2), targets.flatten())


@pytest.mark.parametrize("chunk", [1, 5, 21, 1000])
def test_chunked_loss_and_gradients_equal_those_of_whole_logits(chunk: int) -> None:
    hidden, weight, targets = inputs(3, 7)
    wanted = plain(hidden, weight, targets)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(wanted, (hidden, weight))
    for got, want in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_gradients_agree_with_finite_differences() -> None:
    hidden, weight, targets = inputs(9, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: 3 * chunked_cross_entropy(h, w, targets, chunk=4), (hidden, weight)
    )


def test_under_autocast_it_is_as_good_as_the_plain_loss_under_autocast() -> None:
    hidden, weight, targets = inputs(64)
    exact = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = plain(hidden, weight, targets)
        loss = chunked_cross_entropy(hidden, weight, targets, chunk=10)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    rounded = torch.autograd.grad(wanted, (hidden, weight))
    chunked = torch.autograd.grad(loss, (hidden, weight))
    for name, want, rough, got in zip(("hidden", "weight"), exact, rounded, chunked, strict=True):
        assert got.dtype == want.dtype, name
        assert (got - want).norm() < 1.5 * (rough - want).norm() + 1e-6, name


def test_a_tied_head_gets_both_of_its_gradients() -> None:
    shape = Shape(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=50,
    )  # fmt: skip
    model = Transformer(shape, context_length=8)
    model.initialise(0)
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    hidden = model(tokens[:, :-1])
    wanted = F.cross_entropy(model.logits(hidden).flatten(0, 1), tokens[:, 1:].flatten())
    loss = chunked_cross_entropy(hidden, model.lm_head.weight, tokens[:, 1:], chunk=3)
    expected = torch.autograd.grad(wanted, list(model.parameters()), retain_graph=True)
    got = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_it_maps_over_replicas() -> None:
    hidden, weight, targets = inputs(4, 9)
    heads = torch.stack([weight * scale for scale in (1.0, 0.5, 2.0, -1.0)])
    losses = vmap(lambda *leaf: chunked_cross_entropy(*leaf, chunk=4))(hidden, heads, targets)
    wanted = torch.stack([plain(h, w, t) for h, w, t in zip(hidden, heads, targets, strict=True)])
    torch.testing.assert_close(losses, wanted)
    expected = torch.autograd.grad(wanted.sum(), (hidden, weight), retain_graph=True)
    for got, want in zip(
        torch.autograd.grad(losses.sum(), (hidden, weight)), expected, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, targets = inputs(8)
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(plain(hidden, weight, targets).item(), rel=1e-6)


def test_no_tensor_of_all_logits_exists() -> None:
    hidden, weight, targets = inputs(400)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out)
                         if isinstance(x, torch.Tensor))  # fmt: skip
            return out

    with Watch():
        chunked_cross_entropy(hidden, weight, targets, chunk=50).backward()
    assert max(sizes) == max(400 * D, 50 * V)
