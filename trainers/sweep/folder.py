"""Folder of a sweep: its files, recorded options and ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import urlsplit, urlunsplit

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json
from shapelaw.scaling.schema import Name, read_document
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.ledger.registry import check_ledger_address, is_database
from shapelaw.trainers.training.spec import safe_run_id
from shapelaw.trainers.training.trackers import read_trackers

if TYPE_CHECKING:
    import pandas as pd


class SweepRecord(TypedDict, total=False):
    """Content of ``sweep.json``."""

    ledger: Name
    trackers: list[Name]


@dataclass(frozen=True)
class Folder:
    """Folder of a sweep, with the paths of its files."""

    path: Path

    @property
    def ledger(self) -> Path:
        """File of the ledger, unless the sweep uses another ledger."""
        return self.path / "ledger.sqlite"

    @property
    def corpus(self) -> Path:
        """Folder of the prepared corpus."""
        return self.path / "corpus"

    @property
    def table(self) -> Path:
        """Run table of the runs that have ended so far."""
        return self.path / "runs.csv"

    @property
    def record(self) -> Path:
        """Record of the options of the sweep that differ from their defaults."""
        return self.path / "sweep.json"

    @property
    def packings(self) -> Path:
        """Measured numbers of runs of each shape that a device trains at once."""
        return self.path / "packings.json"

    def refuse_foreign_table(self) -> None:
        """Raise an error if the sweep would overwrite a run table that no sweep has written."""
        if self.table.exists() and not (self.ledger.exists() or self.record.exists()):
            raise InputError(
                f"{self.table} must be the run table of a sweep, but {self.path} has no sweep; "
                "choose another --out folder, or move the table away"
            )

    def trackers(self) -> tuple[str, ...]:
        """Return the names of the trackers of metrics; a CSV file is always one of them."""
        return read_trackers(",".join(self.recorded().get("trackers", ())))

    def recorded(self) -> "SweepRecord":
        """Return the recorded options; none where nothing was recorded."""
        if not self.record.exists():
            return {}
        return read_document(self.record, SweepRecord, "delete it, or choose another --out folder")

    def run(self, run_id: str) -> Path:
        """Return the folder with checkpoint, weights and held-out losses of one run."""
        return self.path / "runs" / safe_run_id(run_id)

    def exported(self, table: "pd.DataFrame") -> list[str]:
        """Return the ids of the runs of a run table that have an exported model.

        Raises
        ------
        InputError
            No run has one.
        """
        from shapelaw.trainers.models.hugging_face import WEIGHTS

        names = [str(name) for name in table["run_id"]] if len(table) else []
        exported = [name for name in names if (self.run(name) / WEIGHTS).exists()]
        if not exported:
            raise InputError(
                f"no run of {self.path} has a {WEIGHTS}; train the plan with `shapelaw sweep run` "
                "first"
            )
        return exported


def ledger_address(folder: Folder, given: str | None) -> str:
    """Return the address of the ledger of a sweep.

    This is the given address, else the one recorded when the sweep began, else a file in the
    folder.

    Parameters
    ----------
    folder
        Folder of the sweep.
    given
        Path or URL of a ledger; None if not given.

    Raises
    ------
    InputError
        The address is invalid, or the sweep has another ledger already.
    """
    if given is not None:
        check_ledger_address(given)
    recorded = folder.recorded().get("ledger")
    if given is None:
        return str(recorded or folder.ledger.absolute())
    if (
        recorded is None
        and folder.ledger.exists()
        and Path(given).absolute() != folder.ledger.absolute()
    ):
        raise InputError(
            f"{folder.path} holds a sweep whose ledger is ledger.sqlite; leave --ledger out, or "
            "choose another --out folder"
        )
    if recorded is not None and recorded != without_password(given):
        raise InputError(
            f"{folder.path} holds a sweep whose ledger is {recorded}, but --ledger is "
            f"{without_password(given)}; choose another --out folder"
        )
    return given


def without_password(address: str) -> str:
    """Remove the password from an address before it is recorded.

    libpq reads passwords from ``~/.pgpass`` or PGPASSWORD.

    Examples
    --------
    >>> without_password("postgresql://ada:secret@host/ladders?sweep=first")
    'postgresql://ada@host/ladders?sweep=first'
    """
    if not is_database(address):
        return str(Path(address).absolute())
    parts = urlsplit(address)
    user, separator, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + separator + host))


def record_options(folder: Folder, ledger: str | None, trackers: Sequence[str]) -> None:
    """Record the trackers for workers, and a ledger outside the folder for other commands."""
    recorded: dict[str, object] = dict(folder.recorded())
    if ledger is not None:
        recorded = {"ledger": without_password(ledger)} | recorded
    if trackers:
        recorded = recorded | {"trackers": list(trackers)}
    if recorded:
        write_json(folder.record, recorded)


def existing_ledger(path: Path, ledger: str | None = None) -> Ledger:
    """Open the ledger of the folder of a sweep.

    Parameters
    ----------
    path
        Folder of the sweep.
    ledger
        Path or URL of a ledger outside the folder.

    Raises
    ------
    InputError
        The folder has no ledger.
    """
    folder = Folder(path)
    address = ledger_address(folder, ledger)
    if not is_database(address) and not Path(address).exists():
        raise InputError(f"{path} has no ledger.sqlite; give the --out folder of a sweep")
    return Ledger(address)
