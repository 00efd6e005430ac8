"""Measurements that are kept: nothing is measured twice unless asked."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import WorkError
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import Workload, parse_workload

FOLDER = "SHAPELAW_CACHE"  # environment variable: another place than the user's cache folder
FILE = "measurements.jsonl"


def cache_folder() -> Path:
    """Where a user's caches of shapelaw are, by the rules of the operating system."""
    import pooch

    return Path(os.environ.get(FOLDER) or pooch.os_cache("shapelaw"))


@dataclass
class MeasurementStore:
    """A file of measurements, one JSON document per line; many processes may write at once.

    A line is appended whole under a lock, and begins on a line of its own even where a killed
    writer left half of one; lines that are not whole are passed over. Of several lines of one key
    the last counts.
    """

    path: Path
    _known: dict[str, Measurement] = field(default_factory=dict)
    _read: int = 0  # bytes

    @classmethod
    def of_user(cls) -> "MeasurementStore":
        """The store in the user's cache folder."""
        return cls(cache_folder() / FILE)

    def get(self, key: str) -> Measurement | None:
        """What was kept under a key, by any process."""
        self._catch_up()
        return self._known.get(key)

    def put(self, key: str, about: dict[str, Any], measurement: Measurement) -> None:
        """Keep a measurement; ``about`` says in words what the key stands for.

        Raises
        ------
        shapelaw.scaling.errors.WorkError
            The file cannot be written.
        """
        document = {"key": key, **about, "measurement": asdict(measurement)}
        line = json.dumps(document, allow_nan=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 1, 0))
                torn = size > 0 and file.read(1) != b"\n"
                file.write(b"\n" + line if torn else line)
        except OSError as error:
            raise WorkError(
                f"{self.path} could not be written ({error.strerror}); free space, or name "
                f"another folder in {FOLDER}"
            ) from error

    def _catch_up(self) -> None:
        """Read what was appended since the last look, up to the last whole line."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:  # somebody emptied it
                    self._known, self._read = {}, 0
                file.seek(self._read)
                appended = file.read()
        except FileNotFoundError:
            self._known, self._read = {}, 0
            return
        except OSError as error:
            raise WorkError(f"{self.path} cannot be read: {error.strerror}") from error
        whole = appended[: appended.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            # Half a line of a killed writer, or fields of another version: measured again.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                document = json.loads(line)
                self._known[document["key"]] = Measurement(**document["measurement"])


class CachedEngine(Engine):
    """An engine that looks up before it measures.

    The key is made of the shape, the engine's label, version and device, and what the workload
    serves (its name and limits change no speed). Disturbed measurements are returned but not kept.

    Parameters
    ----------
    engine
        What measures; one without version or device is asked every time.
    store
        Where measurements are kept.
    fresh
        Measure again whatever this object has not measured itself.
    """

    def __init__(self, engine: Engine, store: MeasurementStore, *, fresh: bool = False) -> None:
        self.engine, self.store, self.fresh = engine, store, fresh
        self.name, self.kind = engine.name, engine.kind
        self._own: set[str] = set()
        self.measured = 0  # shapes for which the engine was asked

    @property
    def label(self) -> str:
        """The label of the engine inside."""
        return self.engine.label

    def key(self, shape: Shape, workload: Workload) -> tuple[str, dict[str, Any]] | None:
        """The key of a measurement and what it is made of; None: this engine keeps none."""
        version = getattr(self.engine, "version", None)
        device = getattr(self.engine, "device", None)
        if not isinstance(version, str) or not isinstance(device, str):
            return None
        about = {
            "shape": asdict(shape),
            "engine": self.label,
            "version": version,
            "workload": workload.served,
            "device": device,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return digest[:32], about

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Look up, or measure and keep."""
        kept = self._kept(shape, workload)
        if kept is not None:
            return kept
        found = self.engine.measure(shape, workload)
        self._keep(shape, workload, found)
        return found

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        """Look up every shape; measure the rest together, each distinct shape once."""
        known: dict[Shape, Measurement | str] = {}
        for shape in shapes:
            kept = self._kept(shape, workload)
            if kept is not None:
                known[shape] = kept
        rest = [shape for shape in dict.fromkeys(shapes) if shape not in known]
        together = getattr(self.engine, "together", 1)
        for begin in range(0, len(rest), together):  # what is done is kept if the next is killed
            part = rest[begin : begin + together]
            for shape, found in zip(part, self.engine.measure_all(part, workload), strict=True):
                known[shape] = found
                self._keep(shape, workload, found)
        return [known[shape] for shape in shapes]

    def _kept(self, shape: Shape, workload: Workload) -> Measurement | None:
        key = self.key(shape, workload)
        if key is None or (self.fresh and key[0] not in self._own):
            return None
        kept = self.store.get(key[0])
        return None if kept is None else replace(kept, workload=str(workload))

    def _keep(self, shape: Shape, workload: Workload, found: Measurement | str) -> None:
        self.measured += 1
        key = self.key(shape, workload)
        if key is None or isinstance(found, str) or found.disturbed:
            return
        self.store.put(*key, found)
        self._own.add(key[0])


def stored_engine(text: str, *, keep: bool = True, fresh: bool = False) -> Engine:
    """Make the engine ``NAME[:HARDWARE]`` with the user's store of measurements.

    Parameters
    ----------
    keep
        Look up and keep measurements.
    fresh
        Measure again what is kept.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        There is no such engine, or a package that it needs is not installed.
    """
    engine = engine_named(text)
    return CachedEngine(engine, MeasurementStore.of_user(), fresh=fresh) if keep else engine


def measure(
    shape: Shape,
    workload: Workload | str = "balanced",
    *,
    engine: str = "torch",
    keep: bool = True,
    fresh: bool = False,
) -> Measurement:
    """Measure or predict how fast an engine serves a shape.

    Parameters
    ----------
    workload
        A workload, or its text as :func:`shapelaw.search.workload.parse_workload` reads it.
    engine
        Name of the engine and, where it takes one, its hardware: ``torch``, ``roofline:h100``.
    keep
        Look the measurement up in the user's cache folder, and keep a new one there.
    fresh
        Measure again even if the cache holds the measurement.

    Returns
    -------
    Output tokens/s with a 95 % interval, TTFT and TPOT in seconds, and where they come from.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The engine or the workload does not exist, a package that the engine needs is not
        installed, or the engine cannot run the shape.

    Examples
    --------
    >>> import shapelaw
    >>> shape = shapelaw.shape_named("llama-3.2-1b")
    >>> measurement = shapelaw.measure(shape, "chat@64:bf16", engine="roofline:h100")
    >>> print(f"{measurement.kind}: TTFT {measurement.ttft:.3f} s")
    predicted: TTFT 0.083 s
    """
    work = workload if isinstance(workload, Workload) else parse_workload(workload)
    return stored_engine(engine, keep=keep, fresh=fresh).measure(shape, work)
