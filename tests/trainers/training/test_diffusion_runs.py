"""Training by diffusion objectives: rows, resume, stacks of runs, the command and plans."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import with_loss_kinds
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.runs.validation import require_comparable_losses
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.evaluation.run_evaluation import evaluate_run
from shapelaw.trainers.gpu.packed_loop import train_pack
from shapelaw.trainers.gpu.packed_step import packs
from shapelaw.trainers.ladder.plan_file import read_plan
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec, model_for, run_name, text_vocabulary
from support.command import shapelaw
from support.run_tables import run_table
from support.small_runs import RECIPE, SHAPE, STEPS, Killed, killed_at, small_corpus, spec
from support.tiny_configs import TINY_CONFIGS

NAMES = ["masked_diffusion", "block:4", "block:8/llada2"]
names = pytest.mark.parametrize("name", NAMES)


def diffusion(name: str, **changes: object) -> RunSpec:
    recipe = replace(RECIPE, objective=name)
    return spec(recipe=recipe, shape=model_for(recipe, SHAPE), **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), document_bytes=150)


@names
def test_run_killed_at_any_step_ends_bit_for_bit_like_an_undisturbed_one(
    corpus: Corpus, tmp_path: Path, name: str
) -> None:
    recipe = replace(RECIPE, objective=name, warmup_steps=1)
    run = spec(recipe=recipe, shape=model_for(recipe, SHAPE), branches=(5 * RECIPE.batch_tokens,))
    wanted = train_run(run, corpus, tmp_path / "straight")
    for last in (2, 3, 7, 11):
        with pytest.raises(Killed):
            train_run(run, corpus, tmp_path / "k", watch=killed_at(last), checkpoint_seconds=0)
    found = train_run(run, corpus, tmp_path / "k", checkpoint_seconds=0)
    assert [row["loss"] for row in found] == [row["loss"] for row in wanted]
    weights = [load_file(tmp_path / each / "model.safetensors") for each in ("k", "straight")]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    windows = [np.load(tmp_path / each / "windows.npy") for each in ("k", "straight")]
    assert np.array_equal(*windows)


def test_row_says_objective_kind_of_loss_and_bits_per_byte(corpus: Corpus, tmp_path: Path) -> None:
    rows = {}
    for name in ("next_token", "block:1", *NAMES):
        run = spec() if name == "next_token" else diffusion(name)
        [row] = train_run(run, corpus, tmp_path / name.replace("/", "-"))
        assert row["objective"] == name
        assert row["loss_kind"] == ("exact" if name in ("next_token", "block:1") else "bound")
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2))
        assert 0 < row["loss_se"] < row["loss"] / 5
        assert 2 < row["loss"] < 7
        rows[name] = row
    assert len({row["config_hash"] for row in rows.values()}) == len(rows)
    for name in ("masked_diffusion", "block:4"):
        found = evaluate_run(tmp_path / name, None, "", Path(corpus.folder))
        assert found.held_out["validation"].loss == pytest.approx(rows[name]["loss"], rel=1e-6)
        assert found.document()["loss_kind"] == "bound"
        assert "Held-out bound on the loss" in found.view().tables
    exported = load_export(tmp_path / "masked_diffusion")
    assert (exported.mask_token, exported.vocab_size) == (256, 257)
    config = json.loads((tmp_path / "masked_diffusion" / "config.json").read_text())
    assert (config["mask_token_id"], config["vocab_size"]) == (256, 257)


def test_another_data_seed_draws_other_masks(corpus: Corpus, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1, 0):
        run = diffusion("masked_diffusion", tokens=64, data_seed=seed)
        losses.append(train_run(run, corpus, tmp_path / f"{len(losses)}")[0]["loss"])
    assert losses[0] == losses[2] != losses[1]


def test_masked_diffusion_learns_real_text(corpus: Corpus, tmp_path: Path) -> None:
    recipe = replace(RECIPE, context_length=32, sequences=8)
    found = {}
    for name in ("next_token", "masked_diffusion"):
        own = replace(recipe, objective=name)
        run = spec(recipe=own, shape=model_for(own, SHAPE), tokens=60_000)
        found[name] = train_run(run, corpus, tmp_path / name)[0]["loss"]
    assert found["next_token"] < found["masked_diffusion"] < math.log(256) - 1.5


@pytest.mark.parametrize(
    "family", ["gpt2", "gemma3_text", "deepseek_v3-dense", "lfm2", "gemma3n_text", "llama4_text"]
)
def test_other_families_and_canon_layers_train(corpus: Corpus, tmp_path: Path, family: str) -> None:
    config = {"model_type": family.partition("-")[0], **TINY_CONFIGS[family], "vocab_size": 256}
    if family in ("gpt2", "lfm2"):
        config["canon_set"] = "AC"
    recipe = replace(RECIPE, objective="block:4")
    architecture = model_for(recipe, read_architecture(config))
    assert isinstance(architecture, Architecture)
    run = spec(recipe=recipe, shape=architecture, tokens=4 * RECIPE.batch_tokens)
    [row] = train_run(run, corpus, tmp_path)
    assert math.isfinite(row["loss"])
    assert json.loads(row["config"])["mask_token_id"] == 256


@names
def test_stacked_runs_have_the_masks_and_losses_of_runs_alone(
    corpus: Corpus, tmp_path: Path, name: str
) -> None:
    runs = [
        diffusion(name, run_id=f"r{seed}", seed=seed, data_seed=data)
        for seed, data in ((1, 0), (2, 3))
    ]
    assert [len(pack) for pack in packs([*runs, spec()], 4)] == [2, 1]
    stacked = train_pack(runs, corpus, lambda run_id: tmp_path / "stack" / run_id,
                         device=torch.device("cpu"))  # fmt: skip
    for run, [row] in zip(runs, stacked, strict=True):
        [alone] = train_run(run, corpus, tmp_path / "alone" / run.run_id)
        assert row["loss"] == pytest.approx(alone["loss"], rel=2e-4)
        assert (row["objective"], row["loss_kind"]) == (alone["objective"], alone["loss_kind"])


def test_counted_flops_are_those_of_the_passes() -> None:
    """An embedding of 16, 2 layers of 1 key-value head of 8 and 2 query heads, an MLP of 32."""
    matrices = 2 * (16 * (2 + 2) * 8 + 2 * 8 * 16 + 3 * 16 * 32)
    head, scores = 257 * 16, 2 * 4 * 2 * 8  # scores: FLOPs per visible token of both layers
    tokens, length = RECIPE.batch_tokens, RECIPE.context_length
    full = 2 * (matrices + head) + scores * length
    assert diffusion("masked_diffusion").step_flops == 3 * tokens * full
    assert diffusion("block:16").step_flops == 3 * tokens * full
    blocks = 2 * (2 * matrices + scores * (length + 4) / 2) + 2 * head
    assert diffusion("block:4").step_flops == 3 * tokens * blocks


def test_model_for_a_diffusion_objective_has_a_mask_token() -> None:
    recipe = replace(RECIPE, objective="masked_diffusion")
    assert model_for(RECIPE, SHAPE) is SHAPE
    masked = model_for(recipe, SHAPE)
    assert isinstance(masked, Architecture)
    assert (masked.vocab_size, masked.embedding.mask_token) == (257, 256)
    assert masked.n_non_embedding == SHAPE.n_non_embedding
    assert masked.n_total == SHAPE.n_total + SHAPE.hidden_size
    assert model_for(recipe, masked) is masked
    assert text_vocabulary(masked) == text_vocabulary(SHAPE) == 256
    ids = {run_name(masked, 100, 0, name) for name in ("next_token", *NAMES)}
    assert len(ids) == 4
    with pytest.raises(InputError, match="`objective` block:4 needs a model with `mask_token_id`"):
        spec(recipe=replace(RECIPE, objective="block:4"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("compilation", ["layers", "whole"])
@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked_diffusion", "block:4"])
def test_compiled_steps_train_like_eager_ones(
    corpus: Corpus, tmp_path: Path, name: str, compilation: str
) -> None:
    from shapelaw.trainers.training.execution import Execution

    losses, told = [], []
    for each in ("none", compilation):
        engine = Execution(attention="matmul", compilation=each)
        [row] = train_run(diffusion(name, engine=engine), corpus, tmp_path / each, tell=told.append)
        losses.append(row["loss"])
        assert row["compilation"] == each, told
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert not told


def test_plan_may_have_the_column_objective(corpus: Corpus, tmp_path: Path) -> None:
    rows = pd.DataFrame([SHAPE.row() | {"tokens": 1000, "objective": name}
                         for name in ("next_token", "masked_diffusion", "block:4")])  # fmt: skip
    rows.to_csv(tmp_path / "plan.csv", index=False)
    specs = read_plan(tmp_path / "plan.csv", corpus, RECIPE)
    assert [each.recipe.objective for each in specs] == rows["objective"].tolist()
    assert [each.shape.vocab_size for each in specs] == [256, 257, 257]
    assert RunSpec.from_json(specs[2].as_json()) == specs[2]
    rows.assign(objective="block:5").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match="line 2: the block of `objective` must divide"):
        read_plan(tmp_path / "bad.csv", corpus, RECIPE)


def test_fit_refuses_objectives_and_kinds_together() -> None:
    frame = run_table()
    for column, values in (("objective", ["next_token", "block:4"]),
                           ("loss_kind", ["exact", "bound"])):  # fmt: skip
        mixed = frame.assign(**{column: (values * len(frame))[: len(frame)]})
        rule = f"`{column}` must be the same for all rows of a fit"
        with pytest.raises(InputError, match=rule) as error:
            require_comparable_losses(mixed, "runs")
        assert f"--where \"{column} == '{values[0]}'\"" in str(error.value)
        RunTable.of(mixed, "runs")  # a table may hold both, for comparisons
    # Rows from before the column are of next-token prediction.
    older = frame.assign(objective=(["next_token", None] * len(frame))[: len(frame)])
    require_comparable_losses(older, "runs")
    newer = older.assign(objective=older["objective"].fillna("block:4"))
    with pytest.raises(InputError, match="`objective` must be the same"):
        require_comparable_losses(newer, "runs")


def test_rows_of_older_runs_get_the_kind_of_their_loss_beside_newer_ones() -> None:
    old, new = {"loss": 2.0}, {"loss": 1.0, "loss_kind": "bound", "objective": "block:4"}
    assert with_loss_kinds([old]) == [old]
    assert with_loss_kinds([old, new]) == [
        {"loss": 2.0, "loss_kind": "exact", "objective": "next_token"}, new,
    ]  # fmt: skip


@pytest.mark.parametrize("objective", ["masked_diffusion", "block:16"])
def test_command_trains_resumes_and_prints_one_row(
    corpus: Corpus, tmp_path: Path, objective: str
) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE.row()))
    source = next(Path(corpus.folder).parent.glob("small.txt"))
    arguments = [
        "train", tmp_path / "shape.json", "--tokens", STEPS * 128, "--corpus", source,
        "--out", tmp_path / "out", "--context-length", "32", "--sequences", "4",
        "--objective", objective, "--json",
    ]  # fmt: skip
    row = json.loads(shapelaw(*arguments).stdout)
    assert (row["objective"], row["loss_kind"]) == (objective, "bound")
    assert "mask_token_id" in row["config"]
    again = json.loads(shapelaw(*arguments).stdout)
    assert again == row
    table = load_runs(str(tmp_path / "out" / "runs.csv"))
    assert table["objective"].tolist() == [objective]
    assert table.loss_kind == "bound"


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        ("block:5", "the block of `objective` must divide `context_length`, but got 5 and 128"),
        ("blocks", "`objective` must be next_token, masked_diffusion or block:SIZE"),
    ],
)
def test_command_refuses_an_objective_that_cannot_be(
    tmp_path: Path, objective: str, rule: str
) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE.row()))
    arguments = ["train", tmp_path / "shape.json", "--tokens", "1000", "--objective", objective]
    done = shapelaw(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert rule in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()
