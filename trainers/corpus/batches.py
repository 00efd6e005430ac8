"""Batches of token windows that depend on (seed, step) only."""

import numpy as np

from shapelaw.scaling.errors import InputError


def count_windows(tokens: int, context_length: int) -> int:
    """Count the training sequences that a corpus gives.

    Raises
    ------
    InputError
        The corpus is shorter than one sequence.
    """
    windows = (tokens - context_length) // context_length
    if windows < 1:
        raise InputError(
            f"a corpus must hold at least {2 * context_length} tokens for a context of "
            f"{context_length}, beside the held-out tenth, but has {tokens}; give more text"
        )
    return windows


class Batches:
    """Training sequences in an order that is a function of (seed, step) alone.

    The corpus is cut into windows of ``context_length`` tokens (each predicts the token after it);
    every epoch visits all windows once, in its own order and from its own offset. No state is kept
    between steps, so that a resumed run sees the same batches as an uninterrupted one.
    """

    def __init__(
        self, tokens: np.ndarray, *, context_length: int, sequences: int, seed: int
    ) -> None:
        self.tokens, self.length, self.sequences, self.seed = (
            tokens,
            context_length,
            sequences,
            seed,
        )
        self.windows = count_windows(len(tokens), context_length)
        self._epoch: tuple[int, np.ndarray, int] | None = None

    def __call__(self, step: int) -> np.ndarray:
        """Return the sequences of a step with their next token, (sequences, context_length + 1)."""
        rows = [self._window(step * self.sequences + i) for i in range(self.sequences)]
        return np.stack(rows).astype(np.int64)

    def _window(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.windows)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            offset = int(generator.integers(self.length))
            self._epoch = (epoch, generator.permutation(self.windows), offset)
        _, order, offset = self._epoch
        start = int(order[position]) * self.length + offset
        start = min(start, len(self.tokens) - self.length - 1)
        return self.tokens[start : start + self.length + 1]
