"""Check the rules of a run table, and collect its warnings.

Every error names the source, the line (the header is line 1), the value and the way out.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import LOSS_KINDS, NUMERIC, OPTIONAL_NUMERIC

SWITCHES = {"tie_word_embeddings": True, "qk_norm": False, "decayed": False}  # where unknown
SPELLINGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
NATS_PER_BIT = float(np.log(2))
GUESSING = 1.05  # a loss above this many times ln(vocabulary) is worse than guessing uniformly
LARGEST_MODEL = 2.0**62  # parameters that 64-bit integers count safely
FLOPS_APART = 0.05
WAY_OUT = "correct the row, or leave it out with --exclude RUN_ID"


def line(frame: pd.DataFrame, broken: np.ndarray) -> int:
    """Line in the file of the first row where a mask is true; the index counts the rows."""
    return int(frame.index[broken][0]) + 2


def as_floats(values: pd.Series) -> np.ndarray:
    """Values as float64, NaN where one is no number: text, a date, true or false."""
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        return np.full(len(values), np.nan)
    if not pd.api.types.is_numeric_dtype(values):
        switches = values.map(lambda value: isinstance(value, bool)).to_numpy(dtype=bool)
        values = pd.to_numeric(values.astype(object).mask(switches), errors="coerce")
    return values.to_numpy(dtype=float, na_value=np.nan)


def require_columns(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Refuse a table that lacks a column, and name the first one that is missing.

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


def check_numbers(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Refuse values that are no positive finite numbers.

    A value of a column in ``OPTIONAL_NUMERIC`` may be missing or zero.

    Raises
    ------
    InputError
        Names the source, the line, the column and the value.
    """
    for name in columns:
        numbers = as_floats(frame[name])
        broken = ~(np.isfinite(numbers) & (numbers > 0))
        rule = f"`{name} > 0` and finite"
        if name in INTEGER_FIELDS and not broken.any():
            broken = numbers != np.round(numbers)
            rule = f"`{name}` a whole number"
        if name in OPTIONAL_NUMERIC:
            broken &= ~(frame[name].isna().to_numpy() | (numbers == 0))
        if broken.any():
            value = frame[name][broken].iloc[0]
            raise InputError(
                f"{source} line {line(frame, broken)}: {rule} must hold, but got {value}; {WAY_OUT}"
            )


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
            f"{source} line {line(runs, twice.to_numpy())}: `run_id` must be unique, "
            f"but {runs['run_id'][twice].iloc[0]!r} stands twice; rename one of them"
        )
    check_numbers(runs, [name for name in runs.columns if name in NUMERIC], source)
    if {"num_attention_heads", "num_key_value_heads"} <= set(runs.columns):
        broken = (runs["num_attention_heads"] % runs["num_key_value_heads"] != 0).to_numpy()
        if broken.any():
            row = runs.loc[broken].iloc[0]
            raise InputError(
                f"{source} line {line(runs, broken)}: "
                "`num_attention_heads % num_key_value_heads == 0` must hold, but got "
                f"{row['num_attention_heads']:.0f} and {row['num_key_value_heads']:.0f}"
            )
    refuse_duplicates(runs, source)


def same_losses(runs: pd.DataFrame, source: str) -> None:
    """Refuse losses that are not comparable: of several corpora, tokenizers, texts or kinds.

    Raises
    ------
    InputError
        The table mixes several.
    """
    for name in ("corpus", "tokenizer", "validation", "loss_kind"):
        different = list(runs[name].unique()) if name in runs else []
        if len(different) > 1:
            first, second = different[:2]
            raise InputError(
                f"{source}: `{name}` must be the same for all rows of a fit, but has {first!r} "
                f"and {second!r}; choose with --where \"{name} == '{first}'\""
            )


def plain_numbers(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Text that spells numbers becomes numbers, column by column.

    A column with anything else stays as it is, so that a check can name its value.
    """
    changed = {}
    for name in columns:
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values) and isinstance(values.dtype, np.dtype):
            continue
        numbers = as_floats(values)
        if (np.isnan(numbers) == values.isna().to_numpy()).all():
            changed[name] = numbers
    return frame.assign(**changed) if changed else frame


def plain_switches(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Convert true and false, however spelt, to booleans; a missing one takes its default.

    Raises
    ------
    InputError
        A value is neither.
    """
    changed = {}
    for name, default in SWITCHES.items():
        if name not in frame or frame[name].dtype == np.bool_:
            continue
        values = frame[name]
        spelt = values.astype(object).map(lambda value: SPELLINGS.get(str(value).strip().lower()))
        broken = (spelt.isna() & values.notna()).to_numpy()
        if broken.any():
            raise InputError(
                f"{source} line {line(frame, broken)}: `{name}` must be true or false, "
                f"but got {values[broken].iloc[0]}; {WAY_OUT}"
            )
        changed[name] = np.where(spelt.isna(), default, spelt == True)  # noqa: E712 (objects)
    return frame.assign(**changed) if changed else frame


def refuse_giants(frame: pd.DataFrame, parameters: np.ndarray, source: str) -> None:
    """Shapes whose parameters, counted in float64, overflow 64-bit integers.

    Raises
    ------
    InputError
        Names the first one.
    """
    broken = ~(parameters < LARGEST_MODEL)
    if broken.any():
        raise InputError(
            f"{source} line {line(frame, broken)}: a shape must have fewer than "
            f"`{LARGEST_MODEL:.3g}` parameters, but got {parameters[broken][0]:.3g}; {WAY_OUT}"
        )


def refuse_duplicates(runs: pd.DataFrame, source: str) -> None:
    """Two rows that agree in everything but their name are one run counted twice.

    Raises
    ------
    InputError
        Names both lines.
    """
    if "loss" not in runs:
        return
    likely = runs.duplicated([name for name in ("loss", "tokens") if name in runs], keep=False)
    rows = runs.loc[likely].drop(columns="run_id")
    again = rows.duplicated().to_numpy()
    if again.any():
        hashes = pd.util.hash_pandas_object(rows, index=False).to_numpy()
        position = int(np.flatnonzero(again)[0])
        second, first = rows.index[position], rows.index[hashes == hashes[position]][0]
        names = runs["run_id"]
        raise InputError(
            f"{source} lines {first + 2} and {second + 2}: two rows must differ in more than "
            f"`run_id`, but {names[first]!r} and {names[second]!r} do not; leave one out with "
            f"--exclude {names[second]}, or tell replicates apart by a column `seed`"
        )


def losses_in_nats(runs: pd.DataFrame, source: str) -> tuple[pd.DataFrame, list[str]]:
    """Losses in nats per token, whatever ``loss_unit`` says, and a note where they changed.

    Raises
    ------
    InputError
        A unit is neither nats nor bits, or the table mixes them.
    """
    if "loss_unit" not in runs:
        return runs, []
    units = runs["loss_unit"].astype(object).map(lambda unit: str(unit).strip().lower())
    unknown = ~units.isin(("nats", "bits")).to_numpy()
    if unknown.any():
        raise InputError(
            f"{source} line {line(runs, unknown)}: `loss_unit` must be nats or bits (per token), "
            f"but got {runs['loss_unit'][unknown].iloc[0]}; correct the row"
        )
    bits = (units == "bits").to_numpy()
    if bits.any() and not bits.all():
        raise InputError(
            f"{source}: `loss_unit` must be the same for all rows, but is bits on line "
            f"{line(runs, bits)} and nats on line {line(runs, ~bits)}; convert them (a bit is "
            f"{NATS_PER_BIT:.4f} nats), or choose with --where \"loss_unit == 'nats'\""
        )
    if not bits.any():
        return runs, []
    columns = [name for name in ("loss", "loss_se") if name in runs]
    converted = {name: runs[name] * NATS_PER_BIT for name in columns}
    note = f"{' and '.join(columns)} converted from bits to nats per token"
    return runs.assign(**converted, loss_unit="nats"), [note]


def refuse_unknown_kinds(runs: pd.DataFrame, source: str) -> None:
    """Refuse a ``loss_kind`` that is neither exact nor a bound.

    Raises
    ------
    InputError
        Names the row.
    """
    if "loss_kind" not in runs:
        return
    unknown = ~runs["loss_kind"].isin(LOSS_KINDS).to_numpy()
    if unknown.any():
        raise InputError(
            f"{source} line {line(runs, unknown)}: `loss_kind` must be {' or '.join(LOSS_KINDS)}, "
            f"but got {runs['loss_kind'][unknown].iloc[0]}; {WAY_OUT}"
        )


def refuse_guessing(runs: pd.DataFrame, source: str) -> None:
    """Refuse losses above ln(vocabulary), the loss of a uniform guess in nats.

    Raises
    ------
    InputError
        Names the row.
    """
    if not {"loss", "vocab_size"} <= set(runs.columns):
        return
    vocabulary = runs["vocab_size"].to_numpy(dtype=float)
    loss = runs["loss"].to_numpy(dtype=float)
    broken = (vocabulary > 1) & (loss > GUESSING * np.log(vocabulary))
    if broken.any():
        size, value = vocabulary[broken][0], loss[broken][0]
        raise InputError(
            f"{source} line {line(runs, broken)}: `loss <= {GUESSING} ln(vocab_size)` must hold, "
            f"but got {value:.6g} with a vocabulary of {size:.0f} (ln {np.log(size):.4g}): worse "
            "than guessing uniformly; is it in bits per token (say so in a column `loss_unit`) "
            f"or diverged? {WAY_OUT}"
        )


def warnings_of(runs: pd.DataFrame) -> list[str]:
    """List the doubts about a run table that concern its fits, one sentence each."""
    return [*_flops_apart(runs), *_repeated_text(runs), *_undecayed(runs)]


def _flops_apart(runs: pd.DataFrame) -> list[str]:
    if not {"flops_6nd", "flops_counted"} <= set(runs.columns):
        return []
    ratio = (runs["flops_counted"] / runs["flops_6nd"].where(runs["flops_6nd"] > 0)).dropna()
    apart = int(((ratio - 1).abs() > FLOPS_APART).sum())
    if not apart:
        return []
    return [
        f"counted FLOPs differ from 6ND by more than {FLOPS_APART:.0%} in {apart} of {len(runs)} "
        f"rows ({ratio.min():.2f} to {ratio.max():.2f} times): say which one a budget means"
    ]


def _repeated_text(runs: pd.DataFrame) -> list[str]:
    if not {"tokens", "unique_tokens"} <= set(runs.columns):
        return []
    epochs = runs["tokens"] / runs["unique_tokens"].where(runs["unique_tokens"] > 0)
    repeated = int((epochs > 1).sum())
    if not repeated:
        return []
    return [
        f"{repeated} of {len(runs)} rows trained on repeated text, up to {epochs.max():.2f} "
        "epochs: D counts tokens seen, and a repeated token teaches less than a new one"
    ]


def _undecayed(runs: pd.DataFrame) -> list[str]:
    if "decayed" in runs:
        early = int((~runs["decayed"].astype(bool)).sum())
        if not early:
            return []
        return [
            f"{early} of {len(runs)} rows are checkpoints in mid-schedule (`decayed` is not true): "
            "their losses are higher than those of runs whose learning rate decayed"
        ]
    if not {"run_group", "tokens"} <= set(runs.columns):
        return []
    tokens = runs.groupby("run_group")["tokens"]
    several = int((tokens.max() > tokens.min()).sum())
    if not several:
        return []
    return [
        f"{several} runs (`run_group`) have rows at several token counts and no column `decayed`: "
        "unless each was decayed, all but the last are checkpoints in mid-schedule"
    ]
