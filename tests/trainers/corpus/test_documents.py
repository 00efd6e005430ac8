"""Lines that separate documents are found wherever a read may end."""

import io
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus import documents
from shapelaw.trainers.corpus.documents import read_documents

END = "<|endoftext|>"
PIECES = st.lists(
    st.sampled_from([END, "\n", "\r\n", "\r", "a", "é", "🙂", " ", END[:5], END[5:]]), max_size=30
)


def by_lines(text: str) -> list[str]:
    """The rule, line by line: what stands between lines that hold nothing but the separator."""
    found = [""]
    for line in io.StringIO(text, newline=""):
        if line.rstrip("\r\n") == END:
            found.append("")
        else:
            found[-1] += line
    return found


@settings(max_examples=300)
@given(pieces=PIECES, buffer=st.sampled_from([1, 2, 3, 13, 14, 15, 40, 1000]))
@example(pieces=[END, "\r", "\r\n", END], buffer=14)
@example(pieces=["a", "\r\n", END, "\r\n", "a"], buffer=1)
def test_a_text_is_cut_at_separator_lines(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], buffer: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.txt"
    text = "".join(pieces)
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(documents, "BUFFER", buffer)
        texts = [document.text.decode() for document in read_documents(str(path))]
    assert texts == by_lines(text)


def test_a_character_that_is_cut_off_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "half.txt").write_bytes("one\nwhole é".encode()[:-1])
    with pytest.raises(InputError, match=r"half\.txt line 2 cannot be read: the byte 0xc3 is not"):
        list(read_documents(str(tmp_path / "half.txt")))


BAD_RECORDS = {
    "byte.txt": (b"one\ntwo \xff\n", r"line 2 cannot be read: the byte 0xff is not UTF-8 \(inv"),
    "byte.jsonl": (b'{"text": "a"}\n\n{"text": "\xff"}\n', r"line 3 cannot be read: the byte 0xff"),
    "other.jsonl": (
        b'{"text": "a", "b": "\xff"}\n',
        r"line 1 cannot be read: the byte 0xff is not",
    ),
    "list.jsonl": (
        b'{"text": "a"}\n[1]\n',
        r"line 2 cannot be read: a document must be \{\"text\"",
    ),
    "half.jsonl": (b'{"text": "a"}\n{"text": "\\ud800"}', r"line 2 cannot be read: .* surrogates"),
    "open.jsonl": (b'{"text": "a"}\n{"text": "b', r"line 2 cannot be read: Unterminated string"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", BAD_RECORDS)
def test_bad_record_in_a_folder_names_file_line_and_rule(
    tmp_path: Path, name: str, packed: bool
) -> None:
    content, rule = BAD_RECORDS[name]
    (tmp_path / "a.txt").write_text("fine")
    path = tmp_path / (f"{name}.zst" if packed else name)
    path.write_bytes(zstandard.compress(content) if packed else content)
    with pytest.raises(InputError, match=rf"{path} {rule}.*; give UTF-8 \.txt"):
        list(read_documents(str(tmp_path)))


def test_packed_file_that_is_no_text_by_its_size_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.zst"
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as packed:
        for _ in range(256):
            packed.write(b"<|endoftext|>\n" * 74_899)  # 1 MiB of nothing but separators
    with pytest.raises(InputError, match=r"bomb.txt.zst .*unpacks to more than 500 times its size"):
        for _ in read_documents(str(path)):
            pass


def test_long_text_that_a_parquet_file_repeats_is_in_memory_once(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, text = tmp_path / "same.parquet", "a long text " * 10**5
    part = pa.table({"text": [text] * 50})
    with pq.ParquetWriter(path, part.schema) as writer:
        for _ in range(20):
            writer.write_table(part)
    assert path.stat().st_size < 10**7
    before = pa.default_memory_pool().max_memory()
    lengths = [len(document.text) for document in read_documents(str(path))]
    assert lengths == [len(text)] * 1000
    assert pa.default_memory_pool().max_memory() < max(before + 1, 5 * 10**8)  # not 1.2 GB
