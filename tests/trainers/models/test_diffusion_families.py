"""Diffusion families against classes of transformers with the same layers and other names."""

import math
import re
from pathlib import Path

import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.named_shapes import architecture_named
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.hugging_face import export, hugging_face_weights, load_export
from shapelaw.trainers.models.transformer import Transformer, is_matrix
from support.tiny_configs import DIFFUSION_CONFIGS

transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    "rms_norm_eps": 1e-5,
}
# The class with the same layers, its config, and its names for those of the family.
REFERENCES = {
    "llada": (
        "llama",
        COMMON,
        (
            (r"model\.transformer\.wte", "model.embed_tokens"),
            (r"model\.transformer\.ln_f", "model.norm"),
            (r"model\.transformer\.ff_out", "lm_head"),
            (r"model\.transformer\.blocks", "model.layers"),
            (r"attn_norm", "input_layernorm"),
            (r"ff_norm", "post_attention_layernorm"),
            (r"\.([qkv]_proj)", r".self_attn.\1"),
            (r"attn_out", "self_attn.o_proj"),
            (r"ff_proj", "mlp.gate_proj"),
            (r"\.up_proj", ".mlp.up_proj"),
            (r"ff_out", "mlp.down_proj"),
        ),
    ),
    "Dream": ("qwen2", COMMON, ()),
    "dhara": ("llama", {**COMMON, "head_dim": 16}, ()),
    "llada2_moe": (
        "glm4_moe",
        {
            **COMMON,
            "head_dim": 32,
            "partial_rotary_factor": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e5,
                "partial_rotary_factor": 0.5,
            },
            "use_qk_norm": True,
            "attention_bias": False,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        (
            (r"model\.word_embeddings", "model.embed_tokens"),
            (r"attention\.dense", "self_attn.o_proj"),
            (r"attention\.query_layernorm", "self_attn.q_norm"),
            (r"attention\.key_layernorm", "self_attn.k_norm"),
            (r"expert_bias", "e_score_correction_bias"),
        ),
    ),
}


def random_model(family: str) -> Transformer:
    """Build a tiny model of a family with all parameters and buffers random."""
    config = {"model_type": family, **DIFFUSION_CONFIGS[family]}
    model = Transformer(read_architecture(config), context_length=64).eval()
    model.initialise(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.tensors().items():
            noise = torch.randn(weight.shape, generator=generator)
            if is_matrix(name, weight):
                weight.copy_(0.5 * noise / weight.shape[-1] ** 0.5)
            else:
                weight.add_(0.2 * noise)
    return model


def reference_of(family: str, weights: dict[str, torch.Tensor], folder: Path) -> torch.nn.Module:
    """Load the weights of a family into the class with the same layers."""
    kind, fields, names = REFERENCES[family]
    renamed = {}
    for name, weight in weights.items():
        for old, new in names:
            name = re.sub(old, new, name)
        if "query_key_value" in name:
            parts = weight.split((4 * 32, 2 * 32, 2 * 32))
            for part, letter in zip(parts, "qkv", strict=True):
                place = name.replace("attention.query_key_value", f"self_attn.{letter}_proj")
                renamed[place] = part.contiguous()
        else:
            renamed[name] = weight
    config = transformers.AutoConfig.for_model(kind, pad_token_id=None, **fields)
    config.save_pretrained(folder)
    from safetensors.torch import save_file

    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not any(loading.values()), loading
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("family", REFERENCES)
def test_logits_equal_those_of_the_class_with_the_same_layers(family: str, tmp_path: Path) -> None:
    model = random_model(family)
    reference = reference_of(family, hugging_face_weights(model), tmp_path)
    tokens = torch.randint(96, (2, 37), generator=torch.Generator().manual_seed(1))
    ours, theirs = model.logits(model(tokens)), reference(tokens).logits
    theirs[..., model.mask_token] = -math.inf  # which is never predicted here
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert sum(w.numel() for w in model.parameters()) == model.architecture.n_total
    assert reference.num_parameters() == model.architecture.n_total


@torch.no_grad()
@pytest.mark.parametrize("family", DIFFUSION_CONFIGS)
def test_prefill_and_single_steps_equal_a_full_forward(family: str) -> None:
    model = random_model(family)
    tokens = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(1))
    cache = model.empty_cache(2, 20, dtype=torch.float32)
    steps = [model(tokens[:, :7], cache=cache)]
    steps += [model(tokens[:, i : i + 1], cache=cache, start=i) for i in range(7, 20)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", DIFFUSION_CONFIGS)
def test_cache_has_the_counted_bytes(family: str) -> None:
    model = random_model(family)
    cache = model.empty_cache(1, 50, dtype=torch.bfloat16)
    measured = sum(part.numel() * part.element_size() for layer in cache for part in layer)
    assert measured == model.architecture.cache_bytes(50)


@torch.no_grad()
@pytest.mark.parametrize("family", DIFFUSION_CONFIGS)
def test_export_loads_as_the_same_model(family: str, tmp_path: Path) -> None:
    model = random_model(family)
    export(tmp_path, model, max_position_embeddings=64)
    loaded = load_export(tmp_path)
    assert loaded.architecture == model.architecture
    tokens = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(tokens), model(tokens))


@torch.no_grad()
def test_partial_rotation_is_not_that_of_whole_heads() -> None:
    model = random_model("llada2_moe")
    config = {"model_type": "llada2_moe", **DIFFUSION_CONFIGS["llada2_moe"]}
    whole = Transformer(
        read_architecture({**config, "partial_rotary_factor": 1.0}), context_length=64
    ).eval()
    whole.load_state_dict(model.state_dict())
    tokens = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(1))
    assert float((whole(tokens) - model(tokens)).abs().max()) > 0.05


def test_model_whose_canon_layer_is_not_published_is_counted_and_not_built() -> None:
    with torch.device("meta"), pytest.raises(InputError, match="`canon_gate_only` must be false"):
        Transformer(architecture_named("dhara-250m"), context_length=8)
