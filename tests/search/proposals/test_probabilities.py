from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.decisions.decide import decide
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.search.engines._base import Measurement, interval
from shapelaw.search.proposals.probabilities import (
    NO_SPREAD,
    UncertainSpeed,
    probability_faster,
    probability_of_best,
    probability_of_less_loss,
)
from shapelaw.search.proposals.ranking import differences
from support.one_proposal import SPEED
from support.search_runs import synthetic_runs

MODELS = ["llama-3.2-1b", "panda-1b", "surefire-1b"]
FRAME = ShapeTable.of([shape_named(name) for name in MODELS]).frame().assign(tokens=1e11)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit("conditional", synthetic_runs(), starts=16, resamples=200)


def measured(rates: np.ndarray) -> Measurement:
    """Make the measurement of repeats."""
    low, high = interval(rates)
    return replace(
        SPEED, kind="measured", repeats=len(rates), output_tokens_per_second=float(rates.mean()),
        low=low, high=high,
    )  # fmt: skip


def predicted(rate: float, spread: float = 1.0) -> Measurement:
    return replace(SPEED, output_tokens_per_second=rate, low=rate / spread, high=rate * spread)


def test_speed_of_repeats_has_their_standard_error() -> None:
    rates = np.array([100.0, 104.0, 99.0, 101.0])
    speed = UncertainSpeed.of(measured(rates))
    assert speed.error == pytest.approx(rates.std(ddof=1) / 2)
    assert speed.degrees == 3


def test_probability_faster_agrees_with_welchs_test_of_scipy() -> None:
    from scipy.stats import ttest_ind

    generator = np.random.default_rng(1)
    first, second = generator.normal(103, 4, 5), generator.normal(100, 2, 7)
    probability, basis = probability_faster(measured(first), measured(second))
    test = ttest_ind(first, second, equal_var=False, alternative="less")
    assert probability == pytest.approx(test.pvalue, abs=1e-6)
    assert 0.05 < test.pvalue < 0.99
    assert basis == "spread of measured repeats"


@given(st.floats(1, 1e3), st.floats(1, 1e3), st.floats(1.01, 2))
def test_probability_faster_and_slower_sum_to_one(a: float, b: float, spread: float) -> None:
    speeds = [UncertainSpeed.of(predicted(rate, spread)) for rate in (a, b)]
    total = speeds[0].probability_above(speeds[1]) + speeds[1].probability_above(speeds[0])
    assert total == pytest.approx(1)


@pytest.mark.parametrize(("rate", "wanted"), [(11.0, 1.0), (10.0, 0.5), (9.0, 0.0)])
def test_speeds_without_spread_are_compared_as_they_are_and_marked_as_predicted(
    rate: float, wanted: float
) -> None:
    probability, basis = probability_faster(predicted(rate), predicted(10.0))
    assert probability == wanted
    assert basis == f"{NO_SPREAD}: predicted speeds are compared as they are"


def test_shape_that_the_engine_refuses_has_no_probability_but_the_reason() -> None:
    assert probability_faster("no room", predicted(10.0)) == (None, "no speed: no room")
    assert probability_faster(predicted(10.0), "no kernel") == (None, "no speed: no kernel")


def test_time_models_error_is_the_basis_of_an_estimated_speed() -> None:
    estimated = replace(predicted(11.0, 1.1), kind="time model")
    probability, basis = probability_faster(estimated, predicted(10.0))
    assert basis == "spread of the time model's error"
    assert probability is not None
    assert 0.9 < probability < 0.99


def test_probabilities_of_loss_agree_with_those_of_decide(fitted: Fit) -> None:
    """The same joint draws, but computed with the table of decisions."""
    draws = fitted.log_loss_draws(FRAME)
    assert probability_of_best(draws, [True] * 3) == pytest.approx(decide(fitted, FRAME)["p_best"])
    pair = FRAME.iloc[[0, 2]]
    less = probability_of_less_loss(fitted.log_loss_draws(pair), 0)
    assert less[1] == pytest.approx(decide(fitted, pair)["p_best"].iloc[1])
    assert less[0] == 0.5


def test_shape_that_is_not_allowed_has_no_probability_to_be_best(fitted: Fit) -> None:
    probabilities = probability_of_best(fitted.log_loss_draws(FRAME), [True, False, True])
    assert probabilities[1] is None
    assert probabilities[0] + probabilities[2] == pytest.approx(1)  # type: ignore[operator]


def test_misfit_of_the_law_widens_the_interval_of_a_difference(fitted: Fit) -> None:
    state = fitted.posterior
    assert state is not None
    misfitting = replace(fitted, posterior=replace(state, amplitude=state.amplitude + 0.1))
    wide, narrow = (differences(each, FRAME, 0) for each in (misfitting, fitted))
    widths = [each["difference_nats_high"] - each["difference_nats_low"] for each in (wide, narrow)]
    assert (widths[0][1:] > 1.2 * widths[1][1:]).all()
    assert (wide.iloc[0] == 0).all()
