"""Run tables of a law with known parameters, for tests of recovery."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.runs.columns import D, N

TRUTH = {
    "E": 1.8,
    "A": 40.0,
    "alpha": 0.34,
    "B": 300.0,
    "beta": 0.37,
    "hidden_over_sqrt_n_curvature": 0.1,
    "hidden_over_sqrt_n_optimum": 0.15,
    "mlp_to_attention_curvature": 0.03,
    "mlp_to_attention_optimum": 2.0,
    "gqa_slope": 0.01,
}
SHARE = TRUTH["beta"] / (
    TRUTH["alpha"] + TRUTH["beta"]
)  # exponent of N* as a function of the compute
SIZES, TOKENS = (1e5, 4e5, 1.6e6), (1e6, 8e6, 6.4e7)
RATIOS = {
    "hidden_over_sqrt_n": (0.05, 0.4),
    "mlp_to_attention": (0.5, 8.0),
    "gqa": (1.0, 8.0),
}


def true_loss(frame: pd.DataFrame, truth: dict[str, float]) -> np.ndarray:
    """Evaluate the conditional law, independently of the implementation under test."""
    loss = (
        truth["E"]
        + truth["A"] / frame[N] ** truth["alpha"]
        + truth["B"] / frame[D] ** truth["beta"]
    )
    for name in ("hidden_over_sqrt_n", "mlp_to_attention"):
        x = frame[name] / truth[f"{name}_optimum"]
        loss = loss * (1 + truth[f"{name}_curvature"] * (np.log(x) + 1 / x - 1))
    return (loss * (1 + truth["gqa_slope"] * np.log(frame["gqa"]))).to_numpy()


def true_size(compute: float) -> float:
    """Compute N* of the true parameters, by equation 4 of arXiv 2203.15556."""
    scale = TRUTH["alpha"] * TRUTH["A"] / (TRUTH["beta"] * TRUTH["B"])
    return scale ** (1 / (TRUTH["alpha"] + TRUTH["beta"])) * (compute / 6) ** SHARE


def synthetic_runs(
    *, sizes=SIZES, tokens=TOKENS, shapes=16, noise=0.003, seed=0, ranges=RATIOS, **truth
) -> pd.DataFrame:
    """Draw runs of a known law on a grid of N and D: random ratios, normal noise on ln loss."""
    generator = np.random.default_rng(seed)
    cells = [(n, d) for n in sizes for d in tokens for _ in range(shapes)]
    frame = pd.DataFrame(cells, columns=[N, D])
    for name, (low, high) in ranges.items():
        frame[name] = np.exp(generator.uniform(np.log(low), np.log(high), len(frame)))
    loss = true_loss(frame, TRUTH | truth)
    frame["loss"] = loss * np.exp(noise * generator.standard_normal(len(frame)))
    return frame.assign(run_id=[f"synthetic-{row}" for row in range(len(frame))])


def with_replicates(frame: pd.DataFrame, seeds: int, noise: float) -> pd.DataFrame:
    """Repeat every run ``seeds`` times with new noise and one shape per original run."""
    generator = np.random.default_rng(1)
    repeated = frame.loc[frame.index.repeat(seeds)].reset_index(drop=True)
    cell = np.arange(len(repeated)) // seeds
    shape = dict.fromkeys(INTEGER_FIELDS, 1) | {"hidden_size": 1 + cell}
    factor = np.exp(noise * generator.standard_normal(len(repeated)))
    names = [f"synthetic-{row}" for row in range(len(repeated))]
    return repeated.assign(**shape, loss=repeated["loss"] * factor, run_id=names)


def synthetic_chinchilla(noise: float, **settings) -> pd.DataFrame:
    """Draw synthetic runs without an effect of shape."""
    none = {"hidden_over_sqrt_n_curvature": 0, "mlp_to_attention_curvature": 0, "gqa_slope": 0}
    return synthetic_runs(noise=noise, **(none | settings))


def isoflop_runs(
    noise: float = 0.0, *, curves: bool = False, steps: tuple[float, float] = (-0.5, 1.0)
) -> pd.DataFrame:
    """Draw runs of the true law at seven budgets and nine sizes, with N* off the middle.

    ``steps`` are ln of the smallest and largest size over N*. With ``curves`` the runs are sixty
    training curves of sixty checkpoints instead.
    """
    rows = [
        {N: true_size(compute) * np.exp(step), "compute": compute}
        for compute in np.geomspace(1e13, 1e16, 7)
        for step in np.linspace(*steps, 9)
    ]
    runs = pd.DataFrame(rows)
    runs = runs.assign(**{D: runs["compute"] / (6 * runs[N])}).drop(columns="compute")
    if curves:
        points = [
            {"curve": run, N: size, D: tokens}
            for run, size in enumerate(np.geomspace(1e5, 1e9, 60))
            for tokens in np.geomspace(size, 1000 * size, 60)
        ]
        runs = pd.DataFrame(points)
    loss = TRUTH["E"] + TRUTH["A"] / runs[N] ** TRUTH["alpha"]
    loss += TRUTH["B"] / runs[D] ** TRUTH["beta"]
    generator = np.random.default_rng(0)
    return runs.assign(loss=loss * np.exp(noise * generator.standard_normal(len(runs))))
