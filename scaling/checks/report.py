"""Check of a fitted law on a run table, with all its parts in one report: ``check(law, runs)``.

Each part can be called by itself: see :mod:`shapelaw.scaling.checks.holdout`,
:mod:`shapelaw.scaling.checks.metrics`, :mod:`shapelaw.scaling.checks.comparison`,
:mod:`shapelaw.scaling.checks.conditioning`, :mod:`shapelaw.scaling.checks.chinchilla`,
:mod:`shapelaw.scaling.fitting.compute_optimal`, :mod:`shapelaw.scaling.checks.precision` and
:mod:`shapelaw.scaling.checks.misfit_checklist`.
"""

from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd

from shapelaw.scaling.checks.chinchilla import Approaches, approaches
from shapelaw.scaling.checks.conditioning import Identifiability, identifiability_report
from shapelaw.scaling.checks.holdout import HoldOut, leave_largest_out
from shapelaw.scaling.checks.metrics import Regret, Scores, scores
from shapelaw.scaling.checks.misfit_checklist import Checklist, checklist
from shapelaw.scaling.checks.precision import IntervalWidths, interval_widths
from shapelaw.scaling.display.html import details_html
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.flat_valley import Valley, valley
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, fit_quickly, settings_like
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.bases import Chinchilla
from shapelaw.scaling.runs.table import AUTO, RunsLike, RunTable, as_run_table
from shapelaw.scaling.units import kind_mark

DEFAULT_RESAMPLES = 100
MIN_COVERAGE = 0.8  # of held-out runs inside their 95 % interval


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckReport(Result):
    """Report of a check: a fit with its diagnostics.

    Parameters
    ----------
    fit
        Fit that is checked.
    in_sample
        Errors on the fitted runs.
    hold_outs
        Leave-largest-out results by size and by compute, as far as the table allows.
    unavailable
        Reason by quantity for each missing hold-out.
    identifiability
        Condition number and gaps of the table.
    intervals
        Intervals that are too narrow for the number of runs.
    valley
        Range of N and of every ratio that costs little loss.
    approaches
        Compute-optimal size by the three approaches of Chinchilla.
    checklist
        (Mis)Fitting checklist.
    warnings
        Doubts about the table, the hold-outs and the fit, one sentence each.
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
        """Decision regret at the last cut-off whose held-out runs allow a choice, by size first."""
        for hold_out in self.hold_outs.values():
            for cutoff in reversed(hold_out.fitted):
                if cutoff.regret is not None and len(cutoff.regret.groups):
                    return cutoff.regret
        return None

    def frame(self) -> pd.DataFrame:
        """Return the scores on the fitted runs and at every cut-off."""
        in_sample = self.in_sample.frame().rename(columns={"rows": "rows_in"})
        parts = [in_sample.assign(by="fitted runs")]
        parts += [hold_out.frame().assign(by=by) for by, hold_out in self.hold_outs.items()]
        table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
        return table[["by", *(name for name in table if name != "by")]]

    def view(self) -> View:
        """Return the warnings, the titles and tables of all parts, and the parts not available."""
        hold_outs = {f"leave-largest-out by {by}: ": part for by, part in self.hold_outs.items()}
        parts: dict[str, Result] = {**hold_outs}
        parts |= {"identifiability": self.identifiability, "intervals": self.intervals}
        parts |= {"valley": self.valley, "approaches": self.approaches}
        parts |= {"checklist": self.checklist}
        views = {name: part.view() for name, part in parts.items()}
        warnings = counted(len(self.warnings), "warning") if self.warnings else "no warning"
        return View(
            title=f"{self.fit.law_name} on {counted(len(self.fit.run_ids), 'run')}"
            f"{kind_mark(self.fit.loss_kind)}: {warnings}",
            tables={
                f"{name}{title}" if name in hold_outs else title: frame
                for name, view in views.items()
                if name != "checklist"
                for title, frame in view.tables.items()
                if len(frame)
            },
            notes=[
                *(f"warning: {line}" for line in self.warnings),
                f"error on the fitted runs {self.in_sample.mape:.3g} % of the {self.fit.loss_name}",
                *(view.title for view in views.values()),
                *(line for name in (*hold_outs, "approaches") for line in views[name].notes),
                *([self.regret.view().title] if self.regret else []),
                *(f"by {by}: not available: {why}" for by, why in self.unavailable.items()),
            ],
        )

    def _repr_html_(self) -> str:
        """Return the report as HTML for a notebook, with the checklist folded."""
        return super()._repr_html_() + details_html(
            self.checklist.view().title, self.checklist.markdown()
        )

    def document(self) -> dict[str, Any]:
        """Return all parts by name."""
        return {
            "fit": self.fit,
            "loss_kind": self.fit.loss_kind,
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
    runs: RunsLike,
    *,
    compute: float | None = None,
    **settings: Unpack[FitSettings],
) -> CheckReport:
    """Check a law on a run table.

    Parameters
    ----------
    subject
        Fit to these runs, or a law to fit to them.
    runs
        Run table with N, tokens and loss, and the columns of the law.
    compute
        Compute budget in FLOPs of the optimum and its valley; by default the largest of the runs.
    settings
        Settings of every fit of the check, by default 16 starts and 100 resamples. The settings of
        a given fit are the defaults if ``subject`` is a fit.

    Returns
    -------
    CheckReport
        Hold-outs, decision regret, identifiability, interval widths, valley, approaches of
        Chinchilla, checklist and warnings.

    Raises
    ------
    InputError
        The law cannot be fitted, or the fit is of other runs.
    """
    runs = as_run_table(runs, settings.pop("size", AUTO))
    chosen: FitSettings = {"resamples": DEFAULT_RESAMPLES, **settings}
    if isinstance(subject, Fit):
        runs = subject.count_as_fitted(runs)
        _require_same_runs(subject, runs)
        chosen = {**settings_like(subject), **settings}
    law = subject.law if isinstance(subject, Fit) else subject
    fitted = subject if isinstance(subject, Fit) else fit_quickly(law, runs, **chosen)
    hold_outs, unavailable = _hold_outs(law, runs, chosen)
    if compute is None:
        compute = float(runs.compute.max())
    report = identifiability_report(fitted, runs)
    intervals = interval_widths(fitted, runs)
    return CheckReport(
        fit=fitted,
        in_sample=scores(runs.losses, fitted.central(runs), loss_unit=runs.loss_unit),
        hold_outs=hold_outs,
        unavailable=unavailable,
        identifiability=report,
        intervals=intervals,
        valley=valley(fitted, compute),
        approaches=approaches(
            runs,
            compute=compute,
            parametric=fitted if isinstance(fitted.law.base, Chinchilla) else None,
            **chosen,
        ),
        checklist=checklist(fitted, runs, hold_outs=list(hold_outs.values())),
        warnings=(
            *(fitted.table_warnings or runs.warnings),
            *_about_hold_outs(hold_outs),
            *([f"parameters are {report.status}"] if report.status != "identified" else []),
            *(finding.what for finding in report.findings),
            *([intervals.view().title] if intervals.too_narrow else []),
            *intervals.notes(),
        ),
    )


def _hold_outs(
    law: LawLike, runs: RunTable, settings: FitSettings
) -> tuple[dict[str, HoldOut], dict[str, str]]:
    """Leave the largest runs out by size and by compute, or say why that is not possible."""
    hold_outs: dict[str, HoldOut] = {}
    unavailable: dict[str, str] = {}
    for by in ("size", "compute"):
        try:
            hold_outs[by] = leave_largest_out(law, runs, by=by, **settings)
        except InputError as error:
            unavailable[by] = str(error)
    return hold_outs, unavailable


def _require_same_runs(fitted: Fit, runs: RunTable) -> None:
    """Require that the runs are those of the fit, in the same order."""
    if runs.run_ids.tolist() != fitted.run_ids:
        raise InputError(
            f"`check` needs the runs of the fit ({counted(len(fitted.run_ids), 'row')}), but got "
            f"{counted(len(runs), 'row')} with other names; give those runs, or the "
            "law instead of the fit"
        )


def _about_hold_outs(hold_outs: dict[str, HoldOut]) -> list[str]:
    """Warn of held-out runs that too often lie outside their 95 % intervals."""
    warnings = []
    for by, hold_out in hold_outs.items():
        inside = [
            cutoff.coverage * len(cutoff.held_out)
            for cutoff in hold_out.fitted
            if cutoff.coverage is not None
        ]
        rows = sum(len(cutoff.held_out) for cutoff in hold_out.fitted)
        if inside and sum(inside) / rows < MIN_COVERAGE:
            share = 100 * sum(inside) / rows
            warnings.append(
                f"only {share:.0f} % of the runs left out by {by} lie inside their 95 % interval"
            )
    return warnings
