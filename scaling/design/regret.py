"""Choice of runs by the expected regret of a decision between several shapes.

A decision takes the shape with the lowest expected ln loss. Its regret is the ln loss of that shape
minus that of the truly best one. The expected regret after further runs is computed before their
losses are known (preposterior analysis: Raiffa and Schlaifer 1961; Strong, Oakley and Brennan 2014,
doi 10.1177/0272989X13505910): joint posterior draws of shapes and candidates play the role of the
truth, each draw gives a candidate a loss with noise, and the expected ln losses of the shapes given
that loss are linear in it, with the coefficient of a regression over all draws.

One run alone often cannot change a decision that several runs could change (Frazier and Powell
2010, doi 10.1287/deca.1100.0190), so that a greedy choice by regret would stop at once. A second
choice therefore removes the variance of the differences to the favoured shape, weighted with each
shape's part of the regret. Of the two, the choice with the smaller expected regret is returned.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shapelaw.scaling.decisions.decide import share_lowest
from shapelaw.scaling.design.candidates import Limits
from shapelaw.scaling.design.greedy import GreedyChoice

STATES = 500  # draws of the outcome, and of the truth given it, for a probability
BATCH = 128  # candidates whose effects are computed at once
ROUNDING = 1e-12  # of a mean of ln losses, below which a regret is zero


@dataclass(frozen=True, kw_only=True)
class DecisionState:
    """Draws after some runs, each minus what the losses of those runs explain.

    ``expected`` (S, n) has the expected ln losses of the shapes given the runs; ``shapes`` (S, n)
    and ``candidates`` (S, c) have the parts that remain unknown. ``runs`` is the number of runs.
    """

    expected: np.ndarray
    shapes: np.ndarray
    candidates: np.ndarray
    runs: int = 0


@dataclass(frozen=True, kw_only=True)
class DecisionSelection(GreedyChoice[DecisionState]):
    """A choice of runs for a decision.

    ``price`` (c,) has the costs in FLOP, ``noise`` (S,) that of a run in ln loss; ``lowest`` is the
    expected ln loss of the truly best shape. With ``by_variance``, the error is the weighted
    variance of differences in place of the expected regret.
    """

    price: np.ndarray
    noise: np.ndarray
    begin: DecisionState
    lowest: float
    by_variance: bool = False

    @classmethod
    def of(
        cls, shapes: np.ndarray, candidates: np.ndarray, noise: np.ndarray, price: np.ndarray
    ) -> "DecisionSelection":
        """Prepare a choice.

        Parameters
        ----------
        shapes, candidates
            Joint draws of the true ln loss, (S, n) and (S, c).
        noise
            Draws of the deviation of one run from its true ln loss, (S,).
        price
            Costs of the candidates, FLOP, (c,).
        """
        mean = shapes.mean(axis=0)
        begin = DecisionState(
            expected=np.broadcast_to(mean, shapes.shape),
            shapes=shapes - mean,
            candidates=candidates - candidates.mean(axis=0),
        )
        lowest = float(shapes.min(axis=1).mean())
        return cls(price=price, noise=noise, begin=begin, lowest=lowest)

    @cached_property
    def _favoured(self) -> int:
        return int(self.begin.expected[0].argmin())

    @cached_property
    def _weights(self) -> np.ndarray:
        """Expected regret against each shape over the variance of its difference, (n,)."""
        losses = self.begin.expected + self.begin.shapes
        differences = losses[:, [self._favoured]] - losses
        variance = np.maximum(differences.var(axis=0), 1e-300)
        return np.asarray(np.maximum(differences, 0.0).mean(axis=0) / variance)

    def _differences(self, state: DecisionState) -> np.ndarray:
        return np.asarray(state.shapes - state.shapes[:, [self._favoured]])

    def error(self, state: DecisionState) -> float:
        """Compute the error that the choice removes: expected regret or weighted variance."""
        if self.by_variance:
            return float((self._differences(state) ** 2).mean(axis=0) @ self._weights)
        return self.regret(state)

    def regret(self, state: DecisionState) -> float:
        """Compute the expected regret, ln units."""
        regret = float(state.expected.min(axis=1).mean()) - self.lowest
        return regret if regret > ROUNDING else 0.0

    def errors_with(self, state: DecisionState) -> np.ndarray:
        """Compute the expected regret after adding each candidate once, (c,)."""
        measured = state.candidates + self._noise(state)[:, None]
        variance = np.maximum((measured**2).mean(axis=0), 1e-300)
        if self.by_variance:
            covariance = self._differences(state).T @ measured / len(measured)
            removed = self._weights @ (covariance**2 / variance)
            return np.asarray(np.maximum(self.error(state) - removed, 0.0))
        gain = state.shapes.T @ measured / len(measured) / variance  # (n, c)
        errors = np.empty(measured.shape[1])
        for low in range(0, len(errors), BATCH):
            part = slice(low, low + BATCH)
            lowest = np.full(measured[:, part].shape, np.inf)
            for shape, by in enumerate(gain[:, part]):
                np.minimum(
                    lowest, state.expected[:, [shape]] + by * measured[:, part], out=lowest
                )  # fmt: skip
            errors[part] = lowest.mean(axis=0)
        return np.maximum(errors - self.lowest, 0.0)

    def add(self, state: DecisionState, position: int) -> DecisionState:
        """Condition the draws on one more run at a candidate."""
        measured = state.candidates[:, position] + self._noise(state)
        share = measured / max((measured**2).sum(), 1e-300)
        by_shape, by_candidate = share @ state.shapes, share @ state.candidates
        return DecisionState(
            expected=state.expected + np.outer(measured, by_shape),
            shapes=state.shapes - np.outer(measured, by_shape),
            candidates=state.candidates - np.outer(measured, by_candidate),
            runs=state.runs + 1,
        )

    def probability_right(self, state: DecisionState) -> float:
        """Compute the expected probability that the favoured shape is the best one."""
        step = max(len(state.shapes) // STATES, 1)
        rest = state.shapes[::step]
        each = [share_lowest(expected + rest).max() for expected in state.expected[::step]]
        return float(np.mean(each))

    def best(self, budget: float, limits: Limits) -> tuple[list[tuple[int, float]], str, str]:
        """Choose runs by regret and by weighted variance, and keep the smaller expected regret.

        Parameters
        ----------
        budget
            FLOPs for all runs together.
        limits
            The number of runs and repeats, and the smallest gain.

        Returns
        -------
        The choices as (candidate, expected regret after it), the rule of the choice, and the reason
        why there are no more runs.
        """
        chosen, rule, stopped = super().best(budget, limits)
        smooth = replace(self, by_variance=True)
        others, other_rule, other_stopped = GreedyChoice.best(smooth, budget, limits)
        state, regrets = self.begin, []
        for position, _ in others:
            state = self.add(state, position)
            regrets.append((position, self.regret(state)))
        least = chosen[-1][1] if chosen else (1 - limits.smallest_gain) * self.first_error
        if regrets and regrets[-1][1] < least:
            return regrets, other_rule.replace("error", "variance of differences"), other_stopped
        return chosen, rule.replace("error", "regret"), stopped

    def after(self, chosen: list[tuple[int, float]]) -> DecisionState:
        """Condition the draws on all chosen runs."""
        state = self.begin
        for position, _ in chosen:
            state = self.add(state, position)
        return state

    def _noise(self, state: DecisionState) -> np.ndarray:
        """Return noise of the next run, uncorrelated over the draws with all shapes."""
        order = np.random.default_rng(state.runs).permutation(len(self.noise))
        noise = self.noise[order] - self.noise.mean()
        fitted, *_ = np.linalg.lstsq(state.shapes, noise, rcond=None)
        return np.asarray(noise - state.shapes @ fitted)
