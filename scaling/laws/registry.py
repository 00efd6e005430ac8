"""Scaling laws by name, a parser of law expressions, and a reference page of all laws.

Bases (:mod:`shapelaw.scaling.laws.bases`) and factors (:mod:`shapelaw.scaling.laws.factors`)
compose: ``Chinchilla() * UShape("mlp_to_attention") * GroupedQuery()``. ``+`` in place of ``*``
adds nats to the base, ``.tie("alpha", "beta")`` makes parameters equal, and ``.pin("E", 1.69)``
gives a parameter a value.
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.bases import (
    BestLoss,
    Chinchilla,
    EfficiencyLeverage,
    Kaplan,
    OuterExponent,
    PowerLaw,
    VaryingExponent,
    WidthDepth,
)
from shapelaw.scaling.laws.factors import AspectRatio, Bracket, GroupedQuery, LogRatio, UShape
from shapelaw.scaling.laws.law import Base, Law
from shapelaw.scaling.laws.notation import LETTERS

__all__ = [
    "LAWS",
    "PARTS",
    "AspectRatio",
    "BestLoss",
    "Bracket",
    "Chinchilla",
    "EfficiencyLeverage",
    "GroupedQuery",
    "Kaplan",
    "LogRatio",
    "OuterExponent",
    "PowerLaw",
    "UShape",
    "VaryingExponent",
    "WidthDepth",
    "law_named",
    "laws_page",
]


def chinchilla() -> Law:
    """Build a law of size and tokens only (arXiv 2203.15556)."""
    return Law(Chinchilla())


def conditional() -> Law:
    """Multiply Chinchilla with U-shapes in hidden size and MLP ratio, and a factor for GQA.

    The law follows arXiv 2510.18245, with a factor for GQA added. Both optima may drift with N
    where the run table can identify a drift.
    """
    hidden = UShape("hidden_over_sqrt_n", drift=True)
    return chinchilla() * hidden * UShape("mlp_to_attention", drift=True) * GroupedQuery()


def conditional_depth() -> Law:
    """Multiply ``conditional`` with a U-shape in layers, whose optimum may drift with N."""
    return conditional() * UShape("num_hidden_layers", drift=True)


def conditional_head() -> Law:
    """Multiply ``conditional`` with a U-shape in head dimension, whose optimum may drift with N."""
    return conditional() * UShape("head_dim", drift=True)


def conditional_depth_head() -> Law:
    """Multiply ``conditional`` with U-shapes in layers and head dimension that may drift with N."""
    return conditional_depth() * UShape("head_dim", drift=True)


def steady() -> Law:
    """Build ``conditional`` with optima that do not drift with N."""
    return chinchilla() * UShape("hidden_over_sqrt_n") * UShape("mlp_to_attention") * GroupedQuery()


def sparse() -> Law:
    """Multiply Chinchilla with factors of sparsity, active experts and granularity.

    The factors are the variables of arXiv 2603.21862 and 2507.17702 for models with experts; count
    active parameters with ``--size``.
    """
    experts = LogRatio("sparsity"), LogRatio("active_experts")
    return chinchilla() * experts[0] * experts[1] * UShape("granularity")


def width() -> Law:
    """Multiply Chinchilla with a U-shape in hidden size, for tables that vary only the width."""
    return chinchilla() * UShape("hidden_over_sqrt_n")


def morph() -> Law:
    """Multiply Chinchilla with the aspect ratio, with one exponent for all (arXiv 2501.18107)."""
    return (chinchilla() * AspectRatio()).tie("alpha", "beta", "aspect_ratio_exponent")


def width_depth() -> Law:
    """Build a sum of power laws of width, depth, size and tokens (arXiv 2502.06857)."""
    return Law(WidthDepth())


def paper_multiplicative() -> Law:
    """Build (a0 + a1 ln x + a2/x) (b0 + b1 ln r + b2/r) L_opt, b0 pinned at the published value."""
    law = Law(BestLoss()) * Bracket("hidden_over_sqrt_n") * Bracket("mlp_to_attention", letter="b")
    return law.pin(
        "b0", 0.387, source="one scale of two is redundant; arXiv 2510.18245 prints 0.387"
    )


def paper_additive() -> Law:
    """Build (a0 + a1 ln x + a2/x) + (b1 ln r + b2/r) + L_opt (arXiv 2510.18245)."""
    second = Bracket("mlp_to_attention", letter="b", intercept=False)
    return Law(BestLoss()) + Bracket("hidden_over_sqrt_n") + second


def paper_joint() -> Law:
    """Build the non-separable form (a0 + a1 ln(x r) + a2/(x r)) L_opt (arXiv 2510.18245)."""
    return Law(BestLoss()) * Bracket("hidden_over_sqrt_n", times="mlp_to_attention")


LAWS: dict[str, Callable[[], Law]] = {
    "chinchilla": chinchilla,
    "varying-exponent": lambda: Law(VaryingExponent()),
    "outer-exponent": lambda: Law(OuterExponent()),
    "efficiency-leverage": lambda: Law(EfficiencyLeverage()),
    "sparse": sparse,
    "conditional": conditional,
    "conditional+depth": conditional_depth,
    "conditional+head": conditional_head,
    "conditional+depth+head": conditional_depth_head,
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
        *(Chinchilla, VaryingExponent, OuterExponent, EfficiencyLeverage, PowerLaw, Kaplan),
        *(WidthDepth, BestLoss, UShape, GroupedQuery, LogRatio, AspectRatio, Bracket),
    )
}


def law_named(text: str | Law | Base) -> Law:
    """Find a law by name, or parse an expression of law parts.

    Parameters
    ----------
    text
        A name in ``LAWS`` or an expression of ``PARTS``. A law is returned unchanged; a base
        becomes a law of that base alone.

    Examples
    --------
    >>> law_named("Chinchilla() * UShape('gqa')").names
    ('E', 'A', 'alpha', 'B', 'beta', 'gqa_curvature', 'gqa_optimum')

    Raises
    ------
    InputError
        The text is neither the name of a law nor an expression of parts.
    """
    if isinstance(text, Law):
        return text
    if isinstance(text, Base):
        return Law(text)
    if isinstance(text, str) and text in LAWS:
        return LAWS[text]()
    try:
        parsed = _read(ast.parse(text.strip(), mode="eval").body)
    except InputError:  # raised by a part, with a more precise message
        raise
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        raise InputError(
            f"`--law` must be one of {', '.join(LAWS)}, or an expression such as "
            f"\"Chinchilla() * UShape('gqa')\" of {', '.join(PARTS)}; but got "
            f"{repr(text) if isinstance(text, str) else type(text).__name__}"
        ) from None
    return parsed if isinstance(parsed, Law) else Law(parsed)


def _read(node: ast.expr) -> Any:
    """Build a law from a syntax tree: parts with constants, ``*``, ``+``, tie and pin."""
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


INTRODUCTION = """Choose a law by its name, `shapelaw fit RUNS --law NAME`, or write an expression
of parts: `--law "Chinchilla() * UShape('mlp_to_attention') * GroupedQuery()"`. Losses are in nats
per token. `+` in place of `*` adds a part in nats. `.tie('alpha', 'beta')` makes parameters equal.
`.pin('E', 1.69, low=1.6, high=1.8, source='...')` gives a parameter a value, and confidence
intervals vary the parameter over its range. N0 and D0 are the geometric means of the fitted run
table."""


def laws_page() -> str:
    """Write the page ``docs/laws.md``: every law and every part with its equation, as Markdown."""
    letters = "; ".join(f"{text} is `{column}`" for column, (text, _) in LETTERS.items())
    lines = ["# The laws", "", INTRODUCTION, "", f"Letters: {letters}.", "", "## By name"]
    for name, make in LAWS.items():
        law = make()
        description = inspect.getdoc(law.base if make.__name__ == "<lambda>" else make)
        lines += ["", f"### `{name}`", "", f"$$ {law.describe(latex=True)} $$", ""]
        lines += [str(description), "", f"`{law!r}`"]
    lines += ["", "## Parts"]
    for name, part in PARTS.items():
        lines += ["", f"### `{name}`", "", str(inspect.getdoc(part))]
    return "\n".join(lines) + "\n"
