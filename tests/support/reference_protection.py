"""One account under protection, computed from the sentences of the rules alone.

The rules are docs/protection.md, E8 to E22, docs/orders.md, B2 to B4, and docs/money.md, M10 to
M13. It holds no code of the engine: levels are fractions, and what rests is a list of a few orders
whose size is that of the position. Nothing costs anything, and nothing is ever on its way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import erf, exp, isfinite, sqrt
from typing import Final, NamedTuple

from tracepaper.strategies.api.context import Distance, Percent, Signal, Volatility
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar, Quote

TICK: Final = 10
UNITS: Final = 100  # of a price: two decimals
FILL_WITHIN_MS: Final = 10_000
RANGE_BARS: Final = 14
SIGNS: Final = {Action.LONG: 1, Action.SHORT: -1}
KEYS: Final = {"stop": "stop_loss", "target": "take_profit", "trailing": "trailing"}


class NoPlan(Exception):
    """A signal asks for what cannot be (E9, E10)."""


class ReferenceFill(NamedTuple):
    """A fill: whose it is, signed quantity, price, and whether it made."""

    role: str
    quantity: int
    price: int
    is_maker: bool


class Level(NamedTuple):
    """A price, or a distance from the entry: so far, or such a share of it; and who names it."""

    name: str
    price: int | None = None
    distance: int | None = None
    share: Fraction | None = None

    def away(self, entry: int) -> int:
        """Return how far from *entry* it is."""
        if self.share is not None:
            return round(entry * self.share)
        assert self.distance is not None
        return self.distance

    def at(self, entry: int, direction: int) -> int:
        """Return its price, *direction* of *entry*."""
        return entry + direction * self.away(entry) if self.price is None else self.price


def nearest(levels: Iterable[Level | None], entry: int, direction: int) -> Level | None:
    """Return the nearest to *entry* of the *levels* in *direction* (E19)."""
    named = [level for level in levels if level is not None]
    return min(named, key=lambda level: direction * level.at(entry, direction), default=None)


def quantile(share: float) -> float:
    """Return the standard normal deviate below which *share* lies, by bisection."""
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        if (1 + erf(middle / sqrt(2))) / 2 < share:
            low = middle
        else:
            high = middle
    return low


class ForecastReturn(NamedTuple):
    """A forecast of the log return to the horizon."""

    mean: float
    stdev: float
    volatility: float


@dataclass(frozen=True)
class ReferenceExits:
    """The ``[exits]`` of a configuration (E18): a distance is a unit and a number."""

    stop: tuple[str, float] | None = None
    target: tuple[str, float] | None = None
    trailing: tuple[str, float] | None = None
    roi: tuple[tuple[int, float], ...] = ()  # percent from each age on, by rising age
    limit_ms: int = 0
    reenter: bool = False

    @property
    def is_timed(self) -> bool:
        """Whether the age of a position matters."""
        return bool(self.roi or self.limit_ms)

    def by_age(self, age_ms: int) -> Level | None:
        """Return the target of a position of this age (E21)."""
        percents = [percent for from_ms, percent in self.roi if age_ms >= from_ms]
        if not percents:
            return None
        return Level("exits.minimal_roi", share=Fraction(percents[-1]) / 100)


@dataclass(frozen=True)
class Plan:
    """What a signal asked for."""

    sign: int
    stop: Level | None = None
    target: Level | None = None
    trailing: Level | None = None
    until: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing."""
        return (self.stop, self.target, self.trailing, self.until) == (None,) * 4


@dataclass
class RestingProtection:
    """A protective order; it is as large as the position."""

    role: str
    price: int = 0  # of a stop the trigger
    is_triggered: bool = False
    arrives: bool = False  # a target that the market had reached when it was sent
    since_ms: int = 0
    names: set[str] = field(default_factory=set)  # of the levels that put it there


def tick(price: Fraction | int) -> int:
    """Return *price* at the nearest whole tick (E8)."""
    return max(round(Fraction(price) / TICK), 1) * TICK


@dataclass
class ReferenceProtection:
    """The account; ``fills`` are those of the newest event."""

    quantity: int  # of a full position
    exits: ReferenceExits = ReferenceExits()
    forecast: ForecastReturn | None = None  # at the newest bar
    opened_ms: int = 0
    held: int = 0
    worth: Fraction = Fraction(0)  # of what is held, at its entry
    wanted: int = 0
    sent: int = 0  # what is left of the order by signal
    sent_ms: int = 0
    plan: Plan | None = None
    next: Plan | None = None  # once what is held is closed
    orders: list[RestingProtection] = field(default_factory=list)
    follows_by: int = 0
    waits: int = 0
    fills: list[ReferenceFill] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    # ------------------------------------------------------------ position

    @property
    def entry(self) -> int:
        """The average price of what is held."""
        return round(self.worth / self.held)

    @property
    def is_protected(self) -> bool:
        """Whether what is held is of the plan's side."""
        return self.plan is not None and self.plan.sign * self.held > 0

    def _is_nothing(self, plan: Plan) -> bool:
        """Return whether *plan* asks for nothing, and no age ends its position."""
        return plan.sign == 0 or (plan.is_empty and not self.exits.is_timed)

    def _fill(
        self, role: str, quantity: int, price: int, at_ms: int, *, is_maker: bool = False
    ) -> None:
        self.fills.append(ReferenceFill(role, quantity, price, is_maker))
        before = self.held
        self.held += quantity
        if before * quantity >= 0:
            self.worth += quantity * price
        elif self.held * before > 0:
            self.worth = self.worth * self.held / before
        else:
            self.worth = Fraction(self.held * price)
        if before * self.held <= 0:
            self.opened_ms = at_ms
            self.orders.clear()  # what closes the position cancels them (E11)
        if role == "SIGNAL":
            self.sent -= quantity
        elif self.wanted * before < 0:  # what is left of a reversal goes on (E14)
            self.sent = self.wanted - self.held if self.sent else 0
        else:
            self.wanted, self.sent = self.held, 0  # B2

    def _reacted(self, before: int, since: int, market: int, at_ms: int) -> None:
        """Let protection follow the fills from number *since* on; *before* them that was held."""
        roles = {fill.role for fill in self.fills[since:]}
        if not roles or self.plan is None:
            return
        if roles != {"SIGNAL"} and self.next is None:
            self.waits = self.plan.sign
        if self.plan.sign * before > 0 and self.plan.sign * self.held <= 0:
            self.plan, self.next, self.follows_by = self.next, None, 0
            if self.plan is not None and self._is_nothing(self.plan):
                self.plan = None
        if "SIGNAL" in roles and self.is_protected:
            self._arm(market, at_ms)

    # ------------------------------------------------------------ arming

    def _resting(self, role: str) -> RestingProtection | None:
        return next((order for order in self.orders if order.role == role), None)

    def _stand(self, role: str, price: int | None, at_ms: int, name: str = "") -> None:
        """Let a stop of *role* stand at *price*, which *name* asks for, or none."""
        order = self._resting(role)
        if price is None:
            self.orders = [resting for resting in self.orders if resting.role != role]
        elif order is None:
            self.orders.append(RestingProtection(role, price, since_ms=at_ms, names={name}))
        elif not order.is_triggered:
            order.names = {name} | (order.names if order.price == price else set())
            order.price = price

    def _stand_at(self, level: Level | None, role: str, direction: int, at_ms: int) -> None:
        price = None if level is None else tick(level.at(self.entry, direction))
        self._stand(role, price, at_ms, "" if level is None else level.name)

    def _arm(self, market: int, at_ms: int, *, is_nearer: bool | None = None) -> None:
        plan, entry = self.plan, self.entry
        assert plan is not None
        sign = plan.sign
        closing = self._resting("UNTIL")
        if (plan.until is None or at_ms < plan.until) and (
            closing is not None and "exits.time_limit" not in closing.names
        ):
            self._stand("UNTIL", None, at_ms)
        self._stand_at(plan.stop, "STOP", -sign, at_ms)
        self._arm_target(market, at_ms)
        if plan.trailing is None:
            return
        standing = self._resting("TRAILING")
        if standing is None or is_nearer:  # E13, E14
            self.follows_by = tick(plan.trailing.away(entry))
            start = entry if is_nearer is None else market
            at = tick(start - sign * self.follows_by)
            if standing is not None:
                at = sign * max(sign * at, sign * standing.price)
            self._stand("TRAILING", at, at_ms, plan.trailing.name)

    def _arm_target(self, market: int, at_ms: int) -> None:
        """Let the plan's target stand: it rests unless the market has reached it (B4)."""
        assert self.plan is not None
        order, level = self._resting("TARGET"), self.plan.target
        if level is None:
            self._stand("TARGET", None, at_ms)
            return
        price = tick(level.at(self.entry, self.plan.sign))
        rests = self.plan.sign * (price - market) > 0
        if order is not None and (rests or order.price == price):
            order.arrives = order.arrives and not rests
            order.names = {level.name} | (order.names if order.price == price else set())
            order.price = price
            return
        self._stand("TARGET", None, at_ms)
        self.orders.append(
            RestingProtection(
                "TARGET", price, arrives=not rests, since_ms=at_ms, names={level.name}
            )
        )

    # ------------------------------------------------------------ the market

    def _expire(self, at_ms: int) -> None:
        if self.sent and at_ms - self.sent_ms > FILL_WITHIN_MS:
            self.sent = 0  # M12: the target stands

    def _due(self, at_ms: int, bid: int, ask: int) -> None:
        plan = self.plan
        if plan is None:
            return
        is_over, age_ms = plan.until is not None and at_ms >= plan.until, at_ms - self.opened_ms
        if not self.is_protected:
            if is_over and not self.sent:
                self.plan, self.wanted = None, self.held
        elif is_over or 0 < self.exits.limit_ms <= age_ms:
            if self._resting("UNTIL") is None:
                names = {"until" if is_over else "exits.time_limit"}
                self.orders.append(RestingProtection("UNTIL", since_ms=at_ms, names=names))
        else:
            by_age = self.exits.by_age(age_ms)
            target = nearest((plan.target, by_age), self.entry, plan.sign)
            if target is not plan.target:
                self.plan = replace(plan, target=target)
                self._arm_target(bid if self.held > 0 else ask, at_ms)

    def quote(self, quote: Quote) -> None:
        """Meet *quote*."""
        self.fills, before, at_ms = [], self.held, quote.market_ms
        self._expire(at_ms)
        self._due(at_ms, quote.bid, quote.ask)
        left = {1: quote.ask_size, -1: quote.bid_size}
        stops = [resting for resting in self.orders if resting.role != "TARGET"]
        armed = list(self.orders)
        for order in stops:
            if order in self.orders:
                self._stop_meets(order, quote, left)
        if self.sent:
            sign = 1 if self.sent > 0 else -1
            quantity = min(abs(self.sent), left[sign])
            if quantity:
                price = quote.ask if sign > 0 else quote.bid
                self._fill("SIGNAL", sign * quantity, price, at_ms)
                left[sign] -= quantity
        for order in [
            resting for resting in armed if resting.role == "TARGET" and resting in self.orders
        ]:
            self._target_meets(order, quote, left, abs(before))
        self._follow(quote.bid, quote.ask, armed)
        self._reacted(before, 0, (quote.bid + quote.ask) // 2, at_ms)

    def _stop_meets(self, order: RestingProtection, quote: Quote, left: dict[int, int]) -> None:
        sign = 1 if self.held > 0 else -1
        far = quote.bid if sign > 0 else quote.ask
        if order.role != "UNTIL" and sign * (far - order.price) <= 0:
            order.is_triggered = True
        if order.role == "UNTIL" or order.is_triggered:
            quantity = min(abs(self.held), left[-sign])
            if quantity:
                self._fill(order.role, -sign * quantity, far, quote.market_ms)
                left[-sign] -= quantity

    def _target_meets(
        self, order: RestingProtection, quote: Quote, left: dict[int, int], most: int
    ) -> None:
        """Fill the target, which is as large as the position was before the quote: *most*."""
        sign = 1 if self.held > 0 else -1
        far = quote.bid if sign > 0 else quote.ask
        beyond = sign * (far - order.price)
        arrives, order.arrives = order.arrives, False
        quantity = min(abs(self.held), left[-sign], most)
        if quantity and (beyond >= 0 if arrives else beyond > 0):
            self._fill("TARGET", -sign * quantity, far if arrives else order.price,
                       quote.market_ms, is_maker=not arrives)  # fmt: skip
            if quantity == most:
                self._stand("TARGET", None, 0)

    def _follow(self, bid: int, ask: int, armed: list[RestingProtection]) -> None:
        order = self._resting("TRAILING")
        if order is None or order.is_triggered or not any(order is resting for resting in armed):
            return
        if self.held > 0:
            order.price = max(order.price, bid - self.follows_by)
        else:
            order.price = min(order.price, ask + self.follows_by)

    def bar(self, bar: Bar, *, is_missed: bool = False) -> None:
        """Meet *bar*: its open, and then the path that is worse (B4, E12, E16)."""
        self.fills, before, opened = [], self.held, bar.open_time_ms
        if is_missed:
            self._expire(bar.close_time_ms)
        self._due(opened, bar.open, bar.open)
        until = self._resting("UNTIL")
        if until is not None and until.since_ms <= opened:
            self._fill("UNTIL", -self.held, bar.open, opened)
        if self.sent and not is_missed:
            self._fill("SIGNAL", self.sent, bar.open, opened)
        self._reacted(before, 0, bar.open, opened)
        before, since = self.held, len(self.fills)
        met = [
            resting
            for resting in self.orders
            if resting.since_ms <= opened and resting.role != "UNTIL"
        ]
        if met:
            self._walk(bar, met)
        self._reacted(before, since, bar.open, bar.close_time_ms)

    def _walk(self, bar: Bar, met: list[RestingProtection]) -> None:
        sign = 1 if self.held > 0 else -1
        for order in sorted(met, key=lambda resting: resting.role == "TARGET"):
            beyond = sign * (bar.open - order.price)
            if order.role != "TARGET" and (beyond <= 0 or order.is_triggered):
                self._fill(order.role, -self.held, bar.open, bar.open_time_ms)
                return
            if order.role == "TARGET" and (beyond >= 0 if order.arrives else beyond > 0):
                price = bar.open if order.arrives else order.price
                self._fill("TARGET", -self.held, price, bar.open_time_ms,
                           is_maker=not order.arrives)  # fmt: skip
                return
            order.arrives = False
        ways = [
            self._way(met, (bar.open, bar.high, bar.low, bar.close)),
            self._way(met, (bar.open, bar.low, bar.high, bar.close)),
        ]
        left = [sign * (bar.close if fill is None else fill[1]) for fill, _ in ways]
        fill, at = ways[0] if left[0] <= left[1] else ways[1]
        if fill is not None:
            self._fill(fill[0], -self.held, fill[1], bar.open_time_ms,
                       is_maker=fill[0] == "TARGET")  # fmt: skip
        elif at is not None:
            trailing = self._resting("TRAILING")
            assert trailing is not None
            trailing.price = at

    def _way(
        self, met: list[RestingProtection], path: tuple[int, ...]
    ) -> tuple[tuple[str, int] | None, int | None]:
        """Return what *path* fills and for what, and where the trailing stop is after it."""
        sign = 1 if self.held > 0 else -1
        stands = {order.role: order.price for order in met}

        def followed(price: int) -> None:
            if "TRAILING" in stands:
                at = price - sign * self.follows_by
                stands["TRAILING"] = sign * max(sign * at, sign * stands["TRAILING"])

        followed(path[0])
        for start, end in pairwise(path):
            if sign * (end - start) < 0:
                hit = [
                    (sign * -price, place, role, price)
                    for place, (role, price) in enumerate(stands.items())
                    if role != "TARGET" and sign * end <= sign * price <= sign * start
                ]
                if hit:
                    return min(hit)[2:], None
            elif "TARGET" in stands and sign * end > sign * stands["TARGET"]:
                return ("TARGET", stands["TARGET"]), None
            elif end == start:
                touched = [
                    level for level in stands.items() if level[0] != "TARGET" and level[1] == end
                ]
                if touched:
                    return touched[0], None
            followed(end)
        return None, stands.get("TRAILING")

    # ------------------------------------------------------------ decisions

    def decide(self, bar: Bar, signal: Signal) -> bool:
        """Act on *signal* at the close of *bar*; return whether it was refused."""
        sign, at_ms = SIGNS.get(signal.action, 0), bar.close_time_ms
        self._expire(at_ms)
        if signal.action is Action.FLAT or sign * self.waits < 0:
            self.waits = 0
        if signal.action is Action.FLAT:
            self._want(0, at_ms)
            if self.is_protected:
                self.next = Plan(0)
            else:
                self.plan = None
        elif sign:
            if sign == self.waits and not (signal.reenter or self.exits.reenter):
                return True
            try:
                plan = self._planned(signal, sign, bar.close, at_ms)
            except NoPlan:
                self._want(self.wanted, at_ms)
                return True
            self._want(sign * round(self.quantity * signal.strength), at_ms)
            self._protect(plan, bar.close, at_ms)
        else:
            self._want(self.wanted, at_ms)
        return False

    def _want(self, target: int, at_ms: int) -> None:
        if target != self.wanted:
            self.wanted, self.sent = target, 0
        if not self.sent and target != self.held:
            self.sent, self.sent_ms = target - self.held, at_ms

    def _protect(self, plan: Plan, close: int, at_ms: int) -> None:
        old = self.plan
        if old is not None and old.sign != plan.sign and self.is_protected:
            self.next = plan
            return
        is_nearer = True
        if old is not None and old.sign == plan.sign:
            standing = self._resting("TRAILING")
            if plan.trailing is None:
                is_nearer = False
            elif standing is not None:
                is_nearer = tick(plan.trailing.away(self.entry)) < self.follows_by
            if not is_nearer:
                plan = Plan(plan.sign, plan.stop, plan.target, old.trailing, plan.until)
        self.plan, self.next, self.waits = plan, None, 0
        if self.is_protected:
            self._arm(close, at_ms, is_nearer=is_nearer)
        if self._is_nothing(plan):
            self.plan = None

    def _planned(self, signal: Signal, sign: int, close: int, at_ms: int) -> Plan:
        """Return what *signal* and the configuration ask for; raise ``NoPlan`` (E9, E10)."""
        if signal.until is not None and signal.until <= at_ms:
            raise NoPlan
        is_held = sign * self.held > 0
        entry = self.entry if is_held else close
        levels: dict[str, Level | None] = {}
        for name, direction in (("stop", -sign), ("target", sign), ("trailing", -sign)):
            named = self._level(name, getattr(signal, name))
            configured = self._configured(name, sign, direction)
            for level in (named, None if is_held else configured):
                if level is None:
                    continue
                at = level.at(entry, direction) + (close - entry if name == "trailing" else 0)
                if direction * (at - close) < TICK or at < TICK:
                    raise NoPlan
            by_age = self.exits.by_age(at_ms - self.opened_ms if is_held else 0)
            by_age = by_age if name == "target" else None
            levels[name] = nearest((named, configured, by_age), entry, direction)
        return Plan(sign, **levels, until=signal.until)

    def _configured(self, name: str, sign: int, direction: int) -> Level | None:
        """Return the level of ``[exits]``: where its entry set it, if it still stands (E20)."""
        distance: tuple[str, float] | None = getattr(self.exits, name)
        if distance is None:
            return None
        (unit, number), key, plan = distance, f"exits.{KEYS[name]}", self.plan
        before = None if plan is None or plan.sign != sign else getattr(plan, name)
        if sign * self.held > 0 and isinstance(before, Level) and before.name == key:
            return before
        if unit == "%":
            return Level(key, share=Fraction(number) / 100)
        if unit == "atr":
            return Level(key, distance=round(Fraction(number) * self._mean_range()))
        if self.forecast is None:
            raise NoPlan
        mean, stdev, volatility = self.forecast
        moved = direction * number * volatility
        if unit == "q":  # of the position's return, which a short gets where the price falls
            moved = sign * (sign * mean + quantile(number) * stdev)
        return Level(key, share=Fraction(direction * (exp(moved) - 1)))

    def _level(self, name: str, distance: Distance | None) -> Level | None:
        match distance:
            case None:
                return None
            case Percent(value=number) | Volatility(multiple=number) | (int() | float() as number):
                if not isfinite(number):
                    raise NoPlan
        match distance:
            case Percent(value=number):
                return Level(name, share=Fraction(number) / 100)
            case Volatility(multiple=multiple):
                return Level(name, distance=round(Fraction(multiple) * self._mean_range()))
            case number:
                units, close = round(Fraction(number) * UNITS), self.bars[-1].close
                is_trail = name == "trailing"
                most = close / 2 if is_trail else 10 * close
                if number <= 0 or units > most or (not is_trail and 10 * units < close):
                    raise NoPlan  # E8
                return Level(name, distance=units) if is_trail else Level(name, price=tick(units))

    def _mean_range(self) -> int:
        """Return the mean true range of the last bars; raise ``NoPlan`` before (E9)."""
        last = self.bars[-RANGE_BARS - 1 :]
        if len(last) <= RANGE_BARS:
            raise NoPlan
        widths = [
            max(bar.high - bar.low, abs(bar.high - old.close), abs(bar.low - old.close))
            for old, bar in pairwise(last)
        ]
        return round(Fraction(sum(widths), RANGE_BARS))
