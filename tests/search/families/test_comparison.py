"""Differences of loss between families, with the noise between seeds, on rows of known truth."""

import json
from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.search.families.budget import models_of_budget, variant_named
from shapelaw.search.families.comparison import (
    BASELINE,
    BOUND,
    DIVERGED,
    HIGHER,
    LOWER,
    NONE,
    adjust_p_values,
    compare_rows,
)

NAMES = ("llama", "gpt2", "qwen3", "llama+canon-AC")


@cache
def config_of(name: str) -> str:
    variant = variant_named(name)
    (model,) = models_of_budget([variant], 100_000, context=64, vocabulary=256).values()
    return model.config_text()


def rows_of(losses: Mapping[str, list[float]]) -> pd.DataFrame:
    """Make rows of a run table with the losses of some families."""
    return pd.DataFrame(
        [
            {
                "run_id": f"{name}-{seed}", "family": name.partition("+")[0], "role": "family",
                "config": config_of(name), "objective": variant_named(name).objective,
                "loss": loss, "tokens": 1000, "seed": seed, "context_length": 64,
                "learning_rate": 0.01, "tokens_per_second": 100.0,
            }
            for name, values in losses.items()
            for seed, loss in enumerate(values)
        ]
    )  # fmt: skip


def test_difference_and_interval_equal_the_pooled_t_interval_of_a_textbook() -> None:
    losses = {"llama": [2.0, 2.1, 2.05], "gpt2": [2.2, 2.3], "qwen3": [1.9, 1.95, 1.93, 2.0]}
    result = compare_rows(rows_of(losses))
    logs = {name: np.log(values) for name, values in losses.items()}
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in logs.values())
    degrees = 2 + 1 + 3
    assert result.noise.degrees == degrees
    assert result.noise.deviation == pytest.approx((squares / degrees) ** 0.5)
    difference = logs["gpt2"].mean() - logs["llama"].mean()
    half = student.ppf(0.975, degrees) * (squares / degrees * (1 / 2 + 1 / 3)) ** 0.5
    row = result.table.set_index("family").loc["gpt2"]
    expected = [100 * (np.exp(difference + sign * half) - 1) for sign in (0, -1, 1)]
    assert [row["difference_percent"], row["low"], row["high"]] == pytest.approx(expected)
    assert list(result.table["family"]) == ["qwen3", "llama", "gpt2"]


def test_intervals_hold_the_true_difference_in_95_of_100_experiments() -> None:
    truth = {"llama": 0.0, "gpt2": 0.02, "qwen3": -0.01, "llama+canon-AC": -0.04}
    random, held = np.random.default_rng(5), []
    for _ in range(400):
        losses = {
            name: list(2 * np.exp(value + 0.005 * random.standard_normal(3)))
            for name, value in truth.items()
        }
        table = compare_rows(rows_of(losses)).table.set_index("family")
        row = table.loc["gpt2"]
        held.append(row["low"] <= 100 * np.expm1(0.02) <= row["high"])
    assert 0.92 <= np.mean(held) <= 0.98


def test_interval_of_paired_seeds_is_no_narrower() -> None:
    """Rows that share a seed share no noise: their order changes nothing."""
    first = compare_rows(rows_of({"llama": [2.0, 2.1, 2.2], "gpt2": [2.1, 2.2, 2.3]}))
    second = compare_rows(rows_of({"llama": [2.0, 2.1, 2.2], "gpt2": [2.3, 2.1, 2.2]}))
    columns = ["difference_percent", "low", "high"]
    pd.testing.assert_frame_equal(first.table[columns], second.table[columns])


def test_verdicts_need_more_than_the_noise_after_holms_correction() -> None:
    losses = {
        "llama": [2.00, 2.01, 2.02],
        "gpt2": [2.30, 2.31, 2.32],
        "qwen3": [2.01, 2.02, 2.00],
        "llama+canon-AC": [1.80, 1.81, 1.79],
    }
    verdicts = compare_rows(rows_of(losses)).table.set_index("family")["verdict"]
    assert verdicts.to_dict() == {
        "llama": BASELINE,
        "gpt2": HIGHER,
        "qwen3": NONE,
        "llama+canon-AC": LOWER,
    }


def test_holm_multiplies_the_smallest_p_value_by_the_number_of_tests() -> None:
    adjusted = adjust_p_values(np.array([0.5, np.nan, 0.01, 0.02]))
    assert adjusted == pytest.approx([0.5, np.nan, 0.03, 0.04], nan_ok=True)


def test_resolution_is_about_one_percent_for_three_seeds_of_the_usual_noise() -> None:
    deviation, families = 0.005, 17
    spread = deviation * np.array([-1.0, 0.0, 1.0])  # a sample deviation of exactly 0.005
    losses = {name: list(2 * np.exp(spread)) for name in NAMES}
    few = compare_rows(rows_of(losses)).resolution_percent
    expected = student.ppf(0.975, 2 * len(NAMES)) * deviation * (2 / 3) ** 0.5
    assert few == pytest.approx(100 * np.expm1(expected))
    many = student.ppf(0.975, 2 * families) * deviation * (2 / 3) ** 0.5
    assert 0.008 < many < 0.0085


def test_diverged_run_has_no_verdict_and_no_part_in_the_noise() -> None:
    losses = {"llama": [2.0, 2.1], "gpt2": [2.0, 2.1], "qwen3": [2.5, float("nan")]}
    result = compare_rows(rows_of(losses))
    row = result.table.set_index("family").loc["qwen3"]
    assert (row["verdict"], row["diverged"], row["runs"]) == (DIVERGED, 1, 1)
    assert result.noise.degrees == 2


def test_single_seeds_have_differences_without_interval_and_verdict() -> None:
    result = compare_rows(rows_of({"llama": [2.0], "gpt2": [2.2]}))
    row = result.table.set_index("family").loc["gpt2"]
    assert row["difference_percent"] == pytest.approx(10.0)
    assert np.isnan(row["low"])
    assert row["verdict"] == NONE


def test_canon_rows_are_told_from_the_family_by_their_config() -> None:
    table = compare_rows(rows_of({"llama": [2.0, 2.1], "llama+canon-AC": [1.9, 2.0]})).table
    assert list(table["family"]) == ["llama+canon-AC", "llama"]
    models = {name: json.loads(config_of(name)).get("canon_set") for name in table["family"]}
    assert models == {"llama": None, "llama+canon-AC": "AC"}


def test_rows_of_several_budgets_are_refused() -> None:
    rows = rows_of({"llama": [2.0, 2.1], "gpt2": [2.0, 2.1]})
    rows.loc[0, "tokens"] = 2000
    with pytest.raises(InputError, match="`tokens` must be the same"):
        compare_rows(rows)


def test_baseline_without_rows_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(InputError, match="llama has none; choose one of gpt2, qwen3"):
        compare_rows(rows_of({"gpt2": [2.0, 2.1], "qwen3": [2.0, 2.1]}))


def test_family_of_other_noise_is_named() -> None:
    quiet, loud = [2.0, 2.001, 2.002, 2.0005], [2.0, 2.2, 2.4, 2.1]
    (remark,) = compare_rows(rows_of({"llama": quiet, "gpt2": quiet, "qwen3": loud})).remarks
    assert "most for qwen3" in remark
    assert compare_rows(rows_of({"llama": quiet, "gpt2": quiet})).remarks == ()


def test_equal_losses_of_all_seeds_are_no_difference() -> None:
    table = compare_rows(rows_of({"llama": [2.0, 2.0], "gpt2": [2.0, 2.0]})).table
    assert set(table["verdict"]) == {BASELINE, NONE}


def test_bounds_of_diffusion_models_have_no_interval_and_no_part_in_the_noise() -> None:
    exact = {"llama": [2.0, 2.01], "gpt2": [2.1, 2.11]}
    alone = compare_rows(rows_of(exact))
    both = compare_rows(rows_of(exact | {"llama+block:16": [2.4, 2.9]}))
    row = both.table.set_index("family").loc["llama+block:16"]
    assert row["difference_percent"] > 0
    assert np.isnan(row["low"])
    assert (row["verdict"], row["objective"]) == (BOUND, "block:16")
    assert both.noise == alone.noise
    assert "llama+block:16 is an upper bound" in both.remarks[-1]
