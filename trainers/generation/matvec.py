"""A weight times a few rows, as fast as this machine reads the weight.

Decoding multiplies every weight by as many rows as there are sequences: it is bound by reading the
weights, and a library's product for large matrices reaches a third of that bound. No one form is
the fastest for every size, number format and processor; so each geometry is timed once, with the
weights out of the caches as they are while decoding (LOG.md has figures).

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
TURNS = 5  # of timing
PUSH_OUT = 5 * 2**23  # bytes that push a weight out of the caches between two timings

NEAR = 1.15  # forms this near to the fastest are taken by their order: timings are noisy
COPIED, MOST_COPIES = 2**24, 8  # bytes of a weight's copies that a form is timed over


def plain(weight: Tensor, rows: int) -> Product:
    """The weight as it is, (n, k)."""
    return lambda x: F.linear(x, weight)


def transposed(weight: Tensor, rows: int) -> Product:
    """Inputs first, (k, n): outputs are summed side by side."""
    turned = weight.t().contiguous()
    return lambda x: torch.mm(x, turned)


def packed(weight: Tensor, rows: int) -> Product:
    """In the blocked layout that oneDNN chooses for this many rows."""
    layout = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, layout, None, "none", [], "")


def gathered(weight: Tensor, rows: int) -> Product:
    """One row by a sum of weighted embeddings.

    A product with a vector is a sum of the weight's columns, each times an input. That is what an
    embedding bag computes, and torch's kernel for it streams bfloat16 and float32 tables at the
    memory's speed, with sums in float32. The outputs are cut in blocks of ``BLOCK_BYTES``, each a
    bag, so that memory is read from one end to the other.
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
    """Indices, offsets and room for the factors: one for all layers, so that they stay cached."""
    indices = torch.arange(blocks * inputs, dtype=torch.int32)
    offsets = torch.arange(0, blocks * inputs + 1, inputs, dtype=torch.int32)
    with torch.inference_mode(False):  # whoever comes next may write to it
        return indices, offsets, torch.empty(blocks, inputs, dtype=dtype)


def forms(rows: int, dtype: torch.dtype) -> list[Form]:
    """Return the forms that work here for a number of rows, the likeliest first.

    oneDNN packs weights in bfloat16 only on processors with AVX-512 or AVX-NE-CONVERT.
    """
    found: list[Form] = [transposed, plain]
    if torch.backends.mkldnn.is_available() and (
        dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        found.insert(0, packed)
    return [gathered, *found] if rows == 1 else found


# (n, k, rows, number format) -> what was the fastest in this process
_fastest: dict[tuple[int, int, int, torch.dtype], Form] = {}


def fastest_product(weight: Tensor, rows: int, model_bytes: int) -> Product:
    """The product of (r, k) inputs with a weight (n, k) in its fastest form -> (r, n).

    Parameters
    ----------
    rows
        r, of every call to come.
    model_bytes
        Of all weights: a model that fits in a cache stays there while it decodes.
    """
    if weight.device.type != "cpu":
        return plain(weight, rows)
    key = (weight.shape[0], weight.shape[1], rows, weight.dtype)
    if key not in _fastest:
        _fastest[key] = _timed(weight, rows, min(model_bytes, PUSH_OUT))
    return _fastest[key](weight, rows)


def _timed(weight: Tensor, rows: int, others: int) -> Form:
    """Time every form in turns and return the one with the least time, or one as good.

    A form is timed over several copies of the weight in a row, as in a step: the first call after
    others ran finds its code out of the caches too.
    """
    candidates = forms(rows, weight.dtype)
    copies = min(max(COPIED // weight.nbytes, 1), MOST_COPIES)
    products = [[form(weight.clone(), rows) for _ in range(copies)] for form in candidates]
    x = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
    other = torch.ones(others // 4)  # zeros would be one page, again and again
    seconds = [float("inf")] * len(candidates)
    for turn in range(TURNS + 1):
        for index, copied in enumerate(products):
            other.sum()
            begun = time.thread_time()
            for product in copied:
                product(x)
            if turn:  # the first call sets things up
                seconds[index] = min(seconds[index], time.thread_time() - begun)
    best = min(seconds)
    return next(form for form, took in zip(candidates, seconds, strict=True) if took <= NEAR * best)
