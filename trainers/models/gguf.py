"""Conversion of an exported model to a GGUF file, the format of llama.cpp.

llama.cpp's own converter refuses tokenizers that are not in its list, and no tokenizer trained by
shapelaw is. This module takes the tokenizer from the exported folder. It needs the package gguf.
"""

from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.scaling.files import read_json, write_whole
from shapelaw.trainers.models.hugging_face import CONFIG, WEIGHTS

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
        The folder has no tokenizer or no weights, or gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"a GGUF file needs gguf ({error}); install it by `{installing('gguf')}`"
        ) from None
    config, tokenizer = read_json(folder / CONFIG), read_json(folder / "tokenizer.json")
    weights = _weights(folder, config)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[config["model_type"].upper()], config["num_hidden_layers"]
    )

    def write(target: Path) -> None:
        writer = gguf.GGUFWriter(str(target), config["model_type"])
        _add_shape(writer, config)
        _add_tokenizer(writer, tokenizer, config, gguf.TokenType)
        for name, weight in weights.items():
            writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight",))), weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_whole(path, write)


def _weights(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        weights = load_file(folder / WEIGHTS)
    except OSError as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({error}); give the folder of a finished run"
        ) from None
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if config["model_type"] == "llama":
        for name in weights:
            count = heads.get(name.split(".")[-2])
            if count is not None:
                weights[name] = _interleaved(weights[name], count)
    return {name: np.ascontiguousarray(weight, np.float32) for name, weight in weights.items()}


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of (heads · h, d) so that the two rows of each rotated pair are adjacent.

    llama.cpp rotates adjacent rows for Llama, Hugging Face rotates the two halves of a head.
    """
    rows, features = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, features)
    return halves.swapaxes(1, 2).reshape(rows, features)


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


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
