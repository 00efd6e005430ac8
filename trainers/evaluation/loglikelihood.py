"""Log-probabilities of texts under a model: what every downstream task is made of.

Shape letters of tensors: B sequences, T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.models.transformer import Transformer

BATCH_TOKENS = 1024  # positions per forward pass: more fall out of a core's cache


@dataclass(frozen=True, kw_only=True)
class LogLikelihoodRequest:
    """Tokens to be scored after tokens that are given; ``context`` holds at least one."""

    context: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """What a model says of requests, in their order.

    ``log_probability`` (n,), nats, is the sum over the continuation; ``greedy`` (n,) says whether
    every token of it was the most probable one; ``truncated`` counts the requests of which some
    token did not see all that stands before it, because the model's context is too short.
    """

    log_probability: np.ndarray
    greedy: np.ndarray
    truncated: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy on one task, as fractions.

    ``chance`` is what guessing scores; ``standard_error`` is over the items. ``normalised`` is the
    accuracy when choices compete by log-probability per character, where that is usual.
    ``details`` says how the task was put, and of what files it is made.
    """

    task: str
    accuracy: float
    standard_error: float
    chance: float
    items: int
    truncated: int
    normalised: float | None = None
    normalised_standard_error: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, float]:
        """Columns of the run table, as :func:`fit_links` reads them."""
        name = f"accuracy_{self.task}"
        found = {name: self.accuracy, f"{name}_se": self.standard_error}
        if self.normalised is not None and self.normalised_standard_error is not None:
            found[f"{name}_norm"] = self.normalised
            found[f"{name}_norm_se"] = self.normalised_standard_error
        return found


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Part of a request that fits into the model: score ``tokens[first:]`` after what is before."""

    request: int
    tokens: np.ndarray
    first: int


def request_of(encoding: Encoding, context: str, continuation: str) -> LogLikelihoodRequest:
    """A continuation after a context, after the separator of documents.

    Both are encoded as one text, as in a document; spaces that end the context belong to what
    follows, where a tokenizer may join them to it.
    """
    kept = context.rstrip()
    begin = encoding.encode(kept) if kept else np.zeros(0, dtype=np.int64)
    whole = encoding.encode(context + continuation)
    separator = np.array([encoding.separator], dtype=np.int64)
    return LogLikelihoodRequest(
        context=np.concatenate((separator, whole[: len(begin)])), continuation=whole[len(begin) :]
    )


def likelihoods(model: Transformer, requests: Sequence[LogLikelihoodRequest]) -> Likelihoods:
    """Score requests in float32, in batches of about one length.

    A request longer than the model's context keeps its end: its context is cut on the left. A
    continuation that is itself longer is scored in steps of half a context, each after as much as
    fits.

    Raises
    ------
    WorkError
        The model gives a probability that is no number.
    """
    longest = model.rotary.shape[1]
    pieces, truncated = [], 0
    for index, request in enumerate(requests):
        own = list(_pieces(index, request, longest))
        whole = len(request.context) + len(request.continuation)
        truncated += whole - 1 > longest
        pieces.extend(own)
    sums, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
    for batch in _batches(pieces):
        values, best = _score(model, batch)
        owners = [piece.request for piece in batch]
        np.add.at(sums, owners, values)
        np.logical_and.at(greedy, owners, best)
    if not np.isfinite(sums).all():
        raise WorkError(
            "the model gives a log-probability that is not finite; its weights are no result of a "
            "sound run: leave it out"
        )
    return Likelihoods(log_probability=sums, greedy=greedy, truncated=truncated)


def _pieces(index: int, request: LogLikelihoodRequest, longest: int) -> Iterator[_Piece]:
    tokens = np.concatenate((request.context, request.continuation))
    position, end = len(request.context), len(tokens)
    fits = end - position <= longest
    step = max(1, end - position if fits else longest // 2)
    while position < end:
        stop = min(end, position + step)
        start = max(0, stop - 1 - longest)
        yield _Piece(request=index, tokens=tokens[start:stop], first=position - start)
        position = stop


def _batches(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces of about one length together; the longest first, so that memory is seen at once."""
    ordered = sorted(pieces, key=lambda piece: len(piece.tokens), reverse=True)
    begin = 0
    while begin < len(ordered):
        size = max(1, BATCH_TOKENS // len(ordered[begin].tokens))
        yield ordered[begin : begin + size]
        begin += size


def _score(model: Transformer, batch: Sequence[_Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of log-probabilities (B,) and whether all scored tokens were the likeliest (B,).

    Sequences are padded on the right, which a causal model does not see.
    """
    width = max(len(piece.tokens) for piece in batch)
    tokens = np.zeros((len(batch), width), dtype=np.int64)
    scored = np.zeros((len(batch), width - 1), dtype=bool)
    for row, piece in enumerate(batch):
        tokens[row, : len(piece.tokens)] = piece.tokens
        scored[row, piece.first - 1 : len(piece.tokens) - 1] = True
    device = model.embed_tokens.weight.device
    inputs, mask = torch.from_numpy(tokens).to(device), torch.from_numpy(scored).to(device)
    with torch.inference_mode():
        hidden = model(inputs[:, :-1])[mask]  # the head works on scored positions only
        logits = model.logits(hidden).float()
        targets = inputs[:, 1:][mask]
        chosen = logits.gather(1, targets[:, None]).squeeze(1)
        values = torch.zeros(mask.shape, device=device)
        values[mask] = chosen - logits.logsumexp(dim=1)
        missed = torch.zeros(mask.shape, dtype=torch.bool, device=device)
        missed[mask] = logits.argmax(dim=1) != targets
        sums = values.sum(dim=1, dtype=torch.float64)
        return sums.cpu().numpy(), (~missed.any(dim=1)).cpu().numpy()
