"""Seeds that a wanted resolution needs, against simulations of the definition."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shapelaw.scaling.design.resolution import (
    LawReading,
    NoiseEstimate,
    NoiseLevel,
    half_width,
    information_ratio,
    measure_noise_levels,
    noise_at,
    seeds_for,
    tokens_interaction,
)
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import RunTable, as_run_table

LAW = LawReading(misfit=0.0044, parameters=7, shapes=18)
FIELDS = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "vocab_size": 256,
}


def coverage(degrees: int, assumed: float, seeds: int = 3, repeats: int = 20_000) -> float:
    """Simulate plans with an estimated noise; return how often the interval holds the truth."""
    generator, sigma = np.random.default_rng(degrees), 0.005
    estimates = sigma * np.sqrt(generator.chisquare(degrees, repeats) / degrees)
    means = generator.normal(0, sigma, (repeats, 2, seeds)).mean(axis=2)
    unit = 0.01
    widths = estimates / unit * half_width(NoiseEstimate(deviation=unit, degrees=assumed), seeds)
    return float((np.abs(means[:, 0] - means[:, 1]) <= widths).mean())


def test_simulated_difference_of_trained_shapes_lies_in_the_interval_in_95_percent() -> None:
    assert coverage(6, 6) == pytest.approx(0.95, abs=0.006)
    assert coverage(24, 24) == pytest.approx(0.95, abs=0.006)
    assert coverage(6, np.inf) < 0.92, "a normal quantile forgets that the noise is estimated"


def test_simulated_prediction_of_a_law_has_the_variance_of_the_formula() -> None:
    generator, shapes, seeds = np.random.default_rng(0), 20, 2
    misfit, noise = 0.004, NoiseEstimate(deviation=0.006)
    design = np.column_stack((np.ones(shapes), generator.normal(size=(shapes, 5))))
    squares = []
    for _ in range(2000):
        measured = generator.normal(0, misfit, shapes)
        measured += generator.normal(0, noise.deviation, (seeds, shapes)).mean(axis=0)
        fitted = design @ np.linalg.lstsq(design, measured, rcond=None)[0]
        errors = fitted - generator.normal(0, misfit, shapes)  # of other shapes at these places
        squares.append(((errors[:, None] - errors) ** 2).sum() / (shapes * (shapes - 1)))
    law = LawReading(misfit=misfit, parameters=5, shapes=shapes)
    standard_error = half_width(noise, seeds, law) / stats.norm.ppf(0.975)
    assert np.sqrt(np.mean(squares)) == pytest.approx(standard_error, rel=0.01)


@given(
    wanted=st.floats(0.002, 0.05),
    deviation=st.floats(0.001, 0.01),
    degrees=st.one_of(st.integers(3, 60), st.just(np.inf)),
    law=st.sampled_from((None, LAW)),
)
def test_seeds_are_the_fewest_that_reach_the_wanted_resolution(
    wanted: float, deviation: float, degrees: float, law: LawReading | None
) -> None:
    noise = NoiseEstimate(deviation=deviation, degrees=degrees)
    try:
        seeds = seeds_for(wanted, noise, law)
    except InputError as error:
        needed = np.inf if "seeds cannot help" in str(error) else 1000
        assert half_width(noise, needed, law) >= wanted * (1 - 1e-9)
        return
    assert half_width(noise, seeds, law) <= wanted * (1 + 1e-9)
    assert seeds == 1 or half_width(noise, seeds - 1, law) > wanted


def test_resolution_below_the_misfit_is_refused_only_for_a_law() -> None:
    noise = NoiseEstimate(deviation=0.0048, degrees=24)
    limit = half_width(noise, np.inf, LAW)
    assert limit > noise.quantile * np.sqrt(2) * LAW.misfit
    with pytest.raises(InputError, match=r"must be above .* more seeds cannot help .* 0\.44 %"):
        seeds_for(limit, noise, LAW)
    assert seeds_for(limit * 1.01, noise, LAW) > 1
    assert seeds_for(0.003, noise) == 22


def test_resolution_that_needs_too_many_seeds_is_refused_with_their_number() -> None:
    with pytest.raises(InputError, match=r"`seeds <= 1000` must hold, .* needs \d{4,} seeds"):
        seeds_for(1e-4, NoiseEstimate(deviation=0.005))


def test_law_on_too_few_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="the plan has 8 shapes for 7 parameters"):
        LawReading(misfit=0.004, parameters=7, shapes=8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deviation": 0.0}, "`0 < noise < 100 %`"),
        ({"deviation": float("nan")}, "`0 < noise < 100 %`"),
        ({"deviation": 0.01, "degrees": 0}, "`degrees of freedom >= 1`"),
    ],
)
def test_invalid_noise_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoiseEstimate(**values)


# Noise measured on tables


def synthetic_seeds(
    *, deviations: dict[int, float], interaction: float = 0.0, shapes: int = 12, seeds: int = 4
) -> tuple[RunTable, np.ndarray]:
    """Draw runs of synthetic shapes of two sizes, by the noise at each tokens per parameter.

    Returns the table and ln loss by size, tokens per parameter, shape and seed.
    """
    generator = np.random.default_rng(1)
    log_loss = np.zeros((2, len(deviations), shapes, seeds))
    rows = []
    for (size, level, shape, seed), _ in np.ndenumerate(log_loss):
        ratio = list(deviations)[level]
        parameters = (50_000, 100_000)[size]
        rows.append(
            FIELDS
            | {"hidden_size": 8 * (shape + 1), "n_non_embedding": parameters * (1 + shape / 1000)}
            | {"tokens": parameters * ratio, "seed": seed, "run_id": f"{len(rows)}"}
        )
    log_loss += generator.normal(0, 0.02, (2, 1, shapes, 1))
    log_loss += generator.normal(0, interaction, (2, len(deviations), shapes, 1)) / np.sqrt(2)
    for level, deviation in enumerate(deviations.values()):
        log_loss[:, level] += generator.normal(0, deviation, (2, shapes, seeds))
    frame = pd.DataFrame(rows).assign(loss=2 * np.exp(log_loss.reshape(-1)))
    return as_run_table(frame), log_loss


def test_noise_of_a_synthetic_table_is_the_pooled_deviation_of_its_seeds() -> None:
    runs, log_loss = synthetic_seeds(deviations={5: 0.008, 20: 0.004})
    short, long = measure_noise_levels(runs)
    assert (short.nominal, long.nominal) == (5, 20)
    for level, values in ((short, log_loss[:, 0]), (long, log_loss[:, 1])):
        pooled = np.sqrt(values.var(axis=-1, ddof=1).mean())
        assert level.pooled.deviation == pytest.approx(pooled)
        assert level.pooled.degrees == 2 * 12 * 3
        assert level.sizes == pytest.approx((50_000, 100_000), rel=0.02)


def test_sizes_keep_their_own_noise_only_where_bartletts_test_tells_them_apart() -> None:
    generator = np.random.default_rng(2)
    for ratio, apart in ((1.0, False), (3.0, True)):
        samples = [generator.normal(0, 0.005 * factor, 13) for factor in (1.0, ratio)]
        level = NoiseLevel(
            tokens_per_parameter=20.0,
            sizes=(5e4, 3e5),
            of_sizes=tuple(
                NoiseEstimate(deviation=sample.std(ddof=1), degrees=12) for sample in samples
            ),
        )
        assert level.same_noise_chance == pytest.approx(stats.bartlett(*samples).pvalue)
        assert (level.at(2.5e5) == level.of_sizes[1]) is apart
        assert (level.at(2.5e5) == level.pooled) is not apart


def test_noise_between_measured_token_counts_is_a_power_and_beyond_them_constant() -> None:
    levels = [
        NoiseLevel(
            tokens_per_parameter=ratio,
            sizes=(1e5,),
            of_sizes=(NoiseEstimate(deviation=deviation, degrees=degrees),),
        )
        for ratio, deviation, degrees in ((5, 0.008, 24), (20, 0.002, 10))
    ]
    between = noise_at(levels, 1e5, 10)
    assert (between.deviation, between.degrees) == (pytest.approx(0.004), 10)
    assert noise_at(levels, 1e5, 1).deviation == pytest.approx(0.008)
    assert noise_at(levels, 1e5, 100).deviation == pytest.approx(0.002)


def test_table_without_replicates_is_refused() -> None:
    runs, _ = synthetic_seeds(deviations={20: 0.004}, seeds=1)
    with pytest.raises(InputError, match="train a second seed, or give --noise"):
        measure_noise_levels(runs)


def test_change_of_shapes_with_tokens_is_found_in_a_synthetic_table_that_has_it() -> None:
    noise = {5: 0.006, 20: 0.004}
    runs, log_loss = synthetic_seeds(deviations=noise, interaction=0.01, shapes=40)
    pairs = log_loss[:, 0] - log_loss[:, 1]  # by size, shape and seed
    drawn = pairs.mean(-1).var(axis=1, ddof=1).mean() - pairs.var(axis=-1, ddof=1).mean() / 4
    present = tokens_interaction(runs, *measure_noise_levels(runs))
    runs, _ = synthetic_seeds(deviations=noise, shapes=40)
    absent = tokens_interaction(runs, *measure_noise_levels(runs))
    assert present is not None
    assert absent is not None
    assert present.shapes == absent.shapes == 80
    assert present.deviation == pytest.approx(np.sqrt(drawn))
    assert present.chance < 1e-6
    assert absent.deviation < 0.003
    assert absent.chance > 0.01


def test_change_of_shapes_with_tokens_is_unknown_without_seeds_at_both() -> None:
    runs, _ = synthetic_seeds(deviations={5: 0.006, 20: 0.004}, shapes=1)
    assert tokens_interaction(runs, *measure_noise_levels(runs)) is None


def test_shipped_ladder_carries_twice_the_information_per_flop_at_5_tokens_per_parameter() -> None:
    runs = load_runs("proxies")
    short, long = measure_noise_levels(runs)
    ratio = information_ratio(short, long)
    log_loss, tokens_per_parameter = np.log(runs.losses), runs.tokens / runs.sizes
    names = [*FIELDS.keys() - {"vocab_size"}, "hidden_size", "tokens"]
    groups = runs.frame.assign(log_loss=log_loss, ratio=tokens_per_parameter).groupby(names)
    of_shapes = groups.agg(variance=("log_loss", "var"), ratio=("ratio", "mean")).dropna()
    low, high = (
        of_shapes["variance"][of_shapes["ratio"].between(*ends)].mean()
        for ends in ((4, 6), (18, 22))
    )
    assert ratio.value == pytest.approx(4 * high / low, rel=0.01)
    assert ratio.value == pytest.approx(2.17, abs=0.01)
    assert ratio.low < 1 < ratio.high, "24 degrees of freedom do not make it certain"
    assert short.pooled.degrees == long.pooled.degrees == 24
