"""Reading of configs and rows as shapes, and writing of the configs that build shapes."""

from collections.abc import Mapping
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.config import TEXT_FIELDS, read_architecture
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, SWITCH_FIELDS, Shape
from shapelaw.scaling.errors import InputError

# Families whose models a shape describes: pre-norm with RMSNorm and rotary positions.
SHAPE_FAMILIES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "arcee")


def config_family(shape: Shape) -> str:
    """Return the Hugging Face model type that builds a shape.

    Qwen3 has QK-norm, Qwen2 biases of queries, keys and values only, Arcee an MLP without a gate.
    The config of Llama rejects numbers of heads that do not divide the hidden size. The config of
    Mistral accepts them, and Mistral without a sliding window is the same model as Llama.

    Raises
    ------
    InputError
        No model type has all properties of the shape.
    """
    divisible = shape.hidden_size % shape.num_attention_heads == 0
    only_qkv = shape.qkv_bias and not shape.output_bias
    if shape.output_bias != shape.qkv_bias and not only_qkv:
        family = ""
    elif shape.qk_norm:
        family = "" if only_qkv or shape.mlp_bias or not shape.gated else "qwen3"
    elif only_qkv:
        family = "" if shape.mlp_bias or not shape.gated else "qwen2"
    elif not shape.gated:
        family = "arcee" if divisible else ""
    elif divisible:
        family = "llama"
    else:
        family = "" if shape.qkv_bias or shape.mlp_bias else "mistral"
    if not family:
        raise InputError(
            f"no Hugging Face model has the biases, gate and norms of {shape}; use a shape "
            "without biases and with a gate"
        )
    return family


def config_of(shape: Shape, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
    """Write the fields of the Hugging Face config that builds a shape.

    Parameters
    ----------
    shape
        The shape.
    max_position_embeddings
        Longest context of the model, in tokens.

    Returns
    -------
    Fields of the config by name.
    """
    family = config_family(shape)
    own = {"qk_norm", *SWITCH_FIELDS}
    fields = {name: value for name, value in vars(shape).items() if name not in own}
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        **({"sliding_window": None} if family == "mistral" else {}),
        **fields,
        "attention_bias": shape.output_bias,
        **({"mlp_bias": True} if shape.mlp_bias else {}),
        "hidden_act": "silu" if shape.gated else "relu2",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
    }


def _names_family(config: Mapping[str, Any]) -> bool:
    """Return True for a Hugging Face config, and False for the fields of a shape."""
    return "model_type" in config or any(config.get(name) for name in TEXT_FIELDS)


def read_shape(config: Mapping[str, Any]) -> tuple[Shape, tuple[str, ...]]:
    """Read a shape from a Hugging Face config, with notes on what a shape leaves out.

    Parameters
    ----------
    config
        Fields by name. With a ``model_type``, absent fields take the defaults of that family, as in
        transformers; without, they are the fields of :class:`Shape` as numbers or texts.

    Raises
    ------
    InputError
        The config cannot be read, or a shape cannot describe its model.
    """
    if not _names_family(config):
        return _shape_of_row(config), ()
    architecture = read_architecture(config)
    kind = architecture.model_type
    if kind not in SHAPE_FAMILIES:
        raise InputError(
            f"`model_type` must be one of {', '.join(SHAPE_FAMILIES)} to be read as a shape, but "
            f"got {kind!r}; give a config of these, or count it with shapelaw count"
        )
    layer = architecture.first_layer
    if layer.canon is not None:
        raise InputError(
            f"`canon_set` must be absent to be read as a shape, but got {layer.canon.places}; "
            "leave it out, or count the config with shapelaw count"
        )
    if architecture.embedding.mask_token is not None:
        raise InputError(
            "`mask_token_id` must be absent to be read as a shape, but got "
            f"{architecture.embedding.mask_token}; leave it out, or count the config with "
            "shapelaw count"
        )
    attention, mlp = layer.attention, layer.feed_forward
    assert isinstance(attention, AttentionBlock)
    assert isinstance(mlp, FeedForwardBlock)
    shape = Shape(
        hidden_size=attention.hidden_size,
        intermediate_size=mlp.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=attention.num_attention_heads,
        num_key_value_heads=attention.num_key_value_heads,
        head_dim=attention.head_dim,
        vocab_size=architecture.embedding.vocab_size,
        tie_word_embeddings=architecture.embedding.tied,
        qk_norm=attention.qk_norm == "head",
        rope_theta=attention.rotary.theta if attention.rotary else 10_000.0,
        gated=mlp.gated,
        qkv_bias=attention.qkv_bias,
        output_bias=attention.output_bias,
        mlp_bias=mlp.bias,
    )
    return shape, (*architecture.notes, *_left_out(architecture))


def read_model(
    config: Mapping[str, Any], *, whole: bool
) -> tuple[Shape | Architecture, tuple[str, ...]]:
    """Read a config for a measurement, with notes on what the measurement leaves out.

    Parameters
    ----------
    config
        Fields of a Hugging Face config by name.
    whole
        The engine takes architectures of every family; a shape is returned only where it has the
        same costs.
    """
    if whole and _names_family(config):
        architecture = read_architecture(config)
        canon, known = architecture.first_layer.canon, architecture.model_type in SHAPE_FAMILIES
        masked = architecture.embedding.mask_token is not None
        if not known or canon or masked or architecture.local_window:
            return architecture, architecture.notes
    return read_shape(config)


def architecture_of(model: Shape | Architecture) -> Architecture:
    """Return the architecture of a shape: Llama, Mistral or Qwen3, with norms of ε = 1e-5.

    Raises
    ------
    InputError
        The shape has biases, or an MLP without a gate.
    """
    if isinstance(model, Architecture):
        return model
    model.require_gate_without_biases("be trained or run here")
    return read_architecture(model.to_config())


def read_trainable(config: Mapping[str, Any]) -> Shape | Architecture:
    """Read a config as a shape if that describes the whole model, else as an architecture."""
    if not _names_family(config):
        return _shape_of_row(config)
    architecture = read_architecture(config)
    try:
        shape, _ = read_shape(config)
        plain = architecture_of(shape)
    except InputError:
        return architecture
    parts = ("embedding", "layers", "norm", "predictions")
    same = all(getattr(plain, part) == getattr(architecture, part) for part in parts)
    return shape if same else architecture


def _left_out(architecture: Architecture) -> list[str]:
    """List properties that change speed or loss and that a shape does not have."""
    notes = []
    local = sum(n for layer, n in architecture.layers if layer.attention.window is not None)
    if local:
        notes.append(
            f"a shape has no sliding window: the cache of {local} layers with a window of "
            f"{architecture.local_window} tokens counts as that of full attention"
        )
    mlp = architecture.first_layer.feed_forward
    assert isinstance(mlp, FeedForwardBlock)
    usual = "silu" if mlp.gated else "relu2"
    if mlp.activation not in (usual, "swish"):
        notes.append(f"`hidden_act` {mlp.activation[:20]} is computed as {usual}")
    scalings = {
        layer.attention.rotary.scaling.kind
        for layer, _ in architecture.layers
        if layer.attention.rotary and layer.attention.rotary.scaling
    }
    if scalings:
        notes.append(f"a shape has no scaling of rotary positions ({', '.join(sorted(scalings))})")
    return notes


def _shape_of_row(row: Mapping[str, Any]) -> Shape:
    values = dict(row)
    heads = values.get("num_attention_heads")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None and heads and values.get("hidden_size"):
        hidden = _integer("hidden_size", values["hidden_size"])
        values["head_dim"] = hidden // max(_integer("num_attention_heads", heads), 1)
    missing = [name for name in INTEGER_FIELDS if values.get(name) is None]
    if missing:
        raise InputError(f"a shape needs `{'`, `'.join(missing)}`; add the missing fields")
    switches = {"tie_word_embeddings": True, "qk_norm": False, **SWITCH_FIELDS}
    fields: dict[str, Any] = {name: _integer(name, values[name]) for name in INTEGER_FIELDS}
    for name, usual in switches.items():
        fields[name] = _boolean(name, values.get(name, usual))
    return Shape(**fields, rope_theta=_rope_theta(values))


def _integer(name: str, value: object) -> int:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise InputError(f"`{name}` must be a positive integer, but got {value!r}")
    return int(number)


def _rope_theta(row: Mapping[str, Any]) -> float:
    value = row.get("rope_theta") or 10_000.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"`rope_theta` must be a number, but got {value!r}") from None


def _boolean(name: str, value: object) -> bool:
    spellings = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    answer = spellings.get(str(value).lower())
    if answer is None:
        raise InputError(f"`{name}` must be true or false, but got {value!r}")
    return answer
