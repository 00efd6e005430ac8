"""The run table: one row per finished training run; columns, units, loading and validation."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import InputError
from scaling.expression import select
from scaling.files import write_whole
from scaling.shape import FIELD_TYPES, INTEGER_FIELDS, RATIOS, ShapeTable

# Column -> unit or meaning. A fit needs n_non_embedding (or n_total), tokens, loss and what its
# law uses; everything else may be missing.
COLUMNS = {
    "run_id": "name, unique in the table",
    "role": "proxy, or confirmation of a proposal",
    "family": "architecture family",
    **dict.fromkeys(INTEGER_FIELDS, "as in a Hugging Face config"),
    "tie_word_embeddings": "true or false",
    "qk_norm": "true or false",
    "rope_theta": "base of rotary positions",
    "n_total": "parameters",
    "n_active": "parameters at work per token",
    "n_non_embedding": "parameters without embedding and head",
    "tokens": "training tokens",
    "flops_6nd": "6 · n_non_embedding · tokens",
    "flops_counted": "training FLOPs with head and attention",
    "loss": "nats per token, held-out text",
    "loss_se": "its sampling error, nats per token",
    "bits_per_byte": "held-out bits per byte of text",
    "seed": "initialisation",
    "data_seed": "order of the data",
    "corpus": "name and hash",
    "tokenizer": "name and hash",
    "context_length": "tokens",
    "batch_tokens": "tokens per step",
    "learning_rate": "peak, matrices",
    "schedule": "name",
    "optimizer": "name",
    "device": "name",
    "dtype": "of the arithmetic",
    "seconds": "of training, wall",
    "tokens_per_second": "of training",
    "git_commit": "of the code, or its version",
    "status": "done, failed or diverged",
}
NUMERIC = {
    *INTEGER_FIELDS,
    *RATIOS,
    *("n_total", "n_active", "n_non_embedding", "tokens", "loss", "loss_se", "bits_per_byte"),
}
SIGNATURE = (*INTEGER_FIELDS, "tie_word_embeddings", "qk_norm", "rope_theta")
SIGNATURE_RECIPE = (
    *("tokens", "corpus", "tokenizer", "context_length", "batch_tokens"),
    *("learning_rate", "schedule", "optimizer", "dtype"),
)


def load_runs(
    path: Path | str, *, where: str | None = None, exclude: Iterable[str] = ()
) -> pd.DataFrame:
    """Read and validate a run table (CSV or Parquet) and keep its finished runs.

    Parameters
    ----------
    path
        The table; its columns are described in ``COLUMNS``.
    where
        A filter over columns (:func:`scaling.expression.select`).
    exclude
        Identifiers of runs to leave out.

    Returns
    -------
    The rows whose status is ``done`` (or that have none), with the shape ratios added where the
    table has the fields of a shape. ``frame.attrs["left_out"]`` maps each dropped run to why.

    Raises
    ------
    InputError
        The file cannot be read, or a value breaks a rule: file, line, column and value are named.
    """
    path = Path(path)
    runs = read_table(path)
    if "run_id" not in runs:
        runs["run_id"] = [f"row-{line}" for line in range(2, len(runs) + 2)]
    runs["run_id"] = runs["run_id"].astype(str)
    left_out = _unwanted(runs, set(exclude), path)
    # The index still counts the lines of the file: errors name them.
    runs = with_ratios(runs[~runs["run_id"].isin(left_out)], str(path))
    if where is not None:
        chosen = select(where, {str(name): runs[name] for name in runs}, len(runs))
        left_out |= dict.fromkeys(runs["run_id"][~chosen], f"not in `{where}`")
        runs = runs[chosen]
    validate(runs, str(path))
    for name in NUMERIC & set(runs.columns):
        runs[name] = pd.to_numeric(runs[name])
    runs = runs.reset_index(drop=True)
    runs.attrs["left_out"] = left_out
    return runs


def _unwanted(runs: pd.DataFrame, exclude: set[str], path: Path) -> dict[str, str]:
    """Rows excluded by name and runs that did not finish: {run_id: why}."""
    if unknown := sorted(exclude - set(runs["run_id"])):
        raise InputError(f"{path} has no run {unknown[0]!r} to exclude; look at its run_id column")
    unwanted = dict.fromkeys(sorted(exclude), "excluded by name")
    if "status" in runs:
        status = runs["status"].fillna("done").astype(str)
        unfinished = (status != "done") & ~runs["run_id"].isin(exclude)
        unwanted |= dict(zip(runs["run_id"][unfinished], status[unfinished], strict=True))
    return unwanted


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or Parquet file as it is.

    Raises
    ------
    InputError
        There is no such file, or it is neither.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; give an existing table"
        ) from None
    except (ValueError, ImportError) as error:  # pandas' parser errors are ValueErrors
        text = str(error).splitlines()[0]
        raise InputError(f"{path} is not a CSV or Parquet table: {text}") from None
    if frame.empty:
        raise InputError(f"{path} has no rows; give a table with one row per run")
    return frame


def with_ratios(frame: pd.DataFrame, source: str = "the table") -> pd.DataFrame:
    """Add parameter counts and shape ratios where the fields of a shape are there.

    A column that the table already has is kept.
    """
    frame = frame.copy()
    if set(INTEGER_FIELDS) - {"vocab_size"} <= set(frame.columns):
        check_numbers(frame, [name for name in INTEGER_FIELDS if name in frame], source)
        derived = table_of(frame).frame()
        counted = {"n_non_embedding", *RATIOS} | ({"n_total"} if "vocab_size" in frame else set())
        for name in sorted(counted - set(frame.columns)):
            frame[name] = derived[name].to_numpy()
    return frame


def table_of(frame: pd.DataFrame) -> ShapeTable:
    """The shapes of a frame's rows; unknown vocabulary counts 1, tied and without QK-norm."""
    defaults = {
        "vocab_size": 1,
        "tie_word_embeddings": True,
        "qk_norm": False,
        "rope_theta": 10_000.0,
    }
    columns: dict[str, Any] = {}
    for name, kind in FIELD_TYPES.items():
        values = frame[name] if name in frame else pd.Series(defaults[name], index=frame.index)
        if kind is np.bool_:
            values = values.astype(str).str.lower().isin(("true", "1", "1.0"))
        columns[name] = values.to_numpy().astype(kind)
    return ShapeTable(**columns)


def validate(runs: pd.DataFrame, source: str) -> None:
    """Check every rule of the run table.

    Raises
    ------
    InputError
        Names the source, the line (the header is line 1), the column, the value and the rule.
    """
    if runs.empty:
        raise InputError(f"{source} has no finished run left to use; loosen the filter")
    twice = runs["run_id"].duplicated()
    if twice.any():
        raise InputError(
            f"{source} line {runs.index[twice][0] + 2}: `run_id` must be unique, "
            f"but {runs['run_id'][twice].iloc[0]!r} stands twice; rename one of them"
        )
    check_numbers(runs, [name for name in runs.columns if name in NUMERIC], source)
    if {"num_attention_heads", "num_key_value_heads"} <= set(runs.columns):
        broken = (runs["num_attention_heads"] % runs["num_key_value_heads"] != 0).to_numpy()
        if broken.any():
            row = runs.loc[broken].iloc[0]
            raise InputError(
                f"{source} line {runs.index[broken][0] + 2}: "
                "`num_attention_heads % num_key_value_heads == 0` must hold, but got "
                f"{row['num_attention_heads']:.0f} and {row['num_key_value_heads']:.0f}"
            )


def check_numbers(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Every value of the columns must be a positive finite number.

    Sampling errors (``loss_se``) may be missing or zero.
    """
    for name in columns:
        numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
        broken = ~(np.isfinite(numbers) & (numbers > 0))
        rule = f"`{name} > 0` and finite"
        if name in INTEGER_FIELDS and not broken.any():
            broken = numbers != np.round(numbers)
            rule = f"`{name}` a whole number"
        if name in ("loss_se", "bits_per_byte"):
            broken &= ~(frame[name].isna().to_numpy() | (numbers == 0))
        if broken.any():
            line = frame.index[broken][0] + 2
            value = frame[name][broken].iloc[0]
            raise InputError(
                f"{source} line {line}: {rule} must hold, but got {value}; "
                "correct the row, or leave it out with --exclude RUN_ID"
            )


def require_columns(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Name the first missing column.

    Raises
    ------
    InputError
        A column is missing.
    """
    for name in columns:
        if name not in frame:
            raise InputError(
                f"{source} lacks the column `{name}`; it has {', '.join(map(str, frame.columns))}"
            )


def same_losses(runs: pd.DataFrame, source: str) -> None:
    """Losses are comparable: one corpus and one tokenizer.

    Raises
    ------
    InputError
        The table mixes several.
    """
    for name in ("corpus", "tokenizer"):
        different = list(runs[name].unique()) if name in runs else []
        if len(different) > 1:
            first, second = different[:2]
            raise InputError(
                f"{source}: `{name}` must be the same for all rows of a fit, but has {first!r} "
                f"and {second!r}; choose with --where \"{name} == '{first}'\""
            )


def write_runs(path: Path, runs: pd.DataFrame) -> None:
    """Write a run table whole, in the order of ``COLUMNS``, other columns last.

    Numbers keep every digit; the format follows the file's ending (.csv or .parquet).
    """
    known = [name for name in COLUMNS if name in runs]
    runs = runs[known + [name for name in runs if name not in COLUMNS]]
    if path.suffix == ".parquet":
        write_whole(path, lambda target: runs.to_parquet(target, index=False))
    else:
        write_whole(path, lambda target: runs.to_csv(target, index=False))


def replicate_noise(runs: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation of ln loss between seeds, pooled over all shapes that have replicates.

    Returns
    -------
    The deviation (a fraction of the loss) and its degrees of freedom; NaN and 0 without replicates.
    """
    if not {*INTEGER_FIELDS, "tokens"} <= set(runs.columns):
        return np.nan, 0
    keys = [name for name in (*SIGNATURE, *SIGNATURE_RECIPE) if name in runs]
    groups = np.log(runs["loss"]).groupby([runs[name] for name in keys], dropna=False)
    degrees = int((groups.count() - 1).sum())
    if degrees == 0:
        return np.nan, 0
    squares = groups.apply(lambda values: ((values - values.mean()) ** 2).sum()).sum()
    return float(np.sqrt(squares / degrees)), degrees


def fingerprint(runs: pd.DataFrame) -> str:
    """SHA-256 over the rows, in full precision."""
    return hashlib.sha256(runs.to_csv(index=False).encode()).hexdigest()
