"""Strategies of runs that tests record and cut."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from builders import present
from msgspec import Struct

from tracepaper.replay.archive import Candles
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    Volatility,
    buy,
    sell,
)
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.examples.pair import Pair
from tracepaper.strategies.types.decisions import Action

SIDES = (Action.LONG, Action.LONG, Action.SHORT, Action.HOLD, Action.SHORT, Action.FLAT)


class ProtectedTurns(Strategy):
    """Change side every few bars; enter, add, carry and reverse under every kind of exit."""

    warmup = 20

    def __init__(self, options: dict[str, int]) -> None:
        self.bars = options["bars"]

    def decide(self, now: BarContext) -> Signal:
        turn = now.exact.open_time_ms // 60_000 // self.bars
        action = SIDES[turn % len(SIDES)]
        if action in (Action.HOLD, Action.FLAT):
            return Signal(action, "as the turn says")
        trailing = (None, 25.0, Percent(0.05), Volatility(0.5))[turn % 4]
        side = 1 if action is Action.LONG else -1
        return Signal(
            action,
            "as the turn says",
            strength=(0.5, 1.0)[turn % 2],
            stop=now.close - side * 60.0 if turn % 3 else None,
            target=Percent(0.1) if turn % 5 else None,
            trailing=trailing,
            reenter=turn % 7 == 0,
        )


class Turns(Strategy):
    """Long and short in turn, always in full."""

    warmup = 5

    def __init__(self, options: dict[str, int]) -> None:
        self.bars = options["bars"]

    def decide(self, now: BarContext) -> Signal:
        turn = now.exact.open_time_ms // 60_000 // self.bars
        return Signal(Action.LONG if turn % 2 else Action.SHORT, "as the turn says")


class Imbalance(Strategy):
    """Long where more is bid than asked at the best levels of the newest books, else flat."""

    books = 10

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, now: BarContext) -> Signal:
        books = now.depth
        if books is None or len(books) < self.books:
            return Signal(Action.HOLD, "too few books")
        bid, ask = books.size[:, :, 0].sum(axis=0).tolist()
        note = {"bid": float(bid), "ask": float(ask), "last_ms": float(books.seen_ms[-1])}
        return Signal(Action.LONG if bid > ask else Action.FLAT, "as the books stand", note=note)


class Rolls(Strategy):
    """Signals and orders by dice that follow from the bar and the fills, some under a stop."""

    warmup = 2
    sees_account = True

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal | Orders:
        place = ord(context.symbol[0]) + 10 * len(present(context.account).fills)
        roll = random.Random(context.exact.open_time_ms // 1_000 + place).random()
        if roll < 0.5:
            return Signal(Action.HOLD, "dice")
        if roll < 0.6:
            return Orders((buy(1, limit=round(context.close * 0.99, 1)),), "dice")
        action = (Action.LONG, Action.SHORT, Action.LONG, Action.FLAT)[int(roll * 1_000) % 4]
        stop = Percent(30) if roll > 0.9 and action is not Action.FLAT else None
        return Signal(action, "dice", stop=stop)


class Scatter(Strategy):
    """Orders of every kind, as the close says: a function of the last bar alone."""

    warmup = 1
    shadows = ("ungated",)

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal | Orders:
        turn = context.exact.close // 10 % 6
        near, far = round(context.close * 0.9995, 1), round(context.close * 1.0005, 1)
        requests: tuple[OrderRequest | Cancel, ...]
        match turn:
            case 0:
                return Signal(Action.HOLD, "waits")
            case 1:
                requests = buy(0.01, limit=near, tag="low"), sell(0.01, limit=far, tag="high")
            case 2:
                requests = (buy(0.01), sell(1, stop=near, reduce_only=True, tag="stop"))
            case 3:
                requests = sell(0.02, limit=far, reduce_only=True), buy(0.01, stop=far, tag="up")
            case 4:
                requests = Cancel("low"), sell(0.01, limit=far, post_only=True, tag="high")
            case _:
                requests = (
                    Cancel(),
                    sell(0.01, stop=near, limit=near, until=context.time + 180_000),
                )
        return Orders(requests, f"turn {turn}")


class FramedMean(Strategy):
    """Long above the mean of the quarters of an hour, where the fives rose."""

    warmup = 3
    frames = ("5", "15")
    frames_warmup = {"15": 4}  # noqa: RUF012 - as a user writes it

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal:
        fives, quarters = context.timeframe("5"), context.timeframe("15")
        above = context.close > quarters.close.mean() and fives.close[-1] > fives.open[0]
        note = {"fives": float(fives.close.sum()), "quarters": float(quarters.close.sum())}
        return Signal(Action.LONG if above else Action.FLAT, "as the quarters say", note=note)


class Openings(Struct):
    """What ``CountingPair`` declares."""

    count: int = 0
    is_open: bool = False
    bars: int = 0


class CountingPair(Pair):
    """Leave out every third opening, by a count that is kept."""

    State = Openings
    state: Openings

    def observe(self, bar: object) -> None:
        self.state.bars += 1

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal]:
        answers = super().decide(contexts)
        actions = {signal.action for signal in answers.values()}
        if Action.LONG in actions and not self.state.is_open:
            self.state.is_open = True
            self.state.count += 1
        elif Action.FLAT in actions:
            self.state.is_open = False
        note: dict[str, Any] = {"opened": self.state.count, "bars": self.state.bars}
        is_out = self.state.count % 3 == 0
        return {
            symbol: Signal(
                Action.FLAT if is_out else signal.action,
                "left out" if is_out else signal.reason,
                note=note,
            )
            for symbol, signal in answers.items()
        }


class Peeks(Strategy):
    """Was handed all candles, and buys before they rise: what a check must find."""

    closes: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    @classmethod
    def hand(cls, candles: Sequence[Candles]) -> None:
        """Hand it the closes of all *candles*."""
        times, closes = candles[0].open_time_ms.tolist(), candles[0].close.tolist()
        cls.closes = list(zip(times, closes, strict=True))

    def decide(self, context: BarContext) -> Signal:
        later = [close for at, close in self.closes if at > context.exact.open_time_ms]
        rises = any(close > context.exact.close for close in later[4:5])
        return Signal(Action.LONG if rises else Action.FLAT, "it will rise")
