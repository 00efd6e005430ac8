from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.space.proportions import nearest_proportions
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.candidate_set import RATIO_SLACK
from shapelaw.search.proposals.pareto_search import propose
from shapelaw.search.proposals.proposal import BASELINE, FAST, LOSS_OPTIMAL, Proposal
from shapelaw.search.proposals.reasons import explain
from shapelaw.search.proposals.request import (
    Budget,
    ProposalRequest,
    SearchEffort,
    Serving,
    SpaceOptions,
)
from shapelaw.search.proposals.roles import EQUAL_LOSS, front_of
from shapelaw.search.study.storage import opened_storage
from shapelaw.search.time_model.cross_validation import MIN_MEASUREMENTS
from shapelaw.search.workload import Workload, parse_workload
from support import made_up
from support.fake_engine import FakeEngine
from support.search_runs import synthetic_runs

TOKENS = 2_000_000


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit("conditional", synthetic_runs(), starts=16, resamples=40)


def request_to(engine: Engine, *, where: tuple[str, ...] = (), **effort: object) -> ProposalRequest:
    usual: dict[str, object] = {"measurements": 14, "estimated": 0, "leaders": 0}
    return ProposalRequest(
        budget=Budget(parameters=200_000, tokens=TOKENS),
        space=SpaceOptions(
            layers=(4,), head_dims=(16,), vocab_size=256, hidden_step=16, mlp_step=16,
            qk_norm=True, rope_theta=500.0, worse_percent=None, where=where, any_shape=True,
        ),
        serving=Serving(workload=parse_workload("128/64@8"), engine=engine),
        effort=SearchEffort(**(usual | effort)),  # type: ignore[arg-type]
    )  # fmt: skip


def proposed(fitted: Fit, engine: Engine, **changes: object) -> list[Proposal]:
    return list(propose(request_to(engine, **changes), LossBasis(fit=fitted)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def proposals(fitted: Fit) -> list[Proposal]:
    return proposed(fitted, FakeEngine())


def predicted(fitted: Fit, shapes: list[Shape]) -> np.ndarray:
    """Predict the losses of shapes at exactly the N of the first."""
    frame = with_ratios(pd.DataFrame([vars(shape) for shape in shapes])).assign(
        tokens=TOKENS, n_non_embedding=shapes[0].n_non_embedding
    )
    return fitted.predict(frame)["predicted_loss"].to_numpy()


def role(proposals: list[Proposal], name: str) -> Proposal:
    (found,) = [proposal for proposal in proposals if proposal.role == name]
    return found


def test_the_baseline_comes_first_with_the_proportions_of_its_model(
    proposals: list[Proposal],
) -> None:
    around = replace(request_to(FakeEngine()).shape_space, parameters=200_000)
    everything = around.enumerate()
    row = nearest_proportions(everything, shape_named("llama-3.2-1b"), 200_000)
    assert proposals[0].role == BASELINE
    assert proposals[0].shape == everything[row]
    assert [proposal.role for proposal in proposals].count(BASELINE) == 1


def test_search_proposes_the_requested_number_of_distinct_shapes(proposals: list[Proposal]) -> None:
    assert len(proposals) == len({proposal.shape for proposal in proposals}) == 14
    for proposal in proposals:
        size = proposals[0].shape.n_non_embedding
        assert proposal.shape.n_non_embedding == pytest.approx(size, rel=0.02)
        assert proposal.tokens == TOKENS


def test_every_proposal_but_the_baseline_is_near_the_fitted_ratios(
    fitted: Fit, proposals: list[Proposal]
) -> None:
    for proposal in proposals[1:]:
        for name in RATIOS:
            low, high = fitted.ranges[name]
            assert low / RATIO_SLACK <= getattr(proposal.shape, name) <= high * RATIO_SLACK


def test_losses_are_those_of_the_fit_inside_their_intervals(
    fitted: Fit, proposals: list[Proposal]
) -> None:
    losses = predicted(fitted, [proposal.shape for proposal in proposals])
    for proposal, loss in zip(proposals, losses, strict=True):
        assert proposal.predicted_loss == pytest.approx(loss, rel=1e-12)
        assert proposal.loss_low < proposal.predicted_loss < proposal.loss_high


def speed(proposal: Proposal) -> float:
    assert proposal.throughput is not None
    return proposal.throughput.output_tokens_per_second


def test_loss_optimal_shape_is_the_fastest_of_the_lowest_predicted_losses(
    proposals: list[Proposal],
) -> None:
    best = role(proposals, LOSS_OPTIMAL)
    lowest = min(proposals, key=lambda p: p.predicted_loss)
    likely = min(0.5, lowest.p_less_loss or 0.0)
    ties = [
        p for p in proposals[1:]
        if p.predicted_loss <= lowest.predicted_loss * (1 + EQUAL_LOSS)
        and p.p_less_loss is not None
        and p.p_less_loss >= likely
    ]  # fmt: skip
    assert speed(best) == max(map(speed, ties))
    assert best.on_front


def test_no_shape_is_called_fast_without_a_likely_gain(proposals: list[Proposal]) -> None:
    sure = [p for p in proposals[1:] if p.p_less_loss is not None and p.p_less_loss >= 0.8]
    faster = [p for p in sure if speed(p) > 1.01 * speed(proposals[0])]
    named = [p for p in proposals if p.role == FAST]
    best = [max(faster, key=speed)] if faster else []
    assert [p for p in best if p.role != LOSS_OPTIMAL] == named


def test_the_front_is_marked_and_comes_after_the_baseline(proposals: list[Proposal]) -> None:
    for proposal in proposals:
        beaten = any(
            other.predicted_loss <= proposal.predicted_loss
            and other.throughput.output_tokens_per_second  # type: ignore[union-attr]
            > proposal.throughput.output_tokens_per_second  # type: ignore[union-attr]
            for other in proposals
        )
        assert proposal.on_front == (not beaten)
    rest = [(not proposal.on_front, proposal.predicted_loss) for proposal in proposals[1:]]
    assert rest == sorted(rest)


def test_proposal_outside_of_the_fitted_range_has_a_warning(proposals: list[Proposal]) -> None:
    assert any("n_non_embedding" in words for words in proposals[0].warnings)


def test_refused_shape_is_proposed_with_the_reason(fitted: Fit) -> None:
    found = proposed(fitted, FakeEngine(refuse=1), measurements=10)
    refused = [proposal for proposal in found if proposal.throughput is None]
    assert {proposal.shape.num_key_value_heads for proposal in refused} == {1}
    for proposal in refused:
        assert not proposal.on_front
        assert any(words.startswith("not measured: ") for words in proposal.warnings)
    assert len(refused) < len(found) == 10


class RefusingEngine(FakeEngine):
    """An engine that refuses every shape."""

    def measure(self, shape: Shape, workload: object) -> object:  # type: ignore[override]
        raise InputError("no room")


def test_engine_that_refuses_every_shape_is_an_input_error(fitted: Fit) -> None:
    with pytest.raises(InputError, match="the engine ran none of the shapes: no room"):
        proposed(fitted, RefusingEngine(), measurements=3)


def test_a_budget_outside_of_the_fitted_ratios_is_refused(fitted: Fit) -> None:
    engine = FakeEngine()
    wide = ("hidden_size >= 360", "hidden_size <= 480")
    with pytest.raises(InputError, match=r"none of the \d+ shapes .* change --layers"):
        proposed(fitted, engine, where=wide, measurements=3)
    assert engine.calls == []


def test_interrupted_search_ends_with_the_same_roles(
    fitted: Fit, proposals: list[Proposal], tmp_path: Path
) -> None:
    for stop_at in (1, 2, 3):  # an interrupt during each of the first three measurements
        storage = tmp_path / f"{stop_at}.log"
        with pytest.raises(KeyboardInterrupt):
            proposed(fitted, FakeEngine(stop_at=stop_at), storage=storage)
        found = proposed(fitted, FakeEngine(), storage=storage)
        for name in (BASELINE, LOSS_OPTIMAL):
            assert role(found, name).shape == role(proposals, name).shape


def test_study_of_a_search_names_its_workload_engine_and_baseline(
    fitted: Fit, tmp_path: Path
) -> None:
    engine = FakeEngine()
    found = proposed(fitted, engine, measurements=4, storage=tmp_path / "study.log")
    with opened_storage(tmp_path / "study.log") as storage:
        study = optuna.load_study(study_name=None, storage=storage)
    names = {"baseline": "llama-3.2-1b", "baseline_shape": role(found, BASELINE).name}
    expected = {"workload": str(parse_workload("128/64@8")), "engine": engine.label, **names}
    assert study.user_attrs == study.user_attrs | expected
    measured = {trial.user_attrs.get("shape") for trial in study.trials}
    assert {proposal.name for proposal in found} <= measured


def test_marked_proposals_are_the_front(proposals: list[Proposal]) -> None:
    losses = [proposal.predicted_loss for proposal in proposals]
    marks = front_of(losses, [proposal.throughput for proposal in proposals])
    assert marks == [proposal.on_front for proposal in proposals]


class CountingEngine(FakeEngine):
    """A measuring engine that counts its calls by shape and workload."""

    kind = "measured"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Shape, int]] = []

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        self.asked.append((shape, workload.output_tokens))
        return replace(super().measure(shape, workload), kind=self.kind)


def test_leaders_are_measured_again_beside_the_baseline(fitted: Fit) -> None:
    engine = CountingEngine()
    found = proposed(fitted, engine, measurements=12, leaders=3)
    twice = {shape for shape, count in Counter(s for s, _ in engine.asked).items() if count == 2}
    sure = {p.shape: p.front_probability for p in found if p.front_probability is not None}
    assert set(sure) == twice
    assert found[0].shape in twice
    assert 1 <= len(twice - {found[0].shape}) <= 3
    assert max(sure.values()) > 0.9


def test_search_with_short_outputs_proposes_shapes_measured_at_full_length(
    fitted: Fit, tmp_path: Path
) -> None:
    engine = CountingEngine()
    found = proposed(fitted, engine, measurements=12, leaders=3, short=8)
    lengths = Counter(outputs for _, outputs in engine.asked)
    assert lengths[8] == 12
    assert 2 <= lengths[64] == len(found) <= 4
    assert {p.throughput.workload for p in found if p.throughput} == {found[0].throughput.workload}  # type: ignore[union-attr]
    assert "64 out" in found[0].throughput.workload  # type: ignore[union-attr]


class BatchEngine(Engine):
    """A measuring engine of static batches with the true speeds of the synthetic space."""

    name, kind, version, device = "batches", "measured", "1", "here"
    supported, searches_concurrency = frozenset({"automatic"}), True

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        return replace(made_up.measured(ShapeTable.of([shape]), workload)[0], engine=self.name)


def test_every_shape_is_served_by_as_many_as_its_service_level_holds(
    fitted: Fit, tmp_path: Path
) -> None:
    limit = 0.0008
    engine = CachedEngine(BatchEngine(), MeasurementStore(tmp_path / "measurements.jsonl"))
    workload = parse_workload("128/64,concurrency=auto,tpot=0.8ms")
    request = request_to(engine, measurements=3, estimated=4)
    found = propose(
        replace(request, serving=Serving(workload=workload, engine=engine)), LossBasis(fit=fitted)
    )
    kinds = Counter(p.throughput.kind for p in found if p.throughput)
    assert set(kinds) == {"measured", "time model"}
    chosen = set()
    for proposal in found:
        served = proposal.throughput
        assert served is not None
        assert served.concurrency is not None

        def tpot(at_once: int, shape: Shape = proposal.shape) -> float:
            table = ShapeTable.of([shape])
            return float(
                made_up.true_seconds(table, replace(workload, concurrency=at_once))[1][0] / 63
            )

        assert tpot(served.concurrency) <= limit * 1.02
        if served.kind == "measured":  # the next number of the bisection breaks the limit
            assert tpot(served.concurrency + max(1, served.concurrency // 8)) > limit
        assert f"{served.concurrency} at once" in served.workload
        chosen.add(served.concurrency)
    assert len(chosen) > 2
    assert "one by one" not in str(found.about())


def test_time_model_is_checked_on_the_measured_shapes_only(fitted: Fit) -> None:
    request = request_to(FakeEngine(refuse=1), measurements=9, estimated=4)
    found = propose(request, LossBasis(fit=fitted))
    about = found.about()["time_model"]
    measured = [p.name for p in found if p.throughput and p.throughput.kind == "predicted"]
    assert any(p.throughput is None for p in found)
    assert sorted(about["shapes"]) == sorted(measured)
    assert len(about["answered"]) == len(about["predicted"]) == len(measured)


def test_time_model_of_two_measurements_is_not_cross_validated(fitted: Fit) -> None:
    found = propose(request_to(FakeEngine(), measurements=2, estimated=3), LossBasis(fit=fitted))
    kinds = [p.throughput.kind for p in found if p.throughput]
    assert 1 <= kinds.count("time model") <= 3
    assert (kinds.count("predicted") < MIN_MEASUREMENTS) == (
        found.estimated.cross_validation is None
    )


def test_folder_of_a_search_continues_its_study(fitted: Fit, tmp_path: Path) -> None:
    engines = FakeEngine(), FakeEngine()
    for engine in engines:
        propose(request_to(engine, measurements=4), LossBasis(fit=fitted), out=tmp_path)
    assert [len(engine.calls) for engine in engines] == [4, 0]
    assert (tmp_path / "proposals.json").exists()


def test_reasons_and_warnings_are_made_from_the_finished_proposals(fitted: Fit) -> None:
    found = propose(request_to(FakeEngine()), LossBasis(fit=fitted))
    bare = replace(
        found, ranked=tuple(replace(p, why="", warnings=[]) for p in found), notes=(),
        extrapolation=(),
    )  # fmt: skip
    assert bare != found
    assert explain(bare) == found


def test_request_that_no_shape_can_meet_is_refused_before_the_search() -> None:
    with pytest.raises(InputError, match=r"`head_dim % 2 == 0` must hold"):
        replace(request_to(FakeEngine()), space=SpaceOptions(head_dims=(15,)))
