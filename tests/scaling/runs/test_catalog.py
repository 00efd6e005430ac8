import csv
import re
from pathlib import Path

import numpy as np
import pytest

import shapelaw
from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import data_folder, sha256
from shapelaw.scaling.runs.catalog import (
    MIRROR,
    fetch,
    listed_tables,
    listing,
    load_runs,
    named_tables,
)
from shapelaw.scaling.runs.converters import CONVERTERS
from shapelaw.search.engines.accelerators import hardware
from support.paths import ROOT

COUNTS = ROOT / "tests" / "golden" / "parameter_counts.csv"


def named_counts() -> list[dict[str, str]]:
    """Read the published parameter counts of the named shapes."""
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


PUBLISHED = [name for name, table in named_tables().items() if table.files]
SHIPPED = [name for name, table in named_tables().items() if not table.files]
CHINCHILLA = "epoch_chinchilla/svg_extracted_data.csv"
LADDER_RUN = "olmo_ladder/ladder-runs/{}.csv"


@pytest.mark.parametrize("name", ["steps", "steps.json", Path("steps")])
def test_an_unknown_table_is_refused_with_the_known_ones(name):
    text = r"a table's name must be one of chinchilla, .*or an existing file, but got 'steps"
    with pytest.raises(InputError, match=text):
        load_runs(name)


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_name_with_a_table_ending_is_read_as_a_file(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} cannot be read: .*; give an existing table"):
        load_runs(tmp_path / name)


@pytest.mark.parametrize("name", ["mine.csv", "mine"])
def test_file_loads_by_its_path_with_any_ending(tmp_path, name):
    path = tmp_path / name
    path.write_text("n_total,tokens,loss\n1e6,2e7,4.5\n2e6,4e7,4.25\n")
    for given in (path, str(path)):
        runs = load_runs(given, where="tokens > 3e7")
        assert runs["loss"].tolist() == [4.25]
        assert runs.source == {"name": name, "address": str(path)}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_loads_by_name_with_its_source(name):
    runs = load_runs(name)
    assert len(runs) >= 7
    assert runs.source["address"] == f"shipped, data/{name}/runs.csv"
    assert {"citation", "licence"} <= set(runs.source)
    assert {"n_non_embedding", "hidden_over_sqrt_n", "mlp_to_attention", "gqa"} <= set(runs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table_has_the_listed_rows_ranges_and_source(mirror, name):
    table, runs = named_tables()[name], load_runs(name)
    assert len(runs) == table.rows
    for column, (low, high) in table.ranges.items():
        assert float(f"{runs[column].min():.3g}") == low
        assert float(f"{runs[column].max():.3g}") == high
    assert runs.source == table.source
    assert isinstance(runs.left_out, dict)
    assert isinstance(runs.warnings, tuple)
    assert {"n_total", "n_non_embedding"} & set(runs)


def test_a_published_table_takes_filters_and_exclusions(mirror):
    runs = load_runs("chinchilla", where="outlier == False", exclude=["chinchilla-100"])
    assert len(runs) == 239
    left_out = runs.left_out
    assert left_out["chinchilla-100"] == "excluded by name"
    assert sorted(left_out.values()).count("not in `outlier == False`") == 5


def test_the_chinchilla_table_has_the_published_points(mirror):
    table = load_runs("chinchilla")
    assert len(table) == 245
    assert table["outlier"].sum() == 5
    assert table["loss"][table["outlier"]].min() > table["loss"][~table["outlier"]].max()
    assert table["run_id"].is_unique
    ratio = table["flops_6nd"] / (6 * table["n_total"] * table["tokens"])
    np.testing.assert_allclose(ratio, 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "file"), [("chinchilla", CHINCHILLA), ("olmo-ladder", LADDER_RUN.format("190M-1xC"))]
)
def test_a_mirror_that_lacks_a_table_is_named(monkeypatch, tmp_path, name, file):
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(InputError, match=f"`{MIRROR}` is .*, which lacks {file}; unset it to down"):
        load_runs(name)


def test_a_mirror_with_another_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / CHINCHILLA
    path.parent.mkdir()
    path.write_text("Model Size,Training FLOP,loss\n1e6,6e13,4.0\n")
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(WorkError, match="is not the published file: its SHA-256 differs"):
        load_runs("chinchilla")


def test_one_bad_file_of_several_is_refused(mirror, monkeypatch, tmp_path):
    for name in named_tables()["olmo-ladder-3b"].files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((mirror / name).read_bytes())
    monkeypatch.setenv(MIRROR, str(tmp_path))
    assert len(load_runs("olmo-ladder-3b")) == 4
    last = tmp_path / LADDER_RUN.format("3B-10xC")
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(WorkError, match=r"3B-10xC.csv is not the published file"):
        load_runs("olmo-ladder-3b")


def test_failed_download_error_names_the_mirror_variable(monkeypatch):
    import pooch

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(WorkError, match=rf"no route to host\); set {MIRROR} to a folder that hold"):
        load_runs("chinchilla")


@pytest.fixture
def web(mirror, monkeypatch, tmp_path):
    """Replace downloads by copies from the mirror; return the addresses fetched and the files."""
    import pooch

    by_address = {
        table.address(name): mirror / name
        for table in named_tables().values()
        for name in table.files
    }
    fetched = []

    def serve(address, output_file, _, **__):
        fetched.append(address)
        Path(output_file).write_bytes(by_address[address].read_bytes())

    monkeypatch.delenv(MIRROR)
    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path / "cache")
    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, **__: serve)
    return fetched, by_address


def test_a_download_is_checked_converted_and_kept(web):
    fetched, _ = web
    assert len(load_runs("olmo-ladder-3b")) == 4
    assert len(fetched) == 4
    assert all("/67a3f440f787d020da35e3ca8eeae475fae754f5/src/" in address for address in fetched)
    assert len(load_runs("olmo-ladder-3b")) == 4
    assert len(fetched) == 4  # from the cache


def test_a_download_that_is_another_file_is_refused(web, tmp_path):
    _, by_address = web
    table = named_tables()["steplaw"]
    address = table.address("steplaw/dense_lr_bs_loss.csv")
    by_address[address] = tmp_path / "other.csv"
    by_address[address].write_text("h,ffnh\n1,2\n")
    with pytest.raises(WorkError, match=r"dense_lr_bs_loss.csv could not be downloaded \(SHA256"):
        load_runs("steplaw")


def test_flattened_table_without_a_mirror_is_refused(monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    text = (
        "mlfoundations-overtrained is available from a mirror only: .*models_flat.csv was "
        f"assembled from many files of mlfoundations/scaling; set {MIRROR} to a folder"
    )
    with pytest.raises(InputError, match=text):
        load_runs("mlfoundations-overtrained")


def test_every_published_table_has_a_converter_and_pinned_checked_files():
    assert set(CONVERTERS) == set(PUBLISHED)
    mirror_only = set()
    for name in PUBLISHED:
        table = named_tables()[name]
        # The full commit of one repository is unavailable; its abbreviation identifies it as well.
        assert re.fullmatch(r"[0-9a-f]{40}" if name != "steplaw" else r"[0-9a-f]{10}", table.commit)
        assert table.rows > 0
        assert table.citation
        assert table.licence
        for path, file in table.files.items():
            assert re.fullmatch(r"[0-9a-f]{64}", file["sha256"])
            address = table.address(path)
            if address is None:
                mirror_only.add(name)
            else:
                start = f"https://raw.githubusercontent.com/{table.repository}/{table.commit}/"
                assert address.startswith(start)
                assert " " not in address
                assert "+" not in address
    assert mirror_only == {"mlfoundations-overtrained"}


def test_tables_without_files_are_those_that_are_shipped():
    assert set(SHIPPED) == {path.parent.name for path in data_folder().glob("*/runs.csv")}


def test_fetched_files_are_keyed_by_their_path_in_a_mirror(mirror):
    table = named_tables()["olmo-ladder"]
    files = fetch(table)
    assert list(files) == list(table.files)
    assert len(files) == 17
    assert all(sha256(path) == table.files[name]["sha256"] for name, path in files.items())


def test_tables_are_listed_without_a_download(monkeypatch):
    monkeypatch.setenv(MIRROR, "/nowhere")
    listed = {table["name"]: table for table in listed_tables()}
    assert set(listed) == set(named_tables())
    assert listed["gemstones"]["rows"] == 199
    assert listed["quickstart"]["rows"] == len(load_runs("quickstart"))
    shown = listing().set_index("name")
    assert shown.loc["chinchilla", "N"] == "57.3M to 16.2B"
    assert shown.loc["paper-2510.18245", "D"] == "100B"
    assert set(shown["licence"]) == {
        *("Apache-2.0", "MIT", "facts", "none given: download, do not pass on")
    }


def test_data_folder_is_that_of_the_package():
    folder = data_folder()
    assert (folder / "shapes.csv").is_file()
    assert folder.samefile(Path(shapelaw.__file__).parent / "data")


GPUS = ("a100", "h100", "h200", "b200", "l40s", "rtx4090", "mi300x")


@pytest.mark.parametrize("key", GPUS)
def test_hardware_has_figures_in_bytes_and_flops_per_second(key):
    device = hardware(key)
    assert device.key == key
    assert key.upper() in device.name.upper().replace(" ", "")
    assert 1e10 < device.memory < 1e12
    assert 5e11 < device.bandwidth < 1e13
    assert {"bfloat16", "float32"} <= set(device.peak_flops)
    assert 1e14 < device.peak_flops["bfloat16"] < 1e16
    assert device.peak_flops["float32"] < device.peak_flops["bfloat16"]
    assert device.source


@pytest.mark.parametrize("key", ["graviton4-core", "zen4-core"])
def test_a_core_has_the_figures_of_one_core(key):
    device = hardware(key)
    assert "core" in device.name
    assert 1e9 < device.bandwidth < 1e11
    assert 1e10 < device.peak_flops["float32"] < 1e12
    assert device.source


def test_unknown_hardware_is_refused_with_the_known_keys():
    with pytest.raises(InputError, match=r"`hardware` must be one of a100, h100, h200.*got 'tpu'"):
        hardware("tpu")
