"""Normal form of scaling laws: a product of sums of terms, with first and second derivatives.

    ln L(θ) = Σ_groups ln( offset + Σ_terms t(θ) )

A term is one of four kinds: the exponential of a function linear in θ (power laws, with centred
logarithms), a function linear in θ, a U-shape (bowl), or two power laws joined by an exponent
(joined powers). All derivatives have a closed form.
Letters in array shapes: S parameter vectors in a batch, n rows of a table, p parameters of the law,
m parameters of one term.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EXPONENTIAL, LINEAR, BOWL, JOINED_POWERS = 0, 1, 2, 3
ABSENT = -1  # position of a parameter that a bowl does not have
# From ln L, (S, n): the cost of each row, its derivative by ln L, and the curvature that multiplies
# the outer product of gradients, (S, n) each.
Rows = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
Bowl = tuple[np.ndarray, np.ndarray, np.ndarray]  # a U-shape with its derivatives


def bowl(
    x: np.ndarray, s: np.ndarray, r: np.ndarray, x0: np.ndarray, gamma: np.ndarray, eta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate q h(u), q h'(u) and q h''(u), where h(u) = u + e^-u - 1 is a U-shape.

    Parameters
    ----------
    x, s, r
        Centred logarithms of the ratio, of size, and of tokens per parameter.
    x0, gamma, eta
        Optimum, drift and bend: u = x - x0 - γs and q = e^(ηr).

    Returns
    -------
    The value and its first and second derivative by u, of the broadcast shape.
    """
    u = x - x0 - gamma * s
    falling = np.expm1(-u)
    if not np.any(eta):
        return u + falling, -falling, 1.0 + falling
    scale = np.exp(eta * r)
    return scale * (u + falling), -scale * falling, scale * (1.0 + falling)


def joined_powers(
    first: np.ndarray, other: np.ndarray, kappa: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join two terms by an exponent: (a^(1/κ) + b^(1/κ))^κ, in logarithms.

    Parameters
    ----------
    first, other
        ln a and ln b, (S, n).
    kappa
        κ > 0, (S, 1): 1 adds the terms, and towards 0 the larger term alone counts.

    Returns
    -------
    The logarithm of the joined term, and the shares of a^(1/κ) and b^(1/κ) in the sum, (S, n) each.
    """
    log_sum = np.logaddexp(first / kappa, other / kappa)
    return kappa * log_sum, np.exp(first / kappa - log_sum), np.exp(other / kappa - log_sum)


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """A term of a sum on the rows of a table.

    Attributes
    ----------
    kind
        EXPONENTIAL: exp(c + Σ z_j θ_j); LINEAR: c + Σ z_j θ_j; BOWL: k q h as in :func:`bowl`,
        with θ = (k, x0, γ, η); JOINED_POWERS: :func:`joined_powers` of ln a = z_1 θ_1 + z_2 θ_2
        and ln b = z_3 θ_3 + z_4 θ_4, with ln κ = θ_5.
    index
        Positions of the parameters of the term in θ; ABSENT for a parameter that a bowl lacks.
    features
        z, (m, n), or (x, s, r), (3, n), of a bowl, or (z_1, ..., z_4), (4, n), of joined powers.
    constant
        c, (n,).
    """

    kind: int
    index: tuple[int, ...]
    features: np.ndarray
    constant: np.ndarray

    def take(self, rows: np.ndarray) -> "Term":
        """Restrict the term to the given rows."""
        return Term(
            kind=self.kind,
            index=self.index,
            features=np.ascontiguousarray(self.features[:, rows]),
            constant=self.constant[rows],
        )

    def value(self, theta: np.ndarray) -> np.ndarray:
        """Evaluate the term at parameters (S, p): (S, n)."""
        if self.kind == BOWL:
            return self.value_and_bowl(theta)[0]
        if self.kind == JOINED_POWERS:
            return np.asarray(np.exp(joined_powers(*self._powers(theta), self._kappa(theta))[0]))
        inner = theta[:, list(self.index)] @ self.features + self.constant
        return np.asarray(np.exp(inner) if self.kind == EXPONENTIAL else inner)

    def value_and_bowl(self, theta: np.ndarray) -> tuple[np.ndarray, Bowl | None]:
        """Evaluate the term, (S, n), and the U-shape of a bowl, which :meth:`first` needs again."""
        if self.kind != BOWL:
            return self.value(theta), None
        shape = self._bowl(theta)
        return np.asarray(self._parameter(theta, 0) * shape[0]), shape

    def first(
        self,
        theta: np.ndarray,
        value: np.ndarray,
        inverse: np.ndarray,
        out: np.ndarray,
        shape: Bowl | None,
    ) -> None:
        """Write ∂t by the m parameters, times ``inverse`` (S, n), to ``out`` (S, m, n)."""
        if self.kind == EXPONENTIAL:
            np.multiply((value * inverse)[:, None, :], self.features, out=out)
        elif self.kind == LINEAR:
            np.multiply(inverse[:, None, :], self.features, out=out)
        elif self.kind == JOINED_POWERS:
            np.multiply((value * inverse)[:, None, :], self._joined_slopes(theta)[0], out=out)
        elif shape is not None:
            depth, slope = shape[0] * inverse, shape[1] * inverse
            k, (_, s, r) = self._parameter(theta, 0), self.features
            by_optimum = -k * slope
            for slot, place in enumerate(self.present):
                if place < 2:
                    out[:, slot] = (depth, by_optimum)[place]
                else:
                    out[:, slot] = by_optimum * s if place == 2 else k * depth * r

    def second(self, theta: np.ndarray, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sum the second derivatives ∂²t over rows with weights (S, n): (S, m, m)."""
        count = len(self.present)
        if self.kind == LINEAR:
            return np.zeros((len(theta), count, count))
        if self.kind == EXPONENTIAL:
            flat = (weights * value) @ self._products
            return np.asarray(flat.reshape(len(theta), count, count))  # count may be 0
        if self.kind == JOINED_POWERS:
            slopes, contrast, curve = self._joined_slopes(theta)
            weighted = (weights * value)[:, None, :]
            out = np.matmul(slopes * weighted, slopes.transpose(0, 2, 1))
            bent = contrast * (weighted * curve[:, None, :])
            out += np.matmul(bent, contrast.transpose(0, 2, 1))
            out[:, -1, -1] += (weighted[:, 0] * slopes[:, -1]).sum(axis=1)
            return np.asarray(out)
        depth, slope, curve = (weights * part for part in self._bowl(theta))
        k, s, r = self._parameter(theta, 0), self.features[1], self.features[2]
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
        """Slots of the parameters that the term has; those of a bowl are (k, x0, γ, η)."""
        return tuple(place for place, at in enumerate(self.index) if at != ABSENT)

    @cached_property
    def places(self) -> list[int]:
        """Positions in θ of the parameters that the term has, (m,)."""
        return [self.index[place] for place in self.present]

    @cached_property
    def _products(self) -> np.ndarray:
        """Products z_j z_l for every row, (n, m * m)."""
        outer = self.features[:, None, :] * self.features[None, :, :]
        return np.ascontiguousarray(outer.reshape(-1, outer.shape[-1]).T)

    def _kappa(self, theta: np.ndarray) -> np.ndarray:
        """Return the exponent κ of joined powers, (S, 1)."""
        return np.asarray(np.exp(theta[:, self.index[-1], None]))

    def summands(self, theta: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Evaluate the scaled powers of the term, (S, n) each, with the positions of their scales.

        Joined powers have two; another term is its own only summand.
        """
        if self.kind == JOINED_POWERS:
            first, other = (np.exp(power) for power in self._powers(theta))
            return [(self.index[0], first), (self.index[2], other)]
        return [(self.index[0], self.value(theta))] if self.index else []

    def _powers(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate the logarithms of the two powers that are joined, (S, n) each."""
        a, alpha, b, beta = (theta[:, at : at + 1] for at in self.index[:-1])
        z = self.features
        return a * z[0] + alpha * z[1], b * z[2] + beta * z[3]

    def _joined_slopes(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Differentiate the logarithm F of joined powers.

        Returns
        -------
        ∂F (S, 5, n), and a vector v (S, 5, n) with a factor c (S, n) such that ∂²F = c v vᵀ, plus
        ∂F at the place of ln κ. The derivative of F by κ is the entropy of the two shares.
        """
        kappa = self._kappa(theta)
        powers = self._powers(theta)
        log_joined, first, other = joined_powers(*powers, kappa)
        entropy = log_joined - first * powers[0] - other * powers[1]  # times κ
        a, alpha, b, beta = np.broadcast_to(
            self.features[:, None, :], (4, len(theta), self.features.shape[1])
        )
        slopes = np.stack([first * a, first * alpha, other * b, other * beta, entropy], axis=1)
        gap = powers[1] - powers[0]
        return slopes, np.stack([a, alpha, -b, -beta, gap], axis=1), first * other / kappa

    def _parameter(self, theta: np.ndarray, place: int) -> np.ndarray:
        at = self.index[place]
        return np.zeros((len(theta), 1)) if at == ABSENT else theta[:, at : at + 1]

    def _bowl(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, s, r = self.features
        return bowl(
            x, s, r, self._parameter(theta, 1), self._parameter(theta, 2), self._parameter(theta, 3)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """A factor of the product: offset + Σ terms."""

    offset: float
    terms: tuple[Term, ...]

    @cached_property
    def places(self) -> list[int]:
        """Positions in θ of the parameters of all terms, in order."""
        return [at for term in self.terms for at in term.places]


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A law on the rows of one table, evaluated at many parameter vectors in one call."""

    groups: tuple[Group, ...]
    parameters: int
    rows: int

    def take(self, rows: np.ndarray) -> "Program":
        """Restrict the law to the table rows at the given positions."""
        groups = tuple(
            Group(offset=group.offset, terms=tuple(term.take(rows) for term in group.terms))
            for group in self.groups
        )
        return Program(groups=groups, parameters=self.parameters, rows=len(rows))

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """Evaluate ln L at parameters (S, p): (S, n); NaN where a factor is not positive."""
        total = np.zeros((len(theta), self.rows))
        for group in self.groups:
            inside = sum((term.value(theta) for term in group.terms), start=np.array(group.offset))
            total += _log(inside)
        return total

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Evaluate the gradient of ln L at parameters (S, p): (S, p, n)."""
        return self._evaluate(theta)[1]

    def value_and_gradient(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate ln L, (S, n), and its gradient, (S, p, n), at parameters (S, p)."""
        return self._evaluate(theta)[:2]

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """Evaluate the Hessian of ln L for every row at one parameter vector (p,): (n, p, p)."""
        repeated = np.repeat(theta[None], self.rows, axis=0)
        one_row = np.eye(self.rows)

        def rows(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return np.zeros_like(logs), one_row, np.zeros_like(logs)

        return self.moments(repeated, rows, newton=True)[2]

    def moments(self, theta: np.ndarray, rows: Rows, *, newton: bool) -> Moments:
        """Evaluate an objective with its gradient and Hessian.

        Parameters
        ----------
        theta
            Parameters, (S, p).
        rows
            Cost, slope and curvature of each row from ln L.
        newton
            Include the second derivatives of ln L in the Hessian; without them the Hessian is that
            of Gauss-Newton.

        Returns
        -------
        Objective (S,), gradient (S, p), Hessian (S, p, p).
        """
        logs, gradient, shares, values, inverses = self._evaluate(theta)
        cost, slope, curve = rows(logs)
        summed = np.matmul(gradient, slope[:, :, None])[:, :, 0]
        single = newton and len(self.groups) == 1
        weight = curve - slope if single else curve
        hessian = np.matmul(gradient * weight[:, None, :], gradient.transpose(0, 2, 1))
        if newton:
            for group, share, value, inverse in zip(
                self.groups, shares, values, inverses, strict=True
            ):
                if not single:
                    outer = np.matmul(share * slope[:, None, :], share.transpose(0, 2, 1))
                    _scatter(hessian, -outer, group.places)
                scaled = slope * inverse
                for term, part in zip(group.terms, value, strict=True):
                    _scatter(hessian, term.second(theta, part, scaled), term.places)
        return cost.sum(axis=1), summed, hessian

    def _evaluate(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, list, list, list]:
        """Evaluate ln L and its gradient; per group the gradient of its ln, terms and 1/sum."""
        logs = np.zeros((len(theta), self.rows))
        shares, values, inverses = [], [], []
        for group in self.groups:
            both = [term.value_and_bowl(theta) for term in group.terms]
            value = [part for part, _ in both]
            inside = sum(value[1:], start=value[0] + group.offset)
            logs += _log(inside)
            inverse = 1.0 / inside
            share = np.empty((len(theta), len(group.places), self.rows))
            slot = 0
            for term, (part, shape) in zip(group.terms, both, strict=True):
                term.first(theta, part, inverse, share[:, slot : slot + len(term.places)], shape)
                slot += len(term.places)
            shares.append(share)
            values.append(value)
            inverses.append(inverse)
        return logs, self._gathered(shares), shares, values, inverses

    def _gathered(self, shares: list[np.ndarray]) -> np.ndarray:
        """Assemble the gradient by all parameters, (S, p, n), from those of the groups."""
        if [place for group in self.groups for place in group.places] == [*range(self.parameters)]:
            return shares[0] if len(shares) == 1 else np.concatenate(shares, axis=1)
        gradient = np.zeros((len(shares[0]), self.parameters, self.rows))
        for group, share in zip(self.groups, shares, strict=True):
            for slot, place in enumerate(group.places):
                gradient[:, place] += share[:, slot]
        return gradient


def _log(inside: np.ndarray) -> np.ndarray:
    if inside.min(initial=np.inf) > 0:
        return np.asarray(np.log(inside))
    return np.asarray(np.log(np.where(inside > 0, inside, np.nan)))


def _scatter(target: np.ndarray, part: np.ndarray, places: list[int]) -> None:
    """Add (S, m, m) to (S, p, p) at the positions of m parameters, which may repeat (ties)."""
    for a, first in enumerate(places):
        for b, other in enumerate(places):
            target[:, first, other] += part[:, a, b]
