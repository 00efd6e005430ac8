"""An engine that predicts with NVIDIA's aiconfigurator, from kernel times measured on GPUs."""

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Engine, Measurement, bytes_served
from shapelaw.search.engines.accelerators import hardware
from shapelaw.search.engines.concurrency import measure_one_fastest
from shapelaw.search.engines.sessions.client import (
    MissingError,
    SessionProcess,
    refuse_above,
    session_workload,
    version_of,
    write_config,
)
from shapelaw.search.workload import Workload

SETTING = "SHAPELAW_AICONFIGURATOR_PYTHON"
SESSION = "aiconfigurator_session.py"
# Names of GPUs in shapelaw -> names of systems in the tables.
SYSTEMS = {"a100": "a100_sxm", "b200": "b200_sxm", "h100": "h100_sxm", "h200": "h200_sxm"}
BACKENDS = ("vllm", "sglang", "trtllm")
HARDWARE_SYNTAX = f"GPU[-BACKEND] with {', '.join(SYSTEMS)} and {', '.join(BACKENDS)}"
NARROW_CACHES = ("fp8", "int8")  # number formats of a KV cache that the tables may hold
PREDICTION_SECONDS = 600  # time limit of one prediction


class AiconfiguratorEngine(Engine):
    """An engine that predicts a serving engine on one GPU: ``aiconfigurator:h200-sglang``.

    The prediction is for one static batch of the workload's concurrency and rests on tables of
    measured kernels. The tables hold bfloat16: weights and arithmetic are predicted in bfloat16
    whatever the workload's number format (``device`` says so), and the KV cache in bfloat16 or
    fp8. A shape outside the tables is refused. The process that reads the tables is kept for the
    next shape. Its Python interpreter is that of ``SHAPELAW_AICONFIGURATOR_PYTHON``, by default
    the one that runs shapelaw.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The hardware has no tables, or aiconfigurator is not installed.
    """

    name = "aiconfigurator"
    kind = "predicted"
    default_dtype = "bfloat16"
    supported = frozenset({"automatic"})
    searches_concurrency = True
    known_error = (
        "from tables of measured kernels; on an H200, Surefire-1B over LLaMA-3.2-1B is 1.44 by it "
        "and 1.47 as arXiv 2510.18245 measured"
    )

    def __init__(self, hardware_name: str | None = None) -> None:
        self.gpu, _, backend = (hardware_name or "h100").partition("-")
        self.backend = backend or BACKENDS[0]
        if self.gpu not in SYSTEMS or self.backend not in BACKENDS:
            raise InputError(
                f"`--engine aiconfigurator:HARDWARE` must be {HARDWARE_SYNTAX}, "
                f"but got {hardware_name!r}; write for example aiconfigurator:h200-sglang"
            )
        self.limit = hardware(self.gpu).memory
        self.device = hardware(self.gpu).name
        self.python = os.environ.get(SETTING) or sys.executable
        self.process: SessionProcess | None = None
        if self.python == sys.executable:
            self.version = version_of(self.name, engine=self.name)
        else:
            self.version = self._installed_version()

    @property
    def label(self) -> str:
        """Return ``aiconfigurator:GPU-BACKEND``."""
        return f"{self.name}:{self.gpu}-{self.backend}"

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Predict the speed on one GPU."""
        workload = self.served_workload(workload)
        if workload.automatic:
            return measure_one_fastest(self.measure_all, shape, workload)
        kv_type = workload.kv_dtype if workload.kv_dtype in NARROW_CACHES else None
        tabled = replace(workload, dtype="bfloat16", kv_dtype=kv_type)
        refuse_above(
            self.limit, bytes_served(shape, tabled), f"{shape} under {workload}", self.device
        )
        with tempfile.TemporaryDirectory(prefix="shapelaw-") as parent:
            # aiconfigurator caches a config by its path, so every shape needs a new path.
            folder = Path(parent) / f"model-{time.monotonic_ns()}"
            folder.mkdir()
            write_config(shape, workload, folder, **_architecture(shape))
            try:
                answer = self._running_process().ask(
                    "predict",
                    seconds=PREDICTION_SECONDS,
                    folder=str(folder),
                    system=SYSTEMS[self.gpu],
                    backend=self.backend,
                    workload=session_workload(shape, workload),
                    kv_type=kv_type or "bfloat16",
                )
            except InputError as error:
                if not self._running_process().alive:
                    self.close()
                raise InputError(
                    f"{shape} under {workload} is not in the tables of {self.label}: "
                    f"{str(error)[:300]}"
                ) from None
        return Measurement.predicted(
            workload,
            engine=self.label,
            device=f"{self.device}, {self.backend} {answer['tables']}, bfloat16",
            version=self.version,
            ttft=answer["prefill"],
            tpot=answer["step"],
        )

    def close(self) -> None:
        """End the process if one runs. The next shape starts another one."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def __del__(self) -> None:
        if getattr(self, "process", None) is not None:
            self.close()

    def _running_process(self) -> SessionProcess:
        if self.process is None:
            self.process = SessionProcess(SESSION, python=self.python)
        return self.process

    def _installed_version(self) -> str:
        try:
            return str(self._running_process().ask("describe")["version"])
        except InputError as error:
            self.close()
            raise MissingError(
                f"{SETTING} names {self.python}, which has no aiconfigurator: {error}"
            ) from None


def _architecture(shape: Shape) -> dict[str, Any]:
    """Return Llama or Qwen3 as the config's family: the tables have both, with any head_dim."""
    shape.require_gate_without_biases("be looked up in tables of Llama and Qwen3")
    family = ("Qwen3ForCausalLM", "qwen3") if shape.qk_norm else ("LlamaForCausalLM", "llama")
    return {"architectures": [family[0]], "model_type": family[1]}
