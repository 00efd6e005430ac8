"""Plans whose seeds give a wanted resolution, with the price of every number of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from shapelaw.scaling.design.resolution import (
    LawReading,
    NoiseEstimate,
    NoiseLevel,
    half_width,
    information_ratio,
    noise_at,
    seeds_for,
    tokens_interaction,
)
from shapelaw.scaling.display.tables import View, counted
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import format_count, parse_count
from shapelaw.trainers.ladder.plan import HOUR, Ladder
from shapelaw.trainers.training.cost_model import Price

# A builder gets tokens per parameter and seeds of every shape, and returns the plan.
Builder = Callable[[float, int], Ladder]


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Noise between seeds and its origin.

    ``levels`` are the levels of a table, ``given`` a noise that the user states; one of them is
    set. ``runs`` is the table of the levels.
    """

    description: str
    levels: tuple[NoiseLevel, ...] = ()
    given: NoiseEstimate | None = None
    runs: RunTable | None = None

    def at(self, sizes: Sequence[float], tokens_per_parameter: float) -> NoiseEstimate:
        """Return the largest noise of any size of a plan."""
        if self.given is not None:
            return self.given
        estimates = [noise_at(self.levels, size, tokens_per_parameter) for size in sizes]
        return max(estimates, key=lambda noise: noise.deviation * noise.quantile)

    def notes(self, sizes: Sequence[float]) -> list[str]:
        """Describe the noise, its origin, and what short runs tell about long ones."""
        notes = [f"noise between seeds: {self.description}"]
        measured = [size for level in self.levels for size in level.sizes]
        outside = [size for size in sizes if measured and not _inside(size, measured)]
        if outside:
            notes.append(
                f"sizes {', '.join(map(format_count, outside))} lie outside those of the noise, "
                f"{format_count(min(measured))} to {format_count(max(measured))}; there the noise "
                "is a guess, so measure it with --runs"
            )
        if self.runs is not None and len(self.levels) > 1:
            notes += _notes_of_short_runs(self.runs, self.levels[0], self.levels[-1])
        return notes


def _inside(size: float, measured: Sequence[float], slack: float = 1.2) -> bool:
    return min(measured) / slack <= size <= max(measured) * slack


def _notes_of_short_runs(runs: RunTable, short: NoiseLevel, long: NoiseLevel) -> list[str]:
    """Compare runs at the least and most tokens per parameter with replicates."""
    ratio = information_ratio(short, long)
    first, second = f"{short.nominal:g}", f"{long.nominal:g}"
    notes = [
        f"seeds at {first} tokens per parameter carry {ratio.value:.2g} times the shape "
        f"information per FLOP of seeds at {second} (95 % interval {ratio.low:.2g} to "
        f"{ratio.high:.2g}, measured on this table)"
    ]
    interaction = tokens_interaction(runs, short, long)
    if interaction is not None:
        notes.append(
            f"that counts only if shapes differ at {first} as they do at {second}: over "
            f"{interaction.shapes} shapes the differences changed by "
            f"{100 * interaction.deviation:.2f} % (standard deviation beyond noise, "
            f"p = {interaction.chance:.2g})"
        )
    return notes


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Plan at one number of tokens per parameter with the seeds that it needs."""

    tokens_per_parameter: float
    noise: NoiseEstimate
    seeds: int
    half_width: float
    ladder: Ladder

    def row(self) -> dict[str, object]:
        """Return the row of the table of alternatives."""
        return {
            "tokens per parameter": float(f"{self.tokens_per_parameter:.4g}"),
            "noise, %": 100 * self.noise.deviation,
            "seeds": self.seeds,
            "± %": 100 * self.half_width,
            "runs": len(self.ladder.runs),
            "FLOP": float(self.ladder.flops.sum()),
            "core-hours": float(self.ladder.seconds.sum() / HOUR),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class ResolvedLadder(Ladder):
    """Plan whose seeds give a wanted resolution.

    Parameters
    ----------
    wanted
        Half width of the 95 % interval of the difference of ln loss of two shapes.
    reading
        Sentence that says how the difference is read.
    alternatives
        Plans with the same resolution, of which this is one.
    about_noise
        Sentences on the noise.
    """

    wanted: float
    reading: str
    alternatives: tuple[Alternative, ...]
    about_noise: tuple[str, ...] = ()

    def priced(self, price: Price) -> "ResolvedLadder":
        """Return the same plan and alternatives with another price."""
        again = tuple(
            replace(other, ladder=other.ladder.priced(price)) for other in self.alternatives
        )
        return replace(self, price=price, alternatives=again)

    def view(self) -> View:
        """Return the view of the plan, with the alternatives first."""
        view = super().view()
        table = pd.DataFrame([other.row() for other in self.alternatives])
        seeds = next(o.seeds for o in self.alternatives if o.ladder.runs == self.runs)
        count = counted(seeds, "seed")
        title = f"alternatives that resolve ±{100 * self.wanted:.3g} % (this plan: {count})"
        notes = [self.reading, *self.about_noise, *view.notes]
        return replace(view, tables={title: table, **view.tables}, notes=notes)

    def document(self) -> dict[str, Any]:
        """Return the document of the plan, with the wanted resolution and the alternatives."""
        rows = [
            {
                "tokens_per_parameter": other.tokens_per_parameter,
                "noise": other.noise.deviation,
                "noise_degrees": other.noise.degrees,
                "seeds": other.seeds,
                "half_width": other.half_width,
                "runs": len(other.ladder.runs),
                "flops": other.ladder.flops.sum(),
                "predicted_seconds": other.ladder.seconds.sum(),
            }
            for other in self.alternatives
        ]
        about = {"wanted": self.wanted, "reading": self.reading, "noise": self.about_noise}
        return super().document() | {"resolution": about | {"alternatives": rows}}


def plan_resolved(
    build: Builder,
    wanted: float,
    noise: NoiseSource,
    *,
    tokens_per_parameter: float | None = None,
    least_seeds: int = 1,
    law: Callable[[int], LawReading] | None = None,
) -> ResolvedLadder:
    """Plan the seeds that a resolution needs, at the number of tokens that costs the fewest FLOPs.

    Parameters
    ----------
    build
        Function that plans the ladder for tokens per parameter and seeds of every shape.
    wanted
        Half width of the 95 % interval of the difference of ln loss of two shapes.
    noise
        Noise between seeds.
    tokens_per_parameter
        Tokens per parameter of the plan; by default each level of the noise is an alternative.
    least_seeds
        Least number of seeds of every shape.
    law
        Function from the number of planned shapes to the law that predicts the difference; None if
        the difference is that of the shapes' own runs.

    Raises
    ------
    InputError
        No number of seeds gives the resolution.
    """
    counts = [level.nominal for level in noise.levels]
    if tokens_per_parameter is not None:
        counts = [tokens_per_parameter]
    alternatives = []
    for count in counts:
        plain = build(count, least_seeds)
        estimate = noise.at(_sizes(plain), count)
        reading = None if law is None else law(len({run.shape for run in plain.runs}))
        seeds = max(least_seeds, seeds_for(wanted, estimate, reading))
        alternatives.append(
            Alternative(
                tokens_per_parameter=count,
                noise=estimate,
                seeds=seeds,
                half_width=half_width(estimate, seeds, reading),
                ladder=plain if seeds == least_seeds else build(count, seeds),
            )
        )
    chosen = min(alternatives, key=lambda other: other.ladder.flops.sum()).ladder
    return ResolvedLadder(
        **{field.name: getattr(chosen, field.name) for field in fields(Ladder)},
        wanted=wanted,
        reading=_reading(wanted, reading),
        alternatives=tuple(alternatives),
        about_noise=tuple(noise.notes(_sizes(chosen))),
    )


def _sizes(ladder: Ladder) -> list[int]:
    """Return the nominal sizes of a plan, ascending."""
    return sorted({parse_count(run.size) for run in ladder.runs})


def _reading(wanted: float, law: LawReading | None) -> str:
    """Say what the resolution is."""
    what = (
        f"resolution: ±{100 * wanted:.3g} % is the half width of the 95 % interval of the "
        "difference in loss of two shapes of one size, at the token count of their runs, "
    )
    if law is None:
        return what + (
            "each measured by its own seeds; where a law predicts it, its misfit "
            "comes on top (--resolve-by law)"
        )
    return what + (
        f"as a law predicts it that is fitted to {law.shapes} shapes, with "
        f"{law.parameters} shape parameters and a misfit of {100 * law.misfit:.2f} %"
    )
