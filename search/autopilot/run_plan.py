"""The training runs of a quickstart: proxies, and the shapes that it proposes."""

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.units import format_count
from shapelaw.search.autopilot.record import LoopSettings
from shapelaw.trainers.ladder.grid import ANCHOR, LadderAllocation, LadderGrid, Rung
from shapelaw.trainers.ladder.planner import plan_ladder
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec, run_name

LAYERS = (2, 3, 4, 5, 6)
HEAD_DIM = 16
HIDDEN_STEP, MLP_STEP = 8, 4
ROPE_THETA = 500.0  # contexts are short: a small base keeps the slow frequencies useful
# Numbers of shapes by non-embedding parameters. Three sizes show that the best ratio of hidden
# size to √N changes with N; two do not.
PROXY_SIZES = {25_000: 9, 50_000: 9, 100_000: 7}
PROXY_TOKENS = 500_000  # of every proxy; one shape of each size is trained on twice as many, too
REPLICATED = 50_000  # size at which one shape has a second seed
HIDDEN_OVER_SQRT_N = (0.1, 0.5)
MLP_TO_ATTENTION = (0.5, 6.0)
CONFIRMED = 200_000  # non-embedding parameters of the confirmation models
CONFIRMED_TOKENS = 1_000_000
CONFIRMATION_SEEDS = 2
LAW, PRIOR = "conditional+depth", "pooled"  # of the proxies, whose depth varies


def proxy_specs(settings: LoopSettings, vocab_size: int) -> list[RunSpec]:
    """Plan the proxies: three sizes of one token count, and one shape of each with two.

    The seed of the settings changes the seeds of the runs and not their shapes. Long runs come
    first, so that all cores finish at about the same time.
    """
    ladder = plan_ladder(
        [
            Rung(
                parameters=size,
                shapes=shapes,
                layers=(min(LAYERS), max(LAYERS)),
                hidden_over_sqrt_n=HIDDEN_OVER_SQRT_N,
                mlp_to_attention=MLP_TO_ATTENTION,
            )
            for size, shapes in PROXY_SIZES.items()
        ],
        grid=LadderGrid(
            vocab_size=vocab_size,
            head_dim=HEAD_DIM,
            hidden_step=HIDDEN_STEP,
            mlp_step=MLP_STEP,
            rope_theta=ROPE_THETA,
        ),
        allocation=LadderAllocation(anchors=1, anchor_seeds=1, branches=(2.0,)),
    )
    tokens = round(PROXY_TOKENS * settings.effort)
    specs = [run_spec(run.shape, tokens, settings.seed) for run in ladder.runs]
    anchors = [run for run in ladder.runs if run.spec.role == ANCHOR]
    specs += [run_spec(run.shape, 2 * tokens, settings.seed) for run in anchors]
    specs += [
        run_spec(run.shape, tokens, settings.seed + 1)
        for run in anchors
        if run.size == format_count(REPLICATED)
    ]
    return sorted(specs, key=lambda spec: -spec.flops)


def confirmation_specs(settings: LoopSettings, shapes: list[Shape]) -> list[RunSpec]:
    """Plan the confirmation models: every shape with two seeds, the long runs first."""
    tokens = confirmation_tokens(settings)
    specs = [
        run_spec(shape, tokens, settings.seed + seed, "confirmation")
        for shape in shapes
        for seed in range(CONFIRMATION_SEEDS)
    ]
    return sorted(specs, key=lambda spec: -spec.flops)


def run_spec(shape: Shape, tokens: int, seed: int, role: str = "proxy") -> RunSpec:
    """Specify one training run with the default recipe."""
    name = run_name(shape, tokens, seed)
    return RunSpec(run_id=name, shape=shape, tokens=tokens, recipe=Recipe(), seed=seed, role=role)


def confirmation_tokens(settings: LoopSettings) -> int:
    """Return the training tokens of a confirmation model."""
    return round(CONFIRMED_TOKENS * settings.effort)
