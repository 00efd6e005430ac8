"""Hugging Face transformers with a static or a dynamic cache, the most common decoder."""

import time
from importlib import import_module
from typing import Any

import torch

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.search.engines._base import describe_processor
from shapelaw.search.engines._memory import TORCH_DTYPES, random_prompt, refuse_oversized
from shapelaw.search.engines._timed import (
    Server,
    TimedEngine,
    Timing,
    require_token_count,
    serving_config,
)
from shapelaw.search.workload import Workload

CACHES = ("static", "dynamic")
ROW_BYTES = 16  # the grouped products of torch want rows of multiples of it


class TransformersEngine(TimedEngine):
    """An engine that decodes greedily with transformers, random weights and one CPU thread.

    The loop calls the model once per token and takes the likeliest token; ``generate`` would add
    work to each token. ``--engine transformers:dynamic`` lets the cache grow instead of allocating
    it at once.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        transformers is not installed, or the kind of cache is unknown.
    """

    name = "transformers"
    serves_architectures = True

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware is not None and hardware not in CACHES:
            raise InputError(
                f"`--engine transformers[:CACHE]` takes one of {', '.join(CACHES)}, "
                f"but got {hardware!r}; write transformers"
            )
        self.transformers = _import_transformers()
        self.dynamic = hardware == "dynamic"
        self.repeats = repeats
        self.version = f"{self.transformers.__version__}, torch {torch.__version__}"
        self.device = describe_processor()

    @property
    def label(self) -> str:
        """Return ``transformers`` or ``transformers:dynamic``."""
        return f"{self.name}:dynamic" if self.dynamic else self.name

    def start(self, shape: Shape | Architecture, workload: Workload) -> Server:
        """Build the model that the config of a shape or an architecture describes."""
        refuse_oversized(shape, workload, engine=self.name)
        return TransformersServer(self.transformers, shape, workload, dynamic=self.dynamic)


class TransformersServer(Server):
    """A shape in memory: its weights, a cache and the prompts."""

    def __init__(
        self,
        transformers: Any,
        shape: Shape | Architecture,
        workload: Workload,
        *,
        dynamic: bool,
    ) -> None:
        torch.set_num_threads(1)
        self.length = workload.input_tokens + workload.output_tokens
        config = transformers.AutoConfig.for_model(**serving_config(shape, workload))
        dtype = TORCH_DTYPES[workload.dtype]
        self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        if _has_unaligned_experts(shape, dtype.itemsize):
            self.model.set_experts_implementation("eager")
        self.transformers, self.dynamic = transformers, dynamic
        self.cache: Any = None
        self.prompt = random_prompt(shape, workload)

    def _empty_cache(self) -> Any:
        config = self.model.config
        if self.dynamic:
            self.cache = self.transformers.DynamicCache(config=config)
        elif self.cache is None:
            self.cache = self.transformers.StaticCache(config=config, max_cache_len=self.length)
        else:
            self.cache.reset()
        return self.cache

    def cache_bytes(self) -> int:
        """Count the bytes of the cache after :meth:`serve`: keys, values, latents and states."""
        parts = [
            part
            for layer in self.cache.layers
            for value in vars(layer).values()
            for part in (value.values() if isinstance(value, dict) else [value])
        ]
        tensors = [p for p in parts if isinstance(p, torch.Tensor) and p.is_floating_point()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def close(self) -> None:
        """Free the weights and the cache."""
        del self.model, self.cache

    @torch.inference_mode()
    def serve(self, outputs: int) -> Timing:
        """Run one prefill, then decode one token at a time for all sequences, greedily."""
        cache, prompt = self._empty_cache(), self.prompt
        cpu, wall = time.process_time(), time.perf_counter()
        token = self._decode_step(prompt, cache)
        first, first_cpu = time.perf_counter(), time.process_time()
        produced = [token]
        for _ in range(outputs - 1):
            token = self._decode_step(token, cache)
            produced.append(token)
        end, end_cpu = time.perf_counter(), time.process_time()
        require_token_count(torch.cat(produced, dim=1), (prompt.shape[0], outputs))
        return Timing(first - wall, end - first, end_cpu - cpu, end_cpu - first_cpu)

    def _decode_step(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        output = self.model(tokens, cache=cache, use_cache=True, logits_to_keep=1)
        return torch.argmax(output.logits, dim=-1)


def _has_unaligned_experts(shape: Shape | Architecture, value_bytes: int) -> bool:
    """Return True for experts of sizes that the grouped products of torch refuse."""
    layers = shape.layers if isinstance(shape, Architecture) else ()
    blocks = [layer.feed_forward for layer, _ in layers]
    sizes = [
        size
        for block in blocks
        if isinstance(block, ExpertsBlock)
        for size in (block.expert.hidden_size, block.expert.intermediate_size)
    ]
    return any(size * value_bytes % ROW_BYTES for size in sizes)


def _import_transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError:
        raise InputError(
            "`--engine transformers` needs transformers, which is not installed; "
            f"`{installing('transformers')}`"
        ) from None
