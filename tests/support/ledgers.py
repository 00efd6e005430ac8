"""Ledgers of a few planned runs."""

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.ledger.ledger import (
    Ledger,
)
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec

SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, vocab_size=256,
)  # fmt: skip


def spec(name: str, tokens: int = 10_240) -> RunSpec:
    """Make the specification of a small run."""
    return RunSpec(run_id=name, shape=SHAPE, tokens=tokens, recipe=Recipe())


def plan(ledger: Ledger, names: str = "abc") -> Ledger:
    """Plan a run for each letter in a ledger."""
    ledger.plan([spec(name) for name in names], [f"identity of {name}" for name in names])
    return ledger


def states(ledger: Ledger) -> dict[str, str]:
    """Return the state of each run of a ledger."""
    return {entry.run_id: entry.state for entry in ledger.entries()}
