"""The report's page: its template, and tables, lists and pictures as HTML."""

import base64
import html
from pathlib import Path
from string import Template

import pandas as pd


def table(frame: pd.DataFrame) -> str:
    """A data frame of texts as an HTML table."""
    if frame.empty:
        return "<p>none</p>"
    body: str = frame.to_html(index=False, border=0, escape=True)
    return f'<div class="wide">{body}</div>'


def bullets(lines: list[str]) -> str:
    """Lines as an HTML list."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else "<p>none</p>"


def picture(path: Path, title: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1320px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; font-size: 1.2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td { white-space: nowrap; } td:last-child { white-space: normal; }
.wide:has(th:nth-child(11)) td:last-child { min-width: 12rem; }
th { border-bottom: 2px solid #999; white-space: nowrap; }
.verdict { background: #f4f6f8; border-left: 4px solid #1b6ca8; padding: .4rem 1rem; }
p.small { color: #555; font-size: 13px; }
"""

HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>{STYLE}</style></head><body>
<h1>$title</h1>
"""

TEMPLATE = Template(
    HEAD
    + """<div class="verdict">$verdict</div>
<h2>Predicted and measured</h2>
$comparison
<p class="small">Loss in nats per token on held-out text; the interval is that of one new run at
95 %. Behind ± stands the sampling error of the shared held-out text, which all runs have in common.
Throughput is measured with random weights, prefill included; its interval is over repeats.</p>
<h2>Loss against throughput</h2>
$pareto
<h2>What the law says of shape</h2>
$law
<p class="small">Each point is a run, divided by what the law says of everything but this ratio.</p>
$effects
<h2>The law</h2>
<p>$status</p>
$notes
$coefficients
<p class="small">E, A and B in nats per token; an optimum is a value of the ratio; intervals are
95 %. A held exponent was not fitted: its interval is the range over which it was varied.</p>
<h2>Proposals</h2>
<p>Hypervolume of the front: $volume (nats per token times ln tokens/s, over the worst measured
proposal in each). Warnings that hold for every proposal, with the figures of the first:</p>
$common
$proposals
<h2>Runs</h2>
$runs
<h2>How it was made</h2>
$record
</body></html>
"""
)

STATIC = Template(
    HEAD
    + """<p>$lead</p>
<div class="verdict"><p>$basis</p></div>
<h2>How far this reaches</h2>
$notes
<h2>Loss against throughput</h2>
$picture
<h2>Proposals</h2>
$proposals
<p class="small">$footer</p>
<p class="small">$install</p>
</body></html>
"""
)
