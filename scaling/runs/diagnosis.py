"""Warnings of a run table: properties of its rows that bias a fit, in order of harm.

Every fit carries the warnings of its table. A warning names the rows that it is about and, where
there is one, the filter that leaves them out. :func:`list_warnings` states the order.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.runs.columns import SIZES, D, N
from shapelaw.scaling.runs.validation import SPELLINGS, as_floats

MAX_FLOPS_DEVIATION = 0.05  # relative difference of counted FLOPs from 6ND without a note
MAX_HARMLESS_FACTOR = 4.0  # of counted FLOPs over 6ND: head and attention of small models
FLAGS = ("outlier", "is_outlier", "flagged")  # columns that mark doubtful rows
# Columns that describe a recipe: rows of one cell should agree in them.
RECIPE = (
    *("learning_rate", "learning_rate_rest", "batch_tokens", "batch_size", "batch_sequences"),
    *("weight_decay", "optimizer", "schedule", "warmup_tokens", "warmup_steps", "dropout"),
    "residual_init",
)
TUNED = ("learning_rate", "batch_tokens", "batch_size", "batch_sequences", "weight_decay")
LAST, BEST = "last_of_group", "best_of_cell"  # names that a filter may use besides the columns
WARM_UP_SHARE = 0.02  # of the last checkpoint's tokens, below which a run may be in its warm-up
MIN_RATES = 3  # values of a recipe's number in a cell that make a grid with two edges
GRIDS = (0.1, 0.05, 0.02, 0.01, 0.005)  # steps of rounded losses, in nats or bits
MIN_ROUNDED = 6  # rows that show a grid of rounding
MIN_EXPLAINED = 0.5  # share of the variance of residuals that a column explains, at least
MAX_CHANCE = 1e-3  # probability of such a share by chance, over all columns together
MAX_NAME = 24  # characters of a run id that a warning lists
# Outcomes and sizes, which a law's residuals may follow without being their cause.
OUTCOMES = ("loss", "bits_per_byte", "accuracy", "flops", "seconds", "perplexity", "ppl")


def list_warnings(
    runs: pd.DataFrame, size: str = N, unexplained: Iterable[str] = (), without_flagged: str = ""
) -> list[str]:
    """List the properties of a run table that may bias its fits, the most harmful first.

    Losses that are not final ones come first, because they move every parameter of a law; then
    runs that differ in more than the law has, which move exponents and differences of shapes; then
    what makes intervals too narrow; last what concerns budgets of FLOPs alone.

    Parameters
    ----------
    runs
        One row per run.
    size
        Column that N is read from.
    unexplained
        Warnings of a fit about its residuals (:func:`residual_warnings`), which rank among these.
    without_flagged
        Change of a fit without the rows that are flagged as outliers.

    Returns
    -------
    list
        One sentence each.
    """
    return [
        # Losses that are not those of finished, sound runs.
        *_flag_warnings(runs, without_flagged),
        *_schedule_warnings(runs),
        *_warm_up_warnings(runs),
        # Differences between runs that the law takes for those of N, D and shape.
        *_repetition_warnings(runs),
        *unexplained,
        *_recipe_warnings(runs),
        *_edge_warnings(runs),
        *_embedding_warnings(runs, size),
        # Errors that intervals do not know of.
        *_dependence_warnings(runs),
        *_rounding_warnings(runs),
        # Budgets.
        *_flops_sentences(runs, harmful=True),
    ]


def list_remarks(runs: pd.DataFrame) -> list[str]:
    """List the properties of a run table that a reader should know and that bias no fit.

    Parameters
    ----------
    runs
        One row per run.

    Returns
    -------
    list
        One sentence each.
    """
    return _flops_sentences(runs, harmful=False)


def flagged_rows(runs: pd.DataFrame) -> np.ndarray:
    """Return a mask of the rows that a column of the table marks as outliers, (n,)."""
    masks = [_is_true(runs[name]) for name in FLAGS if name in runs]
    return np.asarray(np.logical_or.reduce([np.zeros(len(runs), dtype=bool), *masks]))


def row_marks(runs: pd.DataFrame, names: set[str]) -> dict[str, np.ndarray]:
    """Compute the marks that a filter names besides the columns.

    Parameters
    ----------
    runs
        One row per run.
    names
        Names in the filter.

    Returns
    -------
    dict
        ``last_of_group``: true for the checkpoint with most tokens of each ``run_group``;
        ``best_of_cell``: true for the recipe with the lowest mean loss among the rows of equal N, D
        and shape. Only those that the filter names and the table allows, (n,) each.
    """
    marks = {}
    if LAST in names and LAST not in runs and {"run_group", D} <= set(runs):
        marks[LAST] = _is_last(runs)
    if BEST in names and BEST not in runs and "loss" in runs and _cell_columns(runs):
        marks[BEST] = _has_best_recipe(runs)
    return marks


def residual_warnings(
    runs: pd.DataFrame, law_columns: Mapping[str, np.ndarray], residuals: np.ndarray
) -> list[str]:
    """Warn of a column outside of the law that explains most of the residuals of a fit.

    Parameters
    ----------
    runs
        Fitted runs.
    law_columns
        Columns of the law, (n,) each.
    residuals
        Residuals of ln loss, (n,).

    Returns
    -------
    list
        A sentence about the column that explains the largest share; empty if there is none.
    """
    deviations = residuals - residuals.mean()
    total = float(deviations @ deviations)
    skipped = {*law_columns, *INTEGER_FIELDS, *SIZES.values(), D, "run_id", "config", *FLAGS}
    found: list[tuple[float, str, int]] = []
    names = [n for n in map(str, runs) if n not in skipped and not n.startswith(OUTCOMES)]
    for name in names:
        values = runs[name].astype(str).where(runs[name].notna(), "missing")
        group = values.groupby(values).ngroup().to_numpy()
        count = int(group.max()) + 1
        if not 2 <= count <= len(runs) // 3 or total <= 0:
            continue
        sums, rows = np.bincount(group, deviations), np.bincount(group)
        within = total - float((sums**2 / rows).sum())
        free = len(runs) - count
        ratio = (total - within) / (count - 1) / max(within / free, np.finfo(float).tiny)
        share = 1 - within / free / (total / (len(runs) - 1))
        chance = float(stats.f.sf(ratio, count - 1, free)) * len(names)
        if share > MIN_EXPLAINED and chance < MAX_CHANCE:
            found.append((share, name, count))
    if not found:
        return []
    share, name, count = max(found)
    return [
        f"the column `{name}` ({count} values), which the law does not have, explains "
        f"{share:.0%} of the residuals: runs of its values differ by more than N, D and shape say; "
        f'keep one value, such as --where "{name} == {_literal(runs[name].iloc[0])}", or fit them '
        "apart"
    ]


def _literal(value: object) -> str:
    """Write a value as in a filter."""
    return f"'{value}'" if isinstance(value, str) else str(value)


def _is_true(values: pd.Series) -> np.ndarray:
    """Return a mask of the values that are written as true, (n,)."""
    return np.array([SPELLINGS.get(str(value).strip().lower(), False) for value in values])


def _named(runs: pd.DataFrame, rows: np.ndarray) -> str:
    """List the run ids of some rows, at most five."""
    if "run_id" not in runs:
        return f"rows {listed(np.flatnonzero(rows).tolist())}"
    return listed(runs["run_id"].astype(str).str.slice(0, MAX_NAME).to_numpy()[rows].tolist())


def _flag_warnings(runs: pd.DataFrame, without: str) -> list[str]:
    """Warn of rows that a column of the table marks as outliers, and say what they change."""
    warnings = []
    change = f" ({without})" if without else ""
    for name in FLAGS:
        flagged = _is_true(runs[name]) if name in runs else np.zeros(0, dtype=bool)
        if flagged.any():
            warnings.append(
                f"{counted(int(flagged.sum()), 'row')} of {len(runs)} flagged as outliers (column "
                f"`{name}`) are part of the table: {_named(runs, flagged)}; "
                f'--where "not {name}" drops them{change}'
            )
    return warnings


def _schedule_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of checkpoints whose learning rate had not decayed, or may not have."""
    if "decayed" in runs:
        undecayed = int((~_is_true(runs["decayed"])).sum())
        if not undecayed:
            return []
        kept = "; --where decayed keeps the others" if undecayed < len(runs) else ""
        return [
            f"{undecayed} of {len(runs)} rows are checkpoints in mid-schedule (`decayed` is not "
            f"true): their losses are higher than those of runs whose learning rate decayed{kept}"
        ]
    if {"run_group", D} <= set(runs.columns):
        before_last = ~_is_last(runs)
        if before_last.any():
            groups = int(runs["run_group"][before_last].nunique())
            return [
                f"{before_last.sum()} of {len(runs)} rows are checkpoints in mid-schedule unless "
                f"each was decayed: {counted(groups, 'run')} (`run_group`) have rows at several "
                "token counts and there is no column `decayed`; "
                f"--where {LAST} keeps the last of each"
            ]
    if "schedule" in runs and runs["schedule"].astype(str).str.contains("const").any():
        return ["some schedules are constant: losses before a decay are not final losses"]
    return []


def _is_last(runs: pd.DataFrame) -> np.ndarray:
    """Return a mask of the rows that have the most tokens of their run group, (n,)."""
    tokens = pd.Series(as_floats(runs[D]), index=runs.index)
    last = tokens.groupby(runs["run_group"]).transform("max")
    return (~(tokens < last)).to_numpy()


def _warm_up_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of checkpoints within the warm-up, known from a column or from the share trained."""
    if D not in runs:
        return []
    tokens, early, certain = as_floats(runs[D]), np.zeros(len(runs), dtype=bool), False
    if "warmup_tokens" in runs:
        early, certain = tokens <= as_floats(runs["warmup_tokens"]), True
    for step in ("step", "steps"):
        if step in runs and "warmup_steps" in runs:
            early, certain = (
                early | (as_floats(runs[step]) <= as_floats(runs["warmup_steps"])),
                True,
            )
    if not certain and "run_group" in runs:
        last = pd.Series(tokens, index=runs.index).groupby(runs["run_group"]).transform("max")
        early = tokens < WARM_UP_SHARE * last.to_numpy()
    if not early.any():
        return []
    share = f"below {WARM_UP_SHARE:.0%} of its run's tokens"
    why = "are within the warm-up" if certain else f"may be within the warm-up ({share})"
    return [
        f"{early.sum()} of {len(runs)} rows {why}, where the loss is far above the law: "
        f"{_named(runs, early)}; leave them out with --where or --exclude"
    ]


def _repetition_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of runs that were trained for more than one epoch."""
    if {D, "unique_tokens"} <= set(runs.columns):
        unique = as_floats(runs["unique_tokens"])
        epochs = as_floats(runs[D]) / np.where(unique > 0, unique, np.nan)
        kept = "tokens <= unique_tokens"
    elif "epochs" in runs:
        epochs, kept = as_floats(runs["epochs"]), "epochs <= 1"
    else:
        return []
    repeated = int((epochs > 1).sum())
    if not repeated:
        return []
    way_out = f'; --where "{kept}" keeps the others' if repeated < len(runs) else ""
    return [
        f"{repeated} of {len(runs)} rows trained on repeated text, up to {np.nanmax(epochs):.2f} "
        f"epochs: D counts tokens seen, and a repeated token teaches less than a new one{way_out}"
    ]


def _cell_columns(runs: pd.DataFrame) -> list[str]:
    """Return the columns that define a cell of equal N, D and shape; empty without N and D."""
    sizes = [name for name in (*SIZES.values(), D) if name in runs]
    if D not in sizes or len(sizes) < 2:
        return []
    return sizes + [name for name in (*INTEGER_FIELDS, *RATIOS) if name in runs]


def _has_best_recipe(runs: pd.DataFrame) -> np.ndarray:
    """Return a mask of the rows whose recipe has the lowest mean loss of its cell, (n,)."""
    cell = runs.groupby(_cell_columns(runs), dropna=False).ngroup().to_numpy()
    recipe = [cell, *(runs[name].astype(str).to_numpy() for name in RECIPE if name in runs)]
    losses = pd.Series(as_floats(runs["loss"]))
    mean = losses.groupby(recipe).transform("mean")
    return (mean <= mean.groupby(cell).transform("min")).to_numpy()


def _recipe_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of rows of equal N, D and shape that were trained with several recipes."""
    columns = _cell_columns(runs)
    if not columns:
        return []
    cells = runs.groupby(columns, dropna=False)
    counts = {name: cells[name].transform("nunique").to_numpy() for name in RECIPE if name in runs}
    several = {name: count > 1 for name, count in counts.items() if (count > 1).any()}
    if not several:
        return []
    rows = np.logical_or.reduce(list(several.values())).sum()
    names = ", ".join(f"`{name}`" for name in several)
    return [
        f"{rows} of {len(runs)} rows mix several values of {names} at equal N and D: a fit takes "
        f"the difference for noise; --where {BEST} keeps the best recipe of each cell, a lower "
        "envelope"
    ]


def _edge_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of cells whose best learning rate or batch is at the edge of its grid."""
    columns = _cell_columns(runs)
    if not columns or "loss" not in runs:
        return []
    cell = runs.groupby(columns, dropna=False).ngroup().to_numpy()
    warnings = []
    for name in (name for name in TUNED if name in runs):
        values, losses = as_floats(runs[name]), as_floats(runs["loss"])
        grid = pd.DataFrame({"cell": cell, "value": values, "loss": losses}).dropna()
        best = grid.groupby(["cell", "value"])["loss"].min().reset_index()
        grids = [rows for _, rows in best.groupby("cell") if len(rows) >= MIN_RATES]
        places = [(int(rows["loss"].to_numpy().argmin()), len(rows) - 1) for rows in grids]
        lowest = sum(place == 0 for place, _ in places)
        highest = sum(place == last for place, last in places)
        if lowest + highest:
            ends = [
                f"{n} at the {end}" for n, end in ((lowest, "lowest"), (highest, "highest")) if n
            ]
            warnings.append(
                f"the best `{name}` is at the edge of its grid in {lowest + highest} of "
                f"{counted(len(places), 'cell')} of equal N and D ({', '.join(ends)}): a value "
                "beyond it may be better, and these losses are too high"
            )
    return warnings


def _rounding_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of losses on a coarse grid, in nats or in bits."""
    if "loss" not in runs:
        return []
    losses = as_floats(runs["loss"])
    losses = losses[np.isfinite(losses) & (losses > 0)]
    if len(losses) < MIN_ROUNDED:
        return []
    for step in GRIDS:
        for unit in (step, step * np.log(2)):
            places = losses / unit
            if np.abs(places - np.round(places)).max() < 1e-6 * places.max():
                return [
                    f"all losses lie on a grid of {unit:.3g}: rounding alone makes errors of up to "
                    f"{unit / 2 / np.median(losses):.2%} of a loss, which intervals and small "
                    "differences cannot go below; use losses with more digits"
                ]
    return []


def _embedding_warnings(runs: pd.DataFrame, size: str) -> list[str]:
    """Warn where N counts embeddings and they are most of it."""
    if size != SIZES["total"] or size not in runs:
        return []
    total = as_floats(runs[size])
    if N in runs:
        share = 1 - as_floats(runs[N]) / total
    elif {"vocab_size", "hidden_size"} <= set(runs.columns):
        tied = "tie_word_embeddings" in runs and _is_true(runs["tie_word_embeddings"])
        matrices = np.where(tied, 1, 2)
        share = matrices * as_floats(runs["vocab_size"]) * as_floats(runs["hidden_size"]) / total
    else:
        return []
    rows = int((share > 0.5).sum())
    if not rows:
        return []
    way_out = "; --size non-embedding leaves them out" if N in runs else ""
    return [
        f"embeddings are most of N in {rows} of {len(runs)} rows (up to {np.nanmax(share):.0%} of "
        f"`{size}`): exponents of N then describe the vocabulary more than the layers{way_out}"
    ]


def _dependence_warnings(runs: pd.DataFrame) -> list[str]:
    """Warn of rows that share a training run by a column that fits do not read."""
    return [
        f"several rows belong to one run (column {name}): rows are not independent"
        for name in ("curve", "checkpoint_of")
        if name in runs and runs[name].duplicated().any()
    ]


def _flops_sentences(runs: pd.DataFrame, *, harmful: bool) -> list[str]:
    """Compare counted training FLOPs with 6ND: a warning beyond a factor, otherwise a remark."""
    if not {"flops_6nd", "flops_counted"} <= set(runs.columns):
        return []
    expected = as_floats(runs["flops_6nd"])
    ratio = as_floats(runs["flops_counted"]) / np.where(expected > 0, expected, np.nan)
    ratio[~(ratio > 0)] = np.nan
    deviating = int((np.abs(ratio - 1) > MAX_FLOPS_DEVIATION).sum())
    if not deviating:
        return []
    low, high = np.nanmin(ratio), np.nanmax(ratio)
    if harmful != (max(high, 1 / low) > MAX_HARMLESS_FACTOR):
        return []
    return [
        f"counted FLOPs differ from 6ND by more than {MAX_FLOPS_DEVIATION:.0%} in {deviating} of "
        f"{len(runs)} rows ({low:.2f} to {high:.2f} times): state which of them a budget counts"
    ]
