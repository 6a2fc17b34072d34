"""The laws of the engine: whatever comes, in whatever order, and whenever it is killed.

A Hypothesis state machine drives the real engine and the real log over drawn bars, quotes, marks,
settlements, filters, risk tiers, commands, missed intervals and kills. Beside it stands an engine
that is never killed, is shown the same events and lets no bar pass its orders unread, an account
kept in decimals (``reference_ledger``) and every order as the steps told of it. What a
strategy says at a bar is drawn from the bar's volume, so that the record alone says it again.
``OPTIONS`` has what a history's configuration has beside its world's, by name.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import hypothesis.strategies as st
import pytest
from builders import MINUTE, START_MS, instrument
from engines import engine_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import msgpack
from msgspec.structs import replace
from reference_ledger import ReferenceLedger

from tracepaper.daemon.broker import matching
from tracepaper.daemon.broker.line import LineState
from tracepaper.daemon.broker.orders import NEXT, PROTECTIVE
from tracepaper.daemon.broker.settlements import STAMPED_LATE_MS
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.resume import OpenedRun, Opening, open_run
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.timeframes import frame_bar_of
from tracepaper.strategies.shortfall import DAYS_LEAST
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    Fill,
    FillModel,
    Liquidity,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    CloseStart,
    Command,
    CommandKind,
    Event,
    Funding,
    Gap,
    GapCause,
    InstrumentChange,
    Mark,
    ModelChange,
    Quote,
    RiskTier,
    RunKind,
    Side,
    Source,
)
from tracepaper.strategies.units import DAY_MS, MONEY_SCALE

IN_MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where databases lie that live for a second: a disk would be waited for at each commit."""
ENDED: Final = {OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED}
DECIDED: Final = {OrderRole.SIGNAL, OrderRole.LIST}
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
TIERS: Final = (
    RiskTier(2_000 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(20_000 * MONEY_SCALE, 100_000_000, 2_500, 10 * MONEY_SCALE),
    RiskTier(0, 200_000_000, 1_000, 210 * MONEY_SCALE),
)
"""0.5 % to 2,000 at 100 times, 1 % to 20,000 at 25 times, then 2 % at 10 times."""
OPTIONS: Final[Mapping[str, tuple[dict[str, Any], ...]]] = {
    "delay": ({"execution": {"delay_bars": 1}}, {"execution": {"delay_bars": 2}}),
    "impact": ({"execution": {"beyond_best": "square_root", "impact_bp": "20"}},),
    "shortfall": tuple(
        {"risk": {"max_book_shortfall": limit, "book_days": DAYS_LEAST}}
        for limit in ("0.0002", "0.0008", "0.01")
    ),
}
"""What a history may have, and how."""
SHORTFALL: Final = "risk.book_shortfall"
FILL_WITHIN_MS: Final = Config().execution.fill_within_ms
SAYINGS: Final = 2**20
"""Volumes of bars, each of which tells the strategy something else."""


class World(NamedTuple):
    """What is traded, how it is paid and what fills it."""

    category: Category
    symbols: int
    model: FillModel
    leverage: str | None = None
    cash: str = "3000"

    @property
    def name(self) -> str:
        """What the world is called in a report."""
        paid = "no margin" if self.leverage is None else "isolated"
        return f"{self.category} x {self.symbols}, {self.model}, {paid}"


WORLDS: Final = (
    World(Category.LINEAR, 1, FillModel.QUOTE, "10"),
    World(Category.LINEAR, 2, FillModel.QUOTE, "20", "1000"),
    World(Category.LINEAR, 2, FillModel.NEXT_OPEN, "20", "1000"),
    World(Category.LINEAR, 1, FillModel.NEXT_OPEN, None),
    World(Category.SPOT, 2, FillModel.QUOTE, None, "600"),
    World(Category.SPOT, 1, FillModel.NEXT_OPEN, None, "202"),
)


def drawn_options(seed: int) -> dict[str, dict[str, Any]]:
    """Draw what a history has of ``OPTIONS``, mostly nothing, as sections of its configuration.

    Each name has a stream of its own: another name changes no other draw.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, choices in OPTIONS.items():
        rng = random.Random(f"{seed} {name}")
        if rng.random() < 0.25:
            for section, keys in rng.choice(choices).items():
                sections[section] = sections.get(section, {}) | keys
    return sections


def drawn_days(key: str, until_ms: int) -> list[Bar]:
    """Return candles of the days before *until_ms*, of which each closes 1 % up or down."""
    rng, close, days = random.Random(key), 10_000, []
    for at_ms in range(until_ms - (DAYS_LEAST + 1) * DAY_MS, until_ms, DAY_MS):
        opened, close = close, close + rng.choice((1, -1)) * rng.randint(50, 150)
        path = opened, max(opened, close), min(opened, close), close
        end = at_ms + DAY_MS
        days.append(Bar(key, at_ms, DAY_MS, *path, 10**6, None, end, until_ms, Source.REST))
    return days


def reached(start: OrderStatus, end: OrderStatus) -> bool:
    """Return whether the table of the orders leads from *start* to *end* in some steps, or none."""
    states = {start}
    while more := {NEXT[pair] for pair in NEXT if pair[0] in states} - states:
        states |= more
    return end in states


def sign_of(side: Side) -> int:
    """Return 1 for a buy and -1 for a sale."""
    return 1 if side is Side.BUY else -1


# ---------------------------------------------------------------- the engine, its log and its end


class Lives:
    """A run on one database: started, killed after any step, and started again."""

    def __init__(self, world: World, path: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
        self.world, self.path, self.options = world, path, options
        names = SYMBOLS[: world.symbols]
        tiers = () if world.leverage is None else TIERS
        self.items = {
            item.id: item
            for item in (
                replace(
                    instrument(
                        name, world.category, quantity_step=2, min_quantity=4, max_quantity=8_000,
                        min_notional=5 * MONEY_SCALE,
                    ),
                    risk_tiers=tiers,
                )
                for name in names
            )
        }  # fmt: skip
        account = {"cash": world.cash}
        if world.leverage is not None:
            account |= {"margin": "isolated", "leverage": world.leverage}
        given: dict[str, dict[str, Any]] = {
            "market": {"category": world.category.value, "symbols": list(names)},
            "strategy": {"name": "volume_strategy:ByVolume"},
            "sizing": {"mode": "equity", "fraction": "0.998"}
            if world.category.is_cash  # nearly all cash: a gap or slippage asks for more
            else {"mode": "fixed", "quantity": "2"},
            "gate": {"stale_ms": 300_000},
            "execution": {"slippage_bp": "2", "latency_jitter_ms": 50, "spread_bp": "2"},
            "account": account,
        }
        for section, keys in options.items():
            given[section] = {**given.get(section, {}), **keys}
        self.config = resolved(load({}, given), world.model)
        self.start()

    def start(self) -> None:
        """Do what a start does: open the run of the database, or a new one."""
        self.log = SqlAuditLog.open(self.path)
        opening = Opening(
            config=self.config,
            kind=RunKind.LIVE,
            database=self.path,
            instruments=tuple(self.items.values()),
            forecaster=None,
            period_start_ms=START_MS,
            wall_ms=1,
            is_served=True,
        )
        self.opened: OpenedRun = open_run(opening, self.log)
        self.engine: Engine = self.opened.engine

    def started(self, at_ms: int) -> list[Event]:
        """Return the events of a start: the exchange's filters, and the start itself."""
        changes = [InstrumentChange(item, at_ms, at_ms) for item in self.opened.instruments]
        return [*changes, self.opened.started(at_ms)]

    def kill(self) -> None:
        """Throw the engine away, and what it has in no step that is committed."""
        self.log.close()
        self.start()

    def unkilled(self) -> Engine:
        """Return an engine as the first start made it."""
        return engine_of(
            self.config,
            self.opened.run.instruments,
            execution=self.world.model,
            period_start_ms=self.opened.run.period_start_ms,
        )


# ---------------------------------------------------------------- what must hold


class Book:
    """The orders and the account as the steps tell of them, and what must hold after each step."""

    def __init__(self, lives: Lives) -> None:
        world = lives.world
        self.lives, self.world = lives, world
        leverage = None if world.leverage is None else Decimal(world.leverage)
        self.reference = ReferenceLedger(Decimal(world.cash), leverage=leverage)
        self.reported: dict[str, Order] = {}
        self.filled: Counter[str] = Counter()
        self.items = dict(lives.items)
        self.ledger = 0
        self.missed_until = dict.fromkeys(lives.items, 0)
        self.halted = False
        self.settled: dict[str, int] = {}
        self.marks: dict[str, int] = {}
        self.marks_before: dict[str, int] = {}  # before the event and the bars of its close
        self.unsettled: dict[str, list[Funding]] = {}  # rates whose time has not come
        self.newest: dict[str, int] = {}  # close
        self.closed: dict[str, tuple[Decimal, int]] = {}  # what was held once it came, and its mark
        execution = lives.config.execution
        self.delay_ms = execution.delay_bars * MINUTE
        self.dues: dict[str, list[int]] = {}  # by instrument: when decisions reach the exchange
        is_root = execution.beyond_best == "square_root"
        self.impact = execution.impact_bp / 10_000 if is_root else Decimal(0)
        limit = lives.options.get("risk", {}).get("max_book_shortfall")
        self.limit = None if limit is None else Decimal(limit)
        self.taken: Counter[Side] = Counter()  # by takers, in this step
        self.at_close: dict[str, int] = {}  # triggers as they stood at the last bar
        self.returns: dict[str, list[Decimal]] = {}  # of days before the start
        self.entered: set[str] = set()  # instruments held by signal: orders by list are bare (E11)
        self.waiting: dict[str, Quote] = {}  # the newest quote that was not believed
        self.met: Counter[str] = Counter()

    def learn(self, step: Step) -> None:
        """Take *step* in, and hold it to every law."""
        event, before = step.event, dict(self.reported)
        if isinstance(event, InstrumentChange):
            self.items[event.instrument.id] = event.instrument
            self.entered.discard(event.instrument.id)  # what was dust may be a whole step now
        if isinstance(event, Gap):
            self.missed_until[event.instrument] = event.until_ms
        if isinstance(event, Command):
            self.halted = event.kind is not CommandKind.RESUME
        held = {key: self.reference.of(key).quantity for key in self.items}
        self.met[type(event).__name__] += 1
        quote = self._believed(step)
        ids = [order.order_id for order in step.orders]
        assert len(set(ids)) == len(ids), "an order is shown once a step"
        now = {order.order_id: order for order in step.orders}
        self.taken.clear()
        for fill in step.fills:
            if isinstance(event, Bar):
                before_it = self.marks_before.get(fill.instrument, 0)
                self._settle_until(fill.instrument, fill.filled_ms, mark=before_it)
            self._fill(fill, now[fill.order_id], before.get(fill.order_id), quote or event)
        self._settle(step, held)
        for order in step.orders:
            self._order(order, before.get(order.order_id), step)
        if isinstance(event, Bar) and step.decision is not None:
            at_ms = max(event.market_ms, event.close_time_ms + self.delay_ms)
            self.dues.setdefault(event.instrument, []).append(at_ms)
        if isinstance(quote, Quote):
            self._shown(step, quote)
        self._stops(before, quote)
        self._limits(before, quote, step)
        self._in_time(before, quote)
        self._reasoned(step)
        self._limited(step)
        self._account(step)
        if isinstance(event, Bar):
            self.at_close |= {
                name: order.trigger
                for name, order in self.reported.items()
                if order.instrument == event.instrument and order.trigger is not None
            }

    def _believed(self, step: Step) -> Event | None:
        """Return what the step acts on: its event, a quote that waited for it, or nothing (M34)."""
        event, price_verdict = step.event, step.price_verdict or ""
        if isinstance(event, Quote):
            self.waiting.pop(event.instrument, None)
            if price_verdict.startswith("not believed"):
                self.waiting[event.instrument] = event
                self.met["a quote waited"] += 1
                return None
        elif (
            isinstance(event, Mark)
            and "the quote before it is believed on this one" in price_verdict
        ):
            self.met["a quote was believed later"] += 1
            waited = self.waiting.pop(event.instrument)
            return replace(waited, market_ms=max(waited.market_ms, event.market_ms))  # M37
        return event

    def _settle(self, step: Step, held: Mapping[str, Decimal]) -> None:
        """Book what is due with *step*, before which its fills found what was *held*."""
        event = step.event
        if isinstance(event, Funding):
            self._take_rate(step, event)
        elif isinstance(event, ModelChange):
            self.closed.clear()
        elif isinstance(event, Bar) and step.accepted:
            before = self.marks_before.get(event.instrument, 0)
            self._settle_until(event.instrument, event.close_time_ms - 1, mark=before)
        elif isinstance(event, Gap) and not event.repaired_by:
            self._settle_until(event.instrument, event.until_ms + 999)
        elif isinstance(event, Quote | Mark):
            for key in {fill.instrument for fill in step.fills}:
                self._settle_until(key, event.market_ms, held[key])

    def _take_rate(self, step: Step, event: Funding) -> None:
        newest = self.settled.get(event.instrument, -1)
        is_another = event.market_ms >= newest + STAMPED_LATE_MS
        assert step.accepted is is_another, "a settlement is booked once"
        if step.accepted:
            key, at_ms = event.instrument, event.market_ms
            self.settled[key] = at_ms
            self.unsettled.setdefault(key, []).append(event)
            if at_ms < self.newest.get(key, -1) + 1_000:
                self._settle_until(key, at_ms, *self.closed.get(key, (None, None)))

    def _settle_until(
        self, key: str, until_ms: int, held: Decimal | None = None, mark: int | None = None
    ) -> None:
        """Book what was due by *until_ms*, on what is *held* at the *mark*: else on what is now.

        What is dated within a second of a bar's open is due at the open (M19).
        """
        every = self.unsettled.pop(key, [])
        of_open = [rate.market_ms % MINUTE for rate in every]
        dues = [
            rate.market_ms - late * (late < 1_000)
            for rate, late in zip(every, of_open, strict=True)
        ]
        for rate, due_ms in zip(every, dues, strict=True):
            if due_ms > until_ms:
                self.unsettled.setdefault(key, []).append(rate)
            elif self.world.category is Category.LINEAR:
                price = Decimal(self.marks.get(key, 0) if mark is None else mark).scaleb(-2)
                self.reference.funding(key, price, Decimal(rate.rate).scaleb(-10), held)
                self.met["a settlement waited"] += until_ms != rate.market_ms

    def close(self, step: Step) -> None:
        """Note what is held once a bar is there, and its mark."""
        event = step.event
        if isinstance(event, Bar) and step.accepted:
            key = event.instrument
            self.newest[key] = event.close_time_ms
            if self.world.model is FillModel.QUOTE:
                self.closed[key] = self.reference.of(key).quantity, self.marks[key]

    # ------------------------------------------------------------ fills

    def _fill(self, fill: Fill, order: Order, before: Order | None, event: Event) -> None:
        sign, key = sign_of(fill.side), fill.instrument
        self.filled[fill.order_id] += fill.quantity
        self.met[f"{order.role} filled"] += 1
        self.met["while down"] += fill.while_down
        assert fill.quantity > 0
        assert fill.side is order.side
        assert before is None or before.status not in ENDED, "a fill of what had ended"
        assert fill.price > 0
        assert fill.price % self.items[key].tick_size == 0, "a price between two ticks"
        born = int(order.order_id.partition("-")[0])
        assert order.role not in DECIDED or before is not None, f"{born} filled by its own cause"
        due_ms = order.eligible_ms if self.delay_ms else order.created_ms
        assert fill.filled_ms >= due_ms or order.role not in DECIDED, "before its cause"
        if fill.model is FillModel.LIQUIDATION:
            self._liquidated(fill, order, event)
        elif isinstance(event, Quote):
            self._at_quote(fill, order, event)
        else:
            assert isinstance(event, Bar), f"a {type(event).__name__} filled an order"
            self._in_bar(fill, order, event)
        if order.price is not None and order.role is not OrderRole.LIQUIDATION:
            assert sign * (order.price - fill.price) >= 0, "worse than its limit"
        self._book(fill, order)

    def _book(self, fill: Fill, order: Order) -> None:
        quantity, price = Decimal(fill.quantity).scaleb(-3), Decimal(fill.price).scaleb(-2)
        fee = Decimal(fill.fee).scaleb(-8)
        held = self.reference.of(fill.instrument)
        before, cash, margin = held.quantity, self.reference.cash, held.margin
        if self.world.category is Category.LINEAR:
            is_forced = fill.model is FillModel.LIQUIDATION
            signed = sign_of(fill.side) * quantity
            self.reference.linear(fill.instrument, signed, price, fee, is_forced=is_forced)
            assert not is_forced or cash - self.reference.cash <= margin, (
                "more than its margin was lost"
            )
        elif fill.side is Side.BUY:
            of_base = Decimal(fill.fee_base).scaleb(-3)
            self.reference.bought(fill.instrument, quantity, price, of_base)
        else:
            self.reference.sold(fill.instrument, quantity, price, fee)
        is_dust = abs(held.quantity.scaleb(3)) < self.items[fill.instrument].quantity_step
        if order.role is OrderRole.SIGNAL and not is_dust:
            self.entered.add(fill.instrument)
        elif is_dust or held.quantity * before <= 0 or order.role in PROTECTIVE:
            self.entered.discard(fill.instrument)
        if order.reduce_only:
            assert abs(held.quantity) < abs(before), "what may only reduce opened"
            assert held.quantity * before >= 0, "what may only reduce turned the position"

    def _liquidated(self, fill: Fill, order: Order, event: Event) -> None:
        """Assert that the mark reached it, or that an order would have closed beyond it (M32)."""
        assert order.role is OrderRole.LIQUIDATION
        assert order.trigger is not None
        assert fill.price == order.price
        sign, far = sign_of(fill.side), fill.reference_price
        if isinstance(event, Quote):
            far = event.ask if sign > 0 else event.bid
        slipped = far + sign * (far // 500 + 10 + int(far * self._most_impact))
        is_beyond = sign * (slipped - fill.price) > 0
        assert sign * (fill.reference_price - order.trigger) >= 0 or is_beyond, "too early"

    def _at_quote(self, fill: Fill, order: Order, quote: Quote) -> None:
        far = quote.ask if fill.side is Side.BUY else quote.bid
        assert fill.model is FillModel.QUOTE
        assert fill.filled_ms == quote.market_ms >= order.eligible_ms, "filled before its cause"
        if fill.liquidity is Liquidity.MAKER:
            assert fill.price == order.price
            assert sign_of(fill.side) * (fill.price - far) > 0, "not through its price"
        else:
            size = quote.ask_size if fill.side is Side.BUY else quote.bid_size
            left = size - self.taken[fill.side]
            self.taken[fill.side] += fill.quantity
            self._worse(fill, order, far, fill.quantity - left, Decimal(left))

    def _in_bar(self, fill: Fill, order: Order, bar: Bar) -> None:
        missed = self._is_missed(bar)
        assert fill.while_down is missed, "marked where quotes came, or not where none came"
        assert missed or self.world.model is FillModel.NEXT_OPEN, "a bar filled, and quotes came"
        assert bar.open_time_ms <= fill.filled_ms < bar.close_time_ms
        sign, slack = sign_of(fill.side), fill.reference_price // 500 + 10
        slack += int(fill.reference_price * self._most_impact)
        gapped = fill.liquidity is Liquidity.MAKER and fill.filled_ms == bar.open_time_ms
        if gapped:
            assert sign * (fill.price - bar.open) > 0, "the open is not beyond its price"
        assert gapped or bar.low <= fill.reference_price <= bar.high, "outside the bar"
        if fill.liquidity is Liquidity.MAKER:
            assert fill.price == fill.reference_price == order.price
            assert order.price is not None
            assert bar.low < order.price if sign > 0 else bar.high > order.price, "not through"
        else:
            assert 0 <= sign * (fill.price - fill.reference_price) <= slack, "not what was met"
            self.taken[fill.side] += fill.quantity
            volume = Decimal(bar.volume).scaleb(3 - self.items[bar.instrument].volume_decimals)
            self._worse(fill, order, fill.reference_price, self.taken[fill.side], volume)

    @property
    def _most_impact(self) -> Decimal:
        """The impact at the highest participation that counts, 100."""
        return 10 * self.impact

    def _worse(self, fill: Fill, order: Order, far: int, quantity: int, liquidity: Decimal) -> None:
        """Assert that *fill* pays at least the impact of a *quantity* of that *liquidity* (M111).

        What an account cannot pay is cut from a fill, whose price stays that of the whole.
        """
        worse = sign_of(fill.side) * (fill.price - far)
        assert worse >= 0, "better than the market"
        if order.price is not None or quantity <= 0 or not self.impact:
            return
        most = Decimal(100)
        part = min(quantity / liquidity, most) if liquidity > 0 else most
        assert worse >= far * (self.impact * part.sqrt() - Decimal("1e-10")), "no impact"
        self.met["an impact"] += 1

    def _limited(self, step: Step) -> None:
        """Hold what opens a book of one position to the limit of its shortfall (G42)."""
        decision, event = step.decision, step.event
        if self.limit is None or decision is None or not isinstance(event, Bar):
            return
        if decision.refused_by == SHORTFALL:
            measure = decision.measures[decision.gate_set.gates.index(SHORTFALL)]
            if measure is None:
                # The first day has a hole before the start: it takes the place of one of them.
                assert event.close_time_ms // DAY_MS > START_MS // DAY_MS, "the days are enough"
                self.met["too few days"] += 1
            else:
                assert measure > self.limit, "the book may lose so much"
                self.met["a shortfall refused"] += 1
        if decision.action not in {Action.LONG, Action.SHORT} or decision.target_quantity is None:
            return
        key = event.instrument
        is_alone = not any(
            each.quantity for other, each in self.reference.held.items() if other != key
        ) and not any(
            order.instrument != key and order.status not in ENDED
            for order in self.reported.values()
        )
        held = self.reference.of(key).quantity
        target = Decimal(decision.target_quantity).scaleb(-3)
        if not is_alone or held * target < 0 or abs(target) <= abs(held) * Decimal("1.01"):
            return
        profits = sorted(
            each * target * Decimal(event.close).scaleb(-2) for each in self.returns[key]
        )
        worst = Decimal(len(profits) * 25) / 1_000 - Decimal("0.4")
        whole = int(worst)
        loss = -(sum(profits[:whole]) + (worst - whole) * profits[whole]) / worst
        equity = Decimal(step.account.equity).scaleb(-8)
        assert loss <= self.limit * equity * Decimal("1.02"), "the book may not lose so much"
        self.met["a shortfall allowed"] += 1

    def _is_missed(self, bar: Bar) -> bool:
        quotes = self.world.model is FillModel.QUOTE
        return quotes and bar.open_time_ms < self.missed_until[bar.instrument]

    def _shown(self, step: Step, quote: Quote) -> None:
        """No more is filled than the quote shows, but of what the exchange itself closes."""
        for side, size in ((Side.BUY, quote.ask_size), (Side.SELL, quote.bid_size)):
            quantity = sum(
                fill.quantity
                for fill in step.fills
                if fill.side is side
                and fill.model is not FillModel.LIQUIDATION
                and not (self.impact and self.reported[fill.order_id].price is None)
            )
            assert quantity <= size, "more than the quote showed"

    # ------------------------------------------------------------ orders

    def _order(self, order: Order, before: Order | None, step: Step) -> None:
        start = OrderStatus.NEW if before is None else before.status
        assert before is None or before.status not in ENDED, "an ended order changed"
        assert reached(start, order.status), f"{start} to {order.status}"
        assert order.filled == self.filled[order.order_id] <= order.quantity
        if order.status is not OrderStatus.REJECTED:
            assert (order.filled == order.quantity) is (order.status is OrderStatus.FILLED)
        assert order.reason, "an order without its reason"
        assert order.eligible_ms >= order.created_ms
        self.met[f"{order.kind} {order.status}"] += 1
        self.reported[order.order_id] = order
        if order.status is not OrderStatus.REJECTED and before is None:
            self._born(order, step)
        if before is not None and order.role is OrderRole.TRAILING and order.trigger is not None:
            assert before.trigger is not None
            stood = before.trigger
            if isinstance(step.event, Bar) and self._is_missed(step.event):
                stood = self.at_close.get(order.order_id, stood)  # before quotes of this bar
            assert sign_of(order.side) * (stood - order.trigger) >= 0, "it loosened"

    def _born(self, order: Order, step: Step) -> None:
        item = self.items[order.instrument]
        assert order.quantity > 0
        assert order.quantity % item.quantity_step == 0, "no whole step"
        for price in (order.price, order.trigger):
            assert price is None or (price > 0 and price % item.tick_size == 0), "between two ticks"
        if order.role in DECIDED:
            assert item.min_quantity <= order.quantity <= item.max_quantity, "beyond the filters"
            assert not self.halted, "an order was sent while halted"
            assert type(step.event) is Bar
            due_ms = max(order.created_ms, step.event.close_time_ms + self.delay_ms)
            if not self.delay_ms or self.world.model is FillModel.QUOTE:
                due_ms += 100
            if self.delay_ms and order.role is OrderRole.SIGNAL:
                # Another size is not later, and what followed an order has its own delay.
                due_ms = min([due_ms, *self._on_their_way(order), *self._decided_before(order)])
            assert order.eligible_ms >= due_ms, "sooner than the latency"

    def _on_their_way(self, new: Order) -> list[int]:
        """Return when orders of signals on the side of *new* would have arrived, or will."""
        return [
            order.eligible_ms
            for order in self.reported.values()
            if order.instrument == new.instrument
            and order.role is OrderRole.SIGNAL
            and order.side is new.side
            and order.eligible_ms >= new.created_ms
        ]

    def _decided_before(self, new: Order) -> list[int]:
        """Return when the orders of earlier decisions on the instrument of *new* are due."""
        dues = self.dues.setdefault(new.instrument, [])
        dues[:] = [due_ms for due_ms in dues if due_ms >= new.created_ms]
        return dues

    def _stops(self, before: dict[str, Order], event: Event | None) -> None:
        """No stop that rested is still waiting where the market touched it."""
        if not isinstance(event, (Bar, Quote)):
            return
        until_ms = event.close_time_ms - 1 if isinstance(event, Bar) else event.market_ms
        for order in before.values():
            if (
                order.instrument == event.instrument
                and order.created_ms <= until_ms  # a decision that came late meets later bars
                and order.status not in ENDED
                and order.trigger is not None
                and not order.triggered
                and order.role is not OrderRole.LIQUIDATION
                and self._touches(order, event, order.trigger)
            ):
                now = self.reported[order.order_id]
                moved = now.trigger or order.trigger
                if not self._touches(order, event, moved):
                    continue  # a fill at the bar's open moved it, with the average price
                assert now.triggered or now.status in ENDED, f"skipped: {order.role} {order.kind}"
                self.met["a stop was met"] += 1

    def _touches(self, order: Order, event: Bar | Quote, trigger: int) -> bool:
        buys = order.side is Side.BUY
        if isinstance(event, Quote):
            best = event.ask if buys else event.bid
            if event.market_ms < order.eligible_ms:
                return False
        else:
            runs = self.world.model is FillModel.NEXT_OPEN or self._is_missed(event)
            if not runs or (order.role not in DECIDED and order.created_ms > event.open_time_ms):
                return False
            if self.delay_ms and order.role in DECIDED and order.eligible_ms > event.open_time_ms:
                return False
            best = event.high if buys else event.low
        return best >= trigger if buys else best <= trigger

    def _limits(self, before: dict[str, Order], event: Event | None, step: Step) -> None:
        """No limit that rested is left where the market went through it, but for want of size."""
        if not isinstance(event, (Bar, Quote)):
            return
        for order in before.values():
            if (
                order.instrument != event.instrument
                or order.price is None
                or order.status in {OrderStatus.NEW, *ENDED}
                or order.role is OrderRole.LIQUIDATION
                or (order.trigger is not None and (isinstance(event, Bar) or not order.triggered))
            ):
                continue
            now = self.reported[order.order_id]
            prices = {order.price, now.price or order.price}  # a fill at the open may have moved it
            if all(self._is_through(order, event, price) for price in prices):
                self.met["a limit was passed"] += 1
                assert now.status in ENDED or self._is_used_up(order.side, event, step), (
                    f"passed: {order.role} {order.kind}"
                )

    def _is_through(self, order: Order, event: Bar | Quote, price: int) -> bool:
        buys = order.side is Side.BUY
        if isinstance(event, Quote):
            return event.ask < price if buys else event.bid > price
        runs = self.world.model is FillModel.NEXT_OPEN or self._is_missed(event)
        if not runs or (order.role not in DECIDED and order.created_ms > event.open_time_ms):
            return False
        if self.delay_ms and order.role in DECIDED and order.eligible_ms > event.open_time_ms:
            return False
        return event.low < price if buys else event.high > price

    @staticmethod
    def _is_used_up(side: Side, event: Bar | Quote, step: Step) -> bool:
        if isinstance(event, Bar):
            return False
        taken = sum(fill.quantity for fill in step.fills if fill.side is side)
        return taken >= (event.ask_size if side is Side.BUY else event.bid_size)

    def _in_time(self, before: dict[str, Order], event: Event | None) -> None:
        """No order at the market outlives the time within which a quote has to fill it."""
        if not isinstance(event, Quote):
            return
        for order in before.values():
            if (
                order.instrument == event.instrument
                and order.kind is OrderKind.MARKET
                and order.role in DECIDED
                and event.market_ms - order.eligible_ms > FILL_WITHIN_MS
            ):
                assert self.reported[order.order_id].status in ENDED, "an order waits for ever"

    def _reasoned(self, step: Step) -> None:
        """Hold an allowed target to its end: a position, an order or a reason."""
        event, decision = step.event, step.decision
        if not isinstance(event, Bar) or decision is None or decision.target_quantity is None:
            return
        if decision.refused_by is not None and decision.action is Action.HOLD:
            assert decision.unfilled_reason is None, "a refused bar gives one reason, not two"
            return
        item, held = (
            self.items[event.instrument],
            self.reference.of(event.instrument).quantity.scaleb(3),
        )
        rests = any(
            order.instrument == event.instrument
            and order.role
            in (OrderRole.SIGNAL, OrderRole.COMMAND)  # a FLATTEN also sets the target
            and order.status not in ENDED
            for order in self.reported.values()
        )
        near = item.quantity_step if self.world.category.is_cash else 0
        is_near = abs(decision.target_quantity - held) <= near
        assert rests or is_near or decision.unfilled_reason, "a bar without its reason"
        self.met["a bar by its reason"] += not (rests or is_near)

    # ------------------------------------------------------------ the account

    def _account(self, step: Step) -> None:
        for moved in step.ledger:
            assert moved.amount, "an entry that moves nothing"
            self.ledger += moved.amount
            assert moved.balance == self.ledger, "the balance beside an entry"
        if isinstance(step.event, CloseStart) or not step.accepted:
            return
        assert step.account.cash == self.ledger, "the ledger does not add up to the cash"

    def settle_up(self, engine: Engine, event: Event) -> None:
        """Hold the account of *engine* to the own one, and what rests to what was shown."""
        state = engine.state().account
        assert state.cash == self.reference.cash.scaleb(8) == self.ledger, "cash"
        for key, line in state.lines.items():
            position, holding = self.reference.of(key), line.holding
            assert holding.quantity == position.quantity.scaleb(3), "position and fills"
            assert holding.entry_notional == position.entry.scaleb(8), "entry"
            assert holding.margin == position.margin.scaleb(8), "margin"
            orders = line.orders
            resting = {order.order_id: order for order in (orders.order, *orders.others) if order}
            resting_orders = {
                name: order
                for name, order in self.reported.items()
                if order.instrument == key and order.status not in ENDED
            }
            assert resting == resting_orders, "what rests is not what was shown"
            self._protected(key, line)
        if self.world.category.is_cash:
            assert state.cash >= 0, "more was paid than there was"
            assert all(item.quantity >= 0 for item in self.reference.held.values()), (
                "spot went short"
            )
        if self.world.leverage is not None:
            assert self.reference.available >= Decimal("-1e-7"), "more is bound than is there"
            self._solvent(engine, event)

    def _solvent(self, engine: Engine, event: Event) -> None:
        """Liquidated before its loss is more than its margin, and so before negative equity."""
        if isinstance(event, (Bar, Mark)):
            position = engine.broker.account.lines[event.instrument].position
            assert position.margin + position.unrealized_pnl >= 0, "a position below nothing"

    def _protected(self, key: str, line: LineState) -> None:
        """Assert that what is held under a plan has its orders, none larger than it."""
        held, plan = line.holding.quantity, line.protection.plan
        whole = abs(held) // self.items[key].quantity_step * self.items[key].quantity_step
        for order in line.orders.others:
            if order.reduce_only:
                assert sign_of(order.side) * held < 0, "it would open"
                assert order.quantity - order.filled <= abs(held), "it would turn the position"
        if key in self.entered and plan is not None and plan.sign * held > 0 and whole:
            roles = {
                resting.role: resting
                for resting in line.orders.others
                if resting.role in PROTECTIVE
            }
            for role, wanted in (
                (OrderRole.STOP, plan.stop),
                (OrderRole.TARGET, plan.target),
                (OrderRole.TRAILING, plan.trailing),
            ):
                assert (wanted is None) or role in roles, f"held without its {role}"


# ---------------------------------------------------------------- the machine


class Laws(RuleBasedStateMachine):
    """Everything that can come, in any order; a kill may come after any step."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="laws", dir=IN_MEMORY))
        self.is_whole = False  # whether the last event broke no law

    @initialize(options=st.integers(0, 2**16).map(drawn_options))
    def begin(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        """Open a run that has the *options*."""
        self.lives = Lives(self.world, self.folder / "run.db", options)
        self.plain = self.lives.unkilled()
        self.book = Book(self.lives)
        self.keys = tuple(self.lives.items)
        self.index = 0
        self.at_ms = START_MS
        self.close = dict.fromkeys(self.keys, 10_000)
        self.decisions: list[Decision] = []
        for lacking in self.lives.engine.lacking_frames(START_MS):
            days = drawn_days(lacking.instrument, lacking.until_ms)
            closes = [Decimal(day.close) for day in days]
            self.book.returns[lacking.instrument] = [
                close / before - 1 for before, close in itertools.pairwise(closes)
            ]
            for day in days:
                self.feed(frame_bar_of(day, seen_ms=START_MS))
        for event in self.lives.started(START_MS):
            self.feed(event)
        self.lives.log.flush()  # a start that is over is stored

    # ------------------------------------------------------------ one event, in both lives

    def feed(self, event: Event, bars: Sequence[Bar] = ()) -> None:
        """Show *event*, and the *bars* of a close behind it, to both engines; hold the laws."""
        self.is_whole = False
        self.book.marks_before = dict(self.book.marks)
        both = [self._steps(self.lives.engine, event, bars)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matching, "passes", lambda *_: False)
            both.append(self._steps(self.plain, event, bars))
        self.lives.log.append_now(*both[0])
        for step, plain in zip(*both, strict=True):
            assert replace(step, state=None) == replace(plain, state=None), (
                "a kill or a bar let pass left its mark"
            )
            if step.decision is not None:
                self.decisions.append(step.decision)
            self.book.learn(step)
            self._mark(step)
            self.book.close(step)
        self.book.settle_up(self.lives.engine, both[0][-1].event)
        self.is_whole = True

    def _mark(self, step: Step) -> None:
        for key in self.keys:
            self.book.marks[key] = self.plain.broker.account.lines[key].mark
        assert step.account.equity == self._equity() or not isinstance(step.event, Quote)

    def _equity(self) -> int:
        marks = {key: Decimal(mark).scaleb(-2) for key, mark in self.book.marks.items()}
        if self.world.category is Category.LINEAR:
            return int(self.book.reference.equity(marks).scaleb(8))
        held = sum(
            (position.quantity * marks[key] for key, position in self.book.reference.held.items()),
            Decimal(0),
        )
        return int((self.book.reference.cash + held).scaleb(8))

    @staticmethod
    def _steps(engine: Engine, event: Event, bars: Sequence[Bar]) -> list[Step]:
        if isinstance(event, CloseStart):
            return engine.close(event, bars, [None] * len(bars))
        return [engine.step(event, None)]

    # ------------------------------------------------------------ rules

    def _bar(self, key: str, seed: int, wild: int, volume: int) -> Bar:
        """Return the next bar of *key*: a path of whole ticks around the last close."""
        rng = random.Random(f"{seed} {key}")
        swing = self.close[key] * wild // 10_000
        opened = self.close[key] + rng.choice((0, 0, 0, 1, -1)) * rng.randint(0, swing)
        prices = [max((opened + move) // 10 * 10, 1_000) for move in
                  (0, *(rng.randint(-swing, swing) for _ in range(3)))]  # fmt: skip
        start = START_MS + self.index * MINUTE
        end = start + MINUTE
        path = prices[0], max(prices), min(prices), prices[-1]
        self.close[key] = prices[-1]
        return Bar(key, start, MINUTE, *path, volume, None, end, end, Source.STREAM)

    @rule(
        seed=st.integers(0, 2**16),
        wild=st.sampled_from((100, 10, 300, 3_000)),
        volumes=st.lists(st.integers(1, SAYINGS), min_size=1, max_size=5),
        size=st.sampled_from((10**6, 600, 40)),
    )
    def bars(self, seed: int, wild: int, volumes: list[int], size: int) -> None:
        """Close some bars, each of all symbols at once, with quotes before and after."""
        for volume in volumes:
            closed = [
                self._bar(key, seed + volume, wild, volume + place)
                for place, key in enumerate(self.keys)
            ]
            self.index += 1
            end = closed[0].close_time_ms
            if self.world.model is FillModel.QUOTE:
                for bar in closed:
                    self._show(bar.instrument, bar.close, bar.close + 10, (size, size), end - 700)
            self.at_ms = end
            if len(closed) == 1:
                self.feed(closed[0])
            else:
                self.feed(CloseStart(closed[0].open_time_ms, len(closed), (), end, end), closed)
            if self.world.model is FillModel.QUOTE:
                key = self.keys[volume % len(self.keys)]
                bid = self.close[key] - 10 * (volume % 3)
                self._show(key, bid, bid + 10, (size, size), end + 160 + volume % 2_000)

    def _show(self, key: str, bid: int, ask: int, sizes: tuple[int, int], at_ms: int) -> None:
        self.at_ms = max(self.at_ms, at_ms)
        self.feed(Quote(key, bid, sizes[0], ask, sizes[1], self.at_ms, self.at_ms))

    @precondition(lambda self: self.world.model is FillModel.QUOTE)
    @rule(
        which=st.integers(0, 1),
        moved=st.sampled_from((0, 0, 1, -1, 3, -3, 12, -12, 90, -90)),
        spread=st.sampled_from((1, 1, 2, 30)),
        sizes=st.tuples(*[st.sampled_from((0, 40, 600, 10**6))] * 2),
        later=st.sampled_from((0, 60, 160, 700, 11_000)),
    )
    def quote(
        self, which: int, moved: int, spread: int, sizes: tuple[int, int], later: int
    ) -> None:
        """Show a quote: thin, wide, empty, at the same time as the last one or much later."""
        key = self.keys[which % len(self.keys)]
        self._later(later)
        bid = max(self.close[key] // 10 * 10 + 10 * moved, 500)
        ask = bid + 10 * spread
        self._show(key, bid, ask, sizes, self.at_ms)
        self.close[key] = bid

    @rule(which=st.integers(0, 1), moved=st.sampled_from((0, 2, -2, 40, -40, 400, -400)))
    def mark(self, which: int, moved: int) -> None:
        """Show a mark price, near the market or far from it."""
        key = self.keys[which % len(self.keys)]
        self._later(10)
        self.feed(Mark(key, max(self.close[key] + moved, 100), self.at_ms, self.at_ms))

    @rule(which=st.integers(0, 1), rate=st.integers(-10, 10), again=st.booleans())
    def settlement(self, which: int, rate: int, *, again: bool) -> None:
        """Settle funding, sometimes twice, sometimes ten percent."""
        key = self.keys[which % len(self.keys)]
        self._later(20)
        paid = Funding(key, rate * 100_000_000, self.at_ms, self.at_ms)
        self.feed(paid)
        if again:
            self.feed(paid)

    @rule(which=st.integers(0, 1), step=st.sampled_from((2, 2, 10)), strict=st.booleans())
    def filters(self, which: int, step: int, *, strict: bool) -> None:
        """Change the exchange's step, limits and risk tiers."""
        key = self.keys[which % len(self.keys)]
        item = replace(
            self.lives.items[key],
            quantity_step=step,
            min_quantity=10 * step if strict else 2 * step,
            max_quantity=500 * step if strict else 8_000,
        )
        if self.world.leverage is not None:
            item = replace(item, risk_tiers=TIERS[1:] if strict else TIERS)
        self.lives.items[key] = item
        self.feed(InstrumentChange(item, self.at_ms, self.at_ms))

    @rule(kind=st.sampled_from((CommandKind.RESUME, CommandKind.HALT, CommandKind.FLATTEN)))
    def operator(self, kind: CommandKind) -> None:
        """Let the operator resume, halt or flatten."""
        self._later(5)
        self.feed(Command(kind, "", self.at_ms, self.at_ms))
        if kind is not CommandKind.RESUME and self.at_ms % 2:
            self.bars(seed=1, wild=300, volumes=[self.at_ms % SAYINGS, 7], size=600)
            self.feed(Command(CommandKind.RESUME, "", self.at_ms, self.at_ms))

    @rule(seed=st.integers(0, 2**16), count=st.integers(1, 3), volume=st.integers(1, SAYINGS))
    def missed(self, seed: int, count: int, volume: int) -> None:
        """Miss the quotes of some bars, which then come one by one, late, by REST."""
        first = START_MS + self.index * MINUTE
        until = first + count * MINUTE
        for key in self.keys:
            self.feed(Gap(key, first, until, GapCause.DOWN, "rest", until, until))
        for number in range(count):
            for key in self.keys:
                late = self._bar(key, seed + number, 200, volume)
                self.feed(replace(late, source=Source.REST, seen_ms=until))
            self.index += 1
        self.at_ms = until

    @rule(torn=st.booleans(), volume=st.integers(1, SAYINGS))
    def kill(self, *, torn: bool, volume: int) -> None:
        """Throw the engine away, one step that was not committed with it, and start again."""
        before = self._carried(self.lives.engine)
        if torn:
            close = dict(self.close)
            lost = self._bar(self.keys[0], volume, 300, volume)
            self._steps(self.lives.engine, lost, ())
            self.close = close
        self.lives.kill()
        assert self.lives.opened.resumed
        assert self._carried(self.lives.engine) == before, "a start stands elsewhere"
        for event in self.lives.started(self.at_ms):
            self.feed(event)
        self.book.missed_until = dict.fromkeys(self.keys, 0)
        self.book.met["a kill"] += 1

    def _later(self, by_ms: int) -> None:
        """Let time pass, inside the bar that is open."""
        self.at_ms = min(self.at_ms + by_ms, START_MS + (self.index + 1) * MINUTE - 1)

    @staticmethod
    def _carried(engine: Engine) -> bytes:
        return msgpack.encode(engine.state())

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        """Close the log, hold the record to the laws of the storage, and derive it anew."""
        try:
            if self.is_whole:
                self._derive()
        finally:
            with suppress(Exception):
                self.lives.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            MET.update(self.book.met)

    def _derive(self) -> None:
        self.lives.log.end(2)
        self.lives.log.close()
        with Reader.open(self.lives.path) as reader:
            run_id = self.lives.opened.run.run_id
            assert audit(reader.connection, run_id).passes, "the chain or the ledger broke"
            stored = [step.decision for step in reader.steps(run_id)]
            assert [decision for decision in stored if decision] == self.decisions, (
                "other decisions were stored"
            )
            verification = verify_run(reader, self.lives.path, run_id)
            assert verification.differences == [], verification.differences[:1]


MET: Final[Counter[str]] = Counter()
"""What the examples so far have met, by name: a law about what never comes says nothing."""


def examine(world: World, examples: int, steps: int, *, shrinks: bool = False) -> None:
    """Run *examples* of up to *steps* rules in *world*; raise with one that breaks a law.

    They are the same in every run. With *shrinks* it is a smallest one, which takes minutes.
    """
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
    )
    run_state_machine_as_test(type("Laws", (Laws,), {"world": world}), settings=chosen)
