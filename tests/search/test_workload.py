from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.search.workload import (
    DTYPES,
    FIELD_KINDS,
    KV_DTYPES,
    PRESETS,
    Workload,
    parse_workload,
)

lengths = st.integers(1, 10**6)
outputs = st.integers(2, 10**6)


@given(lengths, outputs, st.none() | st.integers(1, 4096), st.none() | st.sampled_from([*DTYPES]))
def test_lengths_concurrency_and_dtype_are_read(
    inputs: int, produced: int, concurrency: int | None, dtype: str | None
) -> None:
    text = f"{inputs}/{produced}"
    text += "" if concurrency is None else f"@{concurrency}"
    text += "" if dtype is None else f":{dtype}"
    found = parse_workload(f"  {text} ")
    assert found.name == f"{inputs}/{produced}"
    assert (found.input_tokens, found.output_tokens) == (inputs, produced)
    assert found.concurrency == (8 if concurrency is None else concurrency)
    assert found.dtype == (dtype or "float32")


@given(
    st.sampled_from([*PRESETS]),
    st.none() | st.integers(1, 4096),
    st.none() | st.sampled_from([*DTYPES]),
)
def test_preset_takes_another_concurrency_and_dtype(
    name: str, concurrency: int | None, dtype: str | None
) -> None:
    text = name + ("" if concurrency is None else f"@{concurrency}")
    found = parse_workload(text + ("" if dtype is None else f":{dtype}"))
    preset = PRESETS[name]
    assert found.name == name
    assert (found.input_tokens, found.output_tokens) == (preset.input_tokens, preset.output_tokens)
    assert found.concurrency == (concurrency or preset.concurrency)
    assert found.dtype == (dtype or preset.dtype)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_name_of_its_key(name: str) -> None:
    assert parse_workload(name) == PRESETS[name]
    assert PRESETS[name].name == name


def test_text_of_a_workload_names_lengths_concurrency_and_format() -> None:
    assert str(parse_workload("4096/1024@3:bfloat16")) == (
        "4096/1024: 4096 tokens in, 1024 out, 3 at once, bfloat16"
    )


SYNTAX = "`--workload` must be one of chat, .*, or INPUT/OUTPUT"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", SYNTAX),
        ("poetry", SYNTAX + r".* got 'poetry'; write for example 1024/256@16"),
        ("512", SYNTAX),
        ("512/", SYNTAX),
        ("512/256/128", SYNTAX),
        ("512/256@", SYNTAX),
        ("512/256@many", SYNTAX),
        ("-1/256", SYNTAX),
        ("1e3/256", SYNTAX),
        ("1.5/256", SYNTAX),
        ("chat@-1", SYNTAX),
        ("0/256", "`input_tokens >= 1`.* got 0, 256 and 8"),
        ("512/0", "`output_tokens >= 2`.* got 512, 0 and 8"),
        ("512/1", "`output_tokens >= 2`.* got 512, 1 and 8"),
        ("512/256@0", "`concurrency >= 1`.* got 512, 256 and 0"),
        ("chat@0", "`concurrency >= 1`"),
        ("512/256:float16", "`dtype` must be one of float32, bfloat16, but got 'float16'"),
        ("chat:int8", "`dtype` must be one of float32, bfloat16, but got 'int8'"),
        ("chat,kv=fp4", "`kv_dtype` must be one of float32, bfloat16, fp8, int8, but got 'fp4'"),
        ("chat,kv=fp8,kv=int8", "must be kv, ttft, tpot, .*, each at most once, but got 'kv' in"),
        ("chat,batch=3", "must be kv, ttft, tpot, .*, each at most once, but got 'batch'"),
        ("chat,ttft=0", r"`max_ttft > 0` \(seconds\) must hold, but got 0.0"),
        ("chat,tpot=soon", "`tpot` must be seconds such as 0.05 or 50ms, but got 'soon'"),
        ("9" * 5000 + "/256", SYNTAX),
        ("9" * 12 + "/256", "must be at most 1000000000, but got 9999"),
    ],
)
def test_invalid_workload_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_workload(text)


@given(st.text(max_size=12))
def test_any_text_is_a_workload_or_an_input_error(text: str) -> None:
    try:
        found = parse_workload(text)
    except InputError:
        return
    assert isinstance(found, Workload)
    assert found.output_tokens >= 2


# The KV cache, the service level and shortened outputs


def test_cache_without_a_format_has_the_width_of_the_weights() -> None:
    chat = PRESETS["chat"]
    assert (chat.bytes_per_value, chat.kv_bytes_per_value) == (4, 4)
    narrow = parse_workload("chat:bfloat16,kv=fp8")
    assert (narrow.bytes_per_value, narrow.kv_bytes_per_value) == (2, 1)
    assert narrow.kv_dtype == "fp8"


def test_limits_are_read_in_seconds_or_milliseconds_and_shown() -> None:
    found = parse_workload("rag@2,tpot=40ms,ttft=.45")
    assert (found.max_ttft, found.max_tpot) == (0.45, 0.04)
    assert str(found).endswith("float32, TTFT at most 0.45 s, TPOT at most 0.04 s")
    assert parse_workload("rag,ttft=2s").max_ttft == 2.0


@given(
    lengths,
    outputs,
    st.integers(1, 4096),
    st.sampled_from([*DTYPES]),
    st.none() | st.sampled_from([*KV_DTYPES]),
    st.none() | st.floats(0.001, 10),
)
def test_served_text_is_read_back_and_leaves_out_name_and_limits(
    inputs: int, produced: int, concurrency: int, dtype: str, cache: str | None, limit: float | None
) -> None:
    workload = Workload(
        name="any",
        input_tokens=inputs,
        output_tokens=produced,
        concurrency=concurrency,
        dtype=dtype,
        kv_dtype=cache,
        max_ttft=limit,
    )
    again = parse_workload(workload.served)
    assert again.served == workload.served
    assert again.kv_bytes_per_value == workload.kv_bytes_per_value
    assert (again.input_tokens, again.output_tokens) == (inputs, produced)
    assert (again.concurrency, again.dtype, again.max_ttft) == (concurrency, dtype, None)


def test_caches_of_one_width_and_two_formats_are_served_differently() -> None:
    assert parse_workload("chat,kv=fp8").served != parse_workload("chat,kv=int8").served
    assert parse_workload("chat,kv=float32").served == parse_workload("chat").served


@given(outputs)
def test_shortened_workload_differs_only_in_output_tokens(most: int) -> None:
    rag = parse_workload("rag@3:bfloat16,kv=fp8,ttft=1")
    short = rag.shortened(most)
    assert short.output_tokens == min(most, rag.output_tokens)
    assert (short is rag) == (most >= rag.output_tokens)
    assert replace(short, name=rag.name, output_tokens=rag.output_tokens) == rag


def test_changed_with_none_keeps_a_field() -> None:
    rag = PRESETS["rag"]
    assert rag.changed(concurrency=None, kv_dtype=None) == rag
    assert rag.changed(concurrency=3).concurrency == 3
    with pytest.raises(InputError, match="concurrency >= 1"):
        rag.changed(concurrency=0)


# Files


def test_a_file_may_hold_every_field() -> None:
    assert set(FIELD_KINDS) == {"preset", *(field.name for field in fields(Workload))}


def written(folder: Path, text: str) -> Path:
    path = folder / "desk.toml"
    path.write_text(text)
    return path


def test_a_file_holds_a_workload(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'name = "support desk"\ninput_tokens = 3000\noutput_tokens = 200\nconcurrency = 16\n'
        'dtype = "bfloat16"\nkv_dtype = "int8"\nmax_ttft = 1\nmax_tpot = 0.04\n',
    )
    expected = Workload(
        name="support desk",
        input_tokens=3000,
        output_tokens=200,
        concurrency=16,
        dtype="bfloat16",
        kv_dtype="int8",
        max_ttft=1,
        max_tpot=0.04,
    )
    assert parse_workload(path) == expected
    assert parse_workload(f" {path} ") == expected


def test_short_number_formats_mean_the_long_ones(tmp_path: Path) -> None:
    long = parse_workload("512/256@16:bfloat16,kv=float32")
    assert parse_workload("512/256@16:bf16,kv=fp32") == long
    assert Workload(**{**vars(long), "dtype": "bf16", "kv_dtype": "fp32"}) == long
    lines = 'input_tokens = 512\noutput_tokens = 256\nconcurrency = 16\ndtype = "bf16"\n'
    assert parse_workload(written(tmp_path, f'{lines}kv_dtype = "fp32"\n')).served == long.served
    with pytest.raises(InputError, match=r"`dtype` must be one of .* but got 'float16'"):
        parse_workload("512/256:fp16")


def test_file_changes_a_preset_and_names_the_workload(tmp_path: Path) -> None:
    found = parse_workload(written(tmp_path, 'preset = "rag"\nconcurrency = 3'))
    assert found == replace(PRESETS["rag"], name="desk", concurrency=3)
    plain = parse_workload(written(tmp_path, "input_tokens = 3\noutput_tokens = 4"))
    assert plain == Workload(name="desk", input_tokens=3, output_tokens=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input = 3", "has the unknown field 'input'; a workload has preset, name, input_tokens"),
        ("input_tokens = 3", "lacks `output_tokens`; add them or a `preset`"),
        ("", "lacks `input_tokens` and `output_tokens`"),
        ('preset = "poetry"', "must be one of chat, .*, but got 'poetry'"),
        ("preset = 3", "`preset` in .*desk.toml must be a text, but got 3"),
        ('preset = "rag"\nconcurrency = 2.5', "must be a whole number, but got 2.5"),
        ('preset = "rag"\nconcurrency = true', "must be a whole number, but got True"),
        ('preset = "rag"\nmax_ttft = "1s"', "must be a number of seconds, but got '1s'"),
        ('preset = "rag"\nmax_ttft = nan', "`max_ttft > 0`"),
        ('preset = "rag"\ninput_tokens = 0', "`input_tokens >= 1`"),
        ("input_tokens = 3\noutput_tokens = 10000000000", "must be at most 1000000000"),
        ("input_tokens = ", "is not a TOML file"),
    ],
)
def test_invalid_workload_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_workload(written(tmp_path, text))


@pytest.mark.parametrize("text", ["nowhere.toml", "\0.toml", ".toml"])
def test_unreadable_file_is_named_in_the_error(text: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read|is not a TOML file"):
        parse_workload(text)


def test_serving_options_are_read_and_written_back() -> None:
    workload = parse_workload("chat,weights=int4,tp=2/4,concurrency=auto,price=2.5/h", dtype="bf16")
    assert workload.bytes_per_value == 0.5
    assert workload.tensor_parallel == (2, 4)
    assert workload.steady
    assert workload.cost_per_million(1e6 / 3600) == pytest.approx(2.5)  # a million tokens an hour
    again = parse_workload(workload.served)
    assert again.served == workload.served
    assert "weights int4, each model on 2 or 4 GPUs, prompts one by one" in str(workload)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chat,weights=fp4", "`weights` must be one of .*int4, but got 'fp4'"),
        (
            "chat,tp=0",
            "`tensor_parallel` must be different whole numbers from 1 to 1024, but got 0",
        ),
        ("chat,tp=2/2", "`tensor_parallel` must be different"),
        ("chat,tp=two", "`tp` must be numbers of GPUs such as 2 or 2/4/8, but got 'two'"),
        ("chat,concurrency=9", "`concurrency` must be auto, but got '9'; write a number as @9"),
        ("chat,price=0/h", r"`price > 0` \(per GPU and hour\) must hold"),
        ("chat,price=2.5/day", "`price` must be that of a GPU for an hour, as 2.5/h"),
        ("chat,prompts=slow", "`prompts` must be batch or steady, but got 'slow'"),
    ],
)
def test_invalid_serving_options_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_workload(text)
