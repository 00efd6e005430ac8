import io
import json
import math
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import zstandard
from typer.testing import CliRunner

from shapelaw.scaling.accuracy.fit import known_tasks
from shapelaw.scaling.accuracy.predictions import Task
from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import write_runs
from shapelaw.trainers.commands import evaluate_cli
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.encoding import Encoding, byte_encoding
from shapelaw.trainers.evaluation import loglikelihood as scoring
from shapelaw.trainers.evaluation.blimp import blimp_accuracy, blimp_answers, blimp_pairs
from shapelaw.trainers.evaluation.downstream import read_tasks, score_tasks
from shapelaw.trainers.evaluation.eval_sets import EvalFiles, read_evals
from shapelaw.trainers.evaluation.loglikelihood import (
    LogLikelihoodRequest,
    Score,
    likelihoods,
    request_of,
)
from shapelaw.trainers.evaluation.tasks import TASKS, chance_of
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.sweep import evaluate as exported
from shapelaw.trainers.sweep.evaluate import EvaluationJob, score_exports, score_run, with_scores
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.training.results import settings_row
from support.exported_models import exported as exported_model
from support.paths import SHARED
from support.small_runs import SHAPE, small_corpus, spec
from support.synthetic_accuracy import fit_link

torch.set_num_threads(1)
BYTES = byte_encoding()
TINY = Shape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, vocab_size=256, qk_norm=True,
)  # fmt: skip
ARCHIVE = SHARED / "evals" / "evals.tar.zst"
real = pytest.mark.skipif(not ARCHIVE.exists(), reason=f"needs the evaluation sets in {ARCHIVE}")
NOUNS = ("cat", "dogs", "old teacher", "people", "river", "boys", "a very long noun", "ox")


def model(*, length: int = 64, scale: float = 1.0, seed: int = 3) -> Transformer:
    """Return a model with random norms and larger weights, whose answers depend on every weight."""
    built = Transformer(TINY, context_length=length)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in built.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4 * scale, generator=generator)
    return built


def masked_architecture() -> Architecture:
    """Return the architecture of the tiny model with a mask token."""
    return read_architecture(TINY.to_config() | {"vocab_size": 257, "mask_token_id": 256})


def items() -> dict[str, list[dict[str, object]]]:
    """Return a few items with the fields of the real files."""
    pairs = [
        {"sentence_good": f"Here {noun} are now.", "sentence_bad": f"Now are {noun} here."}
        for noun in NOUNS
    ]
    shuffled = [
        {"sentence_good": f"Who saw the {noun}?", "sentence_bad": f"Who the {noun} saw it?"}
        for noun in NOUNS
    ]
    questions = [
        {"query": f"Question: What is a {noun}?\n", "gold": i % 3,
         "choices": ["an animal", f"the {noun}", "no", "a thing of some kind"][: 4 - i % 2]}
        for i, noun in enumerate(NOUNS)
    ]  # fmt: skip
    options = [
        {"context_options": [f"Ann met Bea so {noun}", f"Ann met Bea so the {noun}"],
         "continuation": "went home.", "gold": i % 2}
        for i, noun in enumerate(NOUNS)
    ]  # fmt: skip
    passages = [{"context": f"Long ago a {noun} met a", "continuation": noun} for noun in NOUNS]
    return {
        "blimp/agreement.jsonl": pairs,
        "blimp/order.jsonl": shuffled[:5],
        "tasks/arc_easy.jsonl": questions,
        "tasks/arc_challenge.jsonl": questions[::-1],
        "tasks/piqa.jsonl": [{**row, "choices": row["choices"][:2], "gold": i % 2}  # type: ignore[index]
                             for i, row in enumerate(questions)],
        "tasks/hellaswag_val_subset.jsonl": questions[:6],
        "tasks/winogrande.jsonl": options,
        "tasks/lambada_openai.jsonl": passages,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluation sets in a folder."""
    path = tmp_path_factory.mktemp("evals")
    for name, rows in items().items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def evals(folder: Path) -> EvalFiles:
    return read_evals(folder)


def plainly(built: Transformer, context: str, continuation: str) -> float:
    """Return the log-probability of a continuation, computed one token at a time."""
    tokens = [0, *context.encode(), *continuation.encode()]
    total = 0.0
    with torch.inference_mode():
        for end in range(1 + len(context.encode()), len(tokens)):
            logits = built.logits(built(torch.tensor([tokens[:end]])))[0, -1].double()
            total += float(logits.log_softmax(dim=0)[tokens[end]])
    return total


# --- likelihoods


def test_log_probability_equals_the_sum_over_single_tokens() -> None:
    built = model()
    texts = [("", "The cat."), ("The", " cat sat down"), ("é ü", " — ö"), ("a", "b")]
    found = likelihoods(built, [request_of(BYTES, *pair) for pair in texts])
    wanted = [plainly(built, *pair) for pair in texts]
    assert found.log_probability == pytest.approx(wanted, rel=1e-5)
    assert found.truncated == 0


def test_log_probability_of_a_request_does_not_depend_on_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = model()
    requests = [request_of(BYTES, "x" * (7 * i % 40), " word" * (1 + i % 4)) for i in range(30)]
    together = likelihoods(built, requests).log_probability
    alone = [likelihoods(built, [request]).log_probability[0] for request in requests]
    assert together == pytest.approx(alone, rel=1e-5)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    assert likelihoods(built, requests).log_probability == pytest.approx(alone, rel=1e-5)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation() -> None:
    request = request_of(BYTES, "Answer: ", "yes")
    assert bytes(request.context.astype(np.uint8)) == b"\0Answer:"
    assert bytes(request.continuation.astype(np.uint8)) == b" yes"


def test_a_context_that_is_too_long_is_cut_on_the_left_and_counted() -> None:
    built = model(length=16)
    request = request_of(BYTES, "once upon a time there was", " a cat")
    found = likelihoods(built, [request, request_of(BYTES, "a", "b")])
    assert found.truncated == 1
    tokens = torch.tensor([[*b"time there was a cat"][-17:]])
    with torch.inference_mode():
        rows = built.logits(built(tokens[:, :-1]))[0].log_softmax(dim=-1)
    wanted = sum(float(rows[i, tokens[0, i + 1]]) for i in range(10, 16))
    assert found.log_probability[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("size", [15, 16, 17, 24, 25, 33, 100])
def test_every_token_of_a_long_continuation_is_scored_once(size: int) -> None:
    built = Transformer(TINY, context_length=16)
    built.initialise(0)
    with torch.no_grad():
        built.embed_tokens.weight.zero_()
    request = LogLikelihoodRequest(
        context=np.zeros(9, dtype=np.int64), continuation=np.arange(size) % 256
    )
    found = likelihoods(built, [request])
    assert found.log_probability[0] == pytest.approx(-size * math.log(256), rel=1e-5)
    assert found.truncated == (9 + size - 1 > 16)


def test_greedy_is_true_only_if_every_token_is_the_most_probable() -> None:
    built = model()
    tokens = torch.tensor([[0, *b"The"]])
    with torch.inference_mode():
        for _ in range(3):
            best = built.logits(built(tokens))[:, -1:].argmax(dim=-1)
            tokens = torch.cat((tokens, best), dim=1)
    context, best_three = tokens[0, :4].numpy(), tokens[0, 4:].numpy()
    other = best_three.copy()
    other[2] = (other[2] + 1) % 256
    requests = [
        LogLikelihoodRequest(context=context, continuation=each) for each in (best_three, other)
    ]
    assert likelihoods(built, requests).greedy.tolist() == [True, False]


def test_a_model_with_non_finite_weights_is_refused() -> None:
    built = model()
    with torch.no_grad():
        built.norm.weight.fill_(math.nan)
    with pytest.raises(WorkError, match=r"`log-probabilities` must be finite.* or leave it out"):
        likelihoods(built, [request_of(BYTES, "", "text")])


def test_most_probable_continuation_of_a_diffusion_model_is_refused(evals: EvalFiles) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(InputError, match="which a bound does not tell; leave it out"):
        score_tasks(model(), BYTES, evals, ["lambada_openai"], objective="masked_diffusion")


def test_lm_eval_of_an_export_gives_the_log_probability_of_the_model(tmp_path: Path) -> None:
    for package in ("lm_eval", "accelerate", "peft"):
        pytest.importorskip(package)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    built = exported_model(tmp_path, tokenizer=BYTES)
    harness = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=1, dtype="float32")
    pair = "a line", " of text"
    ((scored, _),) = harness.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0)], disable_tqdm=True
    )
    tokens = torch.tensor([list("".join(pair).encode())])
    with torch.no_grad():
        logs = built.logits(built(tokens)).log_softmax(-1)[0]
    begin = len(pair[0])
    expected = sum(float(logs[at - 1, tokens[0, at]]) for at in range(begin, tokens.shape[1]))
    assert scored == pytest.approx(expected, abs=1e-4)


def test_lm_eval_scores_a_diffusion_model_by_the_same_bounds(evals: EvalFiles) -> None:
    pytest.importorskip("lm_eval")
    built = Transformer(masked_architecture(), context_length=64)
    built.initialise(0)
    pairs = blimp_pairs(evals, "agreement")
    answers = blimp_answers(built, BYTES, {"agreement": pairs}, "block:4")
    [score] = score_tasks(built, BYTES, evals, ["blimp_agreement"], objective="block:4")
    assert score.accuracy == pytest.approx(answers.correct["agreement"].mean())
    assert 0 < score.accuracy < 1
    assert score.details["loss_kind"] == "bound"


# --- evaluation sets


def archive(folder: Path, path: Path, *, prefix: str = "") -> Path:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for name in ("blimp", "tasks"):
            file.add(folder / name, arcname=f"{prefix}{name}")
    content = packed.getvalue()
    path.write_bytes(zstandard.compress(content) if path.suffix == ".zst" else content)
    return path


@pytest.mark.parametrize("name", ["evals.tar.zst", "evals.tar"])
@pytest.mark.parametrize("prefix", ["", "./", "evals/"])
def test_an_archive_and_its_folder_have_the_same_contents(
    folder: Path, tmp_path: Path, name: str, prefix: str
) -> None:
    packed = archive(folder, tmp_path / name, prefix=prefix)
    assert read_evals(packed).contents == read_evals(folder).contents


def test_evaluation_sets_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "evals.tar.zst").write_bytes(b"no archive")
    (tmp_path / "evals.tar").write_bytes(b"no archive")
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("none", "cannot be read"), ("evals.tar.zst", "not a zstd file"),
        ("evals.tar", r"^the evaluation sets .* cannot be read \([^\n]*\); give [^\n]*$"),
        ("empty", "has no evaluation sets; give a folder or a .tar.zst with blimp"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            read_evals(tmp_path / name)


def test_a_line_that_is_not_an_item_is_refused_by_number() -> None:
    broken = EvalFiles({"tasks/piqa.jsonl": b'{"a": 1}\n[2]\n'})
    with pytest.raises(InputError, match=r"tasks/piqa\.jsonl line 2 is no item of this task"):
        broken.items("tasks/piqa.jsonl")


def test_task_names_are_parsed_without_duplicates(evals: EvalFiles) -> None:
    assert read_tasks("blimp, lambada,blimp", evals) == ("blimp", "lambada_openai")
    assert read_tasks("hellaswag,blimp_order", evals) == ("hellaswag_val_subset", "blimp_order")
    with pytest.raises(
        InputError, match=r"must be one or more of blimp, lambada_openai, .* 'mmlu'"
    ):
        read_tasks("mmlu", evals)
    with pytest.raises(InputError, match="must name at least one of blimp"):
        read_tasks(" ,", evals)
    with pytest.raises(InputError, match=r"lack tasks/piqa\.jsonl; give a folder"):
        read_tasks("piqa", EvalFiles({"blimp/a.jsonl": b"{}"}))
    with pytest.raises(InputError, match=r"lack blimp/\*\.jsonl"):
        read_tasks("blimp", EvalFiles({"tasks/piqa.jsonl": b"{}"}))


# --- BLiMP


def test_blimp_accuracy_counts_pairs_with_the_more_probable_good_sentence(evals: EvalFiles) -> None:
    built = model()
    score = blimp_accuracy(built, BYTES, evals)
    assert 0 < score.details["paradigms"]["agreement"] < 1
    means = {}
    for name in ("agreement", "order"):
        pairs = blimp_pairs(evals, name)
        means[name] = np.mean([plainly(built, "", a) >= plainly(built, "", b) for a, b in pairs])
    assert score.details["paradigms"] == pytest.approx(means)
    assert score.accuracy == pytest.approx(np.mean(list(means.values())))
    assert (score.items, score.chance, score.truncated) == (13, 0.5, 0)


def test_blimp_of_a_uniform_model_prefers_the_shorter_sentence(evals: EvalFiles) -> None:
    built = model()
    with torch.no_grad():
        built.embed_tokens.weight.zero_()
    right = blimp_answers(built, BYTES, {"order": blimp_pairs(evals, "order")}).correct
    assert right["order"].all()
    swapped = [(bad, good) for good, bad in blimp_pairs(evals, "order")]
    assert not blimp_answers(built, BYTES, {"order": swapped}).correct["order"].any()


def test_standard_error_of_blimp_is_over_the_pairs_of_fixed_paradigms(evals: EvalFiles) -> None:
    score = blimp_accuracy(model(), BYTES, evals)
    variances = [
        accuracy * (1 - accuracy) / (count - 1)
        for accuracy, count in zip(score.details["paradigms"].values(), (8, 5), strict=True)
    ]
    assert score.standard_error == pytest.approx(math.sqrt(sum(variances)) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("length", [64, 16])
def test_blimp_without_lm_eval_gives_the_answers_of_lm_eval(evals: EvalFiles, length: int) -> None:
    built = model(length=length)
    alone = blimp_accuracy(built, BYTES, evals)
    for name, accuracy in alone.details["paradigms"].items():
        (through,) = score_tasks(built, BYTES, evals, [f"blimp_{name}"])
        assert through.accuracy == accuracy
        error = math.sqrt(accuracy * (1 - accuracy) / (through.items - 1))
        assert through.standard_error == pytest.approx(error)
        assert through.details["harness"].startswith("lm-eval ")


@pytest.mark.slow
@real
def test_blimp_of_the_real_files_gives_the_answers_of_lm_eval() -> None:
    evals = read_evals(ARCHIVE)
    built = model(length=256)
    assert len(evals.names("blimp")) == 67
    alone = blimp_accuracy(built, BYTES, evals, limit=8)
    assert alone.items == 67 * 8
    for name in evals.names("blimp")[::11]:
        (through,) = score_tasks(built, BYTES, evals, [f"blimp_{name}"], limit=8)
        assert through.accuracy == alone.details["paradigms"][name]


# --- tasks through lm-eval


def expected(built: Transformer, task: str, rows: list[dict[str, object]]) -> tuple[float, float]:
    """Return accuracy and normalised accuracy with explicit prompts."""
    right, normalised = [], []
    for row in rows:
        if task == "winogrande":
            values = [plainly(built, o, f" {row['continuation']}") for o in row["context_options"]]  # type: ignore[attr-defined]
            sizes = [1.0] * len(values)
        else:
            query = str(row["query"])
            prompt = query if task.startswith("hellaswag") else f"{query.strip()}\nAnswer:"
            values = [plainly(built, prompt, f" {choice}") for choice in row["choices"]]  # type: ignore[attr-defined]
            sizes = [float(len(choice)) for choice in row["choices"]]  # type: ignore[attr-defined]
        right.append(np.argmax(values) == row["gold"])
        normalised.append(np.argmax(np.array(values) / sizes) == row["gold"])
    return float(np.mean(right)), float(np.mean(normalised))


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in TASKS if name != "lambada_openai"])
def test_accuracy_of_a_multiple_choice_task_equals_that_of_explicit_prompts(
    evals: EvalFiles, task: str
) -> None:
    built = model(length=128)
    (score,) = score_tasks(built, BYTES, evals, [task])
    rows = evals.items(f"tasks/{task}.jsonl")
    accuracy, normalised = expected(built, task, rows)
    assert score.accuracy == pytest.approx(accuracy)
    assert score.items == len(rows)
    assert score.chance == pytest.approx(chance_of(task, rows))
    assert score.standard_error == pytest.approx(
        math.sqrt(accuracy * (1 - accuracy) / (len(rows) - 1))
    )
    if task == "winogrande":
        assert score.normalised is None
        assert list(score.columns()) == ["accuracy_winogrande", "accuracy_winogrande_se"]
    else:
        assert score.normalised == pytest.approx(normalised)
        assert score.columns()[f"accuracy_{task}_norm"] == score.normalised


def test_chance_is_the_mean_of_one_over_the_choices(evals: EvalFiles) -> None:
    rows = evals.items("tasks/arc_easy.jsonl")
    assert chance_of("arc_easy", rows) == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert chance_of("winogrande", evals.items("tasks/winogrande.jsonl")) == 0.5
    assert chance_of("lambada_openai", evals.items("tasks/lambada_openai.jsonl")) == 0
    assert chance_of("blimp_order", evals.items("blimp/order.jsonl")) == 0.5


class Bigrams(Transformer):
    """Model that predicts the next letter of "a ok" after each letter of it."""

    def forward(self, tokens: torch.Tensor, **_: object) -> torch.Tensor:  # type: ignore[override]
        return torch.nn.functional.one_hot(tokens, 256).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(256, 256)
        for letter, following in zip(b"a o", b" ok", strict=True):
            table[letter, following] = 5.0
        return hidden @ table


@pytest.mark.slow
def test_lambada_accuracy_counts_words_that_greedy_decoding_gives() -> None:
    passages = [{"context": "It was a", "continuation": word} for word in ("ok", "no", "okay")]
    lines = "\n".join(map(json.dumps, passages)).encode()
    evals = EvalFiles({"tasks/lambada_openai.jsonl": lines})
    (score,) = score_tasks(Bigrams(TINY, context_length=64), BYTES, evals, ["lambada_openai"])
    assert score.accuracy == pytest.approx(1 / 3)
    assert (score.items, score.chance, score.normalised) == (3, 0.0, None)


@pytest.mark.slow
def test_a_limit_selects_the_first_items_and_is_recorded(evals: EvalFiles) -> None:
    blimp, piqa = score_tasks(model(), BYTES, evals, ["blimp", "piqa"], limit=3)
    assert (blimp.items, piqa.items) == (6, 3)
    assert blimp.details["limit"] == piqa.details["limit"] == 3
    (one,) = score_tasks(model(), BYTES, evals, ["piqa"], limit=1)
    assert (one.items, one.standard_error) == (1, 0.0)


@pytest.mark.slow
def test_details_of_a_score_name_files_digests_and_harness(evals: EvalFiles) -> None:
    blimp, piqa = score_tasks(model(), BYTES, evals, ["blimp", "piqa"])
    assert piqa.details["files"] == {"tasks/piqa.jsonl": evals.sha256("tasks/piqa.jsonl")}
    assert set(blimp.details["files"]) == {"blimp/agreement.jsonl", "blimp/order.jsonl"}
    assert piqa.details["settings"]["doc_to_text"].endswith("Answer:")
    assert blimp.details["harness"] == "shapelaw"
    json.dumps(json_ready([blimp, piqa]), allow_nan=False)


def test_missing_lm_eval_is_named_with_the_command_that_installs_it(
    evals: EvalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "shapelaw.trainers.evaluation.lm_eval", raising=False)
    monkeypatch.delattr("shapelaw.trainers.evaluation.lm_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        InputError, match=r'pip install "shapelaw\[eval\]"`, or choose --tasks blim'
    ):
        score_tasks(model(), BYTES, evals, ["piqa"])
    assert score_tasks(model(), BYTES, evals, ["blimp"])[0].items == 13


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(evals: EvalFiles) -> None:
    larger: Encoding = replace(BYTES, vocab_size=400)
    with pytest.raises(InputError, match="must hold, but got 400 and 256; give the folder of the"):
        score_tasks(model(), larger, evals, ["blimp"])


# --- sweeps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def sweep(corpus: Corpus, tmp_path: Path) -> Path:
    """Return the folder of a sweep with two exported runs and one that diverged."""
    place = Folder(tmp_path / "sweep")
    place.path.mkdir()
    specs = [spec(run_id=name) for name in ("first", "second", "wild")]
    ledger = Ledger(place.ledger)
    ledger.plan(specs, [each.identity(corpus) for each in specs])
    for seed, each in enumerate(specs):
        assert ledger.claim() is not None
        row = settings_row(each, corpus, status="done") | {"loss": 2.0 + seed, "loss_se": 0.1}
        if each.run_id == "wild":
            ledger.diverge(each.run_id, "NaN", settings_row(each, corpus, status="diverged"))
            continue
        built = model(seed=seed)
        export(place.run(each.run_id), built, max_position_embeddings=64, tokenizer=BYTES)
        ledger.finish(each.run_id, row)
    return place.path


@pytest.mark.slow
def test_scores_of_a_sweep_are_added_to_its_run_table(
    sweep: Path, folder: Path, evals: EvalFiles
) -> None:
    seen: list[tuple[int, int]] = []
    table = score_exports(sweep, folder, workers=1, report=lambda *counts: seen.append(counts))
    assert table["run_id"].tolist() == ["first", "second", "wild"]
    for seed, row in enumerate(table.to_dict("records")[:2]):
        wanted = blimp_accuracy(model(seed=seed), BYTES, evals)
        assert row["accuracy_blimp"] == wanted.accuracy
        assert row["accuracy_blimp_se"] == wanted.standard_error
        assert row["loss"] == 2.0 + seed
    assert math.isnan(table["accuracy_blimp"].iloc[2])
    assert table.attrs["left_out"] == ["wild"]
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_stored_scores_are_not_computed_again(
    sweep: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(*arguments: object, **options: object) -> list[Score]:
        made.extend(arguments[3])  # type: ignore[arg-type]
        return score_tasks(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(exported, "score_tasks", counted)
    run = Folder(sweep).run("first")
    job = EvaluationJob(run=run, corpus=sweep / "corpus", evals=folder, tasks=("blimp",))
    first = score_run(job)
    assert score_run(job) == first
    assert made == ["blimp"]
    both = score_run(replace(job, tasks=("blimp", "winogrande")))
    assert made == ["blimp", "winogrande"]
    assert both[0] == first[0]
    assert score_run(replace(job, limit=2))[0].items == 4
    assert made == ["blimp", "winogrande", "blimp"]
    (run / "scores.json").write_text("{")
    assert score_run(job) == first
    assert len(made) == 4


def test_stored_scores_of_other_weights_or_items_are_not_used(
    sweep: Path, folder: Path, tmp_path: Path
) -> None:
    run = Folder(sweep).run("first")
    job = EvaluationJob(run=run, corpus=sweep / "corpus", evals=folder, tasks=("blimp",))
    (first,) = score_run(job)
    export(run, model(seed=9), max_position_embeddings=64, tokenizer=BYTES)
    (other,) = score_run(job)
    assert other.details["paradigms"] != first.details["paradigms"]
    fewer = tmp_path / "fewer"
    (fewer / "blimp").mkdir(parents=True)
    text = (folder / "blimp" / "order.jsonl").read_text().splitlines()[0]
    (fewer / "blimp" / "order.jsonl").write_text(text)
    assert score_run(replace(job, evals=fewer))[0].items == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_scored_is_named_and_other_scores_are_kept(
    sweep: Path, folder: Path
) -> None:
    (Folder(sweep).run("first") / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"1 of 2 models have no score; first: .* cannot be read"):
        score_exports(sweep, folder, workers=1)
    assert (Folder(sweep).run("second") / "scores.json").exists()


def test_a_sweep_without_models_is_refused(sweep: Path, folder: Path) -> None:
    for name in ("first", "second"):
        (Folder(sweep).run(name) / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no run of .* has a model\.safetensors; train the plan"):
        score_exports(sweep, folder)


def test_columns_of_earlier_scores_are_replaced() -> None:
    score = Score(task="blimp", accuracy=0.6, standard_error=0.01, chance=0.5, items=9, truncated=0)
    table = pd.DataFrame({"run_id": ["a", "b"], "accuracy_blimp": [0.1, 0.2]})
    found = with_scores(table, {"b": [score]})
    assert found["accuracy_blimp"].iloc[1] == 0.6
    assert math.isnan(found["accuracy_blimp"].iloc[0])


def test_an_accuracy_link_is_fitted_from_a_scored_run_table(tmp_path: Path) -> None:
    """The true accuracies are a sigmoid in the loss plus the sampling noise of BLiMP."""
    generator = np.random.default_rng(0)
    losses = np.linspace(1.2, 2.2, 24)
    truth = 0.5 + 0.3 / (1 + np.exp(6 * (losses - 1.6)))
    rows, scored = [], {}
    for i, (loss, accuracy) in enumerate(zip(losses, truth, strict=True)):
        seen = generator.normal(accuracy, 0.0018)
        rows.append({"run_id": f"r{i}", **SHAPE.row(), "n_non_embedding": 1000 + i, "tokens": 2000,
                     "loss": loss, "bits_per_byte": loss / math.log(2), "corpus": "text:1",
                     "tokenizer": "bytes", "status": "done"})  # fmt: skip
        scored[f"r{i}"] = [
            Score(task="blimp", accuracy=seen, standard_error=0.0018, chance=0.5, items=67_000,
                  truncated=0)
        ]  # fmt: skip
    write_runs(tmp_path / "runs.csv", with_scores(pd.DataFrame(rows), scored))
    table = load_runs(tmp_path / "runs.csv")
    assert known_tasks()["blimp"] == Task(name="blimp", chance=0.5, items=67_000)
    for column in ("loss", "bits_per_byte"):
        link = fit_link(table, "blimp", loss=column, validation="text:1")
        scale = 1.0 if column == "loss" else 1 / math.log(2)
        answer = link.predict(1.7 * scale, validation="text:1", tokenizer="bytes")
        assert answer.value == pytest.approx(0.5 + 0.3 / (1 + math.exp(0.6)), abs=0.003)
        assert answer.chance == 0.5


# --- commands


def app() -> typer.Typer:
    made, group = typer.Typer(), typer.Typer()
    evaluate_cli.mount(made, group)
    made.add_typer(group, name="sweep")
    return made


@pytest.mark.slow
def test_the_command_evaluates_one_model(sweep: Path, folder: Path, corpus: Corpus) -> None:
    run = Folder(sweep).run("first")
    arguments = ["evaluate", run, "--evals", folder, "--tasks", "blimp,piqa", "--limit", 2]
    done = CliRunner().invoke(app(), [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [score["task"] for score in found["scores"]] == ["blimp", "piqa"]
    assert found["shape"]["hidden_size"] == 16
    assert found["held_out"] == {}
    shown = CliRunner().invoke(app(), list(map(str, arguments)))
    assert "blimp" in shown.stdout
    assert "0.5000" in shown.stdout


def test_the_command_evaluates_on_the_validation_sets_of_a_corpus(
    tmp_path: Path, corpus: Corpus
) -> None:
    shape = replace(TINY, vocab_size=corpus.vocab_size)
    built = Transformer(shape, context_length=16)
    built.initialise(0)
    export(tmp_path / "run", built, max_position_embeddings=16)
    arguments = ["evaluate", tmp_path / "run", "--corpus-folder", corpus.folder, "--json"]
    done = CliRunner().invoke(app(), list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["held_out"].values()
    assert found["loss"] == pytest.approx(math.log(corpus.vocab_size), rel=0.2)
    assert found["bits_per_byte"] > found["bits_per_byte_se"] > 0
    assert "windows" not in found


def test_the_command_is_refused_without_evaluation_sets_and_corpus(sweep: Path) -> None:
    done = CliRunner().invoke(app(), ["evaluate", str(Folder(sweep).run("first"))])
    assert isinstance(done.exception, InputError)
    assert "give --evals for downstream tasks, --corpus-folder" in str(done.exception)


@pytest.mark.slow
def test_the_command_scores_a_sweep_and_writes_its_table(
    sweep: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs.csv"
    arguments = ["sweep", "evaluate", sweep, "--evals", folder, "--workers", 1, "--out", out]
    done = CliRunner().invoke(app(), [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["runs"]
    assert [row["accuracy_blimp"] is None for row in rows] == [False, False, True]
    assert pd.read_csv(out)["accuracy_blimp_se"].notna().sum() == 2
    assert "1 run without an exported model or a score: wild" in done.stderr
