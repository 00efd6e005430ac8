"""Encodings of single texts: bytes, or a tokenizer.json of the tokenizers library.

In the byte encoding, byte b is token b. Byte 0 separates documents and is a special token, which
text never contains. Training text is ``text separator text``, so that a single text is scored and
generated after one separator.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Required, TypedDict

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import MAX_JSON_BYTES, read_bytes, read_json
from shapelaw.scaling.schema import Within, conform

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = "bytes"
NUL = "\0"
TOKENIZER_FILE = "tokenizer.json"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", NUL)  # names of separators


TokenNumber = Annotated[int, Within(0, 2**24)]  # over ten times those of the largest vocabularies


class AddedToken(TypedDict):
    """Token beside the model's vocabulary."""

    id: TokenNumber
    content: str


class TokenizerModel(TypedDict, total=False):
    """Vocabulary: texts with their numbers, or in their order with log-probabilities (Unigram)."""

    type: str
    vocab: Required[dict[str, TokenNumber] | list[tuple[str, float]]]


class TokenizerDocument(TypedDict):
    """Parts of ``tokenizer.json`` that decide on sizes; the library checks all the others."""

    added_tokens: list[AddedToken]
    model: TokenizerModel


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Tokenizer for single texts.

    ``encode`` returns the tokens of a text, (count,) int64, without a separator. ``separator`` is
    the token between documents and ``separator_text`` its text. ``document`` is the content of
    ``tokenizer.json`` as the tokenizers library writes it.
    """

    name: str
    vocab_size: int
    separator: int
    separator_text: str
    encode: Callable[[str], np.ndarray]
    document: str


def byte_encoding() -> Encoding:
    """Return the encoding with one token per byte of UTF-8."""
    document = json.dumps(_byte_document(), indent=1, ensure_ascii=True)
    return Encoding(
        name=BYTES,
        vocab_size=256,
        separator=0,
        separator_text=NUL,
        encode=_encode_bytes,
        document=document + "\n",
    )


def _encode_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


def byte_letters() -> list[str]:
    """Return the visible character by which GPT-2's byte-level alphabet writes each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def _byte_document() -> dict[str, Any]:
    """Write a byte-level BPE without merges, in the numbering of the bytes.

    Zero bytes become the special token before the alphabet is applied, so that the letter of byte 0
    can occur in ordinary text.
    """
    level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    vocabulary = {NUL: 0} | {letter: byte for byte, letter in enumerate(byte_letters()) if byte}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": NUL, **special, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **level},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **level},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def load_encoding(folder: Path) -> Encoding:
    """Load the encoding of a prepared corpus, or of an exported model with its tokenizer.

    Raises
    ------
    InputError
        The folder has no tokenizer, or its tokenizer has no token between documents.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        about = folder / "corpus.json"
        if about.exists() and read_json(about).get("tokenizer") == BYTES:
            return byte_encoding()
        raise InputError(
            f"{folder} has no {TOKENIZER_FILE}; give the folder of the corpus that the model was "
            "trained on"
        )
    content = read_bytes(path, MAX_JSON_BYTES)
    if content == byte_encoding().document.encode():
        return byte_encoding()
    return _library_encoding(path, content.decode(errors="replace"))


def _library_encoding(path: Path, document: str) -> Encoding:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer, separator_text, separator = open_tokenizer(path)

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    return Encoding(
        name=str(path),
        vocab_size=tokenizer.get_vocab_size(),
        separator=separator,
        separator_text=separator_text,
        encode=encode,
        document=document,
    )


def open_tokenizer(path: Path) -> "tuple[Tokenizer, str, int]":
    """Open a ``tokenizer.json`` and find the text and the id of its separator.

    Raises
    ------
    InputError
        The library cannot read the file, or it has no token that ends a text.
    """
    from tokenizers import Tokenizer

    try:
        conform(read_json(path), TokenizerDocument)
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and panics of Rust
        raise InputError(
            f"{path} is no tokenizer that can be read ({error}); give the tokenizer.json that "
            "`tokenizers` or transformers saved, or prepare the corpus again"
        ) from None
    for text in ENDS:
        if (token := tokenizer.token_to_id(text)) is not None:
            return tokenizer, text, token
    raise InputError(
        f"the tokenizer {path} has no token that ends a text: one of {', '.join(ENDS[:-1])} "
        "must be in its vocabulary; add it with `tokenizer.add_special_tokens`"
    )
