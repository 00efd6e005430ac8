"""Space-filling designs: subsets of the valid shapes that fill the axes evenly, uncorrelated.

Every valid shape is a point of the unit cube (its log axes, each scaled to its range). The points
of a Latin hypercube are not valid shapes in general, because the fields of a shape are integers and
N is fixed. Instead, the subset of valid shapes that is nearest to a Latin hypercube is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

STARTS = 6
# Weight of a squared correlation above the allowed one, relative to the discrepancy.
CORRELATION_WEIGHT = 300.0
MAX_SUBSETS = 4000


@dataclass(frozen=True)
class Cube:
    """Candidates of a design as points of the unit cube.

    The measure of space filling is the centred L2 discrepancy (Hickernell 1998, doi
    10.1090/S0025-5718-98-00894-1) divided by its expectation for random points.

    Parameters
    ----------
    points
        Candidates, (candidates, axes).
    logs
        Logarithms of the candidates' axes together with further axes, (candidates, more axes).
    before
        The same for points chosen before, (points, more axes). Correlations over the chosen
        candidates and these points together are penalised too.
    allowed
        Largest absolute correlation without a penalty.
    """

    points: np.ndarray
    logs: np.ndarray
    before: np.ndarray
    allowed: float

    @classmethod
    def alone(cls, points: np.ndarray, allowed: float) -> "Cube":
        """Return candidates without points chosen before."""
        return cls(points, points[:, :0], points[:0, :0], allowed)

    @property
    def single(self) -> np.ndarray:
        """Discrepancy term of each candidate, (n,)."""
        off = np.abs(self.points - 0.5)
        return np.asarray(np.prod(1 + off / 2 - off**2 / 2, axis=1))

    def kernel(self, rows: np.ndarray) -> np.ndarray:
        """Return the discrepancy term of each candidate with each of some rows, (n, rows)."""
        product = np.ones((len(self.points), len(rows)))
        for x in self.points.T:  # axis by axis, to avoid an array of (n, rows, axes)
            off = np.abs(x - 0.5)
            apart = np.abs(x[:, None] - x[rows])
            product *= 1 + off[:, None] / 2 + off[rows] / 2 - apart / 2
        return product

    def discrepancy(self, single: np.ndarray, double: np.ndarray, count: int) -> np.ndarray:
        """Return the relative squared discrepancy of sets of ``count`` points from their terms."""
        axes = self.points.shape[1]
        base = (13 / 12) ** axes
        expected = ((5 / 4) ** axes - base) / count
        return np.asarray((base - 2 * single / count + double / count**2) / expected)


def choose_filling(cube: Cube, count: int, *, seed: Sequence[int]) -> np.ndarray:
    """Choose candidates that fill the unit cube evenly, with little correlation between axes.

    The exchange algorithm starts from random subsets and repeats the swap of one point that lowers
    the criterion most, until no swap does. The criterion is the discrepancy plus a penalty on
    correlations above ``cube.allowed``.

    Parameters
    ----------
    cube
        The n candidates.
    count
        Number of candidates to choose, fewer than n.
    seed
        Seed of the random starts. The same seed gives the same rows.

    Returns
    -------
    numpy.ndarray
        Sorted positions of the chosen candidates, (count,).
    """
    generator = np.random.default_rng(seed)
    best, chosen = np.inf, np.arange(count)
    for _ in range(STARTS):
        value, rows = _exchange(cube, generator.choice(len(cube.points), count, replace=False))
        if value < best - 1e-9:
            best, chosen = value, rows
    return np.sort(chosen)


def _exchange(cube: Cube, rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Swap until no swap lowers the criterion; return its value and the rows."""
    value = np.inf
    rows = rows.copy()
    while True:
        table = _after_swaps(cube, rows)
        table[rows] = np.inf
        candidate, position = np.unravel_index(int(table.argmin()), table.shape)
        if table[candidate, position] >= value - 1e-9:
            return value, rows
        value, rows[position] = float(table[candidate, position]), candidate


def _after_swaps(cube: Cube, rows: np.ndarray) -> np.ndarray:
    """Return the criterion after each swap of a chosen row for a candidate, (n, count)."""
    single, kernel, count = cube.single, cube.kernel(rows), len(rows)
    diagonal = np.prod(1 + np.abs(cube.points - 0.5), axis=1)
    inside = kernel[rows]
    removed = 2 * inside.sum(axis=1) - np.diag(inside)
    double = inside.sum() - removed + 2 * (kernel.sum(axis=1)[:, None] - kernel) + diagonal[:, None]
    total = single[rows].sum() - single[rows] + single[:, None]
    penalty = _swap_penalty(cube.points, rows, cube.points[:0], cube.allowed)
    if len(cube.before):
        penalty = penalty + _swap_penalty(cube.logs, rows, cube.before, cube.allowed)
    return cube.discrepancy(total, double, count) + penalty


def _swap_penalty(
    points: np.ndarray, rows: np.ndarray, before: np.ndarray, allowed: float
) -> np.ndarray:
    """Return the correlation penalty over the rows and ``before`` after each swap, (n, count)."""

    def swapped(values: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        return np.asarray(fixed.sum() + values[rows].sum() - values[rows] + values[:, None])

    axes = range(points.shape[1])
    if not axes:
        return np.zeros((len(points), len(rows)))
    sums = np.stack([swapped(points[:, a], before[:, a]) for a in axes])
    products = {
        (a, b): swapped(points[:, a] * points[:, b], before[:, a] * before[:, b])
        for a in axes
        for b in axes
        if a <= b
    }
    return _penalty(sums, products, len(rows) + len(before), allowed)


def _penalty(
    sums: np.ndarray,
    products: dict[tuple[int, int], np.ndarray],
    count: float | np.ndarray,
    allowed: float,
) -> np.ndarray:
    """Return the penalty of correlations above ``allowed`` from sums and sums of products."""
    axes = range(len(sums))
    if not axes:
        return np.zeros(np.shape(count))
    moment = {(a, b): products[a, b] / count - sums[a] * sums[b] / count**2 for a, b in products}
    spread = [np.sqrt(np.maximum(moment[a, a], 1e-12)) for a in axes]
    cost = np.zeros_like(sums[0])
    for a, b in combinations(axes, 2):
        r = np.abs(moment[a, b]) / (spread[a] * spread[b])
        cost = cost + CORRELATION_WEIGHT * np.maximum(r - allowed, 0.0) ** 2
    return np.asarray(cost)


def choose_heavy(points: np.ndarray, count: int, *, extra: float, allowed: float) -> np.ndarray:
    """Choose the points that get a larger weight such that all points stay uncorrelated.

    All subsets are compared, or ``MAX_SUBSETS`` random ones. The criterion is the discrepancy of
    the chosen points plus the penalty on correlations among all points with these weights.

    Parameters
    ----------
    points
        Points of the unit cube, (n, axes).
    count
        Number of points to choose, at most n.
    extra
        Additional weight of a chosen point; the others have weight 1.
    allowed
        Largest absolute correlation without a penalty.

    Returns
    -------
    numpy.ndarray
        Sorted positions of the chosen points, (count,).
    """
    total = len(points)
    if count in (0, total):
        return np.arange(count)
    if comb(total, count) <= MAX_SUBSETS:
        subsets = np.array(list(combinations(range(total), count)))
    else:
        draws = np.random.default_rng(0).random((MAX_SUBSETS, total)).argsort(axis=1)
        subsets = np.unique(np.sort(draws[:, :count], axis=1), axis=0)
    cube = Cube.alone(points, allowed)
    kernel = cube.kernel(np.arange(total))
    double = kernel[subsets[:, :, None], subsets[:, None, :]].sum(axis=(1, 2))
    single = cube.single[subsets].sum(axis=1)
    weights = np.ones((len(subsets), total))
    np.put_along_axis(weights, subsets, 1.0 + extra, axis=1)
    criterion = cube.discrepancy(single, double, count) + weighted_penalty(
        points, weights, cube.allowed
    )
    return np.asarray(subsets[int(criterion.argmin())])


def weighted_penalty(points: np.ndarray, weights: np.ndarray, allowed: float) -> np.ndarray:
    """Return the correlation penalty of points (n, axes) for each row of weights (sets, n)."""
    axes = range(points.shape[1])
    products = {
        (a, b): weights @ (points[:, a] * points[:, b]) for a in axes for b in axes if a <= b
    }
    return _penalty((weights @ points).T, products, weights.sum(axis=1), allowed)
