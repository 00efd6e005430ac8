"""The printed output of ``propose``, ``quickstart`` and ``report``."""

from pathlib import Path

from shapelaw.scaling.display.console import echo, note, print_json, print_table
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import FailedCheckError, InputError
from shapelaw.scaling.files import read_json
from shapelaw.scaling.units import short_unit
from shapelaw.search.commands.table import off_front_notes, proposals_table, table_apart
from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.reasons import format_warning
from shapelaw.search.reports.docs_check import COMMITTED, compare_docs, docs_folder, renew_docs
from shapelaw.search.reports.loop_report import write_report
from shapelaw.search.reports.proposal_page import write_pages
from shapelaw.search.reports.quickstart_verdict import (
    comparison,
    conclusion,
    read_evidence,
    verdict,
)


def print_proposals(
    proposals: Proposals, page: Path | None, *, json: bool, wide: bool = False
) -> None:
    """Print proposals as one JSON document, or as a table with its law and notes."""
    if json:
        print_json({**proposals.about(), "proposals": [proposal.row() for proposal in proposals]})
        return
    echo(proposals.estimated.measured.candidates.basis.description)
    for line in (*map(format_warning, proposals.extrapolation), *proposals.notes):
        note(f"note: {line}")
    table = proposals_table(proposals.ranked, wide=wide)
    print_table(table, "The baseline and the front, from accurate to fast")
    apart = table_apart(proposals.ranked, wide=wide)
    if len(apart):
        print_table(
            apart,
            "Faster, if changes that the law has no term for cost no loss: fastest of each kind",
        )
    _print_paper_models(proposals)
    for line in off_front_notes(proposals):
        echo(f"Note: {line}.")
    echo(_legend(proposals))
    if not wide:
        echo("--wide prints every column: P(faster), P(best), loss, latency, memory, reasons.")
    listed = {cell.split("\n")[0] for part in (table, apart) for cell in part.get("shape", ())}
    unlisted = [p for p in proposals.ranked if p.name not in listed]
    refused = sum(p.throughput is None for p in unlisted)
    more = sum(p.on_front and not p.apart for p in unlisted)
    others = len(unlisted) - refused - more
    if more:
        echo(
            f"{counted(more, 'more shape')} on the front, between these: --json or --out has "
            "them all."
        )
    if others:
        echo(f"{counted(others, 'further shape')} {_beaten(proposals)}.")
    if refused:
        echo(f"{counted(refused, 'further shape')} that the engine could not run.")
    if page is not None:
        echo(str(page))


def _beaten(proposals: Proposals) -> str:
    """Say why shapes with a speed are not on the front."""
    workload = proposals.estimated.measured.candidates.request.serving.workload
    limited = workload.max_ttft is not None or workload.max_tpot is not None
    return "that those shown dominate" + (", or that miss the service level" if limited else "")


def print_report(folder: Path | None, *, json: bool) -> None:
    """Write the report of a folder again, and print its path and the verdict of a quickstart.

    Raises
    ------
    InputError
        No folder is given, or a file is missing in it.
    """
    if folder is None:
        raise InputError(
            "`report` needs a FOLDER, or --check; give one that `shapelaw propose --out` or "
            "`shapelaw quickstart` wrote"
        )
    if has_proposals_only(folder):
        page = write_pages(folder)
        print_json({"report": page}) if json else echo(str(page))
        return
    write_report(folder)
    print_verdict(folder, json=json)


def has_proposals_only(folder: Path) -> bool:
    """Return whether a folder holds the output of ``propose --out`` and no runs."""
    path = folder / "proposals.json"
    return path.is_file() and not (folder / "runs.csv").exists() and "basis" in read_json(path)


def print_verdict(folder: Path, *, json: bool) -> None:
    """Print the predicted and measured losses of a folder with runs, and the verdict."""
    evidence = read_evidence(folder)
    page, table = folder / "report.html", comparison(evidence)
    if json:
        print_json(
            {
                "report": page,
                "verdict": verdict(evidence),
                "confirmation": table,
                "conclusion": conclusion(evidence),
            }
        )
        return
    print_table(table, f"Predicted and measured loss ({short_unit(evidence.fit.loss_unit)})")
    echo("".join(f"- {sentence}\n" for sentence in verdict(evidence)))
    echo(str(page))
    if sentence := conclusion(evidence):
        echo(sentence)


def print_check(*, write: bool, json: bool) -> None:
    """Make the committed pictures and tables again, and write them or print the differences.

    Raises
    ------
    FailedCheckError
        A picture or a table differs.
    """
    docs = docs_folder()
    if write:
        paths = [str(path.relative_to(docs.parent)) for path in renew_docs(docs)]
        print_json({"written": paths}) if json else echo("\n".join(paths))
        return
    differences = compare_docs(docs)
    if json:
        print_json({"compared": list(COMMITTED), "differences": differences})
    else:
        for line in differences:
            echo(f"- {line}")
    if differences:
        raise FailedCheckError(
            f"docs/ and the data must agree, but differences were found: {len(differences)}; where "
            "they are meant, write docs/ again with `shapelaw report --renew` and commit it"
        )
    if not json:
        echo(f"{len(COMMITTED)} pictures and tables under docs/ are what the data give")


def _legend(proposals: Proposals) -> str:
    """Describe the sources of the intervals and of the speeds in the table."""
    kinds = {p.throughput.kind for p in proposals if p.throughput}
    candidates = proposals.estimated.measured.candidates
    sources = [candidates.request.serving.engine.basis]
    checked = proposals.estimated.cross_validation
    if TIME_MODEL in kinds and checked is not None:
        error = f"mean error {100 * checked.mape:.1f} % on {len(checked.measured)} left out"
        sources.append(f"time model: fitted to those answers ({error} in turn)")
    chance = "fits with less loss" if candidates.basis.published else "probability of less loss"
    return (
        f"loss: {candidates.basis.interval} of the difference in brackets; P(less): {chance}; "
        f"speed: output tokens/s over the baseline's, {'; '.join(sources)}."
    )


def _print_paper_models(proposals: Proposals) -> None:
    """Print the models that the paper of a printed law measured beside their predictions."""
    models = proposals.paper_models
    if models.empty:
        return
    table = models.assign(
        predicted_percent=models["predicted_percent"].map("{:+.2f} %".format),
        measured_percent=models["measured_percent"].map("{:+.2f} %".format),
    )
    columns = {"predicted_percent": "loss, predicted", "measured_percent": "loss, measured"}
    print_table(table.rename(columns=columns), "The models that the paper of this law trained")
