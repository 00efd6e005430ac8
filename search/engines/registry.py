"""The registry of engines by name."""

from collections.abc import Callable

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import EXTRA_OF, installing
from shapelaw.search.engines._base import Engine


def _torch(hardware: str | None) -> Engine:
    from shapelaw.search.engines._torch import TorchEngine

    return TorchEngine(hardware)


def _roofline(hardware: str | None) -> Engine:
    from shapelaw.search.engines._roofline import RooflineEngine

    return RooflineEngine(hardware)


def _transformers(hardware: str | None) -> Engine:
    from shapelaw.search.engines._transformers import TransformersEngine

    return TransformersEngine(hardware)


def _vllm(hardware: str | None) -> Engine:
    from shapelaw.search.engines._vllm import VllmEngine

    return VllmEngine(hardware)


def _llamacpp(hardware: str | None) -> Engine:
    from shapelaw.search.engines._llamacpp import LlamaCppEngine

    return LlamaCppEngine(hardware)


def _aiconfigurator(hardware: str | None) -> Engine:
    from shapelaw.search.engines._aiconfigurator import AiconfiguratorEngine

    return AiconfiguratorEngine(hardware)


# Each constructor imports its engine when it is called, so that unused engines cost nothing.
ENGINES: dict[str, Callable[[str | None], Engine]] = {
    "torch": _torch,
    "transformers": _transformers,
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "aiconfigurator": _aiconfigurator,
    "roofline": _roofline,
}


def engine_named(text: str) -> Engine:
    """Make the engine ``NAME[:HARDWARE]``.

    Raises
    ------
    InputError
        The engine or the hardware does not exist, or a package that the engine needs is not
        installed.
    """
    name, _, hardware = text.partition(":")
    if name not in ENGINES:
        raise InputError(
            f"`--engine` must be one of {', '.join(ENGINES)}, with :HARDWARE where it takes one, "
            f"but got {text!r}"
        )
    try:
        return ENGINES[name](hardware or None)
    except ModuleNotFoundError as error:
        package = name if name in EXTRA_OF else error.name
        if package not in EXTRA_OF:
            raise
        raise InputError(f"`--engine {name}` needs {package}; `{installing(package)}`") from None


def engine_states() -> dict[str, str]:
    """Return for every engine ``ready``, or what it needs."""
    return {name: _state(name) for name in ENGINES}


def _state(name: str) -> str:
    try:
        engine_named(name)
    except InputError as error:
        return str(error)
    return "ready"
