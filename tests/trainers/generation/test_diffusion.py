"""Decoders of diffusion models against slow decoders in loops, and what they refuse."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.generation.acceptance import Acceptance
from shapelaw.trainers.generation.decoding_settings import (
    Decoded,
    DecodingSettings,
    parse_decoder,
)
from shapelaw.trainers.generation.diffusion import decode
from shapelaw.trainers.models.transformer import Transformer
from support.slow_decoder import SlowDecoder

MASK, END = 30, 7
CONFIG = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mask_token_id": MASK,
}
PROMPT = [3, 1, 4, 1, 5]
THRESHOLDS = [(0.9, 0.1, 0.95), (0.3, 0.1, 0.95), (0.2, 0.5, 0.5), (0.25, 0.0, 1.0), (0.1, 1.0, 0)]


def model_of(seed: int = 0, scale: float = 0.35, **fields: object) -> Transformer:
    """Build a model in float64 with random weights, large enough for confident guesses."""
    model = Transformer(read_architecture({**CONFIG, **fields}), context_length=64).eval().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, scale, generator=generator)
    return model


@pytest.fixture(params=["llama", "canon", "latent", "window"])
def model(request: pytest.FixtureRequest) -> Transformer:
    """Models of several kinds of layers."""
    latent = {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 2,
    }
    fields: dict[str, dict[str, object]] = {
        "llama": {},
        "canon": {"canon_set": "ABCD"},
        "latent": latent,
        "window": {"model_type": "mistral", "sliding_window": 6},
    }
    return model_of(**fields[request.param])


def decoded(model: Transformer, text: str, length: int = 24, **changes: object) -> Decoded:
    chosen = parse_decoder(text)
    if changes:
        values = {**vars(chosen), **{k: v for k, v in changes.items() if k != "cached"}}
        chosen = DecodingSettings(**values)
    cached = bool(changes.get("cached", True))
    return decode(model, torch.tensor([PROMPT]), chosen, length=length, cached=cached)


def recorded(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Keep the logits that a model computes, one row per position, mask token included."""
    rows: list[torch.Tensor] = []
    plain = Transformer.logits

    def logits(self: Transformer, hidden: torch.Tensor) -> torch.Tensor:
        result = plain(self, hidden)
        rows.extend(result.clone())
        return result

    monkeypatch.setattr(Transformer, "logits", logits)
    return rows


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(("confidence", "add", "activate"), THRESHOLDS)
def test_pipelined_decoder_equals_the_slow_one(
    model: Transformer,
    confidence: float,
    add: float,
    activate: float,
    seed: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling: dict[str, object] = {} if seed is None else {"temperature": 0.8, "seed": seed}
    slow = SlowDecoder(model, PROMPT, 24, 6, **sampling)  # type: ignore[arg-type]
    expected = slow.pipelined(confidence=confidence, add=add, activate=activate)
    rows = recorded(model, monkeypatch)
    text = f"d2f:block=6,confidence={confidence},add={add},activate={activate}"
    fast = decoded(model, text, **sampling)
    assert fast.tokens.tolist() == [expected]
    assert fast.forwards == slow.forwards
    torch.testing.assert_close(torch.stack(rows), torch.stack(slow.logits), rtol=0, atol=1e-5)


SHARES = st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.75, 0.95, 1.0))


@settings(max_examples=80, deadline=None)
@given(
    block=st.integers(1, 7),
    blocks=st.integers(1, 5),
    prompt=st.lists(st.integers(0, 29), min_size=1, max_size=9),
    shares=st.tuples(SHARES, SHARES, SHARES),
    sampling=st.sampled_from((0.0, 1.0)),
    end=st.one_of(st.none(), st.integers(0, 29)),
    end_last=st.booleans(),
    seed=st.integers(0, 3),
)
def test_pipelined_decoder_equals_the_slow_one_at_any_settings(
    block: int,
    blocks: int,
    prompt: list[int],
    shares: tuple[float, float, float],
    sampling: float,
    end: int | None,
    end_last: bool,
    seed: int,
) -> None:
    confidence, add, activate = shares
    common = {"temperature": sampling, "seed": seed, "end": end, "end_last": end_last}
    chosen = DecodingSettings(
        decoder="d2f", block=block, confidence=confidence, add=add, activate=activate, **common
    )
    model = model_of(seed)
    slow = SlowDecoder(model, prompt, block * blocks, block, **common)
    expected = slow.pipelined(confidence=confidence, add=add, activate=activate)
    fast = decode(model, [prompt], chosen, length=block * blocks)
    assert fast.tokens.tolist() == [expected]
    assert fast.forwards == slow.forwards
    assert fast.useful == (expected.index(end) if end in expected else len(expected),)


@pytest.mark.parametrize("text", ["d2f:block=6,confidence=0.3", "block:block=8,steps=3"])
def test_cached_decoding_equals_uncached(
    model: Transformer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = recorded(model, monkeypatch)
    cached = decoded(model, text)
    first = torch.stack(rows)
    rows.clear()
    uncached = decoded(model, text, cached=False)
    assert torch.equal(cached.tokens, uncached.tokens)
    assert cached.forwards == uncached.forwards
    torch.testing.assert_close(first, torch.stack(rows), rtol=0, atol=1e-5)
    assert cached.passed_tokens < uncached.passed_tokens


def test_pipelined_decoder_passes_only_what_follows_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[tuple[int, int, int]] = []
    plain = Transformer.forward

    def forward(self: Transformer, tokens: torch.Tensor, **view: int) -> torch.Tensor:
        passes.append((view["start"], view["keep"], tokens.shape[1]))
        return plain(self, tokens, **view)

    monkeypatch.setattr(Transformer, "forward", forward)
    result = decoded(model_of(), "d2f:block=4,confidence=0.4,add=0.5", length=32)
    start = 0
    for begun, keep, count in passes:
        assert begun == start  # what is cached is never computed again
        start += keep
        assert count >= 4
        assert (start - len(PROMPT)) % 4 == 0  # boundaries count from the end of the prompt
    assert passes[0] == (0, len(PROMPT), len(PROMPT) + 4)
    assert sum(count for _, _, count in passes) == result.passed_tokens


def test_pipeline_that_waits_for_each_block_is_block_decoding() -> None:
    fewer = 0
    for seed in range(4):
        model = model_of(seed)
        waiting = decoded(model, "d2f:block=6,confidence=0.3,add=1.0")
        block = decoded(model, "block:block=6,confidence=0.3")
        assert torch.equal(waiting.tokens, block.tokens)
        assert waiting.forwards == block.forwards
        fewer += block.forwards - decoded(model, "d2f:block=6,confidence=0.3,add=0.2").forwards
    assert fewer > 4


@pytest.mark.parametrize("steps", [1, 4, 5, 8])
def test_llada_decoder_equals_the_slow_one(model: Transformer, steps: int) -> None:
    slow = SlowDecoder(model, PROMPT, 24, 8)
    expected = slow.whole(steps=steps)
    result = decoded(model, f"llada:block=8,steps={steps}")
    assert result.tokens.tolist() == [expected]
    assert result.forwards == slow.forwards == 3 * steps
    assert result.tokens_per_forward == pytest.approx(8 / steps)


@pytest.mark.parametrize("confidence", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_threshold_decoder_equals_the_slow_one(
    model: Transformer, confidence: float, temperature: float
) -> None:
    slow = SlowDecoder(model, PROMPT, 24, 8, temperature=temperature, seed=3)
    expected = slow.whole(confidence=confidence)
    text = f"threshold:block=8,confidence={confidence},temperature={temperature},seed=3"
    result = decoded(model, text)
    assert result.tokens.tolist() == [expected]
    assert result.forwards == slow.forwards


def test_first_passes_decide_what_does_not_divide() -> None:
    assert parse_decoder("llada:block=8,steps=3").passes() == [3, 3, 2]
    assert parse_decoder("block:block=8,steps=5").passes() == [2, 2, 2, 1, 1]
    assert parse_decoder("llada:block=4").passes() == [1, 1, 1, 1]
    assert parse_decoder("threshold:block=4").passes() is None


@pytest.mark.parametrize("end_last", [False, True])
@pytest.mark.parametrize("decoder", ["llada", "threshold", "block", "d2f"])
def test_text_ends_at_the_first_end_token(decoder: str, *, end_last: bool) -> None:
    seen = set()
    for seed in range(8):
        model = model_of(seed, tie_word_embeddings=False)
        with torch.no_grad():  # the end token becomes likely
            model.lm_head.weight[END] *= 3
        slow = SlowDecoder(model, PROMPT, 24, 6, end=END, end_last=end_last)
        if decoder == "llada":
            expected = slow.whole(steps=6)
        elif decoder == "threshold":
            expected = slow.whole(confidence=0.3)
        else:
            add = 0.1 if decoder == "d2f" else 1.0
            expected = slow.pipelined(confidence=0.3, add=add, activate=0.95)
        options = {"llada": "block=6,steps=6"}.get(decoder, "block=6,confidence=0.3")
        result = decoded(model, f"{decoder}:{options}", end=END, end_last=end_last)
        assert result.tokens.tolist() == [expected]
        assert result.forwards == slow.forwards
        place = expected.index(END) if END in expected else 24
        assert result.useful == (place,)
        assert result.tokens_per_forward == place / result.forwards
        assert result.tokens_per_second == pytest.approx(place / result.seconds)
        seen.add(place)
    assert len(seen) > 1
    assert min(seen) < 24


def logits_of_mask(model: Transformer) -> None:
    with torch.no_grad():
        model.lm_head.weight[MASK] = 50 * torch.ones(24)
        model.norm.weight.fill_(3.0)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("decoder", ["ar", "llada", "threshold", "block", "d2f"])
def test_mask_token_is_never_emitted(decoder: str, temperature: float) -> None:
    model = model_of(tie_word_embeddings=False)
    logits_of_mask(model)
    options = "" if decoder == "ar" else "block=6,"
    result = decoded(model, f"{decoder}:{options}temperature={temperature}")
    assert MASK not in result.tokens
    assert result.tokens.shape == (1, 24)
    assert int(result.tokens.min()) >= 0


@pytest.mark.parametrize("text", ["ar:", "llada:block=6,steps=4", "block:block=6,confidence=0.4"])
def test_greedy_sequences_of_a_batch_are_those_of_single_ones(text: str) -> None:
    model = model_of(2)
    prompts = [[3, 1, 4], [2, 7, 1], [9, 9, 8]]
    settings = parse_decoder(text)
    together = decode(model, prompts, settings, length=24)
    alone = [decode(model, [prompt], settings, length=24) for prompt in prompts]
    assert together.tokens.tolist() == [each.tokens[0].tolist() for each in alone]
    most = max(each.forwards for each in alone)
    assert most <= together.forwards <= sum(each.forwards for each in alone)


def test_pipeline_of_a_batch_decides_every_token_and_keeps_to_its_cache() -> None:
    model = model_of(2)
    prompts = [[3, 1, 4], [2, 7, 1], [9, 9, 8]]
    settings = parse_decoder("d2f:block=6,confidence=0.4")
    cached, uncached = (
        decode(model, prompts, settings, length=24, cached=flag) for flag in (True, False)
    )
    assert torch.equal(cached.tokens, uncached.tokens)
    assert MASK not in cached.tokens
    assert cached.useful == (24, 24, 24)


def test_autoregressive_decoder_takes_the_most_probable_next_tokens() -> None:
    model = model_of(mask_token_id=None)
    text = list(PROMPT)
    with torch.no_grad():
        for _ in range(10):
            text.append(int(model.logits(model(torch.tensor([text])))[0, -1].argmax()))
    result = decoded(model, "ar", length=10)
    assert result.tokens.tolist() == [text[len(PROMPT) :]]
    assert (result.forwards, result.passed_tokens) == (10, len(PROMPT) + 9)
    assert result.tokens_per_forward == 1
    ended = decoded(model, "ar", length=10, end=text[8])
    assert ended.useful == (text[len(PROMPT) :].index(text[8]),)


def draws(temperature: float, rows: int = 4000) -> Iterator[tuple[int, float]]:
    settings = DecodingSettings(decoder="ar", temperature=temperature, seed=5)
    rule = Acceptance(settings, mask=3, batch=1)
    logits = torch.tensor([[1.0, 0.0, -1.0, -math.inf, 0.5]]).repeat(rows, 1)
    tokens, confidence = rule.choose(logits, [rows])
    return zip(tokens.tolist(), confidence.tolist(), strict=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_have_the_probabilities_of_the_temperature(temperature: float) -> None:
    values = {0: 1.0, 1: 0.0, 2: -1.0, 4: 0.5}
    scale = sum(math.exp(value / temperature) for value in values.values())
    plain = sum(math.exp(value) for value in values.values())
    pairs = list(draws(temperature))
    for token, value in values.items():
        share = sum(drawn == token for drawn, _ in pairs) / len(pairs)
        expected = math.exp(value / temperature) / scale
        assert share == pytest.approx(expected, abs=4 * (expected / len(pairs)) ** 0.5)
        confidences = {confidence for drawn, confidence in pairs if drawn == token}
        assert confidences  # the noise is not in the confidence, nor is the temperature
        assert sorted(confidences) == pytest.approx([math.exp(value) / plain], rel=1e-6)
    assert not any(drawn == 3 for drawn, _ in pairs)


def test_samples_depend_on_the_seed_only() -> None:
    model = model_of()
    texts = ["d2f:block=6,temperature=1.0,seed=1", "d2f:block=6,temperature=1.0,seed=2"]
    first, second, again = (decoded(model, text).tokens for text in (*texts, texts[0]))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("fast", "`--decoder` must be one of ar, llada, threshold, block, d2f, but got 'fast'"),
        ("d2f:confidence=1.5", "`confidence` of --decoder must be from 0 to 1, but got 1.5"),
        ("d2f:add=-0.1", "`add` of --decoder must be from 0 to 1, but got -0.1; use 0.1"),
        ("d2f:activate=2", "`activate` of --decoder must be from 0 to 1"),
        ("d2f:confidence=nan", "`confidence` of --decoder must be a number, but got 'nan'"),
        ("d2f:block=0", "`block` of --decoder must be from 1 to"),
        ("d2f:block=1.5", "`block` of --decoder must be a whole number, but got '1.5'"),
        ("d2f:steps=4", "`--decoder d2f` takes block, confidence, add, activate, temperature"),
        ("d2f:block", "each once and as NAME=NUMBER, but got 'block'"),
        ("d2f:block=4,block=8", "each once"),
        ("ar:block=4", "`--decoder ar` takes temperature, seed"),
        ("llada:block=4,steps=5", "`1 <= steps <= block` must hold for --decoder, but got 5 and 4"),
        ("block:temperature=-1", "`temperature` of --decoder must be from 0 to 100, but got -1"),
    ],
)
def test_bad_settings_are_refused_with_one_error(text: str, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_decoder(text)
    assert rule in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["d2f:block=16,add=0.5", "ar", "llada:block=8,steps=2"])
def test_settings_print_as_the_text_that_gives_them(text: str) -> None:
    assert str(parse_decoder(text)) == text
    assert parse_decoder(str(parse_decoder(text))) == parse_decoder(text)


def refused(rule: str, prompt: object, settings: str, **changes: object) -> None:
    length = int(str(changes.pop("length", 24)))
    with pytest.raises(InputError, match=rule):
        decode(model_of(**changes), prompt, parse_decoder(settings), length=length)  # type: ignore[arg-type]


def test_models_prompts_and_lengths_that_do_not_fit_are_refused() -> None:
    refused("needs a model with a mask token", [PROMPT], "block:block=6", mask_token_id=None)
    refused("`length % block == 0` must hold for --decoder d2f", [PROMPT], "d2f:block=5")
    refused("generate 20", [PROMPT], "d2f:block=5")
    refused("prompts of a batch must have one length", [[1, 2], [1]], "d2f:block=6")
    refused("with at least one token", [[]], "d2f:block=6")
    refused("must not hold the mask token 30", [[1, MASK]], "d2f:block=6")
    refused("must be at most 64 tokens", [PROMPT], "d2f:block=6", length=60)
    refused("at least 1 to generate, but got 5 and 0", [PROMPT], "ar", length=0)
    refused("Dream predicts the next one", [PROMPT], "block:block=6", model_type="Dream")
