"""Plans from the proposals of :func:`shapelaw.next_runs`: valid shapes, tokens and seeds.

A design over a grid proposes a size and ratios that may not belong to any valid shape. Each such
proposal gets the valid shape whose log axes are nearest. Proposed shapes are used unchanged.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.table import RunTable, as_run_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns
from shapelaw.scaling.units import format_count
from shapelaw.trainers.ladder.grid import PROXY, LadderGrid, Range, Rung
from shapelaw.trainers.ladder.plan import CHOSEN_AXES, WHOLE_AXES, Ladder, Planned
from shapelaw.trainers.optimizers.recipe import Recipe, parse_settings
from shapelaw.trainers.training.spec import RunSpec, run_name

MAX_RATIO_ERROR = 1.5  # largest factor between a proposed ratio and that of the shape
ANY_RATIO: Range = (1e-9, 1e9)
LAYERS: Range = (1, 64)  # searched where a proposal has no depth


def plan_proposed(
    proposals: pd.DataFrame,
    runs: RunTable | pd.DataFrame,
    *,
    grid: LadderGrid | None = None,
    layers: Range = LAYERS,
    depths: tuple[int, ...] | None = None,
    settings: Mapping[str, object] | None = None,
) -> Ladder:
    """Plan the runs of a design.

    Parameters
    ----------
    proposals
        Rows as ``next-runs --out`` writes them: ``tokens`` and the fields of a shape, or
        ``n_non_embedding`` with any of the ratios. Rows whose ``kind`` is ``replicate`` get seeds
        from 1 on.
    runs
        Run table that the proposals extend. Correlations are computed over both together.
    grid
        Settings of the shapes that the proposals do not give.
    layers
        Least and most layers of shapes whose depth is not proposed.
    depths
        Allowed numbers of layers in this range; None for all.
    settings
        Fields of the recipe that the plan sets.

    Raises
    ------
    InputError
        A column is missing, or no valid shape is near a proposal. The error names its row.
    """
    grid, changes = grid or LadderGrid(), parse_settings(settings or {})
    require_columns(proposals, ("tokens",), "the proposals")
    check_numbers(proposals, ("tokens",), "the proposals")
    planned: list[Planned] = []
    seeds: dict[tuple[Shape, int], int] = {}
    for number, row in enumerate(proposals.to_dict("records"), start=1):
        shape, tokens = _shape(row, grid, layers, depths, number), round(float(row["tokens"]))
        first = 1 if row.get("kind") == "replicate" else 0
        seed = seeds[shape, tokens] = seeds.get((shape, tokens), first - 1) + 1
        spec = RunSpec(
            run_id=run_name(shape, tokens, seed),
            shape=shape,
            tokens=tokens,
            recipe=Recipe(**changes),
            seed=seed,
            role=PROXY,
        )
        planned.append(Planned(spec=spec, size=format_count(shape.n_non_embedding)))
    return Ladder(
        runs=tuple(planned), settings=tuple(changes), method="next-runs", joins=_axes_of(runs)
    )


def _axes_of(runs: RunTable | pd.DataFrame) -> pd.DataFrame:
    """Compute the axes of a run table, as far as its columns allow."""
    table = with_ratios(as_run_table(runs).frame, "the runs")
    require_columns(table, ("n_non_embedding", "tokens"), "the runs")
    table = table.assign(tokens_per_parameter=table["tokens"] / table["n_non_embedding"])
    return table[[name for name in WHOLE_AXES if name in table]].dropna()


def _shape(
    row: Mapping[Any, Any],
    grid: LadderGrid,
    layers: Range,
    depths: tuple[int, ...] | None,
    number: int,
) -> Shape:
    """Return the shape of a proposal, or the valid shape nearest to its ratios."""
    given = {name: value for name, value in row.items() if not pd.isna(value)}
    named = [name for name in INTEGER_FIELDS if name != "vocab_size"]
    if all(name in given for name in named):
        fields = ("vocab_size", "qk_norm", "rope_theta", "tie_word_embeddings")
        shared = {name: getattr(grid, name) for name in fields}
        return Shape.from_config(shared | given)
    if "n_non_embedding" not in given:
        raise InputError(
            f"proposal {number} must have the fields of a shape or `n_non_embedding`, but has "
            + ", ".join(map(str, given))
        )
    if "num_hidden_layers" in given:
        depth = float(given["num_hidden_layers"])
        layers, depths = (depth, depth), None
    rung = Rung(
        parameters=round(float(given["n_non_embedding"])),
        shapes=1,
        layers=layers,
        depths=depths,
        mlp_to_attention=ANY_RATIO,
        gqa=ANY_RATIO,
    )
    return _nearest(given, grid, rung, number)


def _nearest(given: Mapping[Any, Any], grid: LadderGrid, rung: Rung, number: int) -> Shape:
    """Return the valid shape whose log axes are nearest to the given ones."""
    table = grid.shapes(rung, int(given.get("head_dim", grid.head_dim)))
    axes = [name for name in CHOSEN_AXES if name in given]
    target = np.log([float(given[name]) for name in axes])
    errors = np.log(table.frame()[axes].to_numpy(dtype=float)) - target
    row = int((errors**2).sum(axis=1).argmin())
    far = [
        f"{name} {given[name]:.3g} (nearest {float(getattr(table[row], name)):.3g})"
        for name, error in zip(axes, errors[row], strict=True)
        if abs(error) > np.log(MAX_RATIO_ERROR)
    ]
    if far:
        raise InputError(
            f"proposal {number}: no valid shape of {rung.label} is near {' and '.join(far)}; take "
            "finer steps of hidden and intermediate size, more depths, or propose from a table of "
            "shapes"
        )
    return table[row]
