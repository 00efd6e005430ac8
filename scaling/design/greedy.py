"""Greedy choice of runs by the expected squared error of a law as it is fitted.

A fit weighs all runs alike, whatever misfit they share. With gradients G of the runs in prior
deviations, w = 1 / (their residual variance) and P = (1 + w GᵀG)⁻¹, a target cᵀθ + misfit there is
missed by cᵀP(w Gᵀ(misfit + noise) - θ) - misfit: its expected square needs GᵀAG, A being the
covariance of misfit and noise, and Gᵀk, k being the misfit that runs share with the target. One
more run updates all three by rank one. Unlike the variance of a generalised least-squares fit this
can grow: a cheap run where the law fits badly does harm, and is then not chosen. Criterion: J of
Box and Draper (1959), for misfit that is random.
"""

from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.design.candidates import Limits
from shapelaw.scaling.design.goals import Targets
from shapelaw.scaling.design.linearised import Points, merged
from shapelaw.scaling.design.noise import Scatter
from shapelaw.scaling.errors import InputError

# Per FLOP alone, a large budget goes to the cheapest runs until there are too many of them; by
# error removed alone it goes to one run. The powers between are tried, the best end wins.
PRICE_POWERS = (1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a set of runs tells about m targets and n candidates.

    ``inverse`` (p, p) is P; ``meat`` (p, p) is GᵀAG; ``toward`` (m, p) and ``beside`` (n, p) are
    Gᵀ times the misfit that the runs share with each target and each candidate.
    """

    inverse: np.ndarray
    meat: np.ndarray
    toward: np.ndarray
    beside: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Targets, candidates and their prices, and what the runs trained so far say of them.

    ``gradient`` (m, p), ``own`` (m,) and ``shared`` (m, n): the targets' gradients, their
    misfit's variance and its covariance with that of the candidates.
    """

    scatter: Scatter
    candidates: Points
    price: np.ndarray
    gradient: np.ndarray
    own: np.ndarray
    shared: np.ndarray
    begin: Knowledge

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

        Raises
        ------
        InputError
            The target is known exactly: nothing that is fitted moves it.
        """
        mixed, at = targets.combination, targets.points

        def shared(points: Points) -> np.ndarray:
            near = scatter.shared(at.place, points.place) * at.shares[:, None]
            return np.asarray(mixed @ near)

        places, counts = merged(runs)
        gradient = places.gradient * counts[:, None]
        noise = scatter.noise_at(places.size)[:, None] ** 2
        covariance = scatter.shared(places.place, places.place) @ gradient
        information = gradient.T @ places.gradient / scatter.residual_variance
        begin = Knowledge(
            inverse=np.linalg.inv(np.eye(gradient.shape[1]) + information),
            meat=gradient.T @ covariance + gradient.T @ (noise * places.gradient),
            toward=shared(places) @ gradient,
            beside=scatter.shared(candidates.place, places.place) @ gradient,
        )
        selection = cls(
            scatter=scatter,
            candidates=candidates,
            price=price,
            gradient=mixed @ at.gradient,
            own=((shared(at) * at.shares) * mixed).sum(axis=1),
            shared=shared(candidates),
            begin=begin,
        )
        if selection.squared_error <= 1e-18:
            raise InputError(f"`goal` must be uncertain, but nothing fitted moves {targets.words}")
        return selection

    @property
    def squared_error(self) -> float:
        """Expected squared error of the targets before any choice, their mean."""
        return self.error(self.begin)

    def error(self, known: Knowledge) -> float:
        """Expected squared error of the targets, their mean."""
        weight = 1 / self.scatter.residual_variance
        by = self.gradient @ known.inverse
        spread = weight**2 * known.meat + np.eye(len(known.meat))
        each = ((by @ spread) * by).sum(axis=1) - 2 * weight * (by * known.toward).sum(axis=1)
        return float(np.mean(each + self.own))

    def errors_with(self, known: Knowledge) -> np.ndarray:
        """The same with each candidate added once, (n,)."""
        weight, gradient = 1 / self.scatter.residual_variance, self.candidates.gradient
        spread = weight**2 * known.meat + np.eye(len(known.meat))
        by, step = self.gradient @ known.inverse, gradient @ known.inverse
        onto = by @ gradient.T
        leverage = 1 + weight * (step * gradient).sum(axis=1)
        moved = weight * onto / leverage  # how far each target's weights move along the step
        reached = onto / leverage
        old = ((by @ spread) * by).sum(axis=1)[:, None]
        bent = old - 2 * moved * (by @ spread @ step.T)
        bent += moved**2 * ((step @ spread) * step).sum(axis=1)
        beside = by @ known.beside.T - moved * (step * known.beside).sum(axis=1)
        noise = self.scatter.noise_at(self.candidates.size) ** 2 + self.scatter.misfit**2
        added = weight**2 * reached * (2 * beside + noise * reached)
        toward = (by * known.toward).sum(axis=1)[:, None] - moved * (known.toward @ step.T)
        toward = toward + reached * self.shared
        errors = bent + added - 2 * weight * toward + self.own[:, None]
        return np.asarray(errors.mean(axis=0))

    def add(self, known: Knowledge, position: int) -> Knowledge:
        """Knowledge after one more run at a candidate."""
        weight = 1 / self.scatter.residual_variance
        one, place = self.candidates.gradient[position], self.candidates.place
        size = self.candidates.size[[position]]
        noise = float(self.scatter.noise_at(size)[0]) ** 2 + self.scatter.misfit**2
        step, beside = known.inverse @ one, known.beside[position]
        cross = np.outer(one, beside)
        near = self.scatter.shared(place, place[[position]])
        return Knowledge(
            inverse=known.inverse - np.outer(step, step) * weight / (1 + weight * one @ step),
            meat=known.meat + cross + cross.T + noise * np.outer(one, one),
            toward=known.toward + np.outer(self.shared[:, position], one),
            beside=known.beside + near * one,
        )

    def best(self, budget: float, limits: Limits) -> tuple[list[tuple[int, float]], str, str]:
        """Choices as (candidate, squared error after), the rule that won, and why it stopped."""
        found = []
        for power in PRICE_POWERS:
            chosen, stopped = self.greedy(budget, limits, self.price**power)
            found.append((chosen[-1][1] if chosen else self.squared_error, -power, chosen, stopped))
        _, power, chosen, stopped = min(found, key=lambda one: one[:2])
        return chosen, f"by error removed per FLOP^{-power:g}", stopped

    def greedy(
        self, budget: float, limits: Limits, weight: np.ndarray
    ) -> tuple[list[tuple[int, float]], str]:
        """Choose by error removed over weight while the budget lasts; why it stopped."""
        known, error = self.begin, self.squared_error
        enough = limits.smallest_gain * error
        chosen: list[tuple[int, float]] = []
        left = np.full(len(self.price), limits.most_repeats)
        while len(chosen) < limits.most_runs:
            payable = (left > 0) & (self.price <= budget * (1 + 1e-12))
            if not payable.any():
                return chosen, "the budget is spent" if left.any() else "no candidate is left"
            errors = self.errors_with(known)
            gain = np.where(payable, error - errors, -np.inf)
            if gain.max() <= enough:
                return chosen, "no run removes much more"
            useful = np.where(gain > enough, gain / weight, -np.inf)
            position = int(np.argmax(useful))
            known, error = self.add(known, position), float(errors[position])
            chosen.append((position, error))
            budget -= float(self.price[position])
            left[position] -= 1
        return chosen, f"{limits.most_runs} runs are chosen"
