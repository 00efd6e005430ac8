"""BLiMP: of a grammatical and an ungrammatical sentence, which is more probable (arXiv 1912.00582).

67 paradigms of 1,000 pairs. The score is the mean over paradigms; guessing scores one half. This is
the path without lm-eval, fast enough for every row of a ladder; its answers are those of lm-eval's
(tests compare the accuracies of every paradigm).
"""

import math
from collections.abc import Mapping

import numpy as np

from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import Likelihoods, Score, likelihoods, request_of
from shapelaw.trainers.models.transformer import Transformer

CHANCE = 0.5


def blimp_accuracy(
    model: Transformer, encoding: Encoding, evals: EvalFiles, *, limit: int | None = None
) -> Score:
    """Score a model on BLiMP, a sentence alone after the separator of documents.

    Parameters
    ----------
    limit
        Pairs of each paradigm, the first ones; all by default.

    Returns
    -------
    The score; its standard error is over the pairs of the 67 fixed paradigms, and its details give
    the accuracy of each paradigm.

    Raises
    ------
    InputError
        The evaluation sets lack BLiMP, or an item lacks a sentence.
    """
    pairs = {name: blimp_pairs(evals, name)[:limit] for name in evals.names(BLIMP)}
    if not pairs:
        evals.items(f"{BLIMP}/*.jsonl")  # says what is missing
    correct, found = blimp_answers(model, encoding, pairs)
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
        truncated=found.truncated,
        details={
            "harness": "shapelaw",
            "files": {f"{BLIMP}/{name}.jsonl": evals.sha256(f"{BLIMP}/{name}.jsonl")
                      for name in pairs},
            "limit": limit,
            "paradigms": means,
        },
    )  # fmt: skip


def blimp_pairs(evals: EvalFiles, paradigm: str) -> list[tuple[str, str]]:
    """Grammatical and ungrammatical sentence of each pair."""
    rows = evals.items(f"{BLIMP}/{paradigm}.jsonl")
    return [(str(row["sentence_good"]), str(row["sentence_bad"])) for row in rows]


def blimp_answers(
    model: Transformer, encoding: Encoding, pairs: Mapping[str, list[tuple[str, str]]]
) -> tuple[dict[str, np.ndarray], Likelihoods]:
    """Whether each pair of each paradigm was told right, and the likelihoods of all sentences.

    Two equal log-probabilities count as right, as in lm-eval.
    """
    texts = [text for own in pairs.values() for pair in own for text in pair]
    different = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    requests = [request_of(encoding, "", text) for text in different]
    found = likelihoods(model, requests)
    values = found.log_probability[[different[text] for text in texts]].reshape(-1, 2)
    right = values[:, 0] >= values[:, 1]
    ends = np.cumsum([len(own) for own in pairs.values()])[:-1]
    return dict(zip(pairs, np.split(right, ends), strict=True)), found
