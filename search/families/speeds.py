"""Decoding speed of the models of a comparison on a throughput engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import write_text
from shapelaw.search.engines._base import Engine
from shapelaw.search.families.budget import Variant
from shapelaw.search.workload import Workload

KEY = ("family", "config", "engine", "workload")


def usual_workload(context: int) -> str:
    """Return the text of a workload that fills the training context: half prompt, half output."""
    return f"{context // 2}/{context - context // 2}"


def measure_speeds(
    models: Mapping[Variant, Architecture], engine: Engine, workload: Workload, path: Path
) -> pd.DataFrame:
    """Measure every model, and keep the measurements in a table that a repeated call reads.

    Parameters
    ----------
    models
        Model of each variant.
    engine, workload
        Engine that decodes, and its workload. An engine that knows the dense families only gives no
        speed; the reason stands in ``decode_note``.
    path
        CSV file of the measurements.
    """
    kept = pd.read_csv(path, keep_default_na=False, na_values=[""]) if path.exists() else None
    rows: list[dict[Any, Any]] = [] if kept is None else kept.to_dict("records")
    wanted = []
    for variant, model in models.items():
        key = (variant.name, model.config_text(), engine.label, workload.served)
        row = next((row for row in rows if tuple(row[name] for name in KEY) == key), None)
        if row is None:
            row = dict(zip(KEY, key, strict=True)) | _measure(model, engine, workload)
            rows.append(row)
            table = pd.DataFrame(rows)
            write_text(path, table.to_csv(index=False, lineterminator="\n"))
        wanted.append(row)
    return pd.DataFrame(wanted).assign(decode_note=lambda table: table["decode_note"].fillna(""))


def _measure(model: Architecture, engine: Engine, workload: Workload) -> dict[str, Any]:
    """Measure one model: decoded tokens/s with the ends of its interval, or the reason why not."""
    speeds = dict.fromkeys(("decode_tokens_per_second", "decode_low", "decode_high"), np.nan)
    if not engine.serves_architectures:
        reason = f"{engine.label} measures dense shapes only; --engine torch decodes every family"
        return {**speeds, "decode_note": reason}
    try:
        measured = engine.measure(model, workload)  # type: ignore[arg-type]
    except (InputError, WorkError) as error:
        return {**speeds, "decode_note": str(error)}
    share = measured.decode_tokens_per_second / measured.output_tokens_per_second
    return {
        "decode_tokens_per_second": measured.decode_tokens_per_second,
        "decode_low": share * measured.low,
        "decode_high": share * measured.high,
        "decode_note": "disturbed by another process" if measured.disturbed else "",
    }
