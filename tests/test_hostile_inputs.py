"""Malformed documents and options: one error line, exit code 2, and nothing left behind.

Each example changes one document that a command reads, or one option, and runs the command in a
fork. The slow suite runs over 2,000 examples, the fast one a few for each document.
"""

import json
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
import typer
import zstandard
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.files import data_folder
from shapelaw.search.autopilot.autopilot_plan import AutopilotSettings
from shapelaw.search.autopilot.record import DECISIONS, DecisionRecord, LoopSettings, keep_record
from shapelaw.search.cli import app
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.study.storage import open_storage
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec
from support.hostile_inputs import (
    VALUES,
    Content,
    Outcome,
    bad_documents,
    bad_lines,
    bad_options,
    bad_texts,
    damaged_bytes,
    run_forked,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands run in forks")
# Two groups, each of which a worker of pytest-xdist runs.
DOCUMENTS, OTHERS = (pytest.mark.xdist_group(f"hostile {name}") for name in ("files", "others"))
FAST, SLOW = 5, 66  # examples of each document; in the slow suite over 2,000 together
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 256,
}  # fmt: skip
SEARCH = (
    "propose --params 200M --tokens 4B --engine roofline:h100 --layers 12 --head-dim 64 "
    "--vocab 32000 --measurements 3 --estimated 20 --no-cache"
)
PAPER = f"{SEARCH} --law paper-2510.18245"
TABLE_COMMANDS = (
    "data show runs.csv", "fit runs.csv --law chinchilla --starts 2 --resamples 3",
    "predict fit.json runs.csv", "compare runs.csv --law chinchilla --law width --starts 2",
)  # fmt: skip
MEASURE = "measure config.json --engine torch --workload 8/4@1"
TRAIN = "train wide.json --tokens 1K --out trained --corpus"  # ends before training
SWEEP = "sweep run plan.csv --corpus text --out sweep --set context_length=16 --set sequences=4"
CONVERT = "convert sweep/runs/first --to block:5 --tokens 1K"  # ends before training
AUTOPILOT = (  # the budget pays for no training
    "autopilot --params 30K --tokens 200K --layers 2 --workload edge --engine roofline:h100 "
    "--corpus text --budget-hours 1e-9 --out auto"
)
PLAN = (
    "hidden_size,intermediate_size,num_hidden_layers,num_attention_heads,num_key_value_heads,"
    "head_dim,tokens,run_id\n16,32,2,2,1,8,2000,first\n"
)


@dataclass(frozen=True)
class Case:
    """A document, the commands that read it, the other files that they need."""

    file: str
    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()
    changed: Callable[[bytes], st.SearchStrategy[bytes]] = bad_documents
    share: float = 1.0  # of the usual number of examples, where a command takes long


READ = ("config.json", "runs.csv", "shapes.csv")
CASES = {
    "fit": Case(
        "fit.json",
        ("predict fit.json shapes.csv --tokens 1M", "decide fit.json shapes.csv --tokens 1M",
         f"{SEARCH} --law fit.json", "plot contours fit.json runs.csv --out plot.png",
         "next-runs fit.json runs.csv --budget-flops 1e15 --goal alpha --candidates 30"),
        READ,
    ),
    "posterior": Case(
        "posterior.json",
        ("predict posterior.json shapes.csv --tokens 1M", f"{SEARCH} --law posterior.json",
         "fit runs.csv --law width --prior posterior.json --starts 2 --resamples 3"),
        READ,
    ),
    "pool": Case(
        "pool.json", ("fit runs.csv --law width --prior pool.json --starts 2 --resamples 3",), READ,
        share=0.3,
    ),
    "link": Case("link.json", (f"{PAPER} --link link.json",)),
    "proposals": Case(
        "found/proposals.json", ("report found", "report found --json"), ("found/fit.json",)
    ),
    "journal": Case("study.log", (f"{PAPER} --storage study.log",), changed=bad_lines),
    "config": Case(
        "config.json",
        ("predict fit.json shapes.csv --tokens 1M",
         "measure config.json --engine roofline:h100 --no-cache"),
        ("fit.json",),
    ),
    "workload": Case(
        "work.toml",
        ("measure config.json --engine roofline:h100 --no-cache --workload work.toml",),
        ("config.json",), changed=bad_texts,
    ),
    "hardware": Case(
        "mine.toml", ("measure config.json --engine roofline:mine.toml --no-cache",),
        ("config.json",), changed=bad_texts,
    ),
    "kept measurements": Case(
        "cache/measurements.jsonl", (MEASURE,), ("config.json",), changed=bad_lines,
        share=0.3,
    ),
    "table": Case("runs.csv", TABLE_COMMANDS, ("fit.json",), changed=bad_texts),
    "table of JSON lines": Case("runs.jsonl", ("data show runs.jsonl",), changed=bad_lines),
    "Parquet table": Case("runs.parquet", ("data show runs.parquet",), changed=damaged_bytes),
    "packed table": Case("runs.csv.gz", ("data show runs.csv.gz",), changed=damaged_bytes),
    "shapes": Case(
        "shapes.csv", ("predict fit.json shapes.csv --tokens 1M",
                       "decide fit.json shapes.csv --tokens 1M"), ("fit.json",), changed=bad_texts,
    ),
    "tokenizer": Case("tokenizer.json", (f"{TRAIN} text --tokenizer tokenizer.json",),
                      ("wide.json", "text")),
    "text": Case("text/a.txt", (f"{TRAIN} text",), ("wide.json",), changed=damaged_bytes),
    "corpus of JSON lines": Case("a.jsonl", (f"{TRAIN} a.jsonl",), ("wide.json",),
                                 changed=bad_lines),
    "packed corpus": Case("a.txt.zst", (f"{TRAIN} a.txt.zst",), ("wide.json",),
                          changed=damaged_bytes),
    "Parquet corpus": Case("a.parquet", (f"{TRAIN} a.parquet",), ("wide.json",),
                           changed=damaged_bytes),
    "record of a loop": Case(
        "loop/quickstart.json", ("quickstart --corpus text --out loop --seed 7",), ("text",)
    ),
    "record of an autopilot": Case("auto/autopilot.json", (f"{AUTOPILOT} --seed 7",), ("text",)),
    "decisions": Case("auto/decisions.jsonl", (AUTOPILOT,), ("text", "auto/autopilot.json"),
                      changed=bad_lines),
}  # fmt: skip
OF_SWEEPS = {
    "corpus record": Case("sweep/corpus/corpus.json", (SWEEP,), ("sweep", "plan.csv", "text")),
    "sweep record": Case("sweep/sweep.json", (SWEEP, "sweep status sweep"),
                         ("sweep", "plan.csv", "text")),
    "plan": Case("plan.csv", (f"{SWEEP} --launcher slurm",), ("sweep", "text"), changed=bad_texts),
    "shard": Case("sweep/corpus/train.npy", (SWEEP,), ("sweep", "plan.csv", "text"),
                  changed=damaged_bytes),
    "weights of a run": Case("sweep/runs/first/model.safetensors", (CONVERT,), ("sweep",),
                             changed=damaged_bytes),
    "config of a run": Case("sweep/runs/first/config.json", (CONVERT,), ("sweep",)),
    "ledger": Case("sweep/ledger.sqlite",
                   ("sweep status sweep", "sweep export sweep --out table.csv"), ("sweep",),
                   changed=damaged_bytes),
}  # fmt: skip
# Commands with what they need to end soon; each of their options gets malformed values.
OPTIONS = {
    "predict fit.json shapes.csv": {"--tokens": "1M", "--out": "out.csv"},
    "decide fit.json shapes.csv": {"--tokens": "1M", "--out": "out.csv"},
    "space": {
        "--params": "200M", "--layers": "12", "--head-dim": "64", "--vocab": "32000",
        "--where": "gqa <= 4", "--tolerance": "0.01", "--hidden-step": "64", "--out": "out.csv",
    },
    "count config.json": {},
    "propose --family qwen3_moe": {
        "--params": "200M", "--tokens": "4B", "--law": "paper-2510.18245", "--layers": "12",
        "--engine": "roofline:h100", "--axis": "num_experts=64,128", "--workload": "chat",
        "--where": "num_key_value_heads <= 4",
    },
    "space --family qwen3_moe": {
        "--params": "200M", "--layers": "12", "--axis": "num_experts=16", "--context": "4096",
        "--where": "head_dim == 64", "--most": "cache_bytes=50M", "--mlp-step": "64",
    },
    "measure config.json --no-cache": {
        "--engine": "roofline:h100", "--workload": "chat", "--decoder": "ar",
    },
    "propose": {
        "--params": "200M", "--tokens": "4B", "--law": "paper-2510.18245", "--layers": "12",
        "--head-dim": "64", "--engine": "roofline:h100", "--measurements": "3", "--vocab": "32000",
        "--storage": "study.log", "--seed": "1", "--workload": "chat", "--where": "gqa <= 4",
        "--estimated": "20", "--decoder": "ar",
    },
    "data show runs.csv": {"--where": "loss > 0", "--exclude": "first"},
    "fit runs.csv": {"--law": "chinchilla", "--starts": "2", "--resamples": "3"},
    "compare runs.csv": {"--law": "chinchilla", "--starts": "2"},
    "next-runs fit.json runs.csv": {
        "--budget-flops": "1e15", "--goal": "alpha", "--candidates": "30",
    },
    "plot contours fit.json runs.csv": {"--out": "plot.png"},
    "compare-families": {  # there is no such text: nothing is trained
        "--params": "100K", "--tokens": "1M", "--families": "gpt2", "--corpus": "absent",
        "--out": "families",
    },
    "autopilot --plan-only": {
        "--params": "200K", "--tokens": "2M", "--budget-hours": "1", "--corpus": "absent",
        "--layers": "4", "--head-dim": "16", "--workload": "edge", "--engine": "roofline:h100",
        "--out": "auto",
    },
    "train wide.json": {"--tokens": "1K", "--corpus": "absent", "--out": "trained"},
    "sweep run plan.csv": {"--corpus": "absent", "--out": "sweep", "--set": "context_length=16"},
}  # fmt: skip
OF_RUNS = {"convert sweep/runs/first": {"--to": "block:5", "--tokens": "1K", "--warmup": "1,4"}}
COMMANDS = typer.main.get_command(app)


def options_of(command: str) -> list[str]:
    """Return the options of a command that take a value."""
    found = COMMANDS
    for word in command.split():
        found = getattr(found, "commands", {}).get(word, found)
    taken = (p for p in found.params if p.param_type_name == "option" and not p.is_flag)
    return [max(option.opts, key=len) for option in taken]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good document of each kind."""
    import shapelaw.search.commands.output
    import shapelaw.search.reports.proposal_page  # noqa: F401  the forks begin with the modules

    folder, data = tmp_path_factory.mktemp("hostile"), data_folder()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "plan.csv").write_text(PLAN)
    (folder / "work.toml").write_text('preset = "chat"\nconcurrency = 16\nmax_ttft = 0.5\n')
    (folder / "wide.json").write_text(json.dumps(CONFIG | {"vocab_size": 999}))
    write_corpora(folder)
    (folder / "loop").mkdir()
    (folder / "loop" / "quickstart.json").write_text(
        json.dumps(
            {
                "settings": asdict(LoopSettings(corpus="text")),
                "stage_seconds": {"corpus": 1.5},
                "seed_noise": {"deviation": 0.01, "degrees": 9},
                "served": {"d64": 12.5},
                "versions": {"torch": "2.9"},
                "machine": "x86_64",
                "python": "3.11",
                "recipe": {"optimizer": "adamw"},
                "corpus": {"name": "text"},
            }
        )
    )
    write_autopilot(folder / "auto")
    (folder / "cache").mkdir()
    (folder / "mine.toml").write_text(
        '[mine]\nname = "a device"\nmemory = 80e9\nbandwidth = 3e12\nsource = "made up"\n'
        "link = 1e11\npeak_flops = { bfloat16 = 1e15, float32 = 5e14 }\n"
    )
    for name, source in {
        "runs.csv": "quickstart/runs.csv", "pool.json": "laws/pooled.json",
        "link.json": "accuracy/olmo-ladder.json",
    }.items():  # fmt: skip
        shutil.copy(data / source, folder / name)
    runs = pd.read_csv(folder / "runs.csv")
    runs.to_json(folder / "runs.jsonl", orient="records", lines=True)
    runs.to_parquet(folder / "runs.parquet")
    runs.to_csv(folder / "runs.csv.gz")
    lines = (folder / "runs.csv").read_text().splitlines(keepends=True)
    (folder / "shapes.csv").write_text("".join(lines[:4]))
    for command in (
        "fit runs.csv --law chinchilla --starts 4 --resamples 20 --out fit.json",
        "fit runs.csv --law width --prior weak --starts 4 --resamples 20 --out posterior.json",
        f"{PAPER} --out found",
        "report found",
        AUTOPILOT,  # prints the last decision: it has stopped
    ):
        outcome = run_forked(command.split(), folder)
        assert outcome.code == 0, outcome.err
    keep_measurement(folder)
    study = optuna.create_study(storage=open_storage(folder / "study.log"), study_name="study")
    study.tell(study.ask(), 1.0)
    return folder


def keep_measurement(folder: Path) -> None:
    """Keep the measurement that ``MEASURE`` makes, also where a busy machine disturbed it."""
    engine, workload = engine_named("torch"), parse_workload("8/4@1")
    store = MeasurementStore(folder / "cache" / "measurements.jsonl")
    key = CachedEngine(engine, store).key(Shape.from_config(CONFIG), workload)
    assert key is not None
    measurement = engine.measure(Shape.from_config(CONFIG), workload)
    store.put(*key, replace(measurement, disturbed=False))


def write_autopilot(folder: Path) -> None:
    """Write the records of an autopilot that planned a run and has decided."""
    settings = AutopilotSettings(
        params=30_000, tokens=200_000, layers="2", workload="edge", engine="roofline:h100",
        corpus="text", budget_hours=1e-9,
    )  # fmt: skip
    folder.mkdir()
    keep_record(folder, settings)
    spec = RunSpec(run_id="first", shape=Shape.from_config(CONFIG), tokens=2000, recipe=Recipe())
    record = DecisionRecord(folder / DECISIONS)
    record.append({"round": 0, "stop": "", "runs": [json.loads(spec.as_json())]})
    record.append({
        "round": 1, "stop": "the budget is spent", "runs": [], "certainty": 0.95,
        "proposed": "d32", "shape": CONFIG, "speedup": 1.2, "rival": None, "choices": 4,
        "trained": 1, "flops": 1e9, "core_hours": 0.1,
    })  # fmt: skip


def write_corpora(folder: Path) -> None:
    """Write a small corpus in every format, and a tokenizer."""
    text = "a line of plain text\n" * 2000
    rows = [json.dumps({"text": f"{number} {text[:4000]}"}) for number in range(12)]
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text(text)
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "a.txt.zst").write_bytes(zstandard.compress(text.encode()))
    pd.DataFrame({"text": [text[:4000]] * 12}).to_parquet(folder / "a.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def swept(made: Path) -> Path:
    """The same folder with a finished sweep in it."""
    outcome = run_forked(SWEEP.split(), made)
    assert outcome.code == 0, outcome.err
    return made


def run_changed(made: Path, case: Case, content: bytes, command: str) -> Outcome:
    """Run a command on a copy of the files that it needs, one of which has other content."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for needed in case.needs:
            (folder / needed).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (made / needed).is_dir() else shutil.copy
            copy(made / needed, folder / needed)
        (folder / case.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / case.file).write_bytes(content)
        return run_forked(command.split(), folder)


def check_case(made: Path, case: Case, examples: int) -> None:
    """Check that commands keep their promises on changed copies of a document."""
    content = (made / case.file).read_bytes()

    @seed(0)
    @settings(
        max_examples=math.ceil(case.share * examples), database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case.changed(content).map(Content), st.sampled_from(case.commands))
    def check(content: bytes, command: str) -> None:
        outcome = run_changed(made, case, content, command)
        assert not outcome.broken_promises(), (command, outcome.err[-2000:])

    check()


@DOCUMENTS
@pytest.mark.parametrize("name", CASES)
def test_malformed_document_is_one_error_line(made: Path, name: str) -> None:
    check_case(made, CASES[name], FAST)


@DOCUMENTS
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_malformed_documents_are_one_error_line_each(made: Path, name: str) -> None:
    check_case(made, CASES[name], SLOW)


@OTHERS
@pytest.mark.slow
@pytest.mark.parametrize("name", OF_SWEEPS)
def test_malformed_document_of_a_sweep_is_one_error_line(swept: Path, name: str) -> None:
    check_case(swept, OF_SWEEPS[name], SLOW)


def check_option(made: Path, command: str, examples: int) -> None:
    """Check that a command keeps its promises with one option of any text."""
    needs = ["config.json", "fit.json", "wide.json", "plan.csv", *READ[1:]]
    good = (OPTIONS | OF_RUNS)[command]
    if command in OF_RUNS:
        needs.append("sweep")

    @seed(0)
    @settings(
        max_examples=examples, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(options_of(command)), bad_options())
    def check(name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for needed in needs:
                copy = shutil.copytree if (made / needed).is_dir() else shutil.copy
                copy(made / needed, folder / needed)
            given = [word for pair in (good | {name: text}).items() for word in pair]
            outcome = run_forked([*command.split(), *given], folder)
        broken = outcome.broken_promises()
        if "postgresql://" in text:  # an address that nobody answers is no bad input
            broken = [each for each in broken if each != "exit code 1"]
        assert not broken, (command, name, text, outcome.err[-2000:])
        assert "secret" not in outcome.out + outcome.err

    check()


@OTHERS
@pytest.mark.parametrize("command", OPTIONS)
def test_malformed_option_is_one_error_line(made: Path, command: str) -> None:
    check_option(made, command, FAST)


@OTHERS
@pytest.mark.slow
@pytest.mark.parametrize("command", OPTIONS)
def test_many_malformed_options_are_one_error_line_each(made: Path, command: str) -> None:
    check_option(made, command, SLOW)


@OTHERS
@pytest.mark.slow
@pytest.mark.parametrize("command", OF_RUNS)
def test_malformed_option_for_a_finished_run_is_one_error_line(swept: Path, command: str) -> None:
    check_option(swept, command, SLOW)


@pytest.fixture
def rows_of_ledger(swept: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(swept / "sweep" / "ledger.sqlite")
    yield connection
    connection.close()


@OTHERS
@pytest.mark.slow
def test_value_of_any_type_in_a_ledger_is_one_error_line(
    swept: Path, rows_of_ledger: sqlite3.Connection, tmp_path: Path
) -> None:
    names = [row[1] for row in rows_of_ledger.execute("PRAGMA table_info(shapelaw_runs)")]
    spec = rows_of_ledger.execute("SELECT spec FROM shapelaw_runs").fetchone()[0].encode()
    plain = [v for v in VALUES if isinstance(v, str | float | None) and v != "\ud800"]

    @seed(0)
    @settings(max_examples=SLOW, database=None, phases=[Phase.generate])
    @given(st.sampled_from(names), st.sampled_from(plain), bad_documents(spec).map(Content))
    def check(column: str, value: object, changed: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as place:
            folder = Path(place)
            shutil.copytree(swept / "sweep", folder / "sweep")
            connection = sqlite3.connect(folder / "sweep" / "ledger.sqlite")
            with connection:
                text = changed.decode(errors="replace") if column == "spec" else value
                command = f"UPDATE OR IGNORE shapelaw_runs SET {column} = ?"
                try:
                    connection.execute(command, (text,))
                except sqlite3.IntegrityError:
                    return
            connection.close()
            outcome = run_forked(["sweep", "status", "sweep", "--json"], folder)
        assert not outcome.broken_promises(), (column, value, outcome.err[-2000:])

    check()


@OTHERS
def test_harness_notices_a_broken_promise(made: Path) -> None:
    good = Outcome(code=2, out="", err="error: `a` must hold; do b\n", seconds=1, left=[])
    assert good.broken_promises() == []
    bad = Outcome(code=1, out="", err=f"error: {'x' * 400}\x1b\nTraceback", seconds=1, left=[])
    assert len(bad.broken_promises()) == 4
    refused = run_forked(["predict", "nowhere.json", "config.json", "--tokens", "1M"], made)
    assert (refused.code, refused.err.count("\n"), refused.left) == (2, 1, [])
    left = run_forked(
        ["predict", "fit.json", "shapes.csv", "--tokens", "1M", "--out", "new.csv"], made
    )
    assert left.left == ["new.csv"]
    (made / "new.csv").unlink()
