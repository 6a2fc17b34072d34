"""Whether two answers of the program say the same, on any machine."""

from __future__ import annotations

import re
from typing import Final

_RANDOM: Final = re.compile(r"\b(?:[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{64})\b")
_SECONDS: Final = re.compile(r"\b\d[\d,.]* s\b")
_CHART: Final = re.compile(r"[▏▎▍▌▋▊▉█─╭╮╰╯│]+")
_NUMBER: Final = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def plain(text: str) -> str:
    """Return *text* without what differs between two runs or two machines: ids, times, charts."""
    for pattern, instead in ((_RANDOM, "<id>"), (_SECONDS, "<time> s"), (_CHART, " ")):
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def agree(printed: str, answer: str, *, within: float) -> bool:
    """Return whether two answers have the same words, and numbers that differ by so little.

    *within* is relative: a network's forecasts differ in their last digits between processors.
    """
    printed, answer = plain(printed), plain(answer)
    if _NUMBER.sub("#", printed) != _NUMBER.sub("#", answer):
        return False
    pairs = zip(_numbers(printed), _numbers(answer), strict=True)
    return all(abs(a - b) <= within * max(abs(a), abs(b)) for a, b in pairs)


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]
