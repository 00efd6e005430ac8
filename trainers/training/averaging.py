"""Average of the best weights of a run, as checkpoints of a conversion are averaged."""

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "average."


class BestWeights:
    """The weights of the steps with the lowest held-out losses, in memory and in checkpoints.

    Parameters
    ----------
    number
        How many weights to keep. Equal losses are ordered by step, the later first.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._kept: dict[int, tuple[float, dict[str, Tensor]]] = {}

    @property
    def steps(self) -> list[int]:
        """Steps of the kept weights, ascending."""
        return sorted(self._kept)

    def consider(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of the weights of a step if its loss is among the lowest."""
        copies = {name: weight.detach().clone() for name, weight in weights.items()}
        self._kept[step] = (loss, copies)
        ranked = sorted(self._kept, key=lambda each: (self._kept[each][0], -each))
        for dropped in ranked[self.number :]:
            del self._kept[dropped]

    def apply(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite weights by the mean of the kept ones, computed in float32 or their own format.

        Nothing changes if none are kept.
        """
        kept = [self._kept[step][1] for step in self.steps]
        with torch.no_grad():
            for name, weight in weights.items() if kept else ():
                exact = torch.promote_types(weight.dtype, torch.float32)
                total = torch.stack([each[name].to(exact) for each in kept]).mean(dim=0)
                weight.copy_(total)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor by name, for a checkpoint."""
        tensors = {}
        for step, (loss, weights) in self._kept.items():
            tensors[f"{PREFIX}{step}.loss"] = torch.tensor(loss, dtype=torch.float64)
            tensors |= {f"{PREFIX}{step}.weight.{name}": each for name, each in weights.items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from the tensors of :meth:`state`."""
        self._kept = {}
        losses = [n for n in tensors if n.startswith(PREFIX) and n.endswith(".loss")]
        for name in losses:
            step = int(name.removeprefix(PREFIX).removesuffix(".loss"))
            begin = f"{PREFIX}{step}.weight."
            weights = {n.removeprefix(begin): w for n, w in tensors.items() if n.startswith(begin)}
            self._kept[step] = (tensors[name].item(), weights)
