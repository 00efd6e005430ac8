"""Pooled fits of synthetic sources whose shape parameters are known."""

import json

import numpy as np
import pytest

import shapelaw
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.pool_density import Pool
from shapelaw.scaling.fitting.pooled import REFERENCE_SIZE, PooledFit
from shapelaw.scaling.fitting.priors import BETWEEN, kind_of, moved_to, shape_names, weak_prior
from shapelaw.scaling.runs.columns import N
from support.posteriors import (
    HIDDEN,
    TWO_RATIOS,
    density_of,
    numeric_gradient,
    problem,
    small_table,
)

QUICK = {"starts": 8, "resamples": 64}
# Synthetic sources of one truth: MLP ratio 1.3, hidden size 0.1 (N/1e8)^-0.12, other bases.
SOURCES = {
    "synthetic small": {"scale": 1.0, "floor": 1.8, "seed": 1},
    "synthetic middle": {"scale": 10.0, "floor": 1.6, "seed": 2},
    "synthetic large": {"scale": 60.0, "floor": 2.1, "seed": 3},
}
TRUTH = {"drift": -0.12, "rows": 24, "noise": 0.002}


def tables():
    return {name: small_table(**TRUTH, **settings) for name, settings in SOURCES.items()}


@pytest.fixture(scope="module")
def pooled():
    """Return a pool of three synthetic sources."""
    return shapelaw.fit(TWO_RATIOS, tables(), pool="source", **QUICK)


def test_pool_recovers_shared_truth_of_synthetic_sources(pooled):
    truth = {
        "mlp_to_attention_optimum": np.log(1.3),
        f"{HIDDEN}_optimum": np.log(0.1),
        f"{HIDDEN}_drift": -0.12,
        "mlp_to_attention_curvature": np.log(0.05),
        f"{HIDDEN}_curvature": np.log(0.08),
    }
    mean, deviation = pooled.shared.mean(axis=0), pooled.shared.std(axis=0)
    for place, name in enumerate(pooled.names):
        assert abs(mean[place] - truth[name]) < 3 * deviation[place], name
    drift = pooled.names.index(f"{HIDDEN}_drift")
    assert deviation[drift] < 0.05  # narrower than the weak prior's 0.1
    assert (pooled.between > 0).all()


def test_sources_keep_their_own_bases(pooled):
    for name, settings in SOURCES.items():
        about = pooled.fits[name].parameters()["E"]
        assert about["low"] < settings["floor"] < about["high"]


def test_frame_names_the_sources_that_vary_each_ratio(pooled):
    rows = pooled.frame().set_index("parameter")
    assert set(rows.index) == set(shape_names(TWO_RATIOS))
    assert rows.loc[f"{HIDDEN}_drift", "sources that vary it"] == ", ".join(SOURCES)


def test_saved_pool_loads_and_gives_the_same_prior_without_rows_of_sources(pooled, tmp_path):
    path = tmp_path / "pool.json"
    pooled.save(path)
    loaded = PooledFit.load(path)
    new = problem(TWO_RATIOS, small_table(scale=1000.0))
    first, again = pooled.prior(new), loaded.prior(new)
    assert again.mean == pytest.approx(first.mean, rel=1e-12)
    assert again.covariance == pytest.approx(first.covariance, rel=1e-12)
    assert loaded.fits == {}
    losses = {repr(float(loss)) for table in tables().values() for loss in table["loss"]}
    assert not any(loss in path.read_text() for loss in losses)


def test_prior_of_pool_is_at_the_size_of_the_new_table(pooled):
    new = problem(TWO_RATIOS, small_table(scale=1000.0))
    prior = pooled.prior(new)
    place = prior.names.index(f"{HIDDEN}_optimum")
    step = np.log(new.reference[N] / REFERENCE_SIZE)
    shared = pooled.shared
    own, drift = pooled.names.index(f"{HIDDEN}_optimum"), pooled.names.index(f"{HIDDEN}_drift")
    moved = shared[:, own] + shared[:, drift] * step
    assert prior.mean[place] == pytest.approx(moved.mean())
    between = (pooled.between[:, own] ** 2).mean()
    assert prior.covariance[place, place] == pytest.approx(moved.var(ddof=1) + between)


def test_pool_is_taken_as_prior_of_one_table(pooled):
    poor = small_table(rows=12, noise=0.01, drift=-0.12, seed=9)
    fitted = shapelaw.fit(TWO_RATIOS, poor, prior=pooled, **QUICK)
    assert fitted.prior[f"{HIDDEN}_drift"]["source"] == "pooled"
    assert fitted.prior[f"{HIDDEN}_drift"]["deviation"] < 0.1


def test_source_with_a_constant_ratio_leaves_it_to_the_others():
    given = dict(list(tables().items())[1:])
    given["synthetic large"][HIDDEN] = 0.1
    pooled = shapelaw.fit(TWO_RATIOS, given, pool="source", starts=8, resamples=32)
    assert "synthetic large" not in pooled.frame().set_index("parameter").loc[
        f"{HIDDEN}_drift", "sources that vary it"
    ]  # fmt: skip
    assert any("essentially its prior" in note for note in pooled.notes)
    about = pooled.fits["synthetic large"].prior[f"{HIDDEN}_optimum"]
    assert about["source"] == "the other sources"


def test_gradient_of_pool_equals_finite_differences():
    law = TWO_RATIOS
    parts = [density_of(law, table) for table in tables().values()]
    names = shape_names(law)
    sources = [source for source, _ in parts]
    pool = Pool(
        sources=sources,
        priors=[prior for _, prior in parts],
        shared=weak_prior(sources[0].problem).take(names),
        moves=[
            moved_to(
                TWO_RATIOS, names, np.eye(len(names)), {N: REFERENCE_SIZE}, s.problem.reference
            ).T
            for s in sources
        ],
        widths=np.array([BETWEEN[kind_of(name)] for name in names]),
    )
    generator = np.random.default_rng(0)
    k = pool.count
    g = 0.2 * generator.standard_normal((2, pool.size))
    g[:, :k] += pool.shared.mean
    g[:, k : 2 * k] += np.log(0.5 * pool.widths)
    for prior, (base, *_), (block, _) in zip(pool.priors, pool.places, pool.blocks, strict=True):
        g[:, block] += prior.mean[base]

    def evaluate(points):
        by_source = [
            source.log_density(t, np.repeat(source.first_latent()[None], len(t), axis=0))[:2]
            for source, t in zip(sources, pool.split(points), strict=True)
        ]
        return pool.log_density(points, by_source)

    expected = numeric_gradient(lambda points: evaluate(points)[0], g)
    assert evaluate(g)[1] == pytest.approx(expected, rel=2e-4, abs=5e-2)


def test_one_table_with_pool_is_refused():
    with pytest.raises(InputError, match="several tables by name"):
        shapelaw.fit(TWO_RATIOS, small_table(), pool="source")


@pytest.mark.parametrize("options", [{}, {"pool": "table"}, {"pool": "source", "prior": "weak"}])
def test_several_tables_without_pool_or_with_prior_are_refused(options):
    with pytest.raises(InputError, match="must be source for several tables"):
        shapelaw.fit(TWO_RATIOS, tables(), **options)


@pytest.mark.parametrize(
    ("law", "count"), [(shapelaw.Chinchilla(), 3), (TWO_RATIOS, 1)], ids=["no shape", "one source"]
)
def test_pool_without_shape_factor_or_with_one_source_is_refused(law, count):
    given = dict(list(tables().items())[:count])
    with pytest.raises(InputError, match="two sources or more and a law with a shape factor"):
        shapelaw.fit(law, given, pool="source")


@pytest.mark.parametrize("change", [{"pool_version": 99}, {"names": ["a"]}, {"draws": {}}])
def test_damaged_file_of_pool_is_refused(pooled, tmp_path, change):
    path = tmp_path / "pool.json"
    pooled.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="must be a pooled law"):
        PooledFit.load(path)
