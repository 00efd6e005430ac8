import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.entry import PLANNED, RUNNING, Entry
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.launchers import _base, _local, _ray
from shapelaw.trainers.sweep.launchers._base import MAX_DEATHS, End, Launcher, WorkerJob, supervise
from shapelaw.trainers.sweep.launchers._local import LocalLauncher, visible_devices
from shapelaw.trainers.sweep.launchers._ray import RayLauncher
from shapelaw.trainers.sweep.launchers._slurm import SlurmLauncher
from shapelaw.trainers.sweep.launchers.registry import LAUNCHERS, launcher_named, parse_options
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec
from support.small_runs import small_corpus, spec
from support.waiting import wait_until

RAY_NOISE = (
    # Ray leaves the log files and pipes of the processes that it starts to the garbage collector.
    "ignore:unclosed file:ResourceWarning",
    "ignore:unclosed .*socket:ResourceWarning",
    "ignore:subprocess \\d+ is still running:ResourceWarning",
    # Ray also warns of a future change of CUDA_VISIBLE_DEVICES for tasks without a GPU.
    "ignore:Tip. In future versions of Ray:FutureWarning",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def folder(corpus: Corpus, tmp_path: Path) -> Folder:
    """Return the folder of a sweep with a prepared corpus."""
    made = Folder(tmp_path / "sweep")
    made.path.mkdir()
    made.corpus.symlink_to(corpus.folder)
    return made


def plan(runs: int, tokens: int = 12_000) -> list[RunSpec]:
    return [spec(run_id=f"run{seed}", seed=seed, tokens=tokens) for seed in range(runs)]


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Any]]:
    """Return the losses of the first runs of the plan, trained one by one in this process."""
    known: dict[str, object] = {}

    def losses(runs: int) -> list[Any]:
        for run in plan(runs):
            if run.run_id not in known:
                folder = tmp_path_factory.mktemp(run.run_id)
                (row,) = train_run(run, corpus, folder)
                known[run.run_id] = row["loss"]
        return [known[run.run_id] for run in plan(runs)]

    return losses


Alone = Callable[[int], list[Any]]


# supervise: shared by all launchers


class Acted(Launcher):
    """Launcher whose workers end according to a script, one end per start."""

    several_machines = False

    def __init__(self, options: Mapping[str, str], ends: Sequence[End] = (End(),)) -> None:
        self.ends, self.started, self.stopped = list(ends), [0] * 8, 0

    def open(self, job: WorkerJob) -> None: ...

    def default_workers(self) -> int:
        return 1

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.started[number] += 1

    def look(self, number: int) -> End | None:
        return self.ends.pop(0) if self.ends else End()

    def stop(self) -> None:
        self.stopped += 1


JOB = WorkerJob(ledger="ledger.sqlite", folder=Path())
KILLED = End(reason="was ended by SIGKILL", again=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "POLL_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_a_killed_worker_is_restarted() -> None:
    launcher = Acted({}, [KILLED, End()])
    assert supervise(launcher, JOB, 1, lambda: 0.0) == ["was ended by SIGKILL"]
    assert (launcher.started[0], launcher.stopped) == (2, 1)


@pytest.mark.usefixtures("quick")
def test_a_worker_that_reports_an_error_is_not_restarted() -> None:
    launcher = Acted({}, [End(reason="failed: no corpus"), End()])
    assert supervise(launcher, JOB, 2, lambda: 0.0) == ["failed: no corpus"]
    assert launcher.started[:2] == [1, 1]


@pytest.mark.usefixtures("quick")
def test_workers_that_die_without_progress_are_not_restarted_for_ever() -> None:
    launcher = Acted({}, [KILLED] * 1000)
    assert len(supervise(launcher, JOB, 1, lambda: 0.0)) == MAX_DEATHS + 1
    assert launcher.started[0] == MAX_DEATHS + 1


@pytest.mark.usefixtures("quick")
def test_workers_that_die_with_progress_are_always_restarted() -> None:
    launcher = Acted({}, [KILLED] * (3 * MAX_DEATHS))
    done = iter(range(1000))
    supervise(launcher, JOB, 1, lambda: float(next(done)))
    assert launcher.started[0] == 3 * MAX_DEATHS + 1


@pytest.mark.usefixtures("quick")
def test_workers_are_stopped_after_the_last_run_and_after_an_error() -> None:
    launcher = Acted({})
    assert supervise(launcher, JOB, 1, lambda: None) == []
    assert launcher.stopped == 1

    def breaks() -> float:
        raise WorkError("the ledger is gone")

    with pytest.raises(WorkError):
        supervise(launcher, JOB, 1, breaks)
    assert launcher.stopped == 2


@pytest.mark.usefixtures("quick")
def test_sigterm_stops_the_workers_and_ends_with_143() -> None:
    launcher = Acted({})
    before = signal.getsignal(signal.SIGTERM)

    def terminated() -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    with pytest.raises(SystemExit) as stopped:
        supervise(launcher, JOB, 1, terminated)
    assert (stopped.value.code, launcher.stopped) == (143, 1)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("quick")
def test_a_sweep_can_run_in_a_thread() -> None:
    launcher = Acted({})
    thread = threading.Thread(target=supervise, args=(launcher, JOB, 1, lambda: 0.0))
    thread.start()
    thread.join(10)
    assert launcher.stopped == 1


# the local launcher


@pytest.mark.parametrize(
    ("count", "named", "found"),
    [
        (0, None, []),
        (2, None, ["0", "1"]),
        (2, "4,5", ["4", "5"]),
        (1, "GPU-8f", ["GPU-8f"]),
        (0, "", []),
    ],
)
def test_visible_gpus_are_those_of_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, count: int, named: str | None, found: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_devices() == found


def test_workers_get_gpus_in_turn_or_else_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[str] = []

    class Context:
        def Process(self, *, args: tuple[Any, ...], **_: object) -> SimpleNamespace:
            given.append(args[-1])
            return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr(_local.multiprocessing, "get_context", lambda _: Context())
    monkeypatch.setattr(_local, "visible_devices", lambda: ["3", "7"])
    launcher = LocalLauncher({})
    launcher.open(JOB)
    assert launcher.default_workers() == 2
    launcher.start(JOB, range(3))
    assert given == ["3", "7", "3"]
    monkeypatch.setattr(_local, "visible_devices", list)
    launcher.open(JOB)
    assert launcher.default_workers() == _local.cores()
    launcher.start(JOB, [0])
    assert given[-1] == ""


@pytest.mark.parametrize(
    ("device", "expected"), [("2", ("2", None)), ("", (None, "1"))], ids=["gpu", "cpu"]
)
def test_a_process_sets_its_device_and_threads_before_the_worker_runs(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: tuple[str | None, str | None]
) -> None:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setitem(os.environ, name, "")  # restored after the test
        del os.environ[name]
    seen: list[tuple[str | None, ...]] = []

    def work(*_: object, alive: Any, **__: object) -> None:
        seen.append((*(os.environ.get(name) for name in names), alive()))

    monkeypatch.setattr("shapelaw.trainers.sweep.worker.run_worker", work)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _local._process(JOB, os.getppid(), device)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [(*expected, True)]


def test_a_process_whose_worker_fails_prints_the_error_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = WorkerJob(ledger=str(tmp_path / "l.sqlite"), folder=tmp_path)
    with pytest.raises(SystemExit) as stopped:
        _local._process(job, os.getppid(), "")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("worker: ")


@pytest.mark.parametrize("terminated", [False, True])
def test_sigterm_while_a_process_ends_prints_no_traceback(tmp_path: Path, terminated: bool) -> None:
    ending = "os.kill(os.getpid(), signal.SIGTERM)"
    code = f"""
import atexit, os, signal
import shapelaw.trainers.sweep.worker
from shapelaw.trainers.sweep.launchers import _local
from shapelaw.trainers.sweep.launchers._base import WorkerJob
atexit.register(lambda: {ending})
shapelaw.trainers.sweep.worker.run_worker = lambda *_, **__: {ending if terminated else "None"}
_local._process(WorkerJob(ledger="l.sqlite", folder="."), os.getppid(), "")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == (_local.TERMINATED if terminated else 0)
    assert done.stderr == ""


def test_the_module_of_the_local_launcher_does_not_import_torch() -> None:
    code = "import sys, shapelaw.trainers.sweep.launchers._local; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (None, None),
        (0, End()),
        (1, End(reason="ended with code 1")),
        (-9, End(reason="was ended by SIGKILL", again=True)),
        (143, End(reason="was ended by SIGTERM", again=True)),
    ],
)
def test_a_process_ended_by_a_signal_can_be_restarted(code: int | None, end: End | None) -> None:
    launcher = LocalLauncher({})
    launcher.processes[0] = SimpleNamespace(exitcode=code)  # type: ignore[assignment]
    assert launcher.look(0) == end


# options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "local",
            {"gpus": "1"},
            "`--option` of local must be left out, as it has none, but got 'gpus'",
        ),
        ("ray", {"cpus": "1"}, "`--option` of ray must be one of address, num_cpus.* got 'cpus'"),
        ("ray", {"num_gpus": "-1"}, "`num_gpus >= 0` must hold for --option of ray, but got '-1'"),
        ("ray", {"memory": "nan"}, "`memory >= 0` must hold"),
        ("slurm", {"cluster": "lsf"}, "`cluster` must be one of slurm, local, but got 'lsf'"),
        ("pbs", {}, "`--launcher` must be one of local, ray, slurm, but got 'pbs'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        launcher_named(name, options)


def test_an_option_needs_a_name_and_a_value() -> None:
    assert parse_options(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for text in ("partition", "=gpu"):
        with pytest.raises(InputError, match="`--option NAME=VALUE` must hold"):
            parse_options([text])


@pytest.mark.slow
def test_options_of_submitit_keep_its_names_and_types() -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    options = {
        "partition": "gpu", "timeout_min": "90", "mem_gb": "3.5", "array_parallelism": "4",
        "setup": "module load cuda; source venv/bin/activate", "exclusive": "true",
    }  # fmt: skip
    launcher = SlurmLauncher(options)
    assert launcher.parameters == {
        "name": "shapelaw", "timeout_min": 90, "cpus_per_task": 1, "mem_gb": 3.5,
        "slurm_partition": "gpu", "slurm_array_parallelism": 4, "slurm_exclusive": True,
        "slurm_setup": ["module load cuda", "source venv/bin/activate"],
    }  # fmt: skip
    for wrong, message in (
        ({"timeout_min": "1h"}, "`timeout_min` must be of type int, but got '1h'"),
        ({"queue": "gpu"}, "must be one of account, .* but got 'queue'"),
    ):
        with pytest.raises(InputError, match=message):
            SlurmLauncher(wrong)


@pytest.mark.slow
def test_slurm_launcher_is_refused_without_slurm_or_a_number_of_jobs(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    launcher = SlurmLauncher({})
    with pytest.raises(InputError, match=r"there is no SLURM here .* cluster=local for a trial"):
        launcher.open(WorkerJob(ledger="", folder=tmp_path))
    with pytest.raises(InputError, match="`--workers N` must be given with --launcher slurm"):
        launcher.default_workers()


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"`pip install \"shapelaw\[{name}\]\"`"):
        launcher_named(name).open(WorkerJob(ledger="", folder=tmp_path))


# contract of every launcher, with real workers


class Place(NamedTuple):
    """Launcher by name, with the options to run it here."""

    name: str
    options: dict[str, str]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "ray":
        return Place("ray", {"address": request.getfixturevalue("cluster").address})
    if request.param == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed")
        return Place("slurm", {"cluster": "local"})
    return Place(request.param, {})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a Ray cluster of a head without cores and two nodes of one core on this machine."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        # Short intervals of health checks, so that a killed node is detected within seconds; no
        # usage reports.
        patched.setenv("RAY_health_check_period_ms", "500")
        patched.setenv("RAY_health_check_failure_threshold", "3")
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        made = Cluster()
        try:
            for cpus in (0, 1, 1):
                added(made, cpus)
            made.wait_for_nodes()
            yield made
        finally:
            made.shutdown()


def added(cluster: Any, num_cpus: int) -> Any:
    """Add a node; repeat, because Ray gives up after 30 s, which a busy machine may need."""
    for attempt in range(3):
        try:
            return cluster.add_node(**node(num_cpus))
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == 2:
                raise
    raise AssertionError


def node(num_cpus: int) -> dict[str, Any]:
    small = 80 * 2**20
    return {"num_cpus": num_cpus, "object_store_memory": small, "include_dashboard": False}


noisy = [pytest.mark.filterwarnings(text) for text in RAY_NOISE]
every_launcher = pytest.mark.parametrize(
    "place",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.xdist_group(name), *noisy])
        for name in LAUNCHERS
    ],
    indirect=True,
)


@every_launcher
def test_a_plan_with_a_killed_worker_gives_the_losses_of_training_one_by_one(
    corpus: Corpus, folder: Folder, alone: Alone, place: Place
) -> None:
    killed: list[str] = []

    def kill_one(entries: list[Entry]) -> None:
        for entry in entries:
            if entry.state == RUNNING and entry.pid and not killed:
                killed.append(entry.run_id)
                os.kill(entry.pid, signal.SIGKILL)

    launcher = launcher_named(*place)
    table = run_plan(plan(3), corpus, folder, workers=2, launcher=launcher, report=kill_one)
    assert table["loss"].tolist() == alone(3)
    assert len(killed) == 1
    attempts = {entry.run_id: entry.attempts for entry in Ledger(folder.ledger).entries()}
    assert attempts == {run.run_id: 1 + (run.run_id in killed) for run in plan(3)}
    launcher.stop()  # a second time


@every_launcher
def test_a_worker_that_fails_is_reported_with_its_reason(
    corpus: Corpus, folder: Folder, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = launcher_named(*place)
    folder.corpus.unlink()
    with pytest.raises(WorkError, match="2 of 2 runs did not finish; run0 planned: its worker"):
        run_plan(plan(2), corpus, folder, workers=1, launcher=launcher)


@every_launcher
def test_stop_ends_the_workers(corpus: Corpus, folder: Folder, place: Place) -> None:
    pids: list[int] = []

    def stop(entries: list[Entry]) -> None:
        pids.extend(entry.pid for entry in entries if entry.state == RUNNING and entry.pid)
        if pids:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(
            plan(1, tokens=10_000_000), corpus, folder, workers=1,
            launcher=launcher_named(*place), report=stop,
        )  # fmt: skip
    wait_until(lambda: not exists(pids[0]), "the end of the worker")
    if place.name != "ray":  # Ray ends a task without a message
        (entry,) = Ledger(folder.ledger).entries()
        assert (entry.state, entry.attempts) == (PLANNED, 1), "the run was given back"


@pytest.mark.slow
def test_jobs_started_from_a_background_command_can_be_cancelled(
    corpus: Corpus, folder: Folder
) -> None:
    pytest.importorskip("submitit")
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts it with &
    try:
        test_stop_ends_the_workers(corpus, folder, Place("slurm", {"cluster": "local"}))
    finally:
        assert signal.signal(signal.SIGINT, usual) is signal.SIG_IGN


def exists(pid: int) -> bool:
    from shapelaw.trainers.ledger.liveness import process_exists

    return process_exists(pid)


# tests specific to Ray and SLURM


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings(*RAY_NOISE)
def test_a_ray_node_killed_during_a_sweep_loses_and_doubles_no_run(
    corpus: Corpus, folder: Folder, alone: Alone, cluster: Any
) -> None:
    runs = plan(5)
    victim = added(cluster, 1)
    launcher = launcher_named("ray", {"address": cluster.address})
    ledger = Ledger(folder.ledger)
    lost: list[str] = []
    raylets = {info.process.pid for info in victim.all_processes["raylet"]}

    def kill_node(entries: list[Entry]) -> None:
        busy = {entry.pid: entry.run_id for entry in entries if entry.state == RUNNING}
        mine = [pid for pid in busy if pid and parent_of(pid) in raylets]
        if mine and not lost and len(busy) == 3:
            lost.append(busy[mine[0]])
            cluster.remove_node(victim, allow_graceful=False)

    table = run_plan(runs, corpus, folder, workers=3, launcher=launcher, report=kill_node)
    assert lost, "a node was killed while it trained"
    assert table["run_id"].tolist() == [run.run_id for run in runs]
    assert table["loss"].tolist() == alone(5)
    attempts = {entry.run_id: entry.attempts for entry in ledger.entries()}
    assert attempts == {run.run_id: 2 if run.run_id in lost else 1 for run in runs}


def parent_of(pid: int) -> int | None:
    """Return the parent of a process: for a worker of Ray the raylet of its node."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings(*RAY_NOISE)
def test_ray_uses_the_whole_cluster_by_default(cluster: Any, tmp_path: Path) -> None:
    job = WorkerJob(ledger="", folder=tmp_path)
    for options, workers in (({}, 2), ({"num_cpus": "0.5"}, 4), ({"num_cpus": "2"}, 1)):
        launcher = RayLauncher({"address": cluster.address, **options})
        try:
            launcher.open(job)
            assert launcher.default_workers() == workers
        finally:
            launcher.stop()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["option", "variable", "last cluster"])
def test_an_unreachable_ray_cluster_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    nobody = "127.0.0.1:1"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(_ray, "CURRENT_CLUSTER", tmp_path / "current")
    options = {"address": nobody} if way == "option" else {}
    if way == "variable":
        monkeypatch.setenv("RAY_ADDRESS", nobody)
    if way == "last cluster":
        (tmp_path / "current").write_text(nobody + "\n")
    with pytest.raises(InputError, match=r"no Ray cluster answers at .*`ray start --head`"):
        RayLauncher(options).open(WorkerJob(ledger="", folder=tmp_path))


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_a_job_at_its_time_limit_is_queued_again_and_resumes(
    corpus: Corpus, folder: Folder, alone: Alone
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    launcher = SlurmLauncher({"cluster": "local"})
    told: list[int] = []

    def time_is_up(entries: list[Entry]) -> None:
        for entry in entries:
            if entry.state == RUNNING and entry.pid and not told:
                told.append(entry.pid)
                os.kill(entry.pid, signal.SIGUSR2)

    table = run_plan(plan(1), corpus, folder, workers=1, launcher=launcher, report=time_is_up)
    assert told
    assert table["loss"].tolist() == alone(1)
    (entry,) = Ledger(folder.ledger).entries()
    assert (entry.attempts, entry.state) == (2, "done")
    (log,) = (folder.path / "slurm").glob("*_0_log.err")
    assert "this job is preempted" in log.read_text()
