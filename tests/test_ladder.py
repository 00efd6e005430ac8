import numpy as np
import pytest

from trainers.ladder import plan_ladder
from trainers.rungs import Grid, Rung


def test_first():
    ladder = plan_ladder([Rung(parameters=100_000, shapes=8)], grid=Grid())
    assert len(ladder.points()) == 16
    assert np.all(np.abs(ladder.points()["n_non_embedding"] / 1e5 - 1) <= 0.02)
    with pytest.raises(ValueError, match="budget"):
        ladder.require_affordable(1.0)
