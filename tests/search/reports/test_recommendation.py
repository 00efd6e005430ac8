"""The first sentence of a page and its light follow the stated probability."""

from typing import Any

import pytest

from shapelaw.search.reports.recommendation import recommend_proposal, recommend_trained

ABOUT = {"baseline": "llama-3.2-1b", "confidence": 0.8}
BASE = {"role": "baseline", "name": "base", "speedup": 1.0, "p_less_loss": None}


def row(
    role: str, chance: float | None, speedup: float | None = 1.3, **more: Any
) -> dict[str, Any]:
    return {
        "role": role,
        "name": f"shape-{role}",
        "p_less_loss": chance,
        "speedup": speedup,
        **more,
    }


@pytest.mark.parametrize(
    ("rows", "colour", "sentence"),
    [
        ([row("fast", 0.8)], "green", "Build shape-fast instead of llama-3.2-1b."),
        ([row("loss-optimal", 0.9, 1.1)], "green", "Build shape-loss-optimal instead of"),
        ([row("loss-optimal", 0.9, 1.1), row("fast", 0.8)], "green", "Build shape-fast instead of"),
        ([row("even odds", 0.79)], "amber", "Undecided between shape-even odds and llama-3.2-1b"),
        ([row("even odds", 0.6), row("fast", 0.85, 1.1)], "green", "Build shape-fast instead of"),
        ([row("loss-optimal", 0.95, 0.9)], "red", "Keep llama-3.2-1b."),
        ([row("loss-optimal", 0.4)], "red", "Keep llama-3.2-1b."),
        ([row("fast", 0.9, None)], "red", "Keep llama-3.2-1b."),
        ([row("candidate", 0.99, 2.0)], "red", "Keep llama-3.2-1b."),
        ([row("fast", None)], "amber", "Undecided between llama-3.2-1b and the other shapes."),
    ],
)
def test_light_of_proposals_follows_the_probability_of_less_loss(
    rows: list[dict[str, Any]], colour: str, sentence: str
) -> None:
    made = recommend_proposal([BASE, *rows], ABOUT)
    assert made.light.colour == colour
    assert made.sentence.startswith(sentence)
    assert "0.8" in made.rule


def test_confidence_of_the_search_moves_the_light_and_is_stated() -> None:
    rows = [BASE, row("fast", 0.85)]
    assert recommend_proposal(rows, ABOUT).light.colour == "green"
    strict = recommend_proposal(rows, ABOUT | {"confidence": 0.9})
    assert strict.light.colour == "amber"
    assert "at least 0.9 probability" in strict.rule


def test_share_of_printed_fits_is_no_probability_in_words() -> None:
    made = recommend_proposal([BASE, row("fast", 1.0, printed_fits=2)], ABOUT)
    assert "less loss in 2 of 2 printed fits" in made.reason
    assert "with probability" not in made.reason


@pytest.mark.parametrize(
    ("kind", "stated"),
    [("measured", "(measured)"), ("predicted", "(predicted)"), ("time model", "(estimated)")],
)
def test_reason_says_if_the_speed_was_measured(kind: str, stated: str) -> None:
    made = recommend_proposal([BASE, row("fast", 0.9, throughput_kind=kind)], ABOUT)
    assert f"has 1.30 times the tokens per second of the baseline {stated}, and" in made.reason


def test_every_light_differs_in_mark_and_word_not_in_colour_alone() -> None:
    lights = [
        recommend_proposal([BASE, row("even odds", chance)], ABOUT).light
        for chance in (0.9, 0.6, 0.1)
    ]
    assert len({light.mark for light in lights}) == len({light.word for light in lights}) == 3


@pytest.mark.parametrize(
    ("chance", "difference", "ratio", "colour"),
    [
        (0.9, -0.5, 1.3, "green"),
        (0.9, 0.3, 1.3, "amber"),  # more loss, but within the noise
        (0.9, 0.9, 1.3, "red"),  # more loss than the noise allows
        (0.9, -0.5, 0.9, "red"),  # slower
        (0.6, -0.5, 1.3, "amber"),
        (0.4, -0.5, 1.3, "red"),
    ],
)
def test_light_after_training_needs_the_promise_and_the_measured_loss(
    chance: float, difference: float, ratio: float, colour: str
) -> None:
    made = recommend_trained(
        {"name": "a", "difference": difference, "noise": 0.8},
        baseline="llama-3.2-1b", conclusion="told", probability=chance, ratio=ratio, confidence=0.8,
    )  # fmt: skip
    assert made.light.colour == colour
    assert made.reason == "told"
