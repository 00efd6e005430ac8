"""Composition of scaling laws: a base of N and D, plus terms, times factors, with ties and pins.

    L = (base + Σ plus terms) · Π factors

The parts are those of :mod:`shapelaw.scaling.laws.part`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.notation import number, symbol
from shapelaw.scaling.laws.part import Columns, Factor, LawPart, Parameter, Reference
from shapelaw.scaling.laws.terms import Group, Program, Term

# Added to the upper bound of ln E where a bracket multiplies the base: the bracket need not be 1
# at its optimum.
EXTRA_LOG_FLOOR = 3.0


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A parameter with a given value, in the units of the equation, with its range and its source.

    Confidence intervals vary the parameter uniformly from ``low`` to ``high``.
    """

    name: str
    value: float
    low: float
    high: float
    source: str


class Base(LawPart):
    """The loss of the best shape at N and D; ``*`` and ``+`` compose a law from a base."""

    def valid_sizes(
        self, theta: np.ndarray, sizes: np.ndarray, at: Reference, index: Mapping[str, int]
    ) -> np.ndarray:
        """Mark the sizes, (k,), at which the base may be extrapolated; by default all of them."""
        return np.ones(len(sizes), dtype=bool)

    def slopes(self, columns: Columns, at: Reference) -> dict[str, np.ndarray]:
        """Return the variables, (n,), of parameters that have no effect at 0; by default none."""
        return {}

    def __mul__(self, factor: Factor) -> "Law":
        return Law(self) * factor

    def __add__(self, term: Factor) -> "Law":
        return Law(self) + term

    def tie(self, *names: str) -> "Law":
        """Make parameters equal; see :meth:`Law.tie`."""
        return Law(self).tie(*names)

    def pin(self, name: str, value: float, **about: Any) -> "Law":
        """Give a parameter a value; see :meth:`Law.pin`."""
        return Law(self).pin(name, value, **about)


@dataclass(frozen=True)
class Law:
    """L = (base(N, D) + Σ g_i(x_i)) · Π (1 + g_j(x_j)).

    A law has the product form of arXiv 2510.18245 (equation 3): the factors of a shape multiply the
    loss of the best shape of the same size. ``+`` gives the additive form of that paper.
    """

    base: Base
    factors: tuple[Factor, ...] = ()
    extras: tuple[Factor, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    pins: tuple[Pin, ...] = ()

    def __post_init__(self) -> None:
        """Reject a law that is not a base with factors, or that repeats the name of a parameter."""
        wrong: list[LawPart] = [part for part in self.shapes if isinstance(part, Base)]
        if isinstance(self.base, Factor) or wrong:
            raise InputError(
                "a law must have the form `base * factor + term`, but got "
                f"{([*wrong, self.base])[0]!r} in place of a {'factor' if wrong else 'base'}; "
                "write the base first, and one base only"
            )
        twice = [name for name in self.every_name if self.every_name.count(name) > 1]
        if twice:
            raise InputError(
                f"`every parameter of a law has its own name` must hold, but {twice[0]} occurs "
                "twice; give each factor a different column (or each Bracket a different letter)"
            )

    def __mul__(self, factor: Factor) -> "Law":
        return replace(self, factors=(*self.factors, factor))

    def __add__(self, term: Factor) -> "Law":
        return replace(self, extras=(*self.extras, term))

    def tie(self, *names: str) -> "Law":
        """Make parameters equal: ``law.tie("alpha", "beta")``.

        Raises
        ------
        InputError
            A name is not a parameter of the law, there are fewer than two names, or the parameters
            cannot be equal in a fit: scales of power laws, or a parameter that is positive by
            construction together with one that is not.
        """
        for name in names:
            self._check_name(name)
        if len(set(names)) < 2:
            raise InputError(
                f"`tie` needs at least two different parameters, but got {', '.join(names)}; "
                f"choose among {', '.join(self.every_name)}"
            )
        scales = [name for name in names if name in self.scales]
        if scales or len({name in self.logarithmic for name in names}) > 1:
            raise InputError(
                f"`tie` must join only exponents, only optima or only slopes, but got "
                f"{', '.join(names)}; tie parameters of one kind"
            )
        joined, others = list(names), []
        for old in self.ties:
            if set(old) & set(joined):
                joined = [*old, *joined]
            else:
                others.append(old)
        return replace(self, ties=(*others, tuple(dict.fromkeys(joined))))

    def pin(
        self,
        name: str,
        value: float,
        *,
        low: float | None = None,
        high: float | None = None,
        source: str = "given",
    ) -> "Law":
        """Give a parameter in the units of the equation: ``law.pin("E", 1.69, low=1.6, high=1.8)``.

        Raises
        ------
        InputError
            The law has no such parameter, the parameter is the scale of a free exponent, the range
            does not contain the value, or the range contains values that the parameter cannot
            have.
        """
        self._check_name(name)
        value = float(value)
        ends = (value if low is None else float(low), value if high is None else float(high))
        if not ends[0] <= value <= ends[1]:
            raise InputError(
                f"`low <= value <= high` must hold for the pinned {name}, but got "
                f"{ends[0]:g}, {value:g}, {ends[1]:g}; give a range that contains the value"
            )
        if name in self.logarithmic and not 0 < ends[0] <= ends[1] < np.inf:
            raise InputError(
                f"`{name} > 0` and finite must hold for a pinned {name}, but got {ends[0]:g}; "
                "give a small number such as 1e-9 for a parameter without effect"
            )
        if name in self.scales and name not in self.pinnable:
            raise InputError(
                f"the scale `{name}` can be pinned only after its exponent "
                f"`{self.scales[name][0]}`; pin the exponent first"
            )
        pin = Pin(name=name, value=value, low=ends[0], high=ends[1], source=source)
        pins = {old.name: old for old in self.pins} | {
            name: pin
        }  # a name that is pinned again keeps its place
        return replace(self, pins=tuple(pins.values()))

    @property
    def pinnable(self) -> set[str]:
        """Names of the scales whose exponents are pinned."""
        pinned = {pin.name for pin in self.pins}
        return {scale for scale, (exponent, _) in self.scales.items() if exponent in pinned}

    def _check_name(self, name: str) -> None:
        if name not in self.every_name:
            raise InputError(
                f"`parameter` must be one of {', '.join(self.every_name)}, but got {name!r}"
            )

    @cached_property
    def parts(self) -> tuple[LawPart, ...]:
        """Base, added terms and factors, in this order."""
        return (self.base, *self.extras, *self.factors)

    @cached_property
    def shapes(self) -> tuple[Factor, ...]:
        """Factors and added terms: every part that depends on the shape."""
        return (*self.factors, *self.extras)

    @cached_property
    def every_name(self) -> tuple[str, ...]:
        """Names of all parameters, including each of the tied ones."""
        return tuple(name for part in self.parts for name in part.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the internal parameters; a tie has the name of its first parameter."""
        away = {name for tie in self.ties for name in tie[1:]}
        return tuple(name for name in self.every_name if name not in away)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each parameter in θ; tied parameters share one position."""
        index = {name: place for place, name in enumerate(self.names)}
        for first, *others in self.ties:
            index |= dict.fromkeys(others, index[first])
        return index

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a prediction needs."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

    @cached_property
    def scales(self) -> dict[str, tuple[str, str]]:
        """Exponent and column of each scale of a power law, by name."""
        return {name: about for part in self.parts for name, about in part.scales.items()}

    @cached_property
    def logarithmic(self) -> frozenset[str]:
        """Names of the parameters that are fitted as their logarithms."""
        return frozenset(name for part in self.parts for name in part.logarithmic)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Return the internal parameters with bounds and starts, in the order of ``names``.

        Parameters
        ----------
        columns
            The columns that the law needs, (n,) each.
        loss
            Observed losses in nats per token, (n,).
        """
        parameters = [
            parameter for part in self.parts for parameter in part.parameters(columns, loss)
        ]
        if any(not factor.offset for factor in self.factors):
            # A bracket need not be 1 at its optimum, so E may lie above the lowest loss.
            parameters = [_with_higher_bound(p) if p.name == "E" else p for p in parameters]
        return [parameter for parameter in parameters if parameter.name in self.names]

    def program(self, columns: Columns, at: Reference) -> Program:
        """Build the law on the rows of a table.

        Parameters
        ----------
        columns
            The columns that the law needs, (n,) each.
        at
            Geometric means of the fitted table, at which scales are centred.

        Returns
        -------
        A program that evaluates ln L and its derivatives at many parameter vectors.
        """
        base = [t for part in (self.base, *self.extras) for t in self._terms(part, columns, at)]
        groups = [Group(offset=0.0, terms=tuple(base))]
        for factor in self.factors:
            terms = tuple(self._terms(factor, columns, at))
            groups.append(Group(offset=factor.offset, terms=terms))
        rows = len(next(iter(columns.values())))
        return Program(groups=tuple(groups), parameters=len(self.names), rows=rows)

    def _terms(self, part: LawPart, columns: Columns, at: Reference) -> list[Term]:
        return part.terms(columns, at, self.index)

    def log_loss(
        self, theta: np.ndarray, columns: Columns, at: Reference
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict ln loss, (n,), with its gradient by internal parameters, (n, p)."""
        program = self.program(columns, at)
        gradient = program.gradient(theta[None])[0].T
        return program.log_loss(theta[None])[0], gradient

    def predict(self, theta: np.ndarray, columns: Columns, at: Reference) -> np.ndarray:
        """Predict the loss in nats per token.

        Parameters
        ----------
        theta
            Internal parameters, (p,) or (S, p).
        columns
            The columns that the law needs, (n,) each.
        at
            Geometric means of the fitted table.

        Returns
        -------
        Losses, (n,) for parameters (p,), or (S, n) for parameters (S, p).
        """
        logs = self.program(columns, at).log_loss(np.atleast_2d(theta))
        return np.asarray(np.exp(logs[0] if theta.ndim == 1 else logs))

    def effect(
        self, factor: Factor, theta: np.ndarray, columns: Columns, at: Reference
    ) -> np.ndarray:
        """Return the contribution of a factor or term to ln L, (S, n), at parameters (S, p)."""
        without = np.array(theta, dtype=float)
        for name, value in factor.neutral(columns).items():
            without[:, self.index[name]] = value
        program = self.program(columns, at)
        return np.asarray(program.log_loss(theta) - program.log_loss(without))

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, Any]:
        """Convert internal parameters to those of the equation.

        Parameters
        ----------
        theta
            Internal parameters, (p,) or (S, p).
        at
            Geometric means of the fitted table.

        Returns
        -------
        Every parameter by name: numbers for θ of shape (p,), arrays (S,) for (S, p).
        """
        inner = {name: theta[..., place] for name, place in self.index.items()}
        values: dict[str, Any] = {}
        for name in self.every_name:
            value = inner[name]
            if name in self.scales:
                exponent, column = self.scales[name]
                value = value + inner[exponent] * np.log(at[column])
            value = np.exp(value) if name in self.logarithmic else value
            values[name] = float(value) if np.ndim(value) == 0 else value
        return values

    def internal(self, public: Mapping[str, float], at: Reference) -> np.ndarray:
        """Convert parameters of the equation, by name, to internal parameters, (p,)."""
        theta = np.empty(len(self.names))
        with np.errstate(divide="ignore"):
            for place, name in enumerate(self.names):
                value = float(public[name])
                theta[place] = np.log(value) if name in self.logarithmic else value
                if name in self.scales:
                    exponent, column = self.scales[name]
                    theta[place] -= public[exponent] * np.log(at[column])
        return theta

    def describe(self, public: Mapping[str, float] | None = None, *, latex: bool = False) -> str:
        """Format the equation as text or LaTeX, with symbols or with fitted numbers.

        Parameters
        ----------
        public
            Parameters of the equation by name; the equation has symbols without them.
        latex
            Return LaTeX in place of plain text.

        Examples
        --------
        >>> from shapelaw.scaling.laws.bases import Chinchilla
        >>> (Chinchilla() * UShape("gqa")).describe()  # doctest: +SKIP
        'L = (E + A/N^alpha + B/D^beta) · (1 + k_q (ln(q/q*) + q*/q - 1))'
        """
        shown = {
            name: number(public[name], latex=latex) if public else symbol(name, latex=latex)
            for name in self.every_name
        }
        if public is None:
            for first, *others in self.ties:
                shown |= dict.fromkeys(others, shown[first])
        summands = [part.equation(shown, latex=latex) for part in (self.base, *self.extras)]
        base = " + ".join(summands)
        dot = r" \cdot " if latex else " · "
        if self.factors and (len(summands) > 1 or " + " in base):
            base = f"({base})"
        factors = [f"({factor.equation(shown, latex=latex)})" for factor in self.factors]
        for factor, place in zip(self.factors, range(len(factors)), strict=True):
            if factor.offset:
                factors[place] = f"({factor.offset:g} + {factors[place][1:-1]})"
        return "L = " + dot.join([base, *factors]).replace("+ -", "- ")

    def __repr__(self) -> str:
        text = " + ".join(map(repr, (self.base, *self.extras)))
        if self.extras and (self.factors or self.ties or self.pins):
            text = f"({text})"
        text = " * ".join([text, *map(repr, self.factors)])
        if self.factors and (self.ties or self.pins):
            text = f"({text})"
        for tie in self.ties:
            text += f".tie({', '.join(map(repr, tie))})"
        for pin in self.pins:
            about = f"low={pin.low!r}, high={pin.high!r}, source={pin.source!r}"
            text += f".pin({pin.name!r}, {pin.value!r}, {about})"
        return text


def _with_higher_bound(parameter: Parameter) -> Parameter:
    lower, upper = parameter.bounds
    return replace(parameter, bounds=(lower, upper + EXTRA_LOG_FLOOR))


def reference_of(columns: Columns) -> dict[str, float]:
    """Return the geometric mean of each column."""
    return {name: float(np.exp(np.log(values).mean())) for name, values in columns.items()}
