"""Tests of the rules of run tables, matched by their texts."""

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.ratios import table_of
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.runs.validation import (
    LARGEST_MODEL,
    as_floats,
    require_comparable_losses,
)
from support.run_tables import run_table


def prepared(frame: pd.DataFrame, **options: object) -> RunTable:
    """Return the checked run table of a frame."""
    return RunTable.of(frame, "runs", **options)


@pytest.mark.parametrize(
    "values",
    [
        [4.0, True, 3.8, 3.7],
        [4.0, "True", 3.8, 3.7],
        [4.0, "3,9", 3.8, 3.7],
        [4.0, pd.Timestamp("2026-01-01"), 3.8, 3.7],
        [4.0, "", 3.8, 3.7],
    ],
)
def test_non_number_is_refused_as_a_loss(values):
    with pytest.raises(InputError, match="runs line 3: `loss > 0` and finite must hold, but got"):
        prepared(run_table(loss=pd.Series(values, dtype=object)))


@pytest.mark.parametrize("values", [True, pd.Timestamp("2026-01-01"), pd.Timedelta(3)])
def test_booleans_and_dates_are_refused_in_a_numeric_column(values):
    with pytest.raises(InputError, match="runs line 2: `tokens > 0` and finite must hold"):
        prepared(run_table(tokens=values))


@pytest.mark.parametrize("column", ["n_active", "learning_rate", "unique_tokens", "flops_counted"])
def test_optional_column_may_have_missing_values_but_no_text(column):
    assert len(prepared(run_table(**{column: [1e6, np.nan, 0.0, 2e6]}))) == 4
    with pytest.raises(InputError, match=rf"line 3: `{column} > 0` and finite .* but got auto"):
        prepared(run_table(**{column: pd.Series([1e6, "auto", 1e6, 1e6], dtype=object)}))


def test_quoted_numbers_are_parsed_before_filters():
    frame = run_table().astype({"loss": str, "hidden_size": str, "tokens": str})
    loaded = prepared(frame, where="tokens > 2e6 and hidden_size == 64")
    assert loaded["loss"].tolist() == [3.8, 3.7]
    assert loaded["tokens"].dtype == float


@pytest.mark.parametrize("column", ["tie_word_embeddings", "qk_norm", "decayed"])
@pytest.mark.parametrize("value", ["yes", "maybe", 2, -1, "wahr"])
def test_a_switch_that_is_neither_true_nor_false_is_named(column, value):
    switches = pd.Series([True, "false", value, "1.0"], dtype=object)
    with pytest.raises(InputError, match=f"runs line 4: `{column}` must be true or false, but go"):
        prepared(run_table(**{column: switches}))


def test_an_unknown_switch_has_its_default():
    switches = pd.Series([None, np.nan, "False", 1], dtype=object)
    table = table_of(run_table(tie_word_embeddings=switches, qk_norm=switches))
    assert table.tie_word_embeddings.tolist() == [True, True, False, True]
    assert table.qk_norm.tolist() == [False, False, False, True]


def test_shape_too_large_for_64_bit_counts_is_refused():
    frame = run_table(hidden_size=[64, 64, 3_000_000_000, 64], intermediate_size=10**10)
    with pytest.raises(InputError, match=r"line 4: a shape must have fewer than `4.61e\+18` para"):
        prepared(frame)
    assert np.iinfo(np.int64).max > LARGEST_MODEL


def test_rows_that_differ_only_in_their_name_are_refused(tmp_path):
    frame = run_table(5, loss=[4.0, 3.9, 3.8, 3.9, 3.7], tokens=1e6, seed=0)
    text = (
        "lines 3 and 5: two rows must differ in more than `run_id`, but 'run-1' and 'run-3' do "
        "not; leave one out with --exclude run-3, or tell replicates apart by a column `seed`"
    )
    with pytest.raises(InputError, match=text):
        prepared(frame)
    assert len(prepared(frame, exclude=["run-3"])) == 4
    assert len(prepared(frame.assign(seed=range(5)))) == 5
    frame.drop(columns="run_id").to_csv(tmp_path / "unnamed.csv", index=False)
    with pytest.raises(InputError, match=r"lines 3 and 5: .* 'row-3' and 'row-5' do not"):
        load_runs(tmp_path / "unnamed.csv")


def test_missing_values_do_not_hide_a_duplicate():
    frame = run_table(2, loss=4.0, tokens=1e6, learning_rate=np.nan)
    with pytest.raises(InputError, match="lines 2 and 3: two rows must differ"):
        prepared(frame)


def test_losses_in_bits_become_nats_with_a_note():
    bits = run_table(loss=[5.0, 4.9, 4.8, 4.7], loss_se=0.01, loss_unit=" Bits ")
    loaded = prepared(bits)
    np.testing.assert_allclose(loaded["loss"], np.array([5.0, 4.9, 4.8, 4.7]) * np.log(2))
    np.testing.assert_allclose(loaded["loss_se"], 0.01 * np.log(2))
    assert set(loaded["loss_unit"]) == {"nats"}
    assert loaded.notes == ("loss and loss_se converted from bits to nats per token",)


def test_losses_in_nats_stay_as_they_are():
    loaded = prepared(run_table(loss_unit="nats"))
    assert loaded["loss"].tolist() == run_table()["loss"].tolist()
    assert loaded.notes == ()


def test_nats_and_bits_are_not_mixed():
    frame = run_table(loss_unit=["nats", "nats", "bits", "nats"])
    text = (
        "runs: `loss_unit` must be the same for all rows, but is nats per token on line 2 and "
        "bits per token on line 4; convert them .* or choose with --where \"loss_unit == 'nats'\""
    )
    with pytest.raises(InputError, match=text):
        prepared(frame)
    assert len(prepared(frame, where="loss_unit == 'nats'")) == 3


@pytest.mark.parametrize("unit", ["trits", None, "", 3])
def test_an_unknown_unit_of_loss_is_refused(unit):
    units = pd.Series(["nats", unit, "nats", "nats"], dtype=object)
    with pytest.raises(InputError, match=r"line 3: `loss_unit` must be nats or bits \(per"):
        prepared(run_table(loss_unit=units))


def test_a_loss_worse_than_a_uniform_guess_is_refused():
    guess = np.log(256)
    assert len(prepared(run_table(loss=[guess, 1.04 * guess, 3.0, 2.0]))) == 4
    text = (
        r"line 3: `loss <= 1.05 ln\(vocab_size\)` must hold, but got 5.87789 with a vocabulary of "
        r"256 \(ln 5.545\): worse than guessing uniformly; is it in bits per token .* or diverged"
    )
    with pytest.raises(InputError, match=text):
        prepared(run_table(loss=[guess, 1.06 * guess, 3.0, 2.0]))


def test_loss_declared_in_bits_is_compared_with_a_uniform_guess_in_nats():
    assert len(prepared(run_table(loss=[7.9, 7.5, 7.2, 7.0], loss_unit="bits"))) == 4


def test_table_without_vocabulary_has_no_upper_limit_on_losses():
    frame = run_table(loss=[40.0, 39.0, 38.0, 37.0])
    assert len(prepared(frame.drop(columns="vocab_size"))) == 4
    assert len(prepared(frame.assign(vocab_size=1))) == 4


def test_losses_on_two_held_out_texts_are_not_fitted_together():
    frame = run_table(validation=["c4", "pile", "c4", "pile"])
    text = "`validation` must be the same for all rows of a fit, but has 'c4' and 'pile'; choose"
    with pytest.raises(InputError, match=text):
        require_comparable_losses(prepared(frame).frame, "runs")
    require_comparable_losses(prepared(frame, where="validation == 'c4'").frame, "runs")


def test_pandas_extension_types_are_read_as_numbers():
    assert as_floats(pd.Series([1, None, 3], dtype="Int64")).tolist()[::2] == [1, 3]
    assert np.isnan(as_floats(pd.Series([1, None, 3], dtype="Int64"))[1])
    assert as_floats(pd.Series(["1e3", "x"], dtype="string")).tolist()[0] == 1000
    loaded = prepared(run_table(tokens=pd.Series([1, 2, 3, 4], dtype="Int64")))
    assert loaded["tokens"].dtype == float
