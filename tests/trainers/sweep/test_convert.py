"""Conversions of a finished run to diffusion, to blocks and to D2F."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.runs.columns import MORE_COLUMNS
from shapelaw.trainers.commands.convert_cli import convert
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.models.lora import adapted_layers
from shapelaw.trainers.models.visibility import FULL
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.sweep import sweep
from shapelaw.trainers.sweep.convert import (
    ConversionRequest,
    convert_run,
    plan_conversion,
    read_parent,
)
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.converted_model import convert_parent, objective_at
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec
from support.hostile_inputs import OPTION_TEXTS
from support.launchers import InProcess
from support.small_runs import RECIPE, SHAPE, Killed, killed_at, small_corpus, spec

TOKENS = 20 * RECIPE.batch_tokens  # steps of 64 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return the folder of a sweep with a finished autoregressive run and a diffusion run."""
    made = Folder(tmp_path_factory.mktemp("sweep"))
    corpus = small_corpus(made.path)
    run_plan(
        [spec(run_id="parent"), spec(run_id="gpt", tokens=64)], corpus, made, launcher=InProcess()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "launcher_named", lambda name: InProcess())
        convert_run(made.run("parent"), asked(to="diffusion", direct=True, seed=7))
    return made


@pytest.fixture(scope="module")
def diffusion(folder: Folder) -> str:
    """Return the id of a masked-diffusion run."""
    (name,) = [path.name for path in (folder.path / "runs").glob("parent-diffusion*-s7")]
    return name


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "launcher_named", lambda name: InProcess())


def asked(**changes: object) -> ConversionRequest:
    usual: dict[str, object] = {"to": "diffusion", "tokens": str(TOKENS)}
    return ConversionRequest(**(usual | changes))  # type: ignore[arg-type]


def planned(folder: Folder, run: str = "parent", **changes: object) -> RunSpec:
    return plan_conversion(read_parent(folder.run(run)), asked(**changes))


def test_conversion_is_a_run_of_the_sweep_with_its_origin(folder: Folder, in_process: None) -> None:
    row = convert_run(folder.run("parent"), asked(to="block:4", average=2, seed=1))
    assert row["objective"] == "block:4"
    assert row["loss_kind"] == "bound"
    origin = {name: row[name] for name in ("converted_from", "parent_tokens", "conversion_tokens")}
    assert origin == {
        "converted_from": "parent", "parent_tokens": 12 * 64, "conversion_tokens": TOKENS,
    }  # fmt: skip
    assert row["tokens"] == TOKENS
    assert row["role"] == "conversion"
    assert row["conversion"] == "1:0.2 4:0.2 16:0.4 8:0.1 4:0.1"
    assert set(origin) | {"conversion"} <= set(MORE_COLUMNS)
    assert row["vocab_size"] == SHAPE.vocab_size + 1
    table = folder.table.read_text()
    assert str(row["run_id"]) in table
    run = folder.run(str(row["run_id"]))
    config = json.loads((run / "config.json").read_text())
    assert config["mask_token_id"] == SHAPE.vocab_size
    assert load_export(run).architecture.embedding.mask_token == SHAPE.vocab_size
    assert convert_run(folder.run("parent"), asked(to="block:4", average=2, seed=1)) == row


def test_conversion_begins_with_the_weights_of_its_parent(folder: Folder) -> None:
    converted = convert_parent(planned(folder), folder.path / "runs")
    parent = load_export(folder.run("parent"))
    tokens = torch.arange(16)[None]
    with torch.inference_mode():
        wanted, got = (model.logits(model(tokens)) for model in (parent, converted))
    torch.testing.assert_close(got[..., :-1], wanted)


def test_objectives_of_the_steps_are_those_of_the_phases(folder: Folder) -> None:
    run = planned(folder, to="block:4", warmup=(1, 2), warmup_share=0.2, decay_share=0.3)
    names = [objective_at(run, step) for step in range(run.steps)]
    wanted = ["block:1"] * 2 + ["block:2"] * 2 + ["masked_diffusion"] * 10
    wanted += ["block:8"] * 3 + ["block:4"] * 3
    assert names == [objective_of(replace(run.recipe, objective=name)) for name in wanted]


def test_flops_of_a_conversion_are_those_of_its_phases(folder: Folder, diffusion: str) -> None:
    def forward(context: float) -> float:
        """FLOPs of a token: 2 per weight, 4 per channel of a query and visible token."""
        matrices = 2 * (16 * 32 + 16 * 16 + 3 * 16 * 32)  # two layers: qkv, output, MLP
        return 2 * (matrices + head) + 4 * 16 * context * 2

    head, tokens = 257 * 16, RECIPE.batch_tokens
    full = 3 * forward(16)
    block = {size: 3 * (2 * forward((16 + size) / 2) - 2 * head) for size in (2, 4, 8)}
    direct = planned(folder, direct=True)
    assert direct.step_flops == pytest.approx(tokens * full)
    phases = {"warmup": (2,), "warmup_share": 0.2, "decay_share": 0.3}
    mean = 0.2 * block[2] + 0.5 * full + 0.15 * block[8] + 0.15 * block[4]
    assert planned(folder, to="block:4", **phases).step_flops == pytest.approx(tokens * mean)
    d2f = planned(folder, diffusion, to="d2f:4")
    assert d2f.step_flops == pytest.approx(tokens * (forward(16) + 3 * forward(10)))


def results(path: Path) -> dict[str, torch.Tensor]:
    windows = torch.from_numpy(np.load(path / "windows.npy"))
    return load_file(path / "model.safetensors") | {"windows": windows}


@pytest.mark.parametrize("to", ["diffusion", "block:4", "d2f:4"])
def test_conversion_killed_at_any_steps_ends_bit_for_bit_like_an_undisturbed_one(
    folder: Folder, diffusion: str, to: str
) -> None:
    d2f = to.startswith("d2f")
    average = {} if d2f else {"average": 3}
    run = planned(folder, diffusion if d2f else "parent", to=to, **average)
    corpus = Corpus.load(folder.corpus)
    place = folder.path / "runs" / f"straight-{run.run_id}"
    row = train_run(run, corpus, place)[-1]
    killed = folder.path / "runs" / f"killed-{run.run_id}"
    for step in (1, 7, 15, 18, 19):
        with pytest.raises(Killed):
            train_run(run, corpus, killed, watch=killed_at(step), checkpoint_seconds=0)
        assert not (killed / "model.safetensors").exists()
    again = train_run(run, corpus, killed, checkpoint_seconds=0)[-1]
    assert again["loss"] == row["loss"]
    got, wanted = results(killed), results(place)
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in got)


def test_average_is_the_mean_of_the_best_weights_of_the_last_steps(folder: Folder) -> None:
    corpus = Corpus.load(folder.corpus)
    weights = {}
    for average, candidates in [(0, 0), (1, 1), (2, 2)]:
        run = planned(folder, direct=True, average=average)
        assert run.conversion is not None
        conversion = replace(run.conversion, average=average, candidates=candidates)
        place = folder.path / "runs" / f"average-{average}"
        train_run(replace(run, conversion=conversion), corpus, place)
        weights[average] = load_file(place / "model.safetensors")
    # One candidate is the last step; of two, the other is step 17, killed there in a third run.
    half: list[dict[str, torch.Tensor]] = []
    run = planned(folder, direct=True)
    place = folder.path / "runs" / "average-half"
    with pytest.raises(Killed):
        train_run(run, corpus, place, watch=killed_at(18), checkpoint_seconds=0)
    saved = load_file(place / "checkpoint.safetensors")
    half.append({n.removeprefix("model."): w for n, w in saved.items() if n.startswith("model.")})
    for name, last in weights[0].items():
        assert torch.equal(weights[1][name], last)
    name = "model.norm.weight"
    mean = (half[0]["norm.weight"] + weights[0][name]) / 2
    torch.testing.assert_close(weights[2][name], mean, rtol=0, atol=1e-7)
    assert not torch.equal(weights[2][name], weights[0][name])


def test_shifted_conversion_predicts_a_token_at_the_position_before_it(folder: Folder) -> None:
    run = planned(folder, direct=True, shift=True)
    place = folder.run(run.run_id)
    row = train_run(run, Corpus.load(folder.corpus), place)[-1]
    assert json.loads(str(row["config"]))["shift_predictions"] is True
    shifted = load_export(place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"shift_predictions": False}))
    plain = load_export(place)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 16, [0] * 5 + [1] * 11])
    with torch.inference_mode():
        own = plain.logits(plain(tokens, visibility=FULL, documents=documents))
        got = shifted.logits(shifted(tokens, visibility=FULL, documents=documents))
    assert torch.equal(got[0, 1:], own[0, :-1])
    assert torch.equal(got[1, 6:], own[1, 5:-1])
    assert torch.equal(got[:, 0], own[:, 0])
    assert torch.equal(got[1, 5], own[1, 5])
    with pytest.raises(InputError, match="must see whole sequences"):
        shifted(tokens)
    assert 2 < float(str(row["loss"])) < 8


def test_shift_is_what_the_loss_trains(folder: Folder) -> None:
    rows = []
    for shift in (False, True):
        run = planned(folder, direct=True, shift=shift, seed=3)
        place = folder.path / "runs" / f"shift-{shift}"
        rows.append(train_run(run, Corpus.load(folder.corpus), place)[-1])
    assert rows[0]["loss"] != rows[1]["loss"]


def test_other_seeds_and_settings_are_other_runs(folder: Folder) -> None:
    names = [
        planned(folder, **changes).run_id
        for changes in (
            {}, {"seed": 1}, {"direct": True}, {"average": 2}, {"mask_noise": 0.5},
            {"to": "block:4"}, {"direct": True, "shift": True}, {"warmup": (1, 2)},
            {"settings": ("learning_rate=0.001",)},
        )
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert planned(folder).run_id == names[0]


def test_seeds_differ_in_the_order_of_the_text_and_in_the_mask_token(folder: Folder) -> None:
    first, second = planned(folder, seed=0), planned(folder, seed=1)
    assert len({first.data_seed, second.data_seed, spec().data_seed}) == 3
    rows = [
        convert_parent(each, folder.path / "runs").embed_tokens.weight[-1]
        for each in (first, second)
    ]
    assert not torch.equal(*rows)


def test_d2f_leaves_merged_weights_and_adapters(folder: Folder, diffusion: str) -> None:
    run = planned(folder, diffusion, to="d2f:4", rank=5, settings=("learning_rate=0.01",))
    place = folder.run(run.run_id)
    row = train_run(run, Corpus.load(folder.corpus), place)[-1]
    assert row["conversion"] == "d2f"
    assert row["objective"] == "block:4/d2f"
    before, after = (
        load_file(folder.run(n) / "model.safetensors") for n in (diffusion, run.run_id)
    )
    adapters = load_file(place / "adapter_model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    kinds = {name.split(".")[-2] for name in changed}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for name in changed:
        a, b = (
            adapters[f"base_model.model.{name.removesuffix('.weight')}.lora_{kind}.weight"]
            for kind in "AB"
        )
        assert a.shape[0] == 5
        torch.testing.assert_close(after[name], before[name] + b @ a)
    assert not adapted_layers(load_export(place))


def test_masked_model_uses_later_tokens(folder: Folder, diffusion: str) -> None:
    model = load_export(folder.run(diffusion))
    tokens = torch.randint(256, (1, 16), generator=torch.Generator().manual_seed(0))
    tokens[0, 4] = 256
    other = tokens.clone()
    other[0, 9] = (other[0, 9] + 1) % 256
    with torch.inference_mode():
        a, b = (model.logits(model(each, visibility=FULL))[0, 4, :256] for each in (tokens, other))
    assert (a - b).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"to": "block:5"}, r"`--to` must divide the context length of 16, but got 5; use 4 or 8"),
        ({"to": "block:0"}, r"`--to` must divide"),
        ({"to": "block:32"}, r"`--to` must divide .* use 16"),
        ({"to": "block"}, r"`--to` must be diffusion, block:SIZE"),
        ({"to": "block:x"}, r"`--to` must be diffusion, block:SIZE"),
        ({"to": "blocks:4"}, r"`--to` must be diffusion, block:SIZE"),
        ({"to": "diffusion:4"}, r"`--to` must be diffusion, block:SIZE"),
        ({"to": ""}, r"`--to` must be diffusion, block:SIZE"),
        ({"to": "d2f:4"}, r"needs a run of masked diffusion"),
        ({"shift": True}, r"`--shift` needs --to diffusion with --direct"),
        ({"shift": True, "direct": True, "to": "block:4"}, r"`--shift` needs --to diffusion"),
        ({"warmup": (3,)}, r"`--warmup` must divide"),
        ({"warmup": (4, 1)}, r"`--warmup` must be block sizes that ascend"),
        ({"average": 100}, r"average <= candidates"),
        ({"mask_noise": float("nan")}, r"mask_noise"),
        ({"tokens": "many"}, r"many"),
        ({"settings": ("objective=next_token",)}, r"`objective` .* --to"),
        ({"settings": ("context_length=12",), "to": "block:8"}, r"use 6 or 12"),
        ({"settings": ("nothing=1",)}, r"nothing"),
    ],
)
def test_impossible_request_is_refused(
    folder: Folder, changes: dict[str, object], rule: str
) -> None:
    with pytest.raises(InputError, match=rule):
        planned(folder, **changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"direct": True, "warmup": (1,)}, "--warmup"),
        ({"direct": True, "decay_share": 0.1}, "--decay-share"),
        ({"to": "d2f", "direct": True}, "--direct"),
        ({"to": "d2f", "average": 2}, "--average"),
        ({"to": "d2f:4", "mask_noise": 1.0}, "--mask-noise"),
        ({"to": "d2f", "warmup_share": 0.1}, "--warmup-share"),
        ({"rank": 4}, "--rank"),
    ],
)
def test_setting_without_effect_is_refused(changes: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` has no effect"):
        asked(**changes)


def test_diffusion_run_is_not_converted_to_diffusion(folder: Folder, diffusion: str) -> None:
    with pytest.raises(InputError, match="needs an autoregressive run"):
        planned(folder, diffusion)


@pytest.mark.parametrize("path", ["runs/nothing", "corpus", "runs", "."])
def test_folder_that_is_no_finished_run_is_refused(folder: Folder, path: str) -> None:
    with pytest.raises(InputError, match="`RUN` must be the folder of a finished run"):
        read_parent(folder.path / path)


def test_parent_whose_weights_changed_is_refused(folder: Folder, tmp_path: Path) -> None:
    run = planned(folder, "gpt")
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "gpt").mkdir(exist_ok=True)
        other = folder.run("parent") if name == "model.safetensors" else folder.run("gpt")
        (tmp_path / "gpt" / name).write_bytes((other / name).read_bytes())
    with pytest.raises(WorkError, match="other weights than when its conversion was planned"):
        convert_parent(run, tmp_path)


@pytest.mark.parametrize(
    "option",
    ["--tokens", "--warmup", "--warmup-share", "--decay-share", "--average", "--mask-noise",
     "--seed", "--set", "--to"],
)  # fmt: skip
def test_option_of_any_text_is_one_error_or_a_plan(
    folder: Folder, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planned(Exception): ...

    def run_plan(specs: list[RunSpec], *others: object, **settings: object) -> None:
        assert RunSpec.from_json(specs[0].as_json()) == specs[0]
        raise Planned

    monkeypatch.setattr("shapelaw.trainers.sweep.convert.run_plan", run_plan)
    app = typer.Typer()
    app.command()(convert)
    before = sorted(folder.path.rglob("*"))
    plans = 0
    for text in OPTION_TEXTS:
        arguments = [str(folder.run("parent")), "--to", "block:4", "--tokens", "64", option, text]
        done = CliRunner().invoke(app, arguments)
        error = done.exception
        plans += isinstance(error, Planned)
        expected = isinstance(error, (InputError, Planned)) or done.exit_code == 2
        assert expected, (text, error)
    assert plans < len(OPTION_TEXTS) / 2
    assert sorted(folder.path.rglob("*")) == before


def test_command_prints_the_row(folder: Folder, in_process: None) -> None:
    app = typer.Typer()
    app.command()(convert)
    run = str(folder.run("parent"))
    arguments = [run, "--to", "block:8", "--tokens", str(TOKENS), "--warmup", "1,2", "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    row = json.loads(done.stdout)
    assert row["status"] == "done"
    assert row["conversion"] == "1:0.2 2:0.2 16:0.4 8:0.2"
    assert 2 < row["loss"] < 8
