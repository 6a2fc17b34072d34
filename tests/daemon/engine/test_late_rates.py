"""A settlement is booked on what was held at its time, whenever its rate comes (M19)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from builders import bar, instrument, quote
from engines import Says, engine_of
from histories import since_decided
from msgspec.structs import replace

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel, Step
from tracepaper.strategies.types.market import (
    Bar,
    Event,
    Funding,
    Gap,
    GapCause,
    InstrumentChange,
    Mark,
    ModelChange,
    Quote,
    Side,
)
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS, RATE_SCALE, divide_half_even

BEGIN_MS: Final = 1_700_006_400_000  # a midnight
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
UNIT: Final = 10**3
"""Money in a price times a quantity, both as integers."""
RESTART: Final = "restart"
Happening = Event | str


class Drawn(Strategy):
    """A side at each bar, drawn by its volume, with a stop."""

    gates = CORE_GATES
    shadows = ("ungated",)

    def decide(self, context: BarContext) -> Signal:
        rng = random.Random(context.exact.volume)
        action = rng.choice((Action.LONG, Action.SHORT, Action.FLAT, Action.HOLD))
        return Signal(action, "drawn", stop=Percent(rng.choice((0.2, 1))))


class Market:
    """A drawn market: its events, with restarts, and the rates of its settlements."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = self.rng.choice((FillModel.QUOTE, FillModel.NEXT_OPEN))
        minutes, hours = self.rng.choice(((5, 1), (15, 4), (120, 8), (120, 1), (120, 1)))
        self.bar_ms, self.due_ms = minutes * MINUTE_MS, hours * HOUR_MS
        self.items = [
            replace(instrument(symbol), funding_interval_minutes=self.due_ms // MINUTE_MS)
            for symbol in SYMBOLS
        ]
        self.events: list[Happening] = [*self.start(BEGIN_MS)]
        self._prices = {item.id: 1_000_000 for item in self.items}
        for place in range(max(self.due_ms * 4 // self.bar_ms, 24)):
            opened_ms = BEGIN_MS + place * self.bar_ms
            for key in self._prices:
                self.events += self._bar(key, opened_ms)
            if self.rng.random() < 0.05:
                self.events.append(RESTART)
        first, last = BEGIN_MS // self.due_ms + 1, (opened_ms + self.bar_ms) // self.due_ms
        self.rates = [
            Funding(key, self.rng.randint(-9, 9) * 10**6, at * self.due_ms, at * self.due_ms)
            for at in range(first, last + 1)
            for key in self._prices
        ]

    def start(self, at_ms: int) -> Iterator[Event]:
        """Yield the events with which a start begins."""
        for item in self.items:
            yield InstrumentChange(item, at_ms, at_ms)
        yield ModelChange("", "", "v", "", "", "", 0, (), at_ms, at_ms)

    def _bar(self, key: str, opened_ms: int) -> Iterator[Event]:
        """Yield the events of a bar; some quotes are newer than its close, and come before it."""
        rng, opened, closed_ms = self.rng, self._prices[key], opened_ms + self.bar_ms
        close = self._prices[key] = opened + rng.randint(-5_000, 5_000)
        if is_missed := rng.random() < 0.1:
            yield Gap(key, opened_ms, closed_ms, GapCause.DOWN, "rest", closed_ms, closed_ms)
        times = [1_000, *(rng.randint(1, self.bar_ms - 1) for _ in range(3))]
        times += [self.bar_ms + 40] * (rng.random() < 0.4)
        for ms in () if is_missed or self.model is FillModel.NEXT_OPEN else sorted(times):
            price = opened + (close - opened) * ms // self.bar_ms
            price += rng.randint(-4_000, 4_000) * (ms > self.bar_ms)
            yield quote(price - 5, price + 5, at_ms=opened_ms + ms, instrument_id=key)
        if rng.random() < 0.4:
            at_ms = closed_ms + rng.choice((-500, 20))
            yield Mark(key, close + rng.randint(-300, 300), at_ms, at_ms)
        yield bar(
            close, open_=opened, open_time_ms=opened_ms, interval_ms=self.bar_ms,
            instrument_id=key, volume=rng.randint(10**8, 10**9),
        )  # fmt: skip

    def with_rates(self, *, are_late: bool) -> list[Happening]:
        """Return all events; a rate comes before the bar that ends with it or later, or later."""
        every, rng = list(self.events), random.Random(self.events.__len__())
        for key in self._prices:
            after = 0
            for rate in (rate for rate in self.rates if rate.instrument == key):
                place = next(
                    place
                    for place, event in enumerate(every)
                    if isinstance(event, Bar)
                    and event.instrument == key
                    and event.close_time_ms >= rate.market_ms
                )
                if are_late:
                    place += rng.choice((1, 1, 2, 5, rng.randint(0, 200)))
                place = min(max(place, after), len(every))
                every.insert(place, rate)
                after = place + 1
        return every


class Account:
    """What the accounts of an engine paid, and what they owed by the test's own sums."""

    def __init__(self, market: Market, events: Sequence[Happening]) -> None:
        self._market, self._engine = market, opened(market)
        self._state = b""  # that a step stored last
        self._bars = list[Bar]()
        self._fills = list[tuple[str, Fill]]()
        self._marks = dict[str, int]()
        self._is_marked = dict[str, bool]()
        self._due = {(rate.instrument, rate.market_ms): rate.rate for rate in market.rates}
        self._marks_due = dict[tuple[str, int], int]()  # of each settlement whose moment has come
        self.reached: Counter[str] = Counter()
        for event in events:
            if isinstance(event, str):
                self._restart()
            else:
                self._take(event)
        every = {"": self._engine.broker.account, **self._engine.broker.shadows}
        self.paid = {
            (name, key): line.holding.funding_paid
            for name, account in every.items()
            for key, line in account.lines.items()
        }
        self.balances = {name: account.balance() for name, account in every.items()}

    def _take(self, event: Event) -> None:
        before = dict(self._marks)
        step = self._step(event)
        fills = [("", fill) for fill in step.fills]
        fills += [(shadow.shadow, fill) for shadow in step.shadows for fill in shadow.fills]
        self._fills += fills
        if isinstance(event, Quote) and fills:
            self._pass(event.instrument, event.market_ms, before)
        elif isinstance(event, Mark):
            self._marks[event.instrument], self._is_marked[event.instrument] = event.price, True
        elif isinstance(event, Bar):
            key = event.instrument
            self._bars.append(event)
            self._pass(key, event.close_time_ms - 1, before)
            if not self._is_marked.pop(key, False):
                self._marks[key] = event.close
            self._pass(key, event.close_time_ms, self._marks)
        elif isinstance(event, Funding):
            self.reached["late"] += (event.instrument, event.market_ms) in self._marks_due
            self.reached["booked later"] += bool(step.ledger)

    def _step(self, event: Event) -> Step:
        step = self._engine.step(event, None)
        self._state = step.state or self._state
        return step

    def _pass(self, key: str, until_ms: int, marks: dict[str, int]) -> None:
        """Value the settlements until *until_ms*, unless an earlier event did."""
        for due in self._due:
            if due[0] == key and due[1] <= until_ms:
                self._marks_due.setdefault(due, marks.get(key, 0))

    def _restart(self) -> None:
        """Make the engine anew from the state that its steps stored last, as a start does."""
        old, self._engine = self._engine, opened(self._market)
        restart = Restart(self._engine)
        restart.restore(
            decode_state(self._state), next_sequence=old.sequence, since=since_decided(old)
        )
        for candle in self._bars:
            restart.recall(candle)
        for event in self._market.start(self._bars[-1].close_time_ms):
            self._step(event)
        self._is_marked.clear()
        self._marks = {candle.instrument: candle.close for candle in self._bars}
        self.reached["restarts"] += 1

    def owed(self) -> dict[tuple[str, str], int]:
        """Return what each account owes for what its fills had left at each settlement."""
        owed: Counter[tuple[str, str]] = Counter(dict.fromkeys(self.paid, 0))
        for (key, at_ms), rate in self._due.items():
            for name, of in self.paid:
                held = sum(
                    fill.quantity if fill.side is Side.BUY else -fill.quantity
                    for account, fill in self._fills
                    if (account, fill.instrument) == (name, key) and fill.filled_ms < at_ms
                )
                value = held * self._marks_due[key, at_ms] * UNIT
                owed[name, key] += divide_half_even(value * rate, RATE_SCALE) * (of == key)
        return dict(owed)


def opened(market: Market) -> Engine:
    given = {
        "market": {"symbols": list(SYMBOLS), "interval": f"{market.bar_ms // MINUTE_MS}"},
        "strategy": {"name": "sma_cross"},
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "account": {"cash": "1000000"},
    }
    strategies = {symbol: Drawn() for symbol in SYMBOLS}
    return engine_of(given, market.items, strategies=strategies, execution=market.model)


def test_whenever_a_rate_comes_it_is_paid_on_what_was_held_at_its_time() -> None:
    reached: Counter[str] = Counter()
    for seed in range(6):
        market = Market(seed)
        punctual, late = (
            Account(market, market.with_rates(are_late=are_late)) for are_late in (False, True)
        )
        assert late.paid == punctual.paid == late.owed(), seed
        assert late.balances == punctual.balances, seed
        reached += late.reached
        reached[market.model] += 1
    assert {"late", "booked later", "restarts", FillModel.QUOTE, FillModel.NEXT_OPEN} <= {*+reached}


def test_the_oldest_of_a_hundred_settlements_without_a_rate_is_given_up_and_that_is_said() -> None:
    item = replace(instrument(), funding_interval_minutes=120)
    given = {"strategy": {"name": "sma_cross"}, "account": {"cash": "1000000"}}
    buys = Says(Signal(Action.LONG, "buy"))
    engine = engine_of(given, [item], strategy=buys, execution=FillModel.QUOTE)
    said = dict[int, str]()
    for place in range(205):
        opened_ms = BEGIN_MS + place * HOUR_MS
        for ms in (1_000, HOUR_MS - 1):
            engine.step(quote(at_ms=opened_ms + ms), None)
        step = engine.step(bar(open_time_ms=opened_ms, interval_ms=HOUR_MS), None)
        if step.price_verdict is not None:
            said[place] = step.price_verdict
    # Notes are of each hour, settlements of every second one.
    assert said == {
        place: f"the settlement of linear:BTCUSDT at 2023-11-15T0{place - 199}:00:00Z is given up: "
        "100 later ones wait for their rates"
        for place in (201, 203)
    }
    rates = [Funding(item.id, 10**6, BEGIN_MS + at * HOUR_MS, 0) for at in (4, 6)]
    assert [engine.step(rate, None).accepted for rate in rates] == [False, True]
