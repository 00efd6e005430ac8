"""The (Mis)Fitting checklist of a fit, filled from what the fit and the run table record.

The questions are those that arXiv 2502.18969 asks authors of scaling laws to answer. What neither
the fit nor the table records says so: an empty answer is an answer too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.checks.holdout import HoldOut
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import COLUMNS, D, N
from shapelaw.scaling.runs.levels import count_levels
from shapelaw.scaling.runs.table import RunTable

MISSING = "not recorded"
SOURCE = "arXiv 2502.18969"


@dataclass(frozen=True, kw_only=True, repr=False)
class Checklist(Result):
    """Answers by section and question."""

    sections: dict[str, dict[str, str]]

    @property
    def missing(self) -> list[str]:
        """Questions without an answer."""
        return [
            question
            for answers in self.sections.values()
            for question, answer in answers.items()
            if answer.startswith(MISSING)
        ]

    def frame(self) -> pd.DataFrame:
        """One row per question."""
        return pd.DataFrame(
            [
                {"section": section, "question": question, "answer": answer}
                for section, answers in self.sections.items()
                for question, answer in answers.items()
            ]
        )

    def view(self) -> View:
        """Return how many questions have an answer, and the answers."""
        total = sum(len(answers) for answers in self.sections.values())
        given = f"{total - len(self.missing)} of {total} questions answered"
        return View(
            title=f"(Mis)Fitting checklist ({SOURCE}): {given}", tables={"checklist": self.frame()}
        )

    def markdown(self) -> str:
        """A block to paste into a paper's appendix or a README."""
        lines = [f"### (Mis)Fitting checklist ({SOURCE})"]
        for section, answers in self.sections.items():
            lines += ["", f"**{section}**", ""]
            lines += [f"- {question}: {answer}" for question, answer in answers.items()]
        return "\n".join(lines) + "\n"

    def document(self) -> dict[str, Any]:
        """Return the answers, the questions without one, and the block of text."""
        return {
            "source": SOURCE,
            "sections": self.sections,
            "missing": self.missing,
            "markdown": self.markdown(),
        }


def checklist(
    fitted: Fit, runs: RunTable | pd.DataFrame, *, hold_outs: Sequence[HoldOut] = ()
) -> Checklist:
    """Fill the checklist.

    Parameters
    ----------
    runs
        Those of the fit, with whatever columns describe their training.
    hold_outs
        Leave-largest-out results that judged the law.

    Raises
    ------
    InputError
        A column of the law is missing.
    """
    runs = fitted.count_as_fitted(runs)
    return Checklist(
        sections={
            "Scaling law": _law(fitted),
            "Training": _training(runs),
            "Data collection": _collection(fitted, runs),
            "Fitting": _fitting(fitted, hold_outs),
        }
    )


def _law(fitted: Fit) -> dict[str, str]:
    free = [name for name in fitted.names if name not in fitted.held]
    held = {name: held.why for name, held in fitted.held.items()}
    return {
        "form": f"{fitted.law_name}: {fitted.law.describe()}",
        "variables and units": "; ".join(_variable(fitted, name) for name in fitted.law.columns),
        "N counts": f"{fitted.size_convention} parameters",
        "free parameters": f"{len(free)}: {', '.join(free)}",
        "held parameters": "; ".join(f"{name} ({why})" for name, why in held.items()) or "none",
    }


def _variable(fitted: Fit, name: str) -> str:
    meanings = {N: f"N, {fitted.size_convention} parameters", D: "D, training tokens seen"}
    ratios = {
        "hidden_over_sqrt_n": "hidden size / √N",
        "mlp_to_attention": "MLP parameters / attention parameters",
        "gqa": "query heads / key-value heads",
        "num_hidden_layers": "layers",
    }
    return meanings.get(name) or f"{name}, {ratios.get(name, COLUMNS.get(name, 'dimensionless'))}"


def _training(rows: RunTable) -> dict[str, str]:
    flops = _range(rows["flops_counted"]) if "flops_counted" in rows else MISSING
    sizes, tokens = count_levels(rows.size_level), count_levels(rows.token_level)
    return {
        "models": f"{counted(len(rows), 'run')}; {counted(sizes, 'size')}, {_range(rows.sizes)}",
        "data per model": f"{counted(tokens, 'token count')}, {_range(rows.tokens)} tokens; "
        f"D/N {_range(rows.tokens / rows.sizes)}",
        "compute": f"{_range(rows.compute)} FLOPs as 6ND; counted: {flops}",
        "training data": _values(rows, "corpus"),
        "repeated data": _repeats(rows),
        "tokenizer": _values(rows, "tokenizer"),
        "architecture family": _values(rows, "family"),
        "optimiser": _values(rows, "optimizer"),
        "learning rate": _values(rows, "learning_rate"),
        "schedule": _values(rows, "schedule"),
        "batch": _values(rows, "batch_tokens", " tokens"),
        "context length": _values(rows, "context_length", " tokens"),
        "arithmetic": _values(rows, "dtype"),
        "seeds": _values(rows, "seed"),
        "training code": _values(rows, "git_commit"),
    }


def _repeats(rows: RunTable) -> str:
    """D is the tokens seen; unique ones are known where a table gives them."""
    if "unique_tokens" not in rows:
        return f"{MISSING}: D counts the tokens seen, the table has no unique_tokens"
    epochs = rows[D] / rows["unique_tokens"]
    return f"{(epochs > 1.0).sum()} runs see data again, at most {epochs.max():.3g} times"


def _collection(fitted: Fit, rows: RunTable) -> dict[str, str]:
    clusters = [name for name in ("curve", "checkpoint_of") if name in rows]
    per_run = f"several per run (column {clusters[0]})" if clusters else "one row per run"
    left_out = ", ".join(f"{name} ({why})" for name, why in fitted.left_out.items())
    return {
        "checkpoints": per_run,
        "metric": f"loss in {rows.loss_unit} on held-out text"
        + (" (an upper bound)" if rows.loss_kind == "bound" else ""),
        "range of the losses": f"{_range(rows.losses)} {rows.loss_unit}",
        "rows left out": f"{len(fitted.left_out)}: {left_out}" if left_out else "none",
        "noise between seeds": MISSING
        if fitted.replicate_noise is None
        else f"{100 * fitted.replicate_noise:.2f} % of the loss "
        f"({counted(fitted.replicate_degrees, 'degree')} of freedom)",
        "data hash": f"sha256 {fitted.data_sha256}",
    }


def _fitting(fitted: Fit, hold_outs: Sequence[HoldOut]) -> dict[str, str]:
    reached = f"{fitted.basins[0]['starts']:.0f}" if fitted.basins else "an unknown number"
    judged = "; ".join(one.view().title for one in hold_outs)
    spread = f"{fitted.bootstrap}, 95 % percentile intervals; new runs: plus residual noise"
    return {
        "objective": f"{fitted.minimised.describe()} (predicted minus observed, never averaged)",
        "value at the optimum": f"{fitted.objective:.12g}",
        "delta": f"{fitted.delta:.6g} ({fitted.delta_rule})",
        "weights": fitted.minimised.weights or "none",
        "optimiser of the fit": "batched Levenberg-Marquardt with closed-form Hessians from every "
        "start; SciPy least_squares finishes the best",
        "starts": f"{fitted.starts} scrambled Sobol points, seed {fitted.seed}; "
        f"{reached} lead to the best",
        "tolerance": "to the limit of float64; largest gradient at the end, relative to "
        f"sqrt(curvature x objective): {fitted.gradient_norm:.3g}",
        "outcome": fitted.status,
        "hold-out": judged or f"{MISSING}: run leave_largest_out",
        "goodness of fit": f"noise around the law {100 * fitted.noise:.2f} % of the loss",
        "uncertainty": spread if len(fitted.draws) else f"{MISSING}: the fit has no resamples",
        "code": _code(),
    }


def _code() -> str:
    try:
        return f"shapelaw {version('shapelaw')}"
    except PackageNotFoundError:
        return f"{MISSING}: shapelaw is not installed"


def _range(values: "pd.Series | np.ndarray") -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _values(rows: RunTable, column: str, unit: str = "") -> str:
    """What a column holds: its values where they are few, else their range or number."""
    if column not in rows or rows[column].isna().all():
        return MISSING
    values = rows[column].dropna()
    gaps = len(rows) - len(values)
    suffix = f"{unit} ({MISSING} for {gaps} runs)" if gaps else unit
    distinct = values.unique()
    if len(distinct) <= 4:
        return ", ".join(map(str, distinct)) + suffix
    if pd.api.types.is_numeric_dtype(values):
        return _range(values) + suffix
    return f"{len(distinct)} different ones{suffix}"
