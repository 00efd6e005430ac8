"""The autopilot on a known truth, which stands in the trainer's place."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable, as_run_table
from shapelaw.search.autopilot import autopilot as module
from shapelaw.search.autopilot.autopilot import ShapeProblem, fit_conditional
from shapelaw.search.autopilot.autopilot_plan import AutopilotSettings, price_of
from shapelaw.search.autopilot.display import Display, decision_line
from shapelaw.search.autopilot.record import DecisionRecord, keep_record
from shapelaw.search.autopilot.rounds import ROUND_SHARE, run_rounds
from shapelaw.search.autopilot.stages import Loop
from shapelaw.search.cli import main
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.request import ProposalRequest
from shapelaw.search.reports.loop_record import read_loop_record
from shapelaw.trainers.ladder.plan import Ladder
from support.command import shapelaw
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from autopilot import Truth

RECORD, STAGES = "decisions.jsonl", ("training", "law", "proposals")
USUAL = AutopilotSettings(
    params=200_000, tokens=2_000_000, layers="4", workload="edge", engine="roofline:h100",
    measurements=4, speedup=0.5, certainty=0.999, indifference=1e-4, budget_hours=0.2055,
)  # fmt: skip
COMMAND = (
    *("autopilot", "--params", "200K", "--tokens", "2M", "--layers", "4"),
    *("--engine", "roofline:h100"),
)


class Killed(BaseException):
    """A simulated kill."""


@dataclass
class KilledOnce(Display):
    """A display that is killed at each boundary of a stage, the first time that it is reached."""

    folder: Path = Path()
    reached: set[tuple[int, str]] = field(default_factory=set)
    armed: bool = True

    def _boundary(self, name: str) -> None:
        key = (len(lines_of(self.folder)), name)
        fresh = key not in self.reached
        self.reached.add(key)
        if fresh and self.armed:
            raise Killed

    def update(self, stage: str, share: float, what: str) -> None:
        if share == 0.0:
            self._boundary(f"{stage} begins")

    def finished(self, stage: str) -> None:
        self._boundary(f"{stage} ended")

    def decided(self, decision: dict[str, Any], level: float) -> None:
        self._boundary(f"decision {decision['round']} shown")


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    """Fits by the content of their runs, so that repeated rounds are fast."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def _one_plan() -> Any:
    """The plan is computed once, as it depends on no measurement."""
    plans: dict[tuple[int, int], Ladder] = {}
    whole = module.first_ladder
    with pytest.MonkeyPatch.context() as patch:

        def first_ladder(request: ProposalRequest, seed: int) -> Ladder:
            key = (request.budget.parameters, request.budget.tokens)
            if key not in plans:
                plans[key] = whole(request, seed)
            return plans[key]

        patch.setattr(module, "first_ladder", first_ladder)
        yield


def drive(
    folder: Path,
    fits: dict[str, Fit],
    settings: AutopilotSettings = USUAL,
    display: Display | None = None,
) -> list[dict[str, Any]]:
    """Run the autopilot on a synthetic truth."""

    def fit_law(runs: RunTable, seed: int) -> Fit:
        if runs.fingerprint not in fits:
            fits[runs.fingerprint] = fit("conditional", runs, seed=seed, starts=16, resamples=60)
        return fits[runs.fingerprint]

    keep_record(folder, settings)
    problem = ShapeProblem(
        loop=Loop(folder, settings, display or Display(quiet=True)),
        train_specs=Truth.drawn(3).train,
        engine=engine_named(settings.engine),
        vocab_size=256,
        fit_law=fit_law,
    )
    return run_rounds(problem, settings.rule, folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, fits: dict[str, Fit]) -> Path:
    """A finished autopilot that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    drive(folder, fits)
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return DecisionRecord(folder / RECORD).lines()


def test_rounds_train_more_runs_until_the_budget_ends(unbroken: Path) -> None:
    plan, *decisions = lines_of(unbroken)
    assert len(decisions) >= 2
    assert [line["round"] for line in decisions] == list(range(1, len(decisions) + 1))
    trained = len(plan["runs"])
    for line, following in zip(decisions, [*decisions[1:], None], strict=True):
        assert line["trained"] == trained
        assert 0 < line["certainty"] <= 1
        assert bool(line["stop"]) == (following is None) == (not line["runs"])
        trained += len(line["runs"])
        if following is not None:
            assert line["flops"] < following["flops"] <= line["flops"] * (1 + ROUND_SHARE) * 1.01
    assert decisions[-1]["core_hours"] <= USUAL.budget_hours
    assert len(pd.read_csv(unbroken / "runs.csv")["run_group"].unique()) == trained


def test_no_run_is_planned_twice(unbroken: Path) -> None:
    names = [run["run_id"] for line in lines_of(unbroken) for run in line["runs"]]
    assert len(names) == len(set(names))


def test_kill_at_every_stage_boundary_gives_the_same_record(
    unbroken: Path, fits: dict[str, Fit], tmp_path: Path
) -> None:
    folder, kills = tmp_path / "killed", 0
    display = KilledOnce(folder=folder)
    while True:
        try:
            drive(folder, fits, display=display)
        except Killed:
            kills += 1
        else:
            break
    rounds = len(lines_of(unbroken)) - 1
    stages = {(number + 1, f"{stage} {event}") for number in range(rounds) for stage in STAGES
              for event in ("begins", "ended")}  # fmt: skip
    assert stages <= display.reached
    assert kills == len(display.reached) > len(stages)
    assert (folder / RECORD).read_bytes() == (unbroken / RECORD).read_bytes()


def test_recorded_measurements_replay_to_the_same_decisions(
    unbroken: Path, fits: dict[str, Fit], tmp_path: Path
) -> None:
    folder = tmp_path / "replayed"
    shutil.copytree(unbroken, folder)
    (folder / RECORD).unlink()
    drive(folder, fits)
    assert (folder / RECORD).read_bytes() == (unbroken / RECORD).read_bytes()


def test_finished_autopilot_decides_nothing_again(
    unbroken: Path, fits: dict[str, Fit], tmp_path: Path
) -> None:
    folder = tmp_path / "finished"
    shutil.copytree(unbroken, folder)
    display = KilledOnce(folder=folder, armed=False)
    drive(folder, fits, display=display)
    lines = lines_of(unbroken)
    assert display.reached == {(len(lines), f"decision {line['round']} shown") for line in lines}


def test_sure_decision_stops_in_the_first_round(fits: dict[str, Fit], tmp_path: Path) -> None:
    settings = replace(USUAL, certainty=0.5, indifference=0.2)
    _, decision = drive(tmp_path, fits, settings)
    assert "reaches 0.5" in decision["stop"]
    assert decision["speedup"] >= settings.speedup


def test_speedup_that_no_shape_reaches_is_refused(fits: dict[str, Fit], tmp_path: Path) -> None:
    settings = replace(USUAL, speedup=1e6)
    with pytest.raises(WorkError, match="--speedup"):
        drive(tmp_path, fits, settings)


def test_record_is_unchanged_when_a_line_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = DecisionRecord(tmp_path / RECORD)
    record.append(PLANNED)
    before = record.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkError, match="No space left"):
        record.append({"round": 1})
    assert record.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


PLANNED = {"round": 0, "stop": "", "runs": []}
DECIDED = PLANNED | {
    "round": 1, "certainty": 0.5, "proposed": "d64", "flops": 1e9, "core_hours": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"rou', "line 2 is not JSON"),
        (json.dumps([1]), "`line 2` must be an object"),
        (json.dumps(DECIDED | {"certainty": 1.5}), "`line 2.certainty` must be from 0 to 1"),
        (json.dumps(DECIDED | {"round": 7}), "`line 2.round` must be from 1 to 1"),
        (json.dumps(DECIDED | {"runs": "abc"}), "`line 2.runs` must be a list"),
        (json.dumps(PLANNED | {"round": 1}), "`line 2.certainty` is missing"),
        (json.dumps(DECIDED | {"core_hours": True}), "`line 2.core_hours` must be a finite number"),
    ],
)
def test_damaged_record_is_refused_with_the_way_out(tmp_path: Path, second: str, said: str) -> None:
    record = DecisionRecord(tmp_path / RECORD)
    record.path.write_text(f"{json.dumps(PLANNED)}\n{json.dumps(DECIDED)}\n")
    assert len(record.lines()) == 2
    record.path.write_text(f"{json.dumps(PLANNED)}\n{second}\n")
    with pytest.raises(InputError, match=r"is damaged .*; delete it") as refused:
        record.lines()
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": [1]}, {"stage_seconds": {"corpus": "long"}}, {"stage_seconds": {"law": -1.0}},
        {"seed_noise": {"deviation": 0.1}}, {"served": {"d64": 0.0}}, {"versions": {"torch": 2}},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_record_of_a_loop_is_refused_with_its_field(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "quickstart.json"
    whole = {"settings": {"seed": 0}, "stage_seconds": {"corpus": 1.5}}
    path.write_text(json.dumps(whole))
    assert read_loop_record(path) == whole
    path.write_text(json.dumps(whole | changes))
    with pytest.raises(InputError, match=f"is damaged .`{next(iter(changes))}.*; move it away"):
        read_loop_record(path)


def test_plan_only_prints_a_price_for_a_size_that_cannot_be_trained_here(tmp_path: Path) -> None:
    done = shapelaw(
        *("autopilot", "--params", "1B", "--tokens", "20B", "--engine", "roofline:h100"),
        *("--budget-hours", 6, "--plan-only", "--json", "--out", tmp_path / "none"),
    )
    assert done.returncode == 0, done.stderr
    stages = {row["stage"]: row for row in json.loads(done.stdout)["stages"]}
    first = stages["first round"]
    assert sum(row["flops"] for name, row in stages.items() if name.startswith("train")) == (
        pytest.approx(first["flops"])
    )
    assert first["core_hours"] > 1e4 > 6 == stages["budget"]["core_hours"]
    assert first["flops"] < next(
        row["flops"] for name, row in stages.items() if name.startswith("instead")
    )
    assert not (tmp_path / "none").exists()


def test_price_grows_with_size_and_tokens() -> None:
    price = price_of(USUAL).set_index("stage")["flops"]
    longer = replace(USUAL, tokens=2 * USUAL.tokens)
    doubled = price_of(longer).set_index("stage")["flops"]
    assert doubled["first round"] == pytest.approx(2 * price["first round"], rel=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget-hours", "0"), "`--budget-hours > 0`"),
        (("--budget-hours", "1", "--certainty", "1"), "`0 < --certainty < 1`"),
        (("--budget-hours", "1", "--certainty", "0"), "`0 < --certainty < 1`"),
        (
            ("--budget-hours", "1", "--indifference", "120%"),
            "`--indifference` must be a percentage",
        ),
        (("--budget-hours", "1", "--corpus", "no-such-text"), "no-such-text"),
        (("--budget-hours", "1e-6"), "`--budget-hours >= "),
        (("--budget-hours", "1", "--engine", "abacus"), "abacus"),
        (("--budget-hours", "1", "--workload", "sleep"), "sleep"),
    ],
)
def test_bad_options_exit_with_2_and_leave_no_folder(
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["shapelaw", *COMMAND, *options, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_killed_training_resumes_and_replays_to_the_same_record(
    text_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pilot"
    arguments = [
        *("autopilot", "--params", "100K", "--tokens", "200K", "--layers", "2", "--json"),
        *("--workload", "32/16@4", "--measurements", "3", "--budget-hours", "1"),
        *("--certainty", "0.2", "--indifference", "5%"),
        *("--corpus", str(text_folder), "--out", str(folder)),
    ]
    command = [sys.executable, "-c", "from shapelaw.search.cli import main; main()"]
    killed = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    while not (folder / "work" / "runs.csv").exists() and killed.poll() is None:
        time.sleep(0.1)  # until the first run is done
    assert killed.poll() is None
    killed.kill()
    killed.wait()
    done = shapelaw(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decisions"] == lines_of(folder)
    before = (folder / RECORD).read_bytes()
    (folder / RECORD).unlink()
    again = shapelaw(*arguments)
    assert again.returncode == 0, again.stderr
    assert (folder / RECORD).read_bytes() == before


def test_line_of_a_decision_shows_certainty_against_cost() -> None:
    decision = {
        "core_hours": 0.25, "flops": 1e13, "certainty": 0.5, "proposed": "wide", "stop": "",
        "runs": [{}],
    }  # fmt: skip
    line = decision_line(decision, 0.9)
    assert line.split() == ["0.25", "core-h", "1e+13", "FLOP", "█" * 15 + "·" * 12 + "|··",
                            "0.500", "wide;", "1", "more", "run"]  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "law"), [([4] * 12, "conditional"), ([2, 4] * 6, "conditional+depth")]
)
def test_law_has_a_term_for_depth_where_depth_varies(
    layers: list[int], law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    n = np.repeat([5e4, 1e5, 2e5], 4)
    runs = pd.DataFrame({
        "n_non_embedding": n, "tokens": 20 * n, "num_hidden_layers": layers,
        "hidden_over_sqrt_n": np.tile([0.1, 0.2, 0.3, 0.4], 3), "gqa": np.tile([1.0, 2.0, 4.0], 4),
        "mlp_to_attention": generator.uniform(1, 4, 12),
        "loss": 1 + 40 / n**0.4 * np.exp(generator.normal(0, 0.005, 12)),
    })  # fmt: skip
    table = as_run_table(runs)
    monkeypatch.setattr(module, "fit", partial(fit, starts=16, resamples=0))
    assert fit_conditional(table, 0).law_name == law
