import numpy as np
import torch

from shapelaw.trainers.gpu.sharding import GatheredMuon, World
from shapelaw.trainers.optimizers.rules import Muon


def test_a_world_shares_out_the_rows_of_a_batch() -> None:
    device = torch.device("cpu")
    worlds = [World(mode="ddp", rank=r, size=3, device=device, mesh=None) for r in range(3)]  # type: ignore[arg-type]
    assert np.concatenate([np.arange(12)[w.rows(12)] for w in worlds]).tolist() == list(range(12))


def test_muon_of_gathered_matrices_is_muon() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(12, 8, generator=generator), torch.randn(6, 10, generator=generator)]
    gradients = [torch.randn(value.shape, generator=generator) for value in start]
    ended = []
    for kind in (Muon, GatheredMuon):
        weights = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = kind(weights, [(4, 8), (6,)], lr=0.1, momentum=0.9, weight_decay=0.1,
                         scale="match_rms_adamw")  # fmt: skip
        for _ in range(3):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        ended.append(weights)
    for got, want in zip(ended[1], ended[0], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
