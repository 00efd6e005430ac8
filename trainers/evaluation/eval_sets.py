"""Local evaluation sets: an archive or a folder with ``blimp/*.jsonl`` and ``tasks/*.jsonl``."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import parse_json, read_bytes
from shapelaw.scaling.schema import conform
from shapelaw.trainers.corpus.zstd import open_unpacked

BLIMP, TASKS = "blimp", "tasks"
MAX_BYTES = 2**29  # of all files, unpacked
TOO_LARGE = f"it has more than {MAX_BYTES // 2**20} MiB"
EXPECTED_LAYOUT = "give a folder or a .tar.zst with blimp/*.jsonl and tasks/*.jsonl"


@dataclass(frozen=True)
class EvalFiles:
    """Contents of evaluation files by path, such as ``tasks/piqa.jsonl``, unpacked in memory."""

    contents: dict[str, bytes]

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files of a folder, without folder and suffix."""
        return sorted(Path(name).stem for name in self.contents if Path(name).parts[0] == folder)

    def items(self, name: str, kind: Any = dict) -> list[dict[str, Any]]:
        """Parse the items of a file, one per line.

        Parameters
        ----------
        name
            Path of the file.
        kind
            Type that describes an item, as for :func:`shapelaw.scaling.schema.conform`.

        Raises
        ------
        InputError
            The file does not exist or is empty, or a line of it is not such an item.
        """
        if name not in self.contents:
            raise InputError(f"the evaluation sets lack {name}; {EXPECTED_LAYOUT}")
        rows = []
        for number, line in enumerate(self.contents[name].splitlines(), start=1):
            try:
                rows.append(conform(parse_json(line, "the item"), kind))
            except InputError as error:
                raise InputError(
                    f"{name} line {number} is no item of this task ({error}); correct or remove it"
                ) from None
        if not rows:
            raise InputError(f"{name} holds no item; {EXPECTED_LAYOUT}")
        return rows

    def sha256(self, name: str) -> str:
        """Return the hexadecimal SHA-256 digest of a file."""
        return hashlib.sha256(self.contents[name]).hexdigest()


def read_evals(path: Path) -> EvalFiles:
    """Read evaluation sets.

    Parameters
    ----------
    path
        Folder or tar archive (plain, .gz, .zst) with ``blimp/*.jsonl`` and ``tasks/*.jsonl``.

    Raises
    ------
    InputError
        The path cannot be read, or contains neither of the two folders.
    """
    try:
        contents = dict(_folder(path) if path.is_dir() else _archive(path))
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = str(error).partition("\n")[0]  # tarfile lists every compression that it tried
        raise InputError(
            f"the evaluation sets {path} cannot be read ({reason}); {EXPECTED_LAYOUT}"
        ) from None
    if not contents:
        raise InputError(f"{path} has no evaluation sets; {EXPECTED_LAYOUT}")
    return EvalFiles(contents)


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for folder in (BLIMP, TASKS):
        for file in sorted((path / folder).glob("*.jsonl")):
            yield f"{folder}/{file.name}", read_bytes(file, MAX_BYTES)


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    with open_unpacked(path) as stream:
        content = io.BytesIO(stream.read(MAX_BYTES + 1))
    if len(content.getbuffer()) > MAX_BYTES:
        raise OSError(TOO_LARGE)
    left = MAX_BYTES
    with tarfile.open(fileobj=content) as archive:
        for member in archive:
            parts = Path(member.name).parts[-2:]
            if len(parts) == 2 and parts[0] in (BLIMP, TASKS) and parts[1].endswith(".jsonl"):
                if (left := left - member.size) < 0:
                    raise OSError(TOO_LARGE)
                file = archive.extractfile(member)
                if file is not None:
                    yield "/".join(parts), file.read()
