"""Products of a weight matrix with a few rows, close to the memory bandwidth of the machine.

Decoding multiplies every weight by one row per sequence, so its speed is limited by reading the
weights. General matrix products reach a third of that limit. No single form of the product is the
fastest for every size, number format and processor. Each geometry is therefore timed once, with the
weights out of the processor's caches, as they are while decoding (LOG.md has figures).

Letters: r rows, n outputs, k inputs.
"""

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]
Form = Callable[[Tensor, int], Product]
BLOCK_BYTES = 128  # of one input's weights in a gathered block: two cache lines
TIMED_ROUNDS = 5
EVICTION_BYTES = 5 * 2**23  # read between two timings, to evict a weight from the caches
# Forms within this factor of the fastest time count as equal, because timings are noisy. The first
# of them in the order of `forms` is used.
MAX_TIME_RATIO = 1.15
# A form is timed over copies of a weight with about so many bytes together, at most so many copies.
COPIES_BYTES, MAX_COPIES = 2**24, 8


def plain(weight: Tensor, rows: int) -> Product:
    """Multiply by the weight in its own layout, (n, k)."""
    return lambda x: F.linear(x, weight)


def transposed(weight: Tensor, rows: int) -> Product:
    """Multiply by the weight transposed to (k, n), so that adjacent outputs are summed together."""
    swapped = weight.t().contiguous()
    return lambda x: torch.mm(x, swapped)


def packed(weight: Tensor, rows: int) -> Product:
    """Multiply by the weight in the blocked layout that oneDNN chooses for this number of rows."""
    layout = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, layout, None, "none", [], "")


def gathered(weight: Tensor, rows: int) -> Product:
    """Multiply one row by the weight as a weighted sum of embeddings.

    A matrix-vector product is a sum of the weight's columns, each times one input. An embedding bag
    computes such a sum, and PyTorch's kernel for it reads bfloat16 and float32 tables at memory
    bandwidth and sums in float32. The outputs are divided into blocks of ``BLOCK_BYTES``, one bag
    each, so that memory is read sequentially.
    """
    outputs, inputs = weight.shape
    width = BLOCK_BYTES // weight.element_size()
    blocks = -(-outputs // width)
    filled = F.pad(weight, (0, 0, 0, blocks * width - outputs))
    table = filled.view(blocks, width, inputs).transpose(1, 2).reshape(-1, width)
    indices, offsets, factors = _bags(blocks, inputs, weight.dtype)
    flat = factors.view(-1)

    def product(x: Tensor) -> Tensor:
        factors.copy_(x)
        sums = torch.embedding_bag(table, indices, offsets, False, 0, False, flat, True)[0]
        return sums.view(1, -1)[:, :outputs]

    return product


@functools.lru_cache(maxsize=32)
def _bags(blocks: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices, offsets and a buffer for the factors.

    All layers of one geometry share them, so that they stay in the processor's caches.
    """
    indices = torch.arange(blocks * inputs, dtype=torch.int32)
    offsets = torch.arange(0, blocks * inputs + 1, inputs, dtype=torch.int32)
    with torch.inference_mode(False):  # a normal tensor, which later calls may write to
        return indices, offsets, torch.empty(blocks, inputs, dtype=dtype)


def forms(rows: int, dtype: torch.dtype) -> list[Form]:
    """Return the forms that work on this processor for a number of rows, the usually fastest first.

    oneDNN packs weights in bfloat16 only on processors with AVX-512 or AVX-NE-CONVERT.
    """
    supported: list[Form] = [transposed, plain]
    if torch.backends.mkldnn.is_available() and (
        dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        supported.insert(0, packed)
    return [gathered, *supported] if rows == 1 else supported


# (n, k, rows, number format) -> fastest form, as timed in this process
_fastest_by_geometry: dict[tuple[int, int, int, torch.dtype], Form] = {}


def fastest_product(weight: Tensor, rows: int, model_bytes: int) -> Product:
    """Return the fastest form of the product of (r, k) inputs with a weight (n, k) -> (r, n).

    The first call for a geometry times every form.

    Parameters
    ----------
    weight
        Weight matrix, (n, k).
    rows
        Number of rows r in every call of the product.
    model_bytes
        Size of all weights of the model. A model that fits into the processor's caches stays there
        while it decodes, so that the timing evicts no more than this.
    """
    if weight.device.type != "cpu":
        return plain(weight, rows)
    key = (weight.shape[0], weight.shape[1], rows, weight.dtype)
    if key not in _fastest_by_geometry:
        _fastest_by_geometry[key] = _fastest_form(weight, rows, min(model_bytes, EVICTION_BYTES))
    return _fastest_by_geometry[key](weight, rows)


def _fastest_form(weight: Tensor, rows: int, evicted_bytes: int) -> Form:
    """Time all forms alternately and return the fastest, or an earlier one of about its time.

    A form is timed over several copies of the weight in a row, as in a decoding step, because the
    code of the first call is out of the caches as well.
    """
    candidates = forms(rows, weight.dtype)
    copies = min(max(COPIES_BYTES // weight.nbytes, 1), MAX_COPIES)
    products = [[form(weight.clone(), rows) for _ in range(copies)] for form in candidates]
    x = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
    eviction = torch.ones(evicted_bytes // 4)  # zeros would all map to one page of memory
    seconds = [float("inf")] * len(candidates)
    for timed_round in range(TIMED_ROUNDS + 1):
        for index, copied in enumerate(products):
            eviction.sum()
            begun = time.thread_time()
            for product in copied:
                product(x)
            if timed_round:  # round 0 is a warm-up
                seconds[index] = min(seconds[index], time.thread_time() - begun)
    best = min(seconds)
    return next(
        form
        for form, took in zip(candidates, seconds, strict=True)
        if took <= MAX_TIME_RATIO * best
    )
