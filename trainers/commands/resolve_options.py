"""Options of `sweep plan` that turn a wanted resolution into seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.table_options import ALL_RUNS, RunOptions
from shapelaw.scaling.display.console import note

if TYPE_CHECKING:
    from shapelaw.scaling.design.resolution import LawReading, NoiseEstimate
    from shapelaw.scaling.runs.table import RunTable
    from shapelaw.trainers.ladder.plan import Ladder
    from shapelaw.trainers.ladder.resolution import NoiseSource, ResolvedLadder

TOKENS_PER_PARAMETER = 20.0  # of a plan, unless stated
SHIPPED = "proxies"  # the table whose noise holds if none is given
LAW = "conditional"  # the law whose misfit counts with --resolve-by law
READINGS = ("runs", "law")

Resolve = Annotated[
    str | None,
    typer.Option(
        help="Plan the seeds for which a difference in loss of two shapes is known to this share, "
        "such as 0.3% (half width of its 95 % interval; default: no resolution).",
        metavar="PERCENT",
    ),
]
ResolveBy = Annotated[
    str,
    typer.Option(
        help="With --resolve, what gives the difference: runs of both shapes, or a law, which has "
        "a misfit too.",
        metavar="NAME",
    ),
]
Noise = Annotated[
    str | None,
    typer.Option(
        help="With --resolve, noise between seeds and its degrees of freedom (default: measured "
        "on --runs).",
        metavar="PERCENT[:DEGREES]",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Wanted resolution, and how it is read and from which noise.

    ``table`` is the file or name of the run table that measures noise and misfit.
    """

    wanted: float
    by_law: bool
    given: "NoiseEstimate | None"
    table: str

    @classmethod
    def of(
        cls,
        resolve: str | None,
        by: str,
        noise: str | None,
        runs: Path | None,
        proposals: Path | None,
    ) -> "Wish | None":
        """Parse the options; None without --resolve.

        Raises
        ------
        InputError
            A text is invalid, or the options exclude each other.
        """
        from shapelaw.scaling.errors import InputError

        if resolve is None:
            if noise is not None or by != READINGS[0]:
                raise InputError(
                    "`--noise` and `--resolve-by` must come with --resolve; add --resolve 0.5%"
                )
            return None
        if by not in READINGS:
            raise InputError(f"`--resolve-by` must be {' or '.join(READINGS)}, but got {by!r}")
        if proposals is not None:
            raise InputError(
                "`--resolve` must come with --sizes, because --next-runs has chosen the seeds of "
                "its runs; leave one of the two out"
            )
        if noise is not None and runs is not None and by == READINGS[0]:
            raise InputError(
                "`--noise` and `--runs` must not come together with --resolve, because each gives "
                "the noise; leave one out"
            )
        return cls(
            wanted=parse_percent(resolve, "--resolve"),
            by_law=by != READINGS[0],
            given=None if noise is None else parse_noise(noise),
            table=SHIPPED if runs is None else str(runs),
        )

    def plan(
        self,
        build: "Callable[[float, int], Ladder]",
        tokens: float | None,
        seeds: int,
        read: RunOptions = ALL_RUNS,
    ) -> "ResolvedLadder":
        """Plan the ladder with the seeds that the resolution needs, at least ``seeds``.

        The run table that measures the noise is read with the options ``read``.
        """
        from shapelaw.trainers.ladder.resolution import plan_resolved

        runs = None if self.given and not self.by_law else read.load(self.table)
        if self.given is not None and tokens is None:
            tokens = TOKENS_PER_PARAMETER
        law = None if runs is None or not self.by_law else self._law(runs)
        return plan_resolved(
            build, self.wanted, self._noise(runs), tokens_per_parameter=tokens,
            least_seeds=seeds, law=law,
        )  # fmt: skip

    def _noise(self, runs: "RunTable | None") -> "NoiseSource":
        from shapelaw.scaling.design.resolution import measure_noise_levels
        from shapelaw.trainers.ladder.resolution import NoiseSource

        if self.given is not None or runs is None:
            return NoiseSource(description="as --noise states", given=self.given)
        levels = measure_noise_levels(runs)
        text = "; ".join(level.summary() for level in levels)
        return NoiseSource(
            description=f"measured on {self.table}: {text}", levels=levels, runs=runs
        )

    def _law(self, runs: "RunTable") -> "Callable[[int], LawReading]":
        from shapelaw.scaling.design.resolution import LawReading, misfit_of
        from shapelaw.scaling.fitting.fit_law import fit
        from shapelaw.scaling.fitting.priors import shape_names

        note(f"fitting the law {LAW} on {self.table} to measure its misfit")
        fitted = fit(LAW, runs, resamples=0, prior="none")
        misfit = misfit_of(fitted)
        count = len(set(shape_names(fitted.law)).difference(fitted.held))
        return lambda shapes: LawReading(misfit=misfit, parameters=count, shapes=shapes)


def parse_percent(text: str, option: str) -> float:
    """Read a percentage such as ``0.3%`` as a share.

    Raises
    ------
    InputError
        The text is no number followed by %, or not between 0 and 100.
    """
    from shapelaw.scaling.errors import InputError

    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = float("nan")
    if not (text.strip().endswith("%") and 0 < share < 1):
        raise InputError(
            f"`{option}` must be a percentage of the loss between 0% and 100%, but got {text!r}; "
            "write 0.3%"
        )
    return share


def parse_noise(text: str) -> "NoiseEstimate":
    """Read a noise with its degrees of freedom, ``0.4%:24``, or ``0.4%``, known exactly.

    Raises
    ------
    InputError
        The share or the degrees are invalid.
    """
    from shapelaw.scaling.design.resolution import NoiseEstimate
    from shapelaw.scaling.errors import InputError

    share, _, degrees = text.partition(":")
    try:
        count = float(degrees or "inf")
    except ValueError:
        raise InputError(
            f"`--noise` must be PERCENT or PERCENT:DEGREES such as 0.4%:24, but got {text!r}"
        ) from None
    return NoiseEstimate(deviation=parse_percent(share, "--noise"), degrees=count)
