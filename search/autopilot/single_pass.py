"""The whole loop in one command: text -> proxies -> law -> search -> confirmation -> report.

Every stage leaves files and is skipped when they are there: a killed quickstart goes on where it
stopped, and ends with the same losses.
"""

from pathlib import Path

from shapelaw.scaling.files import nothing_left
from shapelaw.scaling.units import format_count
from shapelaw.search.autopilot.display import Display
from shapelaw.search.autopilot.record import LoopSettings, keep_record, locked_folder
from shapelaw.search.autopilot.run_plan import CONFIRMED, confirmation_tokens, fill, proxy_specs
from shapelaw.search.autopilot.stages import (
    Loop,
    fit_law,
    prepare_corpus,
    search_shapes,
    train_confirmation,
    train_proxies,
    write_loop_report,
)
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.sweep.launchers._local import cores

SECONDS_PER_MEASUREMENT = 2.0  # first guesses for the time left, replaced by what is measured
FLOPS_PER_SECOND = 2e10
LARGER_IS_FASTER = 1.4  # FLOP/s of the confirmatory models over those of the proxies


def quickstart(folder: Path, settings: LoopSettings, display: Display) -> Path:
    """Run the loop in a folder, or continue it; returns the path of the report.

    Raises
    ------
    InputError
        The folder holds a quickstart with other settings, or the corpus cannot be used.
    WorkError
        Another quickstart runs there, the disk is full, or a run failed.
    """
    with nothing_left(folder), locked_folder(folder):
        keep_record(folder, settings)
        workers = settings.workers or cores()
        display.forecast(_forecast(settings, workers))
        loop = Loop(folder, settings, display)
        corpus = prepare_corpus(loop)
        train_proxies(loop, corpus)
        basis = fit_law(loop)
        proposals = search_shapes(loop, basis, corpus)
        train_confirmation(loop, proposals, corpus)
        return write_loop_report(loop)


def _forecast(settings: LoopSettings, workers: int) -> dict[str, float]:
    """Guess each stage's seconds."""
    vocabulary = settings.vocab_size or 256
    proxies = sum(spec.flops for spec in proxy_specs(settings, vocabulary))
    confirmed = fill(CONFIRMED, 64, 4, 1, vocabulary).training_flops(Recipe().context_length)
    tokens = confirmation_tokens(settings)
    rounds = -(-3 // workers)
    return {
        "corpus": 3.0,
        "proxies": proxies / FLOPS_PER_SECOND / workers,
        "law": 12.0,
        "search": SECONDS_PER_MEASUREMENT * settings.measurements,
        "confirmation": rounds * confirmed * tokens / FLOPS_PER_SECOND / LARGER_IS_FASTER,
        "report": 5.0,
    }


def in_short(folder: Path) -> str:
    """Say where to look next."""
    return (
        f"{folder}/report.html has the whole story; the law refits with\n"
        f"  shapelaw fit {folder}/runs.csv --where \"role == 'proxy'\" --out {folder}/fit.json\n"
        f"  shapelaw report {folder}\n"
        f"(target: {format_count(CONFIRMED)} non-embedding parameters)"
    )
