"""A fit is data: what was fitted, how it ended, and predictions from it; to and from fit.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.identifiability import Held, optimum_status, outside
from scaling.laws import LAWS, Law, UShape, columns_of, law_named

SCHEMA = 1
LEVEL = 95.0
QUANTILES = 201  # of the noise of a new run, mixed with every resample
CHUNK = 4096  # rows predicted at once, to bound memory


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The outcome of fitting a law to a run table.

    ``theta`` and ``draws`` are internal parameters at the optimum and of each resample (one row
    each); ``ranges`` are the observed ranges of the law's columns; ``noise`` is the standard
    deviation of ln loss that a new run is expected to have around the law, with ``noise_degrees``
    degrees of freedom; ``replicate_noise`` is that between seeds, where the table has replicates.
    """

    law_name: str
    names: list[str]
    theta: np.ndarray
    draws: np.ndarray
    reference: dict[str, float]
    held: dict[str, Held]
    objective: float
    delta: float
    delta_rule: str
    status: str
    notes: list[str]
    starts: int
    basins: list[dict[str, float]]
    gradient_norm: float
    seconds: float
    run_ids: list[str]
    left_out: dict[str, str]
    ranges: dict[str, tuple[float, float]]
    size_convention: str
    noise: float
    noise_degrees: int
    replicate_noise: float | None
    replicate_degrees: int
    effects: dict[str, dict[str, float]]
    delta_sweep: list[dict[str, float]]
    bootstrap: str
    data_sha256: str
    seed: int

    @property
    def law(self) -> Law:
        """The law that was fitted."""
        return law_named(self.law_name)

    def parameters(self) -> dict[str, dict[str, float]]:
        """Public parameters with 95 % intervals; a held one carries the range it was held in."""
        law = self.law
        value = law.public(self.theta, self.reference)
        draws = self.draws if len(self.draws) else self.theta[None]
        public = [law.public(draw, self.reference) for draw in draws]
        table = pd.DataFrame(public, columns=list(value))
        low, high = np.percentile(table, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
        return {
            name: {"value": value[name], "low": float(low[i]), "high": float(high[i])}
            for i, name in enumerate(value)
        }

    def optima(self) -> dict[str, dict[str, object]]:
        """The best value of each U-shaped ratio with interval and status, by column."""
        parameters = self.parameters()
        answers: dict[str, dict[str, object]] = {}
        for factor in self.law.factors:
            if not isinstance(factor, UShape):
                continue
            name = f"{factor.of}_optimum"
            if name in self.held:
                why = f"not resolved: {self.held[name].why}"
                answers[factor.of] = {"value": None, "low": None, "high": None, "status": why}
                continue
            found = parameters[name]
            answers[factor.of], _ = optimum_status(
                factor.of, found["value"], found["low"], found["high"], self.ranges[factor.of]
            )
        return answers

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predict the loss of every row.

        Parameters
        ----------
        frame
            Has the columns of the law (:attr:`scaling.laws.Law.columns`).

        Returns
        -------
        ``predicted_loss`` in nats per token, ``loss_low`` and ``loss_high``, the 95 % interval of
        one new run (spread over resamples, held exponents and noise between runs), and
        ``mean_low`` and ``mean_high``, that of the law itself.
        """
        parts = [self._predict(frame.iloc[i : i + CHUNK]) for i in range(0, len(frame), CHUNK)]
        return pd.concat(parts).set_axis(frame.index)

    def _predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        law, ends = self.law, [(100 - LEVEL) / 2, (100 + LEVEL) / 2]
        columns = columns_of(frame, law.columns)
        central = law.log_loss(self.theta, columns, self.reference)[0]
        draws = self.draws if len(self.draws) else self.theta[None]
        spread = np.stack([law.log_loss(draw, columns, self.reference)[0] for draw in draws])
        degrees = max(self.noise_degrees, 1)
        quantiles = (np.arange(QUANTILES) + 0.5) / QUANTILES
        noise = self.noise * student.ppf(quantiles, degrees)
        # Percentiles over resamples x noise, one row at a time: bounded memory.
        new = np.stack([np.percentile(np.add.outer(row, noise), ends) for row in spread.T])
        mean = np.percentile(spread, ends, axis=0).T
        return pd.DataFrame(
            {
                "predicted_loss": np.exp(central),
                "loss_low": np.exp(new[:, 0]),
                "loss_high": np.exp(new[:, 1]),
                "mean_low": np.exp(mean[:, 0]),
                "mean_high": np.exp(mean[:, 1]),
            }
        )

    def central(self, frame: pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """Predicted loss of every row without intervals: cheap for a whole space of shapes."""
        columns = columns_of(frame, self.law.columns)
        return self.law.predict(self.theta, columns, self.reference)

    def warnings(self, row: Mapping[str, float]) -> list[str]:
        """In words: where a row lies outside of what was fitted."""
        return outside(row, self.ranges)

    def summary(self) -> str:
        """The fit in a few lines, for a terminal."""
        lines = [f"{self.law_name} on {len(self.run_ids)} runs: {self.status}"]
        lines.append(
            f"objective {self.objective:.9g} (sum of Huber on ln loss, delta {self.delta:.3g}, "
            f"{self.delta_rule}); {self.starts} starts, {self.seconds:.1f} s"
        )
        width = max(len(name) for name in self.parameters())
        for name, found in self.parameters().items():
            held = "  held" if name in self.held else ""
            lines.append(
                f"  {name:<{width}}  {found['value']:>10.4g}  "
                f"[{found['low']:.4g}, {found['high']:.4g}]{held}"
            )
        lines += [f"  {self.noise_in_words()}", *(f"  note: {note}" for note in self.notes)]
        lines.append("  delta sweep: " + "; ".join(_sweep_words(row) for row in self.delta_sweep))
        return "\n".join(lines)

    def noise_in_words(self) -> str:
        """The noise between seeds beside the residuals around the law."""
        around = f"noise of a run around the law {100 * self.noise:.2f} %"
        if self.replicate_noise is None:
            return f"{around}; no replicate seeds, so the noise between seeds is unknown"
        return (
            f"{around}; between seeds {100 * self.replicate_noise:.2f} % "
            f"({self.replicate_degrees} degrees of freedom)"
        )

    def as_json(self) -> dict[str, Any]:
        """The stable document that ``fit --json`` prints."""
        return {
            "law": self.law_name,
            "n_runs": len(self.run_ids),
            "parameters": self.parameters(),
            "optima": self.optima(),
            "objective": self.objective,
            "status": self.status,
            "starts": self.starts,
            "seconds": self.seconds,
        }

    def save(self, path: Path) -> None:
        """Write fit.json: the printed document and everything that predictions need."""
        state = asdict(self) | {"theta": self.theta.tolist(), "draws": self.draws.tolist()}
        write_json(path, {"schema_version": SCHEMA, **self.as_json(), "state": state})

    @classmethod
    def load(cls, path: Path) -> "Fit":
        """Read fit.json; predictions are those of the fit that was saved, to 1e-12.

        Raises
        ------
        InputError
            The file is not a fit, or of another schema version.
        """
        document = read_json(path)
        if document.get("schema_version") != SCHEMA or "state" not in document:
            raise InputError(
                f"{path} must be a fit of schema version {SCHEMA}, but has "
                f"{document.get('schema_version')!r}; write it again with `shapelaw fit --out`"
            )
        try:
            state = dict(document["state"])
            state["theta"] = np.array(state["theta"], dtype=float)
            state["draws"] = np.array(state["draws"], dtype=float).reshape(-1, len(state["theta"]))
            state["held"] = {name: Held(**held) for name, held in state["held"].items()}
            state["ranges"] = {name: tuple(ends) for name, ends in state["ranges"].items()}
            if state["law_name"] not in LAWS:
                raise ValueError(f"it names an unknown law {state['law_name']!r}")
            if len(state["theta"]) != sum(law_named(state["law_name"]).sizes()):
                raise ValueError("its parameters are not those of its law")
            return cls(**state)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged ({error}); write it again with `shapelaw fit --out`"
            ) from None


def _sweep_words(row: dict[str, float]) -> str:
    names: list[str] = [name for name in ("alpha", "beta") if name in row]
    names += [name for name in row if name.endswith(("_optimum", "_slope"))]
    return f"{row['delta']:.0e}: " + " ".join(f"{name} {row[name]:.3g}" for name in names)
