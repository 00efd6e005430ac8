"""Training objectives by name."""

from collections.abc import Callable

from shapelaw.trainers.objectives.next_token import NextToken
from shapelaw.trainers.objectives.objective import Objective
from shapelaw.trainers.optimizers.recipe import Recipe

OBJECTIVES: dict[str, Callable[[Recipe], Objective]] = {"next_token": NextToken}


def objective_of(recipe: Recipe) -> Objective:
    """Return the objective of a recipe, which is next-token prediction for all recipes."""
    return OBJECTIVES["next_token"](recipe)
