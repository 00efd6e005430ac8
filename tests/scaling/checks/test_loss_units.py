"""Units of the losses in the names of columns, in titles and in JSON of the checks."""

import json
from dataclasses import replace

import numpy as np
import pytest

from shapelaw.scaling.checks.comparison import compare
from shapelaw.scaling.checks.decisions import backtest_decisions
from shapelaw.scaling.checks.holdout import leave_largest_out
from shapelaw.scaling.checks.metrics import decision_regret
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.table import RunTable
from support.synthetic import synthetic_runs

UNIT = "bits per byte"
QUICK = {"starts": 4, "delta": 1e-2}


@pytest.fixture(scope="module")
def nats():
    """Return synthetic runs whose losses are in nats per token."""
    return RunTable(frame=synthetic_runs(shapes=6, sizes=(1e5, 4e5, 1.6e6)))


@pytest.fixture(scope="module")
def bits(nats):
    """Return the same runs in bits per byte, of a tokenizer with four bytes for each token."""
    losses = nats.frame["loss"] / np.log(2) / 4
    return replace(nats, frame=nats.frame.assign(loss=losses), loss_unit=UNIT)


def test_regret_in_bits_per_byte_has_the_unit_in_every_name(nats, bits):
    in_nats, in_bits = (decision_regret(runs, 10 - runs.losses) for runs in (nats, bits))
    names = [name for name in in_bits.groups if name.endswith("_bits_per_byte")]
    assert names == [f"{part}_bits_per_byte" for part in ("picked", "best", "regret", "random")]
    expected = in_nats.groups["regret_nats"] / np.log(2) / 4
    assert in_bits.groups["regret_bits_per_byte"].to_numpy() == pytest.approx(expected.to_numpy())
    assert in_bits.document()["mean_bits_per_byte"] == pytest.approx(expected.mean())
    assert in_bits.view().title.count(UNIT) == 1
    assert "nats" not in in_bits.summary() + json.dumps(in_bits.as_json())


def test_hold_out_and_comparison_of_bits_per_byte_never_name_nats(bits):
    compared = compare(["chinchilla", "conditional-steady"], bits, cutoffs=[1.6e6], **QUICK)
    hold_out = compared.hold_outs["chinchilla"]
    for table in (compared.table, hold_out.frame(), hold_out.by_distance()):
        assert "mean_error_bits_per_byte" in table
    assert {"regret_bits_per_byte", "random_bits_per_byte"} <= set(compared.table)
    assert {"mae_bits_per_byte", "mse_bits_per_byte2"} <= set(hold_out.frame())
    errors = hold_out.errors()
    mean = (errors["predicted_loss"] - errors["loss"]).mean()
    line = compared.table.set_index("law").loc["chinchilla"]
    assert line["mean_error_bits_per_byte"] == pytest.approx(mean)
    assert hold_out.by_distance()["mean_error_bits_per_byte"].iloc[-1] == pytest.approx(mean)
    assert "nats" not in compared.summary() + json.dumps(compared.as_json())


def test_hold_out_of_nats_per_token_keeps_its_names(nats):
    hold_out = leave_largest_out("chinchilla", nats, cutoffs=[1.6e6], **QUICK)
    assert {"mse_nats2", "mae_nats", "mean_error_nats", "regret_nats"} <= set(hold_out.frame())


def test_decisions_in_bits_per_byte_have_differences_of_the_losses_given(bits):
    settings = {"resamples": 50, **QUICK}
    report = backtest_decisions("conditional-steady", {"bits": bits}, **settings)
    losses = bits.frame.set_index("run_id")["loss"]
    rows = report.decisions
    assert len(rows) > 0
    expected = losses[rows["second"]].to_numpy() - losses[rows["first"]].to_numpy()
    assert rows["measured_bits_per_byte"].to_numpy() == pytest.approx(expected)
    assert "(second minus first shape, bits per byte)" in report.summary()
    assert "nats" not in report.summary() + json.dumps(report.as_json())


def test_decisions_of_tables_in_two_units_are_refused(nats, bits):
    with pytest.raises(InputError, match="losses in one unit, but they are in nats per token and"):
        backtest_decisions("chinchilla", {"nats": nats, "bits": bits}, **QUICK)
