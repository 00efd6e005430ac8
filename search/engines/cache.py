"""A store of measurements, and an engine that measures only shapes that the store lacks."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from filelock import FileLock

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import parse_json
from shapelaw.scaling.schema import Name, conform
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.concurrency import measure_fastest, measure_one_fastest
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import Workload, parse_workload
from shapelaw.trainers.generation.decoding_settings import parse_decoder

FOLDER_VARIABLE = "SHAPELAW_CACHE"  # environment variable that names another cache folder
FILE = "measurements.jsonl"


def cache_folder() -> Path:
    """Return the user's cache folder of shapelaw, by the rules of the operating system."""
    import pooch

    return Path(os.environ.get(FOLDER_VARIABLE) or pooch.os_cache("shapelaw"))


class KeptMeasurement(TypedDict):
    """A line of the store, beside the fields that its key is a hash of."""

    key: Name
    measurement: Measurement


@dataclass
class MeasurementStore:
    """A file of measurements, one JSON document per line, that many processes may write at once.

    A line is appended whole under a lock, and begins on a new line even after a writer that was
    killed in the middle of one. Incomplete lines are skipped. Of several lines with the same key
    the last one counts.
    """

    path: Path
    _measurements: dict[str, Measurement] = field(default_factory=dict)
    _bytes_read: int = 0  # bytes

    @classmethod
    def of_user(cls) -> "MeasurementStore":
        """Open the store in the user's cache folder."""
        return cls(cache_folder() / FILE)

    def get(self, key: str) -> Measurement | None:
        """Return the measurement that any process stored under a key."""
        self._read_appended()
        return self._measurements.get(key)

    def put(self, key: str, about: dict[str, Any], measurement: Measurement) -> None:
        """Store a measurement.

        Parameters
        ----------
        about
            The fields that the key is a hash of, for a reader of the file.

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
                f"another folder in {FOLDER_VARIABLE}"
            ) from error

    def _read_appended(self) -> None:
        """Read the lines appended since the last call, up to the last complete one."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._bytes_read:  # the file was emptied
                    self._measurements, self._bytes_read = {}, 0
                file.seek(self._bytes_read)
                for line in file:
                    if line.endswith(b"\n"):
                        self._bytes_read += len(line)
                        self._keep(line)
        except FileNotFoundError:
            self._measurements, self._bytes_read = {}, 0
            return
        except OSError as error:
            raise WorkError(f"{self.path} cannot be read: {error.strerror}") from error

    def _keep(self, line: bytes) -> None:
        """Take a line in; one cut off by a kill, or of another version, is skipped."""
        with contextlib.suppress(InputError):
            kept = conform(parse_json(line, str(self.path)), KeptMeasurement)
            self._measurements[kept["key"]] = kept["measurement"]


class CachedEngine(Engine):
    """An engine that looks a measurement up in a store before it measures.

    The key is a hash of the shape, the engine's label, version and device, and the workload
    without its name and limits, which change no speed. Disturbed measurements are returned but not
    stored.

    Parameters
    ----------
    engine
        The engine that measures; the results of one without version or device are not stored.
    store
        Where measurements are stored.
    fresh
        Measure again every shape that this object has not measured itself.
    """

    def __init__(self, engine: Engine, store: MeasurementStore, *, fresh: bool = False) -> None:
        self.engine, self.store, self.fresh = engine, store, fresh
        self.serves_architectures = engine.serves_architectures
        self.decodes_diffusion = engine.decodes_diffusion
        self.architecture_note = engine.architecture_note
        self.name, self.kind, self.is_formula = engine.name, engine.kind, engine.is_formula
        self.known_error, self.supported = engine.known_error, engine.supported
        self.searches_concurrency = engine.searches_concurrency
        self.default_dtype, self.decoder_text = engine.default_dtype, engine.decoder_text
        self._measured_keys: set[str] = set()
        self.measured = 0  # shapes that the engine itself measured or refused

    @property
    def label(self) -> str:
        """Return the label of the wrapped engine."""
        return self.engine.label

    def times(self, table: ShapeTable, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
        """Compute the times of the wrapped engine's formula, which are not stored."""
        return self.engine.times(table, workload)

    def speeds(
        self, table: ShapeTable, workload: Workload
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the speeds of the wrapped engine's formula, which are not stored."""
        return self.engine.speeds(table, workload)

    def key(self, shape: Shape, workload: Workload) -> tuple[str, dict[str, Any]] | None:
        """Return the key of a measurement and its fields; None if it is not stored."""
        version = getattr(self.engine, "version", None)
        device = getattr(self.engine, "device", None)
        if not isinstance(version, str) or not isinstance(device, str):
            return None
        about = {
            "shape": shape.row(),
            "engine": self.label,
            "version": version,
            "workload": workload.served,
            "device": device,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return digest[:32], about

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Look a measurement up, or measure and store it."""
        if workload.automatic and self.searches_concurrency:
            workload = self.served_workload(workload)
            return measure_one_fastest(self.measure_all, shape, workload)
        stored = self._look_up(shape, workload)
        if stored is not None:
            return stored
        measurement = self.engine.measure(shape, workload)
        self._store(shape, workload, measurement)
        return measurement

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        """Look every shape up; measure the missing ones together, each distinct shape once."""
        if workload.automatic and self.searches_concurrency:
            workload = self.served_workload(workload)
            return measure_fastest(self.measure_all, shapes, workload)
        results: dict[Shape, Measurement | str] = {}
        for shape in shapes:
            stored = self._look_up(shape, workload)
            if stored is not None:
                results[shape] = stored
        missing = [shape for shape in dict.fromkeys(shapes) if shape not in results]
        together = getattr(self.engine, "together", 1)
        for begin in range(0, len(missing), together):  # a kill loses one part at most
            part = missing[begin : begin + together]
            for shape, result in zip(part, self.engine.measure_all(part, workload), strict=True):
                results[shape] = result
                self._store(shape, workload, result)
        return [results[shape] for shape in shapes]

    def _look_up(self, shape: Shape, workload: Workload) -> Measurement | None:
        key = self.key(shape, workload)
        if key is None or (self.fresh and key[0] not in self._measured_keys):
            return None
        stored = self.store.get(key[0])
        return None if stored is None else replace(stored, workload=str(workload))

    def _store(self, shape: Shape, workload: Workload, result: Measurement | str) -> None:
        self.measured += 1
        key = self.key(shape, workload)
        if key is None or isinstance(result, str) or result.disturbed:
            return
        self.store.put(*key, result)
        self._measured_keys.add(key[0])


def stored_engine(
    text: str, *, keep: bool = True, fresh: bool = False, decoder: str | None = None
) -> Engine:
    """Make the engine ``NAME[:HARDWARE]`` with the user's store of measurements.

    Parameters
    ----------
    keep
        Look measurements up in the store, and add new ones to it.
    fresh
        Measure again even if the store holds a measurement.
    decoder
        Settings of a decoder as text; None for the engine's own.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The engine does not exist, has no such decoder, or a package that it needs is not installed.
    """
    settings = None if decoder is None else parse_decoder(decoder)
    engine = engine_named(text)
    if settings is not None:
        engine = engine.with_decoder(settings)
    return CachedEngine(engine, MeasurementStore.of_user(), fresh=fresh) if keep else engine


def measure(
    shape: Shape | str,
    workload: Workload | str = "balanced",
    *,
    engine: str = "torch",
    keep: bool = True,
    fresh: bool = False,
) -> Measurement:
    """Measure or predict how fast an engine serves a shape.

    Parameters
    ----------
    shape
        A shape, or the name of a published model's.
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
    if not isinstance(shape, Shape):
        shape = shape_named(str(shape))
    measuring = stored_engine(engine, keep=keep, fresh=fresh)
    if not isinstance(workload, Workload):
        workload = parse_workload(str(workload), dtype=measuring.default_dtype)
    return measuring.measure(shape, workload)
