"""Parts of a fit that its saved document describes by name and type."""

from typing import TypedDict


class Effect(TypedDict):
    """Change of ln loss over the runs by a factor, with its 95 % interval."""

    size: float
    low: float
    high: float


class Basin(TypedDict):
    """A local optimum: its objective, and the number of starts that reach it."""

    objective: float
    starts: float


class ParameterEnds(TypedDict):
    """Ends of the 95 % interval of a parameter, and its open sides: below, above, both or none."""

    low: float
    high: float
    open: str


class PriorNote(TypedDict):
    """Prior of a parameter in its coordinate, and the share of its variance that is left."""

    mean: float
    deviation: float
    source: str
    share_left: float
