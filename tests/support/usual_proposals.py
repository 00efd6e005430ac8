"""Usual request for proposals, with changes."""

from pathlib import Path
from typing import Any

from shapelaw.scaling.units import parse_count
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.basis import LossBasis, loss_basis
from shapelaw.search.proposals.pareto_search import propose
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.request import (
    Budget,
    ProposalRequest,
    SearchEffort,
    Serving,
    SpaceOptions,
)
from shapelaw.search.workload import parse_workload

USUAL: dict[str, Any] = {
    "params": "1B", "tokens": "100B", "workload": "rag@64:bfloat16", "engine": "roofline:h200",
    "layers": (16,), "head_dims": (64,), "any_shape": True, "measurements": 6, "estimated": 5,
}  # fmt: skip
BUDGET = ("time", "convention", "tolerance")
SPACE = ("baseline", "layers", "head_dims", "vocab_size", "where", "worse_percent", "fastest",
         "any_shape", "confidence", "tensor_parallel")  # fmt: skip
EFFORT = ("measurements", "estimated", "leaders", "short", "sampler", "seed")


def request_for(**changes: Any) -> ProposalRequest:
    """Make the usual request with changed fields of any group, or limits of the workload."""
    options = USUAL | changes
    limits = {name: options[name] for name in ("max_ttft", "max_tpot") if name in options}

    def group(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    return ProposalRequest(
        budget=Budget(
            parameters=parse_count(options["params"]),
            tokens=None if options.get("time") else parse_count(options["tokens"]),
            **group(BUDGET),
        ),
        space=SpaceOptions(**group(SPACE)),
        serving=Serving(
            workload=parse_workload(options["workload"]).changed(**limits),
            engine=engine_named(options["engine"]),
        ),
        effort=SearchEffort(**group(EFFORT)),
    )  # fmt: skip


def basis_for(**changes: Any) -> LossBasis:
    """Load the published law or another law, with an accuracy link where ``link`` names one."""
    about = {name: changes[name] for name in ("link", "validation") if name in changes}
    return loss_basis(changes.get("law", "paper-2510.18245"), **about)


def propose_usual(out: Path | None = None, **changes: Any) -> Proposals:
    """Search for the proposals of the usual request with changes."""
    return propose(request_for(**changes), basis_for(**changes), out=out)
