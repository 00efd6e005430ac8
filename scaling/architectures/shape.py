"""A transformer's shape and everything that follows from it by arithmetic.

One formula each, for one shape (:class:`Shape`) and for arrays of shapes (:class:`ShapeTable`).
Letters in formulas: d hidden size, H query heads, K key-value heads, h head dimension,
f intermediate size, L layers, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.errors import InputError

DENSE_FAMILIES = ("llama", "mistral", "smollm3", "qwen3")
INTEGER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


@dataclass(frozen=True, kw_only=True)
class Shape(Costs):
    """One transformer of the dense Llama family; fields are named as in Hugging Face configs.

    ``num_attention_heads * head_dim`` need not equal ``hidden_size``; ``qk_norm`` is RMSNorm on
    queries and keys, per head, as Qwen3 has it; ``rope_theta`` is the base of rotary positions.

    Raises
    ------
    InputError
        A count is not a positive integer, the head dimension is odd, or key-value heads do not
        divide query heads.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for name in INTEGER_FIELDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"`{name}` must be a positive integer, but got {value!r}")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            divisors = ", ".join(str(k) for k in range(1, heads + 1) if heads % k == 0)
            raise InputError(
                "`num_attention_heads % num_key_value_heads == 0` must hold, "
                f"but got {heads} and {groups}; use one of {divisors}"
            )
        if self.head_dim % 2:
            raise InputError(
                "`head_dim % 2 == 0` must hold for rotary positions, "
                f"but got {self.head_dim}; use {self.head_dim + 1}"
            )

    def __str__(self) -> str:
        return (
            f"{self.hidden_size}x{self.num_hidden_layers} "
            f"{self.num_attention_heads}/{self.num_key_value_heads}x{self.head_dim} "
            f"f{self.intermediate_size}"
        )

    @property
    def config_family(self) -> str:
        """The Hugging Face model type that builds this shape.

        Qwen3 has QK-norm; Llama's config refuses heads that do not divide the hidden size, and
        Mistral's, which is the same model without a sliding window, takes them.
        """
        if self.qk_norm:
            return "qwen3"
        return "mistral" if self.hidden_size % self.num_attention_heads else "llama"

    def to_config(self, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
        """Fields of the Hugging Face config that builds this shape."""
        family = self.config_family
        own = {name: value for name, value in asdict(self).items() if name != "qk_norm"}
        return {
            "architectures": [f"{family.capitalize()}ForCausalLM"],
            "model_type": family,
            **({"sliding_window": None} if family == "mistral" else {}),
            **own,
            "attention_bias": False,
            "hidden_act": "silu",
            "max_position_embeddings": max_position_embeddings,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "float32",
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Shape":
        """Read a shape from the fields of a Hugging Face config or of a run-table row.

        Raises
        ------
        InputError
            The model type is not of the dense Llama family, or a field is missing.
        """
        family = config.get("model_type", "llama")
        if family not in DENSE_FAMILIES:
            raise InputError(
                f"`model_type` must be one of {', '.join(DENSE_FAMILIES)}, but got {family!r}"
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
        integers = {name: _integer(name, values[name]) for name in INTEGER_FIELDS}
        tied = values.get("tie_word_embeddings", "model_type" not in config)
        return cls(
            **integers,
            tie_word_embeddings=_boolean("tie_word_embeddings", tied),
            qk_norm=_boolean("qk_norm", values.get("qk_norm", family == "qwen3")),
            rope_theta=_rope_theta(config),
        )


RATIOS = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa")


def _integer(name: str, value: object) -> int:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = np.nan
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
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    answer = known.get(str(value).lower())
    if answer is None:
        raise InputError(f"`{name}` must be true or false, but got {value!r}")
    return answer
