"""Published laws as fits: published values, intervals and storage."""

from pathlib import Path

import numpy as np
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.published_laws import printed_fit, printed_laws
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs

RUNS = load_runs("paper-2510.18245").frame.set_index("run_id", drop=False)
# Calibration factors at the published shapes, by the coefficients of each fit.
PUBLISHED = [
    ("paper-2510.18245", "llama-3.2-1b", "panda-1b", 1.0129),
    ("paper-2510.18245-1b", "llama-3.2-1b", "panda-1b", 1.0063),
    ("paper-2510.18245-1b", "llama-3.2-3b", "panda-3b-circ", 1.0070),
    ("paper-2510.18245-1b", "llama-3.2-1b", "surefire-1b", 1.0022),
]


@pytest.mark.parametrize(("name", "worse", "better", "ratio"), PUBLISHED)
def test_calibration_factors_equal_the_published_values(name, worse, better, ratio):
    same_size = RUNS.loc[[worse, better]].assign(n_non_embedding=1e9)
    first, second = printed_fit(name).central(same_size)
    assert first / second == pytest.approx(ratio, abs=1e-4)


@pytest.mark.parametrize("name", printed_laws())
def test_predictions_at_anchors_equal_their_measured_losses(name):
    anchors = RUNS.loc[printed_laws()[name]["anchors"]]
    assert printed_fit(name).central(anchors) == pytest.approx(anchors["loss"].to_numpy())


@pytest.mark.parametrize("name", printed_laws())
def test_interval_is_finite_and_contains_the_other_published_fit(name):
    fitted = printed_fit(name)
    predicted = fitted.predict(RUNS)
    assert np.isfinite(predicted.to_numpy()).all()
    assert (predicted["loss_low"] < predicted["predicted_loss"]).all()
    assert (predicted["predicted_loss"] < predicted["loss_high"]).all()
    (other,) = (entry for entry in printed_laws() if entry != name)
    beside = printed_fit(other).central(RUNS)
    assert ((predicted["loss_low"] < beside) & (beside < predicted["loss_high"])).all()


def test_optima_equal_the_published_values():
    values = printed_fit("paper-2510.18245").parameters()
    assert values["a2"]["value"] / values["a1"]["value"] == pytest.approx(0.080, abs=5e-4)
    assert values["b2"]["value"] / values["b1"]["value"] == pytest.approx(1.032, abs=5e-4)


def test_shape_outside_of_the_published_runs_gives_warnings():
    row = RUNS.loc["llama-3.2-1b"]
    words = printed_fit("paper-2510.18245").warnings(row)
    assert [text.split()[0] for text in words] == ["n_non_embedding", "tokens"]


def test_printed_law_survives_saving_and_loading(tmp_path: Path):
    fitted = printed_fit("paper-2510.18245")
    fitted.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json").predict(RUNS).equals(fitted.predict(RUNS))


def test_summary_of_a_printed_law_names_its_source():
    assert "arXiv 2510.18245" in printed_fit("paper-2510.18245").summary()


def test_printed_fit_raises_with_the_valid_names_on_unknown_law():
    with pytest.raises(InputError, match=r"must be one of paper-2510\.18245, .* got 'x'"):
        printed_fit("x")
