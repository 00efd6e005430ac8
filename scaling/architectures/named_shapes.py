"""Published models by name: shapes from data/shapes.csv, configs from data/architectures.json."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder, read_json

if TYPE_CHECKING:  # files and names of architectures are read without it
    import pandas as pd


@cache
def _shapes() -> "pd.DataFrame":
    import pandas as pd

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


@cache
def _configs() -> dict[str, dict[str, Any]]:
    document = read_json(data_folder() / "architectures.json")
    return {name: entry["config"] for name, entry in document.items()}


def architecture_named(name: str) -> Architecture:
    """Return the architecture of a published model that no shape describes.

    Parameters
    ----------
    name
        Name in ``data/architectures.json``, such as ``dhara-70m``.

    Raises
    ------
    InputError
        No published architecture has the name.
    """
    if name not in _configs():
        raise InputError(
            f"the name of an architecture must be one of {', '.join(_configs())}, "
            f"but got {shown(name)}"
        )
    return read_architecture(_configs()[name])


def read_config(place: Path) -> dict[str, Any]:
    """Read a Hugging Face config from a file, or that of a published model by its name.

    Parameters
    ----------
    place
        Path of a ``config.json``; or a name in ``data/architectures.json`` or ``data/shapes.csv``,
        unless a file of that name exists.

    Raises
    ------
    InputError
        There is no such file and no such model, or the file holds no JSON object.
    """
    name = str(place)
    if not place.exists():
        if name in _configs():
            return dict(_configs()[name])
        if name in _shapes().index:
            return shape_named(name).to_config()
        if not place.suffix and place.name == name:
            raise InputError(
                f"a config must be a file or the name of a published model ({', '.join(_configs())}"
                f" or one of data/shapes.csv), but got {shown(name)}; give a config.json"
            )
    return read_json(place)
