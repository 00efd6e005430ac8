"""Fit conditional scaling laws to training runs, and search transformer shapes that serve fast.

``shapelaw.scaling``, ``shapelaw.trainers`` and ``shapelaw.search`` are the folders of the same
names; each imports only those named before it. Public names are imported when they are first used
(PEP 562), so ``import shapelaw`` costs nothing and needs no other package: the training core runs
where only torch, numpy and safetensors are installed.
"""

from importlib import import_module
from typing import Any

# Public name -> module that defines it. ``__init__.pyi`` says the same to type checkers.
_PUBLIC = {
    "Budget": "search.proposals.request",
    "Chinchilla": "scaling.laws.bases",
    "Fit": "scaling.fitting.result",
    "GroupedQuery": "scaling.laws.factors",
    "LossBasis": "search.proposals.basis",
    "ProposalRequest": "search.proposals.request",
    "RunTable": "scaling.runs.table",
    "SearchEffort": "search.proposals.request",
    "Serving": "search.proposals.request",
    "Shape": "scaling.architectures.shape",
    "SpaceOptions": "search.proposals.request",
    "UShape": "scaling.laws.factors",
    "Workload": "search.workload",
    "check": "scaling.checks.report",
    "compare": "scaling.checks.comparison",
    "decide": "scaling.decisions.decide",
    "difference": "scaling.fitting.derived",
    "engine_named": "search.engines.registry",
    "fit": "scaling.fitting.fit_law",
    "intervals": "scaling.fitting.derived",
    "lifetime_optimum": "scaling.fitting.lifetime",
    "load_runs": "scaling.runs.catalog",
    "loss_basis": "search.proposals.basis",
    "measure": "search.engines.cache",
    "next_runs": "scaling.design.next_batch",
    "optimal": "scaling.fitting.derived",
    "parse_workload": "search.workload",
    "propose": "search.proposals.pareto_search",
    "shape_named": "scaling.architectures.named_shapes",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("shapelaw")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'shapelaw' has no attribute {name!r}")
    return getattr(import_module(f"shapelaw.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), "__version__", *_PUBLIC]
