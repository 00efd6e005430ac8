"""A proposal: a shape, its predicted loss, its throughput, and where it stands on the front."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.shape import Shape
from search.throughput._base import Measurement

Floats = Sequence[float] | np.ndarray
BASELINE, LOSS_OPTIMAL, FAST, CANDIDATE = "baseline", "loss-optimal", "fast", "candidate"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Everything needed to train a shape and to judge it later.

    ``loss_low`` to ``loss_high`` is the 95 % interval of one new run, in nats per token;
    ``throughput`` is None where the engine could not run the shape, and a warning says why.
    """

    shape: Shape
    role: str
    tokens: int
    predicted_loss: float
    loss_low: float
    loss_high: float
    throughput: Measurement | None
    on_front: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """A file name for the shape."""
        shape = self.shape
        heads = f"h{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
        size = f"d{shape.hidden_size}-L{shape.num_hidden_layers}"
        return f"{size}-{heads}-f{shape.intermediate_size}"

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
            "throughput": measured.output_tokens_per_second if measured else None,
            "throughput_low": measured.low if measured else None,
            "throughput_high": measured.high if measured else None,
            "throughput_kind": measured.kind if measured else None,
            "engine": measured.engine if measured else None,
            "workload": measured.workload if measured else None,
            "device": measured.device if measured else None,
            "on_front": self.on_front,
            "warnings": self.warnings,
        }


def front(losses: Floats, throughputs: Floats) -> np.ndarray:
    """Mask of the points that no other point beats: lower loss, higher throughput."""
    loss, speed = np.asarray(losses, dtype=float), np.asarray(throughputs, dtype=float)
    order = np.lexsort((loss, -speed))
    best, mask = np.inf, np.zeros(len(loss), dtype=bool)
    for row in order:
        if loss[row] < best:
            best, mask[row] = loss[row], True
    return mask


def hypervolume(losses: Floats, throughputs: Floats, reference: tuple[float, float]) -> float:
    """Area that the points dominate below a reference loss and above a reference throughput.

    Throughput counts by its logarithm: the unit is nats per token times ln(tokens/s).
    """
    loss, speed = np.asarray(losses, dtype=float), np.asarray(throughputs, dtype=float)
    inside = (loss < reference[0]) & (speed > reference[1])
    loss, speed = loss[inside], np.log(speed[inside] / reference[1])
    keep = front(loss, speed)
    order = np.argsort(-speed[keep])
    loss, speed = loss[keep][order], speed[keep][order]
    # From fast to slow: each point adds the strip between its loss and the best loss so far.
    ceiling = np.concatenate(([reference[0]], loss[:-1])) if len(loss) else loss
    return float(((ceiling - loss) * speed).sum())


def write_proposals(folder: Path, proposals: Sequence[Proposal], about: dict[str, Any]) -> None:
    """Write ``proposals.json`` and one Hugging Face ``config.json`` per proposal."""
    rows = [proposal.row() for proposal in proposals]
    for proposal in proposals:
        write_json(folder / "proposals" / proposal.name / "config.json", proposal.shape.to_config())
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
