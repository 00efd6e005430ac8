"""Conversion between shapes and Hugging Face configs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.errors import InputError

DENSE_FAMILIES = ("llama", "mistral", "smollm3", "qwen3")


def config_family(shape: Shape) -> str:
    """Return the Hugging Face model type that builds a shape.

    Qwen3 has QK-norm. The config of Llama rejects numbers of heads that do not divide the hidden
    size. The config of Mistral accepts them, and Mistral without a sliding window is the same model
    as Llama.
    """
    if shape.qk_norm:
        return "qwen3"
    return "mistral" if shape.hidden_size % shape.num_attention_heads else "llama"


def config_of(shape: Shape, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
    """Write the fields of the Hugging Face config that builds a shape.

    Parameters
    ----------
    shape
        The shape.
    max_position_embeddings
        Longest context of the model, in tokens.

    Returns
    -------
    Fields of the config by name.
    """
    family = config_family(shape)
    fields = {name: value for name, value in asdict(shape).items() if name != "qk_norm"}
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        **({"sliding_window": None} if family == "mistral" else {}),
        **fields,
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
    }


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read a shape from the fields of a Hugging Face config or of a run-table row.

    Parameters
    ----------
    config
        Fields by name.

    Raises
    ------
    InputError
        The model type is not of the dense Llama family, or a field is missing or not a number.
    """
    family = config.get("model_type", "llama")
    if family not in DENSE_FAMILIES:
        raise InputError(
            f"`model_type` must be one of {', '.join(DENSE_FAMILIES)}, but got {family!r}; "
            "give the config of a dense model"
        )
    values = dict(config)
    heads = values.get("num_attention_heads")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None and heads and values.get("hidden_size"):
        hidden = _integer("hidden_size", values["hidden_size"])
        values["head_dim"] = hidden // max(_integer("num_attention_heads", heads), 1)
    missing = [name for name in INTEGER_FIELDS if values.get(name) is None]
    if missing:
        raise InputError(f"a shape needs `{'`, `'.join(missing)}`; add the missing fields")
    tied = values.get("tie_word_embeddings", "model_type" not in config)
    return Shape(
        **{name: _integer(name, values[name]) for name in INTEGER_FIELDS},
        tie_word_embeddings=_boolean("tie_word_embeddings", tied),
        qk_norm=_boolean("qk_norm", values.get("qk_norm", family == "qwen3")),
        rope_theta=_rope_theta(config),
    )


def _integer(name: str, value: object) -> int:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise InputError(f"`{name}` must be a positive integer, but got {value!r}")
    return int(number)


def _rope_theta(config: Mapping[str, Any]) -> float:
    nested = config.get("rope_parameters") or {}
    value = config.get("rope_theta") or nested.get("rope_theta") or 10_000.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"`rope_theta` must be a number, but got {value!r}") from None


def _boolean(name: str, value: object) -> bool:
    spellings = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    answer = spellings.get(str(value).lower())
    if answer is None:
        raise InputError(f"`{name}` must be true or false, but got {value!r}")
    return answer
