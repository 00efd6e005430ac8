"""Rank correlation of the throughput of shapes between engines, batch sizes and workloads.

Several engines measure shapes along the front of predicted loss against cost at one size, under
several workloads. The benchmark prints the rank correlations and draws docs/engine_ranks.png. The
folder keeps the measurements of each engine, so that a killed run continues.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from record import finish
from scipy.stats import spearmanr

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.pareto import front
from shapelaw.scaling.space.proportions import within
from shapelaw.scaling.space.space import Space
from shapelaw.scaling.units import parse_count
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import Workload, parse_workload

PICTURE = Path(__file__).parent.parent / "docs" / "engine_ranks.png"
DEPTHS = (4, 6, 8, 12, 16, 24)
CONTEXT = 256
WORKLOADS = "256/64@1:bfloat16,256/64@8:bfloat16,512/8@4:bfloat16"
LINES = ("-", "--", ":", "-.")
USUAL = {"hidden_over_sqrt_n": (0.04, 0.4), "mlp_to_attention": (0.5, 8.0), "gqa": (1.0, 8.0)}


def shapes_of(size: str, number: int, law_runs: str) -> list[Shape]:
    """Choose shapes along the fronts of predicted loss against FLOPs with cache, at all depths.

    The cost replaces a measurement. Each depth has a front of its own, because at small sizes the
    common front would consist of one depth.
    """
    law = fit("conditional", load_runs(law_runs), resamples=0)
    rows: list[Shape] = []
    for layers in DEPTHS:
        table = Space(
            parameters=parse_count(size), layers=(layers,), head_dims=(64,), vocab_size=4096,
            hidden_step=64, mlp_step=64, tolerance=0.03,
        ).enumerate()  # fmt: skip
        table = table.take(within(table, USUAL))
        losses = law.expected(table.frame().assign(**{D: 20 * parse_count(size)}))
        cost = table.forward_flops(CONTEXT) + table.kv_bytes(4) * CONTEXT
        on_front = np.flatnonzero(front(losses, 1 / cost))
        on_front = on_front[np.argsort(losses[on_front])]
        count = min(-(-number // len(DEPTHS)), len(on_front))
        picked = np.linspace(0, len(on_front) - 1, count).round().astype(int)
        rows += [table[int(row)] for row in on_front[picked]]
    return list(dict.fromkeys(rows))


def measured(
    engine: str, workload: Workload, shapes: list[Shape], folder: Path
) -> list[Measurement | str]:
    """Measure every shape with an engine, or read earlier measurements from the folder."""
    path = folder / f"{engine} {short(workload)}.json".replace("/", "-").replace(":", "-")
    key = [asdict(workload), [shape.row() for shape in shapes]]
    if path.exists():
        document = json.loads(path.read_text())
        if document["key"] == key:
            rows = document["rows"]
            return [row if isinstance(row, str) else Measurement(**row) for row in rows]
    results = engine_named(engine).measure_all(shapes, workload)
    rows = [row if isinstance(row, str) else asdict(row) for row in results]
    path.write_text(json.dumps({"key": key, "rows": rows}))
    return results


def short(workload: Workload) -> str:
    """Format the lengths and the batch of a workload."""
    return f"{workload.input_tokens}/{workload.output_tokens}@{workload.concurrency}"


def speeds(results: list[Measurement | str]) -> list[float]:
    """Return the output tokens per second, NaN where the engine refused a shape."""
    return [np.nan if isinstance(row, str) else row.output_tokens_per_second for row in results]


def draw(table: pd.DataFrame, ranks: pd.DataFrame, depths: list[int]) -> None:
    """Draw throughput over that of the median shape (left) and rank correlations (right)."""
    from matplotlib.figure import Figure

    from shapelaw.scaling.plots.style import COLOURS, save_figure

    figure = Figure(figsize=(13.5, 6.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    engines, workloads = (list(dict.fromkeys(names)) for names in zip(*table, strict=True))
    for engine, workload in table:
        relative = table[engine, workload] / table[engine, workload].median()
        left.plot(
            range(len(table)), relative, marker="o", ms=4, lw=1.2, label=f"{engine} {workload}",
            color=COLOURS[engines.index(engine)], ls=LINES[workloads.index(workload)],
        )  # fmt: skip
    left.set_yscale("log")
    left.set_yticks([0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.4, 2, 2.8, 4])
    relative = (table / table.median()).to_numpy()
    left.set_ylim(np.nanmin(relative) / 1.1, np.nanmax(relative) * 1.35)
    left.yaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    left.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
    left.set_xlabel("shape, by its number of layers")
    left.set_ylabel("output tokens/s over that of the engine's median shape")
    left.grid(alpha=0.25)
    left.legend(fontsize=7.5, ncols=len(workloads))
    right.imshow(ranks.to_numpy(), vmin=0, vmax=1, cmap="Blues")
    for row in range(len(ranks)):
        for column in range(len(ranks)):
            value = ranks.to_numpy()[row, column]
            colour = "white" if value > 0.6 else "black"
            right.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour
            )
    names = [" ".join(name) for name in table]
    right.set_xticks(range(len(ranks)), names, rotation=40, ha="right", fontsize=8)
    right.set_yticks(range(len(ranks)), names, fontsize=8)
    right.set_title("Spearman rank correlation of throughput", fontsize=10)
    save_figure(figure, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", default="torch,transformers,llamacpp,vllm")
    parser.add_argument("--workloads", default=WORKLOADS)
    parser.add_argument("--params", default="20M")
    parser.add_argument("--shapes", type=int, default=12)
    parser.add_argument("--law", default="quickstart", help="run table of the law")
    parser.add_argument("--out", type=Path, default=Path("engine-ranks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shapes = shapes_of(options.params, options.shapes, options.law)
    results = {
        (engine, short(workload)): measured(engine, workload, shapes, options.out)
        for workload in map(parse_workload, options.workloads.split(","))
        for engine in options.engines.split(",")
    }
    table = pd.DataFrame({name: speeds(rows) for name, rows in results.items()})
    ranks = pd.DataFrame(
        spearmanr(table, nan_policy="omit").statistic, index=table.columns, columns=table.columns
    )
    draw(table, ranks, [shape.num_hidden_layers for shape in shapes])
    frame = ShapeTable.of(shapes).frame()
    for matrix in (table, ranks):
        matrix.columns = pd.Index([" ".join(name) for name in matrix])
    results = {" ".join(name): rows for name, rows in results.items()}
    print(pd.concat([frame, table.round(1)], axis=1).to_string())
    finish(
        "engine-ranks",
        {
            "promise": "none: the figures show if engines and workloads agree on the fastest shape",
            "shapes": [shape.row() for shape in shapes],
            "output_tokens_per_second": table.round(2).to_dict("list"),
            "fastest": {name: int(table[name].idxmax()) for name in table},
            "rank_correlations": ranks.round(3).to_dict("list"),
            "disturbed": {
                name: sum(not isinstance(row, str) and row.disturbed for row in rows)
                for name, rows in results.items()
            },
            "refused": {
                name: [row for row in rows if isinstance(row, str)]
                for name, rows in results.items()
            },
        },
    )


if __name__ == "__main__":
    main()
