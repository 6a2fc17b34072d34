"""The sentences of a card that compare: verdicts of the same bars paired by day.

They are corrected for how many were compared (Holm, 1979).

The rule is docs/models.md, L14.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.report.metrics import is_credible
from tracepaper.storage.checkpoints import Card

LEVEL: Final = 0.05
"""A difference is credible below it."""
FEW_DAYS: Final = 30
"""Below so many untouched days nothing is proven: their own errors are hardly known."""
MAJORITY: Final = "majority_sign"
"""The baseline of a sign: always the sign that most of the judged bars had."""
PAIRED: Final = "paired"
"""``[figures.paired]``: by horizon, loss and other, [difference, error, p]; less is better."""


def card_sentences(card: Mapping[str, Any]) -> list[str]:
    """List what *card* says of itself; nothing of none."""
    return msgspec.convert(card, Card).honesty.sentences if card else []


def compared_sentences(figures: Mapping[str, Any], horizon: int, forecaster: str) -> list[str]:
    """Say how sign and volatility of *forecaster* compare at *horizon*, in bars.

    *figures* are a card's, with those that are paired; without a baseline of the volatility nothing
    is said of it.
    """
    main, paired = figures[str(horizon)], figures[PAIRED][str(horizon)]
    days, sentences = main["days"], []
    if forecaster in main.get("sign_accuracy", {}):
        (right, spread), (majority, _) = (
            main["sign_accuracy"][name] for name in (forecaster, MAJORITY)
        )
        difference, error, p = paired["sign"][MAJORITY]
        sentences.append(
            f"At {horizon} bars it predicted the sign of the return on {100 * right:.1f} % of"
            f" untouched bars ({plus_minus(spread, '.1f', 100)} by days):"
            f" {verdict_of(difference, p, days)} always predicting the more frequent sign"
            f" ({100 * majority:.1f} %; {-100 * difference:+.1f}"
            f" {plus_minus(error, '.1f', 100)} points by day, p {p:.2g})."
        )
    if against := paired.get("qlike"):
        best = min(against, key=lambda name: main["qlike"][name][0])
        difference, error, p = against[best]
        ours, other = (main["qlike"][name][0] for name in (forecaster, best))
        sentences.append(
            f"Its volatility at {horizon} bars is {verdict_of(difference, p, days)} the best "
            f"baseline's (QLIKE {ours:.3f} against {other:.3f} of {best.replace('_', ' ')}; "
            f"{difference:+.4f} {plus_minus(error, '.4f')} by day, p {p:.2g} by Holm over "
            f"{len(against)})."
        )
    return sentences


def verdict_of(difference: float, p: float, days: int) -> str:
    """Return the words before what was compared with; less is better."""
    if days < FEW_DAYS or not p < LEVEL:
        return "level with"
    return "better than" if difference < 0 else "worse than"


def entropy_sentence(gates: Mapping[str, Any]) -> str:
    """Say what the gate of attention's entropy was worth on untouched bars, by a card's figures.

    *gates* are ``[figures.gates]``; empty where they hold nothing of entropy. The days are those of
    the bars that were explained, not of all that were judged.
    """
    surest = gates.get("selective", {}).get("entropy")
    if surest is None:
        return ""
    gained, noise = surest["gained"][2], surest["error"][2]
    days = surest.get("days", 0)  # a card of someone else's may not say
    verb = (
        "beat" if gained > 0 and is_credible(gained, noise) and days >= FEW_DAYS else "did not beat"
    )
    on = f" on {days} days" if days else ""
    return (
        f"The entropy gate {verb} a random gate on the most confident tenth of bars: accuracy "
        f"changed by {100 * gained:+.1f} points ({plus_minus(noise, '.1f', 100)}){on}."
    )


def few_days(days: int) -> list[str]:
    """Return the sentence that *days* are too few, where they are."""
    few = f"So few days ({days}) prove nothing: at least {FEW_DAYS} untouched ones are needed."
    return [few] if days < FEW_DAYS else []
