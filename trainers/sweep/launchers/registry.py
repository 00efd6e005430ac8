"""Launchers by name."""

from collections.abc import Iterable, Mapping

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.sweep.launchers._base import Launcher
from shapelaw.trainers.sweep.launchers._local import LocalLauncher
from shapelaw.trainers.sweep.launchers._ray import RayLauncher
from shapelaw.trainers.sweep.launchers._slurm import SlurmLauncher

LAUNCHERS: dict[str, type[Launcher]] = {
    "local": LocalLauncher,
    "ray": RayLauncher,
    "slurm": SlurmLauncher,
}


def launcher_named(name: str, options: Mapping[str, str] | None = None) -> Launcher:
    """A launcher by its name.

    Raises
    ------
    InputError
        There is none of that name, or an option cannot be used.
    """
    if name not in LAUNCHERS:
        raise InputError(f"`--launcher` must be one of {', '.join(LAUNCHERS)}, but got {name!r}")
    return LAUNCHERS[name](options or {})


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Options given as ``NAME=VALUE``.

    Raises
    ------
    InputError
        One has no ``=``.

    Examples
    --------
    >>> parse_options(["partition=gpu", "timeout_min=60"])
    {'partition': 'gpu', 'timeout_min': '60'}
    """
    options = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise InputError(f"`--option NAME=VALUE` must hold, but got {text!r}")
        options[name] = value
    return options
