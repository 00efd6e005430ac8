"""Tables of an architecture: token embedding, positions, other look-up tables, output head."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.blocks.norm import NormBlock


@dataclass(frozen=True, kw_only=True)
class EmbeddingBlock:
    """Token embedding and output head, with optional learned positions and further tables.

    Parameters
    ----------
    positions
        Number of learned positions, 0 for rotary ones.
    other_tables
        Parameters of further tables that are looked up and not multiplied.
    scale
        Factor of the embedding of a token.
    norm
        Norm of the embedding of a token; None without.
    logit_cap
        Logits are c·tanh(logit/c) with this c; None without.
    mask_token
        Id of the token that stands for an undecided one in a diffusion model; None for an
        autoregressive model.
    shifted
        True for a diffusion model in which the position before a token predicts it, as in the
        autoregressive model from which it was converted.
    """

    vocab_size: Any
    hidden_size: Any
    tied: Any
    positions: Any = 0
    other_tables: Any = 0
    scale: float = 1.0
    norm: NormBlock | None = None
    logit_cap: float | None = None
    mask_token: int | None = None
    shifted: bool = False

    @property
    def head_matmul_parameters(self) -> Any:
        """Parameters that the output head multiplies, tied or not: V·d."""
        return self.vocab_size * self.hidden_size

    @property
    def looked_up(self) -> Any:
        """Parameters of the tables beside the token embedding, of which a token reads one row."""
        return self.positions * self.hidden_size + self.other_tables

    @property
    def parameters(self) -> Any:
        """Parameters of all tables and of the head; a tied head counts once."""
        tables = self.head_matmul_parameters * (2 - 1 * self.tied)
        norm = self.norm.parameters(self.hidden_size) if self.norm else 0
        return tables + norm + self.looked_up
