"""Random histories through an engine, whose accounts keep their laws at every step.

Now and then the engine is made anew from what it carries, and carries the same; or a log stores the
history, and a start takes it up from there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from account_laws import check_account
from builders import MINUTE, START_MS, bar, instrument, present, quote
from engines import engine_of
from msgspec.structs import replace
from records import check_record

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.margin import CrossMargin, IsolatedMargin, balance_of
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.resume import Opening, open_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    buy,
    sell,
)
from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel, LastDecision, Step
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    CloseStart,
    Command,
    CommandKind,
    Funding,
    Gap,
    GapCause,
    Instrument,
    InstrumentChange,
    Mark,
    Quote,
    RiskTier,
    RunKind,
    Side,
)
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE, divide_half_even

TIERS = (
    RiskTier(20_000 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(60_000 * MONEY_SCALE, 100_000_000, 5_000, 100 * MONEY_SCALE),
    RiskTier(0, 200_000_000, 3_000, 700 * MONEY_SCALE),
)
RESTARTS = 0.03  # of the steps
LATE_MOST = 60  # events by which a rate is late


class DrawnSignals(Strategy):
    """Signals of all kinds, protected now and then, and lists of orders."""

    sees_account = True

    def __init__(self, options: dict[str, Any]) -> None:
        self.seed, self.quiet, self.lists = options["seed"], options["quiet"], options["lists"]
        self.shadows, self.horizon = tuple(options.get("shadows", ())), options.get("horizon")

    def decide(self, context: BarContext) -> Signal | Orders:
        """Draw an answer, by the bar's volume."""
        account, quiet = context.account, self.quiet
        assert account is not None
        verdict = context.verdict
        note: dict[str, float | str | None] = {
            "refused": "-" if verdict is None else verdict.refused_by or "nothing",
            "held": account.position.quantity, "equity": account.equity,
            "fills": float(len(account.fills)), "orders": float(len(account.orders)),
            "bars": float(account.position.bars_held),
        }  # fmt: skip
        rng = random.Random(context.exact.volume * 31 + self.seed)
        roll = rng.random()
        if roll < quiet:
            return Signal(Action.HOLD, "hold", note=note)
        if roll < quiet + 0.1:
            return Signal(Action.FLAT, "leave", note=note)
        if roll < quiet + 0.3 and self.lists:
            return Orders(tuple(self._listed(rng, context.close)), "list", note=note)
        ends = context.exact.closed_ms + 7 * MINUTE
        return Signal(
            rng.choice((Action.LONG, Action.SHORT)),
            "drawn",
            rng.choice((1.0, 0.5, 0.3)),
            stop=Percent(rng.choice((0.1, 0.4, 1))) if rng.random() < 0.5 else None,
            target=Percent(rng.choice((0.2, 0.5))) if rng.random() < 0.4 else None,
            trailing=Percent(0.3) if rng.random() < 0.3 else None,
            until=ends if rng.random() < 0.2 else None,
            reenter=rng.random() < 0.7,
            note=note,
        )

    def _listed(self, rng: random.Random, close: float) -> Iterator[OrderRequest | Cancel]:
        for _ in range(rng.randint(1, 3)):
            named: dict[str, Any] = {"tag": rng.choice(("", "a", "b"))}
            if rng.random() < 0.3:
                named["reduce_only"] = True
            limit = round(close * (1 + rng.uniform(-0.003, 0.003)), 1)
            size = rng.choice((0.4, 1.1, 2.5))
            yield rng.choice((buy, sell))(size, limit if rng.random() < 0.6 else None, **named)
        if rng.random() < 0.2:
            yield Cancel(rng.choice(("", "a")))


class DrawnTogether(PortfolioStrategy):
    """What ``DrawnSignals`` says of each symbol of a close, of which some are left out."""

    sees_account = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._drawn = DrawnSignals(options)
        self.shadows, self.horizon = self._drawn.shadows, self._drawn.horizon

    def decide(self, contexts: Mapping[str, BarContext]) -> dict[str, Signal | Orders]:
        """Draw an answer for each symbol, by its bar's volume."""
        named = {symbol: of for symbol, of in contexts.items() if of.exact.volume % 5}
        return {symbol: self._drawn.decide(of) for symbol, of in named.items()}


class Close(NamedTuple):
    """A close whose bars are observed together."""

    bars: tuple[Bar, ...]


class Case(NamedTuple):
    """What is traded, and how."""

    name: str
    given: dict[str, Any]
    items: list[Instrument]
    model: FillModel
    category: str

    @property
    def by_quotes(self) -> bool:
        """Whether quotes fill its orders."""
        return self.model is FillModel.QUOTE


class Kind(NamedTuple):
    """What a history is about."""

    category: str = "linear"
    is_focused: bool = False
    """Whether it is of cross margin by quotes, which jump by so much that closes would ruin it."""


KINDS = {
    "one": Kind(),
    "focused": Kind(is_focused=True),
    "spot": Kind("spot"),
    "stock": Kind("stock"),
}
"""Each kind draws from streams of its own: one more or less changes no history of another."""


class Streams(dict[str, random.Random]):
    """Random numbers for each thing that is drawn: what one takes changes no other.

    A key is the thing's name, or any value that it follows from.
    """

    def __init__(self, seed: int, kind: str) -> None:
        self._begin = f"{seed} {kind}"
        super().__init__()

    def __missing__(self, name: str) -> random.Random:
        self[name] = random.Random(f"{self._begin} {name}")
        return self[name]


def drawn_delay(rng: random.Random) -> dict[str, int]:
    """Draw by how many bars orders are late, mostly none."""
    return {"delay_bars": rng.choice((1, 2))} if rng.random() < 0.15 else {}


def drawn_case(streams: Streams, name: str) -> Case:
    """Draw a configuration of the kind *name*."""
    kind, rng = KINDS[name], streams["case"]
    category, is_focused = kind.category, kind.is_focused
    margins = ["none", "isolated", "isolated", "cross", "cross"]
    margin = "none" if category != "linear" else "cross" if is_focused else rng.choice(margins)
    by_quotes = is_focused or rng.random() < 0.4
    symbols = ["BTCUSDT", "ETHUSDT"][: rng.randint(1, 2)]
    lists = rng.random() < 0.6

    account: dict[str, Any] = {"cash": rng.choice(("3000", "20000", "100000")), "margin": margin}
    fractions = ["0.6"] if margin == "none" else ["1", "3", "6"]
    if margin != "none":
        account["leverage"] = rng.choice(("5", "20", "30"))
    if margin == "cross":
        account |= {"cash": rng.choice(("3000", "4000")), "leverage": "30"}
        fractions = ["8", "12", "18"]
    notionals = ["30000", "60000"] if margin == "cross" else ["5000", "40000"]
    given: dict[str, Any] = {
        "market": {"symbols": symbols, "category": "linear" if category == "linear" else "spot"},
        "account": account,
        # Shares have the configuration of spot here, whose usual fee is another.
        "execution": {"plausible": 1_000, "taker_fee": "0.001", "maker_fee": "0.001"},
        "sizing": rng.choice(
            (
                {"mode": "equity", "fraction": rng.choice(fractions)},
                {"mode": "notional", "notional": rng.choice(notionals)},
            )
        ),
    }
    drawn = ["histories:DrawnSignals"] * 3 + ["histories:DrawnTogether"]
    horizon, shadows = rng.choice((None, 5)), ["ungated", "held"][: rng.randint(0, 2)]
    given["strategy"] = {
        "name": rng.choice(drawn),
        "shadows": shadows,
        "options": {
            "seed": rng.randint(0, 99),
            "lists": lists,
            "quiet": rng.choice((0.2, 0.4, 0.8)),
            "horizon": horizon,
        },
    }
    if rng.random() < 0.4:
        given["exits"] = rng.choice(
            (
                {"stop_loss": "0.5%"},
                {"stop_loss": "1%", "trailing": "0.4%"},
                {"take_profit": "0.6%"},
            )
        )
    if rng.random() < 0.3:
        given["risk"] = {
            "max_notional": rng.choice(("20000", "90000")), "max_leverage": "20",
            "max_drawdown": rng.choice(("0.05", "0.3")),
            "on_breach": rng.choice(("halt", "flatten", "refuse")),
        }  # fmt: skip
    given["execution"] |= streams["impact"].choice(
        ({}, {}, {"beyond_best": "impact"}, {"beyond_best": "square_root", "impact_bp": "20"})
    )
    given["execution"] |= drawn_delay(streams["delay"])
    tiers = TIERS if category == "linear" else ()
    # Only by quotes does an engine know from its start when rates may come late.
    interval = streams["interval"].choice((0, 1, 16)) if by_quotes and tiers else 0
    items = [
        replace(
            instrument(symbol=symbol, tick_size=1, category=Category(category)),
            risk_tiers=tiers,
            funding_interval_minutes=interval,
        )
        for symbol in symbols
    ]
    model = FillModel.QUOTE if by_quotes else FillModel.NEXT_OPEN
    return Case(f"{name} {margin} {category} {model}", given, items, model, category)


def drawn_events(streams: Streams, case: Case, *, is_focused: bool) -> list[Any]:
    """Draw a history for *case*: bars, quotes, marks, settlements, gaps, filters and commands."""
    rng, marks, rates = streams["bars"], streams["marks"], streams["funding"]
    count = rng.randint(20, 60) if is_focused else rng.randint(60, 200)
    is_wild = rng.random() < 0.7
    prices, events = {item.id: 100_000 for item in case.items}, list[Any]()
    for at in range(count):
        is_missed = case.by_quotes and streams["gaps"].random() < 0.08
        for key, opened in prices.items():
            jump = rng.randint(-700, 700)
            if is_focused and rng.random() < 0.15:
                jump = rng.randint(-60, 60) * 150
            elif is_wild and not is_focused and rng.random() < 0.1:
                jump = rng.randint(-160, 160) * 100
            close = prices[key] = max(opened + jump, 20_000)
            candle = bar(
                close, index=at, instrument_id=key, open_=opened,
                high=max(opened, close) + rng.randint(0, 300),
                low=min(opened, close) - rng.randint(0, 300),
                volume=5_000 + rng.randint(0, 99_999),
            )  # fmt: skip
            until_ms = candle.open_time_ms + MINUTE
            events += _inside(rates, case, candle)
            if is_missed:
                events.append(
                    Gap(
                        key,
                        candle.open_time_ms,
                        until_ms,
                        GapCause.DOWN,
                        "rest",
                        until_ms,
                        until_ms,
                    )
                )
            events += _quotes(
                streams["quotes"], case, candle, is_missed=is_missed, is_focused=is_focused
            )
            if case.category == "linear" and marks.random() < 0.3:
                at_ms, off = until_ms - 500, marks.randint(-4_000, 4_000) * is_wild
                events.append(Mark(key, (opened + close) // 2 + off, at_ms, at_ms))
            events.append(candle)
            if case.category == "linear" and at % 16 == 15:
                rate = rates.randint(-9, 9) * 10**6
                events.append(Funding(key, rate, candle.close_time_ms, candle.close_time_ms))
        events += _changes(streams, case, candle.closed_ms)
    if case.items[0].funding_interval_minutes:
        events = _late(streams["late"], events)
    if len(case.items) == 2 and not case.by_quotes and streams["closes"].random() < 0.5:
        return list(_by_close(events))
    return events


def _late(rng: random.Random, events: Sequence[Any]) -> list[Any]:
    """Return *events* with half of the rates later, in their order."""
    places, last = list[tuple[int, int]](), 0
    for place, event in enumerate(events):
        by = rng.randint(0, LATE_MOST) * (rng.random() < 0.5) if isinstance(event, Funding) else 0
        last = max(last, place + by) if isinstance(event, Funding) else last
        places.append((last if isinstance(event, Funding) else place, place))
    return [events[place] for _, place in sorted(places)]


def _inside(rng: random.Random, case: Case, candle: Bar) -> Iterator[Funding]:
    """Draw a settlement inside a bar now and then, at its edges or between them."""
    if case.category == "linear" and rng.random() < 0.1:
        at_ms = candle.open_time_ms + rng.choice((0, 500, 999, 1_000, MINUTE - 1, MINUTE))
        yield Funding(candle.instrument, rng.randint(-9, 9) * 10**6, at_ms, at_ms)


def _quotes(
    rng: random.Random, case: Case, candle: Bar, *, is_missed: bool, is_focused: bool
) -> Iterator[Quote]:
    """Draw the quotes of a bar, where they fill; of one that is missed, some newer than it."""
    if not case.by_quotes:
        return
    for ms in (MINUTE + 100, MINUTE + 900) if is_missed else (1_000, 20_000, 59_000):
        price, size = candle.close + rng.randint(-600, 600), 20_000
        if not is_missed:
            on_way = candle.open + (candle.close - candle.open) * ms // MINUTE
            price = candle.close if is_focused else on_way
            size = 200_000 if is_focused else rng.choice((300, 2_000, 20_000))
        drawn = quote(price - 5, price + 5, at_ms=candle.open_time_ms + ms, size=size)
        yield replace(drawn, instrument=candle.instrument)


def _changes(streams: Streams, case: Case, at_ms: int) -> Iterator[Any]:
    """Draw other filters now and then, and commands."""
    filters, commands = streams["filters"], streams["commands"]
    if filters.random() < 0.02 and case.category != "stock":
        item = replace(
            filters.choice(case.items),
            tick_size=filters.choice((1, 10, 100)),
            quantity_step=filters.choice((1, 5, 10)),
        )
        yield InstrumentChange(item, at_ms, at_ms)
    if commands.random() < 0.02:
        for kind in (commands.choice(list(CommandKind)), CommandKind.RESUME):
            yield Command(kind, "drawn", at_ms, at_ms)


def _by_close(events: Sequence[Any]) -> Iterator[Any]:
    """Yield *events* with every two bars as one close."""
    bars = list[Bar]()
    for event in events:
        if not isinstance(event, Bar):
            yield event
            continue
        bars.append(event)
        if len(bars) == 2:
            yield Close(tuple(bars))
            bars.clear()


def events_of(event: Any) -> tuple[Any, ...]:
    """Return the bars of a close, or the *event* itself."""
    return event.bars if isinstance(event, Close) else (event,)


def played(engine: Engine, event: Any) -> list[Step]:
    """Return the steps of *engine* that *event* causes."""
    if not isinstance(event, Close):
        return [engine.step(event, None)]
    bars = event.bars
    closed = CloseStart(bars[0].open_time_ms, 2, (), bars[0].closed_ms, bars[0].closed_ms)
    return engine.close(closed, bars, [None, None])


class History:
    """A history of one seed, whose accounts are checked after every event."""

    def __init__(self, seed: int, kind: str, *, most: int | None = None) -> None:
        """Play the history of *seed* and a *kind*, or its first events, *most* of them."""
        streams = Streams(seed, kind)
        self.case = drawn_case(streams, kind)
        self.counted: Counter[str] = Counter()
        self._items = {item.id: item for item in self.case.items}
        self._bars = list[Bar]()
        self._held: Counter[tuple[str, str]] = Counter()  # by fills, of each account
        self._dated = list[tuple[str, Fill]]()  # every fill, with the name of its account
        self._unsettled = list[Funding]()
        self._closes = dict[str, tuple[int, Counter[Any]]]()  # since the newest start
        # The mark at the time of each settlement, and what was held; None: by the dates of fills.
        self._moments = dict[tuple[str, int], tuple[int, Counter[Any] | None]]()
        self.engine = self._opened()
        self._cash = self.engine.broker.account.ledger.cash
        # Of each account what its fills and settlements left of the first cash, and its funding.
        self._money = {name: (of.ledger.cash, 0) for name, of in self._accounts()}
        events = drawn_events(streams, self.case, is_focused=KINDS[kind].is_focused)
        settled = (of for of in events if isinstance(of, Funding) and self._is_noted(of))
        self._ahead = list(dict.fromkeys((of.instrument, of.market_ms) for of in settled))
        self._begin()
        for event in events[:most]:
            self._take(event)
            if streams["restarts"].random() < RESTARTS:
                self._restart()
                self._closes.clear()

    def _begin(self) -> None:
        """Take what a start itself brings."""

    def _keep(self, steps: list[Step]) -> None:
        """Store *steps*."""

    def _opened(self) -> Engine:
        config = resolved(load(None, self.case.given), self.case.model)
        return engine_of(config, list(self._items.values()), execution=self.case.model)  # fmt: skip

    def _take(self, event: Any) -> None:
        engine, marks, held = self.engine, self._marks(), Counter(self._held)
        bars = tuple(of for of in events_of(event) if isinstance(of, Bar))
        steps = played(engine, event)
        self._bars += bars
        self._keep(steps)
        if isinstance(event, InstrumentChange):
            self._items[event.instrument.id] = event.instrument
        for step in steps:
            self._add(step)
        for account in (engine.broker.account, *engine.broker.shadows.values()):
            check_account(account, self._cash)
        if isinstance(event, Funding) and steps[0].accepted:
            self._unsettled.append(event)
            if not self._is_noted(event):
                self._ahead.append((event.instrument, event.market_ms))
        self._check_funding(event, marks, held)
        self._check_held()

    def _add(self, step: Step) -> None:
        """Add the fills of *step* to what is held."""
        broker = self.engine.broker
        for shadow in step.shadows:
            account, event = broker.shadows[shadow.shadow], step.event
            if isinstance(event, Bar):  # what a restart learns of the step is so
                confirmed_ms = account.lines[event.instrument].confirmed_ms
                assert shadow.confirmed is (confirmed_ms == event.open_time_ms)
        times = [fill.filled_ms for fill in step.fills]
        assert times == sorted(times)
        every = [("", fill) for fill in step.fills]
        every += [(shadow.shadow, fill) for shadow in step.shadows for fill in shadow.fills]
        self._dated += every
        for name, fill in every:
            bought, (cash, funding) = fill.side is Side.BUY, self._money[name]
            sign = 1 if bought else -1
            self._held[name, fill.instrument] += sign * fill.quantity - fill.fee_base
            paid = fill.price * fill.quantity * self._unit(fill.instrument)
            self._money[name] = cash - sign * paid - fill.fee, funding
            self.counted[fill.model] += 1
        if step.fills and isinstance(step.event, Quote):
            self._check_debt(step.fills[-1])
        self.counted["fills"] += len(step.fills)
        self.counted["steps"] += 1

    def _check_debt(self, last: Fill) -> None:
        """Assert that the *last* fill of a quote left no debt on cross margin at what it met.

        The marks of the account may be older: it comes to less at them.
        """
        account = self.engine.broker.account
        if isinstance(account.policy, CrossMargin):
            values = present(account.policy.values({last.instrument: last.reference_price}))
            assert balance_of(account.ledger.cash, values) >= 0

    def _unit(self, key: str) -> int:
        item = self._items[key]
        return 10 ** (8 - item.price_decimals - item.quantity_decimals)

    def _accounts(self) -> Iterator[tuple[str, PaperAccount]]:
        broker = self.engine.broker
        yield "", broker.account
        yield from broker.shadows.items()

    def _check_held(self) -> None:
        """Assert that each account is what its fills and settlements made of it."""
        for name, account in self._accounts():
            balance, worth = account.balance(), 0
            for key in self._items:
                line = account.lines[key]
                assert line.held == self._held[name, key], (name, key)
                worth += self._held[name, key] * line.mark * self._unit(key)
            cash, funding = self._money[name]
            cash += funding - balance.funding_paid
            self._money[name] = cash, balance.funding_paid
            assert balance.equity == cash + worth, name

    def _marks(self) -> dict[str, int]:
        account = self.engine.broker.account
        return {key: account.lines[key].mark for key in self._items}

    def _is_noted(self, funding: Funding) -> bool:
        """Return whether an engine keeps what was held at its time until its rate comes."""
        minutes = self._items[funding.instrument].funding_interval_minutes
        return minutes > 0 and funding.market_ms % (gcd(60, minutes) * MINUTE) < 1_000

    def _pass_moments(self, event: Any, marks: Mapping[str, int], held: Counter[Any]) -> None:
        """Keep the marks and holdings of the settlements whose time has come with *event*.

        *marks* and what is *held* are those before the event. A settlement waits for the bar that
        ends after it, or for a price that is not older and changes the position. One within a
        second of a bar's open is due at the open. If its time is not noted, it is due once its rate
        is there as well, by the newest close if it is of that.
        """
        bars = {of.instrument: of for of in events_of(event) if isinstance(of, Bar)}
        newest = {candle.instrument: candle for candle in self._bars}
        ahead, self._ahead = self._ahead, []
        for key, at_ms in ahead:
            closed_ms = newest[key].close_time_ms if key in newest else -1
            is_changed = any(
                self._held[name, key] != held[name, key] for name, _ in self._accounts()
            )
            if isinstance(event, Quote | Mark) and event.market_ms >= at_ms and is_changed:
                self._moments[key, at_ms] = marks[key], held
            elif at_ms < closed_ms + 1_000:
                is_inside = key in bars and at_ms < closed_ms
                at_mark = (marks if is_inside else self._marks())[key]
                moment = at_mark, None if key in bars else held
                if key not in bars and closed_ms <= at_ms:
                    moment = self._closes.get(key, moment)
                self._moments[key, at_ms] = moment
            else:
                self._ahead.append((key, at_ms))
        for key in bars if self.case.by_quotes else ():
            self._closes[key] = self._marks()[key], Counter(self._held)

    def _check_funding(self, event: Any, marks: Mapping[str, int], held: Counter[Any]) -> None:
        """Assert that *event* paid what was due, by what fills left at its time."""
        bars = [of for of in events_of(event) if isinstance(of, Bar)]
        self._pass_moments(event, marks, held)
        due, left = list[tuple[Funding, int, Counter[Any] | None]](), list[Funding]()
        for funding in self._unsettled:
            moment = self._moments.get((funding.instrument, funding.market_ms))
            if moment is None:
                left.append(funding)
            else:
                due.append((funding, *moment))
                self.counted["settled late"] += funding is event and self._is_noted(funding)
        self._unsettled = left
        for name, account in self._accounts():
            if isinstance(account.policy, CrossMargin) and len(self._items) > 1:
                continue  # a bar of the other symbol may have closed the position before
            paid = account.balance().funding_paid - self._money[name][1]
            owed = sum(self._owed(name, *settlement) for settlement in due)
            if isinstance(account.policy, IsolatedMargin):
                # It never pays more than it has, and a mark may close it before the bar (M19).
                assert min(owed, 0) <= paid <= max(owed, 0), (name, due)
            else:
                assert paid == owed, (name, due)
            self.counted["settled inside a bar"] += bool(bars and paid)
            self.counted["settled at a price"] += bool(paid and isinstance(event, Quote | Mark))

    def _owed(self, name: str, funding: Funding, mark: int, before: Counter[Any] | None) -> int:
        """Return what account *name* pays for what it held: *before*, or by the dates of fills."""
        key, at_ms = funding.instrument, funding.market_ms
        at_ms -= at_ms % MINUTE if at_ms % MINUTE < 1_000 else 0
        held = 0 if before is None else before[name, key]
        for of, fill in self._dated if before is None else ():
            if (of, fill.instrument) == (name, key) and fill.filled_ms < at_ms:
                held += fill.quantity if fill.side is Side.BUY else -fill.quantity
        return divide_half_even(held * mark * self._unit(key) * funding.rate, RATE_SCALE)

    def _restart(self) -> None:
        """Make the engine anew from what it carries, and feed it its bars again."""
        old, new = self.engine, self._opened()
        state, restart = old.state(), Restart(new)
        restart.restore(state, next_sequence=old.sequence, since=since_decided(old))
        for candle in self._bars:
            restart.recall(candle)
        assert new.state() == state
        self.engine = new
        self.counted["restarts"] += 1


def since_decided(engine: Engine) -> dict[str, LastDecision]:
    """Return the outcome of the last decision on each instrument, and the fills since."""
    fills = engine.broker.account.ledger.unseen
    return {
        key: LastDecision(decider.verdict, tuple(fills.get(key, ())))
        for key, decider in engine.deciders.items()
    }


class RecordedHistory(History):
    """A history that a log stores, and that restarts take up from there; its record holds."""

    def __init__(self, seed: int, path: Path, kind: str, *, most: int | None = None) -> None:
        """Play it as ``History`` does, into the new database *path*."""
        self._path, self._at_ms = path, START_MS
        super().__init__(seed, kind, most=most)
        self._log.end(2)
        self._log.close()
        self.counted["derived"] += check_record(path)

    def _opened(self) -> Engine:
        self._log = SqlAuditLog.open(self._path)
        opening = Opening(
            config=resolved(load(None, self.case.given), self.case.model),
            kind=RunKind.LIVE,
            database=self._path,
            instruments=tuple(self._items.values()),
            forecaster=None,
            period_start_ms=START_MS,
            wall_ms=1,
            is_served=True,
        )
        self._run = open_run(opening, self._log)
        return self._run.engine

    def _begin(self) -> None:
        at_ms = self._at_ms
        for item in self._run.instruments:
            self._take(InstrumentChange(item, at_ms, at_ms))
        self._take(self._run.started(at_ms))

    def _keep(self, steps: list[Step]) -> None:
        self._log.append_now(*steps)
        self._at_ms = max(self._at_ms, *(step.event.market_ms for step in steps))

    def _restart(self) -> None:
        self._log.flush()  # the first steps wait for a bar
        self._log.close()
        state = self.engine.state()
        self.engine = self._opened()
        assert self.engine.state() == state
        self._begin()
        self.counted["restarts"] += 1
