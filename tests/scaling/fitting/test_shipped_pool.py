"""The pooled law that ships: its file, and fits with it as their prior."""

import json
from pathlib import Path

import numpy as np
import pytest

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.pooled import PooledFit
from shapelaw.scaling.fitting.priors import weak_prior
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.with_prior import POOLED_LAW
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import as_run_table
from support.command import shapelaw
from support.quick_fits import known_runs

MAX_BYTES = 1_000_000
DRIFT = "hidden_over_sqrt_n_drift"


@pytest.fixture(scope="module")
def shipped() -> PooledFit:
    return PooledFit.load(POOLED_LAW)


def test_shipped_pool_names_origin_and_ranges_of_every_source(shipped: PooledFit) -> None:
    assert set(shipped.sources) == {"proxies", "gemstones", "mlfoundations-grid"}
    for about in shipped.sources.values():
        assert {"citation", "licence", "address", "rows", "data_sha256"} <= set(about)
        low, high = about["ranges"][N]
        assert low < about["mean_size"] < high
    assert any("prior only" in note for note in shipped.notes)


def test_shipped_pool_is_small_and_has_draws_but_no_rows_of_the_sources(shipped: PooledFit) -> None:
    assert POOLED_LAW.stat().st_size < MAX_BYTES
    document = json.loads(POOLED_LAW.read_text(encoding="utf-8"))
    assert set(document["draws"]) == {"shared", "between"}
    assert shipped.shared.shape == shipped.between.shape == (1000, len(shipped.names))
    assert (shipped.between > 0).all()


def test_pooled_prior_moves_the_shared_optimum_to_the_size_of_the_table(shipped: PooledFit) -> None:
    problem = problem_of(law_named("conditional"), as_run_table(known_runs()))
    prior = shipped.prior(problem)
    optimum, drift = (
        shipped.names.index(f"hidden_over_sqrt_n_{kind}") for kind in ("optimum", "drift")
    )
    step = np.log(problem.reference[N] / shipped.reference_size)
    moved = (shipped.shared[:, optimum] + step * shipped.shared[:, drift]).mean()
    assert prior.mean[prior.names.index("hidden_over_sqrt_n_optimum")] == pytest.approx(moved)
    weak, place = weak_prior(problem), prior.names.index(DRIFT)
    variance = weak.covariance[weak.names.index(DRIFT), weak.names.index(DRIFT)]
    assert prior.covariance[place, place] < variance / 2


def test_fit_with_the_pooled_prior_records_its_moments(shipped: PooledFit) -> None:
    runs = known_runs(rows=16)
    fitted = fit("conditional", runs, prior="pooled", starts=16, resamples=20)
    given = shipped.prior(problem_of(law_named("conditional"), as_run_table(runs)))
    place = given.names.index(DRIFT)
    about = fitted.prior[DRIFT]
    assert about["source"] == "pooled"
    assert about["mean"] == pytest.approx(given.mean[place])
    assert about["deviation"] == pytest.approx(np.sqrt(given.covariance[place, place]))
    assert fitted.prior["alpha"]["source"] != "pooled"


def test_command_with_the_pooled_prior_works_in_another_folder(tmp_path: Path) -> None:
    known_runs(rows=16).to_csv(tmp_path / "runs.csv", index=False)
    done = shapelaw(
        "fit", "runs.csv", "--law", "conditional", "--prior", "pooled", "--starts", 16,
        "--resamples", 20, "--out", "fit.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Fit.load(tmp_path / "fit.json").prior[DRIFT]["source"] == "pooled"
