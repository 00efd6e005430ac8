import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from scaling.errors import InputError, WorkError
from scaling.runs import COLUMNS
from scaling.shape import INTEGER_FIELDS
from test_loop import RECIPE, SHAPE, small_corpus, spec
from trainers import sweep
from trainers.corpus import Corpus
from trainers.ledger import DONE, FAILED, PLANNED, RUNNING, Entry, Ledger
from trainers.loop import train
from trainers.optim import Recipe
from trainers.spec import RunSpec
from trainers.sweep import Folder, existing_ledger, read_plan, run_name, run_plan, worker

SHAPE_COLUMNS = ",".join(name for name in INTEGER_FIELDS if name != "vocab_size")
ROW = "16,32,2,2,1,8"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def folder(corpus: Corpus, tmp_path: Path) -> Folder:
    """A sweep's folder whose corpus is prepared."""
    made = Folder(tmp_path / "sweep")
    shutil.copytree(corpus.folder, made.corpus)
    return made


def three_runs() -> list[RunSpec]:
    wild = replace(RECIPE, learning_rate=1e6, matrix_learning_rate=1e6, warmup=0.0)
    return [
        spec(run_id="muon"),
        spec(run_id="adamw", recipe=replace(RECIPE, optimizer="adamw"), seed=3),
        spec(run_id="wild", recipe=wild),
        spec(run_id="short", tokens=128, data_seed=4),
    ]


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be the worker: the same code without the start of another Python."""

    def work(folder: Folder, workers: int, report: object) -> None:
        take_runs(folder, os.getppid())

    monkeypatch.setattr(sweep, "_work", work)


def take_runs(folder: Folder, parent: int) -> None:
    """Be a worker, which ignores Ctrl-C, and listen to it again."""
    before = signal.getsignal(signal.SIGINT)
    try:
        worker(str(folder.path), parent)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_sweep_gives_the_losses_of_training_one_by_one(
    corpus: Corpus, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Entry]] = []
    table = run_plan(three_runs(), corpus, folder, workers=2, report=seen.append)
    assert set(COLUMNS) <= set(table.columns)
    found = table.set_index("run_id")
    for run in three_runs():
        if run.run_id != "wild":
            alone = train(run, corpus, tmp_path / run.run_id)
            assert found.loc[run.run_id, "loss"] == alone["loss"]
            assert found.loc[run.run_id, "bits_per_byte"] == alone["bits_per_byte"]
    assert pd.isna(found.loc["wild", "loss"])
    assert found["status"].to_dict() == {
        "muon": "done", "adamw": "done", "wild": "diverged", "short": "done",
    }  # fmt: skip
    assert all(entry.row is not None for entry in seen[-1])

    def never(*_: object) -> None:
        raise AssertionError("a finished run would be trained again")

    monkeypatch.setattr(sweep, "_work", never)
    again = run_plan(three_runs(), corpus, folder, workers=2)
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_a_longer_plan_trains_only_what_is_new(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    first = run_plan([spec(run_id="a")], corpus, folder)
    trained: list[str] = []

    def counted(run: RunSpec, *arguments: object, **options: object) -> dict[str, object]:
        trained.append(run.run_id)
        return train(run, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "train", counted)
    both = run_plan([spec(run_id="a"), spec(run_id="b", seed=1)], corpus, folder)
    assert trained == ["b"]
    assert both.loc[0, "seconds"] == first.loc[0, "seconds"]


def test_the_table_holds_the_runs_that_were_asked_for(
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


def test_a_failed_run_is_named_and_the_same_call_goes_on_from_there(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    plan = [spec(run_id="good"), spec(run_id="bad", seed=1)]

    def fails_once(run: RunSpec, *arguments: object, **options: object) -> dict[str, object]:
        if run.run_id == "bad":
            raise OSError(28, "No space left on device")
        return train(run, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "train", fails_once)
    words = "1 of 2 runs did not finish; bad failed: OSError.*No space left.* start again to go on"
    with pytest.raises(WorkError, match=words):
        run_plan(plan, corpus, folder)
    monkeypatch.setattr(sweep, "train", train)
    assert run_plan(plan, corpus, folder)["status"].tolist() == ["done", "done"]


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_any_error_of_a_run_is_kept_in_the_ledger_and_ends_no_other_run(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    in_process(monkeypatch)

    def breaks(run: RunSpec, *arguments: object, **options: object) -> dict[str, object]:
        if run.run_id == "bad":
            raise error("a defect")
        return train(run, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "train", breaks)
    with pytest.raises(WorkError, match=r"1 of 2 runs did not finish; bad failed: .*a defect"):
        run_plan([spec(run_id="bad"), spec(run_id="good", seed=1)], corpus, folder)
    found = {entry.run_id: entry.state for entry in existing_ledger(folder.path).entries()}
    assert found == {"bad": FAILED, "good": DONE}


def test_a_worker_whose_parent_is_gone_stops_and_leaves_its_run_to_others(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(folder.ledger)
    ledger.plan([spec(run_id="a")], [spec(run_id="a").identity(corpus)])
    parents = iter([7, 7, 7])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    take_runs(folder, 7)
    assert [entry.state for entry in ledger.entries()] == [RUNNING]
    assert ledger.claim(alive_after=-1.0) == spec(run_id="a")


def test_a_worker_without_its_parent_takes_nothing(
    corpus: Corpus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(folder.ledger)
    ledger.plan([spec(run_id="a")], ["a"])
    monkeypatch.setattr(os, "getppid", lambda: 1)
    take_runs(folder, 7)
    assert [entry.state for entry in ledger.entries()] == [PLANNED]


def test_a_disk_without_room_is_told_before_anything_is_written(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
    out = tmp_path / "new" / "sweep"
    words = r"sweep needs about 64 MiB, but 5 MiB are free; free space or choose another --out"
    with pytest.raises(WorkError, match=words):
        run_plan([spec()], corpus, Folder(out))
    assert not out.exists()


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no ledger\.sqlite; give the --out folder"):
        existing_ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []


def written(path: Path, text: str) -> Path:
    (path / "plan.csv").write_text(text)
    return path / "plan.csv"


def test_a_plan_needs_a_shape_and_tokens_only(corpus: Corpus, tmp_path: Path) -> None:
    plan = written(tmp_path, f"{SHAPE_COLUMNS},tokens\n{ROW},1e5\n{ROW},200000\n")
    first, second = read_plan(plan, corpus, RECIPE)
    assert first.shape == replace(SHAPE, qk_norm=False)
    assert (first.tokens, second.tokens) == (100_000, 200_000)
    assert (first.seed, first.data_seed, first.role, first.recipe) == (0, 0, "proxy", RECIPE)
    assert first.run_id == run_name(first.shape, 100_000, 0) == "d16-L2-h2-1x8-f32-t100000-s0"


def test_a_plan_may_choose_names_seeds_roles_and_the_recipe(corpus: Corpus, tmp_path: Path) -> None:
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
    "tokens in words": (f"{HEADER}\n{ROW},1e5\n{ROW},many\n", "line 3: `tokens > 0`.*many"),
    "negative tokens": (f"{HEADER}\n{ROW},-5\n", "line 2: `tokens > 0` .* got -5"),
    "key-value heads": (
        f"{HEADER}\n{ROW},1e5\n16,32,2,4,3,8,1e5\n",
        "line 3: `num_attention_heads % num_key_value_heads == 0` must hold, but got 4 and 3",
    ),
    "half a layer": (f"{HEADER}\n16,32,2.5,2,1,8,1e5\n", "line 2: `num_hidden_layers` must be"),
    "a field in words": (f"{HEADER}\nwide,32,2,2,1,8,1e5\n", "line 2: `hidden_size` must be"),
    "an empty field": (f"{HEADER}\n{ROW},1e5\n,32,2,2,1,8,1e5\n", "line 3: .*`hidden_size`"),
    "odd head": (f"{HEADER}\n16,32,2,2,1,7,1e5\n", "line 2: `head_dim % 2 == 0` must hold"),
    "vocabulary": (
        f"{HEADER},vocab_size\n{ROW},1e5,512\n",
        "line 2: `vocab_size` must be the corpus's 256, but got 512",
    ),
    "optimizer": (f"{HEADER},optimizer\n{ROW},1e5,lion\n", "line 2: `optimizer` must be one of"),
    "switch": (f"{HEADER},qk_norm\n{ROW},1e5,maybe\n", "line 2: `qk_norm` must be true or false"),
    "seed in words": (f"{HEADER},seed\n{ROW},1e5,first\n", "line 2: .*first"),
    "half a seed": (f"{HEADER},seed\n{ROW},1e5,1.5\n", "line 2: .*seed.*1.5"),
    "negative data seed": (f"{HEADER},data_seed\n{ROW},1e5,-1\n", "line 2: .*data_seed.*-1"),
    "half a context": (
        f"{HEADER},context_length\n{ROW},1e5,32.5\n", "line 2: .*context_length.*32.5",
    ),
    "negative rate": (f"{HEADER},learning_rate\n{ROW},1e5,-1\n", "line 2: .*learning_rate.*-1"),
    "twice": (f"{HEADER}\n{ROW},1e5\n{ROW},1e5\n", "every row must differ in shape"),
    "no rows": (f"{HEADER}\n", "has no rows"),
    "no text": ("", "is not a CSV or Parquet table"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_plan_is_refused_with_its_line(
    corpus: Corpus, tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read_plan(written(tmp_path, text), corpus, RECIPE)


def processes_of_session(session: int) -> list[int]:
    """Living processes that a command, the leader of its own session, has left."""
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
def test_a_killed_sweep_ends_with_the_losses_of_an_undisturbed_one(
    corpus: Corpus, tmp_path: Path
) -> None:
    rows = [f"{16 * width},32,2,2,1,8,{30_000 + 5_000 * width},32,8" for width in (1, 2, 1, 2)]
    lines = [f"{row},{seed}" for seed, row in enumerate(rows)]
    plan = written(tmp_path, f"{HEADER},context_length,sequences,seed\n" + "\n".join(lines) + "\n")
    source = Path(corpus.folder).parent / "small.txt"
    out = tmp_path / "sweep"
    arguments = ["sweep", "run", str(plan), "--corpus", str(source), "--out", str(out)]
    command = [sys.executable, "-c", "from search.cli import main; main()", *arguments]
    command += ["--workers", "2"]
    wait = random.Random(time.time_ns()).uniform(0, 1)
    with (tmp_path / "stderr").open("w") as log:
        started = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        while done_rows(out) == 0 and started.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(wait)
    finally:
        started.kill()
        started.wait()
    before = existing_ledger(out).table().set_index("run_id")
    assert len(before) >= 1, (tmp_path / "stderr").read_text()
    again = [*command[:3], *arguments, "--workers", "1", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(again, **pipes) as restarted:  # type: ignore[call-overload]
        end = time.monotonic() + 5
        while processes_of_session(started.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert processes_of_session(started.pid) == [], "workers outlive the killed command"
        output, errors = restarted.communicate(timeout=120)
        assert restarted.returncode == 0, (wait, errors)
    after = existing_ledger(out).table().set_index("run_id")
    assert (after.loc[before.index, "seconds"] == before["seconds"]).all(), "trained twice"
    printed = {row["run_id"]: row["loss"] for row in json.loads(output)}
    prepared = Corpus.load(out / "corpus")
    for run in read_plan(plan, prepared, Recipe()):
        wanted = train(run, prepared, tmp_path / "alone" / run.run_id)["loss"]
        assert after.loc[run.run_id, "loss"] == wanted, wait
        assert printed[run.run_id] == wanted
