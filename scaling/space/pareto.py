"""Exact Pareto fronts of shapes, updated chunk by chunk, and their hypervolume."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable

Floats = Sequence[float] | np.ndarray

# Losses and costs of the shapes of a table; lower is better for both.
Score = Callable[[ShapeTable], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Front:
    """The Pareto front of a space, by ascending loss and descending cost.

    Attributes
    ----------
    table
        Shapes on the front, (k,).
    losses, costs
        Losses and costs of the shapes, (k,).
    rows
        Positions of the shapes in the enumeration, (k,).
    seen
        Number of shapes compared.
    """

    table: ShapeTable
    losses: np.ndarray
    costs: np.ndarray
    rows: np.ndarray
    seen: int

    def __len__(self) -> int:
        return len(self.losses)


def front_mask(losses: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return the mask of the points that no other point dominates or equals; lower is better.

    Of equal points the first is on the front; a point that is not finite is never on the front.

    Parameters
    ----------
    losses, costs
        Coordinates of the points, (n,).

    Returns
    -------
    Mask, (n,).
    """
    mask = np.zeros(len(losses), dtype=bool)
    order = np.lexsort((losses, costs))
    order = order[np.isfinite(losses[order]) & np.isfinite(costs[order])]
    sorted_losses = losses[order]
    before = np.minimum.accumulate(np.concatenate(([np.inf], sorted_losses)))[:-1]
    mask[order[sorted_losses < before]] = True
    return mask


def running_front(chunks: Iterable[ShapeTable], score: Score) -> Front | None:
    """Compute the exact front of all chunks together; None if no score is finite.

    Each chunk is first compared with the front so far, by bisection; only its undominated rows are
    sorted. The memory is thus that of one chunk, and the result equals that of the whole table.

    Parameters
    ----------
    chunks
        Tables of shapes.
    score
        Function from a table to losses and costs, (n,) each.
    """
    kept: Front | None = None
    seen = 0
    for chunk in chunks:
        losses, costs = (np.asarray(values, dtype=float) for values in score(chunk))
        rows = np.arange(len(chunk)) if kept is None else _unbeaten(kept, losses, costs)
        fresh = _front(chunk, losses, costs, rows, seen)
        kept = fresh if kept is None else _merged(kept, fresh)
        seen += len(chunk)
    if kept is None or not len(kept):
        return None
    order = np.argsort(kept.losses)
    return Front(
        table=kept.table.take(order),
        losses=kept.losses[order],
        costs=kept.costs[order],
        rows=kept.rows[order],
        seen=seen,
    )


def _unbeaten(kept: Front, losses: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return rows with a lower loss than all points of the front with no higher cost."""
    order = np.argsort(kept.costs)
    best = np.concatenate(([np.inf], kept.losses[order]))  # falls as the cost rises
    return np.flatnonzero(losses < best[np.searchsorted(kept.costs[order], costs, side="right")])


def _front(
    chunk: ShapeTable, losses: np.ndarray, costs: np.ndarray, rows: np.ndarray, seen: int
) -> Front:
    rows = rows[front_mask(losses[rows], costs[rows])]
    return Front(
        table=chunk.take(rows), losses=losses[rows], costs=costs[rows], rows=seen + rows, seen=seen
    )


def _merged(kept: Front, fresh: Front) -> Front:
    losses = np.concatenate([kept.losses, fresh.losses])
    costs = np.concatenate([kept.costs, fresh.costs])
    mask = front_mask(losses, costs)
    both = ShapeTable.joined([kept.table, fresh.table])
    return Front(
        table=both.take(mask),
        losses=losses[mask],
        costs=costs[mask],
        rows=np.concatenate([kept.rows, fresh.rows])[mask],
        seen=fresh.seen,
    )


def front(losses: Floats, throughputs: Floats) -> np.ndarray:
    """Return the mask of the Pareto front of low loss and high throughput, (n,)."""
    return front_mask(np.asarray(losses, dtype=float), -np.asarray(throughputs, dtype=float))


def hypervolume(losses: Floats, throughputs: Floats, reference: tuple[float, float]) -> float:
    """Compute the hypervolume of points relative to a reference loss and throughput.

    Throughput counts by its logarithm, so the unit is nats per token times ln(tokens/s).

    Parameters
    ----------
    losses
        Losses in nats per token, (n,).
    throughputs
        Throughputs in tokens per second, (n,).
    reference
        Largest loss and smallest throughput that count.
    """
    loss, speed = np.asarray(losses, dtype=float), np.asarray(throughputs, dtype=float)
    inside = (loss < reference[0]) & (speed > reference[1])
    loss, speed = loss[inside], np.log(speed[inside] / reference[1])
    keep = front(loss, speed)
    order = np.argsort(-speed[keep])
    loss, speed = loss[keep][order], speed[keep][order]
    # In descending throughput, each point adds the strip between its loss and the best loss so far.
    ceiling = np.concatenate(([reference[0]], loss[:-1])) if len(loss) else loss
    return float(((ceiling - loss) * speed).sum())
