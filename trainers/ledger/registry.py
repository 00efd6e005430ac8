"""Stores by address: a path means an SQLite file, a URL a PostgreSQL database."""

from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from shapelaw.scaling.display.printable import without_passwords
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import require_file_place
from shapelaw.trainers.ledger.store import ONLY_SWEEP, Store

SQLITE_ENDINGS = (".sqlite", ".sqlite3", ".db")  # of a new ledger; an existing one has any name
KINDS = "a .sqlite file or postgresql://user:password@host/database?sweep=NAME"
MOUNTS = Path("/proc/self/mounts")
# File systems that several machines can mount at once. https://www.sqlite.org/wal.html: "WAL does
# not work over a network filesystem".
NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs",
    "fuse.mfs", "fuse.s3fs", "fuse.sshfs", "fuse.weka", "glusterfs", "gpfs", "lustre", "nfs",
    "nfs4", "ocfs2", "orangefs", "panfs", "smb3", "smbfs", "virtiofs", "vboxsf", "wekafs",
})  # fmt: skip
ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


def is_database(address: str | Path) -> bool:
    """Return True if an address is meant to be a URL and not a path."""
    return "://" in str(address) or str(address).startswith(("postgres:", "postgresql:"))


def check_ledger_address(address: str) -> None:
    """Refuse the address of a ledger that no store can have, before anything is opened.

    Raises
    ------
    InputError
        The URL is not one of PostgreSQL, or the path is a folder or names no kind of ledger.
    """
    if is_database(address):
        # Optuna and SQLAlchemy call the same database postgresql+psycopg.
        try:
            parts = urlsplit(address)
            valid = parts.scheme.partition("+")[0] in ("postgresql", "postgres")
            valid = valid and "://" in address and parts.netloc.count("@") < 2 and parts.port != 0
        except ValueError:  # of a host in brackets, or of a port that is no number
            valid = False
        if not valid:
            raise InputError(f"`--ledger` must be {KINDS}, but got {without_passwords(address)}")
        return
    path = Path(address)
    require_file_place(path, "--ledger")
    if path.suffix not in SQLITE_ENDINGS and not path.exists():
        raise InputError(
            f"`--ledger` must be {KINDS}, but got {address}; write {path.name}.sqlite for a file"
        )


def store_at(address: str | Path, sweep: str | None, patience: float | None) -> tuple[Store, str]:
    """Return the store at an address and the name of the sweep in it.

    Parameters
    ----------
    address
        Path of an SQLite file, or ``postgresql://`` URL, optionally with ``?sweep=NAME``.
    sweep
        Name of the sweep, if the URL does not give it.
    patience
        Seconds for which locks and lost connections are retried; None for the default of the store.

    Raises
    ------
    InputError
        The URL is not one of PostgreSQL, or it does not name one sweep.
    """
    if not is_database(address):
        from shapelaw.trainers.ledger.sqlite import SQLiteStore

        return SQLiteStore(Path(address), patience=patience), sweep or ONLY_SWEEP
    check_ledger_address(str(address))
    parts = urlsplit(str(address))
    options = parse_qsl(parts.query)
    named = [value for name, value in options if name == "sweep"] + ([sweep] if sweep else [])
    if len(set(named)) != 1 or not named[0]:
        raise InputError(
            "`?sweep=NAME` must name one of the sweeps of a database, "
            f"but got {' and '.join(map(repr, named)) or 'none'}; "
            "end the URL with ?sweep=NAME"
        )
    rest = urlencode([pair for pair in options if pair[0] != "sweep"], quote_via=quote)
    from shapelaw.trainers.ledger.postgres import PostgresStore

    url = urlunsplit(("postgresql", parts.netloc, parts.path, rest, ""))
    return PostgresStore(url, patience=patience), named[0]


def network_disk(path: Path) -> str | None:
    """Return the type of the network file system of a path.

    The result is None for a local disk, and on systems without ``/proc``. The path need not exist.
    """
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    resolved = path.absolute().resolve()
    best, kind = 0, None
    for line in lines:
        _, point, kind_of_mount, *_ = line.split(" ")
        for escape, character in ESCAPES:
            point = point.replace(escape, character)
        if resolved.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), kind_of_mount
    return kind if kind in NETWORK_FILE_SYSTEMS else None
