import csv
import os
from pathlib import Path

import numpy as np
import pytest

from scaling import catalog
from scaling.catalog import MIRROR, PUBLIC, data_folder, hardware, load_table, shape_named
from scaling.errors import InputError, WorkError

ROOT = Path(__file__).parents[1]
COUNTS = ROOT / "tests" / "golden" / "parameter_counts.csv"


@pytest.fixture
def mirror(monkeypatch):
    """The folder of the published tables."""
    folder = Path(os.environ.get(MIRROR, ROOT.parent / "shared" / "datasets"))
    if not folder.is_dir():
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    monkeypatch.setenv(MIRROR, str(folder))
    return folder


def named_counts() -> list[dict[str, str]]:
    with COUNTS.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["catalog"]]


@pytest.mark.parametrize("row", named_counts(), ids=lambda row: row["catalog"])
def test_a_named_shape_has_the_published_counts(row):
    shape = shape_named(row["catalog"])
    assert shape.n_total == int(row["n_total"])
    assert shape.n_non_embedding == int(row["n_non_embedding"])
    assert shape.kv_bytes() == int(row["kv_bytes"])
    assert shape.qk_norm is (row["qk_norm"] == "True")
    assert shape.tie_word_embeddings is (row["tie_word_embeddings"] == "True")


def test_every_named_shape_is_valid():
    with (data_folder() / "shapes.csv").open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == len(set(names))
    assert {row["catalog"] for row in named_counts()} <= set(names)
    assert all(shape_named(name).n_non_embedding > 1e8 for name in names)


def test_panda_has_the_proportions_of_its_paper():
    panda = shape_named("panda-1b")
    assert panda.mlp_to_attention == pytest.approx(1.067, abs=5e-4)
    assert panda.gqa == 4
    assert panda.hidden_over_sqrt_n == pytest.approx(0.082, abs=1e-4)


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"one of llama-3.2-1b, .*, but got 'llama-9'"):
        shape_named("llama-9")


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"a table's name must be one of chinchilla.*got 'steps'"):
        load_table("steps")


def test_the_chinchilla_table_has_the_published_points(mirror):
    table = load_table("chinchilla")
    assert len(table) == 245
    assert table["outlier"].sum() == 5
    assert table["loss"][table["outlier"]].min() > table["loss"][~table["outlier"]].max()
    assert table["run_id"].is_unique
    ratio = table["flops_6nd"] / (6 * table["n_total"] * table["tokens"])
    np.testing.assert_allclose(ratio, 1, rtol=1e-12)


def test_a_mirror_that_lacks_a_table_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(MIRROR, str(tmp_path))
    text = f"`{MIRROR}` is .*, which lacks {PUBLIC['chinchilla'].path}; unset it"
    with pytest.raises(InputError, match=text):
        load_table("chinchilla")


def test_a_mirror_with_another_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / PUBLIC["chinchilla"].path
    path.parent.mkdir()
    path.write_text("Model Size,Training FLOP,loss\n1e6,6e13,4.0\n")
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(WorkError, match="is not the published file: its SHA-256 differs"):
        load_table("chinchilla")


def test_a_failed_download_says_how_to_go_on_without(monkeypatch):
    import pooch

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(WorkError, match=rf"no route to host\); set {MIRROR} to a folder that hold"):
        load_table("chinchilla")


def test_every_public_table_has_a_checksum_and_an_address():
    for table in PUBLIC.values():
        assert len(table.sha256) == 64
        assert table.url.startswith("https://")


def test_shipped_tables_stand_in_the_installed_package_or_the_checkout():
    folder = data_folder()
    assert (folder / "shapes.csv").is_file()
    assert folder in (Path(catalog.__file__).parent / "_data", ROOT / "data")


@pytest.mark.parametrize("key", ["a100", "h100", "h200"])
def test_hardware_has_figures_in_bytes_and_flops_per_second(key):
    device = hardware(key)
    assert device.key == key
    assert key.upper() in device.name
    assert 1e10 < device.memory < 1e12
    assert 1e12 < device.bandwidth < 1e13
    assert {"bfloat16", "float32"} <= set(device.peak_flops)
    assert 1e14 < device.peak_flops["bfloat16"] < 1e16
    assert device.peak_flops["float32"] < device.peak_flops["bfloat16"]
    assert device.source


def test_unknown_hardware_is_refused_with_the_known_keys():
    with pytest.raises(InputError, match=r"hardware must be one of a100, h100, h200.*got 'tpu'"):
        hardware("tpu")
