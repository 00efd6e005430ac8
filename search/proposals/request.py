"""A request for proposals, and the parts of it that are read from text."""

from dataclasses import dataclass, field
from typing import Any

from shapelaw.scaling.accuracy.fit import load_link
from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.space import Space, usual_steps
from shapelaw.scaling.units import parse_count, parse_numbers
from shapelaw.search.engines._base import Engine
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.candidate_set import Target
from shapelaw.search.study.sampler import CALIBRATED
from shapelaw.search.workload import Workload, parse_workload

MEASUREMENTS = 24


ESTIMATED = 12  # the most shapes that only the time model answers for


@dataclass(frozen=True, kw_only=True)
class ProposalRequest:
    """What a person asks for, as typed.

    ``law`` is the path of a fit or the name of a printed law; ``measurements`` and ``estimated``
    are the most shapes that the engine and the time model answer for (None: 24);
    ``worse`` is the per cent by which a loss may exceed the baseline's; ``link`` and
    ``validation`` lead to accuracies; ``limits`` are further limits of the workload in seconds.
    ``fastest``, ``sampler``, ``short`` and ``storage`` say how to search; ``keep`` and ``fresh``
    whether measurements are kept for the user, and made again.
    """

    params: str
    tokens: str
    law: str | None
    workload: str
    engine: str
    baseline: str
    convention: str
    tolerance: float
    layers: str
    head_dims: str
    vocab_size: int | None
    measurements: int | None
    seed: int
    estimated: int = ESTIMATED
    worse: float = 2.0
    where: tuple[str, ...] = ()
    link: str | None = None
    validation: str = ""
    limits: dict[str, float | None] = field(default_factory=dict)
    fastest: bool = False
    sampler: str = CALIBRATED
    short: int | None = None
    storage: str | None = None
    keep: bool = True
    fresh: bool = False


def target_of(request: ProposalRequest) -> Target:
    """Read the budget, the baseline and the steps of a request."""
    baseline = shape_named(request.baseline)
    parameters = parse_count(request.params)
    hidden_step, mlp_step, head_dim = usual_steps(parameters)
    if not 0 <= request.worse <= 100:
        raise InputError(f"`0 <= --worse <= 100` per cent must hold, but got {request.worse:g}")
    return Target(
        space=Space(
            parameters=parameters,
            layers=_layers(request.layers, parameters, baseline),
            head_dims=_numbers("--head-dim", request.head_dims, head_dim),
            vocab_size=baseline.vocab_size if request.vocab_size is None else request.vocab_size,
            hidden_step=hidden_step,
            mlp_step=mlp_step,
            tolerance=request.tolerance,
            convention=request.convention,
            tie_word_embeddings=baseline.tie_word_embeddings,
            qk_norm=baseline.qk_norm,
            rope_theta=baseline.rope_theta,
            **_constraints(request.where),
        ),
        tokens=parse_count(request.tokens),
        workload=_workload(request),
        engine=_engine(request),
        baseline_name=request.baseline,
        baseline=baseline,
        worse=request.worse / 100,
        fastest=request.fastest,
        links=None if request.link is None else load_link(request.link),
        validation=request.validation,
    )


def _engine(request: ProposalRequest) -> Engine:
    """The engine; what it measured once is kept, unless unwanted."""
    engine = engine_named(request.engine)
    if not request.keep:
        return engine
    return CachedEngine(engine, MeasurementStore.of_user(), fresh=request.fresh)


def _constraints(where: tuple[str, ...]) -> dict[str, Any]:
    return {"constraints": where} if where else {}


def _workload(request: ProposalRequest) -> Workload:
    return parse_workload(request.workload).changed(**request.limits)


def _layers(text: str, parameters: int, baseline: Shape) -> tuple[int, ...]:
    """By default the depth of the baseline, scaled with the cube root of the size."""
    scaled = baseline.num_hidden_layers * (parameters / baseline.n_non_embedding) ** (1 / 3)
    return _numbers("--layers", text, max(2, round(scaled)))


def _numbers(option: str, text: str, default: int) -> tuple[int, ...]:
    return (default,) if text == "auto" else parse_numbers(option, text)
