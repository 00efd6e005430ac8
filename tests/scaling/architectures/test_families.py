"""Configs of every family read as transformers' own config classes and models read them."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.errors import InputError

TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
# Valid values of each field, small enough to build many models of.
VALUES = {
    "vocab_size": (97, 128),
    "hidden_size": (64, 96, 120),
    "n_embd": (64, 96, 120),
    "intermediate_size": (112, 144),
    "n_inner": (112, 144),
    "num_hidden_layers": (1, 3),
    "n_layer": (1, 3),
    "num_attention_heads": (4, 8, 12),
    "n_head": (4, 8, 12),
    "num_key_value_heads": (1, 2, 4),
    "head_dim": (16, 32),
    "n_positions": (64, 256),
    "sliding_window": (8, 64),
    "sliding_window_pattern": (1, 2),
    "max_window_layers": (0, 1, 2),
    "no_rope_layer_interval": (1, 2),
    "num_local_experts": (4, 8),
    "num_experts": (4, 8),
    "n_routed_experts": (4, 8),
    "num_experts_per_tok": (1, 2),
    "moe_intermediate_size": (16, 32),
    "decoder_sparse_step": (1, 2),
    "n_shared_experts": (1, 2),
    "first_k_dense_replace": (0, 1),
    "q_lora_rank": (24,),
    "kv_lora_rank": (32,),
    "qk_nope_head_dim": (16,),
    "qk_rope_head_dim": (8,),
    "v_head_dim": (16, 24),
    "n_group": (1, 2),
    "topk_group": (1,),
    "intermediate_size_mlp": (112,),
    "interleave_moe_layer_step": (1, 2),
    "attention_chunk_size": (8, 64),
    "num_kv_shared_layers": (0, 1, 2),
    "altup_num_inputs": (2, 4),
    "laurel_rank": (4, 8),
    "vocab_size_per_layer_input": (89, 97),
    "hidden_size_per_layer_input": (8, 16),
    "conv_L_cache": (1, 3),
    "block_multiple_of": (16, 60),
    "block_ffn_dim_multiplier": (1, 1.3),
    "full_attn_idxs": ([], [0], [0, 2]),
}
LAYER_KINDS = {"lfm2": ("full_attention", "conv")}
ALWAYS = {"num_hidden_layers", "n_layer", "num_experts", "num_local_experts", "n_routed_experts"}
ALWAYS |= {"num_kv_shared_layers"}
BROKEN = (None, "64", 64.0, True, -1, [64])
# Values that transformers does not look at, so that any is as good.
UNCHECKED = {
    "gemma3_text": {"sliding_window_pattern"},
    "gpt_oss": {"hidden_act"},
    "smollm3": {"no_rope_layers"},
}
SWITCHES = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"),
    *("add_cross_attention", "conv_bias", "block_auto_adjust_ff_dim"),
)
# Fields that make a model no decoder, which is refused.
NO_DECODER = {"gpt2": "add_cross_attention", "gemma3_text": "use_bidirectional_attention"}


@st.composite
def configs(draw: st.DrawFn, model_type: str) -> dict[str, object]:
    """Draw a config with some fields absent, and at most one field null or broken."""
    fields = FAMILIES[model_type].fields
    config: dict[str, object] = {}
    for name in sorted(set(fields) & set(VALUES)):
        if name in ALWAYS or draw(st.booleans()):
            config[name] = draw(st.sampled_from(VALUES[name]))
    for name in sorted(set(fields) & set(SWITCHES)):
        if draw(st.integers(0, 3)) == 0:
            config[name] = draw(st.booleans())
    if "head_dim" not in fields and model_type != "gpt2" and draw(st.booleans()):
        config["head_dim"] = draw(st.sampled_from(VALUES["head_dim"]))
    if draw(st.integers(0, 3)) == 0:
        config["rope_theta"] = draw(st.sampled_from((5e5, 1e6)))
    if "layer_types" in fields and draw(st.integers(0, 3)) == 0:
        usual = ("full_attention", "sliding_attention")
        kinds = st.sampled_from(LAYER_KINDS.get(model_type, usual))
        number = draw(st.sampled_from((1, 3)))
        config["layer_types"] = draw(st.lists(kinds, min_size=number, max_size=number))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(set(fields) - UNCHECKED.get(model_type, set()))))
        config[name] = draw(st.sampled_from(BROKEN))
    return config


def reference(model_type, config):
    """Build the model on the meta device; None where transformers refuses the config."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            settings_ = transformers.AutoConfig.for_model(model_type, **TOKENS, **config)
            return transformers.AutoModelForCausalLM.from_config(settings_)
    except Exception:  # transformers raises errors of a dozen kinds
        return None


def read(model_type, config):
    """Read the config; None where it is refused."""
    try:
        return read_architecture({"model_type": model_type, **config})
    except InputError:
        return None


def computes_nothing(config, given_values):
    """Tell whether transformers builds a model of a config and the model then cannot compute."""
    numbers = [value for value in given_values.values() if isinstance(value, int)]
    heads = config.num_attention_heads
    experts = next(
        (
            getattr(config, name)
            for name in ("n_routed_experts", "num_experts", "num_local_experts")
            if getattr(config, name, None)
        ),
        0,
    )
    return (
        min(numbers, default=1) < 0
        or any(given_values.get(name) is True for name in NO_DECODER.values())
        or heads % (config.to_dict().get("num_key_value_heads") or 1)
        or getattr(config, "head_dim", config.hidden_size // heads) % 2
        or (experts and experts < (config.num_experts_per_tok or experts + 1))
        or (experts and experts % (getattr(config, "n_group", None) or 1))
        or (getattr(config, "topk_group", None) or 1) > (getattr(config, "n_group", None) or 1)
    )


@pytest.mark.parametrize(("model_type", "field"), NO_DECODER.items())
def test_config_of_a_model_that_is_no_decoder_is_refused(model_type, field):
    with pytest.raises(InputError, match=f"`{field}` must be false, but got true"):
        read_architecture({"model_type": model_type, field: True})


@pytest.mark.parametrize("model_type", sorted(n for n, f in FAMILIES.items() if f.in_transformers))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_partial_config_reads_as_the_model_that_transformers_builds(model_type, data):
    config = data.draw(configs(model_type))
    model, architecture = reference(model_type, config), read(model_type, config)
    if model is None:
        assert architecture is None, config
        return
    if architecture is None:
        assert computes_nothing(model.config, config), config
        return
    names = {id(p): name for name, p in model.named_parameters()}
    total = sum(p.numel() for p in model.parameters())
    tables = ("embed_tokens", "lm_head", "wte", "wpe", "embed_tokens_per_layer")
    embedding = sum(
        p.numel()
        for p in model.parameters()
        if any(part in tables for part in names[id(p)].split("."))
    )
    assert (architecture.n_total, architecture.n_non_embedding) == (total, total - embedding)
    assert architecture.num_hidden_layers == model.config.num_hidden_layers
    assert architecture.embedding.tied == model.config.tie_word_embeddings
    bases = bases_of(architecture)  # none where no layer has rotary positions
    assert not bases or bases == rope_bases(model.config)
    assert sorted(windows_read(architecture)) == sorted(windows_built(model))


def bases_of(architecture: Architecture) -> set[float]:
    """Bases of the rotary positions of all layers that have some."""
    rotary = [layer.attention.rotary for layer, _ in architecture.layers]
    return {positions.theta for positions in rotary if positions}


def rope_bases(config) -> set[float]:
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ())
    nested = [parameters[kind] for kind in kinds if kind in parameters] or [parameters]
    return {each["rope_theta"] for each in nested if "rope_theta" in each}


def windows_read(architecture):
    return [
        layer.attention.window or 0
        for layer in architecture.each_layer()
        if not isinstance(layer.attention, ShortConvolutionBlock)
    ]


def windows_built(model):
    """Return the window of each attention module of transformers, 0 for all tokens."""
    config = model.config
    if config.model_type == "llama4_text":
        chunks = {"chunked_attention": config.attention_chunk_size}
        return [chunks.get(kind, 0) for kind in config.layer_types]
    modules = [m for name, m in model.named_modules() if name.endswith(("self_attn", ".attn"))]
    if config.model_type == "mistral":
        return [config.sliding_window or 0] * len(modules)
    return [getattr(module, "sliding_window", None) or 0 for module in modules]
