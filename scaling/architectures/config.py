"""Reading of Hugging Face configs as architectures and as shapes, and writing of both."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture, DecoderLayer, layer_runs
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.canon import PLACES, CanonBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    require_layer_types,
    switch,
)
from shapelaw.scaling.architectures.registry import FAMILIES, TEXT_MODELS
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, SWITCH_FIELDS, Shape
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.errors import InputError

# Families whose models a shape describes: pre-norm with RMSNorm and rotary positions.
SHAPE_FAMILIES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "arcee")
TEXT_FIELDS = ("text_config", "llm_config", "language_config")
# Fields of models that are refused where the family does not know them: they add or share layers.
FOREIGN_FIELDS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "kv_lora_rank"),
    *("hidden_size_per_layer_input", "num_kv_shared_layers", "ssm_cfg"),
)
FIELDS_WITHOUT_COUNTS = ("quantization_config", "auto_map", "rope_dim")
# Fields that add Canon layers to a model of any family, with the defaults of LlamaCanonConfig.
CANON_FIELDS = {
    "canon_kernel": ConfigField(4),
    "canon_bias": switch(False),
    "canon_activation": switch(False),
    "canon_residual": switch(True),
    "canon_gate_only": switch(False),
}
CANON_CONSTANTS = ("canon_bias", "canon_activation", "canon_residual")
# Fields of a diffusion model of any family; its own family may have another default.
MASK_FIELDS = {
    "mask_token_id": ConfigField(None, "whole", nullable=True),
    "shift_predictions": switch(False),
}
# Modules of multi-token prediction in a model of any family: DeepSeek's name, and that of others.
PREDICTION_FIELDS = {
    "num_nextn_predict_layers": ConfigField(0, "whole", nullable=True),
    "num_mtp_layers": ConfigField(0, "whole", nullable=True),
}
# No class of transformers has Canon layers: this end of the model type keeps it from loading the
# model without them.
CANON_SUFFIX = "_canon"


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


def architecture_config(
    architecture: Architecture, *, max_position_embeddings: int
) -> dict[str, Any]:
    """Write the Hugging Face config of an architecture, with every field of its family.

    Parameters
    ----------
    architecture
        An architecture that was read from a config.
    max_position_embeddings
        Longest context of the model in tokens, if the config does not say it.
    """
    family = FAMILIES[architecture.model_type]
    kind, fields = family.written_as or family.model_type, dict(architecture.fields)
    if not architecture.predictions:
        fields.pop("num_nextn_predict_layers", None)
    renamed = fields.get("canon_set") and (family.in_transformers or family.written_as)
    if not architecture.embedding.positions:
        fields.setdefault("max_position_embeddings", max_position_embeddings)
    return {
        "architectures": [family.class_name],
        "model_type": kind + (CANON_SUFFIX if renamed else ""),
        **fields,
        **family.constants,
        "torch_dtype": "float32",
    }


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the architecture of a Hugging Face config, absent fields as its class reads them.

    Parameters
    ----------
    config
        Fields by name. Of a multimodal model, the language model inside is read. Whole numbers
        may be integer columns (n,), for many models with the same blocks in each layer.

    Raises
    ------
    InputError
        The model type is unknown, or a field breaks a rule of the family.
    """
    values, notes = _language_model(config)
    family = _family_of(values)
    fields = ConfigFields(values, family.model_type, family.fields, family.theta)
    fields.check_types()
    architecture = _with_mask_token(_with_canon(family.build(fields), values), values, family)
    architecture = _with_predictions(architecture, values)
    if values.get("layer_types") is not None:
        number = architecture.num_hidden_layers
        require_layer_types(values["layer_types"], number, family.layer_kinds)
    ignored = _ignored_fields(values, family)
    return replace(architecture, notes=(*notes, *architecture.notes, *ignored))


def _with_canon(architecture: Architecture, values: Mapping[str, Any]) -> Architecture:
    """Add the Canon layers of a config to every layer."""
    places = values.get("canon_set") or ""
    if not isinstance(places, str) or not set(places) <= set(PLACES):
        raise InputError(
            f"`canon_set` must be letters of {PLACES}, but got {str(places)[:40]!r}; give the "
            'places of Canon layers, such as "AC", or leave it out'
        )
    if not places:
        return architecture
    fields = ConfigFields(values, architecture.model_type, CANON_FIELDS)
    for name in CANON_CONSTANTS:
        usual = CANON_FIELDS[name].default
        if fields[name] is not usual:
            raise InputError(
                f"`{name}` must be {str(usual).lower()}, but got {str(fields[name]).lower()}"
                "; Canon layers are residual convolutions without bias and activation"
            )
    canon = CanonBlock(
        places="".join(sorted(set(places))),
        kernel=fields["canon_kernel"],
        gate_only=fields["canon_gate_only"],
    )
    layers = [_canon_layer(layer, canon) for layer in architecture.each_layer()]
    given = {"canon_set": canon.places, **dict(fields.resolved())}
    return replace(
        architecture,
        layers=layer_runs(layers),
        fields=tuple({**dict(architecture.fields), **given}.items()),
    )


def _with_mask_token(
    architecture: Architecture, values: Mapping[str, Any], family: ConfigFamily
) -> Architecture:
    """Add the mask token of a diffusion model to the embedding."""
    spec = {name: family.fields.get(name, usual) for name, usual in MASK_FIELDS.items()}
    given = ConfigFields(values, family.model_type, spec)
    mask, shifted = given["mask_token_id"], given["shift_predictions"]
    if mask is None:
        return architecture
    vocabulary = architecture.embedding.vocab_size
    if mask >= vocabulary:
        raise InputError(
            f"`mask_token_id < vocab_size` must hold, but got {mask} and {vocabulary}; give the "
            f"id of the mask token, such as {vocabulary - 1}"
        )
    return replace(
        architecture,
        embedding=replace(architecture.embedding, mask_token=mask, shifted=shifted),
        fields=tuple(
            {
                **dict(architecture.fields),
                "mask_token_id": mask,
                **({"shift_predictions": True} if shifted else {}),
            }.items()
        ),
    )


def _with_predictions(architecture: Architecture, values: Mapping[str, Any]) -> Architecture:
    """Add the modules of multi-token prediction of a config, which the counts leave out."""
    fields = ConfigFields(values, architecture.model_type, PREDICTION_FIELDS)
    name, other = PREDICTION_FIELDS
    number = fields[name] or fields[other]
    if not number:
        return architecture
    counted = replace(architecture, predictions=number)
    note = (
        f"multi-token prediction is left out, as transformers does: {counted.predictions} x "
        f"{counted.prediction_parameters // number:,} parameters of training, without the shared "
        "embedding and head"
    )
    return replace(
        counted,
        fields=tuple({**dict(architecture.fields), name: number}.items()),
        notes=(*architecture.notes, note),
    )


def _canon_layer(layer: DecoderLayer, canon: CanonBlock) -> DecoderLayer:
    """Add Canon layers to a layer that has their places."""
    with_canon = replace(layer, canon=canon)
    absent = [place for place, width in with_canon.canon_widths.items() if not np.any(width)]
    if absent:
        part = "queries, keys and values" if absent[0] == "B" else "one MLP"
        raise InputError(
            f"`canon_set` with {absent[0]} needs {part} in every layer, but got "
            f"{canon.places}; use {''.join(p for p in canon.places if p not in absent) or 'AC'}"
        )
    return with_canon


def _language_model(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the config of the language model, and a note on what lies beside it."""
    name = next((name for name in TEXT_FIELDS if config.get(name) is not None), None)
    kind = config.get("model_type")
    if name is None:
        if isinstance(kind, str) and kind in TEXT_MODELS:
            raise InputError(
                f"`text_config` is missing in a config of {kind}; add it, or give the config of "
                f"its language model ({TEXT_MODELS[kind]})"
            )
        return config, []
    inner = config[name]
    if not isinstance(inner, Mapping):
        raise InputError(f"`{name}` must be an object, but got {str(inner)[:60]!r}; correct it")
    inner_kind = inner.get("model_type") or TEXT_MODELS.get(str(kind))
    if inner_kind is None:
        raise InputError(f"`{name}` must name its `model_type`, but has none; add it")
    outer = {"model_type": inner_kind}
    if "tie_word_embeddings" in config:
        outer["tie_word_embeddings"] = config["tie_word_embeddings"]
    beside = [each for each in config if each.endswith("_config") and each != name]
    left_out = f"; left out: {listed(beside)}" if beside else ""
    return {**outer, **inner, "model_type": inner_kind}, [
        f"only the language model in {name} is read ({str(inner_kind)[:40]}){left_out}"
    ]


def _family_of(values: Mapping[str, Any]) -> ConfigFamily:
    kind = values.get("model_type")
    family = FAMILIES.get(kind.removesuffix(CANON_SUFFIX)) if isinstance(kind, str) else None
    if family is None:
        raise InputError(
            f"`model_type` must be one of {', '.join(FAMILIES)}, "
            f"but got {str(kind)[:40]!r}; give the config of one of these families"
        )
    foreign = [n for n in FOREIGN_FIELDS if n not in family.fields and values.get(n)]
    if foreign:
        raise InputError(
            f"`{foreign[0]}` is no field of {kind}, but the config has it: the model is another "
            "one; give its true `model_type`, or leave the field out"
        )
    for name, value in family.constants.items():
        if values.get(name, value) != value:
            raise InputError(
                f"`{name}` must be {value!r} for {kind}, but got {str(values[name])[:40]!r}; no "
                "other value is computed by its class"
            )
    return family


def _ignored_fields(values: Mapping[str, Any], family: ConfigFamily) -> list[str]:
    """List fields that decide on costs elsewhere and that this family's class does not read."""
    elsewhere = {name for each in FAMILIES.values() for name in each.fields} - {"head_dim"}
    elsewhere -= {*family.fields, *family.also_read, *MASK_FIELDS}
    ignored = [f"`{name}`" for name in sorted(elsewhere & set(values)) if values[name]]
    notes = []
    if ignored:
        notes.append(f"{family.model_type} has no {listed(ignored)}: ignored")
    notes += [
        f"`{name}` is not taken into account" for name in FIELDS_WITHOUT_COUNTS if values.get(name)
    ]
    return notes


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
