"""A request for proposals in four groups of options: budget, space, serving and effort."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.space import Space, usual_steps
from shapelaw.search.engines._base import Engine
from shapelaw.search.study.storage import Address, check_storage_address
from shapelaw.search.study.study import Effort
from shapelaw.search.workload import Workload

Value = TypeVar("Value")
MEASUREMENTS = 24  # shapes that the engine measures or predicts
ESTIMATED = 12  # shapes that only the time model estimates
LEADERS = 8  # shapes measured again at the end
WORSE_PERCENT = 2.0  # by which a predicted loss may exceed the baseline's


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The size of the models and their training tokens.

    Attributes
    ----------
    parameters, tolerance
        Number of parameters, and the fraction by which a shape's count may differ from it.
    tokens
        Training tokens.
    convention
        Parameters that are counted: ``non-embedding``, ``total`` or ``active``.
    """

    parameters: int
    tokens: int
    convention: str = "non-embedding"
    tolerance: float = 0.03


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """The shapes to consider, and the baseline to compare them with.

    Attributes
    ----------
    baseline
        Name of the baseline model. It also gives the fields that are None.
    layers, head_dims
        Numbers of layers and head dimensions; None: the baseline's depth scaled with the cube root
        of the size, and the usual head dimension of that size.
    vocab_size, qk_norm, rope_theta
        Vocabulary, norms of queries and keys, and rotary base; None: the baseline's.
    hidden_step, mlp_step
        Steps of hidden and intermediate size; None: the usual ones of that size.
    where
        Conditions such as ``"gqa <= 8"``; see :class:`shapelaw.scaling.space.space.Space`.
    worse_percent
        Per cent by which a predicted loss may exceed the baseline's; None: no limit.
    fastest
        Search for one shape: the fastest with no more predicted loss than the baseline
        (arXiv 2510.18245).

    Raises
    ------
    InputError
        ``worse_percent`` is out of range.
    """

    baseline: str = "llama-3.2-1b"
    layers: tuple[int, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    vocab_size: int | None = None
    hidden_step: int | None = None
    mlp_step: int | None = None
    qk_norm: bool | None = None
    rope_theta: float | None = None
    where: tuple[str, ...] = ()
    worse_percent: float | None = WORSE_PERCENT
    fastest: bool = False

    def __post_init__(self) -> None:
        if self.worse_percent is not None and not 0 <= self.worse_percent <= 100:
            raise InputError(
                f"`0 <= --worse <= 100` per cent must hold, but got {self.worse_percent:g}"
            )

    @property
    def max_loss_ratio(self) -> float | None:
        """Return the largest ratio of a predicted loss to the baseline's; None: no limit."""
        if self.fastest:
            return 1.0
        return None if self.worse_percent is None else 1 + self.worse_percent / 100


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The workload to serve, with its service level, and the engine that measures or predicts."""

    workload: Workload
    engine: Engine


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

    @cached_property
    def baseline(self) -> Shape:
        """Return the shape of the baseline model, as published."""
        return shape_named(self.space.baseline)

    @cached_property
    def shape_space(self) -> Space:
        """Return the space of shapes, with defaults for the fields that are None."""
        budget, space, baseline = self.budget, self.space, self.baseline
        hidden_step, mlp_step, head_dim = usual_steps(budget.parameters)
        growth = (budget.parameters / baseline.n_non_embedding) ** (1 / 3)
        return Space(
            parameters=budget.parameters,
            convention=budget.convention,
            tolerance=budget.tolerance,
            layers=space.layers or (max(2, round(baseline.num_hidden_layers * growth)),),
            head_dims=space.head_dims or (head_dim,),
            vocab_size=_value_or(space.vocab_size, baseline.vocab_size),
            hidden_step=_value_or(space.hidden_step, hidden_step),
            mlp_step=_value_or(space.mlp_step, mlp_step),
            tie_word_embeddings=baseline.tie_word_embeddings,
            qk_norm=_value_or(space.qk_norm, baseline.qk_norm),
            rope_theta=_value_or(space.rope_theta, baseline.rope_theta),
            constraints=space.where,
        )


def _value_or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
