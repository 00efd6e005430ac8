"""Reading of Hugging Face configs as architectures of any family, and writing of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.canon import PLACES, CanonBlock
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    require_layer_types,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer, layer_runs
from shapelaw.scaling.architectures.registry import FAMILIES, TEXT_MODELS
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.errors import InputError

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
