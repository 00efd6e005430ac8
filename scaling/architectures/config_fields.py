"""Fields of a Hugging Face config, read as the config class of its model type reads them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.errors import InputError

MAX_COUNT = 10**12
MAX_LAYERS = 10_000
Kind = Literal["count", "whole", "switch", "activation", "list"]
ACTIVATIONS = {  # of transformers
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python"),
    *("gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear"),
    *("mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus"),
    *("swish", "tanh", "xielu"),
}
RULES = {
    "count": "must be a positive integer",
    "whole": "must be a whole number of at least 0",
    "switch": "must be true or false",
    "activation": "must be an activation of transformers, such as silu or gelu_new",
    "list": "must be a list",
}
LAYER_KINDS = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class ConfigField:
    """Default of a config field, its kind, and whether null stands for the default of the family.

    A nullable field whose value is null reads as None; other fields refuse null.
    """

    default: Any
    kind: Kind = "count"
    nullable: bool = False


def switch(default: bool) -> ConfigField:
    """Make a field that is true or false."""
    return ConfigField(default, "switch")


def dense_fields(
    sizes: Sequence[int],
    *,
    tied: bool = False,
    activation: str = "silu",
    activation_name: str = "hidden_act",
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
    """
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    counts = dict(zip((*names, "num_attention_heads"), sizes, strict=True))
    return {
        **{name: ConfigField(value) for name, value in counts.items()},
        "num_key_value_heads": ConfigField(None, nullable=True),
        activation_name: ConfigField(activation, "activation"),
        "tie_word_embeddings": switch(tied),
    }


@dataclass
class ConfigFields:
    """Values of a config, each checked when it is read; an absent field takes its default.

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
            shown = "null" if value is None else repr(value)
            remedy = f"correct it, or leave it out for {self.model_type}'s default {spec.default}"
            raise InputError(f"`{name}` {RULES[spec.kind]}, but got {shown[:60]}; {remedy}")
        limit = MAX_LAYERS if name in ("num_hidden_layers", "n_layer") else MAX_COUNT
        if spec.kind in ("count", "whole") and value > limit:
            raise InputError(f"`{name}` must be at most {limit:,}, but got {value:.3g}; correct it")
        return value

    def check_types(self) -> None:
        """Refuse fields of another type, also those that this config makes no use of."""
        for name, spec in self.fields.items():
            counts = spec.kind in ("count", "whole")
            if not counts or not _is_whole(self.values.get(name)):
                self[name]

    def head_dim(self) -> int:
        """Return the head dimension: the field, or d / H rounded down where it is absent.

        A family without the field in its config class takes it from the file where it is given,
        and then null is refused.
        """
        if "head_dim" in self.fields or "head_dim" in self.values:
            spec = {"head_dim": ConfigField("hidden_size / num_attention_heads"), **self.fields}
            value = ConfigFields(self.values, self.model_type, spec)["head_dim"]
            if value is not None:
                return _even(value)
        return _even(int(self["hidden_size"]) // int(self["num_attention_heads"]))

    def require_divisible_heads(self) -> None:
        """Refuse a number of heads that does not divide the hidden size, as the family does."""
        hidden, heads = self["hidden_size"], self["num_attention_heads"]
        if hidden % heads:
            down, up = hidden - hidden % heads, hidden + heads - hidden % heads
            raise InputError(
                f"`hidden_size % num_attention_heads == 0` must hold for {self.model_type}, "
                f"but got {hidden} and {heads}; use a hidden size of {down or up} or {up}"
            )

    def key_value_heads(self) -> int:
        """Return the number of key-value heads; null and an absent default mean one per query."""
        heads, groups = self["num_attention_heads"], self["num_key_value_heads"] or 0
        groups = groups or heads
        if heads % groups:
            divisors = [k for k in range(1, min(heads, 1000) + 1) if heads % k == 0]
            near = sorted(divisors, key=lambda k: abs(k - groups))[:2]
            absent = "num_key_value_heads" not in self.values
            usual = f" (the default of {self.model_type})" if absent else ""
            raise InputError(
                "`num_attention_heads % num_key_value_heads == 0` must hold, but got "
                f"{heads} and {groups}{usual}; use {' or '.join(map(str, sorted(near)))}"
            )
        return int(groups)

    def active_experts(self, active: str, experts: str) -> int:
        """Return the number of experts that each token passes; no more than there are."""
        chosen, number = self[active], self[experts]
        if chosen > number:
            raise InputError(
                f"`{active} <= {experts}` must hold, but got {chosen} and {number}; "
                f"use at most {number}"
            )
        return int(chosen)

    def layer_kinds(self, default: Callable[[int], str]) -> list[str]:
        """Return the kind of attention of each layer, by ``layer_types`` or the family's rule."""
        number = self["num_hidden_layers"]
        kinds = self["layer_types"]
        if kinds is None:
            return [default(index) for index in range(number)]
        require_layer_types(kinds, number)
        return list(kinds)

    def windows(self, kinds: Iterable[str], window: int | None) -> "Counter[int | None]":
        """Count the layers by window; ``sliding_attention`` without a window sees all tokens."""
        local = [kind == "sliding_attention" for kind in kinds]
        if any(local) and window is None:
            self.notes.append(
                "`layer_types` has sliding_attention, but no `sliding_window` is in force: these "
                "layers are counted as full attention"
            )
        return Counter(window if each else None for each in local)

    def rope_theta(self) -> float:
        """Return the base of rotary positions of the layers that see every token.

        ``rope_scaling``, then ``rope_parameters``, then ``rope_theta``, then the family's default.
        """
        values = self.values
        parameters = values.get("rope_scaling") or values.get("rope_parameters") or {}
        top = values.get("rope_theta", self.theta)
        if not isinstance(parameters, Mapping):
            raise InputError(
                f"`rope_parameters` must be an object, but got {str(parameters)[:60]!r}; give "
                '{"rope_type": "default", "rope_theta": 10000.0}, or leave it out'
            )
        nested = {kind: parameters[kind] for kind in LAYER_KINDS if kind in parameters}
        if nested:
            parameters = nested.get("full_attention") or next(iter(nested.values())) or {}
            if not isinstance(parameters, Mapping):
                raise InputError(
                    "`rope_parameters` must hold an object per layer type, but got "
                    f"{str(parameters)[:60]!r}; correct it"
                )
            self.notes.append(
                "`rope_parameters` differ by layer type: the base of full attention is read"
            )
        self._note_scaling(parameters)
        return _positive("rope_theta", parameters.get("rope_theta", top), self.theta)

    def _note_scaling(self, parameters: Mapping[str, Any]) -> None:
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            self.notes.append(
                f"rotary positions are scaled ({str(kind)[:20]}): parameters, FLOPs and cache do "
                "not depend on it"
            )


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
    """

    model_type: str
    fields: Mapping[str, ConfigField]
    build: Callable[[ConfigFields], Architecture]
    theta: float = 10_000.0
    also_read: tuple[str, ...] = ()


def require_layer_types(kinds: Any, number: int) -> None:
    """Refuse ``layer_types`` that are not one known kind of attention per layer."""
    if not isinstance(kinds, list) or len(kinds) != number:
        given = len(kinds) if isinstance(kinds, list) else repr(kinds)[:40]
        raise InputError(
            f"`len(layer_types) == num_hidden_layers` must hold, but got {given} and {number}; "
            "give one kind of attention per layer"
        )
    unknown = [kind for kind in kinds if kind not in LAYER_KINDS]
    if unknown:
        raise InputError(
            f"`layer_types` must be of {', '.join(LAYER_KINDS)}, but got "
            f"{str(unknown[0])[:40]!r}; other layers cannot be counted"
        )


def _even(head_dim: int) -> int:
    if head_dim < 2 or head_dim % 2:
        raise InputError(
            "`head_dim % 2 == 0` must hold for rotary positions, "
            f"but got {head_dim}; use {head_dim + head_dim % 2 or 2}"
        )
    return head_dim


def _positive(name: str, value: Any, default: float) -> float:
    remedy = f"give it, or leave it out for the family's default {default:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        shown = "null" if value is None else str(value)[:40]
        raise InputError(f"`{name}` must be a positive number, but got {shown}; {remedy}")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, kind: Kind) -> bool:
    if kind in ("count", "whole"):
        least = 1 if kind == "count" else 0
        return _is_whole(value) and value >= least
    if kind == "activation":
        return isinstance(value, str) and value in ACTIVATIONS
    return isinstance(value, bool if kind == "switch" else list)
