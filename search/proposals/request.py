"""A request for proposals in four groups of options: budget, space, serving and effort."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.scaling.space.proportions import nearest_proportions
from shapelaw.scaling.space.space import CONVENTIONS, Space, depths_around, usual_steps
from shapelaw.search.engines._base import Engine
from shapelaw.search.proposals.deployable import SMALL, DeployableRules, deployable_rules
from shapelaw.search.proposals.lifetime import Lifetime
from shapelaw.search.proposals.training_time import TrainingTime
from shapelaw.search.study.storage import Address, check_storage_address
from shapelaw.search.study.study import Effort
from shapelaw.search.workload import MAX_GPUS, Workload

MEASUREMENTS = 24  # shapes that the engine measures or predicts
ESTIMATED = 12  # shapes that only the time model estimates
LEADERS = 8  # shapes measured again at the end
WORSE_PERCENT = 2.0  # by which a predicted loss may exceed the baseline's
CONFIDENCE = 0.8  # probability that the shape of "no more loss" must have
SAME_SIZE = 0.08  # difference from the budget up to which a model is the baseline as it is
TOLERANCE, SMALL_TOLERANCE = 0.01, 0.02  # difference in N from the baseline, and below 100M
MAX_TOKENS = 10**18  # of training


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The size of the models and their training tokens, equal for all or by a training time.

    :func:`shapelaw.search.proposals.target_loss.request_at_loss` makes the budget of the least cost
    of training and serving at a target loss.

    Attributes
    ----------
    parameters
        Number of parameters.
    tolerance
        Fraction by which a shape's count may differ from the baseline's; None: 0.01, and 0.02 below
        100M parameters.
    tokens
        Training tokens; None: those of ``time``.
    time
        Time of training, in which a faster shape is trained on more tokens.
    convention
        Parameters that are counted: ``non-embedding``, ``total`` or ``active``.
    lifetime
        Optimum of training and serving that gave parameters and tokens; None: they were given.
    extrapolate
        True to propose also far beyond the runs of the law and the range of the pooled law.

    Raises
    ------
    InputError
        The convention is unknown, or not exactly one of ``tokens`` and ``time`` is given.
    """

    parameters: int
    tokens: int | None = None
    time: TrainingTime | None = None
    lifetime: Lifetime | None = None
    convention: str = "non-embedding"
    tolerance: float | None = None
    extrapolate: bool = False

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise InputError(
                f"`--params-convention` must be one of {', '.join(CONVENTIONS)}, but got "
                f"{self.convention!r}"
            )
        if (self.tokens is None) == (self.time is None):
            raise InputError(
                "exactly one of `--tokens` and `--train-hours` must be given, but got "
                f"{'none' if self.tokens is None else 'both'}; write --tokens 100B, or "
                "--train-hours 8 --hardware h100x8"
            )

    def tokens_of(self, shapes: Costs, more_parameters: Any = 0) -> Any:
        """Return the training tokens of each shape; see ``TrainingTime.tokens``."""
        return self.tokens if self.time is None else self.time.tokens(shapes, more_parameters)

    @property
    def largest_difference(self) -> float:
        """Return the fraction by which a shape's count may differ from the baseline's."""
        usual = SMALL_TOLERANCE if self.parameters < SMALL else TOLERANCE
        return usual if self.tolerance is None else self.tolerance


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """The shapes to consider, and the baseline to compare them with.

    Attributes
    ----------
    baseline
        Name of the baseline model, or path of its ``config.json``. It also gives the fields that
        are None.
    any_shape
        Lift the rules for deployable shapes (:mod:`shapelaw.search.proposals.deployable`).
    tensor_parallel
        GPUs that one model is split over, one number or several to choose from; one of them must
        divide the key-value heads.
    layers, head_dims
        Numbers of layers and head dimensions; None: half to one and a half times the baseline's
        depth, and the usual head dimensions of that size.
    vocab_size, qk_norm, rope_theta
        Vocabulary, norms of queries and keys, and rotary base; None: the baseline's.
    hidden_step, mlp_step
        Steps of hidden and intermediate size; None: the usual ones of that size.
    where
        Conditions such as ``"gqa <= 8"``; see :class:`shapelaw.scaling.space.space.Space`.
    worse_percent
        Per cent by which a predicted loss may exceed the baseline's; None: no limit.
    confidence
        Probability of no more loss than the baseline that the shape with the role ``fast`` has.
    fastest
        Search for one shape: the fastest with no more predicted loss than the baseline
        (arXiv 2510.18245).

    Raises
    ------
    InputError
        ``worse_percent``, ``confidence`` or ``tensor_parallel`` is out of range.
    """

    baseline: str = "llama-3.2-1b"
    any_shape: bool = False
    tensor_parallel: int | tuple[int, ...] = 1
    layers: tuple[int, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    vocab_size: int | None = None
    hidden_step: int | None = None
    mlp_step: int | None = None
    qk_norm: bool | None = None
    rope_theta: float | None = None
    where: tuple[str, ...] = ()
    worse_percent: float | None = WORSE_PERCENT
    confidence: float = CONFIDENCE
    fastest: bool = False

    def __post_init__(self) -> None:
        if self.worse_percent is not None and not 0 <= self.worse_percent <= 100:
            raise InputError(
                f"`0 <= --worse <= 100` per cent must hold, but got {self.worse_percent:g}"
            )
        if not 0.5 <= self.confidence < 1:
            raise InputError(
                f"`0.5 <= --confidence < 1` must hold, but got {self.confidence:g}; 0.8 is usual"
            )
        if not self.gpus or not all(1 <= number <= MAX_GPUS for number in self.gpus):
            raise InputError(
                f"`1 <= tensor_parallel <= {MAX_GPUS}` must hold, but got {self.tensor_parallel}"
            )

    @property
    def gpus(self) -> tuple[int, ...]:
        """Return the numbers of GPUs that one model may be split over."""
        split = self.tensor_parallel
        return (split,) if isinstance(split, int) else split

    @property
    def max_loss_ratio(self) -> float | None:
        """Return the largest ratio of a predicted loss to the baseline's; None: no limit."""
        if self.fastest:
            return 1.0
        return None if self.worse_percent is None else 1 + self.worse_percent / 100


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The workload to serve, with its service level, and the engine that measures or predicts.

    Raises
    ------
    InputError
        The engine lacks an option of the workload.
    """

    workload: Workload
    engine: Engine

    def __post_init__(self) -> None:
        object.__setattr__(self, "workload", self.engine.served_workload(self.workload))


@dataclass(frozen=True, kw_only=True)
class SearchEffort(Effort):
    """The numbers of shapes to measure, to estimate and to measure again.

    Attributes
    ----------
    measurements
        Shapes that the engine measures or predicts.
    estimated
        Largest number of shapes to add with the time model's estimate only. If it is above 0, a
        third of the measurements, and one for each shape that the engine refuses, goes to the
        leaders of the time model.
    leaders
        Shapes that a measuring engine measures again at the end, interleaved with the baseline.
    short
        Output tokens during the search; None: the workload's. With fewer, only the leaders are
        measured at full length and proposed, as in arXiv 2510.18245 and 2508.10251.
    storage
        File or ``postgresql://...`` URL of the study, which several searches may share; None: in
        memory.

    Raises
    ------
    InputError
        No sampler has the name, or the storage cannot be opened.
    """

    measurements: int = MEASUREMENTS
    estimated: int = ESTIMATED
    leaders: int = LEADERS
    short: int | None = None
    storage: "Address | None" = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storage is not None:
            check_storage_address(self.storage)


@dataclass(frozen=True, kw_only=True)
class ProposalRequest:
    """A request for proposals, which every stage of the search reads.

    Raises
    ------
    InputError
        The baseline is unknown, or the space of shapes is invalid.
    """

    budget: Budget
    space: SpaceOptions = SpaceOptions()
    serving: Serving
    effort: SearchEffort = SearchEffort()

    def __post_init__(self) -> None:
        _ = self.shape_space  # an invalid space is refused before a law is fitted
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise InputError(
                f"the training tokens of the baseline must be between 1 and {MAX_TOKENS:.0e}, but "
                f"are {self.tokens:.3g}; change --tokens, or --train-hours and --hardware"
            )

    @cached_property
    def tokens(self) -> int:
        """Return the training tokens of the baseline."""
        return int(self.budget.tokens_of(self.baseline))

    @cached_property
    def model(self) -> Shape:
        """Return the shape of the baseline model as published, with the vocabulary asked for."""
        model = baseline_model(self.space.baseline)
        return replace(model, vocab_size=_value_or(self.space.vocab_size, model.vocab_size))

    @property
    def baseline_name(self) -> str:
        """Return the name of the baseline in texts."""
        return self.space.baseline

    def layer_notes(self) -> list[str]:
        """Describe lists over the layers of the baseline; all layers of a shape are alike."""
        return []

    @cached_property
    def rescaled(self) -> bool:
        """Return whether the model is of another size, so that only its proportions count."""
        sizes = (getattr(self.model, CONVENTIONS[self.budget.convention]), self.model.n_total)
        return all(abs(size / self.budget.parameters - 1) > SAME_SIZE for size in sizes)

    @cached_property
    def rules(self) -> DeployableRules | None:
        """Return the rules for deployable shapes; None if they are lifted."""
        if self.space.any_shape:
            return None
        return deployable_rules(
            self.model,
            self.budget.parameters,
            tensor_parallel=self.space.gpus,
            rescaled=self.rescaled,
        )

    @cached_property
    def baseline(self) -> Shape:
        """Return the shape to compare with: the model if it has the budget's size.

        Otherwise the shape of the budget's size with the nearest proportions, at the model's depth
        scaled with the cube root of the size.
        """
        if not self.rescaled:
            return self.model
        depth = scaled_depth(self.model, self.budget.parameters)
        space = replace(self._space(self.budget.parameters), layers=self.space.layers or (depth,))
        table = space.enumerate()
        return table[nearest_proportions(table, self.model, self.budget.parameters)]

    @cached_property
    def shape_space(self) -> Space:
        """Return the space of shapes of the baseline's size."""
        size = getattr(self.baseline, CONVENTIONS[self.budget.convention])
        space = self._space(int(size))
        return replace(space, constraints=(*space.constraints, *self.space.where))

    def _space(self, parameters: int) -> Space:
        """Return the space around a size, with defaults for the fields that are None."""
        space, model, rules = self.space, self.model, self.rules
        hidden_step, mlp_step, head_dim = usual_steps(self.budget.parameters)
        head_dims: tuple[int, ...] = (head_dim,) if self.rescaled else (model.head_dim,)
        if rules is not None:
            hidden_step, mlp_step = rules.hidden_step, rules.mlp_step
            head_dims = rules.head_dims
        return Space(
            parameters=parameters,
            convention=self.budget.convention,
            tolerance=self.budget.largest_difference,
            layers=space.layers or depths_around(scaled_depth(model, parameters)),
            head_dims=space.head_dims or head_dims,
            vocab_size=model.vocab_size,
            hidden_step=_value_or(space.hidden_step, hidden_step),
            mlp_step=_value_or(space.mlp_step, mlp_step),
            tie_word_embeddings=model.tie_word_embeddings,
            qk_norm=_value_or(space.qk_norm, model.qk_norm),
            rope_theta=_value_or(space.rope_theta, model.rope_theta),
            constraints=() if rules is None else rules.constraints,
            bytes_per_value=self.serving.workload.bytes_per_value,
            kv_bytes_per_value=self.serving.workload.kv_bytes_per_value,
        )


def baseline_model(name: str) -> Shape:
    """Return the shape of a published model by name, or of a ``config.json`` by path."""
    if name.endswith(".json") or Path(name).is_file():
        return Shape.from_config(read_json(Path(name)))
    return shape_named(name)


def scaled_depth(model: Shape, parameters: int) -> int:
    """Return a model's number of layers, scaled with the cube root of the size."""
    if abs(parameters / model.n_non_embedding - 1) <= SAME_SIZE or parameters == model.n_total:
        return model.num_hidden_layers
    growth = (parameters / model.n_non_embedding) ** (1 / 3)
    depth: int = round(model.num_hidden_layers * growth)
    return max(2, depth)


def _value_or(value: Any, default: Any) -> Any:
    return default if value is None else value
