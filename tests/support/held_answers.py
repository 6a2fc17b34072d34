"""Answers about candles that a test holds back, so that symbols wait in their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from waiting import until

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed import warming
from tracepaper.strategies.types.market import Bar, Instrument


class HeldAnswers:
    """Which questions about candles are answered: all but those that ``holds`` says of.

    It is asked with a symbol and the number of its question. An answer has *page* candles, and
    *before* of them are awaited before the first decision.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, page: int, before: int) -> None:
        self.questions: Counter[str] = Counter()  # by symbol
        self.given: Counter[str] = Counter()
        self.holds: Callable[[str, int], bool] = lambda _name, _number: False
        answered, self_ = BybitClient.candles, self

        async def candles(
            client: BybitClient, item: Instrument, interval_ms: int, start_ms: int, end_ms: int
        ) -> list[Bar]:
            name = item.symbol
            self_.questions[name] += 1
            number = self_.questions[name]
            await until(lambda: not self_.holds(name, number), poll_s=0.001)
            answer = await answered(client, item, interval_ms, start_ms, end_ms)
            self_.given[name] += 1
            return answer

        monkeypatch.setattr(BybitClient, "candles", candles)
        monkeypatch.setattr(BybitClient, "candles_max", page)
        monkeypatch.setattr(warming, "BEFORE_START", before)

    def limit(self, **limits: int) -> None:
        """Answer so many questions of each of these symbols, and all of the others."""
        self.holds = lambda name, number: number > limits.get(name, number)
