import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.search.autopilot.stopping import StoppingRule

RULE = StoppingRule(certainty=0.9, indifference=0.005, budget_hours=2.0, patience=3)


@pytest.mark.parametrize(
    ("certainties", "hours", "words"),
    [
        ([0.5, 0.9], 0.1, "certainty 0.900 reaches 0.9"),
        ([0.5], 2.0, "budget of 2 core-hours is spent"),
        ([0.6, 0.5, 0.6, 0.55], 0.1, "not risen in 3 decisions"),
    ],
)
def test_rule_gives_its_reason_when_a_limit_is_reached(
    certainties: list[float], hours: float, words: str
) -> None:
    assert words in RULE.reason(certainties, hours)


@pytest.mark.parametrize("certainties", [[0.89], [0.6, 0.5, 0.6], [0.6, 0.5, 0.5, 0.61]])
def test_rule_continues_below_every_limit(certainties: list[float]) -> None:
    assert RULE.reason(certainties, 1.99) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("certainty", value) for value in (0.0, 1.0, -1.0, float("nan"))),
        *(("indifference", value) for value in (0.0, 1.0)),
        *(("budget_hours", value) for value in (0.0, -1.0, float("inf"), float("nan"))),
        ("patience", 0),
    ],
)
def test_rule_refuses_values_out_of_range(name: str, value: float) -> None:
    values = {"certainty": 0.9, "indifference": 0.005, "budget_hours": 1.0, "patience": 3}
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
        StoppingRule(**values | {name: value})  # type: ignore[arg-type]
