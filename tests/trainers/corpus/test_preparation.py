"""Prepared corpora keep their tokens, names and digests from version to version."""

import json
from pathlib import Path

import pytest

from shapelaw.trainers.corpus import hf_streams
from support.corpus_cases import CASES, StreamedRows, identity_of, write_sources

GOLDEN = Path(__file__).parents[2] / "golden" / "corpora.json"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_prepared_corpus_of_every_source_has_recorded_digests(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hf_streams, "_opened", lambda stream: StreamedRows())
    corpus = CASES[name](sources, tmp_path / "out")
    assert identity_of(corpus) == json.loads(GOLDEN.read_text())[name]


def test_every_recorded_corpus_is_prepared() -> None:
    assert list(json.loads(GOLDEN.read_text())) == list(CASES)
