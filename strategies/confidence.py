"""What a fitted confidence looks at: inputs read from one forecast, each declared once.

Entropies are those of every layer and head, which an explanation carries. An input that should rise
with confidence is marked, and its weight is never below zero.

The rules are docs/decisions.md, G32 and G33.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from tracepaper.strategies.fitted import FittedConfidence
from tracepaper.strategies.types import Explanation, Forecast

Reader = Callable[[Forecast, int], float | None]
"""``(forecast, place of the horizon) -> value``; None where it is not known."""
HEAD: Final = "entropy_"
"""The name of a head's entropy confidence, before its number (layer-major)."""
_FLOAT_BYTES: Final = 4


class ConfidenceInput(Struct, frozen=True):
    """One input of the fitted confidence."""

    read: Reader
    rises: bool  # more of it never means less confidence in the sign
    of_attention: bool


def mean_over_stdev(forecast: Forecast, at: int) -> float | None:
    """Return abs(mean) ÷ standard deviation of the return to the horizon."""
    return abs(forecast.mean_return[at]) / forecast.stdev_return[at]


def margin(forecast: Forecast, at: int) -> float | None:
    """Return the distance of the two directions' probabilities over their sum."""
    up, down = forecast.p_up[at], forecast.p_down[at]
    return abs(up - down) / (up + down) if up + down > 0 else None


def _of_attention(read: Callable[[Explanation], float | None]) -> ConfidenceInput:
    def known(forecast: Forecast, at: int) -> float | None:  # noqa: ARG001 - of every horizon
        return None if forecast.explanation is None else read(forecast.explanation)

    return ConfidenceInput(known, rises=False, of_attention=True)


def _excess(explanation: Explanation) -> float | None:
    if explanation.confidence is None or explanation.content_free is None:
        return None
    return explanation.confidence - explanation.content_free


INPUTS: Final = {
    "mean_over_stdev": ConfidenceInput(mean_over_stdev, rises=True, of_attention=False),
    "margin": ConfidenceInput(margin, rises=True, of_attention=False),
    "excess": _of_attention(_excess),
    "shift": _of_attention(lambda explanation: explanation.shift),
    "recent_mass": _of_attention(lambda explanation: explanation.recent_mass),
}
"""Every input but the heads' entropies, by its name."""


def heads_of(explanation: Explanation | None) -> tuple[float, ...]:
    """Return the entropy confidence of every layer and head, layer-major; none of other models."""
    if explanation is None:
        return ()
    return struct.unpack(f"<{len(explanation.entropy) // _FLOAT_BYTES}f", explanation.entropy)


def names_for(forecast: Forecast) -> tuple[str, ...]:
    """Return the names of the inputs that forecasts like this one give."""
    explained = forecast.explanation is not None
    plain = [name for name, one in INPUTS.items() if explained or not one.of_attention]
    return (*plain, *(f"{HEAD}{i}" for i in range(len(heads_of(forecast.explanation)))))


def is_of_attention(name: str) -> bool:
    """Return whether the input *name* comes from the attention."""
    return name not in INPUTS or INPUTS[name].of_attention


def rises(name: str) -> bool:
    """Return whether more of the input *name* never means less confidence in the sign."""
    return name in INPUTS and INPUTS[name].rises


def is_known(name: str) -> bool:
    """Return whether *name* is that of an input."""
    return name in INPUTS or (name.startswith(HEAD) and name.removeprefix(HEAD).isdecimal())


def values_of(names: Sequence[str], forecast: Forecast, at: int) -> list[float | None]:
    """Return the inputs *names* at the horizon in place *at*; None for what is not known."""
    heads = heads_of(forecast.explanation)
    found: list[float | None] = []
    for name in names:
        if (one := INPUTS.get(name)) is not None:
            found.append(one.read(forecast, at))
        else:
            number = int(name.removeprefix(HEAD))
            found.append(heads[number] if number < len(heads) else None)
    return found


def sign_confidence(fitted: FittedConfidence, forecast: Forecast, at: int) -> float | None:
    """Return the fitted probability that the sign of the mean is right."""
    return fitted.sign.probability(values_of(fitted.sign.names, forecast, at))


def volatility_confidence(fitted: FittedConfidence, forecast: Forecast, at: int) -> float | None:
    """Return the fitted probability that the volatility's error is under its median."""
    return fitted.volatility.probability(values_of(fitted.volatility.names, forecast, at))


def size_factor(fitted: FittedConfidence, forecast: Forecast | None, at: int) -> float:
    """Return what a size is multiplied by, in (0, 1]: 1 ÷ the widening of the interval.

    It is 1 where the forecast is surer than usual, and where nothing is known.
    """
    if forecast is None:
        return 1.0
    sure = volatility_confidence(fitted, forecast, at)
    return 1.0 if sure is None else min(1.0, 1.0 / fitted.spread_of(sure))
