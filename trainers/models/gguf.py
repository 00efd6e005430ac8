"""Conversion of an exported model to a GGUF file, the format of llama.cpp.

llama.cpp's own converter refuses tokenizers that are not in its list, and no tokenizer trained by
shapelaw is. This module takes the tokenizer from the exported folder. It needs the package gguf.
"""

from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.engine_conditions import LLAMACPP, require_computed_alike
from shapelaw.scaling.architectures.llamacpp_properties import LLAMACPP_ARCHITECTURES
from shapelaw.scaling.architectures.shape_config import architecture_of, read_trainable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.scaling.files import read_json, write_whole
from shapelaw.trainers.models.hugging_face import CONFIG, load_export
from shapelaw.trainers.models.llama_cpp import add_metadata, gguf_tensors

# The letter of byte 0. No text contains it, so a merge of two of them never applies.
NULL_BYTE_LETTER = "Ā"


def export_gguf(folder: Path, path: Path) -> None:
    """Convert an exported model to one GGUF file in float32.

    Parameters
    ----------
    folder
        Folder written by :func:`~shapelaw.trainers.models.hugging_face.export`, with a tokenizer.
    path
        GGUF file to write.

    Raises
    ------
    InputError
        llama.cpp computes the family differently or not at all, the folder has no tokenizer or
        no weights, or gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"a GGUF file needs gguf ({error}); install it by `{installing('gguf')}`"
        ) from None
    config = read_json(folder / CONFIG)
    require_computed_alike(architecture_of(read_trainable(config)), LLAMACPP)
    tokenizer, model = read_json(folder / "tokenizer.json"), load_export(folder)

    def write(target: Path) -> None:
        kind = LLAMACPP_ARCHITECTURES[model.architecture.model_type]
        writer = gguf.GGUFWriter(str(target), kind)
        add_metadata(writer, model.architecture, model.context_length)
        _add_tokenizer(writer, tokenizer, config, gguf.TokenType)
        for name, weight in gguf_tensors(model).items():
            writer.add_tensor(name, np.ascontiguousarray(weight.numpy(), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_whole(path, write)


def _add_tokenizer(
    writer: Any, tokenizer: dict[str, Any], config: dict[str, Any], kinds: Any
) -> None:
    """Write a byte-level BPE tokenizer that splits text as GPT-2 does, which llama.cpp supports."""
    numbers = tokenizer["model"]["vocab"] | {
        added["content"]: added["id"] for added in tokenizer["added_tokens"]
    }
    special = {added["id"] for added in tokenizer["added_tokens"]}
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in tokenizer["model"]["merges"]
    ]
    tokens = sorted(numbers, key=lambda token: int(numbers[token]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [kinds.CONTROL if numbers[token] in special else kinds.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges or [f"{NULL_BYTE_LETTER} {NULL_BYTE_LETTER}"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    # As the exported Hugging Face tokenizer, so that both continue a text with the same tokens.
    writer.add_add_bos_token(False)
