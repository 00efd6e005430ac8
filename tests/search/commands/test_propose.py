"""Requests for proposals: valid proposals for any budget, or an error of one line."""

import contextlib
import io
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text
from typer.testing import CliRunner

import shapelaw
from shapelaw.scaling.accuracy.fit import load_link
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.console import print_table
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.space.space import CONVENTIONS
from shapelaw.search.cli import app
from shapelaw.search.commands.output import print_proposals
from shapelaw.search.commands.table import (
    MAX_ROWS,
    MIN_DISTANCE,
    NARROW,
    proposals_table,
    table_apart,
)
from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.engines._vllm import SESSION, VllmEngine
from shapelaw.search.engines.sessions import client
from shapelaw.search.engines.sessions.client import MissingError, SessionProcess, session_workload
from shapelaw.search.proposals import basis
from shapelaw.search.proposals.basis import loss_basis
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.reasons import format_warning
from shapelaw.search.workload import parse_workload
from support.search_runs import synthetic_runs
from support.usual_proposals import propose_usual, request_for


@pytest.fixture(scope="module")
def usual() -> Proposals:
    return propose_usual()


def outcome(**changes: Any) -> tuple[Proposals | None, str]:
    """Return proposals and an empty text, or None and the text of the error."""
    try:
        return propose_usual(**changes), ""
    except InputError as error:
        return None, str(error)


requests = st.fixed_dictionaries(
    {
        "params": st.integers(120, 2500).map("{}M".format),
        "tokens": st.integers(1, 400).map("{}B".format),
        "law": st.sampled_from(["paper-2510.18245", "paper-2510.18245-1b"]),
        "workload": st.sampled_from(["chat", "rag@64:bfloat16", "edge", "2000/300@4:bfloat16"]),
        "engine": st.sampled_from(["roofline:h100", "roofline:a100"]),
        "baseline": st.sampled_from(
            ["llama-3.2-1b", "qwen3-0.6b", "gemma-3-1b", "olmo-2-1b", "smollm3-3b", "panda-1b"]
        ),
        "convention": st.sampled_from(sorted(CONVENTIONS)),
        "layers": st.sampled_from([None, (16,), (20, 28)]),
        "any_shape": st.just(False),
        "head_dims": st.none(),
        "worse_percent": st.sampled_from([0.5, 3.0, 50.0]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=10)
@given(requests)
def test_any_budget_gives_valid_proposals_or_a_one_line_error(changes: dict[str, Any]) -> None:
    found, refusal = outcome(**changes)
    if found is None:
        assert refusal.startswith(("no valid shape", "`predicted loss", "none of the"))
        assert "\n" not in refusal
        return
    request = request_for(**changes)
    proposals = list(found)
    assert proposals[0].role == "baseline"
    assert [p.role for p in proposals].count("baseline") == 1
    assert len({p.shape for p in proposals}) == len(proposals)
    ratio = request.space.max_loss_ratio
    assert ratio is not None
    count = CONVENTIONS[request.budget.convention]
    tolerance = 0.02 if request.budget.parameters < 10**8 else 0.01
    for p in proposals:
        size, base = (getattr(shape, count) for shape in (p.shape, proposals[0].shape))
        assert abs(size / base - 1) <= tolerance
        assert p.shape.num_attention_heads % p.shape.num_key_value_heads == 0
        assert np.isfinite([p.loss_low, p.loss_high]).all()
        assert p.loss_low < p.predicted_loss < p.loss_high
        assert p.difference_nats_low <= p.difference_nats <= p.difference_nats_high
        assert p.predicted_loss <= proposals[0].predicted_loss * ratio + 1e-9
        assert p.shape.num_key_value_heads in (1, 2, 4, 8, request.model.num_key_value_heads)
        _check_front(p, proposals)
        _check_extrapolation_warnings(p, found)


def _check_front(p: Any, proposals: list[Any]) -> None:
    if not p.apart:  # those set apart push no others off
        proposals = [other for other in proposals if not other.apart]
    if p.throughput is None:
        assert not p.on_front
        return
    speed = p.throughput.output_tokens_per_second
    beaten = any(
        other.throughput is not None
        and other.predicted_loss <= p.predicted_loss
        and other.throughput.output_tokens_per_second >= speed
        and (other.predicted_loss, other.throughput.output_tokens_per_second)
        != (p.predicted_loss, speed)
        for other in proposals
    )
    assert not (p.on_front and beaten)


def _check_extrapolation_warnings(p: Any, found: Proposals) -> None:
    """Check that a proposal has a warning for every range of the published law that it leaves."""
    names = {words.split()[0] for words in p.warnings}
    if p.shape.n_non_embedding > 1.03 * 973e6:
        assert "n_non_embedding" in names
    if not 0.49 <= p.shape.mlp_to_attention <= 5.11:
        assert "mlp_to_attention" in names
    assert any("no term for GQA" in words for words in found.notes)


def test_roofline_answers_every_shape_without_a_time_model(
    usual: Proposals, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {p.throughput.kind for p in usual if p.throughput} == {"predicted"}
    assert len(usual) == 6 + 5
    assert usual.about()["time_model"] is None
    text = output(usual, capsys)
    assert "time model" not in text
    assert "nothing was measured on that hardware" in text
    assert "an upper bound without overheads" in usual.about()["speed_basis"]


def test_table_has_the_baseline_and_the_front(usual: Proposals) -> None:
    shown = proposals_table(usual.ranked, wide=True)
    front = [p.name for p in usual if p.on_front or p.role == "baseline"]
    off_front = [
        p.name for p in usual if not p.on_front and p.role not in ("baseline", "candidate")
    ]
    names = [text.split("\n")[0] for text in shown["shape"]]
    names = [name for name in names if name not in off_front]
    assert names == [name for name in front if name in names]
    assert len(names) > 3
    assert shown["shape"].iloc[0].endswith("\nbaseline")
    assert shown["loss − baseline"].iloc[0] == "0"
    assert "[" in shown["loss − baseline"].iloc[1]
    assert (shown["why"] != "").all()


def output(proposals: Proposals, capsys: pytest.CaptureFixture[str]) -> str:
    print_proposals(proposals, None, json=False)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"throughput": None, "warnings": ["not measured: no kernel"]}, "not measured: no kernel"),
        ({}, "another shape is faster at no more predicted loss, but less surely so"),
    ],
)
def test_loss_optimal_shape_off_the_front_is_listed_with_the_reason(
    usual: Proposals,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    reason: str,
) -> None:
    (best,) = [p for p in usual if p.role == "loss-optimal"]
    off = replace(best, on_front=False, **changes)
    ranked = tuple(off if p is best else p for p in usual)
    names = proposals_table(ranked)["shape"].tolist()
    assert f"{best.name}\nloss-optimal, not on the front" in names
    assert names[-1].startswith(proposals_table(usual.ranked)["shape"].iloc[-1])
    text = output(replace(usual, ranked=ranked), capsys)
    assert f"Note: the loss-optimal shape {best.name} is not on the front: {reason}." in text


def test_printed_counts_add_up_to_all_proposals(
    usual: Proposals, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = [p for p in usual if p.role == "candidate"][-2:]
    ranked = tuple(
        replace(p, throughput=None, on_front=False) if p in refused else p for p in usual
    )
    text = output(replace(usual, ranked=ranked), capsys)
    assert "2 further shapes that the engine could not run." in text
    counts = map(int, re.findall(r"^(\d+) (?:more|further) shape", text, re.MULTILINE))
    shown = len(proposals_table(ranked)) + len(table_apart(ranked))
    assert sum(counts) + shown == len(usual)


def test_a_service_level_filters_the_front(usual: Proposals) -> None:
    speeds = [p.throughput for p in usual if p.throughput]
    limit = float(np.median([speed.tpot for speed in speeds]))
    found = propose_usual(max_tpot=limit)
    for p in found:
        assert p.throughput is not None
        if p.throughput.tpot > limit:
            assert not p.on_front
            assert any(words.startswith("TPOT") for words in p.warnings)
    assert any(p.on_front for p in found)


def test_accuracy_is_given_where_the_link_holds_and_refused_elsewhere() -> None:
    link = load_link("olmo-ladder")
    held = propose_usual(link="olmo-ladder", validation=link.measured.validation)[0].accuracy
    assert held is not None
    assert held.value is not None
    assert 0 < held.low < held.value < held.high < 1  # type: ignore[operator]
    other = propose_usual(link="olmo-ladder")  # the validation set of the losses is not said
    assert other[0].accuracy is not None
    assert other[0].accuracy.value is None
    assert "not available" in proposals_table(other.ranked, wide=True)["predicted accuracy"].iloc[0]


def test_files_of_a_folder_hold_the_proposals(tmp_path: Path) -> None:
    found = propose_usual(tmp_path)
    written = read_json(tmp_path / "proposals.json")
    assert written["proposals"] == [p.row() for p in found]
    assert written["basis"] == found.about()["basis"]
    assert Fit.load(tmp_path / "fit.json").notes
    config = read_json(tmp_path / "proposals" / found[1].name / "config.json")
    assert Shape.from_config(config) == found[1].shape
    assert config["max_position_embeddings"] >= 4096 + 1024, "the workload needs as many positions"


def test_a_config_builds_the_shape_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    found = propose_usual(tmp_path, params="973M", head_dims=(64,), estimated=0, measurements=3)
    for p in found:
        config = transformers.AutoConfig.from_pretrained(tmp_path / "proposals" / p.name)
        for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim"):
            assert getattr(config, name) == getattr(p.shape, name)


@pytest.mark.slow
@pytest.mark.xdist_group("engine vllm")
def test_a_config_is_loaded_and_served_by_vllm(tmp_path: Path) -> None:
    try:
        engine = VllmEngine()
    except MissingError as error:
        pytest.skip(str(error))
    propose_usual(
        tmp_path, params="20M", layers=(4,), head_dims=(64,), vocab_size=1000, estimated=0,
        measurements=3,
    )  # fmt: skip
    served = parse_workload("20/3@2:bfloat16")
    for folder in (tmp_path / "proposals").iterdir():
        shape = Shape.from_config(read_json(folder / "config.json"))
        environment = engine.environment(shape)
        options = engine.options(shape, served)
        work = session_workload(shape, served)
        with closing(
            SessionProcess(SESSION, python=engine.python, environment=environment)
        ) as process:
            process.ask("load", folder=str(folder), workload=work, options=options)
            assert process.ask("serve", outputs=3)["produced"] == [3, 3]


def test_description_of_the_shipped_law_names_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[pd.DataFrame] = []
    fitted = fit("chinchilla", synthetic_runs(), starts=4, resamples=2)

    def record(law: str, runs: pd.DataFrame, **options: Any) -> Fit:
        taken.append(runs)
        return fitted

    monkeypatch.setattr(basis, "fit", record)
    rests_on = loss_basis(None)
    assert "data/proxies" in rests_on.description
    assert "no --law is given" in rests_on.description
    assert rests_on.runs is not None
    assert rests_on.runs.fingerprint == rests_on.fit.data_sha256
    assert not taken, "the shipped fit is that of the shipped runs"
    loss_basis(None, seed=1)  # another seed is a new fit
    assert "confirmation" not in set(taken[0]["role"])


def other_units(tmp_path: Path) -> Path:
    runs = synthetic_runs()
    runs["n_non_embedding"] /= 1e9
    runs["n_total"] = runs["n_non_embedding"]
    fit("chinchilla", runs, starts=4, resamples=2).save(tmp_path / "billions.json")
    return tmp_path / "billions.json"


def other_columns(tmp_path: Path) -> Path:
    runs = synthetic_runs().assign(best_loss=2.0)
    runs["best_loss"] = runs["loss"] * 0.99
    law = "BestLoss() * Bracket('hidden_over_sqrt_n')"
    fit(law, runs, starts=4, resamples=2).save(tmp_path / "columns.json")
    return tmp_path / "columns.json"


def another_file(tmp_path: Path) -> Path:
    write_json(tmp_path / "other.json", {"schema_version": 99})
    return tmp_path / "other.json"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_units, r"`n_non_embedding >= 1000` must hold .* it counts in other units"),
        (other_columns, r"needs `best_loss`, which a shape and a token budget do not give"),
        (another_file, r"must be a fit of schema version 2, but has 99"),
    ],
)
def test_law_that_cannot_predict_for_shapes_is_refused(
    make: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        propose_usual(law=str(make(tmp_path)))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such law": ({"law": "paper-1234"}, r"one of paper-2510\.18245, .* got 'paper-1234'"),
    "no such link": ({"link": "guess"}, r"a link's name must be one of"),
    "engine": ({"engine": "abacus"}, r"`--engine` must be one of"),
    "impossible SLO": (
        {"max_ttft": 1e-9},
        r"`max_ttft <= 1e-09` s \(the best shape has .* raise the limit",
    ),
    "limit": ({"max_ttft": -1.0}, r"`max_ttft > 0`"),
    "space of zero": ({"params": "1K", "layers": (64,)}, r"no valid shape has 1000 parameters"),
    "space of too many": (
        {"layers": tuple(range(4, 60)), "head_dims": (32, 64, 128), "tolerance": 0.4},
        r"at most 2,000,000 shapes, but the space has about .* give fewer --layers",
    ),
    "worse": ({"worse_percent": -1.0}, r"`0 <= --worse <= 100` per cent must hold, but got -1"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_invalid_request_is_a_one_line_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        propose_usual(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("llamacpp", r'needs xllamacpp; `pip install "shapelaw\[llamacpp\]"`'),
        ("aiconfigurator:h200", r'needs aiconfigurator; `pip install "shapelaw\[predict\]"`'),
        ("vllm", r"needs vLLM in an environment of its own; make one .* SHAPELAW_VLLM_PYTHON"),
    ],
)
def test_missing_engine_is_an_error_with_the_install_command(
    engine: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "installed_version", lambda package: None)
    monkeypatch.delenv("SHAPELAW_VLLM_PYTHON", raising=False)
    monkeypatch.delenv("SHAPELAW_AICONFIGURATOR_PYTHON", raising=False)
    with pytest.raises(InputError, match=message):
        propose_usual(engine=engine)


def test_change_that_the_law_has_no_term_for_is_set_apart_unless_the_request_names_it() -> None:
    found = propose_usual(any_shape=False, layers=None, head_dims=None)
    base = found[0].shape
    apart = [p for p in found if p.apart]
    assert apart
    for p in found:
        differs = {
            name
            for name in ("gqa", "num_hidden_layers", "head_dim")
            if getattr(p.shape, name) != getattr(base, name)
        }
        assert set(p.not_in_law) == differs
        assert p.apart == bool(differs)
        assert not p.apart or p.role == "candidate"
    assert any("no term for GQA or layers or head dimension" in words for words in found.notes)
    named = propose_usual(where=("gqa <= 8",))
    assert len({p.shape.gqa for p in named}) > 1
    assert not any(p.apart for p in named)
    assert any("gqa" in p.not_in_law for p in named)
    assert any("no term for gqa: a change of it costs no" in words for words in named.notes)


def test_printed_shapes_set_apart_have_a_table_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = propose_usual(any_shape=False, layers=None, head_dims=None)
    text = output(found, capsys)
    before, after = text.split("Faster, if changes that the law has no term for cost no loss")
    names = {p.name for p in found if p.apart}
    assert not any(name in before for name in names)
    assert any(name in after for name in names)
    assert "L 16→" in after
    rows = [p for p in found if p.apart and p.not_in_law == ("gqa",) and p.difference_nats <= 0]
    assert max(rows, key=lambda p: p.speedup or 0).name in after


def test_printed_law_stands_beside_the_measured_models_of_its_paper(
    usual: Proposals, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {row["model"]: row for row in usual.about()["paper_models"]}
    assert models["panda-1b"]["measured_percent"] == pytest.approx(100 * (2.782 / 2.803 - 1))
    assert models["surefire-1b"]["measured_percent"] == pytest.approx(100 * (2.804 / 2.803 - 1))
    assert models["llama-3.2-1b"]["predicted_percent"] == 0
    text = output(usual, capsys)
    assert "-0.75 %" in text
    assert "95 %" not in text, "the interval is the range of printed fits"
    assert usual.about()["interval"] == "the range of the fits that the paper prints"


def test_printed_table_is_short_and_keeps_roles_and_ends() -> None:
    found = propose_usual(measurements=24, estimated=12)
    front = [p for p in found if not p.apart and (p.on_front or p.role != "candidate")]
    assert len(front) > MAX_ROWS
    names = [text.split("\n")[0] for text in proposals_table(found.ranked)["shape"]]
    places = pd.DataFrame(
        [
            (p.predicted_loss, np.log(p.throughput.output_tokens_per_second))
            for p in front
            if p.throughput
        ],
        index=[p.name for p in front],
    )
    places /= places.max() - places.min()
    apart = np.linalg.norm(places.to_numpy()[:, None] - places.loc[names].to_numpy(), axis=2)
    assert len(names) <= MAX_ROWS
    assert len(names) == MAX_ROWS or apart.min(axis=1).max() < MIN_DISTANCE
    last = [p for p in front if p.on_front][-1]
    always = {p.name for p in front if p.role != "candidate"} | {last.name}
    assert always <= set(names)
    own = places.loc[[name for name in names if name not in always]].to_numpy()
    between = np.linalg.norm(own[:, None] - own, axis=2) + np.eye(len(own))
    assert between.min() >= MIN_DISTANCE, "printed shapes keep a distance"


def test_fastest_goal_proposes_no_shape_of_more_loss_than_the_baseline() -> None:
    found = propose_usual(fastest=True, where=("gqa <= 8",), measurements=12, estimated=0)
    base, *others = found
    assert others
    assert all(p.predicted_loss <= base.predicted_loss for p in others)
    assert max(p.speedup or 0 for p in others) > 1


def printed(table: pd.DataFrame, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of a table as a terminal of that width shows them."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats standard output as a terminal
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_table(table)
    return Text.from_ansi(text.getvalue()).plain.splitlines()


def test_table_has_five_columns_that_fit_80_characters(
    usual: Proposals, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = proposals_table(usual.ranked)
    assert set(table) <= set(NARROW)
    assert list(table) == [name for name in NARROW if name in table]
    lines = printed(table, 80, monkeypatch)
    assert max(map(len, lines)) <= 80
    for cell in table["shape"]:
        assert any(cell.split("\n")[0] in line for line in lines), "names stay on one line"


def test_table_says_the_gpus_and_the_concurrency_that_were_chosen_for_each_shape(
    usual: Proposals, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = "rag:bfloat16,concurrency=auto,tpot=8ms,tp=2/4"
    found = propose_usual(workload=workload, tensor_parallel=(2, 4), any_shape=False, layers=None)
    table = proposals_table(found.ranked)
    for cell, name in zip(table["served on"], table["shape"], strict=True):
        (row,) = (p.row() for p in found if p.name == name.split("\n")[0])
        assert cell == f"{row['gpus']} GPUs\n{row['concurrency']} at once"
        assert f"{row['concurrency']} at once" in row["workload"]
        assert f"each model on {row['gpus']} GPUs" in row["workload"]
    assert max(map(len, printed(table, 80, monkeypatch))) <= 80
    assert "served on" in table_apart(found.ranked)
    assert "served on" not in proposals_table(usual.ranked, wide=True), "one batch on one GPU"


def test_wide_table_has_every_column(usual: Proposals, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = proposals_table(usual.ranked, wide=True)
    assert {"why", "predicted loss", "TTFT, TPOT", "weights", "beyond the runs"} < set(wide)
    assert max(map(len, printed(wide, 150, monkeypatch))) <= 150


def test_every_proposal_has_its_probabilities_in_json_and_the_baseline_only_that_of_best(
    usual: Proposals,
) -> None:
    base, *others = (proposal.row() for proposal in usual)
    assert base["p_less_loss"] is None
    assert base["p_faster"] is None
    assert 0 <= base["p_best"] <= 1
    assert all(0 <= row["p_less_loss"] <= 1 for row in others)
    assert sum(row["p_best"] for row in (base, *others)) == pytest.approx(1)
    for row in others:
        if row["throughput_kind"] == TIME_MODEL:
            assert row["p_faster_basis"] == "spread of the time model's error"
        else:
            assert row["p_faster"] == float(row["speedup"] > 1)
            assert row["p_faster_basis"].startswith("no spread: predicted speeds")


def test_table_shows_probability_of_less_loss_and_wide_table_all_three(usual: Proposals) -> None:
    table, wide = proposals_table(usual.ranked), proposals_table(usual.ranked, wide=True)
    assert table["P(less)"].iloc[0] == "–"
    assert set(table["P(less)"].iloc[1:]) <= {"0 of 2", "1 of 2", "2 of 2"}, "printed fits"
    assert table["P(less)"].tolist() == wide["P(less)"].tolist()
    assert {"P(faster)", "P(best)", "KV/token", "training speed"} < set(wide) - set(table)
    assert wide["P(faster)"].str.contains("predicted").any()


def test_lead_notes_say_how_far_the_default_laws_runs_are_from_the_budget(
    usual: Proposals,
) -> None:
    notes = [format_warning(text) for text in usual.extrapolation]
    assert any(re.fullmatch(r"N \S+: \d\.\d+ decades above the runs' \S+", n) for n in notes)


def test_public_functions_give_the_proposals_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path))
    options = "--where 'gqa <= 8' --workload chat@64:bf16 --engine roofline:h100 --measurements 6"
    command = f"propose --params 1B --tokens 100B --law paper-2510.18245 --json {options}"
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    request = shapelaw.ProposalRequest(
        budget=shapelaw.Budget(parameters=10**9, tokens=10**11),
        space=shapelaw.SpaceOptions(where=("gqa <= 8",)),
        serving=shapelaw.Serving(
            workload=shapelaw.parse_workload("chat@64:bf16"),
            engine=shapelaw.engine_named("roofline:h100"),
        ),
        effort=shapelaw.SearchEffort(measurements=6),
    )
    proposals = shapelaw.propose(request, shapelaw.loss_basis("paper-2510.18245"))
    assert json.loads(result.stdout)["proposals"] == [proposal.row() for proposal in proposals]
    assert len(proposals) > 6


def test_public_propose_accepts_a_law_that_the_user_fitted() -> None:
    runs = shapelaw.RunTable(frame=synthetic_runs())
    law = shapelaw.fit("chinchilla", runs, starts=4, resamples=2)
    proposals = shapelaw.propose(
        request_for(engine="roofline:h100"), shapelaw.LossBasis(fit=law, runs=runs)
    )
    assert proposals[0].predicted_loss == pytest.approx(
        law.predict(proposals.estimated.measured.candidates.frame)["predicted_loss"][
            proposals.rows[0]
        ]
    )


@pytest.mark.parametrize("kind", ["file", "quickstart"])
def test_out_that_would_overwrite_something_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        write_json(out / "quickstart.json", {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = ["propose", "--params", "1B", "--tokens", "1B", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("`--out` must")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
