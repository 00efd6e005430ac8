"""Documents in a store: kept, split and mixed by their numbers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.document import Document
from shapelaw.trainers.corpus.documents import read_documents
from shapelaw.trainers.corpus.mixing import blend, interleaved, split
from shapelaw.trainers.corpus.mixture import parse_mixture
from shapelaw.trainers.corpus.text_store import StoredDocuments, TextStore

END = "<|endoftext|>"
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=30)


def stored(store: TextStore, sizes: list[int], letter: str, source: int = 0) -> StoredDocuments:
    """Documents of one letter with their numbers in front, of about these sizes."""
    texts = [f"{number}{letter * size}".encode() for number, size in enumerate(sizes)]
    return store.keep(map(Document, texts), 10**9, source=source)


def texts_of(documents: StoredDocuments) -> list[bytes]:
    return [document.text for document in documents]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TextStore]:
    with TextStore(tmp_path) as opened:
        yield opened


@given(sizes=st.lists(SIZES, min_size=1, max_size=4), data=st.data(), limit=st.integers(1, 20_000))
def test_a_mixture_keeps_its_shares_its_order_and_its_limit(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[list[int]],
    data: st.DataObject,
    limit: int,
) -> None:
    with TextStore(tmp_path_factory.getbasetemp()) as store:
        texts = [stored(store, each, "abcd"[n], source=n) for n, each in enumerate(sizes)]
        weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(texts), max_size=len(texts)))
        together = interleaved(texts, weights, limit=limit)
        used = np.bincount(together.sources, weights=together.sizes, minlength=len(texts))
        shares = np.array(weights) / sum(weights)
        total = min(limit, min(t.size / share for t, share in zip(texts, shares, strict=True)))
        assert used == pytest.approx(total * shares, abs=1)
        for number, text in enumerate(texts):
            own = together.take(together.sources == number)
            assert np.array_equal(own.offsets, text.offsets[: len(own)]), "each in its own order"
            whole = max(0, len(own) - 1)
            assert np.array_equal(own.sizes[:whole], text.sizes[:whole]), "only the last is cut"
        read = np.cumsum(np.eye(len(texts))[together.sources] * together.sizes[:, None], axis=0)
        largest = max(int(text.sizes.max()) for text in texts)
        apart = np.abs(read - read.sum(axis=1, keepdims=True) * shares)
        assert (apart <= len(texts) * largest).all(), "every beginning has the proportions"


@given(sizes=st.lists(SIZES, min_size=2, max_size=4))
def test_without_weights_every_document_is_used_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]]
) -> None:
    with TextStore(tmp_path_factory.getbasetemp()) as store:
        texts = [stored(store, each, "abcd"[n], source=n) for n, each in enumerate(sizes)]
        together = interleaved(texts, None)
        assert sorted(texts_of(together)) == sorted(
            document for text in texts for document in texts_of(text)
        )


@pytest.mark.parametrize("limit", range(1, 40))
def test_a_document_is_cut_between_two_characters(store: TextStore, limit: int) -> None:
    whole = store.keep([Document("né語🙂".encode() * 5)], 50)
    cut = b"".join(texts_of(interleaved([whole], [1.0], limit=limit)))
    assert cut == ("né語🙂" * 5).encode()[:limit].decode("utf-8", "ignore").encode()


@given(sizes=st.lists(st.integers(1, 400), min_size=5, max_size=120))
def test_a_split_shares_out_all_of_the_text(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    with TextStore(tmp_path_factory.getbasetemp()) as store:
        text = stored(store, sizes, "é")
        train, held_out, how = split(text)
        assert train.size + held_out.size == text.size
        if how == "by document":
            assert len(held_out) == len(sizes) // 10
        else:
            assert held_out.size == pytest.approx(text.size / 10, abs=4 + len(sizes))
        for part in (train, held_out):
            for document in part:
                document.text.decode()  # no character is cut through


def test_documents_that_differ_only_in_outer_white_space_are_equal(
    tmp_path: Path, store: TextStore
) -> None:
    (tmp_path / "a.txt").write_text(f"one\n{END}\ntwo\n{END}\nthree")
    (tmp_path / "b.txt").write_text(f"\n two\n{END}\nthree\n")
    first, second = (
        store.keep(read_documents(str(tmp_path / name)), 10**6) for name in ("a.txt", "b.txt")
    )
    assert texts_of(first.without(second.content_digests)) == [b"one\n"]


def numbered(path: Path, count: int, word: str = "word ") -> str:
    path.write_text(f"\n{END}\n".join(f"{number} " + word * 80 for number in range(count)))
    return str(path)


def digest(folder: Path, corpus: str, validation: str | None = None, **more: int) -> str:
    with TextStore(folder) as store:
        return blend(parse_mixture(corpus, validation), store, limit=10**7, **more).sha256


def test_the_digest_depends_on_everything_that_affects_the_numbers(tmp_path: Path) -> None:
    a, b = numbered(tmp_path / "a.txt", 90), numbered(tmp_path / "b.txt", 90, "text ")
    exam = numbered(tmp_path / "exam.txt", 20, "exam ")
    digests = [
        digest(tmp_path, a),
        digest(tmp_path, f"a={a},b={b}"),
        digest(tmp_path, f"a={a}:1,b={b}:2"),
        digest(tmp_path, f"a={a}:2,b={b}:1"),
        digest(tmp_path, f"a={a}", f"a={exam}"),
        digest(tmp_path, a, tokens=20_000),
        digest(tmp_path, a, tokens=20_001),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(tmp_path, f"a={a}", f"exam={exam}") == digests[0], "one more set changes nothing"
    assert digest(tmp_path, f"x={a}:2,y={b}:4") == digests[2], "nor do names and scales"


@pytest.mark.parametrize(
    ("corpus", "validation", "words"),
    [
        ("a.txt", "exam=short.txt", r"at least 2000 bytes of text, but .*short\.txt has \d+; give"),
        ("a.txt", "a.txt", r"the source a has no text left to train on: all of its documents"),
        ("a=a.txt,c=gone.txt", None, r"gone\.txt does not exist; give a file or a folder"),
        ("a=a.txt,c=empty.txt", None, r"at least 20000 bytes of text, but .*empty\.txt has 0"),
    ],
)
def test_texts_that_do_not_do_are_named(
    tmp_path: Path, corpus: str, validation: str | None, words: str
) -> None:
    numbered(tmp_path / "a.txt", 90)
    numbered(tmp_path / "short.txt", 2)
    (tmp_path / "empty.txt").write_text(" \n")

    def placed(text: str | None) -> str | None:
        for name in ("a.txt", "short.txt", "gone.txt", "empty.txt"):
            text = text and text.replace(name, str(tmp_path / name))
        return text

    with pytest.raises(InputError, match=words):
        digest(tmp_path, placed(corpus) or "", placed(validation))
