"""The law that predicts losses: from a file, published, or fitted on the shipped runs."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from shapelaw.scaling.accuracy.fit import load_link
from shapelaw.scaling.accuracy.link import Links
from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.display.progress import working
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.pooled import PooledFit
from shapelaw.scaling.fitting.published_laws import printed_fit, printed_laws
from shapelaw.scaling.fitting.reach import beyond_reach, require_reach
from shapelaw.scaling.fitting.result import Fit, as_fit
from shapelaw.scaling.fitting.with_prior import POOLED_LAW
from shapelaw.scaling.runs.catalog import load_runs, named_tables
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import NATS, format_count
from shapelaw.search.proposals.request import Budget

SHIPPED = "proxies"  # the table that the shipped law is fitted on
FITTED_ROLES = ("proxy", "anchor")
MIN_COUNT = 1e3  # fewer parameters or tokens in the largest run: the law counts in other units
MAX_NAME = 40  # characters of a law's expression that are shown
SHAPE_COLUMNS = {field.name for field in fields(Shape)} | {
    *("n_total", "n_active", N, D, *RATIOS, "aspect_ratio")
}


@dataclass(frozen=True, kw_only=True)
class LossBasis:
    """A fitted law with its runs and its links to accuracy.

    Attributes
    ----------
    fit
        The fitted law.
    description
        One line that names the law and its runs.
    runs
        Runs that the law was fitted on; None where they are not available. Without them, the spread
        over law forms is not computed.
    published
        Name of a published law; empty for a law that was fitted.
    links, validation
        Accuracy links, and the validation set of the law's losses, as the links name it.

    Raises
    ------
    InputError
        The fit has no resamples.
    """

    fit: Fit
    description: str = ""
    runs: RunTable | None = None
    published: str = ""
    links: Links | None = None
    validation: str = ""

    @property
    def interval(self) -> str:
        """Return the kind of the intervals of differences, for legends."""
        return "the range of the fits that the paper prints" if self.published else "95 % interval"

    def __post_init__(self) -> None:
        if self.fit.loss_unit != NATS:
            raise InputError(
                f"`--law` must be a fit in nats per token, but has {self.fit.loss_unit}; "
                f"fit losses in nats per token"
            )
        if not self.fit.has_intervals:
            raise InputError(
                "`--law` must be a fit with resamples, which give the intervals of proposals, but "
                "got one without; fit it again with --resamples 1000"
            )


def loss_basis(
    law: str | Path | Fit | None = None,
    *,
    seed: int = 0,
    link: str | None = None,
    validation: str = "",
) -> LossBasis:
    """Load or fit the law that predicts losses.

    Parameters
    ----------
    law
        A fit or the path of one, or name of a published law such as ``paper-2510.18245``; None: a
        law is fitted on the shipped runs.
    seed
        Seed of that fit.
    link
        Name or file of an accuracy link; None: no accuracies are predicted.
    validation
        Validation set of the law's losses, as the link names it.

    Raises
    ------
    InputError
        The law or the link cannot be read, the link does not hold for the validation set, or the
        law needs what a shape and a token budget do not give.
    """
    links = None if link is None else load_link(link)
    _check_validation(links, validation)
    if law is None:
        fitted, runs, description = _shipped_law(seed)
    elif isinstance(law, str) and law in printed_laws():
        fitted, runs = printed_fit(law), None
        description = f"{law}: {fitted.status}"
    elif isinstance(law, str | Path):
        fitted, runs, description = _law_from_file(str(law))
    else:
        fitted, runs, description = as_fit(law), None, _describe(as_fit(law), "a fit")
    return LossBasis(
        fit=fitted, description=description, runs=runs, links=links, validation=validation,
        published=law if isinstance(law, str) and law in printed_laws() else "",
    )  # fmt: skip


def require_budget_in_reach(
    basis: LossBasis, budget: Budget, tokens: int, baseline: Shape | None = None
) -> list[str]:
    """Refuse a budget or a baseline far from the runs of a law and from the shipped pooled law.

    Parameters
    ----------
    basis
        Law that predicts losses.
    budget
        Parameters.
    tokens
        Training tokens of the baseline.
    baseline
        Shape whose ratios count; None for the budget alone. Other shapes of a search lie within
        the fitted ratios.

    Returns
    -------
    list
        How many times N, D and ratios are those of the runs of the law alone, where they are far
        from them.

    Raises
    ------
    InputError
        The budget or the baseline is out of reach of both, and ``extrapolate`` is false.
    """
    target: dict[str, float] = {N: budget.parameters, D: tokens}
    if baseline is not None:
        target |= {name: getattr(baseline, name) for name in RATIOS}
    sources = [dict(source["ranges"]) for source in PooledFit.load(POOLED_LAW).sources.values()]
    pooled = {
        name: (min(each[name][0] for each in sources), max(each[name][1] for each in sources))
        for name in target
        if all(name in each for each in sources)
    }
    far = beyond_reach(basis.fit, target, pooled)
    require_reach(far, extrapolate=budget.extrapolate, lines=False)
    return list(beyond_reach(basis.fit, target).values())


def _check_validation(links: Links | None, validation: str) -> None:
    """Check that a validation set comes with a link, and is that of the link."""
    if validation and links is None:
        raise InputError(
            f"`--validation {validation}` must come with --link, which it belongs to; leave it "
            "out, or add --link olmo-ladder"
        )
    if validation and links is not None and links.measured.refusal(validation, None):
        raise InputError(
            f"`--validation` must be {links.measured.validation}, the validation set of the link, "
            f"but got {validation!r}; correct the name, or leave --validation out"
        )


def _law_from_file(law: str) -> tuple[Fit, RunTable | None, str]:
    path = Path(law)
    if not path.is_file() and path.suffix != ".json":
        raise InputError(
            f"`--law` must be a file that `shapelaw fit --out` wrote, or one of "
            f"{', '.join(printed_laws())}, but got {law!r}"
        )
    fitted = Fit.load(path)
    _check_columns(fitted, law)
    _check_units(fitted, law)
    return fitted, runs_of(fitted, path), _describe(fitted, law)


def _describe(fitted: Fit, source: str) -> str:
    name = fitted.law_name if len(fitted.law_name) < MAX_NAME else "composed"
    return f"{name} law on {counted(len(fitted.run_ids), 'run')}, {source}"


def _shipped_law(seed: int) -> tuple[Fit, RunTable, str]:
    """Return the conditional law of the shipped runs: the shipped fit, or a new one."""
    every_run = load_runs(SHIPPED)
    runs = every_run.take(every_run["role"].isin(FITTED_ROLES).to_numpy())
    fitted = shipped_fit()
    if seed != fitted.seed or runs.fingerprint != fitted.data_sha256:
        with working("fitting a law on the shipped runs"):
            fitted = fit("conditional", runs, seed=seed)
    sizes = [format_count(size) for size in fitted.ranges[N]]
    vocabularies = ", ".join(f"{size:,}" for size in sorted(set(every_run["vocab_size"])))
    description = (
        f"the law of {len(fitted.run_ids)} shipped runs of {sizes[0]} to {sizes[1]} parameters, as "
        f"no --law is given (data/{SHIPPED}, losses in nats per token of a vocabulary of "
        f"{vocabularies}); fit your own runs for a real decision"
    )
    return fitted, runs, description


def shipped_fit() -> Fit:
    """Return the shipped fit of the conditional law to the shipped runs.

    The fit is a file, so that draws of the posterior are the same on every machine.
    """
    return Fit.load(data_folder() / "laws" / "ladder.json")


def runs_of(fitted: Fit, path: Path) -> RunTable | None:
    """Find the runs of a fit in a table beside its file or in a shipped table.

    A table is only used if its content has the hash that the fit stores.

    Returns
    -------
    The runs, or None if no table holds them.
    """
    run_ids = list(set(fitted.run_ids))
    for table in _tables_near(path):
        runs = table.take(np.isin(table.run_ids, run_ids))
        if len(runs) == len(fitted.run_ids) > 0 and runs.fingerprint == fitted.data_sha256:
            return runs
    return None


def _tables_near(path: Path) -> Iterator[RunTable]:
    """Yield the run tables in the folder of a fit, then the shipped ones."""
    shipped = [name for name, table in named_tables().items() if not table.files]
    for source in [*sorted(path.parent.glob("*runs*.csv")), *shipped]:
        try:
            yield load_runs(str(source))
        except InputError:  # a CSV file of another kind
            continue


def _check_columns(fitted: Fit, source: str) -> None:
    """Check that a shape and a token budget give all columns of a law."""
    missing = [name for name in fitted.law.columns if name not in SHAPE_COLUMNS]
    if missing:
        raise InputError(
            f"`--law` {source} needs `{missing[0]}`, which a shape and a token budget do not give; "
            "fit a law of n_non_embedding, tokens and shape ratios, such as `conditional`"
        )


def _check_units(fitted: Fit, source: str) -> None:
    """Check that a law was not fitted to counts in millions or billions."""
    for column in (N, D):
        high = fitted.ranges.get(column, (0.0, np.inf))[1]
        if high < MIN_COUNT:
            raise InputError(
                f"`{column} >= {MIN_COUNT:g}` must hold for some run of a law, but {source} was "
                f"fitted up to {high:g}: it counts in other units; fit it in single parameters "
                "and tokens"
            )
