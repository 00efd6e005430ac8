import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer
from support.tiny_configs import TINY_CONFIGS

torch.set_num_threads(1)
SHAPES = {
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "one key-value head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "qk-norm": {"qk_norm": True, "num_attention_heads": 4, "num_key_value_heads": 2},
    "heads wider than hidden": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 6},
    "heads narrower than hidden": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "small rope base": {"rope_theta": 500.0, "qk_norm": True, "tie_word_embeddings": False},
}
shapes = pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)


def tiny(**changes: object) -> Shape:
    usual: dict[str, object] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
    }  # fmt: skip
    return Shape(**(usual | changes))  # type: ignore[arg-type]


def randomised_model(shape: Shape, *, length: int = 24, attention: str = "sdpa") -> Transformer:
    """Return a model with random norms and larger weights, so that every weight affects the logits.

    Initial norms are 1 and initial logits nearly 0.
    """
    model = Transformer(shape, context_length=length, attention=attention)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4, generator=generator)
    return model


def text(batch: int, length: int, vocabulary: int = 50) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
@shapes
def test_decoding_with_a_cache_gives_the_logits_of_a_full_forward_pass(
    changes: dict[str, object], attention: str
) -> None:
    model, tokens = randomised_model(tiny(**changes), attention=attention), text(3, 24)
    with torch.inference_mode():
        wanted = model.logits(model(tokens))
        cache = model.empty_cache(3, 24, dtype=torch.float32)
        parts = [model(tokens[:, :9], cache=cache, start=0)]
        parts += [model(tokens[:, i : i + 1], cache=cache, start=i) for i in range(9, 24)]
        got = model.logits(torch.cat(parts, dim=1))
    assert wanted.std() > 0.5
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@shapes
def test_both_attention_paths_agree_in_values_and_gradients(changes: dict[str, object]) -> None:
    results = []
    for attention in ("sdpa", "matmul"):
        model = randomised_model(tiny(**changes), attention=attention)
        logits = model.logits(model(text(2, 24)))
        logits.square().mean().backward()
        results.append([logits, *(weight.grad for weight in model.parameters())])
    for fused, written_out in zip(*results, strict=True):
        scale = float(fused.detach().abs().max())
        assert scale > 0
        torch.testing.assert_close(fused, written_out, atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
def test_earlier_logits_do_not_depend_on_later_tokens(attention: str) -> None:
    model, tokens = randomised_model(tiny(), attention=attention), text(1, 24)
    other = tokens.clone()
    other[:, 15:] = (other[:, 15:] + 1) % 50
    with torch.inference_mode():
        before, after = (model.logits(model(each)) for each in (tokens, other))
    torch.testing.assert_close(after[:, :15], before[:, :15], atol=1e-5, rtol=0)
    assert (after[:, 15:] - before[:, 15:]).abs().amax(dim=-1).min() > 1e-3


def test_last_logits_depend_on_earlier_tokens() -> None:
    model, tokens = randomised_model(tiny()), text(1, 24)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    with torch.inference_mode():
        apart = model.logits(model(tokens)) - model.logits(model(other))
    assert apart[:, -1].abs().max() > 1e-4


def test_last_logits_depend_on_the_order_of_earlier_tokens() -> None:
    model, tokens = randomised_model(tiny(num_hidden_layers=1)), text(1, 24)
    with torch.inference_mode():
        apart = model(tokens)[:, -1] - model(tokens[:, [1, 0, *range(2, 24)]])[:, -1]
    assert apart.abs().max() > 1e-4


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, same, other = (Transformer(tiny(), context_length=8) for _ in range(3))
    first.initialise(4)
    same.initialise(4)
    other.initialise(5)
    for a, b, c in zip(*(model.parameters() for model in (first, same, other)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (a.ndim == 1)


def test_zero_residual_init_makes_every_layer_the_identity() -> None:
    scaled, zero = (Transformer(tiny(), context_length=24) for _ in range(2))
    scaled.initialise(4)
    zero.initialise(4, "zero")
    for (name, a), b in zip(scaled.named_parameters(), zero.parameters(), strict=True):
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not b.any(), name
        else:
            assert torch.equal(a, b), f"{name}: the other weights are drawn as before"
    tokens = text(2, 24)
    assert torch.equal(zero(tokens), zero.norm(zero.embed_tokens(tokens)))


def test_initial_weights_have_the_documented_spread() -> None:
    shape = tiny(hidden_size=96, intermediate_size=128, head_dim=32, tie_word_embeddings=False)
    model = Transformer(shape, context_length=8)
    model.initialise(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
            continue
        wanted = 0.02 if "embed_tokens" in name else weight.shape[1] ** -0.5
        if "o_proj" in name or "down_proj" in name:  # they write to the residual stream
            wanted /= 2  # the square root of twice the number of layers
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.05), name
        assert float(weight.detach().mean()) == pytest.approx(0, abs=0.05 * wanted), name


def test_projection_of_streams_is_drawn_as_a_matrix_and_not_as_an_embedding() -> None:
    config = {"model_type": "gemma3n_text", **TINY_CONFIGS["gemma3n_text"]}
    model = Transformer(read_architecture(config), context_length=8)
    model.initialise(0)
    streams = model.model_streams
    for projection in (*streams.altup_projections, *streams.altup_unembed_projections):
        assert float(projection.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)
    table = streams.embed_tokens_per_layer.weight.detach()
    assert float(table.std()) == pytest.approx(0.02, rel=0.05)


def test_initialisation_does_not_change_the_global_generator() -> None:
    model = Transformer(tiny(), context_length=8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model.initialise(4)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_untrained_model_predicts_a_nearly_uniform_distribution() -> None:
    model = Transformer(tiny(tie_word_embeddings=True), context_length=24)
    model.initialise(0)
    with torch.inference_mode():
        spread = model.logits(model(text(2, 24))).softmax(dim=-1) * 50
    assert spread.min() > 0.5
    assert spread.max() < 2


@settings(max_examples=25)
@given(
    hidden=st.integers(1, 24),
    width=st.integers(1, 40),
    layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    half_head=st.integers(1, 5),
    tied=st.booleans(),
    qk_norm=st.booleans(),
)
def test_number_of_parameters_equals_the_count_of_the_shape(
    hidden: int, width: int, layers: int, groups: int, per_group: int, half_head: int,
    tied: bool, qk_norm: bool,
) -> None:  # fmt: skip
    shape = Shape(
        hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=groups * per_group, num_key_value_heads=groups,
        head_dim=2 * half_head, vocab_size=11, tie_word_embeddings=tied, qk_norm=qk_norm,
    )  # fmt: skip
    model = Transformer(shape, context_length=8)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert sum(sizes.values()) == shape.n_total
    tables = sum(size for name, size in sizes.items() if name.startswith(("embed", "lm_head")))
    assert sum(sizes.values()) - tables == shape.n_non_embedding


@shapes
def test_flops_of_a_shape_equal_those_of_the_model(changes: dict[str, object]) -> None:
    shape, length = tiny(**changes), 24
    model = randomised_model(shape, attention="matmul")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.logits(model(text(1, length)))
    norms = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    assert counter.get_total_flops() == length * (shape.forward_flops(length) - 2 * norms)


def test_matrices_are_the_two_dimensional_weights_of_the_layers() -> None:
    model = Transformer(tiny(tie_word_embeddings=False, qk_norm=True), context_length=8)
    names = {id(weight): name for name, weight in model.named_parameters()}
    results = sorted(names[id(weight)] for weight in model.matrices())
    parts = ("mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj")
    assert results == [
        f"layers.{layer}.{part}.weight" for layer, part in itertools.product(range(2), parts)
    ]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
@pytest.mark.parametrize(
    ("heads", "groups", "head_dim", "theta"),
    [(4, 2, 4, 500.0), (6, 3, 8, 10_000.0), (2, 2, 6, 500.0)],
    ids=["grouped", "heads wider than hidden", "heads narrower than hidden"],
)
def test_an_exported_model_has_the_same_logits_in_transformers(
    tmp_path: Path, tied: bool, qk_norm: bool, heads: int, groups: int, head_dim: int, theta: float
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape = tiny(
        tie_word_embeddings=tied, qk_norm=qk_norm, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=head_dim, rope_theta=theta,
    )  # fmt: skip
    model, tokens = randomised_model(shape), text(2, 24)
    export(tmp_path, model, max_position_embeddings=24)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert [type(loaded).__name__] == loaded.config.architectures
    assert sum(weight.numel() for weight in loaded.parameters()) == shape.n_total
    with torch.inference_mode():
        wanted, got = model.logits(model(tokens)), loaded(tokens).logits
    assert wanted.std() > 0.5
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
