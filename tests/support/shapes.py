"""Shapes for tests: a small shape and space, random shapes, and shapes of published models."""

import csv

from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.space.space import Space
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"
SMALL = Shape(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=48,
    vocab_size=300,
)


def small_space(**changes: object) -> Space:
    """Make a space of shapes of about 60,000 parameters."""
    settings = {
        "parameters": 60_000,
        "layers": (2, 3),
        "head_dims": (8, 16),
        "vocab_size": 64,
        "hidden_step": 16,
        "mlp_step": 8,
        "max_heads": 6,
    }
    return Space(**(settings | changes))


def read_golden(name: str) -> list[dict[str, str]]:
    """Read a CSV file of golden values."""
    with (GOLDEN / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def golden_shape(row: dict[str, str]) -> Shape:
    """Make the shape of a row of golden values."""
    return Shape(
        **{name: int(row.get(name, 1)) for name in INTEGER_FIELDS},
        tie_word_embeddings=row.get("tie_word_embeddings") == "True",
        qk_norm=row.get("qk_norm") == "True",
    )


@st.composite
def shapes(draw: st.DrawFn, *, most: int = 200, widest: int = 20_000) -> Shape:
    """Draw a random valid shape of at most ``most`` layers."""
    groups = draw(st.integers(1, 8))
    return Shape(
        hidden_size=draw(st.integers(1, widest)),
        intermediate_size=draw(st.integers(1, widest)),
        num_hidden_layers=draw(st.integers(1, most)),
        num_attention_heads=groups * draw(st.integers(1, 16)),
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 128)),
        vocab_size=draw(st.integers(1, 300_000)),
        tie_word_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        rope_theta=draw(st.floats(1.0, 1e9)),
    )
