import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.evaluation.held_out import evaluate_sets, evaluate_tokens, loss_columns
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.next_token import token_losses
from shapelaw.trainers.optimizers.recipe import Recipe

torch.set_num_threads(1)
SHAPE = Shape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, vocab_size=50, tie_word_embeddings=False,
)  # fmt: skip
RECIPE = Recipe(context_length=8, sequences=2)
TEXT = np.random.default_rng(0).integers(0, 50, 801).astype(np.uint16)


def model(scale: float = 1.0) -> Transformer:
    built = Transformer(SHAPE, context_length=8)
    built.initialise(0)
    with torch.no_grad():
        built.lm_head.weight.mul_(scale)
    return built


class Recorder(Transformer):
    """Model that records the first token of every window."""

    seen: list[int]

    def forward(self, tokens: torch.Tensor, **options: object) -> torch.Tensor:  # type: ignore[override]
        self.seen += tokens[:, 0].tolist()
        return super().forward(tokens, **options)  # type: ignore[arg-type]


def test_loss_of_a_uniform_model_is_the_logarithm_of_the_vocabulary() -> None:
    found = evaluate_tokens(model(scale=0.0), TEXT, RECIPE, bytes_per_token=2.5)
    assert found.loss == pytest.approx(math.log(50), abs=1e-6)
    assert found.loss_se == pytest.approx(0, abs=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(50) / 2.5, abs=1e-6)


def test_losses_are_minus_the_log_probability_of_each_next_token() -> None:
    trained = model(scale=3.0)
    batch = torch.from_numpy(TEXT[:18].astype(np.int64)).view(2, 9)
    with torch.inference_mode():
        losses = token_losses(trained, batch, RECIPE)
        probabilities = trained.logits(trained(batch[:, :-1])).softmax(dim=-1)
    assert losses.shape == (2, 8)
    for row in range(2):
        for position in range(8):
            chance = float(probabilities[row, position, batch[row, position + 1]])
            assert float(losses[row, position]) == pytest.approx(-math.log(chance), rel=1e-4)


@dataclass(frozen=True)
class Held:
    tokens: np.ndarray
    bytes_per_token: float


@dataclass(frozen=True)
class HeldDocuments(Held):
    starts: np.ndarray


def test_error_of_bits_per_byte_is_the_converted_error_of_the_loss() -> None:
    found = evaluate_tokens(model(scale=3.0), TEXT, RECIPE, bytes_per_token=2.5)
    assert found.bits_per_byte_se == pytest.approx(found.loss_se / math.log(2) / 2.5)
    assert found.bits_per_byte_se / found.bits_per_byte == pytest.approx(found.loss_se / found.loss)


def losses_by_token(trained: Transformer, text: np.ndarray) -> np.ndarray:
    """Compute the loss of each evaluated token of a text, without the code under test."""
    count = (len(text) - 1) // 8 * 8
    rows = np.stack([text[begin : begin + 9] for begin in range(0, count, 8)]).astype(np.int64)
    with torch.inference_mode():
        return token_losses(trained, torch.from_numpy(rows), RECIPE).double().numpy().ravel()


def test_error_with_documents_is_the_ratio_estimator_over_documents() -> None:
    trained, draws = model(scale=3.0), np.random.default_rng(1)
    starts = np.append(0, np.sort(draws.choice(np.arange(1, 800), 39, replace=False)))
    found = evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0, starts=starts)
    losses = losses_by_token(trained, TEXT)
    documents = np.split(losses, starts[1:] - 1)  # the first token of the text is not predicted
    sums, sizes = np.array([(part.sum(), len(part)) for part in documents if len(part)]).T
    ratio = sums.sum() / sizes.sum()
    variance = len(sums) / (len(sums) - 1) * ((sums - ratio * sizes) ** 2).sum() / sizes.sum() ** 2
    assert found.loss == pytest.approx(ratio)
    assert found.loss_se == pytest.approx(math.sqrt(variance), rel=1e-6)
    assert found.clusters == f"{len(sums)} documents"


def test_near_copies_within_documents_give_the_error_of_their_number_of_documents() -> None:
    trained = model(scale=3.0)
    pair = np.concatenate([np.tile(TEXT[40 * i : 40 * i + 8], 4) for i in range(40)])
    text = np.append(pair, 0).astype(np.uint16)
    found = evaluate_tokens(trained, text, RECIPE, bytes_per_token=1.0, starts=np.arange(40) * 32)
    independent = found.windows.std(ddof=1) / math.sqrt(len(found.windows))
    assert found.loss_se > 1.6 * independent  # four near copies: about twice


def test_error_over_documents_is_the_spread_between_texts_of_such_documents() -> None:
    trained, draws = model(scale=3.0), np.random.default_rng(2)
    found = []
    for _ in range(60):
        # A document repeats one token, so that its tokens have nearly one loss.
        tokens = [np.repeat(draws.integers(50), draws.integers(1, 40)) for _ in range(60)]
        starts = np.cumsum([0, *map(len, tokens[:-1])])
        text = np.concatenate(tokens).astype(np.uint16)
        found.append(evaluate_tokens(trained, text, RECIPE, bytes_per_token=1.0, starts=starts))
    spread = np.std([each.loss for each in found], ddof=1)
    assert np.mean([each.loss_se for each in found]) == pytest.approx(spread, rel=0.3)
    windows = np.mean([each.windows.std(ddof=1) / len(each.windows) ** 0.5 for each in found])
    assert windows < 0.7 * spread


def test_one_text_without_documents_has_the_error_of_its_blocks() -> None:
    trained = model(scale=3.0)
    drifting = np.repeat(TEXT[:20], 40)  # neighbouring windows are alike
    text = np.append(drifting, 0).astype(np.uint16)
    found = evaluate_tokens(trained, text, RECIPE, bytes_per_token=1.0)
    means = found.windows.reshape(20, 5).mean(axis=1)
    assert found.clusters == "20 blocks"
    assert found.loss_se == pytest.approx(means.std(ddof=1) / math.sqrt(20), rel=1e-6)
    assert found.loss_se > 1.5 * found.windows.std(ddof=1) / 10


def test_text_of_too_few_documents_has_the_error_of_its_blocks() -> None:
    trained = model(scale=3.0)
    alone = evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0)
    few = evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0, starts=np.array([0, 400]))
    assert (few.loss_se, few.clusters) == (alone.loss_se, "20 blocks")


def test_named_sets_are_evaluated_separately() -> None:
    trained = model(scale=3.0)
    starts = np.arange(50) * 16
    sets = {"news": Held(TEXT[:401], 2.0), "books": HeldDocuments(TEXT, 1.0, starts)}
    found = evaluate_sets(trained, sets, RECIPE)
    assert list(found) == ["news", "books"]
    news = evaluate_tokens(trained, TEXT[:401], RECIPE, bytes_per_token=2.0)
    books = evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0, starts=starts)
    assert (found["news"].loss, found["news"].bits_per_byte) == (news.loss, news.bits_per_byte)
    assert (found["books"].loss, found["books"].loss_se) == (books.loss, books.loss_se)


def test_columns_of_named_sets_have_names_and_errors() -> None:
    found = evaluate_sets(model(scale=3.0), {"news": Held(TEXT, 2.0)}, RECIPE)
    assert loss_columns(found) == {
        "loss_news": found["news"].loss,
        "loss_news_se": found["news"].loss_se,
        "bits_per_byte_news": found["news"].bits_per_byte,
        "bits_per_byte_news_se": found["news"].bits_per_byte_se,
    }


def test_loss_and_error_are_computed_from_the_windows() -> None:
    trained = model(scale=3.0)
    found = evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0)
    assert found.windows.shape == (100,)
    with torch.inference_mode():
        for index in (0, 37, 99):
            window = torch.from_numpy(TEXT[8 * index : 8 * index + 9].astype(np.int64))[None]
            alone = float(token_losses(trained, window, RECIPE).mean())
            assert found.windows[index] == pytest.approx(alone, rel=1e-5)
    assert found.loss == found.windows.mean()
    blocks = found.windows.reshape(20, 5).mean(axis=1)
    assert found.loss_se == pytest.approx(blocks.std(ddof=1) / math.sqrt(20), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))


def test_windows_of_a_long_text_are_spread_evenly() -> None:
    shape = Shape(**(vars(SHAPE) | {"vocab_size": 1000}))
    recorder = Recorder(shape, context_length=8)
    recorder.initialise(0)
    recorder.seen = []
    tokens = np.arange(801).astype(np.uint16)
    evaluate_tokens(recorder, tokens, RECIPE, bytes_per_token=1.0, most=80)
    assert len(recorder.seen) == 10
    assert recorder.seen[0] == 0
    assert recorder.seen[-1] == 792
    assert np.ptp(np.diff(recorder.seen)) <= 8


def test_every_model_is_evaluated_on_the_same_windows() -> None:
    first, second = (
        evaluate_tokens(model(scale), TEXT, RECIPE, bytes_per_token=1.0) for scale in (1.0, 1.0)
    )
    assert np.array_equal(first.windows, second.windows)


def test_a_text_shorter_than_one_window_gives_one_window() -> None:
    found = evaluate_tokens(model(), TEXT[:5], RECIPE, bytes_per_token=1.0)
    assert found.windows.shape == (1,)
    assert (found.loss_se, found.clusters) == (0, "1 block")
    assert np.isfinite(found.loss)


def test_evaluation_does_not_change_weights_and_gradients() -> None:
    trained = model()
    before = [weight.detach().clone() for weight in trained.parameters()]
    evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0)
    for old, weight in zip(before, trained.parameters(), strict=True):
        assert torch.equal(old, weight)
        assert weight.grad is None


def test_loss_in_bfloat16_is_near_that_in_float32() -> None:
    trained = model(scale=3.0)
    lower = Recipe(context_length=8, sequences=2, dtype="bfloat16")
    full = evaluate_tokens(trained, TEXT, RECIPE, bytes_per_token=1.0)
    half = evaluate_tokens(trained, TEXT, lower, bytes_per_token=1.0)
    assert half.loss == pytest.approx(full.loss, rel=0.01)
    assert not np.array_equal(half.windows, full.windows)
