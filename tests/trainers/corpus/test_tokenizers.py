"""Tokenizers that are loaded, and vocabularies beyond 16 bits."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import sha256
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.options import CorpusOptions
from shapelaw.trainers.corpus.preparation import prepare_from_options
from support.mixtures import END, written


def saved(path: Path, *, words: int = 0, end: str | None = END) -> Path:
    """A tokenizer of numbered words and bytes, with a token that ends a text."""
    vocabulary = {
        letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())
    }
    vocabulary |= {f"word{number}": 256 + number for number in range(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if end is not None:
        tokenizer.add_special_tokens([end])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


@pytest.fixture
def text(tmp_path: Path) -> str:
    return written(tmp_path / "red.txt", "red")


@pytest.mark.parametrize("end", [END, "<|end_of_text|>", "</s>", "<eos>"])
def test_a_loaded_tokenizer_is_kept_and_named_with_its_hash(
    tmp_path: Path, text: str, end: str
) -> None:
    file = saved(tmp_path / "small-words" / "tokenizer.json", end=end)
    options = CorpusOptions(corpus=text, tokenizer=str(file.parent))
    corpus = prepare_from_options(options, tmp_path / "out")
    assert corpus.tokenizer == f"small-words:{sha256(file)[:12]}"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == file.read_bytes()
    assert corpus.vocab_size == 257
    tokens = corpus.train_shard()
    ends = np.flatnonzero(tokens.tokens == Tokenizer.from_file(str(file)).token_to_id(end))
    assert tokens.starts.tolist() == [0, *(ends + 1).tolist()]
    assert prepare_from_options(options, tmp_path / "out") == corpus


def test_another_tokenizer_is_another_corpus(tmp_path: Path, text: str) -> None:
    first, other = (
        str(saved(tmp_path / f"{name}.json", words=n)) for name, n in (("a", 0), ("b", 1))
    )
    corpus = prepare_from_options(CorpusOptions(corpus=text, tokenizer=first), tmp_path / "out")
    assert corpus.tokenizer.startswith("a:")
    for options in ({"tokenizer": other}, {"vocab_size": 300}, {}):
        with pytest.raises(InputError, match="choose another --out folder"):
            prepare_from_options(CorpusOptions(corpus=text, **options), tmp_path / "out")


def test_separator_text_inside_a_document_does_not_end_it(tmp_path: Path) -> None:
    rows = [{"text": f"{number} he wrote {END} and went on " * 20} for number in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = saved(tmp_path / "words.json")
    options = CorpusOptions(corpus=str(tmp_path / "text.jsonl"), tokenizer=str(file))
    shard = prepare_from_options(options, tmp_path / "out").train_shard()
    assert (shard.tokens == Tokenizer.from_file(str(file)).token_to_id(END)).sum() == 53
    assert len(shard.starts) == 54


@pytest.mark.parametrize(("words", "kind"), [(65_279, np.uint16), (65_280, np.uint32)])
def test_a_vocabulary_beyond_sixteen_bits_takes_thirty_two(
    tmp_path: Path, text: str, words: int, kind: type
) -> None:
    file = saved(tmp_path / "large.json", words=words)
    options = CorpusOptions(corpus=text, tokenizer=str(file))
    corpus = prepare_from_options(options, tmp_path / "out")
    assert corpus.vocab_size == words + 257
    assert corpus.train().dtype == kind
    end = words + 256
    assert corpus.train().max() == end, "the separator is the last token of the vocabulary"
    assert np.array_equal(Corpus.load(tmp_path / "out").train(), corpus.train())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"lost\.json does not exist; give a tokenizer\.json or the folder of one"),
        ("{}", r"lost\.json is no tokenizer that can be read \(.*`tokenizers` or transformers"),
        ("half {", r"lost\.json is no tokenizer that can be read"),
    ],
)
def test_a_broken_tokenizer_is_refused_before_the_text_is_read(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "lost.json").write_text(content)
    options = CorpusOptions(corpus="no such text", tokenizer=str(tmp_path / "lost.json"))
    with pytest.raises(InputError, match=words):
        prepare_from_options(options, tmp_path / "out")


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path: Path, text: str) -> None:
    file = saved(tmp_path / "endless.json", end=None)
    with pytest.raises(InputError, match=r"endless.* has no token that ends a text: one of"):
        prepare_from_options(CorpusOptions(corpus=text, tokenizer=str(file)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_trained_or_loaded_but_not_both() -> None:
    with pytest.raises(InputError, match=r"either --vocab 300 .* or --tokenizer a\.json .* both"):
        CorpusOptions(vocab_size=300, tokenizer="a.json")


@pytest.mark.parametrize("tokens", [20_000, 31_415])
@pytest.mark.parametrize("tokenizer", [None, "words.json"])
def test_a_number_of_tokens_is_met_exactly_and_recorded(
    tmp_path: Path, text: str, tokens: int, tokenizer: str | None
) -> None:
    whole = prepare_from_options(CorpusOptions(corpus=text), tmp_path / "whole")
    path = None if tokenizer is None else str(saved(tmp_path / tokenizer))
    options = CorpusOptions(corpus=text, tokenizer=path, tokens=tokens)
    corpus = prepare_from_options(options, tmp_path / "out")
    assert corpus.tokens_train == len(corpus.train()) == tokens < whole.tokens_train
    assert corpus.sha256 != whole.sha256
    (part,) = corpus.parts
    assert part.documents == len(corpus.train_shard().starts)
    assert part.bytes - 1000 < tokens <= part.bytes + part.documents < whole.tokens_train
    assert corpus.train_shard().starts[-1] < tokens


def test_more_tokens_than_there_are_give_all(tmp_path: Path, text: str) -> None:
    whole = prepare_from_options(CorpusOptions(corpus=text), tmp_path / "whole")
    options = CorpusOptions(corpus=text, tokens=10**7)
    assert np.array_equal(prepare_from_options(options, tmp_path / "out").train(), whole.train())


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="`--corpus-tokens >= 20000` must hold, but got 500"):
        CorpusOptions.from_command(corpus_tokens="500")
