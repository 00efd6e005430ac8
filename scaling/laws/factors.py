"""Effects of shape on the loss: factors that multiply a base, or terms added to it in nats."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.bases import EXPONENT_STARTS, power_term, saturated_log
from shapelaw.scaling.laws.notation import letter
from shapelaw.scaling.laws.part import Columns, Factor, Parameter, Reference
from shapelaw.scaling.laws.terms import ABSENT, BOWL, LINEAR, Term
from shapelaw.scaling.runs.columns import D, N


@dataclass(frozen=True, repr=False)
class UShape(Factor):
    """g(x) = k (ln(x/x*) + x*/x - 1), k >= 0.

    The minimum of g is 0, at the optimum x*. The factor is ``c0 + c1 ln x + c2/x`` of arXiv
    2510.18245 (equation 3) without its redundant scale, parametrised by optimum and curvature so
    that the optimum has a confidence interval. With ``drift`` the optimum moves with size,
    x* = x0 (N/N0)^gamma; with ``bend`` the curvature depends on tokens per parameter, k (D/N)^eta
    relative to D0/N0; N0 and D0 are the geometric means of the run table. Where a run table cannot
    identify a drift, the fit holds the drift at 0 and confidence intervals vary it.
    """

    of: str = "mlp_to_attention"
    drift: bool = False
    bend: bool = False
    reach: float = 1.5  # how far outside the observed range the optimum may lie, in ln x

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the ratio, of N for a drift, and of N and D for a bend."""
        return (self.of, *((N,) if self.drift or self.bend else ()), *((D,) if self.bend else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the curvature, the optimum, the drift and the bend."""
        kinds = ["curvature", "optimum"] + ["drift"] * self.drift + ["bend"] * self.bend
        return tuple(f"{self.of}_{kind}" for kind in kinds)

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """Name of the optimum, which is fitted as its logarithm."""
        return (f"{self.of}_optimum",)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Bound and start the parameters; the optimum starts inside the observed range."""
        low, high = float(np.log(columns[self.of].min())), float(np.log(columns[self.of].max()))
        boxes = {
            "curvature": ((0.0, 10.0), (0.005, 0.3)),
            "optimum": ((low - self.reach, high + self.reach), (low, high)),
            "drift": ((-2.0, 2.0), (-0.2, 0.2)),
            "bend": ((-2.0, 2.0), (-0.2, 0.2)),
        }
        kinds = [name.removeprefix(f"{self.of}_") for name in self.names]
        return [
            Parameter(name=name, bounds=boxes[kind][0], starts=boxes[kind][1])
            for name, kind in zip(self.names, kinds, strict=True)
        ]

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the U-shaped term."""
        x = np.log(columns[self.of])
        size = np.log(columns[N] / at[N]) if self.drift or self.bend else np.zeros_like(x)
        tokens = np.log(columns[D] / at[D]) - size if self.bend else np.zeros_like(x)
        kinds = ("curvature", "optimum", "drift", "bend")
        places = tuple(index.get(f"{self.of}_{kind}", ABSENT) for kind in kinds)
        features = np.stack([x, size, tokens])
        return [Term(kind=BOWL, index=places, features=features, constant=np.zeros(len(x)))]

    def neutral(self, columns: Columns) -> dict[str, float]:
        """Return zero curvature, with the optimum at the geometric mean of the ratio."""
        values = dict.fromkeys(self.names, 0.0)
        values[f"{self.of}_optimum"] = float(np.log(columns[self.of]).mean())
        return values

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format the U-shape with its optimum and curvature."""
        x = letter(self.of, latex=latex)
        k, best = shown[f"{self.of}_curvature"], shown[f"{self.of}_optimum"]
        if self.drift:
            gamma = shown[f"{self.of}_drift"]
            best = rf"{best} (N/N_0)^{{{gamma}}}" if latex else f"{best} (N/N0)^{gamma}"
        if self.bend:
            eta = shown[f"{self.of}_bend"]
            ratio = r"\frac{D N_0}{D_0 N}" if latex else "D N0/(D0 N)"
            k = rf"{k} \left({ratio}\right)^{{{eta}}}" if latex else f"{k} ({ratio})^{eta}"
        if latex:
            return rf"{k} \left(\ln\frac{{{x}}}{{{best}}} + \frac{{{best}}}{{{x}}} - 1\right)"
        best = f"({best})" if self.drift else best
        return f"{k} (ln({x}/{best}) + {best}/{x} - 1)"


@dataclass(frozen=True, repr=False)
class GroupedQuery(Factor):
    """g(q) = c ln(q), or c (1 - 1/q), or c ln(q) + c2 ln(q)^2; q = query heads per key-value head.

    Multi-head attention (q = 1) is the reference. A positive c means that shared keys and values
    raise the loss; a negative c means that they lower it, because the saved parameters pay for
    more query heads. ``form`` is ``log``, ``share`` (proportional to the key-value parameters
    saved) or ``curved``, in the order of the equation; compare the forms on held-out runs. No
    published law has the term: arXiv 2510.18245 leaves GQA out.
    """

    of: str = "gqa"
    form: str = "log"

    def __post_init__(self) -> None:
        """Reject an unknown form."""
        if self.form not in ("log", "share", "curved"):
            raise InputError(f"`form` must be log, share or curved, but got {self.form!r}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the ratio."""
        return (self.of,)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slope and, for the curved form, of the coefficient of the square."""
        return (f"{self.of}_slope", *((f"{self.of}_square",) if self.form == "curved" else ()))

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds within which 1 + g is positive for any ratio in use."""
        boxes = [((-0.15, 0.15), (-0.02, 0.02)), ((-0.05, 0.05), (-0.01, 0.01))]
        return [
            Parameter(name=name, bounds=bounds, starts=starts)
            for name, (bounds, starts) in zip(self.names, boxes, strict=False)
        ]

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build a term that is linear in the slope and the square."""
        logs = np.log(columns[self.of])
        features = {
            "log": [logs],
            "share": [1 - np.exp(-logs)],
            "curved": [logs, logs**2],
        }[self.form]
        places = tuple(index[name] for name in self.names)
        zero = np.zeros(len(logs))
        return [Term(kind=LINEAR, index=places, features=np.stack(features), constant=zero)]

    def neutral(self, columns: Columns) -> dict[str, float]:
        """Return zero for every coefficient."""
        return dict.fromkeys(self.names, 0.0)

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format the slope times the function of q."""
        q, c = letter(self.of, latex=latex), shown[f"{self.of}_slope"]
        if self.form == "share":
            return rf"{c} \left(1 - \frac{{1}}{{{q}}}\right)" if latex else f"{c} (1 - 1/{q})"
        ln = rf"\ln {q}" if latex else f"ln({q})"
        if self.form == "log":
            return f"{c} {ln}"
        square = shown[f"{self.of}_square"]
        return rf"{c} {ln} + {square} \ln^2 {q}" if latex else f"{c} {ln} + {square} {ln}^2"


@dataclass(frozen=True, repr=False)
class LogRatio(Factor):
    """g(s) = c ln(s).

    The ratio s is the sparsity of a model, its total over its active parameters (or, by ``of``, of
    its experts), or the number of experts that a token passes. A dense model has s = 1 and no
    effect. A negative c means that more experts lower the loss at equal active N; with a law that
    counts total N, c also holds what the parameters that are not used cost. Total and active
    parameters as variables of their own are those of arXiv 2603.21862. With ``start`` the effect
    saturates where 1/s comes to ``start``, as the transformation of arXiv 2507.17702 (equation 10)
    of the share of active experts does: s is then (1 + start) / (1/s + start).
    """

    of: str = "sparsity"
    start: float = 0.0

    def __post_init__(self) -> None:
        """Reject a share of active parameters outside of 0 to 1."""
        if not (isinstance(self.start, int | float) and 0 <= self.start < 1):
            raise InputError(f"`0 <= start < 1` must hold, but got {self.start!r}; give a share")

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the ratio."""
        return (self.of,)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of the coefficient."""
        return (f"{self.of}_effect",)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set bounds within which 1 + g is positive for any ratio in use."""
        return [Parameter(name=self.names[0], bounds=(-0.15, 0.15), starts=(-0.05, 0.02))]

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build a term that is linear in the coefficient."""
        logs = saturated_log(columns[self.of], self.start)
        place = (index[self.names[0]],)
        return [Term(kind=LINEAR, index=place, features=logs[None], constant=np.zeros(len(logs)))]

    def neutral(self, columns: Columns) -> dict[str, float]:
        """Return a coefficient of zero."""
        return dict.fromkeys(self.names, 0.0)

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format the coefficient times ln(s)."""
        s, c = letter(self.of, latex=latex), shown[self.names[0]]
        if self.start:
            s = f"(1 + {self.start:g})/(1/{s} + {self.start:g})"
        return rf"{c} \ln({s})" if latex else f"{c} ln({s})"


@dataclass(frozen=True, repr=False)
class AspectRatio(Factor):
    """g(R) = epsilon R^gamma, R = hidden size / layers.

    With a positive exponent gamma the loss rises with the aspect ratio: wide, shallow models are
    worse. Source: arXiv 2501.18107, where the exponent is tied to those of N and D.
    """

    of: str = "aspect_ratio"

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the ratio."""
        return (self.of,)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scale and the exponent."""
        return (f"{self.of}_epsilon", f"{self.of}_exponent")

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """Name of the scale, which is fitted as its logarithm."""
        return (f"{self.of}_epsilon",)

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Bound the scale and the exponent."""
        scale, exponent = self.names
        return [
            Parameter(name=scale, bounds=(-25.0, 2.0), starts=(-8.0, -1.0)),
            Parameter(name=exponent, bounds=(-3.0, 3.0), starts=EXPONENT_STARTS),
        ]

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build the power of the ratio."""
        scale, exponent = self.names
        return [power_term(scale, exponent, -np.log(columns[self.of]), index)]

    def neutral(self, columns: Columns) -> dict[str, float]:
        """Return a negligible scale; the exponent may be tied and keeps its value."""
        return {f"{self.of}_epsilon": -50.0}

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format epsilon R^gamma."""
        scale, exponent = (shown[name] for name in self.names)
        x = letter(self.of, latex=latex)
        return f"{scale} {x}^{{{exponent}}}" if latex else f"{scale} {x}^{exponent}"


@dataclass(frozen=True, repr=False)
class Bracket(Factor):
    """g(x) = c0 + c1 ln x + c2/x.

    The factor is the bracket of arXiv 2510.18245 (equation 3) in the coefficients of the paper, for
    reproduction. As a factor it equals the bracket, not a deviation from 1. Two brackets share one
    redundant scale: pin the c0 of one of them. With ``times``, x is the product of two columns (the
    joint form of the paper). The optimum is x* = c2/c1.
    """

    of: str = "hidden_over_sqrt_n"
    times: str = ""
    letter: str = "a"
    intercept: bool = True
    offset = 0.0
    optional = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the ratio, or the two columns whose product is x."""
        return (self.of, *((self.times,) if self.times else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients: a0, a1 and a2, or a1 and a2 without an intercept."""
        return tuple(f"{self.letter}{i}" for i in range(0 if self.intercept else 1, 3))

    def parameters(self, columns: Columns, loss: np.ndarray) -> list[Parameter]:
        """Set wide bounds; the factor is linear, so the fit does not depend on the starts."""
        starts = {"0": (0.5, 1.5), "1": (0.0, 0.2), "2": (0.0, 0.05)}
        return [
            Parameter(name=name, bounds=(-100.0, 100.0), starts=starts[name[-1]])
            for name in self.names
        ]

    def terms(self, columns: Columns, at: Reference, index: Mapping[str, int]) -> list[Term]:
        """Build a term that is linear in the coefficients."""
        logs = np.sum([np.log(columns[name]) for name in self.columns], axis=0)
        features = [np.ones_like(logs), logs, np.exp(-logs)][0 if self.intercept else 1 :]
        places = tuple(index[name] for name in self.names)
        zero = np.zeros(len(features[0]))
        return [Term(kind=LINEAR, index=places, features=np.stack(features), constant=zero)]

    def neutral(self, columns: Columns) -> dict[str, float]:
        """Return coefficients that give 1 with an intercept and 0 without one."""
        return {name: 1.0 if name.endswith("0") else 0.0 for name in self.names}

    def equation(self, shown: Mapping[str, str], *, latex: bool) -> str:
        """Format c0 + c1 ln x + c2/x."""
        x = " ".join(letter(name, latex=latex) for name in self.columns)
        ln = rf"\ln({x})" if latex else f"ln({x})"
        c1, c2 = shown[f"{self.letter}1"], shown[f"{self.letter}2"]
        last = rf"\frac{{{c2}}}{{{x}}}" if latex else f"{c2}/({x})"
        variable = f"{c1} {ln} + {last}"
        return f"{shown[self.letter + '0']} + {variable}" if self.intercept else variable
