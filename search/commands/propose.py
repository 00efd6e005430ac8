"""The ``propose`` command: from what a person types to ranked proposals."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.accuracy.fit import load_link
from shapelaw.scaling.architectures.shape import RATIOS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import nothing_left
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.published_laws import printed_fit, printed_laws
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import D, N
from shapelaw.scaling.runs.catalog import load_runs, shape_named
from shapelaw.scaling.space.space import Space, usual_steps
from shapelaw.scaling.units import format_count, parse_count
from shapelaw.search.engines._base import Engine
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.candidate_set import Target
from shapelaw.search.proposals.pareto_search import Outcome, Search, find
from shapelaw.search.proposals.proposal import CANDIDATE, Proposal, write_proposals
from shapelaw.search.proposals.reasons import of_the_budget, plainly
from shapelaw.search.study.sampler import CALIBRATED
from shapelaw.search.workload import Workload, parse_workload

SHIPPED = "proxies"  # the table that the shipped law is fitted on
FITTED_ROLES = ("proxy", "anchor")
MEASUREMENTS = 24
SHOWN = 12  # rows of the front that are printed at most
ALIKE = 0.05  # distance on the front, of its width, below which two shapes are shown as one
ESTIMATED = 12  # the most shapes that only the time model answers for
COUNTED = 1e3  # parameters or tokens below which a law cannot count single ones
FIELDS = {field.name for field in fields(Shape)} | {"n_total", "n_active", N, D, *RATIOS}


@dataclass(frozen=True, kw_only=True)
class Request:
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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Proposals with what they rest on: ``basis`` in a line, ``notes`` that hold for every row."""

    proposals: list[Proposal]
    basis: str
    notes: list[str]
    about: dict[str, Any]


def answer(request: Request, out: Path | None) -> Answer:
    """Find proposals and, where ``out`` is given, write them there.

    Raises
    ------
    InputError
        Something cannot be read, or no shape fits.
    """
    target = _target(request)
    fitted, basis = _law(request)
    with tempfile.TemporaryDirectory() as scratch, nothing_left(out or Path(scratch)):
        outcome = find(
            fitted,
            target,
            Search(
                measurements=request.measurements or MEASUREMENTS,
                estimated=request.estimated,
                short=request.short,
                sampler=request.sampler,
                seed=request.seed,
            ),
            storage=request.storage or (out or Path(scratch)) / "study.log",
        )
    about = _about(request, target, fitted, basis, outcome)
    if out is not None:
        work = target.workload
        length = work.input_tokens + work.output_tokens
        write_proposals(out, outcome.proposals, about, context=length)
        fitted.save(out / "fit.json")
    return Answer(
        proposals=outcome.proposals,
        basis=basis,
        notes=[*map(plainly, about["extrapolation"]), *about["notes"]],
        about=about,
    )


def _about(
    request: Request, target: Target, fitted: Fit, basis: str, outcome: Outcome
) -> dict[str, Any]:
    """What ``proposals.json`` says of the search beside its rows."""
    found = outcome.check
    names = {p.shape: p.name for p in outcome.proposals}
    return {
        "baseline": request.baseline,
        "workload": str(target.workload),
        "engine": target.engine.label,
        "parameters": target.space.parameters,
        "convention": target.space.convention,
        "tolerance": target.space.tolerance,
        "where": list(request.where),
        "tokens": target.tokens,
        "worse": target.worse if np.isfinite(target.worse) else None,
        "fit_sha256": fitted.data_sha256,
        "basis": basis,
        "notes": [*fitted.notes, *outcome.notes],
        "extrapolation": common_warnings(outcome.proposals),
        "noise": fitted.noise,
        "shapes": {"enumerated": outcome.enumerated, "considered": outcome.considered},
        "time_model": found
        and {
            "shapes": [names.get(shape, "") for shape in outcome.answered_shapes],
            "answered": found.answered,
            "predicted": found.predicted,
            "error": found.error,
            "rank_correlation": found.rank_correlation,
        },
    }


def common_warnings(proposals: list[Proposal]) -> list[str]:
    """What is true of the budget, not of one shape: how far N and tokens lie from the runs.

    The words are those of the baseline.
    """
    return [words for words in proposals[0].warnings if of_the_budget(words)]


def _law(request: Request) -> tuple[Fit, str]:
    """The law and what it rests on, in a line."""
    if request.law is None:
        return shipped_law(request.seed)
    if request.law in printed_laws():
        return printed_fit(request.law), f"{request.law}: {printed_fit(request.law).status}"
    path = Path(request.law)
    if not path.is_file() and path.suffix != ".json":
        raise InputError(
            f"`--law` must be a file that `shapelaw fit --out` wrote, or one of "
            f"{', '.join(printed_laws())}, but got {request.law!r}"
        )
    fitted = Fit.load(path)
    _usable(fitted, request.law)
    name = fitted.law_name if len(fitted.law_name) < 40 else "composed"
    return fitted, f"{name} law on {len(fitted.run_ids)} runs, {request.law}"


def shipped_law(seed: int = 0) -> tuple[Fit, str]:
    """The law for those who have none, fitted on the shipped runs, and what it rests on."""
    runs = load_runs(SHIPPED)
    fitted = fit("conditional", runs[runs["role"].isin(FITTED_ROLES)], seed=seed)
    sizes = [format_count(size) for size in fitted.ranges[N]]
    vocabularies = ", ".join(f"{size:,}" for size in sorted(set(runs["vocab_size"])))
    return fitted, (
        f"the law of {len(fitted.run_ids)} shipped runs of {sizes[0]} to {sizes[1]} parameters, as "
        f"no --law is given (data/{SHIPPED}, losses in nats per token of a vocabulary of "
        f"{vocabularies}); fit your own runs for a real decision"
    )


def _usable(fitted: Fit, source: str) -> None:
    """Refuse a law whose columns a shape does not have, or that counts in other units."""
    missing = [name for name in fitted.law.columns if name not in FIELDS]
    if missing:
        raise InputError(
            f"`--law` {source} needs `{missing[0]}`, which a shape and a token budget do not give; "
            "fit a law of n_non_embedding, tokens and shape ratios, such as `conditional`"
        )
    for column in (N, D):
        high = fitted.ranges.get(column, (0.0, np.inf))[1]
        if high < COUNTED:
            raise InputError(
                f"`{column} >= {COUNTED:g}` must hold for some run of a law, but {source} was "
                f"fitted up to {high:g}: it counts in other units; fit it in single parameters "
                "and tokens"
            )


def _target(request: Request) -> Target:
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


def _engine(request: Request) -> Engine:
    """The engine; what it measured once is kept, unless unwanted."""
    engine = engine_named(request.engine)
    if not request.keep:
        return engine
    return CachedEngine(engine, MeasurementStore.of_user(), fresh=request.fresh)


def _constraints(where: tuple[str, ...]) -> dict[str, Any]:
    return {"constraints": where} if where else {}


def _workload(request: Request) -> Workload:
    return parse_workload(request.workload).changed(**request.limits)


def _layers(text: str, parameters: int, baseline: Shape) -> tuple[int, ...]:
    """By default the depth of the baseline, scaled with the cube root of the size."""
    scaled = baseline.num_hidden_layers * (parameters / baseline.n_non_embedding) ** (1 / 3)
    return _numbers("--layers", text, max(2, round(scaled)))


def _numbers(option: str, text: str, default: int) -> tuple[int, ...]:
    if text == "auto":
        return (default,)
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise InputError(f"`{option}` must be whole numbers like 12,16,24, but got {text!r}")
    return numbers


def in_table(proposals: list[Proposal]) -> pd.DataFrame:
    """The baseline and the front, thinned, as people read them; the files have all."""
    shown = _thinned([p for p in proposals if p is proposals[0] or p.on_front])
    cells: dict[str, Callable[[Proposal], str]] = {
        "shape": lambda p: f"{p.name}\n{p.role}",
        "N": lambda p: format_count(p.shape.n_non_embedding),
        "loss − baseline": _difference_text,
        "predicted loss": lambda p: (
            f"{p.predicted_loss:.4f}\n[{p.loss_low:.4f}, {p.loss_high:.4f}]"
        ),
        "predicted accuracy": lambda p: "–" if p.accuracy is None else _accuracy_text(p),
        "tokens/s × baseline": _speed_text,
        "TTFT, TPOT": lambda p: (
            f"{seconds(p.throughput.ttft)}\n{seconds(p.throughput.tpot)}" if p.throughput else "–"
        ),
        "KV/token": lambda p: in_bytes(p.shape.kv_bytes()),
        "weights": lambda p: in_bytes(p.shape.weight_bytes()),
        "in front": lambda p: (
            "–" if p.front_probability is None else f"{100 * p.front_probability:.0f} %"
        ),
        "why": lambda p: p.why,
        "beyond the runs": lambda p: "; ".join(
            plainly(words) for words in p.warnings if not of_the_budget(words)
        ),
    }
    if all(p.accuracy is None for p in shown):
        del cells["predicted accuracy"]
    if all(p.front_probability is None for p in shown):
        del cells["in front"]
    return pd.DataFrame([{name: cell(p) for name, cell in cells.items()} for p in shown])


def _thinned(proposals: list[Proposal]) -> list[Proposal]:
    """At most :data:`SHOWN`, those that differ most; whatever has a role, and the end, stay.

    Two that lie closer than :data:`ALIKE`, as a part of the front's width, count as one.
    """
    last = len(proposals) - 1
    kept = [i for i, p in enumerate(proposals) if p.role != CANDIDATE or i == last]
    speeds = [p.throughput.output_tokens_per_second if p.throughput else np.nan for p in proposals]
    places = np.column_stack([[p.predicted_loss for p in proposals], np.log(speeds)])
    places = np.nan_to_num(places / np.maximum(np.nanmax(places, 0) - np.nanmin(places, 0), 1e-12))
    while len(kept) < SHOWN:
        nearest = np.linalg.norm(places[:, None] - places[kept], axis=2).min(axis=1)
        if nearest.max() < ALIKE:
            break
        kept.append(int(nearest.argmax()))
    return [proposals[i] for i in sorted(kept)]


def _difference_text(p: Proposal) -> str:
    base = p.predicted_loss - p.difference
    if not p.difference and not p.difference_low and not p.difference_high:
        return "0"
    low, high = (100 * end / base for end in (p.difference_low, p.difference_high))
    return f"{100 * p.difference / base:+.2f} %\n[{low:+.2f}, {high:+.2f}]"


def _accuracy_text(p: Proposal) -> str:
    found = p.accuracy
    if found is None or found.value is None or found.low is None or found.high is None:
        return "–" if found is None else found.status
    return f"{100 * found.value:.1f} %\n[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _speed_text(p: Proposal) -> str:
    if p.throughput is None:
        return "–"
    ratio = "–" if p.speedup is None else f"{p.speedup:.2f} ×"
    return f"{ratio} ({p.throughput.output_tokens_per_second:,.0f})\n{p.throughput.kind}"


def seconds(value: float) -> str:
    """Seconds in a unit that keeps three digits readable.

    Examples
    --------
    >>> seconds(1.234), seconds(0.0456), seconds(0.000078)
    ('1.23 s', '45.6 ms', '78 µs')
    """
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    scale, unit = next((own for own in units if value >= own[0]), units[-1])
    return f"{value / scale:.3g} {unit}"


def in_bytes(count: float) -> str:
    """Bytes by powers of 1000, three digits.

    Examples
    --------
    >>> in_bytes(32768), in_bytes(2.47e9), in_bytes(12)
    ('32.8 kB', '2.47 GB', '12 B')
    """
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    scale, unit = next((own for own in units if count >= own[0]), units[-1])
    return f"{count / scale:.3g} {unit}"
