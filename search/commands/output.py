"""What ``propose`` and ``report`` print."""

from pathlib import Path

import typer

from shapelaw.scaling.display.console import note, print_json, print_table
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json
from shapelaw.search.commands.table import proposals_table
from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.reasons import plainly
from shapelaw.search.reports.docs_check import COMMITTED, check, docs_folder, renew
from shapelaw.search.reports.loop_report import comparison, gather, verdict, write_report
from shapelaw.search.reports.proposal_page import write_pages


def print_proposals(
    proposals: Proposals, page: Path | None, *, json: bool, wide: bool = False
) -> None:
    """Print proposals: one JSON document, or a table with what it rests on."""
    if json:
        print_json([proposal.row() for proposal in proposals])
        return
    typer.echo(proposals.estimated.measured.candidates.basis.description)
    for line in (*map(plainly, proposals.extrapolation), *proposals.notes):
        note(f"note: {line}")
    table = proposals_table(proposals.ranked, wide=wide)
    print_table(table, "The baseline and the front, from accurate to fast")
    front = sum(p.on_front or p is proposals[0] for p in proposals)
    beaten = len(proposals) - front
    typer.echo(_legend(proposals))
    if not wide:
        typer.echo("--wide prints every column: predicted loss, latency, memory and reasons.")
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


def _legend(proposals: Proposals) -> str:
    """Say where the speeds of the table come from."""
    kinds = {p.throughput.kind for p in proposals if p.throughput}
    engine = proposals.estimated.measured.candidates.request.serving.engine
    words = [f"{kind}: by {engine.label}" for kind in sorted(kinds - {TIME_MODEL})]
    checked = proposals.estimated.cross_validation
    if TIME_MODEL in kinds and checked is not None:
        error = f"mean error {100 * checked.mape:.1f} % on {len(checked.measured)} left out"
        words.append(f"time model: fitted to those answers ({error} in turn)")
    return f"speed: output tokens/s over the baseline's; {'; '.join(words)}."
