"""Parts of a law: parameters, the interface of a base or factor, and the interface of a factor.

Every part has *public* parameters, in the units of its equation, and *internal* parameters, in
which the fit is smooth and well conditioned: logarithms of positive parameters, and scales centred
at the geometric means of the fitted run table. A part builds terms of
:mod:`shapelaw.scaling.laws.terms` from the columns of a run table.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from shapelaw.scaling.laws.terms import Term

Columns = Mapping[str, np.ndarray]
Reference = Mapping[str, float]  # geometric means of the fitted table's columns


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An internal parameter with its bounds and the range from which starts are drawn."""

    name: str
    bounds: tuple[float, float]
    starts: tuple[float, float]


class LawPart(ABC):
    """A base or a factor: its named parameters, the columns that it needs, and its terms."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the part needs."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """Names of the parameters that are fitted as their logarithms."""
        return ()

    @property
    def scales(self) -> Mapping[str, tuple[str, str]]:
        """Exponent (subtracted in the power) and column of each scale of a power law, by name."""
        return {}

    @abstractmethod
    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Return the internal parameters, with bounds and starts that suit the data."""

    @abstractmethod
    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the terms on the rows of a table; ``index`` maps parameters to positions in θ."""

    @abstractmethod
    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format the formula with the parameters as ``shown``: symbols or numbers."""

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self))  # type: ignore[arg-type]
        given = [f"{name}={value!r}" for name, value, default in values if value != default]
        return f"{type(self).__name__}({', '.join(given)})"


class Factor(LawPart):
    """An effect of shape on the loss: multiplied with it (``*``) or added to it in nats (``+``)."""

    @property
    @abstractmethod
    def of(self) -> str:
        """Column of the ratio that the factor depends on."""

    @abstractmethod
    def neutral(self, columns: Columns) -> dict[str, float]:
        """Return internal parameters with which the factor has no effect."""

    @property
    def offset(self) -> float:
        """Constant of a multiplied factor: 1, so that its terms are a deviation from 1."""
        return 1.0

    @property
    def optional(self) -> bool:
        """True if a fit may hold the factor at no effect where the data cannot identify it."""
        return True
