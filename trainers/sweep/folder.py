"""The folder of a sweep: its files, its record, its ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.trainers.ledger.ledger import Ledger, open_ledger
from shapelaw.trainers.ledger.registry import is_database
from shapelaw.trainers.training.trackers import read_trackers


@dataclass(frozen=True)
class Folder:
    """Where a sweep keeps its things."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The ledger's file, unless the sweep was given another ledger."""
        return self.path / "ledger.sqlite"

    @property
    def corpus(self) -> Path:
        """The prepared corpus."""
        return self.path / "corpus"

    @property
    def table(self) -> Path:
        """The run table of what has ended so far."""
        return self.path / "runs.csv"

    @property
    def record(self) -> Path:
        """What the sweep was started with, where that is not the default."""
        return self.path / "sweep.json"

    @property
    def packings(self) -> Path:
        """How many runs of each shape a device trains at once, as it was measured."""
        return self.path / "packings.json"

    def trackers(self) -> tuple[str, ...]:
        """Where metrics go: always to a CSV file."""
        known = read_json(self.record) if self.record.exists() else {}
        return read_trackers(",".join(known.get("trackers", ())))

    def run(self, run_id: str) -> Path:
        """Checkpoint, weights and held-out losses of one run."""
        return self.path / "runs" / run_id


def ledger_address(folder: Folder, given: str | None) -> str:
    """Where the ledger of a sweep is: as given, as it was given when it began, or in its folder.

    Raises
    ------
    InputError
        The sweep has another ledger already.
    """
    kept = read_json(folder.record).get("ledger") if folder.record.exists() else None
    if given is None:
        return str(kept or folder.ledger.absolute())
    if (
        kept is None
        and folder.ledger.exists()
        and Path(given).absolute() != folder.ledger.absolute()
    ):
        raise InputError(
            f"{folder.path} holds a sweep whose ledger is ledger.sqlite; leave --ledger out, or "
            "choose another --out folder"
        )
    if kept is not None and kept != without_password(given):
        raise InputError(
            f"{folder.path} holds a sweep whose ledger is {kept}, but --ledger is "
            f"{without_password(given)}; choose another --out folder"
        )
    return given


def without_password(address: str) -> str:
    """A URL as it may be written down; libpq finds passwords in ``~/.pgpass`` or PGPASSWORD.

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
    """Record the trackers for workers, and a ledger that lies elsewhere for other commands."""
    known = read_json(folder.record) if folder.record.exists() else {}
    if ledger is not None:
        known = {"ledger": without_password(ledger)} | known
    if trackers:
        known = known | {"trackers": list(trackers)}
    if known:
        write_json(folder.record, known)


def existing_ledger(path: Path, ledger: str | None = None) -> Ledger:
    """The ledger of a sweep's folder.

    Raises
    ------
    InputError
        There is none.
    """
    folder = Folder(path)
    address = ledger_address(folder, ledger)
    if not is_database(address) and not Path(address).exists():
        raise InputError(f"{path} has no ledger.sqlite; give the --out folder of a sweep")
    return open_ledger(address)
