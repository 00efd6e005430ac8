"""Mixtures of sources: how they are written, mixed, held out, kept on disk and checked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.mixture import Mixture, Source, parse_mixture
from shapelaw.trainers.corpus.preparation import prepare
from support.command import shapelaw
from support.mixtures import END, documents_of, train_documents, written
from support.small_runs import SHAPE


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three texts of 37 to 111 kB, and a held-out text of the first."""
    folder = tmp_path_factory.mktemp("texts")
    written(folder / "red.txt", "red", 80)
    written(folder / "green.txt", "green", 160)
    written(folder / "blue.txt", "blue", 60, words=120)
    written(folder / "red-held-out.txt", "scarlet", 20)
    return folder


@pytest.fixture(scope="module")
def mixed(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    option = f"red={texts}/red.txt:2,green={texts}/green.txt:3,blue={texts}/blue.txt:1"
    folder = tmp_path_factory.mktemp("mixed") / "corpus"
    return prepare(option, folder, validation=f"red={texts}/red-held-out.txt")


def test_every_beginning_of_a_mixture_has_its_proportions(mixed: Corpus) -> None:
    documents = train_documents(mixed)
    largest = max(map(len, documents))
    total = sum(map(len, documents))
    read = dict.fromkeys(("red", "green", "blue"), 0)
    for document in documents:
        read[document.split()[0]] += len(document)
        if sum(read.values()) > 8 * largest:
            for name, share in (("red", 2 / 6), ("green", 3 / 6), ("blue", 1 / 6)):
                assert read[name] == pytest.approx(share * sum(read.values()), abs=1.5 * largest)
    for name, share in (("red", 2 / 6), ("green", 3 / 6), ("blue", 1 / 6)):
        assert read[name] == pytest.approx(share * total, abs=4)


def test_no_document_is_repeated_and_the_used_documents_are_recorded(mixed: Corpus) -> None:
    documents = train_documents(mixed)
    assert len({document.split()[1] + document.split()[0] for document in documents}) == len(
        documents
    )
    for part in mixed.parts:
        own = [document for document in documents if document.startswith(part.name)]
        assert (part.documents, part.bytes) == (len(own), sum(map(len, own)))
        assert part.bytes <= part.bytes_available
    assert any(part.bytes == part.bytes_available for part in mixed.parts)


def test_a_source_with_a_held_out_text_trains_on_all_of_its_own(mixed: Corpus) -> None:
    sets = mixed.validation_sets()
    assert list(sets) == ["red", "green", "blue"]
    held_out = documents_of(sets["red"].tokens, sets["red"].starts)
    assert len(held_out) == 20
    assert all(document.startswith("scarlet") for document in held_out)
    assert len(documents_of(sets["green"].tokens, sets["green"].starts)) == 16
    red, green, _ = mixed.parts
    assert (red.split, green.split) == ("a text of its own", "by document")


def test_the_main_validation_text_is_in_proportion(mixed: Corpus) -> None:
    text = mixed.validation().astype(np.uint8).tobytes().decode()
    sizes = {
        name: sum(len(document) for document in text.split("\0") if document.startswith(name))
        for name in ("scarlet", "green", "blue")
    }
    assert sizes["green"] / sizes["scarlet"] == pytest.approx(3 / 2, rel=0.02)
    assert sizes["scarlet"] / sizes["blue"] == pytest.approx(2, rel=0.02)


@settings(max_examples=8)
@given(shared=st.lists(st.integers(0, 79), min_size=1, max_size=30, unique=True))
@example(shared=[79, 3])  # the last document of a file has no line end
def test_documents_in_any_validation_set_are_not_trained_on(
    tmp_path_factory: pytest.TempPathFactory, shared: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("leak")
    written(folder / "red.txt", "red")
    documents = (folder / "red.txt").read_text().split(f"\n{END}\n")
    exam = [documents[number] for number in shared] + ["something else " * 200]
    (folder / "exam.txt").write_text(f"\n{END}\n".join(exam))
    exam_set = f"exam={folder}/exam.txt"
    corpus = prepare(f"{folder}/red.txt", folder / "out", validation=exam_set)
    assert list(corpus.validation_sets()) == ["exam"]
    held_out = set(exam)
    for each in (corpus.validation_shard(), corpus.validation_sets()["exam"]):
        held_out |= set(documents_of(each.tokens, each.starts))
    trained = {document.rstrip("\n") for document in train_documents(corpus)}
    assert not {document.rstrip("\n") for document in held_out} & trained
    assert len(trained) + corpus.parts[0].dropped == 72


def test_a_flipped_bit_and_a_lost_end_are_one_clear_error(texts: Path, tmp_path: Path) -> None:
    corpus = prepare(f"{texts}/red.txt", tmp_path / "corpus")
    for name in ("train.npy", "train.starts.npy", "validation.npy"):
        for kind in ("flipped", "shorter", "gone"):
            hurt = tmp_path / f"{name}-{kind}"
            shutil.copytree(corpus.folder, hurt)
            content = bytearray((hurt / name).read_bytes())
            content[-3] ^= 4
            (hurt / name).write_bytes(content if kind == "flipped" else content[:-2])
            if kind == "gone":
                (hurt / name).unlink()
            with pytest.raises(InputError, match=rf"{name} .* delete .*{kind} and give the same"):
                Corpus.load(hurt)


def test_contents_are_compared_once_and_again_when_a_file_is_new(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(f"{texts}/red.txt", tmp_path / "corpus")
    Corpus.load(tmp_path / "corpus")
    read: list[str] = []
    monkeypatch.setattr(
        "shapelaw.trainers.corpus.shards.sha256", lambda path: read.append(path.name) or "other"
    )
    Corpus.load(tmp_path / "corpus")
    assert read == []
    (tmp_path / "corpus" / "train.npy").touch()
    with pytest.raises(InputError, match=r"does not have the SHA-256"):
        Corpus.load(tmp_path / "corpus")


def test_a_corpus_of_an_earlier_version_still_loads(texts: Path, tmp_path: Path) -> None:
    corpus = prepare(f"{texts}/red.txt", tmp_path / "corpus")
    path = tmp_path / "corpus" / "corpus.json"
    record = json.loads(path.read_text())
    for name in ("files", "request", "parts", "held_out"):
        del record[name]
    path.write_text(json.dumps(record))
    (tmp_path / "corpus" / "train.starts.npy").unlink()
    old = Corpus.load(tmp_path / "corpus")
    assert np.array_equal(old.train(), corpus.train())
    assert old.train_shard().starts.tolist() == [0]


def test_a_folder_of_pairs_is_a_mixture_with_its_held_out_texts(tmp_path: Path) -> None:
    written(tmp_path / "red.train.txt", "red")
    written(tmp_path / "red.val.txt", "scarlet", 9)
    written(tmp_path / "blue.train.txt", "blue")
    written(tmp_path / "notes.md", "ignored")
    mixture = parse_mixture(str(tmp_path))
    assert mixture == Mixture(
        name=tmp_path.name,
        sources=(
            Source(name="blue", path=f"{tmp_path}/blue.train.txt"),
            Source(
                name="red",
                path=f"{tmp_path}/red.train.txt",
                held_out=f"{tmp_path}/red.val.txt",
            ),
        ),
    )


@pytest.mark.parametrize(
    ("corpus", "validation", "words"),
    [
        ("a=x.txt:1,b=y.txt", None, r"either every source of --corpus has a weight .* 'b' lacks"),
        ("a=x.txt,a=y.txt", None, r"'a' stands twice; write NAME=PATH"),
        ("x.txt:0,y.txt:1", None, r"`0 < WEIGHT` must hold for x\.txt in --corpus, but got 0"),
        ("x.txt:nan,y.txt:1", None, r"`0 < WEIGHT` must hold"),
        ("a b=x.txt,c=y.txt", None, r"must be letters, digits, .* but got 'a b'"),
        ("x.txt", "y.txt:0.5", r"`--validation NAME=PATH` takes no weight"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(
    corpus: str, validation: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        parse_mixture(corpus, validation)


@pytest.mark.slow
def test_a_damaged_corpus_is_named_by_the_command_with_a_way_out(
    texts: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "out", tmp_path / "config.json"
    mixture = f"red={texts}/red.txt:1,blue={texts}/blue.txt:1"
    prepare(mixture, out / "corpus")
    write_json(config, SHAPE.to_config(max_position_embeddings=64))
    content = bytearray((out / "corpus" / "train.npy").read_bytes())
    content[5000] ^= 1
    (out / "corpus" / "train.npy").write_bytes(content)
    command = ["train", config, "--tokens", "2K", "--out", out, "--corpus"]
    done = shapelaw(*command, mixture)
    assert done.returncode == 2
    printed = " ".join(done.stderr.split())  # the middle of a long line is left out
    assert "train.npy does not have the SHA-256" in printed
    assert "/corpus and give the same command again" in printed
    assert "Traceback" not in done.stderr
    done = shapelaw(*command, "red=red.txt:1,blue=blue.txt")
    assert done.returncode == 2
    assert "'blue' lacks one; write NAME=PATH:WEIGHT" in " ".join(done.stderr.split())
