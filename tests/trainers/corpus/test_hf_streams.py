"""Streams of Hugging Face datasets, on files of the same formats: no test needs a network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.corpus.documents import read_documents
from shapelaw.trainers.corpus.hf_streams import Stream, parse_stream
from shapelaw.trainers.corpus.mixture import parse_mixture
from shapelaw.trainers.corpus.options import CorpusOptions
from shapelaw.trainers.corpus.preparation import prepare, prepare_from_options
from support.mixtures import train_documents, written

pytestmark = pytest.mark.slow


def rows(name: str, count: int) -> pd.DataFrame:
    texts = [f"{name} {number} " + f"{name}{number:04d} " * 60 for number in range(count)]
    return pd.DataFrame({"id": range(count), "text": texts, "title": [f"{name}!"] * count})


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("datasets", reason="streams need the package datasets")
    os.environ.setdefault("HF_HOME", str(tmp_path_factory.mktemp("hf")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two splits, a Parquet file and JSON lines."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pages").mkdir()
    for part in range(2):
        rows(f"page{part}", 90).to_parquet(folder / "pages" / f"train-0000{part}.parquet")
    rows("exam", 30).to_parquet(folder / "pages" / "validation-00000.parquet")
    rows("pdf", 400).to_parquet(folder / "pdf.parquet")
    rows("web", 400).to_json(folder / "web.jsonl", orient="records", lines=True)
    rows("edu", 400).to_json(folder / "edu.jsonl", orient="records", lines=True)
    return folder


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("hf:org/name", Stream(name="org/name")),
        ("hf:org/name:config", Stream(name="org/name", config="config")),
        ("hf:org/name@test", Stream(name="org/name", split="test")),
        ("hf:org/name#body", Stream(name="org/name", column="body")),
        (
            "hf:org/name:20231101.en@train[:5%]#body text",
            None,
        ),
        (
            "hf:org/name:20231101.en@test#body text",
            Stream(name="org/name", config="20231101.en", split="test", column="body text"),
        ),
    ],
)
def test_a_stream_is_named_by_its_parts(text: str, stream: Stream | None) -> None:
    if stream is None:
        with pytest.raises(InputError, match=r"`hf:NAME\[:CONFIG\]\[@SPLIT\]\[#COLUMN\]` must"):
            parse_stream(text)
    else:
        assert parse_stream(text) == stream


def test_a_mixture_of_streams_reads_as_it_is_written() -> None:
    mixture = parse_mixture(
        "hf:HuggingFaceFW/finepdfs:eng_Latn:50,dclm=hf:mlfoundations/dclm-baseline-1.0:30,"
        "hf:HuggingFaceFW/fineweb-edu:sample-10BT:20"
    )
    assert [(source.name, source.weight) for source in mixture.sources] == [
        ("finepdfs", 50.0),
        ("dclm", 30.0),
        ("fineweb-edu", 20.0),
    ]
    assert mixture.sources[0].path == "hf:HuggingFaceFW/finepdfs:eng_Latn"
    assert mixture.sources[1].path == "hf:mlfoundations/dclm-baseline-1.0"
    assert mixture.has_streams


def test_a_stream_gives_the_documents_that_the_file_holds(data: Path) -> None:
    for name in ("pdf.parquet", "web.jsonl"):
        assert list(read_documents(f"hf:{data / name}")) == list(read_documents(str(data / name)))


def test_the_splits_and_columns_of_a_folder_are_told_apart(data: Path) -> None:
    train = list(read_documents(f"hf:{data}/pages"))
    assert len(train) == 180
    assert train[0].text.startswith(b"page0 0 ")
    assert len(list(read_documents(f"hf:{data}/pages@validation"))) == 30
    titles = {document.text for document in read_documents(f"hf:{data}/pages#title")}
    assert titles == {b"page0!", b"page1!"}


def test_streams_are_mixed_by_weight_up_to_a_number_of_tokens(data: Path, tmp_path: Path) -> None:
    options = CorpusOptions.from_command(
        f"hf:{data}/pdf.parquet:50,hf:{data}/web.jsonl:30,edu=hf:{data}/edu.jsonl:20",
        validation=f"pages=hf:{data}/pages@validation",
        corpus_tokens="60K",
    )
    corpus = prepare_from_options(options, tmp_path / "out")
    assert corpus.tokens_train == 60_000
    documents = train_documents(corpus)
    for name, share in (("pdf", 0.5), ("web", 0.3), ("edu", 0.2)):
        size = sum(len(document) for document in documents if document.startswith(name))
        assert size == pytest.approx(share * 60_000, abs=600)
    assert list(corpus.validation_sets()) == ["pdf", "web", "edu", "pages"]
    assert corpus.parts[0].source == "hf:pdf.parquet@train#text"
    assert all(part.truncated for part in corpus.parts), "a stream is not read to its end"
    again = prepare_from_options(options, tmp_path / "again")
    assert (again.sha256, np.array_equal(again.train(), corpus.train())) == (corpus.sha256, True)


def test_a_prepared_stream_is_not_fetched_again(data: Path, tmp_path: Path) -> None:
    rows("copy", 200).to_parquet(tmp_path / "copy.parquet")
    options = CorpusOptions(corpus=f"hf:{tmp_path}/copy.parquet", tokens=30_000)
    corpus = prepare_from_options(options, tmp_path / "out")
    (tmp_path / "copy.parquet").unlink()
    assert prepare_from_options(options, tmp_path / "out") == corpus
    other = CorpusOptions(corpus=f"hf:{tmp_path}/copy.parquet", tokens=30_001)
    with pytest.raises(InputError, match=r"other sources, weights or limits; choose another --out"):
        prepare_from_options(other, tmp_path / "out")


def test_a_local_source_may_stand_beside_a_stream(data: Path, tmp_path: Path) -> None:
    own = written(tmp_path / "own.txt", "own", 200)
    options = CorpusOptions(corpus=f"{own}:1,hf:{data}/pdf.parquet:1", tokens=40_000)
    corpus = prepare_from_options(options, tmp_path / "out")
    sizes = [part.bytes for part in corpus.parts]
    assert sizes[0] == pytest.approx(sizes[1], abs=1000)


def test_a_stream_needs_weights_and_an_end(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"give pdf and every other source a weight"):
        parse_mixture(f"hf:{data}/pdf.parquet,stdlib")
    with pytest.raises(InputError, match=r"`--corpus-tokens` must say how many"):
        prepare_from_options(CorpusOptions(corpus=f"hf:{data}/pdf.parquet"), tmp_path / "out")


def damaged(folder: Path) -> str:
    (folder / "bad.parquet").write_bytes(b"PAR1 and then nothing" * 50)
    return f"hf:{folder}/bad.parquet"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pages@test", r"pages@test#text cannot be read: Bad split: test"),
        ("pages:french", r"hf:pages:french@train#text cannot be read: .*'french' not found"),
        (
            "pdf.parquet#body",
            r"the column `body` must be there, but it has id, text, title; write hf:NAME#C",
        ),
        (
            "pdf.parquet#id",
            r"hf:pdf\.parquet@train#id cannot be read: .* `id` must hold strings, but holds int",
        ),
    ],
)
def test_a_stream_that_cannot_be_read_is_one_clear_error(
    data: Path, tmp_path: Path, source: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        prepare(f"hf:{data}/{source}", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_of_a_stream_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf:bad\.parquet@train#text cannot be read: Parquet"):
        prepare(damaged(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("after", [0, 30])
def test_a_connection_that_breaks_is_an_error_of_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    import datasets

    class Broken:
        def iter(self, batch_size: int) -> Any:
            for number in range(after):
                yield {"text": [f"{number} words"]}
            raise ConnectionError("the connection\nwas reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    with pytest.raises(WorkError, match=r"cannot be reached \(ConnectionError: the connection was"):
        prepare("hf:org/name", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_command_ends_with_one_line(tmp_path: Path) -> None:
    code = (
        "from shapelaw.scaling.errors import WorkError\n"
        "from shapelaw.trainers.corpus.documents import read_documents\n"
        "try:\n    list(read_documents('hf:org/name'))\n"
        "except WorkError as error:\n    print(error)\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hf:org/name@train#text cannot be reached (")
    assert done.stdout.count("\n") == 1


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'`pip install "shapelaw\[hf\]"`'):
        next(read_documents("hf:org/name"))


def test_json_lines_of_a_stream_may_hold_empty_rows(tmp_path: Path) -> None:
    texts = [None, "", "first", "second"]
    (tmp_path / "gaps.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    documents = read_documents(f"hf:{tmp_path}/gaps.jsonl")
    assert [document.text for document in documents] == [b"first", b"second"]
