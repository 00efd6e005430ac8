import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.fit_text import unit_of
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.saved_fit import SCHEMA_VERSION
from shapelaw.scaling.laws.registry import LAWS, law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.objectives import FitObjective
from support.synthetic import synthetic_runs

HIDDEN, MLP = (0.1, np.log(0.15), 0.0), (0.03, np.log(2.0), 0.0)
THETA = np.array([0.6, -0.5, 0.34, -0.2, 0.37, *HIDDEN, *MLP, 0.01])
SPREAD = np.array([0.02, 0.03, 0.01, 0.03, 0.01, 0.005, 0.03, 0.0, 0.003, 0.05, 0.0, 0.002])
RANGES = {
    N: (1e5, 1.6e6),
    D: (1e6, 6.4e7),
    "hidden_over_sqrt_n": (0.05, 0.4),
    "mlp_to_attention": (0.5, 8.0),
    "gqa": (1.0, 8.0),
}


def some_fit(resamples: int = 60, seed: int = 0, **changes: object) -> Fit:
    """Return a fit of the conditional law with normal draws around its optimum."""
    generator = np.random.default_rng(seed)
    law = law_named("conditional")
    settings = {
        "law_name": "conditional",
        "names": list(law.names),
        "theta": THETA,
        "draws": THETA + SPREAD * generator.standard_normal((resamples, len(THETA))),
        "reference": {N: 4e5, D: 8e6},
        "held": {},
        "objective": 1 / 3000,
        "covariance": np.diag(SPREAD**2),
        "minimised": FitObjective(delta=0.004),
        "delta_rule": "scale from the residuals",
        "status": "converged; 8 of 16 starts reached the best optimum roughly",
        "notes": ["gqa: a note"],
        "starts": 16,
        "basins": [{"objective": 1 / 3000, "starts": 8}],
        "gradient_norm": 1e-12,
        "at_bounds": [],
        "dead_terms": [],
        "seconds": 0.7,
        "run_ids": ["synthetic-0", "synthetic-1"],
        "left_out": {"synthetic-2": "diverged"},
        "ranges": RANGES,
        "size_convention": "non-embedding",
        "noise": 0.003,
        "noise_degrees": 20,
        "replicate_noise": None,
        "replicate_degrees": 0,
        "effects": {"gqa": {"size": 0.02, "low": 0.0, "high": 0.02}},
        "delta_sweep": [{"delta": 1e-3, **law.public(THETA, {N: 4e5, D: 8e6})}],
        "bootstrap": "60 resamples of rows (iid)",
        "data_sha256": "0" * 64,
        "seed": seed,
    }
    return Fit(**(settings | changes))


def some_rows(count: int = 9, seed: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            name: np.exp(generator.uniform(np.log(low), np.log(high), count))
            for name, (low, high) in RANGES.items()
        }
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "fit.json"
    some_fit().save(path)
    return path


def edit(path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_loaded_fit_predicts_as_the_saved_fit(saved):
    loaded, rows = Fit.load(saved), some_rows()
    pd.testing.assert_frame_equal(
        loaded.predict(rows), some_fit().predict(rows), rtol=1e-12, atol=0
    )
    np.testing.assert_allclose(loaded.central(rows), some_fit().central(rows), rtol=1e-12)
    assert loaded.parameters() == some_fit().parameters()
    assert loaded.summary() == some_fit().summary()


def test_loaded_fit_has_every_field_of_the_saved_fit(saved):
    held = {"alpha": Held(value=0.35, low=0.2, high=0.6, why="2 sizes")}
    first = some_fit(
        held=held,
        replicate_noise=0.002,
        replicate_degrees=4,
        at_bounds=["E"],
        dead_terms=["A"],
        minimised=FitObjective(kind="student", on="raw", delta=0.1, degrees=3.0, weights="loss_se"),
    )
    first.save(saved)
    loaded = Fit.load(saved)
    for name in Fit.__dataclass_fields__:
        before, after = getattr(first, name), getattr(loaded, name)
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(after, before)
        else:
            assert after == before, name


def test_fit_is_saved_and_loaded_by_a_path_given_as_text(tmp_path):
    path = str(tmp_path / "fit.json")
    some_fit().save(path)
    assert Fit.load(path).loss_unit == some_fit().loss_unit
    assert Fit.load(path).frame().equals(some_fit().frame())


def test_fit_without_resamples_survives_saving_and_loading(saved):
    first = some_fit(resamples=0)
    first.save(saved)
    loaded, rows = Fit.load(saved), some_rows()
    assert loaded.draws.shape == (0, len(THETA))
    pd.testing.assert_frame_equal(loaded.predict(rows), first.predict(rows), rtol=1e-12)
    found = loaded.parameters()
    assert all(np.isnan([one["low"], one["high"]]).all() for one in found.values())


def test_file_contains_the_printed_document_and_the_schema_version(saved):
    document = json.loads(saved.read_text())
    assert document["schema_version"] == SCHEMA_VERSION
    printed = some_fit().as_json()
    assert {name: document[name] for name in printed} == printed
    assert set(document) == {"schema_version", "state", *printed}


def test_end_of_an_optimum_beyond_the_runs_is_open_and_has_no_number():
    fitted = some_fit()
    name = "mlp_to_attention_optimum"
    ends = fitted.parameters()[name]
    middle = (ends["value"] + ends["high"]) / 2
    narrow = replace(
        fitted, ranges={**fitted.ranges, "mlp_to_attention": (ends["low"] / 2, middle)}
    )
    row = narrow.frame().loc[name]
    assert row["low"] == ends["low"]
    assert np.isnan(row["high"])
    assert row["open"] == "above"
    wide = {**fitted.ranges, "mlp_to_attention": (ends["low"] / 2, 2 * ends["high"])}
    closed = replace(fitted, ranges=wide).frame()
    assert closed.loc[name, "high"] == ends["high"]


def test_printed_document_has_stable_keys():
    document = some_fit().as_json()
    assert list(document) == [
        "schema_version",
        "law",
        "n_runs",
        "parameters",
        "optima",
        "objective",
        "status",
        "warnings",
        "starts",
        "seconds",
    ]
    assert document["n_runs"] == 2
    assert list(document["parameters"]) == some_fit().names
    for one in document["parameters"].values():
        assert list(one) == ["value", "low", "high"]
        assert one["low"] <= one["value"] <= one["high"]
    for one in document["optima"].values():
        assert list(one) == ["value", "low", "high", "status"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("version", [0, 1, SCHEMA_VERSION + 1, str(SCHEMA_VERSION), None])
def test_load_raises_on_another_schema_version(saved, version):
    edit(saved, lambda document: document.update(schema_version=version))
    text = (
        rf"must be a fit of schema version {SCHEMA_VERSION}, but has {version!r}; "
        "write it again with"
    )
    with pytest.raises(InputError, match=text):
        Fit.load(saved)


def test_load_raises_when_file_is_not_a_fit(saved):
    saved.write_text('{"proposals": []}')
    with pytest.raises(InputError, match="must be a fit of schema version 2, but has None"):
        Fit.load(saved)
    edit(saved, lambda document: document.update(schema_version=SCHEMA_VERSION))
    with pytest.raises(
        InputError, match=r"fit.json is damaged \(`state` must be an object.*\); write it again"
    ):
        Fit.load(saved)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("theta"), "theta"),
        (lambda state: state.pop("noise"), "noise"),
        (
            lambda state: state.update(theta="text"),
            "`state.theta` must be a list of numbers, but is 'text'",
        ),
        (lambda state: state["draws"][0].pop(), "equally long lists"),
        (
            lambda state: state.update(held={"alpha": {"value": 1.0}}),
            "`state.held.alpha.low` is missing",
        ),
        (lambda state: state.update(held=[1]), "`state.held` must be an object"),
        (lambda state: state.update(unknown=1), "unknown"),
        (lambda state: state["covariance"].pop(), "`covariance` must be square"),
        (lambda state: state["minimised"].update(kind="best"), "`objective` must be one of huber"),
        (
            lambda state: state.update(law_name="Chinchilla()"),
            "`names` must be the parameters of its law",
        ),
        (lambda state: state.update(noise="low"), "`state.noise` must be a finite number"),
        (lambda state: state.update(seconds=None), "`state.seconds` must be a finite number"),
        (lambda state: state.update(size_convention="all"), "`size_convention` must be one of"),
        (lambda state: state["reference"].pop(D), "`reference` must have N and D"),
        (lambda state: state.update(reference=None), "`state.reference` must be an object"),
    ],
    ids=[
        *("no theta", "no noise", "text", "short draw", "held", "held list", "unknown field"),
        *("covariance", "objective", "another law", "noise", "seconds", "convention"),
        *("reference without D", "no reference"),
    ],
)
def test_load_raises_with_the_damage_of_a_damaged_file(saved, damage, message):
    edit(saved, lambda document: damage(document["state"]))
    with pytest.raises(InputError, match=rf"fit.json is damaged \(.*{message}.*\); write it again"):
        Fit.load(saved)


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.update(state=[]),
        lambda document: document.update(state="text"),
        lambda document: document["state"].update(theta=[0.6, 0.1]),
        lambda document: document["state"].update(law_name="unknown"),
    ],
    ids=["state list", "state text", "two parameters", "unknown law"],
)
def test_load_raises_when_file_cannot_predict(saved, damage):
    edit(saved, damage)
    with pytest.raises(InputError, match=r"fit\.json"):
        Fit.load(saved)


def test_load_raises_with_the_name_of_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"fit.json cannot be read: No such file"):
        Fit.load(tmp_path / "fit.json")


def test_parameter_intervals_are_percentiles_of_the_resamples():
    fitted = some_fit()
    found = fitted.parameters()
    optima = np.exp(fitted.draws[:, fitted.names.index("mlp_to_attention_optimum")])
    low, high = np.percentile(optima, [2.5, 97.5])
    assert found["mlp_to_attention_optimum"] == pytest.approx(
        {"value": 2.0, "low": low, "high": high}, rel=1e-12
    )


@pytest.mark.parametrize("resamples", [0, 60])
def test_interval_of_a_run_contains_that_of_the_law_and_the_prediction(resamples):
    predicted = some_fit(resamples).predict(some_rows(40))
    columns = ["loss_low", "mean_low", "predicted_loss", "mean_high", "loss_high"]
    ordered = predicted[columns].to_numpy()
    assert (np.diff(ordered, axis=1) >= -1e-12).all()
    assert (predicted["loss_high"] > predicted["loss_low"]).all()


@pytest.mark.parametrize("degrees", [5, 20, 200])
@pytest.mark.parametrize("resamples", [0, 60])
def test_interval_of_a_run_is_that_of_student_t_when_resamples_agree(resamples, degrees):
    fitted = some_fit(noise=0.02, noise_degrees=degrees, draws=np.tile(THETA, (resamples, 1)))
    predicted = fitted.predict(some_rows(4))
    half = 0.02 * student.ppf(0.975, degrees)
    above = np.log(predicted["loss_high"] / predicted["predicted_loss"])
    below = np.log(predicted["predicted_loss"] / predicted["loss_low"])
    np.testing.assert_allclose(above, half, rtol=0.06)
    np.testing.assert_allclose(below, half, rtol=0.06)
    np.testing.assert_allclose(predicted["mean_low"], predicted["predicted_loss"], rtol=1e-12)


def test_interval_of_the_law_is_the_percentiles_of_the_resamples():
    fitted, rows = some_fit(200), some_rows()
    columns = {name: rows[name].to_numpy() for name in rows}
    losses = fitted.law.predict(fitted.draws, columns, fitted.reference)
    low, high = np.percentile(losses, [2.5, 97.5], axis=0)
    predicted = fitted.predict(rows)
    np.testing.assert_allclose(predicted["mean_low"], low, rtol=1e-4)
    np.testing.assert_allclose(predicted["mean_high"], high, rtol=1e-4)


def test_interval_widens_with_noise_and_fewer_degrees_of_freedom():
    def width(**changes):
        predicted = some_fit(**changes).predict(some_rows())
        return (predicted["loss_high"] / predicted["loss_low"]).to_numpy()

    assert (width(noise=0.02) > width(noise=0.003)).all()
    assert (width(noise=0.02, noise_degrees=2) > width(noise=0.02, noise_degrees=50)).all()
    assert np.isfinite(width(noise_degrees=0)).all()


def test_predictions_keep_the_index_of_their_rows_and_do_not_depend_on_chunks(monkeypatch):
    fitted, rows = some_fit(), some_rows(11).set_index(np.arange(11) * 3)
    whole = fitted.predict(rows)
    assert whole.index.tolist() == rows.index.tolist()
    np.testing.assert_allclose(whole["predicted_loss"], fitted.central(rows), rtol=1e-14)
    monkeypatch.setattr("shapelaw.scaling.fitting.result.ROWS_PER_CHUNK", 4)
    pd.testing.assert_frame_equal(fitted.predict(rows), whole)


def test_central_predictions_accept_a_mapping():
    fitted, rows = some_fit(), some_rows()
    as_mapping = {name: rows[name].to_list() for name in rows}
    np.testing.assert_array_equal(fitted.central(as_mapping), fitted.central(rows))


def test_optima_have_an_interval_and_a_status_by_column():
    optima = some_fit().optima()
    assert list(optima) == ["hidden_over_sqrt_n", "mlp_to_attention"]
    for column, value in (("hidden_over_sqrt_n", 0.15), ("mlp_to_attention", 2.0)):
        assert optima[column]["value"] == pytest.approx(value)
        assert optima[column]["low"] < value < optima[column]["high"]
        assert optima[column]["status"] == "inside the observed range"


def test_frame_marks_a_parameter_that_ended_at_its_bound():
    marked = some_fit(at_bounds=["mlp_to_attention_optimum"]).frame()["held"]
    assert marked["mlp_to_attention_optimum"] == "ended at its bound"
    assert marked["mlp_to_attention_curvature"] == ""


def test_held_optimum_is_not_resolved():
    held = {"mlp_to_attention_optimum": Held.at(np.log(2.0), "all runs have nearly the same")}
    assert some_fit(held=held).optima()["mlp_to_attention"] == {
        "value": None,
        "low": None,
        "high": None,
        "status": "not resolved: all runs have nearly the same",
    }


def test_optimum_outside_the_observed_range_has_no_value():
    ranges = RANGES | {"mlp_to_attention": (0.5, 1.5)}
    optimum = some_fit(ranges=ranges).optima()["mlp_to_attention"]
    assert optimum["value"] is None
    assert optimum["high"] is None
    assert optimum["status"] == "loss falls up to the largest value seen: optimum above 1.5"


def test_warning_gives_the_distance_of_a_row_outside_the_range():
    row = {N: 1.6e8, D: 1e5, "hidden_over_sqrt_n": 0.1, "mlp_to_attention": 2.0, "gqa": 16.0}
    assert some_fit().warnings(row) == [
        f"{N} 1.6e+08 is 2.00 decades above the runs' 1.6e+06",
        f"{D} 1e+05 is 1.00 decades below the runs' 1e+06",
        "gqa 16 is 0.30 decades above the runs' 8",
    ]


def test_row_inside_the_range_gives_no_warning():
    assert some_fit().warnings(some_rows(1).iloc[0].to_dict()) == []


def test_summary_contains_parameters_notes_noise_and_the_sweep():
    held = {"alpha": Held(value=0.34, low=0.2, high=0.6, why="2 sizes")}
    lines = some_fit(held=held).summary().splitlines()
    notes = some_fit(held=held).view().notes
    assert all(f"- {note}" in lines for note in notes)
    assert lines[0].startswith("conditional on 2 runs: converged; 8 of 16 starts")
    assert notes[0] == some_fit().equation()
    assert notes[0].startswith("L = (1.8221 + ")
    assert notes[1].startswith("objective 0.000333333333 (sum of Huber on ln loss, delta 0.004, sc")
    rows = {line.split()[0]: line for line in lines if line}
    assert set(some_fit().names) <= set(rows)
    assert rows["alpha"].endswith("2 sizes")
    assert not rows["beta"].endswith("2 sizes")
    assert "- gqa: a note" in lines
    assert "noise of a run around the law 0.30 %; no replicate seeds" in "\n".join(lines)
    assert lines[-1].startswith("- delta sweep: 1e-03: alpha 0.34 beta 0.37")


def test_noise_between_seeds_is_printed_when_replicates_exist():
    text = some_fit(replicate_noise=0.002, replicate_degrees=4).noise_in_words()
    assert text == (
        "noise of a run around the law 0.30 %; between seeds 0.20 % (4 degrees of freedom)"
    )


def test_fit_is_frozen():
    with pytest.raises(AttributeError):
        some_fit().noise = 0.0


def test_frame_of_a_fit_has_units_and_reasons():
    held = {"alpha": Held(value=0.34, low=0.2, high=0.6, why="2 sizes")}
    frame = some_fit(held=held).frame()
    assert list(frame.columns) == ["value", "low", "high", "unit", "held"]
    assert frame.index.tolist() == some_fit().names
    assert frame.loc["alpha", "held"] == "2 sizes"
    assert (frame["held"] == "").sum() == len(frame) - 1
    assert frame.loc["E", "unit"] == "nats/token"
    assert frame.loc["gqa_slope", "value"] == 0.01


def test_frame_of_tied_parameters_has_each_name_and_the_reason_of_the_first():
    law = law_named("morph")
    theta = np.array([0.6, -0.5, 0.34, -0.2, -4.0])
    fitted = some_fit(
        law_name="morph",
        names=list(law.names),
        theta=theta,
        draws=np.empty((0, 5)),
        covariance=np.eye(5),
        held={"alpha": Held.at(0.34, "2 sizes")},
    )
    frame = fitted.frame()
    assert frame.loc[["alpha", "beta", "aspect_ratio_exponent"], "held"].tolist() == ["2 sizes"] * 3
    assert frame.loc["beta", "value"] == 0.34


def test_html_of_a_fit_contains_its_equation_table_and_notes():
    html = some_fit(notes=["loss < 1 & odd"], status="converged <b>")._repr_html_()
    assert "<p>$L = (1.8221 + \\frac{" in html
    assert "<table" in html
    assert "mlp_to_attention_optimum" in html
    assert "<li>loss &lt; 1 &amp; odd</li>" in html
    assert "converged &lt;b&gt;" in html


@pytest.mark.parametrize("name", LAWS)
def test_every_public_parameter_has_a_unit_or_an_empty_text(name):
    for own in law_named(name).every_name:
        assert unit_of(own, "nats per token") in ("nats/token", "share of the loss", "per ln N", "")


@pytest.mark.parametrize(
    ("convention", "column"),
    [("non-embedding", N), ("total", "n_total"), ("active", "n_active")],
)
def test_prediction_reads_n_by_the_convention_of_its_fit(convention, column):
    fitted = some_fit(size_convention=convention)
    rows = some_rows().assign(n_total=lambda t: 3 * t[N], n_active=lambda t: 2 * t[N])
    plain = rows.assign(**{N: rows[column]})
    np.testing.assert_array_equal(fitted.central(rows), some_fit().central(plain))
    pd.testing.assert_frame_equal(fitted.predict(rows), some_fit().predict(plain))


@pytest.mark.parametrize("resamples", [0, 1])
def test_fit_without_resamples_has_estimates_without_intervals(resamples):
    fitted = fit("conditional-steady", synthetic_runs(), starts=8, resamples=resamples)
    assert not fitted.has_intervals
    printed = fitted.as_json()
    for estimate in printed["parameters"].values():
        assert np.isfinite(estimate["value"])
        assert estimate["low"] is estimate["high"] is None
    for optimum in printed["optima"].values():
        assert optimum["value"] is not None
        assert optimum["low"] is optimum["high"] is None
        assert optimum["status"] == "inside the observed range"
    text = fitted.summary()
    assert "parameters without intervals" in text
    assert not {"low", "high", "nan"} & set(text.split())
