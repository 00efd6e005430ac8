import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.runs.columns import COLUMNS
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ladder.plan_file import read_plan
from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, PLANNED, RUNNING, Entry
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.sweep import sweep, worker
from shapelaw.trainers.sweep.folder import Folder, existing_ledger
from shapelaw.trainers.sweep.launchers._base import End, WorkerJob
from shapelaw.trainers.sweep.sweep import join, retry_runs, run_plan, run_table
from shapelaw.trainers.sweep.worker import run_worker
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec, run_name
from support.launchers import InProcess
from support.small_runs import RECIPE, SHAPE, STEPS, small_corpus, spec
from support.waiting import PATIENCE, wait_until

SHAPE_COLUMNS = ",".join(name for name in INTEGER_FIELDS if name != "vocab_size")
ROW = "16,32,2,2,1,8"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def folder(corpus: Corpus, tmp_path: Path) -> Folder:
    """Return the folder of a sweep with a prepared corpus."""
    made = Folder(tmp_path / "sweep")
    shutil.copytree(corpus.folder, made.corpus)
    return made


def test_run_table_of_another_command_is_not_overwritten(corpus: Corpus, folder: Folder) -> None:
    folder.table.write_text("run_id,loss\nmine,2.5\n")
    with pytest.raises(
        InputError, match=r"runs\.csv must be the run table of a sweep, but .* has no"
    ):
        run_plan([spec()], corpus, folder, launcher=InProcess())
    assert folder.table.read_text() == "run_id,loss\nmine,2.5\n"
    assert not folder.ledger.exists()


def three_runs() -> list[RunSpec]:
    wild = replace(RECIPE, learning_rate=1e6, matrix_learning_rate=1e6, warmup=0.0)
    return [
        spec(run_id="muon"),
        spec(run_id="adamw", recipe=replace(RECIPE, optimizer="adamw"), seed=3),
        spec(run_id="wild", recipe=wild),
        spec(run_id="short", tokens=128, data_seed=4),
    ]


class InThread(InProcess):
    """Run one worker in another thread."""

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        self.thread = threading.Thread(target=run_worker, args=(job.ledger, job.folder))
        self.thread.start()

    def look(self, number: int) -> End | None:
        return None if self.thread.is_alive() else End()

    def stop(self) -> None:
        self.thread.join()


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "launcher_named", lambda name: InProcess())


@pytest.mark.slow
def test_a_sweep_gives_the_losses_of_training_one_by_one(
    corpus: Corpus, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Entry]] = []
    table = run_plan(three_runs(), corpus, folder, workers=2, report=seen.append)
    assert set(COLUMNS) <= set(table.columns)
    found = table.set_index("run_id")
    for run in three_runs():
        if run.run_id != "wild":
            alone = train_run(run, corpus, tmp_path / run.run_id)[-1]
            assert found.loc[run.run_id, "loss"] == alone["loss"]
            assert found.loc[run.run_id, "bits_per_byte"] == alone["bits_per_byte"]
    assert pd.isna(found.loc["wild", "loss"])
    assert found["status"].to_dict() == {
        "muon": "done", "adamw": "done", "wild": "diverged", "short": "done",
    }  # fmt: skip
    assert all(entry.row is not None for entry in seen[-1])

    def never(*_: object) -> None:
        raise AssertionError("a finished run would be trained again")

    monkeypatch.setattr(sweep, "supervise", never)
    again = run_plan(three_runs(), corpus, folder, workers=2)
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_a_longer_plan_trains_only_new_runs(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    first = run_plan([spec(run_id="a")], corpus, folder)
    trained: list[str] = []

    def counted(run: RunSpec, *arguments: object, **options: object) -> dict[str, object]:
        trained.append(run.run_id)
        return train_run(run, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "train_run", counted)
    both = run_plan([spec(run_id="a"), spec(run_id="b", seed=1)], corpus, folder)
    assert trained == ["b"]
    assert both.loc[0, "seconds"] == first.loc[0, "seconds"]


def test_the_table_has_only_the_runs_of_the_plan(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    run_plan([spec(run_id="a"), spec(run_id="b", seed=1)], corpus, folder)
    assert run_plan([spec(run_id="b", seed=1)], corpus, folder)["run_id"].tolist() == ["b"]
    assert existing_ledger(folder.path).table()["run_id"].tolist() == ["a", "b"]


def test_other_settings_under_one_name_are_refused(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    run_plan([spec(run_id="a")], corpus, folder)
    with pytest.raises(InputError, match="run 'a' with other settings"):
        run_plan([spec(run_id="a", seed=1)], corpus, folder)


def test_a_failed_run_is_named_and_the_same_call_resumes(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    plan = [spec(run_id="good"), spec(run_id="bad", seed=1)]

    def fails_once(run: RunSpec, *arguments: object, **options: object) -> dict[str, object]:
        if run.run_id == "bad":
            raise OSError(28, "No space left on device")
        return train_run(run, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "train_run", fails_once)
    message = (
        "1 of 2 runs did not finish; bad failed: OSError.*No space left.* run the same command"
    )
    with pytest.raises(WorkError, match=message):
        run_plan(plan, corpus, folder)
    monkeypatch.setattr(worker, "train_run", train_run)
    assert run_plan(plan, corpus, folder)["status"].tolist() == ["done", "done"]


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_any_error_of_a_run_is_recorded_and_ends_no_other_run(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    in_process(monkeypatch)

    def breaks(run: RunSpec, *arguments: object, **options: object) -> dict[str, object]:
        if run.run_id == "bad":
            raise error("a defect")
        return train_run(run, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "train_run", breaks)
    with pytest.raises(WorkError, match=r"1 of 2 runs did not finish; bad failed: .*a defect"):
        run_plan([spec(run_id="bad"), spec(run_id="good", seed=1)], corpus, folder)
    found = {entry.run_id: entry.state for entry in existing_ledger(folder.path).entries()}
    assert found == {"bad": FAILED, "good": DONE}


def planned(folder: Folder, corpus: Corpus, *specs: RunSpec) -> Ledger:
    ledger = Ledger(folder.ledger)
    ledger.plan(specs, [run.identity(corpus) for run in specs])
    return ledger


def states(ledger: Ledger) -> dict[str, str]:
    return {entry.run_id: entry.state for entry in ledger.entries()}


def test_a_worker_that_must_end_stops_and_releases_its_run(corpus: Corpus, folder: Folder) -> None:
    ledger = planned(folder, corpus, spec(run_id="a"))
    asked = iter([True, True, True])
    run_worker(str(folder.ledger), folder.path, alive=lambda: next(asked, False))
    assert states(ledger) == {"a": PLANNED}
    assert ledger.entries()[0].attempts == 1
    assert next(asked, None) is None, "it was training when it was told to stop"


def test_a_worker_that_must_end_claims_nothing(corpus: Corpus, folder: Folder) -> None:
    ledger = planned(folder, corpus, spec(run_id="a"))
    run_worker(str(folder.ledger), folder.path, alive=lambda: False)
    assert [entry.attempts for entry in ledger.entries()] == [0]


def test_a_worker_that_lost_its_run_stops_training_it_and_records_nothing(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = planned(folder, corpus, spec(run_id="a"))
    steps: list[int] = []

    def stolen(
        run: RunSpec, *_: object, watch: Callable[[int], None], **__: object
    ) -> dict[str, object]:
        assert ledger.claim(alive_after=-1.0) == run
        for step in range(1, 1000):
            steps.append(step)
            watch(step)
            time.sleep(0.01)
        return {"run_id": run.run_id}

    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(worker, "train_run", stolen)
    monkeypatch.setattr(worker, "FIRST_PAUSE", 0.01)
    run_worker(str(folder.ledger), folder.path, idle_seconds=0.05)
    assert len(steps) < 500
    (entry,) = ledger.entries()
    assert (entry.state, entry.row, entry.owner) == (RUNNING, None, ledger.owner)


def test_a_run_that_was_lost_at_its_end_is_recorded_once(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = planned(folder, corpus, spec(run_id="a"))

    def overtaken(run: RunSpec, *_: object, **__: object) -> dict[str, object]:
        assert ledger.claim(alive_after=-1.0) == run
        assert ledger.finish("a", {"run_id": "a", "by": "another"})
        return {"run_id": "a", "by": "this one"}

    monkeypatch.setattr(worker, "train_run", overtaken)
    run_worker(str(folder.ledger), folder.path)
    assert ledger.entries()[0].rows == [{"run_id": "a", "by": "another"}]


def test_a_run_continues_and_is_recorded_while_the_ledger_is_out_of_reach(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    finished: list[object] = []

    def beat(run_id: str, step: int) -> bool:
        beats.append(step)
        raise WorkError("out of reach")

    def slow(run: RunSpec, *_: object, watch: Callable[[int], None], **__: object) -> list[object]:
        watch(7)
        wait_until(lambda: len(beats) >= 3, "three beats that fail")
        watch(8)
        return [{"run_id": run.run_id}]

    claims = iter([spec(run_id="a"), None])
    ledger = SimpleNamespace(
        beat=beat,
        claim=lambda: next(claims),
        entries=list,
        finish=lambda run_id, rows: finished.append((run_id, rows)),
    )
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.005)
    monkeypatch.setattr(worker, "train_run", slow)
    monkeypatch.setattr(worker, "Ledger", lambda address: ledger)
    run_worker("", folder.path)
    assert finished == [("a", [{"run_id": "a"}])]
    assert 7 in beats


@pytest.mark.parametrize("where", ["train_run", "_Claim", "Heartbeat"])
def test_a_stopped_worker_releases_its_run(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The worker is training, or has only claimed the run."""
    ledger = planned(folder, corpus, spec(run_id="a"))

    def interrupted(*_: object, **__: object) -> dict[str, object]:
        raise SystemExit(1)

    monkeypatch.setattr(worker, where, interrupted)
    with pytest.raises(SystemExit):
        run_worker(str(folder.ledger), folder.path)
    assert states(ledger) == {"a": PLANNED}


def test_an_idle_worker_waits_for_other_runs_only_for_its_idle_time(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE", 0.01)
    ledger = planned(folder, corpus, spec(run_id="a"))
    assert ledger.claim() is not None
    run_worker(str(folder.ledger), folder.path, idle_seconds=0.1)
    assert states(ledger) == {"a": RUNNING}
    ledger.release("a")
    run_worker(str(folder.ledger), folder.path, idle_seconds=0.1)
    assert states(ledger) == {"a": DONE}


def test_an_idle_worker_that_must_end_does_so_at_once(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = planned(folder, corpus, spec(run_id="a"))
    assert ledger.claim() is not None
    asked = iter([True, True, True])
    run_worker(str(folder.ledger), folder.path, alive=lambda: next(asked, False))
    assert states(ledger) == {"a": RUNNING}


def test_a_worker_without_the_shared_folder_is_refused(tmp_path: Path) -> None:
    message = "holds no prepared corpus on this machine; the --out folder must be on a file system"
    with pytest.raises(WorkError, match=message):
        run_worker(str(tmp_path / "ledger.sqlite"), tmp_path / "sweep")


@pytest.mark.slow
def test_the_run_table_is_kept_in_the_folder_as_runs_end(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def report(entries: list[Entry]) -> None:
        if folder.table.exists():
            lengths.append(len(pd.read_csv(folder.table)))

    monkeypatch.setattr("shapelaw.trainers.sweep.launchers._base.POLL_SECONDS", 0.01)
    plan = [spec(run_id="a"), spec(run_id="b", seed=1, tokens=40 * STEPS * RECIPE.batch_tokens)]
    table = run_plan(plan, corpus, folder, launcher=InThread(), report=report)
    assert 1 in lengths, "the first row was there before the second run ended"
    kept = pd.read_csv(folder.table)
    assert kept["loss"].tolist() == table["loss"].tolist()
    folder.table.unlink()
    run_plan(plan, corpus, folder)
    assert len(pd.read_csv(folder.table)) == 2


def test_a_run_with_branches_has_several_rows(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)

    def branches(run: RunSpec, *_: object, **__: object) -> list[dict[str, object]]:
        return [{"run_id": f"{run.run_id}-{count}", "loss": 1.0 / count} for count in (1, 2)]

    monkeypatch.setattr(worker, "train_run", branches)
    table = run_plan([spec(run_id="a"), spec(run_id="b", seed=1)], corpus, folder)
    assert table["run_id"].tolist() == ["a-1", "a-2", "b-1", "b-2"]
    ledger = existing_ledger(folder.path)
    pd.testing.assert_frame_equal(ledger.table(), table)
    assert run_table(ledger.entries())["loss"].tolist() == [1.0, 0.5, 1.0, 0.5]


def test_another_process_joins_a_sweep_by_its_folder(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    planned(folder, corpus, spec(run_id="a"), spec(run_id="b", seed=1))
    assert join(folder)["status"].tolist() == ["done", "done"]
    assert len(pd.read_csv(folder.table)) == 2


def test_joining_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no ledger\.sqlite"):
        join(Folder(tmp_path))


NETWORK = "/dev/sda1 / ext4 rw 0 0\nserver:/export {} nfs4 rw 0 0\n"


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the temporary folder look like a network disk."""
    mounts = tmp_path / "mounts"
    mounts.write_text(NETWORK.format(str(tmp_path.resolve()).replace(" ", "\\040")))
    monkeypatch.setattr("shapelaw.trainers.ledger.registry.MOUNTS", mounts)


@pytest.mark.usefixtures("on_nfs")
def test_an_sqlite_ledger_on_a_network_disk_is_refused_for_several_machines(
    corpus: Corpus, folder: Folder
) -> None:
    class Several(InProcess):
        several_machines = True

    message = r"`--ledger` must be a database .* \(nfs4\), .* give --ledger postgresql://"
    with pytest.raises(InputError, match=message):
        run_plan([spec()], corpus, folder, launcher=Several())
    assert not folder.ledger.exists()
    with pytest.raises(InputError, match=r"ledger\.sqlite|`--ledger` must be a database"):
        join(folder)


@pytest.mark.usefixtures("on_nfs")
def test_an_sqlite_ledger_on_a_network_disk_is_noted_for_one_machine(
    corpus: Corpus, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan([spec()], corpus, folder, launcher=InProcess())
    assert "network disk (nfs4); only one machine may use it" in capsys.readouterr().err


def test_a_ledger_elsewhere_is_found_again_from_the_folder(
    corpus: Corpus, folder: Folder, tmp_path: Path
) -> None:
    elsewhere = str(tmp_path / "elsewhere.sqlite")
    table = run_plan([spec()], corpus, folder, launcher=InProcess(), ledger=elsewhere)
    assert not folder.ledger.exists()
    pd.testing.assert_frame_equal(existing_ledger(folder.path).table(), table)
    pd.testing.assert_frame_equal(run_plan([spec()], corpus, folder, ledger=elsewhere), table)
    with pytest.raises(InputError, match=r"a sweep whose ledger is .*elsewhere\.sqlite, but"):
        run_plan([spec()], corpus, folder, ledger=str(tmp_path / "third.sqlite"))


def test_another_ledger_for_an_existing_sweep_is_refused(
    corpus: Corpus, folder: Folder, tmp_path: Path
) -> None:
    planned(folder, corpus, spec())
    with pytest.raises(InputError, match=r"whose ledger is ledger\.sqlite; leave --ledger out"):
        run_plan([spec()], corpus, folder, ledger=str(tmp_path / "other.sqlite"))


def failed_and_diverged(folder: Folder, corpus: Corpus) -> Ledger:
    ledger = planned(folder, corpus, *(spec(run_id=name, seed=ord(name)) for name in "abcd"))
    for end in (ledger.fail, ledger.fail):
        run = ledger.claim()
        assert run is not None
        end(run.run_id, "no space")
    run = ledger.claim()
    assert run is not None
    ledger.diverge(run.run_id, "nan", {"run_id": run.run_id, "status": DIVERGED})
    return ledger


def test_retry_plans_failed_runs_again_and_diverged_ones_on_demand(
    corpus: Corpus, folder: Folder
) -> None:
    ledger = failed_and_diverged(folder, corpus)
    assert retry_runs(ledger, ["b"]) == ["b"]
    assert states(ledger) == {"a": FAILED, "b": PLANNED, "c": DIVERGED, "d": PLANNED}
    assert retry_runs(ledger) == ["a"]
    assert retry_runs(ledger, diverged=True) == ["c"]
    assert set(states(ledger).values()) == {PLANNED}
    assert retry_runs(ledger) == []


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("z", "`RUN_ID` must be a run of the sweep, but got 'z'; `shapelaw sweep status` lists"),
        ("c", "`state` of c must be failed, but is diverged; give --diverged too"),
        ("d", "`state` of d must be failed, but is planned"),
    ],
)
def test_retry_of_unknown_and_unended_runs_is_refused(
    corpus: Corpus, folder: Folder, run_id: str, message: str
) -> None:
    ledger = failed_and_diverged(folder, corpus)
    with pytest.raises(InputError, match=message):
        retry_runs(ledger, ["a", run_id])
    assert states(ledger)["a"] == FAILED, "nothing is planned when one name is wrong"


def test_a_disk_without_space_is_refused_before_anything_is_written(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
    out = tmp_path / "new" / "sweep"
    message = r"sweep needs about 64 MiB, but 5 MiB are free; free space or choose another --out"
    with pytest.raises(WorkError, match=message):
        run_plan([spec()], corpus, Folder(out))
    assert not out.exists()


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no ledger\.sqlite; give the --out folder"):
        existing_ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []


def written(path: Path, text: str) -> Path:
    (path / "plan.csv").write_text(text)
    return path / "plan.csv"


def test_a_plan_needs_only_a_shape_and_tokens(corpus: Corpus, tmp_path: Path) -> None:
    plan = written(tmp_path, f"{SHAPE_COLUMNS},tokens\n{ROW},1e5\n{ROW},200000\n")
    first, second = read_plan(plan, corpus, RECIPE)
    assert first.shape == replace(SHAPE, qk_norm=False)
    assert (first.tokens, second.tokens) == (100_000, 200_000)
    assert (first.seed, first.data_seed, first.role, first.recipe) == (0, 0, "proxy", RECIPE)
    assert first.run_id == run_name(first.shape, 100_000, 0) == "d16-L2-h2-1x8-f32-t100000-s0"


def test_a_plan_can_set_names_seeds_roles_and_the_recipe(corpus: Corpus, tmp_path: Path) -> None:
    header = f"{SHAPE_COLUMNS},tokens,run_id,seed,data_seed,role,optimizer,learning_rate,qk_norm"
    more = "context_length,sequences,rope_theta,vocab_size"
    text = f"{header},{more}\n{ROW},1e5,mine,3,4,confirmation,adamw,0.002,true,64,2,500,256\n"
    (run,) = read_plan(written(tmp_path, text), corpus, Recipe())
    assert (run.run_id, run.seed, run.data_seed, run.role) == ("mine", 3, 4, "confirmation")
    assert run.shape == replace(SHAPE, rope_theta=500.0)
    assert run.recipe == Recipe(
        optimizer="adamw", learning_rate=0.002, context_length=64, sequences=2
    )


def test_an_empty_cell_means_the_default(corpus: Corpus, tmp_path: Path) -> None:
    text = f"{SHAPE_COLUMNS},tokens,seed,optimizer\n{ROW},1e5,,\n{ROW},1e5,3,adamw\n"
    first, second = read_plan(written(tmp_path, text), corpus, RECIPE)
    assert (first.seed, first.recipe.optimizer) == (0, "muon")
    assert (second.seed, second.recipe.optimizer) == (3, "adamw")


HEADER = f"{SHAPE_COLUMNS},tokens"
WRONG = {
    "no tokens": (f"{SHAPE_COLUMNS}\n{ROW}\n", "lacks the column `tokens`"),
    "no field": ("hidden_size,tokens\n16,1e5\n", "lacks the column `intermediate_size`"),
    "tokens in message": (f"{HEADER}\n{ROW},1e5\n{ROW},many\n", "line 3: `tokens > 0`.*many"),
    "negative tokens": (f"{HEADER}\n{ROW},-5\n", "line 2: `tokens > 0` .* got -5"),
    "key-value heads": (
        f"{HEADER}\n{ROW},1e5\n16,32,2,4,3,8,1e5\n",
        "line 3: `num_attention_heads % num_key_value_heads == 0` must hold, but got 4 and 3",
    ),
    "half a layer": (f"{HEADER}\n16,32,2.5,2,1,8,1e5\n", "line 2: `num_hidden_layers` must be"),
    "a field in message": (f"{HEADER}\nwide,32,2,2,1,8,1e5\n", "line 2: `hidden_size` must be"),
    "an empty field": (f"{HEADER}\n{ROW},1e5\n,32,2,2,1,8,1e5\n", "line 3: .*`hidden_size`"),
    "odd head": (f"{HEADER}\n16,32,2,2,1,7,1e5\n", "line 2: `head_dim % 2 == 0` must hold"),
    "vocabulary": (
        f"{HEADER},vocab_size\n{ROW},1e5,512\n",
        "line 2: `vocab_size` must be 256, that of the corpus, but got 512",
    ),
    "optimizer": (f"{HEADER},optimizer\n{ROW},1e5,lion\n", "line 2: `optimizer` must be one of"),
    "switch": (f"{HEADER},qk_norm\n{ROW},1e5,maybe\n", "line 2: `qk_norm` must be true or false"),
    "seed in message": (f"{HEADER},seed\n{ROW},1e5,first\n", "line 2: .*first"),
    "half a seed": (f"{HEADER},seed\n{ROW},1e5,1.5\n", "line 2: .*seed.*1.5"),
    "negative data seed": (f"{HEADER},data_seed\n{ROW},1e5,-1\n", "line 2: .*data_seed.*-1"),
    "half a context": (
        f"{HEADER},context_length\n{ROW},1e5,32.5\n", "line 2: .*context_length.*32.5",
    ),
    "negative rate": (f"{HEADER},learning_rate\n{ROW},1e5,-1\n", "line 2: .*learning_rate.*-1"),
    "twice": (f"{HEADER}\n{ROW},1e5\n{ROW},1e5\n", "`run_id` must be unique, but two rows"),
    "no rows": (f"{HEADER}\n", "has no rows"),
    "no text": ("", "is not a CSV, JSON, JSON lines or Parquet table"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_plan_is_refused_with_its_line(
    corpus: Corpus, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_plan(written(tmp_path, text), corpus, RECIPE)


def processes_of_session(session: int) -> list[int]:
    """Return the living processes of a session whose leader has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def done_rows(folder: Path) -> int:
    try:
        return len(existing_ledger(folder).table())
    except (InputError, WorkError):
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_killed_and_resumed_sweep_gives_the_losses_of_an_undisturbed_one(
    corpus: Corpus, tmp_path: Path
) -> None:
    rows = [f"{16 * width},32,2,2,1,8,{30_000 + 5_000 * width},32,8" for width in (1, 2, 1, 2)]
    lines = [f"{row},{seed}" for seed, row in enumerate(rows)]
    plan = written(tmp_path, f"{HEADER},context_length,sequences,seed\n" + "\n".join(lines) + "\n")
    source = Path(corpus.folder).parent / "small.txt"
    out = tmp_path / "sweep"
    arguments = ["sweep", "run", str(plan), "--corpus", str(source), "--out", str(out)]
    command = [sys.executable, "-c", "from shapelaw.search.cli import main; main()", *arguments]
    command += ["--workers", "2"]
    wait = random.Random(time.time_ns()).uniform(0, 1)
    with (tmp_path / "stderr").open("w") as log:
        started = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: done_rows(out) or started.poll() is not None, "the first row")
        time.sleep(wait)
    finally:
        started.kill()
        started.wait()
    assert done_rows(out) >= 1, (tmp_path / "stderr").read_text()
    before = existing_ledger(out).table().set_index("run_id")
    again = [*command[:3], *arguments, "--workers", "1", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(again, **pipes) as restarted:  # type: ignore[call-overload]
        wait_until(lambda: not processes_of_session(started.pid), "the killed command's workers")
        output, errors = restarted.communicate(timeout=PATIENCE)
        assert restarted.returncode == 0, (wait, errors)
    after = existing_ledger(out).table().set_index("run_id")
    assert (after.loc[before.index, "seconds"] == before["seconds"]).all(), "trained twice"
    printed = {row["run_id"]: row["loss"] for row in json.loads(output)["runs"]}
    prepared = Corpus.load(out / "corpus")
    for run in read_plan(plan, prepared, Recipe()):
        wanted = train_run(run, prepared, tmp_path / "alone" / run.run_id)[-1]["loss"]
        assert after.loc[run.run_id, "loss"] == wanted, wait
        assert printed[run.run_id] == wanted


def test_runs_that_are_done_elsewhere_are_not_trained_again(
    corpus: Corpus, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    first = [spec(run_id=name, seed=seed) for seed, name in enumerate("ab")]
    table = run_plan(first, corpus, folder)
    here = Folder(tmp_path / "here")
    shutil.copytree(corpus.folder, here.corpus)
    trained: list[str] = []

    def counted(run: RunSpec, *_: object, **__: object) -> list[dict[str, object]]:
        trained.append(run.run_id)
        return [{"run_id": run.run_id, "status": DONE}]

    monkeypatch.setattr(worker, "train_run", counted)
    changed = replace(first[1], seed=9)  # present by name, but trained with other settings
    again = [first[0], changed, spec(run_id="c", seed=3)]
    found = run_plan(again, corpus, here, done=table)
    assert trained == ["b", "c"]
    assert found.set_index("run_id").loc["a", "loss"] == table.set_index("run_id").loc["a", "loss"]
