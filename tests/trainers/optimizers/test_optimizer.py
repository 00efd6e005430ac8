from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.next_token import token_losses
from shapelaw.trainers.optimizers.optimizer import BUILDERS, Optimizer
from shapelaw.trainers.optimizers.recipe import DECAY_FORMS, Recipe
from shapelaw.trainers.optimizers.rules import Muon

torch.set_num_threads(1)
RECIPE = Recipe(context_length=8, sequences=2)
STEPS = 20


def model(seed: int = 0, *, tied: bool = True) -> Transformer:
    shape = Shape(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=50, qk_norm=True, tie_word_embeddings=tied,
    )  # fmt: skip
    built = Transformer(shape, context_length=8)
    built.initialise(seed)
    return built


def take_steps(trained: Transformer, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(step))
        token_losses(trained, batch, RECIPE).mean().backward()
        optimizer.step(step)


def weights(trained: Transformer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trained.parameters()]


@given(steps=st.integers(1, 400), warmup=st.floats(0, 0.5), decay=st.floats(0, 0.5))
def test_the_learning_rate_rises_stays_and_falls(steps: int, warmup: float, decay: float) -> None:
    recipe = Recipe(warmup=warmup, decay=decay)
    shares = np.array([recipe.share(step, steps) for step in range(steps)])
    assert (shares > 0).all()
    assert (shares <= 1).all()
    rising = np.arange(steps) + 1 < min(warmup, 1 - decay) * steps
    falling = np.arange(steps) > max((1 - decay), warmup) * steps
    assert (np.diff(shares[rising]) > 0).all()
    assert (np.diff(shares[falling]) < 0).all()
    flat = (np.arange(steps) + 1 >= warmup * steps) & (np.arange(steps) <= (1 - decay) * steps)
    assert (shares[flat] > 1 - 1e-9).all()


def test_the_last_step_is_a_small_share_of_the_peak() -> None:
    assert Recipe().share(999, 1000) == pytest.approx(1 / 300)
    assert Recipe().share(0, 1000) == pytest.approx(1 / 50)


@given(st.integers(1, 10**9), st.integers(8, 512), st.integers(1, 64))
def test_steps_come_closest_to_the_token_budget(tokens: int, length: int, sequences: int) -> None:
    recipe = Recipe(context_length=length, sequences=sequences)
    steps, batch = recipe.steps(tokens), length * sequences
    assert recipe.batch_tokens == batch
    assert steps >= 1
    assert abs(steps * batch - tokens) <= batch / 2 or (steps == 1 and tokens < batch)


WRONG = [
    ({"optimizer": "lion"}, "`optimizer` must be one of muon, adamw, but got 'lion'"),
    ({"dtype": "float16"}, "`dtype` must be one of float32, bfloat16, but got 'float16'"),
    ({"context_length": 4}, "`8 <= context_length <= .*` must hold, but got 4"),
    ({"sequences": 0}, "`1 <= sequences <= .*` must hold, but got 0"),
    ({"learning_rate": -0.01}, r"`.*\blearning_rate\b.*` must"),
    ({"matrix_learning_rate": float("nan")}, r"`.*\bmatrix_learning_rate\b.*` must"),
    ({"momentum": -0.5}, r"`.*\bmomentum\b.*` must"),
    ({"weight_decay": -1.0}, r"`.*\bweight_decay\b.*` must"),
    ({"warmup": -0.1}, r"`.*\bwarmup\b.*` must"),
    ({"decay": 1.5}, r"`.*\bdecay\b.*` must"),
    ({"clip": 0.0}, r"`.*\bclip\b.*` must"),
    ({"floor": 1.5}, "`0 <= floor <= 1` must hold"),
    ({"warmup_steps": -1}, "`0 <= warmup_steps <= .*` must hold"),
    ({"rule": "guess"}, "`rule` must be one of constant, power, mup, size, but got 'guess'"),
    ({"decay_form": "exp"}, "`decay_form` must be one of linear, cosine, sqrt"),
    ({"muon_scale": "none"}, "`muon_scale` must be one of original, match_rms_adamw"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[next(iter(c)) for c, _ in WRONG])
def test_a_recipe_that_cannot_train_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe(**changes)  # type: ignore[arg-type]


SCHEDULES = {
    "wsd": {"decay_form": "linear", "decay": 0.3, "floor": 0.0},
    "cosine": {"decay_form": "cosine", "decay": 1.0, "floor": 0.1},
    "linear": {"decay_form": "linear", "decay": 1.0, "floor": 0.0},
}


def test_the_name_of_a_schedule_contains_its_shares() -> None:
    assert Recipe(warmup=0.05, decay=0.3).schedule == "wsd-0.05-0.3"
    assert Recipe(warmup_steps=50, decay=0.2, decay_form="sqrt").schedule == "wsd-50s-0.2-sqrt"
    assert Recipe(**SCHEDULES["cosine"]).schedule == "cosine-0.05-0.1"
    assert Recipe(**SCHEDULES["linear"]).schedule == "linear-0.05-0"


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_by_name_falls_from_its_peak_to_its_floor(name: str) -> None:
    recipe = Recipe(warmup=0.0, **SCHEDULES[name])  # type: ignore[arg-type]
    shares = np.array([recipe.share(step, 1000) for step in range(1001)])
    assert shares[0] == 1
    assert (np.diff(shares) <= 0).all()
    assert shares[-1] == pytest.approx(recipe.floor)


@given(
    steps=st.integers(10, 400), more=st.integers(1, 400), warmup=st.integers(1, 10),
    decay=st.floats(0, 0.9), form=st.sampled_from(sorted(DECAY_FORMS)),
)  # fmt: skip
def test_a_longer_run_begins_with_the_stable_steps_of_a_shorter_one(
    steps: int, more: int, warmup: int, decay: float, form: str
) -> None:
    recipe = Recipe(warmup_steps=warmup, decay=decay, decay_form=form)
    stable = recipe.stable_steps(steps)
    for step in range(stable):
        assert recipe.share(step, steps) == recipe.share(step, steps + more)
    if warmup <= stable < steps:
        assert recipe.share(stable, steps) < 1


SHAPE_OF_TWICE_THE_WIDTH = Shape(
    hidden_size=128, intermediate_size=24, num_hidden_layers=8, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, vocab_size=50,
)  # fmt: skip
RATES = [
    ({"rule": "constant"}, 0.01, 0.006),
    ({"rule": "power", "width_exponent": -0.5, "depth_exponent": -1.0}, 0.0035355, 0.0021213),
    ({"rule": "mup"}, 0.01, 0.006),
    ({"rule": "mup", "optimizer": "adamw"}, 0.003, 0.006),
]


@pytest.mark.parametrize(("changes", "matrix", "rest"), RATES)
def test_a_rule_gives_a_shape_its_learning_rates(
    changes: dict[str, object], matrix: float, rest: float
) -> None:
    scaled = Recipe(**changes).for_shape(SHAPE_OF_TWICE_THE_WIDTH)  # type: ignore[arg-type]
    assert scaled.matrix_learning_rate == pytest.approx(matrix, rel=1e-4)
    assert scaled.learning_rate == pytest.approx(rest, rel=1e-4)
    assert scaled.rule == "constant"


def test_the_rule_by_size_falls_with_the_cube_root_of_parameters() -> None:
    small, large = (
        replace(SHAPE_OF_TWICE_THE_WIDTH, num_hidden_layers=layers) for layers in (2, 16)
    )
    recipe = Recipe(rule="size")
    ratio = recipe.for_shape(large).learning_rate / recipe.for_shape(small).learning_rate
    assert ratio == pytest.approx((large.n_non_embedding / small.n_non_embedding) ** (-1 / 3))


def test_the_optimiser_trains_with_the_rates_of_the_rule() -> None:
    trained = model()
    recipe = Recipe(rule="power", width_exponent=1.0, reference_hidden_size=1)
    ruled = Optimizer(trained, recipe, 10)
    assert ruled.peaks == [0.01 * trained.shape.hidden_size, 0.006 * trained.shape.hidden_size]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_exactly_the_matrices_inside_layers(tied: bool) -> None:
    trained = model(tied=tied)
    first, second = BUILDERS["muon"](trained, RECIPE)
    names = {id(weight): name for name, weight in trained.named_parameters()}
    of_muon = {names[id(weight)] for weight in first.param_groups[0]["params"]}
    assert type(first) is Muon
    assert of_muon == {
        name
        for name, weight in trained.named_parameters()
        if weight.ndim == 2 and name.startswith("layers.")
    }
    rest = {names[id(weight)] for weight in second.param_groups[0]["params"]}
    assert of_muon | rest == set(names.values())
    assert {"embed_tokens.weight", "norm.weight"} <= rest
    assert second.param_groups[0]["weight_decay"] == 0


def test_adamw_decays_matrices_only() -> None:
    for part in BUILDERS["adamw"](model(), RECIPE):
        dimensions = {weight.ndim for weight in part.param_groups[0]["params"]}
        assert dimensions in ({1}, {2})
        decay = part.param_groups[0]["weight_decay"]
        assert decay == (RECIPE.weight_decay if dimensions == {2} else 0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", BUILDERS)
class TestEveryOptimizer:
    """The contract of an entry of BUILDERS."""

    def test_every_weight_is_trained_by_one_part(self, name: str, tied: bool) -> None:
        trained = model(tied=tied)
        parts = BUILDERS[name](trained, RECIPE)
        groups = [group for part in parts for group in part.param_groups]
        owned = [id(weight) for group in groups for weight in group["params"]]
        assert sorted(owned) == sorted(id(weight) for weight in trained.parameters())
        assert all(len(part.param_groups) == 1 for part in parts)

    def test_a_step_moves_every_weight_and_clears_gradients(self, name: str, tied: bool) -> None:
        trained = model(tied=tied)
        before = weights(trained)
        optimizer = Optimizer(trained, replace(RECIPE, optimizer=name), STEPS)
        take_steps(trained, optimizer, range(1))
        for old, weight in zip(before, trained.parameters(), strict=True):
            assert not torch.equal(old, weight)
            assert weight.grad is None

    def test_rates_are_peaks_times_the_share_of_the_step(self, name: str, tied: bool) -> None:
        trained = model(tied=tied)
        optimizer = Optimizer(trained, replace(RECIPE, optimizer=name), STEPS)
        peaks = [part.param_groups[0]["lr"] for part in optimizer.parts]
        for step in (0, 10, 19, 5):
            take_steps(trained, optimizer, range(step, step + 1))
            share = RECIPE.share(step, STEPS)
            rates = [part.param_groups[0]["lr"] for part in optimizer.parts]
            assert rates == [peak * share for peak in peaks]

    def test_state_and_weights_continue_as_if_never_stopped(self, name: str, tied: bool) -> None:
        recipe = replace(RECIPE, optimizer=name)
        straight = model(tied=tied)
        whole = Optimizer(straight, recipe, STEPS)
        take_steps(straight, whole, range(7))
        stopped = model(seed=9, tied=tied)
        with torch.no_grad():
            for weight, known in zip(stopped.parameters(), weights(straight), strict=True):
                weight.copy_(known)
        resumed = Optimizer(stopped, recipe, STEPS)
        resumed.load({key: value.clone() for key, value in whole.state().items()})
        for trained, optimizer in ((straight, whole), (stopped, resumed)):
            take_steps(trained, optimizer, range(7, 12))
        for a, b in zip(weights(straight), weights(stopped), strict=True):
            assert torch.equal(a, b)
        assert set(whole.state()) == set(resumed.state())

    def test_loaded_state_does_not_alias_its_source(self, name: str, tied: bool) -> None:
        trained = model(tied=tied)
        optimizer = Optimizer(trained, replace(RECIPE, optimizer=name), STEPS)
        take_steps(trained, optimizer, range(2))
        saved = {key: value.clone() for key, value in optimizer.state().items()}
        kept = {key: value.clone() for key, value in saved.items()}
        optimizer.load(saved)
        take_steps(trained, optimizer, range(2, 4))
        assert all(torch.equal(saved[key], kept[key]) for key in kept)
