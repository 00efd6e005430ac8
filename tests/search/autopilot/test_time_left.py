"""Estimates of the time left on a simulated clock."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from shapelaw.search.autopilot.time_left import MAX_RISE, TimeLeft

FORECAST = {"corpus": 3.0, "proxies": 300.0, "law": 12.0, "search": 40.0, "confirmation": 150.0}
JUMP = 1.2  # ratio of two successive estimates that a user sees as a jump


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulated(
    pace: float, step: float, startup: float = 0.0, first: float = 0.0
) -> Iterator[tuple[float, float]]:
    """Yield estimated and true seconds left at every update of a chain with a constant pace.

    ``startup`` seconds of each stage bring no progress; the proxies begin at the share ``first``.
    """
    clock = Clock()
    estimate = TimeLeft(FORECAST, clock)
    truth = {name: startup + pace * work for name, work in FORECAST.items()}
    truth["proxies"] -= first * pace * FORECAST["proxies"]
    ends = 100.0 + sum(truth.values())
    for name, work in FORECAST.items():
        begun, shares = clock.now, first if name == "proxies" else 0.0
        yield estimate.update(name, 0.0), ends - clock.now
        while clock.now < begun + truth[name]:
            done = max(0.0, clock.now - begun - startup) / (pace * work)
            yield estimate.update(name, shares + done), ends - clock.now
            clock.now = min(clock.now + step, begun + truth[name])
        assert estimate.finish(name) == pytest.approx(truth[name])


@pytest.mark.parametrize("pace", [0.3, 1.0, 3.3])
@pytest.mark.parametrize("step", [1.0, 7.0, 20.0])
@pytest.mark.parametrize("startup", [0.0, 10.0])
def test_estimate_at_a_constant_rate_never_jumps_up(
    pace: float, step: float, startup: float
) -> None:
    shown = [estimate for estimate, _ in simulated(pace, step, startup)]
    rises = [after / before for before, after in pairwise(shown)]
    assert max(rises) <= MAX_RISE + 1e-9 < JUMP
    assert len(rises) > 5


@pytest.mark.parametrize("pace", [0.3, 1.0, 3.3])
@pytest.mark.parametrize("first", [0.0, 0.6])
def test_estimate_comes_near_the_truth_before_half_of_the_time_is_over(
    pace: float, first: float
) -> None:
    seen = list(simulated(pace, 1.0, first=first))
    whole = seen[0][1]
    late = [(estimate, left) for estimate, left in seen if 0.2 * whole < left < 0.5 * whole]
    assert len(late) > 10
    assert all(0.5 * left < estimate < 2.0 * left for estimate, left in late)


def test_pace_of_the_proxies_corrects_the_confirmation() -> None:
    clock = Clock()
    estimate = TimeLeft({"proxies": 600.0, "confirmation": 600.0}, clock)
    before = estimate.update("proxies", 0.0)
    for share in range(1, 101):
        clock.now += 18.0
        estimate.update("proxies", share / 100)
    estimate.finish("proxies")
    after = estimate.update("confirmation", 0.0)
    assert before == 1200.0
    assert after == pytest.approx(3 * 600.0, rel=0.05)


def test_estimate_without_a_forecast_is_zero() -> None:
    assert TimeLeft().update("corpus", 0.5) == 0.0
