"""Low-rank adapters (LoRA, arXiv 2106.09685) on the projections of attention.

A projection x·Wᵀ becomes x·Wᵀ + (alpha/r)·dropout(x)·Aᵀ·Bᵀ, with A (r, in) drawn as in the library
peft (uniform, ±1/√in) and B (out, r) = 0. Queries, keys and values have an A and a B each, although
one weight stacks their rows; they share a dropout mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.architectures.weight_names import LLAMA_NAMES, stored_weight
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json, write_whole
from shapelaw.trainers.models.hugging_face import save_tensors
from shapelaw.trainers.models.transformer import Transformer

PROJECTIONS = ("q_proj", "qkv_proj", "o_proj")
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Size of the adapters; the defaults are those of D2F (arXiv 2508.09192).

    Parameters
    ----------
    rank
        Rows of A, r.
    alpha
        The adapters are scaled by alpha/r.
    dropout
        Share of the adapters' inputs that is dropped in training.
    """

    rank: int = 32
    alpha: float = 32.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 2**16:
            raise InputError(f"`1 <= rank <= {2**16}` must hold, but got {self.rank}")
        if not 0 < self.alpha <= 1e9:
            raise InputError(f"`alpha > 0` must hold, but got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"`0 <= dropout < 1` must hold, but got {self.dropout}")


class LoraLinear(nn.Linear):
    """Linear layer with an adapter for each projection that its weight stacks.

    ``enabled`` is false for the layer without its adapters. Inputs are dropped while ``generator``
    is set, which draws the masks; without one, nothing is dropped.

    Parameters
    ----------
    base
        Layer whose weights are used, not copied. They are not trained any more.
    rows
        Number of rows of each projection.
    """

    generator: torch.Generator | None = None

    def __init__(self, base: nn.Linear, rows: tuple[int, ...], settings: LoraSettings) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rows, self.settings, self.enabled = rows, settings, True
        inputs, rank = base.in_features, settings.rank
        self.lora_a = nn.Parameter(base.weight.new_zeros(len(rows) * rank, inputs))
        self.lora_b = nn.Parameter(base.weight.new_zeros(sum(rows), rank))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., in) -> (..., out)."""
        output = super().forward(x)
        if not self.enabled:
            return output
        low = F.linear(self._drop(x), self.lora_a).split(self.settings.rank, dim=-1)
        parts = self.lora_b.split(self.rows)
        added = [F.linear(part, b) for part, b in zip(low, parts, strict=True)]
        return output + self._scale * torch.cat(added, dim=-1)

    def _drop(self, x: Tensor) -> Tensor:
        rate = self.settings.dropout
        if self.generator is None or not rate:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= rate
        return x * kept / (1 - rate)

    @property
    def _scale(self) -> float:
        return self.settings.alpha / self.settings.rank

    def merged(self) -> Tensor:
        """Return the weight with the adapters added, computed in float64."""
        factors = zip(
            self.lora_a.double().split(self.settings.rank),
            self.lora_b.double().split(self.rows),
            strict=True,
        )
        added = torch.cat([b @ a for a, b in factors])
        return (self.weight.double() + self._scale * added).to(self.weight.dtype)


def add_adapters(model: Transformer, settings: LoraSettings, seed: int) -> None:
    """Put adapters on queries, keys, values and outputs of attention, and freeze all other weights.

    Parameters
    ----------
    model
        Model to change. Its adapters change nothing at first, because every B is 0.
    settings
        Size of the adapters.
    seed
        Seed of the A matrices.

    Raises
    ------
    InputError
        A layer has no such projections, as of latent attention or a short convolution.
    """
    for weight in model.parameters():
        weight.requires_grad_(False)
    stacked = model.rows()
    generator = torch.Generator().manual_seed(seed)
    for number, layer in enumerate(model.layers):
        attention: Any = layer.self_attn
        names = [name for name in PROJECTIONS if hasattr(attention, name)]
        if "o_proj" not in names or len(names) < 2:
            raise InputError(
                "adapters need projections to queries, keys, values and outputs in every layer, "
                f"but layer {number} has {type(attention).__name__}; use a model of grouped-query "
                "attention"
            )
        for name in names:
            base = getattr(attention, name)
            rows = stacked.get(f"layers.{number}.self_attn.{name}", (base.out_features,))
            adapted = LoraLinear(base, rows, settings)
            bound = base.in_features**-0.5
            with torch.no_grad():
                drawn = torch.empty(adapted.lora_a.shape).uniform_(
                    -bound, bound, generator=generator
                )
                adapted.lora_a.copy_(drawn)
            setattr(attention, name, adapted)


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return the layers with adapters by name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute without the adapters inside the block."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@contextmanager
def adapter_dropout(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Drop inputs of the adapters inside the block, with masks of a generator."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.generator = generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None


def merge_adapters(model: Transformer) -> None:
    """Add the adapters to the weights of their layers and remove them.

    All weights can be trained again.
    """
    for name, adapted in adapted_layers(model).items():
        place, _, last = name.rpartition(".")
        plain = nn.Linear(
            adapted.in_features, adapted.out_features, adapted.bias is not None, device="meta"
        )
        plain.weight, plain.bias = nn.Parameter(adapted.merged().detach()), adapted.bias
        setattr(model.get_submodule(place), last, plain)
    for weight in model.parameters():
        weight.requires_grad_(True)


def save_adapters(model: Transformer, folder: Path) -> None:
    """Write the adapters as the library peft does: ``adapter_model.safetensors`` and its config."""
    names = LLAMA_NAMES | dict(FAMILIES[model.architecture.model_type].names)
    tensors, settings, targets = {}, LoraSettings(), set()
    for name, adapted in adapted_layers(model).items():
        settings = adapted.settings
        places = [
            text.removesuffix(".weight") for text in stored_weight(f"{name}.weight", names).names
        ]
        low, high = adapted.lora_a.split(settings.rank), adapted.lora_b.split(adapted.rows)
        for place, a, b in zip(places, low, high, strict=True):
            targets.add(place.rpartition(".")[2])
            for kind, factor in (("A", a), ("B", b)):
                key = f"base_model.model.{place}.lora_{kind}.weight"
                tensors[key] = factor.detach().cpu().contiguous()
    write_whole(folder / ADAPTER, lambda target: save_tensors(tensors, target))
    sizes = asdict(settings)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": sizes["rank"],
        "lora_alpha": sizes["alpha"],
        "lora_dropout": sizes["dropout"],
        "bias": "none",
        "target_modules": sorted(targets),
        "base_model_name_or_path": None,
    }
    write_json(folder / ADAPTER_CONFIG, config)
