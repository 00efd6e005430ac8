"""What comes by name: public run tables, the shipped tables, known shapes and hardware."""

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from scaling.errors import InputError, WorkError
from scaling.files import sha256
from scaling.shape import INTEGER_FIELDS, Shape

MIRROR = "SHAPELAW_MIRROR"  # a folder laid out as PUBLIC says, used instead of a download


@cache
def data_folder() -> Path:
    """The shipped tables: inside the installed package, or ``data/`` of the checkout."""
    package = Path(__file__).parent
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"


@dataclass(frozen=True, kw_only=True)
class PublicTable:
    """A run table that somebody published: where it is, its checksum, how it becomes ours."""

    path: str
    url: str
    sha256: str
    convert: Callable[[pd.DataFrame], pd.DataFrame]


def _chinchilla(published: pd.DataFrame) -> pd.DataFrame:
    """Points read off figure 4 of arXiv 2203.15556 by arXiv 2404.10102; D = C / 6N."""
    size, compute = published["Model Size"], published["Training FLOP"]
    table = pd.DataFrame(
        {
            "run_id": [f"chinchilla-{row:03d}" for row in range(len(published))],
            "family": "chinchilla",
            "n_total": size,
            "tokens": compute / (6 * size),
            "flops_6nd": compute,
            "loss": published["loss"],
        }
    )
    table["outlier"] = table["loss"].rank(ascending=False, method="first") <= 5
    return table


PUBLIC = {
    "chinchilla": PublicTable(
        path="epoch_chinchilla/svg_extracted_data.csv",
        url=(
            "https://raw.githubusercontent.com/epoch-research/analyzing-chinchilla/"
            "main/data/svg_extracted_data.csv"
        ),
        sha256="193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
        convert=_chinchilla,
    ),
}


def load_table(name: str) -> pd.DataFrame:
    """A run table by name: ``quickstart`` ships with shapelaw, the others are downloaded.

    Raises
    ------
    InputError
        There is no such table.
    WorkError
        The download failed, or the file is not the one that was published.
    """
    shipped = data_folder() / name / "runs.csv"
    if shipped.exists():
        from scaling.runs import load_runs

        return load_runs(shipped)
    if name not in PUBLIC:
        names = sorted([*PUBLIC, *(path.parent.name for path in data_folder().glob("*/runs.csv"))])
        raise InputError(f"a table's name must be one of {', '.join(names)}, but got {name!r}")
    table = PUBLIC[name]
    return table.convert(pd.read_csv(_fetch(table)))


def _fetch(table: PublicTable) -> Path:
    mirror = os.environ.get(MIRROR)
    if mirror:
        path = Path(mirror) / table.path
        if not path.exists():
            raise InputError(f"`{MIRROR}` is {mirror}, which lacks {table.path}; unset it")
        if sha256(path) != table.sha256:
            raise WorkError(f"{path} is not the published file: its SHA-256 differs")
        return path
    import pooch
    import requests

    try:
        return Path(
            pooch.retrieve(
                table.url,
                f"sha256:{table.sha256}",
                path=pooch.os_cache("shapelaw"),
                progressbar=False,
            )
        )
    except (OSError, ValueError, requests.RequestException) as error:
        raise WorkError(
            f"{table.url} could not be downloaded ({error}); "
            f"set {MIRROR} to a folder that holds {table.path}"
        ) from error


@cache
def _shapes() -> pd.DataFrame:
    return pd.read_csv(data_folder() / "shapes.csv").set_index("name")


def shape_named(name: str) -> Shape:
    """A published model's shape.

    Raises
    ------
    InputError
        There is none of that name.
    """
    table = _shapes()
    if name not in table.index:
        raise InputError(f"`--baseline` must be one of {', '.join(table.index)}, but got {name!r}")
    row = table.loc[name].to_dict()
    return Shape(
        **{field: int(row[field]) for field in INTEGER_FIELDS},
        tie_word_embeddings=bool(row["tie_word_embeddings"]),
        qk_norm=bool(row["qk_norm"]),
        rope_theta=float(row["rope_theta"]),
    )


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device: bytes of memory, bytes per second, dense FLOP/s by number format."""

    key: str
    name: str
    memory: float
    bandwidth: float
    peak_flops: dict[str, float]
    source: str


def hardware(key: str) -> Hardware:
    """A device by its short name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    table = tomllib.loads((data_folder() / "hardware.toml").read_text(encoding="utf-8"))
    if key not in table:
        raise InputError(f"hardware must be one of {', '.join(table)}, but got {key!r}")
    return Hardware(key=key, **table[key])
