"""What ``propose`` and ``report`` print."""

from pathlib import Path

import typer

from shapelaw.scaling.display.console import note, print_json, print_table
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json
from shapelaw.search.commands.propose import Answer
from shapelaw.search.commands.table import in_table
from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.reports.docs_check import COMMITTED, check, docs_folder, renew
from shapelaw.search.reports.loop_report import comparison, gather, verdict, write_report
from shapelaw.search.reports.proposal_page import write_pages


def print_answer(found: Answer, page: Path | None, *, json: bool) -> None:
    """Print proposals: one JSON document, or a table with what it rests on."""
    if json:
        print_json([proposal.row() for proposal in found.proposals])
        return
    typer.echo(found.basis)
    for line in found.notes:
        note(f"note: {line}")
    table = in_table(found.proposals)
    print_table(table, "The baseline and the front, from accurate to fast")
    front = sum(p.on_front or p is found.proposals[0] for p in found.proposals)
    beaten = len(found.proposals) - front
    typer.echo(_marks(found))
    if front > len(table):
        more = front - len(table)
        typer.echo(f"{more} more stand on the front, between these: --json or --out has them all.")
    if beaten:
        typer.echo(f"{beaten} further shapes were answered for and are beaten.")
    if page is not None:
        typer.echo(str(page))


def print_report(folder: Path | None, *, json: bool) -> None:
    """Write the report of a folder again and print what it says.

    Raises
    ------
    InputError
        No folder is given, or it lacks a file.
    """
    if folder is None:
        raise InputError("`report` needs a FOLDER, or --check; give one that propose --out wrote")
    if of_propose(folder):
        page = write_pages(folder)
        if json:
            print_json({"report": str(page)})
        else:
            typer.echo(str(page))
        return
    write_report(folder)
    print_verdict(folder, json=json)


def of_propose(folder: Path) -> bool:
    """Whether a folder is what ``propose --out`` wrote, with no runs to compare it with."""
    path = folder / "proposals.json"
    return path.is_file() and not (folder / "runs.csv").exists() and "basis" in read_json(path)


def print_verdict(folder: Path, *, json: bool) -> None:
    """Print predicted against measured of a folder with runs."""
    evidence = gather(folder)
    if json:
        rows = comparison(evidence).to_dict("records")
        print_json({"report": str(folder / "report.html"), "verdict": verdict(evidence),
                    "confirmation": rows})  # fmt: skip
        return
    print_table(comparison(evidence), "Predicted and measured (nats/token)")
    for line in verdict(evidence):
        typer.echo(f"- {line}")
    typer.echo(f"\n{folder / 'report.html'}")


def print_check(*, write: bool, json: bool) -> None:
    """Make the committed pictures and tables again: write them, or say what differs.

    Raises
    ------
    WorkError
        Something differs.
    """
    docs = docs_folder()
    if write:
        paths = [str(path.relative_to(docs.parent)) for path in renew(docs)]
        print_json({"written": paths}) if json else typer.echo("\n".join(paths))
        return
    found = check(docs)
    if json:
        print_json({"compared": list(COMMITTED), "differences": found})
    else:
        for line in found:
            typer.echo(f"- {line}")
    if found:
        raise WorkError(
            f"{len(found)} differences between docs/ and the data; where they are meant, write "
            "docs/ again with `shapelaw report --renew` and commit it"
        )
    if not json:
        typer.echo(f"{len(COMMITTED)} pictures and tables under docs/ are what the data give")


def _marks(found: Answer) -> str:
    """What the marks of the table mean."""
    kinds = {p.throughput.kind for p in found.proposals if p.throughput}
    words = [f"{kind}: by {found.about['engine']}" for kind in sorted(kinds - {TIME_MODEL})]
    model = found.about["time_model"]
    if TIME_MODEL in kinds and model:
        error = f"mean error {100 * model['error']:.1f} % on {len(model['answered'])} left out"
        words.append(f"time model: fitted to those answers ({error} in turn)")
    return "; ".join(words) + "."
