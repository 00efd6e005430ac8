"""The benchmark of axes: pools of normal approximations, and cuts by size."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import pooled_axes

import shapelaw
from shapelaw.scaling.fitting.priors import shape_names
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from support.posteriors import HIDDEN, MLP, TWO_RATIOS, small_table

LAW = repr(TWO_RATIOS)


def test_information_of_a_fit_is_its_posterior_precision_beyond_the_prior():
    """Prior N(0, 1) and a measurement 2 with variance 1/3: posterior N(1.5, 1/4)."""
    law = shapelaw.Chinchilla() * shapelaw.UShape(MLP, drift=True)
    names = shape_names(law)
    generator = np.random.default_rng(0)
    t = generator.standard_normal((200_000, len(names)))
    t[:, 1] = 1.5 + 0.5 * t[:, 1]  # the optimum; the others are as in the prior
    draws = np.zeros((len(t), len(law.names)))
    draws[:, [law.names.index(name) for name in names]] = t
    draws[:, law.names.index(names[0])] = np.exp(t[:, 0])  # a curvature is drawn in its logarithm
    fitted = SimpleNamespace(
        law=law, names=list(law.names), draws=draws,
        prior={name: {"mean": 0.0, "deviation": 1.0} for name in names},
    )  # fmt: skip
    precision, moment = pooled_axes.information(fitted, names)
    assert precision == pytest.approx(np.diag([0.0, 3.0, 0.0]), abs=0.06)
    assert moment[1] == pytest.approx(6.0, abs=0.1)
    assert np.linalg.eigvalsh(precision).min() > -1e-9


def test_combined_fits_recover_the_shared_truth_at_the_reference_size():
    tables = {
        name: RunTable.of(small_table(rows=24, noise=0.002, drift=-0.12, scale=scale, seed=seed))
        for seed, (name, scale) in enumerate({"small": 1.0, "large": 60.0}.items())
    }
    fits = {
        name: shapelaw.fit(TWO_RATIOS, table, starts=8, resamples=128)
        for name, table in tables.items()
    }
    pooled = pooled_axes.combine(LAW, fits, tables, seed=0)
    truth = {
        f"{HIDDEN}_optimum": np.log(0.1), f"{HIDDEN}_drift": -0.12, f"{MLP}_optimum": np.log(1.3)
    }  # fmt: skip
    for name, value in truth.items():
        draws = pooled.shared[:, pooled.names.index(name)]
        assert abs(draws.mean() - value) < 3 * draws.std(), name
    drift = pooled.shared[:, pooled.names.index(f"{HIDDEN}_drift")]
    assert drift.std() < 0.05  # the weak prior has 0.1
    assert any("2 sources vary it" in note for note in pooled.notes)


def test_larger_half_of_the_sizes_is_held_out_and_a_middle_size_is_fitted():
    sizes = np.repeat([1e6, 1e7, 1e8], 2)
    frame = pd.DataFrame({N: sizes, D: 1e9, "loss": 3.0 - 0.1 * np.arange(6)})
    smaller, larger = pooled_axes.split_by_size(RunTable.of(frame))
    assert set(smaller.sizes) == {1e6, 1e7}
    assert set(larger.sizes) == {1e8}


def test_every_choice_of_axes_keeps_mlp_ratio_and_gqa():
    for name in pooled_axes.LAWS.values():
        ratios = [factor.of for factor in law_named(name).shapes]
        assert {"mlp_to_attention", "gqa"} < set(ratios)
        assert len(ratios) == len(set(ratios))


def test_tables_of_the_documentation_are_those_of_the_recorded_results():
    recorded = json.loads(pooled_axes.PATH.read_text())
    tables = pooled_axes.markdown_of(pooled_axes.Results(recorded["settings"])).split("\n\n")
    page = (ROOT / "docs" / "pooled.md").read_text()
    assert len(tables) == 2
    assert all(table in page for table in tables)
