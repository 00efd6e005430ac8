"""Tests that templates escape their values and refuse missing ones."""

import pytest
from jinja2 import UndefinedError

from shapelaw.search.reports.html import PAGES, formatted, render, signed
from shapelaw.search.reports.recommendation import recommend_proposal

ROWS = [{"role": "baseline", "name": "b", "p_less_loss": None}]


def test_template_without_a_value_that_it_needs_is_refused() -> None:
    with pytest.raises(UndefinedError, match="recommendation"):
        render("quickstart.html", title="none")


def test_base_page_escapes_its_title_and_contains_its_style() -> None:
    page = render(
        "base.html", title="<script>1</script>", recommendation=recommend_proposal(ROWS, {})
    )
    assert page.startswith("<!doctype html>")
    assert page.count("&lt;script&gt;") == 2
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_page_extends_the_base_page() -> None:
    pages = {path.name for path in PAGES.glob("*.html")} - {"base.html", "parts.html"}
    assert pages == {"proposals.html", "quickstart.html"}
    for name in pages:
        text = (PAGES / name).read_text(encoding="utf-8")
        assert text.startswith('{% extends "base.html" %}')
        assert "|safe" not in text.replace("library|safe", ""), (
            "only the plotly library is unescaped"
        )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("times", 1.234, "1.23 ×"), ("seconds", None, "–"), ("whole", 12345.6, "12,346")],
)
def test_number_is_formatted_and_a_missing_one_is_a_dash(
    name: str, value: float | None, text: str
) -> None:
    assert formatted(name, value) == text


def test_sign_is_always_written() -> None:
    assert [signed(value) for value in (0.5, -0.5, 0.0)] == ["+0.50", "−0.50", "+0.00"]
