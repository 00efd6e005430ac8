import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.encoding import Encoding, byte_encoding, load_encoding
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.models.gguf import export_gguf
from shapelaw.trainers.models.transformer import Transformer
from support.exported_models import LENGTH, SHAPE, exported

TEXT = "A quick fox, na\u00efve"
FORMS = {
    "qwen3": {"head_dim": 32},
    "llama": {"head_dim": 32, "qk_norm": False},
    "llama, untied": {"head_dim": 16, "qk_norm": False, "tie_word_embeddings": False},
}


def next_token(path: Path, text: str) -> dict[int, float]:
    """Return llama.cpp's log-probability of every token after a text."""
    llama = pytest.importorskip("xllamacpp", reason="needs xllamacpp, llama.cpp as a package")
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 256, 1, 1
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.verbosity = False, 0
    request = {  # the bias selects a printable token; log-probabilities are without bias
        "prompt": text, "max_tokens": 1, "logprobs": 1000, "n_probs": 1000,
        "logit_bias": [["a", 1000.0]], "temperature": 0, "cache_prompt": False,
    }  # fmt: skip
    answer = llama.Server(settings).handle_completions(request)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    return {entry["id"]: entry["logprob"] for entry in token["top_logprobs"]}


def model_log_probabilities(model: Transformer, folder: Path) -> torch.Tensor:
    """Return the log-probabilities after a text as the exported Hugging Face tokenizer reads it."""
    tokens = torch.tensor([AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]])
    with torch.inference_mode():
        return model.logits(model(tokens))[0, -1].log_softmax(dim=-1)


def assert_same_log_probabilities(folder: Path, shape: Shape, encoding: Encoding) -> None:
    model = exported(folder, shape, encoding)
    export_gguf(folder, folder / "model.gguf")
    log_probabilities, wanted = (
        next_token(folder / "model.gguf", TEXT),
        model_log_probabilities(model, folder),
    )
    assert len(log_probabilities) == encoding.vocab_size
    assert wanted.std() > 0.1
    for token, value in log_probabilities.items():
        assert value == pytest.approx(float(wanted[token]), abs=1e-3), token


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_llama_cpp_gives_the_probabilities_of_the_exported_model(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    pytest.importorskip("gguf", reason="needs gguf")
    assert_same_log_probabilities(
        tmp_path, replace(SHAPE, hidden_size=32, **changes), byte_encoding()
    )  # type: ignore[arg-type]


@pytest.mark.slow
def test_llama_cpp_gives_the_tokens_of_the_trained_tokenizer(
    tmp_path: Path, text_folder: Path
) -> None:
    pytest.importorskip("gguf", reason="needs gguf")
    prepare(str(text_folder), tmp_path / "corpus", vocab_size=400)
    encoding = load_encoding(tmp_path / "corpus")
    shape = replace(SHAPE, hidden_size=32, head_dim=32, vocab_size=encoding.vocab_size)
    assert_same_log_probabilities(tmp_path / "run", shape, encoding)


@pytest.mark.slow
def test_gguf_metadata_equals_the_config(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    model = exported(tmp_path, SHAPE, byte_encoding())
    export_gguf(tmp_path, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "qwen3"
    assert value["qwen3.context_length"] == LENGTH
    assert value["qwen3.attention.head_count_kv"] == SHAPE.num_key_value_heads
    assert value["tokenizer.ggml.bos_token_id"] == 0
    assert value["tokenizer.ggml.add_bos_token"] is False
    assert len(value["tokenizer.ggml.tokens"]) == 256
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == model.shape.n_total


@pytest.mark.slow
def test_an_export_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf")
    exported(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        export_gguf(tmp_path, tmp_path / "model.gguf")


def test_missing_gguf_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        InputError,
        match=r'a GGUF file needs gguf .*install it by `pip install "shapelaw\[llamacpp\]"`',
    ):
        export_gguf(tmp_path, tmp_path / "model.gguf")
