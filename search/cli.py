"""The ``shapelaw`` command: mounts all commands and turns errors into lines and exit codes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import shapelaw.scaling.commands.fit_cli
import shapelaw.trainers.commands.sweep_cli
from shapelaw.scaling.commands.options import (
    CorpusOption,
    EngineOption,
    Json,
    OutFolder,
    Seed,
    Vocabulary,
    Workers,
    WorkloadOption,
)
from shapelaw.scaling.display.console import note, print_json
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import missing_package

app = typer.Typer(
    help="Fit scaling laws that know a transformer's shape; search shapes that are accurate and "
    "fast to serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
shapelaw.scaling.commands.fit_cli.mount(app)
shapelaw.trainers.commands.sweep_cli.mount(app)


@app.command()
def quickstart(
    corpus: CorpusOption = "stdlib",
    vocab: Vocabulary = None,
    out: OutFolder = Path("shapelaw-quickstart"),
    effort: Annotated[
        float, typer.Option(help="Multiplies every token budget; 1 takes about 10 minutes.")
    ] = 1.0,
    measurements: Annotated[int, typer.Option(help="Shapes to measure in the search.")] = 20,
    workers: Workers = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run the whole loop: train proxies, fit a law, search, train what it proposes, report."""
    from shapelaw.search.autopilot.display import Display
    from shapelaw.search.autopilot.record import LoopSettings
    from shapelaw.search.autopilot.single_pass import in_short, quickstart
    from shapelaw.search.commands.output import print_verdict

    settings = LoopSettings(
        corpus=corpus, vocab_size=vocab, seed=seed, effort=effort, workers=workers,
        measurements=measurements,
    )  # fmt: skip
    display = Display(quiet=json)
    try:
        quickstart(out, settings, display)
    finally:
        display.close()
    print_verdict(out, json=json)
    if not json:
        typer.echo(in_short(out))


@app.command()
def report(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder that quickstart or propose --out wrote.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare docs/ with what the shipped data give.")
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Write the pictures and tables of docs/ again.")
    ] = False,
    json: Json = False,
) -> None:
    """Write report.html and the pictures of a folder again, or check the committed ones."""
    from shapelaw.search.commands.output import print_check, print_report

    if check or renew:
        print_check(write=renew, json=json)
    else:
        print_report(folder, json=json)


@app.command()
def measure(
    config: Annotated[
        Path | None, typer.Argument(help="Hugging Face config.json of a shape.")
    ] = None,
    engine: EngineOption = "torch",
    workload: WorkloadOption = "edge",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is kept.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep nothing, look up nothing.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine for roofline:this instead.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where --calibrate writes, for roofline:FILE.toml.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure (or predict) how fast a shape serves a workload, in tokens per second."""
    from shapelaw.search.commands import measure as measuring

    if calibrate:
        result = measuring.calibrated(config, out)
    else:
        result = measuring.measured(config, engine, workload, keep=not no_cache, fresh=fresh)
    if json:
        print_json(result)
    else:
        typer.echo("\n".join(f"{name:<28} {value}" for name, value in result.items()))


@app.command()
def propose(
    params: Annotated[str, typer.Option(help="Parameter budget: 350M, 1B.")],
    tokens: Annotated[str, typer.Option(help="Training tokens: 2M, 100B.")],
    law: Annotated[
        str | None,
        typer.Option(
            help="Fit, as `fit --out` writes it, or a printed law (paper-2510.18245); "
            "default: a law fitted on the shipped runs."
        ),
    ] = None,
    workload: WorkloadOption = "balanced",
    engine: EngineOption = "torch",
    baseline: Annotated[str, typer.Option(help="Known model to beat.")] = "llama-3.2-1b",
    params_convention: Annotated[
        str, typer.Option(help="What --params counts: non-embedding, total or active.")
    ] = "non-embedding",
    tolerance: Annotated[float, typer.Option(help="Fraction by which N may differ.")] = 0.03,
    layers: Annotated[str, typer.Option(help="Layers to try: 16 or 12,16,24.")] = "auto",
    head_dim: Annotated[str, typer.Option(help="Head dimensions to try: 64,128.")] = "auto",
    vocab: Annotated[
        int | None, typer.Option(help="Vocabulary size; default: the baseline's.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help='Limit the shapes: "gqa <= 8"; may be given several times.'),
    ] = None,
    max_ttft: Annotated[float | None, typer.Option(help="Most seconds to the first token.")] = None,
    max_tpot: Annotated[
        float | None, typer.Option(help="Most seconds per output token after it.")
    ] = None,
    worse: Annotated[
        float, typer.Option(help="Per cent by which a loss may exceed the baseline's.")
    ] = 2.0,
    link: Annotated[str | None, typer.Option(help="Accuracy link: olmo-ladder, or a file.")] = None,
    validation: Annotated[
        str, typer.Option(help="Text that the law's losses are on, as the link names it.")
    ] = "",
    measurements: Annotated[
        int | None,
        typer.Option(help="Shapes to ask the engine; default 24.", min=2),
    ] = None,
    estimated: Annotated[
        int, typer.Option(help="Most shapes that only the time model answers for.", min=0)
    ] = 12,
    fastest: Annotated[
        bool,
        typer.Option("--fastest", help="One goal: throughput, at no more loss than the baseline."),
    ] = False,
    short: Annotated[
        int | None,
        typer.Option(help="Search with so few output tokens; leaders at full length.", min=2),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="calibrated, tpe, nsga2, gp or random.")
    ] = "calibrated",
    storage: Annotated[
        str | None,
        typer.Option(help="Study in postgresql://... or a file: several may search at once."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is kept.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep nothing, look up nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for proposals, configs, pictures and report.html.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Propose shapes of a budget: predicted loss against throughput, the baseline first."""
    from shapelaw.search.commands.output import print_answer
    from shapelaw.search.commands.propose import answer
    from shapelaw.search.proposals.request import ProposalRequest
    from shapelaw.search.reports.proposal_page import write_pages

    request = ProposalRequest(
        params=params, tokens=tokens, law=law, workload=workload, engine=engine,
        baseline=baseline, convention=params_convention, tolerance=tolerance, layers=layers,
        head_dims=head_dim, vocab_size=vocab, measurements=measurements, seed=seed,
        estimated=estimated, worse=worse, where=tuple(where or ()), link=link,
        validation=validation, limits={"max_ttft": max_ttft, "max_tpot": max_tpot},
        fastest=fastest, short=short, sampler=sampler, storage=storage, keep=not no_cache,
        fresh=fresh,
    )  # fmt: skip
    found = answer(request, out)
    pages = None if out is None else write_pages(out)
    print_answer(found, pages, json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Print versions, cores, memory, disk, GPU, engines, and what is missing for what."""
    from shapelaw.search.commands.doctor import examine

    found = examine()
    if json:
        print_json(found)
    else:
        typer.echo("\n".join(f"{name:<14} {value}" for name, value in found.items()))


def main() -> None:
    """Run the command; errors become one line, bad input exits with 2, failed work with 1."""
    try:
        app()
    except InputError as error:
        _stop(str(error), 2)
    except ModuleNotFoundError as error:
        reason = missing_package(error)
        _unexpected(error) if reason is None else _stop(str(reason), 2)
    except WorkError as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop("stopped; the same command goes on from here", 130)
    except SystemExit as error:  # typer answers Ctrl-C with this code and no words
        if error.code == 130:
            note("error: stopped; the same command goes on from here")
        raise
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except MemoryError:
        _stop("not enough memory; choose a smaller budget or workload", 1)
    except Exception as error:  # a defect: people still get a line, not a traceback
        _unexpected(error)


def _unexpected(error: Exception) -> None:
    if os.environ.get("SHAPELAW_DEBUG"):
        raise error
    name = type(error).__name__
    _stop(f"unexpected {name}: {error}; SHAPELAW_DEBUG=1 shows where; please report it", 1)


def _stop(text: str, code: int) -> None:
    note(f"error: {text}")
    sys.exit(code)
