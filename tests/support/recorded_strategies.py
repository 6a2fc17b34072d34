"""Strategies of runs that tests record and cut."""

from tracepaper.strategies.api.context import BarContext, Percent, Signal, Volatility
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types import Action

SIDES = (Action.LONG, Action.LONG, Action.SHORT, Action.HOLD, Action.SHORT, Action.FLAT)


class Protected(Strategy):
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
        return Signal(Action.LONG if bid > ask else Action.FLAT, "as the books stand")
