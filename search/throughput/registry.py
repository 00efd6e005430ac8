"""Engines by name."""

from collections.abc import Callable

from scaling.errors import InputError
from search.throughput._base import Engine


def _torch(hardware: str | None) -> Engine:
    from search.throughput._torch import TorchEngine

    return TorchEngine(hardware)


def _roofline(hardware: str | None) -> Engine:
    from search.throughput._roofline import RooflineEngine

    return RooflineEngine(hardware)


def _transformers(hardware: str | None) -> Engine:
    from search.throughput._transformers import TransformersEngine

    return TransformersEngine(hardware)


# Constructors that import what they need: an engine that is not asked for costs nothing.
ENGINES: dict[str, Callable[[str | None], Engine]] = {
    "torch": _torch,
    "transformers": _transformers,
    "roofline": _roofline,
}


def engine_named(text: str) -> Engine:
    """Make the engine ``NAME[:HARDWARE]``.

    Raises
    ------
    InputError
        There is no such engine or hardware.
    """
    name, _, hardware = text.partition(":")
    if name not in ENGINES:
        raise InputError(
            f"`--engine` must be one of {', '.join(ENGINES)}, with :HARDWARE where it takes one, "
            f"but got {text!r}"
        )
    return ENGINES[name](hardware or None)
