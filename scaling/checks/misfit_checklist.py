"""(Mis)Fitting checklist of a fit, filled from the fit and its run table.

The questions are those of the checklist of arXiv 2502.18969 for authors of scaling laws. A question
that neither the fit nor the table answers is marked as not recorded.
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
    """Answers to the (Mis)Fitting checklist (arXiv 2502.18969).

    Parameters
    ----------
    sections
        Answers by section and question.
    """

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
        """Return one row per question."""
        return pd.DataFrame(
            [
                {"section": section, "question": question, "answer": answer}
                for section, answers in self.sections.items()
                for question, answer in answers.items()
            ]
        )

    def view(self) -> View:
        """Return the number of answered questions and the answers."""
        total = sum(len(answers) for answers in self.sections.values())
        answered = f"{total - len(self.missing)} of {total} questions answered"
        return View(
            title=f"(Mis)Fitting checklist ({SOURCE}): {answered}",
            tables={"checklist": self.frame()},
        )

    def markdown(self) -> str:
        """Format the answers as Markdown for the appendix of a paper or a README."""
        lines = [f"### (Mis)Fitting checklist ({SOURCE})"]
        for section, answers in self.sections.items():
            lines += ["", f"**{section}**", ""]
            lines += [f"- {question}: {answer}" for question, answer in answers.items()]
        return "\n".join(lines) + "\n"

    def document(self) -> dict[str, Any]:
        """Return the answers, the questions without an answer, and the Markdown text."""
        return {
            "source": SOURCE,
            "sections": self.sections,
            "missing": self.missing,
            "markdown": self.markdown(),
        }


def checklist(
    fitted: Fit, runs: RunTable | pd.DataFrame, *, hold_outs: Sequence[HoldOut] = ()
) -> Checklist:
    """Fill the (Mis)Fitting checklist from a fit and its run table.

    Parameters
    ----------
    fitted
        Fit to describe.
    runs
        Runs of the fit, with any columns that describe their training.
    hold_outs
        Leave-largest-out results of the law.

    Returns
    -------
    Checklist
        Answers by section and question.

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
    """Describe the equation, its variables, and its free and held parameters."""
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
    """Describe a column of the law with its unit."""
    meanings = {N: f"N, {fitted.size_convention} parameters", D: "D, training tokens seen"}
    ratios = {
        "hidden_over_sqrt_n": "hidden size / √N",
        "mlp_to_attention": "MLP parameters / attention parameters",
        "gqa": "query heads / key-value heads",
        "num_hidden_layers": "layers",
    }
    return meanings.get(name) or f"{name}, {ratios.get(name, COLUMNS.get(name, 'dimensionless'))}"


def _training(rows: RunTable) -> dict[str, str]:
    """Describe the sizes, tokens, compute and training settings of the runs."""
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
    """Describe repeated data: D counts the tokens seen, ``unique_tokens`` the distinct ones."""
    if "unique_tokens" not in rows:
        return f"{MISSING}: D counts the tokens seen, the table has no unique_tokens"
    epochs = rows[D] / rows["unique_tokens"]
    return f"{(epochs > 1.0).sum()} runs repeat data, at most {epochs.max():.3g} times"


def _collection(fitted: Fit, rows: RunTable) -> dict[str, str]:
    """Describe the rows, the metric, the noise between seeds and the hash of the data."""
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
    """Describe the objective, the optimiser, its starts and the quality of the fit."""
    reached = f"{fitted.basins[0]['starts']:.0f}" if fitted.basins else "an unknown number"
    held_out = "; ".join(hold_out.view().title for hold_out in hold_outs)
    uncertainty = f"{fitted.bootstrap}, 95 % percentile intervals; new runs: plus residual noise"
    return {
        "objective": f"{fitted.minimised.describe()} (predicted minus observed, never averaged)",
        "value at the optimum": f"{fitted.objective:.12g}",
        "delta": f"{fitted.delta:.6g} ({fitted.delta_rule})",
        "weights": fitted.minimised.weights or "none",
        "optimiser of the fit": "batched Levenberg-Marquardt with closed-form Hessians from every "
        "start; SciPy least_squares refines the best",
        "starts": f"{fitted.starts} scrambled Sobol points, seed {fitted.seed}; "
        f"{reached} reach the best optimum",
        "tolerance": "to the limit of float64; largest gradient at the end, relative to "
        f"sqrt(curvature x objective): {fitted.gradient_norm:.3g}",
        "outcome": fitted.status,
        "hold-out": held_out or f"{MISSING}: run leave_largest_out",
        "goodness of fit": f"noise around the law {100 * fitted.noise:.2f} % of the loss",
        "uncertainty": uncertainty if len(fitted.draws) else f"{MISSING}: the fit has no resamples",
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
    """Describe a column by its distinct values if few, else by their range or number."""
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
    return f"{len(distinct)} distinct values{suffix}"
