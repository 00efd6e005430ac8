"""Example of a proposal with a measured throughput."""

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.search.engines._roofline import RooflineEngine
from shapelaw.search.proposals.proposal import Proposal
from shapelaw.search.workload import parse_workload

SHAPE = Shape(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=256, qk_norm=True, rope_theta=500.0,
)  # fmt: skip


SPEED = RooflineEngine("h100").measure(SHAPE, parse_workload("128/64@4"))


def proposal(**changes: object) -> Proposal:
    """Make the proposal with changed fields."""
    usual: dict[str, object] = {
        "shape": SHAPE, "role": "candidate", "tokens": 10**6, "predicted_loss": 2.5,
        "loss_low": 2.4, "loss_high": 2.6, "throughput": SPEED,
    }  # fmt: skip
    return Proposal(**(usual | changes))  # type: ignore[arg-type]
