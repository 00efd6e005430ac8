"""Do the probabilities that a quickstart states hold? Simulated quickstarts with a known truth.

Truth: shape parameters from the shipped pooled law, those of depth from their weak prior, the base,
the noise and the size of the misfit from their weak priors around the values of a real quickstart;
every simulated quickstart has the runs of the real plan, its prior and its law. Of 40 shapes at the
size of the confirmation models, three are chosen as a search would: the lowest predicted loss, the
fastest at even odds of no more loss than the baseline, and the fastest with probability 0.8 or
more. Speeds are a stand-in, fewer layers and key-value heads first. The stated P(less loss) is
compared with the truth.
"""

import argparse
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from record import RESULTS, finish

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.checks.calibration import wilson_interval
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.pooled import PooledFit
from shapelaw.scaling.fitting.priors import coordinates_of, weak_prior
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.space.space import Space
from shapelaw.scaling.uncertainty.misfit import AMPLITUDE, Misfit
from shapelaw.scaling.uncertainty.posterior import DEGREES
from shapelaw.search.autopilot.autopilot_plan import spread_rows
from shapelaw.search.autopilot.record import LoopSettings
from shapelaw.search.autopilot.run_plan import (
    CONFIRMED,
    CONFIRMED_TOKENS,
    HEAD_DIM,
    HIDDEN_STEP,
    LAYERS,
    MLP_STEP,
    ROPE_THETA,
    proxy_specs,
)
from shapelaw.search.proposals.probabilities import probability_of_less_loss

LAW, CANDIDATES, VOCABULARY = "conditional+depth", 40, 256
SEED_NOISE = 0.006  # standard deviation of ln loss between seeds of the shipped runs
EVEN, CONFIDENT = 0.5, 0.8
BASELINE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 1}  # of the quickstart, llama-3.2-1b at this size  # fmt: skip
LINES = RESULTS / "quickstart_simulated.jsonl"


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs of a quickstart without losses, and the shapes to choose from."""
    specs = proxy_specs(LoopSettings(), VOCABULARY)
    proxies = ShapeTable.of([spec.shape for spec in specs]).frame()
    proxies[D] = [float(spec.tokens) for spec in specs]
    space = Space(
        parameters=CONFIRMED, layers=LAYERS, head_dims=(HEAD_DIM,), vocab_size=VOCABULARY,
        hidden_step=HIDDEN_STEP, mlp_step=MLP_STEP, tolerance=0.01, qk_norm=True,
        rope_theta=ROPE_THETA,
    )  # fmt: skip
    shapes = space.enumerate().frame()
    inside = shapes["hidden_over_sqrt_n"].between(0.1, 0.5)
    inside &= shapes["mlp_to_attention"].between(0.5, 6) & shapes["gqa"].between(1, 4)
    shapes = shapes[inside].reset_index(drop=True)
    names = list(BASELINE)
    far = np.abs(np.log(shapes[names] / pd.Series(BASELINE))).sum(axis=1)
    rows = spread_rows(shapes, CANDIDATES, first=int(far.to_numpy().argmin()))
    chosen = shapes.iloc[rows].reset_index(drop=True)
    return proxies, chosen.assign(**{D: float(CONFIRMED_TOKENS)})


@cache
def real_base() -> Fit:
    """Fit the proxies of the shipped quickstart, whose base the truths have."""
    real = load_runs("quickstart", where="role == 'proxy'")
    return fit(LAW, real, prior="pooled", starts=16, resamples=64)


def simulate(number: int) -> list[dict[str, Any]]:
    """Draw a truth, fit its proxies, choose shapes and return the statements about them."""
    generator = np.random.default_rng([number, 15])
    proxies, shapes = frames()
    law = law_named(LAW)
    real = load_runs("quickstart", where="role == 'proxy'")
    base = real_base()
    problem = problem_of(law, as_run_table(proxies.assign(loss=float(real.losses.mean()))))
    coordinates = coordinates_of(law, float(real.losses.min()))
    pooled = PooledFit.load(data_folder() / "laws" / "pooled.json").prior(problem)
    prior = weak_prior(problem).with_block(pooled)
    t = generator.multivariate_normal(prior.mean, prior.covariance)
    theta = coordinates.theta(t[None])[0]
    keep = [i for i, name in enumerate(law.names) if name in law.base.names]
    theta[0, keep] = base.theta[keep]
    every = pd.concat([proxies, shapes], ignore_index=True)
    columns = {name: every[name].to_numpy(float) for name in problem.columns}
    misfit = Misfit.of(problem.columns)
    latent = generator.standard_normal((1, misfit.size))
    amplitude = np.array([AMPLITUDE * abs(generator.standard_normal())])
    deviation = misfit.draws(columns, latent, amplitude, int(generator.integers(2**31)))[0]
    exact = law.program(columns, base.reference).log_loss(theta)[0] + deviation
    noise = SEED_NOISE * generator.standard_t(DEGREES, len(proxies))
    runs = proxies.assign(loss=np.exp(exact[: len(proxies)] + noise))
    truth = exact[len(proxies) :]
    fitted = fit(LAW, runs, prior="pooled", seed=number)
    draws = fitted.log_loss_draws(shapes)
    probability = probability_of_less_loss(draws, 0)
    cost = shapes["num_hidden_layers"] + 0.1 * shapes["num_key_value_heads"]
    others = np.arange(1, len(shapes))
    choices = {"lowest loss": int(others[np.median(draws, axis=0)[1:].argmin()])}
    for role, least in (("fastest at even odds", EVEN), ("fastest at 0.8", CONFIDENT)):
        allowed = others[probability[1:] >= least]
        if len(allowed):
            choices[role] = int(allowed[cost.to_numpy()[allowed].argmin()])
    return [
        {"number": number, "role": role, "stated": round(float(probability[row]), 4),
         "held": bool(truth[row] <= truth[0])}
        for role, row in choices.items()
    ]  # fmt: skip


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the mean stated probability of each role with the share that held."""
    table = pd.DataFrame(rows)
    result: dict[str, Any] = {}
    for role, part in [*table.groupby("role"), ("all", table)]:
        held = int(part["held"].sum())
        result[str(role)] = {
            "statements": len(part),
            "mean_stated": float(part["stated"].mean()),
            "held": held,
            "wilson_90": list(wilson_interval(held, len(part))),
            "brier": float(((part["stated"] - part["held"]) ** 2).mean()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstarts", type=int, default=100, help="simulated quickstarts")
    parser.add_argument("--lines", type=Path, default=LINES, help="JSON lines of finished ones")
    options = parser.parse_args()
    text = options.lines.read_text() if options.lines.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    done = {row["number"] for row in rows}
    for number in range(options.quickstarts):
        if number in done:
            continue
        new = simulate(number)
        rows += new
        with options.lines.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
    finish("quickstart_simulated", {"quickstarts": options.quickstarts, **summarise(rows)})


if __name__ == "__main__":
    main()
