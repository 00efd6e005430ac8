"""Model of a conversion: its beginning, the objective of each step, and its end."""

from dataclasses import replace
from pathlib import Path

from shapelaw.scaling.errors import WorkError
from shapelaw.scaling.files import sha256
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.evaluation.held_out import MAX_SET_TOKENS, evaluate_tokens
from shapelaw.trainers.models.hugging_face import WEIGHTS, load_export
from shapelaw.trainers.models.lora import (
    LoraSettings,
    adapted_layers,
    add_adapters,
    merge_adapters,
    save_adapters,
)
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.vocabulary import grow_vocabulary
from shapelaw.trainers.objectives.distillation import Distillation
from shapelaw.trainers.objectives.objective import Objective
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.training.averaging import BestWeights
from shapelaw.trainers.training.conversion import D2F
from shapelaw.trainers.training.execution import Execution
from shapelaw.trainers.training.spec import RunSpec


def convert_parent(spec: RunSpec, runs: Path) -> Transformer:
    """Build the model with which a conversion begins, from the weights of its parent.

    Parameters
    ----------
    spec
        Run with a conversion.
    runs
        Folder of the folders of runs.

    Raises
    ------
    InputError
        The parent has no weights, or they cannot be read.
    WorkError
        The weights have changed since the conversion was planned.
    """
    conversion, attention = spec.conversion, (spec.engine or Execution()).attention
    assert conversion is not None
    folder = runs / conversion.parent
    parent = load_export(folder, attention=attention).train()
    if sha256(folder / WEIGHTS) != conversion.weights:
        raise WorkError(
            f"{folder / WEIGHTS} has other weights than when its conversion was planned; convert "
            "it under another seed, or train the parent again"
        )
    parent.set_context_length(spec.recipe.context_length)
    if conversion.method == D2F:
        rank = conversion.rank
        add_adapters(parent, LoraSettings(rank=rank, alpha=float(rank)), spec.seed)
        return parent
    noise = conversion.mask_noise
    return grow_vocabulary(parent, spec.shape, noise=noise, seed=spec.seed, attention=attention)


def objective_at(spec: RunSpec, step: int) -> Objective:
    """Return the objective of a step of a run."""
    conversion, recipe = spec.conversion, spec.recipe
    if conversion is None:
        return objective_of(recipe)
    if conversion.method == D2F:
        return Distillation(recipe, block=conversion.phases[0].block)
    name = conversion.objective(step, spec.steps, recipe.context_length)
    return objective_of(replace(recipe, objective=name))


def consider_weights(
    spec: RunSpec, step: int, model: Transformer, corpus: Corpus, best: BestWeights
) -> None:
    """Evaluate the weights after a step and keep them for the average if they are good.

    Nothing happens after other steps than the candidates of the conversion. The held-out loss is
    that of the run's own objective, on fewer tokens than in the run table.
    """
    assert spec.conversion is not None
    if step not in spec.conversion.candidate_steps(spec.steps):
        return
    text = corpus.validation_shard()
    result = evaluate_tokens(
        model, text.tokens, spec.recipe, bytes_per_token=corpus.bytes_per_token, most=MAX_SET_TOKENS
    )
    best.consider(step, result.loss, model.tensors())


def finish_conversion(model: Transformer, folder: Path, best: BestWeights) -> None:
    """Average the best weights of a conversion, or write its adapters and merge them."""
    best.apply(model.tensors())
    if adapted_layers(model):
        save_adapters(model, folder)
        merge_adapters(model)
