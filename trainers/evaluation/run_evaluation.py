"""Evaluation of one exported model: held-out losses by validation set and downstream tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import sha256
from shapelaw.scaling.units import format_count, loss_name
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.encoding import TOKENIZER_FILE, load_encoding
from shapelaw.trainers.evaluation.bounds import trained_objective
from shapelaw.trainers.evaluation.downstream import read_tasks, score_tasks
from shapelaw.trainers.evaluation.eval_sets import read_evals
from shapelaw.trainers.evaluation.held_out import Evaluation, evaluate_sets, evaluate_tokens
from shapelaw.trainers.evaluation.loglikelihood import Score
from shapelaw.trainers.models.hugging_face import WEIGHTS, load_export
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.noise import parse_objective
from shapelaw.trainers.optimizers.recipe import Recipe

ALL_SETS = "validation"  # name of the loss on all validation sets together


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluated(Result):
    """Evaluated losses and scores of one exported model."""

    run: str
    shape: Shape | Architecture
    weights_sha256: str
    held_out: Mapping[str, Evaluation]
    scores: tuple[Score, ...]
    loss_kind: str = "exact"

    def document(self) -> dict[str, Any]:
        """Return the stable document, without the losses of windows."""
        losses = {
            name: {key: value for key, value in vars(evaluation).items() if key != "windows"}
            for name, evaluation in self.held_out.items()
        }
        return {
            "run": self.run,
            "shape": self.shape if isinstance(self.shape, Shape) else self.shape.row(),
            "weights_sha256": self.weights_sha256,
            "loss_kind": self.loss_kind,
            "held_out": losses,
            "scores": self.scores,
        }

    def view(self) -> View:
        """Return the model, its losses and its accuracies."""
        import pandas as pd

        losses = [
            {
                "validation set": name,
                "nats per token": f"{held.loss:.4f} ± {held.loss_se:.4f}",
                "bits per byte": f"{held.bits_per_byte:.4f} ± {held.bits_per_byte_se:.4f}",
                "standard error over": held.clusters,
            }
            for name, held in self.held_out.items()
        ]
        scores = [
            {
                "task": score.task,
                "accuracy": f"{score.accuracy:.4f} ± {score.standard_error:.4f}",
                "chance": f"{score.chance:.4f}",
                "items": score.items,
                "normalised": "" if score.normalised is None else f"{score.normalised:.4f}",
                "truncated": score.truncated,
            }
            for score in self.scores
        ]
        size = format_count(self.shape.n_non_embedding)
        return View(
            title=f"{self.run}: {size} non-embedding parameters",
            tables={
                f"Held-out {loss_name(self.loss_kind)}": pd.DataFrame(losses),
                "Downstream" + ", by the bound" * (self.loss_kind == "bound"): pd.DataFrame(scores),
            },
        )


def evaluate_run(
    run: Path, evals: Path | None, tasks: str, corpus: Path | None, *, limit: int | None = None
) -> Evaluated:
    """Evaluate the exported model of a run.

    Parameters
    ----------
    run
        Folder of a finished run.
    evals
        Path of the evaluation sets for the tasks. Without it no task is scored.
    tasks
        Names of tasks, separated by commas.
    corpus
        Folder of a prepared corpus. Its validation sets are evaluated, and its tokenizer is used if
        the run has none.
    limit
        Number of items of each task; all by default.

    Raises
    ------
    InputError
        Neither ``evals`` nor ``corpus`` is given, or a file is missing or damaged.
    """
    if evals is None and corpus is None:
        raise InputError("give --evals for downstream tasks, --corpus-folder for losses, or both")
    model = load_export(run, attention="matmul")
    objective = trained_objective(run, model)
    held_out = {} if corpus is None else _losses(model, Corpus.load(corpus), objective)
    scores: list[Score] = []
    if evals is not None:
        items = read_evals(evals)
        names = read_tasks(tasks, items)
        in_run = corpus is None or (run / TOKENIZER_FILE).exists()
        encoding = load_encoding(run if in_run or corpus is None else corpus)
        scores = score_tasks(model, encoding, items, names, limit=limit, objective=objective)
    return Evaluated(
        run=run.name,
        shape=getattr(model, "shape", model.architecture),
        weights_sha256=sha256(run / WEIGHTS),
        held_out=held_out,
        scores=tuple(scores),
        loss_kind=parse_objective(objective).loss_kind,
    )


def _losses(model: Transformer, corpus: Corpus, objective: str) -> dict[str, Evaluation]:
    """Evaluate the loss in float32 on each named validation set and, as in a run table, on all."""
    if corpus.vocab_size != model.vocab_size - (model.mask_token == model.vocab_size - 1):
        raise InputError(
            f"`vocab_size` of the model and the corpus must be equal, but are "
            f"{model.vocab_size} and {corpus.vocab_size}; give the corpus of the run"
        )
    recipe = Recipe(context_length=model.context_length, objective=objective)
    whole = corpus.validation_shard()
    together = evaluate_tokens(
        model,
        whole.tokens,
        recipe,
        bytes_per_token=corpus.bytes_per_token,
        starts=whole.starts,
    )
    return evaluate_sets(model, corpus.validation_sets(), recipe) | {ALL_SETS: together}
