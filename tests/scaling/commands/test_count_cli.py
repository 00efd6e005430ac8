"""The ``count`` command: a stable object, a table, and errors of one line."""

import json

import pytest
from typer.testing import CliRunner

from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.search.cli import app
from support.command import shapelaw
from support.shapes import GOLDEN

KEYS = {
    *("model_type", "n_total", "n_active", "n_non_embedding", "n_active_non_embedding"),
    *("flops_forward_per_token", "kv_bytes_per_token", "kv_bytes_per_token_local", "local_window"),
}
GOLDEN_MODELS = [
    model
    for model in json.loads((GOLDEN / "architectures.json").read_text(encoding="utf-8"))
    if model["model_type"] in FAMILIES
]
BIDIRECTIONAL = {"LLaDA-8B", "Dream-v0-7B"}  # their FLOPs are those of attention to all tokens


@pytest.fixture
def config(tmp_path):
    def write(**fields):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        return path

    return write


def count(path, *options):
    done = CliRunner().invoke(app, ["count", str(path), *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done


def test_json_of_gpt2_has_the_stable_keys_and_the_counted_numbers(config):
    done = count(config(model_type="gpt2"), "--context", "1024", "--json")
    document = json.loads(done.stdout)
    assert document.pop("schema_version") == 1
    d, layers, vocabulary = 768, 12, 50_257
    body = layers * (12 * d * d + 13 * d) + 2 * d
    assert document == {
        "model_type": "gpt2",
        "n_total": body + (vocabulary + 1024) * d,
        "n_active": body + (vocabulary + 1024) * d,
        "n_non_embedding": body,
        "n_active_non_embedding": body,
        "flops_forward_per_token": 2 * (layers * 12 * d * d + vocabulary * d)
        + layers * 4 * d * 1025 // 2,
        "kv_bytes_per_token": layers * 2 * d * 2,
        "kv_bytes_per_token_local": 0,
        "local_window": None,
    }
    assert set(document) == KEYS
    assert not done.stderr


@pytest.mark.parametrize("model", GOLDEN_MODELS, ids=lambda model: model["name"])
def test_json_of_a_published_config_has_the_known_integers(config, model):
    path = config(model_type=model["model_type"], **model["hf_config"])
    document = json.loads(count(path, "--context", str(model["flops_context"]), "--json").stdout)
    plain = ("n_total", "n_active", "n_non_embedding", "n_active_non_embedding", "local_window")
    known = {name: model[name] for name in plain}
    known["kv_bytes_per_token"] = model["kv_bytes_per_token_bf16"]
    known["kv_bytes_per_token_local"] = model["kv_bytes_per_token_bf16_local"]
    if model["name"] not in BIDIRECTIONAL:
        known["flops_forward_per_token"] = model["flops_forward_per_token"]
    assert document | known == document


def test_flops_grow_with_the_context_and_parameters_do_not(config):
    path = config(model_type="llama")
    short, long = (json.loads(count(path, "--context", n, "--json").stdout) for n in ("2", "4096"))
    attention = 32 * 4 * 4096
    grown = long.pop("flops_forward_per_token") - short.pop("flops_forward_per_token")
    assert grown == attention * (4097 - 3) / 2
    assert short == long


def test_a_table_without_json_shows_the_same_numbers(config):
    shown = count(config(model_type="gpt2")).stdout
    assert "124439808" in shown
    assert "kv_bytes_per_token" in shown


def test_layers_with_a_window_are_named_on_stderr(config):
    done = count(config(model_type="gemma3_text", sliding_window=512), "--json")
    document = json.loads(done.stdout)
    full, local = 4, 22
    assert document["kv_bytes_per_token"] == full * 2 * 4 * 256 * 2
    assert f"{local * 2 * 4 * 256 * 2:,} more cache bytes" in done.stderr
    mistral = count(config(model_type="mistral"), "--json")
    windowed = json.loads(mistral.stdout)
    assert windowed["kv_bytes_per_token"] == 32 * 2 * 8 * 128 * 2
    assert windowed["kv_bytes_per_token_local"] == windowed["kv_bytes_per_token"]
    assert windowed["local_window"] == 4096
    assert "every layer keeps at most 4,096 tokens" in mistral.stderr


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({"model_type": "falcon"}, (), "got 'falcon'"),
        ({}, (), "got 'None'"),
        ({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 6}, (), "for llama"),
        ({"model_type": "llama", "rope_parameters": "abc"}, (), "must be an object"),
        ({"model_type": "llama"}, ("--context", "0"), "`--context` must be between 1 and"),
    ],
)
def test_a_config_that_cannot_be_counted_ends_in_one_line_and_exit_code_2(
    config, fields, options, said
):
    done = shapelaw("count", config(**fields), *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) <= 320
    assert not done.stdout
