"""Greedy choice of runs by the expected squared error of an ordinary fit of the law.

A fit gives equal weight to all runs, whatever misfit they share. With gradients G of the runs in
prior standard deviations, w = 1 / (their residual variance) and P = (1 + w GᵀG)⁻¹, the prediction
of a target cᵀθ + misfit has the error cᵀP(w Gᵀ(misfit + noise) - θ) - misfit. Its expected square
needs P, GᵀAG, where A is the covariance of misfit and noise, and Gᵀk, where k is the covariance of
the runs' misfit with that of the target. Each further run updates all three by rank one. Unlike the
variance of a generalised least-squares fit, the expected squared error can grow: a cheap run where
the law fits badly increases it and is not chosen. The criterion is J of Box and Draper (1959), for
random misfit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from shapelaw.scaling.design.candidates import Limits
from shapelaw.scaling.design.goals import Targets
from shapelaw.scaling.design.linearised import Points, merged
from shapelaw.scaling.design.noise import Scatter
from shapelaw.scaling.errors import InputError

# A choice by error removed per FLOP spends a large budget on too many of the cheapest runs; a
# choice by error removed alone spends it on one run. Powers of the price between the two are tried
# as well, and the choice with the smallest final error is kept.
PRICE_POWERS = (1.0, 0.75, 0.5, 0.25, 0.0)

State = TypeVar("State")  # what is known after some choices


@dataclass(frozen=True, kw_only=True)
class DesignState:
    """The matrices of a set of runs for m targets and n candidates.

    ``inverse`` (p, p) is P; ``meat`` (p, p) is GᵀAG; ``with_targets`` (m, p) and
    ``with_candidates`` (n, p) are the covariances of the runs' misfit with that of each target and
    each candidate, times G.
    """

    inverse: np.ndarray
    meat: np.ndarray
    with_targets: np.ndarray
    with_candidates: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GreedyChoice(ABC, Generic[State]):
    """Greedy choice of candidates by the error that each of them removes.

    ``price`` (n,) has the costs of the candidates in FLOP, ``begin`` the state without choices.
    """

    price: np.ndarray
    begin: State

    @property
    def first_error(self) -> float:
        """Error before any choice."""
        return self.error(self.begin)

    @abstractmethod
    def error(self, state: State) -> float:
        """Compute the error of a state."""

    @abstractmethod
    def errors_with(self, state: State) -> np.ndarray:
        """Compute the error after adding each candidate once, (n,)."""

    @abstractmethod
    def add(self, state: State, position: int) -> State:
        """Return the state after one more run at a candidate."""

    def best(self, budget: float, limits: Limits) -> tuple[list[tuple[int, float]], str, str]:
        """Choose runs greedily by every power of the price, and keep the smallest final error.

        Parameters
        ----------
        budget
            FLOPs for all runs together.
        limits
            The number of runs and repeats, and the smallest gain.

        Returns
        -------
        The choices as (candidate, error after it), the rule of the choice, and the reason
        why there are no more runs.
        """
        attempts = []
        for power in PRICE_POWERS:
            chosen, stopped = self.greedy(budget, limits, self.price**power)
            error = chosen[-1][1] if chosen else self.first_error
            attempts.append((error, -power, chosen, stopped))
        _, power, chosen, stopped = min(attempts, key=lambda attempt: attempt[:2])
        return chosen, f"by error removed per FLOP^{-power:g}", stopped

    def greedy(
        self, budget: float, limits: Limits, weight: np.ndarray
    ) -> tuple[list[tuple[int, float]], str]:
        """Choose runs by error removed over weight, (n,), until the budget or the gain is spent.

        Returns
        -------
        The choices as (candidate, error after it), and the reason why there are no more.
        """
        state, error = self.begin, self.first_error
        smallest_gain = limits.smallest_gain * error
        chosen: list[tuple[int, float]] = []
        left = np.full(len(self.price), limits.most_repeats)
        while len(chosen) < limits.most_runs:
            affordable = (left > 0) & (self.price <= budget * (1 + 1e-12))
            if not affordable.any():
                return chosen, "the budget is spent" if left.any() else "no candidate is left"
            errors = self.errors_with(state)
            gain = np.where(affordable, error - errors, -np.inf)
            if gain.max() <= smallest_gain:
                return chosen, "no run removes much more"
            score = np.where(gain > smallest_gain, gain / weight, -np.inf)
            position = int(np.argmax(score))
            state, error = self.add(state, position), float(errors[position])
            chosen.append((position, error))
            budget -= float(self.price[position])
            left[position] -= 1
        return chosen, f"{limits.most_runs} runs are chosen"


@dataclass(frozen=True, kw_only=True)
class Selection(GreedyChoice[DesignState]):
    """A choice of runs: targets, candidates with prices in FLOP, and the runs trained so far.

    ``gradient`` (m, p) has the targets' gradients, ``variance`` (m,) the variance of their misfit,
    and ``shared`` (m, n) its covariance with the misfit of the candidates. ``begin`` has the
    matrices of the runs trained so far.
    """

    scatter: Scatter
    candidates: Points
    price: np.ndarray
    gradient: np.ndarray
    variance: np.ndarray
    shared: np.ndarray
    begin: DesignState

    @classmethod
    def of(
        cls,
        runs: Points,
        targets: Targets,
        candidates: Points,
        price: np.ndarray,
        scatter: Scatter,
    ) -> "Selection":
        """Prepare a choice.

        Parameters
        ----------
        runs
            The runs trained so far.
        targets
            The targets of the goal.
        candidates
            The runs that could be trained, n points.
        price
            Their costs, FLOP, (n,).
        scatter
            Noise and misfit of ln loss.

        Raises
        ------
        InputError
            The target has no uncertainty: no fitted parameter changes it.
        """
        combination, at = targets.combination, targets.points

        def shared(points: Points) -> np.ndarray:
            covariance = scatter.shared(at.place, points.place) * at.shares[:, None]
            return np.asarray(combination @ covariance)

        places, counts = merged(runs)
        gradient = places.gradient * counts[:, None]
        noise = scatter.noise_at(places.size)[:, None] ** 2
        covariance = scatter.shared(places.place, places.place) @ gradient
        information = gradient.T @ places.gradient / scatter.residual_variance
        begin = DesignState(
            inverse=np.linalg.inv(np.eye(gradient.shape[1]) + information),
            meat=gradient.T @ covariance + gradient.T @ (noise * places.gradient),
            with_targets=shared(places) @ gradient,
            with_candidates=scatter.shared(candidates.place, places.place) @ gradient,
        )
        selection = cls(
            scatter=scatter,
            candidates=candidates,
            price=price,
            gradient=combination @ at.gradient,
            variance=((shared(at) * at.shares) * combination).sum(axis=1),
            shared=shared(candidates),
            begin=begin,
        )
        if selection.squared_error <= 1e-18:
            raise InputError(
                f"`goal` must be uncertain, but no fitted parameter changes {targets.description}; "
                "use another goal"
            )
        return selection

    @property
    def squared_error(self) -> float:
        """Mean expected squared error of the targets before any choice."""
        return self.first_error

    def error(self, state: DesignState) -> float:
        """Compute the mean expected squared error of the targets.

        Parameters
        ----------
        state
            The matrices of the runs.

        Returns
        -------
        The square of ln units.
        """
        weight = 1 / self.scatter.residual_variance
        by = self.gradient @ state.inverse
        spread = weight**2 * state.meat + np.eye(len(state.meat))
        each = ((by @ spread) * by).sum(axis=1)
        each -= 2 * weight * (by * state.with_targets).sum(axis=1)
        return float(np.mean(each + self.variance))

    def errors_with(self, state: DesignState) -> np.ndarray:
        """Compute the error after adding each candidate once, (n,), as :meth:`error` does."""
        weight, gradient = 1 / self.scatter.residual_variance, self.candidates.gradient
        spread = weight**2 * state.meat + np.eye(len(state.meat))
        by, step = self.gradient @ state.inverse, gradient @ state.inverse
        projected = by @ gradient.T
        reached = projected / (1 + weight * (step * gradient).sum(axis=1))
        moved = weight * reached  # change of each target's weights along the step
        quadratic = ((by @ spread) * by).sum(axis=1)[:, None]
        quadratic = quadratic - 2 * moved * (by @ spread @ step.T)
        quadratic += moved**2 * ((step @ spread) * step).sum(axis=1)
        cross = by @ state.with_candidates.T - moved * (step * state.with_candidates).sum(axis=1)
        noise = self.scatter.noise_at(self.candidates.size) ** 2 + self.scatter.misfit**2
        added = weight**2 * reached * (2 * cross + noise * reached)
        shared = (by * state.with_targets).sum(axis=1)[:, None]
        shared = shared - moved * (state.with_targets @ step.T) + reached * self.shared
        errors = quadratic + added - 2 * weight * shared + self.variance[:, None]
        return np.asarray(errors.mean(axis=0))

    def add(self, state: DesignState, position: int) -> DesignState:
        """Update the matrices of the runs for one more run at a candidate."""
        weight = 1 / self.scatter.residual_variance
        gradient, place = self.candidates.gradient[position], self.candidates.place
        size = self.candidates.size[[position]]
        noise = float(self.scatter.noise_at(size)[0]) ** 2 + self.scatter.misfit**2
        step = state.inverse @ gradient
        cross = np.outer(gradient, state.with_candidates[position])
        covariance = self.scatter.shared(place, place[[position]])
        leverage = 1 + weight * gradient @ step
        return DesignState(
            inverse=state.inverse - np.outer(step, step) * weight / leverage,
            meat=state.meat + cross + cross.T + noise * np.outer(gradient, gradient),
            with_targets=state.with_targets + np.outer(self.shared[:, position], gradient),
            with_candidates=state.with_candidates + covariance * gradient,
        )
