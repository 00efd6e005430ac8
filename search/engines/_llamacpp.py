"""llama.cpp on one core, with random weights in a GGUF file and one slot per sequence."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.llamacpp_properties import LLAMACPP_ARCHITECTURES
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
from shapelaw.trainers.models.llama_cpp import add_metadata, gguf_tensors
from shapelaw.trainers.models.transformer import Transformer

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
    serves_architectures = True

    def __init__(self, hardware: str | None = None, *, repeats: int = 5) -> None:
        if hardware not in (None, "cpu"):
            raise InputError(f"`--engine llamacpp` runs on cpu, but got {hardware!r}; leave it out")
        self.version = version_of("xllamacpp", engine=self.name)
        version_of("gguf", engine=self.name)
        self.repeats = repeats
        self.device = describe_processor()

    def start(self, shape: Shape | Architecture, workload: Workload) -> Server:
        """Write the GGUF file of a shape or an architecture and load it in a process."""
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


def write_random_gguf(path: Path, shape: Shape | Architecture, *, dtype: str, length: int) -> None:
    """Write a GGUF file with random weights and a vocabulary of numbers (``<0>``, ``<1>``, …).

    Parameters
    ----------
    dtype
        Number format of the matrices: ``float32`` or ``bfloat16``.
    length
        Tokens of the longest sequence.
    """
    import gguf

    with torch.device("meta"):
        model = Transformer(shape, context_length=length)
    family = LLAMACPP_ARCHITECTURES[model.architecture.model_type]
    pool = np.random.default_rng(0).standard_normal(POOL_SIZE, dtype=np.float32) * np.float32(0.02)
    narrow = gguf.GGMLQuantizationType.BF16 if dtype == "bfloat16" else None
    matrices = pool if narrow is None else gguf.quants.quantize(pool, narrow).view(np.uint16)

    def write(target: Path) -> None:
        writer = gguf.GGUFWriter(str(target), family, use_temp_file=False)
        add_metadata(writer, model.architecture, length)
        _add_vocabulary(writer, model.vocab_size)
        sizes = {name: tuple(weight.shape) for name, weight in gguf_tensors(model).items()}
        exact = {name for name, size in sizes.items() if _is_exact(name, size)}
        for name, size in sizes.items():
            if name in exact:
                count = int(np.prod(size)) * pool.itemsize
                writer.add_tensor_info(name, size, pool.dtype, count)
            else:
                count = int(np.prod(size)) * matrices.itemsize
                writer.add_tensor_info(name, size, matrices.dtype, count, raw_dtype=narrow)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, size in sizes.items():
            writer.write_tensor_data(np.resize(pool if name in exact else matrices, size))
        writer.close()

    write_whole(path, write)


def _is_exact(name: str, size: tuple[int, ...]) -> bool:
    """Return True for what llama.cpp reads in float32: vectors, biases, routers, convolutions."""
    others = (".bias", "ffn_gate_inp.weight", "shortconv.conv.weight", "position_embd.weight")
    return len(size) == 1 or name.endswith(others)


def _add_vocabulary(writer: Any, size: int) -> None:
    """Write a vocabulary; llama.cpp serves no model without. Its one merge applies to no token."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{token}>" for token in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["Ā Ā"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
