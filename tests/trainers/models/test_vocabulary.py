from dataclasses import replace

import pytest
import torch

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.vocabulary import grow_vocabulary
from support.small_runs import SHAPE


def trained(*, tied: bool) -> Transformer:
    model = Transformer(replace(SHAPE, tie_word_embeddings=tied), context_length=16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.5, 0.4, generator=generator)
    return model


def grown(model: Transformer, noise: float, seed: int = 0) -> Transformer:
    larger = replace(model.shape, vocab_size=SHAPE.vocab_size + 1)
    return grow_vocabulary(model, larger, noise=noise, seed=seed, attention="sdpa")


@pytest.mark.parametrize("tied", [True, False])
def test_grown_model_has_the_logits_of_the_old_tokens(tied: bool) -> None:
    model = trained(tied=tied)
    larger = grown(model, 1.0)
    tokens = torch.arange(32).view(2, 16)
    with torch.inference_mode():
        wanted, got = (each.logits(each(tokens)) for each in (model, larger))
    assert got.shape[-1] == SHAPE.vocab_size + 1
    torch.testing.assert_close(got[..., :-1], wanted)
    if not tied:
        assert torch.equal(got[..., -1], torch.zeros(2, 16))


def test_mask_row_is_noise_of_the_scale_of_the_table() -> None:
    model = trained(tied=True)
    rms = model.embed_tokens.weight.detach().square().mean().sqrt()
    rows = torch.stack([grown(model, 0.5, seed).embed_tokens.weight[-1] for seed in range(200)])
    assert rows.std().item() == pytest.approx(0.5 * rms.item(), rel=0.05)  # of 3,200 numbers
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], grown(model, 0.5).embed_tokens.weight[-1])


def test_no_noise_is_a_row_of_zeros() -> None:
    row = grown(trained(tied=True), 0.0).embed_tokens.weight[-1]
    assert torch.equal(row, torch.zeros_like(row))
