"""The ``shapelaw`` command: mounts all commands and turns errors into lines and exit codes."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

import shapelaw.scaling.commands.fit_cli
import shapelaw.trainers.commands.sweep_cli
from shapelaw.scaling.commands.options import (
    Convention,
    CorpusOption,
    EngineOption,
    Fresh,
    HeadDims,
    Json,
    Layers,
    NoCache,
    OutFolder,
    Params,
    Seed,
    ShapesWhere,
    Tolerance,
    Vocabulary,
    Workers,
    WorkloadOption,
)
from shapelaw.scaling.commands.plain_help import PlainTyper
from shapelaw.scaling.display.console import note, print_json
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import missing_package

# Headings of `shapelaw --help` and the commands below each, in this order.
SECTIONS = {
    "Choose a shape": ("quickstart", "propose", "space", "measure", "report"),
    "Fit and judge laws": ("data", "fit", "check", "compare", "predict", "plot", "laws"),
    "Train models": ("next-runs", "sweep", "train", "evaluate"),
    "See what is installed": ("doctor",),
}


class SectionedGroup(typer.core.TyperGroup):
    """The group of all commands, which its help lists under the headings of :data:`SECTIONS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one line for each command, below its heading."""
        width = max(map(len, self.commands))
        for heading, names in SECTIONS.items():
            with formatter.section(heading):
                room = formatter.width - width - 4
                lines = {name: self.commands[name].get_short_help_str(room) for name in names}
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in lines.items()])


app = PlainTyper(
    cls=SectionedGroup,
    help="Fit scaling laws that know a transformer's shape; search shapes that are accurate and "
    "fast to serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shapelaw.scaling.commands.fit_cli.mount(app)
shapelaw.trainers.commands.sweep_cli.mount(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from shapelaw import __version__

        typer.echo(f"shapelaw {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Read the options that stand before a command."""


@app.command()
def quickstart(
    corpus: CorpusOption = "stdlib",
    vocab: Vocabulary = None,
    out: OutFolder = Path("shapelaw-quickstart"),
    effort: Annotated[
        float,
        typer.Option(
            help="Factor on every token budget; 1 takes about 10 minutes on 2 cores.",
            metavar="NUMBER",
        ),
    ] = 1.0,
    measurements: Annotated[
        int, typer.Option(help="Shapes to measure in the search.", metavar="N")
    ] = 20,
    workers: Workers = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train proxies, fit a law, search shapes, train and report."""
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
        Path | None,
        typer.Argument(
            help="Folder that `shapelaw quickstart` or `shapelaw propose --out` wrote.",
            metavar="FOLDER",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare the pictures and tables of docs/ with the shipped data."
        ),
    ] = False,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="Write the pictures and tables of docs/ from the shipped data."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write a folder's report again, or check the pictures of docs/."""
    from shapelaw.search.commands.output import print_check, print_report

    if check or renew:
        print_check(write=renew, json=json)
    else:
        print_report(folder, json=json)


@app.command()
def measure(
    config: Annotated[
        Path | None,
        typer.Argument(help="Shape, a Hugging Face config.json.", metavar="CONFIG"),
    ] = None,
    engine: EngineOption = "torch",
    workload: WorkloadOption = "edge",
    fresh: Fresh = False,
    no_cache: NoCache = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure this machine for roofline:this, not a shape."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --calibrate, the .toml file for roofline:FILE (default: roofline:this).",
            metavar="FILE",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure or predict how fast a shape serves a workload."""
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
    params: Params,
    tokens: Annotated[
        str, typer.Option(help="Training tokens, such as 2M or 100B.", metavar="TOKENS")
    ],
    law: Annotated[
        str | None,
        typer.Option(
            help="Fit that `shapelaw fit --out` wrote, or a published law such as "
            "paper-2510.18245 (default: a law fitted on the shipped runs).",
            metavar="LAW",
        ),
    ] = None,
    workload: WorkloadOption = "balanced",
    engine: EngineOption = "torch",
    baseline: Annotated[
        str, typer.Option(help="Model whose proportions to beat.", metavar="NAME")
    ] = "llama-3.2-1b",
    params_convention: Convention = "non-embedding",
    tolerance: Tolerance = 0.03,
    layers: Layers = "auto",
    head_dim: HeadDims = "auto",
    vocab: Annotated[
        int | None, typer.Option(help="Vocabulary size (default: the baseline's).", metavar="N")
    ] = None,
    where: ShapesWhere = None,
    max_ttft: Annotated[
        float | None,
        typer.Option(
            help="Most seconds to the first output token (default: no limit).", metavar="SECONDS"
        ),
    ] = None,
    max_tpot: Annotated[
        float | None,
        typer.Option(
            help="Most seconds per output token after the first (default: no limit).",
            metavar="SECONDS",
        ),
    ] = None,
    worse: Annotated[
        float,
        typer.Option(
            help="Per cent by which a predicted loss may exceed the baseline's.", metavar="PERCENT"
        ),
    ] = 2.0,
    link: Annotated[
        str | None,
        typer.Option(
            help="Link from loss to accuracy: olmo-ladder or a file (default: no accuracies).",
            metavar="LINK",
        ),
    ] = None,
    validation: Annotated[
        str,
        typer.Option(
            help="Validation set that the law's losses are on, as the link names it (default: "
            "not said).",
            metavar="NAME",
        ),
    ] = "",
    measurements: Annotated[
        int | None,
        typer.Option(
            help="Most shapes that the engine answers for (default: 24).", min=2, metavar="N"
        ),
    ] = None,
    estimated: Annotated[
        int,
        typer.Option(help="Most shapes that the time model answers for.", min=0, metavar="N"),
    ] = 12,
    fastest: Annotated[
        bool,
        typer.Option(
            "--fastest", help="Maximise throughput at no more loss than the baseline, only."
        ),
    ] = False,
    short: Annotated[
        int | None,
        typer.Option(
            help="Output tokens while searching; leaders get the full length (default: full).",
            min=2,
            metavar="TOKENS",
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="Sampler: calibrated, tpe, nsga2, gp or random.", metavar="NAME")
    ] = "calibrated",
    storage: Annotated[
        str | None,
        typer.Option(
            help="Storage of the study that several searches share: postgresql://... or a file "
            "(default: none).",
            metavar="URL",
        ),
    ] = None,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for proposals, configs, pictures and report.html (default: only print).",
            metavar="FOLDER",
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank the shapes of a budget by predicted loss and throughput."""
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
    """Print versions, hardware, engines and missing packages."""
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
