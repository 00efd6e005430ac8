"""The normal form of every law: a product of sums of terms, with first and second derivatives.

    ln L(θ) = Σ_groups ln( offset + Σ_terms t(θ) )

Three kinds of term make up every law: exponentials of something linear in θ (power laws, with
centred logarithms), terms linear in θ, and bowls (U-shapes). All are closed form. Letters here:
S parameter vectors at once, n rows of a table, p parameters, m parameters of one term.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EXPONENTIAL, LINEAR, BOWL = 0, 1, 2
ABSENT = -1  # a parameter that a bowl does without
# Of ln L and ln of the observed loss, (S, n): cost of each row, its derivative by ln L, and the
# curvature that goes with the outer product of gradients.
Rows = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
Moments = tuple[np.ndarray, np.ndarray, np.ndarray]


def bowl(
    x: np.ndarray, s: np.ndarray, r: np.ndarray, x0: np.ndarray, gamma: np.ndarray, eta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q h, q h' and q h'' of h(u) = u + e^-u - 1 at u = x - x0 - γs, with q = e^(ηr)."""
    u = x - x0 - gamma * s
    scale = np.exp(eta * r)
    falling = np.expm1(-u)
    return scale * (u + falling), -scale * falling, scale * (1.0 + falling)


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """One term of a sum.

    ``kind`` EXPONENTIAL: exp(c + Σ z_j θ_j); LINEAR: c + Σ z_j θ_j; BOWL: k q h as in :func:`bowl`
    with θ = (k, x0, γ, η). ``index`` are the positions of its parameters in θ, ``features`` its z,
    (m, n), or (x, s, r), (3, n), of a bowl, and ``constant`` its c, (n,).
    """

    kind: int
    index: tuple[int, ...]
    features: np.ndarray
    constant: np.ndarray

    def take(self, rows: np.ndarray) -> "Term":
        """The same term on some rows."""
        return Term(
            kind=self.kind,
            index=self.index,
            features=np.ascontiguousarray(self.features[:, rows]),
            constant=self.constant[rows],
        )

    def value(self, theta: np.ndarray) -> np.ndarray:
        """T at parameters (S, p): (S, n)."""
        if self.kind == BOWL:
            return np.asarray(self._own(theta, 0) * self._bowl(theta)[0])
        inner = theta[:, list(self.index)] @ self.features + self.constant
        return np.asarray(np.exp(inner) if self.kind == EXPONENTIAL else inner)

    def first(
        self, theta: np.ndarray, value: np.ndarray, inverse: np.ndarray, out: np.ndarray
    ) -> None:
        """Write ∂t times inverse (S, n) into out, (S, m, n)."""
        if self.kind == EXPONENTIAL:
            np.multiply((value * inverse)[:, None, :], self.features, out=out)
        elif self.kind == LINEAR:
            np.multiply(inverse[:, None, :], self.features, out=out)
        else:
            depth, slope, _ = (part * inverse for part in self._bowl(theta))
            by_optimum = -self._own(theta, 0) * slope
            _, s, r = self.features
            every = (depth, by_optimum, by_optimum * s, self._own(theta, 0) * depth * r)
            for slot, place in enumerate(self.present):
                out[:, slot] = every[place]

    def second(self, theta: np.ndarray, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Σ over rows of weights (S, n) times ∂²t: (S, m, m)."""
        count = len(self.present)
        if self.kind == LINEAR:
            return np.zeros((len(theta), count, count))
        if self.kind == EXPONENTIAL:
            flat = (weights * value) @ self._products
            return np.asarray(flat.reshape(len(theta), count, count))  # count may be 0
        depth, slope, curve = (weights * part for part in self._bowl(theta))
        k, s, r = self._own(theta, 0), self.features[1], self.features[2]
        pairs = {
            (0, 1): -slope, (0, 2): -slope * s, (0, 3): depth * r,
            (1, 1): k * curve, (1, 2): k * curve * s, (2, 2): k * curve * s * s,
            (1, 3): -k * slope * r, (2, 3): -k * slope * s * r, (3, 3): k * depth * r * r,
        }  # fmt: skip
        out = np.zeros((len(theta), count, count))
        for a, first in enumerate(self.present):
            for b, other in enumerate(self.present):
                if (key := (min(first, other), max(first, other))) in pairs:
                    out[:, a, b] = pairs[key].sum(axis=1)
        return out

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Which of its possible parameters the term has."""
        return tuple(place for place, at in enumerate(self.index) if at != ABSENT)

    @cached_property
    def places(self) -> list[int]:
        """Positions in θ of the parameters that it has, (m,)."""
        return [self.index[place] for place in self.present]

    @cached_property
    def _products(self) -> np.ndarray:
        """z_j z_l of every row, (n, m * m)."""
        outer = self.features[:, None, :] * self.features[None, :, :]
        return np.ascontiguousarray(outer.reshape(-1, outer.shape[-1]).T)

    def _own(self, theta: np.ndarray, place: int) -> np.ndarray:
        at = self.index[place]
        return np.zeros((len(theta), 1)) if at == ABSENT else theta[:, at : at + 1]

    def _bowl(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, s, r = self.features
        return bowl(x, s, r, self._own(theta, 1), self._own(theta, 2), self._own(theta, 3))


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """One factor of the product: offset + Σ terms."""

    offset: float
    terms: tuple[Term, ...]

    @cached_property
    def places(self) -> list[int]:
        """Positions in θ of the parameters of its terms, one after the other."""
        return [at for term in self.terms for at in term.places]


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A law on the rows of one table, ready to be evaluated at many parameters at once."""

    groups: tuple[Group, ...]
    parameters: int
    rows: int

    def take(self, rows: np.ndarray) -> "Program":
        """The same law on some rows of the table (positions)."""
        groups = tuple(
            Group(offset=group.offset, terms=tuple(term.take(rows) for term in group.terms))
            for group in self.groups
        )
        return Program(groups=groups, parameters=self.parameters, rows=len(rows))

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """Ln L at parameters (S, p): (S, n); NaN where a factor is not positive."""
        total = np.zeros((len(theta), self.rows))
        for group in self.groups:
            inside = sum((term.value(theta) for term in group.terms), start=np.array(group.offset))
            total += _log(inside)
        return total

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """∂ ln L at parameters (S, p): (S, p, n)."""
        return self._evaluate(theta)[1]

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """∂² ln L of every row at one parameter vector (p,): (n, p, p)."""
        every = np.repeat(theta[None], self.rows, axis=0)
        one_row = np.eye(self.rows)

        def rows(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return np.zeros_like(logs), one_row, np.zeros_like(logs)

        return self.moments(every, rows, newton=True)[2]

    def moments(self, theta: np.ndarray, rows: Rows, *, newton: bool) -> Moments:
        """Objective (S,), its gradient (S, p) and Hessian (S, p, p).

        Without ``newton`` the Hessian leaves the second derivatives of ln L out (Gauss-Newton).
        """
        logs, gradient, shares, values, inverses = self._evaluate(theta)
        cost, slope, curve = rows(logs)
        by = np.matmul(gradient, slope[:, :, None])[:, :, 0]
        alone = newton and len(self.groups) == 1
        weight = curve - slope if alone else curve
        hessian = np.matmul(gradient * weight[:, None, :], gradient.transpose(0, 2, 1))
        if newton:
            for group, share, value, inverse in zip(
                self.groups, shares, values, inverses, strict=True
            ):
                if not alone:
                    own = np.matmul(share * slope[:, None, :], share.transpose(0, 2, 1))
                    _scatter(hessian, -own, group.places)
                scaled = slope * inverse
                for term, part in zip(group.terms, value, strict=True):
                    _scatter(hessian, term.second(theta, part, scaled), term.places)
        return cost.sum(axis=1), by, hessian

    def _evaluate(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, list, list, list]:
        """Ln L, its gradient, and of each group the gradient of its own logarithm and its terms."""
        logs = np.zeros((len(theta), self.rows))
        shares, values, inverses = [], [], []
        for group in self.groups:
            value = [term.value(theta) for term in group.terms]
            inside = sum(value[1:], start=value[0] + group.offset)
            logs += _log(inside)
            inverse = 1.0 / inside
            share = np.empty((len(theta), len(group.places), self.rows))
            slot = 0
            for term, part in zip(group.terms, value, strict=True):
                term.first(theta, part, inverse, share[:, slot : slot + len(term.places)])
                slot += len(term.places)
            shares.append(share)
            values.append(value)
            inverses.append(inverse)
        return logs, self._gathered(shares), shares, values, inverses

    def _gathered(self, shares: list[np.ndarray]) -> np.ndarray:
        """Gradients by all parameters, (S, p, n), from those of the groups."""
        if [place for group in self.groups for place in group.places] == [*range(self.parameters)]:
            return shares[0] if len(shares) == 1 else np.concatenate(shares, axis=1)
        gradient = np.zeros((len(shares[0]), self.parameters, self.rows))
        for group, share in zip(self.groups, shares, strict=True):
            for own, place in enumerate(group.places):
                gradient[:, place] += share[:, own]
        return gradient


def _log(inside: np.ndarray) -> np.ndarray:
    return np.log(np.where(inside > 0, inside, np.nan))


def _scatter(target: np.ndarray, part: np.ndarray, places: list[int]) -> None:
    """Add (S, m, m) into (S, p, p) at the places of m parameters, which may repeat (ties)."""
    for a, first in enumerate(places):
        for b, other in enumerate(places):
            target[:, first, other] += part[:, a, b]
