import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.encoding import byte_encoding, byte_letters, load_encoding
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.models.hugging_face import export, hugging_face_weights, load_export
from support.exported_models import LENGTH, SHAPE, exported, randomised_model
from support.random_models import model_of

torch.set_num_threads(1)
FORMS = {
    "llama": {"qk_norm": False},
    "llama, untied": {"qk_norm": False, "tie_word_embeddings": False},
    "llama, one key-value head of 16": {
        "qk_norm": False, "num_key_value_heads": 1, "head_dim": 16,
    },
    "qwen3": {},
    "qwen3, untied": {"tie_word_embeddings": False},
    "qwen3, ungrouped heads of 4": {"num_key_value_heads": 4, "head_dim": 4},
    "qwen3, one head of 32": {
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    },
    "qwen3, small rope base": {"rope_theta": 500.0},
}  # fmt: skip
TEXTS = (
    "Hello, wörld\n\t 🎉", " a space before and after ", "Ā is the letter of byte 0",
    "\r\n\x01\x7f", "<|endoftext|>", "e\u0301 ﬁ Å", "", "'s don't  two   three",
)  # fmt: skip


@pytest.fixture(scope="session")
def pairs(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus with a BPE of 400 tokens."""
    folder = tmp_path_factory.mktemp("bpe") / "corpus"
    prepare(str(text_folder), folder, vocab_size=400)
    return folder


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_exported_folder_gives_the_same_logits_in_transformers(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    shape = replace(SHAPE, **changes)  # type: ignore[arg-type]
    model = exported(tmp_path, shape, byte_encoding())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer("The quick brown fox", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted, got = model.logits(model(tokens)), loaded(tokens).logits
    assert wanted.std() > 0.1
    assert torch.allclose(got, wanted, rtol=0, atol=1e-4)
    assert type(loaded).__name__.startswith("Qwen3" if shape.qk_norm else "Llama")
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == shape.tie_word_embeddings


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_a_loaded_export_has_the_weights_and_logits_of_the_model(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    model = exported(tmp_path, replace(SHAPE, **changes))  # type: ignore[arg-type]
    loaded = load_export(tmp_path)
    assert loaded.shape == model.shape
    assert loaded.context_length == model.context_length
    for (name, old), (_, new) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert torch.equal(old, new), name


def test_byte_tokenizer_in_transformers_gives_the_bytes_of_the_text(tmp_path: Path) -> None:
    exported(tmp_path, tokenizer=byte_encoding())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 256
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text


def test_a_zero_byte_is_the_special_token_and_is_skipped_on_request(tmp_path: Path) -> None:
    exported(tmp_path, tokenizer=byte_encoding())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("a\0b\0\0c")["input_ids"]
    assert ids == [97, 0, 98, 0, 0, 99]
    assert tokenizer.decode(ids) == "a\0b\0\0c"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abc"


@given(text=st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_survives_a_round_trip_through_the_byte_tokenizer(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(byte_encoding().document)
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode()) == byte_encoding().encode(text).tolist()
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_byte_letters_equal_those_of_the_tokenizers_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_letters()) == sorted(ByteLevel.alphabet())
    assert byte_letters()[ord("A")] == "A"
    assert byte_letters()[ord(" ")] == "Ġ"


def test_a_trained_tokenizer_is_exported_with_its_token_ids(tmp_path: Path, pairs: Path) -> None:
    encoding = load_encoding(pairs)
    shape = replace(SHAPE, vocab_size=encoding.vocab_size)
    exported(tmp_path, shape, encoding)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 400
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == encoding.separator
    for text in (*TEXTS[:4], "def parse(self, text):\n    return None"):
        ids = tokenizer(text)["input_ids"]
        assert ids == encoding.encode(text).tolist()
        assert tokenizer.decode(ids) == text
    kept = load_encoding(tmp_path)
    assert kept.encode("import os").tolist() == encoding.encode("import os").tolist()


def test_exported_configs_name_the_separator_as_end_of_text(tmp_path: Path) -> None:
    exported(tmp_path / "bytes", tokenizer=byte_encoding())
    exported(tmp_path / "none")
    for folder, end in (("bytes", 0), ("none", None)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert model.config.eos_token_id == model.config.bos_token_id == end
        assert model.generation_config.eos_token_id == end
    assert not (tmp_path / "none" / "tokenizer.json").exists()


def test_transformers_generates_what_the_model_predicts(tmp_path: Path) -> None:
    model = exported(tmp_path, tokenizer=byte_encoding())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[0, *b"import "]])
    got = loaded.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4,
                          do_sample=False, eos_token_id=None)[0]  # fmt: skip
    with torch.inference_mode():
        for _ in range(4):
            best = model.logits(model(tokens))[:, -1:].argmax(dim=-1)
            tokens = torch.cat((tokens, best), dim=1)
    assert got.tolist() == tokens[0].tolist()


def test_a_corpus_of_bytes_has_the_byte_encoding(tmp_path: Path, text_folder: Path) -> None:
    prepare(str(text_folder), tmp_path / "corpus")
    encoding = load_encoding(tmp_path / "corpus")
    assert (encoding.name, encoding.vocab_size, encoding.separator) == ("bytes", 256, 0)
    exported(tmp_path / "run", tokenizer=encoding)
    assert load_encoding(tmp_path / "run").name == "bytes"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json; give the folder of the corpus"):
        load_encoding(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no tokenizer .* or prepare the corpus again"):
        load_encoding(tmp_path)


def test_a_tokenizer_without_a_separator_is_refused(tmp_path: Path) -> None:
    document = json.loads(byte_encoding().document)
    document["added_tokens"] = []
    document["model"]["vocab"] = {"x": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="has no token that ends a text: one of"):
        load_encoding(tmp_path)


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(InputError, match=r"must hold `model\.layers\.0\.mlp\.gate_proj\.weight` of "
                       r"shape \(32, 16\) as config\.json says, but has \(24, 16\)"):  # fmt: skip
        load_export(tmp_path)


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"must hold `model\.norm\.weight` .* but has none"):
        load_export(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load_export(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_has_the_names_and_pieces_of_hugging_face(tmp_path: Path, tied: bool) -> None:
    model = exported(tmp_path / "deep" / "run", replace(SHAPE, tie_word_embeddings=tied))
    written = load_file(tmp_path / "deep" / "run" / "model.safetensors")
    attention = {f"{letter}_proj": "weight" for letter in "qkvo"} | {"q_norm": "", "k_norm": ""}
    wanted = {"model.embed_tokens.weight", "model.norm.weight"} | (
        set() if tied else {"lm_head.weight"}
    )
    for layer in range(2):
        wanted |= {f"model.layers.{layer}.self_attn.{name}.weight" for name in attention}
        wanted |= {
            f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
        }
        wanted |= {
            f"model.layers.{layer}.{name}_layernorm.weight" for name in ("input", "post_attention")
        }
    assert set(written) == wanted
    assert sum(value.numel() for value in written.values()) == model.shape.n_total
    assert written["model.layers.0.self_attn.q_proj.weight"].shape == (32, 16)
    assert written["model.layers.0.self_attn.k_proj.weight"].shape == (16, 16)
    config = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert Shape.from_config(config) == model.shape
    assert config["max_position_embeddings"] == LENGTH


def test_exported_weights_are_copies() -> None:
    model = randomised_model(SHAPE)
    weights = hugging_face_weights(model)
    before = {name: value.clone() for name, value in weights.items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    for name, value in before.items():
        assert torch.equal(weights[name], value), name


@torch.inference_mode()
def test_exported_gemma_keeps_the_base_of_local_positions(tmp_path: Path) -> None:
    model = model_of("gemma3_text-cap", rope_local_base_freq=500.0)
    export(tmp_path, model, max_position_embeddings=256)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(97, (2, 37), generator=torch.Generator().manual_seed(1))
    assert loaded.config.rope_parameters["sliding_attention"]["rope_theta"] == 500.0
    expected = model.logits(model(tokens))
    torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=1e-5)
