"""Hugging Face transformers with a static or a dynamic cache, the most common decoder."""

import time
from importlib import import_module
from typing import Any

import torch

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.search.engines._base import describe_processor
from shapelaw.search.engines._memory import TORCH_DTYPES, random_prompt, refuse_oversized
from shapelaw.search.engines._timed import Server, TimedEngine, Timing, require_token_count
from shapelaw.search.workload import Workload

CACHES = ("static", "dynamic")


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

    def start(self, shape: Shape, workload: Workload) -> Server:
        """Build the model that the shape's config describes."""
        refuse_oversized(shape, workload, engine=self.name)
        return TransformersServer(self.transformers, shape, workload, dynamic=self.dynamic)


class TransformersServer(Server):
    """A shape in memory: its weights, a cache and the prompts."""

    def __init__(
        self, transformers: Any, shape: Shape, workload: Workload, *, dynamic: bool
    ) -> None:
        torch.set_num_threads(1)
        self.length = workload.input_tokens + workload.output_tokens
        config = transformers.AutoConfig.for_model(
            **shape.to_config(max_position_embeddings=self.length)
        )
        dtype = TORCH_DTYPES[workload.dtype]
        self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        self.transformers, self.dynamic = transformers, dynamic
        self.static = None if dynamic else self._allocate_cache()
        self.prompt = random_prompt(shape, workload)

    def _allocate_cache(self) -> Any:
        return self.transformers.StaticCache(config=self.model.config, max_cache_len=self.length)

    def _empty_cache(self) -> Any:
        if self.static is None:
            return self.transformers.DynamicCache(config=self.model.config)
        self.static.reset()
        return self.static

    def close(self) -> None:
        """Free the weights and the cache."""
        del self.model, self.static

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


def _import_transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError:
        raise InputError(
            "`--engine transformers` needs transformers, which is not installed; "
            f"`{installing('transformers')}`"
        ) from None
