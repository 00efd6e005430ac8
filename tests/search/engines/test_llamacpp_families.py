"""Families in llama.cpp: what it computes as the trainer does, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.engine_conditions import broken_condition
from shapelaw.scaling.errors import InputError
from shapelaw.search.commands.measure import measure_config
from shapelaw.search.engines._llamacpp import write_random_gguf
from shapelaw.search.engines.sessions.client import SessionProcess
from shapelaw.trainers.corpus.encoding import byte_encoding
from shapelaw.trainers.models.gguf import export_gguf
from shapelaw.trainers.models.hugging_face import export
from support.engine_configs import LLAMACPP_CONFIGS, PUBLISHED_LLAMA4
from support.random_models import config_of, model_of
from support.tiny_configs import LLAMA3, YARN

torch.set_num_threads(1)
SESSION = str(Path(__file__).parents[2] / "support" / "llamacpp_log_probabilities.py")
LETTER = ord("a")  # the token that the session selects
TOLERANCE = 2e-3  # of log-probabilities: GELU comes from a table of half precision
WRONG = 5e-3  # smallest difference of what is refused because it is computed otherwise


@pytest.fixture(scope="module")
def session():
    """A process with llama.cpp."""
    pytest.importorskip("xllamacpp", reason="needs xllamacpp, llama.cpp as a package")
    pytest.importorskip("gguf", reason="needs gguf")
    process = SessionProcess(SESSION, environment={"GGML_NO_BACKTRACE": "1"})
    yield process
    process.close()


@torch.inference_mode()
def largest_difference(
    session: SessionProcess, folder: Path, name: str, fields: dict[str, Any], outputs: int = 4
) -> float:
    """Return the largest difference of log-probabilities between llama.cpp and the model."""
    model = model_of(name, **{"vocab_size": 256, **fields})
    export(folder, model, max_position_embeddings=256, tokenizer=byte_encoding())
    export_gguf(folder, folder / "model.gguf")
    tokens = torch.randint(97, (37,), generator=torch.Generator().manual_seed(1)).tolist()
    steps = session.ask(
        "compute", path=str(folder / "model.gguf"), tokens=tokens, outputs=outputs, vocab_size=256
    )
    assert len(steps) == outputs
    everything = torch.tensor([tokens + outputs * [LETTER]])
    expected = model.logits(model(everything)).log_softmax(dim=-1)[0, len(tokens) - 1 :]
    differences = []
    for step, row in zip(steps, expected, strict=False):
        assert len(step) == 256
        given = torch.tensor([step[str(token)] for token in range(256)])
        differences.append(float((given - row).abs().max()))
    return max(differences)


@pytest.mark.slow
@pytest.mark.xdist_group("engine llamacpp")
@pytest.mark.parametrize("name", list(LLAMACPP_CONFIGS))
def test_llamacpp_gives_the_log_probabilities_of_the_exported_model(
    session: SessionProcess, name: str, tmp_path: Path
) -> None:
    assert largest_difference(session, tmp_path, *LLAMACPP_CONFIGS[name]) < TOLERANCE


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma3n_text": ("gemma3n_text", {}, "fixes all sizes of Gemma 3n"),
    "nanochat": ("nanochat", {}, "no architecture of this type"),
    "canon": ("llama", {"canon_set": "AC"}, "no other engine has Canon layers"),
    "mistral with windows": ("mistral-window", {}, "a window in layer 1"),
    "qwen2 with windows": ("qwen2-window", {}, "a window in layer 3"),
    "gemma3_text of another step": (
        "gemma3_text",
        {"sliding_window_pattern": 3, "query_pre_attn_scalar": 16},
        "no window in layer 3",
    ),
    "gemma3_text of another scale": ("gemma3_text", {}, "24 with heads of 16"),
    "gemma3_text of another base": (
        "gemma3_text-cap",
        {"query_pre_attn_scalar": 16, "rope_local_base_freq": 500.0},
        "a local base of 500",
    ),
    "gemma3_text of another activation": (
        "gemma3_text-cap",
        {"query_pre_attn_scalar": 16, "hidden_activation": "silu"},
        "silu",
    ),
    "llama of another activation": ("llama", {"hidden_act": "gelu"}, "gelu"),
    "smollm3 of another step": (
        "smollm3",
        {"no_rope_layer_interval": 3},
        "no positions in layer 3",
    ),
    "smollm3 with Llama 3's scaling": ("smollm3", {"rope_parameters": LLAMA3}, "llama3"),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}, "biases of qkv"),
    "lfm2 with biases": ("lfm2-biases", {}, "biases of qkv"),
    "qwen3_moe of plain weights": ("qwen3_moe", {"norm_topk_prob": False}, "False"),
    "qwen3_moe with a dense layer": ("qwen3_moe", {"mlp_only_layers": [1]}, "none in layer 2"),
    "deepseek_v3 of groups": ("deepseek_v3", {"rms_norm_eps": 1e-6, "rope_parameters": None}, "4"),
    "deepseek_v3 of another epsilon": ("deepseek_v3-kimi", {}, "0.001"),
    "deepseek_v3 without experts": (
        "deepseek_v3-dense",
        {"rms_norm_eps": 1e-6, "rope_parameters": None},
        "none",
    ),
    "deepseek_v3 without a latent of queries": (
        "deepseek_v3-kimi",
        {"rms_norm_eps": 1e-6, "q_lora_rank": None},
        "q_lora_rank None in 6 layers",
    ),
    "deepseek_v3 of one mscale": (
        "deepseek_v3-kimi",
        {"rms_norm_eps": 1e-6, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
        "mscale",
    ),
    "llama4_text of another chunk": (
        "llama4_text",
        {**PUBLISHED_LLAMA4, "attention_chunk_size": 16},
        "a chunk of 16",
    ),
    "llama4_text without a temperature": (
        "llama4_text",
        {**PUBLISHED_LLAMA4, "attn_temperature_tuning": False},
        "temperature tuning None",
    ),
    "llama4_text without a norm of heads": (
        "llama4_text",
        {**PUBLISHED_LLAMA4, "use_qk_norm": False},
        "none with 4 experts",
    ),
    "gpt_oss of another limit": ("gpt_oss", {"rope_parameters": YARN}, "1.5"),
    "gpt_oss of another yarn": ("gpt_oss", {"swiglu_limit": 7.0}, "False"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REFUSED))
def test_model_that_llamacpp_computes_otherwise_is_refused_with_the_reason(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="needs gguf")
    base, fields, reason = REFUSED[name]
    config = config_of(base, **fields)
    broken = broken_condition(read_architecture(config), "llamacpp")
    assert broken is not None
    assert reason in f"{broken[1]} {broken[0].reason}"
    (tmp_path / "config.json").write_text("{}")
    export(tmp_path, model_of(base, **fields), max_position_embeddings=256)
    with pytest.raises(InputError, match=r"must hold in the llamacpp engine, .*use --engine torch"):
        export_gguf(tmp_path, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(LLAMACPP_CONFIGS))
def test_random_file_holds_every_parameter_of_any_family_once(
    name: str, dtype: str, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    base, fields = LLAMACPP_CONFIGS[name]
    architecture = read_architecture(config_of(base, **fields))
    write_random_gguf(tmp_path / "model.gguf", architecture, dtype=dtype, length=64)
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    copies = {"output.weight"} if architecture.embedding.tied else set()
    extra = ("rope_freqs.weight", "exp_probs_b.bias")  # tables and buffers
    held = [t for t in tensors if not t.name.endswith(extra) and t.name not in copies]
    assert sum(int(tensor.n_elements) for tensor in held) == architecture.n_total
    assert {tensor.tensor_type.name for tensor in tensors if tensor.name.endswith("q.weight")} <= {
        {"float32": "F32", "bfloat16": "BF16"}[dtype]
    }


@pytest.mark.slow
@pytest.mark.xdist_group("engine llamacpp")
@pytest.mark.parametrize("name", list(LLAMACPP_CONFIGS))
def test_llamacpp_engine_measures_every_family_that_it_computes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp, llama.cpp as a package")
    base, fields = LLAMACPP_CONFIGS[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(base, **fields)), encoding="utf-8")
    row = measure_config(path, "llamacpp", "12/5@2", keep=False)
    assert row["kind"] == "measured"
    assert 0 < row["low"] <= row["output_tokens_per_second"] <= row["high"]
