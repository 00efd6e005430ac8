import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder, read_json, write_json
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import write_runs
from shapelaw.search.reports.loop_report import front_volume, write_report
from shapelaw.search.reports.quickstart_verdict import (
    comparison,
    conclusion,
    judge_difference,
    read_evidence,
    verdict,
)
from support.command import shapelaw
from support.page_checks import WIDTHS, parts_cut, pictures_without_words

pytestmark = pytest.mark.xdist_group("loop")
HOSTILE = "<script>window.broken = 1</script>"


@pytest.fixture
def folder(loop_folder: Path, tmp_path: Path) -> Path:
    """Copy the folder of a quickstart, so that a test may change it."""
    copy = tmp_path / "copy"
    shutil.copytree(loop_folder, copy, ignore=shutil.ignore_patterns("work"))
    return copy


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a quickstart's folder from the shipped data, with a hostile run name and warning."""
    folder = tmp_path_factory.mktemp("shipped")
    runs = load_runs("quickstart").frame.astype({"run_id": object})
    proxies = runs[runs["role"] == "proxy"].index
    runs.loc[proxies[0], "run_id"] = HOSTILE
    write_runs(folder / "runs.csv", runs)
    fitted = fit("conditional", load_runs(folder / "runs.csv", where="role == 'proxy'"),
                 starts=4, resamples=4)  # fmt: skip
    fitted.save(folder / "fit.json")
    document = read_json(data_folder() / "quickstart" / "proposals.json")
    document["proposals"][1]["warnings"].append(HOSTILE)
    write_json(folder / "proposals.json", document)
    return folder


def test_page_of_shipped_data_holds_hostile_names_as_text_only(shipped: Path) -> None:
    page = write_report(shipped).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count(str(escape(HOSTILE))) >= 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_tables_of_shipped_data_have_units_and_the_source_of_speeds(shipped: Path) -> None:
    page = write_report(shipped).read_text(encoding="utf-8")
    for heading in ("N (parameters)", "measured loss (nats/token)", "output tokens/s"):
        assert f"<th>{heading}</th>" in page
    assert "measured on 1 core" in page


def test_verdict_on_shipped_data_compares_every_named_shape(shipped: Path) -> None:
    sentences = verdict(read_evidence(shipped))
    assert "of 3 confirmatory losses lie inside their 95 % intervals" in sentences[0]
    for role in ("loss-optimal", "fast"):
        assert any(f"Against the baseline the {role} shape" in line for line in sentences)


def test_difference_to_the_baseline_has_the_interval_of_law_and_noise(shipped: Path) -> None:
    evidence = read_evidence(shipped)
    rows = evidence.confirmed.set_index("role")
    fitted = evidence.fit
    features = evidence.runs.set_index("run_id").loc[rows["run_id"].str[0]]
    logs = pd.DataFrame(fitted.log_loss_draws(features), columns=rows.index)
    generator = np.random.default_rng(0)
    for role in ("loss-optimal", "fast"):
        draws = (logs[role] - logs["baseline"]).to_numpy()[:, None]
        shocks = generator.standard_t(fitted.noise_degrees, size=(len(draws), 20_000))
        drawn = 100 * np.expm1(draws + fitted.noise * 2**0.5 * shocks)
        low, high = np.percentile(drawn, [2.5, 97.5])
        row = rows.loc[role]
        assert row["difference_low"] == pytest.approx(low, abs=0.1)
        assert row["difference_high"] == pytest.approx(high, abs=0.1)
        sentence = next(line for line in verdict(evidence) if f"baseline the {role}" in line)
        ends = f"{row['difference_low']:+.2f} to {row['difference_high']:+.2f} %"
        assert f"(predicted {row['predicted_difference']:+.2f} %, 95 % interval {ends})" in sentence


def test_seed_noise_of_the_record_widens_the_interval_of_a_measured_difference(
    shipped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shipped, folder)
    before = read_evidence(folder).confirmed.set_index("role").loc["fast"]
    noise = {"deviation": 0.02, "degrees": 50}
    write_json(folder / "quickstart.json", {"seed_noise": noise})
    after = read_evidence(folder).confirmed.set_index("role").loc["fast"]
    assert after["noise"] == pytest.approx(100 * 0.02 * 2**0.5 * student.ppf(0.975, 50))
    assert after["difference_low"] < before["difference_low"]
    assert after["difference_high"] > before["difference_high"]
    assert f"± {after['noise']:.1f} %." in conclusion(read_evidence(folder))


def test_losses_of_two_seeds_are_averaged_and_halve_the_variance_of_the_noise(
    shipped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shipped, folder)
    write_json(folder / "quickstart.json", {"seed_noise": {"deviation": 0.01, "degrees": 50}})
    before = read_evidence(folder).confirmed.set_index("role")
    runs = load_runs(folder / "runs.csv").frame
    again = runs[runs["role"] == "confirmation"].copy()
    again["run_id"] += "-again"
    again["loss"] *= 1.21
    again["seed"] += 1
    write_runs(folder / "runs.csv", pd.concat([runs, again], ignore_index=True))
    evidence = read_evidence(folder)
    after = evidence.confirmed.set_index("role")
    assert after["loss"].to_numpy() == pytest.approx(1.1 * before["loss"].to_numpy())
    assert after["noise"].to_numpy() == pytest.approx(before["noise"].to_numpy() / 2**0.5)
    assert "of 6 confirmatory losses lie inside" in verdict(evidence)[0]
    assert comparison(evidence)["inside"].str.endswith("of 2 runs").all()


def test_conclusion_promises_a_speed_with_the_joint_probability_of_speed_and_loss(
    shipped: Path,
) -> None:
    evidence = read_evidence(shipped)
    rows = evidence.confirmed.set_index("role")
    fast, base = rows.loc["fast"], rows.loc["baseline"]
    sentence = conclusion(evidence)
    (promised,) = re.findall(r"at least (\d\.\d) times as fast", sentence)
    (probability,) = re.findall(r"with probability (\d\.\d\d);", sentence)
    assert 0.5 < float(promised) < fast["throughput"] / base["throughput"]
    assert 0.95 * fast["p_less_loss"] - 0.01 < float(probability) <= fast["p_less_loss"] + 0.01
    assert f"loss {fast['difference']:+.1f} % ± {fast['noise']:.1f} %." in sentence


def test_conclusion_shows_the_speed_that_was_measured_again_after_training(
    shipped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shipped, folder)
    names = read_evidence(folder).confirmed.set_index("role")["name"]
    served = {names["fast"]: 300.0, names["baseline"]: 200.0, names["loss-optimal"]: 100.0}
    write_json(folder / "quickstart.json", {"served": served})
    assert "trained: 1.50 times" in conclusion(read_evidence(folder))
    assert conclusion(read_evidence(folder)) in write_report(folder).read_text(encoding="utf-8")


def test_verdict_states_the_probabilities_of_every_shape_against_the_baseline(
    shipped: Path,
) -> None:
    sentences = [line for line in verdict(read_evidence(shipped)) if "Against the" in line]
    assert len(sentences) == 2
    for sentence in sentences:
        assert re.search(r"P\(less loss\) [<>]? ?\d\.\d+, P\(faster\) [<>]? ?\d\.\d+\.$", sentence)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (-1.0, "as predicted"),
        (-0.2, "as predicted, but within the noise of the runs (± 0.80 %)"),
        (1.0, "off by more than the noise of the runs (± 0.80 %), but inside the interval"),
        (-4.0, "the prediction failed, the measured difference is outside the interval"),
        (4.0, "outside the interval, and the sign is wrong"),
    ],
)
def test_verdict_on_a_difference_counts_the_uncertainty_of_the_law(
    measured: float, expected: str
) -> None:
    row = {"difference": measured, "predicted_difference": -0.9, "difference_low": -3.0,
           "difference_high": 2.0, "noise": 0.8}  # fmt: skip
    assert expected in judge_difference(row)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "media"), [*((w, "screen") for w in WIDTHS), (720, "print")])
def test_quickstart_page_is_whole_at_every_width_and_on_paper(
    shipped: Path, browser: Any, width: int, media: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(media=media)
    page.goto(write_report(shipped).as_uri())
    assert parts_cut(page) == []
    assert pictures_without_words(page) == []
    assert page.locator("figure img").count() == 2
    assert page.locator("tbody tr").count() > 20
    assert page.evaluate("window.broken") is None
    page.close()


def test_fit_of_other_runs_is_refused_with_the_command_that_fits_again(
    shipped: Path, tmp_path: Path
) -> None:
    shutil.copytree(shipped, tmp_path / "copy")
    runs = pd.read_csv(tmp_path / "copy" / "runs.csv")
    runs["run_id"] = [f"other-{number}" for number in range(len(runs))]
    write_runs(tmp_path / "copy" / "runs.csv", runs)
    with pytest.raises(InputError, match="fit again with `shapelaw fit"):
        write_report(tmp_path / "copy")


def test_nested_record_of_corpus_is_shown_as_names_and_values(
    shipped: Path, tmp_path: Path
) -> None:
    shutil.copytree(shipped, tmp_path / "copy")
    parts = [{"name": "prose", "weight": None, "bytes": 7598291, "truncated": False}]
    record = {"corpus": {"name": "text", "parts": parts}, "settings": {"vocab_size": None}}
    write_json(tmp_path / "copy" / "quickstart.json", record)
    page = write_report(tmp_path / "copy").read_text(encoding="utf-8")
    assert "name text, parts name prose, weight –, bytes 7598291, truncated no" in page
    assert "vocab_size –" in page


def test_page_is_self_contained_and_shows_every_run(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 4, "two pictures, each also for phones"
    for row in load_runs(folder / "runs.csv").frame.itertuples():
        assert row.run_id in page
        assert f"{row.loss:.4f}" in page


def test_loss_raised_by_five_per_cent_changes_fit_and_report(folder: Path) -> None:
    before = (folder / "report.html").read_text()
    old = json.loads((folder / "fit.json").read_text())["parameters"]
    runs = pd.read_csv(folder / "runs.csv")
    name = runs.loc[0, "run_id"]
    raised = runs.loc[0, "loss"] * 1.05
    runs.loc[0, "loss"] = raised
    write_runs(folder / "runs.csv", runs)
    where = ("--where", "role == 'proxy'")
    fitted = shapelaw("fit", folder / "runs.csv", "--out", folder / "fit.json", *where)
    assert fitted.returncode == 0, fitted.stderr
    assert shapelaw("report", folder).returncode == 0
    after = (folder / "report.html").read_text()
    assert f"{raised:.4f}" in after
    assert f"{raised:.4f}" not in before
    assert json.loads((folder / "fit.json").read_text())["parameters"] != old
    assert name in after
    assert _predictions(after) != _predictions(before)


def _predictions(page: str) -> list[str]:
    """Return the predicted losses with intervals on a page."""
    return re.findall(r"\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]", page)


def test_measured_loss_outside_its_interval_is_reported_as_a_failed_prediction(
    folder: Path,
) -> None:
    runs = pd.read_csv(folder / "runs.csv")
    runs.loc[runs["role"] == "confirmation", "loss"] *= 1.5
    write_runs(folder / "runs.csv", runs)
    sentences = " ".join(verdict(read_evidence(folder)))
    assert re.match(r"0 of [46] confirmatory losses lie inside", sentences)
    compared = comparison(read_evidence(folder))
    assert sentences.count("shape failed: measured") == len(compared) >= 2
    assert (compared["inside"] == "0 of 2 runs").all()


def test_verdict_of_fit_on_confirmatory_runs_says_that_they_do_not_test_it(folder: Path) -> None:
    done = shapelaw("fit", folder / "runs.csv", "--out", folder / "fit.json")
    assert done.returncode == 0, done.stderr
    assert "does not test it" in verdict(read_evidence(folder))[0]


def test_report_without_confirmation_says_that_predictions_are_untested(folder: Path) -> None:
    runs = pd.read_csv(folder / "runs.csv")
    write_runs(folder / "runs.csv", runs[runs["role"] == "proxy"])
    write_report(folder)
    assert "the predictions are untested" in (folder / "report.html").read_text()


def test_hypervolume_is_positive_and_finite(folder: Path) -> None:
    assert 0 < front_volume(read_evidence(folder)) < 10


@pytest.mark.parametrize("missing", ["runs.csv", "fit.json", "proposals.json"])
def test_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing.replace(".", r"\.")):
        write_report(folder)


def test_report_on_a_folder_that_does_not_exist_exits_with_2(tmp_path: Path) -> None:
    done = shapelaw("report", tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
