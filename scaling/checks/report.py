"""Everything that a reviewer asks of a fitted law, in one call: ``check(law, runs)``.

The parts stand alone too: :mod:`shapelaw.scaling.checks.holdout`,
:mod:`shapelaw.scaling.checks.metrics`, :mod:`shapelaw.scaling.checks.comparison`,
:mod:`shapelaw.scaling.checks.conditioning`, :mod:`shapelaw.scaling.checks.chinchilla`,
:mod:`shapelaw.scaling.fitting.compute_optimal`, :mod:`shapelaw.scaling.checks.precision` and
:mod:`shapelaw.scaling.checks.misfit_checklist`.
"""

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.checks.chinchilla import PARAMETRIC, Approaches, approaches
from shapelaw.scaling.checks.conditioning import Identifiability, identifiability_report
from shapelaw.scaling.checks.holdout import HoldOut, leave_largest_out
from shapelaw.scaling.checks.metrics import Regret, Scores, scores
from shapelaw.scaling.checks.misfit_checklist import Checklist, checklist
from shapelaw.scaling.checks.precision import IntervalWidths, interval_widths
from shapelaw.scaling.display.html import details_html
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import Valley, valley
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, fit_quickly, settings_like
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import AUTO, RunTable, as_run_table

RESAMPLES = 100
UNDER_COVERED = 0.8  # of new runs inside their 95 % interval
CONVENTIONS_APART = 1.05  # counted FLOPs over 6ND


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckReport(Result):
    """A fit with everything that judges it.

    ``hold_outs`` are leave-largest-out by size and by compute, those that the table allows;
    ``unavailable`` says why the others are missing; ``in_sample`` scores the fitted runs.
    """

    fit: Fit
    in_sample: Scores
    hold_outs: dict[str, HoldOut]
    unavailable: dict[str, str]
    identifiability: Identifiability
    intervals: IntervalWidths
    valley: Valley
    approaches: Approaches
    checklist: Checklist
    warnings: tuple[str, ...]

    @property
    def regret(self) -> Regret | None:
        """Decision regret on the groups that the last cut-off by size holds out."""
        for hold_out in self.hold_outs.values():
            for cutoff in reversed(hold_out.fitted):
                if cutoff.regret is not None and len(cutoff.regret.groups):
                    return cutoff.regret
        return None

    def frame(self) -> pd.DataFrame:
        """Scores on the fitted runs and at every cut-off."""
        own = self.in_sample.frame().rename(columns={"rows": "rows_in"})
        parts = [own.assign(by="fitted runs")]
        parts += [one.frame().assign(by=by) for by, one in self.hold_outs.items()]
        table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
        return table[["by", *(name for name in table if name != "by")]]

    def view(self) -> View:
        """Return the warnings, the titles and tables of every part, and what is not available."""
        left_out = {f"leave-largest-out by {by}: ": one for by, one in self.hold_outs.items()}
        parts: dict[str, Result] = {**left_out}
        parts |= {"identifiability": self.identifiability, "intervals": self.intervals}
        parts |= {"valley": self.valley, "approaches": self.approaches}
        parts |= {"checklist": self.checklist}
        views = {name: part.view() for name, part in parts.items()}
        warned = counted(len(self.warnings), "warning") if self.warnings else "no warning"
        return View(
            title=f"{self.fit.law_name} on {counted(len(self.fit.run_ids), 'run')}: {warned}",
            tables={
                f"{name}{title}" if name in left_out else title: frame
                for name, view in views.items()
                if name != "checklist"
                for title, frame in view.tables.items()
                if len(frame)
            },
            notes=[
                *(f"warning: {line}" for line in self.warnings),
                f"error on the fitted runs {self.in_sample.mape:.3g} % of the loss",
                *(view.title for view in views.values()),
                *(line for name in (*left_out, "approaches") for line in views[name].notes),
                *([self.regret.view().title] if self.regret else []),
                *(f"by {by}: not available: {why}" for by, why in self.unavailable.items()),
            ],
        )

    def _repr_html_(self) -> str:
        """Return the parts for a notebook, the checklist folded."""
        return super()._repr_html_() + details_html(
            self.checklist.view().title, self.checklist.markdown()
        )

    def document(self) -> dict[str, Any]:
        """Return every part."""
        return {
            "fit": self.fit,
            "warnings": self.warnings,
            "in_sample": self.in_sample,
            "leave_largest_out": self.hold_outs,
            "not_available": self.unavailable,
            "regret": self.regret,
            "identifiability": self.identifiability,
            "intervals": self.intervals,
            "valley": self.valley,
            "chinchilla_approaches": self.approaches,
            "checklist": self.checklist,
        }


def check(
    subject: LawLike | Fit,
    runs: RunTable | pd.DataFrame,
    *,
    compute: float | None = None,
    **settings: Unpack[FitSettings],
) -> CheckReport:
    """Check a law on a run table.

    Parameters
    ----------
    subject
        A fit to these runs, or a law to fit to them.
    compute
        FLOPs at which the optimum and its valley are stated; by default the largest of the runs.
    settings
        Of every fit inside, by default 16 starts and 100 resamples; those of a given fit are
        taken over.

    Raises
    ------
    InputError
        The law cannot be fitted, or the fit is not one of these runs.
    """
    runs = as_run_table(runs, settings.pop("size", AUTO))
    chosen: FitSettings = {"resamples": RESAMPLES, **settings}
    if isinstance(subject, Fit):
        runs = subject.count_as_fitted(runs)
        _same_runs(subject, runs)
        chosen = {**settings_like(subject), **settings}
    law = subject.law if isinstance(subject, Fit) else subject
    fitted = subject if isinstance(subject, Fit) else fit_quickly(law, runs, **chosen)
    hold_outs: dict[str, HoldOut] = {}
    unavailable: dict[str, str] = {}
    for by in ("size", "compute"):
        try:
            hold_outs[by] = leave_largest_out(law, runs, by=by, **chosen)
        except InputError as error:
            unavailable[by] = str(error)
    if compute is None:
        compute = float(runs.compute.max())
    report = identifiability_report(fitted, runs)
    intervals = interval_widths(fitted, runs)
    return CheckReport(
        fit=fitted,
        in_sample=scores(runs.losses, fitted.central(runs)),
        hold_outs=hold_outs,
        unavailable=unavailable,
        identifiability=report,
        intervals=intervals,
        valley=valley(fitted, compute),
        approaches=approaches(
            runs,
            compute=compute,
            parametric=fitted if fitted.law_name == PARAMETRIC else None,
            **chosen,
        ),
        checklist=checklist(fitted, runs, hold_outs=list(hold_outs.values())),
        warnings=(
            *_about_table(runs),
            *_about_hold_outs(hold_outs),
            *([f"parameters are {report.status}"] if report.status != "identified" else []),
            *(finding.what for finding in report.findings),
            *([intervals.view().title] if intervals.too_narrow else []),
            *intervals.notes(),
        ),
    )


def _same_runs(fitted: Fit, runs: RunTable) -> None:
    if runs.run_ids.tolist() != fitted.run_ids:
        raise InputError(
            f"`check` needs the runs of the fit ({counted(len(fitted.run_ids), 'row')}), but got "
            f"{counted(len(runs), 'row')} with other names; give those runs, or the "
            "law instead of the fit"
        )


def _about_table(runs: RunTable) -> list[str]:
    """Warn of mid-schedule checkpoints, several rows of one run, and FLOPs that differ from 6ND."""
    words = []
    if "schedule" in runs and runs["schedule"].astype(str).str.contains("const").any():
        words.append("some schedules are constant: losses before a decay are not final losses")
    words += [
        f"several rows are one run ({name}): rows are not independent"
        for name in ("curve", "checkpoint_of")
        if name in runs and runs[name].duplicated().any()
    ]
    if "flops_counted" in runs:
        apart = runs["flops_counted"].to_numpy(dtype=float) / runs.compute
        ratio = float(np.nanmedian(np.maximum(apart, 1 / apart)))
        if ratio > CONVENTIONS_APART:
            words.append(f"counted FLOPs and 6ND differ by a factor {ratio:.2f} (median)")
    return words


def _about_hold_outs(hold_outs: dict[str, HoldOut]) -> list[str]:
    words = []
    for by, hold_out in hold_outs.items():
        inside = [one.coverage * len(one.held_out) for one in hold_out.fitted
                  if one.coverage is not None]  # fmt: skip
        rows = sum(len(one.held_out) for one in hold_out.fitted)
        if inside and sum(inside) / rows < UNDER_COVERED:
            share = 100 * sum(inside) / rows
            words.append(
                f"only {share:.0f} % of the runs left out by {by} lie inside their 95 % interval"
            )
    return words
