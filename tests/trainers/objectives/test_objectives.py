"""The contract of every training objective, and next-token prediction in particular."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call, stack_module_state, vmap

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives import next_token
from shapelaw.trainers.objectives.next_token import NextToken, token_losses
from shapelaw.trainers.objectives.objective import Batch, LossModule, Objective, reseed
from shapelaw.trainers.objectives.registry import OBJECTIVES, objective_of
from shapelaw.trainers.optimizers.noise import VARIANTS, parse_objective
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import model_for
from support.small_runs import RECIPE, SHAPE

SEQUENCES = 6
NAMES = ["next_token", "masked_diffusion", "block:4", *(f"block:2/{name}" for name in VARIANTS)]


def model(seed: int = 0, recipe: Recipe = RECIPE) -> Transformer:
    built = Transformer(model_for(recipe, SHAPE), context_length=16, attention="matmul")
    built.initialise(seed)
    return built


def batch(seed: int = 0) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    return Batch(torch.randint(SHAPE.vocab_size, (SEQUENCES, 17), generator=draws))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
class TestEveryObjective:
    """The contract of the objectives of all names."""

    def objective(self, name: str) -> Objective:
        return objective_of(replace(RECIPE, objective=name))

    def model(self, name: str, seed: int = 0) -> Transformer:
        return model(seed, replace(RECIPE, objective=name))

    def test_loss_is_a_mean_that_falls_when_trained(self, name: str) -> None:
        trained, objective = self.model(name), self.objective(name)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
        losses = []
        for _ in range(8):
            loss, count = objective.loss(trained, batch(), draws())
            assert loss.shape == count.shape == ()
            assert 0 < count <= SEQUENCES * 16
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert 0 < losses[-1] < losses[0] - 0.1

    def test_equal_draws_give_equal_losses(self, name: str) -> None:
        objective = self.objective(name)
        first, again = (objective.loss(self.model(name), batch(), draws(3)) for _ in range(2))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])

    def test_held_out_losses_are_finite_and_one_for_each_token(self, name: str) -> None:
        losses, counted = self.objective(name).held_out_losses(self.model(name), batch(), draws())
        assert losses.shape == counted.shape == (SEQUENCES, 16)
        assert torch.isfinite(losses).all()
        assert counted.sum() > 0
        assert not losses[counted == 0].any()

    def test_loss_can_be_mapped_over_models(self, name: str) -> None:
        objective, models = self.objective(name), [self.model(name, 0), self.model(name, 1)]
        parameters, _ = stack_module_state(models)
        tokens = torch.stack([batch(0).tokens, batch(1).tokens])

        def one(named: dict[str, torch.Tensor], own: torch.Tensor) -> torch.Tensor:
            named = {f"model.{key}": value for key, value in named.items()}
            module = LossModule(models[0], objective)
            loss, count = functional_call(module, named, (Batch(own), draws()))
            return torch.stack([loss, count])

        drawn = [objective.draw(SEQUENCES, 16, draws(seed)) for seed in (1, 2)]
        if drawn[0] is not None:
            # Noise that is drawn before belongs to each model as to the model alone.
            def given(named: dict[str, torch.Tensor], own: torch.Tensor, noise: torch.Tensor):  # type: ignore[no-untyped-def]
                named = {f"model.{key}": value for key, value in named.items()}
                module = LossModule(models[0], objective)
                return functional_call(module, named, (Batch(own, noise=noise), draws()))[0]

            losses = vmap(given)(parameters, tokens, torch.stack(drawn))
            for which, trained in enumerate(models):
                alone, _ = objective.loss(trained, Batch(tokens[which]), draws(which + 1))
                torch.testing.assert_close(losses[which], alone)
        found = vmap(one, randomness="different")(parameters, tokens)
        assert found.shape == (2, 2)
        assert torch.isfinite(found).all()


def test_recipe_without_an_objective_trains_by_next_token_prediction() -> None:
    assert objective_of(RECIPE) == NextToken(RECIPE)
    assert {parse_objective(name).kind for name in NAMES} == set(OBJECTIVES)


def test_next_token_loss_is_the_mean_over_all_tokens() -> None:
    loss, count = NextToken(RECIPE).loss(model(), batch(), draws())
    assert torch.equal(loss, token_losses(model(), batch().tokens, RECIPE).mean())
    assert count == SEQUENCES * 16


def test_next_token_held_out_losses_are_those_of_the_tokens_that_count() -> None:
    wanted = token_losses(model(), batch().tokens, RECIPE)
    losses, counted = NextToken(RECIPE).held_out_losses(model(), batch(), draws())
    assert torch.equal(losses, wanted)
    assert counted.min() == 1
    mask = torch.rand((SEQUENCES, 16), generator=draws()) < 0.6
    losses, counted = NextToken(RECIPE).held_out_losses(
        model(), Batch(batch().tokens, mask), draws()
    )
    assert torch.equal(counted.bool(), mask)
    assert torch.equal(losses, wanted * mask)


@given(seed=st.integers(0, 1000), first=st.integers(1, SEQUENCES - 1))
def test_losses_of_parts_combine_by_their_token_counts(seed: int, first: int) -> None:
    whole = batch(seed)
    mask = torch.rand((SEQUENCES, 16), generator=draws(seed)) < 0.6
    whole = whole._replace(mask=mask)
    objective, trained = NextToken(RECIPE), model()
    wanted, total = objective.loss(trained, whole, draws())
    parts = [whole.rows(slice(first)), whole.rows(slice(first, None))]
    losses = [objective.loss(trained, part, draws()) for part in parts]
    assert sum(float(count) for _, count in losses) == total == mask.sum()
    combined = sum(loss.item() * count.item() for loss, count in losses) / float(total)
    assert combined == pytest.approx(wanted.item(), rel=1e-5)


def test_masked_tokens_change_neither_loss_nor_gradient() -> None:
    mask = torch.ones((SEQUENCES, 16), dtype=torch.bool)
    mask[:, 8:] = False  # of causal attention the first half sees nothing of the second
    other = batch().tokens.clone()
    other[:, 10:] = batch(1).tokens[:, 10:]
    found = []
    for tokens in (batch().tokens, other):
        trained = model()
        loss, _ = NextToken(RECIPE).loss(trained, Batch(tokens, mask), draws())
        loss.backward()
        found.append((loss.item(), trained.embed_tokens.weight.grad))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_batch_without_a_token_to_predict_has_loss_zero_and_no_gradient() -> None:
    trained = model()
    empty = batch()._replace(mask=torch.zeros((SEQUENCES, 16), dtype=torch.bool))
    loss, count = NextToken(RECIPE).loss(trained, empty, draws())
    loss.backward()
    assert (loss.item(), count.item()) == (0.0, 0.0)
    assert not any(weight.grad.any() for weight in trained.parameters())


@pytest.mark.parametrize("chunked", [False, True])
def test_bf16_loss_is_near_that_of_float32(monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    if chunked:
        monkeypatch.setattr(next_token, "MAX_LOGITS", 0)
    lower = NextToken(replace(RECIPE, dtype="bfloat16"))
    wanted, _ = NextToken(RECIPE).loss(model(), batch(), draws())
    found, count = lower.loss(model(), batch(), draws())
    assert found.item() == pytest.approx(wanted.item(), rel=5e-3)
    assert count == SEQUENCES * 16


@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**9))
def test_draws_of_a_step_depend_on_seed_and_step_alone(seed: int, step: int) -> None:
    def drawn(generator: torch.Generator, *state: int) -> list[float]:
        return torch.rand(3, generator=reseed(generator, *state)).tolist()

    used = torch.Generator()
    torch.rand(5, generator=used)
    wanted = drawn(torch.Generator(), seed, step)
    assert drawn(used, seed, step) == wanted
    assert drawn(used, seed, step + 1) != wanted
    assert drawn(used, seed + 1, step) != wanted
    assert all(math.isfinite(value) for value in wanted)
