"""Check of a learning-rate rule at several shapes: the runs and their training.

A few shapes are trained at the learning rate of the rule, at a lower and at a higher one, through a
ledger as in a sweep. :mod:`shapelaw.trainers.ladder.lr_verdict` evaluates the losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import format_count
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ladder.lr_verdict import RULE, LRTrial, RateCheck, judge
from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.spec import RunSpec, run_name

RATES = ("matrix_learning_rate", "learning_rate")
SIZE_TOLERANCE = 0.03  # largest relative deviation of a shape from a given size


@dataclass(frozen=True, kw_only=True)
class LRSweepSettings:
    """Settings of a learning-rate check.

    Parameters
    ----------
    factor
        Factor between the learning rate of the rule and each of the two others.
    seeds
        Seeds of every shape and rate.
    rates
        Fields of the recipe that are multiplied by the factor.
    tokens
        Training tokens of every run; by default ``tokens_per_parameter`` · N.
    tokens_per_parameter
        Training tokens per non-embedding parameter.
    seed_sd
        Known standard deviation of ln loss between seeds; measured by default.
    """

    factor: float = 2.0
    seeds: int = 2
    rates: tuple[str, ...] = RATES
    tokens: int | None = None
    tokens_per_parameter: float = 20.0
    seed_sd: float | None = None

    def __post_init__(self) -> None:
        if not 1 < self.factor < np.inf:
            raise InputError(f"`factor > 1` must hold, but got {self.factor}")
        if self.seeds < 1:
            raise InputError(f"`seeds >= 1` must hold, but got {self.seeds}")
        if not 0 < self.tokens_per_parameter < np.inf:
            raise InputError(
                f"`tokens_per_parameter > 0` must hold, but got {self.tokens_per_parameter}"
            )
        if not self.rates or not set(self.rates) <= set(RATES):
            raise InputError(
                f"`rates` must be one or more of {', '.join(RATES)}, but got {self.rates}"
            )
        if self.seed_sd is not None and not 0 < self.seed_sd < 1:
            raise InputError(
                f"`0 < seed_sd < 1` must hold, a fraction of the loss, but got {self.seed_sd}"
            )
        if self.seed_sd is None and self.seeds < 2:
            raise InputError(
                "`seeds >= 2` must hold to measure the noise between seeds, but got 1; "
                "use more seeds or give --seed-sd"
            )

    def tokens_for(self, shape: Shape) -> int:
        """Return the training tokens of a shape."""
        return self.tokens or round(self.tokens_per_parameter * shape.n_non_embedding)


def extremes(shapes: Sequence[Shape]) -> list[Shape]:
    """Select the shapes nearest to the four extremes of width and depth.

    Width is hidden size over √N, depth the number of layers, both on a log scale. Fewer than four
    shapes are returned if some of them coincide.
    """
    distinct = list(dict.fromkeys(shapes))
    logs = np.log([[shape.hidden_over_sqrt_n, shape.num_hidden_layers] for shape in distinct])
    unit = (logs - logs.min(axis=0)) / np.maximum(np.ptp(logs, axis=0), 1e-12)
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)], dtype=float)
    distances = ((unit[:, None] - corners) ** 2).sum(axis=-1)
    rows = dict.fromkeys(int(row) for row in distances.argmin(axis=0))
    return [distinct[row] for row in rows]


def pick(
    specs: Sequence[RunSpec], *, names: Sequence[str] = (), size: int | None = None
) -> list[RunSpec]:
    """Select one run of a plan for each shape of a check.

    Parameters
    ----------
    specs
        Runs of the plan.
    names
        Ids of the runs to select; by default the runs of the extreme shapes.
    size
        Number of non-embedding parameters to which the extreme shapes are restricted, within 3 %.

    Raises
    ------
    InputError
        A name or a size is not in the plan.
    """
    by_name = {spec.run_id: spec for spec in specs}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(
            f"`run_id` must be in the plan, but {missing[0]!r} is not; take one of the "
            "plan's run ids"
        )
    if names:
        return [by_name[name] for name in names]
    by_shape = {spec.dense_shape: spec for spec in reversed(specs)}
    shapes = [
        shape
        for shape in dict.fromkeys(spec.dense_shape for spec in specs)
        if size is None or abs(shape.n_non_embedding / size - 1) <= SIZE_TOLERANCE
    ]
    if not shapes:
        sizes = sorted({format_count(spec.dense_shape.n_non_embedding) for spec in specs})
        raise InputError(
            f"`--size` must be a size of the plan, but is {size}; its shapes have "
            f"{', '.join(sizes)} parameters"
        )
    return [by_shape[shape] for shape in extremes(shapes)]


def trials(specs: Sequence[RunSpec], settings: LRSweepSettings) -> list[LRTrial]:
    """Return the runs of a check: every shape at three learning rates, with several seeds."""
    return [
        LRTrial(shape=spec.dense_shape, factor=factor, spec=_at_rate(spec, factor, seed, settings))
        for spec in specs
        for factor in (RULE, 1 / settings.factor, settings.factor)
        for seed in range(settings.seeds)
    ]


def _at_rate(spec: RunSpec, factor: float, seed: int, settings: LRSweepSettings) -> RunSpec:
    changed = {name: getattr(spec.recipe, name) * factor for name in settings.rates}
    label = "" if len(settings.rates) == len(RATES) else f"-{settings.rates[0]}"
    tokens = settings.tokens_for(spec.dense_shape)
    return replace(
        spec,
        run_id=f"{run_name(spec.dense_shape, tokens, seed)}{label}-lr{factor:g}",
        tokens=tokens,
        seed=seed,
        role="lr-check",
        recipe=replace(spec.recipe, **changed),
        branches=(),
        engine=None,
    )


def lr_check(
    specs: Sequence[RunSpec],
    corpus: Corpus,
    folder: Folder,
    settings: LRSweepSettings | None = None,
    *,
    workers: int | None = None,
    report: Callable[[list[Entry]], None] = lambda entries: None,
) -> RateCheck:
    """Train the runs of a check that are not finished yet, and evaluate the rule.

    Parameters
    ----------
    specs
        One run for each shape. The recipes contain the learning rates of the rule.
    corpus
        Corpus to train on.
    folder
        Folder of the ledger and the states, as in a sweep. The same call resumes an interrupted
        check.
    settings
        Settings of the check.
    workers, report
        As in :func:`shapelaw.trainers.sweep.sweep.run_plan`.

    Raises
    ------
    InputError
        The noise between seeds is neither given nor measurable.
    WorkError
        A run failed.
    """
    settings = settings or LRSweepSettings()
    checked = trials(specs, settings)
    planned = [trial.spec for trial in checked]
    runs = run_plan(planned, corpus, folder, workers=workers, report=report)
    return judge(runs, checked, seed_sd=settings.seed_sd)
