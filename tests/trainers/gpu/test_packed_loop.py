import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.gpu import packed_loop as packed
from shapelaw.trainers.gpu.packed_loop import PackEvents, train_pack
from shapelaw.trainers.gpu.packed_step import Feed, Options, PackedStep, packs
from shapelaw.trainers.gpu.resident_batches import ResidentTokens
from shapelaw.trainers.gpu.stack import Stack
from shapelaw.trainers.objectives import next_token
from shapelaw.trainers.objectives.chunked_loss import chunked_cross_entropy
from shapelaw.trainers.objectives.next_token import token_losses
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import OPTIMIZERS
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.results import Row
from shapelaw.trainers.training.spec import RunSpec
from support.small_runs import RECIPE, SHAPE, STEPS, Killed, killed_at, small_corpus, spec

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def replicas(optimizer: str, **changes: object) -> list[RunSpec]:
    """Runs that differ in everything in which the runs of one stack may differ."""
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=2e-3, matrix_learning_rate=4e-3)
    faster = replace(
        recipe, learning_rate=5e-3, matrix_learning_rate=1e-2, momentum=0.8, weight_decay=0.3,
        warmup=0.3, decay=0.5, clip=0.05,
    )  # fmt: skip
    runs = [
        spec(run_id="usual", recipe=recipe, seed=1),
        spec(run_id="other-data", recipe=recipe, seed=2, data_seed=3),
        spec(run_id="other-recipe", recipe=faster, seed=3),
    ]
    return [replace(run, **changes) for run in runs]  # type: ignore[arg-type]


def only(rows: list[list[Row]]) -> list[Row]:
    """The rows of runs without branches."""
    assert all(len(each) == 1 for each in rows)
    return [each[0] for each in rows]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def single_losses(run: RunSpec, tokens: np.ndarray, steps: int) -> list[float]:
    """The training losses of one run by torch's own modules and optimisers, alone."""
    model = Stack([run], CPU).models[0]
    optimizer = Optimizer(model, run.recipe, run.steps)
    recipe = run.recipe
    batches = Batches(tokens, context_length=recipe.context_length, sequences=recipe.sequences,
                      seed=run.data_seed)  # fmt: skip
    losses = []
    for step in range(steps):
        loss = token_losses(model, torch.from_numpy(batches(step)), recipe).mean()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step(step)
    return losses


def packed_losses(
    runs: list[RunSpec], tokens: np.ndarray, options: Options, held: ResidentTokens | None
) -> list[list[float]]:
    stack = Stack(runs, CPU)
    step = PackedStep(stack, Feed(stack, tokens, held), options)
    losses = []
    for index in range(runs[0].steps):
        step.block(index, 1, STEPS)
        losses.append(step.losses.tolist())
    return [list(column) for column in zip(*losses, strict=True)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_replica_trains_as_it_would_alone(corpus: Corpus, optimizer: str) -> None:
    runs, tokens = replicas(optimizer), corpus.train()
    together = packed_losses(runs, tokens, Options(), ResidentTokens(tokens, CPU))
    # Muon rounds to bf16 inside, which carries the last bit of fp32 to the third digit
    tolerance = 2e-6 if optimizer == "adamw" else 2e-4
    for run, losses in zip(runs, together, strict=True):
        alone = single_losses(run, tokens, run.steps)
        assert losses == pytest.approx(alone, rel=tolerance), run.run_id
        assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_update_is_that_of_torch_to_rounding(corpus: Corpus, optimizer: str) -> None:
    runs = replicas(optimizer)
    tolerance = 1e-6 if optimizer == "adamw" else 2e-4  # of a rate of 0.01: bf16 inside
    stack = Stack(runs, CPU)
    references = [Stack([run], CPU).models[0] for run in runs]
    steps = [Optimizer(m, run.recipe, run.steps) for m, run in zip(references, runs, strict=True)]
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        gradients = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in stack.parameters.items()
        }
        stack.update(gradients, stack.shares(step, 1, STEPS)[0], torch.tensor(step + 1.0).double())
        for index, (model, optimizer_) in enumerate(zip(references, steps, strict=True)):
            for name, weight in model.named_parameters():
                weight.grad = gradients[name][index].clone()
            torch.nn.utils.clip_grad_norm_(model.parameters(), runs[index].recipe.clip)
            optimizer_.step(step)
            for name, weight in model.named_parameters():
                got = stack.parameters[name][index]
                torch.testing.assert_close(got, weight, rtol=0, atol=tolerance, msg=name)


def test_tokens_on_the_host_and_on_the_device_train_alike(corpus: Corpus) -> None:
    runs, tokens = replicas("adamw"), corpus.train()
    held = packed_losses(runs, tokens, Options(), ResidentTokens(tokens, CPU))
    assert packed_losses(runs, tokens, Options(), None) == held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_logits_are_computed_in_chunks_with_the_same_loss(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    runs, tokens = replicas("adamw"), corpus.train()
    runs = [replace(run, recipe=replace(run.recipe, dtype=dtype)) for run in runs]
    whole = packed_losses(runs, tokens, Options(), None)
    calls: list[int] = []

    def chunked(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return chunked_cross_entropy(*arguments, chunk=10)

    monkeypatch.setattr(next_token, "chunked_cross_entropy", chunked)
    monkeypatch.setattr(next_token, "MAX_LOGITS", 4 * 16 * 256 - 1)
    for losses, wanted in zip(packed_losses(runs, tokens, Options(), None), whole, strict=True):
        assert losses == pytest.approx(wanted, rel=1e-5 if dtype == "float32" else 5e-3)
    assert len(calls) == STEPS


def test_bf16_replicas_train_as_they_would_alone_but_for_rounding(corpus: Corpus) -> None:
    recipe = replace(RECIPE, optimizer="adamw", dtype="bfloat16", learning_rate=2e-3)
    runs, tokens = [spec(run_id=str(i), recipe=recipe, seed=i) for i in range(2)], corpus.train()
    together = packed_losses(runs, tokens, Options(), None)
    for run, losses in zip(runs, together, strict=True):
        assert losses == pytest.approx(single_losses(run, tokens, run.steps), rel=2e-3)


def test_a_diverged_replica_does_not_touch_the_others(corpus: Corpus, tmp_path: Path) -> None:
    runs = replicas("adamw")
    wild = replace(runs[0].recipe, learning_rate=1e9, warmup=0.0)
    mixed = [runs[0], replace(runs[1], run_id="wild", recipe=wild), runs[2]]
    rows = only(train_pack(mixed, corpus, lambda name: tmp_path / name, device=CPU))
    assert [row["status"] for row in rows] == ["done", "diverged", "done"]
    assert "loss" not in rows[1]
    assert not (tmp_path / "wild" / "model.safetensors").exists()
    calm = train_pack(
        [runs[0], runs[2]], corpus, lambda name: tmp_path / f"calm-{name}", device=CPU
    )
    assert [rows[0]["loss"], rows[2]["loss"]] == [row["loss"] for row in only(calm)]


def test_a_stack_stops_when_all_its_replicas_diverged(corpus: Corpus, tmp_path: Path) -> None:
    wild = replace(RECIPE, optimizer="adamw", learning_rate=1e9, warmup=0.0)
    runs = [spec(run_id=str(i), recipe=wild, seed=i, tokens=10_000 * 64) for i in range(2)]
    steps: list[int] = []
    rows = train_pack(
        runs,
        corpus,
        lambda name: tmp_path / name,
        device=CPU,
        events=PackEvents(watch=steps.append),
    )
    assert [row["status"] for row in only(rows)] == ["diverged"] * 2
    assert steps[-1] < 10_000


def test_rows_and_files_are_those_of_single_runs(corpus: Corpus, tmp_path: Path) -> None:
    runs = replicas("adamw")
    rows = only(train_pack(runs, corpus, lambda name: tmp_path / "pack" / name, device=CPU))
    for run, row in zip(runs, rows, strict=True):
        [alone] = train_run(run, corpus, tmp_path / "alone" / run.run_id)
        measured = ("loss", "bits", "seconds", "tokens_", "attention", "compilation")
        same = [name for name in alone if not name.startswith(measured)]
        assert {name: row[name] for name in same} == {name: alone[name] for name in same}
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert row["replicas"] == 3
        assert str(row["device"]).startswith("cpu (")
        folders = [tmp_path / kind / run.run_id for kind in ("pack", "alone")]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        *_, last = csv.DictReader((folders[0] / "metrics.csv").read_text().splitlines())
        assert int(last["step"]) == STEPS
        assert float(last["held_out_loss"]) == pytest.approx(row["loss"], rel=1e-6)
        weights, wanted = (load_file(folder / "model.safetensors") for folder in folders)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, wanted[name], rtol=0, atol=2e-4, msg=name)


def test_error_of_stacked_runs_is_clustered_by_document_as_alone(tmp_path: Path) -> None:
    corpus, runs = small_corpus(tmp_path / "texts", document_bytes=150), replicas("adamw")
    rows = only(train_pack(runs, corpus, lambda name: tmp_path / "pack" / name, device=CPU))
    for run, row in zip(runs, rows, strict=True):
        [alone] = train_run(run, corpus, tmp_path / "alone" / run.run_id)
        assert row["loss_se"] == pytest.approx(alone["loss_se"], rel=1e-2)
        documents = len(corpus.validation_shard().starts)
        assert row["loss_se_clusters"] == alone["loss_se_clusters"] == f"{documents} documents"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_pack_ends_bit_for_bit_like_an_undisturbed_one(
    corpus: Corpus, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BLOCK_SECONDS", 0.0)  # one step at a time
    runs = replicas(optimizer)
    wanted = train_pack(runs, corpus, lambda name: tmp_path / "a" / name, device=CPU)
    for last in (3, 8):
        with pytest.raises(Killed):
            train_pack(runs, corpus, lambda name: tmp_path / "b" / name, device=CPU,
                       checkpoint_seconds=0.0,
                       events=PackEvents(watch=killed_at(last)))  # fmt: skip
    steps: list[int] = []
    rows = train_pack(
        runs,
        corpus,
        lambda name: tmp_path / "b" / name,
        device=CPU,
        events=PackEvents(watch=steps.append),
    )
    assert steps[0] == 8  # killed in step 8: the checkpoint is that of 7
    assert [row["loss"] for row in only(rows)] == [row["loss"] for row in only(wanted)]
    assert not list((tmp_path / "b").rglob("checkpoint.safetensors"))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def forget(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [damage, forget])
def test_run_without_a_usable_checkpoint_starts_again_and_the_others_go_on(
    corpus: Corpus, tmp_path: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BLOCK_SECONDS", 0.0)
    runs = replicas("adamw")
    wanted = train_pack(runs, corpus, lambda name: tmp_path / "a" / name, device=CPU)
    with pytest.raises(Killed):
        train_pack(runs, corpus, lambda name: tmp_path / "b" / name, device=CPU,
                   events=PackEvents(watch=killed_at(5)), checkpoint_seconds=0.0)  # fmt: skip
    harm(tmp_path / "b" / "usual" / "checkpoint.safetensors")
    steps: list[int] = []
    rows = train_pack(
        runs, corpus, lambda name: tmp_path / "b" / name, device=CPU,
        events=PackEvents(watch=steps.append),
    )  # fmt: skip
    assert steps == [*range(1, STEPS + 1), *range(5, STEPS + 1)]
    assert [row["loss"] for row in only(rows)] == pytest.approx(
        [row["loss"] for row in only(wanted)], rel=1e-6
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_run_of_a_killed_pack_goes_on_alone_from_its_checkpoint(
    corpus: Corpus, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BLOCK_SECONDS", 0.0)
    runs = replicas(optimizer)
    with pytest.raises(Killed):
        train_pack(runs, corpus, lambda name: tmp_path / name, device=CPU,
                   events=PackEvents(watch=killed_at(7)), checkpoint_seconds=0.0)  # fmt: skip
    steps: list[int] = []
    [row] = train_run(runs[1], corpus, tmp_path / runs[1].run_id, watch=steps.append)
    assert steps[0] == 7
    [alone] = train_run(runs[1], corpus, tmp_path / "alone")
    assert row["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_runs_that_were_begun_alone_go_on_in_a_pack(corpus: Corpus, tmp_path: Path) -> None:
    runs = replicas("adamw")
    for run in runs:
        with pytest.raises(Killed):
            train_run(
                run, corpus, tmp_path / run.run_id, watch=killed_at(6), checkpoint_seconds=0.0
            )
    steps: list[int] = []
    rows = train_pack(runs, corpus, lambda name: tmp_path / name, device=CPU,
                      events=PackEvents(watch=steps.append))  # fmt: skip
    assert steps[0] == 6
    for run, row in zip(runs, only(rows), strict=True):
        [alone] = train_run(run, corpus, tmp_path / "alone" / run.run_id)
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_runs_are_reported_as_they_end_and_finished_ones_are_not_trained_again(
    corpus: Corpus, tmp_path: Path
) -> None:
    runs = replicas("adamw")
    first = train_pack(runs[:1], corpus, lambda name: tmp_path / name, device=CPU)
    reported: list[tuple[str, object]] = []
    rows = train_pack(
        runs, corpus, lambda name: tmp_path / name, device=CPU,
        events=PackEvents(ended=lambda run, rows: reported.append((run.run_id, rows[-1]["loss"]))),
    )  # fmt: skip
    assert rows[0] == first[0]
    assert [row["replicas"] for row in only(rows)] == [1, 2, 2]
    assert reported == [(run.run_id, row[-1]["loss"]) for run, row in zip(runs, rows, strict=True)]


def test_a_replica_goes_on_alone_from_where_the_stack_left_it(corpus: Corpus) -> None:
    runs, tokens = replicas("adamw"), corpus.train()
    stack = Stack(runs, CPU)
    step = PackedStep(stack, Feed(stack, tokens, None), Options())
    step.block(0, 5, STEPS)
    model, optimizer = stack.restore(1, steps=5)
    batches = Batches(tokens, context_length=16, sequences=4, seed=runs[1].data_seed)
    for index in range(5, STEPS):
        loss = token_losses(model, torch.from_numpy(batches(index)), RECIPE).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), runs[1].recipe.clip)
        optimizer.step(index)
    alone = single_losses(runs[1], tokens, STEPS)
    assert loss.item() == pytest.approx(alone[-1], rel=1e-5)


def branched() -> list[RunSpec]:
    recipe = replace(RECIPE, optimizer="adamw", warmup_steps=2, learning_rate=2e-3)
    longer = replace(recipe, decay=0.5, matrix_learning_rate=5e-3)
    return [
        spec(run_id=name, recipe=each, seed=seed, branches=(6 * 64,))
        for seed, (name, each) in enumerate([("short-decay", recipe), ("long-decay", longer)])
    ]


def test_branches_of_a_pack_are_those_of_single_runs(corpus: Corpus, tmp_path: Path) -> None:
    runs = branched()
    packed_rows = train_pack(runs, corpus, lambda name: tmp_path / "pack" / name, device=CPU)
    for run, rows in zip(runs, packed_rows, strict=True):
        alone = train_run(run, corpus, tmp_path / "alone" / run.run_id)
        assert [row["run_id"] for row in rows] == [row["run_id"] for row in alone]
        assert [row["tokens"] for row in rows] == [6 * 64, STEPS * 64]
        for name in (run.run_id, f"{run.run_id}-b384"):
            files = [
                sorted(path.name for path in (tmp_path / kind / name).iterdir())
                for kind in ("pack", "alone")
            ]
            assert files[0] == files[1], name
        assert [row["loss"] for row in rows] == pytest.approx(
            [row["loss"] for row in alone], rel=1e-4
        )


@pytest.mark.parametrize("last", [5, 6, 9])  # the branch decays in steps 4 to 6, goes on from 3
def test_a_pack_killed_in_a_branch_or_after_it_goes_back_to_the_same_trunk(
    corpus: Corpus, tmp_path: Path, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BLOCK_SECONDS", 0.0)
    runs = branched()
    wanted = train_pack(runs, corpus, lambda name: tmp_path / "a" / name, device=CPU)
    with pytest.raises(Killed):
        train_pack(runs, corpus, lambda name: tmp_path / "b" / name, device=CPU,
                   events=PackEvents(watch=killed_at(last)), checkpoint_seconds=0.0)  # fmt: skip
    steps: list[int] = []
    rows = train_pack(
        runs,
        corpus,
        lambda name: tmp_path / "b" / name,
        device=CPU,
        events=PackEvents(watch=steps.append),
    )
    assert steps[0] > 1
    for got, want in zip(rows, wanted, strict=True):
        assert [row["loss"] for row in got] == [row["loss"] for row in want]


def test_packs_hold_runs_that_agree_and_keep_the_order() -> None:
    wide = replace(SHAPE, hidden_size=24)
    runs = [spec(run_id=str(i), shape=(SHAPE, wide)[i % 2], seed=i) for i in range(7)]
    names = [[run.run_id for run in pack] for pack in packs(runs, 3)]
    assert names == [["0", "2", "4"], ["6"], ["1", "3", "5"]]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": replace(SHAPE, intermediate_size=40)},
        {"tokens": 64 * (STEPS + 1)},
        {"recipe": replace(RECIPE, optimizer="adamw")},
        {"recipe": replace(RECIPE, dtype="bfloat16")},
        {"recipe": replace(RECIPE, context_length=32, sequences=2)},
    ],
)
def test_runs_that_cannot_be_stacked_are_kept_apart(change: dict[str, object]) -> None:
    runs = [spec(run_id="a"), spec(run_id="b", **change)]
    assert [len(pack) for pack in packs(runs, 8)] == [1, 1]
    with pytest.raises(InputError, match=r"a, b differ; use packs\(\)"):
        Stack(runs, CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_a_compiled_step_trains_like_an_eager_one(corpus: Corpus) -> None:
    runs, tokens, notes = replicas("muon")[:2], corpus.train(), list[str]()
    runs = [replace(run, shape=replace(SHAPE, num_hidden_layers=1)) for run in runs]
    stack = Stack(runs, CPU)
    step = PackedStep(
        stack, Feed(stack, tokens, None), Options(compiler="aot_eager"), note=notes.append
    )
    step.block(0, 4, STEPS)
    assert notes == []
    eager = Stack(runs, CPU)
    plain = PackedStep(eager, Feed(eager, tokens, None), Options())
    plain.block(0, 4, STEPS)
    assert step.losses.tolist() == pytest.approx(plain.losses.tolist(), rel=1e-3)


@gpu
@pytest.mark.parametrize("compiler", ["", "inductor"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_step_trains_like_an_eager_one_on_the_gpu(
    corpus: Corpus, optimizer: str, compiler: str
) -> None:
    device, notes = torch.device("cuda:0"), list[str]()
    runs, tokens = replicas(optimizer), corpus.train()
    losses = []
    for options in (Options(capture=False), Options(compiler=compiler)):
        stack = Stack(runs, device)
        feed = Feed(stack, tokens, ResidentTokens(tokens, device))
        step = PackedStep(stack, feed, options, note=notes.append)
        step.block(0, STEPS, STEPS)
        losses.append(step.losses.tolist())
    assert notes == []
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert all(math.isfinite(loss) for loss in losses[0])
