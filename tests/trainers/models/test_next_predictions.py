"""Multi-token prediction: counts, losses from loops in float64, and training."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape_config import read_trainable
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.hugging_face import export, load_export
from shapelaw.trainers.models.next_predictions import add_predictions
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.next_token import NextToken
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.training.loop import build_model, train_run
from support.small_runs import RECIPE, Killed, killed_at, small_corpus, spec
from support.tiny_configs import TINY_CONFIGS

WIDTH, HEAD, VOCABULARY, THETA = 8, 4, 13, 10_000.0
TINY = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 6,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": HEAD,
    "rope_theta": THETA, "num_nextn_predict_layers": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip


def model_of(config: dict = TINY, weight: float = 0.3) -> Transformer:
    architecture = read_architecture(config)
    model = Transformer(architecture, context_length=32, attention="matmul")
    add_predictions(model, weight, attention="matmul")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.4, generator=generator)
    return model


def text(count: int = 11) -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, count), generator=torch.Generator().manual_seed(1))


def test_parameters_of_the_module_of_deepseek_v3_equal_the_published_integer() -> None:
    model = read_architecture({"model_type": "deepseek_v3", "num_nextn_predict_layers": 1})
    assert model.prediction_parameters == 11_610_067_968
    assert model.n_total == 671_026_404_352
    assert "11,610,067,968 parameters of training" in " ".join(model.notes)
    assert read_architecture(dict(model.fields) | {"model_type": "deepseek_v3"}) == model


def test_built_modules_have_the_counted_parameters() -> None:
    config = {**TINY_CONFIGS["deepseek_v3"], "model_type": "deepseek_v3"}
    model = model_of({**config, "num_nextn_predict_layers": 2})
    built = sum(weight.numel() for weight in model.next_predictions.parameters())
    assert built == model.architecture.prediction_parameters
    whole = sum(weight.numel() for weight in model.parameters())
    assert whole == built + model.architecture.n_total


def normed(vector: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(float((vector**2).mean()) + 1e-5) * weight


def turned(vector: np.ndarray, position: int) -> np.ndarray:
    out = vector.copy()
    for i in range(HEAD // 2):
        angle = position * THETA ** (-2 * i / HEAD)
        a, b = vector[i], vector[i + HEAD // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + HEAD // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def layer(rows: list[np.ndarray], weights: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """Compute a layer of Llama with two heads, one number of a token after another."""
    weight = {n.removeprefix(name): w for n, w in weights.items() if n.startswith(name)}
    fused = [weight["self_attn.qkv_proj.weight"] @ normed(x, weight["input_layernorm.weight"])
             for x in rows]  # fmt: skip
    after = []
    for t, x in enumerate(rows):
        mixed = []
        for head in range(2):
            part = slice(HEAD * head, HEAD * head + HEAD)
            query = turned(fused[t][:WIDTH][part], t)
            logits = [
                float(query @ turned(fused[s][WIDTH : 2 * WIDTH][part], s)) / HEAD**0.5
                for s in range(t + 1)
            ]
            shares = [math.exp(each - max(logits)) for each in logits]
            values = [fused[s][2 * WIDTH :][part] for s in range(t + 1)]
            mixed.append(sum(a * v for a, v in zip(shares, values, strict=True)) / sum(shares))
        y = x + weight["self_attn.o_proj.weight"] @ np.concatenate(mixed)
        both = weight["mlp.gate_up_proj.weight"] @ normed(
            y, weight["post_attention_layernorm.weight"]
        )
        gate, up = both[:6], both[6:]
        after.append(y + weight["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up))
    return after


def losses_by_loops(model: Transformer, tokens: np.ndarray) -> list[float]:
    """Compute the loss of both modules for one text, by equations 21 to 24 of arXiv 2412.19437."""
    weights = {n: w.detach().double().numpy() for n, w in model.named_parameters()}
    table = weights["embed_tokens.weight"]
    states = layer([table[t] for t in tokens[:-1]], weights, "layers.0.")
    states = [normed(x, weights["norm.weight"]) for x in states]
    losses = []
    for k in (1, 2):
        name = f"next_predictions.{k - 1}."
        merged = []
        for i in range(len(tokens) - 1 - k):
            later = normed(table[tokens[i + k]], weights[name + "embedding_norm.weight"])
            before = normed(states[i], weights[name + "hidden_norm.weight"])
            merged.append(weights[name + "merge.weight"] @ np.concatenate([later, before]))
        states = layer(merged, weights, name + "layer.")
        total = 0.0
        for i, x in enumerate(states):
            logits = weights["lm_head.weight"] @ normed(x, weights[name + "norm.weight"])
            total += math.log(np.exp(logits).sum()) - logits[tokens[i + k + 1]]
        losses.append(total / len(states))
    return losses


def test_losses_of_the_modules_equal_those_of_loops_in_float64() -> None:
    model, tokens = model_of(), text()
    found = [
        loss.item() for loss in model.next_predictions.losses(model, model(tokens[:, :-1]), tokens)
    ]
    each = [losses_by_loops(model, row) for row in tokens.numpy()]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4)


def test_gradient_is_that_of_the_weighted_sum_and_the_loss_that_of_the_next_token() -> None:
    model, tokens = model_of(weight=0.3), text()
    objective = NextToken(RECIPE)
    loss, _ = objective.loss(model, Batch(tokens), torch.Generator())
    loss.backward()
    together = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    hidden = model(tokens[:, :-1])
    plain = F.cross_entropy(model.logits(hidden).flatten(0, 1), tokens[:, 1:].flatten())
    further = torch.stack(model.next_predictions.losses(model, hidden, tokens)).mean()
    (plain + 0.3 * further).backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(together[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_forward_pass_and_held_out_losses_do_not_use_the_modules() -> None:
    model, tokens = model_of(), text()
    base = Transformer(model.architecture, context_length=32, attention="matmul")
    own = {n: w for n, w in model.state_dict().items() if not n.startswith("next_predictions")}
    base.load_state_dict(own)
    with torch.no_grad():
        assert torch.equal(model(tokens), base(tokens))
        losses = [NextToken(RECIPE).held_out_losses(each, Batch(tokens), torch.Generator())[0]
                  for each in (model, base)]  # fmt: skip
    assert torch.equal(*losses)


def test_initial_weights_of_the_model_are_those_without_the_modules() -> None:
    run = spec(shape=read_architecture(TINY), recipe=replace(RECIPE, mtp_weight=0.3))
    with_modules, without = build_model(run), build_model(replace(run, recipe=RECIPE))
    assert without.next_predictions is None
    for name, weight in without.named_parameters():
        assert torch.equal(with_modules.get_parameter(name), weight)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
def test_run_resumes_with_the_same_bits_and_exports_the_model_alone(
    family: str, optimizer: str, tmp_path: Path
) -> None:
    corpus = small_corpus(tmp_path / "text")
    config = {**TINY_CONFIGS[family], "model_type": family, "vocab_size": corpus.vocab_size}
    shape = read_trainable({**config, "num_nextn_predict_layers": 1})
    run = spec(shape=shape, recipe=replace(RECIPE, mtp_weight=0.3, optimizer=optimizer))
    wanted = train_run(run, corpus, tmp_path / "whole")[-1]
    with pytest.raises(Killed):
        train_run(run, corpus, tmp_path / "killed", watch=killed_at(5), checkpoint_seconds=0)
    got = train_run(run, corpus, tmp_path / "killed", checkpoint_seconds=0)[-1]
    free = train_run(
        replace(run, recipe=replace(run.recipe, mtp_weight=0.0)), corpus, tmp_path / "f"
    )
    assert got["loss"] == wanted["loss"] != free[-1]["loss"]
    assert not any(
        "next_predictions" in name for name in load_file(tmp_path / "whole" / "model.safetensors")
    )
    loaded = load_export(tmp_path / "whole")
    assert loaded.architecture.layers == shape.layers
    assert loaded.architecture.predictions == 0


def test_class_of_transformers_loads_the_exported_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = model_of()
    export(tmp_path, model, max_position_embeddings=32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(text()).logits, model.logits(model(text())), rtol=0, atol=1e-5
        )


def test_modules_of_a_family_whose_layers_share_keys_are_refused() -> None:
    config = {**TINY_CONFIGS["gemma3n_text"], "model_type": "gemma3n_text"}
    with pytest.raises(InputError, match="`num_nextn_predict_layers` must be 0 to train gemma3n"):
        model_of({**config, "num_nextn_predict_layers": 1})


@pytest.mark.parametrize("value", [-1, 1.5, "two"])
def test_number_of_modules_is_checked(value: object) -> None:
    with pytest.raises(InputError, match="`num_nextn_predict_layers` must be"):
        read_architecture(TINY | {"num_nextn_predict_layers": value})
