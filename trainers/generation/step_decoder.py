"""Decoding of models of any family by forward passes of the model itself, one token at a time.

The decoders of dense shapes (:mod:`~shapelaw.trainers.generation.cpu_decoder`,
:mod:`~shapelaw.trainers.generation.graph_decoder`) are faster and know those only.
"""

from torch import Tensor

from shapelaw.trainers.models.transformer import Transformer


class StepDecoder:
    """A model with the cache of its layers: keys and values, latents, windows, or states.

    Parameters
    ----------
    model
        Model in evaluation mode.
    batch
        Sequences, B.
    length
        Most tokens of a sequence.
    """

    def __init__(self, model: Transformer, *, batch: int, length: int) -> None:
        self.model = model
        dtype = model.embed_tokens.weight.dtype
        self.cache = model.empty_cache(batch, length, dtype=dtype)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache."""
        return sum(part.nbytes for layer in self.cache for part in layer)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Fill the cache with (B, T) tokens and return the logits (B, V) after the last one."""
        hidden = self.model(prompt, cache=self.cache, start=0)
        return self.model.logits(hidden[:, -1])

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Decode one token per sequence, (B,), at a position; return the logits (B, V)."""
        hidden = self.model(tokens[:, None], cache=self.cache, start=position)
        return self.model.logits(hidden[:, -1])
