"""Bases that couple size and tokens: an exponent of D that varies with N, an outer exponent."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.checks.comparison import compare
from shapelaw.scaling.checks.conditioning import identifiability_report
from shapelaw.scaling.fitting import fit_law
from shapelaw.scaling.fitting.compute_optimal import allocation, best_sizes
from shapelaw.scaling.fitting.refits import public_parameters
from shapelaw.scaling.laws.bases import COUPLINGS
from shapelaw.scaling.laws.law import reference_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N

fit = partial(fit_law.fit, prior="none")  # robust fits, which hold what a table cannot tell

CHINCHILLA = {"E": 1.7, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
TRUTHS = {"varying-exponent": {"beta_n": 0.03}, "outer-exponent": {"kappa": 0.45}}
SIZES, TOKENS = np.geomspace(3e7, 3e9, 6), np.geomspace(1e9, 3e11, 6)
QUICK = {"starts": 16, "resamples": 0}
NEUTRAL = {"varying-exponent": {"beta_n": 0.0}, "outer-exponent": {"kappa": 1.0}}


def design(sizes=SIZES, tokens=TOKENS) -> dict[str, np.ndarray]:
    """Pair every size with every token count."""
    return {N: np.repeat(sizes, len(tokens)), D: np.tile(tokens, len(sizes))}


def synthetic(noise: float = 0.0, columns=None, **truth: float) -> pd.DataFrame:
    """Draw runs with log-normal noise, from the published equations of both laws."""
    columns, truth = design() if columns is None else columns, CHINCHILLA | truth
    size, tokens = columns[N], columns[D]
    kappa = truth.get("kappa", 1.0)
    # Farseer writes exp(b2 - beta(N) ln D); here b2 is such that the term at D0 is that of B.
    exponent = truth["beta"] + truth.get("beta_n", 0.0) * np.log(size / mean(size))
    at_center = np.log(truth["B"]) - truth["beta"] * np.log(mean(tokens))
    data = np.exp(at_center + exponent * np.log(mean(tokens))) / tokens**exponent
    # Skaling writes (A'/N^alpha' + B'/D^beta')^kappa + E.
    inner = truth["A"] ** (1 / kappa) / size ** (truth["alpha"] / kappa) + data ** (1 / kappa)
    draws = np.random.default_rng(0).normal(0, noise, len(size))
    losses = (truth["E"] + inner**kappa) * np.exp(draws)
    names = [f"synthetic-{row}" for row in range(len(losses))]
    return pd.DataFrame({**columns, "loss": losses, "run_id": names})


def mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


@pytest.mark.parametrize("name", TRUTHS)
def test_base_with_a_neutral_coupling_equals_chinchilla_with_its_gradient(name):
    columns = design()
    at = reference_of(columns)
    law, plain = law_named(name), law_named("chinchilla")
    theta, without = law.internal(CHINCHILLA | NEUTRAL[name], at), plain.internal(CHINCHILLA, at)
    logs, gradient = law.log_loss(theta, columns, at)
    expected, slopes = plain.log_loss(without, columns, at)
    np.testing.assert_allclose(logs, expected, rtol=1e-14)
    np.testing.assert_allclose(gradient[:, :-1], slopes, rtol=1e-12, atol=1e-15)
    assert abs(gradient[:, -1]).min() > 0  # the coupling itself still changes every loss
    hessian = law.program(columns, at).hessian(theta)[:, :-1, :-1]
    np.testing.assert_allclose(hessian, plain.program(columns, at).hessian(without), atol=1e-12)


@pytest.mark.parametrize("name", TRUTHS)
def test_fit_with_the_coupling_pinned_at_neutral_equals_the_fit_of_chinchilla(name):
    runs = synthetic(noise=0.003, **TRUTHS[name])
    coupling, value = next(iter(NEUTRAL[name].items()))
    pinned = fit(law_named(name).pin(coupling, value), runs, **QUICK)
    plain = fit("chinchilla", runs, **QUICK)
    assert pinned.objective == pytest.approx(plain.objective, rel=1e-9)
    for parameter in CHINCHILLA:
        values = [fitted.parameters()[parameter]["value"] for fitted in (pinned, plain)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("name", TRUTHS)
def test_synthetic_truth_without_noise_is_recovered_exactly(name):
    fitted = fit(name, synthetic(**TRUTHS[name]), delta=1e-3, **QUICK)
    parameters = fitted.parameters()
    for parameter, value in (CHINCHILLA | TRUTHS[name]).items():
        assert parameters[parameter]["value"] == pytest.approx(value, rel=1e-4)
    assert fitted.held == {}


@pytest.mark.parametrize("name", TRUTHS)
def test_synthetic_truth_with_noise_is_recovered_within_its_interval(name):
    fitted = fit(name, synthetic(noise=0.002, **TRUTHS[name]), starts=16, resamples=100)
    coupling, value = next(iter(TRUTHS[name].items()))
    interval = fitted.parameters()[coupling]
    assert interval["low"] < value < interval["high"]
    assert not interval["low"] < NEUTRAL[name][coupling] < interval["high"]


@pytest.mark.parametrize("name", TRUTHS)
def test_synthetic_coupling_makes_its_base_extrapolate_better_than_chinchilla(name):
    runs = synthetic(noise=0.002, **TRUTHS[name])
    ranking = compare(["chinchilla", name], runs, by="compute", starts=16)
    assert ranking.best == name
    assert ranking.table.set_index("law")["verdict"]["chinchilla"] == "worse"


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (design(SIZES[:2]), "2 sizes cannot identify it"),
        (design(tokens=TOKENS[:2]), "2 token counts cannot identify it"),
        (design(SIZES[:2], TOKENS[:2]), "2 sizes cannot identify it"),
        (design(SIZES[:1]), "all runs have one size"),
        ({N: SIZES, D: 20 * SIZES}, "tokens are proportional to size"),
        (
            {N: np.repeat(SIZES, 2), D: np.repeat(SIZES, 2) * np.tile([18.0, 25.0], 6)},
            "tokens move with size (correlation 0.99",
        ),
    ],
    ids=["two sizes", "two token counts", "two of both", "one size", "proportional", "collinear"],
)
def test_coupling_is_held_with_its_reason_where_runs_cannot_identify_it(name, columns, reason):
    fitted = fit(name, synthetic(0.001, columns, **TRUTHS[name]), **QUICK)
    coupling, neutral = next(iter(NEUTRAL[name].items()))
    assert reason in fitted.held[coupling].why
    assert fitted.parameters()[coupling]["value"] == neutral
    assert any(coupling in note and reason in note for note in fitted.notes)


def test_runs_on_two_borders_of_the_plane_hold_the_varying_exponent_alone():
    columns = {
        N: np.r_[SIZES, np.full(5, SIZES[0])],
        D: np.r_[np.full(6, TOKENS[0]), TOKENS[1:]],
    }
    held = {
        name: fit(name, synthetic(0.0005, columns, **TRUTHS[name]), **QUICK).held for name in TRUTHS
    }
    assert "with three token counts cannot identify it" in held["varying-exponent"]["beta_n"].why
    assert held["outer-exponent"] == {}


@pytest.mark.parametrize("name", TRUTHS)
def test_identifiability_report_names_the_runs_that_identify_a_coupling(name):
    runs = synthetic(0.001, design(SIZES[:2]), **TRUTHS[name])
    fitted = fit(name, runs, **QUICK)
    coupling = next(iter(TRUTHS[name]))
    findings = [f for f in identifiability_report(fitted, runs).findings if coupling in f.what]
    assert "at three sizes and three token counts or more" in findings[0].remedy


def test_closed_form_with_an_outer_exponent_equals_the_lowest_loss_on_a_grid():
    fitted = fit("outer-exponent", synthetic(kappa=0.45), **QUICK)
    sizes = np.geomspace(1e7, 1e11, 100_001)
    columns = {N: sizes, D: 1e21 / (6 * sizes)}
    lowest = sizes[fitted.law.predict(fitted.theta, columns, fitted.reference).argmin()]
    best = allocation(fitted, 1e21)
    assert best.method == "closed form"
    assert best.n["value"] == pytest.approx(lowest, rel=1e-3)
    share = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])
    assert best.exponent["value"] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("slope", [-0.03, 0.0, 0.08])
def test_optimum_of_a_varying_exponent_is_the_lowest_loss_on_a_grid(slope):
    fitted = fit("varying-exponent", synthetic(beta_n=slope), **QUICK)
    best = best_sizes(fitted, fitted.theta[None], 1e21)
    assert best.method == "grid over N"
    sizes = np.geomspace(1e7, 3e10, 100_001)
    columns = {N: sizes, D: 1e21 / (6 * sizes)}
    lowest = sizes[fitted.law.predict(fitted.theta, columns, fitted.reference).argmin()]
    assert best.n[0] == pytest.approx(lowest, rel=1e-3)


def test_optimum_is_refused_where_the_loss_no_longer_falls_with_tokens():
    """Beyond N0 exp(-beta/beta_n) the loss rises with tokens, and falls with size without end."""
    runs = synthetic(beta_n=-0.08)
    fitted = fit("varying-exponent", runs, **QUICK)
    assert "no optimum" in allocation(fitted, 1e21).why
    limit = fitted.reference[N] * np.exp(CHINCHILLA["beta"] / 0.08)
    sizes = np.array([0.9, 1.1]) * limit
    valid = fitted.law.base.valid_sizes(fitted.theta, sizes, fitted.reference, fitted.law.index)
    assert valid.tolist() == [True, False]


def test_exponent_of_the_optimum_is_reported_only_where_the_exponent_of_tokens_is_constant():
    varying = public_parameters(fit("varying-exponent", synthetic(beta_n=0.03), **QUICK))
    outer = public_parameters(fit("outer-exponent", synthetic(kappa=0.45), **QUICK))
    assert "a_opt" not in varying
    assert outer["a_opt"] == pytest.approx(outer["beta"] / (outer["alpha"] + outer["beta"]))


def test_joined_power_that_has_died_out_is_named():
    runs = synthetic(A=1e-9, kappa=0.9)
    fitted = fit(law_named("outer-exponent").pin("kappa", 0.9), runs, **QUICK)
    assert fitted.dead_terms == ["A"]


def test_every_coupling_has_a_base_with_its_neutral_value():
    assert {name for truth in NEUTRAL.values() for name in truth} == set(COUPLINGS)
