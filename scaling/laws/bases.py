"""Bases of scaling laws: the loss of the best shape at N parameters and D tokens, in nats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.law import Base
from shapelaw.scaling.laws.notation import letter
from shapelaw.scaling.laws.part import Columns, Parameter, Reference
from shapelaw.scaling.laws.terms import EXPONENTIAL, JOINED_POWERS, Term
from shapelaw.scaling.runs.columns import D, N

LOWEST_LOG_SCALE = -20.0  # lower bound of ln(scale / lowest loss): such a term contributes nothing
EXPONENT_BOUNDS, EXPONENT_STARTS = (0.01, 3.0), (0.1, 1.0)
# Couplings of size and tokens, with their bounds and starts; at 0 a base is that of Chinchilla.
COUPLINGS = {
    "beta_n": ((-0.3, 0.3), (-0.05, 0.05)),
    "kappa": ((float(np.log(0.1)), float(np.log(3.0))), (float(np.log(0.3)), float(np.log(1.2)))),
}
# Exponents of sparsity, with their bounds and starts; at 0 it has no effect.
LEVERAGES = {
    "leverage": ((-1.0, 1.0), (0.0, 0.3)),
    "leverage_compute": ((-0.3, 0.3), (-0.03, 0.03)),
    "leverage_granularity": ((-0.5, 0.5), (-0.05, 0.05)),
    "leverage_curve": ((-0.3, 0.3), (-0.03, 0.03)),
}


def _constant(name: str, index: Mapping[str, int], rows: int) -> Term:
    return Term(
        kind=EXPONENTIAL,
        index=(index[name],),
        features=np.ones((1, rows)),
        constant=np.zeros(rows),
    )


def power_term(scale: str, exponent: str, logs: np.ndarray, index: Mapping[str, int]) -> Term:
    """Build the term scale · exp(-exponent · logs).

    Parameters
    ----------
    scale, exponent
        Names of the two parameters; ln(scale) and the exponent are fitted.
    logs
        ln of the centred variable for each row, (n,).
    index
        Position of each parameter in the parameter vector θ.

    Returns
    -------
    An exponential term on the n rows.
    """
    return Term(
        kind=EXPONENTIAL,
        index=(index[scale], index[exponent]),
        features=np.stack([np.ones(len(logs)), -logs]),
        constant=np.zeros(len(logs)),
    )


def saturated_log(ratio: np.ndarray, start: float) -> np.ndarray:
    """Return ln of a sparsity that saturates: 0 for dense models, at most ln(1 + 1/start).

    Parameters
    ----------
    ratio
        All over active experts or parameters, at least 1, (n,).
    start
        Share of active ones towards which a further reduction has no effect; 0: none.
    """
    return np.asarray(np.log((1 + start) / (1 / ratio + start)))


def _fraction(scale: str, column: str, exponent: str, *, latex: bool) -> str:
    x = letter(column, latex=latex)
    return rf"\frac{{{scale}}}{{{x}^{{{exponent}}}}}" if latex else f"{scale}/{x}^{exponent}"


def _floor_and_powers(
    base: Base,
    columns: Columns,
    loss: np.ndarray,
) -> list[Parameter]:
    """Bound and start the parameters; scales start no higher than the lowest loss."""
    lowest = float(np.log(loss.min()))
    parameters = []
    for name in base.names:
        if name == "E":
            bounds, starts = (lowest + LOWEST_LOG_SCALE, lowest), (lowest - 2.5, lowest)
        elif name in base.scales:
            bounds, starts = (lowest + LOWEST_LOG_SCALE, lowest + 3.0), (lowest - 4.0, lowest)
        elif name in COUPLINGS | LEVERAGES:
            bounds, starts = (COUPLINGS | LEVERAGES)[name]
        else:
            bounds, starts = EXPONENT_BOUNDS, EXPONENT_STARTS
        parameters.append(Parameter(name=name, bounds=bounds, starts=starts))
    return parameters


@dataclass(frozen=True, repr=False)
class Chinchilla(Base):
    """L = E + A / N^alpha + B / D^beta.

    N is the number of parameters and D the number of training tokens; E, A and B are in nats per
    token. The fit works with ln E, ln(A/N0^alpha), alpha, ln(B/D0^beta) and beta, where N0 and D0
    are the geometric means of the run table. This centring keeps the scales from being correlated
    with the exponents. Source: arXiv 2203.15556, equation 2.
    """

    columns = (N, D)
    names = ("E", "A", "alpha", "B", "beta")
    logarithmic = ("E", "A", "B")
    scales = {"A": ("alpha", N), "B": ("beta", D)}  # noqa: RUF012

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds and starts relative to the lowest loss."""
        return _floor_and_powers(self, columns, loss)

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the irreducible loss, the size term and the data term."""
        n, d = np.log(columns[N] / at[N]), np.log(columns[D] / at[D])
        floor = _constant("E", index, len(n))
        return [floor, power_term("A", "alpha", n, index), power_term("B", "beta", d, index)]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format E + A/N^alpha + B/D^beta."""
        size = _fraction(shown["A"], N, shown["alpha"], latex=latex)
        return f"{shown['E']} + {size} + " + _fraction(shown["B"], D, shown["beta"], latex=latex)


@dataclass(frozen=True, repr=False)
class VaryingExponent(Base):
    """L = E + A / N^alpha + (B / D^beta) (D0/D)^(beta_n ln(N/N0)).

    The exponent of D is beta + beta_n ln(N/N0), so it changes with size; beta_n = 0 gives
    ``Chinchilla``. Parameters and units are those of ``Chinchilla``. N0 and D0 are the geometric
    means of the run table: all sizes have the same data term at D0. Source: arXiv 2506.10972
    (Farseer), whose equation 3 is exp(a3 N^c3 + b3) + exp(a2 N^c2 + b2) / D^exp(a1 N^c1 + b1), with
    nine parameters; this base keeps the exponent, to first order in ln N. Far from N0 the exponent
    changes sign, where the law does not hold: the search for a compute-optimal size leaves such
    sizes out. A run table that cannot identify beta_n holds it at 0.
    """

    columns = (N, D)
    names = ("E", "A", "alpha", "B", "beta", "beta_n")
    logarithmic = ("E", "A", "B")
    scales = {"A": ("alpha", N), "B": ("beta", D)}  # noqa: RUF012

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds and starts relative to the lowest loss."""
        return _floor_and_powers(self, columns, loss)

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the terms of Chinchilla, with ln N · ln D as the third feature of the data term."""
        n, d = np.log(columns[N] / at[N]), np.log(columns[D] / at[D])
        data = Term(
            kind=EXPONENTIAL,
            index=(index["B"], index["beta"], index["beta_n"]),
            features=np.stack([np.ones(len(d)), -d, -n * d]),
            constant=np.zeros(len(d)),
        )
        return [_constant("E", index, len(n)), power_term("A", "alpha", n, index), data]

    def valid_sizes(
        self, theta: np.ndarray, sizes: np.ndarray, at: Reference, index: Mapping[str, int]
    ) -> np.ndarray:
        """Mark the sizes at which the loss falls with tokens: the exponent of D is positive."""
        exponent = theta[index["beta"]] + theta[index["beta_n"]] * np.log(sizes / at[N])
        return np.asarray(exponent > 0)

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format E + A/N^alpha + B/D^beta (D0/D)^(beta_n ln(N/N0))."""
        size = _fraction(shown["A"], N, shown["alpha"], latex=latex)
        data = _fraction(shown["B"], D, shown["beta"], latex=latex)
        factor = f"(D0/D)^({shown['beta_n']} ln(N/N0))"
        if latex:
            factor = rf"\left(\frac{{D_0}}{{D}}\right)^{{{shown['beta_n']} \ln\frac{{N}}{{N_0}}}}"
        return f"{shown['E']} + {size} + {data} {factor}"


@dataclass(frozen=True, repr=False)
class OuterExponent(Base):
    """L = E + ((A / N^alpha)^(1/kappa) + (B / D^beta)^(1/kappa))^kappa.

    The outer exponent kappa couples size and tokens: 1 gives ``Chinchilla``, and towards 0 only the
    larger of the two terms counts. The law is E + (A'/N^alpha' + B'/D^beta')^kappa of arXiv
    2608.07222, whose fits have kappa from 0.31 to 0.45, with A = A'^kappa and alpha = kappa alpha',
    and likewise B and beta. A/N^alpha is then the reducible loss in nats at unlimited tokens, and
    parameters and units stay comparable with those of ``Chinchilla``. The compute-optimal size has
    a closed form; its exponent is beta/(alpha + beta), as for ``Chinchilla``. A run table that
    cannot identify kappa holds it at 1.
    """

    columns = (N, D)
    names = ("E", "A", "alpha", "B", "beta", "kappa")
    logarithmic = ("E", "A", "B", "kappa")
    scales = {"A": ("alpha", N), "B": ("beta", D)}  # noqa: RUF012

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds and starts relative to the lowest loss."""
        return _floor_and_powers(self, columns, loss)

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the irreducible loss and the joined powers of size and tokens."""
        n, d = np.log(columns[N] / at[N]), np.log(columns[D] / at[D])
        joined = Term(
            kind=JOINED_POWERS,
            index=tuple(index[name] for name in self.names[1:]),
            features=np.stack([np.ones(len(n)), -n, np.ones(len(d)), -d]),
            constant=np.zeros(len(n)),
        )
        return [_constant("E", index, len(n)), joined]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format E + ((A/N^alpha)^(1/kappa) + (B/D^beta)^(1/kappa))^kappa."""
        size = _fraction(shown["A"], N, shown["alpha"], latex=latex)
        data = _fraction(shown["B"], D, shown["beta"], latex=latex)
        kappa = shown["kappa"]
        if latex:
            size, data = (rf"\left({power}\right)^{{1/{kappa}}}" for power in (size, data))
            return rf"{shown['E']} + \left({size} + {data}\right)^{{{kappa}}}"
        return f"{shown['E']} + (({size})^(1/{kappa}) + ({data})^(1/{kappa}))^{kappa}"


@dataclass(frozen=True, repr=False)
class EfficiencyLeverage(Base):
    """L = E + A / N^alpha / S^(a + d ln(C/C0) + b ln(g/g0) + c ln(g/g0)^2) + B / D^beta.

    S is the sparsity: experts over those that one token passes; g is the granularity, and
    C/C0 = N D / (N0 D0) the compute. A dense model has S = 1 and the loss of ``Chinchilla``. A
    sparse one has the loss of a dense model of EL times the size, EL = S^((a + ...)/alpha), at the
    same tokens: the efficiency leverage of arXiv 2507.17702 (equation 13), a ratio of computes at
    equal loss. Its coefficients are those here over -alpha, its logarithms those of C and G
    without centring. N should count active parameters; another count changes a by about alpha.
    With ``start`` the gain ends where the share of active experts comes to ``start``: S is then
    (1 + start) / (1/S + start), the saturation of arXiv 2202.01169 without its upper end. N0, D0
    and g0 are the geometric means of the run table. The granularity of best loss is
    g0 exp(-b/(2c)) where c is negative. A run table that cannot identify an exponent holds it at 0.
    """

    of: str = "expert_sparsity"
    granularity: str = "granularity"
    start: float = 0.0
    names: ClassVar[tuple[str, ...]] = ("E", "A", "alpha", *LEVERAGES, "B", "beta")
    logarithmic: ClassVar[tuple[str, ...]] = ("E", "A", "B")
    scales: ClassVar[dict[str, tuple[str, str]]] = {"A": ("alpha", N), "B": ("beta", D)}

    def __post_init__(self) -> None:
        """Reject a share of active experts outside of 0 to 1."""
        if not (isinstance(self.start, int | float) and 0 <= self.start < 1):
            raise InputError(f"`0 <= start < 1` must hold, but got {self.start!r}; give a share")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of N, D, the sparsity and the granularity."""
        return (N, D, self.of, self.granularity)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds and starts relative to the lowest loss."""
        return _floor_and_powers(self, columns, loss)

    def slopes(self, columns: Columns, at: Reference) -> dict[str, np.ndarray]:
        """Return ln S, and its products with the logarithms of C, g and the square of g."""
        sparsity = saturated_log(columns[self.of], self.start)
        compute = np.log(columns[N] / at[N]) + np.log(columns[D] / at[D])
        fine = np.log(columns[self.granularity] / at[self.granularity])
        features = (sparsity, sparsity * compute, sparsity * fine, sparsity * fine**2)
        return dict(zip(LEVERAGES, features, strict=True))

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the terms of Chinchilla, with the exponents of sparsity in the size term."""
        n, d = np.log(columns[N] / at[N]), np.log(columns[D] / at[D])
        slopes = self.slopes(columns, at)
        size = Term(
            kind=EXPONENTIAL,
            index=tuple(index[name] for name in ("A", "alpha", *slopes)),
            features=np.stack([np.ones(len(n)), -n, *(-slope for slope in slopes.values())]),
            constant=np.zeros(len(n)),
        )
        return [_constant("E", index, len(n)), size, power_term("B", "beta", d, index)]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format E + A/N^alpha / S^(...) + B/D^beta."""
        s, g = (letter(name, latex=latex) for name in (self.of, self.granularity))
        compute, fine = "ln(N D/(N0 D0))", f"ln({g}/{g}0)"
        if latex:
            compute, fine = r"\ln\frac{N D}{N_0 D_0}", rf"\ln\frac{{{g}}}{{{g}_0}}"
        if self.start:
            s = f"((1 + {self.start:g})/(1/{s} + {self.start:g}))"
        by = [shown[name] for name in LEVERAGES]
        square = rf"\left({fine}\right)^2" if latex else f"{fine}^2"
        exponent = f"{by[0]} + {by[1]} {compute} + {by[2]} {fine} + {by[3]} {square}"
        size = _fraction(shown["A"], N, shown["alpha"], latex=latex)
        size += rf" \, {s}^{{-\left({exponent}\right)}}" if latex else f"/{s}^({exponent})"
        return f"{shown['E']} + {size} + " + _fraction(shown["B"], D, shown["beta"], latex=latex)


@dataclass(frozen=True, repr=False)
class PowerLaw(Base):
    """L = E + A / x^alpha.

    The variable x is any column, by default the number of parameters. Use this law for run tables
    where tokens are proportional to size, or where all runs have one budget. E and A are in nats
    per token. Source: the form of arXiv 2010.14701, equation 1.1.
    """

    of: str = N
    names: ClassVar[tuple[str, ...]] = ("E", "A", "alpha")
    logarithmic: ClassVar[tuple[str, ...]] = ("E", "A")

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the variable x."""
        return (self.of,)

    @property
    def scales(self) -> Mapping[str, tuple[str, str]]:
        """Scale A with its exponent alpha and its column."""
        return {"A": ("alpha", self.of)}

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds and starts relative to the lowest loss."""
        return _floor_and_powers(self, columns, loss)

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the irreducible loss and the power of x."""
        logs = np.log(columns[self.of] / at[self.of])
        return [_constant("E", index, len(logs)), power_term("A", "alpha", logs, index)]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format E + A/x^alpha."""
        return f"{shown['E']} + " + _fraction(shown["A"], self.of, shown["alpha"], latex=latex)


@dataclass(frozen=True, repr=False)
class Kaplan(PowerLaw):
    """L = A / x^alpha.

    The law is a straight line in log-log coordinates, without an irreducible loss: (x_c/x)^alpha
    with A = x_c^alpha, where A is in nats per token. A far extrapolation falls to zero, below the
    entropy of any real text: compare this law with ``PowerLaw``. Source: arXiv 2001.08361,
    equation 1.1 (with x = N).
    """

    names = ("A", "alpha")
    logarithmic = ("A",)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Bound the scale, which is the loss at the reference, by the observed losses."""
        low, high = float(np.log(loss.min())), float(np.log(loss.max()))
        scale = Parameter(name="A", bounds=(low - 3.0, high + 3.0), starts=(low, high))
        return [scale, Parameter(name="alpha", bounds=(0.0, 3.0), starts=(0.01, 0.3))]

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the power of x."""
        return [power_term("A", "alpha", np.log(columns[self.of] / at[self.of]), index)]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format A/x^alpha."""
        return _fraction(shown["A"], self.of, shown["alpha"], latex=latex)


@dataclass(frozen=True, repr=False)
class WidthDepth(Base):
    """L = E + A / w^alpha + B / l^beta + C / N^gamma + G / D^zeta.

    w is the hidden size, l the number of layers, N the number of parameters and D the number of
    tokens; E, A, B, C and G are in nats per token. Source: the width-depth law of the Gemstones
    models, arXiv 2502.06857.
    """

    columns = ("hidden_size", "num_hidden_layers", N, D)
    names = ("E", "A", "alpha", "B", "beta", "C", "gamma", "G", "zeta")
    logarithmic = ("E", "A", "B", "C", "G")
    scales = {  # noqa: RUF012
        "A": ("alpha", "hidden_size"),
        "B": ("beta", "num_hidden_layers"),
        "C": ("gamma", N),
        "G": ("zeta", D),
    }

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds and starts relative to the lowest loss."""
        return _floor_and_powers(self, columns, loss)

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the irreducible loss and the powers of width, depth, size and tokens."""
        powers = [
            power_term(scale, exponent, np.log(columns[column] / at[column]), index)
            for scale, (exponent, column) in self.scales.items()
        ]
        return [_constant("E", index, len(columns[N])), *powers]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format E and the four powers."""
        powers = [
            _fraction(shown[scale], column, shown[exponent], latex=latex)
            for scale, (exponent, column) in self.scales.items()
        ]
        return " + ".join([shown["E"], *powers])


@dataclass(frozen=True, repr=False)
class BestLoss(Base):
    """L = L_opt, the best loss over the shapes trained at the same N and D.

    The best loss is given in a column, in nats per token;
    :func:`shapelaw.scaling.runs.best_loss.with_best_loss` computes that column from a run table.
    The base has no parameters. arXiv 2510.18245 multiplies its brackets with this base below 1B
    parameters.
    """

    of: str = "best_loss"
    names = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the best loss."""
        return (self.of,)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Return an empty list: the base has no parameters."""
        return []

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build a constant term from the column."""
        logs = np.log(columns[self.of])
        return [Term(kind=EXPONENTIAL, index=(), features=np.empty((0, len(logs))), constant=logs)]

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format L_opt."""
        return letter(self.of, latex=latex)
