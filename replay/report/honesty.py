"""Sentences of a model's card: comparisons with baselines on the same bars, paired by day.

They are corrected for the number of comparisons (Holm, 1979). The rule is docs/models.md, L14.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tracepaper.replay.document.values import plus_minus, signed_estimate
from tracepaper.replay.report.metrics import is_credible
from tracepaper.storage.checkpoints import Card
from tracepaper.strategies.units import percent

LEVEL: Final = 0.05
"""A difference with a smaller p value is credible."""
FEW_DAYS: Final = 30
"""Below so many untouched days nothing is proven: their own errors are hardly known."""
MAJORITY: Final = "majority_sign"
"""The baseline of a sign: always the sign that most of the judged bars had."""
PAIRED: Final = "paired"
"""``[figures.paired]``: by horizon, loss and reference, [difference, error, p]; less is better."""

YEARS: Final = "years"
"""``[figures.years]``: by horizon, the ``rival`` and by year [difference, error, p, days]."""
HARS: Final = ("har", "har_rolling", "har_pooled")
"""The baselines that a forecast of volatility must beat: each is a regression of few columns."""


def card_sentences(card: Mapping[str, Any]) -> list[str]:
    """Return the caveats of *card*; none for an empty card."""
    return msgspec.convert(card, Card).honesty.sentences if card else []


def compared_sentences(figures: Mapping[str, Any], horizon: int, forecaster: str) -> list[str]:
    """Return sentences that compare *forecaster*'s sign and volatility at *horizon*, in bars.

    *figures* are those of a card, with ``paired``. Without a volatility baseline there is no
    sentence on volatility.
    """
    main, paired = figures[str(horizon)], figures[PAIRED][str(horizon)]
    days, sentences = main["days"], []
    has_signs = forecaster in main.get("sign_accuracy", {})
    if has_signs and MAJORITY not in paired.get("sign", {}):
        sentences.append(
            f"No untouched bar's price moved within {horizon} bars: no sign was judged."
        )
    elif has_signs:
        (right, spread), (majority, _) = (
            main["sign_accuracy"][name] for name in (forecaster, MAJORITY)
        )
        difference, error, p = paired["sign"][MAJORITY]
        sentences.append(
            f"At {horizon} bars it predicted the sign of the return on {percent(right, 1)} of"
            f" untouched bars ({plus_minus(spread, '.1f', 100, ' by days')}):"
            f" {verdict_of(difference, p, days)} always predicting the more frequent sign"
            f" ({percent(majority, 1)};"
            f" {signed_estimate(-difference, error, '.1f', 100, ' points by day')}, p {p:.2g})."
        )
    baselines = {
        name: comparison
        for name, comparison in paired.get("qlike", {}).items()
        if None not in (comparison[0], main["qlike"][name][0], main["qlike"][forecaster][0])
    }
    if baselines:
        best = min(baselines, key=lambda name: main["qlike"][name][0])
        difference, error, p = baselines[best]
        ours, other = (main["qlike"][name][0] for name in (forecaster, best))
        sentences.append(
            f"Its volatility at {horizon} bars is {verdict_of(difference, p, days)} the best "
            f"baseline's (QLIKE {ours:.3f} against {other:.3f} of {best.replace('_', ' ')}; "
            f"{signed_estimate(difference, error, '.4f', unit=' by day')}, p {p:.2g} by Holm over "
            f"{len(baselines)})."
        )
    return [*sentences, *_years_sentences(figures.get(YEARS, {}).get(str(horizon), {}), horizon)]


def _years_sentences(years: Mapping[str, Any], horizon: int) -> list[str]:
    """Return a sentence on the QLIKE of each year beside the best HAR's, and the last gain."""
    by_year = {year: figures for year, figures in years.items() if year != "rival"}
    if not by_year:
        return []
    each = ", ".join(
        f"{difference:+.4f} in {year} ({days} days, too few for an error)"
        if error is None
        else f"{signed_estimate(difference, error, '.4f')} in {year} ({days} days)"
        for year, (difference, error, _, days) in by_year.items()
    )
    gains = [
        year
        for year, (difference, _, p, days) in by_year.items()
        if verdict_of(difference, p, days) == "better than"
    ]
    last = f"a gain was last seen in {max(gains)}" if gains else "no year shows a gain"
    rival = years["rival"].replace("_", " ")
    sentence = (
        f"Against {rival}, a HAR that knows the hour of day, its QLIKE at {horizon} bars differs "
        f"by {each}; less is better, and {last}."
    )
    return [sentence]


def verdict_of(difference: float, p: float, days: int) -> str:
    """Return the verdict of a comparison; a negative difference is better.

    Few days prove nothing good of a model; what is bad in all of them is said.
    """
    if not p < LEVEL or (difference < 0 and days < FEW_DAYS):
        return "level with"
    return "better than" if difference < 0 else "worse than"


def entropy_sentence(gates: Mapping[str, Any]) -> str:
    """Return a sentence on the value of the entropy gate on untouched bars.

    *gates* is a card's ``[figures.gates]``; the sentence is empty without figures of entropy. The
    days are those of the explained bars, not of all judged bars.
    """
    surest = gates.get("selective", {}).get("entropy")
    if surest is None:
        return ""
    gained, noise = surest["gained"][2], surest["error"][2]
    days = surest.get("days", 0)  # a card from elsewhere may lack it
    verb = (
        "beat" if gained > 0 and is_credible(gained, noise) and days >= FEW_DAYS else "did not beat"
    )
    on = f" on {days} days" if days else ""
    return (
        f"The entropy gate {verb} a random gate on the most confident tenth of bars: accuracy "
        f"changed by {100 * gained:+.1f} points ({plus_minus(noise, '.1f', 100)}){on}."
    )


def few_days(days: int) -> list[str]:
    """Return a sentence that *days* are too few, if they are."""
    few = f"So few days ({days}) prove nothing: at least {FEW_DAYS} untouched ones are needed."
    return [few] if days < FEW_DAYS else []
