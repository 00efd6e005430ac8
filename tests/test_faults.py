"""What can go wrong in a long sweep, done for real: killed, stopped, starved and restarted."""

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pytest

from postgres import Server
from scaling.errors import InputError, WorkError
from scaling.runs import load_runs, write_runs
from test_loop import RECIPE, SHAPE, Killed, killed_at, small_corpus, spec
from trainers.corpus import Corpus
from trainers.ledger import DIVERGED, DONE, FAILED, RUNNING, Entry, Ledger
from trainers.liveness import process_exists
from trainers.loop import train
from trainers.spec import RunSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked"),
]
KILLS = 30
ROWS = 12
STEPS = 60
PATIENCE = 240.0  # seconds, on a machine that is busy with something else


def twelve_runs() -> list[RunSpec]:
    return [spec(run_id=f"run-{n:02d}", seed=n, tokens=STEPS * RECIPE.batch_tokens)
            for n in range(ROWS)]  # fmt: skip


@dataclass(frozen=True)
class Undisturbed:
    """What the rows come to when nothing goes wrong."""

    losses: dict[str, float]
    seconds: float


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(spec(tokens=RECIPE.batch_tokens), corpus, folder / "warm")
    begun = time.monotonic()
    losses = {run.run_id: float(train(run, corpus, folder / run.run_id)["loss"])  # type: ignore[arg-type]
              for run in twelve_runs()}  # fmt: skip
    assert len(set(losses.values())) == ROWS, "every row has a loss of its own"
    return Undisturbed(losses=losses, seconds=time.monotonic() - begun)


class Crew:
    """Workers of one sweep, each a process of its own."""

    def __init__(self, address: str, folder: Path, **options: object) -> None:
        script = Path(__file__).parent / "fault_workers.py"
        command = [sys.executable, str(script), address, str(folder), json.dumps(options)]
        self.log = folder / f"log-{time.monotonic_ns()}"
        with self.log.open("w") as errors:
            self._starter = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ledger = Ledger(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._starter.kill()
        self._starter.communicate()

    def start(self) -> int:
        """One more worker."""
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write("\n")
        self._starter.stdin.flush()
        return int(self._starter.stdout.readline())

    def until(self, reached: Callable[[list[Entry]], bool]) -> list[Entry]:
        """Wait until the entries of the ledger are as asked for."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            entries = self.ledger.entries()
            if reached(entries):
                return entries
            time.sleep(0.02)
        raise AssertionError(f"{entries}\n{self.log.read_text()}")

    def until_gone(self, *workers: int) -> None:
        """Wait until workers have ended."""
        end = time.monotonic() + PATIENCE
        while any(map(process_exists, workers)):
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


def all_done(entries: list[Entry]) -> bool:
    return all(entry.state == DONE for entry in entries)


def running(entries: list[Entry]) -> bool:
    return any(entry.state == RUNNING and entry.step > 0 for entry in entries)


def losses(ledger: Ledger) -> dict[str, float]:
    table = ledger.table()
    assert not table["run_id"].duplicated().any()
    return dict(zip(table["run_id"], table["loss"], strict=True))


@pytest.fixture
def sweep(corpus: Corpus, tmp_path: Path) -> Path:
    """The folder of a sweep whose corpus is prepared."""
    shutil.copytree(corpus.folder, tmp_path / "sweep" / "corpus")
    return tmp_path / "sweep"


def planned(address: str, corpus: Corpus, runs: list[RunSpec]) -> Ledger:
    ledger = Ledger(address)
    ledger.plan(runs, [run.identity(corpus) for run in runs])
    return ledger


def share_left(entries: list[Entry]) -> float:
    return sum(1 - entry.step / entry.steps for entry in entries) / len(entries)


def test_thirty_kills_lose_no_row_double_none_and_change_no_loss(
    corpus: Corpus, sweep: Path, undisturbed: Undisturbed
) -> None:
    address, draw = str(sweep / "ledger.sqlite"), random.Random(9)
    ledger = planned(address, corpus, twelve_runs())
    ended: dict[str, float | None] = {}
    hits = 0
    with Crew(address, sweep) as crew:
        workers = [crew.start(), crew.start()]
        for kills_left in range(KILLS, 0, -1):
            # As much work between two kills as lets all of them fall before the end.
            span = share_left(ledger.entries()) * undisturbed.seconds / (kills_left + 3)
            time.sleep(draw.uniform(0.0, span))
            killed = workers.pop(draw.randrange(2))
            hits += killed in {e.pid for e in ledger.entries() if e.state == RUNNING}
            os.kill(killed, signal.SIGKILL)
            crew.until_gone(killed)
            for entry in ledger.entries():
                if entry.state == DONE:
                    assert ended.setdefault(entry.run_id, entry.ended) == entry.ended, "done twice"
            workers.append(crew.start())
        assert len(ended) < ROWS, "every kill fell while there was work"
        entries = crew.until(all_done)
        crew.until_gone(*workers)
    assert hits >= KILLS / 3, "most of the killed were at work"
    assert sum(entry.attempts for entry in entries) >= ROWS + hits - 2
    assert losses(ledger) == undisturbed.losses


def test_a_ledger_that_is_locked_for_seconds_stops_no_worker(
    corpus: Corpus, sweep: Path, undisturbed: Undisturbed
) -> None:
    address = str(sweep / "ledger.sqlite")
    ledger = planned(address, corpus, twelve_runs()[:6])
    with Crew(address, sweep) as crew:
        workers = [crew.start(), crew.start()]
        for _ in range(2):
            crew.until(running)
            with closing(sqlite3.connect(address, timeout=60, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                time.sleep(2.0)
                assert all(map(process_exists, workers))
        entries = crew.until(all_done)
        crew.until_gone(*workers)
        assert "Error" not in crew.log.read_text()
    assert {entry.attempts for entry in entries} == {1}
    assert losses(ledger).items() <= undisturbed.losses.items()


def test_a_clock_that_jumps_by_days_takes_no_row_from_a_living_worker(
    corpus: Corpus, sweep: Path, undisturbed: Undisturbed
) -> None:
    address = str(sweep / "ledger.sqlite")
    ledger = planned(address, corpus, twelve_runs()[:6])
    with Crew(address, sweep, clock_jumps=True) as crew:
        workers = [crew.start(), crew.start()]
        entries = crew.until(all_done)
        crew.until_gone(*workers)
    assert {entry.attempts for entry in entries} == {1}
    assert losses(ledger).items() <= undisturbed.losses.items()


def test_of_two_workers_on_one_row_one_trains_it(
    corpus: Corpus, sweep: Path, undisturbed: Undisturbed
) -> None:
    address = str(sweep / "ledger.sqlite")
    ledger = planned(address, corpus, twelve_runs()[:1])
    with Crew(address, sweep) as crew:
        workers = [crew.start(), crew.start()]
        (entry,) = crew.until(all_done)
        crew.until_gone(*workers)
    assert entry.attempts == 1
    assert losses(ledger).items() <= undisturbed.losses.items()


def test_a_worker_that_wakes_up_too_late_records_nothing(corpus: Corpus, sweep: Path) -> None:
    address = str(sweep / "ledger.sqlite")
    long = spec(run_id="long", tokens=100_000 * RECIPE.batch_tokens)
    ledger = planned(address, corpus, [long])
    with Crew(address, sweep) as crew:
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
    """A folder on a disk of a few MiB."""
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
    """One whose checkpoint is far larger than the ledger."""
    shape = replace(SHAPE, hidden_size=64, intermediate_size=96)
    return spec(run_id="big", shape=shape, tokens=120 * RECIPE.batch_tokens)


def checkpoint_of_big(folder: Path) -> Path:
    return folder / "runs" / "big" / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def big_loss(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> object:
    return train(big_run(), corpus, tmp_path_factory.mktemp("big"))["loss"]


def begun(address: str, folder: Path) -> bytes:
    """Train the big run until it has a checkpoint, then kill its worker; the checkpoint."""
    path = checkpoint_of_big(folder)
    with Crew(address, folder) as crew:
        killed = crew.start()
        crew.until(lambda _: path.exists())
        os.kill(killed, signal.SIGKILL)
        crew.until_gone(killed)
        assert crew.ledger.entries()[0].state == RUNNING
    return path.read_bytes()


def finished_after(address: str, folder: Path) -> tuple[Ledger, str]:
    """Try again with room; the ledger, and what the worker said."""
    with Crew(address, folder) as crew:
        crew.ledger.retry()
        last = crew.start()
        crew.until(all_done)
        crew.until_gone(last)
        return crew.ledger, crew.log.read_text()


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_it(
    corpus: Corpus, sweep: Path, big_loss: object
) -> None:
    address, kept = str(sweep / "ledger.sqlite"), checkpoint_of_big(sweep)
    planned(address, corpus, [big_run()])
    size = len(begun(address, sweep))
    with Crew(address, sweep, largest_file=size * 2 // 3) as crew:
        worker = crew.start()
        (entry,) = crew.until(lambda entries: entries[0].state == FAILED)
        crew.until_gone(worker)
    assert "checkpoint.safetensors could not be written" in str(entry.message)
    assert "free space" in str(entry.message)
    assert kept.stat().st_size == size
    ledger, said = finished_after(address, sweep)
    assert "damaged" not in said
    assert losses(ledger) == {"big": big_loss}


def test_a_full_disk_under_ledger_and_checkpoints_loses_nothing(
    corpus: Corpus, small_disk: Path, big_loss: object
) -> None:
    folder = small_disk / "sweep"
    shutil.copytree(corpus.folder, folder / "corpus")
    address, kept = (
        str(folder / "ledger.sqlite"),
        folder / "runs" / "big" / "checkpoint.safetensors",
    )
    planned(address, corpus, [big_run()])
    size = len(begun(address, folder))
    room = shutil.disk_usage(small_disk).free
    with Crew(address, folder) as crew:  # its log is on that disk, and is made while there is room
        filler = small_disk / "filler"
        filler.write_bytes(bytes(room - size // 2))
        worker = crew.start()
        crew.until(lambda entries: entries[0].state == FAILED or not process_exists(worker))
        crew.until_gone(worker)
        filler.unlink()
    assert kept.stat().st_size == size
    ledger, said = finished_after(address, folder)
    assert "damaged" not in said
    assert losses(ledger) == {"big": big_loss}


@pytest.mark.parametrize("where", [0.0, 0.05, 0.5, 0.999])
def test_a_checkpoint_with_a_flipped_byte_is_found_out(
    corpus: Corpus, tmp_path: Path, undisturbed: Undisturbed, where: float,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (run,) = twelve_runs()[:1]
    with pytest.raises(Killed):
        train(run, corpus, tmp_path, watch=killed_at(STEPS // 2), checkpoint_seconds=0.0)
    path = tmp_path / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(bytes(content))
    steps: list[int] = []
    row = train(run, corpus, tmp_path, watch=steps.append)
    assert "checkpoint.safetensors is damaged" in caplog.text
    assert "begins again at step 0" in caplog.text
    assert steps[0] == 1
    assert row["loss"] == undisturbed.losses[run.run_id]


@pytest.mark.parametrize("lost", [1, 1000])
def test_a_shard_that_lost_its_end_is_one_clear_error(
    corpus: Corpus, tmp_path: Path, lost: int
) -> None:
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    shard = tmp_path / "corpus" / "train.npy"
    os.truncate(shard, shard.stat().st_size - lost)
    with pytest.raises((InputError, WorkError), match=r"train\.npy"):
        train(spec(), Corpus.load(tmp_path / "corpus"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_nan_loss_is_recorded_and_enters_no_fit_in_silence(
    corpus: Corpus, sweep: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    wild = replace(RECIPE, learning_rate=1e6, matrix_learning_rate=1e6, warmup=0.0)
    runs = [*twelve_runs()[:2], spec(run_id="wild", recipe=wild)]
    address = str(sweep / "ledger.sqlite")
    ledger = planned(address, corpus, runs)
    with Crew(address, sweep) as crew:
        worker = crew.start()
        entries = crew.until(lambda entries: not any(e.row is None for e in entries))
        crew.until_gone(worker)
    assert [entry.state for entry in entries] == [DONE, DONE, DIVERGED]
    assert "loss is nan" in str(entries[2].message)
    write_runs(tmp_path / "runs.csv", ledger.table())
    table = load_runs(tmp_path / "runs.csv")
    assert (
        dict(zip(table["run_id"], table["loss"], strict=True)).items() <= undisturbed.losses.items()
    )
    assert len(table) == 2
    assert "wild" in str(table.attrs["left_out"])
    assert "diverged" in str(table.attrs["left_out"])


@pytest.mark.xdist_group("postgres")
def test_restarts_of_the_database_in_the_middle_lose_and_double_nothing(
    corpus: Corpus, sweep: Path, undisturbed: Undisturbed, postgres: Server
) -> None:
    address = postgres.url("restarts")
    ledger = planned(address, corpus, twelve_runs())
    with Crew(address, sweep) as crew:
        workers = [crew.start(), crew.start()]
        for number, mode in enumerate(("fast", "immediate", "fast", "immediate")):
            crew.until(lambda entries, done=3 * number: sum(map(is_done, entries)) >= done)  # type: ignore[misc]
            postgres.stop(mode)
            time.sleep(0.3)
            postgres.start()
        entries = crew.until(all_done)
        crew.until_gone(*workers)
        assert "Error" not in crew.log.read_text()
    assert {entry.attempts for entry in entries} == {1}, "no row was lost, no row was doubled"
    assert losses(ledger) == undisturbed.losses


def is_done(entry: Entry) -> bool:
    return entry.state == DONE
