import pytest
import torch

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.training import device as devices
from shapelaw.trainers.training.device import device_label, device_named

CPU = torch.device("cpu")


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


def test_label_of_a_device_names_the_gpu_or_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device_label(CPU).startswith("cpu (")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert device_label(torch.device("cuda:0")) == "NVIDIA H200"


def test_on_a_cpu_every_attention_kernel_stays_allowed() -> None:
    q = torch.randn(1, 2, 4, 8)
    with devices.attention_kernels(CPU):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
