"""The embedded engine: the trainer's own model with a KV cache, one thread, greedy decoding."""

import time

import torch

from scaling.errors import InputError, WorkError
from scaling.shape import Shape
from search.throughput._base import this_device
from search.throughput._timed import Server, TimedEngine, Timing
from search.workload import Workload
from trainers.model import Transformer

MEMORY_LIMIT = 8 * 2**30  # bytes of weights and cache
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchEngine(TimedEngine):
    """Random weights, random prompts: only the shape decides.

    Each repeat runs the whole workload: one prefill of all prompts, then one token at a time for
    all sequences. The weights are put into the number format of the workload.
    """

    name = "torch"

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware not in (None, "cpu"):
            raise InputError(f"`--engine torch` runs on cpu, but got {hardware!r}; write torch")
        self.repeats = repeats
        self.version = torch.__version__
        self.device = this_device()

    def start(self, shape: Shape, workload: Workload) -> Server:
        """Random weights of a shape, with room in the cache for the whole workload."""
        needed = _bytes(shape, workload)
        if needed > MEMORY_LIMIT:
            raise InputError(
                f"{shape} under {workload} needs {needed / 2**30:.0f} GiB in the torch engine, "
                f"the limit is {MEMORY_LIMIT / 2**30:.0f}; choose a smaller workload or "
                "--engine roofline:HARDWARE"
            )
        return TorchServer(shape, workload)


class TorchServer(Server):
    """One shape in memory: its weights, a cache, the prompts."""

    def __init__(self, shape: Shape, workload: Workload) -> None:
        torch.set_num_threads(1)
        length = workload.input_tokens + workload.output_tokens
        dtype = TORCH_DTYPES[workload.dtype]
        model = Transformer(shape, context_length=length)
        model.initialise(0)
        self.model = model.to(dtype).eval()
        self.cache = model.empty_cache(workload.concurrency, length, dtype=dtype)
        self.prompt = _prompt(shape, workload)

    def close(self) -> None:
        """Free the weights and the cache."""
        del self.model, self.cache

    @torch.inference_mode()
    def serve(self, outputs: int) -> Timing:
        """One prefill, then one token at a time for all sequences, greedily."""
        model, cache, prompt = self.model, self.cache, self.prompt
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
