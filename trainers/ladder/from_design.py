"""Turn what :func:`next_runs` proposes into a plan: valid shapes, tokens, seeds.

A design over a grid names a size and ratios that no shape may have exactly; each is given the
valid shape whose log axes are nearest. A design over shapes keeps them as they are.
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

FARTHEST = 1.5  # a ratio may differ by this factor from what was proposed
NO_LIMIT: Range = (1e-9, 1e9)
LAYERS: Range = (1, 64)


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
        Rows as ``next-runs --out`` writes them: ``tokens``, and the fields of a shape, or
        ``n_non_embedding`` with any of the ratios; those of ``kind`` replicate get seeds from 1 on.
    runs
        The run table that they join: the correlations are those of both together.
    grid
        What the shapes share where the proposals leave it open.
    layers, depths
        Least and most layers where the proposals leave the depth open; and the allowed numbers of
        layers between them, None for all.
    settings
        Fields of the recipe that the plan fixes.

    Raises
    ------
    InputError
        A column is missing, or no valid shape is near a proposal; its row is named.
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
    """Read the axes that a run table tells."""
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
    """Return the shape of a proposal, or the valid one nearest to its ratios."""
    given = {name: value for name, value in row.items() if not pd.isna(value)}
    named = [name for name in INTEGER_FIELDS if name != "vocab_size"]
    if all(name in given for name in named):
        same = ("vocab_size", "qk_norm", "rope_theta", "tie_word_embeddings")
        shared = {name: getattr(grid, name) for name in same}
        return Shape.from_config(shared | given)
    if "n_non_embedding" not in given:
        raise InputError(
            f"proposal {number} needs the fields of a shape or `n_non_embedding`; it has "
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
        mlp_to_attention=NO_LIMIT,
        gqa=NO_LIMIT,
    )
    return _nearest(given, grid, rung, number)


def _nearest(given: Mapping[Any, Any], grid: LadderGrid, rung: Rung, number: int) -> Shape:
    """Return the valid shape whose log axes are nearest to those given; the others are free."""
    table = grid.shapes(rung, int(given.get("head_dim", grid.head_dim)))
    asked = [name for name in CHOSEN_AXES if name in given]
    wanted = np.log([float(given[name]) for name in asked])
    apart = np.log(table.frame()[asked].to_numpy(dtype=float)) - wanted
    row = int((apart**2).sum(axis=1).argmin())
    far = [
        f"{name} {given[name]:.3g} (nearest {float(getattr(table[row], name)):.3g})"
        for name, distance in zip(asked, apart[row], strict=True)
        if abs(distance) > np.log(FARTHEST)
    ]
    if far:
        raise InputError(
            f"proposal {number}: no valid shape of {rung.label} is near {' and '.join(far)}; take "
            "finer steps of hidden and intermediate size, more depths, or propose from a table of "
            "shapes"
        )
    return table[row]
