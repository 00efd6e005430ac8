"""Visibility of tokens: the kinds of attention mask, documents, and what a cache keeps.

A token is numbered by its position; in ``noisy_and_clean`` by its place in the 2L tokens. Shape
letters: B sequences, T new tokens, S tokens that may be seen, L tokens of one half.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from shapelaw.scaling.errors import InputError

Kind = Literal["causal", "full", "block", "noisy_and_clean"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Span = tuple[int, int]  # of tokens: the first one, and the one after the last


@dataclass(frozen=True)
class Visibility:
    """Kind of attention mask: token i sees token j if the rule of the kind says so.

    Parameters
    ----------
    kind
        ``causal``: j <= i. ``full``: always. ``block``: block(j) <= block(i). ``noisy_and_clean``,
        the training pass of block diffusion (arXiv 2503.09573): the tokens are a noisy text of L
        tokens and then the clean text; noisy tokens see the noisy ones of their own block and the
        clean ones of earlier blocks, clean tokens the clean ones with block(j) <= block(i).
        A window of W tokens reaches W - 1 tokens back, and as far ahead where the kind allows it;
        a chunk limits every kind.
    block
        Tokens of a block, of the kinds with blocks; 0 for the others.
    origin
        Position at which the first block begins. The positions before it (a prompt) are one block.
    """

    kind: Kind
    block: int = 0
    origin: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"`kind` must be one of {', '.join(KINDS)}, but got {self.kind!r}")
        if self.blocked != (self.block > 0):
            rule = "at least 1" if self.blocked else "0"
            raise InputError(f"`block` of kind {self.kind} must be {rule}, but got {self.block}")
        if self.origin < 0 or (self.origin and not self.blocked):
            rule = "at least 0" if self.blocked else "0"
            raise InputError(f"`origin` of kind {self.kind} must be {rule}, but got {self.origin}")

    @property
    def blocked(self) -> bool:
        """True for the kinds with blocks."""
        return self.kind in ("block", "noisy_and_clean")

    def blocks(self, positions: Tensor) -> Tensor:
        """Return the number of the block of each position; -1 before the origin."""
        return ((positions - self.origin) // self.block).clamp(min=-1)

    def _begin(self, position: int) -> int:
        """Return the first position of the block of a position."""
        if position < self.origin:
            return 0
        return position - (position - self.origin) % self.block

    def _end(self, position: int) -> int:
        """Return the position after the block of a position."""
        if position < self.origin:
            return self.origin
        return self._begin(position) + self.block


CAUSAL, FULL = Visibility("causal"), Visibility("full")


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenView:
    """Tokens of one forward pass and what they see.

    Parameters
    ----------
    visibility
        Kind of mask.
    start
        Position of the first new token.
    count
        Number of new tokens, T.
    keep
        Number of new tokens that are written to the cache; None for all.
    documents
        Document of each token that may be seen, (B, S): of the new ones, and before them of the
        cached ones. Tokens see those of their own document. None if all belong to one.
    """

    visibility: Visibility = CAUSAL
    start: int = 0
    count: int
    keep: int | None = None
    documents: Tensor | None = None

    def check(self, *, cached: bool) -> None:
        """Refuse arguments that do not fit together.

        Raises
        ------
        InputError
            A pass of two halves has an odd number of tokens or a cache; the documents are not as
            many as the tokens; more tokens are to be kept than there are, or without a cache.
        """
        if self.visibility.kind == "noisy_and_clean" and (self.count % 2 or cached or self.start):
            raise InputError(
                "`tokens` of kind noisy_and_clean must be two halves of one length, without a "
                f"cache, but got {self.count} at position {self.start}; for decoding use kind block"
            )
        if self.keep is not None and not (cached and 0 <= self.keep <= self.count):
            rule = f"from 0 to {self.count}, the tokens given" if cached else "None without a cache"
            raise InputError(f"`keep` must be {rule}, but got {self.keep}")
        seen = self.count + (self.start if cached else 0)
        if self.documents is not None and self.documents.shape[-1] != seen:
            raise InputError(
                f"`documents` must have {seen} columns, one for each new and each cached token, "
                f"but got {self.documents.shape[-1]}"
            )

    @property
    def end(self) -> int:
        """Number after the last token."""
        return self.start + self.count

    @property
    def kept(self) -> int:
        """Number of new tokens that are written to the cache."""
        return self.count if self.keep is None else self.keep

    @property
    def half(self) -> int:
        """Tokens of one half in a pass of two, else 0."""
        return self.count // 2 if self.visibility.kind == "noisy_and_clean" else 0

    @property
    def plain(self) -> bool:
        """True for causal attention in one document, to itself or of one token to a cache."""
        simple = self.visibility.kind == "causal" and self.documents is None and self.keep is None
        return simple and (self.start == 0 or self.count == 1)

    def rows_of(self, table: Tensor, dim: int) -> Tensor:
        """Return the rows of a table of positions, along a dimension, for the new tokens."""
        count = self.half or self.count
        rows = table.narrow(dim, self.start, count)
        return torch.cat((rows, rows), dim=dim) if self.half else rows

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of each new token, (T,)."""
        numbers = torch.arange(self.start, self.end, device=device)
        return numbers % self.half if self.half else numbers

    def spans(self, first: int, end: int, seen: int) -> tuple[Span, ...]:
        """Return the tokens that new tokens see at all, of the last ``seen`` tokens.

        Parameters
        ----------
        first, end
            Numbers of the first new token and of that after the last; of one half where there are
            two.
        seen
            Number of tokens that are given, S.
        """
        oldest, kind, half = self.end - seen, self.visibility, self.half
        if kind.kind == "causal":
            return ((oldest, end),)
        if kind.kind == "full":
            return ((oldest, self.end),)
        if not half:
            return ((oldest, min(kind._end(end - 1), self.end)),)
        if first >= half:
            return ((half, half + min(kind._end(end - 1 - half), half)),)
        noisy = (kind._begin(first), min(kind._end(end - 1), half))
        clean = (half, half + kind._begin(end - 1))
        return (noisy, clean) if clean[0] < clean[1] else (noisy,)

    def visible(
        self,
        queries: Span,
        spans: tuple[Span, ...],
        *,
        window: int | None,
        chunked: bool,
        device: torch.device,
    ) -> Tensor:
        """Return which tokens each new token sees, (rows, columns) or (B, rows, columns)."""
        make = visible if torch.compiler.is_compiling() else _cached_visible
        seen = make(self.visibility, self.half, queries, spans, window, chunked, device)
        if self.documents is None:
            return seen
        first = self.end - self.documents.shape[-1]  # the number of the first column
        rows = self.documents[:, queries[0] - first : queries[1] - first]
        parts = [self.documents[:, begin - first : end - first] for begin, end in spans]
        return seen & (rows[:, :, None] == torch.cat(parts, dim=1)[:, None])


def visible(
    visibility: Visibility,
    half: int,
    queries: Span,
    spans: tuple[Span, ...],
    window: int | None,
    chunked: bool,
    device: torch.device,
) -> Tensor:
    """Return which tokens of some spans each query sees, (rows, columns).

    Parameters
    ----------
    half
        Tokens of one half in a pass of two, else 0.
    window, chunked
        Window or chunk in tokens, and whether it is a chunk.
    """
    query = torch.arange(*queries, device=device)[:, None]
    key = torch.cat([torch.arange(*span, device=device) for span in spans])
    clean_query, clean_key = query >= half, key >= half
    if half:
        query, key = query % half, key % half
    if visibility.kind == "causal":
        seen = key <= query
    elif visibility.kind == "full":
        seen = (key >= 0).expand(len(query), -1)
    elif visibility.kind == "block":
        seen = visibility.blocks(key) <= visibility.blocks(query)
    else:
        own, other = visibility.blocks(query), visibility.blocks(key)
        seen = torch.where(clean_query, clean_key & (other <= own),
                           torch.where(clean_key, other < own, other == own))  # fmt: skip
    if window is None:
        return seen
    if chunked:
        return seen & (key // window == query // window)
    return seen & ((key - query).abs() < window)


@functools.lru_cache(maxsize=64)
def _cached_visible(*arguments: Any) -> Tensor:
    """Keep the results of :func:`visible`, as tensors that a backward pass may save."""
    with torch.inference_mode(False):
        return visible(*arguments)


def score_mask(
    visibility: Visibility,
    half: int,
    queries: Span,
    spans: tuple[Span, ...],
    reach: tuple[int | None, bool],
    repeats: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return minus infinity where a query does not see a token, else 0: (1, repeats·rows, columns).

    The rows are repeated for each query head of a group.
    """
    seen = visible(visibility, half, queries, spans, *reach, device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -math.inf)
    return mask.repeat(repeats, 1)[None]


cached_score_mask = functools.lru_cache(maxsize=64)(score_mask)
