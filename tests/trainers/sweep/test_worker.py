"""Several runs packed on one device by a worker, on a CPU with the stacked path of a GPU."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.gpu import autotune, packed_loop
from shapelaw.trainers.gpu.autotune import Packing
from shapelaw.trainers.gpu.packed_loop import PackEvents, train_pack
from shapelaw.trainers.gpu.packed_step import PackedStep
from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, PLANNED
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.sweep import worker
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.worker import run_worker
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec
from support.small_runs import RECIPE, SHAPE, STEPS, small_corpus, spec

ADAMW = replace(RECIPE, optimizer="adamw", learning_rate=2e-3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def folder(corpus: Corpus, tmp_path: Path) -> Folder:
    """Return the folder of a sweep with a prepared corpus."""
    made = Folder(tmp_path / "sweep")
    shutil.copytree(corpus.folder, made.corpus)
    return made


def alike(count: int) -> list[RunSpec]:
    """Return runs that can be stacked, with different seeds and learning rates."""
    return [
        spec(run_id=f"run-{seed}", seed=seed,
             recipe=replace(ADAMW, learning_rate=1e-3 * (seed + 1)))
        for seed in range(count)
    ]  # fmt: skip


def planned(folder: Folder, corpus: Corpus, runs: Sequence[RunSpec]) -> Ledger:
    ledger = Ledger(folder.ledger)
    ledger.plan(runs, [run.identity(corpus) for run in runs])
    return ledger


def states(ledger: Ledger) -> dict[str, str]:
    return {entry.run_id: entry.state for entry in ledger.entries()}


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the runs of every pack that is trained."""
    seen: list[list[str]] = []

    def recorded(specs: Sequence[RunSpec], *arguments: object, **options: object) -> object:
        seen.append([run.run_id for run in specs])
        return train_pack(specs, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(packed_loop, "train_pack", recorded)
    return seen


def test_packed_runs_have_rows_and_files_of_runs_trained_alone(
    corpus: Corpus, folder: Folder, tmp_path: Path, packs: list[list[str]]
) -> None:
    other = spec(run_id="other", recipe=ADAMW, shape=replace(SHAPE, hidden_size=24))
    runs = [*alike(2), other, *alike(5)[2:]]
    ledger = planned(folder, corpus, runs)
    run_worker(str(folder.ledger), folder.path, pack=4)
    assert packs == [["run-0", "run-1", "run-2", "run-3"]]
    table = ledger.table().set_index("run_id")
    assert list(table.index) == [run.run_id for run in runs], "the order of the plan"
    for run in runs:
        [alone] = train_run(run, corpus, tmp_path / "alone" / run.run_id)
        row = table.loc[run.run_id]
        together = run.run_id in packs[0]
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-4 if together else 1e-15)
        assert row["status"] == DONE
        assert row["config_hash"] == alone["config_hash"]
        assert (row["replicas"] == 4) == together
        files = [
            sorted(path.name for path in place.iterdir())
            for place in (folder.run(run.run_id), tmp_path / "alone" / run.run_id)
        ]
        assert files[0] == files[1]
    assert {entry.attempts for entry in ledger.entries()} == {1}
    assert {entry.step for entry in ledger.entries()} == {STEPS}


def test_diverging_run_of_a_pack_is_recorded_and_the_others_finish(
    corpus: Corpus, folder: Folder, tmp_path: Path, packs: list[list[str]]
) -> None:
    wild = replace(ADAMW, learning_rate=1e9, warmup=0.0)
    runs = [*alike(2), spec(run_id="wild", recipe=wild), *alike(3)[2:]]
    ledger = planned(folder, corpus, runs)
    run_worker(str(folder.ledger), folder.path, pack=4)
    assert packs == [[run.run_id for run in runs]]
    entries = {entry.run_id: entry for entry in ledger.entries()}
    assert entries.pop("wild").state == DIVERGED
    assert {entry.state for entry in entries.values()} == {DONE}
    table = ledger.table().set_index("run_id")
    assert table.loc["wild", "status"] == DIVERGED
    calm = train_pack(alike(3), corpus, lambda name: tmp_path / name, device=torch.device("cpu"))
    assert [table.loc[rows[0]["run_id"], "loss"] for rows in calm] == [
        rows[0]["loss"] for rows in calm
    ]


def test_stopped_packed_worker_releases_its_runs_and_the_next_resumes(
    corpus: Corpus, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_loop, "BLOCK_SECONDS", 0.0)  # one step at a time
    monkeypatch.setitem(train_pack.__kwdefaults__, "checkpoint_seconds", 0.0)
    began: list[int] = []
    block = PackedStep.block

    def recorded(self: PackedStep, first: int, count: int, end: int) -> None:
        began.append(first)
        block(self, first, count, end)

    monkeypatch.setattr(PackedStep, "block", recorded)
    ledger = planned(folder, corpus, alike(3))
    run_worker(str(folder.ledger), folder.path, pack=3, alive=lambda: len(began) < 7)
    assert states(ledger) == dict.fromkeys(states(ledger), PLANNED)
    run_worker(str(folder.ledger), folder.path, pack=3)
    assert began == [*range(7), *range(6, STEPS)], "stopped in step 7: the checkpoint is that of 6"
    undisturbed = train_pack(
        alike(3), corpus, lambda name: tmp_path / name, device=torch.device("cpu")
    )
    assert list(ledger.table()["loss"]) == [rows[0]["loss"] for rows in undisturbed]


def test_runs_of_a_pack_that_fails_are_trained_alone(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    def trained(run: RunSpec, *_: object, **__: object) -> list[dict[str, object]]:
        if run.run_id == "run-1":
            raise OSError("no space left")
        return [{"run_id": run.run_id, "status": DONE}]

    monkeypatch.setattr(packed_loop, "train_pack", fails)
    monkeypatch.setattr(worker, "train_run", trained)
    ledger = planned(folder, corpus, alike(3))
    run_worker(str(folder.ledger), folder.path, pack=3)
    assert states(ledger) == {"run-0": DONE, "run-1": FAILED, "run-2": DONE}
    for entry in ledger.entries():
        assert entry.note == "trained alone because its pack failed: RuntimeError: out of memory"
    assert ledger.entries()[1].message == "OSError: no space left"


@pytest.mark.parametrize(("pack", "share"), [(2, None), (8, 2)])
def test_pack_has_at_most_the_requested_runs_and_its_share(
    corpus: Corpus, folder: Folder, packs: list[list[str]], pack: int, share: int | None
) -> None:
    ledger = planned(folder, corpus, alike(5))
    run_worker(str(folder.ledger), folder.path, pack=pack, share=share)
    assert packs == [["run-0", "run-1"], ["run-2", "run-3"]], "the last one is trained alone"
    assert set(states(ledger).values()) == {DONE}


@pytest.mark.parametrize("pack", [None, 1])
def test_worker_on_a_cpu_packs_only_on_request(
    corpus: Corpus, folder: Folder, packs: list[list[str]], pack: int | None
) -> None:
    ledger = planned(folder, corpus, alike(2))
    run_worker(str(folder.ledger), folder.path, pack=pack)
    assert packs == []
    assert set(states(ledger).values()) == {DONE}


class OnGpu:
    """Simulate a GPU, its pack and a measured packing of two replicas."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: str = DONE) -> None:
        self.status = status
        self.packs: list[list[str]] = []
        self.measured: list[str] = []
        monkeypatch.setattr(worker, "device_named", lambda: torch.device("cuda", 0))
        monkeypatch.setattr(autotune, "device_label", lambda device: "a GPU")
        monkeypatch.setattr(packed_loop, "train_pack", self.train_pack)
        monkeypatch.setattr(autotune, "choose_packing", self.choose_packing)

    def train_pack(
        self,
        specs: Sequence[RunSpec],
        *_: object,
        device: torch.device,
        options: packed_loop.Options,
        events: PackEvents,
    ) -> None:
        assert (device.type, options.compiler) == ("cuda", "inductor")
        self.packs.append([run.run_id for run in specs])
        for run in specs:
            events.ended(run, [{"run_id": run.run_id, "status": self.status}])

    def choose_packing(
        self, run: RunSpec, *_: object, most: tuple[int, int], **__: object
    ) -> Packing:
        assert most[1] == 1, "this worker is one process"
        self.measured.append(run.run_id)
        return Packing(replicas=2, processes=1, tokens_per_second=1.0, device="a GPU",
                       shape=str(run.shape), trials=())  # fmt: skip


def test_worker_on_a_gpu_packs_the_measured_number_of_runs(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = OnGpu(monkeypatch)
    ledger = planned(folder, corpus, alike(5))
    run_worker(str(folder.ledger), folder.path)
    assert gpu.packs == [["run-0", "run-1"], ["run-2", "run-3"], ["run-4"]]
    assert gpu.measured == ["run-0"], "once for a shape"
    assert folder.packings.exists()
    assert set(states(ledger).values()) == {DONE}


def test_worker_on_a_gpu_measures_nothing_if_the_size_is_given(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = OnGpu(monkeypatch)
    planned(folder, corpus, alike(4))
    run_worker(str(folder.ledger), folder.path, pack=3)
    assert gpu.packs == [["run-0", "run-1", "run-2"], ["run-3"]]
    assert gpu.measured == []


def test_run_that_diverges_on_a_gpu_is_recorded_with_its_row(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    OnGpu(monkeypatch, DIVERGED)
    ledger = planned(folder, corpus, alike(1))
    run_worker(str(folder.ledger), folder.path)
    (entry,) = ledger.entries()
    assert (entry.state, entry.message) == (DIVERGED, "the loss is no longer a finite number")
    assert entry.rows == [{"run_id": "run-0", "status": DIVERGED}]
