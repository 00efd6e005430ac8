"""Real faults in a sweep: killed, stopped and suspended workers, full disks, restarts."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import write_runs
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, RUNNING, Entry
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.ledger.liveness import process_exists
from shapelaw.trainers.training.execution import Execution
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec
from support.paths import SUPPORT
from support.postgres import Server
from support.small_runs import RECIPE, SHAPE, Killed, killed_at, small_corpus, spec
from support.waiting import PATIENCE, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked"),
]
KILLS = 30
ROWS = 12
STEPS = 40


def twelve_runs() -> list[RunSpec]:
    """Return the runs, a third with a branch, so that kills also fall into decay branches."""
    recipe = replace(RECIPE, warmup_steps=4)
    tokens = STEPS * RECIPE.batch_tokens
    return [
        spec(
            run_id=f"run-{number:02d}", seed=number, tokens=tokens, recipe=recipe,
            branches=(tokens // 2,) if number % 3 == 2 else (), engine=Execution(),
        )
        for number in range(ROWS)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Return the losses of the twelve runs by row, without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rows = [row for run in twelve_runs() for row in train_run(run, corpus, folder / run.run_id)]
    losses = {str(row["run_id"]): float(row["loss"]) for row in rows}  # type: ignore[arg-type]
    assert len(set(losses.values())) == ROWS + ROWS // 3, "every row has a loss of its own"
    return losses


@pytest.fixture(scope="module")
def starter() -> Iterator[Popen[str]]:
    """Process that starts workers."""
    script = SUPPORT / "fault_workers.py"
    with Popen([sys.executable, str(script)], stdin=PIPE, stdout=PIPE, text=True) as process:
        yield process
        process.kill()


class Crew:
    """Workers of one sweep, each in its own process."""

    def __init__(self, starter: Popen[str], address: str, folder: Path) -> None:
        self._starter, self._address, self._folder = starter, address, folder
        self._workers: list[int] = []
        self.log = folder.parent / "log"
        self.log.touch()
        self.ledger = Ledger(address)

    def start(self, **options: object) -> int:
        """Start one more worker."""
        said = {"ledger": self._address, "folder": str(self._folder), "log": str(self.log)}
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write(json.dumps(said | options) + "\n")
        self._starter.stdin.flush()
        self._workers.append(int(self._starter.stdout.readline()))
        return self._workers[-1]

    def kill(self, worker: int) -> None:
        """Kill a worker with SIGKILL, which it cannot handle."""
        os.kill(worker, signal.SIGKILL)
        self.until_gone(worker)

    def end(self) -> None:
        """Kill all remaining workers."""
        for worker in filter(process_exists, self._workers):
            os.kill(worker, signal.SIGKILL)

    def until(self, reached: Callable[[list[Entry]], bool]) -> list[Entry]:
        """Wait until the entries of the ledger meet a condition."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            entries = self.ledger.entries()
            if reached(entries):
                return entries
            time.sleep(0.005)  # little is trained between two looks
        raise AssertionError(f"{entries}\n{self.log.read_text()}")

    def until_gone(self, *workers: int) -> None:
        """Wait until the given workers, or else all, have ended."""
        wait_until(
            lambda: not any(map(process_exists, workers or self._workers)), "the end of workers"
        )


def all_done(entries: list[Entry]) -> bool:
    return all(entry.state == DONE for entry in entries)


def running(entries: list[Entry]) -> bool:
    return any(entry.state == RUNNING and entry.step > 0 for entry in entries)


def pids_at_work(entries: list[Entry]) -> set[int | None]:
    return {entry.pid for entry in entries if entry.state == RUNNING}


def losses(ledger: Ledger) -> dict[str, float]:
    """Return the losses by name of the row of the run table; a branch has its own row."""
    table = ledger.table()
    assert not table["run_id"].duplicated().any()
    return dict(zip(table["run_id"], table["loss"], strict=True))


def prepared(corpus: Corpus, folder: Path) -> Path:
    """Return the folder of a sweep with its corpus."""
    shutil.copytree(corpus.folder, folder / "corpus")
    return folder


@pytest.fixture
def crew(starter: Popen[str], corpus: Corpus, tmp_path: Path) -> Iterator[Crew]:
    """Return the workers of a sweep with an SQLite ledger."""
    folder = prepared(corpus, tmp_path / "sweep")
    crew = Crew(starter, str(folder / "ledger.sqlite"), folder)
    yield crew
    crew.end()


def plan(crew: Crew, corpus: Corpus, runs: list[RunSpec]) -> Ledger:
    crew.ledger.plan(runs, [run.identity(corpus) for run in runs])
    return crew.ledger


def share_left(entries: list[Entry]) -> float:
    return sum(1 - entry.step / entry.steps for entry in entries) / len(entries)


def test_thirty_kills_lose_and_double_no_row_and_change_no_loss(
    crew: Crew, corpus: Corpus, undisturbed: dict[str, float]
) -> None:
    ledger, draw = plan(crew, corpus, twelve_runs()), random.Random(9)
    ended: dict[str, float | None] = {}
    workers, hits = [crew.start(), crew.start()], 0
    for kills_left in range(KILLS, 0, -1):
        # Little training between two kills, so that all kills fall before the end. It is counted
        # in steps, because seconds would depend on the load of the machine.
        left = share_left(ledger.entries())
        enough = left - draw.uniform(0.0, left / (kills_left + 3))
        crew.until(lambda entries, enough=enough: share_left(entries) <= enough)  # type: ignore[misc]
        if draw.random() < 0.7:  # other kills fall at any moment, also between two runs
            crew.until(lambda entries: not pids_at_work(entries).isdisjoint(workers))
        at_work = pids_at_work(ledger.entries()).intersection(workers)
        killed = draw.choice(sorted(at_work) or workers)
        hits += killed in at_work
        workers.remove(killed)
        crew.kill(killed)
        for entry in ledger.entries():
            if entry.state == DONE:
                assert ended.setdefault(entry.run_id, entry.ended) == entry.ended, "done twice"
        workers.append(crew.start())
    assert len(ended) < ROWS, "every kill fell while there was work"
    entries = crew.until(all_done)
    crew.until_gone()
    assert hits >= KILLS / 3, "many of the killed were at work"
    assert sum(entry.attempts for entry in entries) >= ROWS + hits - 2
    assert losses(ledger) == undisturbed


def test_killed_packed_worker_resumes_and_gives_the_losses_of_single_runs(
    crew: Crew, corpus: Corpus, undisturbed: dict[str, float]
) -> None:
    ledger = plan(crew, corpus, twelve_runs())
    for kills in range(1, 4):
        worker = crew.start(pack=4)
        crew.until(
            lambda entries, kills=kills, worker=worker: (  # type: ignore[misc]
                share_left(entries) < 1 - kills / 5 and worker in pids_at_work(entries)
            )
        )
        crew.kill(worker)
    crew.start(pack=4)
    entries = crew.until(all_done)
    crew.until_gone()
    assert crew.log.read_text() == ""
    assert sum(entry.attempts for entry in entries) > ROWS + 3, "kills fell into packs"
    assert losses(ledger) == pytest.approx(undisturbed, rel=1e-3)
    assert ledger.table()["replicas"].max() == 4


def test_workers_survive_a_ledger_locked_for_seconds(
    crew: Crew, corpus: Corpus, undisturbed: dict[str, float]
) -> None:
    ledger = plan(crew, corpus, twelve_runs()[:4])
    workers = [crew.start(), crew.start()]
    crew.until(running)
    with closing(sqlite3.connect(ledger.name, timeout=600, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(3.0)
        assert all(map(process_exists, workers))
    entries = crew.until(all_done)
    crew.until_gone()
    assert crew.log.read_text() == ""
    assert {entry.attempts for entry in entries} == {1}
    assert losses(ledger).items() <= undisturbed.items()


def test_a_living_worker_keeps_its_row_if_the_clock_jumps_by_days(
    crew: Crew, corpus: Corpus, undisturbed: dict[str, float]
) -> None:
    ledger = plan(crew, corpus, twelve_runs()[:3])
    for _ in range(2):
        crew.start(clock_jumps=True)
    entries = crew.until(all_done)
    crew.until_gone()
    assert {entry.attempts for entry in entries} == {1}
    assert losses(ledger).items() <= undisturbed.items()


def test_only_one_of_two_workers_trains_a_single_row(
    crew: Crew, corpus: Corpus, undisturbed: dict[str, float]
) -> None:
    ledger = plan(crew, corpus, twelve_runs()[:1])
    crew.start(), crew.start()
    (entry,) = crew.until(all_done)
    crew.until_gone()
    assert entry.attempts == 1
    assert losses(ledger).items() <= undisturbed.items()


def test_a_suspended_worker_that_lost_its_run_records_nothing(crew: Crew, corpus: Corpus) -> None:
    long = spec(run_id="long", tokens=100_000 * RECIPE.batch_tokens, engine=Execution())
    ledger = plan(crew, corpus, [long])
    sleeper = crew.start()
    crew.until(running)
    os.kill(sleeper, signal.SIGSTOP)
    assert ledger.claim(alive_after=-1.0) == long, "as if it had been still for long"
    os.kill(sleeper, signal.SIGCONT)
    time.sleep(0.5)
    assert ledger.finish("long", {"run_id": "long", "loss": 4.25})
    crew.until_gone(sleeper)
    (entry,) = ledger.entries()
    assert (entry.state, entry.attempts, entry.owner) == (DONE, 2, ledger.owner)
    assert losses(ledger) == {"long": 4.25}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip(f"a disk of a chosen size cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def big_run() -> RunSpec:
    """Return a run whose checkpoint is far larger than the ledger."""
    shape = replace(SHAPE, hidden_size=64, intermediate_size=96)
    return spec(run_id="big", shape=shape, tokens=STEPS * RECIPE.batch_tokens, engine=Execution())


@pytest.fixture(scope="module")
def big_loss(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> object:
    return train_run(big_run(), corpus, tmp_path_factory.mktemp("big"))[0]["loss"]


def begun(crew: Crew, folder: Path) -> Path:
    """Train the big run until it has a checkpoint, kill its worker, and return the checkpoint."""
    path = folder / "runs" / "big" / "checkpoint.safetensors"
    killed = crew.start()
    crew.until(lambda _: path.exists())
    crew.kill(killed)
    assert crew.ledger.entries()[0].state == RUNNING
    return path


def loss_with_room(crew: Crew) -> object:
    """Retry the big run."""
    crew.ledger.retry()
    crew.start()
    crew.until(all_done)
    crew.until_gone()
    assert "damaged" not in crew.log.read_text()
    return losses(crew.ledger)["big"]


def test_previous_checkpoint_survives_a_full_disk(
    crew: Crew, corpus: Corpus, tmp_path: Path, big_loss: object
) -> None:
    plan(crew, corpus, [big_run()])
    kept = begun(crew, tmp_path / "sweep")
    content = kept.read_bytes()
    crew.start(largest_file=len(content) * 2 // 3)
    (entry,) = crew.until(lambda entries: entries[0].state == FAILED)
    crew.until_gone()
    assert "checkpoint.safetensors could not be written" in str(entry.message)
    assert "free space" in str(entry.message)
    assert kept.read_bytes() == content
    assert loss_with_room(crew) == big_loss


def test_a_full_disk_of_ledger_and_checkpoints_loses_nothing(
    starter: Popen[str], corpus: Corpus, small_disk: Path, big_loss: object
) -> None:
    folder = prepared(corpus, small_disk / "sweep")
    crew = Crew(starter, str(folder / "ledger.sqlite"), folder)
    plan(crew, corpus, [big_run()])
    kept = begun(crew, folder)
    content, filler = kept.read_bytes(), small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - len(content) // 2))
    crew.start()
    crew.until_gone()  # possibly not even the failure could be recorded
    assert crew.ledger.entries()[0].state in (RUNNING, FAILED)
    assert kept.read_bytes() == content
    filler.unlink()
    assert loss_with_room(crew) == big_loss


def test_a_damaged_checkpoint_is_noted_and_the_run_starts_again(
    crew: Crew, corpus: Corpus, tmp_path: Path, big_loss: object
) -> None:
    plan(crew, corpus, [big_run()])
    kept = begun(crew, tmp_path / "sweep")
    content = bytearray(kept.read_bytes())
    content[-1000] ^= 1
    kept.write_bytes(bytes(content))
    crew.start()
    (entry,) = crew.until(all_done)
    crew.until_gone()
    assert "checkpoint.safetensors is damaged" in str(entry.note)
    assert losses(crew.ledger) == {"big": big_loss}


@pytest.mark.parametrize("where", [0.0, 0.05, 0.5, 0.999])
def test_a_checkpoint_with_a_flipped_byte_is_detected(
    corpus: Corpus, tmp_path: Path, undisturbed: dict[str, float], where: float,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (run,) = twelve_runs()[:1]
    with pytest.raises(Killed):
        train_run(run, corpus, tmp_path, watch=killed_at(STEPS // 2), checkpoint_seconds=0.0)
    path = tmp_path / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(bytes(content))
    steps: list[int] = []
    (row,) = train_run(run, corpus, tmp_path, watch=steps.append)
    assert "checkpoint.safetensors is damaged" in caplog.text
    assert "begins again at step 0" in caplog.text
    assert steps[0] == 1
    assert row["loss"] == undisturbed[run.run_id]


@pytest.mark.parametrize("lost", [1, 1000])
def test_a_truncated_shard_is_refused_by_name(corpus: Corpus, tmp_path: Path, lost: int) -> None:
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    shard = tmp_path / "corpus" / "train.npy"
    os.truncate(shard, shard.stat().st_size - lost)
    with pytest.raises((InputError, WorkError), match=r"train\.npy"):
        train_run(spec(), Corpus.load(tmp_path / "corpus"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_nan_loss_is_recorded_and_left_out_of_a_fit_with_a_warning(
    crew: Crew, corpus: Corpus, undisturbed: dict[str, float], tmp_path: Path
) -> None:
    wild = replace(RECIPE, learning_rate=1e6, matrix_learning_rate=1e6, warmup=0.0)
    runs = [*twelve_runs()[:2], spec(run_id="wild", recipe=wild, engine=Execution())]
    ledger = plan(crew, corpus, runs)
    crew.start()
    entries = crew.until(lambda entries: not any(entry.row is None for entry in entries))
    crew.until_gone()
    assert [entry.state for entry in entries] == [DONE, DONE, DIVERGED]
    assert "loss is nan" in str(entries[2].message)
    write_runs(tmp_path / "runs.csv", ledger.table())
    table = load_runs(tmp_path / "runs.csv")
    assert table["run_id"].tolist() == ["run-00", "run-01"]
    assert table["loss"].tolist() == [undisturbed[name] for name in table["run_id"]]
    assert "diverged" in table.left_out["wild"]


@pytest.mark.xdist_group("postgres")
def test_restarts_of_the_database_during_a_sweep_lose_and_double_nothing(
    starter: Popen[str],
    corpus: Corpus,
    undisturbed: dict[str, float],
    postgres: Server,
    tmp_path: Path,
) -> None:
    folder = prepared(corpus, tmp_path / "sweep")
    crew = Crew(starter, postgres.url("restarts"), folder)
    ledger = plan(crew, corpus, twelve_runs())
    crew.start(), crew.start()
    for number, mode in enumerate(("fast", "immediate", "fast")):
        crew.until(lambda entries, done=3 * number: sum(map(is_done, entries)) >= done)  # type: ignore[misc]
        postgres.stop(mode)
        time.sleep(0.3)
        postgres.start()
    entries = crew.until(all_done)
    crew.until_gone()
    assert crew.log.read_text() == ""
    assert {entry.attempts for entry in entries} == {1}, "no row was lost, no row was doubled"
    assert losses(ledger) == undisturbed


def is_done(entry: Entry) -> bool:
    return entry.state == DONE
