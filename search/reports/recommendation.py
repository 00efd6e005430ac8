"""The recommendation that begins a page, with a traffic light from the stated probability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.proposals.leaders import EVEN_ODDS, MIN_SPEEDUP
from shapelaw.search.proposals.probabilities import probability_text
from shapelaw.search.proposals.proposal import EVEN, FAST, LOSS_OPTIMAL
from shapelaw.search.proposals.request import CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Light:
    """A traffic light, which a mark and a word also show to readers who cannot see its colour."""

    colour: str
    mark: str
    word: str


GREEN = Light(colour="green", mark="●", word="Build")
AMBER = Light(colour="amber", mark="▲", word="Undecided")
RED = Light(colour="red", mark="■", word="Keep the baseline")


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Advice on the shape to build, in one sentence.

    Attributes
    ----------
    sentence
        The first sentence of the page.
    reason
        The numbers behind it.
    rule
        When the light is green, amber or red.
    """

    light: Light
    sentence: str
    reason: str
    rule: str


def light_of(probability: float | None, confidence: float) -> Light:
    """Return the light of a probability: green from the confidence, amber from one half.

    Examples
    --------
    >>> [light_of(p, 0.8).colour for p in (0.8, 0.5, 0.49, None)]
    ['green', 'amber', 'red', 'red']
    """
    if probability is None or probability < EVEN_ODDS:
        return RED
    return GREEN if probability >= confidence else AMBER


def confidence_of(about: Mapping[str, Any]) -> float:
    """Return the probability that a search demanded of "no more loss"."""
    return float(about.get("confidence", CONFIDENCE))


def recommend_proposal(
    rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> Recommendation:
    """Recommend the baseline or a shape that a search named.

    The shape is the fastest of those with the best light, among the shapes with a role that are
    faster than the baseline.

    Parameters
    ----------
    rows, about
        Content of ``proposals.json``.
    """
    confidence, baseline = confidence_of(about), str(about.get("baseline", "the baseline"))
    rule = (
        f"Green: a shape that is faster than the baseline has at least {confidence:g} probability "
        f"of less loss (--confidence). Amber: at least {EVEN_ODDS:g}. Red: no faster shape reaches "
        "that. The probability is that of the law, untested by training."
    )
    if all(row.get("p_less_loss") is None for row in rows):
        reason = "No probabilities are recorded: write the proposals again."
        sentence = f"Undecided between {baseline} and the other shapes."
        return Recommendation(light=AMBER, sentence=sentence, reason=reason, rule=rule)
    named = [row for row in rows if row["role"] in (LOSS_OPTIMAL, FAST, EVEN)]
    faster = [row for row in named if (row.get("speedup") or 0.0) > MIN_SPEEDUP]
    for light in (GREEN, AMBER):
        lit = [r for r in faster if light_of(r.get("p_less_loss"), confidence) is light]
        if lit:
            row = max(lit, key=lambda row: float(row["speedup"]))
            sentence = f"Build {row['name']} instead of {baseline}."
            if light is AMBER:
                sentence = f"Undecided between {row['name']} and {baseline}: train both to decide."
            return Recommendation(light=light, sentence=sentence, reason=_odds(row), rule=rule)
    reason = "No listed shape is faster at even odds of less loss."
    best = next((row for row in named if row["role"] == LOSS_OPTIMAL), None)
    if best is not None and light_of(best.get("p_less_loss"), confidence) is GREEN:
        reason = f"Less loss costs speed. {_odds(best)}"
    return Recommendation(light=RED, sentence=f"Keep {baseline}.", reason=reason, rule=rule)


def _odds(row: Mapping[str, Any]) -> str:
    """Write the speed of a row and its probability of less loss."""
    chance, fits = row["p_less_loss"], row.get("printed_fits")
    stated = f"with probability {probability_text(chance)}"
    if fits is not None:
        stated = f"in {chance * fits:g} of {fits} printed fits"
    speed = "an unknown speed"
    if row.get("speedup") is not None:
        speed = f"{row['speedup']:.2f} times the tokens per second of the baseline"
    kind = row.get("throughput_kind")
    source = f" ({'estimated' if kind == TIME_MODEL else kind})" if kind else ""
    return f"{row['name']} has {speed}{source}, and less loss {stated}."


def recommend_trained(
    row: Mapping[str, Any],
    *,
    baseline: str,
    conclusion: str,
    probability: float,
    ratio: float,
    confidence: float,
) -> Recommendation:
    """Recommend the baseline or a shape, which were both trained.

    Parameters
    ----------
    row
        Shape with the ``difference`` of its measured loss from the baseline's and the ``noise`` of
        that difference, both in per cent.
    conclusion
        What the search promised and what training gave.
    probability
        Probability of the promise before training.
    ratio
        Measured speed over the baseline's.
    """
    rule = (
        f"Green: the promise had at least {confidence:g} probability before training (--confidence)"
        f", and the trained loss is not above the baseline's. Amber: at least {EVEN_ODDS:g}, or "
        "the trained loss is above the baseline's within the noise. Red: the probability was "
        "lower, the trained loss is above by more than the noise, or the shape is not faster."
    )
    light, name = light_of(probability, confidence), row["name"]
    refuted = row["difference"] > row["noise"] or ratio <= 1
    if refuted or light is RED:
        return Recommendation(light=RED, sentence=f"Keep {baseline}.", reason=conclusion, rule=rule)
    if light is AMBER or row["difference"] > 0:
        sentence = f"Undecided between {name} and {baseline}: train more seeds of both to decide."
        return Recommendation(light=AMBER, sentence=sentence, reason=conclusion, rule=rule)
    sentence = f"Build {name} instead of {baseline}."
    return Recommendation(light=GREEN, sentence=sentence, reason=conclusion, rule=rule)
