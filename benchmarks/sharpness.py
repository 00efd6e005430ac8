"""Decisions that could be stated at 90 % or more, and a sharper statement, tested on other tables.

Reads results/decisions.json. An oracle that takes the measured difference for the true one is too
sharp, since noise widens measured differences. Here true differences in units of the noise follow a
scaled Student t (2 degrees of freedom) or a normal distribution, whose scale has the greatest
likelihood; the share that exceeds the 90 % point is that of an oracle that knows the truth. The
logit of every stated probability is also multiplied by the factor with the best log score on the
other families of tables.
"""

import json

import numpy as np
import pandas as pd
from record import RESULTS
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from scipy.stats import t as student

from shapelaw.scaling.checks.calibration import SURE, brier_score, favoured, log_score

FAMILIES = {"gemstones-lr-ablation": "gemstones", "quickstart": "proxies"}  # same recipe
FACTORS = np.linspace(0.3, 3.0, 109)
QUANTILES = (np.arange(4000) + 0.5) / 4000
BOOTSTRAP = 4000


def oracle_shares(differences: np.ndarray) -> dict[str, float]:
    """Estimate the share of true differences, in units of the noise, beyond the 90 % point."""
    shares = {}
    for name, truths in (("normal", norm.ppf(QUANTILES)), ("t2", student.ppf(QUANTILES, 2))):

        def cost(log_scale: float, truths: np.ndarray = truths) -> float:
            density = norm.pdf(differences[:, None] - np.exp(log_scale) * truths).mean(axis=1)
            return -float(np.log(density).sum())

        best = minimize_scalar(cost, bounds=(-4, 4), method="bounded")
        shares[f"oracle_{name}"] = float((np.abs(np.exp(best.x) * truths) >= norm.ppf(SURE)).mean())
        shares[f"log_likelihood_{name}"] = -float(best.fun)
    return shares


def sharpened(rows: pd.DataFrame) -> np.ndarray:
    """Multiply each logit by the factor with the best log score on the other families."""
    family = rows["table"].replace(FAMILIES).to_numpy()
    stated = rows["p_best_run"].clip(1e-3, 1 - 1e-3).to_numpy()
    logits, outcome = np.log(stated / (1 - stated)), rows["first_lower"].to_numpy()
    changed = np.empty(len(rows))
    for name in np.unique(family):
        others = family != name
        scores = [
            log_score(1 / (1 + np.exp(-factor * logits[others])), outcome[others])
            for factor in FACTORS
        ]
        factor = FACTORS[int(np.argmin(scores))]
        changed[~others] = 1 / (1 + np.exp(-factor * logits[~others]))
    return changed


def scores(probability: np.ndarray, outcome: pd.Series) -> str:
    """Describe the Brier score and the decisions stated at 90 % or more."""
    stated, held = favoured(probability, outcome)
    sure = stated >= SURE
    return (
        f"Brier score {brier_score(probability, outcome):.4f}, {sure.sum()} of {len(sure)} stated "
        f"at 90 % or more, {held[sure].sum():g} held"
    )


def brier_change(rows: pd.DataFrame, changed: np.ndarray) -> tuple[float, float, float]:
    """Return the change of the Brier score and its 90 % interval, resampled by cut."""
    outcome = rows["first_lower"]
    change = (changed - outcome) ** 2 - (rows["p_best_run"] - outcome) ** 2
    parts = [part.to_numpy() for _, part in change.groupby([rows["table"], rows["cut"]])]
    generator = np.random.default_rng(0)
    drawn = [
        np.concatenate([parts[i] for i in generator.integers(len(parts), size=len(parts))]).mean()
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.percentile(drawn, (5, 95))
    return float(change.mean()), float(low), float(high)


def main() -> None:
    settings = json.loads((RESULTS / "decisions.json").read_text())["settings"]
    for label, by_size in settings.items():
        for key, figures in by_size.items():
            rows = pd.DataFrame(figures["decisions"])
            print(f"## {label}, {key}")
            for name, part in (*rows.groupby("table", sort=False), ("all", rows)):
                differences = (part["measured_nats"] / part["noise_nats"]).to_numpy()
                shares = oracle_shares(differences)
                stated, _ = favoured(part["p_best_run"], part["first_lower"])
                numbers = ", ".join(f"{name} {value:.2f}" for name, value in shares.items())
                print(f"{name}: {len(part)}, stated {(stated >= SURE).mean():.2f}, {numbers}")
            changed = sharpened(rows)
            mean, low, high = brier_change(rows, changed)
            print(
                f"as stated: {scores(rows['p_best_run'].to_numpy(), rows['first_lower'])}\n"
                f"sharpened: {scores(changed, rows['first_lower'])}\n"
                f"change of the Brier score {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            )


if __name__ == "__main__":
    main()
