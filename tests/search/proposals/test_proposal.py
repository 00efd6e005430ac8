import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.pareto import front, hypervolume
from shapelaw.search.proposals.proposal import read_proposals, write_proposals
from support.one_proposal import SHAPE, SPEED, proposal

# A coarse grid makes ties; a fine grid makes points without ties.
coordinate = st.integers(1, 6).map(float) | st.floats(0.5, 8)
points = st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=12)
Points = list[tuple[float, float]]


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] <= b[0] and a[1] >= b[1]


@given(points)
def test_front_has_the_points_that_no_other_dominates(given_points: Points) -> None:
    mask = front(*zip(*given_points, strict=True))
    wanted = {p for p in given_points if not any(beats(other, p) for other in given_points)}
    assert {p for p, on in zip(given_points, mask, strict=True) if on} == wanted


@given(points, st.randoms())
def test_the_front_does_not_depend_on_the_order(given_points: Points, order: object) -> None:
    shuffled = given_points.copy()
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    fronts = []
    for each in (given_points, shuffled):
        mask = front(*zip(*each, strict=True))
        fronts.append({p for p, on in zip(each, mask, strict=True) if on})
    assert fronts[0] == fronts[1]


def area_by_cells(given_points: Points, reference: tuple[float, float]) -> float:
    """Sum the dominated cells of the grid through all points, in loss and ln throughput."""
    losses = sorted({reference[0], *(p[0] for p in given_points if p[0] < reference[0])})
    speeds = sorted({reference[1], *(p[1] for p in given_points if p[1] > reference[1])})
    area = 0.0
    for low, high in pairwise(losses):
        for slow, fast in pairwise(speeds):
            if any(p[0] <= low and p[1] >= fast for p in given_points):
                area += (high - low) * np.log(fast / slow)
    return area


@given(points, st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)))
def test_the_hypervolume_is_the_dominated_area(
    given_points: Points, reference: tuple[float, float]
) -> None:
    found = hypervolume(*zip(*given_points, strict=True), reference)
    assert found == pytest.approx(area_by_cells(given_points, reference), abs=1e-9)


@given(points, st.tuples(coordinate, coordinate))
def test_another_point_never_lowers_the_hypervolume(
    given_points: Points, another: tuple[float, float]
) -> None:
    reference = (8.5, 0.4)
    before = hypervolume(*zip(*given_points, strict=True), reference)
    after = hypervolume(*zip(*given_points, another, strict=True), reference)
    assert after >= before - 1e-12


def test_point_beyond_the_reference_adds_no_hypervolume() -> None:
    assert hypervolume([3.0, 1.0], [9.0, 0.5], (2.0, 1.0)) == 0.0
    assert hypervolume([], [], (2.0, 1.0)) == 0.0


def test_front_of_no_points_is_empty() -> None:
    assert front([], []).tolist() == []


def test_row_of_a_proposal_has_the_documented_fields() -> None:
    row = proposal(role="fast", on_front=True, warnings=["far away"]).row()
    assert row.items() >= SHAPE.row().items()
    wanted = {
        "role": "fast", "tokens": 10**6, "predicted_loss": 2.5, "loss_low": 2.4, "loss_high": 2.6,
        "throughput": SPEED.output_tokens_per_second, "throughput_low": SPEED.low,
        "throughput_high": SPEED.high, "throughput_kind": "predicted", "engine": "roofline:h100",
        "workload": SPEED.workload, "on_front": True, "warnings": ["far away"],
        "n_non_embedding": SHAPE.n_non_embedding, "n_total": SHAPE.n_total,
        "gqa": 2.0, "kv_bytes": SHAPE.kv_bytes(), "weight_bytes": SHAPE.weight_bytes(),
    }  # fmt: skip
    assert row.items() >= wanted.items()
    assert row["name"] == "d64-L2-h4-2x16-f96"


def test_a_shape_that_was_not_measured_has_no_throughput() -> None:
    row = proposal(throughput=None).row()
    for name in ("throughput", "throughput_low", "throughput_high", "throughput_kind", "engine"):
        assert row[name] is None


def test_proposals_are_read_as_they_were_written(tmp_path: Path) -> None:
    wide = replace(SHAPE, intermediate_size=128)
    proposals = [proposal(role="baseline"), proposal(shape=wide, throughput=None)]
    about = {"baseline": "llama-3.2-1b", "parameters": 10**5, "tokens": 10**6}
    write_proposals(tmp_path, proposals, about)
    rows, found = read_proposals(tmp_path / "proposals.json")
    assert rows == [each.row() for each in proposals]
    assert found == about
    for each in proposals:
        config = json.loads((tmp_path / "proposals" / each.name / "config.json").read_text())
        assert Shape.from_config(config) == each.shape


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", r"`proposals` is missing.; write it again with `shapelaw propose --out`"),
        (
            '{"parameters": 1, "tokens": 1, "proposals": []}',
            "`proposals` must be of a length from 1",
        ),
        ('{"parameters": 1, "tokens": 1, "proposals": 3}', "`proposals` must be a list"),
        ("[]", "must hold a JSON object, but holds a list"),
        ("{", "is not JSON"),
    ],
)
def test_a_file_without_proposals_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "proposals.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_proposals(tmp_path / "proposals.json")


PUBLISHED = ["llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b", "panda-1b", "surefire-1b", "surefire-3b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_loads_the_config_of_a_proposal(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape = shape_named(name)
    each = proposal(shape=shape)
    write_proposals(tmp_path, [each], {})
    config = transformers.AutoConfig.from_pretrained(tmp_path / "proposals" / each.name)
    for field, value in shape.row().items():
        if field not in ("qk_norm", "rope_theta"):
            assert getattr(config, field) == value, field
    assert config.rope_parameters["rope_theta"] == shape.rope_theta
    if shape.qk_norm:
        assert config.model_type == "qwen3"
