"""The ``quickstart`` command: text -> proxies -> law -> search -> confirmation -> report.

Every stage writes files and is skipped if they exist, so that a killed quickstart continues where
it stopped and ends with the same losses.
"""

from pathlib import Path

from shapelaw.scaling.files import nothing_left
from shapelaw.scaling.units import format_count
from shapelaw.search.autopilot.display import Display
from shapelaw.search.autopilot.record import LoopSettings, keep_record, locked_folder
from shapelaw.search.autopilot.run_plan import (
    CONFIRMATION_SEEDS,
    CONFIRMED,
    LAW,
    PRIOR,
    confirmation_tokens,
    proxy_specs,
)
from shapelaw.search.autopilot.stages import (
    Loop,
    fit_law,
    prepare_corpus,
    search_shapes,
    train_confirmation,
    train_proxies,
    write_loop_report,
)
from shapelaw.trainers.sweep.launchers._local import cores

# First estimates for the time left; measured times replace them.
CORPUS_SECONDS, FIT_SECONDS, SECONDS_PER_MEASUREMENT = 3.0, 12.0, 2.0
FLOPS_PER_SECOND = 2e10
NAMED_SHAPES = 3
CONFIRMATION_SPEEDUP = 1.4  # FLOP/s of the larger confirmation models over those of the proxies


def quickstart(folder: Path, settings: LoopSettings, display: Display) -> Path:
    """Run the loop in a folder, or continue it there.

    Returns
    -------
    The path of the report.

    Raises
    ------
    InputError
        The folder holds a quickstart with other settings, or the corpus cannot be used.
    WorkError
        Another quickstart runs in the folder, the disk is full, or a run failed.
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
    """Estimate the seconds of each stage."""
    vocabulary = settings.vocab_size or 256
    proxies = sum(spec.flops for spec in proxy_specs(settings, vocabulary))
    confirmed = 6 * CONFIRMED * confirmation_tokens(settings)
    rounds = -(-NAMED_SHAPES * CONFIRMATION_SEEDS // workers)
    return {
        "corpus": CORPUS_SECONDS,
        "proxies": proxies / FLOPS_PER_SECOND / workers,
        "law": FIT_SECONDS,
        "search": SECONDS_PER_MEASUREMENT * settings.measurements,
        "confirmation": rounds * confirmed / FLOPS_PER_SECOND / CONFIRMATION_SPEEDUP,
        "report": 5.0,
    }


def in_short(folder: Path) -> str:
    """Return a hint at the report and at the commands that use the folder."""
    return (
        f"{folder}/report.html has the whole story; the law refits with\n"
        f"  shapelaw fit {folder}/runs.csv --law {LAW} --prior {PRIOR} "
        f"--where \"role == 'proxy'\" --out {folder}/fit.json\n"
        f"  shapelaw report {folder}\n"
        f"(target: {format_count(CONFIRMED)} non-embedding parameters)"
    )
