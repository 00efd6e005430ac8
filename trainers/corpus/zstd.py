"""Files compressed with Zstandard, read as a stream of any number of frames."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHUNK = 131_072  # packed bytes that are read at once
PIECE = 1024  # packed bytes that are unpacked at once: at most 32 MB, as 4 of them can be 128 kB
BUFFER = 1_048_576  # unpacked bytes that are held ready
MAX_RATIO = 500  # unpacked bytes for a packed one; text has fewer
MIN_SUSPICIOUS = 2**26  # unpacked bytes up to which any ratio is accepted


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed if its name ends in ``.zst``.

    Raises
    ------
    OSError
        The file cannot be read, is not a Zstandard file, is truncated, or unpacks to far more than
        text does.
    """
    with path.open("rb") as raw:
        yield io.BufferedReader(_ZstdReader(raw), BUFFER) if path.suffix == ".zst" else raw


class _ZstdReader(io.RawIOBase):
    """Decompressor of Zstandard frames; damage and truncation raise OSError, as in other files."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.ready = raw, b""
        self.chunks = self._decompressed()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.ready = chunk
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def _decompressed(self) -> Iterator[bytes]:
        import zstandard

        frame, read, made = None, 0, 0
        while packed := self.raw.read(CHUNK):
            while packed:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                try:
                    piece = frame.decompress(packed[:PIECE])
                except zstandard.ZstdError as error:
                    raise OSError(f"not a zstd file ({error})") from error
                read, made = read + min(PIECE, len(packed)), made + len(piece)
                if made > max(MIN_SUSPICIOUS, MAX_RATIO * read):
                    raise OSError(f"it unpacks to more than {MAX_RATIO} times its size; unpack it")
                yield piece
                packed = (frame.unused_data if frame.eof else b"") + packed[PIECE:]
        if frame is not None and not frame.eof:
            raise OSError("the zstd file ends early; it is incomplete")
