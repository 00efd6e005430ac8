"""Laws of sparse models, on synthetic tables whose losses come from published equations."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting import fit_law
from shapelaw.scaling.laws.bases import LEVERAGES, EfficiencyLeverage
from shapelaw.scaling.laws.factors import LogRatio
from shapelaw.scaling.laws.law import Law, reference_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import EXPERT_RATIOS, D, N
from shapelaw.search.cli import app

fit = partial(fit_law.fit, prior="none")
QUICK = {"starts": 16, "resamples": 0}
BASE = {"E": 1.7, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
# Table 2 of arXiv 2507.17702: the exponent of the share of active experts, and its start.
PUBLISHED = {"a": 1.23, "d": -7.61e-2, "gamma": 1.67e-2, "beta": -1.17e-1, "start": 1.63e-2}


def design(seed: int = 0, rows: int = 240) -> dict[str, np.ndarray]:
    """Draw runs of dense models and of models with up to 128 times as many experts as active."""
    generator = np.random.default_rng(seed)
    sparsity = generator.choice([1.0, 4.0, 16.0, 64.0, 128.0], rows)
    return {
        N: generator.choice(np.geomspace(3e7, 3e9, 6), rows),
        D: generator.choice(np.geomspace(1e9, 3e11, 6), rows),
        "expert_sparsity": sparsity,
        "sparsity": sparsity**0.8,
        "active_experts": np.where(sparsity > 1, generator.choice([1.0, 2.0, 9.0], rows), 1.0),
        "granularity": generator.choice([2.0, 4.0, 8.0, 16.0], rows),
    }


def efficiency_leverage(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Compute EL by equations 10 and 13 of arXiv 2507.17702, without the upper end of equation 10.

    The paper does not say the bases of its logarithms: that of C is 10, that of G is e.
    """
    start, share = PUBLISHED["start"], 1 / columns["expert_sparsity"]
    compute = np.log10(6 * columns[N] * columns[D])
    fine = np.log(columns["granularity"])
    exponent = PUBLISHED["a"] + PUBLISHED["d"] * compute
    exponent = exponent + PUBLISHED["beta"] * fine + PUBLISHED["gamma"] * fine**2
    return ((share + start) / (1 + start)) ** exponent


def with_loss(columns: dict[str, np.ndarray], loss: np.ndarray, noise: float = 0.0) -> pd.DataFrame:
    draws = np.random.default_rng(1).normal(0, noise, len(loss))
    names = [f"synthetic-{row}" for row in range(len(loss))]
    return pd.DataFrame({**columns, "loss": loss * np.exp(draws), "run_id": names})


def chinchilla(size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return BASE["E"] + BASE["A"] / size ** BASE["alpha"] + BASE["B"] / tokens ** BASE["beta"]


def test_published_leverage_exceeds_seven_at_the_compute_of_the_paper():
    """arXiv 2507.17702 predicts 7 at 1e22 FLOPs, 3.1 % of the experts and a granularity of 12."""
    size = np.array([1e10])
    at = {N: size, D: 1e22 / 6 / size, "expert_sparsity": np.array([32.0])}
    assert efficiency_leverage(at | {"granularity": np.array([12.0])}) == pytest.approx(7, rel=0.05)


def test_leverage_multiplies_the_size_of_a_dense_model_of_equal_loss():
    columns = design()
    runs = with_loss(columns, chinchilla(columns[N] * efficiency_leverage(columns), columns[D]))
    fitted = fit(Law(EfficiencyLeverage(start=PUBLISHED["start"])), runs, delta=1e-3, **QUICK)
    values = {name: each["value"] for name, each in fitted.parameters().items()}
    assert {name: values[name] for name in BASE} == pytest.approx(BASE, rel=1e-4)
    at, alpha = reference_of(columns), BASE["alpha"]
    compute, fine = np.log10(6 * at[N] * at[D]), np.log(at["granularity"])
    expected = {  # the exponents of equation 13, expanded at the reference of the fit
        "leverage": PUBLISHED["a"] + PUBLISHED["d"] * compute
        + PUBLISHED["beta"] * fine + PUBLISHED["gamma"] * fine**2,
        "leverage_compute": PUBLISHED["d"] / np.log(10),
        "leverage_granularity": PUBLISHED["beta"] + 2 * PUBLISHED["gamma"] * fine,
        "leverage_curve": PUBLISHED["gamma"],
    }  # fmt: skip
    for name, exponent in expected.items():
        assert values[name] == pytest.approx(-alpha * exponent, rel=1e-3)
    assert fitted.held == {}


def test_leverage_with_noise_is_recovered_within_its_interval():
    columns = design()
    losses = chinchilla(columns[N] * columns["expert_sparsity"] ** 0.5, columns[D])
    fitted = fit("efficiency-leverage", with_loss(columns, losses, 0.002), starts=16, resamples=100)
    interval = fitted.parameters()["leverage"]
    assert interval["low"] < 0.5 * BASE["alpha"] < interval["high"]
    assert interval["low"] > 0
    flat = fitted.parameters()["leverage_compute"]
    assert flat["low"] < 0 < flat["high"]


def test_dense_models_have_the_loss_of_chinchilla_at_any_granularity():
    columns = {N: np.array([1e8]), D: np.array([1e10]), "expert_sparsity": np.ones(1)}
    at = {N: 1e9, D: 1e11, "granularity": 4.0}
    law = law_named("efficiency-leverage")
    theta = law.internal(BASE | dict.fromkeys(LEVERAGES, 0.2), at)
    for fine in (1.0, 30.0):
        loss = law.predict(theta, columns | {"granularity": np.array([fine])}, at)
        np.testing.assert_allclose(loss, chinchilla(columns[N], columns[D]), rtol=1e-12)


def test_factors_of_sparse_models_are_recovered():
    columns = design()
    bowl = columns["granularity"] / 8.0
    losses = chinchilla(columns[N], columns[D]) * (1 - 0.03 * np.log(columns["sparsity"]))
    losses = losses * (1 + 0.004 * np.log(columns["active_experts"]))
    losses = losses * (1 + 0.01 * (np.log(bowl) + 1 / bowl - 1))
    fitted = fit("sparse", with_loss(columns, losses), delta=1e-3, **QUICK)
    values = {name: each["value"] for name, each in fitted.parameters().items()}
    truth = {
        "sparsity_effect": -0.03,
        "active_experts_effect": 0.004,
        "granularity_curvature": 0.01,
        "granularity_optimum": 8.0,
    }
    assert {name: values[name] for name in truth} == pytest.approx(truth, rel=1e-3)
    assert fitted.held == {}


def test_total_and_active_counts_fit_the_same_losses():
    """With N_total = s N_active, ln s moves from the size term to the exponent of sparsity."""
    columns = design()
    columns["sparsity"] = columns["expert_sparsity"]
    losses = chinchilla(columns[N] * columns["sparsity"] ** 0.5, columns[D])
    counts = {"n_active_non_embedding": columns[N], N: columns[N] * columns["sparsity"]}
    runs = with_loss(columns | counts, losses)
    law = Law(EfficiencyLeverage(of="sparsity"))
    values = {}
    for size in ("active-non-embedding", "non-embedding"):
        fitted = fit(law, runs, size=size, delta=1e-3, **QUICK)
        values[size] = fitted.parameters()["leverage"]["value"]
    alpha = BASE["alpha"]
    assert values["active-non-embedding"] == pytest.approx(0.5 * alpha, rel=1e-3)
    assert values["non-embedding"] == pytest.approx(-0.5 * alpha, rel=1e-3)


@pytest.mark.parametrize("law", ["efficiency-leverage", "sparse"])
def test_law_of_sparse_models_refuses_a_table_without_their_columns(law):
    columns = {name: values for name, values in design().items() if name not in EXPERT_RATIOS}
    with pytest.raises(InputError, match=r"lacks the column `(expert_)?sparsity`"):
        fit(law, with_loss(columns, chinchilla(columns[N], columns[D])), **QUICK)


def test_exponents_are_held_where_no_run_is_sparse():
    columns = design() | {"expert_sparsity": np.ones(240)}
    fitted = fit(
        "efficiency-leverage", with_loss(columns, chinchilla(columns[N], columns[D])), **QUICK
    )
    assert set(fitted.held) == set(LEVERAGES)
    assert "same sparsity" in fitted.held["leverage"].why


def test_exponents_of_granularity_are_held_where_sparse_runs_have_one():
    columns = design()
    columns["granularity"] = np.where(columns["expert_sparsity"] > 1, 8.0, 0.7)
    losses = chinchilla(columns[N] * columns["expert_sparsity"] ** 0.5, columns[D])
    fitted = fit("efficiency-leverage", with_loss(columns, losses), **QUICK)
    assert set(fitted.held) == {"leverage_granularity", "leverage_curve"}
    assert "moves with those of N, D" in fitted.held["leverage_granularity"].why
    assert fitted.parameters()["leverage"]["value"] == pytest.approx(0.5 * BASE["alpha"], rel=1e-2)


@pytest.mark.parametrize("start", [-0.1, 1.0, "a"])
@pytest.mark.parametrize("part", [LogRatio, EfficiencyLeverage])
def test_share_at_which_sparsity_saturates_is_checked(part, start):
    with pytest.raises(InputError, match=r"`0 <= start < 1` must hold"):
        part(start=start)


def test_law_of_sparse_models_predicts_dense_shapes_from_a_file(tmp_path):
    """A dense model has the loss of the law without its leverage, by the command as by hand."""
    columns = design()
    counts = {"n_active_non_embedding": columns[N], N: columns[N] * columns["expert_sparsity"]}
    losses = chinchilla(columns[N] * columns["expert_sparsity"] ** 0.5, columns[D])
    runs = with_loss(columns | counts, losses, 0.001)
    fitted = fit("efficiency-leverage", runs, size="active-non-embedding", starts=16, resamples=8)
    fitted.save(tmp_path / "fit.json")
    shape = (
        "hidden_size,intermediate_size,num_hidden_layers,num_attention_heads,"
        "num_key_value_heads,head_dim\n2048,8192,16,32,8,64\n"
    )
    (tmp_path / "shapes.csv").write_text(shape, encoding="utf-8")
    done = CliRunner().invoke(
        app, ["predict", str(tmp_path / "fit.json"), str(tmp_path / "shapes.csv"), "--tokens",
              "100B", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    predicted = json.loads(done.stdout)["predictions"][0]["predicted_loss"]
    size = np.array([973_146_112.0])  # LLaMA 3.2 1B
    assert predicted == pytest.approx(float(chinchilla(size, np.array([1e11]))[0]), rel=2e-3)
