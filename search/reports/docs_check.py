"""Make the pictures and tables of proposals under ``docs/`` again and compare them.

Each is a function of the shipped data: nothing here is measured, fitted or random, so everyone
who has the checkout gets the same numbers and pictures.
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
    shape_name,
)
from shapelaw.search.proposals.ranking import differences
from shapelaw.search.reports.pareto_plot import plot_pareto
from shapelaw.search.workload import parse_workload

DIGITS = "%.9g"
TOLERANCE_OF_NUMBERS = 1e-6  # relative: six significant digits agree
# Root mean square difference, of 255, up to which two pictures are the same. It guards style and
# layout (losses 0.1 % higher make 11): single points are compared as numbers in the tables.
TOLERANCE_OF_PIXELS = 3.0
LAW = "paper-2510.18245"
DEVICE, WORKLOAD, TOKENS = "h200", "rag@64:bfloat16", 100_000_000_000
MOST_GQA = {"1b": 9, "3b": 7}  # of the published fast shapes: the law has no term for it
FRONT_SHAPES = 12  # shapes of a front in a table, at most
LOSS_MARGIN = 1.01  # times the baseline's loss, up to which the front is listed
TOLERANCE_OF_SIZE = 0.01  # of the baseline's parameters


def docs_folder() -> Path:
    """Return ``docs/`` of the checkout that holds the data.

    Raises
    ------
    InputError
        This is an installed package, which has none.
    """
    docs = data_folder().resolve().parent / "docs"
    if not docs.is_dir():
        raise InputError(
            "`report --check` compares docs/ of a checkout, but this is an installed package; "
            "run it in a clone of the repository"
        )
    return docs


def renew_docs(folder: Path) -> list[Path]:
    """Write every committed picture and table again; return their paths."""
    for name, make in COMMITTED.items():
        make(folder / name)
    return [folder / name for name in COMMITTED]


def compare_docs(folder: Path) -> list[str]:
    """List how the committed pictures and tables differ from those that the data give."""
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
    """List cells that differ: texts in any letter, numbers in six significant digits."""
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
    if pd.isna(was) or pd.isna(now):
        return bool(pd.isna(was) and pd.isna(now))
    if isinstance(was, str) or isinstance(now, str):
        return bool(was == now)
    return bool(np.isclose(float(was), float(now), rtol=TOLERANCE_OF_NUMBERS, atol=0.0))


def _compare_pictures(committed: Path, fresh: Path) -> list[str]:
    """Say by how much two pictures differ; nothing where they agree."""
    from matplotlib.image import imread

    old, new = (np.asarray(imread(path), dtype=float)[..., :3] * 255 for path in (committed, fresh))
    if old.shape != new.shape:
        return [f"is {old.shape[1]} x {old.shape[0]}, not {new.shape[1]} x {new.shape[0]} pixels"]
    apart = float(np.sqrt(np.mean((old - new) ** 2)))
    if apart > TOLERANCE_OF_PIXELS:
        return [
            f"differs by {apart:.1f} of 255 (root mean square; at most {TOLERANCE_OF_PIXELS:g})"
        ]
    return []


# ---- the quickstart that the shipped runs come from


def _quickstart() -> tuple[list[dict[str, Any]], dict[str, Any], pd.DataFrame]:
    """Read its proposals, the request for them, and the proposals that were trained."""
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
    wanted = [
        *("role", "name", "n_non_embedding", "predicted_loss", "loss_low", "loss_high"),
        *("measured_loss", "error", "tokens_per_second", "against_baseline", "on_front"),
    ]
    _write(path, table.rename(columns=names)[wanted])


# ---- proposals of the paper's printed law, their speed by the roofline


class PaperSpace:
    """Shapes around a published baseline: its depth, its head dimension, its size ± 1 %.

    ``table`` holds these shapes and, in the last rows, the models of the paper; ``rate`` is
    tokens/s by the roofline, ``loss`` the law's in nats per token.
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
            tolerance=TOLERANCE_OF_SIZE,
            rope_theta=self.baseline.rope_theta,
        )
        everything = space.enumerate()
        inside = everything.take(everything.gqa <= MOST_GQA[size])
        self.grid = len(inside)
        self.table = _joined(inside, [shape_named(name) for name in self.names])
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
        """Return the row of least predicted loss at the baseline's GQA: this law's Panda."""
        same = np.isclose(self.table.gqa[: self.grid], self.baseline.gqa)
        return int(np.argmin(np.where(same, self.loss[: self.grid], np.inf)))

    def fastest(self) -> int:
        """Return the fastest row of no more loss than the baseline: this law's Surefire."""
        most = self.loss[self.published(self.names[0])]
        fine = self.loss[: self.grid] <= most
        return int(np.argmax(np.where(fine, self.rate[: self.grid], -np.inf)))


def _joined(table: ShapeTable, shapes: list[Shape]) -> ShapeTable:
    """Append shapes to a table."""
    others = ShapeTable.of(shapes)
    return ShapeTable(
        **{name: np.append(getattr(table, name), getattr(others, name)) for name in vars(table)}
    )


def _rows(space: PaperSpace, chosen: dict[int, str]) -> pd.DataFrame:
    """Tabulate chosen rows of a space as proposals, in the order of their predicted loss."""
    base = space.published(space.names[0])
    rows = list(chosen)
    apart = differences(space.fit, space.frame.iloc[[base, *rows]], 0).iloc[1:]
    predicted = space.fit.predict(space.frame.iloc[rows])
    table = space.frame.iloc[rows][[*SHAPE_KEY, "n_non_embedding", *RATIOS]].reset_index(drop=True)
    table.insert(0, "name", [shape_name(space.table[row]) for row in rows])
    table.insert(0, "role", list(chosen.values()))
    for name in ("predicted_loss", "loss_low", "loss_high"):
        table[name] = predicted[name].to_numpy()
    for column in apart.columns:
        table[column] = apart[column].to_numpy()
    table["tokens_per_second"] = space.rate[rows]
    table["against_baseline"] = space.rate[rows] / space.rate[base]
    table["ttft"], table["tpot"] = space.ttft[rows], space.tpot[rows]
    table["kv_bytes"] = [space.table[row].kv_bytes() for row in rows]
    table["weight_bytes"] = [space.table[row].weight_bytes() for row in rows]
    table["on_front"] = front(space.loss, space.rate)[rows]
    return table.sort_values(["predicted_loss", "tokens_per_second"], ignore_index=True)


def _chosen(space: PaperSpace) -> dict[int, str]:
    """Choose rows: the front thinned, the two that the paper looks for, the paper's own models."""
    everywhere = front(space.loss[: space.grid], space.rate[: space.grid])
    base = space.published(space.names[0])
    near = everywhere & (space.loss[: space.grid] <= LOSS_MARGIN * space.loss[base])
    rows = np.flatnonzero(near)
    rows = rows[np.argsort(space.loss[rows])]
    places = np.linspace(0, len(rows) - 1, min(FRONT_SHAPES, len(rows))).round().astype(int)
    chosen = dict.fromkeys((int(row) for row in rows[places]), CANDIDATE)
    chosen |= {space.least_loss(): LOSS_OPTIMAL, space.fastest(): FAST, base: BASELINE}
    return chosen | {space.published(name): name for name in space.names[1:]}


def paper_table(path: Path) -> None:
    """Tabulate proposals of the printed law beside the models that its paper trained."""
    space = PaperSpace(path.stem.rpartition("-")[2])
    _write(path, _rows(space, _chosen(space)))


def paper_picture(path: Path) -> None:
    """Draw the proposals of :func:`paper_table`."""
    space = PaperSpace(path.stem.rpartition("-")[2])
    table = _rows(space, _chosen(space))
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
    """Tabulate how far the proposals lie from the models of the paper's search, untuned."""
    rows = []
    for size in MOST_GQA:
        space = PaperSpace(size)
        pairs = ((f"panda-{size}", space.least_loss()), (f"surefire-{size}", space.fastest()))
        for name, row in pairs:
            own, other = space.table[row], space.table[space.published(name)]
            rows.append(
                {
                    "published": name,
                    "proposed": shape_name(own),
                    **_beside("hidden_size", own, other),
                    **_beside("mlp_to_attention", own, other),
                    **_beside("gqa", own, other),
                    "loss_over_published": space.loss[row] / space.loss[space.published(name)],
                    "speed_over_published": space.rate[row] / space.rate[space.published(name)],
                }
            )
    _write(path, pd.DataFrame(rows))


def _beside(name: str, own: Shape, other: Shape) -> dict[str, float]:
    proposed, published = float(getattr(own, name)), float(getattr(other, name))
    return {f"{name}_published": published, name: proposed, f"{name}_ratio": proposed / published}


def _write(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, float_format=DIGITS, lineterminator="\n"))


COMMITTED: dict[str, Callable[[Path], None]] = {
    "pareto.png": quickstart_picture,
    "proposals/quickstart.csv": quickstart_table,
    "proposals/paper-1b.csv": paper_table,
    "proposals/paper-1b.png": paper_picture,
    "proposals/paper-3b.csv": paper_table,
    "proposals/paper-3b.png": paper_picture,
    "proposals/distance.csv": distance_table,
}
