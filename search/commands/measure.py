"""The ``measure`` command: the speed of a shape, and the peak speeds of this machine."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.named_shapes import read_config
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_config import read_model, read_trainable
from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.progress import working
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import OF_DECODERS, Engine
from shapelaw.search.engines.cache import CachedEngine, stored_engine
from shapelaw.search.engines.machine import calibrate, write_hardware
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.generation.decoding_settings import (
    DecodingSettings,
    parse_decoder,
    require_mask_token,
)

WEIGHTS = "model.safetensors"
RANDOM_WEIGHTS = (
    "random weights: a model that knows nothing exceeds no confidence, so that a pass decides one "
    "token (or those of `steps`); the config.json of an exported run is measured with its weights"
)


def _decoding_engine(
    name: str, settings: DecodingSettings, config: Path, document: Mapping[str, Any]
) -> Engine:
    """Return the engine of a masked decoder, with the weights beside the config if there are."""
    if settings.masked:
        require_mask_token(settings, read_trainable(document))
    trained = config.is_file() and (config.parent / WEIGHTS).is_file()
    if settings.masked:
        note(f"{config.name}: {'the weights beside it' if trained else RANDOM_WEIGHTS}")
    return engine_named(name).with_decoder(settings, weights=config.parent if trained else None)


def measure_config(
    config: Path | None,
    engine: str,
    workload: str,
    *,
    decoder: str | None = None,
    keep: bool = True,
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure one shape and return its row, with the verdict on the service level.

    Parameters
    ----------
    config
        Path of a Hugging Face ``config.json``, or the name of a published model.
    engine, workload
        Texts of an engine and a workload.
    decoder
        Settings of a decoder as text. A masked one uses the weights beside the config, if any.
    keep
        Use and extend the store of measurements in the user's cache folder.
    fresh
        Measure again even if the store holds the measurement.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        No config is given or its family is unknown; the engine or the workload does not exist; or
        the engine cannot run the shape, or has no such decoder.
    """
    if config is None:
        raise InputError("a shape is missing; write shapelaw measure CONFIG.json, or --calibrate")
    document = read_config(config)
    settings = None if decoder is None else parse_decoder(decoder)
    other = None if settings == DecodingSettings(decoder="ar") else settings
    measuring = stored_engine(engine, keep=keep, fresh=fresh, decoder=decoder)
    model, notes = _model_for(measuring, document)
    for each in notes:
        note(f"{config.name}: {each}")
    if isinstance(model, Architecture) and measuring.architecture_note and other is None:
        note(f"{config.name}: {measuring.architecture_note}")
    if isinstance(model, Architecture) and (
        measuring.architecture_note or measuring.kind != "measured"
    ):
        measuring = engine_named(engine)
    if other is not None:
        measuring = _decoding_engine(engine, other, config, document)
    work = measuring.served_workload(parse_workload(workload, dtype=measuring.default_dtype))
    with working("measuring the shape"):
        measurement = measuring.measure(model, work)  # type: ignore[arg-type]
    row = asdict(measurement)
    if settings is not None:
        row |= measurement.answer(work)
    if work.max_ttft is not None or work.max_tpot is not None:
        row["meets_service_level"] = measurement.meets(work)
    if (cost := work.cost_per_million(measurement.output_tokens_per_second)) is not None:
        row["cost_per_million_tokens"] = cost
    if isinstance(measuring, CachedEngine):
        row["kept"] = not measuring.measured
    return row


def without_unasked(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for people to read, without the fields of a decoder if none was asked for."""
    return {name: value for name, value in row.items() if name not in OF_DECODERS or value}


def _model_for(
    engine: Engine, document: Mapping[str, Any]
) -> tuple[Shape | Architecture, tuple[str, ...]]:
    """Read a config as the model that an engine measures, with notes on what that leaves out.

    A shape stands for every model of its costs where the engine predicts, or computes both by the
    same code; elsewhere only for the models of its class.
    """
    if not engine.decodes_diffusion and "model_type" in document:
        whole = read_architecture(document)
        if whole.embedding.mask_token is not None:
            raise InputError(
                f"`--engine {engine.label}` cannot serve a diffusion model such as "
                f"{whole.model_type}: it decodes one token after the other, and has no class that "
                "fills in masked tokens; use --engine torch"
            )
    model, notes = read_model(document, whole=engine.serves_architectures)
    if isinstance(model, Architecture) or engine.kind != "measured":
        return model, notes
    try:
        model.require_gate_without_biases("be measured")
        kind = model.to_config()["model_type"]
        if engine.architecture_note or document.get("model_type", kind) == kind:
            return model, notes
    except InputError:
        if not engine.serves_architectures:
            return model, notes
    whole = read_architecture(document)
    return whole, whole.notes


def calibrate_machine(config: Path | None, out: Path | None) -> dict[str, Any]:
    """Measure this machine, write its hardware entry, and return the entry with its path.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        A config is given too, or ``out`` does not end in ``.toml``.
    """
    if config is not None:
        raise InputError(f"--calibrate measures this machine, not {config}; leave one of them out")
    if out is not None and out.suffix != ".toml":
        raise InputError(f"`--out` must end in .toml to be an engine's hardware, but got {out}")
    with working("measuring this machine"):
        device = calibrate()
    return asdict(device) | {"written": str(write_hardware(device, out))}
