"""Conditions under which a serving engine computes an architecture as the trainer does.

One table of block properties: an engine that is not named in it computes every family, as the
embedded one does. The conditions come from comparisons of log-probabilities on random weights,
which the tests of the engines repeat.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError

TRANSFORMERS, VLLM, LLAMACPP = "transformers", "vllm", "llamacpp"
SERVING_ENGINES = ("torch", TRANSFORMERS, VLLM, LLAMACPP)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Property that an architecture must have to be computed alike.

    Parameters
    ----------
    engines
        Engines with this condition.
    rule
        The rule, as an error says it in backticks.
    broken
        Returns what breaks the rule; None where the rule holds.
    reason
        What the engine would do instead.
    """

    engines: tuple[str, ...]
    rule: str
    broken: Callable[[Architecture], Any]
    reason: str


def attentions(architecture: Architecture) -> Iterator[AttentionBlock]:
    """Return the attention of each layer that has one over keys and values."""
    blocks = (layer.attention for layer in architecture.each_layer())
    return (block for block in blocks if isinstance(block, AttentionBlock))


def canon_places(architecture: Architecture) -> str | None:
    """Return the places of Canon layers."""
    canon = architecture.first_layer.canon
    return canon.places if canon else None


CONDITIONS = (
    Condition(
        engines=(TRANSFORMERS, VLLM, LLAMACPP),
        rule="canon_set == null",
        broken=canon_places,
        reason="no other engine has Canon layers",
    ),
)


def broken_condition(architecture: Architecture, engine: str) -> tuple[Condition, Any] | None:
    """Return the first condition that an architecture breaks in an engine, and what breaks it."""
    for condition in CONDITIONS:
        value = condition.broken(architecture) if engine in condition.engines else None
        if value is not None:
            return condition, value
    return None


def serving_engines(architecture: Architecture) -> list[str]:
    """Return the engines that compute an architecture as the trainer does."""
    return [name for name in SERVING_ENGINES if broken_condition(architecture, name) is None]


def require_computed_alike(architecture: Architecture, engine: str) -> None:
    """Refuse an architecture that an engine computes differently or not at all.

    Parameters
    ----------
    engine
        Name of an engine.

    Raises
    ------
    InputError
        The architecture breaks a condition of the engine.
    """
    broken = broken_condition(architecture, engine)
    if broken is not None:
        condition, value = broken
        others = " or ".join(serving_engines(architecture))
        raise InputError(
            f"`{condition.rule}` must hold in the {engine} engine, but got {shown(value)}: "
            f"{condition.reason}; use --engine {others}"
        )
