"""Command that plans a ladder over shapes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    TABLE_ENDINGS,
    Budget,
    Json,
    RecipeSettings,
    Seed,
    output_file,
)
from shapelaw.scaling.commands.table_options import ALL_RUNS, RunOptions, with_table_options
from shapelaw.scaling.display.console import note, print_result
from shapelaw.scaling.display.tables import counted
from shapelaw.trainers.commands.plan_texts import Texts, allocation_of, grid_of
from shapelaw.trainers.commands.resolve_options import (
    TOKENS_PER_PARAMETER,
    Noise,
    Resolve,
    ResolveBy,
    Wish,
)

if TYPE_CHECKING:
    import pandas as pd

    from shapelaw.scaling.runs.table import RunTable
    from shapelaw.trainers.ladder.grid import LadderAllocation, LadderGrid
    from shapelaw.trainers.ladder.plan import Ladder

RANGE = "LOW:HIGH"
NO_SIZES = "`--sizes`, or both `--next-runs` and `--runs`, must be given; write --sizes 50K,100K"
Sizes = Annotated[
    str,
    typer.Option(
        help="Non-embedding parameters, 50K,100K,300K (default: --next-runs).", metavar="LIST"
    ),
]
ShapesPerSize = Annotated[
    str,
    typer.Option(help="Shapes of every size, or a list by size: 8,16,16.", metavar="LIST"),
]
Layers = Annotated[
    str,
    typer.Option(
        help="Numbers of layers of all sizes: 2:6, 8:32:4 or 8,16,32; or a range by size: 2:4,4:8.",
        metavar="LIST",
    ),
]
MlpRatio = Annotated[
    str,
    typer.Option(help="Range of MLP over attention parameters; or one by size.", metavar=RANGE),
]
GroupedQuery = Annotated[
    str,
    typer.Option(help="Range of query heads per key-value head; or one by size.", metavar=RANGE),
]
HiddenRange = Annotated[
    str | None,
    typer.Option(
        "--hidden-over-sqrt-n",
        metavar=RANGE,
        help="Range of hidden size over √N; or one by size (default: all valid).",
    ),
]
HeadDims = Annotated[
    str,
    typer.Option(
        help="Head dimension; further ones, 32,16,64, are for a few shapes.", metavar="LIST"
    ),
]
OtherShapes = Annotated[
    int,
    typer.Option(
        help="Shapes of a size with each further head dimension.", min=1, max=MOST, metavar="N"
    ),
]
GridSteps = Annotated[
    str, typer.Option(help="Steps of hidden size and MLP width.", metavar="HIDDEN,MLP")
]
VocabSize = Annotated[
    int, typer.Option(help="Vocabulary size; 256 for bytes.", min=2, max=10**8, metavar="N")
]
QkNorm = Annotated[bool, typer.Option(help="Normalise queries and keys, as Qwen3 does.")]
RopeTheta = Annotated[float, typer.Option(help="Base of the rotary positions.", metavar="NUMBER")]
TokensPerParameter = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-param",
        help="Training tokens per parameter of every run (default: 20; with --resolve the "
        "cheapest).",
        metavar="NUMBER",
    ),
]
Seeds = Annotated[int, typer.Option(help="Seeds of every shape.", min=1, max=MOST, metavar="N")]
Anchors = Annotated[
    str,
    typer.Option(
        help="Shapes of a size with more seeds and token counts, their seeds, and "
        "the seeds of the longest runs.",
        metavar="COUNT[:SEEDS[:LONG]]",
    ),
]
Branches = Annotated[
    str,
    typer.Option(help="Further token counts of the anchors, as factors.", metavar="LIST"),
]
Method = Annotated[
    str,
    typer.Option(help="Design: latin-hypercube or factorial.", metavar="NAME"),
]
ProposedRuns = Annotated[
    Path | None,
    typer.Option(
        "--next-runs",
        metavar="FILE",
        help="Plan the runs that `shapelaw next-runs` wrote (default: --sizes).",
    ),
]
RunsToJoin = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        metavar="RUNS",
        help="Run table that the runs of --next-runs join, or that measures the noise of --resolve "
        "(default: none; for --resolve the shipped ladder).",
    ),
]
Calibrate = Annotated[
    bool, typer.Option(help="Time a few steps here to predict the seconds of every run.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Write a plan whose axes are confounded, too.")
]
PlanFile = Annotated[
    Path,
    typer.Option(
        help="Plan to write, a .csv file.", metavar="FILE", callback=output_file(*TABLE_ENDINGS)
    ),
]


def price_and_write(
    ladder: "Ladder", budget: str | None, out: Path, *, calibrate: bool, force: bool
) -> "Ladder":
    """Check the cost and the confounding of a plan, predict its seconds and write it.

    Raises
    ------
    InputError
        The plan costs more than the budget, or its axes are confounded and ``force`` is not set.
    """
    from shapelaw.scaling.commands.next_runs_cli import read_flops
    from shapelaw.scaling.extras import installed_version, installing
    from shapelaw.scaling.runs.table import write_runs
    from shapelaw.trainers.training.cost_model import measure_price

    if budget is not None:
        ladder.require_affordable(read_flops(budget))
    if not force:
        ladder.require_unconfounded()
    if calibrate and installed_version("torch") is None:
        note(
            "seconds are for an assumed core, because timing needs torch; install it by "
            f"`{installing('torch')}`"
        )
    elif calibrate:
        note("timing a few steps of a few shapes; --no-calibrate skips this")
        ladder = ladder.priced(measure_price([run.spec for run in ladder.runs]))
    write_runs(out, ladder.frame())
    note(f"{counted(len(ladder.runs), 'run')} written to {out}")
    return ladder


def planned(
    texts: Texts,
    grid: "LadderGrid",
    allocation: "LadderAllocation",
    method: str,
    settings: Sequence[str],
    seed: int,
    tables: "tuple[pd.DataFrame, RunTable] | None",
) -> "Ladder":
    """Plan from the options of the command.

    ``tables`` are the table of proposals and the run table that they extend, or None.

    Raises
    ------
    InputError
        Neither sizes nor proposals are given.
    """
    from shapelaw.scaling.errors import InputError
    from shapelaw.trainers.ladder.from_design import plan_proposed
    from shapelaw.trainers.ladder.planner import plan_ladder
    from shapelaw.trainers.optimizers.recipe import read_pairs

    if tables is not None:
        proposals, runs = tables
        depths, changes = texts.depths(), read_pairs(settings)
        return plan_proposed(
            proposals, runs, grid=grid, layers=(depths[0], depths[-1]), depths=depths,
            settings=changes,
        )  # fmt: skip
    if not texts.sizes:
        raise InputError(NO_SIZES)
    return plan_ladder(
        texts.rungs(),
        grid=grid,
        allocation=allocation,
        method=method,
        settings=read_pairs(settings),
        seed=seed,
    )


def tables_to_join(
    proposals: Path | None, runs: Path | None, read: RunOptions
) -> "tuple[pd.DataFrame, RunTable] | None":
    """Read the proposals of ``next-runs`` and the run table that they extend; None without both.

    Raises
    ------
    InputError
        Only one of the two is given, or options of a run table without one.
    """
    from shapelaw.scaling.errors import InputError

    if proposals is not None and runs is not None:
        return read.rows_beside(proposals), read.load(runs)
    if proposals is not None or runs is not None:
        raise InputError(NO_SIZES)
    if read.given:
        raise InputError(f"`{read.given[0]}` must come with --runs, whose table it describes")
    return None


@with_table_options
def plan(
    sizes: Sizes = "",
    shapes: ShapesPerSize = "16",
    layers: Layers = "2:6",
    mlp_ratio: MlpRatio = "0.5:6",
    gqa: GroupedQuery = "1:4",
    hidden: HiddenRange = None,
    head_dim: HeadDims = "32",
    others: OtherShapes = 1,
    steps: GridSteps = "8,4",
    vocab: VocabSize = 256,
    qk_norm: QkNorm = True,
    rope_theta: RopeTheta = 10_000.0,
    tokens: TokensPerParameter = None,
    seeds: Seeds = 1,
    anchors: Anchors = "4:3:1",
    branches: Branches = "0.25,4",
    settings: RecipeSettings = None,
    method: Method = "latin-hypercube",
    proposals: ProposedRuns = None,
    runs: RunsToJoin = None,
    read: RunOptions = ALL_RUNS,
    resolve: Resolve = None,
    resolve_by: ResolveBy = "runs",
    noise: Noise = None,
    budget: Budget = None,
    calibrate: Calibrate = True,
    force: Force = False,
    seed: Seed = 0,
    out: PlanFile = Path("plan.csv"),
    json: Json = False,
) -> None:
    """Plan training runs whose effects a law can tell apart."""
    texts = Texts(
        sizes=sizes, shapes=shapes, layers=layers, mlp_ratio=mlp_ratio, gqa=gqa, hidden=hidden
    )
    shared = {"vocab_size": vocab, "qk_norm": qk_norm, "rope_theta": rope_theta}
    grid = grid_of(head_dim, others, steps, **shared)
    wish = Wish.of(resolve, resolve_by, noise, runs, proposals)

    def build(ratio: float, count: int) -> "Ladder":
        allocation = allocation_of(ratio, count, anchors, branches)
        tables = None if wish is not None else tables_to_join(proposals, runs, read)
        return planned(texts, grid, allocation, method, settings or [], seed, tables)

    if wish is None:
        ladder = build(TOKENS_PER_PARAMETER if tokens is None else tokens, seeds)
    else:
        ladder = wish.plan(build, tokens, seeds, read)
    ladder = price_and_write(ladder, budget, out, calibrate=calibrate, force=force)
    print_result(ladder, json=json)


def mount(sweep: typer.Typer) -> None:
    """Add the command to the group of sweep commands."""
    sweep.command("plan")(plan)
