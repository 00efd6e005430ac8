"""Check that the learning rate of a rule is the best at every shape: the runs, and the answer.

A few shapes are trained at the rule's rate, at a lower and at a higher one, through the same
ledger as a sweep; :mod:`shapelaw.trainers.ladder.lr_verdict` judges.
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
SAME_SIZE = 0.03


@dataclass(frozen=True, kw_only=True)
class LRSweepSettings:
    """What a check tries.

    ``factor`` is how far the other two rates are from the rule's, ``rates`` the fields of the
    recipe that it multiplies; every run sees ``tokens``, or else ``tokens_per_parameter`` · N;
    ``seed_sd`` is the standard deviation of ln loss between seeds where it is known.
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
                f"`0 < seed_sd < 1` must hold, a share of the loss, but got {self.seed_sd}"
            )
        if self.seed_sd is None and self.seeds < 2:
            raise InputError(
                "`seeds >= 2` must hold to measure the noise between them, but got 1; "
                "or give --seed-sd"
            )

    def tokens_for(self, shape: Shape) -> int:
        """Training tokens of a shape."""
        return self.tokens or round(self.tokens_per_parameter * shape.n_non_embedding)


def extremes(shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes nearest to narrow or wide, shallow or deep: four, or fewer where some coincide."""
    distinct = list(dict.fromkeys(shapes))
    place = np.log([[shape.hidden_over_sqrt_n, shape.num_hidden_layers] for shape in distinct])
    unit = (place - place.min(axis=0)) / np.maximum(np.ptp(place, axis=0), 1e-12)
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)], dtype=float)
    apart = ((unit[:, None] - corners) ** 2).sum(axis=-1)
    rows = dict.fromkeys(int(row) for row in apart.argmin(axis=0))
    return [distinct[row] for row in rows]


def pick(
    specs: Sequence[RunSpec], *, names: Sequence[str] = (), size: int | None = None
) -> list[RunSpec]:
    """One run for each shape of a check: those named, or the extremes of a plan.

    Parameters
    ----------
    names
        Their run_ids.
    size
        Only shapes of this many non-embedding parameters, within 3 %.

    Raises
    ------
    InputError
        A name or a size is not in the plan.
    """
    known = {spec.run_id: spec for spec in specs}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"`run_id` must be in the plan, but {missing[0]!r} is not")
    if names:
        return [known[name] for name in names]
    by_shape = {spec.shape: spec for spec in reversed(specs)}
    shapes = [
        shape
        for shape in dict.fromkeys(spec.shape for spec in specs)
        if size is None or abs(shape.n_non_embedding / size - 1) <= SAME_SIZE
    ]
    if not shapes:
        sizes = sorted({format_count(spec.shape.n_non_embedding) for spec in specs})
        raise InputError(
            f"`--size` must be a size of the plan, but is {size}; its shapes have "
            f"{', '.join(sizes)} parameters"
        )
    return [by_shape[shape] for shape in extremes(shapes)]


def trials(specs: Sequence[RunSpec], settings: LRSweepSettings) -> list[LRTrial]:
    """The runs of a check: the shape of every spec at three rates, with some seeds."""
    return [
        LRTrial(shape=spec.shape, factor=times, spec=_at_rate(spec, times, seed, settings))
        for spec in specs
        for times in (RULE, 1 / settings.factor, settings.factor)
        for seed in range(settings.seeds)
    ]


def _at_rate(spec: RunSpec, factor: float, seed: int, settings: LRSweepSettings) -> RunSpec:
    changed = {name: getattr(spec.recipe, name) * factor for name in settings.rates}
    label = "" if len(settings.rates) == len(RATES) else f"-{settings.rates[0]}"
    tokens = settings.tokens_for(spec.shape)
    return replace(
        spec,
        run_id=f"{run_name(spec.shape, tokens, seed)}{label}-lr{factor:g}",
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
    """Train the runs of a check that the folder's ledger lacks, and judge.

    Parameters
    ----------
    specs
        One for each shape; their recipes have the rule's rates.
    folder
        Keeps ledger and states, as in a sweep: the same call goes on after a kill.
    workers, report
        As in :func:`shapelaw.trainers.sweep.sweep.run_plan`.

    Raises
    ------
    InputError
        The noise between seeds is not known.
    WorkError
        A run failed.
    """
    settings = settings or LRSweepSettings()
    tried = trials(specs, settings)
    runs = run_plan([trial.spec for trial in tried], corpus, folder, workers=workers, report=report)
    return judge(runs, tried, seed_sd=settings.seed_sd)
