"""The time left of a chain of stages, from a forecast and from the work measured so far."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FORECAST_WEIGHT = 30.0  # seconds of measured work that weigh as much as the forecast
MAX_RISE = 1.1  # factor by which the estimate may rise from one update to the next
SAME_WORK = {"confirmation": "proxies"}  # stages with the same kind of work as another stage


@dataclass
class TimeLeft:
    """An estimate of the seconds until the last stage ends.

    The work of a stage is its forecast in seconds. The *pace* of a kind of work is the ratio of
    measured to forecast seconds with :data:`FORECAST_WEIGHT` added to both, so that it begins at 1
    and a slow start changes it only a little.

    Attributes
    ----------
    forecast
        Expected seconds of each stage, in the order of the stages.
    clock
        Returns the time in seconds.
    """

    forecast: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.first_share: dict[str, float] = {}
        self.share: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.shown = float("inf")

    def update(self, stage: str, share: float) -> float:
        """Record that a share of a stage is done and return the estimate in seconds."""
        now = self.clock()
        if share > 0:  # the share that an earlier process did took no seconds here
            self.first_share.setdefault(stage, share)
        self.seconds[stage] = now - self.begun.setdefault(stage, now)
        self.share[stage] = share
        left = sum(
            (1 - self.share.get(name, 0.0)) * work * self._pace(name)
            for name, work in self.forecast.items()
        )
        self.shown = min(left, MAX_RISE * self.shown)
        return self.shown

    def finish(self, stage: str) -> float:
        """Record the end of a stage and return the seconds that it took here."""
        self.update(stage, 1.0)
        return self.seconds[stage]

    def _pace(self, stage: str) -> float:
        """Return measured over forecast seconds for the kind of work of a stage."""
        kind = SAME_WORK.get(stage, stage)
        measured = forecast = FORECAST_WEIGHT
        for name, seconds in self.seconds.items():
            if SAME_WORK.get(name, name) == kind:
                measured += seconds
                done = self.share[name] - self.first_share.get(name, self.share[name])
                forecast += done * self.forecast.get(name, 0.0)
        return measured / forecast
