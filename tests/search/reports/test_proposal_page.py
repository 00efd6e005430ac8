"""The page of a folder of proposals, in a real browser where there is one."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.search.proposals.proposal import SHAPE_KEY
from shapelaw.search.reports import proposal_page as interactive
from shapelaw.search.reports.proposal_page import (
    as_script,
    one_at_a_time,
    plotly_script,
    write_pages,
)
from support.asked import asked

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``propose --out`` wrote, with a text from elsewhere that would run as code."""
    folder = tmp_path_factory.mktemp("proposed")
    asked(folder)
    document = read_json(folder / "proposals.json")
    document["notes"].append(HOSTILE)
    document["proposals"][1]["why"] += HOSTILE
    document["baseline"] += HOSTILE
    write_json(folder / "proposals.json", document)
    return folder


@pytest.fixture(scope="module")
def page_file(made: Path) -> Path:
    pytest.importorskip("plotly")
    return write_pages(made)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_json(folder / "proposals.json")["proposals"])


def test_the_page_loads_nothing(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8").replace(plotly_script() or "", "")
    assert not re.search(r"(src|href)=[\"'](?!data:)", text.replace(HOSTILE, ""))
    assert "{{" not in text
    assert HOSTILE not in text, "what stands in a file enters the page as text"


def test_pictures_and_page_are_written_beside_the_proposals(page_file: Path) -> None:
    for name in ("pareto.png", "pareto.svg", "report.html"):
        assert (page_file.parent / name).stat().st_size > 1000
    assert b"<svg" in (page_file.parent / "pareto.svg").read_bytes()


def test_without_plotly_a_static_page_says_what_to_install(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.setattr(interactive, "plotly_script", lambda: None)
    text = write_pages(tmp_path / "copy").read_text(encoding="utf-8")
    assert "pip install &quot;shapelaw[report]&quot;" in text
    assert "<script" not in text
    for row in rows_of(made):
        assert row["name"] in text


def test_a_script_s_data_survives_and_cannot_end_the_script() -> None:
    document = {"text": HOSTILE + "\u2028&"}
    text = as_script(document)
    assert "<" not in text
    assert json.loads(text) == document


def test_a_curve_goes_through_the_baseline_and_holds_its_band(made: Path) -> None:
    rows, fitted = rows_of(made), Fit.load(made / "fit.json")
    curves = one_at_a_time(fitted, rows)
    assert [curve["column"] for curve in curves] == ["hidden_over_sqrt_n", "mlp_to_attention"]
    for curve in curves:
        x, central = np.array(curve["x"]), np.array(curve["central"])
        here = np.interp(np.log(rows[0][curve["column"]]), np.log(x), central)
        assert here == pytest.approx(0.0, abs=0.05)
        assert (np.array(curve["low"]) <= central).all()
        assert (central <= np.array(curve["high"])).all()
    assert curves[1]["fitted"] == [0.5, 5.0]


def test_the_curve_is_lowest_at_the_law_s_optimum(made: Path) -> None:
    curve = one_at_a_time(printed_fit("paper-2510.18245"), rows_of(made))[1]
    assert curve["x"][int(np.argmin(curve["central"]))] == pytest.approx(1.032, rel=0.05)


def test_a_law_without_shape_has_no_curve(made: Path) -> None:
    from shapelaw.scaling.fitting.fit_law import fit

    plain = fit("chinchilla", load_runs("quickstart"), starts=4, resamples=2)
    assert one_at_a_time(plain, rows_of(made)) == []


@pytest.mark.parametrize("missing", ["proposals.json", "fit.json"])
def test_a_missing_file_is_named(made: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(InputError, match=missing.replace(".", r"\.")):
        write_pages(tmp_path / "copy")


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(600_000)
    page.complaints = []
    page.on("console", lambda said: page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    yield page
    page.close()


@pytest.mark.slow
def test_the_page_shows_charts_tables_and_no_complaint(opened: Any, made: Path) -> None:
    rows = rows_of(made)
    assert opened.locator("#proposals tbody tr").count() == len(rows)
    assert opened.locator("#curves .curve .main-svg").count() >= 2
    assert opened.locator("#checks .check .main-svg").count() >= 1
    drawn = opened.locator("#front .points path").count()
    assert drawn == sum(row["speedup"] is not None for row in rows)
    assert HOSTILE in opened.locator("#notes").inner_text()
    assert HOSTILE in opened.locator("#proposals").inner_text()
    assert opened.evaluate("window.broken") is None
    assert opened.complaints == []


@pytest.mark.slow
def test_a_point_says_what_it_is_and_is_compared_on_a_click(opened: Any, made: Path) -> None:
    point = opened.locator("#front .scatterlayer .trace").last.locator(".points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = opened.locator("#front .hovertext")
    label.wait_for()
    said = label.text_content()
    (row,) = [row for row in rows_of(made) if row["name"] in said]  # it, or one that lies on it
    assert f"loss {row['predicted_loss']:.4f}" in said
    other = next(one for one in rows_of(made)[1:] if one is not row and one["name"] != row["name"])
    opened.select_option("#candidate", other["name"])
    assert other["name"] in opened.locator("#against").inner_text()
    opened.mouse.down()
    opened.mouse.up()
    opened.wait_for_function(f"document.getElementById('candidate').value === '{row['name']}'")
    assert row["name"] in opened.locator("#against").inner_text()
    assert opened.complaints == []


@pytest.mark.slow
def test_filters_narrow_chart_and_table_and_can_be_cleared(opened: Any, made: Path) -> None:
    rows = rows_of(made)
    opened.fill("#at-speedup", "1.2")
    wanted = [row for row in rows[1:] if row["speedup"] and row["speedup"] >= 1.2]
    assert opened.locator("#proposals tbody tr").count() == len(wanted) + 1
    assert f"{len(wanted) + 1} of {len(rows)}" in opened.locator("#shown").inner_text()
    opened.check("#at-answered")
    answered = [row for row in wanted if row["throughput_kind"] == "predicted"]
    assert opened.locator("#proposals tbody tr").count() == len(answered) + 1
    opened.click("#clear")
    assert opened.locator("#proposals tbody tr").count() == len(rows)
    assert opened.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "media"), [(1280, "screen"), (390, "screen"), (720, "print")])
def test_nothing_is_wider_than_the_page(opened: Any, width: int, media: str) -> None:
    opened.emulate_media(media=media)
    opened.set_viewport_size({"width": width, "height": 900})
    opened.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
    assert opened.evaluate("document.getElementById('filters').offsetHeight > 0") == (
        media == "screen"
    )


def test_a_trained_proposal_stands_beside_its_prediction(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(made, folder)
    row = rows_of(made)[1]
    run = {name: row[name] for name in (*SHAPE_KEY, "vocab_size", "n_non_embedding", "tokens")}
    pd.DataFrame([run | {"run_id": "one", "loss": 2.7}]).to_csv(folder / "runs.csv", index=False)
    found = interactive._confirmed(folder, rows_of(made))
    assert found["name"].tolist() == [row["name"]]
    assert found["loss"].tolist() == [2.7]
    assert found["predicted"].tolist() == [row["predicted_loss"]]
