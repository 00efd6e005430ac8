"""Models with Canon layers in the training loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.loop import build_model, train_run
from support.small_runs import Killed, killed_at, small_corpus, spec
from support.tiny_configs import TINY_CONFIGS

PLACES = {
    "llama": "ABCD",
    "gpt2": "AC",
    "gemma3_text": "B",
    "deepseek_v3": "AC",
    "qwen3_moe": "ABC",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def model_of(family: str, corpus: Corpus, places: str) -> Transformer:
    config = {**TINY_CONFIGS[family], "model_type": family, "vocab_size": corpus.vocab_size}
    shape = read_architecture(config | ({"canon_set": places} if places else {}))
    return build_model(replace(spec(), shape=shape))


@pytest.mark.parametrize("family", PLACES)
def test_killed_run_with_canon_layers_ends_like_an_undisturbed_one(
    family: str, corpus: Corpus, tmp_path: Path
) -> None:
    run = replace(spec(), shape=model_of(family, corpus, PLACES[family]).architecture)
    wanted = train_run(run, corpus, tmp_path / "whole")[-1]
    with pytest.raises(Killed):
        train_run(run, corpus, tmp_path / "killed", watch=killed_at(5), checkpoint_seconds=0)
    got = train_run(run, corpus, tmp_path / "killed", checkpoint_seconds=0)[-1]
    assert got["loss"] == wanted["loss"]
    whole, killed = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    start, trained = build_model(run), load_export(tmp_path / "whole")
    taps = [name for name, _ in start.named_parameters() if "canon" in name]
    assert len(taps) == len(PLACES[family]) * len(start.layers)
    for name in taps:
        assert not torch.equal(trained.get_parameter(name), start.get_parameter(name))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_taps_of_canon_layers_are_updated_as_vectors_without_decay(
    optimizer: str, corpus: Corpus
) -> None:
    model = model_of("llama", corpus, "ABCD")
    taps = {id(weight) for name, weight in model.named_parameters() if "canon" in name}
    parts = Optimizer(model, Recipe(optimizer=optimizer), 10).parts
    decays = {
        part.param_groups[0]["weight_decay"]
        for part in parts
        for weight in part.param_groups[0]["params"]
        if id(weight) in taps
    }
    assert decays == {0.0}


def test_first_loss_with_zero_taps_is_that_of_the_model_without_canon(corpus: Corpus) -> None:
    model, base = (model_of("llama", corpus, places) for places in ("ABCD", ""))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "canon" in name:
                weight.zero_()
    base.load_state_dict({n: w for n, w in model.state_dict().items() if "canon" not in n})
    tokens = torch.randint(corpus.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.logits(model(tokens)), base.logits(base(tokens)))


def test_trained_canon_model_reads_no_later_token(corpus: Corpus, tmp_path: Path) -> None:
    run = replace(spec(), shape=model_of("llama", corpus, "ABCD").architecture)
    train_run(run, corpus, tmp_path)
    model = load_export(tmp_path)
    with torch.no_grad():
        tokens = torch.randint(corpus.vocab_size, (2, 12))
        other = tokens.clone()
        other[:, 7] = (other[:, 7] + 1) % corpus.vocab_size
        apart = (model(tokens) - model(other)).abs().amax(dim=(0, 2))
    assert apart[:7].max() == 0
    assert apart[7:].min() > 0


@torch.no_grad()
@pytest.mark.parametrize("places", ["A", "B", "C", "D", "ABCD"])
def test_document_does_not_depend_on_the_one_packed_before_it(places: str, corpus: Corpus) -> None:
    """Without numbers of documents the convolutions reach across the border (the control)."""
    model = model_of("llama", corpus, places).eval()
    generator = torch.Generator().manual_seed(4)
    first, other, second = (
        torch.randint(corpus.vocab_size, (1, 6), generator=generator) for _ in range(3)
    )
    documents = torch.tensor([[0] * 6 + [1] * 6])
    packed = [torch.cat((before, second), dim=1) for before in (first, other)]
    apart = [model(tokens, documents=documents)[:, 6:] for tokens in packed]
    assert torch.equal(*apart)
    leaking = [model(tokens)[:, 6:] for tokens in packed]
    assert not torch.allclose(*leaking)
