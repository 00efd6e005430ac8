import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.documents import STDLIB, read_documents
from shapelaw.trainers.corpus.preparation import prepare
from support.paths import SHARED

END = "<|endoftext|>"
CORPORA = SHARED / "corpora"


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Sixty documents of real text, 60 to 120 kB: short files of the standard library."""
    chosen: list[str] = []
    for document in read_documents(STDLIB):
        text = document.text.decode()
        if 800 < len(text) < 4000 and text.isascii() and text not in chosen:
            chosen.append(text)
        if len(chosen) == 60:
            break
    return chosen


def as_text(documents: list[str], path: Path) -> None:
    path.write_text(f"\n{END}\n".join(documents), encoding="utf-8")


def as_json_lines(documents: list[str], path: Path) -> None:
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents) + "\n")


def as_parquet(documents: list[str], path: Path) -> None:
    pd.DataFrame({"text": documents}).to_parquet(path)


def as_packed_text(documents: list[str], path: Path) -> None:
    path.write_bytes(zstandard.compress(f"\n{END}\n".join(documents).encode()))


def as_two_frames(documents: list[str], path: Path) -> None:
    whole = f"\n{END}\n".join(documents).encode()
    path.write_bytes(zstandard.compress(whole[:9999]) + zstandard.compress(whole[9999:]))


def as_packed_json_lines(documents: list[str], path: Path) -> None:
    lines = "\n".join(json.dumps({"text": text}) for text in documents)
    path.write_bytes(zstandard.compress(lines.encode()))


def as_folder(documents: list[str], path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for number, text in enumerate(documents):
        place = path / "deep" if number % 2 else path
        (place / f"{number:03d}.py").write_text(text)


FORMATS = {
    "corpus.txt": as_text,
    "corpus.jsonl": as_json_lines,
    "corpus.parquet": as_parquet,
    "corpus.txt.zst": as_packed_text,
    "corpus.zst": as_packed_text,
    "corpus.md.zst": as_two_frames,
    "corpus.jsonl.zst": as_packed_json_lines,
    "corpus": as_folder,
}


def texts(tokens: np.ndarray) -> list[str]:
    """The documents of a shard of bytes."""
    return tokens.astype(np.uint8).tobytes().decode().split("\0")


@pytest.mark.parametrize(("name", "write"), FORMATS.items(), ids=FORMATS)
def test_every_format_gives_the_same_documents(
    documents: list[str], tmp_path: Path, name: str, write: Callable[[list[str], Path], None]
) -> None:
    write(documents, tmp_path / name)
    corpus = prepare(str(tmp_path / name), tmp_path / "out")
    train, validation = texts(corpus.train()), texts(corpus.validation())
    assert sorted(text.strip() for text in train + validation) == sorted(
        text.strip() for text in documents
    )
    assert (len(train), len(validation)) == (54, 6)
    assert (corpus.name, corpus.split, corpus.documents) == ("corpus", "by document", 60)
    assert (corpus.tokenizer, corpus.vocab_size, corpus.truncated) == ("bytes", 256, False)
    assert corpus.bytes_per_token == 1.0
    assert corpus.tokens_train == len(corpus.train())
    assert corpus.tokens_validation == len(corpus.validation())


def test_the_default_is_the_source_of_the_standard_library(tmp_path: Path) -> None:
    corpus = prepare(STDLIB, tmp_path / "out", limit=1_500_000)
    train, validation = texts(corpus.train()), texts(corpus.validation())
    assert corpus.split == "by document"
    assert corpus.truncated
    assert corpus.name.endswith("-stdlib")
    assert 1_000_000 < corpus.tokens_train + corpus.tokens_validation <= 1_500_000 + len(train)
    assert not set(train) & set(validation)
    assert len(validation) == pytest.approx(len(train) / 9, abs=1)
    for text in validation:
        compile(text, "held out", "exec", dont_inherit=True)


def test_tokens_and_hash_are_functions_of_the_text(documents: list[str], tmp_path: Path) -> None:
    as_json_lines(documents, tmp_path / "a.jsonl")
    as_json_lines(documents, tmp_path / "b.jsonl")
    as_json_lines([*documents[1:], documents[0] + "!"], tmp_path / "c.jsonl")
    first, same, other = (
        prepare(str(tmp_path / f"{name}.jsonl"), tmp_path / name) for name in "abc"
    )
    assert first.sha256 == same.sha256 != other.sha256
    assert np.array_equal(first.train(), same.train())
    assert np.array_equal(first.validation(), same.validation())
    assert first.label == f"a:{first.sha256[:12]}"


def test_documents_that_stand_twice_are_not_shared_by_the_parts(
    documents: list[str], tmp_path: Path
) -> None:
    # 25 documents, each twice: five are held out, so the cut would fall inside a pair.
    as_json_lines([*documents[:25], *documents[:25]], tmp_path / "pairs.jsonl")
    corpus = prepare(str(tmp_path / "pairs.jsonl"), tmp_path / "out")
    assert not set(texts(corpus.train())) & set(texts(corpus.validation()))


@pytest.mark.parametrize("character", ["e", "é", "語", "🙂"])
def test_a_text_without_separators_holds_out_its_last_tenth(tmp_path: Path, character: str) -> None:
    size = len(character.encode())
    text = "".join(f"{number} {character}\n" for number in range(4000)) + "x" * size
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    corpus = prepare(str(tmp_path / "one.txt"), tmp_path / "out")
    train, validation = (
        part.astype(np.uint8).tobytes().decode() for part in (corpus.train(), corpus.validation())
    )
    assert corpus.split == "the last tenth of the text"
    assert train + validation == text
    assert len(validation.encode()) == pytest.approx(len(text.encode()) / 10, abs=4)


def test_a_few_documents_are_cut_by_position(documents: list[str], tmp_path: Path) -> None:
    as_text(documents[:49], tmp_path / "few.txt")
    corpus = prepare(str(tmp_path / "few.txt"), tmp_path / "out")
    assert corpus.split == "the last tenth of the text"
    assert corpus.documents == 49


def test_tiny_shakespeare_is_read_as_text(tmp_path: Path) -> None:
    path = CORPORA / "tinyshakespeare.train.txt.zst"
    if not path.exists():
        pytest.skip("the shared corpora are not beside this checkout")
    corpus = prepare(str(path), tmp_path / "out")
    assert corpus.name == "tinyshakespeare"
    assert corpus.tokens_train > 500_000
    assert "KING" in corpus.train().astype(np.uint8).tobytes().decode("utf-8", "ignore")


@pytest.mark.parametrize("count", [20, 60], ids=["cut by position", "by document"])
def test_a_byte_pair_vocabulary_round_trips(
    documents: list[str], tmp_path: Path, count: int
) -> None:
    from tokenizers import Tokenizer

    written = [f"{text} größer 語 🙂" for text in documents[:count]]
    as_json_lines(written, tmp_path / "corpus.jsonl")
    corpus = prepare(str(tmp_path / "corpus.jsonl"), tmp_path / "out", vocab_size=512)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert corpus.vocab_size == tokenizer.get_vocab_size() == 512
    assert corpus.tokenizer.startswith("bpe-512:")
    assert 1 < corpus.bytes_per_token < 8
    restored = []
    for shard in (corpus.train(), corpus.validation()):
        assert shard.max() < 512
        text = tokenizer.decode(shard.tolist(), skip_special_tokens=False)
        restored.append(text.split(END))
    train, held_out = restored
    if count == 20:  # the document that the cut goes through
        train, held_out = [*train[:-1], train[-1] + held_out[0], *held_out[1:]], restored[1]
        assert train == written
    else:
        assert sorted(train + held_out) == sorted(written)
    held_out_bytes = sum(len(text.encode()) for text in held_out) + len(held_out) - 1
    assert corpus.bytes_per_token == held_out_bytes / corpus.tokens_validation


def test_a_vocabulary_that_the_text_cannot_fill_is_recorded_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "dull.txt").write_text("to be or not to be\n" * 2000)
    corpus = prepare(str(tmp_path / "dull.txt"), tmp_path / "out", vocab_size=4096)
    assert 257 <= corpus.vocab_size < 4096
    assert corpus.train().max() < corpus.vocab_size


def not_text(path: Path) -> str:
    (path / "binary.txt").write_bytes(bytes(range(256)) * 200)
    return "binary.txt"


def unknown_suffix(path: Path) -> str:
    (path / "scan.pdf").write_bytes(b"%PDF-1.7\n\xe2\xe3\xcf\xd3" * 4000)
    return "scan.pdf"


def empty(path: Path) -> str:
    (path / "empty.txt").write_text("")
    return "empty.txt"


def small(path: Path) -> str:
    (path / "small.txt").write_text("word " * 3000)
    return "small.txt"


def only_space(path: Path) -> str:
    (path / "space.jsonl").write_text(json.dumps({"text": " \n" * 20_000}) + "\n")
    return "space.jsonl"


def folder_of_pictures(path: Path) -> str:
    (path / "pictures").mkdir()
    (path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    return "pictures"


def broken_json(path: Path) -> str:
    (path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    return "broken.jsonl"


def json_without_text(path: Path) -> str:
    (path / "titles.jsonl").write_text('{"text": "fine"}\n\n{"title": "no text"}\n')
    return "titles.jsonl"


def json_list(path: Path) -> str:
    (path / "list.jsonl").write_text('["text"]\n')
    return "list.jsonl"


def json_lone_surrogate(path: Path) -> str:
    (path / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    return "half.jsonl"


def parquet_without_text(path: Path) -> str:
    pd.DataFrame({"body": ["word " * 9000]}).to_parquet(path / "body.parquet")
    return "body.parquet"


def parquet_of_numbers(path: Path) -> str:
    pd.DataFrame({"text": range(1, 30_000)}).to_parquet(path / "numbers.parquet")
    return "numbers.parquet"


def parquet_of_bytes(path: Path) -> str:
    pd.DataFrame({"text": [b"word " * 9000]}).to_parquet(path / "bytes.parquet")
    return "bytes.parquet"


def damaged_parquet(path: Path) -> str:
    (path / "damaged.parquet").write_bytes(b"PAR1 and then nothing" * 2000)
    return "damaged.parquet"


def not_zstd(path: Path) -> str:
    (path / "plain.txt.zst").write_text("word " * 9000)
    return "plain.txt.zst"


def truncated_zstd(path: Path) -> str:
    noise = np.random.default_rng(0).integers(97, 123, 600_000, dtype=np.uint8).tobytes()
    packed = zstandard.compress(noise)
    (path / "cut.txt.zst").write_bytes(packed[: 2 * len(packed) // 3])
    return "cut.txt.zst"


def missing(path: Path) -> str:
    return "missing.txt"


UNUSABLE = [
    (
        not_text,
        r"binary\.txt line 2 cannot be read: the byte 0x80 is not .* give UTF-8 \.txt, \.js",
    ),
    (unknown_suffix, r"scan\.pdf line 2 cannot be read: the byte 0xe2 is not UTF-8 .* give UTF-8"),
    (empty, r"at least 20000 bytes of text, but .*empty\.txt has 0"),
    (small, r"at least 20000 bytes of text, but .*small\.txt has 15000"),
    (only_space, r"at least 20000 bytes of text, but .*space\.jsonl has 0"),
    (folder_of_pictures, r"pictures has no text file \(.*\.jsonl"),
    (broken_json, r"broken\.jsonl line 2 cannot be read: Expecting value"),
    (
        json_without_text,
        r'titles\.jsonl line 3 cannot be read: a document must be \{"text": "\.\.\."\}',
    ),
    (json_list, r'list\.jsonl line 1 cannot be read: a document must be \{"text": "\.\.\."\}'),
    (json_lone_surrogate, r"half\.jsonl line 1 cannot be read: .*surrogates"),
    (
        parquet_without_text,
        r"body\.parquet cannot be read: the column `text` must be .* it has body;",
    ),
    (parquet_of_numbers, r"numbers\.parquet"),
    (parquet_of_bytes, r"bytes\.parquet"),
    (damaged_parquet, r"damaged\.parquet cannot be read: "),
    (not_zstd, r"plain\.txt\.zst cannot be read: not a zstd file"),
    (truncated_zstd, r"cut\.txt\.zst"),
    (missing, r"missing\.txt does not exist; give a file or a folder"),
]


@pytest.mark.parametrize(("make", "words"), UNUSABLE, ids=[make.__name__ for make, _ in UNUSABLE])
def test_an_unusable_corpus_is_refused_and_nothing_is_written(
    tmp_path: Path, make: Callable[[Path], str], words: str
) -> None:
    source = tmp_path / make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words):
        prepare(str(source), tmp_path / "sweep" / "corpus")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("size", [0, 256, 65_537])
def test_a_vocabulary_out_of_range_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"`257 <= --vocab <= 65536` must hold, but got {size}"):
        prepare(STDLIB, tmp_path / "out", vocab_size=size)


@pytest.mark.parametrize("vocab_size", [None, 300])
def test_a_full_disk_leaves_nothing_behind(
    documents: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vocab_size: int | None,
) -> None:
    as_text(documents, tmp_path / "corpus.txt")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    out = tmp_path / "sweep" / "corpus"
    with pytest.raises(WorkError, match=r"could not be written \(No space left on device\)"):
        prepare(str(tmp_path / "corpus.txt"), out, vocab_size=vocab_size)
    assert list((tmp_path / "sweep").iterdir()) == []


def test_a_folder_inside_a_file_cannot_be_written_to(documents: list[str], tmp_path: Path) -> None:
    as_text(documents, tmp_path / "corpus.txt")
    with pytest.raises(WorkError, match=r"cannot be written to .* choose another --out folder"):
        prepare(str(tmp_path / "corpus.txt"), tmp_path / "corpus.txt" / "sweep" / "corpus")


def test_a_prepared_folder_is_reused_wherever_it_was_moved_to(
    documents: list[str], tmp_path: Path
) -> None:
    as_text(documents, tmp_path / "corpus.txt")
    first = prepare(str(tmp_path / "corpus.txt"), tmp_path / "out")
    stamp = (tmp_path / "out" / "train.npy").stat().st_mtime_ns
    assert prepare(str(tmp_path / "corpus.txt"), tmp_path / "out") == first
    assert (tmp_path / "out" / "train.npy").stat().st_mtime_ns == stamp
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = Corpus.load(tmp_path / "moved")
    assert moved.sha256 == first.sha256
    assert len(moved.train()) == first.tokens_train


@pytest.mark.parametrize("change", ["text", "vocabulary"])
def test_a_folder_with_another_corpus_is_refused_and_kept(
    documents: list[str], tmp_path: Path, change: str
) -> None:
    as_text(documents, tmp_path / "corpus.txt")
    kept = prepare(str(tmp_path / "corpus.txt"), tmp_path / "out")
    as_text(documents[::-1] if change == "text" else documents, tmp_path / "corpus.txt")
    vocabulary = 300 if change == "vocabulary" else None
    with pytest.raises(InputError, match=r"holds the corpus .* choose another --out folder"):
        prepare(str(tmp_path / "corpus.txt"), tmp_path / "out", vocab_size=vocabulary)
    assert Corpus.load(tmp_path / "out") == kept


SIZES = {
    "tokens": st.integers(40, 400),
    "length": st.integers(2, 20),
    "sequences": st.integers(1, 5),
}


@given(**SIZES, seed=st.integers(0, 2**31), steps=st.lists(st.integers(0, 60), max_size=12))
def test_a_batch_is_a_function_of_seed_and_step_alone(
    tokens: int, length: int, sequences: int, seed: int, steps: list[int]
) -> None:
    def fresh() -> Batches:
        return Batches(np.arange(tokens), context_length=length, sequences=sequences, seed=seed)

    used = fresh()
    for step in steps:
        batch = used(step)
        assert batch.shape == (sequences, length + 1)
        assert batch.dtype == np.int64
        assert np.array_equal(batch, fresh()(step))
        assert (np.diff(batch, axis=1) == 1).all(), "targets are the inputs shifted by one"


@given(**SIZES, seed=st.integers(0, 2**31))
def test_every_epoch_visits_each_window_once(
    tokens: int, length: int, sequences: int, seed: int
) -> None:
    batches = Batches(np.arange(tokens), context_length=length, sequences=sequences, seed=seed)
    steps = math.ceil(2 * batches.windows / sequences)
    starts = np.concatenate([batches(step)[:, 0] for step in range(steps)])
    for epoch in range(2):
        visited = np.sort(starts[epoch * batches.windows : (epoch + 1) * batches.windows])
        assert (np.diff(visited) == length).all()
        assert visited[0] < length
        assert visited[-1] + length < tokens
    assert batches.windows * length > tokens - 2 * length


def test_seeds_and_epochs_order_the_windows_differently() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(np.arange(1000), context_length=10, sequences=99, seed=seed)
        return batches(epoch)[:, 0].tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(first != second for i, first in enumerate(orders) for second in orders[:i])


def test_a_corpus_shorter_than_two_contexts_is_refused() -> None:
    tokens = np.zeros(255, dtype=np.uint16)
    with pytest.raises(InputError, match=r"at least 256 tokens .* of 128, .* has 255; give more"):
        Batches(tokens, context_length=128, sequences=1, seed=0)


@given(
    **SIZES,
    seed=st.integers(0, 2**31),
    kills=st.lists(st.integers(1, 120), max_size=4, unique=True),
)
def test_a_resume_goes_on_where_it_stopped_and_never_loops_over_the_tail(
    tokens: int, length: int, sequences: int, seed: int, kills: list[int]
) -> None:
    def fresh() -> Batches:
        return Batches(np.arange(tokens), context_length=length, sequences=sequences, seed=seed)

    windows = fresh().windows
    steps = max([3 * windows // sequences, *kills])
    visits: list[int] = []
    for begin, end in itertools.pairwise([0, *sorted(kills), steps]):
        batches = fresh()  # what a process that starts again has
        visits += [int(row[0]) for step in range(begin, end) for row in batches(step)]
    uninterrupted = fresh()
    assert visits == [int(row[0]) for step in range(steps) for row in uninterrupted(step)]
    for epoch in range(len(visits) // windows):
        whole = visits[epoch * windows : (epoch + 1) * windows]
        assert len(set(whole)) == windows, "every window once, before any comes again"


@given(**SIZES, steps=st.integers(1, 100))
def test_repeated_data_is_counted(tokens: int, length: int, sequences: int, steps: int) -> None:
    batches = Batches(np.arange(tokens), context_length=length, sequences=sequences, seed=0)
    visited = {int(token) for step in range(steps) for token in batches(step)[:, :-1].flatten()}
    corpus = corpus_of(tokens)
    seen = corpus.seen(steps * sequences * length)
    assert seen["unique_tokens"] == pytest.approx(len(visited), abs=2 * length)
    epochs = steps * sequences / batches.windows
    assert seen["epochs"] == pytest.approx(epochs, rel=2 * length / tokens)


def corpus_of(tokens: int) -> Corpus:
    """The record of a corpus of so many training tokens."""
    words = ("folder", "name", "source", "sha256", "split", "tokenizer")
    numbers = ("documents", "vocab_size", "tokens_validation", "bytes_per_token", "truncated")
    return Corpus(**dict.fromkeys(words, ""), **dict.fromkeys(numbers, 0), tokens_train=tokens)  # type: ignore[arg-type]
