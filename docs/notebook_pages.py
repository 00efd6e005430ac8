"""Pages of the documentation made of notebooks, with the outputs that these hold.

Nothing is executed: `make check` runs the notebooks, and `make notebooks` renews their outputs.
"""

import json
import re
from base64 import b64decode
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
NOTEBOOKS, PAGES = DOCS.parent / "notebooks", DOCS / "notebooks"
FENCE = "`" * 5  # longer than any fence inside a cell
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
FORMULA = re.compile(r"<p>\$(.+?)\$</p>", re.DOTALL)
STYLE = re.compile(r"<style.*?</style>\n?", re.DOTALL)

Formula = Callable[[str], str]


def page(notebook: dict[str, Any], name: str, formula: Formula) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page in MyST Markdown, and its pictures by file name.

    Parameters
    ----------
    notebook
        The notebook as JSON.
    name
        Begin of the names of its pictures.
    formula
        Function that turns a formula in LaTeX into HTML.

    Raises
    ------
    ValueError
        A cell of code was not executed, or failed.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(LINK.sub(_link, text))
            continue
        parts.append(_fenced("ipython3", text))
        if cell["execution_count"] is None:
            raise ValueError(f"{name}: cell {number} was not executed; run `make notebooks`")
        for place, output in enumerate(_merged(cell["outputs"])):
            if output["output_type"] == "error":
                raise ValueError(f"{name}: cell {number} failed with {output['ename']}")
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{number}-{place}.png"
                pictures[picture] = b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the cell above]({picture})")
            elif "text/html" in data:
                parts.append(_fenced("{raw} html", _html("".join(data["text/html"]), formula)))
            else:
                printed = output["text"] or "".join(data.get("text/plain", ""))
                shown = f'<pre class="output">{escape(printed.rstrip())}</pre>'
                parts.append(_fenced("{raw} html", shown))
    return "\n\n".join(parts) + "\n", pictures


def _merged(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outputs of a cell with the consecutive parts of a stream as one."""
    merged: list[dict[str, Any]] = []
    for output in outputs:
        name = output.get("name")
        if name is not None and merged and merged[-1].get("name") == name:
            merged[-1]["text"] += "".join(output["text"])
        else:
            merged.append({**output, "text": "".join(output.get("text", ()))})
    return merged


def _fenced(language: str, text: str) -> str:
    return f"{FENCE}{language}\n{text}\n{FENCE}"


def _html(text: str, formula: Formula) -> str:
    """Return the HTML of an output without styles, in a box that scrolls, formulas as MathML."""
    plain = FORMULA.sub(lambda match: f"<p>{formula(match[1])}</p>", STYLE.sub("", text))
    return f'<div class="output">\n{plain.strip()}\n</div>'


def _link(match: re.Match[str]) -> str:
    """Return a link of a notebook as one of its page; files outside the site become plain text."""
    text, target = match.groups()
    if target.startswith("docs/"):
        return f"[{text}](../{target.removeprefix('docs/')})"
    if target.startswith("notebooks/"):
        return f"[{text}]({Path(target).stem}.md)"
    return text


def write_pages(formula: Formula) -> None:
    """Write a page for every notebook, and remove the pages of notebooks that are gone."""
    PAGES.mkdir(exist_ok=True)
    wanted: dict[str, bytes] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = page(json.loads(path.read_text(encoding="utf-8")), path.stem, formula)
        wanted |= {f"{path.stem}.md": text.encode(), **pictures}
    for old in PAGES.iterdir():
        if old.name not in wanted:
            old.unlink()
    for name, content in wanted.items():
        file = PAGES / name
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)
