"""Runs of a comparison: the check of learning rates, then every family with several seeds.

Both are runs of one sweep folder, with its ledger and run table, so that the same call goes on
from where a killed one ended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape_config import architecture_of
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.families.budget import Variant, models_of_budget
from shapelaw.search.families.comparison import RATE_ROLE, ROLE
from shapelaw.search.families.rates import RATE_COUNT, RateChoice, choose_rate
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.spec import RunSpec, model_for

MIN_SEEDS, MAX_SEEDS = 2, 1000


def peak_rate(recipe: Recipe) -> float:
    """Return the peak learning rate of the matrices inside layers."""
    return recipe.matrix_learning_rate if recipe.optimizer == "muon" else recipe.learning_rate


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """Budgets and recipe of a comparison.

    Parameters
    ----------
    variants
        Variants to compare, the baseline first.
    parameters, tokens
        Active non-embedding parameters and training tokens of every run.
    seeds
        Runs of every variant.
    recipe
        Recipe of all runs but for their learning rate.
    rates
        Three values of :func:`peak_rate` that are tried for every variant; all rates of the recipe
        are scaled alike.
    rate_parameters, rate_tokens
        Budget of the runs that try the learning rates.
    """

    variants: tuple[Variant, ...]
    parameters: int
    tokens: int
    seeds: int
    recipe: Recipe
    rates: tuple[float, ...]
    rate_parameters: int
    rate_tokens: int

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in zip(self.rates, self.rates[1:], strict=False))
        usable = all(0 < rate < np.inf for rate in self.rates)
        if len(self.rates) != RATE_COUNT or not ascending or not usable:
            raise InputError(
                "`--lr-values` must be three ascending learning rates such as 0.005,0.01,0.02, but "
                f"got {shown(','.join(f'{rate:g}' for rate in self.rates), 60)}"
            )
        if not MIN_SEEDS <= self.seeds <= MAX_SEEDS:
            raise InputError(
                f"`--seeds` must be from {MIN_SEEDS}, to measure the noise between seeds, to "
                f"{MAX_SEEDS}, but got {shown(self.seeds)}"
            )

    def models(self, parameters: int, vocabulary: int) -> dict[Variant, Architecture]:
        """Return the model of every variant with a number of active parameters.

        Those of a diffusion objective have a mask token beside the vocabulary.
        """
        context = self.recipe.context_length
        models = models_of_budget(self.variants, parameters, context=context, vocabulary=vocabulary)
        return {
            variant: architecture_of(model_for(self.recipe_of(variant), model))
            for variant, model in models.items()
        }

    def recipe_of(self, variant: Variant) -> Recipe:
        """Return the recipe with the objective of a variant."""
        return replace(self.recipe, objective=variant.objective)

    def run(
        self, variant: Variant, model: Architecture, rate: float, seed: int, *, check: bool
    ) -> RunSpec:
        """Return one run of a variant, for the check of learning rates or for the comparison."""
        recipe = self.recipe_of(variant)
        budget = self.rate_parameters if check else self.parameters
        tokens = self.rate_tokens if check else self.tokens
        factor = rate / peak_rate(recipe)
        return RunSpec(
            run_id=f"{variant.name.replace(':', '')}-n{budget}-t{tokens}-lr{rate:g}-s{seed}",
            shape=model,
            tokens=tokens,
            recipe=replace(
                recipe,
                matrix_learning_rate=recipe.matrix_learning_rate * factor,
                learning_rate=recipe.learning_rate * factor,
            ),
            seed=seed,
            role=RATE_ROLE if check else ROLE,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedFamilies:
    """Rows of the trained models, and the learning rate of each variant."""

    rows: pd.DataFrame
    choices: tuple[RateChoice, ...]
    models: Mapping[Variant, Architecture]


def train_families(
    plan: ComparisonPlan,
    corpus: Corpus,
    folder: Folder,
    *,
    workers: int | None = None,
    report: Callable[[list[Entry]], None] = lambda entries: None,
    done: pd.DataFrame | None = None,
) -> TrainedFamilies:
    """Choose the learning rates, then train every variant with every seed.

    All families are trained with the first seed before any with the second, so that a stopped
    comparison has rows of each.

    Parameters
    ----------
    plan
        Budgets and recipe.
    corpus
        Corpus to train on.
    folder
        Folder of the ledger and the states, as in a sweep. The same call resumes a killed one.
    workers, report, done
        As in :func:`shapelaw.trainers.sweep.sweep.run_plan`.

    Raises
    ------
    WorkError
        A run failed, or all runs of a variant diverged.
    """
    small = plan.models(plan.rate_parameters, corpus.vocab_size)
    models = plan.models(plan.parameters, corpus.vocab_size)
    low, middle, high = plan.rates
    tried = {  # the middle rate of all first: a stopped check has one row of each family
        (variant, rate): plan.run(variant, small[variant], rate, 0, check=True)
        for rate in (middle, low, high)
        for variant in plan.variants
    }

    def train(specs: Sequence[RunSpec]) -> pd.DataFrame:
        return run_plan(specs, corpus, folder, workers=workers, report=report, done=done)

    rows = train(list(tried.values())).set_index("run_id")
    losses = rows["loss"].astype(float).fillna(np.inf) if "loss" in rows else None
    choices = tuple(
        choose_rate(
            variant,
            {
                rate: np.inf if losses is None else float(losses.loc[tried[variant, rate].run_id])
                for rate in plan.rates
            },
        )
        for variant in plan.variants
    )
    specs = [
        plan.run(choice.variant, models[choice.variant], choice.rate, seed, check=False)
        for seed in range(plan.seeds)
        for choice in choices
    ]
    compared = train(specs).assign(role=ROLE)
    require_finished(compared, plan.variants[0], [spec.run_id for spec in specs[:: len(choices)]])
    return TrainedFamilies(rows=compared, choices=choices, models=models)


def require_finished(rows: pd.DataFrame, baseline: Variant, run_ids: Sequence[str]) -> None:
    """Refuse to compare with a baseline whose runs all diverged; the rows stay in the folder.

    Raises
    ------
    WorkError
        None of the runs of the baseline has a loss.
    """
    losses = rows["loss"].astype(float) if "loss" in rows else pd.Series(np.nan, index=rows.index)
    if not np.isfinite(losses[rows["run_id"].isin(run_ids)]).any():
        raise WorkError(
            f"every run of the baseline {baseline.name} diverged; give lower --lr-values, or "
            "another --baseline"
        )
