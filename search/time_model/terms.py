"""What the seconds of a shape are made of: the columns that the time model weighs.

Each stage of serving (prefill, decode) takes a sum of bytes over a bandwidth, FLOPs over a peak, a
constant per layer and a constant per step. What such a sum cannot say (matrices off the grid of the
hardware's tiles, small heads) is left to the alignment features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.search.workload import Workload

if TYPE_CHECKING:
    from shapelaw.search.engines.accelerators import Hardware

DECODE_TERMS = ("weight bytes", "cache bytes", "FLOPs", "layers", "steps")
PREFILL_TERMS = ("weight bytes", "matrix FLOPs", "attention FLOPs", "layers", "steps")
# A first guess in seconds per unit, and the standard deviation of its logarithm. Without published
# figures: a core of a present processor, within two powers of e either way.
UNKNOWN_BANDWIDTH, UNKNOWN_PEAK = 2e10, 5e10
UNKNOWN_SD = 2.0
ROOF_SD = 0.7  # kernels reach a third to all of published figures
LAYER_SECONDS, STEP_SECONDS, CALL_SD = 2e-5, 2e-5, 1.5


@dataclass(frozen=True)
class Prior:
    """What the coefficients of a stage are thought to be before anything is measured.

    ``seconds`` per unit of each term, ``deviations`` of their natural logarithms.
    """

    seconds: np.ndarray
    deviations: np.ndarray


def priors(workload: Workload, device: "Hardware | None") -> tuple[Prior, Prior]:
    """For prefill and decode: the roofline of a device, or a vague guess where there is none."""
    bandwidth, peak, spread = UNKNOWN_BANDWIDTH, UNKNOWN_PEAK, UNKNOWN_SD
    if device is not None:
        bandwidth, spread = device.bandwidth, ROOF_SD
        peak = device.peak_flops.get(workload.dtype, max(device.peak_flops.values()))
    byte, operation = 1 / bandwidth, 1 / peak
    calls = (LAYER_SECONDS, STEP_SECONDS)
    prefill = np.array([byte, operation, operation, *calls])
    decode = np.array([byte, byte, operation, *calls])
    deviations = np.array([spread, spread, spread, CALL_SD, CALL_SD])
    return Prior(prefill, deviations), Prior(decode, deviations)


def prefill_terms(table: ShapeTable, workload: Workload) -> np.ndarray:
    """Units of each prefill term, (n, 5): all prompts at their mean causal context."""
    prompt = workload.concurrency * workload.input_tokens
    matrices = table.forward_flops(0) * prompt
    attention = (table.forward_flops(workload.input_tokens / 2) - table.forward_flops(0)) * prompt
    weights = table.weight_bytes(workload.bytes_per_value)
    one = np.ones(len(table))
    return np.stack([weights, matrices, attention, table.num_hidden_layers, one], axis=1) * 1.0


def decode_terms(table: ShapeTable, workload: Workload) -> np.ndarray:
    """Units of each decode term, (n, 5): all steps after the first token, at the mean context."""
    steps = workload.output_tokens - 1
    context = workload.input_tokens + workload.output_tokens / 2
    weights = table.weight_bytes(workload.bytes_per_value)
    cache = workload.concurrency * context * table.kv_bytes(workload.kv_bytes_per_value)
    flops = workload.concurrency * table.forward_flops(context)
    one = np.ones(len(table))
    return steps * np.stack([weights, cache, flops, table.num_hidden_layers, one], axis=1)


def alignment_features(table: ShapeTable) -> np.ndarray:
    """Features of the residual, (n, 15), each of the order of one.

    Where d and f stand within the tiles of matrix kernels, and logarithms (in octaves) of the
    head dimension, depth, widths and ratios, with squares of those that bend.
    """
    width = table.num_attention_heads * table.head_dim
    kv_width = table.num_key_value_heads * table.head_dim
    hidden, wide = table.hidden_size, table.intermediate_size
    logs = np.log2(
        np.stack(
            [
                table.head_dim / 64,
                table.num_hidden_layers / 16,
                kv_width / 512,
                table.num_attention_heads / 16,
                table.gqa,
                hidden / 1024,
                wide / hidden,
                width / hidden,
            ],
            axis=1,
        )
    )
    steps = np.stack(
        [
            hidden % 128 / 128,
            wide % 256 / 256,
            hidden % 16 > 0,
            wide % 16 > 0,
            width % 64 > 0,
        ],
        axis=1,
    )
    bent = logs[:, [1, 5]] ** 2 / 10
    return np.concatenate([logs / 2, steps, bent], axis=1)
