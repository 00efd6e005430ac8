"""Fits of links from loss to accuracy, on synthetic tables of known truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.accuracy.curves import ExponentialError, Form, Sigmoid, TwoStep
from shapelaw.scaling.accuracy.fit import fit_links, held_out, known_tasks, load_link
from shapelaw.scaling.accuracy.predictions import Task
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from support.synthetic_accuracy import fit_link, synthetic, task_loss, true_accuracy

GUESS = Task(name="a", chance=0.25)
C4 = {"validation": "c4_en"}


def test_the_two_steps_of_a_synthetic_truth_are_recovered() -> None:
    table = synthetic(0, noise=0)
    link = fit_link(table, GUESS, form="two-step")
    first, second = link.coefficients()
    reference = first["constants"]["at"]
    assert first["coefficients"]["b"]["value"] == pytest.approx(1.8, rel=1e-6)
    assert first["coefficients"]["a"]["value"] == pytest.approx(float(task_loss(reference)))
    assert second["coefficients"]["L0"]["value"] == pytest.approx(1.0, rel=1e-4)
    assert second["coefficients"]["k"]["value"] == pytest.approx(4.0, rel=1e-4)
    assert second["coefficients"]["ceiling"]["value"] == pytest.approx(0.9, rel=1e-4)
    assert link.predict(2.5, **C4).value == pytest.approx(float(true_accuracy(2.5)), abs=1e-4)


@pytest.mark.parametrize("form", ["sigmoid", "exponential-error", "two-step", "two-step-line"])
def test_every_form_predicts_the_synthetic_truth_inside_the_data(form: str) -> None:
    link = fit_link(synthetic(1, noise=0.003, rows=24), GUESS, form=form)
    for loss in (2.9, 3.2, 3.5):
        answer = link.predict(loss, **C4)
        assert answer.value == pytest.approx(float(true_accuracy(loss)), abs=0.012)
        assert answer.chance == 0.25
        assert answer.status == "inside the fitted losses"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sigmoid", "two-step"])
def test_intervals_cover_the_synthetic_truth_in_95_of_100_tables(form: str) -> None:
    generator = np.random.default_rng(7)
    curve, new = [], []
    for seed in range(110):
        link = fit_link(synthetic(seed), GUESS, form=form)
        for loss in (2.9, 3.2, 3.5):
            answer = link.predict(loss, **C4)
            truth = float(true_accuracy(loss))
            between = task_loss(loss) + generator.normal(0, 0.01)
            another = 0.25 + 0.65 / (1 + np.exp(-4 * (1 - between))) + generator.normal(0, 0.01)
            curve.append(answer.mean_low <= truth <= answer.mean_high)
            new.append(answer.low <= another <= answer.high)
    assert 0.92 <= np.mean(curve) <= 0.99
    assert 0.92 <= np.mean(new) <= 0.99


@pytest.mark.slow
def test_the_interval_of_a_mean_covers_though_tasks_share_their_noise() -> None:
    generator = np.random.default_rng(8)
    form, inside, alone = Sigmoid(ceiling=0.9), [], []
    tasks = [Task(name=name, chance=0.25) for name in "abcd"]
    for seed in range(80):
        links = fit_links(synthetic(seed, tasks="abcd"), tasks, form=form)
        answer = links.predict(3.1, **C4).mean
        luck = generator.normal(0, 0.01 / np.sqrt(2))
        own = generator.normal(0, 0.01 / np.sqrt(2), 4)
        between = task_loss(3.1) + generator.normal(0, 0.01, 4)
        measured = (0.25 + 0.65 / (1 + np.exp(-4 * (1 - between))) + luck + own).mean()
        inside.append(answer.low <= measured <= answer.high)
        single = [link.predict(3.1, **C4).standard_error or 0 for link in links.links]
        alone.append(answer.standard_error / (np.linalg.norm(single) / 4))
    assert 0.88 <= np.mean(inside) <= 0.99
    assert np.mean(alone) > 1.1  # independent tasks would make the mean too certain


def test_the_uncertainty_of_the_loss_widens_the_interval() -> None:
    link = fit_link(synthetic(2), GUESS)
    plain = link.predict(3.1, **C4)
    wide = link.predict(3.1, loss_low=3.0, loss_high=3.2, **C4)
    draws = np.random.default_rng(0).normal(np.log(3.1), 0.0323 / 1.96, 4000)
    drawn = link.predict(3.1, draws=np.exp(draws), **C4)
    assert wide.value == plain.value == drawn.value
    assert wide.high - wide.low > plain.high - plain.low
    assert drawn.low == pytest.approx(wide.low, abs=0.003)
    assert drawn.high == pytest.approx(wide.high, abs=0.003)
    slope = (link.predict(3.0, **C4).value - link.predict(3.2, **C4).value) / 0.2
    expected = np.hypot(plain.standard_error, slope * 0.1 / 1.96)
    assert wide.standard_error == pytest.approx(expected, rel=0.05)


def test_both_steps_enter_the_interval() -> None:
    table = synthetic(3)
    two = fit_link(table, GUESS, form="two-step")
    second = fit_link(table, GUESS, form="sigmoid", loss="bpb_a")
    whole = two.predict(3.1, **C4)
    only_second = second.predict(float(task_loss(3.1)), validation="bpb_a")
    assert whole.standard_error > only_second.standard_error
    noise = two.noise
    _, _, by_noise = two.curve(np.array([3.1]))
    assert by_noise[0, 1] == 1
    assert by_noise[0, 0] == pytest.approx(-4 * 0.65 / 4, rel=0.5)
    assert noise[0, 0] > 0


def test_a_law_of_n_and_d_on_the_task_loss_chains_into_a_link() -> None:
    generator = np.random.default_rng(4)
    sizes, tokens = np.meshgrid([1e8, 2e8, 4e8, 8e8], [2e9, 8e9, 3e10, 1e11])
    size, seen = sizes.ravel(), tokens.ravel()
    between = (0.4 + 60 / size**0.25 + 20 / seen**0.18) * np.exp(generator.normal(0, 2e-3, 16))
    table = pd.DataFrame({"n_total": size, "tokens": seen, "loss": between, "bpb_a": between})
    table["accuracy_a"] = 0.25 + 0.65 / (1 + np.exp(-4 * (1.2 - between)))
    law = fit("chinchilla", table, resamples=20, starts=8)
    link = fit_link(table, GUESS, loss="bpb_a")
    target = pd.DataFrame({"n_total": [1.6e9], "tokens": [2e11]})
    losses = law.predict(target).iloc[0]
    answer = link.predict(
        losses["predicted_loss"],
        loss_low=losses["loss_low"],
        loss_high=losses["loss_high"],
        validation="bpb_a",
    )
    truth = 0.25 + 0.65 / (1 + np.exp(-4 * (1.2 - (0.4 + 60 / 1.6e9**0.25 + 20 / 2e11**0.18))))
    assert answer.low < truth < answer.high
    assert answer.value == pytest.approx(truth, abs=0.05)


def test_beyond_the_data_the_interval_spans_a_ceiling_of_one() -> None:
    link = fit_link(synthetic(5), GUESS)
    assert link.other is not None
    assert link.other.ceiling == 1
    inside, below = link.predict(3.0, **C4), link.predict(2.0, **C4)
    assert "with ceiling 1" not in inside.status
    assert "extrapolated" in below.status
    assert "with ceiling 1" in below.status
    other = link.other.predict(2.0, **C4)
    assert below.high == pytest.approx(max(below.mean_high, other.high), abs=0.2)
    assert below.high >= other.high


def test_a_form_without_a_fitted_ceiling_has_no_second_link_with_ceiling_one() -> None:
    link = fit_link(synthetic(5), GUESS, form=Sigmoid(ceiling=0.9))
    assert link.other is None
    assert link.ceiling == 0.9
    assert fit_link(synthetic(5), GUESS, form=TwoStep(second=Sigmoid(ceiling=1.0))).ceiling == 1
    assert fit_link(synthetic(5), GUESS, form=ExponentialError()).ceiling == 1


def test_accuracies_within_noise_of_chance_are_refused() -> None:
    table = synthetic(6)
    generator = np.random.default_rng(0)
    table["accuracy_a"] = generator.binomial(500, 0.25, len(table)) / 500
    with pytest.raises(InputError, match=r"must exceed chance \(0.25\) by 3 standard errors"):
        fit_link(table, Task(name="a", chance=0.25, items=500))
    with pytest.raises(InputError, match="the noise of models around the curve"):
        fit_link(table, GUESS)


def test_a_small_gain_over_chance_counts_only_with_many_test_items() -> None:
    table = synthetic(6, noise=0.001)
    table["accuracy_a"] = 0.25 + 0.2 * (table["accuracy_a"] - 0.25)
    assert fit_link(table, Task(name="a", chance=0.25, items=10_000)).chance == 0.25
    with pytest.raises(InputError, match="is only noise"):
        fit_link(table, Task(name="a", chance=0.25, items=50))


def test_a_missing_task_is_an_error_and_never_a_mean_over_fewer() -> None:
    tasks = [GUESS, Task(name="b", chance=0.25)]
    with pytest.raises(InputError, match="lacks the column `accuracy_b`"):
        fit_links(synthetic(0), tasks)
    table = synthetic(0, tasks="ab")
    table.loc[3, "accuracy_b"] = np.nan
    with pytest.raises(InputError, match=r"run-3 has nan.*a mean needs all tasks of every model"):
        fit_links(table, tasks)
    with pytest.raises(InputError, match="lacks the column `accuracy_b`"):
        held_out(fit_links(synthetic(0, tasks="ab"), tasks), synthetic(1))


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("loss_c4_en", -1.0, "`loss_c4_en > 0` and finite must hold"),
        ("loss_c4_en", "low", "`loss_c4_en > 0` and finite must hold, but got low"),
        ("loss_c4_en", np.nan, "`loss_c4_en > 0` and finite"),
        ("bpb_a", np.inf, "`bpb_a > 0` and finite"),
        ("accuracy_a", 54.9, "`0 <= accuracy_a <= 1` must hold, but run-3 has 54.9"),
        ("accuracy_a", "high", "`0 <= accuracy_a <= 1` must hold, but run-3 has high"),
        ("run_id", "run-4", "`run_id` must be unique, but 'run-4' occurs twice"),
    ],
)
def test_an_impossible_value_is_refused_by_name(column: str, value: object, text: str) -> None:
    table = synthetic(0).astype({column: object})
    table.loc[3, column] = value
    table.index = [f"label {i}" for i in range(len(table))]
    with pytest.raises(InputError, match=text):
        fit_link(table, GUESS, form="two-step")


def test_losses_of_several_tokenizers_are_refused() -> None:
    table = synthetic(0).assign(tokenizer=["one"] * 8 + ["two"] * 8)
    with pytest.raises(InputError, match="`tokenizer` must be the same"):
        fit_link(table, GUESS)
    one = fit_link(table.assign(tokenizer="one"), GUESS)
    assert one.measured.provenance["tokenizer"] == "one"


@pytest.mark.parametrize(("form", "needed"), [("sigmoid", 5), (Sigmoid(ceiling=1.0), 4)])
def test_too_few_models_are_refused(form: str | Form, needed: int) -> None:
    table = synthetic(0, rows=needed - 1)
    with pytest.raises(InputError, match=f"needs at least {needed} models of different loss"):
        fit_link(table, GUESS, form=form)
    same = synthetic(0, rows=16).assign(loss_c4_en=3.0)
    with pytest.raises(InputError, match="different loss, but got 1"):
        fit_link(same, GUESS, form=form)


def test_an_unknown_form_task_or_column_is_refused_with_a_way_out() -> None:
    table = synthetic(0)
    with pytest.raises(InputError, match="`form` must be one of sigmoid, exponential-error"):
        fit_link(table, GUESS, form="probit")
    with pytest.raises(InputError, match=r"`a` must be a known task.*Task\("):
        fit_link(table, "a")
    with pytest.raises(InputError, match="`tasks` must name at least one task"):
        fit_links(table, [])
    with pytest.raises(InputError, match=r'name the set by `validation="\.\.\."`'):
        fit_link(table.rename(columns={"loss_c4_en": "loss"}), GUESS, loss="loss")
    with pytest.raises(InputError, match="lacks the column `loss_pile`"):
        fit_link(table, GUESS, loss="loss_pile")


def test_fitted_models_are_refused_as_a_held_out_set() -> None:
    table = synthetic(0)
    links = fit_links(table[:12], [GUESS])
    errors = held_out(links, table[12:])
    assert list(errors["task"].unique()) == ["a", "mean"]
    assert errors["error"].abs().max() < 0.1
    with pytest.raises(InputError, match="must not be fitted models, but `run-11` is one"):
        held_out(links, table[11:])


def test_the_fingerprint_follows_the_fitted_columns_only() -> None:
    table = synthetic(0)
    link, beside = fit_link(table, GUESS), fit_link(table.assign(note="x"), GUESS)
    assert link.measured.data_sha256 == beside.measured.data_sha256
    moved = table.assign(accuracy_a=table["accuracy_a"] * 0.999)
    assert fit_link(moved, GUESS).measured.data_sha256 != link.measured.data_sha256


def test_the_chance_levels_are_one_over_the_choices() -> None:
    choices = {
        **dict.fromkeys(("mmlu", "hellaswag", "arc_challenge", "arc_easy", "openbookqa"), 4),
        "hellaswag_val_subset": 4,
        **dict.fromkeys(("blimp", "boolq", "piqa", "winogrande"), 2),
        "csqa": 5,
        "socialiqa": 3,
    }
    free = {"lambada_openai": 0.0}
    assert {name: task.chance for name, task in known_tasks().items()} == pytest.approx(
        {name: 1 / count for name, count in choices.items()} | free
    )


def test_an_unknown_link_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be one of olmo-ladder or end in \.json"):
        load_link("pythia")
    with pytest.raises(InputError, match="cannot be read"):
        load_link(tmp_path / "none.json")
