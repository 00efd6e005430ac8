"""Shape of a dense transformer: its fields and their validation.

Parameter counts and FLOPs come from :class:`shapelaw.scaling.architectures.costs.Costs`.
Letters in formulas: d hidden size, H query heads, K key-value heads, h head dimension,
f intermediate size, L layers, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError

INTEGER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
# Largest values of a shape, far above those of real models, so that no count exceeds 64 bits.
MOST = {
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**30,
}
SWITCH_FIELDS = {"gated": True, "qkv_bias": False, "output_bias": False, "mlp_bias": False}
RATIOS = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa")


@dataclass(frozen=True, kw_only=True)
class Shape(Costs):
    """Shape of a transformer of the dense Llama family, with the field names of Hugging Face.

    ``num_attention_heads * head_dim`` may differ from ``hidden_size``. ``qk_norm`` is RMSNorm on
    queries and keys, per head, as in Qwen3. ``rope_theta`` is the base of rotary positions.
    ``gated`` is an MLP of three matrices, false one of two (squared ReLU). ``qkv_bias``,
    ``output_bias`` and ``mlp_bias`` are biases of the projections to queries, keys and values, of
    the output projection of attention, and of the MLP.

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
    gated: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for name in INTEGER_FIELDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"`{name}` must be a positive integer, but got {shown(value)}")
            if value > MOST[name]:
                raise InputError(
                    f"`{name}` must be at most {MOST[name]:,}, but got {shown(value)}; correct it"
                )
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
    def name(self) -> str:
        """Return the name of the shape in files and studies."""
        heads = f"h{self.num_attention_heads}-{self.num_key_value_heads}x{self.head_dim}"
        size = f"d{self.hidden_size}-L{self.num_hidden_layers}"
        return f"{size}-{heads}-f{self.intermediate_size}"

    @property
    def family(self) -> str:
        """Family of the run table."""
        return "qwen3" if self.qk_norm else "llama"

    def row(self) -> dict[str, Any]:
        """Return the fields as columns of a run table; gate and biases only where unusual."""
        usual = SWITCH_FIELDS
        return {k: v for k, v in vars(self).items() if k not in usual or v != usual[k]}

    def require_gate_without_biases(self, purpose: str) -> None:
        """Refuse a shape with an MLP without a gate, or with biases.

        Parameters
        ----------
        purpose
            What the shape cannot be used for, after "to": ``"be trained"``.

        Raises
        ------
        InputError
            The shape has no gate, or has biases.
        """
        unusual = [
            f"`{name}`" for name, usual in SWITCH_FIELDS.items() if vars(self)[name] != usual
        ]
        if unusual:
            raise InputError(
                f"{', '.join(unusual)} must be as in Llama to {purpose}, but differ in {self}; "
                "give a config with a gated MLP and without biases, or use --engine roofline"
            )

    def to_config(self, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
        """Write the Hugging Face config that builds the shape.

        See :func:`shapelaw.scaling.architectures.shape_config.config_of`.
        """
        from shapelaw.scaling.architectures.shape_config import config_of

        return config_of(self, max_position_embeddings=max_position_embeddings)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Shape":
        """Read a shape from a Hugging Face config or a run-table row.

        See :func:`shapelaw.scaling.architectures.shape_config.read_shape`.
        """
        from shapelaw.scaling.architectures.shape_config import read_shape

        return read_shape(config)[0]
