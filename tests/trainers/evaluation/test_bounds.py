"""Downstream scores of diffusion models by the bound, against sums over all masks."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.encoding import byte_encoding
from shapelaw.trainers.evaluation.blimp import blimp_accuracy, blimp_answers
from shapelaw.trainers.evaluation.bounds import (
    difference_error,
    log_probabilities,
    trained_objective,
)
from shapelaw.trainers.evaluation.eval_sets import EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import likelihoods, request_of
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import FULL, Visibility

torch.set_num_threads(1)
BYTES = byte_encoding()
MASK = 256
CONFIG = {
    "model_type": "qwen3", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "tie_word_embeddings": True, "mask_token_id": MASK,
}  # fmt: skip
PAIRS = [("a cat is", "cat a is"), ("he saw it", "he it"), ("two dogs run", "two dogs runs")]


def model(length: int = 32) -> Transformer:
    """Return a model with random norms and larger weights."""
    built = Transformer(read_architecture(CONFIG), context_length=length)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in built.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3, generator=generator)
    return built


def nll(built: Transformer, tokens: list[int], masked: set[int], block: int) -> float:
    """Return the cross-entropy of masked positions, of one block where there are blocks.

    With blocks the sequence ends with the block, and the earlier ones are clean: then one pass with
    block visibility is the pass of decoding.
    """
    noisy = [MASK if place in masked else token for place, token in enumerate(tokens)]
    visibility = Visibility("block", block) if block else FULL
    with torch.inference_mode():
        logits = built.logits(built(torch.tensor([noisy]), visibility=visibility))[0].double()
    losses = -logits.log_softmax(dim=-1)
    return sum(float(losses[place, tokens[place]]) for place in masked)


def bound_by_enumeration(built: Transformer, text: str, block: int) -> float:
    """Sum over all masks of each block: the mean over l of the mean over sets of l of (L/l)·Σ CE.

    Position 0 is the separator, which is never masked.
    """
    tokens = [0, *text.encode()]
    size, total = block or len(tokens), 0.0
    for begin in range(0, len(tokens), size):
        places = [place for place in range(begin, min(begin + size, len(tokens))) if place]
        for count in range(1, len(places) + 1):
            sets = list(itertools.combinations(places, count))
            losses = [nll(built, tokens[: begin + size], set(each), block) for each in sets]
            total += sum(losses) / len(sets) / count
    return total


@pytest.mark.parametrize(
    ("objective", "block"), [("masked_diffusion", 0), ("block:2", 2), ("block:4/llada2", 4)]
)
def test_bound_of_a_short_text_is_the_sum_over_all_its_masks(objective: str, block: int) -> None:
    built = model()
    texts = ["catsu", "dog", "a"]
    found = log_probabilities(built, [request_of(BYTES, "", text) for text in texts], objective,
                              draws=1000)  # fmt: skip
    assert found.draws is not None
    errors = difference_error(found.draws)
    wanted = np.array([-bound_by_enumeration(built, text, block) for text in texts])
    assert np.abs(found.log_probability - wanted).max() < 0.5
    assert (np.abs(found.log_probability - wanted) <= 4 * errors + 1e-4).all()
    assert errors[2] < 1e-5 < errors[0] < 0.2  # one token has one mask
    short = log_probabilities(built, [request_of(BYTES, "", texts[0])], objective, draws=4)
    assert short.draws is not None
    assert difference_error(short.draws)[0] > 3 * errors[0]


def test_bound_of_blocks_of_one_token_is_the_exact_log_probability() -> None:
    built = model()
    found = log_probabilities(built, [request_of(BYTES, "a", " cat")], "block:1")
    tokens, wanted = [0, *b"a cat"], 0.0
    for place in range(2, 6):
        wanted -= nll(built, tokens[: place + 1], {place}, 1)
    assert found.log_probability[0] == pytest.approx(wanted, rel=1e-5)
    assert found.draws is not None
    assert difference_error(found.draws)[0] == 0


def test_error_of_a_difference_is_the_spread_of_repeated_estimates() -> None:
    """Collapsed strata overestimate it, by what the strata of a pair differ."""
    built = model()
    requests = [request_of(BYTES, "", text, number) for number in range(60) for text in PAIRS[2]]
    found = log_probabilities(built, requests, "masked_diffusion")
    assert found.draws is not None
    differences = found.draws[0::2] - found.draws[1::2]
    spread = differences.mean(axis=1).std(ddof=1)
    estimated = math.sqrt((difference_error(differences) ** 2).mean())
    assert 0.8 < estimated / spread < 1.6
    others = np.roll(found.draws[1::2], 1, axis=0)  # of other masks
    assert (found.draws[0::2] - others).mean(axis=1).std(ddof=1) > 1.2 * spread


def test_pairs_have_the_same_masks_and_equal_sentences_are_tied() -> None:
    answers = blimp_answers(model(), BYTES, {"one": [*PAIRS, ("same", "same")]}, "masked_diffusion")
    assert answers.errors is not None
    assert (answers.differences[3], answers.errors[3]) == (0.0, 0.0)
    assert answers.correct["one"][3]
    swapped = blimp_answers(model(), BYTES, {"one": [(b, a) for a, b in PAIRS]}, "masked_diffusion")
    assert swapped.differences == pytest.approx(-answers.differences[:3])


def test_score_of_a_diffusion_model_says_that_it_is_by_a_bound() -> None:
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    evals = EvalFiles({"blimp/one.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    score = blimp_accuracy(model(), BYTES, evals, objective="block:4")
    answers = blimp_answers(model(), BYTES, {"one": PAIRS}, "block:4")
    assert score.accuracy == np.mean(answers.differences >= 0)
    assert score.details["loss_kind"] == "bound"
    assert score.details["mean_difference"] == pytest.approx(answers.differences.mean())
    assert 0 <= score.details["unresolved_pairs"] <= 1
    plain = {name: value for name, value in CONFIG.items() if name != "mask_token_id"}
    exact = blimp_accuracy(Transformer(read_architecture(plain), context_length=32), BYTES, evals)
    assert "loss_kind" not in exact.details


def test_text_beyond_the_context_is_scored_in_pieces_and_counted() -> None:
    built = model(length=8)
    found = log_probabilities(
        built, [request_of(BYTES, "", "a long sentence"), request_of(BYTES, "", "abc")], "block:4"
    )
    assert found.truncated == 1
    assert found.log_probability[0] < -15  # each token costs about ln 256


def test_next_token_scores_of_a_diffusion_model_are_refused() -> None:
    with pytest.raises(InputError, match="score it by the bound of its objective"):
        likelihoods(model(), [request_of(BYTES, "", "a")])


def test_objective_of_an_export_comes_from_its_rows_or_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`rows.json` of .* must name the objective"):
        trained_objective(tmp_path, model())
    (tmp_path / "rows.json").write_text('{"rows": [{"objective": "block:16/d2f"}]}')
    assert trained_objective(tmp_path, model()) == "block:16/d2f"
    dhara = read_architecture({"model_type": "dhara", "hidden_size": 16, "intermediate_size": 16,
                               "num_hidden_layers": 1, "num_attention_heads": 2,
                               "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32,
                               "mask_token_id": 31})  # fmt: skip
    published = Transformer(dhara, context_length=8)
    assert trained_objective(tmp_path / "none", published) == "masked_diffusion"
