"""Runs with and without an edge over walks of noise, for the tests of what is left of them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from exchange_client import candles as made_candles

from tracepaper import Action, Signal, Strategy, backtest
from tracepaper.replay.archive import Candles
from tracepaper.replay.run import Run
from tracepaper.strategies.api.context import BarContext
from tracepaper.strategies.units import HOUR_MS

COINS = ("AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT", "EEEUSDT", "FFFUSDT")
FREE = {"taker_fee": "0", "maker_fee": "0"}


class Tossed(Strategy):
    """Tosses a coin for each symbol every eighth bar."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._seed = int(options.get("seed", 0))

    def decide(self, now: BarContext) -> Signal:
        place = now.exact.open_time_ms // HOUR_MS
        if place % 8:
            return Signal(Action.HOLD, "until the next toss")
        heads = Random(f"{self._seed}{now.exact.instrument}{place}").random() < 0.5
        return Signal(Action.LONG if heads else Action.SHORT, "tossed")


class Told(Strategy):
    """Knows each symbol's drift: up on the first half of each day, down on the second.

    Its ``code`` is lucky: with any other it has the sides the wrong way round.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._hours = int(options.get("hours", 12))
        self._is_wrong = options.get("code", 40) != 40

    def decide(self, now: BarContext) -> Signal:
        hour = now.exact.open_time_ms // HOUR_MS % 24
        is_long = (hour < self._hours) is not self._is_wrong
        return Signal(Action.LONG if is_long else Action.SHORT, "told")


def walks(seed: int, symbols: tuple[str, ...] = COINS, *, drift: float = 0.0) -> list[Candles]:
    """Return 900 hours of each symbol, as noise with a *drift* that turns twice a day."""
    draw = np.random.default_rng(seed)
    hours = np.arange(900)
    signs = np.where(hours % 24 < 12, 1.0, -1.0)
    walked = []
    for symbol in symbols:
        moves = draw.normal(0.0, 0.006, hours.size) + drift * signs
        closes = np.round(60_000_00 * np.exp(np.cumsum(moves))).astype(int)
        opens = np.concatenate(([60_000_00], closes[:-1]))
        rows = [
            (int(first), int(max(first, last)) + 1, int(min(first, last)) - 1, int(last), 90_000)
            for first, last in zip(opens, closes, strict=True)
        ]
        walked.append(made_candles(rows, symbol=symbol, interval_ms=HOUR_MS))
    return walked


def run_of(strategy: type, candles: list[Candles], database: Path, **options: Any) -> Run[Any]:
    config = {
        "sizing": {"mode": "equity", "fraction": "0.1"},
        "execution": options.pop("execution", FREE),
        "market": {"interval": "60"},
    }
    return backtest(strategy, candles, params=options, config=config, db=database, progress=False)
