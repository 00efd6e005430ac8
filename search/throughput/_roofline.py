"""A predicted engine: the roofline of a device, from its published bandwidth and peak."""

from scaling.catalog import hardware
from scaling.errors import InputError
from scaling.shape import Shape
from search.throughput._base import Engine, Measurement
from search.workload import DTYPES, Workload


class RooflineEngine(Engine):
    """The time that arithmetic or memory needs at the least, whichever is longer.

    Prefill: FLOPs of all prompts at their mean context over the peak, or the weights over the
    bandwidth. Decode, per step: FLOPs over the peak, or weights once and the KV cache of every
    sequence at its mean length over the bandwidth. No overheads: an upper bound that ranks shapes,
    not a forecast (arXiv 2402.16363 discusses the model).
    """

    name = "roofline"
    kind = "predicted"

    def __init__(self, hardware_name: str | None = None) -> None:
        self.device = hardware(hardware_name or "h100")

    @property
    def label(self) -> str:
        """``roofline:HARDWARE``."""
        return f"{self.name}:{self.device.key}"

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Predict the speed on one device."""
        size = DTYPES[workload.dtype]
        peak = self.device.peak_flops[workload.dtype]
        weights = shape.weight_bytes(size)
        cache = workload.concurrency * shape.kv_bytes(size)
        length = workload.input_tokens + workload.output_tokens
        if weights + cache * length > self.device.memory:
            raise InputError(
                f"{shape} under {workload} needs {(weights + cache * length) / 1e9:.0f} GB, "
                f"{self.device.name} has {self.device.memory / 1e9:.0f}; lower the concurrency"
            )
        prompt = workload.concurrency * workload.input_tokens
        prefill = max(
            prompt * shape.forward_flops(workload.input_tokens / 2) / peak,
            weights / self.device.bandwidth,
        )
        context = workload.input_tokens + workload.output_tokens / 2
        step = max(
            workload.concurrency * shape.forward_flops(context) / peak,
            (weights + cache * context) / self.device.bandwidth,
        )
        decode = step * (workload.output_tokens - 1)
        generated = workload.concurrency * workload.output_tokens
        rate = generated / (prefill + decode)
        return Measurement(
            engine=self.label,
            kind="predicted",
            workload=str(workload),
            device=self.device.name,
            version="1",
            repeats=0,
            output_tokens_per_second=rate,
            low=rate,
            high=rate,
            ttft=prefill,
            tpot=step,
            prefill_tokens_per_second=prompt / prefill,
            decode_tokens_per_second=workload.concurrency / step,
            wall_seconds=0.0,
            cpu_seconds=0.0,
            load=None,
            disturbed=False,
        )
