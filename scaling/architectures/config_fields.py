"""Fields of a Hugging Face config, read as the config class of its model type reads them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.positions import RotaryPositions, RotaryScaling
from shapelaw.scaling.architectures.columns import breaking
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError

MAX_COUNT = 10**12
MAX_LAYERS = 10_000
Kind = Literal["count", "counts", "whole", "switch", "activation", "list", "shares", "number"]
ACTIVATIONS = {  # of transformers
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python"),
    *("gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear"),
    *("mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus"),
    *("swish", "tanh", "xielu"),
}
RULES = {
    "count": "must be a positive integer",
    "counts": "must be a positive integer or a list of them",
    "whole": "must be a whole number of at least 0",
    "switch": "must be true or false",
    "activation": "must be an activation of transformers, such as silu or gelu_new",
    "list": "must be a list",
    "shares": "must be a list of numbers from 0 to below 1",
    "number": "must be a positive number",
}
LAYER_KINDS = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class ConfigField:
    """Default of a config field, its kind, and whether null stands for the default of the family.

    A nullable field whose value is null reads as None; other fields refuse null. Where null stands
    for a rule over the layers, ``rule`` names it.
    """

    default: Any
    kind: Kind = "count"
    nullable: bool = False
    rule: str = ""


def switch(default: bool) -> ConfigField:
    """Make a field that is true or false."""
    return ConfigField(default, "switch")


def dense_fields(
    sizes: Sequence[int],
    *,
    tied: bool = False,
    activation: str = "silu",
    activation_name: str = "hidden_act",
    epsilon: float = 1e-6,
) -> dict[str, ConfigField]:
    """Make the fields that every dense decoder has.

    Parameters
    ----------
    sizes
        Defaults of vocabulary, hidden size, MLP width, layers and query heads.
    tied
        Default of ``tie_word_embeddings``.
    activation, activation_name
        Default of the activation, and the field that names it.
    epsilon
        Default of ``rms_norm_eps``.
    """
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    counts = dict(zip((*names, "num_attention_heads"), sizes, strict=True))
    return {
        **{name: ConfigField(value) for name, value in counts.items()},
        "num_key_value_heads": ConfigField(None, nullable=True),
        activation_name: ConfigField(activation, "activation"),
        "rms_norm_eps": ConfigField(epsilon, "number"),
        "tie_word_embeddings": switch(tied),
    }


@dataclass
class ConfigFields:
    """Values of a config, each checked when it is read; an absent field takes its default.

    Whole numbers may also be integer columns (n,), for many models of one structure.

    Parameters
    ----------
    values
        Fields of the config by name.
    model_type
        Model type, for messages.
    fields
        Default and kind of each field of the family.
    theta
        Default base of rotary positions.
    notes
        Sentences on fields that change the model and are not counted.
    """

    values: Mapping[str, Any]
    model_type: str
    fields: Mapping[str, ConfigField]
    theta: float = 10_000.0
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """Return a field, or its default where it is absent."""
        spec = self.fields[name]
        value = self.values.get(name, spec.default)
        if value is None and spec.nullable:
            return None
        if not _fits(value, spec.kind):
            given = "null" if value is None else shown(value, 60)
            remedy = f"correct it, or leave it out for {self.model_type}'s default {spec.default}"
            raise InputError(f"`{name}` {RULES[spec.kind]}, but got {given}; {remedy}")
        limit = MAX_LAYERS if name in ("num_hidden_layers", "n_layer", "n_layers") else MAX_COUNT
        if spec.kind in ("count", "counts", "whole"):
            largest = int(
                max(map(np.max, value if isinstance(value, list) else [value]), default=0)
            )
            if largest > limit:
                raise InputError(
                    f"`{name}` must be at most {limit:,}, but got {shown(largest)}; correct it"
                )
        return value

    def check_types(self) -> None:
        """Refuse fields of another type, also those that this config makes no use of."""
        for name, spec in self.fields.items():
            counts = spec.kind in ("count", "whole")
            if not counts or not _is_whole(self.values.get(name)):
                self[name]

    def head_dim(self) -> Any:
        """Return the head dimension: the field, or d / H rounded down where it is absent.

        A family without the field in its config class takes it from the file where it is given,
        and then null is refused.
        """
        if "head_dim" in self.fields or "head_dim" in self.values:
            spec = {"head_dim": ConfigField("hidden_size / num_attention_heads"), **self.fields}
            value = ConfigFields(self.values, self.model_type, spec)["head_dim"]
            if value is not None:
                return _even(value)
        return _even(self["hidden_size"] // self["num_attention_heads"])

    def require_divisible_heads(self) -> None:
        """Refuse a number of heads that does not divide the hidden size, as the family does."""
        hidden, heads = self["hidden_size"], self["num_attention_heads"]
        if broken := breaking(hidden % heads != 0, hidden, heads):
            hidden, heads = broken
            down, up = hidden - hidden % heads, hidden + heads - hidden % heads
            raise InputError(
                f"`hidden_size % num_attention_heads == 0` must hold for {self.model_type}, "
                f"but got {hidden} and {heads}; use a hidden size of {down or up} or {up}"
            )

    def key_value_heads(self) -> Any:
        """Return the number of key-value heads; null and an absent default mean one per query."""
        heads, groups = self["num_attention_heads"], self["num_key_value_heads"]
        groups = heads if groups is None else groups
        if broken := breaking(heads % groups != 0, heads, groups):
            heads, groups = broken
            divisors = [k for k in range(1, min(heads, 1000) + 1) if heads % k == 0]
            near = sorted(divisors, key=lambda k: abs(k - groups))[:2]
            absent = "num_key_value_heads" not in self.values
            usual = f" (the default of {self.model_type})" if absent else ""
            raise InputError(
                "`num_attention_heads % num_key_value_heads == 0` must hold, but got "
                f"{heads} and {groups}{usual}; use {' or '.join(map(str, sorted(near)))}"
            )
        return groups

    def active_experts(self, active: str, experts: str) -> Any:
        """Return the number of experts that each token passes; no more than there are."""
        chosen, number = self[active], self[experts]
        if broken := breaking(chosen > number, chosen, number):
            chosen, number = broken
            raise InputError(
                f"`{active} <= {experts}` must hold, but got {chosen} and {number}; "
                f"use at most {number}"
            )
        return chosen

    def layer_kinds(
        self, default: Callable[[int], str], known: Sequence[str] = LAYER_KINDS
    ) -> list[str]:
        """Return the kind of attention of each layer, by ``layer_types`` or the family's rule."""
        number = self["num_hidden_layers"]
        kinds = self["layer_types"]
        if kinds is None:
            return [default(index) for index in range(number)]
        require_layer_types(kinds, number, known)
        return list(kinds)

    def per_layer(self, name: str, usual: Sequence[Any] | None = None) -> list[Any]:
        """Return the values of a field for each layer; a single one is that of all layers."""
        value, number = self[name], self["num_hidden_layers"]
        values = usual if value is None else value if isinstance(value, list) else [value] * number
        if values is None or len(values) != number:
            given = None if values is None else len(values)
            raise InputError(
                f"`len({name}) == num_hidden_layers` must hold, but got {given} and {number}; "
                "give one value per layer"
            )
        return list(values)

    def windows(self, kinds: Iterable[str], window: int | None) -> list[int | None]:
        """Return the window of each layer; ``sliding_attention`` without one sees all tokens."""
        local = [kind == "sliding_attention" for kind in kinds]
        if any(local) and window is None:
            self.notes.append(
                "`layer_types` has sliding_attention, but no `sliding_window` is in force: these "
                "layers are counted as full attention"
            )
        return [window if each else None for each in local]

    def rotary(
        self, kind: str = "full_attention", *, base: str = "rope_theta", theta: float | None = None
    ) -> RotaryPositions:
        """Return the rotary positions of the layers of one kind.

        From ``rope_scaling``, then ``rope_parameters``, then the field ``base``, then the default.
        Parameters that are not given per kind of attention are those of full attention.

        Parameters
        ----------
        kind
            Kind of attention.
        base
            Field of the base of this kind of layer.
        theta
            Default base; None for the family's.
        """
        values, usual = self.values, self.theta if theta is None else theta
        parameters = values.get("rope_scaling") or values.get("rope_parameters") or {}
        top = values.get(base, usual)
        if not isinstance(parameters, Mapping):
            raise InputError(
                f"`rope_parameters` must be an object, but got {str(parameters)[:60]!r}; give "
                '{"rope_type": "default", "rope_theta": 10000.0}, or leave it out'
            )
        nested = {name: parameters[name] for name in LAYER_KINDS if name in parameters}
        if not nested and kind != "full_attention":
            parameters = {}
        if nested:
            first = next(iter(nested.values())) if kind == "full_attention" else {}
            parameters = nested.get(kind) or first or {}
            if not isinstance(parameters, Mapping):
                raise InputError(
                    "`rope_parameters` must hold an object per layer type, but got "
                    f"{str(parameters)[:60]!r}; correct it"
                )
        return RotaryPositions(
            theta=_positive("rope_theta", parameters.get("rope_theta", top), usual),
            scaling=self._scaling(parameters),
        )

    def _scaling(self, parameters: Mapping[str, Any]) -> RotaryScaling | None:
        """Read the scaling of rotary positions; a kind that is not known is noted."""
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind == "default":
            return None
        if kind not in ("linear", "llama3", "yarn"):
            self._note(
                f"rotary positions are scaled ({str(kind)[:20]}), which is not computed here: "
                "parameters, FLOPs and cache do not depend on it"
            )
            return None

        def number(name: str, usual: float | None = None) -> float:
            value = parameters.get(name)
            return _positive(name, usual if value is None else value, usual)

        # A share of 0 or null is none; it is checked for every kind, as families read it too.
        own, whole = (
            number(n) if parameters.get(n) else None for n in ("mscale", "mscale_all_dim")
        )
        longest = self.values.get("max_position_embeddings", 2048)
        length = _positive("max_position_embeddings", longest, 2048)
        original = number("original_max_position_embeddings", length)
        if kind == "linear":
            return RotaryScaling(kind="linear", factor=number("factor"))
        if kind == "llama3":
            return RotaryScaling(
                kind="llama3",
                factor=number("factor"),
                original_length=original,
                low=number("low_freq_factor"),
                high=number("high_freq_factor"),
            )
        factor = number("factor", length / original)
        usual = (
            rotation_scale(factor, own) / rotation_scale(factor, whole) if own and whole else None
        )
        return RotaryScaling(
            kind="yarn",
            factor=factor,
            original_length=original,
            low=number("beta_slow", 1.0),
            high=number("beta_fast", 32.0),
            rotation_scale=number("attention_factor", usual or rotation_scale(factor)),
            truncate=bool(parameters.get("truncate", True)),
        )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def resolved(self) -> tuple[tuple[str, Any], ...]:
        """Return every field of the family with its value or default, and rotary parameters."""
        positions = ("rope_theta", "rope_parameters", "rope_scaling", "max_position_embeddings")
        others = ("rope_local_base_freq", "head_dim")
        given = {n: self.values[n] for n in (*positions, *others) if n in self.values}
        own = {name: (self[name], spec.default) for name, spec in self.fields.items()}
        said = {
            name: value
            for name, (value, usual) in own.items()
            if value is not None or usual is not None
        }
        return tuple({**said, **given}.items())


def rotation_scale(factor: float, share: float = 1.0) -> float:
    """Compute yarn's factor of cosines and sines, 0.1·share·ln(factor) + 1 (arXiv 2309.00071)."""
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0


@dataclass(frozen=True)
class ConfigFamily:
    """A family of configs: its fields with their defaults, and what its layers are made of.

    Parameters
    ----------
    model_type
        Model type of the Hugging Face config.
    fields
        Default and kind of each field that decides on parameters, FLOPs or the cache.
    build
        Makes the architecture of a config; raises an InputError where its class refuses it.
    theta
        Default base of rotary positions.
    also_read
        Further fields of the class, which change no count.
    class_name
        Class of transformers.
    names
        Where its checkpoints keep the weights, as far as it differs from Llama.
    layer_kinds
        What ``layer_types`` may hold.
    constants
        Fields of its configs that have one value only, which engines want to see.
    in_transformers
        transformers has the class; checkpoints of other families bring their code.
    axes
        Fields that a search over its models varies.
    written_as
        Model type of the configs that are written; "" for its own. Of a family without a class of
        its own, it is that of the class that computes it.
    """

    model_type: str
    fields: Mapping[str, ConfigField]
    build: Callable[[ConfigFields], Architecture]
    theta: float = 10_000.0
    also_read: tuple[str, ...] = ()
    class_name: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    layer_kinds: Sequence[str] = LAYER_KINDS
    constants: Mapping[str, Any] = field(default_factory=dict)
    in_transformers: bool = True
    axes: Axes = field(default_factory=Axes)
    written_as: str = ""


def require_layer_types(kinds: Any, number: int, known: Sequence[str]) -> None:
    """Refuse ``layer_types`` that are not one known kind of attention per layer."""
    if not isinstance(kinds, list) or len(kinds) != number:
        given = len(kinds) if isinstance(kinds, list) else repr(kinds)[:40]
        raise InputError(
            f"`len(layer_types) == num_hidden_layers` must hold, but got {given} and {number}; "
            "give one kind of attention per layer"
        )
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise InputError(
            f"`layer_types` must be of {', '.join(known)}, but got "
            f"{str(unknown[0])[:40]!r}; other layers cannot be counted"
        )


def _even(head_dim: Any) -> Any:
    if broken := breaking((head_dim < 2) | (head_dim % 2 != 0), head_dim):
        (head_dim,) = broken
        raise InputError(
            "`head_dim % 2 == 0` must hold for rotary positions, "
            f"but got {head_dim}; use {head_dim + head_dim % 2 or 2}"
        )
    return head_dim


def _positive(name: str, value: Any, default: float | None) -> float:
    usual = f", or leave it out for the family's default {default:g}" if default else ""
    remedy = f"give it{usual}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        given = "null" if value is None else str(value)[:40]
        raise InputError(f"`{name}` must be a positive number, but got {given}; {remedy}")
    return float(value)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a whole number or a column of them."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind == "i")
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, kind: Kind) -> bool:
    if kind in ("count", "whole"):
        least = 1 if kind == "count" else 0
        return _is_whole(value) and bool(np.all(value >= least))
    if kind == "number":
        return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 1e300
    if kind == "counts" and isinstance(value, list):
        return all(_fits(each, "count") for each in value)
    if kind == "counts":
        return _fits(value, "count")
    if kind == "shares":
        return isinstance(value, list) and all(
            each == 0 or (_fits(each, "number") and each < 1) for each in value
        )
    if kind == "activation":
        return isinstance(value, str) and value in ACTIVATIONS
    return isinstance(value, bool if kind == "switch" else list)
