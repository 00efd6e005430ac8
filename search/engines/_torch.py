"""The embedded engine: the trainer's model with a static KV cache and greedy decoding."""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Engine, describe_processor
from shapelaw.search.engines._diffusion import DecodingServer, trained_model, with_mask_token
from shapelaw.search.engines._memory import (
    CPU_LIMIT,
    TORCH_DTYPES,
    random_prompt,
    refuse_oversized,
)
from shapelaw.search.engines._timed import Server, TimedEngine, Timing, require_token_count
from shapelaw.search.workload import Workload
from shapelaw.trainers.generation.cpu_decoder import Decoder, greedy
from shapelaw.trainers.generation.decoding_settings import DecodingSettings
from shapelaw.trainers.generation.graph_decoder import GraphDecoder
from shapelaw.trainers.generation.step_decoder import StepDecoder
from shapelaw.trainers.models.transformer import Transformer

POOL_SIZE = 2**20 + 7  # random numbers that are repeated to fill the weights
REVISION = "decoder 1"  # raised when the decoder's speed changes: stored speeds are of one revision
GPU_SHARE = 0.9  # part of the GPU's free memory that a shape may use


class TorchEngine(TimedEngine):
    """An engine that decodes random prompts with random weights in torch.

    The values do not matter for the speed: only the shape decides. Each repeat runs the whole
    workload: one prefill of all prompts, then one token at a time for all sequences. The weights
    are in the number format of the workload. ``torch`` runs on one thread of the CPU,
    ``torch:cuda`` on the GPU, where a decode step is a CUDA graph. Models outside of the dense
    Llama family decode by plain forward passes with the cache of their layers: their speeds compare
    with one another, not with those of shapes.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The device has another name, or torch sees no GPU.
    """

    name = "torch"
    serves_architectures = True
    decodes_diffusion = True
    architecture_note = (
        "decoded by plain forward passes, as no faster decoder knows the family: compare the speed "
        "with that of other such models, not with that of dense shapes; it is not kept"
    )

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware not in (None, "cpu", "cuda"):
            raise InputError(
                f"`--engine torch[:DEVICE]` runs on cpu or cuda, but got {hardware!r}; write torch"
            )
        if hardware == "cuda" and not torch.cuda.is_available():
            raise InputError("`--engine torch:cuda` needs a GPU, and torch sees none; write torch")
        self.on = torch.device(hardware or "cpu")
        self.repeats = repeats
        self.version = f"{REVISION}, torch {torch.__version__}"
        self.device = (
            describe_processor() if self.on.type == "cpu" else torch.cuda.get_device_name()
        )
        self.decoder: DecodingSettings | None = None
        self.weights: Path | None = None
        if self.on.type == "cuda":
            self.default_dtype = "bfloat16"
            self.together = 1  # each shape may need all of the GPU's memory

    def with_decoder(self, settings: DecodingSettings, *, weights: Path | None = None) -> Engine:
        """Return an engine with another decoder. Shapes get a mask token where it needs one."""
        if settings == DecodingSettings(decoder="ar") and weights is None:
            return self
        engine = copy.copy(self)
        engine.decoder, engine.weights, engine.decoder_text = settings, weights, str(settings)
        engine.version = f"{self.version}, {settings}"
        return engine

    @property
    def label(self) -> str:
        """Return ``torch`` or ``torch:cuda``."""
        return self.name if self.on.type == "cpu" else f"{self.name}:cuda"

    def start(self, shape: Shape | Architecture, workload: Workload) -> Server:
        """Make random weights of a shape, and a cache for the whole workload."""
        limit, copies = float(CPU_LIMIT), 2  # the weights, and a copy laid out for decoding
        if self.on.type == "cuda":
            limit, copies = GPU_SHARE * torch.cuda.mem_get_info()[0], 1
        refuse_oversized(shape, workload, engine=self.name, limit=limit, copies=copies)
        if self.decoder is None:
            return TorchServer(shape, workload, self.on)
        length = workload.input_tokens + workload.output_tokens
        dtype = TORCH_DTYPES[workload.dtype]
        if self.weights is not None:
            model = trained_model(self.weights, length, dtype, self.on)
        else:
            if self.decoder.masked and isinstance(shape, Shape):
                shape = with_mask_token(shape)
            model = random_model(shape, length, dtype, self.on)
        return DecodingServer(model, workload, self.decoder)


class TorchServer(Server):
    """A shape in memory: its weights, a cache and the prompts."""

    def __init__(
        self, shape: Shape | Architecture, workload: Workload, device: torch.device
    ) -> None:
        torch.set_num_threads(1)
        length = workload.input_tokens + workload.output_tokens
        self.prompt = random_prompt(shape, workload).to(device)
        self.decoder: Decoder | GraphDecoder | StepDecoder
        with torch.inference_mode():
            model = random_model(shape, length, TORCH_DTYPES[workload.dtype], device)
            kind = Decoder if device.type == "cpu" else GraphDecoder
            decoder = StepDecoder if isinstance(shape, Architecture) else kind
            self.decoder = decoder(model, batch=workload.concurrency, length=length)

    def close(self) -> None:
        """Free the weights and the cache."""
        del self.decoder

    @torch.inference_mode()
    def serve(self, outputs: int) -> Timing:
        """Run one prefill, then decode one token at a time for all sequences, greedily."""
        decoder, prompt = self.decoder, self.prompt
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        token = greedy(decoder.prefill(prompt))
        self._wait()
        first, first_cpu = time.perf_counter(), time.process_time()
        produced = [token]
        for position in range(prompt.shape[1], prompt.shape[1] + outputs - 1):
            token = greedy(decoder.step(token, position))
            produced.append(token)
        self._wait()
        end, end_cpu = time.perf_counter(), time.process_time()
        require_token_count(torch.stack(produced, dim=1), (prompt.shape[0], outputs))
        return Timing(first - wall, end - first, end_cpu - cpu, end_cpu - first_cpu)

    def _wait(self) -> None:
        if self.prompt.device.type == "cuda":
            torch.cuda.synchronize()


class _SkipInitialisation(TorchFunctionMode):
    """A context in which new modules keep their matrices uninitialised."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def random_model(
    shape: Shape | Architecture, length: int, dtype: torch.dtype, device: torch.device
) -> Transformer:
    """Build a model with random weights, in a number format and on a device.

    The weights repeat one pool of random numbers: their values do not matter for the speed, and
    drawing a billion of them takes longer than the measurement.
    """
    with _SkipInitialisation():
        model = Transformer(shape, context_length=length).to(device, dtype).eval()
    model.set_context_length(length)  # tables in float32
    pool = torch.randn(POOL_SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                _fill(weight.view(-1), (pool / weight.shape[-1] ** 0.5).to(dtype))
    return model


def _fill(weight: torch.Tensor, pool: torch.Tensor) -> None:
    for start in range(0, len(weight), len(pool)):
        part = weight[start : start + len(pool)]
        part.copy_(pool[: len(part)])
