"""Documents on disk, with sizes, digests, order and sources as arrays in memory.

The text itself is in a file, so that memory holds 82 bytes per document of any size.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.corpus.document import Document


class TextStore:
    """Context manager of an unnamed temporary file of text, which disappears with the process."""

    def __init__(self, folder: Path) -> None:
        """Open a store on the disk of ``folder``, which need not exist yet."""
        place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        try:
            self.file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise WorkError(
                f"{folder} cannot be written to ({error.strerror}); choose another --out folder"
            ) from error
        self.size = 0

    def append(self, text: bytes) -> int:
        """Append a text and return its offset."""
        try:
            self.file.seek(self.size)
            self.file.write(text)
        except OSError as error:
            raise WorkError(
                f"the text could not be kept while it is read ({error.strerror}); free space"
            ) from error
        begin, self.size = self.size, self.size + len(text)
        return begin

    def read(self, offset: int, size: int) -> bytes:
        """Read text from an offset on."""
        self.file.seek(offset)
        return self.file.read(size)

    def keep(
        self, documents: Iterable[Document], limit: int, *, source: int = 0
    ) -> "StoredDocuments":
        """Store documents without zero bytes up to ``limit`` bytes; blank documents are left out.

        Only whole documents are kept, except that a first document beyond the limit is cut.
        """
        offsets: list[int] = []
        sizes: list[int] = []
        digests: list[tuple[bytes, bytes]] = []
        room, truncated = limit, False
        for document in documents:
            text = document.text.replace(b"\0", b"")
            if not text.strip():
                continue
            if len(text) > room:
                truncated = True
                if sizes or not room:
                    break
                text = text[:room]
            offsets.append(self.append(text))
            sizes.append(len(text))
            digests.append(Document(text).digests)
            room -= len(text)
            if truncated:
                break
        whole, contents = np.array(digests, dtype="S32").reshape(-1, 2).T
        return StoredDocuments(
            store=self,
            offsets=np.array(offsets, dtype=np.int64),
            sizes=np.array(sizes, dtype=np.int64),
            digests=whole,
            content_digests=contents,
            sources=np.full(len(sizes), source, dtype=np.int16),
            truncated=truncated,
        )

    def __enter__(self) -> "TextStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@dataclass(frozen=True, kw_only=True)
class StoredDocuments:
    """Documents of a store in an order; iteration reads them.

    ``offsets`` and ``sizes`` are in bytes, (documents,) int64. ``digests`` are the SHA-256 digests
    of the texts and ``content_digests`` those without white space at both ends, (documents,)
    ``S32``. ``sources`` are the numbers of the sources, (documents,) int16. ``truncated`` is true
    if the source had more text than the limit.
    """

    store: TextStore
    offsets: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray
    content_digests: np.ndarray
    sources: np.ndarray
    truncated: bool = False

    def __iter__(self) -> Iterator[Document]:
        columns = (self.offsets.tolist(), self.sizes.tolist(), self.sources.tolist())
        for offset, size, source in zip(*columns, strict=True):
            yield Document(self.store.read(offset, size), source)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> int:
        """Number of bytes of all documents."""
        return int(self.sizes.sum())

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the documents in their order."""
        return hashlib.sha256(self.digests.tobytes()).hexdigest()

    def text(self, number: int) -> bytes:
        """Read one document."""
        return self.store.read(int(self.offsets[number]), int(self.sizes[number]))

    def take(self, index: np.ndarray | slice) -> "StoredDocuments":
        """Return some of the documents, by number, mask or slice, in that order."""
        return replace(self, **{name: getattr(self, name)[index] for name in COLUMNS})

    def first(self, size: int) -> "StoredDocuments":
        """Return the documents that begin within the first bytes."""
        return self.take(np.cumsum(self.sizes) - self.sizes < size)

    def shuffled(self) -> "StoredDocuments":
        """Return all documents in the order of their digests, which is a fixed shuffle."""
        return self.take(np.argsort(self.digests, kind="stable"))

    def without(self, content_digests: np.ndarray) -> "StoredDocuments":
        """Return the documents whose content has none of the given digests."""
        return self.take(~np.isin(self.content_digests, content_digests))

    def cut(self, number: int, begin: int, end: int) -> "StoredDocuments":
        """Return the same documents, with one of them cut to its bytes ``begin`` to ``end``."""
        columns = {name: getattr(self, name).copy() for name in COLUMNS}
        columns["offsets"][number] += begin
        columns["sizes"][number] = end - begin
        part = replace(self, **columns)
        columns["digests"][number], columns["content_digests"][number] = Document(
            part.text(number)
        ).digests
        return part


COLUMNS = [
    field.name for field in fields(StoredDocuments) if field.name not in ("store", "truncated")
]


def concatenated(parts: Iterable[StoredDocuments]) -> StoredDocuments:
    """Concatenate documents of one store."""
    parts = list(parts)
    changed: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS
    }
    return replace(parts[0], **changed, truncated=any(part.truncated for part in parts))
