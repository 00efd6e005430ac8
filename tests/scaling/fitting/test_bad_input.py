"""Fits of damaged tables: a fit with a status, or one clear error."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shapelaw.scaling.design.goals import parse_goal
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.derived import intervals, parameter
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.laws.registry import LAWS
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import write_runs
from support.synthetic import synthetic_runs

COLUMNS = (N, D, "loss", "hidden_over_sqrt_n", "mlp_to_attention", "gqa")
DAMAGES = ("none", "constant", "collinear", "noise", "huge", "tiny", "few", "one level", "repeat")


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Return synthetic runs with up to three kinds of damage that a valid table may have."""
    frame = synthetic_runs(shapes=draw(st.integers(1, 4)), seed=draw(st.integers(0, 50)))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(0, 3))):
        damage = draw(st.sampled_from(DAMAGES))
        column = draw(st.sampled_from(COLUMNS))
        if damage == "constant":
            frame[column] = float(frame[column].iloc[0])
        elif damage == "collinear":
            other = draw(st.sampled_from(COLUMNS))
            frame[column] = 3.0 * frame[other].to_numpy() ** draw(st.sampled_from([-1.0, 1.0, 2.0]))
        elif damage == "noise":
            frame[column] *= np.exp(generator.standard_normal(len(frame)))
        elif damage in ("huge", "tiny"):
            row = int(generator.integers(len(frame)))
            frame.loc[frame.index[row], column] *= 1e6 if damage == "huge" else 1e-6
        elif damage == "few":
            frame = frame.head(draw(st.integers(1, 14))).reset_index(drop=True)
        elif damage == "one level":
            frame = frame[frame[column] == frame[column].iloc[0]].reset_index(drop=True)
        elif damage == "repeat":
            frame = pd.concat([frame, frame], ignore_index=True)
    return frame


def fitted(law, runs, **settings):
    """Return the fit without a text, or None with the text of the error."""
    try:
        return fit(law, runs, **settings), ""
    except InputError as error:
        return None, str(error)


@pytest.mark.parametrize(
    "law",
    [
        "chinchilla",
        pytest.param("conditional", marks=pytest.mark.slow),
        pytest.param("conditional-steady", marks=pytest.mark.slow),
        "power",
    ],
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(runs=tables())
def test_fit_of_damaged_table_has_a_status_or_raises_one_clear_error(law, runs):
    found, refusal = fitted(law, runs, starts=16, resamples=3)
    if found is None:
        assert "`" in refusal
        assert "\n" not in refusal
        return
    assert found.status
    assert np.isfinite(found.objective)
    assert np.isfinite(found.theta).all()
    predicted = found.predict(runs.head(3))
    assert np.isfinite(predicted.to_numpy()).all()
    assert (predicted["loss_low"] <= predicted["loss_high"]).all()
    found.summary()
    found.optima()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("prior", ["weak", "none"])
def test_fit_of_three_rows_raises_or_names_what_it_holds_or_takes_from_the_prior(law, prior):
    runs = synthetic_runs(shapes=1).head(3)
    found, refusal = fitted(law, runs, starts=8, resamples=0, prior=prior)
    if found is None:
        assert "needs at least" in refusal or "lacks the column" in refusal
    else:
        on_prior = any("on the prior" in note for note in found.notes)
        assert "held" in found.status or on_prior


def test_fit_of_one_size_notes_that_all_runs_have_one_size():
    fitted = fit("conditional", synthetic_runs(sizes=(4e5,), shapes=20), starts=32, resamples=0)
    assert any("all runs have one size" in note for note in fitted.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": np.nan},
            r"1 of 18 rows have not \(1 no finite loss; line 6\)",
        ),
        ({"loss": -1.0}, "`loss > 0` and finite must hold, but got -1"),
        ({"loss": "three"}, "`loss > 0` and finite must hold, but got three"),
        ({"tokens": 0.0}, "`tokens > 0` and finite must hold, but got 0"),
    ],
)
def test_invalid_value_is_named_with_its_line(tmp_path, changes, message):
    runs = synthetic_runs(shapes=2)
    for name, value in changes.items():
        runs[name] = runs[name].astype(object)
        runs.loc[4, name] = value
    path = tmp_path / "runs.csv"
    write_runs(path, runs)
    with pytest.raises(InputError, match=message) as error:
        load_runs(path)
    assert "line 6" in str(error.value)


def test_fit_raises_when_a_column_of_the_law_holds_text():
    runs = synthetic_runs(shapes=2).assign(corpus="dolma")
    with pytest.raises(InputError, match="`corpus` must hold numbers to be used in a law"):
        fit("Chinchilla() * UShape('corpus')", runs, starts=4, resamples=0)


@pytest.fixture(scope="module")
def small():
    runs = synthetic_runs(shapes=2).assign(family="one")
    return fit("chinchilla", runs, starts=8, resamples=8), runs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 0.95}, "`1 <= level < 100` must hold, in per cent, but got 0.95"),
        ({"level": 100}, "`1 <= level < 100` must hold"),
        ({"way": "bootstrap", "resamples": 0}, "`resamples >= 2` must hold for bootstrap"),
        ({"way": "bca", "resamples": 1}, "`resamples >= 2` must hold for bca"),
        ({"way": "sandwich", "clusters": "family"}, "`family` must have at least 2 values"),
    ],
)
def test_intervals_raise_on_meaningless_arguments(small, changes, message):
    fitted, runs = small
    with pytest.raises(InputError, match=message):
        intervals(fitted, runs, parameter(fitted, "E"), **changes)


def test_intervals_of_one_quantity_equal_those_of_a_list_of_one(small):
    fitted, runs = small
    one = parameter(fitted, "E")
    alone, listed = (intervals(fitted, runs, way, way="sandwich") for way in (one, [one]))
    pd.testing.assert_frame_equal(alone, listed)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({N: [1e6]}, f"the table lacks the column `{D}`"),
        ({N: ["a"], D: [1e9]}, f"`{N}` must hold numbers"),
    ],
)
def test_prediction_raises_when_a_column_holds_no_numbers(small, rows, message):
    with pytest.raises(InputError, match=message):
        small[0].predict(pd.DataFrame(rows))


def test_prediction_raises_when_table_has_no_rows(small):
    with pytest.raises(InputError, match="but got no rows"):
        small[0].predict(small[1].head(0))


def test_fit_raises_when_a_fit_is_given_instead_of_a_law(small):
    fitted, runs = small
    with pytest.raises(InputError, match="`--law` must be one of"):
        fit(fitted, runs)


def test_goal_rounds_widths_and_depths_to_integers():
    runs = synthetic_runs(shapes=4)
    ends = np.resize([64.0, 101.0], len(runs))
    runs = runs.assign(hidden_size=ends, num_hidden_layers=ends[::-1] // 10)
    fitted = fit("width-depth", runs, starts=8, resamples=0)
    (row,) = parse_goal("predict:n=1e9,tokens=2e10", fitted).at.to_dict("records")
    assert row["hidden_size"] == 80  # of 80.4, the middle
    assert row["num_hidden_layers"] == round(row["num_hidden_layers"])
