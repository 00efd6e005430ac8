"""Recipe of a run: schedules, learning-rate rules, settings from text. Does not import torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import number_format
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN, check_objective

OPTIMIZERS = ("muon", "adamw")
MUON_SCALES = ("original", "match_rms_adamw")
RESIDUAL_INITS = ("scaled", "zero")
BALANCE_OVER = ("batch", "sequence")
CPU_SETTINGS = ("qk_clip", "balance_loss", "balance_over", "mtp_weight")  # of the loop of a CPU
LATER_SETTINGS = ("objective", *CPU_SETTINGS)  # since the first runs, whose digests lack them


def _linear(left: float) -> float:
    return left


def _cosine(left: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * left))


def _sqrt(left: float) -> float:
    return 1 - math.sqrt(1 - left)


# Fraction of the peak rate as a function of the remaining fraction of the decay.
DECAY_FORMS: dict[str, Callable[[float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sqrt": _sqrt,  # 1 - √progress, arXiv 2405.18392
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipe of training, usually the same for all rows of a table.

    The defaults were chosen for low noise between seeds on bytes at 0.05M to 0.2M parameters
    (LOG.md has the trials): small batches, Muon with momentum 0.9 on the matrices, a high learning
    rate for embedding and norms. Learning rates are peaks of a warm-up, stable, decay schedule.
    ``warmup`` and ``decay`` are fractions of the steps. ``warmup_steps`` above 0 replaces
    ``warmup`` by a number of steps; then a run of D tokens begins like a longer run, so that one
    run gives several token counts (WSD-S, arXiv 2410.05192). ``rule`` scales the learning rates
    from ``reference_hidden_size`` and ``reference_layers`` to a shape; see :data:`RULES`.
    ``objective`` is ``next_token``, ``masked_diffusion`` or ``block:SIZE``; see
    :mod:`shapelaw.trainers.optimizers.noise`.
    ``qk_clip`` above 0 bounds the logits of attention (Kimi K2 has 100); see
    :mod:`shapelaw.trainers.models.qk_clip`. ``balance_loss`` above 0 is the coefficient of a loss
    of imbalance between experts, over the ``batch`` (Qwen3 has 0.001) or each ``sequence``
    (DeepSeek-V3 has 0.0001) as ``balance_over`` says; the loss of a run leaves it out.
    ``mtp_weight`` above 0 trains the modules of multi-token prediction that a config names, with
    this weight of their loss (DeepSeek-V3: 0.3, then 0.1), which the loss of a run leaves out too.
    """

    context_length: int = 128
    sequences: int = 8
    optimizer: str = "muon"
    matrix_learning_rate: float = 0.01
    learning_rate: float = 0.006
    momentum: float = 0.9
    weight_decay: float = 0.1
    warmup: float = 0.05
    warmup_steps: int = 0
    decay: float = 0.3
    decay_form: str = "linear"
    floor: float = 0.0
    clip: float = 1.0
    dtype: str = "float32"
    muon_scale: str = "original"
    residual_init: str = "scaled"
    rule: str = "constant"
    reference_hidden_size: int = 64
    reference_layers: int = 4
    width_exponent: float = 0.0
    depth_exponent: float = 0.0
    objective: str = NEXT_TOKEN
    qk_clip: float = 0.0
    balance_loss: float = 0.0
    balance_over: str = "batch"
    mtp_weight: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", number_format(self.dtype))
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("dtype", ("float32", "bfloat16")),
            ("decay_form", DECAY_FORMS),
            ("muon_scale", MUON_SCALES),
            ("residual_init", RESIDUAL_INITS),
            ("rule", RULES),
            ("balance_over", BALANCE_OVER),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"`{name}` must be one of {', '.join(allowed)}, but got {getattr(self, name)!r}"
                )
        for name in ("matrix_learning_rate", "learning_rate", "clip"):
            if not 0 < getattr(self, name) <= 1e9:
                raise InputError(f"`{name} > 0` must hold, but got {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "warmup", "decay", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`0 <= {name} <= 1` must hold, but got {getattr(self, name)}")
        for name, least, most in (
            ("context_length", 8, 2**24),
            ("sequences", 1, 2**24),
            ("warmup_steps", 0, 2**53),
            ("reference_hidden_size", 1, 2**24),
            ("reference_layers", 1, 2**24),
            ("width_exponent", -10, 10),
            ("depth_exponent", -10, 10),
            ("qk_clip", 0, 1e9),
            ("balance_loss", 0, 1e3),
            ("mtp_weight", 0, 1e3),
        ):
            if not least <= getattr(self, name) <= most:
                value = getattr(self, name)
                raise InputError(f"`{least} <= {name} <= {most}` must hold, but got {value}")
        check_objective(self.objective, self.context_length)
        if self.mtp_weight and self.objective != NEXT_TOKEN:
            raise InputError(
                f"`mtp_weight` must be 0 with another objective than {NEXT_TOKEN}, but got "
                f"{self.mtp_weight} with {self.objective}; leave one of them out"
            )

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the weights, later ones only where they have an effect.

        A run from before a setting existed keeps its identity.
        """
        unused = {name for name in LATER_SETTINGS if getattr(self, name) == getattr(Recipe, name)}
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def require_plain_steps(self, purpose: str) -> None:
        """Refuse settings that only the training loop of a CPU knows.

        Raises
        ------
        InputError
            A setting has an effect; the message says that it must not to ``purpose``.
        """
        for name in CPU_SETTINGS:
            usual, value = getattr(Recipe, name), getattr(self, name)
            if value != usual:
                raise InputError(
                    f"`{name}` must be {usual} to {purpose}, but got {value}; leave it out, or "
                    "train in one process on a CPU"
                )

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.context_length * self.sequences

    @property
    def schedule(self) -> str:
        """Schedule in the run table: kind, warm-up (fraction, or steps as 50s), decay."""
        warmup = f"{self.warmup_steps}s" if self.warmup_steps else f"{self.warmup:g}"
        if self.decay == 1:
            return f"{self.decay_form}-{warmup}-{self.floor:g}"
        form = "" if self.decay_form == "linear" else f"-{self.decay_form}"
        floor = f"-{self.floor:g}" if self.floor else ""
        return f"wsd-{warmup}-{self.decay:g}{form}{floor}"

    def steps(self, tokens: int) -> int:
        """Return the number of steps nearest to a token budget, at least one."""
        return max(1, round(tokens / self.batch_tokens))

    def share(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a fraction of the peak: warm-up, stable, decay."""
        up = (step + 1) / max(self.warmup_steps or self.warmup * steps, 1.0)
        left = min(1.0, (steps - step) / max(self.decay * steps, 1.0))
        down = self.floor + (1 - self.floor) * DECAY_FORMS[self.decay_form](left)
        return min(1.0, up, down)

    def stable_steps(self, steps: int) -> int:
        """Return the number of steps before the decay, which a longer run has in common."""
        return min(steps, steps - math.ceil(max(self.decay * steps, 1.0)) + 1)

    def for_shape(self, shape: Shape | Architecture) -> "Recipe":
        """Return the recipe with the learning rates of its rule for a shape.

        Under AdamW, ``learning_rate`` also applies to the matrices inside layers.
        """
        matrix, rest = RULES[self.rule](self, shape)
        peak = self.matrix_learning_rate if self.optimizer == "muon" else self.learning_rate
        return replace(
            self,
            rule="constant",
            matrix_learning_rate=peak * matrix,
            learning_rate=self.learning_rate * rest,
        )


def parse_settings(settings: Mapping[str, object]) -> dict[str, Any]:
    """Convert settings, given as texts or values, to the types of the fields of a recipe.

    Raises
    ------
    InputError
        A field does not exist, or a value has the wrong type.
    """
    default = asdict(Recipe())
    values = {}
    for name, value in settings.items():
        if name not in default:
            raise InputError(
                f"a setting of the recipe must be one of {', '.join(default)}, but got {name!r}"
            )
        kind = type(default[name])
        try:
            values[name] = kind(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"`{name}` must be of kind {kind.__name__}, but got {value!r}"
            ) from None
    return values


def read_pairs(texts: Sequence[str]) -> dict[str, object]:
    """Parse settings given as ``NAME=VALUE``.

    Raises
    ------
    InputError
        A text has no ``=``.
    """
    for text in texts:
        if "=" not in text:
            raise InputError(f"`--set` must be NAME=VALUE such as sequences=4, but got {text!r}")
    return {name.strip(): value.strip() for name, _, value in (t.partition("=") for t in texts)}


def recipe_with(texts: Sequence[str]) -> Recipe:
    """Return the default recipe with fields changed by ``NAME=VALUE`` texts."""
    return Recipe(**parse_settings(read_pairs(texts)))


def constant(recipe: Recipe, shape: Shape | Architecture) -> tuple[float, float]:
    """Return factors of 1: the same learning rates for all shapes."""
    return 1.0, 1.0


def power(recipe: Recipe, shape: Shape | Architecture) -> tuple[float, float]:
    """Scale all rates by (d/d₀)^``width_exponent`` · (layers/layers₀)^``depth_exponent``."""
    width = shape.hidden_size / recipe.reference_hidden_size
    depth = shape.num_hidden_layers / recipe.reference_layers
    factor = width**recipe.width_exponent * depth**recipe.depth_exponent
    return factor, factor


def mup(recipe: Recipe, shape: Shape | Architecture) -> tuple[float, float]:
    """Scale the rate of matrices by d₀/d under AdamW; leave all other rates unchanged.

    Source: arXiv 2203.03466 for hidden matrices. A Muon update has the same spectral norm at every
    width, so that its rate needs no factor (arXiv 2409.20325).
    """
    if recipe.optimizer == "muon":
        return 1.0, 1.0
    return recipe.reference_hidden_size / shape.hidden_size, 1.0


def size(recipe: Recipe, shape: Shape | Architecture) -> tuple[float, float]:
    """Scale all rates by (N/N₀)^(-1/3), N₀ = 12·layers₀·d₀² (the exponent of OLMo's ladder)."""
    reference = 12 * recipe.reference_layers * recipe.reference_hidden_size**2
    factor = (shape.n_non_embedding / reference) ** (-1 / 3)
    return factor, factor


# A rule returns the factors of the learning rate of matrices and of that of all other weights.
RULES: dict[str, Callable[[Recipe, Shape | Architecture], tuple[float, float]]] = {
    "constant": constant,
    "power": power,
    "mup": mup,
    "size": size,
}
