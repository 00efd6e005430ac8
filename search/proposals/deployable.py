"""Rules for shapes that serving programs run well, which limit a search unless it lifts them."""

from dataclasses import dataclass

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.space.space import usual_steps

SMALL, TINY = 10**8, 10**7  # parameters: below, head dimensions and steps are smaller
HEAD_DIMS = (64, 128)
KEY_VALUE_HEADS = (1, 2, 4, 8)
HIDDEN_STEP, MLP_STEP = 128, 64
TINY_HIDDEN_STEP, TINY_MLP_STEP = 8, 4
ATTENTION_WIDTH = (0.5, 2)  # smallest and largest H·h/d
MLP_WIDTH = (1, 8)  # smallest and largest f/d
MAX_GQA = 16  # largest H/K, as in Llama 3.1 405B and Qwen3 235B
MAX_STEP = 0.01  # share of N that one step of the MLP width may change


@dataclass(frozen=True, kw_only=True)
class DeployableRules:
    """Rules for the dimensions of a deployable shape.

    Attributes
    ----------
    head_dims, key_value_heads
        Values that are allowed.
    hidden_step, mlp_step
        Numbers of which the hidden size d and the MLP width f are multiples.
    """

    head_dims: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    hidden_step: int
    mlp_step: int

    @property
    def constraints(self) -> tuple[str, ...]:
        """Return the rules that a grid does not hold, as conditions of a space."""
        width = "num_attention_heads * head_dim"
        heads = ", ".join(map(str, self.key_value_heads))
        return (
            f"num_key_value_heads in ({heads},)",
            f"gqa <= {MAX_GQA}",
            f"{width} >= {ATTENTION_WIDTH[0]} * hidden_size",
            f"{width} <= {ATTENTION_WIDTH[1]} * hidden_size",
            f"intermediate_size >= {MLP_WIDTH[0]} * hidden_size",
            f"intermediate_size <= {MLP_WIDTH[1]} * hidden_size",
        )

    def __str__(self) -> str:
        return (
            f"deployable shapes only: head dimension {_alternatives(self.head_dims)}, "
            f"{_alternatives(self.key_value_heads)} key-value heads for at most "
            f"{MAX_GQA} query heads each, d a multiple of {self.hidden_step} and f of "
            f"{self.mlp_step}, attention width {ATTENTION_WIDTH[0]:g} "
            f"to {ATTENTION_WIDTH[1]} d, f {MLP_WIDTH[0]} to {MLP_WIDTH[1]} d; --any lifts this"
        )


def deployable_rules(
    baseline: Shape,
    parameters: int,
    *,
    tensor_parallel: tuple[int, ...] = (1,),
    rescaled: bool = False,
) -> DeployableRules:
    """Return the rules at the size of a budget.

    Parameters
    ----------
    baseline
        The model to compare with. Its head dimension and key-value heads are allowed.
    parameters
        Parameters of the shapes.
    tensor_parallel
        GPUs that one model is split over; one of the numbers must divide the key-value heads.
    rescaled
        Whether the baseline has another size, and only its proportions count.
    """
    own = usual_steps(parameters)[2] if rescaled else baseline.head_dim
    heads = sorted({*KEY_VALUE_HEADS, baseline.num_key_value_heads})
    divided = tuple(k for k in heads if any(k % gpus == 0 for gpus in tensor_parallel))
    hidden_step, mlp_step = HIDDEN_STEP, MLP_STEP
    if parameters < TINY:
        hidden_step, mlp_step = TINY_HIDDEN_STEP, TINY_MLP_STEP
    growth = (parameters / baseline.n_non_embedding) ** (2 / 3)  # of layers times hidden size
    per_unit = 3 * growth * baseline.num_hidden_layers * baseline.hidden_size
    while per_unit * mlp_step > MAX_STEP * parameters and mlp_step > TINY_MLP_STEP:
        mlp_step //= 2
    return DeployableRules(
        head_dims=(own,) if parameters < SMALL else tuple(sorted({*HEAD_DIMS, own})),
        key_value_heads=divided or (min(tensor_parallel),),
        hidden_step=hidden_step,
        mlp_step=mlp_step,
    )


def _alternatives(values: tuple[int, ...]) -> str:
    """Write values as ``1, 2 or 4``."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last
