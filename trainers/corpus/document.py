"""The one type that goes down the pipeline of a corpus, and the error of a record that is none."""

import hashlib
from dataclasses import dataclass

from shapelaw.scaling.errors import InputError

WAY_OUT = "give UTF-8 .txt, .jsonl, .parquet, one of these as .zst, or a folder of them"


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus in UTF-8, and the number of the source that it comes from."""

    text: bytes
    source: int = 0

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """SHA-256 of the text, and of the text without the white space at its two ends."""
        whole, content = hashlib.sha256(self.text).digest(), self.text.strip()
        same = len(content) == len(self.text)
        return whole, whole if same else hashlib.sha256(content).digest()


def unreadable(
    place: object, rule: str, *, line: int | None = None, way_out: str = WAY_OUT
) -> InputError:
    """Return the error of a bad record: where it stands, the rule that it breaks, the way out.

    Every reader of text reports through this function.
    """
    where = str(place) if line is None else f"{place} line {line}"
    return InputError(f"{where} cannot be read: {rule}; {way_out}")
