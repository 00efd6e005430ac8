import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.next_token import token_losses
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.checkpoint import Progress, resume, save

torch.set_num_threads(1)
SHAPE = Shape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, vocab_size=50, qk_norm=True,
)  # fmt: skip
RECIPE = Recipe(context_length=8, sequences=2)
PROGRESS = Progress(step=3, seconds=1.25, identity="this run")


def trained(seed: int = 0, steps: int = 3, shape: Shape = SHAPE) -> tuple[Transformer, Optimizer]:
    model = Transformer(shape, context_length=8)
    model.initialise(seed)
    optimizer = Optimizer(model, RECIPE, 10)
    for step in range(steps):
        batch = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(step))
        token_losses(model, batch, RECIPE).mean().backward()
        optimizer.step(step)
    return model, optimizer


def everything(model: Transformer, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in (model.state_dict() | optimizer.state()).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_restores_weights_state_and_progress(tmp_path: Path, tied: bool) -> None:
    shape = replace(SHAPE, tie_word_embeddings=tied)
    model, optimizer = trained(shape=shape)
    save(tmp_path / "c.safetensors", model, optimizer, PROGRESS)
    other, fresh = trained(seed=8, steps=1, shape=shape)
    assert resume(tmp_path / "c.safetensors", other, fresh, "this run") == PROGRESS
    assert same(everything(other, fresh), everything(model, optimizer))
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_tied_head_stays_tied_after_a_resume(tmp_path: Path) -> None:
    model, optimizer = trained()
    save(tmp_path / "c.safetensors", model, optimizer, PROGRESS)
    other, fresh = trained(seed=8)
    resume(tmp_path / "c.safetensors", other, fresh, "this run")
    assert other.lm_head.weight is other.embed_tokens.weight
    names = load_file(tmp_path / "c.safetensors")
    assert "model.lm_head.weight" not in names


def damage_nothing_there(path: Path) -> None:
    path.unlink()


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_garbage(path: Path) -> None:
    path.write_bytes(b"not a checkpoint" * 100)


def damage_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20:40] = b"\xff" * 20
    path.write_bytes(bytes(content))


def damage_no_progress(path: Path) -> None:
    save_file(load_file(path), path)


def damage_progress_of_other_fields(path: Path) -> None:
    save_file(load_file(path), path, {"progress": json.dumps({"epoch": 3})})


def damage_progress_not_json(path: Path) -> None:
    save_file(load_file(path), path, {"progress": "{"})


DAMAGES = [
    damage_nothing_there, damage_empty, damage_garbage, damage_header, damage_no_progress,
    damage_progress_of_other_fields, damage_progress_not_json,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=[each.__name__ for each in DAMAGES])
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "c.safetensors"
    save(path, *trained(), PROGRESS)
    damage(path)  # type: ignore[operator]
    model, optimizer = trained(seed=8)
    before = everything(model, optimizer)
    found = resume(path, model, optimizer, "this run")
    assert found == Progress(step=0, seconds=0.0, identity="this run")
    assert same(everything(model, optimizer), before)


@settings(max_examples=40)
@given(where=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
def test_a_checkpoint_with_any_flipped_bit_is_not_used_and_it_is_said(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "c.safetensors"
    save(path, *trained(), PROGRESS)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    model, optimizer = trained(seed=8)
    before = everything(model, optimizer)
    said: list[str] = []
    assert resume(path, model, optimizer, "this run", tell=said.append).step == 0
    assert same(everything(model, optimizer), before)
    assert len(said) == 1
    assert re.search(r"c\.safetensors is damaged .*; the run begins again at step 0", said[0])


def test_nothing_is_said_of_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    said: list[str] = []
    resume(tmp_path / "c.safetensors", *trained(), "this run", tell=said.append)
    assert said == []


def test_a_damaged_checkpoint_is_reported_on_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"")
    resume(tmp_path / "c.safetensors", *trained(), "this run")
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_checkpoint_cut_off_anywhere_is_not_used(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.safetensors"
    save(path, *trained(), PROGRESS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    model, optimizer = trained(seed=8)
    before = everything(model, optimizer)
    assert resume(path, model, optimizer, "this run").step == 0
    assert same(everything(model, optimizer), before)


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, *trained(), PROGRESS)
    model, optimizer = trained(seed=8)
    before = everything(model, optimizer)
    said: list[str] = []
    assert resume(path, model, optimizer, "another run", tell=said.append).step == 0
    assert "of a run with other settings" in said[0]
    assert same(everything(model, optimizer), before)


def test_a_full_disk_keeps_the_last_checkpoint_and_is_a_work_error(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained()
    save(path, model, optimizer, PROGRESS)
    before = path.read_bytes()
    with (
        files_limited_to(4000),
        pytest.raises(WorkError, match=r"c\.safetensors could not be written .* free space"),
    ):
        save(path, model, optimizer, replace(PROGRESS, step=4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained()
    save(path, model, optimizer, PROGRESS)
    before = path.read_bytes()

    def half(_tensors: object, target: Path, _metadata: object) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save(path, model, optimizer, replace(PROGRESS, step=4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
