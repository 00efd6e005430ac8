"""BLiMP, the benchmark of linguistic minimal pairs (arXiv 1912.00582), without lm-eval.

A model answers a pair correctly if the grammatical sentence is more probable than the ungrammatical
one; a diffusion model, if it has the lower bound on -ln p, with the same masks for both. There are
67 paradigms of 1,000 pairs. The score is the mean accuracy over paradigms; guessing scores one
half. This implementation is fast enough for every row of a ladder, and its answers equal those of
lm-eval (tests compare the accuracies of every paradigm).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.evaluation.bounds import difference_error, log_probabilities
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import Likelihoods, Score, request_of
from shapelaw.trainers.evaluation.tasks import items_of
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN

CHANCE = 0.5
UNRESOLVED = 2  # standard errors of the masks


@dataclass(frozen=True, kw_only=True)
class PairAnswers:
    """Answers to minimal pairs.

    Attributes
    ----------
    correct
        Correctness of each pair, (pairs,), by paradigm.
    differences
        Log-probability of the grammatical sentence minus that of the other, (pairs,), nats, of all
        paradigms in their order; for a diffusion model the difference of bounds.
    errors
        Standard errors of the differences from the draws of masks, (pairs,); None if exact.
    results
        Log-probabilities of all different sentences.
    """

    correct: dict[str, np.ndarray]
    differences: np.ndarray
    errors: np.ndarray | None
    results: Likelihoods

    def details(self) -> dict[str, float | str | int]:
        """Return how far bounds resolve the pairs; nothing where log-probabilities are exact."""
        if self.errors is None or self.results.draws is None:
            return {}
        unresolved = np.abs(self.differences) < UNRESOLVED * self.errors
        return {
            "loss_kind": "bound",
            "draws": self.results.draws.shape[1],
            "mean_difference": float(self.differences.mean()),
            "mean_difference_masks_se": float(np.sqrt((self.errors**2).sum()) / len(self.errors)),
            "unresolved_pairs": float(unresolved.mean()),
        }


def blimp_accuracy(
    model: Transformer,
    encoding: Encoding,
    evals: EvalFiles,
    *,
    limit: int | None = None,
    objective: str = NEXT_TOKEN,
) -> Score:
    """Score a model on BLiMP, each sentence as a document of its own.

    Parameters
    ----------
    model
        Model to score.
    encoding
        Tokenizer of the model.
    evals
        Evaluation sets with BLiMP.
    limit
        Number of pairs of each paradigm, the first ones; all by default.
    objective
        Objective that the model was trained by.

    Returns
    -------
    Score
        Score with a standard error over the pairs of the 67 fixed paradigms. The details contain
        the accuracy of each paradigm, and for a diffusion model the mean difference of the bounds
        and the share of pairs whose difference is below two standard errors of the masks.

    Raises
    ------
    InputError
        The evaluation sets lack BLiMP, or an item lacks a sentence.
    """
    pairs = {name: blimp_pairs(evals, name)[:limit] for name in evals.names(BLIMP)}
    if not pairs:
        evals.items(f"{BLIMP}/*.jsonl")  # raises an error that names the missing files
    answers = blimp_answers(model, encoding, pairs, objective)
    means = {name: float(correct.mean()) for name, correct in answers.correct.items()}
    errors = [
        float(correct.std(ddof=1)) / math.sqrt(len(correct)) if len(correct) > 1 else 0.0
        for correct in answers.correct.values()
    ]
    return Score(
        task=BLIMP,
        accuracy=float(np.mean(list(means.values()))),
        standard_error=math.hypot(*errors) / len(errors),
        chance=CHANCE,
        items=sum(map(len, pairs.values())),
        truncated=answers.results.truncated,
        details={
            "harness": "shapelaw",
            "files": {f"{BLIMP}/{name}.jsonl": evals.sha256(f"{BLIMP}/{name}.jsonl")
                      for name in pairs},
            "limit": limit,
            "paradigms": means,
            **answers.details(),
        },
    )  # fmt: skip


def blimp_pairs(evals: EvalFiles, paradigm: str) -> list[tuple[str, str]]:
    """Return the grammatical and the ungrammatical sentence of each pair of a paradigm."""
    rows = items_of(f"{BLIMP}_{paradigm}", evals)
    return [(row["sentence_good"], row["sentence_bad"]) for row in rows]


def blimp_answers(
    model: Transformer,
    encoding: Encoding,
    pairs: Mapping[str, list[tuple[str, str]]],
    objective: str = NEXT_TOKEN,
) -> PairAnswers:
    """Compare the log-probabilities of the two sentences of each pair.

    Equal log-probabilities count as correct, as in lm-eval. A diffusion model scores both sentences
    of a pair with the same masks, and every pair with masks of its own.

    Parameters
    ----------
    model
        Model to score.
    encoding
        Tokenizer of the model.
    pairs
        Grammatical and ungrammatical sentences by paradigm.
    objective
        Objective that the model was trained by.
    """
    listed = [pair for of_paradigm in pairs.values() for pair in of_paradigm]
    masked = objective != NEXT_TOKEN
    texts = [(text, number * masked) for number, pair in enumerate(listed) for text in pair]
    positions = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    requests = [request_of(encoding, "", text, number) for text, number in positions]
    results = log_probabilities(model, requests, objective)
    rows = np.array([positions[text] for text in texts]).reshape(-1, 2)
    values = results.log_probability[rows]
    errors = None
    if results.draws is not None:
        errors = difference_error(results.draws[rows[:, 0]] - results.draws[rows[:, 1]])
    ends = np.cumsum([len(of_paradigm) for of_paradigm in pairs.values()])[:-1]
    correct = np.split(values[:, 0] >= values[:, 1], ends)
    return PairAnswers(
        correct=dict(zip(pairs, correct, strict=True)),
        differences=values[:, 0] - values[:, 1],
        errors=errors,
        results=results,
    )
