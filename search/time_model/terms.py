"""Terms and features of the time model.

The seconds of each stage of serving (prefill, decode) are a sum of bytes over a bandwidth, FLOPs
over a peak, a constant per layer and a constant per step. Effects outside of this sum (matrix sizes
that do not fill the hardware's tiles, small heads) are left to the alignment features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.search.workload import Workload

if TYPE_CHECKING:
    from shapelaw.search.engines.accelerators import Hardware

# TermPrior medians, and standard deviations of the natural logarithm. Without published figures the
# prior is a core of a current processor, uncertain by a factor of e² either way.
UNKNOWN_BANDWIDTH, UNKNOWN_PEAK = 2e10, 5e10
UNKNOWN_SD = 2.0
ROOF_SD = 0.7  # kernels reach between a third and all of the published figures
LAYER_SECONDS, STEP_SECONDS, CALL_SD = 2e-5, 2e-5, 1.5


@dataclass(frozen=True)
class TermPrior:
    """TermPrior of the coefficients of a stage.

    Attributes
    ----------
    seconds
        TermPrior medians in seconds per unit of each term, (5,).
    deviations
        Standard deviations of their natural logarithms, (5,).
    """

    seconds: np.ndarray
    deviations: np.ndarray


def priors(workload: Workload, device: "Hardware | None") -> tuple[TermPrior, TermPrior]:
    """Return the priors of prefill and decode: a device's roofline; None: a wide prior."""
    bandwidth, peak, spread = UNKNOWN_BANDWIDTH, UNKNOWN_PEAK, UNKNOWN_SD
    if device is not None:
        bandwidth, spread = device.bandwidth, ROOF_SD
        peak = device.peak_flops.get(workload.dtype, max(device.peak_flops.values()))
    byte, operation = 1 / bandwidth, 1 / peak
    calls = (LAYER_SECONDS, STEP_SECONDS)
    prefill = np.array([byte, operation, operation, *calls])
    decode = np.array([byte, byte, operation, *calls])
    deviations = np.array([spread, spread, spread, CALL_SD, CALL_SD])
    return TermPrior(prefill, deviations), TermPrior(decode, deviations)


def prefill_terms(table: ShapeTable, workload: Workload, at_once: Any = None) -> np.ndarray:
    """Count the units of each prefill term, (n, 5), for all prompts at their mean context.

    Parameters
    ----------
    at_once
        Sequences at once, a number or (n,); None: the workload's.
    """
    prompt = (workload.concurrency if at_once is None else at_once) * workload.input_tokens
    matrices = table.forward_flops(0) * prompt
    attention = (table.forward_flops(workload.input_tokens / 2) - table.forward_flops(0)) * prompt
    weights = table.weight_bytes(workload.bytes_per_value)
    one = np.ones(len(table))
    return np.stack([weights, matrices, attention, table.num_hidden_layers, one], axis=1) * 1.0


def decode_terms(table: ShapeTable, workload: Workload, at_once: Any = None) -> np.ndarray:
    """Count the units of each decode term, (n, 5), for all steps after the first token.

    Parameters
    ----------
    at_once
        Sequences at once, a number or (n,); None: the workload's.
    """
    at_once = workload.concurrency if at_once is None else at_once
    steps = workload.output_tokens - 1
    context = workload.input_tokens + workload.output_tokens / 2
    weights = table.weight_bytes(workload.bytes_per_value)
    cache = at_once * context * table.kv_bytes(workload.kv_bytes_per_value)
    flops = at_once * table.forward_flops(context)
    one = np.ones(len(table))
    return steps * np.stack([weights, cache, flops, table.num_hidden_layers, one], axis=1)


def alignment_features(table: ShapeTable) -> np.ndarray:
    """Compute the features of the residual, (n, 15), each of order one.

    They are remainders of d and f within the tiles of matrix kernels, and base-2 logarithms of
    head dimension, depth, widths and ratios, with squares of depth and hidden size.
    """
    width = table.num_attention_heads * table.head_dim
    kv_width = table.num_key_value_heads * table.head_dim
    hidden, mlp_width = table.hidden_size, table.intermediate_size
    logs = np.log2(
        np.stack(
            [
                table.head_dim / 64,
                table.num_hidden_layers / 16,
                kv_width / 512,
                table.num_attention_heads / 16,
                table.gqa,
                hidden / 1024,
                mlp_width / hidden,
                width / hidden,
            ],
            axis=1,
        )
    )
    steps = np.stack(
        [
            hidden % 128 / 128,
            mlp_width % 256 / 256,
            hidden % 16 > 0,
            mlp_width % 16 > 0,
            width % 64 > 0,
        ],
        axis=1,
    )
    squares = logs[:, [1, 5]] ** 2 / 10
    return np.concatenate([logs / 2, steps, squares], axis=1)
