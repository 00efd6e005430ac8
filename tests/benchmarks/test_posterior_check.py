"""The posterior against a plain density and plain MCMC, both written anew in the benchmark."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest

import shapelaw
from shapelaw.scaling.uncertainty.posterior import Posterior
from support.paths import ROOT
from support.posteriors import density_of

BENCHMARKS = ROOT / "benchmarks"
NAMES = ("ordinary", "loss close to E", "flat U-shape", "checkpoints")


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    path = BENCHMARKS / "posterior_check.py"
    specification = importlib.util.spec_from_file_location("posterior_check", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "posterior_check", module)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_density_equals_plain_density_up_to_a_constant(benchmark_script, monkeypatch, name):
    """Both densities whiten the process in bases of their own, so its values are converted."""
    table = benchmark_script.TABLES[name]()
    law = shapelaw.Chinchilla()
    for ratio in table.ratios:
        law = law * shapelaw.UShape(ratio)
    source, prior = density_of(law, table.runs)
    plain = benchmark_script.PlainDensity(table)
    generator = np.random.default_rng(0)
    points = 0.5 * generator.standard_normal((20, plain.size))
    first, _, process, _, scales = plain.blocks
    points[:, first] += plain.mean
    points[:, scales] -= 5.0
    converted = points.copy()
    rows = np.unique(plain.places, return_index=True)[1]
    basis = source.misfit.features(source.problem.columns)[1][rows]
    converted[:, process] = np.linalg.solve(plain.root, basis @ points[:, process].T).T
    posterior = Posterior(
        source=source, mean=prior.mean, precision=np.linalg.inv(prior.covariance)
    )  # fmt: skip
    got, expected = posterior(points)[0], plain(converted)
    assert got - got[0] == pytest.approx(expected - expected[0], rel=1e-4, abs=1e-3)
    monkeypatch.setattr(benchmark_script, "DEGREES", 5.0)
    other = plain(converted)
    assert got - got[0] != pytest.approx(other - other[0], rel=1e-4, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:3])
def test_quantiles_agree_with_plain_mcmc_within_a_tenth_of_the_width(benchmark_script, name):
    rows = benchmark_script.compare(name, draws=12_000, walkers=128, steps=60_000)
    assert rows["r_hat"].max() < 1.1
    errors = dict(zip(rows["figure"], rows["error"], strict=True))
    assert max(errors.values()) < benchmark_script.TOLERANCE, errors
