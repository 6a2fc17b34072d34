"""The sentences of a card that compare: derived from its figures whenever the card is shown.

A model's id covers its card, so stored cards keep their bytes, and with them sentences that set one
point estimate beside another. What is shown instead is a verdict of the same bars paired by day,
corrected for how many were compared (Holm, 1979); a card without such figures says so.

The rule is docs/models.md, L14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.report.metrics import is_credible

LEVEL: Final = 0.05
"""A difference is credible below it."""
FEW_DAYS: Final = 30
"""Below so many untouched days nothing is proven: their own errors are hardly known."""
COMMONER: Final = "commoner_sign"
"""The reference of a sign: always that which most of the judged bars had."""
PAIRED: Final = "paired"
"""``[figures.paired]``: by horizon, loss and other, [difference, error, p]; less is better."""
_EVALUATE: Final = "tracepaper evaluate compares them"
_VOLATILITY: Final = re.compile(
    r"Its volatility at (\d+) bars is .*\(QLIKE ([\d.]+) against ([\d.]+) of (.+?)[;)]"
)
_SIGN: Final = re.compile(r"At (\d+) bars it named the sign of the return in ([^;]*)[;.]")


def shown_sentences(card: Mapping[str, Any]) -> list[str]:
    """List what *card* says of itself, with what compares derived from its figures."""
    found, figures = [], card.get("figures", {})
    for sentence in card.get("honesty", {}).get("sentences", []):
        if known := _VOLATILITY.match(sentence):
            found.append(_volatility(figures, *known.groups()))
        elif known := _SIGN.match(sentence):
            found.append(_sign(figures, *known.groups()))
        else:
            # Older cards name the option as it was called then.
            found.append(sentence.replace("evaluate --spans", "evaluate --holdout"))
    return found


def compared_sentences(figures: Mapping[str, Any], horizon: int, own: str) -> list[str]:
    """Say how sign and volatility of the forecaster *own* compare at *horizon*, in bars.

    *figures* are a card's, with those that are paired; without a baseline of the volatility nothing
    is said of it.
    """
    main, paired = figures[str(horizon)], figures[PAIRED][str(horizon)]
    found = []
    if own in main.get("sign_accuracy", {}):
        named, error = main["sign_accuracy"][own]
        found.append(sign_sentence(figures, horizon, _named(named, error)))
    if paired.get("qlike"):
        found.append(volatility_sentence(figures, horizon, main["qlike"][own][0]))
    return found


def sign_sentence(figures: Mapping[str, Any], horizon: int, named: str) -> str:
    """Set a share of signs that were *named* right beside always the commoner sign."""
    main = figures[str(horizon)]
    difference, error, p = figures[PAIRED][str(horizon)]["sign"][COMMONER]
    verdict = verdict_of(difference, p, main["days"])
    return (
        f"At {horizon} bars it named the sign of the return in {named}: {verdict} always the "
        f"commoner sign ({100 * main['sign_accuracy'][COMMONER][0]:.1f} %; "
        f"{-100 * difference:+.1f} {plus_minus(error, '.1f', 100)} points by day, p {p:.2g})."
    )


def volatility_sentence(figures: Mapping[str, Any], horizon: int, ours: float) -> str:
    """Set a volatility's QLIKE beside that of the best of its baselines."""
    main, against = figures[str(horizon)], figures[PAIRED][str(horizon)]["qlike"]
    best = min(against, key=lambda name: main["qlike"][name][0])
    difference, error, p = against[best]
    return (
        f"Its volatility at {horizon} bars is {verdict_of(difference, p, main['days'])} the best "
        f"baseline's (QLIKE {ours:.3f} against {main['qlike'][best][0]:.3f} of "
        f"{best.replace('_', ' ')}; {difference:+.4f} {plus_minus(error, '.4f')} by day, p {p:.2g} "
        f"by Holm over {len(against)})."
    )


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
    surest = gates.get("selective", {}).get("entropy_confidence")
    if surest is None:
        return ""
    gained, noise = surest["gained"][2], surest["error"][2]
    days = surest.get("days", 0)  # a card of someone else's may not say
    verb = (
        "beat" if gained > 0 and is_credible(gained, noise) and days >= FEW_DAYS else "did not beat"
    )
    on = f" on {days} days" if days else ""
    return (
        f"The entropy gate {verb} a random gate on the surest tenth of bars: accuracy changed by "
        f"{100 * gained:+.1f} points ({plus_minus(noise, '.1f', 100)}){on}."
    )


def few_days(days: int) -> list[str]:
    """Return the sentence that *days* are too few, where they are."""
    few = f"So few days ({days}) prove nothing: at least {FEW_DAYS} untouched ones are needed."
    return [few] if days < FEW_DAYS else []


def _named(value: float, error: float) -> str:
    return f"{100 * value:.1f} % of untouched bars ({plus_minus(error, '.1f', 100)} by days)"


def _volatility(figures: Mapping[str, Any], horizon: str, ours: str, best: str, name: str) -> str:
    if figures.get(PAIRED, {}).get(horizon, {}).get("qlike"):
        return volatility_sentence(figures, int(horizon), float(ours))
    return (
        f"Its volatility at {horizon} bars has a QLIKE of {ours}, the best baseline's is {best} "
        f"({name}); the card keeps no difference by day, so it does not say that either is better: "
        f"{_EVALUATE}."
    )


def _sign(figures: Mapping[str, Any], horizon: str, named: str) -> str:
    if COMMONER in figures.get(PAIRED, {}).get(horizon, {}).get("sign", {}):
        return sign_sentence(figures, int(horizon), named.partition(":")[0])
    return (
        f"At {horizon} bars it named the sign of the return in {named}; the card keeps nothing to "
        f"hold that against, such as always the commoner sign: {_EVALUATE}."
    )
