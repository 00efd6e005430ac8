"""Catalogue of the public run tables, shipped or downloaded, that load by name."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import data_folder, sha256
from shapelaw.scaling.runs.checking import TableNotation
from shapelaw.scaling.runs.converters import CONVERTERS
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.table import AUTO, RunTable
from shapelaw.scaling.units import NATS, format_count

# Environment variable: a folder with the files of data/published.toml, used instead of downloads.
MIRROR = "SHAPELAW_MIRROR"


@dataclass(frozen=True, kw_only=True)
class NamedTable:
    """A run table that loads by name: description, citation, licence and location of its files.

    ``files`` maps a file's path in a mirror to ``upstream``, its path in the authors' repository
    (absent where the file was assembled from many), and to ``sha256``. A shipped table has no
    files. ``ranges`` maps a column to its lowest and highest value, to three significant digits.
    """

    name: str
    about: str
    citation: str
    licence: str
    rows: int = 0
    ranges: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    repository: str = ""
    commit: str = ""

    def address(self, path: str) -> str | None:
        """Return the download address of a file, None where only a mirror has the file.

        The address names a commit, so that the file cannot change.
        """
        upstream = self.files[path].get("upstream")
        if upstream is None:
            return None
        return (
            f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{quote(upstream)}"
        )

    @property
    def source(self) -> dict[str, str]:
        """Name, citation, licence and address of the table, which a fit of it should cite."""
        address = f"https://github.com/{self.repository}/tree/{self.commit}"
        return {
            "name": self.name,
            "citation": self.citation,
            "licence": self.licence,
            "address": address if self.files else f"shipped, data/{self.name}/runs.csv",
        }


@cache
def named_tables() -> dict[str, NamedTable]:
    """Return the public run tables by name, shipped ones first."""
    text = (data_folder() / "published.toml").read_text(encoding="utf-8")
    return {name: NamedTable(name=name, **entry) for name, entry in tomllib.loads(text).items()}


def listed_tables() -> list[dict[str, Any]]:
    """Return rows, ranges, licence and source of every public table, without a download."""
    tables = []
    for table in named_tables().values():
        rows, ranges = table.rows, table.ranges
        if not table.files:
            runs = load_runs(table.name)
            size = "n_total" if "n_total" in runs else "n_non_embedding"
            columns = (size, "tokens", "loss")
            ranges = {name: [float(runs[name].min()), float(runs[name].max())] for name in columns}
            rows = len(runs)
        tables.append({**table.source, "rows": rows, "ranges": ranges, "about": table.about})
    return tables


def listing() -> pd.DataFrame:
    """Return the public tables with formatted numbers."""
    rows = []
    for table in listed_tables():
        size, tokens, loss = table["ranges"].values()
        rows.append(
            {
                "name": table["name"],
                "runs": table["rows"],
                "N": _format_range(map(format_count, size)),
                "D": _format_range(map(format_count, tokens)),
                "loss": _format_range(f"{value:.3g}" for value in loss),
                "licence": table["licence"],
                "source": table["citation"],
                "what": table["about"],
            }
        )
    return pd.DataFrame(rows)


def _format_range(ends: Iterable[str]) -> str:
    """Join the ends of a range, or write them once where they are equal."""
    return " to ".join(dict.fromkeys(ends))


def load_runs(
    name: str | Path | pd.DataFrame,
    *,
    where: str | None = None,
    exclude: Iterable[str] = (),
    size: str = AUTO,
    columns: str | Mapping[str, str] | None = None,
    loss_unit: str | None = None,
    drop_failed: bool = False,
) -> RunTable:
    """Load a run table by name or from a file, check it, and keep its finished runs.

    Parameters
    ----------
    name
        A shipped table (``quickstart``), a published one (``chinchilla``, ``gemstones``, ...:
        :func:`named_tables`), which is downloaded once and kept, the path of a file in CSV, JSON,
        JSON lines or Parquet, or a data frame, which is checked as a file is.
    where
        Filter over columns (:func:`shapelaw.scaling.filters.select`), applied to the values as
        the file has them.
    exclude
        Identifiers of runs to leave out.
    size
        Convention of N: ``non-embedding``, ``total`` or ``active`` parameters; ``"auto"`` is the
        first of these that the table has.
    columns
        Changes of the columns of a file: ``OLD=NEW`` renames one, ``NEW=EXPRESSION`` derives one,
        such as ``tokens=flops/(6*N)``, and ``OLD=`` ignores one; a text with commas, or a mapping
        of the left to the right sides.
    loss_unit
        Unit of the losses where the table has no column ``loss_unit``: nats, bits, bits per byte,
        bits per character, or perplexity.
    drop_failed
        Leave out runs that did not finish or have no finite loss, instead of refusing them.

    Returns
    -------
    The finished rows, with losses in nats per token, or in bits per byte or character. Shape ratios
    are added where the table has the fields of a shape.

    Raises
    ------
    InputError
        The table or the convention of N is unknown, the mirror lacks a file, a file cannot be
        read, or a value breaks a rule. The message names the file, line, column and value.
    WorkError
        The download failed, or a file differs from the published one.
    """
    notation = TableNotation(columns=columns, loss_unit=loss_unit, drop_failed=drop_failed)
    options: dict[str, Any] = {
        "where": where, "exclude": exclude, "size": size, "notation": notation
    }  # fmt: skip
    if isinstance(name, pd.DataFrame):
        return RunTable.of(name.reset_index(drop=True), **options)
    if not isinstance(name, str | Path):
        raise InputError(
            f"a run table must be a name, a path or a data frame, but got {type(name).__name__}"
        )
    table = named_tables().get(str(name))
    if table is None:
        if Path(name).suffix in (".csv", ".parquet") or Path(name).is_file():
            return _read_file(Path(name), **options)
        raise InputError(
            f"a table's name must be one of {', '.join(sorted(named_tables()))}, or an existing "
            f"file, but got {str(name)!r}"
        )
    return _load_published(table, **options)


def _load_published(table: NamedTable, *, notation: TableNotation, **options: Any) -> RunTable:
    """Load a shipped or published table, whose losses are in nats unless it says otherwise."""
    if table.files:
        published = CONVERTERS[table.name](fetch(table))
    else:
        published = read_table(data_folder() / table.name / "runs.csv")
    if notation.loss_unit is None and "loss_unit" not in published:
        notation = replace(notation, loss_unit=NATS)
    runs = RunTable.of(published, table.name, notation=notation, **options)
    left_out = {**published.attrs.get("left_out", {}), **runs.left_out}
    return replace(runs, left_out=left_out, source=table.source)


def read_runs(path: Path | str, **options: Any) -> RunTable:
    """Read a run table from a file, check it and keep its finished runs.

    Options and errors are those of :func:`load_runs`, which also loads the public tables by name.
    """
    return load_runs(Path(path), **options)


def _read_file(path: Path, **options: Any) -> RunTable:
    runs = RunTable.of(read_table(path), str(path), **options)
    return replace(runs, source={"name": path.name, "address": str(path)})


def fetch(table: NamedTable) -> dict[str, Path]:
    """Find the files of a published table in the mirror, or download them unless cached.

    Returns
    -------
    Location of each file, by its path in a mirror.

    Raises
    ------
    InputError
        The mirror lacks a file, or no mirror is set and a file is available from a mirror only.
    WorkError
        The download failed, or a file's SHA-256 differs from that of the published file.
    """
    mirror = os.environ.get(MIRROR)
    if mirror:
        return {path: _find_in_mirror(Path(mirror), path, table) for path in table.files}
    return {path: _download(path, table) for path in table.files}


def _find_in_mirror(mirror: Path, name: str, table: NamedTable) -> Path:
    """Return the path of a file in a mirror after a check of its SHA-256."""
    path = mirror / name
    if not path.is_file():
        raise InputError(f"`{MIRROR}` is {mirror}, which lacks {name}; unset it to download")
    if sha256(path) != table.files[name]["sha256"]:
        raise WorkError(f"{path} is not the published file: its SHA-256 differs")
    return path


def _download(name: str, table: NamedTable) -> Path:
    """Download a file unless an earlier download is cached, and return its path."""
    address = table.address(name)
    if address is None:
        raise InputError(
            f"{table.name} is available from a mirror only: {name} was assembled from many files "
            f"of {table.repository}; set {MIRROR} to a folder that holds it"
        )
    import pooch
    import requests

    try:
        return Path(
            pooch.retrieve(
                address,
                f"sha256:{table.files[name]['sha256']}",
                path=pooch.os_cache("shapelaw"),
                progressbar=False,
            )
        )
    except (OSError, ValueError, requests.RequestException) as error:
        raise WorkError(
            f"{address} could not be downloaded ({error}); "
            f"set {MIRROR} to a folder that holds {name}"
        ) from error
