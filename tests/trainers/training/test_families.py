"""Models of every family train in the same loop, and resume bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape_config import read_trainable
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ladder.plan_file import read_plan
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec
from support.small_runs import Killed, killed_at, small_corpus, spec
from support.tiny_configs import TINY_CONFIGS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(params=list(TINY_CONFIGS))
def architecture(request: pytest.FixtureRequest, corpus: Corpus) -> Architecture:
    kind = request.param.partition("-")[0]
    config = {"model_type": kind, **TINY_CONFIGS[request.param], "vocab_size": corpus.vocab_size}
    return read_architecture(config)


def test_a_killed_run_of_any_family_ends_like_an_undisturbed_one(
    architecture: Architecture, corpus: Corpus, tmp_path: Path
) -> None:
    run = replace(spec(), shape=architecture)
    wanted = train_run(run, corpus, tmp_path / "whole")[-1]
    with pytest.raises(Killed):
        train_run(run, corpus, tmp_path / "killed", watch=killed_at(5), checkpoint_seconds=0)
    got = train_run(run, corpus, tmp_path / "killed", checkpoint_seconds=0)[-1]
    assert got["loss"] == wanted["loss"]
    whole, killed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert set(whole) == set(killed)
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    model = load_export(tmp_path / "whole")
    assert model.architecture.layers == architecture.layers


def test_row_of_an_architecture_has_its_counts_and_its_config(
    architecture: Architecture, corpus: Corpus, tmp_path: Path
) -> None:
    run = replace(spec(), shape=architecture)
    row = train_run(run, corpus, tmp_path)[-1]
    assert row["family"] == architecture.model_type
    counts = (row["n_total"], row["n_active"], row["n_non_embedding"])
    assert counts == (architecture.n_total, architecture.n_active, architecture.n_non_embedding)
    assert read_architecture(json.loads(str(row["config"]))) == architecture


def test_settings_of_a_run_come_back_from_json(architecture: Architecture) -> None:
    run = replace(spec(), shape=architecture)
    assert RunSpec.from_json(run.as_json()).shape == architecture


def test_plan_may_give_configs_of_any_family(
    architecture: Architecture, corpus: Corpus, tmp_path: Path
) -> None:
    text = architecture.config_text().replace('"', '""')
    (tmp_path / "plan.csv").write_text(f'config,tokens\n"{text}",2048\n', encoding="utf-8")
    (run,) = read_plan(tmp_path / "plan.csv", corpus, spec().recipe)
    assert run.shape == read_trainable(json.loads(architecture.config_text()))


def test_plan_whose_config_is_no_object_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "plan.csv").write_text('config,tokens\n"[7]",2048\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: `config` must be .* but got \[7\]; write"):
        read_plan(tmp_path / "plan.csv", corpus, spec().recipe)


def test_check_of_learning_rates_refuses_an_architecture_by_name() -> None:
    run = replace(spec(), shape=read_architecture({"model_type": "gpt2"}))
    with pytest.raises(InputError, match=r"must be a Llama-like shape .*\(gpt2\); leave it out"):
        _ = run.dense_shape
