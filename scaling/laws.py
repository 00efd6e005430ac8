"""Scaling laws as formulas that compose: ``Chinchilla() * UShape("mlp_to_attention")``.

A law maps named columns to a loss. Its parameters have two forms: *public* ones, in the units of
the equation, and *internal* ones (logarithms, centred at the data), in which the fit is smooth and
well conditioned. ``log_loss`` gives the logarithm of the predicted loss and its gradient by the
internal parameters in closed form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scaling.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Columns = Mapping[str, np.ndarray]
# Geometric means of N and D of the fitted table: exponents act on ratios to these.
Reference = Mapping[str, float]
N, D = "n_non_embedding", "tokens"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One internal parameter: its bounds, and the box from which starts are drawn."""

    name: str
    bounds: tuple[float, float]
    starts: tuple[float, float]


class Base(Protocol):
    """What a law stands on: the loss of the best shape at N and D."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it needs of a row."""

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Internal parameters with bounds and starts scaled to the data."""

    def log_loss(self, theta: np.ndarray, columns: Columns, at: Reference) -> "Terms":
        """Ln of the loss, (n,), and its gradient, (n, p), at internal parameters theta (p,)."""

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, float]:
        """Parameters of the equation."""


class Factor(Protocol):
    """A factor 1 + g(x) on the loss, with g = 0 where the shape is best or neutral."""

    @property
    def of(self) -> str:
        """The ratio that it acts on."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it needs of a row."""

    def parameters(self, columns: Columns) -> list[Parameter]:
        """Internal parameters with bounds and starts scaled to the data."""

    def effect(self, theta: np.ndarray, columns: Columns, at: Reference) -> "Terms":
        """g, (n,), and its gradient, (n, p), at internal parameters theta (p,)."""

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, float]:
        """Parameters of the equation."""


Terms = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Chinchilla:
    """L = E + A / N^alpha + B / D^beta.

    N is non-embedding parameters and D training tokens; E, A and B are in nats per token. Fitted
    in ln E, ln(A/N0^alpha), alpha, ln(B/D0^beta), beta at the table's geometric means N0 and D0:
    so the scales do not trade against the exponents. Source: arXiv 2203.15556, equation 2.
    """

    columns: tuple[str, ...] = (N, D)

    def __mul__(self, factor: Factor) -> "Law":
        return Law(self, (factor,))

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Scales are started between a hundredth and all of the lowest loss."""
        lowest = float(np.log(loss.min()))
        scale = (lowest - 20.0, lowest + 3.0)
        exponent = (0.01, 3.0)
        return [
            Parameter(name="E", bounds=(lowest - 20.0, lowest), starts=(lowest - 2.5, lowest)),
            Parameter(name="A", bounds=scale, starts=(lowest - 4.0, lowest)),
            Parameter(name="alpha", bounds=exponent, starts=(0.1, 1.0)),
            Parameter(name="B", bounds=scale, starts=(lowest - 4.0, lowest)),
            Parameter(name="beta", bounds=exponent, starts=(0.1, 1.0)),
        ]

    def log_loss(self, theta: np.ndarray, columns: Columns, at: Reference) -> Terms:
        """Ln L and its gradient: each part's share of the loss times its inner derivative."""
        e, a, alpha, b, beta = theta
        n, d = np.log(columns[N] / at[N]), np.log(columns[D] / at[D])
        parts = np.exp(np.stack((np.full(n.shape, e), a - alpha * n, b - beta * d)))
        total = parts.sum(axis=0)
        floor, capacity, data = parts / total
        gradient = np.stack((floor, capacity, -n * capacity, data, -d * data), axis=-1)
        return np.log(total), gradient

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, float]:
        """E, A, alpha, B, beta of the equation."""
        e, a, alpha, b, beta = (float(value) for value in theta)
        return {
            "E": float(np.exp(e)),
            "A": float(np.exp(a + alpha * np.log(at[N]))),
            "alpha": alpha,
            "B": float(np.exp(b + beta * np.log(at[D]))),
            "beta": beta,
        }


@dataclass(frozen=True)
class UShape:
    """g(x) = k (ln(x/x*) + x*/x - 1), k >= 0.

    The factor 1 + g is lowest, 1, at the optimum x*. This is ``c0 + c1 ln x + c2/x`` of arXiv
    2510.18245 (equation 3) without its redundant scale, written by optimum and curvature so that
    the optimum has an interval. With ``drift`` the optimum moves with size:
    x* = x0 (N/N0)^gamma, N0 being the table's geometric mean. With ``steady`` a fit holds gamma
    at 0; where the table has two sizes only, intervals vary it, so that what an extrapolation over
    N does not know is not hidden.
    """

    of: str
    drift: bool = False
    steady: bool = False
    reach: float = 1.5  # how far outside the observed range the optimum may lie, in ln x

    @property
    def columns(self) -> tuple[str, ...]:
        """The ratio, and N where the optimum drifts."""
        return (self.of, N) if self.drift else (self.of,)

    def parameters(self, columns: Columns) -> list[Parameter]:
        """The optimum is started inside the observed range of the ratio."""
        low, high = float(np.log(columns[self.of].min())), float(np.log(columns[self.of].max()))
        own = [
            Parameter(name=f"{self.of}_curvature", bounds=(0.0, 10.0), starts=(0.005, 0.3)),
            Parameter(
                name=f"{self.of}_optimum",
                bounds=(low - self.reach, high + self.reach),
                starts=(low, high),
            ),
        ]
        if self.drift:
            name = f"{self.of}_drift"
            own.append(Parameter(name=name, bounds=(-2.0, 2.0), starts=(-0.2, 0.2)))
        return own

    def effect(self, theta: np.ndarray, columns: Columns, at: Reference) -> Terms:
        """G and its gradient by k, ln x0 and, with drift, gamma."""
        size = np.log(columns[N] / at[N]) if self.drift else np.zeros(columns[self.of].shape)
        gamma = theta[2] if self.drift else 0.0
        apart = np.log(columns[self.of]) - theta[1] - gamma * size
        bowl = apart + np.exp(-apart) - 1
        by_optimum = theta[0] * (np.exp(-apart) - 1)
        gradient = [bowl, by_optimum] + ([by_optimum * size] if self.drift else [])
        return theta[0] * bowl, np.stack(gradient, axis=-1)

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, float]:
        """Curvature, optimum and, with drift, its exponent."""
        values = {
            f"{self.of}_curvature": float(theta[0]),
            f"{self.of}_optimum": float(np.exp(theta[1])),
        }
        return values | ({f"{self.of}_drift": float(theta[2])} if self.drift else {})


@dataclass(frozen=True)
class GroupedQuery:
    """g(x) = c ln(x) with x = query heads per key-value head.

    A straight line in ln x: multi-head attention (x = 1) is the reference, and the sign of c says
    whether sharing keys and values costs loss or, by the query heads that it pays for, gains some.
    """

    of: str = "gqa"

    @property
    def columns(self) -> tuple[str, ...]:
        """The ratio."""
        return (self.of,)

    def parameters(self, columns: Columns) -> list[Parameter]:
        """The slope stays where 1 + g is positive for any ratio that exists."""
        return [Parameter(name=f"{self.of}_slope", bounds=(-0.15, 0.15), starts=(-0.02, 0.02))]

    def effect(self, theta: np.ndarray, columns: Columns, at: Reference) -> Terms:
        """G and its gradient by the slope."""
        logarithm = np.log(columns[self.of])
        return theta[0] * logarithm, logarithm[..., None]

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, float]:
        """The slope."""
        return {f"{self.of}_slope": float(theta[0])}


@dataclass(frozen=True)
class Law:
    """L = base(N, D) · Π (1 + g_i(x_i)).

    The product form of arXiv 2510.18245 (equation 3): a shape multiplies the loss of the best
    shape of its size.
    """

    base: Base = field(default_factory=Chinchilla)
    factors: tuple[Factor, ...] = ()

    def __mul__(self, factor: Factor) -> "Law":
        return Law(self.base, (*self.factors, factor))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a prediction needs."""
        names = [*self.base.columns, *(name for factor in self.factors for name in factor.columns)]
        return tuple(dict.fromkeys(names))

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Internal parameters, base first, then the factors in their order."""
        parameters = self.base.parameters(columns, loss)
        for factor in self.factors:
            parameters += factor.parameters(columns)
        return parameters

    def log_loss(self, theta: np.ndarray, columns: Columns, at: Reference) -> Terms:
        """Ln of the predicted loss, (n,), and its gradient, (n, p)."""
        base, *own = self.split(theta)
        value, gradient = self.base.log_loss(base, columns, at)
        gradients = [gradient]
        for factor, part in zip(self.factors, own, strict=True):
            effect, by = factor.effect(part, columns, at)
            value = value + np.log1p(effect)
            gradients.append(by / (1 + effect)[..., None])
        return value, np.concatenate(gradients, axis=-1)

    def predict(self, theta: np.ndarray, columns: Columns, at: Reference) -> np.ndarray:
        """Predicted loss, (n,), in nats per token."""
        return np.exp(self.log_loss(theta, columns, at)[0])

    def public(self, theta: np.ndarray, at: Reference) -> dict[str, float]:
        """Parameters of the equation by name."""
        base, *own = self.split(theta)
        values = self.base.public(base, at)
        for factor, part in zip(self.factors, own, strict=True):
            values |= factor.public(part, at)
        return values

    def split(self, theta: np.ndarray) -> list[np.ndarray]:
        """Cut internal parameters into those of the base and of each factor."""
        return np.split(theta, np.cumsum(self.sizes())[:-1])

    def sizes(self) -> list[int]:
        """How many internal parameters the base and each factor have."""
        probe = {name: np.array([1.0, 2.0]) for name in self.columns}
        base = len(self.base.parameters(probe, probe[N]))
        return [base, *(len(factor.parameters(probe)) for factor in self.factors)]


def chinchilla() -> Law:
    """Loss by size and tokens only."""
    return Law(Chinchilla())


def conditional() -> Law:
    """Chinchilla times hidden size, MLP-to-attention ratio and GQA (arXiv 2510.18245 with GQA).

    The optima do not move with N; the intervals of a fit to two sizes allow that they do.
    """
    hidden = UShape("hidden_over_sqrt_n", drift=True, steady=True)
    mlp = UShape("mlp_to_attention", drift=True, steady=True)
    return chinchilla() * hidden * mlp * GroupedQuery()


def conditional_depth() -> Law:
    """``conditional`` times a U-shape in the number of layers whose optimum drifts with N."""
    return conditional() * UShape("num_hidden_layers", drift=True)


LAWS = {
    "chinchilla": chinchilla,
    "conditional": conditional,
    "conditional+depth": conditional_depth,
}


def law_named(name: str) -> Law:
    """Find a law by its name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in LAWS:
        raise InputError(f"`--law` must be one of {', '.join(LAWS)}, but got {name!r}")
    return LAWS[name]()


def columns_of(
    frame: "Mapping[str, Any] | pd.DataFrame", names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The named columns of a table as float arrays."""
    return {name: np.asarray(frame[name], dtype=float) for name in names}
