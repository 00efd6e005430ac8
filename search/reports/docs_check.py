"""Pictures and tables of proposals that are committed under ``docs/``: made again and compared.

Every one is a function of the shipped data: nothing here is measured, fitted or drawn by chance,
so whoever has the checkout gets the same numbers and pictures.
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
from shapelaw.scaling.plots.style import save
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
from shapelaw.search.reports import pareto_plot
from shapelaw.search.workload import parse_workload

DIGITS = "%.9g"
AGREE = 1e-6  # numbers may differ by this fraction: six significant digits
# Root mean square difference, of 255, up to which two pictures are one. It guards style and layout
# (losses .1 % higher make 11): single points are compared as numbers in the tables.
PIXELS = 3.0
LAW = "paper-2510.18245"
DEVICE, WORKLOAD, TOKENS = "h200", "rag@64:bfloat16", 100_000_000_000
MOST_GQA = {"1b": 9, "3b": 7}  # of the published fast shapes: the law has no say in it
SHOWN = 12  # shapes of a front in a table
TOLERANCE = 0.01


def docs_folder() -> Path:
    """``docs/`` of the checkout that the data come from.

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


def renew(folder: Path) -> list[Path]:
    """Write every committed picture and table; returns their paths."""
    paths = []
    for name, make in COMMITTED.items():
        path = folder / name
        make(path)
        paths.append(path)
    return paths


def check(folder: Path) -> list[str]:
    """In words: what of the committed pictures and tables differs from what the data give."""
    found: list[str] = []
    with TemporaryDirectory() as scratch:
        for name, make in COMMITTED.items():
            fresh = Path(scratch) / name
            make(fresh)
            if not (folder / name).is_file():
                found.append(f"{name} is missing")
            elif fresh.suffix == ".png":
                found += [f"{name}: {words}" for words in _pictures(folder / name, fresh)]
            else:
                found += [f"{name}: {words}" for words in _tables(folder / name, fresh)]
    return found


def _tables(committed: Path, fresh: Path) -> list[str]:
    """Cells that differ: texts in any letter, numbers by more than six significant digits."""
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
    words = []
    for column in new:
        for line, (was, now) in enumerate(zip(old[column], new[column], strict=True), start=2):
            if not _same(was, now):
                words.append(f"line {line}, {column}: {was} is committed, the data give {now}")
    return words


def _same(was: Any, now: Any) -> bool:
    if pd.isna(was) or pd.isna(now):
        return bool(pd.isna(was) and pd.isna(now))
    if isinstance(was, str) or isinstance(now, str):
        return bool(was == now)
    return bool(np.isclose(float(was), float(now), rtol=AGREE, atol=0.0))


def _pictures(committed: Path, fresh: Path) -> list[str]:
    """Whether two pictures differ, and by how much."""
    from matplotlib.image import imread

    old, new = (np.asarray(imread(path), dtype=float)[..., :3] * 255 for path in (committed, fresh))
    if old.shape != new.shape:
        return [f"is {old.shape[1]} x {old.shape[0]}, not {new.shape[1]} x {new.shape[0]} pixels"]
    apart = float(np.sqrt(np.mean((old - new) ** 2)))
    if apart > PIXELS:
        return [f"differs by {apart:.1f} of 255 (root mean square; at most {PIXELS:g})"]
    return []


# ---- the quickstart that the shipped runs come from


def _quickstart() -> tuple[list[dict[str, Any]], dict[str, Any], pd.DataFrame]:
    """Its proposals, what they were asked for, and the proposals that were trained."""
    rows, about = read_proposals(data_folder() / "quickstart" / "proposals.json")
    runs = load_runs("quickstart", where="role == 'confirmation'")
    names = pd.DataFrame(rows)[["name", *SHAPE_KEY]]
    return rows, about, names.merge(runs[[*SHAPE_KEY, "loss"]], on=list(SHAPE_KEY))


def quickstart_picture(path: Path) -> None:
    """Loss against throughput of the quickstart's proposals."""
    rows, about, trained = _quickstart()
    figure = pareto_plot.plot_pareto(
        rows, trained, baseline_name=about["baseline"], workload=about["workload"]
    )
    save(figure, path)


def quickstart_table(path: Path) -> None:
    """Predicted and measured loss and the throughput of the quickstart's proposals."""
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


# ---- what the paper's printed law proposes, by the roofline


class PaperSpace:
    """Every shape around a published baseline: its depth, head dimension and size ± 1 %.

    ``table`` has them all with the models of the paper in the last rows; ``rate`` is tokens/s of
    the roofline, ``loss`` the law's.
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
            tolerance=TOLERANCE,
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
        """The row of a published model."""
        return self.grid + self.names.index(name)

    def least_loss(self) -> int:
        """The grid's row of least predicted loss at the baseline's GQA: the Panda of this law."""
        same = np.isclose(self.table.gqa[: self.grid], self.baseline.gqa)
        return int(np.argmin(np.where(same, self.loss[: self.grid], np.inf)))

    def fastest(self) -> int:
        """The grid's fastest row of no more loss than the baseline: the Surefire of this law."""
        most = self.loss[self.published(self.names[0])]
        fine = self.loss[: self.grid] <= most
        return int(np.argmax(np.where(fine, self.rate[: self.grid], -np.inf)))


def _joined(table: ShapeTable, shapes: list[Shape]) -> ShapeTable:
    own, others = ShapeTable.of([*shapes]), table
    return ShapeTable(
        **{name: np.append(getattr(others, name), getattr(own, name)) for name in vars(own)}
    )


def _rows(space: PaperSpace, chosen: dict[int, str]) -> pd.DataFrame:
    """Chosen rows of a space as a table of proposals, by predicted loss."""
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
    kept = front(space.loss, space.rate)
    table["on_front"] = kept[rows]
    return table.sort_values(["predicted_loss", "tokens_per_second"], ignore_index=True)


def _chosen(space: PaperSpace) -> dict[int, str]:
    """The front thinned, the two that the paper's algorithm looks for, and its own models."""
    everywhere = front(space.loss[: space.grid], space.rate[: space.grid])
    base = space.published(space.names[0])
    near = everywhere & (space.loss[: space.grid] <= 1.01 * space.loss[base])
    rows = np.flatnonzero(near)
    rows = rows[np.argsort(space.loss[rows])]
    places = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)
    chosen = dict.fromkeys((int(row) for row in rows[places]), CANDIDATE)
    chosen |= {space.least_loss(): LOSS_OPTIMAL, space.fastest(): FAST, base: BASELINE}
    return chosen | {space.published(name): name for name in space.names[1:]}


def paper_table(path: Path) -> None:
    """Proposals of the printed law beside the models that its paper trained."""
    space = PaperSpace(path.stem.rpartition("-")[2])
    _write(path, _rows(space, _chosen(space)))


def paper_picture(path: Path) -> None:
    """The same as a picture."""
    space = PaperSpace(path.stem.rpartition("-")[2])
    table = _rows(space, _chosen(space))
    for column in ("throughput", "throughput_low", "throughput_high"):
        table[column] = table["tokens_per_second"]
    table["throughput_kind"] = "predicted"
    figure = pareto_plot.plot_pareto(
        [{str(name): value for name, value in row.items()} for row in table.to_dict("records")],
        pd.DataFrame(),
        baseline_name=space.names[0],
        workload=f"{space.workload}; law {LAW}, roofline:{DEVICE}",
    )
    save(figure, path)


def distance_table(path: Path) -> None:
    """How far the proposals lie from the models that the paper's search found, nothing tuned."""
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
    mine, theirs = float(getattr(own, name)), float(getattr(other, name))
    return {f"{name}_published": theirs, name: mine, f"{name}_ratio": mine / theirs}


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
