"""Search a space in Optuna: the loss of every shape is known from the law, throughput is measured.

The space is enumerated, so feasibility is built into the parameters of the study: each suggestion
picks from the values that remain valid after the ones before it, and no trial is ever infeasible.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from scaling.errors import InputError, WorkError
from scaling.shape import ShapeTable
from search.throughput._base import Engine, Measurement
from search.workload import Workload

FREE_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
# Called with the number of measured shapes so far.
Report = Callable[[int], None]


@dataclass(frozen=True)
class Grid:
    """An enumerated space as the parameters of a study.

    Every field of a shape becomes a number in [0, 1] that picks from the values left by the fields
    before it; a field with one value everywhere is no parameter.
    """

    fields: np.ndarray  # (n, 6), in the order of FREE_FIELDS

    @classmethod
    def of(cls, table: ShapeTable) -> "Grid":
        """The grid of a table."""
        return cls(np.stack([getattr(table, name) for name in FREE_FIELDS], axis=1))

    def row(self, pick: Callable[[str], float]) -> int:
        """The row that a set of picks leads to."""
        rows = np.arange(len(self.fields))
        for column, name in enumerate(FREE_FIELDS):
            values = np.unique(self.fields[rows, column])
            chosen = values[0]
            if len(np.unique(self.fields[:, column])) > 1:
                chosen = values[min(int(pick(name) * len(values)), len(values) - 1)]
            rows = rows[self.fields[rows, column] == chosen]
        return int(rows[0])

    def picks(self, row: int) -> dict[str, float]:
        """The picks that lead to a row: the inverse of :meth:`row`."""
        rows, picks = np.arange(len(self.fields)), {}
        for column, name in enumerate(FREE_FIELDS):
            values = np.unique(self.fields[rows, column])
            value = self.fields[row, column]
            if len(np.unique(self.fields[:, column])) > 1:
                picks[name] = (int(np.searchsorted(values, value)) + 0.5) / len(values)
            rows = rows[self.fields[rows, column] == value]
        return picks

    def nearest(self, row: int, allowed: np.ndarray) -> int:
        """The allowed row whose fields are nearest in ratio."""
        apart = np.log(self.fields[allowed] / self.fields[row])
        return int(allowed[np.argmin((apart**2).sum(axis=1))])


def search(
    table: ShapeTable,
    losses: np.ndarray,
    engine: Engine,
    workload: Workload,
    *,
    storage: Path,
    measurements: int,
    first: Sequence[int],
    seed: int = 0,
    report: Report = lambda done: None,
) -> dict[int, Measurement | str]:
    """Measure the shapes that a study proposes.

    Parameters
    ----------
    table, losses
        The space and the predicted loss of each shape.
    storage
        Optuna's journal; a study of the same space, losses, engine and workload is continued.
    measurements
        Distinct shapes to measure, at most all of the space.
    first
        Rows to measure before the sampler proposes any.

    Returns
    -------
    For each measured row its measurement, or the engine's reason why it cannot run the shape.
    """
    study = _study(table, losses, engine, workload, storage, seed)
    known = _known(study)
    grid = Grid.of(table)
    wanted = min(measurements, len(table))
    waiting = [
        trial.system_attrs.get("fixed_params")
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    ]
    for row in first:
        if row not in known and grid.picks(row) not in waiting:
            study.enqueue_trial(grid.picks(row))
    report(len(known))
    while len(known) < wanted:
        trial = study.ask()
        row = grid.row(lambda name, trial=trial: trial.suggest_float(name, 0.0, 1.0))  # type: ignore[misc]
        if row in known:
            left = np.setdiff1d(np.arange(len(table)), list(known))
            study.enqueue_trial(grid.picks(grid.nearest(row, left)))
        else:
            known[row] = _measure(engine, table, row, workload)
        _tell(study, trial, row, known[row], losses)
        report(len(known))
    return known


def _measure(engine: Engine, table: ShapeTable, row: int, workload: Workload) -> Measurement | str:
    try:
        return engine.measure(table[row], workload)
    except InputError as error:
        return str(error)


def _tell(
    study: optuna.Study,
    trial: optuna.Trial,
    row: int,
    result: Measurement | str,
    losses: np.ndarray,
) -> None:
    trial.set_user_attr("row", row)
    if isinstance(result, str):
        trial.set_user_attr("reason", result)
        study.tell(trial, state=TrialState.FAIL)
    else:
        trial.set_user_attr("measurement", asdict(result))
        speed = float(np.log(result.output_tokens_per_second))
        study.tell(trial, (float(losses[row]), speed))


def _study(
    table: ShapeTable,
    losses: np.ndarray,
    engine: Engine,
    workload: Workload,
    storage: Path,
    seed: int,
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    key = hashlib.sha256(Grid.of(table).fields.tobytes() + losses.tobytes())
    key.update(json.dumps([engine.label, asdict(workload)]).encode())
    try:
        storage.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalStorage(JournalFileBackend(str(storage)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed)
            study = optuna.create_study(
                study_name=f"shapelaw-{key.hexdigest()[:12]}",
                storage=backend,
                sampler=sampler,
                directions=["minimize", "maximize"],
                load_if_exists=True,
            )
            study.set_metric_names(["predicted loss", "ln output tokens/s"])
    except OSError as error:
        raise WorkError(f"{storage} could not be written ({error.strerror})") from error
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # left by a killed process
    return study


def _known(study: optuna.Study) -> dict[int, Measurement | str]:
    """What earlier runs of the study measured, by row."""
    known: dict[int, Measurement | str] = {}
    for trial in study.get_trials(deepcopy=False):
        attributes: dict[str, Any] = trial.user_attrs
        if "measurement" in attributes:
            known[attributes["row"]] = Measurement(**attributes["measurement"])
        elif "reason" in attributes:
            known[attributes["row"]] = attributes["reason"]
    return known
