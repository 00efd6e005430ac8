"""Coverage of the statements of a whole fit, on synthetic tables with a known truth.

Each table goes through :func:`shapelaw.fit` with automatic settings and through
:func:`shapelaw.decide`. Measured are the 95 % intervals of the difference of two shapes, of one new
run, of an optimum and of the slope of GQA, and how often the statements "this shape is the best
with probability p" hold. With truth drawn from the prior, the binomial interval of every cell
should overlap 93 to 97 %. One JSON line per table is kept, so that a run continues and merges.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from record import RESULTS, finish
from scipy.stats import binomtest

from shapelaw.scaling.checks.calibration import wilson_interval
from shapelaw.scaling.decisions.decide import decide
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.priors import coordinates_of, kind_of, shape_names, weak_prior
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.uncertainty.misfit import AMPLITUDE, Misfit
from shapelaw.scaling.uncertainty.posterior import (
    CLUSTER_SCALE,
    DEGREES,
    LOG_SCALE,
    LOG_SCALE_DEVIATION,
)

LAW = "conditional"
LOWEST = 3.0  # nats; the weak prior of the base scales with the lowest observed loss
TOLERANCE = 0.02  # of the lowest observed loss around LOWEST
MAX_DRAWS = 20_000
RANGES = {"hidden_over_sqrt_n": (0.04, 0.2), "mlp_to_attention": (0.6, 4.0), "gqa": (1.0, 8.0)}
SIZES = (5e7, 8e8)
PER_PARAMETER = (10.0, 20.0, 40.0)
BEYOND = 4.0  # factor of the largest size
CANDIDATES = 5
SURE = 0.9
RUN_GROUP = "run_group"
PATH = RESULTS / "coverage.jsonl"
AIM = (0.93, 0.97)
MIN_TABLES_FOR_SHARE = 10  # fewer are printed as a count


@dataclass(frozen=True, kw_only=True)
class Case:
    """Design and truth of synthetic tables.

    ``design`` is ``balanced`` (all pairs of three levels), ``correlated`` (the MLP ratio follows
    the hidden size) or ``distinct`` (every shape has ratios of its own). ``deviations`` puts the
    shape parameters, interactions and the amplitude of the misfit at so many prior standard
    deviations from the mean (signs drawn); None draws them from the prior. ``interaction`` is the
    one deviation from the law, in ln loss where hidden size and MLP ratio are both at an end of
    their ranges. ``weak`` puts curvatures two standard deviations below the prior mean, other
    effects at 0. ``checkpoints`` rows of a run share a deviation.
    """

    design: str = "balanced"
    sizes: int = 3
    shapes: int = 9
    deviations: float | None = None
    interaction: float | None = None
    weak: bool = False
    checkpoints: int = 1
    degrees: float = DEGREES


CASES = {
    "balanced": Case(),
    "correlated ratios": Case(design="correlated"),
    "20 distinct ratios per size": Case(design="distinct", shapes=20),
    "two sizes": Case(sizes=2, shapes=18),
    "clusters of checkpoints": Case(shapes=6, design="distinct", checkpoints=2),
    "heavy tails (t, 2.5)": Case(degrees=2.5),
    "weak effects": Case(weak=True),
    "interaction of 1 %": Case(interaction=0.01),
    "interaction of 3 %": Case(interaction=0.03),
    "fixed at 0 deviations": Case(deviations=0.0),
    "fixed at 1 deviation": Case(deviations=1.0),
    "fixed at 2 deviations": Case(deviations=2.0),
}
FROM_PRIOR = (
    *("balanced", "correlated ratios", "20 distinct ratios per size", "two sizes"),
    "clusters of checkpoints",
)
FIXED = tuple(name for name, case in CASES.items() if case.deviations is not None)
GROUPS = {
    "all with truth from the prior": FROM_PRIOR,
    "all fixed": FIXED,
    "all others": tuple(name for name in CASES if name not in (*FROM_PRIOR, *FIXED)),
}
CELLS = {
    "difference": "difference, inside",
    "difference_beyond": "difference, 4N",
    "run": "new run, inside",
    "run_beyond": "new run, 4N",
    "optimum": "optimum of d/√N",
    "slope": "GQA slope",
}


def design(case: Case, generator: np.random.Generator) -> pd.DataFrame:
    """Make the rows of a table without losses."""
    levels = np.arange(case.shapes)
    parts = []
    for place, size in enumerate(np.geomspace(*SIZES, case.sizes)):
        first, second = levels % 3 / 2, levels // 3 % 3 / 2
        third = (levels + levels // 3 + levels // 9 + place) % 3 / 2
        if case.design != "balanced":
            first, second, third = generator.random((3, case.shapes))
        if case.design == "correlated":
            second = np.clip(first + 0.1 * generator.standard_normal(case.shapes), 0, 1)
        ratios = {
            name: low * (high / low) ** share
            for (name, (low, high)), share in zip(
                RANGES.items(), (first, second, third), strict=True
            )
        }
        per_parameter = np.take(
            PER_PARAMETER, (levels + 2 * (levels // 3) + levels // 9 + place) % 3
        )
        parts.append(pd.DataFrame({N: size, D: size * per_parameter, **ratios}))
    frame = pd.concat(parts, ignore_index=True)
    if case.checkpoints > 1:
        frame[RUN_GROUP] = [f"run {number}" for number in frame.index]
        frame = pd.concat(
            [frame.assign(**{D: frame[D] / 2**step}) for step in range(case.checkpoints)],
            ignore_index=True,
        )
    return frame


def candidates(size: float, generator: np.random.Generator) -> pd.DataFrame:
    """Draw the shapes that a fit is asked about, at one size and one token count."""
    ratios = {
        name: np.exp(generator.uniform(np.log(low), np.log(high), CANDIDATES))
        for name, (low, high) in RANGES.items()
    }
    return pd.DataFrame({N: size, D: size * PER_PARAMETER[1], **ratios})


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A synthetic table with its true parameters and the true ln losses of the asked shapes."""

    runs: pd.DataFrame
    parameters: dict[str, float]
    asked: tuple[pd.DataFrame, pd.DataFrame]
    log_losses: tuple[np.ndarray, np.ndarray]
    new_runs: np.ndarray


def draw_truth(case: Case, table: int) -> Truth:
    """Draw the truth and the runs of one table.

    The weak prior of the base refers to the lowest observed loss, so truths are drawn until that
    loss is about :data:`LOWEST`: a selection by the data alone, which leaves a posterior exact.
    """
    generator = np.random.default_rng([table, 14])
    frame = design(case, generator)
    asked = (
        candidates(float(np.median(frame[N])), generator),
        candidates(BEYOND * float(frame[N].max()), generator),
    )
    every = pd.concat([frame, *asked], ignore_index=True)  # one joint deviation from the law
    law = law_named(LAW)
    problem = problem_of(law, as_run_table(frame.assign(loss=LOWEST)))
    columns = {name: every[name].to_numpy(float) for name in problem.columns}
    program = law.program(columns, problem.reference)
    prior, coordinates = weak_prior(problem), coordinates_of(law, LOWEST)
    misfit = Misfit.of(problem.columns)
    deviation = np.sqrt(np.diag(prior.covariance))
    for _ in range(MAX_DRAWS):
        t = prior.mean + deviation * shape_scores(case, prior.names, generator)
        theta = coordinates.theta(t[None])[0]
        log_sigma = LOG_SCALE
        if case.deviations is None:
            log_sigma += LOG_SCALE_DEVIATION * generator.standard_normal()
        exact = program.log_loss(theta)[0] + misfit_of(case, misfit, columns, generator)
        noise = np.exp(log_sigma) * generator.standard_t(case.degrees, len(every))
        if case.checkpoints > 1:
            tau = CLUSTER_SCALE * abs(generator.standard_normal())
            runs = len(frame) // case.checkpoints
            groups = np.concatenate(
                [np.arange(len(frame)) % runs, runs + np.arange(2 * CANDIDATES)]
            )
            noise += tau * generator.standard_normal(groups.max() + 1)[groups]
        observed = exact + noise
        lowest = observed[: len(frame)].min()
        if abs(lowest - np.log(LOWEST)) < TOLERANCE:
            break
    else:
        raise RuntimeError(f"no truth among {MAX_DRAWS} draws has a lowest loss of {LOWEST}")
    split = len(frame), len(frame) + CANDIDATES
    return Truth(
        runs=frame.assign(loss=np.exp(observed[: len(frame)])),
        parameters=law.public(theta[0], problem.reference),
        asked=asked,
        log_losses=(exact[split[0] : split[1]], exact[split[1] :]),
        new_runs=np.exp(observed[[split[0], split[1]]]),
    )


def shape_scores(case: Case, names: tuple[str, ...], generator: np.random.Generator) -> np.ndarray:
    """Draw a truth in prior standard deviations; the parameters of the base always vary."""
    drawn = generator.standard_normal(len(names))
    shapes = np.isin(names, shape_names(law_named(LAW)))
    if case.weak:
        low = [-2.0 if kind_of(name) == "curvature" else 0.0 for name in names]
        return np.where(shapes, low, drawn)
    if case.deviations is not None:
        return np.where(shapes, case.deviations * np.sign(drawn), drawn)
    return drawn


def misfit_of(
    case: Case, misfit: Misfit, columns: Mapping[str, np.ndarray], generator: np.random.Generator
) -> np.ndarray:
    """Draw the deviation of the true ln loss from the law, (n,)."""
    latent = generator.standard_normal((1, misfit.size))
    amplitude = AMPLITUDE * abs(generator.standard_normal())
    pairs = len(misfit.pairs)
    if case.weak or case.interaction is not None:
        latent[:, :pairs] = amplitude = 0.0
    if case.deviations is not None:
        latent[:, :pairs] = case.deviations * np.sign(latent[:, :pairs])
        amplitude = case.deviations * AMPLITUDE
    seed = int(generator.integers(2**31))
    drawn = misfit.draws(columns, latent, np.array([amplitude]), seed)[0]
    if case.interaction is not None:
        product = np.ones(len(drawn))
        for name in ("hidden_over_sqrt_n", "mlp_to_attention"):
            low, high = np.log(RANGES[name])
            product *= (2 * np.log(columns[name]) - low - high) / (high - low)
        drawn += case.interaction * product
    return np.asarray(drawn)


def measure(truth: Truth, prior: str, *, starts: int, resamples: int, seed: int) -> dict[str, Any]:
    """Fit one table and test its statements against the truth."""
    fitted = fit(LAW, truth.runs, starts=starts, resamples=resamples, seed=seed, prior=prior)
    parameters = fitted.parameters()
    cells = {
        cell: _inside(truth.parameters[name], *(parameters[name][end] for end in ("low", "high")))
        for cell, name in (("optimum", "hidden_over_sqrt_n_optimum"), ("slope", "gqa_slope"))
    }
    stated = []
    for place, suffix in enumerate(("", "_beyond")):
        asked, losses = truth.asked[place], np.exp(truth.log_losses[place])
        made = decide(fitted, asked)
        ends = made[["difference_nats_low", "difference_nats_high"]].to_numpy()
        cells[f"difference{suffix}"] = _inside(losses[1] - losses[0], *ends[1])
        new = fitted.predict(asked.iloc[:1])
        cells[f"run{suffix}"] = _inside(
            truth.new_runs[place], float(new["loss_low"].iloc[0]), float(new["loss_high"].iloc[0])
        )
        best = int(made["p_best"].to_numpy().argmax())
        stated.append([round(float(made["p_best"].iloc[best]), 4), bool(best == losses.argmin())])
    return {"cells": cells, "stated": stated, "rough": _rough(fitted)}


def _inside(value: float, low: float, high: float) -> bool:
    return bool(low <= value <= high)


def _rough(fitted: Fit) -> bool:
    """Return True if the draws of the fit have not converged, as it says itself."""
    return any("not converged" in note for note in fitted.notes)


def read_lines(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Read the finished tables by case, prior and number."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["case"], line["prior"], line["table"]): line for line in lines}


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the coverage of every cell, with its binomial 95 % interval, and of p_best."""
    cells = {}
    for cell in CELLS:
        held = sum(line["cells"][cell] for line in lines)
        interval = binomtest(held, len(lines)).proportion_ci(0.95)
        cells[cell] = {"share": held / len(lines), "low": interval.low, "high": interval.high}
    stated = [(p, right) for line in lines for p, right in line["stated"]]
    sure = [(p, right) for p, right in stated if p >= SURE]
    held = sum(right for _, right in sure)
    low, high = wilson_interval(held, len(sure)) if sure else (0.0, 1.0)
    return {
        "tables": len(lines),
        "rough": sum(line["rough"] for line in lines),
        "cells": cells,
        "sure": {
            "decisions": len(stated),
            "mean_of_all": float(np.mean([p for p, _ in stated])),
            "held_of_all": sum(right for _, right in stated),
            "stated": len(sure),
            "held": held,
            "mean": float(np.mean([p for p, _ in sure])) if sure else None,
            "wilson_90": [low, high],
        },
    }


def markdown(summaries: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Format one row per case and prior, shares in per cent; one that misses the aim is bold."""
    titles = ["case", "prior", "tables", *CELLS.values(), "p_best ≥ 0.9: held (mean stated)"]
    rows = [titles, ["---"] * len(titles)]
    for (case, prior), summary in summaries.items():
        shares = []
        for cell in CELLS:
            values = summary["cells"][cell]
            text = f"{100 * values['share']:.0f} ± {50 * (values['high'] - values['low']):.0f}"
            if summary["tables"] < MIN_TABLES_FOR_SHARE:
                text = f"{round(values['share'] * summary['tables'])} of {summary['tables']}"
            off = values["high"] < AIM[0] or values["low"] > AIM[1]
            shares.append(f"**{text}**" if off else text)
        sure = summary["sure"]
        mean = "" if sure["mean"] is None else f" ({sure['mean']:.2f})"
        last = f"{sure['held']} of {sure['stated']}{mean}"
        rows.append([case, prior, str(summary["tables"]), *shares, last])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summaries_of(
    lines: Mapping[tuple[str, str, int], dict[str, Any]],
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Summarise the finished tables of every case and every group of cases, by prior."""
    for prior in ("weak", "none"):
        for name, cases in {**{case: (case,) for case in CASES}, **GROUPS}.items():
            found = [line for key, line in lines.items() if key[0] in cases and key[1] == prior]
            if found:
                yield (name, prior), summarise(found)


def write(path: Path, settings: dict[str, Any]) -> str:
    """Write the summary of all finished tables; return it as Markdown."""
    summaries = dict(summaries_of(read_lines(path)))
    nested: dict[str, Any] = {}
    for (case, prior), summary in summaries.items():
        nested.setdefault(prior, {})[case] = summary
    with redirect_stdout(None):
        finish("coverage", {**settings, "priors": nested})
    return markdown(summaries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=400, help="tables of each case")
    parser.add_argument("--resamples", type=int, default=256)
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--prior", choices=("weak", "none"), nargs="+", default=["weak"])
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--lines", type=Path, default=PATH, help="JSON lines of finished tables")
    options = parser.parse_args()
    settings = {"resamples": options.resamples, "starts": options.starts}
    finished = read_lines(options.lines)
    for table in range(options.tables):  # every case advances, so that a killed run has them all
        for case in options.case:
            for prior in options.prior:
                if (case, prior, table) in finished:
                    continue
                figures = measure(draw_truth(CASES[case], table), prior, seed=table, **settings)
                line = {"case": case, "prior": prior, "table": table, **figures}
                with options.lines.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(write(options.lines, settings))


if __name__ == "__main__":
    main()
