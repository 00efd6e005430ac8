"""Document of a corpus, the type that all stages exchange, and the error for a bad record."""

import hashlib
from dataclasses import dataclass

from shapelaw.scaling.errors import InputError

WAY_OUT = "give UTF-8 .txt, .jsonl, .parquet, one of these as .zst, or a folder of them"


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus in UTF-8 with the number of its source."""

    text: bytes
    source: int = 0

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """SHA-256 digests of the text and of the text without white space at its ends."""
        whole, content = hashlib.sha256(self.text).digest(), self.text.strip()
        same = len(content) == len(self.text)
        return whole, whole if same else hashlib.sha256(content).digest()


def unreadable(
    place: object, rule: str, *, line: int | None = None, way_out: str = WAY_OUT
) -> InputError:
    """Return the error for a bad record, with its place, the broken rule and the way out.

    Every reader of text uses this function.
    """
    where = str(place) if line is None else f"{place} line {line}"
    return InputError(f"{where} cannot be read: {rule}; {way_out}")
