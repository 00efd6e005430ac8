"""Families in vLLM: what it computes as the trainer does, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.engine_conditions import require_computed_alike
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.search.engines._vllm import CPU_ENVIRONMENT, ENVIRONMENT, VllmEngine, config_changes
from shapelaw.search.engines.sessions.client import MissingError, SessionProcess
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer
from support.engine_configs import VLLM_CONFIGS
from support.random_models import config_of, model_of

torch.set_num_threads(1)
SESSION = str(Path(__file__).parents[2] / "support" / "vllm_log_probabilities.py")
OUTPUTS = 5
TOLERANCE = 1e-5  # of log-probabilities in float32
SEQUENCES = 2


@pytest.fixture(scope="module")
def engine() -> VllmEngine:
    """Return the engine; without vLLM the tests are skipped with the reason."""
    try:
        return VllmEngine()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, SessionProcess]]:
    """Return processes with vLLM by kind of model: one that began without experts takes none."""
    started: dict[str, SessionProcess] = {}
    yield started
    for process in started.values():
        process.close()


def session_for(model: Transformer, processes: dict[str, SessionProcess], python: str) -> Any:
    """Return a process for a model; models with experts have one each, as vLLM keeps its groups."""
    layers = model.architecture.layers
    sparse = any(isinstance(layer.feed_forward, ExpertsBlock) for layer, _ in layers)
    kind = f"experts {len(processes)}" if sparse else "dense"
    if kind not in processes or not processes[kind].alive:
        environment = ENVIRONMENT | CPU_ENVIRONMENT
        processes[kind] = SessionProcess(SESSION, python=python, environment=environment)
    return processes[kind]


def counted_cache(architecture: Architecture) -> list[float]:
    """Count the float32 bytes per token of each layer that keeps keys and values.

    Without a kernel for its sizes, vLLM keeps the keys that latents expand to, and values as wide.
    """
    numbers = []
    for layer in architecture.each_layer():
        block = layer.attention
        if isinstance(block, LatentAttentionBlock):
            width = block.plain_head_dim + block.rotary_head_dim
            numbers.append(2 * block.num_attention_heads * width)
        elif isinstance(block, AttentionBlock):
            numbers.append(block.cache_values)
    return sorted(4.0 * number for number in numbers)


@pytest.mark.slow
@pytest.mark.xdist_group("engine vllm")
@pytest.mark.parametrize("name", list(VLLM_CONFIGS))
@torch.inference_mode()
def test_vllm_gives_the_log_probabilities_of_the_exported_model(
    engine: VllmEngine, processes: dict[str, SessionProcess], name: str, tmp_path: Path
) -> None:
    base, fields = VLLM_CONFIGS[name]
    model = model_of(base, **fields)
    require_computed_alike(model.architecture, "vllm")
    length = 150 if "llama4" in name else 37  # beyond the window or the chunk
    export(tmp_path, model, max_position_embeddings=256)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | config_changes(model.architecture))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(97, (SEQUENCES, length), generator=generator)
    workload = parse_workload(f"{length}/{OUTPUTS}@{SEQUENCES}:float32")
    result = session_for(model, processes, engine.python).ask(
        "compute",
        folder=str(tmp_path),
        tokens=tokens.tolist(),
        outputs=OUTPUTS,
        vocab_size=97,
        options=engine.options(model.architecture, workload),
        environment=engine.environment(model.architecture),
    )
    assert result["cache_bytes"] == counted_cache(model.architecture)
    for row, answer in zip(tokens, result["sequences"], strict=True):
        assert len(answer["tokens"]) == OUTPUTS
        everything = torch.cat([row, torch.tensor(answer["tokens"])])[None]
        expected = model.logits(model(everything)).log_softmax(dim=-1)[0, :-1]
        given = torch.tensor(answer["rows"])
        torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.xdist_group("engine vllm")
@pytest.mark.parametrize("name", ["gemma3_text", "deepseek_v3", "llama4_text", "gpt_oss"])
def test_vllm_engine_measures_a_family(engine: VllmEngine, name: str) -> None:
    base, fields = VLLM_CONFIGS[name]
    architecture = read_architecture(config_of(base, **fields))
    measured = engine.measure(architecture, parse_workload("12/5@2:float32"))
    assert measured.kind == "measured"
    assert 0 < measured.low <= measured.output_tokens_per_second <= measured.high


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma3n_text": ("gemma3n_text", {}, "drops the per-layer embeddings"),
    "nanochat": ("nanochat", {}, "no class of this type"),
    "canon": ("qwen3", {"canon_set": "ABCD"}, "no other engine has Canon layers"),
    "llama4_text of another chunk": ("llama4_text", {"attention_chunk_size": 130}, "got 130"),
    "llama4_text of two experts": (
        "llama4_text-maverick",
        {"attention_chunk_size": 128},
        "got 2: it weighs the input",
    ),
    "deepseek_v3 of another epsilon": ("deepseek_v3", {}, "got 0.001"),
    "deepseek_v3 that rotates halves": (
        "deepseek_v3-halves",
        {"rms_norm_eps": 1e-6},
        "got False: it rotates adjacent dimensions",
    ),
    "deepseek_v3 with biases": (
        "deepseek_v3-direct",
        {"rms_norm_eps": 1e-6},
        "got True: it reads no biases",
    ),
    "gpt_oss of another limit": ("gpt_oss", {}, r"got \(1.5, 1.702\)"),
    "lfm2 untied": ("lfm2-biases", {}, "got False: its class always ties"),
    "deepseek_v3 tied": (
        "deepseek_v3",
        {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        "got True: its class always ties",
    ),
    "gpt_oss tied": (
        "gpt_oss",
        {"swiglu_limit": 7.0, "tie_word_embeddings": True},
        "got True: its class always ties",
    ),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}, "got True: its class leaves the bias"),
    "llama of another activation": ("llama", {"hidden_act": "gelu"}, "got 'gelu'"),
    "qwen2 with windows on some layers": ("qwen2-window", {}, "a window on 4 of 6 layers"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_model_that_vllm_computes_otherwise_is_refused_with_the_reason(name: str) -> None:
    base, fields, reason = REFUSED[name]
    architecture = read_architecture(config_of(base, **fields))
    with pytest.raises(InputError, match=f"must hold in the vllm engine, .*{reason}"):
        require_computed_alike(architecture, "vllm")


def bare_engine(on: str) -> VllmEngine:
    """Make an engine without asking an environment for its version."""
    engine = object.__new__(VllmEngine)
    engine.on = on
    return engine


def test_latents_without_a_kernel_are_expanded() -> None:
    small = read_architecture(config_of("deepseek_v3"))
    published = read_architecture({"model_type": "deepseek_v3"})
    engine = bare_engine("cuda")
    assert engine.environment(small)["VLLM_MLA_DISABLE"] == "1"
    assert "VLLM_MLA_DISABLE" not in engine.environment(published)


def test_options_turn_the_temperature_of_llama4_on_and_the_eager_rotation_of_heads_off() -> None:
    workload = parse_workload("12/5@2:float32")
    names = ("llama4_text", "deepseek_v3", "lfm2", "gpt2")
    llama4, latent, lfm2, plain = (read_architecture(config_of(name)) for name in names)
    engine = bare_engine("cpu")
    assert engine.options(llama4, workload)["override_generation_config"] == {
        "attn_temperature_tuning": True
    }
    for architecture in (latent, lfm2):
        assert engine.options(architecture, workload)["compilation_config"] == {
            "custom_ops": ["all", "-rotary_embedding"]
        }
    assert "compilation_config" not in bare_engine("cuda").options(latent, workload)
    assert {"compilation_config", "override_generation_config"}.isdisjoint(
        engine.options(plain, workload)
    )


def test_config_for_vllm_says_both_ends_of_yarn_and_the_channels_of_convolutions() -> None:
    yarn = config_changes(read_architecture(config_of("qwen2")))["rope_parameters"]
    assert (yarn["beta_fast"], yarn["beta_slow"], yarn["factor"]) == (32.0, 1.0, 4.0)
    lfm2 = config_changes(read_architecture(config_of("lfm2")))
    assert lfm2 == {"conv_dim": 64, "block_dim": 64}
    assert config_changes(read_architecture(config_of("llama"))) == {}
