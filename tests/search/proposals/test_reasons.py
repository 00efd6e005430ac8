from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.search.engines._base import broken_limits
from shapelaw.search.proposals.leaders import require_service
from shapelaw.search.proposals.proposal import Proposal
from shapelaw.search.proposals.ranking import differences
from shapelaw.search.proposals.reasons import (
    concerns_budget,
    format_warning,
    missing_terms,
    reasons,
)
from shapelaw.search.proposals.roles import front_of
from shapelaw.search.workload import parse_workload
from support.one_proposal import SHAPE, SPEED, proposal

FIT = printed_fit("paper-2510.18245")
MODELS = ["llama-3.2-1b", "panda-1b", "surefire-1b"]
FRAME = ShapeTable.of([shape_named(name) for name in MODELS]).frame().assign(tokens=1e11)
WORK = parse_workload("128/64@4,ttft=1,tpot=10ms")


def at(speed: float, loss: float, **changes: object) -> Proposal:
    measured = replace(SPEED, output_tokens_per_second=speed, ttft=0.5, tpot=0.005)
    return proposal(throughput=measured, predicted_loss=loss, **changes)


def test_differences_are_those_of_the_predictions_and_none_to_itself() -> None:
    apart, predicted = differences(FIT, FRAME, 0), FIT.predict(FRAME)["predicted_loss"]
    assert apart["difference_nats"].to_numpy() == pytest.approx(
        (predicted - predicted[0]).to_numpy()
    )
    assert (apart.iloc[0] == 0).all()
    assert (apart["difference_nats_low"] <= apart["difference_nats"]).all()
    assert (apart["difference_nats"] <= apart["difference_nats_high"]).all()


def test_interval_of_a_difference_leaves_out_common_uncertainty() -> None:
    """The level of the loss is more uncertain than the difference of two shapes."""
    shifted = replace(FIT, draws=FIT.draws + np.eye(len(FIT.theta))[FIT.law.index["A"]] * 0.1)
    level = shifted.predict(FRAME)
    apart = differences(shifted, FRAME, 0)
    width = apart["difference_nats_high"] - apart["difference_nats_low"]
    assert (width < 0.1 * (level["mean_high"] - FIT.central(FRAME)).abs()).all()


def test_limits_that_a_measurement_breaks_are_named() -> None:
    fine, slow = at(10, 2.0).throughput, replace(SPEED, ttft=2.0, tpot=0.02)
    assert fine is not None
    assert broken_limits(fine, WORK) == []
    assert broken_limits(slow, WORK) == ["TTFT 2 s exceeds 1 s", "TPOT 0.02 s exceeds 0.01 s"]


def test_service_level_that_no_shape_meets_is_refused_with_the_best_value() -> None:
    times = np.array([3.0, 2.0, np.nan])
    with pytest.raises(InputError, match=r"`max_ttft <= 1` s \(the best shape has 2 s\)") as caught:
        require_service(times, times / 1000, WORK)
    assert "max_tpot" not in str(caught.value)  # which some shapes meet
    require_service(np.array([3.0, 0.9]), np.array([0.001, 0.009]), WORK)


def test_service_level_met_only_by_different_shapes_is_refused() -> None:
    with pytest.raises(InputError, match=r"meets `max_ttft <= 1` s .* and `max_tpot <= 0.01` s"):
        require_service(np.array([0.5, 2.0]), np.array([0.02, 0.005]), WORK)


def test_shape_that_exceeds_a_limit_is_not_on_the_front() -> None:
    late = proposal(throughput=replace(SPEED, output_tokens_per_second=1e9, ttft=9.0))
    both = [late.predicted_loss, 2.6], [late.throughput, at(10, 2.6).throughput]
    assert front_of(*both, WORK) == [False, True]
    assert front_of(*both) == [True, False]


def test_reasons_are_given_to_the_front_and_the_baseline_only() -> None:
    wide = replace(SHAPE, hidden_size=128, num_key_value_heads=1)
    base = at(10, 2.5, role="baseline", speedup=1.0)
    found = reasons(
        [
            base,
            at(20, 2.4, role="fast", shape=wide, on_front=True, speedup=2.0, difference_nats=-0.1),
            at(30, 2.6, on_front=True, speedup=3.0, difference_nats=0.1),
            at(5, 2.9, speedup=0.5, difference_nats=0.4),
        ]
    )
    assert found[0] == "the model to beat"
    assert found[1].startswith("fastest at no more loss than the baseline (P ")
    assert "hidden size ×\u00a02" in found[1]
    assert "KV cache ×\u00a00.5" in found[1]
    size = wide.n_non_embedding / SHAPE.n_non_embedding
    assert found[1].endswith(f", N ×\u00a0{size:.3g}")
    assert found[2] == "fastest of all"
    assert found[3] == ""


def test_note_names_the_ratios_without_a_term_in_the_law() -> None:
    (note,) = missing_terms(FIT)
    assert "no term for gqa" in note


def test_formatted_warning_has_counts_with_suffixes_and_symbols() -> None:
    row = load_runs("paper-2510.18245").frame.iloc[0]
    formatted = [format_warning(text) for text in FIT.warnings(row)]
    assert formatted[0] == "N 973M: 0.52 decades above the runs' 297M"
    assert formatted[1] == "D 100B: 0.53 decades above the runs' 29.7B"
    assert all(concerns_budget(text) for text in FIT.warnings(row))
    assert format_warning("not measured: no room") == "not measured: no room"
    assert not concerns_budget("gqa 8 is 0.30 decades above the runs' 4")


def test_differences_take_the_index_of_their_frame() -> None:
    shifted = FRAME.set_axis(pd.Index([7, 8, 9]))
    assert list(differences(FIT, shifted, 1).index) == [7, 8, 9]
