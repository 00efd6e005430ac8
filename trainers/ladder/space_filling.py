"""Choose from all valid shapes those that fill the axes evenly and without confounding.

Every valid shape is a point of the unit cube (its log axes, each scaled to its range). A Latin
hypercube cannot be drawn freely there, because shapes are whole numbers and N is given; what can
be done is to choose the subset that comes nearest to one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

STARTS = 6
WEIGHT = 300.0  # of squared correlation beyond what is free, against the relative discrepancy
MOST_SUBSETS = 4000


@dataclass(frozen=True)
class Cube:
    """Candidates as points of the unit cube, (candidates, axes).

    ``logs``, (candidates, more axes), and ``before``, (points, more axes), are what the chosen
    points join: correlations over both together are held down too. A correlation up to ``free``
    costs nothing. The measure of filling is the centred L2 discrepancy (Hickernell 1998, doi
    10.1090/S0025-5718-98-00894-1) over its expectation for random points.
    """

    points: np.ndarray
    logs: np.ndarray
    before: np.ndarray
    free: float

    @classmethod
    def alone(cls, points: np.ndarray, free: float) -> "Cube":
        """Candidates that join nothing."""
        return cls(points, points[:, :0], points[:0, :0], free)

    @property
    def single(self) -> np.ndarray:
        """The discrepancy's term of each candidate, (n,)."""
        off = np.abs(self.points - 0.5)
        return np.asarray(np.prod(1 + off / 2 - off**2 / 2, axis=1))

    def kernel(self, rows: np.ndarray) -> np.ndarray:
        """The discrepancy's term of each candidate with each of some rows, (n, rows)."""
        product = np.ones((len(self.points), len(rows)))
        for x in self.points.T:  # axis by axis: no array of (n, rows, axes)
            off = np.abs(x - 0.5)
            apart = np.abs(x[:, None] - x[rows])
            product *= 1 + off[:, None] / 2 + off[rows] / 2 - apart / 2
        return product

    def discrepancy(self, single: np.ndarray, double: np.ndarray, count: int) -> np.ndarray:
        """Squared discrepancy of sets of ``count`` points from the sums of their terms."""
        axes = self.points.shape[1]
        base = (13 / 12) ** axes
        expected = ((5 / 4) ** axes - base) / count
        return np.asarray((base - 2 * single / count + double / count**2) / expected)


def choose_filling(cube: Cube, count: int, *, seed: Sequence[int]) -> np.ndarray:
    """Candidates that fill the unit cube evenly, with little correlation between axes.

    Exchange: from random subsets, the swap of one point that lowers the criterion most, until none
    does. The criterion is the discrepancy plus a penalty on correlations above ``cube.free``.

    Parameters
    ----------
    cube
        The candidates, n of them.
    count
        How many to choose, fewer than n.
    seed
        Of the random starts: the same seed gives the same rows.

    Returns
    -------
    Sorted positions, (count,).
    """
    generator = np.random.default_rng(seed)
    best, chosen = np.inf, np.arange(count)
    for _ in range(STARTS):
        found, rows = _exchange(cube, generator.choice(len(cube.points), count, replace=False))
        if found < best - 1e-9:
            best, chosen = found, rows
    return np.sort(chosen)


def _exchange(cube: Cube, rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Swap until no swap lowers the criterion; its value and the rows."""
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
    """Criterion after each candidate takes each chosen row's place, (n, count)."""
    single, kernel, count = cube.single, cube.kernel(rows), len(rows)
    own = np.prod(1 + np.abs(cube.points - 0.5), axis=1)
    inside = kernel[rows]
    leaves = 2 * inside.sum(axis=1) - np.diag(inside)
    double = inside.sum() - leaves + 2 * (kernel.sum(axis=1)[:, None] - kernel) + own[:, None]
    total = single[rows].sum() - single[rows] + single[:, None]
    penalty = _swap_penalty(cube.points, rows, cube.points[:0], cube.free)
    if len(cube.before):
        penalty = penalty + _swap_penalty(cube.logs, rows, cube.before, cube.free)
    return cube.discrepancy(total, double, count) + penalty


def _swap_penalty(
    points: np.ndarray, rows: np.ndarray, before: np.ndarray, free: float
) -> np.ndarray:
    """Cost of the correlations among the rows and ``before`` after each swap, (n, count)."""

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
    return _penalty(sums, products, len(rows) + len(before), free)


def _penalty(
    sums: np.ndarray,
    products: dict[tuple[int, int], np.ndarray],
    count: float | np.ndarray,
    free: float,
) -> np.ndarray:
    """Cost of the correlations beyond ``free``, from weighted sums and sums of products."""
    axes = range(len(sums))
    if not axes:
        return np.zeros(np.shape(count))
    moment = {(a, b): products[a, b] / count - sums[a] * sums[b] / count**2 for a, b in products}
    spread = [np.sqrt(np.maximum(moment[a, a], 1e-12)) for a in axes]
    cost = np.zeros_like(sums[0])
    for a, b in combinations(axes, 2):
        r = np.abs(moment[a, b]) / (spread[a] * spread[b])
        cost = cost + WEIGHT * np.maximum(r - free, 0.0) ** 2
    return np.asarray(cost)


def choose_heavy(points: np.ndarray, count: int, *, extra: float, free: float) -> np.ndarray:
    """Rows that may weigh ``1 + extra`` times as much and leave the whole unconfounded.

    There are ``count`` of them, at most all.

    All subsets are compared, or ``MOST_SUBSETS`` random ones; the criterion is the discrepancy of
    the chosen plus the penalty on correlations among all points with these weights.

    Returns
    -------
    Sorted positions, (count,).
    """
    total = len(points)
    if count in (0, total):
        return np.arange(count)
    if comb(total, count) <= MOST_SUBSETS:
        subsets = np.array(list(combinations(range(total), count)))
    else:
        draws = np.random.default_rng(0).random((MOST_SUBSETS, total)).argsort(axis=1)
        subsets = np.unique(np.sort(draws[:, :count], axis=1), axis=0)
    cube = Cube.alone(points, free)
    kernel = cube.kernel(np.arange(total))
    double = kernel[subsets[:, :, None], subsets[:, None, :]].sum(axis=(1, 2))
    single = cube.single[subsets].sum(axis=1)
    weights = np.ones((len(subsets), total))
    np.put_along_axis(weights, subsets, 1.0 + extra, axis=1)
    criterion = cube.discrepancy(single, double, count) + weighted_penalty(
        points, weights, cube.free
    )
    return np.asarray(subsets[int(criterion.argmin())])


def weighted_penalty(points: np.ndarray, weights: np.ndarray, free: float) -> np.ndarray:
    """Cost of the correlations among points, (n, axes), for each row of weights, (sets, n)."""
    axes = range(points.shape[1])
    products = {
        (a, b): weights @ (points[:, a] * points[:, b]) for a in axes for b in axes if a <= b
    }
    return _penalty((weights @ points).T, products, weights.sum(axis=1), free)
