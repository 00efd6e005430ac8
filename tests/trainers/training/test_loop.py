import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import COLUMNS
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.evaluation.held_out import evaluate_tokens
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.optimizers.recipe import OPTIMIZERS, Recipe
from shapelaw.trainers.training import checkpoint, loop
from shapelaw.trainers.training import results as finishing
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import Diverged, RunSpec, model_for
from support.small_runs import RECIPE, SHAPE, STEPS, Killed, killed_at, small_corpus, spec

Row = dict[str, object]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def results(folder: Path) -> dict[str, torch.Tensor]:
    windows = torch.from_numpy(np.load(folder / "windows.npy"))
    return load_file(folder / "model.safetensors") | {"windows": windows}


def assert_same_results(got: Path, wanted: Path) -> None:
    a, b = results(got), results(wanted)
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=OPTIMIZERS)
def undisturbed(
    request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunSpec, Row, Path]:
    run = spec(recipe=replace(RECIPE, optimizer=request.param))
    folder = tmp_path_factory.mktemp(request.param)
    return run, train_run(run, corpus, folder)[-1], folder


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.integers(1, STEPS), max_size=4),
    interval=st.sampled_from([0.0, 0.0, 0.01, 0.03]),
)
def test_a_run_killed_at_any_steps_ends_bit_for_bit_like_an_undisturbed_one(
    undisturbed: tuple[RunSpec, Row, Path],
    corpus: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    interval: float,
) -> None:
    run, wanted, reference = undisturbed
    folder = tmp_path_factory.mktemp("killed")
    for last in kills:
        try:
            train_run(run, corpus, folder, watch=killed_at(last), checkpoint_seconds=interval)
            break  # the checkpoint was already past this step, and the run ended
        except Killed:
            assert not (folder / "model.safetensors").exists()
    row = train_run(run, corpus, folder, checkpoint_seconds=interval)[-1]
    assert row["loss"] == wanted["loss"]
    assert_same_results(folder, reference)


def test_a_resumed_run_goes_on_from_its_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_run(spec(), corpus, tmp_path, watch=killed_at(8), checkpoint_seconds=0)
    steps: list[int] = []
    train_run(spec(), corpus, tmp_path, watch=steps.append)
    assert steps == list(range(8, STEPS + 1))  # killed in step 8: the checkpoint is that of 7


def test_no_checkpoint_is_written_before_its_time(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_run(spec(), corpus, tmp_path, watch=killed_at(8), checkpoint_seconds=3600)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_by_garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_garbage])
def test_a_damaged_checkpoint_costs_time_but_not_the_result(
    corpus: Corpus, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    train_run(spec(), corpus, tmp_path / "straight")
    with pytest.raises(Killed):
        train_run(spec(), corpus, tmp_path / "hurt", watch=killed_at(8), checkpoint_seconds=0)
    damage(tmp_path / "hurt" / "checkpoint.safetensors")
    steps: list[int] = []
    train_run(spec(), corpus, tmp_path / "hurt", watch=steps.append)
    assert steps == list(range(1, STEPS + 1))
    assert_same_results(tmp_path / "hurt", tmp_path / "straight")


def test_a_checkpoint_of_another_spec_is_not_resumed(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_run(spec(seed=1), corpus, tmp_path / "used", watch=killed_at(8), checkpoint_seconds=0)
    train_run(spec(seed=2), corpus, tmp_path / "used")
    train_run(spec(seed=2), corpus, tmp_path / "clean")
    assert_same_results(tmp_path / "used", tmp_path / "clean")


def test_two_runs_of_one_spec_are_identical(corpus: Corpus, tmp_path: Path) -> None:
    rows = [train_run(spec(), corpus, tmp_path / name)[-1] for name in "ab"]
    clock = {"seconds", "tokens_per_second"}
    first, second = ({key: row[key] for key in row if key not in clock} for row in rows)
    assert first == second
    assert_same_results(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", ["seed", "data_seed"])
def test_another_seed_is_another_run(corpus: Corpus, tmp_path: Path, name: str) -> None:
    losses = [
        train_run(spec(**{name: seed}), corpus, tmp_path / str(seed))[-1]["loss"] for seed in (0, 1)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_learns_real_text(corpus: Corpus, tmp_path: Path, dtype: str) -> None:
    recipe = Recipe(context_length=32, sequences=8, dtype=dtype)
    row = train_run(spec(tokens=30_000, recipe=recipe), corpus, tmp_path)[-1]
    assert row["loss"] < 3.3 < math.log(256) - 2  # type: ignore[operator]
    assert row["dtype"] == dtype


def test_the_row_has_every_column_of_the_run_table(corpus: Corpus, tmp_path: Path) -> None:
    run = spec(tokens=700, seed=5, data_seed=6, role="confirmation")
    row = train_run(run, corpus, tmp_path)[-1]
    assert set(COLUMNS) <= set(row)
    assert {name: row[name] for name in SHAPE.row()} == SHAPE.row()
    assert row["tokens"] == run.steps * RECIPE.batch_tokens == 11 * 64
    assert row["n_total"] == SHAPE.n_total
    assert row["n_non_embedding"] == SHAPE.n_non_embedding
    assert row["flops_6nd"] == 6 * SHAPE.n_non_embedding * 11 * 64
    assert row["flops_counted"] == SHAPE.training_flops(16) * 11 * 64
    assert (row["seed"], row["data_seed"], row["role"]) == (5, 6, "confirmation")
    assert (row["family"], row["status"], row["optimizer"]) == ("qwen3", "done", "muon")
    assert (row["corpus"], row["tokenizer"]) == (corpus.label, "bytes")
    assert (row["context_length"], row["batch_tokens"]) == (16, 64)
    assert row["learning_rate"] == RECIPE.matrix_learning_rate
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2))  # type: ignore[operator]
    assert row["tokens_per_second"] == pytest.approx(11 * 64 / row["seconds"])  # type: ignore[operator]
    assert row["git_commit"]


def test_the_learning_rate_of_the_row_is_the_one_that_the_matrices_had(
    corpus: Corpus, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, optimizer="adamw", learning_rate=0.002, matrix_learning_rate=0.5)
    assert train_run(spec(tokens=64, recipe=recipe), corpus, tmp_path)[-1]["learning_rate"] == 0.002


def test_held_out_losses_are_kept_by_window(corpus: Corpus, tmp_path: Path) -> None:
    row = train_run(spec(), corpus, tmp_path)[-1]
    windows = np.load(tmp_path / "windows.npy")
    assert windows.mean() == row["loss"]
    assert len(windows) == (corpus.tokens_validation - 1) // 16


def test_error_of_the_row_is_clustered_by_document(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "texts", document_bytes=150)
    folder = tmp_path / "run"
    row = train_run(spec(), corpus, folder)[-1]
    text = corpus.validation_shard()
    assert row["loss_se_clusters"] == f"{len(text.starts)} documents"
    again = evaluate_tokens(
        load_export(folder), text.tokens, RECIPE, bytes_per_token=1.0, starts=text.starts
    )
    assert row["loss_se"] == pytest.approx(again.loss_se)
    windows = np.load(folder / "windows.npy")
    assert row["loss_se"] != pytest.approx(windows.std(ddof=1) / len(windows) ** 0.5, rel=0.05)


def test_row_of_a_text_of_two_documents_has_the_error_of_its_blocks(
    corpus: Corpus, tmp_path: Path
) -> None:
    row = train_run(spec(), corpus, tmp_path)[-1]
    assert len(corpus.validation_shard().starts) == 2
    assert row["loss_se_clusters"] == "20 blocks"


def test_a_finished_run_leaves_weights_config_and_windows_only(
    corpus: Corpus, tmp_path: Path
) -> None:
    train_run(spec(), corpus, tmp_path, checkpoint_seconds=0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "config.json", "generation_config.json", "metrics.csv", "model.safetensors",
        "rows.json", "tokenizer.json", "tokenizer_config.json", "windows.npy",
    ]  # fmt: skip


def test_seconds_add_up_over_interruptions(corpus: Corpus, tmp_path: Path) -> None:
    def slow(step: int) -> None:
        time.sleep(0.05)
        if step == 7:
            raise Killed

    begun = time.perf_counter()
    with pytest.raises(Killed):
        train_run(spec(), corpus, tmp_path, watch=slow, checkpoint_seconds=0)
    interrupted = time.perf_counter() - begun
    begun = time.perf_counter()
    row = train_run(spec(), corpus, tmp_path)[-1]
    rest = time.perf_counter() - begun
    assert 6 * 0.05 < row["seconds"] < interrupted + rest  # type: ignore[operator]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_huge_learning_rate_diverges(corpus: Corpus, tmp_path: Path, optimizer: str) -> None:
    recipe = replace(
        RECIPE, optimizer=optimizer, learning_rate=1e6, matrix_learning_rate=1e6, warmup=0.0
    )
    with pytest.raises(Diverged, match=r"training loss is (nan|inf) at step \d+"):
        train_run(spec(recipe=recipe), corpus, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_held_out_loss_that_is_no_number_is_a_divergence(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        finishing, "evaluate_tokens", lambda *_, **__: SimpleNamespace(loss=math.nan, windows=None)
    )
    with pytest.raises(Diverged, match=f"held-out loss is nan after {STEPS} steps"):
        train_run(spec(), corpus, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


CHANGES = {
    "shape": replace(SHAPE, rope_theta=500.0), "tokens": 2 * STEPS * 64,
    "recipe": replace(RECIPE, clip=0.5), "seed": 1, "data_seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_that_affects_the_numbers_changes_the_identity(
    corpus: Corpus, name: str
) -> None:
    assert spec(**{name: CHANGES[name]}).identity(corpus) != spec().identity(corpus)


@pytest.mark.parametrize("field", asdict(RECIPE))
def test_every_field_of_the_recipe_decides_the_identity(corpus: Corpus, field: str) -> None:
    other = {
        "optimizer": "adamw", "dtype": "bfloat16", "context_length": 32, "sequences": 2,
        "warmup_steps": 3, "decay_form": "cosine", "muon_scale": "match_rms_adamw", "rule": "mup",
        "residual_init": "zero", "reference_hidden_size": 32, "reference_layers": 2,
        "balance_over": "sequence", "objective": "block:4",
    }  # fmt: skip
    value = other[field] if field in other else getattr(RECIPE, field) / 2 or 0.25
    recipe = replace(RECIPE, **{field: value})
    same = {"shape": model_for(recipe, SHAPE)}
    assert spec(recipe=recipe, **same).identity(corpus) != spec(**same).identity(corpus)


def test_another_corpus_is_another_run_and_a_name_or_a_folder_is_not(corpus: Corpus) -> None:
    known = spec().identity(corpus)
    assert spec().identity(replace(corpus, sha256="0" * 64)) != known
    assert spec().identity(replace(corpus, tokenizer="bpe-300:0")) != known
    assert spec().identity(replace(corpus, folder="elsewhere", name="other")) == known
    assert spec(run_id="other", role="confirmation").identity(corpus) == known


@given(
    st.builds(
        spec,
        run_id=st.from_regex(r"[a-z0-9][\w.-]{0,20}", fullmatch=True),
        shape=st.builds(replace, st.just(SHAPE), rope_theta=st.floats(1, 1e9)),
        tokens=st.integers(1, 10**15),
        recipe=st.builds(replace, st.just(RECIPE), learning_rate=st.floats(1e-9, 1)),
        seed=st.integers(0, 2**40),
        data_seed=st.integers(0, 2**40),
        role=st.sampled_from(["proxy", "confirmation"]),
    )
)
def test_a_spec_survives_its_own_text(run: RunSpec) -> None:
    assert RunSpec.from_json(run.as_json()) == run


def test_the_checkpoint_of_a_run_names_its_identity(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_run(spec(), corpus, tmp_path, watch=killed_at(4), checkpoint_seconds=0)
    model = loop.build_model(spec())
    optimizer = checkpoint.Optimizer(model, RECIPE, STEPS)
    path = tmp_path / "checkpoint.safetensors"
    found = checkpoint.resume(path, model, optimizer, spec().identity(corpus))
    assert found.step == 3
    assert found.seconds > 0


BRANCHED = spec(
    run_id="branched",
    tokens=24 * RECIPE.batch_tokens,
    branches=(6 * RECIPE.batch_tokens, 12 * RECIPE.batch_tokens),
    recipe=replace(RECIPE, warmup_steps=3),
)


@pytest.fixture(scope="module")
def branched(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Path]:
    folder = tmp_path_factory.mktemp("branched")
    return train_run(BRANCHED, corpus, folder), folder


def test_each_branch_is_the_run_of_its_token_count_bit_for_bit(
    branched: tuple[list[Row], Path], corpus: Corpus, tmp_path: Path
) -> None:
    rows, folder = branched
    assert [row["tokens"] for row in rows] == [384, 768, 1536]
    for row in rows:
        alone = replace(BRANCHED, branches=(), tokens=row["tokens"])  # type: ignore[arg-type]
        (wanted,) = train_run(alone, corpus, tmp_path / str(row["tokens"]))
        assert row["loss"] == wanted["loss"]
        assert row["flops_counted"] == wanted["flops_counted"]
    assert_same_results(folder, tmp_path / "1536")
    assert np.array_equal(
        np.load(folder / "windows-6.npy"), np.load(tmp_path / "384" / "windows.npy")
    )


def test_rows_of_one_run_have_names_of_their_own_and_one_group(
    branched: tuple[list[Row], Path],
) -> None:
    rows, _ = branched
    assert [row["run_id"] for row in rows] == ["branched-b384", "branched-b768", "branched"]
    assert {row["run_group"] for row in rows} == {"branched"}
    assert all(row["decayed"] for row in rows)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(1, BRANCHED.all_steps), max_size=4))
def test_a_run_with_branches_that_is_killed_anywhere_gives_the_same_rows(
    branched: tuple[list[Row], Path],
    corpus: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
) -> None:
    wanted, reference = branched
    folder = tmp_path_factory.mktemp("killed")
    rows = None
    for last in kills:
        try:
            rows = train_run(BRANCHED, corpus, folder, watch=killed_at(last), checkpoint_seconds=0)
            break
        except Killed:
            assert not (folder / "model.safetensors").exists()
    rows = rows or train_run(BRANCHED, corpus, folder, checkpoint_seconds=0)
    assert [row["loss"] for row in rows] == [row["loss"] for row in wanted]
    assert_same_results(folder, reference)


@pytest.mark.parametrize("lost", ["trunk.safetensors", "rows.json"])
def test_a_run_without_its_trunk_begins_again_with_a_note(
    branched: tuple[list[Row], Path], corpus: Corpus, tmp_path: Path, lost: str
) -> None:
    told: list[str] = []
    inside = 11 + 2  # in the decay of the second branch: two more steps for that of the first
    with pytest.raises(Killed):
        train_run(BRANCHED, corpus, tmp_path, watch=killed_at(inside), checkpoint_seconds=0)
    (tmp_path / lost).unlink()
    rows = train_run(BRANCHED, corpus, tmp_path, tell=told.append)
    assert [row["loss"] for row in rows] == [row["loss"] for row in branched[0]]
    assert any("begins again" in text for text in told)


def test_progress_counts_the_decays_of_branches(corpus: Corpus, tmp_path: Path) -> None:
    steps: list[int] = []
    train_run(BRANCHED, corpus, tmp_path, watch=steps.append)
    assert steps == list(range(1, BRANCHED.all_steps + 1))
    assert BRANCHED.flops == BRANCHED.all_steps * BRANCHED.step_flops


WRONG_BRANCHES = [
    ({"branches": (1536,)}, "`branches` must be different token counts below `tokens`"),
    ({"branches": (384, 385)}, "`branches` must be different token counts below `tokens`"),
    ({"recipe": RECIPE}, "`warmup` is 0.05 of the steps; set `warmup_steps`"),
    ({"recipe": replace(RECIPE, warmup_steps=20)}, "at least 20 steps before the decay"),
    ({"recipe": replace(RECIPE, warmup_steps=3, decay=1.0)}, "at least 3 steps before the decay"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG_BRANCHES)
def test_branches_that_no_trunk_leads_to_are_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        replace(BRANCHED, **changes)  # type: ignore[arg-type]


def test_a_run_that_was_finished_but_not_recorded_is_not_trained_again(
    branched: tuple[list[Row], Path], corpus: Corpus
) -> None:
    rows, folder = branched
    assert train_run(BRANCHED, corpus, folder, watch=killed_at(1)) == rows
    with pytest.raises(Killed):
        train_run(replace(BRANCHED, seed=1), corpus, folder, watch=killed_at(1))


def test_identity_of_a_run_with_branches_is_hashed_once(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests: list[str] = []
    digest = RunSpec._digest
    monkeypatch.setattr(RunSpec, "_digest", lambda *run: digests.append("") or digest(*run))
    run = spec(recipe=replace(RECIPE, warmup_steps=1), branches=(6 * RECIPE.batch_tokens,))
    rows = train_run(run, corpus, tmp_path / "run")
    assert [row["config_hash"] for row in rows] == [run.identity(corpus)[:16]] * 2
    assert len(digests) == 1
    run.identity(replace(corpus, sha256="0" * 64))
    assert len(digests) == 2, "another text is another run"
