from dataclasses import replace

import numpy as np
import pytest

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines.accelerators import hardware
from shapelaw.search.time_model.cross_validation import cross_validate
from shapelaw.search.time_model.model import TimeModel
from shapelaw.search.time_model.terms import alignment_features, decode_terms, prefill_terms
from shapelaw.search.workload import Workload, parse_workload
from support.made_up import TABLE, WORKLOAD, measured, measurement, true_seconds

LARGE = parse_workload("1024/256@8:bfloat16")
ROWS = np.random.default_rng(1).permutation(len(TABLE))


def model(count: int, **options: float) -> TimeModel:
    some = TABLE.take(ROWS[:count])
    return TimeModel.fit(some, measured(some, **options), WORKLOAD)  # type: ignore[arg-type]


def truth(table: ShapeTable = TABLE, misfit: float = 0.0) -> np.ndarray:
    seconds = np.sum(true_seconds(table, WORKLOAD, misfit=misfit), axis=0)
    return np.asarray(np.log(WORKLOAD.concurrency * WORKLOAD.output_tokens / seconds))


def test_seconds_made_of_the_terms_are_recovered_from_twenty_shapes() -> None:
    mean, deviation = model(20).predict(TABLE)
    assert np.abs(mean - truth()).max() < 0.02
    assert deviation.max() < 0.05


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_any_number_of_measurements_gives_finite_predictions(count: int) -> None:
    mean, deviation = model(count).predict(TABLE)
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()


def test_one_measurement_corrects_the_common_factor() -> None:
    before = np.abs(model(0).predict(TABLE)[0] - truth()).mean()
    after = np.abs(model(1).predict(TABLE)[0] - truth()).mean()
    assert after < before / 3


def test_errors_and_deviations_shrink_with_more_measurements() -> None:
    fitted = [model(count, noise=0.02, misfit=0.2).predict(TABLE) for count in (0, 2, 10, 60)]
    spreads = [deviation.mean() for _, deviation in fitted]
    errors = [np.abs(mean - truth(misfit=0.2)).mean() for mean, _ in fitted]
    assert spreads == sorted(spreads, reverse=True)
    assert errors == sorted(errors, reverse=True)


def test_prediction_without_measurements_follows_the_roofline_of_the_device() -> None:
    nothing = TABLE.take(np.array([], dtype=int))
    large = ShapeTable(
        **{name: getattr(TABLE, name)[:5] for name in TABLE.__dataclass_fields__}
        | {"hidden_size": np.full(5, 8192), "intermediate_size": np.full(5, 28672)}
    )
    fast, slow = (
        TimeModel.fit(nothing, [], LARGE, device=hardware(name)).predict(large)
        for name in ("h200", "a100")
    )
    ratio = np.exp(fast[0] - slow[0])
    bandwidth = hardware("h200").bandwidth / hardware("a100").bandwidth
    peak = hardware("h200").peak_flops["bfloat16"] / hardware("a100").peak_flops["bfloat16"]
    assert (ratio > 0.9 * min(bandwidth, peak)).all()
    assert (ratio < 1.1 * max(bandwidth, peak)).all()
    assert (fast[1] > 0.3).all(), "a roofline alone leaves a wide interval"


def test_coverage_of_the_intervals_is_near_their_level() -> None:
    inside = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(TABLE))
        seen, unseen = TABLE.take(order[:30]), TABLE.take(order[30:130])
        fitted = TimeModel.fit(seen, measured(seen, noise=0.03, misfit=0.15, seed=seed), WORKLOAD)
        mean, deviation = fitted.predict(unseen)
        found = measured(unseen, noise=0.03, misfit=0.15, seed=seed + 100)
        speeds = np.log([each.output_tokens_per_second for each in found])
        inside.append(np.mean(np.abs(speeds - mean) < 1.96 * deviation))
    assert 0.88 < np.mean(inside) <= 1.0


def test_one_outlier_changes_the_coefficients_little() -> None:
    some = TABLE.take(ROWS[:30])
    found = measured(some, noise=0.01)
    with_outlier = [
        *found[:-1],
        measurement(WORKLOAD, *(10 * np.array(true_seconds(some, WORKLOAD))[:, -1])),
    ]
    calm = TimeModel.fit(some, found, WORKLOAD).decode.seconds
    moved = TimeModel.fit(some, with_outlier, WORKLOAD).decode.seconds
    before, after = (decode_terms(TABLE, WORKLOAD) @ seconds for seconds in (calm, moved))
    assert np.abs(np.log(after / before)).max() < 0.1


def test_measurement_with_a_wide_interval_has_less_weight() -> None:
    some = TABLE.take(ROWS[:12])
    seconds = np.array(true_seconds(some, WORKLOAD)).T
    twice = [measurement(WORKLOAD, *pair) for pair in seconds]

    def after(spread: float) -> float:
        odd = measurement(WORKLOAD, *(1.3 * seconds[0]), spread=spread)
        return float(TimeModel.fit(some, [odd, *twice[1:]], WORKLOAD).predict(some)[0][0])

    usual = TimeModel.fit(some, twice, WORKLOAD).predict(some)[0][0]
    assert abs(after(0.5) - usual) < abs(after(0.0) - usual)


def test_predictions_as_data_keep_the_mean_and_reduce_the_deviation() -> None:
    fitted = model(12, noise=0.02, misfit=0.2)
    pending = TABLE.take(ROWS[40:44])
    believing = fitted.with_predictions_as_data(pending)
    assert believing.predict(TABLE)[0] == pytest.approx(fitted.predict(TABLE)[0], abs=1e-9)
    assert (believing.predict(TABLE)[1] <= fitted.predict(TABLE)[1] + 1e-9).all()
    assert (believing.predict(pending)[1] < fitted.predict(pending)[1]).all()


def test_the_forecast_gives_ttft_and_tpot_and_an_interval_around_the_rate() -> None:
    forecast = model(30).forecast(TABLE)
    prefill, decode = true_seconds(TABLE, WORKLOAD)
    assert forecast.ttft == pytest.approx(prefill, rel=0.05)
    assert forecast.tpot == pytest.approx(decode / (WORKLOAD.output_tokens - 1), rel=0.05)
    assert (forecast.low < forecast.rate).all()
    assert (forecast.rate < forecast.high).all()


def test_ttft_follows_an_engine_whose_stages_overlap() -> None:
    """TTFT exceeds the share of prefill where sequences wait for each other."""
    some = TABLE.take(ROWS[:20])
    found = [
        Measurement(**(vars(each) | {"ttft": 3 * each.ttft, "tpot": 3 * each.tpot}))
        for each in measured(some)
    ]
    fitted = TimeModel.fit(some, found, WORKLOAD)
    assert fitted.forecast(some).ttft == pytest.approx([each.ttft for each in found], rel=0.05)
    assert fitted.predict(some)[0] == pytest.approx(truth(some), abs=0.05)


def test_terms_are_bytes_flops_layers_and_steps() -> None:
    one = TABLE.take(np.array([3]))
    shape, steps = TABLE[3], LARGE.output_tokens - 1
    context = LARGE.input_tokens + LARGE.output_tokens / 2
    assert decode_terms(one, LARGE)[0] == pytest.approx(
        [
            steps * shape.weight_bytes(2),
            steps * 8 * context * shape.kv_bytes(2),
            steps * 8 * shape.forward_flops(context),
            steps * shape.num_hidden_layers,
            steps,
        ]
    )
    prompt = 8 * LARGE.input_tokens
    terms = prefill_terms(one, LARGE)[0]
    assert terms[1] + terms[2] == pytest.approx(prompt * shape.forward_flops(512))
    assert terms[[0, 3, 4]] == pytest.approx([shape.weight_bytes(2), shape.num_hidden_layers, 1])


def test_features_are_of_order_one() -> None:
    features = alignment_features(TABLE)
    assert features.shape == (len(TABLE), 15)
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 6


def test_held_out_error_exceeds_the_error_on_fitted_shapes() -> None:
    some = TABLE.take(ROWS[:40])
    found = measured(some, noise=0.02, misfit=0.2)
    checked = cross_validate(some, found, WORKLOAD)
    assert 0.005 < checked.mape < 0.06
    assert checked.spearman > 0.9
    assert checked.coverage > 0.8
    assert checked.mape == pytest.approx(np.mean(np.abs(checked.predicted / checked.measured - 1)))
    seen = TimeModel.fit(some, found, WORKLOAD).forecast(some).rate
    assert np.mean(np.abs(seen / checked.measured - 1)) < checked.mape


def test_held_out_rank_correlation_is_low_for_shuffled_measurements() -> None:
    some = TABLE.take(ROWS[:40])
    shuffled = [measured(some)[row] for row in np.random.default_rng(0).permutation(40)]
    assert cross_validate(some, shuffled, WORKLOAD, folds=5).spearman < 0.6


def test_cross_validation_of_two_shapes_is_refused() -> None:
    some = TABLE.take(ROWS[:2])
    with pytest.raises(InputError, match=r"`measurements >= 3`, but got 2"):
        cross_validate(some, measured(some), WORKLOAD)


def test_automatic_concurrency_is_predicted_within_the_limits_and_at_its_own_speed() -> None:
    limit = 3e-4  # seconds per token
    automatic = replace(WORKLOAD, automatic=True, prompts="batch", max_tpot=limit)

    def at(number: int) -> Workload:
        return replace(WORKLOAD, concurrency=number)

    def tpot(number: int) -> np.ndarray:
        return true_seconds(TABLE, at(number))[1] / (WORKLOAD.output_tokens - 1)

    numbers = range(1, 200)
    largest = np.sum([tpot(number) <= limit for number in numbers], axis=0)
    assert 1 < largest.min() < largest.max() < 199
    rows = ROWS[:24]
    found = [measured(TABLE.take(rows[k : k + 1]), at(largest[row]))[0]
             for k, row in enumerate(rows)]  # fmt: skip
    forecast = TimeModel.fit(TABLE.take(rows), found, automatic).forecast(TABLE)
    assert (forecast.concurrency <= 1.05 * largest).all()
    assert (forecast.tpot <= limit).all()
    for number in np.unique(forecast.concurrency):
        here = forecast.concurrency == number
        seconds = np.sum(true_seconds(TABLE, at(int(number))), axis=0)
        true_rate = number * WORKLOAD.output_tokens / seconds
        assert forecast.rate[here] == pytest.approx(true_rate[here], rel=0.05)
    fixed = TimeModel.fit(TABLE.take(rows), measured(TABLE.take(rows)), WORKLOAD).forecast(TABLE)
    assert set(fixed.concurrency) == {WORKLOAD.concurrency}
