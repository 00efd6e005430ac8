"""Phases, settings and averages of conversions."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.training.averaging import BestWeights
from shapelaw.trainers.training.conversion import (
    Conversion,
    Phase,
    check_block,
    decay_sizes,
    objective_name,
    plan_phases,
)


def conversion(**changes: object) -> Conversion:
    usual: dict[str, object] = {
        "parent": "tiny", "weights": "0" * 64, "parent_tokens": 1000,
        "phases": plan_phases(16, 256),
    }  # fmt: skip
    return Conversion(**(usual | changes))  # type: ignore[arg-type]


def test_phases_to_masked_diffusion_are_warmup_and_stable() -> None:
    blocks = [(phase.block, phase.share) for phase in plan_phases(256, 256)]
    assert blocks[:4] == [(1, 0.1), (4, 0.1), (16, 0.1), (64, 0.1)]
    assert blocks[4] == (256, pytest.approx(0.6))
    assert len(blocks) == 5


def test_phases_to_blocks_decay_to_the_target() -> None:
    phases = plan_phases(32, 128, warmup=[1, 8], warmup_share=0.2, decay_share=0.4)
    assert [phase.block for phase in phases] == [1, 8, 128, 64, 32]
    assert [phase.share for phase in phases] == pytest.approx([0.1, 0.1, 0.4, 0.2, 0.2])


@given(
    target=st.integers(1, 48), factor=st.integers(1, 40),
    warmup=st.floats(0, 0.5), decay=st.floats(0.01, 0.45),
)  # fmt: skip
def test_every_planned_block_divides_the_length_and_shares_sum_to_one(
    target: int, factor: int, warmup: float, decay: float
) -> None:
    length = target * factor
    phases = plan_phases(target, length, warmup_share=warmup, decay_share=decay)
    assert all(length % phase.block == 0 for phase in phases)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert phases[-1].block == target
    sizes = decay_sizes(target, length)
    assert all(
        b <= a / 2 and b % target == 0 for a, b in zip([length, *sizes], sizes, strict=False)
    )


def test_every_phase_gets_its_share_of_the_steps() -> None:
    blocks = [conversion().block(step, 200) for step in range(200)]
    counts = [blocks.count(block) for block in (1, 4, 256, 128, 32)]
    assert counts == [20, 20, 80, 10, 10]
    assert blocks.count(16) == 20 + 10  # in the warm-up and at the end
    changes = [a for a, b in pairwise(blocks) if a != b]
    assert [*changes, blocks[-1]] == [1, 4, 16, 64, 256, 128, 64, 32, 16]


def test_objective_over_the_whole_length_is_masked_diffusion() -> None:
    assert objective_name(256, 256) == "masked_diffusion"
    assert objective_name(16, 256) == "block:16"
    assert conversion().objective(0, 200, 256) == "block:1"
    assert conversion().objective(100, 200, 256) == "masked_diffusion"


@pytest.mark.parametrize(
    ("block", "ways"), [(48, "32 or 64"), (0, "1"), (300, "256"), (3, "2 or 4")]
)
def test_block_that_does_not_divide_the_length_is_refused_with_the_nearest(
    block: int, ways: str
) -> None:
    with pytest.raises(InputError, match=rf"`--to` must divide .* got {block}; use {ways}$"):
        check_block(block, 256, "--to")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"warmup": [4, 1]}, "ascend"),
        ({"warmup": [4, 4]}, "ascend"),
        ({"warmup": [5]}, "`--warmup` must divide"),
        ({"warmup_share": 1.0}, "0 <= warmup_share < 1"),
        ({"warmup_share": math.nan}, "0 <= warmup_share < 1"),
        ({"warmup_share": 0.6, "decay_share": 0.4}, "warmup_share . decay_share < 1"),
        ({"decay_share": 0.0}, "decay_share > 0"),
    ],
)
def test_impossible_phases_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        plan_phases(16, 256, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"mask_noise": -1.0}, {"average": 7}, {"average": -1}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        conversion(**changes)


def test_candidates_are_steps_of_the_last_phase_and_include_the_last() -> None:
    direct = conversion(phases=(Phase(block=256, share=1.0),), average=3)
    assert direct.candidate_steps(300) == [217, 234, 250, 267, 284, 300]
    assert conversion(average=3).candidate_steps(200) == [192, 194, 195, 197, 199, 200]
    assert conversion(average=3).candidate_steps(20) == [20]  # one step of the last phase
    assert conversion().candidate_steps(200) == []


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2,), value), "b": torch.tensor([[value, -value]])}


def test_average_is_the_mean_of_the_best_weights() -> None:
    best = BestWeights(2)
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 5.0)]:
        best.consider(step, loss, weights(10.0 * step))
    result = weights(0.0)
    best.apply(result)
    assert best.steps == [2, 3]
    assert torch.equal(result["a"], torch.full((2,), 25.0))
    assert torch.equal(result["b"], torch.tensor([[25.0, -25.0]]))


def test_average_of_bfloat16_weights_is_computed_in_float32() -> None:
    best = BestWeights(3)
    values = [1.0, 1.0, 1.0078125]  # neighbours in bfloat16
    for step, value in enumerate(values):
        best.consider(step, 0.0, {"w": torch.tensor([value], dtype=torch.bfloat16)})
    result = {"w": torch.zeros(1, dtype=torch.float64)}
    best.apply(result)
    assert result["w"].item() == pytest.approx(sum(values) / 3, abs=1e-7)


def test_restored_average_goes_on_like_the_old_one() -> None:
    losses = [3.0, 1.0, 2.0, 0.5, 2.5]
    undisturbed, first, resumed = BestWeights(3), BestWeights(3), BestWeights(3)
    for step, loss in enumerate(losses):
        undisturbed.consider(step, loss, weights(loss))
        (first if step < 3 else resumed).consider(step, loss, weights(loss))
        if step == 2:
            resumed.load(first.state())
    got, wanted = resumed.state(), undisturbed.state()
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in got)


def test_later_weights_do_not_change_kept_ones() -> None:
    best, live = BestWeights(1), weights(1.0)
    best.consider(1, 0.0, live)
    live["a"].zero_()
    result = weights(7.0)
    best.apply(result)
    assert torch.equal(result["a"], torch.ones(2))
