"""Pooled law of the public tables that vary shape: fit, leave-one-source-out, and decision test.

    SHAPELAW_MIRROR=FOLDER python benchmarks/pooled_law.py
    python benchmarks/pooled_law.py --figure

The law ``conditional`` is fitted to three sources at once, written to data/laws/pooled.json (draws
and provenance, no rows), and tested in two ways. First, every source is left out once, and the
shape terms of the others predict its shape effects. Second, the pool states which of two models of
arXiv 2510.18245, which are in no fit, has the lower loss. ``--figure`` draws docs/pooled.png from
the written files. Public tables come from the mirror in SHAPELAW_MIRROR or are downloaded.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from record import RESULTS, finish
from scipy.stats import spearmanr

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.pooled import PooledFit
from shapelaw.scaling.fitting.priors import coordinates_of, kind_of, moved_to
from shapelaw.scaling.fitting.published_laws import printed_laws
from shapelaw.scaling.fitting.with_prior import POOLED_LAW, fit_pooled
from shapelaw.scaling.laws.law import reference_of
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.uncertainty.misfit import AMPLITUDE, Misfit
from shapelaw.scaling.uncertainty.posterior import DEGREES, LOG_SCALE, LOG_SCALE_DEVIATION
from shapelaw.scaling.units import format_count

LAW = "conditional"
SHAPE = ["hidden_size", "num_hidden_layers", "num_attention_heads"]
BEST_OF_SHAPE = "n_non_embedding > 1e7"
# The file of a table by name, and the rows of it that the pool takes.
SOURCES = {
    "proxies": "all rows",
    "gemstones": "all rows",
    "mlfoundations-grid": f"the best run of every shape with {BEST_OF_SHAPE}",
}
PAPER = "paper-2510.18245"
PAIRS = (("llama-3.2-1b", "panda-1b"), ("llama-3.2-3b", "panda-3b"))
EFFECTS = ("curvature", "slope")  # kinds of parameters whose zero is no effect
GROUPS = {"equal N and D": ["size", "tokens_level"], "equal N": ["size"]}
NEAR_HALF = 0.4  # probability of the better model from which a wrong rank is no claim
STARTS = 64  # of every fit
DIGITS = 6  # significant, of the written draws
ENDS = (2.5, 50.0, 97.5)
HIDDEN = "hidden_over_sqrt_n"
PICTURE = Path(__file__).parent.parent / "docs" / "pooled.png"
FIGURES = RESULTS / "pooled-law.json"


def load(name: str) -> RunTable:
    """Load the rows of a source that the pool takes."""
    if name != "mlfoundations-grid":
        return load_runs(name)
    runs = load_runs(name, where=BEST_OF_SHAPE)
    return runs.take(np.sort(runs.frame.groupby(SHAPE)["loss"].idxmin().to_numpy()))


# ---- a source that the pool has not seen


def new_source(pooled: PooledFit, reference: Mapping[str, float], seed: int) -> np.ndarray:
    """Draw the shape parameters of a new source: shared ones, moved to its size, plus deviation."""
    moved = moved_to(pooled.law, pooled.names, pooled.shared, {N: pooled.reference_size}, reference)
    return moved + pooled.between * np.random.default_rng(seed).standard_normal(moved.shape)


def effect_draws(
    pooled: PooledFit, columns: dict[str, np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ln of the shape terms of a new source at rows, without and with misfit.

    Parameters
    ----------
    pooled
        Pool without the source.
    columns
        Columns of the law, (n,) each.
    seed
        Seed of deviations between sources and of the misfit.

    Returns
    -------
    Draws in ln loss, (S, n) each. The base is the same in all draws and is divided out.
    """
    law, reference = pooled.law, reference_of(columns)
    program = law.program(columns, reference)
    t = new_source(pooled, reference, seed)
    places = [law.names.index(name) for name in pooled.names]
    theta = np.zeros((len(t), len(law.names)))
    theta[:, places] = coordinates_of(law, 1.0).take(places).theta(t)[0]
    terms = program.log_loss(theta) - program.log_loss(without_shape(law.names, theta))
    generator = np.random.default_rng([seed, 1])
    misfit = Misfit.of(columns)
    latent = generator.standard_normal((len(t), misfit.size))
    amplitude = AMPLITUDE * np.abs(generator.standard_normal(len(t)))
    return terms, terms + misfit.draws(columns, latent, amplitude, seed)


def run_noise(count: tuple[int, int], seed: int) -> np.ndarray:
    """Draw the noise of runs of a new source from its prior, in ln loss."""
    generator = np.random.default_rng([seed, 2])
    sigma = np.exp(LOG_SCALE + LOG_SCALE_DEVIATION * generator.standard_normal(count[0]))
    return sigma[:, None] * generator.standard_t(DEGREES, count)


# ---- leave one source out


def shape_effects(runs: RunTable, levels: list[str], ratios: Sequence[str] = ()) -> pd.DataFrame:
    """Measure the effect of every shape: ln loss minus the mean of the shapes of its group.

    Parameters
    ----------
    runs
        Source to measure.
    levels
        Levels that the shapes of a group share: ``size``, or ``size`` and ``tokens_level``.
    ratios
        Columns that tell shapes apart beside the ratios of the law.

    Returns
    -------
    One row per group, token count and shape, with the columns of the law, ``effect``, and the
    numbers ``group`` and ``unit`` (a shape at a level of N). Runs that differ in nothing that these
    columns say, such as seeds, are averaged. What N and D explain within a group is removed with
    the base of the source's own fit. Groups of a single shape are left out.
    """
    own = fit(LAW, runs, resamples=0, starts=STARTS)
    columns = runs.law_columns(own.law.columns)
    program = own.law.program(columns, own.reference)
    base = program.log_loss(without_shape(own.law.names, own.theta[None]))[0]
    frame = pd.DataFrame(columns | runs.law_columns(ratios)).assign(
        rest=np.log(runs.losses) - base, size=runs.size_level, tokens_level=runs.token_level
    )
    apart = [*(factor.of for factor in own.law.shapes), *ratios]
    frame["unit"] = frame.groupby(["size", *apart]).ngroup()
    cells = frame.groupby(["size", "tokens_level", "unit"], as_index=False).mean()
    cells = cells[cells.groupby(levels)["unit"].transform("nunique") > 1].copy()
    groups = cells.groupby(levels)
    return cells.assign(
        effect=cells["rest"] - groups["rest"].transform("mean"), group=groups.ngroup(),
        unit=cells.groupby("unit").ngroup(),
    )  # fmt: skip


def without_shape(names: Sequence[str], theta: np.ndarray) -> np.ndarray:
    """Set the curvatures and slopes of the shape terms to zero, (S, p)."""
    plain = theta.copy()
    plain[:, [kind_of(name) in EFFECTS for name in names]] = 0.0
    return plain


def left_out(pooled: PooledFit, runs: RunTable, levels: list[str], seed: int) -> dict[str, float]:
    """Predict the shape effects of a source from the shape terms of the other sources."""
    return score_effects(pooled, shape_effects(runs, levels), seed)


def score_effects(pooled: PooledFit, cells: pd.DataFrame, seed: int) -> dict[str, float]:
    """Compare effects that :func:`shape_effects` measured with the shape terms of a pool."""
    columns = {name: cells[name].to_numpy() for name in pooled.law.columns}
    terms, full = effect_draws(pooled, columns, seed)
    groups, units = cells["group"].to_numpy(), cells["unit"].to_numpy()
    # Token counts of one shape share the noise: they are checkpoints of one run in gemstones.
    full = full + run_noise((len(full), int(units.max()) + 1), seed)[:, units]
    measured = _by(cells["effect"].to_numpy()[None], units)[0]
    predicted = _by(_centred(terms, groups).mean(axis=0)[None], units)[0]
    low, high = np.percentile(_by(_centred(full, groups), units), (ENDS[0], ENDS[-1]), axis=0)
    return {
        "effects": len(measured),
        "groups": int(groups.max()) + 1,
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
        "mean_squared_error": float(((predicted - measured) ** 2).mean()),
        "mean_squared_error_without_shape": float((measured**2).mean()),
        "coverage": float(((low <= measured) & (measured <= high)).mean()),
        "mean_interval_percent": 100 * float((high - low).mean()),
    }


def _centred(draws: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Subtract the mean over the rows of each group, (S, n)."""
    return draws - _by(draws, groups)[:, groups]


def _by(draws: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Average columns by group, (S, groups)."""
    members = groups[:, None] == np.arange(groups.max() + 1)
    return np.asarray(draws @ (members / members.sum(axis=0)))


# ---- decision test


def decisions(pooled: PooledFit, seed: int) -> list[dict[str, Any]]:
    """State for each pair of the paper's models the probability that the better one is better."""
    paper = load_runs(PAPER)
    rows = []
    for pair in PAIRS:
        places = [int(np.flatnonzero(paper.run_ids == name)[0]) for name in pair]
        part = paper.take(places)
        _, draws = effect_draws(pooled, part.law_columns(pooled.law.columns), seed)
        difference = draws[:, 1] - draws[:, 0]
        low, middle, high = 100 * np.percentile(difference, ENDS)
        measured = 100 * float(np.diff(np.log(part.losses))[0])
        rows.append(
            {
                "first": pair[0],
                "second": pair[1],
                "p_second_better": float((difference < 0).mean()),
                "difference_percent": [low, middle, high],
                "measured_percent": measured,
                "inside": bool(low <= measured <= high),
            }
        )
    return rows


def role(rows: list[dict[str, Any]]) -> str:
    """Decide by the decision test if the pool may be a default, or ships as a prior only."""
    better = [
        row["p_second_better"] if row["measured_percent"] < 0 else 1 - row["p_second_better"]
        for row in rows
    ]
    return "default" if min(better) >= NEAR_HALF else "prior only"


def verdict(rows: list[dict[str, Any]], printed: list[dict[str, Any]]) -> str:
    """Say why the pool is a default or a prior only, and which printed optima it excludes."""
    stated = " and ".join(
        f"{row['p_second_better']:.2f} that {row['second']} is better than {row['first']} "
        f"(measured {row['measured_percent']:+.2f} %)"
        for row in rows
    )
    held = "holds both differences" if all(row["inside"] for row in rows) else "misses a difference"
    outside = " and ".join(
        f"{row['printed']:.3f} at N = {row['mean_size']:.3g}"
        for row in printed
        if not row["inside"]
    )
    return (
        f"{role(rows)}: without the models of arXiv 2510.18245 the pool states a probability of "
        f"{stated}; its 95 % interval {held}; optima of d/sqrt(N) printed there and outside the "
        f"95 % interval of a new source: {outside or 'none'}"
    )


# ---- the written file


def shipped(pooled: PooledFit, tables: Mapping[str, RunTable], note: str) -> PooledFit:
    """Round the draws, and add to every source its citation, licence, address and rows."""
    sources = {
        name: {**about, **tables[name].source, "rows": SOURCES[name]}
        for name, about in pooled.sources.items()
    }
    return replace(
        pooled, shared=_rounded(pooled.shared), between=_rounded(pooled.between), sources=sources,
        notes=[*pooled.notes, note],
    )  # fmt: skip


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round to the digits of the file."""
    return np.vectorize(lambda value: float(f"{value:.{DIGITS}g}"))(values)


def separate(runs: RunTable, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit a source alone; return its optimum of d/sqrt(N) at its mean N, and the drift."""
    fitted = fit(LAW, runs, **settings)
    parameters = fitted.parameters()
    kinds = ("optimum", "drift", "curvature")
    return {
        "runs": len(runs),
        "mean_size": fitted.reference[N],
        "sizes": [float(runs.sizes.min()), float(runs.sizes.max())],
        **{kind: list(parameters[f"{HIDDEN}_{kind}"].values()) for kind in kinds},
    }


# ---- figure


def optimum_at(pooled: PooledFit, size: float, *, new: bool = False) -> np.ndarray:
    """Compute median and 95 % ends of the optimum of d/sqrt(N) at a size, shared or of a source."""
    reference = {N: size}
    moved = (
        new_source(pooled, reference, 0)
        if new
        else moved_to(
            pooled.law, pooled.names, pooled.shared, {N: pooled.reference_size}, reference
        )
    )
    return np.exp(np.percentile(moved[:, pooled.names.index(f"{HIDDEN}_optimum")], ENDS))


def printed_optima(pooled: PooledFit) -> list[dict[str, Any]]:
    """List the optima a2/a1 of d/sqrt(N) that the paper prints, beside those of a new source."""
    rows = []
    for law in (printed_laws()[name] for name in (PAPER, f"{PAPER}-1b")):
        size = float(np.exp(np.log(law["ranges"][N]).mean()))
        optimum = law["coefficients"]["a2"] / law["coefficients"]["a1"]
        low, middle, high = optimum_at(pooled, size, new=True)
        rows.append(
            {
                "mean_size": size,
                "printed": optimum,
                "new_source": [low, middle, high],
                "inside": bool(low <= optimum <= high),
            }
        )
    return rows


def draw(pooled: PooledFit, own: dict[str, dict[str, Any]]) -> None:
    """Draw the optimum of d/sqrt(N) against N: the pool, each source alone, the printed values."""
    from matplotlib.figure import Figure

    from shapelaw.scaling.plots.style import COLOURS, log_axis, save_figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sizes = np.geomspace(3e4, 5e9, 60)
    shared = np.array([optimum_at(pooled, size) for size in sizes]).T
    wide = np.array([optimum_at(pooled, size, new=True) for size in sizes]).T
    axes.fill_between(sizes, wide[0], wide[2], color="0.9", label="new source, 95 %")
    axes.fill_between(sizes, shared[0], shared[2], color="0.75", label="pool, 95 %")
    axes.plot(sizes, shared[1], color="black", label="pool")
    for (name, about), colour, marker in zip(own.items(), COLOURS, "os^", strict=False):
        value, low, high = about["optimum"]
        axes.errorbar(
            about["mean_size"], value, yerr=[[value - low], [high - value]], color=colour,
            marker=marker, capsize=4, linestyle="none", label=f"{name} alone, 95 %",
        )  # fmt: skip
        ends = np.array(about["sizes"])
        axes.plot(
            ends, value * (ends / about["mean_size"]) ** about["drift"][0], color=colour,
            linestyle="--", linewidth=1,
        )  # fmt: skip
    printed = printed_optima(pooled)
    axes.plot(
        [row["mean_size"] for row in printed], [row["printed"] for row in printed], color="black",
        marker="X", linestyle="none", markersize=9, label="arXiv 2510.18245, printed (in no fit)",
    )  # fmt: skip
    log_axis(axes, "x", sizes[0], sizes[-1], form=format_count)
    log_axis(axes, "y", wide[0].min(), wide[2].max())
    axes.set_xlabel("non-embedding parameters N")
    axes.set_ylabel("optimum of hidden size / √N")
    axes.legend(frameon=False)
    save_figure(figure, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", action="store_true", help="draw from the written files only")
    parser.add_argument("--resume", action="store_true", help="keep the written pool and results")
    options = parser.parse_args()
    settings = {
        "resamples": options.resamples, "starts": options.starts, "seed": options.seed,
    }  # fmt: skip
    if not options.figure:
        measure(settings, resume=options.resume)
    draw(PooledFit.load(POOLED_LAW), json.loads(FIGURES.read_text())["separate"])


def measure(settings: dict[str, Any], *, resume: bool) -> None:
    """Fit and test the pool; results are written as soon as they are there."""
    tables, seed = {name: load(name) for name in SOURCES}, settings["seed"]
    if not resume:
        pooled = fit_pooled(LAW, tables, **settings)
        note = verdict(decisions(pooled, seed), printed_optima(pooled))
        shipped(pooled, tables, note).save(POOLED_LAW)
    pooled = PooledFit.load(POOLED_LAW)
    tested = decisions(pooled, seed)
    print(pooled.summary(), flush=True)
    before = json.loads(FIGURES.read_text()) if resume and FIGURES.exists() else {}
    own, held_out = before.get("separate", {}), before.get("leave_one_source_out", {})
    figures: dict[str, Any] = {
        "law": LAW,
        "settings": settings,
        "reference_size": pooled.reference_size,
        "shared": pooled.frame().to_dict("records"),
        "decisions": tested,
        "role": role(tested),
        "printed": printed_optima(pooled),
        "separate": own,
        "leave_one_source_out": held_out,
    }
    for name, runs in tables.items():
        if name not in own:
            own[name] = separate(runs, settings)
            finish("pooled-law", figures)
    for name, runs in tables.items():
        if name not in held_out:
            others = {key: table for key, table in tables.items() if key != name}
            rest = fit_pooled(LAW, others, **settings)
            held_out[name] = {
                key: left_out(rest, runs, levels, seed) for key, levels in GROUPS.items()
            }
            finish("pooled-law", figures)
    finish("pooled-law", figures)


if __name__ == "__main__":
    main()
