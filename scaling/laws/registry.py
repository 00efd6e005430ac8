"""The laws by name, laws read from an expression, and all of them on one page.

Bases (:mod:`shapelaw.scaling.laws.bases`) and factors (:mod:`shapelaw.scaling.laws.factors`)
compose: ``Chinchilla() * UShape("mlp_to_attention") * GroupedQuery()``; ``+`` instead of ``*`` adds
nats to the base; ``.tie("alpha", "beta")`` makes parameters equal, ``.pin("E", 1.69)`` gives one.
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.bases import BestLoss, Chinchilla, Kaplan, PowerLaw, WidthDepth
from shapelaw.scaling.laws.factors import AspectRatio, Bracket, GroupedQuery, UShape
from shapelaw.scaling.laws.law import Base, Law
from shapelaw.scaling.laws.notation import LETTERS

__all__ = [
    "LAWS",
    "PARTS",
    "AspectRatio",
    "BestLoss",
    "Bracket",
    "Chinchilla",
    "GroupedQuery",
    "Kaplan",
    "PowerLaw",
    "UShape",
    "WidthDepth",
    "law_named",
    "laws_page",
]


def chinchilla() -> Law:
    """Loss by size and tokens only."""
    return Law(Chinchilla())


def conditional() -> Law:
    """Chinchilla times hidden size, MLP-to-attention ratio and GQA (arXiv 2510.18245 with GQA).

    The optima may drift with N where a table can tell.
    """
    hidden = UShape("hidden_over_sqrt_n", drift=True)
    return chinchilla() * hidden * UShape("mlp_to_attention", drift=True) * GroupedQuery()


def conditional_depth() -> Law:
    """``conditional`` times a U-shape in the number of layers whose optimum drifts with N."""
    return conditional() * UShape("num_hidden_layers", drift=True)


def steady() -> Law:
    """``conditional`` with optima that do not move with N."""
    return chinchilla() * UShape("hidden_over_sqrt_n") * UShape("mlp_to_attention") * GroupedQuery()


def width() -> Law:
    """Chinchilla times hidden size: for tables that vary nothing else of the shape."""
    return chinchilla() * UShape("hidden_over_sqrt_n")


def morph() -> Law:
    """Chinchilla times aspect ratio with one exponent for all (arXiv 2501.18107)."""
    return (chinchilla() * AspectRatio()).tie("alpha", "beta", "aspect_ratio_exponent")


def width_depth() -> Law:
    """Width, depth, size and tokens, each a power law (arXiv 2502.06857)."""
    return Law(WidthDepth())


def paper_multiplicative() -> Law:
    """(a0 + a1 ln x + a2/x) (b0 + b1 ln r + b2/r) L_opt, b0 at the value printed in the paper."""
    law = Law(BestLoss()) * Bracket("hidden_over_sqrt_n") * Bracket("mlp_to_attention", letter="b")
    return law.pin(
        "b0", 0.387, source="one scale of two is redundant; arXiv 2510.18245 prints .387"
    )


def paper_additive() -> Law:
    """(a0 + a1 ln x + a2/x) + (b1 ln r + b2/r) + L_opt (arXiv 2510.18245)."""
    second = Bracket("mlp_to_attention", letter="b", intercept=False)
    return Law(BestLoss()) + Bracket("hidden_over_sqrt_n") + second


def paper_joint() -> Law:
    """(a0 + a1 ln(x r) + a2/(x r)) L_opt, which does not separate (arXiv 2510.18245)."""
    return Law(BestLoss()) * Bracket("hidden_over_sqrt_n", times="mlp_to_attention")


LAWS: dict[str, Callable[[], Law]] = {
    "chinchilla": chinchilla,
    "conditional": conditional,
    "conditional+depth": conditional_depth,
    "conditional-steady": steady,
    "width": width,
    "width-depth": width_depth,
    "morph": morph,
    "power": lambda: Law(PowerLaw()),
    "kaplan": lambda: Law(Kaplan()),
    "paper-multiplicative": paper_multiplicative,
    "paper-additive": paper_additive,
    "paper-joint": paper_joint,
}
PARTS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        *(Chinchilla, PowerLaw, Kaplan, WidthDepth, BestLoss),
        *(UShape, GroupedQuery, AspectRatio, Bracket),
    )
}


def law_named(text: str | Law | Base) -> Law:
    """Find a law by its name, or read it from an expression; a law or a base is taken as it is.

    Examples
    --------
    >>> law_named("Chinchilla() * UShape('gqa')").names
    ('E', 'A', 'alpha', 'B', 'beta', 'gqa_curvature', 'gqa_optimum')

    Raises
    ------
    InputError
        There is no law of that name, and it is no expression of parts.
    """
    if isinstance(text, Law):
        return text
    if isinstance(text, Base):
        return Law(text)
    if isinstance(text, str) and text in LAWS:
        return LAWS[text]()
    try:
        found = _read(ast.parse(text.strip(), mode="eval").body)
    except InputError:  # of a part: it says what is wrong
        raise
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        raise InputError(
            f"`--law` must be one of {', '.join(LAWS)}, or an expression such as "
            f"\"Chinchilla() * UShape('gqa')\" of {', '.join(PARTS)}; but got {text!r}"
        ) from None
    return found if isinstance(found, Law) else Law(found)


def _read(node: ast.expr) -> Any:
    """Build a law from a syntax tree: parts with constant arguments, ``*``, ``+``, tie and pin."""
    match node:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _read(left) * _read(right)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _read(left) + _read(right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=named) if name in PARTS:
            return PARTS[name](*map(_constant_of, args), **_named(named))
        case ast.Call(func=ast.Attribute(value=law, attr=("tie" | "pin") as verb), args=args):
            return getattr(_read(law), verb)(*map(_constant_of, args), **_named(node.keywords))
    raise ValueError("not a part of a law")


def _named(keywords: list[ast.keyword]) -> dict[str, Any]:
    return {str(keyword.arg): _constant_of(keyword.value) for keyword in keywords}


def _constant_of(node: ast.expr) -> Any:
    return ast.literal_eval(node)


INTRODUCTION = """`shapelaw fit RUNS --law NAME`, or an expression of parts:
`--law "Chinchilla() * UShape('mlp_to_attention') * GroupedQuery()"`. Losses are in nats per token.
`+` instead of `*` adds a part in nats; `.tie('alpha', 'beta')` makes parameters equal;
`.pin('E', 1.69, low=1.6, high=1.8, source='...')` gives one, and intervals vary it over its range.
N0 and D0 are the geometric means of the fitted table."""


def laws_page() -> str:
    """Every law and every part with its equation, as Markdown: ``docs/laws.md``."""
    letters = "; ".join(f"{text} is `{column}`" for column, (text, _) in LETTERS.items())
    lines = ["# The laws", "", INTRODUCTION, "", f"Letters: {letters}.", "", "## By name"]
    for name, make in LAWS.items():
        law = make()
        about = inspect.getdoc(make) if make.__name__ != "<lambda>" else inspect.getdoc(law.base)
        lines += ["", f"### `{name}`", "", f"$$ {law.describe(latex=True)} $$", ""]
        lines += [str(about), "", f"`{law!r}`"]
    lines += ["", "## Parts"]
    for name, part in PARTS.items():
        lines += ["", f"### `{name}`", "", str(inspect.getdoc(part))]
    return "\n".join(lines) + "\n"
