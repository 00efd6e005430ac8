"""Selection of shapes by their proportions, the ratios of their sizes."""

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.space.family_table import FamilyTable


def within(
    table: ShapeTable | FamilyTable, ranges: dict[str, tuple[float, float]], slack: float = 1.0
) -> np.ndarray:
    """Return the mask of the shapes whose ratios lie inside ranges that are widened by a factor.

    Parameters
    ----------
    table
        Shapes, (n,).
    ranges
        Smallest and largest value by column; other columns than those of the table are ignored.
    slack
        Factor by which each end of a range is moved outwards.
    """
    frame = table.frame()
    keep = np.ones(len(table), dtype=bool)
    for name, (low, high) in ranges.items():
        if name in frame:
            values = frame[name].to_numpy()
            keep &= (values >= low / slack) & (values <= high * slack)
    return keep


def nearest_proportions(table: ShapeTable, like: Shape, parameters: int) -> int:
    """Find the row whose proportions are nearest to those of a given shape.

    The proportions are those of one layer, which do not change when a model is scaled by its width:
    f/d, H·h/d and H/K. Ties are resolved by the size nearest to ``parameters``, then by the nearest
    head dimension.

    Parameters
    ----------
    table
        Shapes, (n,).
    like
        The shape to compare with.
    parameters
        Non-embedding parameters that resolve ties.

    Returns
    -------
    Position of the row.
    """

    def proportions(shapes: Shape | ShapeTable) -> np.ndarray:
        width = shapes.num_attention_heads * shapes.head_dim / shapes.hidden_size
        ratios = np.array([shapes.intermediate_size / shapes.hidden_size, width, shapes.gqa])
        return np.asarray(np.log(ratios))

    difference = proportions(table) - proportions(like)[:, None]
    size = np.abs(np.log(table.n_non_embedding / parameters))
    other_head = np.abs(np.log(table.head_dim / like.head_dim))
    return int(np.argmin((difference**2).sum(axis=0) + 1e-3 * size + 1e-4 * other_head))
