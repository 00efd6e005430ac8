"""Training objectives by the names of recipes."""

from collections.abc import Callable

from shapelaw.trainers.objectives.diffusion import Diffusion
from shapelaw.trainers.objectives.next_token import NextToken
from shapelaw.trainers.objectives.objective import Objective
from shapelaw.trainers.optimizers.noise import BLOCK, MASKED, NEXT_TOKEN, parse_objective
from shapelaw.trainers.optimizers.recipe import Recipe


def _diffusion(recipe: Recipe) -> Diffusion:
    name = parse_objective(recipe.objective)
    assert name.noise is not None
    return Diffusion(recipe, name.block, name.noise)


OBJECTIVES: dict[str, Callable[[Recipe], Objective]] = {
    NEXT_TOKEN: NextToken,
    MASKED: _diffusion,
    BLOCK: _diffusion,
}


def objective_of(recipe: Recipe) -> Objective:
    """Return the objective that a recipe names."""
    return OBJECTIVES[parse_objective(recipe.objective).kind](recipe)
