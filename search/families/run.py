"""The whole comparison: corpus, training, speeds, and the files of its folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from shapelaw.scaling.display.printable import listed, shown
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_text
from shapelaw.scaling.plots.style import save_figure
from shapelaw.search.engines._base import Engine
from shapelaw.search.families.comparison import FamilyComparison, compare_rows
from shapelaw.search.families.figure import plot_families
from shapelaw.search.families.rates import rate_table
from shapelaw.search.families.speeds import measure_speeds
from shapelaw.search.families.training import (
    ComparisonPlan,
    TrainedFamilies,
    peak_rate,
    train_families,
)
from shapelaw.search.workload import Workload
from shapelaw.trainers.corpus.batches import count_windows
from shapelaw.trainers.corpus.options import CorpusOptions
from shapelaw.trainers.corpus.preparation import prepare_from_options
from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.sweep.folder import Folder

BYTE_VOCABULARY = 256


def parse_rates(text: str | None, recipe: Recipe) -> tuple[float, ...]:
    """Parse learning rates separated by commas; None: half, once and twice that of the recipe.

    Raises
    ------
    InputError
        A part is no number.
    """
    usual = peak_rate(recipe)
    if text is None:
        return usual / 2, usual, 2 * usual
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            "`--lr-values` must be three learning rates such as 0.005,0.01,0.02, but got "
            f"{shown(text, 60)}"
        ) from None


def comparison_of(
    plan: ComparisonPlan,
    text: CorpusOptions,
    out: Path,
    serving: tuple[Engine, Workload],
    *,
    workers: int | None = None,
    report: Callable[[list[Entry]], None] = lambda entries: None,
    done: pd.DataFrame | None = None,
) -> FamilyComparison:
    """Train what is not trained yet, measure speeds, and write the files of the comparison.

    ``out`` gets ``runs.csv`` (the run table), ``rates.csv`` (losses at each learning rate),
    ``speeds.csv``, ``table.csv`` and ``families.png``.

    Parameters
    ----------
    plan
        Budgets and recipe.
    text
        Options of the corpus.
    out
        Folder of the comparison.
    serving
        Engine and workload of the decoding speed.
    workers, report, done
        As in :func:`shapelaw.trainers.sweep.sweep.run_plan`.

    Raises
    ------
    InputError
        A family has no model of the budget, or the corpus cannot be read.
    WorkError
        A run failed.
    """
    folder = Folder(out)
    folder.refuse_foreign_table()
    for budget in {plan.parameters, plan.rate_parameters}:
        plan.models(budget, BYTE_VOCABULARY)  # the vocabulary is no part of the budget
    corpus = prepare_from_options(text, folder.corpus)
    count_windows(corpus.tokens_train, plan.recipe.context_length)
    trained = train_families(plan, corpus, folder, workers=workers, report=report, done=done)
    speeds = measure_speeds(trained.models, *serving, out / "speeds.csv")
    rates = rate_table(trained.choices)
    result = compare_rows(trained.rows, baseline=plan.variants[0].name, speeds=speeds, rates=rates)
    remarks = _remarks(trained, serving, speeds)
    result = replace(result, remarks=(*result.remarks, *remarks))
    for name, table in (("rates.csv", rates), ("table.csv", result.table)):
        write_text(out / name, table.to_csv(index=False, lineterminator="\n"))
    save_figure(plot_families(result), out / "families.png")
    return result


def _remarks(
    trained: TrainedFamilies, serving: tuple[Engine, Workload], speeds: pd.DataFrame
) -> list[str]:
    """Return sentences on the source of the speeds and on learning rates at the edge."""
    engine, workload = serving
    remarks = [
        f"decoding: {engine.basis}, {workload}; training: the median of the runs on this machine"
    ]
    noted = speeds[speeds["decode_note"] != ""]
    if len(noted):
        reason = noted["decode_note"].iloc[0]
        remarks.append(f"decoding of {listed(list(noted['family']))}: {reason}")
    edges = [
        f"{choice.variant.name} ({choice.rate:g})" for choice in trained.choices if choice.at_edge
    ]
    if edges:
        remarks.append(
            f"{counted(len(edges), 'family', 'families')} trained at the lowest or highest of the "
            f"three learning rates, where a better one may lie beyond: {', '.join(edges)}"
        )
    return remarks
