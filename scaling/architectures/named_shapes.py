"""Shapes of published models by name, from data/shapes.csv."""

from functools import cache
from typing import Any

import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder


@cache
def _shapes() -> pd.DataFrame:
    return pd.read_csv(data_folder() / "shapes.csv").set_index("name")


def shape_named(name: str) -> Shape:
    """Return the shape of a published model.

    Parameters
    ----------
    name
        Name in ``data/shapes.csv``, such as ``llama-3.2-1b``.

    Raises
    ------
    InputError
        No published shape has the name.
    """
    table = _shapes()
    if name not in table.index:
        raise InputError(f"`--baseline` must be one of {', '.join(table.index)}, but got {name!r}")
    row = table.loc[name].to_dict()
    sizes: dict[str, Any] = {field: int(row[field]) for field in INTEGER_FIELDS}
    return Shape(
        **sizes,
        tie_word_embeddings=bool(row["tie_word_embeddings"]),
        qk_norm=bool(row["qk_norm"]),
        rope_theta=float(row["rope_theta"]),
    )
