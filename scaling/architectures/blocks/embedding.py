"""Tables of an architecture: token embedding, positions, other look-up tables, output head."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EmbeddingBlock:
    """Token embedding and output head, with optional learned positions and further tables.

    ``positions`` is the number of learned positions, 0 for rotary ones. ``other_tables`` counts the
    parameters of further tables that are looked up and not multiplied.
    """

    vocab_size: Any
    hidden_size: Any
    tied: Any
    positions: Any = 0
    other_tables: Any = 0

    @property
    def head_matmul_parameters(self) -> Any:
        """Parameters that the output head multiplies, tied or not: V·d."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> Any:
        """Parameters of all tables and of the head; a tied head counts once."""
        tables = self.head_matmul_parameters * (2 - 1 * self.tied)
        return tables + self.positions * self.hidden_size + self.other_tables
