"""Predictions of links, refusals, display and files."""

import json
from pathlib import Path

import numpy as np
import pytest

from shapelaw.scaling.accuracy.files import document, load_links, save_links
from shapelaw.scaling.accuracy.fit import fit_links, held_out, load_link, with_hold_out
from shapelaw.scaling.accuracy.link import Link, Links
from shapelaw.scaling.accuracy.predictions import Accuracy, Task
from shapelaw.scaling.errors import InputError
from support.synthetic_accuracy import fit_link, synthetic

A, B = Task(name="a", chance=0.25, items=1000), Task(name="b", chance=0.25)
C4 = {"validation": "c4_en"}


@pytest.fixture(scope="module")
def links() -> Links:
    """Two tasks on 16 synthetic models, tested on 4 more."""
    table = synthetic(0, rows=20, tasks="ab")
    fitted = fit_links(table[4:], [A, B], form="two-step", provenance={"tokenizer": "one"})
    return with_hold_out(fitted, held_out(fitted, table[:4]))


@pytest.fixture(scope="module")
def link(links: Links) -> Link:
    return links["a"]


def test_another_validation_set_is_not_available(links: Links, link: Link) -> None:
    answer = link.predict(3.0, validation="pile")
    assert answer.value is None
    assert answer.low is None
    assert answer.status == ("not available: the link holds for losses on `c4_en`, not on `pile`")
    assert answer.chance == 0.25
    assert "chance 25.0 %" in answer.summary()
    everything = links.predict(3.0, validation="pile")
    assert all(accuracy.value is None for accuracy in everything)
    assert everything.mean.status == answer.status


def test_another_tokenizer_is_not_available(link: Link) -> None:
    answer = link.predict(3.0, tokenizer="two", **C4)
    assert answer.value is None
    assert "losses per token of `one`, not of `two`" in answer.status
    assert link.predict(3.0, tokenizer="one", **C4).value is not None


def test_a_prediction_within_noise_of_guessing_says_at_chance(links: Links, link: Link) -> None:
    answer = link.predict(7.0, **C4)
    assert answer.status.startswith("at chance: within noise of 0.25")
    assert answer.value == pytest.approx(0.25, abs=0.02)
    assert "at chance: a, b" in links.predict(7.0, **C4).mean.status
    assert "at chance" not in link.predict(2.9, **C4).status


def test_an_extrapolation_states_its_distance_from_the_fitted_losses(link: Link) -> None:
    low, high = link.measured.loss_range
    assert f"{low - 2.0:.3f} below the fitted {low:.3f}" in link.predict(2.0, **C4).status
    assert f"{4.0 - high:.3f} above the fitted" in link.predict(4.0, **C4).status


def test_the_mean_is_that_of_the_tasks(links: Links) -> None:
    answers = links.predict(3.0, loss_low=2.9, loss_high=3.1, **C4)
    values = [accuracy.value for accuracy in answers.tasks]
    assert answers.mean.value == pytest.approx(np.mean(values))
    assert answers.mean.low < answers.mean.mean_low < answers.mean.value
    assert answers.mean.value < answers.mean.mean_high < answers.mean.high
    largest = max(accuracy.standard_error for accuracy in answers.tasks)
    assert answers.mean.standard_error < largest


def test_the_sampling_error_needs_the_number_of_items(links: Links) -> None:
    first, second = links.predict(3.0, **C4).tasks
    assert first.sampling_error == pytest.approx(np.sqrt(first.value * (1 - first.value) / 1000))
    assert second.sampling_error is None
    assert links.predict(3.0, **C4).mean.sampling_error is None


def test_predicted_accuracy_beyond_one_is_clipped_and_says_so() -> None:
    link = fit_link(synthetic(0), Task(name="a", chance=0.25), form="exponential-error")
    far = link.predict(0.5, **C4)
    assert (far.value, far.high) == (1.0, 1.0)
    assert "a curve exceeds 1 here and is clipped" in far.status


def test_a_single_link_predicts_as_its_set_alone(links: Links, link: Link) -> None:
    alone = link.alone().predict(3.0, **C4)
    assert alone.mean.value == link.predict(3.0, **C4).value
    assert alone.mean.low == link.predict(3.0, **C4).low
    assert links.predict(3.0, **C4).tasks[0] == link.predict(3.0, **C4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": -1.0}, "`loss > 0` and finite must hold"),
        ({"loss": float("nan")}, "`loss > 0` and finite must hold"),
        ({"loss": 3.0, "loss_low": 2.9}, "needs `loss_low` and `loss_high`, or `draws`"),
        ({"loss": 3.0, "loss_low": 3.1, "loss_high": 3.2}, "`loss_low <= loss <= loss_high`"),
        ({"loss": 3.0, "draws": [3.0, -2.0]}, "`draws > 0` and finite"),
        ({"loss": 3.0, "draws": []}, "`draws > 0` and finite"),
        ({"loss": 3.0, "draws": [3.0], "loss_low": 2.0, "loss_high": 4.0}, "or `draws`"),
    ],
)
def test_an_impossible_loss_is_refused_by_name(link: Link, arguments: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        link.predict(**arguments, **C4)


@pytest.mark.parametrize(("chance", "items"), [(1.0, None), (-0.1, None), (0.25, 0)])
def test_a_task_with_an_impossible_chance_or_item_count_is_refused(
    chance: float, items: int | None
) -> None:
    with pytest.raises(InputError, match="must hold for a task"):
        Task(name="a", chance=chance, items=items)


def test_the_chance_level_is_always_shown(links: Links, link: Link) -> None:
    assert "chance 0.25" in link.summary()
    assert "chance 0.25" in links.summary()
    assert (link.frame()["chance"] == 0.25).all()
    assert link.as_json()["chance"] == links.as_json()["chance"] == 0.25
    answers = links.predict(3.0, **C4)
    assert answers.summary().count("chance 25.0 %") == 3
    for shown in (link, links, answers, answers.mean):
        assert "<th>chance</th>" in shown._repr_html_()
    assert "±" in link.summary()
    assert set(link.frame()) >= {"coefficient", "value", "standard_error"}


def test_documents_are_json_without_nan(links: Links) -> None:
    missing = links.predict(3.0, validation="pile").as_json()
    assert json.loads(json.dumps(missing, allow_nan=False))["mean"]["value"] is None
    json.dumps(links.as_json(), allow_nan=False)
    json.dumps(links.predict(3.0, **C4).as_json(), allow_nan=False)


def test_an_unknown_task_of_a_set_is_an_error(links: Links) -> None:
    with pytest.raises(InputError, match="must be one of a, b, but got 'c'"):
        links["c"]


def test_loaded_links_predict_the_same_as_the_saved_ones(links: Links, tmp_path: Path) -> None:
    save_links(tmp_path / "links.json", links)
    again = load_link(tmp_path / "links.json")
    assert again.hold_out == links.hold_out
    assert again.measured == links.measured
    assert again.summary() == links.summary()
    for loss in (2.0, 3.0, 3.4, 5.0):
        ends = {"loss_low": loss - 0.1, "loss_high": loss + 0.1}
        for before, after in zip(
            links.predict(loss, **ends, **C4), again.predict(loss, **ends, **C4), strict=True
        ):
            _same(before, after)


def test_a_single_link_loaded_from_a_file_predicts_the_same(link: Link, tmp_path: Path) -> None:
    save_links(tmp_path / "link.json", link)
    again = load_links(tmp_path / "link.json")
    assert again.tasks == ("a",)
    _same(again["a"].predict(2.5, **C4), link.predict(2.5, **C4))


def _same(one: Accuracy, two: Accuracy) -> None:
    assert one.status == two.status
    for name in ("value", "low", "high", "mean_low", "mean_high", "standard_error"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-12, abs=1e-12)


def _changed(content: dict, *path: str | int, value: object) -> dict:
    """Replace one value of a document, or remove it where the value is ``...``."""
    content = json.loads(json.dumps(content))
    place = content
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("schema_version",), 2, "must be accuracy-links of schema version 1, but is"),
        (("kind",), "fit", "must be accuracy-links of schema version 1, but is 'fit'"),
        (("kind",), ..., "must be accuracy-links"),
        (("covariance",), ..., "is damaged"),
        (("covariance", 0), [], "is damaged"),
        (("covariance", 0), [None], "is damaged"),
        (("noise",), [], "is damaged .its matrices do not fit 10 parameters and 4 "),
        (("links",), [], "is damaged"),
        (("links", 0, "steps", 0, "curve"), "spline", "must be one of sigmoid,"),
        (
            ("links", 0, "steps", 0, "parameters"),
            [1.0],
            r"a power-law needs other parameters than \[1.0\]",
        ),
        (("links", 0, "steps", 0, "constants"), {"x": 1}, "is damaged"),
        (("links", 0, "chance"), 1.5, "is damaged"),
        (("loss_range",), [1.0], "is damaged"),
        (("ceiling_one", "links", 0, "task"), "c", "must be a, b, but are c, b"),
        (("hold_out",), 3, "is damaged"),
    ],
)
def test_a_damaged_file_is_an_input_error(
    links: Links, tmp_path: Path, path: tuple, value: object, text: str
) -> None:
    file = tmp_path / "links.json"
    file.write_text(json.dumps(_changed(document(links), *path, value=value)))
    with pytest.raises(InputError, match=text):
        load_links(file)
