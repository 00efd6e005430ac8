"""A proposal: a shape, its predicted loss, its throughput, and where it stands on the front."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shapelaw.scaling.accuracy.predictions import Accuracy
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.search.engines._base import Measurement

# What tells the shapes of one search apart.
SHAPE_KEY = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
BASELINE, LOSS_OPTIMAL, FAST, CANDIDATE = "baseline", "loss-optimal", "fast", "candidate"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Everything needed to train a shape and to judge it later.

    ``loss_low`` to ``loss_high`` is the 95 % interval of one new run, in nats per token;
    ``throughput`` is None where the engine could not run the shape, and a warning says why.
    ``difference`` is the predicted loss minus the baseline's, ``difference_low`` to
    ``difference_high`` what the law knows of it at 95 %: what both have in common cancels, and the
    noise of two new runs is not in it. ``speedup`` is throughput over the baseline's;
    ``front_probability`` says how sure the measurements are that a shape of those measured again
    at the end stands on their front; ``accuracy`` comes from a link, where one applies; ``why``
    says in a few words what a shape of the front is good for; ``loss_form_spread`` is how far
    other forms of the law disagree on the loss, in nats per token, which no interval holds.
    """

    shape: Shape
    role: str
    tokens: int
    predicted_loss: float
    loss_low: float
    loss_high: float
    throughput: Measurement | None
    on_front: bool = False
    front_probability: float | None = None
    warnings: list[str] = field(default_factory=list)
    difference: float = 0.0
    difference_low: float = 0.0
    difference_high: float = 0.0
    speedup: float | None = None
    accuracy: Accuracy | None = None
    loss_form_spread: float | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """A file name for the shape."""
        return shape_name(self.shape)

    def row(self) -> dict[str, Any]:
        """The stable fields that ``propose --json`` prints."""
        shape, measured = self.shape, self.throughput
        return {
            "role": self.role,
            "name": self.name,
            **asdict(shape),
            "n_total": shape.n_total,
            "n_non_embedding": shape.n_non_embedding,
            "tokens": self.tokens,
            "hidden_over_sqrt_n": shape.hidden_over_sqrt_n,
            "mlp_to_attention": shape.mlp_to_attention,
            "gqa": shape.gqa,
            "kv_bytes": shape.kv_bytes(),
            "weight_bytes": shape.weight_bytes(),
            "predicted_loss": self.predicted_loss,
            "loss_low": self.loss_low,
            "loss_high": self.loss_high,
            "difference": self.difference,
            "difference_low": self.difference_low,
            "difference_high": self.difference_high,
            "loss_form_spread": self.loss_form_spread,
            "accuracy": self.accuracy.as_json() if self.accuracy else None,
            "throughput": measured.output_tokens_per_second if measured else None,
            "throughput_low": measured.low if measured else None,
            "throughput_high": measured.high if measured else None,
            "throughput_kind": measured.kind if measured else None,
            "speedup": self.speedup,
            "ttft": measured.ttft if measured else None,
            "tpot": measured.tpot if measured else None,
            "engine": measured.engine if measured else None,
            "workload": measured.workload if measured else None,
            "device": measured.device if measured else None,
            "on_front": self.on_front,
            "front_probability": self.front_probability,
            "why": self.why,
            "warnings": self.warnings,
        }


def shape_name(shape: Shape) -> str:
    """A shape as a file name."""
    heads = f"h{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
    size = f"d{shape.hidden_size}-L{shape.num_hidden_layers}"
    return f"{size}-{heads}-f{shape.intermediate_size}"


def write_proposals(
    folder: Path, proposals: Sequence[Proposal], about: dict[str, Any], *, context: int = 2048
) -> None:
    """Write ``proposals.json`` and one Hugging Face ``config.json`` per proposal.

    ``context`` is the longest sequence that is served, in tokens: an engine refuses to serve more
    than the ``max_position_embeddings`` of a config.
    """
    rows = [proposal.row() for proposal in proposals]
    positions = max(2048, 1 << (context - 1).bit_length())
    for proposal in proposals:
        config = proposal.shape.to_config(max_position_embeddings=positions)
        write_json(folder / "proposals" / proposal.name / "config.json", config)
    write_json(folder / "proposals.json", {**about, "proposals": rows})


def read_proposals(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of ``proposals.json`` and what it says about the search.

    Raises
    ------
    InputError
        The file is not one that shapelaw wrote.
    """
    document = read_json(path)
    rows = document.pop("proposals", None)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} must hold proposals; write it with `shapelaw propose --out`")
    return rows, document
