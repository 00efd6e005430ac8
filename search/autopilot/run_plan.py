"""The training runs of a quickstart: proxies, and the shapes that it proposes."""

from dataclasses import replace

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.search.autopilot.record import LoopSettings
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec, run_name

LAYERS = 4
HEAD_DIM = 16
ROPE_THETA = 500.0  # contexts are short: a small base keeps the slow frequencies useful
CONFIRMED = 200_000  # non-embedding parameters of the confirmation models
CONFIRMED_RATIO = 10  # training tokens per parameter of a confirmation model
# N, tokens per parameter, hidden size, query heads, key-value heads; the MLP width follows from N.
# Two sizes and two token counts; the logarithms of the shape ratios are nearly uncorrelated.
PROXIES = (
    (50_000, 20, 32, 4, 1),
    (50_000, 20, 32, 2, 2),
    (50_000, 20, 40, 4, 2),
    (50_000, 20, 48, 3, 1),
    (50_000, 20, 48, 1, 1),
    (50_000, 20, 48, 3, 3),
    (50_000, 20, 64, 2, 1),
    (50_000, 20, 72, 1, 1),
    (100_000, 10, 48, 6, 2),
    (100_000, 10, 64, 2, 2),
    (100_000, 10, 64, 5, 5),
    (100_000, 10, 96, 3, 1),
    (100_000, 20, 48, 2, 1),
    (100_000, 20, 56, 4, 1),
    (100_000, 20, 80, 4, 2),
    (100_000, 20, 96, 2, 1),
)
REPLICATE = 3  # the proxy that is trained from a second seed


def proxy_specs(settings: LoopSettings, vocab_size: int) -> list[RunSpec]:
    """Plan the proxies: 16 shapes, and one of them with a second seed.

    Long runs come first, so that all cores finish at about the same time.
    """
    specs = []
    for size, ratio, hidden, heads, groups in PROXIES:
        shape = fill(size, hidden, heads, groups, vocab_size)
        specs.append(run_spec(shape, round(size * ratio * settings.effort), settings.seed))
    repeated = specs[REPLICATE]
    seed = settings.seed + 1
    again = replace(repeated, seed=seed, run_id=run_name(repeated.shape, repeated.tokens, seed))
    return sorted([*specs, again], key=lambda spec: -spec.flops)


def fill(size: int, hidden: int, heads: int, groups: int, vocab_size: int) -> Shape:
    """Choose the MLP width that brings a shape nearest to a non-embedding size.

    Parameters
    ----------
    size
        Non-embedding parameters.
    hidden, heads, groups
        Hidden size, query heads and key-value heads.
    """

    def at(width: int) -> Shape:
        return Shape(
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=LAYERS,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=HEAD_DIM,
            vocab_size=vocab_size,
            qk_norm=True,
            rope_theta=ROPE_THETA,
        )

    per_width = at(2).n_non_embedding - at(1).n_non_embedding
    return at(max(1, round(1 + (size - at(1).n_non_embedding) / per_width)))


def run_spec(shape: Shape, tokens: int, seed: int, role: str = "proxy") -> RunSpec:
    """Specify one training run with the default recipe."""
    name = run_name(shape, tokens, seed)
    return RunSpec(run_id=name, shape=shape, tokens=tokens, recipe=Recipe(), seed=seed, role=role)


def confirmation_tokens(settings: LoopSettings) -> int:
    """Return the training tokens of a confirmation model."""
    return round(CONFIRMED * CONFIRMED_RATIO * settings.effort)
