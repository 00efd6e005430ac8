"""The embedded engine: the trainer's own model with a KV cache, one thread, greedy decoding."""

import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from scaling.errors import InputError, WorkError
from scaling.shape import Shape
from search.throughput._base import DISTURBED, Engine, Measurement, interval, this_device
from search.workload import Workload
from trainers.model import LayerCache, Transformer

MEMORY_LIMIT = 8 * 2**30  # bytes of weights and cache
WARM_UP_TOKENS = 4
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Timing:
    """One repeat: seconds of prefill and decode, wall and CPU."""

    prefill: float
    decode: float
    cpu: float


class TorchEngine(Engine):
    """Random weights, random prompts: only the shape decides.

    Each repeat runs the whole workload: one prefill of all prompts, then one token at a time for
    all sequences. The weights are put into the number format of the workload.
    """

    name = "torch"
    kind = "measured"

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware not in (None, "cpu"):
            raise InputError(f"`--engine torch` runs on cpu, but got {hardware!r}; write torch")
        self.repeats = repeats

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Measure on one core of this machine."""
        needed = _bytes(shape, workload)
        if needed > MEMORY_LIMIT:
            raise InputError(
                f"{shape} under {workload} needs {needed / 2**30:.0f} GiB in the torch engine, "
                f"the limit is {MEMORY_LIMIT / 2**30:.0f}; choose a smaller workload or "
                "--engine roofline:HARDWARE"
            )
        torch.set_num_threads(1)
        length = workload.input_tokens + workload.output_tokens
        dtype = TORCH_DTYPES[workload.dtype]
        model = Transformer(shape, context_length=length)
        model.initialise(0)
        model = model.to(dtype).eval()
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        begun = time.perf_counter()
        with torch.inference_mode():
            cache = model.empty_cache(workload.concurrency, length, dtype=dtype)
            prompt = _prompt(shape, workload)
            self._serve(model, cache, prompt, min(WARM_UP_TOKENS, workload.output_tokens))
            timings = [
                self._serve(model, cache, prompt, workload.output_tokens)
                for _ in range(self.repeats)
            ]
        return _measurement(timings, workload, load, time.perf_counter() - begun)

    def _serve(
        self, model: Transformer, cache: list[LayerCache], prompt: torch.Tensor, outputs: int
    ) -> Timing:
        cpu, wall = time.process_time(), time.perf_counter()
        hidden = model(prompt, cache=cache, start=0)
        token = model.logits(hidden[:, -1:]).argmax(dim=-1)
        first = time.perf_counter()
        produced = [token]
        for position in range(prompt.shape[1], prompt.shape[1] + outputs - 1):
            hidden = model(token, cache=cache, start=position)
            token = model.logits(hidden).argmax(dim=-1)
            produced.append(token)
        end = time.perf_counter()
        generated = torch.cat(produced, dim=1)
        if generated.shape != (prompt.shape[0], outputs):
            raise WorkError(f"the engine produced {tuple(generated.shape)} tokens, not {outputs}")
        return Timing(first - wall, end - first, time.process_time() - cpu)


def _prompt(shape: Shape, workload: Workload) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (workload.concurrency, workload.input_tokens)
    return torch.randint(shape.vocab_size, size, generator=generator)


def _bytes(shape: Shape, workload: Workload) -> int:
    size = torch.finfo(TORCH_DTYPES[workload.dtype]).bits // 8
    length = workload.input_tokens + workload.output_tokens
    cache = workload.concurrency * length * shape.kv_bytes(size)
    # Prefill holds the MLP's activations of all prompts at once.
    width = 3 * shape.intermediate_size + 4 * shape.hidden_size
    activations = workload.concurrency * workload.input_tokens * width * size
    # Weights are drawn in float32 before they are converted.
    return int(cache + activations + shape.weight_bytes(size) + shape.weight_bytes(4))


def _measurement(
    timings: list[Timing], workload: Workload, load: float | None, wall_seconds: float
) -> Measurement:
    prefill = np.array([timing.prefill for timing in timings])
    decode = np.array([timing.decode for timing in timings])
    cpu = np.array([timing.cpu for timing in timings])
    generated = workload.concurrency * workload.output_tokens
    rates = generated / (prefill + decode)
    low, high = interval(rates)
    after_first = workload.output_tokens - 1
    return Measurement(
        engine="torch",
        kind="measured",
        workload=str(workload),
        device=this_device(),
        version=torch.__version__,
        repeats=len(timings),
        output_tokens_per_second=float(rates.mean()),
        low=low,
        high=high,
        ttft=float(prefill.mean()),
        tpot=float(decode.mean() / after_first),
        prefill_tokens_per_second=float(
            (workload.concurrency * workload.input_tokens / prefill).mean()
        ),
        decode_tokens_per_second=float((workload.concurrency * after_first / decode).mean()),
        wall_seconds=wall_seconds,
        cpu_seconds=float(cpu.sum()),
        load=load,
        disturbed=bool((prefill + decode).sum() > DISTURBED * cpu.sum()),
    )
