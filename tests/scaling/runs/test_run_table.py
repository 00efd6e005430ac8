"""Tests of ``RunTable``: conventions of N, levels, parts and filters."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shapelaw
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs import checking, validation
from shapelaw.scaling.runs.columns import SIZES, D, N
from shapelaw.scaling.runs.levels import level_of
from shapelaw.scaling.runs.table import RunTable, as_run_table
from support.run_tables import run_table
from support.synthetic import synthetic_runs

COUNTS = pd.DataFrame(
    {
        N: [1.0e6, 1.0e6, 4.0e6],
        "n_total": [2.0e6, 3.0e6, 9.0e6],
        "n_active": [1.5e6, 2.5e6, 8.0e6],
        "n_active_non_embedding": [0.5e6, 0.5e6, 3.0e6],
        D: [2.0e7, 8.0e7, 2.0e7],
        "loss": [3.1, 3.0, 2.5],
    }
)


@pytest.mark.parametrize(
    ("columns", "size"),
    [
        ([N, "n_total", "n_active"], "non-embedding"),
        (["n_total", "n_active"], "total"),
        (["n_active"], "active"),
    ],
)
def test_table_counts_n_by_the_first_convention_it_has(columns, size):
    runs = as_run_table(COUNTS[[*columns, D, "loss"]])
    assert runs.size == size
    assert runs.sizes.tolist() == COUNTS[SIZES[size]].tolist()


@pytest.mark.parametrize("size", SIZES)
def test_table_counts_n_by_the_requested_convention(size):
    runs = RunTable(frame=COUNTS)
    for counted in (runs.counting(size), as_run_table(COUNTS, size), as_run_table(runs, size)):
        assert counted.size == size
        np.testing.assert_array_equal(counted.sizes, COUNTS[SIZES[size]])
        np.testing.assert_array_equal(counted.law_columns([N])[N], counted.sizes)
        np.testing.assert_array_equal(counted.compute, 6 * counted.sizes * counted.tokens)
    assert runs.counting("auto") is runs


def test_table_without_the_requested_convention_is_refused():
    with pytest.raises(InputError, match="lacks the column `n_active`"):
        as_run_table(COUNTS.drop(columns="n_active"), "active")
    with pytest.raises(
        InputError, match="`size` must be auto, non-embedding, total, active, active-non"
    ):
        RunTable(frame=COUNTS).counting("body")


def test_table_without_any_count_names_the_column_when_n_is_read():
    runs = as_run_table(COUNTS[[D, "loss"]])
    assert not runs.has_sizes
    with pytest.raises(InputError, match=f"the run table lacks the column `{N}`; it has tokens"):
        _ = runs.sizes


def test_compute_is_the_flops_column_only_where_every_run_has_it():
    given = [1e15, 2e15, 3e15]
    assert as_run_table(COUNTS.assign(flops_6nd=given)).compute.tolist() == given
    partly = as_run_table(COUNTS.assign(flops_6nd=[1e15, np.nan, 3e15]))
    np.testing.assert_array_equal(partly.compute, as_run_table(COUNTS).compute)
    # A part of the table keeps what the whole table decided.
    part = partly.take(np.array([0, 2]))
    np.testing.assert_array_equal(part.compute, partly.compute[[0, 2]])


def test_table_reads_like_a_frame():
    runs = RunTable.of(run_table())
    assert len(runs) == 4
    assert "loss" in runs
    assert "speed" not in runs
    assert runs["loss"].tolist() == run_table()["loss"].tolist()
    assert list(runs) == runs.columns == list(runs.frame)
    with pytest.raises(InputError, match="the run table lacks the column `speed`"):
        _ = runs["speed"]


def test_table_shows_itself_and_escapes_its_name():
    runs = RunTable(frame=COUNTS, source={"name": "<b>mine</b>"})
    assert repr(runs) == (
        "<b>mine</b>: 3 runs, 6 columns; N counts non-embedding parameters; loss in nats per token"
    )
    assert "&lt;b&gt;mine" in runs._repr_html_()
    assert "<table" in runs._repr_html_()


def test_selection_records_the_reason_for_each_run_left_out():
    runs = RunTable.of(run_table(role=["proxy", "anchor", "proxy", "proxy"]), exclude=["run-3"])
    proxies = runs.select("role == 'proxy'")
    assert proxies.run_ids.tolist() == ["run-0", "run-2"]
    assert proxies.left_out == {
        "run-3": "excluded by name",
        "run-1": "not in `role == 'proxy'`",
    }
    assert runs.left_out == {"run-3": "excluded by name"}
    with pytest.raises(InputError, match="names the column 'speed'"):
        runs.select("speed > 1")


@settings(max_examples=40)
@given(
    sizes=st.lists(st.floats(1e5, 1e7), min_size=2, max_size=30),
    seed=st.integers(0, 99),
)
def test_part_of_a_part_has_the_levels_of_the_whole_table(sizes, seed):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame({N: sizes, D: generator.choice([1e8, 1.05e8, 1e9], len(sizes))})
    runs = as_run_table(frame.assign(loss=3.0, gqa=generator.choice([1.0, 2.0], len(sizes))))
    first = generator.random(len(sizes)) < 0.7
    second = generator.permutation(int(first.sum()))
    rows = np.flatnonzero(first)[second]
    part = runs.take(first).take(second)
    np.testing.assert_array_equal(part.sizes, runs.sizes[rows])
    assert part.run_ids.tolist() == [f"row-{row}" for row in rows]
    for name in ("size_level", "token_level", "compute_level", "compute", "shapes", "replicates"):
        np.testing.assert_array_equal(getattr(part, name), getattr(runs, name)[rows])
    np.testing.assert_array_equal(runs.size_level, level_of(np.array(sizes)))


def test_part_recounted_has_the_levels_of_the_whole_table_recounted():
    runs = as_run_table(COUNTS)
    part = runs.take(np.array([1, 2])).counting("total")
    np.testing.assert_array_equal(part.sizes, [3e6, 9e6])
    np.testing.assert_array_equal(part.size_level, runs.counting("total").size_level[1:])


def test_assigned_column_is_resolved_anew():
    runs = as_run_table(COUNTS)
    assert runs.size_level.tolist() == [0, 0, 1]
    assert runs.assign(**{N: [1e6, 2e6, 4e6]}).size_level.tolist() == [0, 1, 2]


def test_fit_of_a_part_does_not_check_the_table_again(monkeypatch):
    frame = synthetic_runs(shapes=3)
    runs = RunTable.of(frame)

    def refuse(*_: object) -> None:
        raise AssertionError("a table was checked twice")

    for name in ("validate", "to_numbers", "with_ratios"):
        monkeypatch.setattr(checking, name, refuse)
    monkeypatch.setattr(validation, "check_numbers", refuse)
    part = runs.take(np.arange(20))
    fitted = fit("chinchilla", part, starts=4, resamples=0)
    assert fitted.run_ids == frame["run_id"].tolist()[:20]
    # The control: loading calls the patched functions.
    with pytest.raises(AssertionError, match="checked twice"):
        RunTable.of(frame)


def test_bare_frame_fits_as_its_run_table_does():
    frame = synthetic_runs(shapes=4)
    settings_of_fit = {"starts": 8, "resamples": 0}
    bare = fit("chinchilla", frame, **settings_of_fit)
    resolved = fit("chinchilla", RunTable.of(frame), **settings_of_fit)
    np.testing.assert_allclose(bare.theta, resolved.theta, rtol=1e-12)
    assert bare.size_convention == resolved.size_convention == "non-embedding"


def test_run_groups_are_none_without_their_column():
    assert as_run_table(COUNTS).run_groups is None
    groups = as_run_table(COUNTS.assign(run_group=list("aab"))).run_groups
    assert groups.tolist() == list("aab")


@pytest.mark.parametrize(
    ("kinds", "kind"), [(None, "exact"), ("bound", "bound"), (["exact", "bound"] * 2, "mixed")]
)
def test_kind_of_the_losses_is_read_from_the_table(kinds, kind):
    frame = run_table() if kinds is None else run_table(loss_kind=kinds)
    runs = RunTable.of(frame)
    assert runs.loss_kind == kind
    assert runs.loss_unit == "nats per token"


def test_bounds_and_exact_losses_are_not_fitted_together():
    frame = synthetic_runs(shapes=4)
    frame["loss_kind"] = ["exact", "bound"] * (len(frame) // 2)
    runs = RunTable.of(frame)
    with pytest.raises(InputError, match="`loss_kind` must be the same for all rows of a fit"):
        fit("chinchilla", runs, starts=4, resamples=0)
    fit("chinchilla", runs.select("loss_kind == 'exact'"), starts=4, resamples=0)


@pytest.mark.parametrize("kind", ["upper", "", None])
def test_unknown_kind_of_loss_is_refused(kind):
    kinds = pd.Series(["exact", kind, "exact", "exact"], dtype=object)
    with pytest.raises(InputError, match="runs line 3: `loss_kind` must be exact or bound, but"):
        RunTable.of(run_table(loss_kind=kinds), "runs")


def test_public_names_offer_the_table_and_its_loader():
    runs = shapelaw.load_runs("quickstart")
    assert isinstance(runs, shapelaw.RunTable)
    assert runs.size == "non-embedding"


def test_take_of_no_positions_gives_an_empty_table():
    runs = RunTable.of(COUNTS)
    assert len(runs.take(np.array([0, 2]))) == 2
    assert len(runs.take([])) == len(runs.take(np.zeros(3, dtype=bool))) == 0
