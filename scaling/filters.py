"""Filters on tables: a small language of conditions, evaluated without running code."""

import ast
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from shapelaw.scaling.errors import InputError

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda left, values: reduce(np.logical_or, [left == value for value in values], False),
    ast.NotIn: lambda left, values: reduce(
        np.logical_and, [left != value for value in values], True
    ),
}


def select(expression: str, columns: Mapping[str, Any], rows: int) -> np.ndarray:
    """Evaluate a filter on a table and return the mask of the rows that satisfy it.

    A filter is a condition such as ``"tokens >= 1e6 and role == 'proxy'"`` or ``"gqa in (1, 2)"``.

    Parameters
    ----------
    expression
        The filter.
    columns
        Columns by name, (n,) each.
    rows
        Number of rows n.

    Returns
    -------
    Mask of the rows, (n,).

    Raises
    ------
    InputError
        The expression does not parse, is not a condition, or uses other elements than columns,
        numbers, strings, comparisons, in, arithmetic and and/or/not.
    """
    tree = _parsed(expression)
    try:
        with np.errstate(all="ignore"):  # a row that divides by zero is compared as inf or NaN
            mask = np.asarray(_value(tree, columns, expression))
    except (TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the filter {expression!r} cannot be applied: {error}; correct that operation"
        ) from None
    if mask.dtype != np.bool_:
        raise InputError(
            f"a filter must be true or false for each row, but got {expression!r}; add a comparison"
        )
    return np.broadcast_to(mask, (rows,)).copy()


def evaluate(expression: str, columns: Mapping[str, Any]) -> np.ndarray:
    """Evaluate arithmetic such as ``"flops / (6 * N)"`` over columns.

    Parameters
    ----------
    expression
        Columns, numbers and + - * / %.
    columns
        Columns by name, (n,) each.

    Returns
    -------
    Values of the expression, (n,) or one number.

    Raises
    ------
    InputError
        The expression does not parse, names an unknown column, or its columns hold no numbers.
    """
    tree = _parsed(expression)
    try:
        with np.errstate(all="ignore"):  # a value without a finite number is refused by the rules
            return np.asarray(_value(tree, columns, expression), dtype=float)
    except (TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the expression {expression!r} cannot be computed: {error}; its columns must hold "
            "numbers"
        ) from None


def names_in(expression: str) -> set[str]:
    """Return the names of the columns in a filter.

    Raises
    ------
    InputError
        The expression does not parse.
    """
    return {node.id for node in ast.walk(_parsed(expression)) if isinstance(node, ast.Name)}


def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"a filter must be a condition on columns, but got {expression!r}; "
            'write for example "tokens >= 1e6 and gqa == 2"'
        ) from None


def _value(node: ast.expr, columns: Mapping[str, Any], text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.Name(id=name):
            if name not in columns:
                raise InputError(
                    f"the filter {text!r} names the column {name!r}, which the table lacks; "
                    f"it has {', '.join(columns)}"
                )
            return np.asarray(columns[name])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)](_value(left, columns, text), _value(right, columns, text))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, columns, text)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_value(operand, columns, text))
        case ast.BoolOp(op=op, values=values):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return reduce(combine, [_value(value, columns, text) for value in values])
        case ast.Compare(left=first, ops=ops, comparators=rest):
            return _compare([first, *rest], ops, columns, text)
    raise InputError(
        f"the filter {text!r} may hold columns, numbers, strings, comparisons, in (...), "
        f"+ - * / %, and, or, not; `{ast.unparse(node)}` is none of these"
    )


def _compare(
    nodes: list[ast.expr], ops: list[ast.cmpop], columns: Mapping[str, Any], text: str
) -> Any:
    answer: Any = True
    for left, op, right in zip(nodes, ops, nodes[1:], strict=False):
        if type(op) not in COMPARISONS:
            raise InputError(f"the filter {text!r} may compare with < <= > >= == != in only")
        read = _members if isinstance(op, ast.In | ast.NotIn) else _value
        holds = COMPARISONS[type(op)](_value(left, columns, text), read(right, columns, text))
        answer = np.logical_and(answer, holds)
    return answer


def _members(node: ast.expr, columns: Mapping[str, Any], text: str) -> list[Any]:
    """Read the list after ``in``: ``(1, 2)``, ``[1, 2]`` or one value in parentheses, ``(1)``."""
    members = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    if not members or not all(isinstance(part, ast.Constant | ast.UnaryOp) for part in members):
        raise InputError(
            f"`in` must be followed by numbers or strings in parentheses in the filter {text!r}; "
            'write for example "gqa in (1, 2, 4)"'
        )
    return [_value(part, columns, text) for part in members]
