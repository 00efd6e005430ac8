"""Parts of the documentation that are made when it is built: commands, public names, formulas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import notebook_pages
import typer
from architecture_table import engine_table, table
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import shapelaw
from shapelaw.search.cli import SECTIONS, app

GENERATED = Path(__file__).parent / "_generated"
# Headings of the page of public names, and the names below each; further names come last. Laws are
# used as they are, so their members are not listed.
PUBLIC = {
    "Run tables": ("load_runs", "RunTable"),
    "Laws": ("Chinchilla", "UShape", "GroupedQuery"),
    "Fits": ("fit", "Fit", "optimal", "difference", "intervals"),
    "Checks and designs": ("check", "compare", "next_runs"),
    "Shapes": ("Shape", "shape_named"),
    "Serving speed": ("measure", "engine_named", "parse_workload", "Workload"),
    "Proposals": (
        *("propose", "loss_basis", "LossBasis", "ProposalRequest"),
        *("Budget", "SpaceOptions", "Serving", "SearchEffort"),
    ),
}


def commands_page() -> str:
    """Return the reference of all commands as Markdown, from the Typer application."""
    group: Any = typer.main.get_command(app)
    lines: list[str] = []
    for heading, names in SECTIONS.items():
        lines += [f"## {heading}", ""]
        for name in names:
            for path, command in _leaves((name,), group.commands[name]):
                lines += [f"### `shapelaw {' '.join(path)}`", "", *_command_lines(path, command)]
    return "\n".join(lines)


def _leaves(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command, or the commands inside a group, by their names."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from _leaves((*path, name), child)


def _command_lines(path: tuple[str, ...], command: Any) -> list[str]:
    visible = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in visible if p.param_type_name == "argument"]
    usage = " ".join(p.metavar if p.required else f"[{p.metavar}]" for p in arguments)
    rows = [f"| `{_name(p)}` | {_escaped(p.help)} | {_default(p)} |" for p in visible]
    table = ["| option | what it does | default |", "|---|---|---|", *rows, ""] if rows else []
    call = f"shapelaw {' '.join(path)} {usage}".rstrip()
    return [command.help, "", "```text", f"{call} [OPTIONS]", "```", "", *table]


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.param_type_name == "option" and parameter.is_flag:
        return ("on" if parameter.default else "off") if parameter.secondary_opts else "off"
    shown = parameter.default
    return "" if shown in (None, "") else f"`{shown}`"


def _escaped(text: str) -> str:
    """Return a help text for a cell of a Markdown table."""
    marked = text.replace("|", r"\|").replace("*", r"\*").replace("<", r"\<")
    return marked.replace('"', "`", 2) if marked.count('"') == 2 else marked


def api_page() -> str:
    """Return the reference of all public names as Markdown."""
    listed = {name for names in PUBLIC.values() for name in names}
    further = tuple(name for name in shapelaw._PUBLIC if name not in listed)
    lines = []
    for heading, names in (PUBLIC | ({"Further names": further} if further else {})).items():
        lines += [f"## {heading}", ""]
        for name in names:
            is_class = isinstance(getattr(shapelaw, name), type)
            directive = "autoclass" if is_class else "autofunction"
            members = ["   :members:"] if is_class and heading != "Laws" else []
            lines += ["```{eval-rst}", f".. {directive}:: shapelaw.{name}", *members, "```", ""]
    return "\n".join(lines)


def write_pages(_: Sphinx) -> None:
    """Write the generated parts, those that changed."""
    GENERATED.mkdir(exist_ok=True)
    pages = {
        "commands.md": commands_page(),
        "api.md": api_page(),
        "architectures.md": table(),
        "engines.md": engine_table(),
    }
    for name, text in pages.items():
        path = GENERATED / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    notebook_pages.write_pages(convert)


def show_inline_formula(self: Any, node: nodes.math) -> None:
    """Write a formula in a line as MathML, which browsers show without any script."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def show_formula(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own as MathML."""
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(site: Sphinx) -> dict[str, bool]:
    """Register the parts with Sphinx."""
    site.add_html_math_renderer("mathml", (show_inline_formula, None), (show_formula, None))
    site.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
