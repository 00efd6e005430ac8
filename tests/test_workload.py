import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import InputError
from search.workload import DTYPES, PRESETS, Workload, parse_workload

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
def test_a_preset_may_be_served_to_more_and_in_another_dtype(
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
def test_a_preset_bears_its_own_name(name: str) -> None:
    assert parse_workload(name) == PRESETS[name]
    assert PRESETS[name].name == name


def test_a_workload_says_what_it_is() -> None:
    assert str(parse_workload("4096/1024@3:bfloat16")) == (
        "4096/1024: 4096 tokens in, 1024 out, 3 at once, bfloat16"
    )


FORM = "`--workload` must be one of chat, .*, or INPUT/OUTPUT"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", FORM),
        ("poetry", FORM + r".* got 'poetry'; write for example 1024/256@16"),
        ("512", FORM),
        ("512/", FORM),
        ("512/256/128", FORM),
        ("512/256@", FORM),
        ("512/256@many", FORM),
        ("-1/256", FORM),
        ("1e3/256", FORM),
        ("1.5/256", FORM),
        ("chat@-1", FORM),
        ("0/256", "`input_tokens >= 1`.* got 0, 256 and 8"),
        ("512/0", "`output_tokens >= 2`.* got 512, 0 and 8"),
        ("512/1", "`output_tokens >= 2`.* got 512, 1 and 8"),
        ("512/256@0", "`concurrency >= 1`.* got 512, 256 and 0"),
        ("chat@0", "`concurrency >= 1`"),
        ("512/256:float16", "`dtype` must be one of float32, bfloat16, but got 'float16'"),
        ("chat:int8", "`dtype` must be one of float32, bfloat16, but got 'int8'"),
    ],
)
def test_what_cannot_be_served_is_refused(text: str, words: str) -> None:
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
