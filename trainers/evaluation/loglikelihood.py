"""Log-probabilities of texts under a model, from which every downstream task is scored.

Shape letters of tensors: B sequences, T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.schema import Count, Fraction, Name, NonNegative, Positive
from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.models.transformer import Transformer

BATCH_TOKENS = 1024  # positions per forward pass; more would not fit into the cache of a core


@dataclass(frozen=True, kw_only=True)
class LogLikelihoodRequest:
    """Tokens to score after given tokens; ``context`` has at least one token.

    Requests with the same number ``masks`` have the same masks in the bound of a diffusion model.
    """

    context: np.ndarray
    continuation: np.ndarray
    masks: Count = 0


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """Log-probabilities of n requests, in their order.

    Attributes
    ----------
    log_probability
        Sum over the tokens of the continuation, (n,), nats.
    greedy
        True where every token of the continuation is the most probable one, (n,); None for a bound.
    truncated
        Number of requests with a token whose preceding text was cut, because the model's context is
        too short.
    draws
        Lower bounds of the log-probabilities by draw of masks, (n, K), of which ``log_probability``
        is the mean; None for next tokens.
    """

    log_probability: np.ndarray
    greedy: np.ndarray | None
    truncated: int
    draws: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy on one task, as a fraction.

    Attributes
    ----------
    task
        Name of the task.
    accuracy, standard_error
        Accuracy and its standard error over the items.
    chance
        Expected accuracy of guessing.
    items
        Number of items.
    truncated
        Number of requests whose text was cut; see :class:`Likelihoods`.
    normalised, normalised_standard_error
        Accuracy when choices are compared by log-probability per character, for tasks where this is
        usual, and its standard error.
    details
        Harness, prompt settings, and the digests of the files of items.
    """

    task: Name
    accuracy: Fraction
    standard_error: NonNegative
    chance: Fraction
    items: Positive
    truncated: Count
    normalised: Fraction | None = None
    normalised_standard_error: NonNegative | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, float]:
        """Return the columns of the run table to which links from loss to accuracy are fitted."""
        name = f"accuracy_{self.task}"
        columns = {name: self.accuracy, f"{name}_se": self.standard_error}
        if self.normalised is not None and self.normalised_standard_error is not None:
            columns[f"{name}_norm"] = self.normalised
            columns[f"{name}_norm_se"] = self.normalised_standard_error
        return columns


@dataclass(frozen=True, kw_only=True)
class RequestPart:
    """Part of a request that fits into the model's context; ``tokens[first:]`` are scored."""

    request: int
    tokens: np.ndarray
    first: int


def require_next_tokens(model: Transformer) -> None:
    """Refuse a diffusion model, whose logits are not those of next tokens.

    Raises
    ------
    InputError
        The model has a mask token.
    """
    if model.mask_token is not None:
        raise InputError(
            "`mask_token_id` of a model must be absent to score it by next tokens, but is "
            f"{model.mask_token}; score it by the bound of its objective"
        )


def request_of(
    encoding: Encoding, context: str, continuation: str, masks: int = 0
) -> LogLikelihoodRequest:
    """Encode a context and its continuation, preceded by the separator of documents.

    Both are encoded as one text, as in a document. Spaces at the end of the context count to the
    continuation, because a tokenizer may merge them with its first word.

    Parameters
    ----------
    encoding
        Tokenizer of the model.
    context
        Given text, possibly empty.
    continuation
        Text to score.
    masks
        Number of the masks of a diffusion model; see :class:`LogLikelihoodRequest`.
    """
    stripped = context.rstrip()
    begin = encoding.encode(stripped) if stripped else np.zeros(0, dtype=np.int64)
    whole = encoding.encode(context + continuation)
    separator = np.array([encoding.separator], dtype=np.int64)
    return LogLikelihoodRequest(
        context=np.concatenate((separator, whole[: len(begin)])),
        continuation=whole[len(begin) :],
        masks=masks,
    )


def likelihoods(model: Transformer, requests: Sequence[LogLikelihoodRequest]) -> Likelihoods:
    """Score requests in float32, in batches of similar length.

    The context of a request that is longer than the model's context is cut on the left. A
    continuation that is itself longer is scored in steps of half the model's context, each after as
    many preceding tokens as fit.

    Parameters
    ----------
    model
        Model to score with.
    requests
        Contexts and continuations.

    Raises
    ------
    InputError
        The model has a mask token: it does not predict next tokens.
    WorkError
        A log-probability is not finite.
    """
    require_next_tokens(model)
    longest = model.context_length
    pieces: list[RequestPart] = []
    truncated = 0
    for index, request in enumerate(requests):
        pieces.extend(parts_of(index, request, longest))
        whole = len(request.context) + len(request.continuation)
        truncated += whole - 1 > longest
    sums, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
    for batch in _batches(pieces):
        values, best = _score(model, batch)
        owners = [piece.request for piece in batch]
        np.add.at(sums, owners, values)
        np.logical_and.at(greedy, owners, best)
    require_finite(sums)
    return Likelihoods(log_probability=sums, greedy=greedy, truncated=truncated)


def require_finite(log_probabilities: np.ndarray) -> None:
    """Refuse log-probabilities that are not finite.

    Raises
    ------
    WorkError
        One of them is not.
    """
    if not np.isfinite(log_probabilities).all():
        raise WorkError(
            "`log-probabilities` must be finite, but the model gives one that is not; the run has "
            "diverged or its weights are damaged: train it again or leave it out"
        )


def parts_of(index: int, request: LogLikelihoodRequest, longest: int) -> Iterator[RequestPart]:
    """Divide a request into pieces of at most ``longest`` tokens and the one after them."""
    tokens = np.concatenate((request.context, request.continuation))
    position, end = len(request.context), len(tokens)
    fits = end - position <= longest
    step = max(1, end - position if fits else longest // 2)
    while position < end:
        stop = min(end, position + step)
        start = max(0, stop - 1 - longest)
        yield RequestPart(request=index, tokens=tokens[start:stop], first=position - start)
        position = stop


def _batches(pieces: Sequence[RequestPart]) -> Iterator[list[RequestPart]]:
    """Group pieces of similar length, the longest first, so that the peak of memory comes first."""
    ordered = sorted(pieces, key=lambda piece: len(piece.tokens), reverse=True)
    begin = 0
    while begin < len(ordered):
        size = max(1, BATCH_TOKENS // len(ordered[begin].tokens))
        yield ordered[begin : begin + size]
        begin += size


def _score(model: Transformer, batch: Sequence[RequestPart]) -> tuple[np.ndarray, np.ndarray]:
    """Return sums of log-probabilities (B,) and whether all scored tokens are the greedy ones (B,).

    Sequences are padded on the right, which does not affect a causal model.
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
        hidden = model(inputs[:, :-1])[mask]  # the head is applied to scored positions only
        logits = model.logits(hidden).float()
        targets = inputs[:, 1:][mask]
        chosen = logits.gather(1, targets[:, None]).squeeze(1)
        values = torch.zeros(mask.shape, device=device)
        values[mask] = chosen - logits.logsumexp(dim=1)
        missed = torch.zeros(mask.shape, dtype=torch.bool, device=device)
        missed[mask] = logits.argmax(dim=1) != targets
        sums = values.sum(dim=1, dtype=torch.float64)
        return sums.cpu().numpy(), (~missed.any(dim=1)).cpu().numpy()
