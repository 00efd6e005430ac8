from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.gpu import resident_batches
from shapelaw.trainers.gpu.resident_batches import ResidentBatches, ResidentTokens, resident
from shapelaw.trainers.training import device as devices
from shapelaw.trainers.training.device import device_label, device_named

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
def test_batches_are_those_of_the_corpus_wherever_the_tokens_lie(
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


def test_a_shard_on_the_device_takes_no_more_bytes_than_on_disk() -> None:
    tokens = shard(1000, "uint16")
    values = ResidentTokens(tokens, CPU).values
    assert values.element_size() * values.numel() == tokens.nbytes


def test_memory_mapped_tokens_can_be_moved(tmp_path: Path) -> None:
    tokens = shard(300, "uint16")
    np.save(tmp_path / "train.npy", tokens)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    held = ResidentTokens(mapped, CPU)
    assert held.windows(torch.tensor([[0], [299]]), 1).flatten().tolist() == [0, tokens[299]]


def test_tokens_stay_on_the_host_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = shard(1000, "uint16")
    assert resident(tokens, CPU) is None
    monkeypatch.setattr(resident_batches, "free_bytes", lambda device: 4000)
    assert isinstance(resident(tokens, CPU), ResidentTokens)
    monkeypatch.setattr(resident_batches, "free_bytes", lambda device: 3999)
    assert resident(tokens, CPU) is None


def test_auto_takes_the_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named().type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named() == torch.device("cuda:0")


def test_a_gpu_that_is_not_there_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"`device` cuda needs .* sees none; use cpu"):
        device_named("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("cuda:1") == torch.device("cuda:1")
    assert device_named("cuda") == torch.device("cuda:0")
    with pytest.raises(InputError, match=r"cuda:2 needs .* sees 2 of them"):
        device_named("cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="mps needs an Apple GPU"):
        device_named("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "xla"])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="`device` must be auto, cpu, cuda"):
        device_named(name)


def test_the_row_says_what_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_label(CPU).startswith("cpu (")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert device_label(torch.device("cuda:0")) == "NVIDIA H200"


def test_on_a_cpu_every_attention_kernel_stays_allowed() -> None:
    q = torch.randn(1, 2, 4, 8)
    with devices.attention_kernels(CPU):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)


@gpu
def test_batches_are_gathered_on_the_gpu() -> None:
    tokens, device = shard(1000, "uint16"), device_named("cuda")
    order = {"context_length": 16, "sequences": 4, "seed": 1}
    held = resident(tokens, device)
    assert held is not None
    batch = ResidentBatches(tokens, device=device, held=held, **order)(7)  # type: ignore[arg-type]
    assert batch.device == device
    assert np.array_equal(batch.cpu().numpy(), Batches(tokens, **order)(7))  # type: ignore[arg-type]
