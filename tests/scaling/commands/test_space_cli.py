import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.commands.space_options import read_space
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.runs.ratios import table_of
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.space.space import Space, usual_layers
from shapelaw.scaling.space.statistics import survey
from shapelaw.scaling.units import parse_numbers
from shapelaw.search.cli import app, main

ASK = ("space", "--params", "60K", "--vocab", "64", "--layers", "2,3", "--head-dim", "8",
       "--hidden-step", "16", "--mlp-step", "8", "--max-heads", "6")  # fmt: skip


def space(**changes: Any) -> Space:
    settings = {
        "parameters": 60_000,
        "layers": (2, 3),
        "head_dims": (8,),
        "vocab_size": 64,
        "hidden_step": 16,
        "mlp_step": 8,
        "max_heads": 6,
    }
    return Space(**(settings | changes))


def output_of(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def failing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    monkeypatch.setattr(sys, "argv", ["shapelaw", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_space_counts_the_shapes_that_each_limit_leaves() -> None:
    document = json.loads(output_of(*ASK, "--json"))
    table = space().enumerate()
    assert document["shapes"] == len(table)
    assert {row["limit"]: row["left"] for row in document["left"]} == space().counts()
    assert document["ranges"]["hidden_size"] == [table.hidden_size.min(), table.hidden_size.max()]
    assert document["ranges"]["kv_bytes"] == [table.kv_bytes(2).min(), table.kv_bytes(2).max()]
    assert "vocab_size" not in document["ranges"]


def test_space_prints_counts_and_ranges() -> None:
    text = output_of(*ASK, "--where", "gqa == 2")
    count = len(space(constraints=("gqa == 2",)).enumerate())
    assert f"{count:,} shapes" in text
    for part in ("gqa == 2", "shapes within the tolerance", "hidden_size", "greatest"):
        assert part in text


def test_options_of_space_become_limits() -> None:
    more = ["--gqa", "2,3", "--most", "kv_bytes=128", "--most", "n_total=61K", "--untied"]
    more += ["--kv-value-bytes", "1", "--tolerance", "0.05"]
    more += ["--where", "num_hidden_layers == 3"]
    document = json.loads(output_of(*ASK, *more, "--json"))
    table = space(tie_word_embeddings=False, tolerance=0.05).enumerate()
    keep = np.isin(table.gqa, [2, 3]) & (table.kv_bytes(1) <= 128) & (table.n_total <= 61_000)
    keep &= table.num_hidden_layers == 3
    assert document["shapes"] == keep.sum() > 0
    assert document["ranges"]["num_hidden_layers"] == [3, 3]


def test_constraint_is_read_as_where_and_all_conditions_must_hold() -> None:
    both = output_of(
        *ASK, "--where", "gqa in (1, 2)", "--where", "num_hidden_layers == 3", "--json"
    )
    former = output_of(
        *ASK, "--constraint", "gqa in (1, 2)", "--constraint", "num_hidden_layers == 3", "--json"
    )
    combined = output_of(*ASK, "--where", "gqa in (1, 2) and num_hidden_layers == 3", "--json")
    assert former == both
    assert json.loads(both)["shapes"] == json.loads(combined)["shapes"] > 0


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_shapes_are_written_in_order_and_read_back(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"shapes{ending}"
    whole = space()
    chunks = Space.chunks
    monkeypatch.setattr(Space, "chunks", lambda self, **left: chunks(self, 37, **left))
    surveyed = survey(whole, path)
    frame = read_table(path)
    table = whole.enumerate()
    assert surveyed.shapes == len(frame) == len(table) > 37
    # The aspect ratio is derived where a table is read.
    expected = table.frame().drop(columns="aspect_ratio")
    expected = expected.assign(kv_bytes=table.kv_bytes(2), weight_bytes=table.weight_bytes(2))
    pd.testing.assert_frame_equal(frame[[*expected]], expected)
    again = table_of(frame)
    assert [again[i] for i in range(5)] == [table[i] for i in range(5)]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_failed_write_leaves_no_partial_table(tmp_path: Path) -> None:
    path = tmp_path / "shapes.csv"
    with pytest.raises(InputError, match="0 shapes with `n_total < 1`; relax"):
        survey(space(constraints=("n_total < 1",)), path)
    assert not [*tmp_path.iterdir()]
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="could not be written"):
        survey(space(), tmp_path / "file" / "shapes.csv")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--params", "poetry"), "a count must be a number"),
        (("--layers", "2;3"), "`--layers` must be whole numbers like 12,16,24 or a range like"),
        (("--head-dim", "0"), "`--head-dim` must be whole numbers"),
        (("--head-dim", "15"), "`head_dim % 2 == 0` must hold"),
        (("--gqa", "all"), "`--gqa` must be whole numbers"),
        (("--most", "loss=3"), "`--most` must be COLUMN=VALUE with a column of n_total"),
        (("--most", "kv_bytes"), "`--most` must be COLUMN=VALUE with a column of n_total"),
        (("--most", "kv_bytes=few"), "a count must be a number"),
        (("--where", "n_total"), "a filter must be true or false for each row"),
        (("--where", "open('x')"), "may hold columns, numbers, strings"),
        (("--where", "gqa == 7"), "0 shapes with `gqa == 7`; relax"),
        (("--params", "1e30"), "a count must be below 1e+30"),
        (("--params", "1e20"), "`1 <= parameters <= 10000000000000` must hold"),
        (("--params-convention", "all"), "`--params-convention` must be one of"),
        (("--out", "shapes.txt"), "`--out` must end in .csv or .parquet"),
        (("--params", "10B", "--layers", "2:99", "--mlp-step", "1"), "more than the 1e+08"),
    ],
)
def test_bad_input_prints_one_line_and_sets_exit_code_two(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    more: tuple[str, ...],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in failing(monkeypatch, capsys, *ASK, *more)
    assert not [*tmp_path.iterdir()]


def test_space_without_options_has_the_usual_grid() -> None:
    asked = read_space("1B", ("auto", "auto", "auto", "auto", "any"), [], vocab_size=128_256)
    assert (asked.hidden_step, asked.mlp_step, asked.head_dims) == (128, 128, (64,))
    assert asked.layers == usual_layers(10**9) == tuple(range(8, 33))
    assert sum(len(chunk) for chunk in asked.chunks()) > 10**5


def test_usual_depth_grows_with_the_size() -> None:
    assert usual_layers(1000) == (1, 2)
    depths = [usual_layers(size)[-1] for size in (1e5, 1e7, 1e9, 1e11)]
    assert depths == sorted(set(depths))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("4", (4,)), ("12,16", (12, 16)), ("2:4", (2, 3, 4)), ("8:17:4", (8, 12, 16)), ("3:3", (3,))],
)
def test_numbers_are_parsed_as_a_list_or_a_range(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_numbers("--layers", text) == numbers


@pytest.mark.parametrize(
    "text", ["", "0", "4:2", "1:2:0", "1,,2", "-1", "1.5", "a", "1:2:3:4", "9" * 9]
)
def test_parse_numbers_raises_on_other_texts(text: str) -> None:
    with pytest.raises(InputError, match="`--layers` must be whole numbers"):
        parse_numbers("--layers", text)


FAMILY = ("space", "--family", "qwen3_moe", "--params", "1B", "--layers", "24", "--axis",
          "num_experts=64", "--tolerance", "0.01")  # fmt: skip


def test_space_of_a_family_writes_its_table_and_a_config_for_each_model(tmp_path: Path) -> None:
    table, folder = tmp_path / "models.csv", tmp_path / "configs"
    limits = ("--most", "weight_bytes=18G", "--most", "cache_bytes=100M", "--gqa", "8")
    document = json.loads(
        output_of(*FAMILY, *limits, "--out", table, "--configs", folder, "--json")
    )
    rows = pd.read_csv(table)
    configs = [json.loads(path.read_text()) for path in folder.glob("*/config.json")]
    assert 0 < len(rows) == len(configs) == document["shapes"]
    assert set(rows["num_experts"]) == {64}
    assert (rows["num_attention_heads"] == 8 * rows["num_key_value_heads"]).all()
    assert rows["weight_bytes"].max() <= 18e9
    counts = sorted(read_architecture(config).n_total for config in configs)
    assert counts == sorted(rows["n_total"])
    assert {"limit": "weight_bytes <= 18000000000", "left": 0} not in document["left"]
    assert document["ranges"]["cache_bytes"][1] <= 100_000_000


def test_context_of_a_family_decides_on_cache_bytes() -> None:
    short, long = (
        json.loads(output_of(*FAMILY, "--context", tokens, "--json"))["ranges"]["cache_bytes"]
        for tokens in (1000, 3000)
    )
    assert [3 * each for each in short] == long


def test_options_of_dense_shapes_reach_a_family(tmp_path: Path) -> None:
    table = tmp_path / "models.csv"
    output_of(*FAMILY, "--head-dim", "128", "--hidden-step", "256", "--mlp-step", "128",
              "--max-heads", "16", "--vocab", "1000", "--untied", "--tolerance", "0.03",
              "--out", table)  # fmt: skip
    rows = pd.read_csv(table)
    assert (rows["head_dim"] == 128).all()
    assert (rows["hidden_size"] % 256 == 0).all()
    assert (rows["moe_intermediate_size"] % 128 == 0).all()
    assert rows["num_attention_heads"].max() <= 16
    assert (rows["n_total"] - rows["n_non_embedding"] == 2 * 1000 * rows["hidden_size"]).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--family", "mamba"), "`--family` must be one of llama"),
        (("--axis", "num_experts=8"), "`--axis` belongs to --family"),
        (("--family", "deepseek_v3", "--head-dim", "64"), "`--head-dim` must be left out for deep"),
        (("--family", "gpt2", "--gqa", "4"), "`--gqa` must be left out for gpt2"),
        (("--family", "qwen3", "--axis", "head_dim=64", "--axis", "head_dim=128"), "got it twice"),
        (("--family", "qwen3_moe", "--most", "aspect=4"), "`--most` must be COLUMN=VALUE"),
        (("--family", "qwen3_moe", "--configs", "many"), "writes at most 1000 configs"),
    ],
)
def test_wrong_options_of_a_family_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in failing(monkeypatch, capsys, "space", "--params", "1B", *arguments)
    assert not any(tmp_path.iterdir())
