import bz2
import gzip
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.reader import read_table

FRAME = pd.DataFrame({"run_id": ["a", "b"], "tokens": [10**9, 2 * 10**9], "loss": [3.5, 3.25]})
ROWS = FRAME.to_dict("records")
TEXTS = {
    "commas": FRAME.to_csv(index=False),
    "semicolons": FRAME.to_csv(index=False, sep=";"),
    "decimal commas": FRAME.to_csv(index=False, sep=";", decimal=","),
    "tabs": FRAME.to_csv(index=False, sep="\t"),
    "byte order mark": "\ufeff" + FRAME.to_csv(index=False),
    "JSON": json.dumps(ROWS),
    "JSON with a name": json.dumps({"runs": ROWS}),
    "JSON columns": json.dumps(FRAME.to_dict("list")),
    "JSON lines": "\n".join(map(json.dumps, ROWS)),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_table_is_read_by_its_content_under_any_name(
    tmp_path: Path, text: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "table.anything"
    path.write_bytes(compress(text.encode()))
    pd.testing.assert_frame_equal(read_table(path), FRAME, check_dtype=False)


def test_table_in_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(TEXTS["tabs"].encode("utf-16"))
    pd.testing.assert_frame_equal(read_table(path), FRAME, check_dtype=False)


def test_parquet_is_read_under_another_ending(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "runs.csv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "runs.csv"), FRAME, check_dtype=False)


def test_zip_of_one_file_is_read_and_a_workbook_is_named(tmp_path: Path) -> None:
    for name, members in (("one", ["runs.csv"]), ("book", ["[Content_Types].xml", "a.xml"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, TEXTS["commas"])
    pd.testing.assert_frame_equal(read_table(tmp_path / "one"), FRAME, check_dtype=False)
    with pytest.raises(InputError, match="workbook of a spreadsheet; save it as CSV"):
        read_table(tmp_path / "book")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('n,x\n"180,000,000,000",1\n"1,500",2\n', 180e9),
        ("n;x\n180.000.000;1\n1.500.000;2\n", 180e6),
        ("n;x\n1.234,5;1\n2,25;2\n", 1234.5),
        ("n;x\n3,6447;1\n-2,5;2\n", 3.6447),
    ],
)
def test_numbers_with_commas_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "t").write_text(text)
    column = read_table(tmp_path / "t")["n"]
    assert np.issubdtype(column.dtype, np.number)
    assert column.iloc[0] == pytest.approx(value, rel=1e-15)


def test_text_with_commas_stays_text(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('n,x\n"lr 1,500 and more",1\n"1,500",2\n')
    assert read_table(tmp_path / "t")["n"].tolist() == ["lr 1,500 and more", "1,500"]


DAMAGED = {
    "cut gzip": gzip.compress(TEXTS["commas"].encode() * 99)[:60],
    "cut xz": lzma.compress(TEXTS["commas"].encode() * 99)[:60],
    "no zip": b"PK\x03\x04 and no more",
    "no zstd": b"\x28\xb5\x2f\xfd and no more, " * 9,
    "no parquet": b"PAR1 and no more",
    "no text": b"\xfe\x00\xff",
    "nested": b"[" * 100_000,
    "numbers": b"[1, 2, 3]",
    "broken lines": b'{"a": 1}\n{"a": \n',
    "nothing": b"",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_table_is_refused_in_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"runs.csv is not a CSV, JSON, JSON lines or Parquet"
    ) as e:
        read_table(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_file_that_unpacks_to_too_much_is_refused_in_bounded_memory(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "bomb.csv").write_bytes(compress(b"0" * 2**26))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb.csv is not .* more than 16 MiB; decompress it"):
        read_table(tmp_path / "bomb.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25  # half of what the file unpacks to


@pytest.mark.parametrize(
    ("column", "rows", "groups", "said"),
    [(1.5, 10**6, 51, "over 50,000,000 values"), ("x" * 10**7, 50, 3, "texts are too long")],
)
def test_parquet_of_repeated_values_is_refused_in_bounded_memory(
    tmp_path: Path, column: object, rows: int, groups: int, said: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"loss": pa.array([column] * rows)})
    path = tmp_path / "bomb.parquet"
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)
    assert path.stat().st_size < 2**20
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(InputError, match=f"bomb.parquet is not .*{said}"):
        read_table(path)
    assert pa.default_memory_pool().max_memory() - before < 2**28
