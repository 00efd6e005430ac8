"""Plans and spec texts that would write outside the sweep or fill the memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.sweep import MAX_EPOCHS, run_plan
from shapelaw.trainers.training.spec import RunSpec, safe_run_id
from support.small_runs import SHAPE, small_corpus, spec

ESCAPES = ["../../escaped", "..", ".", "", "/absolute", "a/b", "a\\b", "C:x", "a\nb", "x" * 201]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("run_id", ESCAPES)
def test_run_id_that_is_no_folder_name_is_refused(tmp_path: Path, run_id: str) -> None:
    for refused in (safe_run_id, lambda text: spec(run_id=text), Folder(tmp_path).run):
        with pytest.raises(InputError, match="`run_id` must be the name of a folder"):
            refused(run_id)


def test_usual_run_ids_are_folder_names(tmp_path: Path) -> None:
    for run_id in ("d64-L2-h4-2x16-f96-t1000-s0", "run 1", "été_2.b"):
        assert Folder(tmp_path).run(run_id).parent == tmp_path / "runs"


def test_model_beyond_the_memory_is_refused_before_it_is_made(
    corpus: Corpus, tmp_path: Path
) -> None:
    huge = spec(shape=replace(SHAPE, hidden_size=2**20, intermediate_size=2**20))
    with pytest.raises(InputError, match=r"tiny needs at least .* of memory .* this machine has"):
        run_plan([huge], corpus, Folder(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_run_that_repeats_the_corpus_without_end_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    tokens = (MAX_EPOCHS + 1) * corpus.tokens_train
    with pytest.raises(InputError, match=r"`epochs <= 10000` must hold, but tiny would read"):
        run_plan([spec(tokens=tokens)], corpus, Folder(tmp_path / "out"))
    with pytest.raises(InputError, match=r"`tokens` must be from 1 to 1e\+15"):
        spec(tokens=10**18)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", True), ("tokens", "9"), ("seed", 2**63), ("shape", []), ("branches", [0.5]),
     ("run_id", "../x"), ("role", None), ("unknown", 1)],
)  # fmt: skip
def test_spec_text_with_a_wrong_field_is_refused(name: str, value: object) -> None:
    document = json.loads(spec().as_json()) | {name: value}
    with pytest.raises(InputError, match=name):
        RunSpec.from_json(json.dumps(document))
