"""Kind of the losses, exact or an upper bound, in headings, JSON and axis labels."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

from shapelaw.scaling.checks.comparison import Comparison, compare
from shapelaw.scaling.checks.report import check
from shapelaw.scaling.commands.fit_cli import mount
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.contours import plot_contours
from shapelaw.scaling.plots.holdout import plot_comparison
from shapelaw.scaling.plots.law import plot_law
from shapelaw.scaling.plots.residuals import plot_residuals
from shapelaw.scaling.runs.summary import describe
from shapelaw.scaling.runs.table import RunTable
from support.synthetic import synthetic_runs

MARK = "(loss: an upper bound)"
NAME = "bound on the loss"
KINDS = ("exact", "bound")
kinds = pytest.mark.parametrize("kind", KINDS)


def table(kind: str) -> RunTable:
    runs = RunTable(frame=synthetic_runs(shapes=6, sizes=(1e5, 4e5, 1.6e6)))
    return replace(runs, frame=runs.frame.assign(loss_kind=kind))


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    return {kind: fit("chinchilla", table(kind), starts=4, resamples=0) for kind in KINDS}


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Comparison]:
    laws, settings = ["chinchilla", "conditional-steady"], {"starts": 4, "delta": 1e-2}
    return {kind: compare(laws, table(kind), cutoffs=[1.6e6], **settings) for kind in KINDS}


def texts(figure: Figure) -> str:
    """Return the title and the labels of the axes and legends of a figure."""
    labels = [figure.get_suptitle()]
    for axes in figure.axes:
        labels += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title()]
    for legend in figure.legends:
        labels += [text.get_text() for text in legend.get_texts()]
    return "\n".join(labels)


@kinds
def test_fit_and_its_stored_form_say_the_kind(
    fits: dict[str, Fit], tmp_path: Path, kind: str
) -> None:
    fits[kind].save(tmp_path / "law.json")
    loaded = Fit.load(tmp_path / "law.json")
    assert (fits[kind].loss_kind, loaded.loss_kind) == (kind, kind)
    assert (MARK in fits[kind].view().title) == (kind == "bound")
    document = json.loads((tmp_path / "law.json").read_text())
    assert document["state"]["loss_kind"] == kind
    del document["state"]["loss_kind"]  # a law of an earlier version
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert Fit.load(tmp_path / "old.json").loss_kind == "exact"


@kinds
def test_summary_says_the_kind(kind: str) -> None:
    found = describe(table(kind))
    units = found.ranges.set_index("column")["unit"]
    assert found.document()["loss_kind"] == kind
    assert (MARK in found.view().title) == (kind == "bound")
    assert units["loss"] == "nats per token" + ", an upper bound" * (kind == "bound")


@kinds
def test_comparison_says_the_kind(comparisons: dict[str, Comparison], kind: str) -> None:
    found = comparisons[kind]
    assert found.document()["loss_kind"] == kind
    assert (MARK in found.view().title) == (kind == "bound")
    assert (MARK in found.hold_outs["chinchilla"].view().title) == (kind == "bound")
    drawn = texts(plot_comparison(found))
    assert (f"% of the {NAME}" in drawn, MARK in drawn) == (kind == "bound",) * 2


@kinds
def test_check_says_the_kind(fits: dict[str, Fit], kind: str) -> None:
    found = check(fits[kind], table(kind), starts=2, resamples=0)
    assert found.document()["loss_kind"] == kind
    assert (MARK in found.view().title) == (kind == "bound")
    assert any(NAME in note for note in found.view().notes) == (kind == "bound")


@kinds
def test_axes_and_titles_of_figures_say_the_kind(fits: dict[str, Fit], kind: str) -> None:
    runs = table(kind)
    law = texts(plot_law(fits[kind], runs))
    residuals = texts(plot_residuals(fits[kind], runs))
    contours = texts(plot_contours(fits[kind], runs))
    name = NAME if kind == "bound" else "loss"
    assert f"predicted {name} (nats/token)\nmeasured {name} (nats/token)" in law
    assert f"predicted {name} (nats/token)" in residuals
    assert f"residual (% of the {name})" in residuals
    assert f"\n{name} (nats/token)" in contours
    for drawn in (law.lower(), residuals, contours):
        assert (MARK in drawn) == (kind == "bound")


@kinds
def test_prediction_says_the_kind(fits: dict[str, Fit], tmp_path: Path, kind: str) -> None:
    fits[kind].save(tmp_path / "law.json")
    table(kind).frame.head(2).to_csv(tmp_path / "shapes.csv", index=False)
    call = ("predict", str(tmp_path / "law.json"), str(tmp_path / "shapes.csv"))
    app = typer.Typer()
    mount(app)
    printed, document = (
        CliRunner().invoke(app, [*call, *more], catch_exceptions=False).stdout
        for more in ((), ("--json",))
    )
    assert json.loads(document)["loss_kind"] == kind
    assert (f"Predicted {NAME}" in printed) == (kind == "bound")
