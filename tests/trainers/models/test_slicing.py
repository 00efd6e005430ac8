"""Slices of a trained model: against a model with zeroed channels, and against transformers."""

import copy
import json

import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.hugging_face import export, load_export
from shapelaw.trainers.models.slicing import require_slice, slice_model
from shapelaw.trainers.models.transformer import Transformer
from support.shapes import GOLDEN

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GEMMA3N = {
    **COMMON,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 4,
    "num_kv_shared_layers": 3,
    "vocab_size_per_layer_input": 50,
    "hidden_size_per_layer_input": 6,
    "laurel_rank": 4,
    "altup_num_inputs": 3,
}
FAMILIES = {
    "llama": {**COMMON, "mlp_bias": True},
    "arcee": {**COMMON, "mlp_bias": True},
    "qwen3": {**COMMON, "canon_set": "ABCD"},
    "gemma3n_text": GEMMA3N,
}


def random_model(config: dict[str, object]) -> Transformer:
    model = Transformer(read_architecture(config), context_length=32).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3, generator=generator)
    return model


def logits_of(model: Transformer) -> torch.Tensor:
    tokens = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(1))
    return model.logits(model(tokens))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_model_equals_the_model_with_zeroed_channels(family, tmp_path) -> None:
    config = {"model_type": family, **FAMILIES[family], "intermediate_size": 40}
    model = random_model(config)
    sliced = slice_model(model, read_architecture({**config, "intermediate_size": 24}))
    zeroed = copy.deepcopy(model)
    for layer in zeroed.layers:
        layer.mlp.down_proj.weight[:, 24:] = 0
    torch.testing.assert_close(logits_of(sliced), logits_of(zeroed), rtol=1e-5, atol=1e-4)
    assert (logits_of(model) - logits_of(zeroed)).abs().max() > 0.1
    export(tmp_path, sliced, max_position_embeddings=32)
    assert torch.equal(logits_of(load_export(tmp_path)), logits_of(sliced))
    sliced.embed_tokens.weight.zero_()
    assert model.embed_tokens.weight.any(), "the slice is a copy"


@torch.no_grad()
def test_slice_of_gemma3n_equals_the_class_with_weights_cut_by_hand(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    sparsity, widths = [0.9, 0.5, 0.0, 0.0, 0.0, 0.0], [24, 24, 16, 24, 24]
    config = {"model_type": "gemma3n_text", **GEMMA3N, "intermediate_size": 40}
    model = random_model({**config, "activation_sparsity_pattern": sparsity})
    smaller = {
        **config,
        "intermediate_size": widths,
        "activation_sparsity_pattern": sparsity[:5],
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 2,
        "layer_types": GEMMA3N["layer_types"][:5],
    }
    export(tmp_path, model, max_position_embeddings=32)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    given = {k: v for k, v in smaller.items() if k != "model_type"}
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    cut = transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(**given, **ends, attn_implementation="eager")
    ).eval()
    weights = {}
    for name, weight in whole.state_dict().items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        if layer > 4:
            continue
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            weight = weight[: widths[layer]]
        elif name.endswith("down_proj.weight"):
            weight = weight[:, : widths[layer]]
        elif "embed_tokens_per_layer" in name:
            weight = weight[:, : 5 * 6]
        elif "per_layer_model_projection" in name:
            weight = weight[: 5 * 6]
        weights[name] = weight
    cut.load_state_dict(weights)
    sliced = slice_model(model, read_architecture(smaller))
    tokens = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits_of(sliced), cut(tokens).logits, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_kept_layers_bring_their_own_weights_and_embeddings() -> None:
    config = {"model_type": "gemma3n_text", **GEMMA3N, "intermediate_size": 40}
    model, kept = random_model(config), [0, 1, 2, 5]
    kinds = [GEMMA3N["layer_types"][index] for index in kept]
    smaller = {**config, "num_hidden_layers": 4, "num_kv_shared_layers": 1, "layer_types": kinds}
    sliced = slice_model(model, read_architecture(smaller), layers=kept)
    assert torch.equal(
        sliced.layers[3].laurel.linear_left.weight, model.layers[5].laurel.linear_left.weight
    )
    tokens = torch.arange(8)[None]
    inputs, wanted = (
        each.model_streams.token_inputs(tokens, each._embed(tokens, 0)) for each in (sliced, model)
    )
    torch.testing.assert_close(inputs, wanted[:, :, kept])


@torch.no_grad()
def test_layers_with_experts_are_kept_whole() -> None:
    config = {
        "model_type": "deepseek_v3",
        **{name: value for name, value in COMMON.items() if name != "head_dim"},
        "intermediate_size": 40,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 2,
    }
    model = random_model(config)
    for name, buffer in model.named_buffers():
        if "rotary" not in name:
            buffer.copy_(torch.linspace(-1, 1, len(buffer)))
    sliced = slice_model(model, read_architecture({**config, "intermediate_size": 24}))
    for layer in model.layers[:2]:
        layer.mlp.down_proj.weight[:, 24:] = 0
    torch.testing.assert_close(logits_of(sliced), logits_of(model), rtol=1e-5, atol=1e-4)


def test_gemma3n_e2b_is_a_slice_of_e4b() -> None:
    known = json.loads((GOLDEN / "architectures.json").read_text(encoding="utf-8"))
    e4b, e2b = (
        read_architecture({"model_type": "gemma3n_text", **model["hf_config"]})
        for size in ("E4B", "E2B")
        for model in known
        if model["name"] == f"gemma-3n-{size} (text)"
    )
    kept = [*range(20), *range(25, 35)]
    require_slice(e4b, e2b, kept)
    with pytest.raises(InputError, match="layer 20 of the model"):
        require_slice(e4b, e2b, [*range(15), *range(20, 35)])


@pytest.mark.parametrize(
    ("changes", "layers", "rule"),
    [
        ({"intermediate_size": 48}, None, "layer 0 of the model but for a narrower MLP"),
        ({"num_attention_heads": 2}, None, "layer 0 of the model but for a narrower MLP"),
        ({"vocab_size": 60}, None, "embedding and last norm of a slice"),
        ({"num_hidden_layers": 2}, [3, 1], "`layers` must be 2 of the numbers 0 to 5 in order"),
        ({"num_hidden_layers": 2}, [1, 6], "`layers` must be 2 of the numbers 0 to 5 in order"),
    ],
)
def test_architecture_that_is_no_slice_is_refused(changes, layers, rule) -> None:
    config = {"model_type": "llama", **COMMON, "intermediate_size": 40}
    model = random_model(config)
    with pytest.raises(InputError, match=rule):
        slice_model(model, read_architecture({**config, **changes}), layers=layers)
