"""A request for proposals in four groups: budget, space, serving and effort."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.space import Space, usual_steps
from shapelaw.search.engines._base import Engine
from shapelaw.search.study.storage import Address
from shapelaw.search.study.study import Effort
from shapelaw.search.workload import Workload

Value = TypeVar("Value")
MEASUREMENTS = 24
ESTIMATED = 12
LEADERS = 8
WORSE_PERCENT = 2.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Size of the model and the tokens to train it on.

    Attributes
    ----------
    parameters, convention, tolerance
        Parameters, which of them are counted, and the fraction by which a count may differ.
    tokens
        Training tokens.
    """

    parameters: int
    tokens: int
    convention: str = "non-embedding"
    tolerance: float = 0.03


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """Shapes to consider, and the known model to compare them with.

    Attributes
    ----------
    baseline
        Name of the model to beat. It gives the vocabulary and the other fields left at None.
    layers, head_dims
        Values to try; None: the baseline's depth scaled with the cube root of the size, and the
        head dimension that is usual at that size.
    hidden_step, mlp_step
        Grids of hidden and intermediate size; None: what is usual at that size.
    where
        Conditions such as ``"gqa <= 8"``; see :class:`shapelaw.scaling.space.space.Space`.
    worse_percent
        Per cent by which a predicted loss may exceed the baseline's; None: no limit.
    fastest
        Seek one shape: the fastest with no more predicted loss than the baseline
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
        """Largest predicted loss over the baseline's; None: no limit."""
        if self.fastest:
            return 1.0
        return None if self.worse_percent is None else 1 + self.worse_percent / 100


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Workload to serve, with its service level, and the engine that measures or predicts it."""

    workload: Workload
    engine: Engine


@dataclass(frozen=True, kw_only=True)
class SearchEffort(Effort):
    """Number of shapes that the engine and the time model answer for.

    Attributes
    ----------
    measurements
        Shapes to ask the engine about.
    estimated
        Most shapes to add that only the time model answers for. With any, a third of the
        measurements, and one for each shape that the engine refuses, goes to the leaders that the
        time model names.
    leaders
        Shapes to ask a measuring engine about again at the end, in turns with the baseline.
    short
        Output tokens during the search, where fewer than the workload's. Then only the leaders are
        measured at full length and proposed (arXiv 2510.18245 and 2508.10251 do so).
    storage
        Study in a file or ``postgresql://...``; several searches may share it. None: in memory.
    """

    measurements: int = MEASUREMENTS
    estimated: int = ESTIMATED
    leaders: int = LEADERS
    short: int | None = None
    storage: "Address | None" = None


@dataclass(frozen=True, kw_only=True)
class ProposalRequest:
    """Everything that a search for proposals is asked; each stage of it reads this one object.

    Raises
    ------
    InputError
        The baseline is unknown, or the space of shapes breaks a rule.
    """

    budget: Budget
    space: SpaceOptions = SpaceOptions()
    serving: Serving
    effort: SearchEffort = SearchEffort()

    def __post_init__(self) -> None:
        _ = self.shape_space  # a space that breaks a rule is refused before anything is fitted

    @cached_property
    def baseline(self) -> Shape:
        """The model to beat, as published."""
        return shape_named(self.space.baseline)

    @cached_property
    def shape_space(self) -> Space:
        """The space of shapes, with everything filled in that the request leaves open."""
        budget, space, baseline = self.budget, self.space, self.baseline
        hidden_step, mlp_step, head_dim = usual_steps(budget.parameters)
        growth = (budget.parameters / baseline.n_non_embedding) ** (1 / 3)
        return Space(
            parameters=budget.parameters,
            convention=budget.convention,
            tolerance=budget.tolerance,
            layers=space.layers or (max(2, round(baseline.num_hidden_layers * growth)),),
            head_dims=space.head_dims or (head_dim,),
            vocab_size=_given(space.vocab_size, baseline.vocab_size),
            hidden_step=_given(space.hidden_step, hidden_step),
            mlp_step=_given(space.mlp_step, mlp_step),
            tie_word_embeddings=baseline.tie_word_embeddings,
            qk_norm=_given(space.qk_norm, baseline.qk_norm),
            rope_theta=_given(space.rope_theta, baseline.rope_theta),
            constraints=space.where,
        )


def _given(value: Value | None, default: Value) -> Value:
    return default if value is None else value
