"""A transformer's shape and everything that follows from it by arithmetic.

One formula each, for one shape (:class:`Shape`) and for arrays of shapes (:class:`ShapeTable`).
Letters in formulas: d hidden size, H query heads, K key-value heads, h head dimension,
f intermediate size, L layers, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

FORWARD_AND_BACKWARD = 3  # a backward pass costs two forward passes
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


class Costs:
    """Parameters, FLOPs and bytes of the dense Llama family, from the fields of a shape.

    The fields may be integers or integer arrays of one length: only arithmetic is used.
    """

    hidden_size: Any
    intermediate_size: Any
    num_hidden_layers: Any
    num_attention_heads: Any
    num_key_value_heads: Any
    head_dim: Any
    vocab_size: Any
    tie_word_embeddings: Any
    qk_norm: Any

    @property
    def attention_parameters(self) -> Any:
        """Attention matrices of one layer: d·(H + 2K)·h + H·h·d."""
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads)
        return self.hidden_size * self.head_dim * heads

    @property
    def mlp_parameters(self) -> Any:
        """MLP matrices of one layer (SwiGLU): 3·d·f."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def n_non_embedding(self) -> Any:
        """Parameters without embedding and head, norms included."""
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        layer = self.attention_parameters + self.mlp_parameters + norms
        return self.num_hidden_layers * layer + self.hidden_size

    @property
    def n_total(self) -> Any:
        """All parameters; a tied head counts once."""
        tables = 2 - 1 * self.tie_word_embeddings
        return self.n_non_embedding + tables * self.vocab_size * self.hidden_size

    @property
    def n_active(self) -> Any:
        """Parameters that work on one token: all of them in a dense model."""
        return self.n_total

    def forward_flops(self, context: float) -> Any:
        """FLOPs to process one token that attends to ``context`` tokens.

        2·(non-embedding parameters + V·d) + 4·H·h·context·L; gathers cost nothing.
        """
        head = self.vocab_size * self.hidden_size
        width = self.num_attention_heads * self.head_dim
        attention = 4 * width * context * self.num_hidden_layers
        return 2 * (self.n_non_embedding + head) + attention

    def training_flops(self, context_length: int) -> Any:
        """FLOPs per training token: forward and backward at the mean causal context."""
        return FORWARD_AND_BACKWARD * self.forward_flops(context_length / 2)

    def kv_bytes(self, bytes_per_element: int = 2) -> Any:
        """Bytes that the KV cache keeps per token, all layers (bf16 by default)."""
        width = self.num_key_value_heads * self.head_dim
        return 2 * bytes_per_element * width * self.num_hidden_layers

    def weight_bytes(self, bytes_per_element: int = 2) -> Any:
        """Bytes of all weights (bf16 by default)."""
        return bytes_per_element * self.n_total

    @property
    def mlp_to_attention(self) -> Any:
        """MLP parameters over attention parameters, norms left out (arXiv 2510.18245)."""
        return self.mlp_parameters / self.attention_parameters

    @property
    def hidden_over_sqrt_n(self) -> Any:
        """Hidden size over √N with N non-embedding (arXiv 2510.18245)."""
        return self.hidden_size / self.n_non_embedding**0.5

    @property
    def gqa(self) -> Any:
        """Query heads per key-value head, H / K."""
        return self.num_attention_heads / self.num_key_value_heads


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


@dataclass(frozen=True, kw_only=True)
class ShapeTable(Costs):
    """Many shapes at once: every field an array of one length (int64, booleans for switches)."""

    hidden_size: np.ndarray
    intermediate_size: np.ndarray
    num_hidden_layers: np.ndarray
    num_attention_heads: np.ndarray
    num_key_value_heads: np.ndarray
    head_dim: np.ndarray
    vocab_size: np.ndarray
    tie_word_embeddings: np.ndarray
    qk_norm: np.ndarray
    rope_theta: np.ndarray

    def __len__(self) -> int:
        return len(self.hidden_size)

    def __getitem__(self, index: int) -> Shape:
        """The shape of one row."""
        values = {field.name: getattr(self, field.name)[index].item() for field in fields(self)}
        return Shape(**values)

    def take(self, rows: np.ndarray) -> "ShapeTable":
        """The shapes at the given positions, or where a mask is true."""
        columns = {field.name: _rows(getattr(self, field.name), rows) for field in fields(self)}
        return ShapeTable(**columns)

    @classmethod
    def of(cls, shapes: "list[Shape]") -> "ShapeTable":
        """Stack shapes into a table."""
        column = partial(_column, shapes)
        return cls(**{field.name: column(field.name) for field in fields(cls)})

    @classmethod
    def joined(cls, tables: "Sequence[ShapeTable]") -> "ShapeTable":
        """The rows of several tables, one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(t, name) for t in tables]) for name in names})

    def frame(self) -> "pd.DataFrame":
        """A data frame of the fields and of what a run table and a law need."""
        import pandas as pd  # here, so that the trainer needs no more than torch and NumPy

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        derived = ("n_total", "n_active", "n_non_embedding", *RATIOS)
        return pd.DataFrame(columns | {name: getattr(self, name) for name in derived})


FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys(INTEGER_FIELDS, np.int64),
    "tie_word_embeddings": np.bool_,
    "qk_norm": np.bool_,
    "rope_theta": np.float64,
}
RATIOS = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa")


def _column(shapes: list[Shape], name: str) -> np.ndarray:
    return np.array([getattr(shape, name) for shape in shapes], dtype=FIELD_TYPES[name])


def _rows(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a column; one that holds a single value for all rows keeps on doing so."""
    if column.strides != (0,) or not len(column):
        return np.asarray(column[rows])
    number = int(np.count_nonzero(rows)) if np.asarray(rows).dtype == bool else len(rows)
    return np.broadcast_to(column[0], (number,))


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
