"""Tests of the page of a folder of proposals, in a browser where one is installed."""

import html
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.search.proposals.proposal import SHAPE_KEY, read_proposals
from shapelaw.search.reports import proposal_charts
from shapelaw.search.reports.pareto_plot import plot_pareto
from shapelaw.search.reports.proposal_charts import front_chart, loss_along_ratios, plotly_script
from shapelaw.search.reports.proposal_page import (
    COMPARED,
    shown_row,
    source_of_speed,
    trained_proposals,
    write_pages,
)
from shapelaw.search.reports.recommendation import recommend_proposal
from support.page_checks import WIDTHS, parts_cut, pictures_without_words
from support.usual_proposals import propose_usual

SPEED = (
    *("throughput", "throughput_low", "throughput_high", "throughput_kind", "speedup"),
    *("ttft", "tpot", "engine", "workload", "device"),
)
TEMPLATE_MARK = "{{ title }} {% include 'style.css' %}"
HOSTILE = (
    TEMPLATE_MARK
    + "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of proposals, one without a speed, with a text that would run unescaped."""
    folder = tmp_path_factory.mktemp("proposed")
    propose_usual(folder)
    document = read_json(folder / "proposals.json")
    document["notes"].append(HOSTILE)
    document["proposals"][1]["why"] += HOSTILE
    document["baseline"] += HOSTILE
    names = [row["name"] for row in document["proposals"][:3]]
    checked = {"shapes": names, "answered": [90.0, 99.0, 110.0], "predicted": [91.0, 98.0, 112.0]}
    document["time_model"] = checked | {"error": 0.01, "rank_correlation": 1.0}
    document["proposals"][-1] |= dict.fromkeys(SPEED)  # the engine could not run the last shape
    write_json(folder / "proposals.json", document)
    return folder


@pytest.fixture(scope="module")
def page_file(made: Path) -> Path:
    """Write the interactive page of the folder."""
    pytest.importorskip("plotly")
    return write_pages(made)


def proposals_in(folder: Path) -> list[dict[str, Any]]:
    """Read the proposals of a folder."""
    return list(read_json(folder / "proposals.json")["proposals"])


def without_plotly(page: Path) -> str:
    """Read a page and remove the plotly library."""
    return page.read_text(encoding="utf-8").replace(plotly_script() or "", "")


def test_page_has_no_external_resources_and_escapes_hostile_text(page_file: Path) -> None:
    text = without_plotly(page_file)
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)
    assert HOSTILE not in text
    assert str(escape(HOSTILE)) in text
    assert "{{" not in text.replace("{{ title }}", ""), "only the mark in the hostile text is left"


def test_data_of_the_charts_survive_and_cannot_end_their_script(page_file: Path) -> None:
    data = re.search(r'id="figures">(.*?)</script>', without_plotly(page_file), re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    figures = json.loads(data[1])
    hovers = [text for trace in figures["front"]["data"] for text in trace.get("text", ())]
    assert any(str(escape(HOSTILE)) in text for text in hovers)
    assert not any(HOSTILE in text for text in hovers)


def test_every_chart_has_a_place_and_its_axes_have_units(page_file: Path) -> None:
    text = without_plotly(page_file)
    data = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    figures = json.loads(data[1])
    assert {"front", "curve-mlp_to_attention", "check-speed"} <= set(figures)
    for place, figure in figures.items():
        assert text.count(f'class="chart" id="{place}"') == 1
        assert re.search(r"\((%|tokens/s)\)", figure["layout"]["yaxis"]["title"]["text"])


def test_pictures_and_page_are_written_beside_the_proposals(page_file: Path) -> None:
    for name in ("pareto.png", "pareto.svg", "report.html"):
        assert (page_file.parent / name).stat().st_size > 1000
    assert b"<svg" in (page_file.parent / "pareto.svg").read_bytes()


def test_page_without_plotly_is_static_and_says_what_to_install(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    text = write_pages(tmp_path / "copy").read_text(encoding="utf-8")
    assert 'pip install "shapelaw[report]"' in html.unescape(text)
    assert "<script" not in text
    assert "data:image/png;base64," in text
    for row in proposals_in(made):
        assert row["name"] in text


def test_plotly_script_is_none_without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert proposal_charts.plotly_script() is None


@pytest.mark.parametrize(
    ("kind", "device", "text"),
    [
        ("measured", "1 core", "measured on 1 core"),
        ("predicted", "h200", "predicted for h200"),
        ("time model", "roofline:h200", "estimated for roofline:h200"),
        (None, None, ""),
    ],
)
def test_speed_names_its_source_and_device(kind: str, device: str, text: str) -> None:
    assert source_of_speed({"throughput_kind": kind, "device": device}) == text


def test_page_without_budget_in_its_file_is_refused(made: Path, tmp_path: Path) -> None:
    document = json.loads((made / "proposals.json").read_text())
    del document["parameters"]
    (tmp_path / "proposals.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"proposals.json is damaged .`parameters` is missing"):
        write_pages(tmp_path)


def test_curve_goes_through_the_baseline_and_lies_in_its_band(made: Path) -> None:
    rows, fitted = proposals_in(made), Fit.load(made / "fit.json")
    curves = loss_along_ratios(fitted, rows)
    assert [curve["column"] for curve in curves] == ["hidden_over_sqrt_n", "mlp_to_attention"]
    for curve in curves:
        x, central = np.array(curve["x"]), np.array(curve["central"])
        here = np.interp(np.log(rows[0][curve["column"]]), np.log(x), central)
        assert here == pytest.approx(0.0, abs=0.05)
        assert (np.array(curve["low"]) <= central).all()
        assert (central <= np.array(curve["high"])).all()
    assert curves[1]["fitted"] == [0.5, 5.0]


def test_curve_is_lowest_at_the_optimum_of_the_law(made: Path) -> None:
    curve = loss_along_ratios(printed_fit("paper-2510.18245"), proposals_in(made))[1]
    assert curve["x"][int(np.argmin(curve["central"]))] == pytest.approx(1.032, rel=0.05)


def test_law_without_shape_has_no_curve(made: Path) -> None:
    from shapelaw.scaling.fitting.fit_law import fit

    plain = fit("chinchilla", load_runs("quickstart"), starts=4, resamples=2)
    assert loss_along_ratios(plain, proposals_in(made)) == []


def test_spread_over_law_forms_is_compared_only_where_it_exists(made: Path) -> None:
    base, row = proposals_in(made)[:2]
    assert "spread over law forms ({unit})" in COMPARED
    without = {name: value for name, value in base.items() if name != "loss_form_spread"}
    labels = [label for label, *_ in shown_row(without, without)["compared"]]
    assert not any("spread" in label for label in labels)
    spread = shown_row(row | {"loss_form_spread": 0.02}, base | {"loss_form_spread": 0.01})
    assert ("spread over law forms (nats/token)", "0.0100", "0.0200", "2 ×") in spread["compared"]


@pytest.mark.parametrize("missing", ["proposals.json", "fit.json"])
def test_missing_file_is_named(made: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(InputError, match=missing.replace(".", r"\.")):
        write_pages(tmp_path / "copy")


def test_one_wide_interval_flattens_neither_the_picture_nor_the_chart(made: Path) -> None:
    rows = proposals_in(made)
    named = next(row for row in rows[1:] if row["role"] != "candidate")
    named |= {"loss_low": named["predicted_loss"] / 20, "loss_high": 20 * named["predicted_loss"]}
    named |= {"difference_nats_low": -20.0, "difference_nats_high": 20.0}
    losses = [row["predicted_loss"] for row in rows if row["throughput"]]
    nothing = pd.DataFrame(columns=["name", "loss"])
    picture = plot_pareto(rows, nothing, baseline_name="b", workload="w")
    low, high = picture.axes[0].get_ylim()
    assert low < min(losses) < max(losses) < high
    assert high - low < 4 * (max(losses) - min(losses))
    cut = f"({named['loss_low']:.3g} to {named['loss_high']:.3g}, cut)"
    assert any(cut in text.get_text() for text in picture.legends[0].get_texts())
    pytest.importorskip("plotly")
    low, high = front_chart([shown_row(row, rows[0]) for row in rows], "b").layout.yaxis.range
    percent = [100 * (loss / rows[0]["predicted_loss"] - 1) for loss in losses]
    assert low < min(percent) < max(percent) < high
    assert high - low < 4 * (max(percent) - min(percent))


def test_shape_whose_change_is_not_in_the_law_is_not_joined_by_the_line_of_the_front(
    made: Path,
) -> None:
    rows = [row for row in proposals_in(made) if row["throughput"]]
    best = max(rows, key=lambda row: (row["on_front"], row["throughput"]))
    apart = best | {"name": "apart", "role": "candidate", "apart": True}
    apart |= {"throughput": 2 * best["throughput"], "speedup": 2 * best["speedup"]}
    joined = sorted(row["throughput"] for row in rows if row["on_front"])
    picture = plot_pareto(
        [*rows, apart], pd.DataFrame(columns=["name", "loss"]), baseline_name="b", workload="w"
    )
    (line,) = (each for each in picture.axes[0].lines if "Pareto" in str(each.get_label()))
    assert list(np.asarray(line.get_xdata())) == joined
    pytest.importorskip("plotly")
    traces = {
        trace.name: set(trace.customdata)
        for trace in front_chart([shown_row(row, rows[0]) for row in [*rows, apart]], "b").data
    }
    assert traces["Pareto front"] == {row["name"] for row in rows if row["on_front"]}
    assert traces["on the front, if changes not in the law cost no loss"] == {"apart"}
    assert shown_row(apart, rows[0])["place"] in traces


def test_first_words_of_the_page_are_the_decision_and_its_light(page_file: Path) -> None:
    text = html.unescape(without_plotly(page_file))
    body = re.sub(r"<[^>]+>", " ", text.partition("</h1>")[2])
    made = recommend_proposal(*read_proposals(page_file.parent / "proposals.json"))
    assert " ".join(body.split()).startswith(f"{made.light.mark} {made.light.word} ")
    assert made.sentence.split(" instead")[0] in body


# ---- in a browser


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Any]:
    """Open the page in a browser and collect its console messages and errors."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(600_000)
    page.console_errors = []
    page.on("console", lambda message: page.console_errors.append(message.text))
    page.on("pageerror", lambda error: page.console_errors.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    yield page
    page.close()


@pytest.mark.slow
def test_page_in_a_browser_shows_charts_and_tables_without_errors(opened: Any, made: Path) -> None:
    rows = proposals_in(made)
    assert opened.locator("#proposals tbody tr").count() == len(rows)
    assert opened.locator("#curves .js-plotly-plot").count() == 2
    assert opened.locator("#checks .js-plotly-plot").count() == 1
    drawn = opened.locator("#front .points path").count()
    assert drawn == len(rows) - 1
    shown = opened.locator("#shown").inner_text()
    assert (
        shown
        == f"{len(rows)} of {len(rows)} shapes are shown; 1 without a speed only in the table."
    )
    assert HOSTILE in opened.locator("#notes").inner_text()
    assert HOSTILE in opened.locator("#proposals").inner_text()
    assert opened.evaluate("window.broken") is None
    assert opened.console_errors == []


@pytest.mark.slow
def test_point_describes_itself_and_is_compared_on_a_click(opened: Any, made: Path) -> None:
    point = opened.locator("#front .scatterlayer .trace").last.locator(".points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = opened.locator("#front .hovertext")
    label.wait_for()
    hover = label.text_content()
    (row,) = [
        row for row in proposals_in(made) if row["name"] in hover
    ]  # the proposal at that point
    assert f"loss {row['predicted_loss']:.4f}" in hover
    other = next(proposal for proposal in proposals_in(made)[1:] if proposal["name"] != row["name"])
    opened.select_option("#candidate", other["name"])
    assert other["name"] in opened.locator("#against").inner_text()
    opened.mouse.down()
    opened.mouse.up()
    opened.wait_for_function(f"document.getElementById('candidate').value === '{row['name']}'")
    assert row["name"] in opened.locator("#against").inner_text()
    assert opened.console_errors == []


@pytest.mark.slow
def test_filters_narrow_chart_and_table_until_cleared(opened: Any, made: Path) -> None:
    rows, drawn = proposals_in(made), opened.locator("#front .points path")
    left = opened.locator("#proposals tbody tr:visible")
    opened.fill("#at-speedup", "1.2")
    wanted = [row for row in rows[1:] if row["speedup"] and row["speedup"] >= 1.2]
    assert 0 < len(wanted) < len(rows) - 1
    assert left.count() == drawn.count() == len(wanted) + 1
    assert f"{len(wanted) + 1} of {len(rows)}" in opened.locator("#shown").inner_text()
    opened.check("#at-answered")
    answered = [row for row in wanted if row["throughput_kind"] == "predicted"]
    assert left.count() == drawn.count() == len(answered) + 1
    opened.click("#clear")
    opened.wait_for_function(
        f"document.getElementById('shown').textContent.startsWith('{len(rows)} of')"
    )
    assert left.count() == len(rows)
    assert opened.console_errors == []


@pytest.mark.slow
@pytest.mark.parametrize("field", ["loss", "ttft", "tpot", "cache", "weights"])
def test_upper_limit_keeps_the_baseline_and_shapes_below_it(
    opened: Any, made: Path, field: str
) -> None:
    base = proposals_in(made)[0]
    values = {
        row["name"]: {
            "loss": row["difference_percent"],
            "ttft": 1e3 * row["ttft"] if row["ttft"] else np.inf,
            "tpot": 1e3 * row["tpot"] if row["tpot"] else np.inf,
            "cache": row["kv_bytes"] / 1e3,
            "weights": row["weight_bytes"] / 1e9,
        }[field]
        for row in proposals_in(made)
    }
    limit = f"{np.median(list(values.values())):.6f}"
    opened.fill(f"#at-{field}", limit)
    kept = {name for name, value in values.items() if value <= float(limit)} | {base["name"]}
    lines = opened.locator("#proposals tbody tr:visible")
    shown = [line.get_attribute("data-name") for line in lines.all()]
    assert set(shown) == kept


@pytest.mark.slow
def test_row_of_the_table_is_compared_on_a_click(opened: Any, made: Path) -> None:
    name = proposals_in(made)[2]["name"]
    opened.click(f"#proposals tr[data-name='{name}']")
    assert opened.locator("#candidate").input_value() == name
    assert name in opened.locator("#against tbody:visible").inner_text()
    assert opened.locator("#proposals tr.on").get_attribute("data-name") == name
    assert opened.console_errors == []


@pytest.mark.slow
def test_dark_page_has_light_text_in_its_charts(opened: Any) -> None:
    colour = "getComputedStyle(document.querySelector('#front .xtitle')).fill"
    assert opened.evaluate(colour) == "rgb(34, 34, 34)"
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate(colour) == "rgb(227, 227, 227)"
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_whole_at_every_width_and_its_pictures_have_words(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    opened.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
    opened.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    opened.wait_for_timeout(300)  # plotly draws again after the resize
    assert opened.locator("#filters").is_visible()
    assert opened.locator("figure .main-svg").count() > 4
    assert parts_cut(opened) == []
    assert pictures_without_words(opened) == []


@pytest.mark.slow
def test_printed_page_is_whole_and_shows_the_values_of_its_charts(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": 720, "height": 900})
    opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    opened.wait_for_function("document.documentElement.scrollWidth <= 720")
    opened.wait_for_timeout(300)
    assert parts_cut(opened) == []
    assert opened.locator("#filters").is_hidden()
    assert opened.locator("#curves details table").first.is_visible()


def test_trained_proposals_have_predicted_and_measured_loss(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(made, folder)
    row = proposals_in(made)[1]
    run = {name: row[name] for name in (*SHAPE_KEY, "vocab_size", "n_non_embedding", "tokens")}
    pd.DataFrame([run | {"run_id": "one", "loss": 2.7}]).to_csv(folder / "runs.csv", index=False)
    trained = trained_proposals(folder, proposals_in(made))
    assert trained["name"].tolist() == [row["name"]]
    assert trained["loss"].tolist() == [2.7]
    assert trained["predicted"].tolist() == [row["predicted_loss"]]
