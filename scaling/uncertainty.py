"""Intervals by resampling: which resamples to draw, and a refit of each from the optimum."""

from collections.abc import Callable, Mapping

import numpy as np

from scaling.identifiability import Held

# Refit on resampled rows (integer positions) or on replaced ln losses: -> internal parameters.
Refit = Callable[[np.ndarray, np.ndarray, Mapping[str, Held]], np.ndarray]
ROWS_PER_PARAMETER = 8


def bootstrap(
    refit: Refit,
    *,
    log_loss: np.ndarray,
    fitted: np.ndarray,
    free: int,
    held: Mapping[str, Held],
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, str]:
    """Refit resamples; held parameters are drawn anew from their ranges each time.

    Tables with at least eight rows per free parameter are resampled by rows (iid pairs). Small
    designed tables would lose whole cells of the design that way: there the residuals, inflated
    by √(n/(n - p)), are resampled around the fitted values at the same design.

    Returns
    -------
    Internal parameters of each resample, (resamples, p), and the name of the method.
    """
    generator = np.random.default_rng(seed)
    rows = len(log_loss)
    pairs = rows >= ROWS_PER_PARAMETER * free
    residuals = log_loss - fitted
    if rows > free:
        residuals = (residuals - residuals.mean()) * np.sqrt(rows / (rows - free))
    everything = np.arange(rows)
    draws = []
    for _ in range(resamples):
        varied = {name: _draw(parameter, generator) for name, parameter in held.items()}
        drawn = generator.integers(rows, size=rows)
        if pairs:
            draws.append(refit(drawn, log_loss, varied))
        else:
            draws.append(refit(everything, fitted + residuals[drawn], varied))
    return np.array(draws), "rows (iid)" if pairs else "residuals at the same design"


def _draw(held: Held, generator: np.random.Generator) -> Held:
    if held.low == held.high:
        return held
    return Held.at(float(generator.uniform(held.low, held.high)), held.why)
