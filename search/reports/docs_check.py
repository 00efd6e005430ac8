"""Regeneration of the pictures and tables of proposals under ``docs/``, and their comparison.

Each picture and table is a deterministic function of the shipped data, without measurements, fits
or random numbers, so every checkout gives the same numbers and pictures.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder, write_text
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.plots.style import save_figure
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.pareto import front
from shapelaw.scaling.space.space import Space, usual_steps
from shapelaw.search.engines._base import bytes_served
from shapelaw.search.engines._roofline import roofline
from shapelaw.search.engines.accelerators import hardware
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    FAST,
    LOSS_OPTIMAL,
    SHAPE_KEY,
    read_proposals,
)
from shapelaw.search.proposals.ranking import differences
from shapelaw.search.reports.diffusion_report import (
    measured_rows,
    measurement_csv,
    measurement_png,
)
from shapelaw.search.reports.families_report import rates_csv, rates_png
from shapelaw.search.reports.pareto_plot import plot_pareto
from shapelaw.search.workload import parse_workload

DIGITS = "%.9g"
MAX_RELATIVE_DIFFERENCE = 1e-6  # of two numbers: six significant digits agree
# Root mean square difference, of 255, up to which two pictures are equal. The limit detects changes
# of style and layout (losses 0.1 % higher give 11); single points are compared in the tables.
MAX_PIXEL_DIFFERENCE = 3.0
LAW = "paper-2510.18245"
DEVICE, WORKLOAD, TOKENS = "h200", "rag@64:bfloat16", 100_000_000_000
MAX_GQA = {"1b": 9, "3b": 7}  # GQA of the published fast shapes; the law has no term for GQA
MAX_FRONT_SHAPES = 12  # in a table
MAX_LOSS_RATIO = 1.01  # to the baseline's loss, of the shapes of the front in a table
SIZE_TOLERANCE = 0.01  # relative difference from the baseline's parameters


def docs_folder() -> Path:
    """Return the folder ``docs/`` of the checkout that holds the data.

    Raises
    ------
    InputError
        The data belong to an installed package, which has no ``docs/``.
    """
    docs = data_folder().resolve().parent / "docs"
    if not docs.is_dir():
        raise InputError(
            "`report --check` compares docs/ of a checkout, but this is an installed package; "
            "run it in a clone of the repository"
        )
    return docs


def renew_docs(folder: Path) -> list[Path]:
    """Write all committed pictures and tables again; return their paths."""
    for name, make in COMMITTED.items():
        make(folder / name)
    return [folder / name for name in COMMITTED]


def compare_docs(folder: Path) -> list[str]:
    """List the differences of the committed pictures and tables from those of the data."""
    differences = []
    with TemporaryDirectory() as scratch:
        for name, make in COMMITTED.items():
            committed, fresh = folder / name, Path(scratch) / name
            compare = _compare_pictures if fresh.suffix == ".png" else _compare_tables
            make(fresh)
            if committed.is_file():
                differences += [f"{name}: {line}" for line in compare(committed, fresh)]
            else:
                differences.append(f"{name} is missing")
    return differences


def _compare_tables(committed: Path, fresh: Path) -> list[str]:
    """List the cells that differ: texts in any letter, numbers in six significant digits."""
    try:
        old = pd.read_csv(committed, keep_default_na=False, na_values=[""])
    except ValueError as error:
        return [f"cannot be read ({error})"]
    new = pd.read_csv(fresh, keep_default_na=False, na_values=[""])
    if list(old) != list(new) or len(old) != len(new):
        return [
            f"has {len(old)} rows of {', '.join(map(str, old))}; the data give {len(new)} of "
            f"{', '.join(map(str, new))}"
        ]
    return [
        f"line {line}, {column}: {was} is committed, the data give {now}"
        for column in new
        for line, (was, now) in enumerate(zip(old[column], new[column], strict=True), start=2)
        if not _equal(was, now)
    ]


def _equal(was: Any, now: Any) -> bool:
    """Return whether two cells agree; two missing values do."""
    if pd.isna(was) or pd.isna(now):
        return bool(pd.isna(was) and pd.isna(now))
    if isinstance(was, str) or isinstance(now, str):
        return bool(was == now)
    return bool(np.isclose(float(was), float(now), rtol=MAX_RELATIVE_DIFFERENCE, atol=0.0))


def _compare_pictures(committed: Path, fresh: Path) -> list[str]:
    """Describe by how much two pictures differ; the list is empty where they agree."""
    from matplotlib.image import imread

    old, new = (np.asarray(imread(path), dtype=float)[..., :3] * 255 for path in (committed, fresh))
    if old.shape != new.shape:
        return [f"is {old.shape[1]} x {old.shape[0]}, not {new.shape[1]} x {new.shape[0]} pixels"]
    difference = float(np.sqrt(np.mean((old - new) ** 2)))
    if difference > MAX_PIXEL_DIFFERENCE:
        return [
            f"differs by {difference:.1f} of 255 "
            f"(root mean square; at most {MAX_PIXEL_DIFFERENCE:g})"
        ]
    return []


# ---- proposals of the shipped quickstart


def _quickstart() -> tuple[list[dict[str, Any]], dict[str, Any], pd.DataFrame]:
    """Read the quickstart's proposals, the request for them, and the runs that trained some."""
    rows, about = read_proposals(data_folder() / "quickstart" / "proposals.json")
    runs = load_runs("quickstart", where="role == 'confirmation'").frame
    names = pd.DataFrame(rows)[["name", *SHAPE_KEY]]
    return rows, about, names.merge(runs[[*SHAPE_KEY, "loss"]], on=list(SHAPE_KEY))


def quickstart_picture(path: Path) -> None:
    """Draw loss against throughput of the quickstart's proposals."""
    rows, about, trained = _quickstart()
    figure = plot_pareto(rows, trained, baseline_name=about["baseline"], workload=about["workload"])
    save_figure(figure, path)


def quickstart_table(path: Path) -> None:
    """Tabulate predicted and measured loss and throughput of the quickstart's proposals."""
    rows, _, trained = _quickstart()
    table = pd.DataFrame(rows)
    table = table.merge(trained[["name", "loss"]], on="name", how="left")
    base = table[table["role"] == BASELINE].iloc[0]
    table["against_baseline"] = table["throughput"] / base["throughput"]
    table["error"] = table["loss"] / table["predicted_loss"] - 1
    names = {"loss": "measured_loss", "throughput": "tokens_per_second"}
    columns = [
        *("role", "name", "n_non_embedding", "predicted_loss", "loss_low", "loss_high"),
        *("measured_loss", "error", "tokens_per_second", "against_baseline", "on_front"),
    ]
    _write(path, table.rename(columns=names)[columns])


# ---- proposals of the paper's printed law, with speeds of the roofline engine


class PaperSpace:
    """Shapes with the depth, the head dimension and, within 1 %, the size of a published baseline.

    ``table`` holds these shapes and, in the last rows, the models of the paper. ``rate`` is the
    throughput of the roofline engine in tokens/s, ``loss`` the law's loss in nats per token.
    """

    def __init__(self, size: str) -> None:
        self.size, self.fit = size, printed_fit(LAW)
        self.workload = parse_workload(WORKLOAD)
        self.baseline = shape_named(f"llama-3.2-{size}")
        self.names = [f"llama-3.2-{size}", f"panda-{size}", f"surefire-{size}"]
        hidden_step, mlp_step, _ = usual_steps(self.baseline.n_non_embedding)
        space = Space(
            parameters=self.baseline.n_non_embedding,
            layers=(self.baseline.num_hidden_layers,),
            head_dims=(self.baseline.head_dim,),
            vocab_size=self.baseline.vocab_size,
            hidden_step=hidden_step,
            mlp_step=mlp_step,
            tolerance=SIZE_TOLERANCE,
            rope_theta=self.baseline.rope_theta,
        )
        shapes = space.enumerate()
        allowed = shapes.take(shapes.gqa <= MAX_GQA[size])
        self.grid = len(allowed)
        self.table = _append_shapes(allowed, [shape_named(name) for name in self.names])
        self.frame = self.table.frame().assign(**{D: TOKENS})
        self.loss = self.fit.central(self.frame)
        device = hardware(DEVICE)
        self.ttft, self.tpot = roofline(self.table, self.workload, device)
        fits = bytes_served(self.table, self.workload) <= device.memory
        self.rate = np.where(fits, self.workload.output_rate(self.ttft, self.tpot), 0.0)

    def published(self, name: str) -> int:
        """Return the row of a published model."""
        return self.grid + self.names.index(name)

    def least_loss(self) -> int:
        """Return the row of lowest predicted loss at the baseline's GQA, as Panda was chosen."""
        same_gqa = np.isclose(self.table.gqa[: self.grid], self.baseline.gqa)
        return int(np.argmin(np.where(same_gqa, self.loss[: self.grid], np.inf)))

    def fastest(self) -> int:
        """Return the fastest row without more loss than the baseline, as Surefire was chosen."""
        limit = self.loss[self.published(self.names[0])]
        allowed = self.loss[: self.grid] <= limit
        return int(np.argmax(np.where(allowed, self.rate[: self.grid], -np.inf)))


def _append_shapes(table: ShapeTable, shapes: list[Shape]) -> ShapeTable:
    """Append shapes to a table."""
    others = ShapeTable.of(shapes)
    return ShapeTable(
        **{name: np.append(getattr(table, name), getattr(others, name)) for name in vars(table)}
    )


def _tabulate(space: PaperSpace, chosen: dict[int, str]) -> pd.DataFrame:
    """Tabulate chosen rows of a space as proposals, sorted by predicted loss."""
    base = space.published(space.names[0])
    rows = list(chosen)
    loss_differences = differences(space.fit, space.frame.iloc[[base, *rows]], 0).iloc[1:]
    predicted = space.fit.predict(space.frame.iloc[rows])
    table = space.frame.iloc[rows][[*SHAPE_KEY, "n_non_embedding", *RATIOS]].reset_index(drop=True)
    table.insert(0, "name", [space.table[row].name for row in rows])
    table.insert(0, "role", list(chosen.values()))
    for name in ("predicted_loss", "loss_low", "loss_high"):
        table[name] = predicted[name].to_numpy()
    for column in loss_differences.columns:
        table[column] = loss_differences[column].to_numpy()
    table["tokens_per_second"] = space.rate[rows]
    table["against_baseline"] = space.rate[rows] / space.rate[base]
    table["ttft"], table["tpot"] = space.ttft[rows], space.tpot[rows]
    table["kv_bytes"] = [space.table[row].kv_bytes() for row in rows]
    table["weight_bytes"] = [space.table[row].weight_bytes() for row in rows]
    table["on_front"] = front(space.loss, space.rate)[rows]
    return table.sort_values(["predicted_loss", "tokens_per_second"], ignore_index=True)


def _choose_rows(space: PaperSpace) -> dict[int, str]:
    """Choose a subset of the front, the two optima that the paper searches for, and its models."""
    on_front = front(space.loss[: space.grid], space.rate[: space.grid])
    base = space.published(space.names[0])
    near = on_front & (space.loss[: space.grid] <= MAX_LOSS_RATIO * space.loss[base])
    rows = np.flatnonzero(near)
    rows = rows[np.argsort(space.loss[rows])]
    places = np.linspace(0, len(rows) - 1, min(MAX_FRONT_SHAPES, len(rows))).round().astype(int)
    chosen = dict.fromkeys((int(row) for row in rows[places]), CANDIDATE)
    chosen |= {space.least_loss(): LOSS_OPTIMAL, space.fastest(): FAST, base: BASELINE}
    return chosen | {space.published(name): name for name in space.names[1:]}


def paper_table(path: Path) -> None:
    """Tabulate proposals of the printed law together with the models that its paper trained."""
    space = PaperSpace(path.stem.rpartition("-")[2])
    _write(path, _tabulate(space, _choose_rows(space)))


def paper_picture(path: Path) -> None:
    """Draw loss against throughput of the proposals of :func:`paper_table`."""
    space = PaperSpace(path.stem.rpartition("-")[2])
    table = _tabulate(space, _choose_rows(space))
    for column in ("throughput", "throughput_low", "throughput_high"):
        table[column] = table["tokens_per_second"]
    table["throughput_kind"] = "predicted"
    figure = plot_pareto(
        [{str(name): value for name, value in row.items()} for row in table.to_dict("records")],
        pd.DataFrame(),
        baseline_name=space.names[0],
        workload=f"{space.workload}; law {LAW}, roofline:{DEVICE}",
    )
    save_figure(figure, path)


def distance_table(path: Path) -> None:
    """Tabulate ratios of the proposals, without tuning, to the models of the paper's search."""
    rows = []
    for size in MAX_GQA:
        space = PaperSpace(size)
        pairs = ((f"panda-{size}", space.least_loss()), (f"surefire-{size}", space.fastest()))
        for name, row in pairs:
            proposed, published = space.table[row], space.table[space.published(name)]
            rows.append(
                {
                    "published": name,
                    "proposed": proposed.name,
                    **_compare_field("hidden_size", proposed, published),
                    **_compare_field("mlp_to_attention", proposed, published),
                    **_compare_field("gqa", proposed, published),
                    "loss_over_published": space.loss[row] / space.loss[space.published(name)],
                    "speed_over_published": space.rate[row] / space.rate[space.published(name)],
                }
            )
    _write(path, pd.DataFrame(rows))


def _compare_field(name: str, proposed: Shape, published: Shape) -> dict[str, float]:
    """Return a field of the published and the proposed shape, and their ratio."""
    value, reference = float(getattr(proposed, name)), float(getattr(published, name))
    return {f"{name}_published": reference, name: value, f"{name}_ratio": value / reference}


def _write(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV with nine significant digits."""
    write_text(path, table.to_csv(index=False, float_format=DIGITS, lineterminator="\n"))


COMMITTED: dict[str, Callable[[Path], None]] = {
    "pareto.png": quickstart_picture,
    "proposals/quickstart.csv": quickstart_table,
    "proposals/paper-1b.csv": paper_table,
    "proposals/paper-1b.png": paper_picture,
    "proposals/paper-3b.csv": paper_table,
    "proposals/paper-3b.png": paper_picture,
    "proposals/distance.csv": distance_table,
    # The rows of the comparison itself add families/100k.csv and families/100k.png.
    "families/100k-rates.csv": rates_csv,
    "families/100k-rates.png": rates_png,
}
if measured_rows().is_file():  # once the measurement has been run
    COMMITTED |= {
        "diffusion/measurement.csv": measurement_csv,
        "diffusion/measurement.png": measurement_png,
    }
