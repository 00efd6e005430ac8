"""Published diffusion models: counts, names, mask tokens, and FLOPs of attention without a mask."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from shapelaw.scaling.architectures.blocks.attention import mean_visible_tokens
from shapelaw.scaling.architectures.config import architecture_config, read_architecture
from shapelaw.scaling.architectures.named_shapes import architecture_named, shape_named
from shapelaw.scaling.architectures.shape_config import read_shape, read_trainable
from shapelaw.scaling.errors import InputError
from shapelaw.search.cli import app
from support.command import shapelaw

# Parameters, those of one token, mask token: from the published files and model cards.
PUBLISHED = {
    "llada-8b": (8_015_581_184, 8_015_581_184, 126_336),
    "dream-7b": (7_615_616_512, 7_615_616_512, 151_666),
    "llada-2.0-mini": (16_255_638_528, 1_432_968_192, 156_895),
    "llada-2.0-flash": (102_889_697_280, 6_152_269_824, 156_895),
    "dhara-70m": (71_344_512, 71_344_512, 50_256),
    "dhara-250m": (248_566_528 + 638_976, 248_566_528 + 638_976, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_a_named_architecture_are_the_published_ones(name: str) -> None:
    model = architecture_named(name)
    assert (model.n_total, model.n_active, model.embedding.mask_token) == PUBLISHED[name]
    assert not model.notes
    written = architecture_config(model, max_position_embeddings=64)
    assert read_architecture(written) == model


@pytest.mark.parametrize("name", [*PUBLISHED, "llama-3.2-1b"])
def test_count_takes_the_name_of_a_published_model(name: str) -> None:
    done = CliRunner().invoke(app, ["count", name, "--json"], catch_exceptions=False)
    total = PUBLISHED[name][0] if name in PUBLISHED else 1_235_814_400
    assert json.loads(done.stdout)["n_total"] == total


def test_count_of_an_unknown_name_lists_the_names() -> None:
    done = shapelaw("count", "dhara-71m")
    assert done.returncode == 2
    assert "llada-8b, " in done.stderr
    assert "but got 'dhara-71m'; give a config.json" in done.stderr
    with pytest.raises(InputError, match=r"must be one of llada-8b, .* but got 'llama-3.2-1b'"):
        architecture_named("llama-3.2-1b")


def test_canon_layers_of_dhara_add_their_published_parameters() -> None:
    small, large = ({**dict(architecture_named(n).fields)} for n in ("dhara-70m", "dhara-250m"))
    without = [
        read_architecture({"model_type": "dhara", **fields, "canon_set": None}).n_total
        for fields in (small, large)
    ]
    assert without == [71_246_208, 248_566_528]
    everywhere = read_architecture({"model_type": "dhara", **small, "canon_set": "ABCD"})
    assert everywhere.n_total == 71_246_208 + 458_752


@given(
    length=st.integers(1, 40),
    block=st.one_of(st.none(), st.integers(1, 50)),
    window=st.one_of(st.none(), st.integers(1, 50)),
    chunked=st.booleans(),
)
def test_mean_visible_tokens_equal_the_mean_over_a_mask(
    length: int, block: int | None, window: int | None, chunked: bool
) -> None:
    size = block or length
    reach = window or length
    visible = sum(
        i // size >= j // size and (i // reach == j // reach if chunked else abs(i - j) < reach)
        for i in range(length)
        for j in range(length)
    )
    mean = mean_visible_tokens(length, window, chunked=chunked, block=block)
    assert mean == pytest.approx(visible / length, rel=1e-12)


def test_flops_of_a_bidirectional_model_are_those_of_attention_to_all_tokens() -> None:
    dhara = architecture_named("dhara-70m")
    matrices = 51_904_512 + 50_304 * 384
    canon = 2 * 4 * 32 * 2 * 384
    assert dhara.mean_forward_flops(1024) == 2 * matrices + canon + 32 * 4 * 8 * 48 * 1024
    blocks = read_architecture({"model_type": "dhara", **dict(dhara.fields), "block_length": 32})
    attention = 32 * 4 * 8 * 48 * (1024 + 32) // 2
    assert blocks.mean_forward_flops(1024) == 2 * matrices + canon + attention
    assert "every token sees the whole sequence" in dhara.cache_notes()[-1]
    assert len(blocks.cache_notes()) == len(dhara.cache_notes()) - 1


def test_mask_token_makes_a_model_of_any_family_an_architecture_and_no_shape() -> None:
    config = {"model_type": "llama", "vocab_size": 257, "mask_token_id": 256}
    model = read_architecture(config)
    assert model.embedding.mask_token == 256
    assert not model.notes
    assert architecture_config(model, max_position_embeddings=64)["mask_token_id"] == 256
    assert read_trainable(config) == model
    assert read_trainable({**config, "mask_token_id": None}) != model
    with pytest.raises(InputError, match="`mask_token_id` must be absent to be read as a shape"):
        read_shape(config)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"model_type": "llama", "mask_token_id": 32_000}, "`mask_token_id < vocab_size`"),
        ({"model_type": "llama", "mask_token_id": -1}, "`mask_token_id` must be a whole number"),
        ({"model_type": "llada2_moe"}, "`mask_token_id < vocab_size` must hold, but got 156895"),
        ({"model_type": "llada", "block_type": "sequential"}, "`block_type` must be 'llama'"),
        ({"model_type": "llada", "rope": False}, "`rope` must be True"),
        ({"model_type": "llada", "n_heads": 7}, r"`d_model % \(2 \* n_heads\) == 0` must hold"),
        ({"model_type": "llada", "n_kv_heads": 5}, "`n_heads % n_kv_heads == 0` must hold"),
        ({"model_type": "llada", "embedding_size": 9}, "`embedding_size >= vocab_size`"),
        ({"model_type": "llada", "n_layers": 10**7}, "`n_layers` must be at most 10,000"),
        ({"model_type": "llada", "block_length": 0}, "`block_length` must be a positive integer"),
        ({"model_type": "llada2_moe", "num_experts": 12}, "`num_experts % n_group == 0`"),
        ({"model_type": "llada2_moe", "use_bias": True}, "`use_bias` must be False"),
        ({"model_type": "llada2_moe", "partial_rotary_factor": 1.5}, "partial_rotary_factor` must"),
        ({"model_type": "llada2_moe", "partial_rotary_factor": 0.01}, "use a factor of 0.5"),
        ({"model_type": "dhara", "canon_set": "A", "canon_gate_only": 1}, "`canon_gate_only` must"),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        read_architecture(fields)


def test_named_shapes_read_from_the_same_argument() -> None:
    assert shape_named("llama-3.2-1b").n_total == 1_235_814_400
