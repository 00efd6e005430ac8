"""How laws compose: a base of N and D, plus terms, times factors, with tied and pinned parameters.

    L = (base + Σ plus terms) · Π factors

Every part has *public* parameters, in the units of its equation, and *internal* ones, in which the
fit is smooth and well conditioned: logarithms of what is positive, and scales centred at the
geometric means of the fitted table. A part turns a table into terms of
:mod:`shapelaw.scaling.laws.terms`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.notation import number, symbol
from shapelaw.scaling.laws.terms import Group, Program, Term

if TYPE_CHECKING:
    pass

Columns = Mapping[str, np.ndarray]
Reference = Mapping[str, float]  # geometric means of the fitted table's columns
BRACKET_REACH = 3.0  # ln of how small a bracket may be


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One internal parameter: its bounds, and the box from which starts are drawn."""

    name: str
    bounds: tuple[float, float]
    starts: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A parameter that is given, in the units of the equation, with its range and its source.

    Intervals vary it evenly over ``low`` to ``high``.
    """

    name: str
    value: float
    low: float
    high: float
    source: str


class LawPart(ABC):
    """A base or a factor: named parameters, the columns that it needs, and its terms."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """What it needs of a row."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Its parameters."""

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """Parameters whose internal form is the logarithm."""
        return ()

    @property
    def scales(self) -> Mapping[str, tuple[str, str]]:
        """Scale of a power law -> its exponent (subtracted in the power) and its column."""
        return {}

    @abstractmethod
    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Internal parameters with bounds and starts scaled to the data."""

    @abstractmethod
    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Its terms on the rows of a table; ``index`` has each parameter's position."""

    @abstractmethod
    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """The formula with parameters as ``shown``: symbols or numbers."""

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self))  # type: ignore[arg-type]
        given = [f"{name}={value!r}" for name, value, default in values if value != default]
        return f"{type(self).__name__}({', '.join(given)})"


class Factor(LawPart):
    """What shape does to the loss: times it (``*``) or in nats on top of it (``+``)."""

    @property
    @abstractmethod
    def of(self) -> str:
        """The ratio that it acts on."""

    @abstractmethod
    def neutral(self, columns: Columns) -> dict[str, float]:
        """Internal parameters with which it does nothing."""

    @property
    def offset(self) -> float:
        """What its terms are added to when it multiplies: 1, so that they are a deviation."""
        return 1.0

    @property
    def optional(self) -> bool:
        """Whether a fit may hold it at no effect where the data do not show one."""
        return True


class Base(LawPart):
    """The loss of the best shape at N and D; ``*`` and ``+`` make a law of it."""

    def __mul__(self, factor: Factor) -> "Law":
        return Law(self) * factor

    def __add__(self, term: Factor) -> "Law":
        return Law(self) + term

    def tie(self, *names: str) -> "Law":
        """See :meth:`Law.tie`."""
        return Law(self).tie(*names)

    def pin(self, name: str, value: float, **about: Any) -> "Law":
        """See :meth:`Law.pin`."""
        return Law(self).pin(name, value, **about)


@dataclass(frozen=True)
class Law:
    """L = (base(N, D) + Σ g_i(x_i)) · Π (1 + g_j(x_j)).

    The product form of arXiv 2510.18245 (equation 3): a shape multiplies the loss of the best
    shape of its size; ``+`` gives its additive form.
    """

    base: Base
    factors: tuple[Factor, ...] = ()
    extras: tuple[Factor, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    pins: tuple[Pin, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not a base with factors, each parameter once."""
        wrong: list[LawPart] = [part for part in self.shapes if isinstance(part, Base)]
        if isinstance(self.base, Factor) or wrong:
            raise InputError(
                "`base * factor + term` is a law, but got "
                f"{([*wrong, self.base])[0]!r} in the place of a {'factor' if wrong else 'base'}"
            )
        twice = [name for name in self.every_name if self.every_name.count(name) > 1]
        if twice:
            raise InputError(
                f"a law's parameters must have different names, but {twice[0]} stands twice; "
                "give each factor a column (or a Bracket a letter) of its own"
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
            A name is not one of the law's parameters, there are fewer than two of them, or they
            cannot be equal in a fit: scales of power laws, or one that is positive by construction
            with one that is not.
        """
        for name in names:
            self._known(name)
        if len(set(names)) < 2:
            raise InputError(f"`tie` needs at least two parameters, but got {', '.join(names)}")
        scales = [name for name in names if name in self.scales]
        if scales or len({name in self.logarithmic for name in names}) > 1:
            raise InputError(
                f"`tie` is for exponents, or for optima, or for slopes, but got {', '.join(names)}"
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
            There is no such parameter, it is the scale of a free exponent, or the range does not
            hold the value or holds what the parameter cannot be.
        """
        self._known(name)
        value = float(value)
        ends = (value if low is None else float(low), value if high is None else float(high))
        if not ends[0] <= value <= ends[1]:
            raise InputError(
                f"`low <= value <= high` must hold for the pinned {name}, but got "
                f"{ends[0]:g}, {value:g}, {ends[1]:g}"
            )
        if name in self.logarithmic and not 0 < ends[0] <= ends[1] < np.inf:
            raise InputError(
                f"`{name} > 0` and finite must hold for a pinned {name}, but got {ends[0]:g}; "
                "a small number such as 1e-9 stands for none"
            )
        if name in self.scales and name not in self.pinnable:
            raise InputError(
                f"the scale `{name}` can be pinned only after its exponent "
                f"`{self.scales[name][0]}`; pin that first"
            )
        pin = Pin(name=name, value=value, low=ends[0], high=ends[1], source=source)
        pins = {old.name: old for old in self.pins} | {name: pin}  # one that is known stays first
        return replace(self, pins=tuple(pins.values()))

    @property
    def pinnable(self) -> set[str]:
        """Scales whose exponents are pinned."""
        pinned = {pin.name for pin in self.pins}
        return {scale for scale, (exponent, _) in self.scales.items() if exponent in pinned}

    def _known(self, name: str) -> None:
        if name not in self.every_name:
            raise InputError(
                f"a law's parameter must be one of {', '.join(self.every_name)}, but got {name!r}"
            )

    @cached_property
    def parts(self) -> tuple[LawPart, ...]:
        """Base, extra terms, factors."""
        return (self.base, *self.extras, *self.factors)

    @cached_property
    def shapes(self) -> tuple[Factor, ...]:
        """Everything that acts on a shape: factors and extra terms."""
        return (*self.factors, *self.extras)

    @cached_property
    def every_name(self) -> tuple[str, ...]:
        """All parameters, tied ones each by its own name."""
        return tuple(name for part in self.parts for name in part.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Internal parameters: of those that are tied, the first."""
        away = {name for tie in self.ties for name in tie[1:]}
        return tuple(name for name in self.every_name if name not in away)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each parameter in θ; tied ones share one."""
        index = {name: place for place, name in enumerate(self.names)}
        for first, *others in self.ties:
            index |= dict.fromkeys(others, index[first])
        return index

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that a prediction needs."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

    @cached_property
    def scales(self) -> dict[str, tuple[str, str]]:
        """Scales of power laws with their exponents and columns."""
        return {name: about for part in self.parts for name, about in part.scales.items()}

    @cached_property
    def logarithmic(self) -> frozenset[str]:
        """Parameters whose internal form is the logarithm."""
        return frozenset(name for part in self.parts for name in part.logarithmic)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Internal parameters with bounds and starts, in the order of ``names``."""
        every = [own for part in self.parts for own in part.parameters(columns, loss)]
        if any(not factor.offset for factor in self.factors):
            # A bracket need not be 1 at its best, so the floor may lie above the lowest loss.
            every = [_raised(own) if own.name == "E" else own for own in every]
        return [own for own in every if own.name in self.names]

    def program(self, columns: Columns, at: Reference) -> Program:
        """The law on the rows of a table."""
        base = [t for part in (self.base, *self.extras) for t in self._terms(part, columns, at)]
        groups = [Group(offset=0.0, terms=tuple(base))]
        for factor in self.factors:
            own = tuple(self._terms(factor, columns, at))
            groups.append(Group(offset=factor.offset, terms=own))
        rows = len(next(iter(columns.values())))
        return Program(groups=tuple(groups), parameters=len(self.names), rows=rows)

    def _terms(self, part: LawPart, columns: Columns, at: Reference) -> list[Term]:
        return part.terms(columns, at, self.index)

    def log_loss(
        self, theta: np.ndarray, columns: Columns, at: Reference
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ln of the predicted loss, (n,), and its gradient by internal parameters, (n, p)."""
        program = self.program(columns, at)
        gradient = program.gradient(theta[None])[0].T
        return program.log_loss(theta[None])[0], gradient

    def predict(self, theta: np.ndarray, columns: Columns, at: Reference) -> np.ndarray:
        """Predicted loss, (n,), or (S, n) for parameters (S, p), in nats per token."""
        logs = self.program(columns, at).log_loss(np.atleast_2d(theta))
        return np.asarray(np.exp(logs[0] if theta.ndim == 1 else logs))

    def effect(
        self, factor: Factor, theta: np.ndarray, columns: Columns, at: Reference
    ) -> np.ndarray:
        """What a factor or term adds to ln L, (S, n), at parameters (S, p)."""
        without = np.array(theta, dtype=float)
        for name, value in factor.neutral(columns).items():
            without[:, self.index[name]] = value
        program = self.program(columns, at)
        return np.asarray(program.log_loss(theta) - program.log_loss(without))

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, Any]:
        """Parameters of the equation by name: numbers for θ (p,), arrays (S,) for (S, p)."""
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
        """Internal parameters (p,) of the equation's."""
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
        """The equation as text or LaTeX, with symbols or with fitted numbers.

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
        words = [part.equation(shown, latex=latex) for part in (self.base, *self.extras)]
        base = " + ".join(words)
        dot = r" \cdot " if latex else " · "
        if self.factors and (len(words) > 1 or " + " in base):
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


def _raised(own: Parameter) -> Parameter:
    lower, upper = own.bounds
    return replace(own, bounds=(lower, upper + BRACKET_REACH))


def reference_of(columns: Columns) -> dict[str, float]:
    """Geometric means of columns."""
    return {name: float(np.exp(np.log(values).mean())) for name, values in columns.items()}
