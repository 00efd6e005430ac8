import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import COLUMNS
from shapelaw.scaling.runs.ratios import table_of, with_ratios
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.replicates import noise_by_size
from shapelaw.scaling.runs.table import RunTable, as_run_table, fingerprint, write_runs
from shapelaw.scaling.runs.validation import require_columns, require_comparable_losses
from support.run_tables import run_table


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a table and returns its path."""

    def write(frame, name="runs.csv"):
        path = tmp_path / name
        write_runs(path, frame)
        return path

    return write


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_a_table_loads_with_counts_and_ratios_of_its_shapes(save, name):
    loaded = load_runs(save(run_table(), name))
    shape = table_of(run_table())[0]
    assert len(loaded) == 4
    assert loaded["n_non_embedding"].tolist() == [shape.n_non_embedding] * 4
    assert loaded["n_total"].tolist() == [shape.n_total] * 4
    for ratio in RATIOS:
        np.testing.assert_allclose(loaded[ratio], getattr(shape, ratio), rtol=1e-14)
    assert loaded.left_out == {}


def test_a_ratio_or_count_that_the_table_has_is_kept(save):
    loaded = load_runs(save(run_table(n_non_embedding=12_345, mlp_to_attention=7.5)))
    assert set(loaded["n_non_embedding"]) == {12_345}
    assert set(loaded["mlp_to_attention"]) == {7.5}
    assert "hidden_over_sqrt_n" in loaded


def test_a_table_without_shapes_loads_with_what_it_has(save):
    frame = run_table()[["tokens", "loss"]].assign(n_total=1e6)
    loaded = load_runs(save(frame))
    assert loaded["run_id"].tolist() == ["row-2", "row-3", "row-4", "row-5"]
    assert not set(RATIOS) & set(loaded.columns)


def test_table_without_vocabulary_gets_no_total_count(save):
    loaded = load_runs(save(run_table().drop(columns="vocab_size")))
    assert "n_total" not in loaded
    assert set(loaded["n_non_embedding"]) == {table_of(run_table())[0].n_non_embedding}


@settings(max_examples=25)
@given(
    losses=st.lists(st.floats(1e-3, 20, exclude_min=True), min_size=1, max_size=5),
    text=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8),
    ending=st.sampled_from(["csv", "parquet"]),
)
def test_a_written_table_reads_back_with_every_digit(tmp_path_factory, losses, text, ending):
    frame = run_table(len(losses), loss=losses, schedule=f"name {text}")
    path = tmp_path_factory.mktemp("tables") / f"runs.{ending}"
    write_runs(path, frame)
    read = read_table(path)
    assert read["loss"].tolist() == losses
    assert read["tokens"].tolist() == frame["tokens"].tolist()
    assert read["schedule"].tolist() == frame["schedule"].tolist()
    assert read["hidden_size"].dtype == np.int64


def test_a_table_is_written_in_the_order_of_the_described_columns(save):
    frame = run_table(extra="last")[["extra", "loss", "tokens", "head_dim", "run_id"]]
    written = read_table(save(frame))
    assert written.columns.tolist() == ["run_id", "head_dim", "tokens", "loss", "extra"]
    assert [name for name in COLUMNS if name in written] == written.columns.tolist()[:-1]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"runs.csv cannot be read: No such file.*; give an exist"):
        load_runs(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [("runs.csv", "a,b\n1,2\n1,2,3\n"), ("runs.parquet", "PAR1"), ("a.csv", "")],
)
def test_malformed_table_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        InputError, match=f"{name} is not a CSV, JSON, JSON lines or Parquet table: "
    ):
        load_runs(tmp_path / name)


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "runs.csv").write_text("tokens,loss\n")
    with pytest.raises(InputError, match=r"runs.csv has no rows; give a table with one row per"):
        load_runs(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (column, value)
        for column in ("tokens", "n_non_embedding", "num_attention_heads", "hidden_size", "gqa")
        for value in ("", "nan", "-3.5", "0", "inf", "diverged")
    ]
    + [("loss", "-3.5"), ("loss", "0"), ("loss", "diverged")],
)
def test_a_value_that_breaks_a_rule_is_named_by_file_line_column_and_value(tmp_path, column, value):
    frame = run_table(n_non_embedding=1e5, gqa=3.0).astype(object)
    frame.loc[2, column] = value
    path = tmp_path / "runs.csv"
    frame.to_csv(path, index=False)
    shown = "nan" if value == "" else value
    text = (
        rf"{path} line 4: `{column} > 0` and finite must hold, but got {shown}(\.0)?; "
        "correct the row, or leave it out with --exclude RUN_ID"
    )
    with pytest.raises(InputError, match=text):
        load_runs(path)


@pytest.mark.parametrize("column", ["hidden_size", "num_hidden_layers", "head_dim"])
def test_a_count_that_is_no_integer_is_refused(save, column):
    frame = run_table(**{column: [64, 64, 64.5, 64]})
    with pytest.raises(InputError, match=rf"line 4: `{column}.*64\.5"):
        load_runs(save(frame))


@pytest.mark.parametrize("column", ["loss_se", "bits_per_byte"])
def test_optional_number_may_be_missing_or_zero_but_not_negative(save, column):
    frame = run_table(**{column: [np.nan, 0.0, 0.01, 0.02]})
    assert len(load_runs(save(frame))) == 4
    frame.loc[1, column] = -0.01
    with pytest.raises(InputError, match=rf"line 3: `{column} > 0` .* but got -0.01"):
        load_runs(save(frame))


def test_key_value_heads_that_do_not_divide_are_named_by_line(save):
    frame = run_table(num_key_value_heads=[2, 3, 4, 6])
    text = (
        r"runs.csv line 4: `num_attention_heads % num_key_value_heads == 0` must hold, "
        r"but got 6 and 4"
    )
    with pytest.raises(InputError, match=text):
        load_runs(save(frame))


def test_repeated_run_id_is_refused_with_its_line(save):
    frame = run_table(run_id=["a", "b", "a", "c"])
    with pytest.raises(InputError, match=r"line 4: `run_id` must be unique, but 'a' occurs twice"):
        load_runs(save(frame))


def test_error_names_line_of_file_after_rows_are_filtered(save):
    frame = run_table(loss=[4.0, 3.9, 3.8, -1.0])
    with pytest.raises(InputError, match=r"line 5: `loss > 0`"):
        load_runs(save(frame), exclude=["run-0"], where="tokens > 2e6")


def test_excluded_run_is_left_out_with_its_reason(save):
    loaded = load_runs(save(run_table()), exclude=["run-1", "run-3"])
    assert loaded["run_id"].tolist() == ["run-0", "run-2"]
    assert loaded.frame.index.tolist() == [0, 1]
    assert loaded.left_out == dict.fromkeys(("run-1", "run-3"), "excluded by name")


@pytest.mark.parametrize("column", ["loss", "tokens", "hidden_size", "num_key_value_heads"])
def test_a_broken_row_can_be_left_out_as_its_error_says(save, column):
    frame = run_table().astype({column: float})
    frame.loc[1, column] = np.nan
    with pytest.raises(InputError, match=r"(it out|one of them) with --exclude RUN_ID"):
        load_runs(save(frame))
    loaded = load_runs(save(frame), exclude=["run-1"])
    assert loaded["run_id"].tolist() == ["run-0", "run-2", "run-3"]


def test_a_column_is_numbers_once_the_row_with_text_is_left_out(save):
    frame = run_table().astype({"loss": object})
    frame.loc[1, "loss"] = "diverged"
    loaded = load_runs(save(frame), exclude=["run-1"])
    assert loaded["loss"].dtype == float
    assert loaded["loss"].tolist() == [4.0, 3.8, 3.7]


def test_excluding_an_unknown_run_is_refused(save):
    with pytest.raises(InputError, match=r"runs.csv has no run 'run-9' to exclude; look at its"):
        load_runs(save(run_table()), exclude=["run-1", "run-9"])


def test_numeric_run_ids_are_names(save):
    loaded = load_runs(save(run_table(run_id=[1, 2, 3, 4])), exclude=["2"])
    assert loaded["run_id"].tolist() == ["1", "3", "4"]


def test_a_filter_keeps_rows_and_names_the_others(save):
    frame = run_table(role=["proxy", "proxy", "confirmation", "proxy"])
    where = "role == 'proxy' and tokens >= 2e6 and gqa == 3"
    loaded = load_runs(save(frame), where=where)
    assert loaded["run_id"].tolist() == ["run-1", "run-3"]
    assert loaded.left_out == dict.fromkeys(("run-0", "run-2"), f"not in `{where}`")


def test_a_filter_that_leaves_nothing_is_refused(save):
    with pytest.raises(InputError, match="has no finished run left to use; loosen the filter"):
        load_runs(save(run_table()), where="tokens < 0")


def test_unfinished_runs_with_invalid_numbers_are_left_out_with_their_status(save):
    frame = run_table(status=["done", "failed", "diverged", None])
    frame.loc[1, "loss"] = np.nan
    loaded = load_runs(save(frame))
    assert loaded["run_id"].tolist() == ["run-0", "run-3"]
    assert loaded.left_out == {"run-1": "failed", "run-2": "diverged"}


def test_each_row_that_is_left_out_has_the_first_reason(save):
    frame = run_table(status=["failed", "failed", "done", "failed"])
    loaded = load_runs(save(frame), exclude=["run-0"], where="tokens > 2e6")
    assert loaded.left_out == {
        "run-0": "excluded by name",
        "run-1": "failed",
        "run-3": "failed",
    }


def test_missing_column_error_lists_the_available_columns():
    text = "the table lacks the column `gqa`; it has tokens, loss"
    with pytest.raises(InputError, match=text):
        require_columns(run_table()[["tokens", "loss"]], ["loss", "gqa"], "the table")


@pytest.mark.parametrize("column", ["corpus", "tokenizer"])
def test_losses_of_two_corpora_or_tokenizers_are_not_fitted_together(column):
    require_comparable_losses(run_table(**{column: "one"}), "the table")
    text = (
        f"the table: `{column}` must be the same for all rows of a fit, but has 'one' and 'two'; "
        f"choose with --where \"{column} == 'one'\""
    )
    with pytest.raises(InputError, match=text):
        require_comparable_losses(run_table(**{column: ["one", "two", "one", "two"]}), "the table")


def test_tables_without_a_corpus_may_be_fitted():
    require_comparable_losses(run_table(), "the table")
    require_comparable_losses(run_table(corpus=np.nan), "the table")


def test_noise_between_seeds_is_pooled_over_shapes_in_ln_loss():
    loss = np.exp([1.0, 1.02, 1.04, 1.5, 1.5, 1.6, 0.9])
    hidden = [64, 64, 64, 128, 128, 256, 512]
    frame = run_table(7, loss=loss, hidden_size=hidden, tokens=1e6)
    deviation, degrees = as_run_table(frame).noise
    assert degrees == 3  # two of the first shape, one of the second
    assert deviation == pytest.approx(np.sqrt((0.02**2 + 0.0 + 0.02**2) / 3), rel=1e-12)


@pytest.mark.parametrize(
    ("column", "different"),
    [
        ("tokens", [1e6, 2e6]),
        ("learning_rate", [0.01, 0.02]),
        ("batch_tokens", [4096, 8192]),
        ("tie_word_embeddings", [True, False]),
    ],
)
def test_runs_of_another_recipe_or_shape_are_no_replicates(column, different):
    frame = run_table(2, tokens=1e6, learning_rate=0.01, batch_tokens=4096)
    assert as_run_table(frame).noise[1] == 1
    deviation, degrees = as_run_table(frame.assign(**{column: different})).noise
    assert np.isnan(deviation)
    assert degrees == 0


def test_a_missing_recipe_field_does_not_hide_replicates():
    frame = run_table(3, tokens=1e6, learning_rate=np.nan)
    assert as_run_table(frame).noise[1] == 2


def test_noise_between_seeds_is_nan_without_shapes():
    deviation, degrees = as_run_table(run_table()[["tokens", "loss"]]).noise
    assert np.isnan(deviation)
    assert degrees == 0


@settings(max_examples=20)
@given(
    hidden=st.lists(st.integers(8, 4096), min_size=1, max_size=4),
    layers=st.integers(1, 64),
    groups=st.integers(1, 4),
    tied=st.booleans(),
)
def test_derived_ratios_are_those_of_the_shapes(hidden, layers, groups, tied):
    frame = run_table(
        len(hidden),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4 * groups,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
    )
    table = table_of(frame)
    derived = with_ratios(frame)
    for row in range(len(table)):
        for name in (*RATIOS, "n_total", "n_non_embedding"):
            value = getattr(table[row], name)
            assert derived[name].iloc[row] == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("spelling", [True, "true", "True", 1, "1", 1.0])
def test_switches_may_be_spelt_in_several_ways(spelling):
    table = table_of(run_table(qk_norm=spelling, tie_word_embeddings=spelling))
    assert table.qk_norm.all()
    assert table.tie_word_embeddings.all()


def test_absent_switches_take_the_defaults_of_a_proxy():
    frame = run_table()[[*INTEGER_FIELDS]]
    table = table_of(frame.drop(columns="vocab_size"))
    assert isinstance(table, ShapeTable)
    assert table.tie_word_embeddings.all()
    assert not table.qk_norm.any()
    assert set(table.vocab_size) == {1}
    assert set(table.rope_theta) == {10_000.0}


def test_adding_ratios_leaves_the_input_frame_unchanged():
    frame = run_table()
    before = frame.copy()
    with_ratios(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_fingerprint_changes_with_the_last_digit_and_the_order():
    frame = run_table()
    assert fingerprint(frame) == fingerprint(frame.copy())
    assert fingerprint(frame) == hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    moved = frame.assign(loss=[np.nextafter(4.0, 5.0), *frame["loss"][1:]])
    assert fingerprint(moved) != fingerprint(frame)
    assert fingerprint(frame[::-1]) != fingerprint(frame)


def test_noise_between_seeds_is_estimated_for_each_size():
    loss = np.exp([1.0, 1.02, 1.04, 1.5, 1.6, 1.7, 1.72, 0.9])
    hidden = [64, 64, 64, 66, 66, 256, 256, 512]
    frame = with_ratios(run_table(8, loss=loss, hidden_size=hidden, tokens=1e6))
    noise = as_run_table(frame).noise_by_size
    small, large = np.unique(frame["n_non_embedding"])[[0, 2]]
    assert noise["degrees"].tolist() == [3, 1]  # widths 64 and 66 are one size
    np.testing.assert_allclose(
        noise["deviation"], np.sqrt([(2 * 0.02**2 + 2 * 0.05**2) / 3, 2 * 0.01**2]), rtol=1e-12
    )
    assert small < noise["n_non_embedding"][0] < 1.1 * small
    assert noise["n_non_embedding"][1] == pytest.approx(large, rel=1e-12)
    pooled, degrees = as_run_table(frame).noise
    assert degrees == noise["degrees"].sum()
    assert pooled**2 * degrees == pytest.approx((noise["deviation"] ** 2 * noise["degrees"]).sum())


def test_aspect_ratio_is_derived_from_hidden_size_and_layers_alone():
    counts = {"n_non_embedding": [1e6, 4e6], "tokens": 1e8, "loss": [3.0, 2.8]}
    frame = pd.DataFrame({**counts, "hidden_size": [64, 128], "num_hidden_layers": [4, 2]})
    assert RunTable.of(frame)["aspect_ratio"].tolist() == [16.0, 64.0]
    assert RunTable.of(frame.assign(aspect_ratio=3.0))["aspect_ratio"].tolist() == [3.0, 3.0]
    assert "aspect_ratio" not in RunTable.of(frame.drop(columns="num_hidden_layers"))
    assert RunTable.of(frame, where="aspect_ratio > 20")["hidden_size"].tolist() == [128]
    with pytest.raises(InputError, match="line 3: `num_hidden_layers > 0` and finite must hold"):
        RunTable.of(frame.assign(num_hidden_layers=[4, 0]))


def test_law_of_the_aspect_ratio_fits_a_shipped_table_with_shapes():
    fitted = fit("morph", load_runs("quickstart"), starts=4, resamples=0)
    assert np.isfinite(fitted.theta).all()
    assert fitted.ranges["aspect_ratio"][0] < fitted.ranges["aspect_ratio"][1]


def seeded_runs(**columns: object) -> pd.DataFrame:
    """Make two recipes with three seeds each, without the fields of a shape."""
    frame = pd.DataFrame(
        {
            "n_total": [1e6] * 3 + [4e6] * 3,
            "tokens": 1e8,
            "weight_decay": 0.1,
            "seed": [0, 1, 2] * 2,
            "loss": np.exp([1.0, 1.02, 1.04, 0.9, 0.9, 0.9]),
            "accuracy_task": np.linspace(0.2, 0.3, 6),
        }
    )
    return frame.assign(**columns)


def test_replicates_are_recognised_by_their_seeds_where_shape_fields_are_absent():
    runs = RunTable.of(seeded_runs())
    assert runs.noise == (pytest.approx(0.02 / np.sqrt(2)), 4)
    assert runs.noise_by_size["n_non_embedding"].tolist() == pytest.approx([1e6, 4e6])
    assert RunTable.of(seeded_runs().drop(columns="seed")).noise[1] == 0
    only_tokens = RunTable.of(seeded_runs(seed=range(6)).drop(columns="n_total"))
    assert only_tokens.noise[1] == 5
    assert only_tokens.noise_by_size.empty


@pytest.mark.parametrize(
    ("column", "different", "degrees"),
    [
        ("weight_decay", [0.1, 0.2, 0.3, 0.1, 0.1, 0.1], 2),
        ("loss_unit", "nats", 4),
        ("loss_other", np.linspace(2, 3, 6), 4),
        ("run_group", list("abcdef"), 4),
        ("seed", [0, 0, 1, 0, 1, 2], 2),  # one seed twice: something else differs
        ("seed", [0, 1, np.nan, 0, 1, 2], 2),
        ("data_seed", [0, 1, 2, 0, 1, 2], 4),
    ],
)
def test_replicates_without_shape_fields_agree_in_all_but_seeds_and_results(
    column, different, degrees
):
    assert RunTable.of(seeded_runs(**{column: different})).noise[1] == degrees


def test_noise_by_size_does_not_chain_neighbouring_sizes():
    sizes = np.repeat(np.geomspace(1e6, 1e7, 20), 2)
    noise = noise_by_size(np.repeat(np.arange(20), 2), np.tile([0.0, 0.01], 20), sizes)
    np.testing.assert_allclose(noise["n_non_embedding"], sizes[::2])
    assert noise["degrees"].tolist() == [1] * 20


def test_noise_by_size_needs_no_vocabulary_and_no_count():
    frame = run_table(3, tokens=1e6).drop(columns="vocab_size")
    noise = as_run_table(frame).noise_by_size
    assert noise["degrees"].tolist() == [2]
    assert noise["n_non_embedding"][0] == pytest.approx(table_of(frame).n_non_embedding[0])


@pytest.mark.parametrize("frame", [run_table(), run_table()[["tokens", "loss"]]])
def test_noise_by_size_is_empty_without_replicates(frame):
    noise = as_run_table(frame).noise_by_size
    assert len(noise) == 0
    assert noise.columns.tolist() == ["n_non_embedding", "deviation", "degrees"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("n_total,tokens\n1,2,3\n4,5,6\n", "its rows have more fields than its header"),
        ("a,b\n1,\udcff\n", "codec can't decode"),
    ],
)
def test_a_csv_file_that_would_be_misread_is_refused(tmp_path, text, why):
    (tmp_path / "runs.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        InputError, match=f"is not a CSV, JSON, JSON lines or Parquet table: .*{why}"
    ):
        load_runs(tmp_path / "runs.csv")


def test_a_parquet_table_holds_one_value_in_a_cell(tmp_path):
    frame = run_table().assign(loss=[[4.0, 3.9], [3.8], [3.7], [3.6]])
    frame.to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(InputError, match="`loss` must hold one value per row, but holds lists"):
        load_runs(tmp_path / "runs.parquet")


def test_a_parquet_table_with_another_index_still_names_lines(tmp_path):
    frame = run_table(loss=[4.0, -1.0, 3.8, 3.7]).set_index("run_id")
    frame.to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(InputError, match="line 3: `loss > 0`"):
        load_runs(tmp_path / "runs.parquet")
    loaded = load_runs(tmp_path / "runs.parquet", exclude=["run-1"])
    assert loaded["run_id"].tolist() == ["run-0", "run-2", "run-3"]


def test_categorical_columns_are_read_as_their_values(tmp_path):
    frame = run_table(corpus="one").astype({"corpus": "category", "loss": "category"})
    frame.to_parquet(tmp_path / "runs.parquet")
    loaded = load_runs(tmp_path / "runs.parquet")
    assert loaded["loss"].tolist() == run_table()["loss"].tolist()
    require_comparable_losses(loaded.frame, "runs")


def test_written_table_drops_the_notes_of_its_load(save):
    loaded = load_runs(save(run_table()), exclude=["run-1"])
    again = load_runs(save(loaded, "again.parquet"))
    assert again.left_out == {}
    assert again.source["name"] == "again.parquet"


def test_runs_left_out_beyond_the_limit_are_counted(save):
    frame = run_table(3000)
    loaded = load_runs(save(frame.assign(loss=4 - frame.index / 3000)), where="tokens > 2.9e9")
    assert len(loaded) == 100
    assert len(loaded.left_out) == 1001
    assert loaded.left_out["1900 more runs"] == "for the same reasons"


INVALID_VALUES = [
    *(None, "", "nan", "inf", "-inf", "1e400", "0", "-1", "0.5", "1e300", "9" * 30, "x", " ", '"'),
    *("True", "false", "[1, 2]", "2026-01-01", "1,5", "0x10", "1_000", "\x00", "\n", "é", "bits"),
    *("nats", "diverged", "failed", "done", "run-0"),
]
COLUMN = st.sampled_from(
    [
        *("run_id", "loss", "tokens", "status", "tie_word_embeddings", "qk_norm", "loss_unit"),
        *("decayed", "n_total", "n_non_embedding", "loss_se", "flops_6nd", "flops_counted"),
        *("unique_tokens", "run_group", "seed", "rope_theta", "gqa", "hidden_over_sqrt_n"),
        *INTEGER_FIELDS,
    ]
)
CELL = st.tuples(
    st.just("cell"),
    COLUMN,
    st.integers(0, 3),
    st.sampled_from(INVALID_VALUES) | st.text(max_size=4),
)
DAMAGE = st.one_of(
    CELL,
    CELL,
    st.tuples(st.just("drop"), COLUMN),
    st.tuples(st.just("constant"), COLUMN, st.sampled_from(INVALID_VALUES)),
    st.tuples(st.just("rename"), COLUMN, COLUMN),
    st.tuples(st.just("repeat"), st.integers(0, 3)),
    st.tuples(st.just("keep"), st.integers(0, 3)),
    st.tuples(st.just("bytes"), st.integers(0, 2000), st.binary(max_size=3)),
)


def damaged(frame: pd.DataFrame, damage: tuple) -> pd.DataFrame:
    """Return the table with one more fault."""
    match damage:
        case "cell", column, row, value if row < len(frame) and frame.columns.is_unique:
            values = list(frame[column]) if column in frame else [None] * len(frame)
            values[row] = value
            return frame.assign(**{column: pd.Series(values, dtype=object, index=frame.index)})
        case "drop", column:
            return frame.drop(columns=column, errors="ignore")
        case "constant", column, value:
            return frame.assign(**{column: value})
        case "rename", old, new:
            return frame.rename(columns={old: new})
        case "repeat", row:
            return pd.concat([frame, frame.iloc[row : row + 1]], ignore_index=True)
        case "keep", rows:
            return frame.head(rows)
    return frame


def write_damaged(path, frame: pd.DataFrame, damages: list[tuple]) -> None:
    """Write a table to a file, with the bytes of a CSV file damaged."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
        content = path.read_bytes()
        for damage in damages:
            if damage[0] == "bytes":
                content = content[: damage[1]] + damage[2] + content[damage[1] + len(damage[2]) :]
        path.write_bytes(content)
    else:
        frame = frame.loc[:, ~frame.columns.duplicated()]
        objects = [name for name in frame if frame[name].dtype == object]
        frame.assign(**{name: frame[name].astype("string") for name in objects}).to_parquet(path)


@settings(max_examples=60)
@given(
    damages=st.lists(DAMAGE, min_size=1, max_size=4),
    ending=st.sampled_from(["csv", "parquet"]),
    where=st.sampled_from([None, None, "tokens > 1.5e6", "loss < 3.95 and gqa == 3"]),
)
def test_damaged_table_loads_valid_or_is_refused(tmp_path_factory, damages, ending, where):
    frame = run_table(loss_unit="nats", status="done", decayed=True)
    for damage in damages:
        frame = damaged(frame, damage)
    path = tmp_path_factory.mktemp("damaged") / f"runs.{ending}"
    write_damaged(path, frame, damages)
    try:
        loaded = load_runs(path, where=where)
    except InputError:
        return
    assert len(loaded) > 0
    assert loaded["run_id"].is_unique
    for name in {"loss", "tokens", "n_non_embedding", *INTEGER_FIELDS} & set(loaded):
        assert np.isfinite(loaded[name].to_numpy(dtype=float)).all()
        assert (loaded[name] > 0).all()
    assert loaded.fingerprint == fingerprint(loaded.frame)
    if "loss" in loaded:
        assert loaded.noise_by_size["degrees"].sum() == loaded.noise[1]
