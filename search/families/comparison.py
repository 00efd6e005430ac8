"""Statistics of a comparison: differences of loss to a baseline with the noise between seeds.

With ℓ_fs the logarithm of the held-out loss of family f and seed s, the difference of a family to
the baseline b is mean_s ℓ_fs - mean_s ℓ_bs. Its standard error is σ·√(1/n_f + 1/n_b), where σ² is
the variance between seeds within a family, pooled over the families with ν = Σ(n_f - 1) degrees of
freedom, and its 95 % interval takes Student's t of ν degrees. All models are evaluated on the same
text, but that removes only the noise of the text, 5 % of the variance between runs: the loss of a
seed does not say how the same seed does in another family, so runs are not paired by seed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import format_count
from shapelaw.search.families.budget import Variant
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN, parse_objective
from shapelaw.trainers.training.passes import training_flops_per_token, training_passes

LEVEL = 0.95
ROLE, RATE_ROLE = "family", "lr-check"  # roles of the rows of a comparison
LOWER, HIGHER, NONE, DIVERGED = "lower", "higher", "no difference shown", "diverged"
BASELINE = "baseline"
BOUND = "upper bound only"  # of the loss of a diffusion model: it may be lower
ON_SCREEN = (
    *("family", "runs", "loss", "difference_percent", "low", "high", "verdict"),
    *("training_tokens_per_second", "decode_tokens_per_second", "n_total", "cache_bytes"),
)
SPEEDS = ("decode_tokens_per_second", "decode_low", "decode_high", "decode_note")


def variant_of_row(row: Mapping[Any, Any]) -> Variant:
    """Return the variant of a row of the run table, from its columns ``config`` and ``family``."""
    config = json.loads(str(row["config"]))
    objective = row.get("objective")
    return Variant(
        family=str(row["family"]),
        canon=config.get("canon_set") or "",
        objective=objective if isinstance(objective, str) else NEXT_TOKEN,
    )


@dataclass(frozen=True, kw_only=True)
class PooledNoise:
    """Standard deviation of ln loss between seeds, and its degrees of freedom."""

    deviation: float
    degrees: int

    @classmethod
    def pooled(cls, groups: Sequence[np.ndarray]) -> "PooledNoise":
        """Pool the variance within groups of ln losses; NaN without two values in any group."""
        degrees = sum(len(group) - 1 for group in groups if len(group))
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group))
        return cls(
            deviation=float(np.sqrt(squares / degrees)) if degrees else np.nan, degrees=degrees
        )

    @classmethod
    def unknown(cls) -> "PooledNoise":
        """Return a noise of which nothing is known: intervals and p values are missing."""
        return cls(deviation=np.nan, degrees=0)

    def standard_error(self, first: int, second: int) -> float:
        """Return the standard error of the difference of two means of n runs each."""
        return self.deviation * float(np.sqrt(1 / first + 1 / second))

    def quantile(self) -> float:
        """Return Student's t of a two-sided 95 % interval."""
        from scipy.stats import t as student

        return float(student.ppf(0.5 + LEVEL / 2, self.degrees)) if self.degrees else np.nan

    def p_value(self, difference: float, error: float) -> float:
        """Return the two-sided p value of a difference with a standard error."""
        from scipy.stats import t as student

        if not error:
            return 0.0 if difference else 1.0
        return float(2 * student.sf(abs(difference) / error, self.degrees))


@dataclass(frozen=True, kw_only=True, repr=False)
class FamilyComparison(Result):
    """Result of a comparison.

    Attributes
    ----------
    baseline
        Name of the baseline.
    tokens
        Training tokens of each run.
    table
        One row for each variant, sorted by loss; see :func:`compare_rows`.
    noise
        Noise between seeds.
    resolution_percent
        Half width of the interval of a difference, for the median number of runs; a smaller
        difference cannot be shown.
    rates
        Losses at the three learning rates of each variant; empty if not tried.
    """

    baseline: str
    tokens: int
    table: pd.DataFrame
    noise: PooledNoise
    resolution_percent: float
    rates: pd.DataFrame
    remarks: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """Return the table of all variants."""
        return self.table

    def view(self) -> View:
        """Return the table, and what its intervals hold."""
        shown = sum(self.table["verdict"].isin([LOWER, HIGHER]))
        others = len(self.table) - 1
        title = (
            f"{shown} of {counted(others, 'family', 'families')} differ from {self.baseline} at "
            f"{format_count(self.tokens)} tokens; differences below "
            f"±{self.resolution_percent:.2g} % cannot be seen"
        )
        tables = {"Differences of loss to the baseline": self.table[list(ON_SCREEN)]}
        if len(self.rates):
            tables["Loss at each learning rate"] = self.rates
        return View(title=title, tables=tables, notes=self.notes())

    def notes(self) -> list[str]:
        """Return sentences that a reader needs to judge the table."""
        others = len(self.table) - 1
        return [
            f"seeds differ by {100 * self.noise.deviation:.2g} % of the loss (standard deviation "
            f"pooled over {counted(len(self.table), 'family', 'families')}, "
            f"{counted(self.noise.degrees, 'degree')} of freedom); low and high are the ends of a "
            "95 % interval of one difference",
            f"of {others} such intervals one in twenty misses by chance: a verdict needs p < 0.05 "
            f"after Holm's correction for {counted(others, 'comparison')}",
            f"'{NONE}' does not say 'equal': differences up to about "
            f"±{self.resolution_percent:.2g} % stay hidden with so many seeds",
            *self.remarks,
        ]

    def document(self) -> dict[str, Any]:
        """Return the stable document that ``compare-families --json`` prints."""
        return {
            "baseline": self.baseline,
            "tokens": self.tokens,
            "seed_sd_percent": 100 * self.noise.deviation,
            "degrees_of_freedom": self.noise.degrees,
            "resolution_percent": self.resolution_percent,
            "families": self.table,
            "learning_rates": self.rates,
            "notes": self.notes(),
        }


def compare_rows(
    runs: pd.DataFrame,
    *,
    baseline: str = "llama",
    speeds: pd.DataFrame | None = None,
    rates: pd.DataFrame | None = None,
) -> FamilyComparison:
    """Compare the families in rows of a run table.

    Parameters
    ----------
    runs
        Rows of one budget; those of other roles than ``family`` are left out.
    baseline
        Variant that the others are compared with.
    speeds
        Table with ``family`` and the columns of decoding; None without.
    rates
        Losses by learning rate, for the result.

    Returns
    -------
    FamilyComparison
        Its table has ``family, objective, runs, diverged, loss, difference_percent, low, high,
        p_adjusted, verdict, learning_rate``, the counts of the model, ``cache_bytes`` (bf16, of a
        sequence as long as the training context) and the speeds.

    Raises
    ------
    InputError
        The baseline has no finished run, or the rows differ in tokens, corpus or tokenizer.
    """
    rows = _rows_of_one_budget(runs)
    of_rows = [variant_of_row(row) for row in rows.to_dict("records")]
    names = np.array([variant.name for variant in of_rows], dtype=object)
    variants = {variant.name: variant for variant in of_rows}
    logs = np.log(rows["loss"].to_numpy(dtype=float))
    finished = np.isfinite(logs)
    groups = {name: logs[finished & (names == name)] for name in variants}
    if not len(groups.get(baseline, ())):
        raise InputError(
            f"`--baseline` must have a finished run, but {baseline} has none; "
            f"choose one of {', '.join(name for name in groups if len(groups[name])) or 'none'}"
        )
    bounds = {
        name for name, v in variants.items() if parse_objective(v.objective).loss_kind == "bound"
    }
    exact = {name: group for name, group in groups.items() if name not in bounds}
    noise = PooledNoise.pooled(list(exact.values()))
    lines = [
        {
            "family": name,
            "objective": variant.objective,
            **_difference(
                groups[name],
                groups[baseline],
                PooledNoise.unknown() if name in bounds else noise,
                is_base=name == baseline,
            ),
            "diverged": int((~finished & (names == name)).sum()),
            **_model_columns(rows[names == name]),
        }
        for name, variant in variants.items()
    ]
    table = _with_verdicts(pd.DataFrame(lines), baseline, bounds)
    usual = max(int(np.median([len(group) for group in exact.values()])), 1)
    half = noise.quantile() * noise.standard_error(usual, usual)
    return FamilyComparison(
        baseline=baseline,
        tokens=int(rows["tokens"].iloc[0]),
        table=_with_speeds(table, speeds).sort_values("loss", ignore_index=True),
        noise=noise,
        resolution_percent=100 * float(np.expm1(half)),
        rates=pd.DataFrame() if rates is None else rates,
        remarks=(*unequal_noise(exact), *_bound_remarks(bounds)),
    )


def _rows_of_one_budget(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a comparison, which must be of one budget and text."""
    rows = runs[runs["role"] == ROLE] if "role" in runs else runs
    for column in ("tokens", "corpus", "tokenizer", "context_length"):
        values = sorted(rows[column].unique()) if column in rows else []
        if len(values) > 1:
            raise InputError(
                f"`{column}` must be the same in all rows of a comparison, but got "
                f"{', '.join(map(str, values[:3]))}; select the rows of one budget"
            )
    return rows


def _bound_remarks(bounds: set[str]) -> list[str]:
    """Say that the losses of diffusion models are bounds, where there are some."""
    if not bounds:
        return []
    return [
        f"the loss of {listed(sorted(bounds))} is an upper bound of what exact losses measure: "
        "it has no interval and no verdict, and no part in the noise"
    ]


def unequal_noise(groups: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Describe families of other noise than the rest, where Bartlett's test finds it (p < 0.05)."""
    from scipy.stats import bartlett

    several = {name: logs for name, logs in groups.items() if len(logs) > 2 and np.ptp(logs) > 0}
    if len(several) < 2:
        return ()
    chance = float(bartlett(*several.values()).pvalue)
    if chance >= 1 - LEVEL:
        return ()
    noisiest = max(several, key=lambda name: several[name].std(ddof=1))
    return (
        f"the noise between seeds differs between families (Bartlett's test, p = {chance:.2g}), "
        f"most for {noisiest} with {100 * several[noisiest].std(ddof=1):.2g} %: its interval is "
        "too narrow, and those of quiet families are too wide",
    )


def _difference(
    logs: np.ndarray, base: np.ndarray, noise: PooledNoise, *, is_base: bool
) -> dict[str, Any]:
    """Return mean loss and difference to the baseline of a family, with interval and p value."""
    values: dict[str, Any] = {"runs": len(logs), "loss": np.nan}
    if len(logs):
        values["loss"] = float(np.exp(logs.mean()))
    if not len(logs) or is_base:
        nothing = dict.fromkeys(("difference_percent", "low", "high", "p_value"), np.nan)
        return values | nothing | ({"difference_percent": 0.0} if is_base else {})
    difference = float(logs.mean() - base.mean())
    error = noise.standard_error(len(logs), len(base))
    half = noise.quantile() * error
    ends = (difference, difference - half, difference + half)
    percents = [100 * float(np.expm1(value)) for value in ends]
    return {
        **values,
        **dict(zip(("difference_percent", "low", "high"), percents, strict=True)),
        "p_value": noise.p_value(difference, error) if noise.degrees else np.nan,
    }


def _with_verdicts(table: pd.DataFrame, baseline: str, bounds: set[str]) -> pd.DataFrame:
    """Add p values after Holm's correction and the verdict of each family."""
    adjusted = adjust_p_values(table["p_value"].to_numpy(dtype=float))
    sign = np.where(table["difference_percent"] < 0, LOWER, HIGHER)
    verdict = np.where(adjusted < 1 - LEVEL, sign, NONE)
    verdict = np.where(table["family"].isin(bounds), BOUND, verdict)
    verdict = np.where(table["family"] == baseline, BASELINE, verdict)
    verdict = np.where(table["diverged"] > 0, DIVERGED, verdict)
    place = list(table).index("p_value")
    table = table.drop(columns="p_value")
    table.insert(place, "p_adjusted", adjusted)
    table.insert(place + 1, "verdict", verdict)
    return table


def adjust_p_values(values: np.ndarray) -> np.ndarray:
    """Adjust p values for their number by Holm's method; missing ones stay missing.

    Examples
    --------
    >>> adjust_p_values(np.array([0.01, 0.04, 0.03]))
    array([0.03, 0.06, 0.06])
    """
    adjusted = np.full(len(values), np.nan)
    given = np.flatnonzero(np.isfinite(values))
    order = given[np.argsort(values[given])]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted


def _model_columns(rows: pd.DataFrame) -> dict[str, Any]:
    """Return counts, cache, learning rate and training speed of the model of some rows."""
    first = rows.iloc[0]
    model = read_architecture(json.loads(str(first["config"])))
    length = int(first["context_length"])
    passes = training_passes(variant_of_row(first.to_dict()).objective, length)
    return {
        "learning_rate": float(first["learning_rate"]),
        "n_active_non_embedding": model.n_active_non_embedding,
        "n_non_embedding": model.n_non_embedding,
        "n_total": model.n_total,
        "kv_bytes_per_token": model.counts(length)["kv_bytes_per_token"],
        "cache_bytes": round(model.cache_bytes(length)),
        "training_flops_per_token": training_flops_per_token(model, length, passes),
        "training_tokens_per_second": float(rows["tokens_per_second"].astype(float).median()),
    }


def _with_speeds(table: pd.DataFrame, speeds: pd.DataFrame | None) -> pd.DataFrame:
    """Add the columns of decoding; missing ones are NaN."""
    if speeds is None or not len(speeds):
        speeds = table[["family"]].assign(decode_note="").reindex(columns=["family", *SPEEDS])
    return table.merge(speeds[["family", *SPEEDS]], on="family", how="left")
