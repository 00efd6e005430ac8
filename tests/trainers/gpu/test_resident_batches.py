from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.gpu import resident_batches
from shapelaw.trainers.gpu.resident_batches import ResidentBatches, ResidentTokens, resident
from shapelaw.trainers.training.device import device_named

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def shard(count: int, dtype: str) -> np.ndarray:
    top = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, top, size=count, endpoint=True, dtype=dtype)
    values[:2] = 0, top
    return values


@given(
    count=st.integers(40, 400),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "int64"]),
    seed=st.integers(0, 9),
    step=st.integers(0, 500),
    sequences=st.integers(1, 5),
)
def test_batches_on_any_device_equal_those_of_the_corpus(
    count: int, dtype: str, seed: int, step: int, sequences: int
) -> None:
    tokens = shard(count, dtype)
    order = {"context_length": 16, "sequences": sequences, "seed": seed}
    wanted = Batches(tokens, **order)(step)  # type: ignore[arg-type]
    for held in (None, ResidentTokens(tokens, CPU)):
        batches = ResidentBatches(tokens, device=CPU, held=held, **order)  # type: ignore[arg-type]
        batch = batches(step)
        assert batch.dtype == torch.int64
        assert np.array_equal(batch.numpy(), wanted)


def test_shard_on_device_takes_no_more_bytes_than_on_disk() -> None:
    tokens = shard(1000, "uint16")
    values = ResidentTokens(tokens, CPU).values
    assert values.element_size() * values.numel() == tokens.nbytes


def test_memory_mapped_tokens_move_to_the_device_unchanged(tmp_path: Path) -> None:
    tokens = shard(300, "uint16")
    np.save(tmp_path / "train.npy", tokens)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    held = ResidentTokens(mapped, CPU)
    assert held.windows(torch.tensor([[0], [299]]), 1).flatten().tolist() == [0, tokens[299]]


def test_tokens_stay_on_host_where_device_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = shard(1000, "uint16")
    assert resident(tokens, CPU) is None
    monkeypatch.setattr(resident_batches, "free_bytes", lambda device: 4000)
    assert isinstance(resident(tokens, CPU), ResidentTokens)
    monkeypatch.setattr(resident_batches, "free_bytes", lambda device: 3999)
    assert resident(tokens, CPU) is None


@gpu
def test_resident_batches_are_gathered_on_the_gpu() -> None:
    tokens, device = shard(1000, "uint16"), device_named("cuda")
    order = {"context_length": 16, "sequences": 4, "seed": 1}
    held = resident(tokens, device)
    assert held is not None
    batch = ResidentBatches(tokens, device=device, held=held, **order)(7)  # type: ignore[arg-type]
    assert batch.device == device
    assert np.array_equal(batch.cpu().numpy(), Batches(tokens, **order)(7))  # type: ignore[arg-type]
