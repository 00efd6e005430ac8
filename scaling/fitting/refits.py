"""What every check does again and again: fit a law to part of a table, and group its rows."""

from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import SIZES, Fit
from shapelaw.scaling.laws.law import D, Law, N
from shapelaw.scaling.runs.table import require_columns
from shapelaw.scaling.solver.objectives import Objective

LawLike = str | Law
SAME = 0.1  # values within 10 % of each other are one level
DENSE = 4000  # more distinct values than this are binned instead of clustered


class FitSettings(TypedDict, total=False):
    """How the fits inside a check are made: the keywords of :func:`fit`."""

    objective: str | Objective
    delta: float | str
    size: str
    starts: int
    resamples: int
    seed: int


QUICK: FitSettings = {"starts": 64, "resamples": 0}


def refit(law: LawLike, runs: pd.DataFrame, **settings: Unpack[FitSettings]) -> Fit:
    """Fit a law with few starts and no resamples unless the settings say otherwise.

    Raises
    ------
    InputError
        As :func:`shapelaw.scaling.fitting.fit_law.fit` does.
    """
    chosen: FitSettings = {**QUICK, **settings}
    return fit(law, runs, **chosen)


def name_of(law: LawLike) -> str:
    """What to call a law before it is fitted."""
    return law if isinstance(law, str) else repr(law)


def settings_of(fitted: Fit) -> FitSettings:
    """Settings that fit as a fit was made, with at most 64 starts and 100 resamples."""
    given = fitted.delta_rule == "as given"
    return {
        "objective": fitted.minimised,
        "delta": fitted.delta if given else "auto",
        "size": fitted.size_convention,
        "starts": min(fitted.starts, 64),
        "resamples": min(len(fitted.draws), 100),
        "seed": fitted.seed,
    }


def sized(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with a column N; total parameters stand in where it has no others.

    Raises
    ------
    InputError
        The table counts no parameters, or lacks tokens or loss.
    """
    if N not in runs and "n_total" in runs:
        runs = runs.assign(**{N: runs["n_total"]})
    require_columns(runs, (N, D, "loss"), "the run table")
    return runs


def rows_for(fitted: Fit, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows as a fit wants them: N by its own convention, every column of its law there.

    Raises
    ------
    InputError
        A column is missing.
    """
    column = SIZES[fitted.size_convention]
    if column != N and column in frame:
        frame = frame.assign(**{N: frame[column]})
    require_columns(frame, fitted.law.columns, "the table")
    return frame


def compute_of(runs: pd.DataFrame) -> np.ndarray:
    """Training FLOPs of every row, (n,): ``flops_6nd`` where the table has it, else 6 N D."""
    if "flops_6nd" in runs:
        given = pd.to_numeric(runs["flops_6nd"], errors="coerce").to_numpy(dtype=float)
        if (given > 0).all():
            return given
    return np.asarray(6.0 * runs[N].to_numpy(dtype=float) * runs[D].to_numpy(dtype=float))


def level_of(values: np.ndarray, tolerance: float = SAME) -> np.ndarray:
    """Number the levels of a column, (n,), from 0 upwards: values within 10 % are one level.

    The densest window of that width becomes a level first, then the densest of what is left: so a
    level that scatters around its nominal value stays whole.

    Raises
    ------
    InputError
        A value is not a positive number.

    Examples
    --------
    >>> level_of(np.array([1.0, 1.05, 3.0, 0.98, 2.9])).tolist()
    [0, 0, 1, 0, 1]
    """
    values = np.asarray(values, dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError("levels need `value > 0` and finite; leave such rows out")
    width = np.log1p(tolerance)
    logs, inverse, counts = np.unique(np.log(values), return_inverse=True, return_counts=True)
    if len(logs) > DENSE:
        return np.unique(np.floor(np.log(values) / width), return_inverse=True)[1]
    label = np.full(len(logs), -1)
    left = np.arange(len(logs))
    while len(left):
        ends = np.searchsorted(logs[left], logs[left] + width * (1 + 1e-9), side="right")
        weight = np.concatenate(([0], np.cumsum(counts[left])))
        first = int(np.argmax(weight[ends] - weight[: len(left)]))
        # What a chosen level splits off must not be joined again across it.
        window = left[first : ends[first]]
        label[window] = window[0]
        left = np.delete(left, slice(first, ends[first]))
    return np.unique(_unbroken(label), return_inverse=True)[1][inverse]


def _unbroken(label: np.ndarray) -> np.ndarray:
    """Labels of sorted values such that no level surrounds another one."""
    starts = np.concatenate(([True], label[1:] != label[:-1]))
    return np.asarray(np.cumsum(starts))


def with_best_loss(
    runs: pd.DataFrame, *, size: str = "auto", tolerance: float = SAME
) -> pd.DataFrame:
    """Add ``best_loss``: the lowest loss of all shapes trained at the same N and D, nats per token.

    The empirical L_opt that arXiv 2510.18245 multiplies its brackets with below 1B parameters, and
    that :class:`shapelaw.scaling.laws.registry.BestLoss` reads. A run without others at its N and D
    is its own best and tells nothing of shape. The best of few or noisy runs is no smooth law of N
    and D: a larger size needs runs of its own before its losses can be predicted.

    Parameters
    ----------
    size
        Convention of N: ``non-embedding``, ``total`` or ``active``; ``"auto"`` is the first of the
        first two that the table has.
    tolerance
        N and D within this fraction are equal.

    Raises
    ------
    InputError
        A column is missing, or there is no such convention.
    """
    if size not in (*SIZES, "auto"):
        raise InputError(f"`size` must be auto, {', '.join(SIZES)}, but got {size!r}")
    if size == "auto":
        column, runs_sized = N, sized(runs)
    else:
        column, runs_sized = SIZES[size], runs
    require_columns(runs_sized, (column, D, "loss"), "the run table")
    keys = [level_of(runs_sized[name].to_numpy(dtype=float), tolerance) for name in (column, D)]
    best = runs["loss"].astype(float).groupby(keys).transform("min")
    return runs.assign(best_loss=best)


def shapes_of(runs: pd.DataFrame) -> np.ndarray | None:
    """Number the distinct shapes of a table, (n,); None where no column describes a shape."""
    columns = [name for name in (*INTEGER_FIELDS, *RATIOS) if name in runs and name != "vocab_size"]
    if not columns:
        return None
    return runs.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()


def public_parameters(fitted: Fit, theta: np.ndarray | None = None) -> dict[str, float]:
    """Parameters of the equation at the optimum (or at theta), with a_opt = β/(α+β)."""
    values = dict(fitted.law.public(fitted.theta if theta is None else theta, fitted.reference))
    if {"alpha", "beta"} <= set(values):
        values["a_opt"] = values["beta"] / (values["alpha"] + values["beta"])
    return values
