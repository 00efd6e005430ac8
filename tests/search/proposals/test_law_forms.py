"""The spread over law forms, and the run tables that it needs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.registry import LAWS, law_named
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.table import write_runs
from shapelaw.search.proposals import law_forms
from shapelaw.search.proposals.basis import LossBasis, loss_basis
from shapelaw.search.proposals.law_forms import NOT_INCLUDED, alternatives, spread_over_forms
from support.search_runs import synthetic_runs as large_losses


def synthetic_runs() -> pd.DataFrame:
    """Make synthetic runs whose losses are below that of a uniform guess."""
    return large_losses().assign(loss=lambda runs: runs["loss"] / 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run table and a fit of it."""
    folder = tmp_path_factory.mktemp("fitted")
    write_runs(folder / "runs.csv", synthetic_runs())
    runs = load_runs(folder / "runs.csv")
    fit("conditional-steady", runs, starts=16, resamples=10, prior="none").save(folder / "fit.json")
    return folder


@pytest.fixture(scope="module")
def basis(folder: Path) -> LossBasis:
    return loss_basis(str(folder / "fit.json"))


@pytest.mark.parametrize("name", LAWS)
def test_alternatives_are_other_laws_of_the_same_ratios(name: str) -> None:
    law = law_named(name)
    others = alternatives(law)
    assert law not in others.values()
    assert len(set(map(repr, others.values()))) == len(others)
    for other in others.values():
        assert {factor.of for factor in other.shapes} == {factor.of for factor in law.shapes}


def test_spread_is_that_of_the_law_and_its_forms(basis: LossBasis) -> None:
    frame = synthetic_runs().iloc[:5]
    spread = spread_over_forms(basis, frame)
    assert spread.nats is not None
    assert (spread.nats > 0).all()
    assert (spread.nats < 0.05 * basis.fit.central(frame)).all(), "all forms fit these runs"
    assert spread.at(2) == spread.nats[2]
    assert "optima that drift with size" in spread.note


def test_spread_over_forms_is_range_of_their_predictions(basis: LossBasis) -> None:
    assert basis.runs is not None
    frame = synthetic_runs().iloc[:4]
    spread = spread_over_forms(basis, frame)
    others = [law for name, law in alternatives(basis.fit.law).items() if name in spread.note]
    assert others
    fits = [fit(law, basis.runs, delta=basis.fit.delta, starts=8, resamples=0) for law in others]
    losses = [fitted.central(frame) for fitted in (basis.fit, *fits)]
    np.testing.assert_allclose(spread.nats, np.ptp(losses, axis=0), rtol=1e-4)


def test_spread_has_no_value_when_no_form_can_be_fitted(
    basis: LossBasis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **settings: object) -> None:
        raise InputError("too few runs")

    monkeypatch.setattr(law_forms, "fit_quickly", refused)
    spread = spread_over_forms(basis, synthetic_runs().iloc[:3])
    assert spread.nats is None
    assert spread.note.startswith(NOT_INCLUDED)


def test_fit_without_resamples_is_refused_as_basis_of_proposals(folder: Path) -> None:
    fitted = replace(Fit.load(folder / "fit.json"), draws=np.empty((0, 0)))
    with pytest.raises(InputError, match=r"fit with resamples, .* again with --resamples 1000"):
        LossBasis(fit=fitted)


def test_spread_grows_away_from_the_runs(basis: LossBasis) -> None:
    near = synthetic_runs().iloc[:8]
    size = 1000 * near["n_non_embedding"]
    far = near.assign(n_non_embedding=size, tokens=20 * size, hidden_over_sqrt_n=0.02)
    spreads = [spread_over_forms(basis, frame).nats for frame in (near, far)]
    assert np.mean(spreads[1]) > 2 * np.mean(spreads[0])


def test_form_that_fits_worse_is_left_out(
    basis: LossBasis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(law_forms, "MAX_SCATTER_RATIO", 0.0)
    spread = spread_over_forms(basis, synthetic_runs().iloc[:3])
    assert spread.nats is None
    assert spread.note == f"{NOT_INCLUDED}no other form fits the runs as well"


def test_law_without_runs_has_a_note_and_no_spread() -> None:
    basis = LossBasis(fit=printed_fit("paper-2510.18245"))
    spread = spread_over_forms(basis, pd.DataFrame())
    assert spread.at(0) is None
    assert spread.note.startswith(NOT_INCLUDED)


def test_runs_beside_a_fit_are_found_also_where_it_took_a_part(
    folder: Path, tmp_path: Path
) -> None:
    write_runs(tmp_path / "runs.csv", synthetic_runs())
    part = load_runs(tmp_path / "runs.csv", where="tokens >= 1000000")
    fit("chinchilla", part, starts=4, resamples=2).save(tmp_path / "fit.json")
    runs = loss_basis(str(tmp_path / "fit.json")).runs
    assert runs is not None
    assert list(runs["run_id"]) == list(part["run_id"])


def test_runs_that_changed_since_the_fit_are_not_used(folder: Path, tmp_path: Path) -> None:
    fitted = Fit.load(folder / "fit.json")
    fitted.save(tmp_path / "fit.json")
    runs = synthetic_runs()
    write_runs(tmp_path / "runs.csv", runs.assign(loss=1.01 * runs["loss"]))
    assert loss_basis(str(tmp_path / "fit.json")).runs is None


def test_runs_of_a_shipped_table_are_found_by_their_content(tmp_path: Path) -> None:
    from shapelaw.scaling.runs.catalog import load_runs as load_named

    runs = load_named("quickstart", where="role == 'proxy'")
    fit("chinchilla", runs, starts=4, resamples=2).save(tmp_path / "fit.json")
    found = loss_basis(str(tmp_path / "fit.json"))
    assert found.runs is not None
    assert len(found.runs) == 17
