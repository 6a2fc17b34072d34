"""The prices of exit orders, from a signal and from the [exits] of the configuration.

A :class:`Plan` holds the levels of one position. If the signal and the configuration both name a
level, the nearer one counts, as if both orders rested. The levels of the configuration are set with
the entry; a repeated signal does not move them.

The rules are docs/protection.md, E8 to E10 and E18 to E22.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import expm1, inf, isfinite, nan
from statistics import NormalDist
from typing import Any, Final, NamedTuple

from msgspec import Struct

from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.broker.rules import number_fault
from tracepaper.strategies.api.context import Distance, Percent, Signal, Volatility
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action, OrderRole
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import RATE_SCALE, divide_half_even, interval_text, time_of

NO_VOLATILITY: Final = "no volatility yet"
_PRICE_MOST: Final = 2**53
_SHARE_MOST: Final = 1e4
"""The largest stored distance from the entry price, as a multiple of it."""


class Level(Struct, frozen=True, array_like=True):
    """The level of a protective order: a price, or a distance from the entry price."""

    value: int  # a price or a distance in units of the price; or 10⁻¹⁰ of the entry price
    is_price: bool
    is_share: bool
    reason: str  # of its order

    def distance(self, entry: int) -> int:
        """Return the distance from the price *entry*, in units of the price."""
        return divide_half_even(entry * self.value, RATE_SCALE) if self.is_share else self.value

    def at(self, entry: int, direction: int) -> int:
        """Return the price; *direction* is 1 for a level above the entry and -1 below it."""
        return self.value if self.is_price else entry + direction * self.distance(entry)


class Plan(Struct, frozen=True, array_like=True):
    """The levels that protect a position of one side, or one that is still to be entered."""

    sign: int  # 1 for long, -1 for short
    stop: Level | None = None
    target: Level | None = None
    trailing: Level | None = None
    until_ms: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it names no exit order."""
        return (self.stop, self.target, self.trailing, self.until_ms) == (None,) * 4


class ProtectionState(Struct, frozen=True, array_like=True):
    """The stored state of the exit orders of one line."""

    plan: Plan | None = None
    trail: int = 0  # distance of the resting trailing stop to the price; 0 without one
    closed: int = 0  # sign of the position that an exit order closed, until another signal; or 0
    closed_by: OrderRole | None = None  # the role of that exit order
    next_plan: Plan | None = None  # replaces the plan once the plan's position is closed


CONFIGURED: Final = "exits."
"""The prefix of the reason of an order by the configuration; its key follows: exits.stop_loss."""


class ExpectedReturn(NamedTuple):
    """The model's forecast of the log return to the gate's horizon."""

    mean: float  # multiplied by the slope of the model's card
    stdev: float
    volatility: float


class ExitDistance(NamedTuple):
    """A configured distance from the entry price: ``2%``, ``2 atr``, ``q0.05``."""

    key: str  # exits.KEY, with which the reason of its orders begins
    unit: str  # "%", "atr", "volatility" or "q"
    number: float
    text: str

    @classmethod
    def of(cls, key: str, text: str | None) -> ExitDistance | None:
        """Parse the *text* of the key *key* of [exits]; None without one."""
        if text is None:
            return None
        name = CONFIGURED + key
        if text.startswith("q"):
            return cls(name, "q", float(text[1:]), text)
        unit = "%" if text.endswith("%") else text.partition(" ")[2]
        return cls(name, unit, float(text.removesuffix(unit)), text)

    @property
    def reason(self) -> str:
        """The reason of its orders: without the price, so that it is the same at every bar."""
        match self.unit:
            case "%":
                return f"{self.key} {self.number:g} %"
            case "atr":
                return f"{self.key} {self.number:g} x ATR(1d)"
            case _:
                return f"{self.key} {self.text}"

    def share(self, sign: int, direction: int, expected: ExpectedReturn) -> float:
        """Return the distance in *direction* as a share of the entry price.

        *sign* is that of the position. A quantile is one of the position's normally distributed
        return. The share is negative if that return lies on the other side of the entry price, and
        infinite if it overflows.
        """
        if self.unit == "volatility":
            log_return = direction * self.number * expected.volatility
        else:
            deviations = NormalDist().inv_cdf(self.number)
            log_return = expected.mean + sign * deviations * expected.stdev
        try:
            return direction * expm1(log_return)
        except OverflowError:
            return direction * inf


class Exits(NamedTuple):
    """The [exits] of a configuration, which protect every position that a signal enters."""

    stop: ExitDistance | None
    target: ExitDistance | None
    trailing: ExitDistance | None
    roi: tuple[tuple[int, Level], ...]  # the target from each age (ms) on, by rising age
    time_limit_ms: int  # 0: none
    reenter: bool

    @classmethod
    def of(cls, section: Mapping[str, Any], forecaster: Forecaster | None) -> Exits | None:
        """Parse the [exits] *section*; None if it names nothing.

        Raises ``ConfigInvalid`` if it needs a measure that *forecaster* does not forecast.
        """
        exits = cls(
            ExitDistance.of("stop_loss", section["stop_loss"]),
            ExitDistance.of("take_profit", section["take_profit"]),
            ExitDistance.of("trailing", section["trailing"]),
            tuple(_roi_levels(section["minimal_roi"])),
            time_of(section["time_limit"] or "") or 0,
            section["reenter"],
        )
        available: frozenset[str] = frozenset() if forecaster is None else forecaster.measures
        if missing := sorted(exits.measures - available):
            raise ConfigInvalid(
                f"[exits] follows the forecast, and this strategy gets no {' and '.join(missing)} "
                "of a model; write 2% or 2 atr, or choose a strategy and a model that forecast it."
            )
        return exits if any(exits) else None

    @property
    def limit_reason(self) -> str:
        """The reason of the order that closes at the time limit."""
        return f"{CONFIGURED}time_limit {interval_text(self.time_limit_ms)}"

    @property
    def _units(self) -> set[str]:
        distances = (self.stop, self.target, self.trailing)
        return {distance.unit for distance in distances if distance is not None}

    @property
    def uses_atr(self) -> bool:
        """Whether it needs the mean range of a day."""
        return "atr" in self._units

    @property
    def measures(self) -> frozenset[str]:
        """The measures that it needs of the model's forecast."""
        wanted = {"volatility"} if "volatility" in self._units else set()
        return frozenset(
            wanted | ({"mean_return", "stdev_return"} if "q" in self._units else set())
        )

    def roi_at(self, age_ms: int) -> Level | None:
        """Return the target of minimal_roi for a position that was opened *age_ms* ago."""
        return next((level for from_ms, level in reversed(self.roi) if age_ms >= from_ms), None)

    def next_age_ms(self, plan: Plan, entry: int) -> int | None:
        """Return the first age (ms) at which a time limit or minimal_roi applies to a position.

        *entry* is its entry price. None if no age changes it.
        """
        ages = [self.time_limit_ms] if self.time_limit_ms else []
        for from_ms, level in self.roi:
            if nearest((plan.target, level), entry, plan.sign) is not plan.target:
                ages.append(from_ms)
        return min(ages, default=None)


def _roi_levels(table: Mapping[str, str]) -> Iterator[tuple[int, Level]]:
    """Yield the targets of minimal_roi, each with the age (ms) from which it holds."""
    for age, text in table.items():
        percent = text.removesuffix("%")
        age_ms = time_of(age) or 0
        reason = f"{CONFIGURED}minimal_roi {percent} %" + (f" after {age}" if age_ms else "")
        rate = round(float(percent) / 100 * RATE_SCALE)
        yield age_ms, Level(rate, is_price=False, is_share=True, reason=reason)


def nearest(levels: Iterable[Level | None], entry: int, direction: int) -> Level | None:
    """Return the level nearest to *entry* in *direction*, the first of equal ones."""
    candidates = (level for level in levels if level is not None)
    return min(candidates, key=lambda level: direction * level.at(entry, direction), default=None)


def _clamped(value: float, most: float) -> float:
    """Return *value* clamped to [-most, most], so that it fits in an integer."""
    return min(max(value, -most), most)


class HeldPosition(NamedTuple):
    """An open position on the side of a signal."""

    plan: Plan | None
    age_ms: int


class Planner:
    """Turns the exits of a signal and of [exits] into a plan in integers of one instrument."""

    def __init__(self, instrument: Instrument, exits: Exits | None = None) -> None:
        self._decimals = instrument.price_decimals
        self._tick = instrument.tick_size
        self._exits = exits

    def plan(
        self,
        signal: Signal,
        price: int,
        entry: int,
        at_ms: int,
        day_range: MeanRange,
        *,
        expected: ExpectedReturn | None = None,
        held: HeldPosition | None = None,
    ) -> Plan | str:
        """Return the plan of *signal*, decided at the close *price*; or why there is none.

        Seen from the close, a stop has to be where the position loses and a target where it gains.
        *entry* is the entry price, or the close before an entry. For a position that is *held* the
        levels of [exits] are not checked against the close.
        """
        sign = 1 if signal.action is Action.LONG else -1
        if signal.until is not None and signal.until <= at_ms:
            return "until is over already"
        levels: dict[str, Level | None] = {}
        for name, distance, direction in (
            ("stop", signal.stop, -sign),
            ("target", signal.target, sign),
            ("trailing", signal.trailing, -sign),
        ):
            named = self._level(name, distance, price, day_range)
            configured = self._configured(name, sign, direction, price, day_range, expected, held)
            candidates: list[Level | None] = []
            for level, is_checked in ((named, True), (configured, held is None)):
                if isinstance(level, str):
                    return level
                candidates.append(level)
                if level is None or not is_checked:
                    continue
                at = level.at(entry, direction)
                if name == "trailing":
                    at += price - entry
                if refusal := self._refusal(level, at, price, direction):
                    return refusal
            if name == "target" and self._exits is not None:
                candidates.append(self._exits.roi_at(0 if held is None else held.age_ms))
            levels[name] = nearest(candidates, entry, direction)
        return Plan(sign, **levels, until_ms=signal.until)

    def distance(
        self,
        signal: Signal,
        price: int,
        day_range: MeanRange,
        expected: ExpectedReturn | None = None,
    ) -> int:
        """Return the distance from *price* to the nearest stop of *signal*, in units of the price.

        0 without a stop that could protect the position.
        """
        direction = -1 if signal.action is Action.LONG else 1
        distances = [
            direction * (level.at(price, direction) - price)
            for name in ("stop", "trailing")
            for level in (
                self._level(name, getattr(signal, name), price, day_range),
                self._configured(name, -direction, direction, price, day_range, expected),
            )
            if isinstance(level, Level)
        ]
        return max(min(distances, default=0), 0)

    def _configured(
        self,
        name: str,
        sign: int,
        direction: int,
        price: int,
        day_range: MeanRange,
        expected: ExpectedReturn | None,
        held: HeldPosition | None = None,
    ) -> Level | str | None:
        """Return the level of [exits] for *name*, or why there is none; a *held* one stays."""
        distance: ExitDistance | None = getattr(self._exits, name, None)
        if distance is None:
            return None
        if held is not None and held.plan is not None and held.plan.sign == sign:
            before: Level | None = getattr(held.plan, name)
            if before is not None and before.reason == distance.reason:
                return before
        if distance.unit == "%":
            return self._level(name, Percent(distance.number), price, day_range, distance.reason)
        if distance.unit == "atr":
            return self._level(name, Volatility(distance.number), price, day_range, distance.reason)
        share = nan if expected is None else distance.share(sign, direction, expected)
        if not isfinite(share):
            return f"no forecast from which to place {distance.key}"
        share = _clamped(share, _SHARE_MOST)
        rate = round(share * RATE_SCALE)
        return Level(rate, is_price=False, is_share=True, reason=distance.reason)

    def _level(
        self,
        name: str,
        distance: Distance | None,
        price: int,
        day_range: MeanRange,
        reason: str = "",
    ) -> Level | str | None:
        """Return the level at *distance* with the close at *price*, or why there is none.

        *reason* is the reason of an order by [exits]; a level of the signal gets its own. A reason
        holds no price, since reports count orders by reason.
        """
        if distance is None:
            return None
        label = reason or {"trailing": "trailing stop"}.get(name, name)
        number = _number(distance)
        mean = day_range.mean() if isinstance(distance, Volatility) and isfinite(number) else 0
        if not isfinite(number) or mean is None:
            return NO_VOLATILITY if mean is None else f"{label} is not a finite number"
        if isinstance(distance, Percent):
            rate = round(_clamped(number / 100, _SHARE_MOST) * RATE_SCALE)
            reason = reason or f"{label} {number:g} %"
            return Level(rate, is_price=False, is_share=True, reason=reason)
        if isinstance(distance, Volatility):
            reason = reason or f"{label} {number:g} x ATR(1d)"
            units = round(_clamped(number * mean, 2.0 * _PRICE_MOST))
            return Level(units, is_price=False, is_share=False, reason=reason)
        is_price, close = name != "trailing", price / 10**self._decimals
        units = round(_clamped(number * 10**self._decimals, 2.0 * _PRICE_MOST))
        fault = number_fault(number, close, is_distance=not is_price)
        if fault is None and units < self._tick:
            fault = "less than a tick"
        if fault is not None:
            return f"{label} is {fault}; Percent(2) is 2 % of the entry price"
        units = self.to_tick(units) if is_price else units
        return Level(units, is_price=is_price, is_share=False, reason=label)

    def _refusal(self, level: Level, at: int, price: int, direction: int) -> str | None:
        """Return why *level*, at the price *at*, cannot protect with the close at *price*, or None.

        It has to be in *direction* of the close.
        """
        if direction * (at - price) < self._tick:
            side = "above" if direction > 0 else "below"
            return f"{level.reason} is not {side} the close"
        if at < self._tick or at > _PRICE_MOST:
            return f"{level.reason} is not a valid price"
        return None

    def to_tick(self, price: int) -> int:
        """Return *price* rounded to the nearest tick, at least one."""
        return max(divide_half_even(price, self._tick), 1) * self._tick


def _number(distance: Distance) -> float:
    match distance:
        case Percent(value=number) | Volatility(multiple=number):
            return number
        case number:
            return number
