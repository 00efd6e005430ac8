"""llama.cpp on one core, with random weights in a GGUF file and one slot per sequence."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.search.engines._base import bytes_served, describe_processor
from shapelaw.search.engines._timed import Server, TimedEngine
from shapelaw.search.engines.sessions.client import (
    CPU_LIMIT,
    ProcessServer,
    SessionProcess,
    refuse_above,
    version_of,
)
from shapelaw.search.workload import Workload

KV_TYPES = {"float32": "GGML_TYPE_F32", "bfloat16": "GGML_TYPE_BF16", "int8": "GGML_TYPE_Q8_0"}
POOL_SIZE = 2**20 + 7  # random numbers that are repeated to fill the weights


class LlamaCppEngine(TimedEngine):
    """An engine that runs llama.cpp through the package xllamacpp, on one thread.

    All prompts fit into one logical batch, so that prefill and decode are separate as in the other
    engines. Decoding uses llama.cpp's continuous batching. Matrices are in the number format of
    the workload, norms in float32.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The hardware is not ``cpu``, or a package is missing.
    """

    name = "llamacpp"

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware not in (None, "cpu"):
            raise InputError(f"`--engine llamacpp` runs on cpu, but got {hardware!r}; leave it out")
        self.version = version_of("xllamacpp", engine=self.name)
        version_of("gguf", engine=self.name)
        self.repeats = repeats
        self.device = describe_processor()

    def start(self, shape: Shape, workload: Workload) -> Server:
        """Write the GGUF file of the shape and load it in a process."""
        kv_type = KV_TYPES.get(workload.kv_dtype or workload.dtype)
        if kv_type is None:
            raise InputError(
                f"`kv_dtype` must be one of {', '.join(KV_TYPES)} in the llamacpp engine, but got "
                f"{workload.kv_dtype!r}"
            )
        refuse_above(
            CPU_LIMIT,
            bytes_served(shape, workload),
            f"{shape} under {workload}",
            "the llamacpp engine",
        )
        folder = tempfile.TemporaryDirectory(prefix="shapelaw-")
        path = Path(folder.name) / "model.gguf"
        length = workload.input_tokens + workload.output_tokens
        write_random_gguf(path, shape, dtype=workload.dtype, length=length)
        process = SessionProcess("llamacpp_session.py", environment={"GGML_NO_BACKTRACE": "1"})
        server = ProcessServer(process, folder)
        server.load(shape, workload, path=str(path), kv_type=kv_type)
        return server


def write_random_gguf(path: Path, shape: Shape, *, dtype: str, length: int) -> None:
    """Write a GGUF file with random weights and a vocabulary of numbers (``<0>``, ``<1>``, …).

    Parameters
    ----------
    dtype
        Number format of the matrices: ``float32`` or ``bfloat16``.
    length
        Tokens of the longest sequence.
    """
    import gguf

    shape.require_gate_without_biases("be written for llama.cpp")
    family = "qwen3" if shape.qk_norm else "llama"
    pool = np.random.default_rng(0).standard_normal(POOL_SIZE, dtype=np.float32) * np.float32(0.02)
    narrow = gguf.GGMLQuantizationType.BF16 if dtype == "bfloat16" else None
    matrices = pool if narrow is None else gguf.quants.quantize(pool, narrow).view(np.uint16)

    def write(target: Path) -> None:
        writer = gguf.GGUFWriter(str(target), family, use_temp_file=False)
        _add_metadata(writer, shape, length)
        sizes = _tensor_sizes(shape)
        for name, size in sizes.items():
            if len(size) == 1:
                writer.add_tensor_info(name, size, pool.dtype, size[0] * pool.itemsize)
            else:
                count = int(np.prod(size)) * matrices.itemsize
                writer.add_tensor_info(name, size, matrices.dtype, count, raw_dtype=narrow)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for size in sizes.values():
            source = pool if len(size) == 1 else matrices
            writer.write_tensor_data(np.resize(source, size))
        writer.close()

    write_whole(path, write)


def _tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the sizes (rows, features) of all weights by llama.cpp's names."""
    d, f = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    groups = shape.num_key_value_heads * shape.head_dim
    layer = {
        "attn_norm": (d,), "attn_q": (queries, d), "attn_k": (groups, d), "attn_v": (groups, d),
        "attn_output": (d, queries), "ffn_norm": (d,), "ffn_gate": (f, d), "ffn_up": (f, d),
        "ffn_down": (d, f),
    }  # fmt: skip
    if shape.qk_norm:
        layer |= dict.fromkeys(("attn_q_norm", "attn_k_norm"), (shape.head_dim,))
    sizes: dict[str, tuple[int, ...]] = {"token_embd": (shape.vocab_size, d), "output_norm": (d,)}
    if not shape.tie_word_embeddings:
        sizes["output"] = (shape.vocab_size, d)
    for block in range(shape.num_hidden_layers):
        sizes |= {f"blk.{block}.{name}": size for name, size in layer.items()}
    return {f"{name}.weight": size for name, size in sizes.items()}


def _add_metadata(writer: Any, shape: Shape, length: int) -> None:
    writer.add_context_length(length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    # llama.cpp serves no model without a vocabulary; the one merge never applies to any token.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{token}>" for token in range(shape.vocab_size)])
    writer.add_token_types([1] * shape.vocab_size)
    writer.add_token_merges(["Ā Ā"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
