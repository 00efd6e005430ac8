"""BLiMP, the benchmark of linguistic minimal pairs (arXiv 1912.00582), without lm-eval.

A model answers a pair correctly if the grammatical sentence is more probable than the ungrammatical
one. There are 67 paradigms of 1,000 pairs. The score is the mean accuracy over paradigms; guessing
scores one half. This implementation is fast enough for every row of a ladder, and its answers equal
those of lm-eval (tests compare the accuracies of every paradigm).
"""

import math
from collections.abc import Mapping

import numpy as np

from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import Likelihoods, Score, likelihoods, request_of
from shapelaw.trainers.evaluation.tasks import items_of
from shapelaw.trainers.models.transformer import Transformer

CHANCE = 0.5


def blimp_accuracy(
    model: Transformer, encoding: Encoding, evals: EvalFiles, *, limit: int | None = None
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

    Returns
    -------
    Score
        Score with a standard error over the pairs of the 67 fixed paradigms. The details contain
        the accuracy of each paradigm.

    Raises
    ------
    InputError
        The evaluation sets lack BLiMP, or an item lacks a sentence.
    """
    pairs = {name: blimp_pairs(evals, name)[:limit] for name in evals.names(BLIMP)}
    if not pairs:
        evals.items(f"{BLIMP}/*.jsonl")  # raises an error that names the missing files
    correct, results = blimp_answers(model, encoding, pairs)
    means = {name: float(answers.mean()) for name, answers in correct.items()}
    errors = [
        float(answers.std(ddof=1)) / math.sqrt(len(answers)) if len(answers) > 1 else 0.0
        for answers in correct.values()
    ]
    return Score(
        task=BLIMP,
        accuracy=float(np.mean(list(means.values()))),
        standard_error=math.hypot(*errors) / len(errors),
        chance=CHANCE,
        items=sum(map(len, pairs.values())),
        truncated=results.truncated,
        details={
            "harness": "shapelaw",
            "files": {f"{BLIMP}/{name}.jsonl": evals.sha256(f"{BLIMP}/{name}.jsonl")
                      for name in pairs},
            "limit": limit,
            "paradigms": means,
        },
    )  # fmt: skip


def blimp_pairs(evals: EvalFiles, paradigm: str) -> list[tuple[str, str]]:
    """Return the grammatical and the ungrammatical sentence of each pair of a paradigm."""
    rows = items_of(f"{BLIMP}_{paradigm}", evals)
    return [(row["sentence_good"], row["sentence_bad"]) for row in rows]


def blimp_answers(
    model: Transformer, encoding: Encoding, pairs: Mapping[str, list[tuple[str, str]]]
) -> tuple[dict[str, np.ndarray], Likelihoods]:
    """Compare the log-probabilities of the two sentences of each pair.

    Equal log-probabilities count as correct, as in lm-eval.

    Parameters
    ----------
    model
        Model to score.
    encoding
        Tokenizer of the model.
    pairs
        Grammatical and ungrammatical sentences by paradigm.

    Returns
    -------
    correct : dict of str to numpy.ndarray
        Correctness of each pair, (pairs,), by paradigm.
    results : Likelihoods
        Log-probabilities of all different sentences.
    """
    texts = [text for of_paradigm in pairs.values() for pair in of_paradigm for text in pair]
    positions = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    requests = [request_of(encoding, "", text) for text in positions]
    results = likelihoods(model, requests)
    values = results.log_probability[[positions[text] for text in texts]].reshape(-1, 2)
    correct = values[:, 0] >= values[:, 1]
    ends = np.cumsum([len(of_paradigm) for of_paradigm in pairs.values()])[:-1]
    return dict(zip(pairs, np.split(correct, ends), strict=True)), results
