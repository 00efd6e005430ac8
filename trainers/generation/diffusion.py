"""Decoders of diffusion models: masked tokens are decided in parallel, block after block.

Shape letters: B sequences, P tokens of the prompt, n tokens to generate.
"""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.generation.acceptance import Acceptance
from shapelaw.trainers.generation.decoding_settings import (
    WHOLE_DECODERS,
    Decoded,
    DecodingSettings,
    require_mask_token,
)
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import FULL, Visibility


def decode(
    model: Transformer,
    prompt: Tensor | Sequence[Sequence[int]],
    settings: DecodingSettings,
    *,
    length: int,
    cached: bool = True,
) -> Decoded:
    """Generate text after a prompt.

    Parameters
    ----------
    model
        Model in evaluation mode.
    prompt
        Token ids, (B, P); at least one token, and equally many in every sequence.
    settings
        Decoder and its settings.
    length
        Tokens to generate, n; whole blocks of a decoder that has blocks.
    cached
        Keep keys and values of decided blocks. Without, the result is the same.

    Raises
    ------
    InputError
        The model and the decoder, the prompts, or the length and the blocks do not fit together.
    """
    tokens = _prompt_of(prompt, model)
    require_decodable(model, settings, length=length, prompt=tokens.shape[1])
    mask = model.architecture.embedding.mask_token
    if mask is not None and bool((tokens == mask).any()):
        raise InputError(f"a prompt must not hold the mask token {mask}, but one does; remove it")
    run = _Run(model, tokens, settings, length)
    with torch.inference_mode():
        if settings.decoder == "ar":
            _decode_one_by_one(run)
        elif settings.decoder in WHOLE_DECODERS:
            _decode_whole(run)
        else:
            _decode_blocks(run, cached=cached)
    return run.decoded()


def require_decodable(
    model: Transformer, settings: DecodingSettings, *, length: int, prompt: int
) -> None:
    """Refuse a decoder that a model or a length does not fit.

    Raises
    ------
    InputError
        The decoder needs a mask token, or blocks do not divide the length, or the text is longer
        than the model's longest sequence.
    """
    if settings.masked:
        require_mask_token(settings, model.architecture)
    block = settings.block
    if settings.masked and (length % block or not length):
        fitting = max(length - length % block, block)
        raise InputError(
            f"`length % block == 0` must hold for --decoder {settings.decoder}, but got {length} "
            f"tokens to generate and blocks of {block}; generate {fitting}, or use other blocks"
        )
    if length < 1 or prompt + length > model.context_length:
        raise InputError(
            f"`prompt + length` must be at most {model.context_length} tokens, with at least 1 to "
            f"generate, but got {prompt} and {length}; use shorter ones"
        )


def _prompt_of(prompt: Tensor | Sequence[Sequence[int]], model: Transformer) -> Tensor:
    """Return the prompts as a tensor (B, P) on the device of the model."""
    if not isinstance(prompt, Tensor):
        lengths = sorted({len(each) for each in prompt})
        if len(lengths) > 1:
            raise InputError(
                "the prompts of a batch must have one length, but got lengths of "
                f"{lengths[0]} to {lengths[-1]} tokens; decode them in batches of one length each"
            )
        prompt = torch.tensor(list(map(list, prompt)), dtype=torch.long)
    if prompt.ndim != 2 or not prompt.numel():
        raise InputError(
            f"a prompt must be (sequences, tokens) with at least one token, but got "
            f"{tuple(prompt.shape)}; begin with a separator"
        )
    return prompt.to(model.embed_tokens.weight.device)


class _Run:
    """One call of a decoder: the text so far, and counts.

    Attributes
    ----------
    text : torch.Tensor
        Prompt and generated tokens, undecided ones masked, (B, P + n).
    generated : torch.Tensor
        The generated part of it, (B, n).
    """

    def __init__(
        self, model: Transformer, prompt: Tensor, settings: DecodingSettings, length: int
    ) -> None:
        self.model, self.settings, self.begin = model, settings, prompt.shape[1]
        mask = model.architecture.embedding.mask_token
        self.mask = -1 if mask is None else mask
        undecided = torch.full((len(prompt), length), self.mask)
        self.text = torch.cat((prompt, undecided.to(prompt)), dim=1)
        self.generated = self.text[:, self.begin :]
        self.rule = Acceptance(settings, mask=self.mask, batch=len(prompt))
        self.positions = torch.arange(length, device=prompt.device)
        self.forwards = self.passed = 0
        self.started, self.first = time.perf_counter(), 0.0

    def forward(self, tokens: Tensor, **view: object) -> Tensor:
        """Pass tokens through the model, (B, T) -> (B, T, d)."""
        self.forwards += 1
        self.passed += tokens.shape[1]
        hidden: Tensor = self.model(tokens, **view)
        return hidden

    def decide(
        self, region: Tensor, hidden: Tensor, forced: Sequence[bool], number: int = 0
    ) -> None:
        """Decide positions of whole blocks, (B, T), by their hidden states, (B, T, d)."""
        logits = self.model.logits(hidden[region == self.mask])
        self.rule.decide(region, logits, forced, number)
        self.first = self.first or time.perf_counter() - self.started

    def ends(self) -> Tensor:
        """Return the place of the first end token of each sequence, n without one, (B,)."""
        length = len(self.positions)
        if self.settings.end is None:
            return self.positions.new_full((len(self.text),), length)
        found = self.generated == self.settings.end
        return torch.where(found, self.positions, length).amin(1)

    def finished(self, ends: Tensor) -> bool:
        """Return whether every token up to the first end token is decided."""
        return not bool(((self.generated == self.mask) & (self.positions < ends[:, None])).any())

    def decoded(self) -> Decoded:
        """Return the text, with every token after the first end token replaced by it."""
        ends = self.ends()
        if self.settings.end is not None:
            self.generated[self.positions >= ends[:, None]] = self.settings.end
        if self.text.device.type == "cuda":
            torch.cuda.synchronize()
        return Decoded(
            tokens=self.generated.clone(),
            useful=tuple(ends.tolist()),
            forwards=self.forwards,
            passed_tokens=self.passed,
            seconds=time.perf_counter() - self.started,
            first_seconds=self.first,
        )


def _decode_one_by_one(run: _Run) -> None:
    """Decide one token after the other, each by those before it."""
    model, batch, length = run.model, len(run.text), len(run.positions)
    cache = model.empty_cache(batch, run.text.shape[1], dtype=model.embed_tokens.weight.dtype)
    new, start = run.text[:, : run.begin], 0
    ended = torch.zeros(batch, dtype=torch.bool, device=run.text.device)
    for position in range(length):
        hidden = run.forward(new, cache=cache, start=start)
        chosen, _ = run.rule.choose(model.logits(hidden[:, -1]), [1] * batch)
        run.generated[:, position] = chosen
        run.first = run.first or time.perf_counter() - run.started
        if run.settings.end is not None:
            ended |= chosen == run.settings.end
            if bool(ended.all()):
                return
        start += new.shape[1]
        new = chosen[:, None]


def _decode_whole(run: _Run) -> None:
    """Decide block after block; every pass sees the whole text in both directions."""
    size, numbers = run.settings.block, run.settings.passes()
    for begin in range(run.begin, run.text.shape[1], size):
        region = run.text[:, begin : begin + size]
        for number in _numbers(numbers, region, run.mask):
            hidden = run.forward(run.text, visibility=FULL)
            run.decide(region, hidden[:, begin : begin + size], [True], number)
            if run.settings.end is not None and run.finished(run.ends()):
                return


def _numbers(numbers: list[int] | None, region: Tensor, mask: int) -> Iterator[int]:
    """Return how many positions each pass decides; 0, until none is masked, if confidence does."""
    if numbers is not None:
        yield from numbers
        return
    while bool((region == mask).any()):
        yield 0


def _decode_blocks(run: _Run, *, cached: bool) -> None:
    """Decide blocks that see themselves and earlier ones; several at once if ``add`` is below 1.

    A block is active until it is decided; then, after all blocks before it, the next pass computes
    its keys and values once more and caches them. A pass computes what follows the cache only. The
    states of a batch are common: its least share of decided positions counts.
    """
    model, settings, size = run.model, run.settings, run.settings.block
    add = settings.add if settings.decoder == "d2f" else 1.0
    numbers = settings.passes() if settings.decoder == "block" else None
    blocks, begun, start, step = len(run.positions) // size, 1, 0, 0
    visibility = Visibility("block", size, run.begin)
    cache = None
    if cached:
        dtype = model.embed_tokens.weight.dtype
        cache = model.empty_cache(len(run.text), run.text.shape[1], dtype=dtype)
    while True:
        shares = _decided_shares(run, begun)
        done = next((index for index, share in enumerate(shares) if share < 1), begun)
        ended = False
        if settings.end is not None:
            ends = run.ends()
            ended = bool((ends < len(run.positions)).all())
            if run.finished(ends):
                return
        if begun < blocks and not ended and shares[-1] >= add:
            begun += 1
            shares.append(0.0)
        if done == begun:
            return
        first, end = run.begin + done * size, run.begin + begun * size
        if cache is None:
            hidden = run.forward(run.text[:, :end], visibility=visibility)[:, first:]
        else:
            alone = start == first and end - first == size  # one block sees all that is passed
            hidden = run.forward(
                run.text[:, start:end],
                cache=cache,
                start=start,
                visibility=FULL if alone else visibility,
                keep=first - start,
            )[:, first - start :]
            start = first
        before = [1.0, *shares][done:begun]
        forced = [share >= settings.activate for share in before]
        number = 0 if numbers is None else numbers[step % len(numbers)]
        step += 1
        run.decide(run.text[:, first:end], hidden, forced, number)


def _decided_shares(run: _Run, begun: int) -> list[float]:
    """Return the decided share of each block that has begun, the least of the batch."""
    size = run.settings.block
    decided = run.generated[:, : begun * size] != run.mask
    return [number / size for number in decided.view(-1, begun, size).sum(2).amin(0).tolist()]
