"""Posterior of a fit against plain MCMC of the same density; promise: ends within 0.1 of the width.

The density is written anew from its definition, with every latent value explicit, and sampled by
random-walk Metropolis steps of many walkers. Nothing of it comes from the package. The benchmark
compares quantiles of parameters and of the difference of two shapes on small synthetic tables: an
ordinary one, one whose loss is close to E, one with a flat U-shape, and one with checkpoints of
runs and two ratios.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from record import finish

import shapelaw

SIZE, TOKENS, RUN = "n_non_embedding", "tokens", "run_group"
MLP, HIDDEN = "mlp_to_attention", "hidden_over_sqrt_n"
QUANTILES = (2.5, 50.0, 97.5)
TOLERANCE = 0.1  # of the width of the 95 % interval
# Mean and standard deviation of the weak priors: logit of E over the lowest loss; ln of a scale
# over the lowest loss; ln of an exponent; ln of a curvature; ln of an optimum by ratio.
FLOOR, SCALE, EXPONENT = (0.8, 1.3), (-1.5, 1.0), (np.log(0.35), 0.5)
CURVATURE, OPTIMA = (np.log(0.03), 1.2), {MLP: (np.log(1.5), 0.7), HIDDEN: (np.log(0.09), 0.7)}
SIGMA, AMPLITUDE, CLUSTER, INTERACTION = (np.log(0.004), 0.8), 0.005, 0.01, 0.03
LENGTHS = {SIZE: 2.0, TOKENS: 2.0, MLP: 0.7, HIDDEN: 0.7}
DEGREES = 4.0
JITTER = 1e-8


@dataclass(frozen=True, kw_only=True)
class Table:
    """Synthetic runs, the ratios of the law, and two shapes whose difference is compared."""

    runs: pd.DataFrame
    ratios: tuple[str, ...]
    shapes: pd.DataFrame


def bowl(x: np.ndarray, curvature: np.ndarray, optimum: np.ndarray) -> np.ndarray:
    """Compute 1 + k (ln(x/x*) + x*/x - 1)."""
    return 1 + curvature * (np.log(x / optimum) + optimum / x - 1)


def made_table(
    *, base: tuple[float, ...], sizes: tuple[float, ...], per_token: tuple[float, ...],
    curvature: float, values: tuple[float, ...], seed: int,
) -> Table:  # fmt: skip
    """Draw runs of a Chinchilla law with one U-shape and noise of 0.4 %."""
    generator = np.random.default_rng(seed)
    n, per, x = np.array(
        [(size, count, generator.choice(values)) for size in sizes for count in per_token]
    ).T
    floor, a, alpha, b, beta = base
    loss = floor + a * (n / 1e7) ** -alpha + b * (n * per / 2e8) ** -beta
    loss *= bowl(x, curvature, 1.3) * np.exp(0.004 * generator.standard_normal(len(n)))
    runs = pd.DataFrame({SIZE: n, TOKENS: n * per, MLP: x, "loss": loss})
    return Table(runs=runs, ratios=(MLP,), shapes=two_shapes({MLP: (1.0, 3.0)}))


def two_shapes(ratios: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Make two shapes of one size and token count beyond the tables."""
    return pd.DataFrame({SIZE: 6e7, TOKENS: 1.2e9} | ratios)


def checkpoints() -> Table:
    """Draw three checkpoints of each of six runs, with an effect of each run and two ratios."""
    generator = np.random.default_rng(3)
    rows = []
    for run in range(6):
        size = (1e6, 4e6, 1.6e7)[run % 3]
        mlp, hidden = np.exp(generator.uniform(np.log([0.5, 0.05]), np.log([4.0, 0.2])))
        shift = 0.005 * generator.standard_normal()
        for per in (5, 15, 45):
            loss = 1.8 + 0.5 * (size / 1e7) ** -0.35 + 0.6 * (size * per / 2e8) ** -0.37
            loss *= bowl(mlp, 0.04, 1.3) * bowl(hidden, 0.08, 0.1)
            loss *= np.exp(shift + 0.003 * generator.standard_normal())
            rows.append((size, size * per, mlp, hidden, loss, f"run-{run}"))
    runs = pd.DataFrame(rows, columns=[SIZE, TOKENS, MLP, HIDDEN, "loss", RUN])
    shapes = two_shapes({MLP: (1.0, 3.0), HIDDEN: (0.1, 0.06)})
    return Table(runs=runs, ratios=(MLP, HIDDEN), shapes=shapes)


GRID = ((1e6, 4e6, 1.6e7), (5, 15, 45, 135))
TABLES: dict[str, Callable[[], Table]] = {
    "ordinary": lambda: made_table(
        base=(1.8, 0.5, 0.35, 0.6, 0.37), sizes=GRID[0], per_token=GRID[1], curvature=0.05,
        values=(0.5, 1.0, 2.0, 4.0), seed=1,
    ),
    "loss close to E": lambda: made_table(
        base=(2.5, 0.1, 0.8, 0.1, 0.9), sizes=(1e6, 4e6, 1.6e7, 6.4e7), per_token=(40, 160, 640),
        curvature=0.05, values=(0.5, 1.0, 2.0, 4.0), seed=2,
    ),
    "flat U-shape": lambda: made_table(
        base=(1.8, 0.5, 0.35, 0.6, 0.37), sizes=GRID[0], per_token=GRID[1], curvature=0.0,
        values=(0.9, 1.3, 1.8), seed=4,
    ),
    "checkpoints": checkpoints,
}  # fmt: skip


class PlainDensity:
    """Log density with explicit latent values, written for reading.

    A point is: logit of E/lowest, ln A, ln alpha, ln B, ln beta; ln k and ln x* of every ratio;
    standard normal values of the interaction, of the process at the rows, and of the runs; ln σ,
    ln a, and ln τ with runs.
    """

    def __init__(self, table: Table):
        self.table, runs = table, table.runs
        self.logs = np.log(runs["loss"].to_numpy())
        self.lowest = self.logs.min()
        self.columns = [SIZE, TOKENS, *table.ratios]
        self.x = np.log(runs[self.columns].to_numpy())
        self.middle = self.x.mean(axis=0)
        self.places, self.distinct = self.of_distinct(self.x)
        kernel = self.kernel(self.distinct, self.distinct) + JITTER * np.eye(len(self.distinct))
        self.root = np.linalg.cholesky(kernel)
        self.member = np.zeros((len(runs), 0))
        if RUN in runs:
            self.member = pd.get_dummies(runs[RUN]).to_numpy(float)
        ratios = len(table.ratios)
        prior = [FLOOR, (self.lowest + SCALE[0], SCALE[1]), EXPONENT]
        prior += [(self.lowest + SCALE[0], SCALE[1]), EXPONENT]
        for ratio in table.ratios:
            prior += [CURVATURE, OPTIMA[ratio]]
        self.mean, self.deviation = np.array(prior, dtype=float).T
        counts = [len(prior), ratios * (ratios - 1) // 2, len(self.distinct), self.member.shape[1]]
        counts.append(3 if RUN in runs else 2)
        ends = np.cumsum(counts)
        self.size = int(ends[-1])
        self.blocks = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

    @staticmethod
    def of_distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of every row among the distinct rows, and these."""
        distinct, places = np.unique(x, axis=0, return_inverse=True)
        return places.ravel(), distinct

    def kernel(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compute the squared-exponential kernel of amplitude 1."""
        lengths = np.array([LENGTHS[name] for name in self.columns])
        gaps = (first[:, None] - second[None]) / lengths
        return np.exp(-0.5 * (gaps**2).sum(axis=-1))

    def law(self, t: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Compute ln of the law at rows, (S, n)."""
        n, d = (x[:, :2] - self.middle[:2]).T
        floor = np.exp(self.lowest) / (1 + np.exp(-t[:, :1]))
        loss = floor + np.exp(t[:, 1:2] - np.exp(t[:, 2:3]) * n)
        loss = loss + np.exp(t[:, 3:4] - np.exp(t[:, 4:5]) * d)
        for place in range(len(self.table.ratios)):
            log_k, log_best = t[:, 5 + 2 * place, None], t[:, 6 + 2 * place, None]
            gap = x[:, 2 + place] - log_best
            loss = loss * (1 + np.exp(log_k) * (gap + np.exp(-gap) - 1))
        return np.log(loss)

    def interaction(self, x: np.ndarray) -> np.ndarray:
        """Compute the factor of the interaction at rows, (n, 0 or 1)."""
        if len(self.table.ratios) < 2:
            return np.zeros((len(x), 0))
        centred = x[:, 2:] - self.middle[2:]
        return INTERACTION * centred[:, :1] * centred[:, 1:]

    def parts(self, points: np.ndarray) -> tuple[np.ndarray, ...]:
        """Split points into parameters, latent values and logarithms of the scales."""
        return tuple(points[:, block] for block in self.blocks)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Evaluate the log density, (S,)."""
        t, psi, z, v, scales = self.parts(points)
        sigma, amplitude = np.exp(scales[:, :1]), np.exp(scales[:, 1:2])
        residual = self.logs - self.law(t, self.x) - psi @ self.interaction(self.x).T
        residual -= amplitude * (z @ self.root.T)[:, self.places]
        value = -0.5 * (((t - self.mean) / self.deviation) ** 2).sum(axis=1)
        value -= 0.5 * ((psi**2).sum(axis=1) + (z**2).sum(axis=1) + (v**2).sum(axis=1))
        value -= 0.5 * ((scales[:, 0] - SIGMA[0]) / SIGMA[1]) ** 2
        value += scales[:, 1] - 0.5 * (amplitude[:, 0] / AMPLITUDE) ** 2
        if v.shape[1]:
            tau = np.exp(scales[:, 2:])
            residual -= tau * (v @ self.member.T)
            value += scales[:, 2] - 0.5 * (tau[:, 0] / CLUSTER) ** 2
        student = np.log1p((residual / sigma) ** 2 / DEGREES).sum(axis=1)
        value -= 0.5 * (DEGREES + 1) * student + residual.shape[1] * scales[:, 0]
        return np.where(np.isfinite(value), value, -np.inf)

    def difference(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw the difference in ln loss of the two shapes, with the process beyond the rows."""
        t, psi, z, _, scales = self.parts(points)
        x = np.log(self.table.shapes[self.columns].to_numpy())
        across = np.linalg.solve(self.root, self.kernel(self.distinct, x))
        left = self.kernel(x, x) - across.T @ across
        rest = generator.multivariate_normal(np.zeros(2), left, size=len(points))
        deviation = psi @ self.interaction(x).T + np.exp(scales[:, 1:2]) * (z @ across + rest)
        logs = self.law(t, x) + deviation
        return logs[:, 1] - logs[:, 0]

    def figures(self, points: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Compute the compared figures of every point."""
        t, *_, scales = self.parts(points)
        figures = {
            "E": np.exp(self.lowest) / (1 + np.exp(-t[:, 0])),
            "ln A": t[:, 1],
            "alpha": np.exp(t[:, 2]),
            "ln B": t[:, 3],
            "beta": np.exp(t[:, 4]),
        }
        for place, ratio in enumerate(self.table.ratios):
            figures[f"{ratio}_curvature"] = np.exp(t[:, 5 + 2 * place])
            figures[f"{ratio}_optimum"] = t[:, 6 + 2 * place]
        figures |= {"ln σ": scales[:, 0], "a": np.exp(scales[:, 1])}
        if scales.shape[1] == 3:
            figures["τ"] = np.exp(scales[:, 2])
        return figures | {"difference of two shapes": self.difference(points, generator)}


def plain_mcmc(
    density: PlainDensity, *, walkers: int, steps: int, seed: int
) -> tuple[np.ndarray, float]:
    """Sample by random walks: of the whole point, of the parameters, and of the scales.

    The first third of the steps estimates the covariance of the walks and is dropped.

    Returns
    -------
    points
        Every hundredth point of all walkers after the warm-up, (k, walkers, size).
    r_hat
        The largest R-hat of the coordinates.
    """
    generator = np.random.default_rng(seed)
    at = np.zeros((walkers, density.size))
    first, last = density.blocks[0], density.blocks[-1]
    at[:, first] = density.mean
    at[:, last] = [SIGMA[0], np.log(AMPLITUDE / 2), np.log(CLUSTER / 2)][: last.stop - last.start]
    at += 0.3 * generator.standard_normal(at.shape)
    at[:, first] += (density.deviation * 0.5 - 0.3) * generator.standard_normal(
        (walkers, len(density.mean))
    )
    value, kept = density(at), []
    blocks = [slice(0, density.size), first, slice(0, density.size), last]
    roots = [0.1 * np.eye(block.stop - block.start) for block in blocks]
    updates = set(np.linspace(0, steps // 3, 13)[1:].astype(int))
    for step in range(steps):
        if step in updates:
            precision = np.linalg.inv(np.cov(at, rowvar=False) + 1e-9 * np.eye(density.size))
            roots = [np.linalg.cholesky(np.linalg.inv(precision[each, each])) for each in blocks]
        block, root = blocks[step % len(blocks)], roots[step % len(blocks)]
        length = 2.38 / np.sqrt(len(root)) * 10 ** generator.uniform(-1, 0.2, (walkers, 1))
        proposed = at.copy()
        proposed[:, block] += length * (generator.standard_normal((walkers, len(root))) @ root.T)
        new = density(proposed)
        accept = np.log(generator.random(walkers)) < new - value
        at, value = np.where(accept[:, None], proposed, at), np.where(accept, new, value)
        if step > steps // 3 and step % 100 == 0:
            kept.append(at)
    points = np.array(kept)
    within = points.var(axis=0, ddof=1).mean(axis=0)
    between = points.mean(axis=0).var(axis=0, ddof=1)
    return points, float(np.sqrt(1 + between / within).max())


def figures_of_fit(table: Table, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Fit the table with the weak prior, and compute the compared figures of its draws."""
    law = shapelaw.Chinchilla()
    for ratio in table.ratios:
        law = law * shapelaw.UShape(ratio)
    fitted = shapelaw.fit(law, table.runs, starts=64, resamples=draws, seed=seed)
    by_name = dict(zip(fitted.names, fitted.draws.T, strict=True))
    figures = {"E": np.exp(by_name["E"]), "ln A": by_name["A"], "alpha": by_name["alpha"]}
    figures |= {"ln B": by_name["B"], "beta": by_name["beta"]}
    for ratio in table.ratios:
        for kind in ("curvature", "optimum"):
            figures[f"{ratio}_{kind}"] = by_name[f"{ratio}_{kind}"]
    state = fitted.posterior
    figures |= {"ln σ": np.log(state.sigma), "a": state.amplitude}
    if RUN in table.runs:
        figures["τ"] = state.tau
    logs = fitted.log_loss_draws(table.shapes)
    return figures | {"difference of two shapes": logs[:, 1] - logs[:, 0]}


def compare(name: str, *, draws: int, walkers: int, steps: int, seed: int = 0) -> pd.DataFrame:
    """Compare the quantiles of a fit with those of plain MCMC.

    Returns
    -------
    pandas.DataFrame
        One row per figure: quantiles of both, ``error`` the largest difference over the width of
        the reference's 95 % interval, ``doubt`` the same between halves of the reference's walkers,
        and ``r_hat`` of the reference.
    """
    table = TABLES[name]()
    density = PlainDensity(table)
    points, r_hat = plain_mcmc(density, walkers=walkers, steps=steps, seed=seed)
    generator = np.random.default_rng([seed, 1])
    halves = [
        density.figures(half.reshape(-1, density.size), generator)
        for half in np.array_split(points, 2, axis=1)
    ]
    fitted = figures_of_fit(table, draws, seed)
    rows = []
    for figure, found in fitted.items():
        parts = [half[figure] for half in halves]
        expected = np.percentile(np.concatenate(parts), QUANTILES)
        width = expected[-1] - expected[0]
        first, second = (np.percentile(part, QUANTILES) for part in parts)
        got = np.percentile(found, QUANTILES)
        row = {"table": name, "figure": figure, "error": np.abs(got - expected).max() / width}
        row |= {"doubt": np.abs(first - second).max() / width / 2, "r_hat": r_hat}
        row |= {f"plain {q}": value for q, value in zip(QUANTILES, expected, strict=True)}
        rows.append(row | {f"fit {q}": value for q, value in zip(QUANTILES, got, strict=True)})
    return pd.DataFrame(rows)


def main() -> None:
    """Compare on the chosen tables; print and record the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--draws", type=int, default=12_000, help="draws of the fit")
    parser.add_argument("--walkers", type=int, default=128, help="walkers of the reference")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of the reference")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    settings = {"draws": options.draws, "walkers": options.walkers, "steps": options.steps}
    rows = pd.concat(
        [compare(name, **settings, seed=options.seed) for name in options.tables]
    ).reset_index(drop=True)
    print(rows.to_string(float_format=lambda value: f"{value:.4g}"))
    worst = rows.loc[rows["error"].idxmax()]
    print(f"largest error {worst['error']:.3f} of the width: {worst['table']}, {worst['figure']}")
    finish(
        "posterior_check",
        {
            **settings,
            "seed": options.seed,
            "seconds": round(time.perf_counter() - start, 1),
            "largest_error": float(rows["error"].max()),
            "tolerance": TOLERANCE,
            "rows": rows.to_dict("records"),
        },
    )


if __name__ == "__main__":
    main()
