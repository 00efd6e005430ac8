"""Proposals: shapes with predicted loss and throughput, and the files that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from shapelaw.scaling.accuracy.predictions import Accuracy
from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.files import write_json
from shapelaw.scaling.schema import (
    Count,
    Fraction,
    Name,
    NonNegative,
    Within,
    damaged,
    read_document,
)
from shapelaw.search.engines._base import OF_DECODERS, Measurement
from shapelaw.search.proposals.probabilities import probability_text
from shapelaw.search.workload import Workload

# Fields that identify a shape within one search.
SHAPE_KEY = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
BASELINE, LOSS_OPTIMAL, FAST, CANDIDATE = "baseline", "loss-optimal", "fast", "candidate"
EVEN = "even odds"
DIFFERENCES = ("difference_nats", "difference_nats_low", "difference_nats_high")
EQUIVALENT = ("equivalent_compute", "equivalent_compute_low", "equivalent_compute_high")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A shape to train, with its predicted loss and its speed.

    Attributes
    ----------
    role
        ``baseline``; ``loss-optimal``, the lowest predicted loss; ``fast``, the fastest with no
        more loss than the baseline at the confidence of the request; ``even odds``, the fastest
        with no more loss at a probability of one half; or ``candidate``.
    tokens
        Training tokens; those of the shape as it is, where a training time gives them.
    predicted_loss, loss_low, loss_high
        Predicted loss at exactly the baseline's N, and its 95 % prediction interval for one new
        run, in nats per token.
    throughput
        Measured, predicted or estimated speed; None if the engine cannot run the shape (a warning
        gives the reason).
    on_front
        Whether the shape is on the front of predicted loss against throughput: that of the shapes
        whose differences from the baseline the law has terms for, or that of all shapes.
    not_in_law
        Fields that differ from the baseline's and that the law has no term for: their effect on the
        loss is not in the prediction.
    apart
        Whether the shape belongs only to the front of all shapes, for a field of ``not_in_law``.
    front_probability
        Probability that the shape is on the front of the shapes measured again at the end; None if
        it was not measured again.
    difference_nats, difference_nats_low, difference_nats_high
        Predicted loss minus the baseline's, and its 95 % confidence interval, in nats per token.
        Uncertainty common to both losses cancels; the noise of two new runs is not included.
    equivalent_compute, equivalent_compute_low, equivalent_compute_high
        Factor of training compute that gives the baseline the loss of the shape, with its 95 %
        interval: a number, ``not reachable``, or None where the law does not give it.
    lifetime_flops
        FLOPs of training and serving by count, where the budget is of a target loss.
    speedup
        Throughput over the baseline's.
    training_speedup
        Training tokens/s over the baseline's at equal FLOP/s, at 4,096 tokens of context.
    p_less_loss, p_faster
        Probability of a lower true loss, and of a higher true speed, than the baseline's; None for
        the baseline, and for ``p_faster`` where one of both has no speed.
    printed_fits
        Number of printed fits that ``p_less_loss`` is a share of; None for draws of a fit.
    p_faster_basis
        Source of the spread of the speeds, or the reason why ``p_faster`` is 1 or 0.
    p_best
        Probability of the lowest true loss of all listed shapes that the engine serves within the
        service level, the baseline included; None if the shape is not one of them.
    accuracy
        Predicted accuracy, if a link from loss applies.
    loss_form_spread
        Highest minus lowest predicted loss over other forms of the law, in nats per token, which
        no interval includes.
    why
        Reason why the shape is on the front.
    workload
        Workload that it is served under: it gives the number formats of weights and cache, bf16
        without one, and the price of a GPU.
    """

    shape: Shape | Architecture
    role: str
    tokens: int
    predicted_loss: float
    loss_low: float
    loss_high: float
    throughput: Measurement | None
    on_front: bool = False
    front_probability: float | None = None
    warnings: list[str] = field(default_factory=list)
    not_in_law: tuple[str, ...] = ()
    apart: bool = False
    difference_nats: float = 0.0
    difference_nats_low: float = 0.0
    difference_nats_high: float = 0.0
    equivalent_compute: float | str | None = None
    equivalent_compute_low: float | str | None = None
    equivalent_compute_high: float | str | None = None
    lifetime_flops: float | None = None
    speedup: float | None = None
    training_speedup: float | None = None
    p_less_loss: float | None = None
    p_faster: float | None = None
    printed_fits: int | None = None
    p_faster_basis: str = ""
    p_best: float | None = None
    accuracy: Accuracy | None = None
    loss_form_spread: float | None = None
    why: str = ""
    workload: Workload | None = None

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of the KV cache per token, in the format of the workload."""
        size = self.workload.kv_bytes_per_value if self.workload else 2
        return int(self.shape.kv_bytes_per_token(size))

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weights, in the format of the workload."""
        return int(self.shape.weight_bytes(self.workload.bytes_per_value if self.workload else 2))

    @property
    def cost(self) -> float | None:
        """Return the price of a million output tokens; None where no price or speed is known."""
        if self.throughput is None or self.workload is None:
            return None
        return self.workload.cost_per_million(self.throughput.output_tokens_per_second)

    @property
    def name(self) -> str:
        """Return a file name for the shape."""
        return self.shape.name

    @property
    def chance(self) -> str:
        """Return P(less loss) as text: a share of printed fits, which are too few for more."""
        if self.p_less_loss is None or self.printed_fits is None:
            return probability_text(self.p_less_loss)
        return f"{self.p_less_loss * self.printed_fits:g} of {self.printed_fits}"

    def percent(self, name: str) -> float:
        """Return a difference, ``difference_nats...``, in per cent of the baseline's loss."""
        base = self.predicted_loss - self.difference_nats
        return float(100 * getattr(self, name) / base)

    def _answer(self) -> dict[str, Any]:
        """Return what the decoder of the engine gives; None where no speed is known."""
        if self.throughput is None or self.workload is None:
            return dict.fromkeys(OF_DECODERS)
        return self.throughput.answer(self.workload)

    def _active_counts(self) -> dict[str, Any]:
        """Return the further counts of a model of a family: what one token uses, and its cache."""
        shape = self.shape
        if not isinstance(shape, Architecture):
            return {}
        size = self.workload.kv_bytes_per_value if self.workload else 2
        length = self.workload.input_tokens + self.workload.output_tokens if self.workload else 4096
        return {
            "model_type": shape.model_type,
            "n_active": shape.n_active,
            "n_active_non_embedding": shape.n_active_non_embedding,
            "cache_bytes": int(shape.cache_bytes(length, size)),
        }

    def row(self) -> dict[str, Any]:
        """Return the stable fields that ``propose --json`` prints."""
        shape, measured = self.shape, self.throughput
        return {
            "role": self.role,
            "name": self.name,
            **shape.row(),
            "n_total": shape.n_total,
            "n_non_embedding": shape.n_non_embedding,
            **self._active_counts(),
            "tokens": self.tokens,
            "hidden_over_sqrt_n": shape.hidden_over_sqrt_n,
            "mlp_to_attention": shape.mlp_to_attention,
            "gqa": shape.gqa,
            "kv_bytes": self.kv_bytes,
            "weight_bytes": self.weight_bytes,
            "predicted_loss": self.predicted_loss,
            "loss_low": self.loss_low,
            "loss_high": self.loss_high,
            **{name: getattr(self, name) for name in DIFFERENCES},
            **{name.replace("nats", "percent"): self.percent(name) for name in DIFFERENCES},
            **{name: getattr(self, name) for name in EQUIVALENT},
            "not_in_law": list(self.not_in_law),
            "apart": self.apart,
            "p_less_loss": self.p_less_loss,
            "printed_fits": self.printed_fits,
            "p_faster": self.p_faster,
            "p_faster_basis": self.p_faster_basis,
            "p_best": self.p_best,
            "loss_form_spread": self.loss_form_spread,
            "accuracy": self.accuracy.as_json() if self.accuracy else None,
            "throughput": measured.output_tokens_per_second if measured else None,
            "throughput_low": measured.low if measured else None,
            "throughput_high": measured.high if measured else None,
            "throughput_kind": measured.kind if measured else None,
            "throughput_repeats": measured.repeats if measured else None,
            "speedup": self.speedup,
            "training_speedup": self.training_speedup,
            "lifetime_flops": self.lifetime_flops,
            "cost_per_million_tokens": self.cost,
            "ttft": measured.ttft if measured else None,
            "tpot": measured.tpot if measured else None,
            **self._answer(),
            "engine": measured.engine if measured else None,
            "workload": measured.workload if measured else None,
            "concurrency": measured.concurrency if measured else None,
            "gpus": measured.gpus if measured else None,
            "device": measured.device if measured else None,
            "on_front": self.on_front,
            "front_probability": self.front_probability,
            "why": self.why,
            "warnings": self.warnings,
        }


def write_proposals(
    folder: Path, proposals: Sequence[Proposal], about: dict[str, Any], *, context: int = 2048
) -> None:
    """Write ``proposals.json`` and one Hugging Face ``config.json`` per proposal.

    Parameters
    ----------
    about
        Fields of the search beside the proposals.
    context
        Tokens of the longest sequence to serve; an engine refuses longer ones than the
        ``max_position_embeddings`` of a config.
    """
    rows = [proposal.row() for proposal in proposals]
    positions = max(2048, 1 << (context - 1).bit_length())
    for proposal in proposals:
        config = proposal.shape.to_config(max_position_embeddings=positions)
        config["torch_dtype"] = proposal.workload.dtype if proposal.workload else "bfloat16"
        write_json(folder / "proposals" / proposal.name / "config.json", config)
    write_json(folder / "proposals.json", {**about, "proposals": rows})


Size = Annotated[int, Within(1, 10**18)]
Loss = Annotated[float, Within(1e-9, 1e6)]
Rate = Annotated[float, Within(1e-12, 1e18)]  # a speed, a time or a ratio
Flops = Annotated[float, Within(1.0, 1e40)]
Note = Annotated[str, Within(0, 2000)]


class AccuracyRow(TypedDict):
    """A predicted accuracy in a row: the fields that pages show."""

    value: Fraction | None
    low: Fraction | None
    high: Fraction | None


class ProposalRow(TypedDict):
    """One row of ``proposals.json``, as :meth:`Proposal.row` writes it.

    Files of earlier versions lack the fields that are not required; a page needs them all.
    """

    role: Name
    name: Name
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    n_total: Size
    n_non_embedding: Size
    tokens: Size
    hidden_over_sqrt_n: Rate
    mlp_to_attention: Rate
    gqa: Rate
    kv_bytes: Size
    weight_bytes: Size
    predicted_loss: Loss
    loss_low: Loss
    loss_high: Loss
    throughput: Rate | None
    throughput_low: Rate | None
    throughput_high: Rate | None
    throughput_kind: Name | None
    device: Note | None
    on_front: bool
    warnings: list[Note]
    difference_nats: NotRequired[float]
    difference_nats_low: NotRequired[float]
    difference_nats_high: NotRequired[float]
    not_in_law: NotRequired[list[Name]]
    apart: NotRequired[bool]
    equivalent_compute: NotRequired[Rate | Name | None]
    equivalent_compute_low: NotRequired[Rate | Name | None]
    equivalent_compute_high: NotRequired[Rate | Name | None]
    training_speedup: NotRequired[Rate | None]
    lifetime_flops: NotRequired[Flops | None]
    p_less_loss: NotRequired[Fraction | None]
    printed_fits: NotRequired[Count | None]
    p_faster: NotRequired[Fraction | None]
    p_faster_basis: NotRequired[Note]
    p_best: NotRequired[Fraction | None]
    loss_form_spread: NotRequired[NonNegative | None]
    accuracy: NotRequired[AccuracyRow | None]
    throughput_repeats: NotRequired[Count | None]
    speedup: NotRequired[Rate | None]
    cost_per_million_tokens: NotRequired[Rate | None]
    workload: NotRequired[Note | None]
    concurrency: NotRequired[Count | None]
    gpus: NotRequired[Count | None]
    ttft: NotRequired[Rate | None]
    tpot: NotRequired[Rate | None]
    decoder: NotRequired[Note | None]
    tokens_per_forward: NotRequired[Rate | None]
    seconds_per_answer: NotRequired[Rate | None]
    why: NotRequired[Note]


class ShapeCounts(TypedDict):
    """Numbers of shapes of a search."""

    enumerated: Count
    considered: Count


class TimeModelCheck(TypedDict):
    """Errors of a time model for each engine answer, predicted from the others."""

    shapes: list[Annotated[str, Within(0, 500)]]
    answered: list[Rate]
    predicted: list[Rate]
    error: NonNegative
    rank_correlation: float | None


class TrainingTimeRow(TypedDict):
    """Time of training that gives every shape its tokens."""

    hours: Rate
    hardware: Name
    devices: Size
    mfu: Fraction


class PaperModel(TypedDict):
    """A model of a printed law's paper: loss over that of the first, in per cent."""

    model: Name
    predicted_percent: float
    measured_percent: float


class ProposalsDocument(TypedDict):
    """Content of ``proposals.json``: rows, and the fields of :meth:`Proposals.about`."""

    proposals: Annotated[list[ProposalRow], Within(1, 100_000)]
    parameters: Size
    tokens: Size
    baseline: NotRequired[Name]
    workload: NotRequired[Name]
    engine: NotRequired[Name]
    confidence: NotRequired[Fraction]
    speed_basis: NotRequired[Note]
    interval: NotRequired[Name]
    rules: NotRequired[Note | None]
    training_time: NotRequired[TrainingTimeRow | None]
    not_in_law: NotRequired[list[Name]]
    paper_models: NotRequired[list[PaperModel]]
    convention: NotRequired[Name]
    basis: NotRequired[Note]
    notes: NotRequired[list[Note]]
    extrapolation: NotRequired[list[Note]]
    noise: NotRequired[NonNegative]
    shapes: NotRequired[ShapeCounts | None]
    time_model: NotRequired[TimeModelCheck | None]


def read_proposals(
    path: Path, *, for_page: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the rows of ``proposals.json`` and its fields about the search.

    Parameters
    ----------
    path
        The file.
    for_page
        Demand every field that :meth:`Proposal.row` writes.

    Raises
    ------
    InputError
        The file holds no proposals, or is damaged.
    """
    way_out = "write it again with `shapelaw propose --out`"
    document: dict[str, Any] = dict(read_document(path, ProposalsDocument, way_out))
    rows: list[dict[str, Any]] = document.pop("proposals")
    needed = ProposalRow.__annotations__ if for_page else ()
    lacking = [name for name in needed if any(name not in row for row in rows)]
    check = document.get("time_model") or {"shapes": [], "answered": [], "predicted": []}
    if lacking:
        raise damaged(path, f"a proposal lacks `{lacking[0]}`", way_out)
    speed = ("throughput", "throughput_low", "throughput_high", "throughput_kind")
    if any(len({row[name] is None for name in speed}) > 1 for row in rows):
        raise damaged(path, "a proposal has only a part of its throughput", way_out)
    if rows[0]["role"] != BASELINE:
        raise damaged(path, "the first of `proposals` must be the baseline", way_out)
    if len({len(check[name]) for name in ("shapes", "answered", "predicted")}) > 1:
        raise damaged(path, "the lists of `time_model` must be equally long", way_out)
    return rows, document
