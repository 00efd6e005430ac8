"""The ``shapelaw`` command: mounts all commands and turns errors into lines and exit codes."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import shapelaw.scaling.commands.fit_cli
import shapelaw.search.commands.families_cli
import shapelaw.search.commands.propose_cli
import shapelaw.trainers.commands.sweep_cli
from shapelaw.scaling.commands.options import (
    CorpusOption,
    DecoderOption,
    EngineOption,
    Fresh,
    HeadDims,
    Json,
    Layers,
    NoCache,
    OutFolder,
    Params,
    Seed,
    Vocabulary,
    Workers,
    WorkloadOption,
    output_file,
    refuse_together,
)
from shapelaw.scaling.commands.plain_help import PlainTyper
from shapelaw.scaling.display.console import (
    echo,
    hide_warnings,
    note,
    print_fields,
    print_json,
    print_table,
)
from shapelaw.scaling.display.printable import MAX_LINE, one_line
from shapelaw.scaling.errors import FailedCheckError, InputError, WorkError
from shapelaw.scaling.extras import missing_package, require_extra
from shapelaw.scaling.signals import INTERRUPTED, TERMINATED, ended_by_sigterm
from shapelaw.search.commands.propose_cli import Baseline, TrainingTokens

STOPPED = "stopped; the same command goes on from here"
UNUSABLE_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}  # whatever is on the disk
# Headings of `shapelaw --help` and the commands below each, in this order.
SECTIONS = {
    "Choose a shape": ("quickstart", "autopilot", "propose", "space", "count", "measure", "report"),
    "Fit and judge laws": ("data", "fit", "check", "compare", "predict", "decide", "plot", "laws"),
    "Train models": ("next-runs", "sweep", "train", "convert", "evaluate", "compare-families"),
    "See what is installed": ("doctor",),
}


class SectionedGroup(typer.core.TyperGroup):
    """The group of all commands, which its help lists under the headings of :data:`SECTIONS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one line for each command, below its heading."""
        for heading, names in SECTIONS.items():
            width = max(map(len, names))
            room = formatter.width - width - 4
            with formatter.section(heading):
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
shapelaw.search.commands.propose_cli.mount(app)
shapelaw.search.commands.families_cli.mount(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from shapelaw import __version__

        echo(f"shapelaw {__version__}")
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
            help="Factor on every token budget; 1 takes 8 to 17 minutes on 2 cores.",
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
    require_extra("train")
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
    if not json:
        echo(in_short(out))
    print_verdict(out, json=json)


@app.command()
def autopilot(
    params: Params,
    tokens: TrainingTokens,
    budget_hours: Annotated[
        float,
        typer.Option(
            help="Most core-hours of training; a GPU counts as one core.", metavar="HOURS"
        ),
    ],
    corpus: CorpusOption = "stdlib",
    vocab: Vocabulary = None,
    workload: WorkloadOption = "balanced",
    engine: EngineOption = "torch",
    baseline: Baseline = "llama-3.2-1b",
    layers: Layers = "auto",
    head_dim: HeadDims = "auto",
    speedup: Annotated[
        float,
        typer.Option(
            help="Least output tokens/s of the shape over the baseline's.", metavar="FACTOR"
        ),
    ] = 1.0,
    certainty: Annotated[
        float,
        typer.Option(
            help="Stop once the shape is the best with this probability.", metavar="NUMBER"
        ),
    ] = 0.9,
    indifference: Annotated[
        str,
        typer.Option(
            help="Difference of loss up to which a shape counts as the best, such as 0.5%.",
            metavar="PERCENT",
        ),
    ] = "0.5%",
    patience: Annotated[
        int,
        typer.Option(help="Give up after this many decisions without a gain.", metavar="N"),
    ] = 8,
    measurements: Annotated[
        int, typer.Option(help="Shapes to measure in the search of each round.", metavar="N")
    ] = 12,
    plan_only: Annotated[
        bool,
        typer.Option("--plan-only", help="Print the first runs and their price; train nothing."),
    ] = False,
    out: OutFolder = Path("shapelaw-autopilot"),
    workers: Workers = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train and decide until one shape is surely the best."""
    require_extra("train")
    from shapelaw.scaling.units import parse_count
    from shapelaw.search.autopilot.autopilot import autopilot
    from shapelaw.search.autopilot.autopilot_plan import AutopilotSettings, price_of
    from shapelaw.search.autopilot.display import Display, decision_line
    from shapelaw.trainers.commands.resolve_options import parse_percent

    settings = AutopilotSettings(
        corpus=corpus, vocab_size=vocab, seed=seed, workers=workers, params=parse_count(params),
        tokens=parse_count(tokens), workload=workload, engine=engine, baseline=baseline,
        layers=layers, head_dim=head_dim, speedup=speedup, measurements=measurements,
        certainty=certainty, indifference=parse_percent(indifference, "--indifference"),
        budget_hours=budget_hours, patience=patience,
    )  # fmt: skip
    if plan_only:
        price = price_of(settings)
        print_json({"stages": price}) if json else print_table(price, "Stages and their price")
        return
    display = Display(quiet=json)
    try:
        lines = autopilot(out, settings, display)
    finally:
        display.close()
    if json:
        print_json({"decisions": lines})
    else:
        echo(f"{decision_line(lines[-1], certainty)}\n{out}/decisions.jsonl")


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
    refuse_together({"FOLDER": folder, "--check": check, "--renew": renew})
    from shapelaw.search.commands.output import print_check, print_report

    if check or renew:
        print_check(write=renew, json=json)
    else:
        print_report(folder, json=json)


@app.command()
def measure(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="Model: a Hugging Face config.json, or a name such as dhara-70m.",
            metavar="CONFIG",
        ),
    ] = None,
    engine: EngineOption = "torch",
    workload: WorkloadOption = "edge",
    decoder: DecoderOption = None,
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
            callback=output_file(),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure or predict how fast a shape serves a workload."""
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.search.commands.measure import (
        calibrate_machine,
        measure_config,
        without_unasked,
    )

    with progress_shown(quiet=json):
        if calibrate:
            result = calibrate_machine(config, out)
        elif out is not None:
            raise InputError(f"`--out {out}` goes with --calibrate; leave it out, or use --json")
        else:
            result = measure_config(
                config, engine, workload, decoder=decoder, keep=not no_cache, fresh=fresh
            )
    print_fields(result if json else without_unasked(result), json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Print versions, hardware, engines and extras."""
    from shapelaw.search.commands.doctor import as_lines, examine

    examined = examine()
    print_fields(examined if json else as_lines(examined), json=json)


def main() -> None:
    """Run the command; errors become one line, bad input exits with 2, failed work with 1.

    With ``--json`` an error is a JSON object on standard output too, unless the document of a
    failed check stands there.
    """
    hide_warnings()
    try:
        with ended_by_sigterm():
            code = app(standalone_mode=False)
        if code == INTERRUPTED:  # how typer answers Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except InputError as error:
        _stop(str(error), 2)
    except ModuleNotFoundError as error:
        reason = missing_package(error)
        _unexpected(error) if reason is None else _stop(str(reason), 2)
    except FailedCheckError as error:
        note(f"error: {one_line(str(error), MAX_LINE - 7)}")
        sys.exit(1)
    except WorkError as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop(STOPPED, INTERRUPTED)
    except SystemExit as end:
        if end.code == TERMINATED:
            _stop(STOPPED, TERMINATED)
        raise
    except OSError as error:
        named = f"{error.filename or 'a file'}: {error.strerror or error}"
        _stop(named, 2 if error.errno in UNUSABLE_PATHS else 1)
    except MemoryError:
        _stop("not enough memory; choose a smaller budget or workload", 1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "show"):  # typer: a bad option
            if hasattr(error, "message"):
                error.message = one_line(error.message)
            error.show()
            _print_error(one_line(error.format_message()), 2)
            sys.exit(2)
        _unexpected(error)  # a defect: people still get a line, not a traceback


def _unexpected(error: Exception) -> NoReturn:
    if os.environ.get("SHAPELAW_DEBUG"):
        raise error
    name = type(error).__name__
    _stop(f"unexpected {name}: {error}; SHAPELAW_DEBUG=1 shows where; please report it", 1)


def _stop(text: str, code: int) -> NoReturn:
    line = one_line(text, MAX_LINE - len("error: "))
    note(f"error: {line}")
    _print_error(line, code)
    sys.exit(code)


def _print_error(text: str, code: int) -> None:
    if "--json" in sys.argv[1:]:
        print_json({"error": {"message": text, "exit_code": code}})
