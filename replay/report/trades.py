"""Closed trades out of fills, with their reasons, and what trading cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Final

import numpy as np

from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.replay.report.record import Ledger, RunRecord
from tracepaper.replay.report.tables import cause
from tracepaper.storage.run_views import Row
from tracepaper.strategies.market import DAY_MS, divide_half_even
from tracepaper.strategies.types import MONEY_DECIMALS, MONEY_SCALE, FillModel, Instrument, Side


@dataclass(frozen=True)
class RoundTrip:
    """One closed trade of one instrument.

    ``first`` and ``last`` are places in the fills that were given; ``quantity`` is the largest
    position it held, signed; ``profit`` is money after fees (10⁻¹⁰, like the fills').
    """

    first: int
    last: int
    quantity: int
    profit: int
    fees: int


def round_trips(
    quantities: Sequence[int], notionals: Sequence[int], fees: Sequence[int]
) -> list[RoundTrip]:
    """Return the closed trades of one instrument's fills, oldest first.

    *quantities* are signed (buys positive), *notionals* and *fees* are money and not negative.
    From flat to flat the profit is what came in less what went out, so nothing is rounded; a
    fill that turns the position is shared between the two trades by quantity, half-even. A
    trade that is still open is not returned.
    """
    trips: list[RoundTrip] = []
    held = first = peak = cash = paid = 0
    for place, (quantity, notional, fee) in enumerate(
        zip(quantities, notionals, fees, strict=True)
    ):
        if quantity == 0:
            continue
        if held == 0:
            first, peak, cash, paid = place, 0, 0, 0
        sign = 1 if quantity > 0 else -1
        turned = held * quantity < 0 and abs(quantity) > abs(held)
        share = abs(held) if turned else abs(quantity)
        closing_notional = divide_half_even(notional * share, abs(quantity))
        closing_fee = divide_half_even(fee * share, abs(quantity))
        cash -= sign * closing_notional
        paid += closing_fee
        held += quantity
        if held == 0 or turned:
            trips.append(RoundTrip(first, place, peak, cash - paid, paid))
            cash, paid = -sign * (notional - closing_notional), fee - closing_fee
            first, peak = place, held
        elif abs(held) > abs(peak):
            peak = held
    return trips


_QUANTITY_DECIMALS: Final = 18  # no instrument has more


@dataclass(frozen=True)
class ClosedTrade:
    """One closed trade; prices are means over its fills, money in quote currency."""

    instrument: str
    side: str  # LONG or SHORT
    quantity: float  # the most that it held, not negative
    entered_ms: int
    left_ms: int
    entry_price: float
    exit_price: float
    profit: float  # after fees, before funding
    fees: float
    return_bp: float  # profit by entry notional, in basis points
    entry_reason: str
    exit_reason: str
    entry_sequence: int  # of the decision that opened it
    exit_sequence: int

    @property
    def held_ms(self) -> int:
        """How long it was held."""
        return self.left_ms - self.entered_ms


@dataclass(frozen=True)
class TradeGroup:
    """Some closed trades: all, those of one side, or those that were left for one reason."""

    name: str
    trades: tuple[ClosedTrade, ...]

    @property
    def profit(self) -> float:
        """What they earned together."""
        return sum(trade.profit for trade in self.trades)

    @property
    def won(self) -> float | None:
        """The share that earned after costs."""
        if not self.trades:
            return None
        return sum(trade.profit > 0 for trade in self.trades) / len(self.trades)

    @property
    def days(self) -> int:
        """The UTC days on which one of them was left."""
        return len({trade.left_ms // DAY_MS for trade in self.trades})

    @property
    def mean_return(self) -> tuple[float, float | None] | None:
        """The mean return as a fraction, and its error by the day on which each was left."""
        if not self.trades:
            return None
        returns = np.array([trade.return_bp for trade in self.trades]) / 1e4
        _, day = np.unique([trade.left_ms // DAY_MS for trade in self.trades], return_inverse=True)
        by_day = np.bincount(day, weights=returns - returns.mean()) / returns.size
        mean = float(returns.mean())
        if by_day.size < 2:  # one degree of freedom is spent
            return mean, None
        return mean, float(np.sqrt(by_day.size / (by_day.size - 1) * (by_day**2).sum()))

    @property
    def held_ms(self) -> float | None:
        """The median time in the market."""
        return float(np.median([trade.held_ms for trade in self.trades])) if self.trades else None


def groups_of(closed: Sequence[ClosedTrade]) -> list[TradeGroup]:
    """Return all of the *closed* trades, the long, the short, and those of each exit's cause."""
    sides = [
        TradeGroup(side.lower(), tuple(trade for trade in closed if trade.side == side))
        for side in ("LONG", "SHORT")
    ]
    causes = Counter(cause(trade.exit_reason) for trade in closed)
    exits = [
        TradeGroup(f"left: {why}", tuple(t for t in closed if cause(t.exit_reason) == why))
        for why, _ in causes.most_common()
    ]
    return [TradeGroup("all", tuple(closed)), *sides, *exits]


@dataclass(frozen=True)
class Costs:
    """What trading cost, in quote currency: positive where paid.

    Spread and slippage are the distance from each fill's reference price (the bar's open, or the
    middle of the quote), rounding to whole ticks included. ``gross`` is the profit without any.
    """

    fee: float
    spread: float
    slippage: float
    funding: float
    gross: float
    net: float


def trades(ledger: Ledger, instruments: Mapping[str, Instrument]) -> list[ClosedTrade]:
    """Return the closed trades of *ledger* in the order in which they were left."""
    found = []
    for instrument in sorted({fill["instrument"] for fill in ledger.fills}):
        fills = [fill for fill in ledger.fills if fill["instrument"] == instrument]
        known = instruments[instrument]
        step = known.quantity_step * 10 ** (_QUANTITY_DECIMALS - known.quantity_decimals)
        signed = _signed(fills, step)
        trips = round_trips(
            signed,
            [_scaled(fill["notional_text"], MONEY_DECIMALS) for fill in fills],
            [_scaled(fill["fee_text"], MONEY_DECIMALS) for fill in fills],
        )
        found += [_trade(trip, fills, signed) for trip in trips]
    return sorted(found, key=lambda trade: (trade.left_ms, trade.instrument))


def closed_trades(record: RunRecord, ledger: Ledger) -> list[ClosedTrade]:
    """Return the closed trades of *ledger* but those over a split that was not adjusted."""
    split_ms = {
        name: [int(record.bars[name].open_time_ms[place]) for place, _ in every]
        for name, every in record.splits.items()
    }
    return [
        trade
        for trade in trades(ledger, record.instruments)
        if not any(
            trade.entered_ms < at <= trade.left_ms for at in split_ms.get(trade.instrument, ())
        )
    ]


def costs(ledger: Ledger, terms: ExecutionCosts) -> Costs:
    """Return what the fills of *ledger* cost under *terms*."""
    spread = slippage = 0.0
    for fill in ledger.fills:
        distance = abs(fill["price"] - fill["reference_price"]) * fill["quantity"]
        share = _slippage_share(fill, terms)
        slippage += share * distance
        spread += (1.0 - share) * distance
    net = float(ledger.equity[-1] - ledger.equity[0])
    gross = net + ledger.fees_paid + spread + slippage + ledger.funding_paid
    return Costs(ledger.fees_paid, spread, slippage, ledger.funding_paid, gross, net)


_OF_BARS: Final = (FillModel.NEXT_OPEN, FillModel.BAR_PATH)


def _slippage_share(fill: Row, terms: ExecutionCosts) -> float:
    """Return which part of a fill's distance from its reference is slippage; the rest is spread."""
    if not (terms.slippage or terms.ranges or terms.impact):
        return 0.0
    distance = abs(fill["price"] - fill["reference_price"])
    if fill["model"] in _OF_BARS:
        if not terms.ranges:
            return terms.slippage / (terms.slippage + terms.half_spread)
        spread = fill["reference_price"] * terms.half_spread / MONEY_SCALE
        return max(0.0, 1.0 - spread / distance) if distance else 0.0
    moved = fill["price"] * terms.slippage / (MONEY_SCALE + terms.slippage)
    return min(1.0, moved / distance) if distance else 0.0


def _signed(fills: Sequence[Row], step: int) -> list[int]:
    """Return the quantities that the fills moved, buys positive, as integers of 10⁻¹⁸.

    A buy on spot pays its fee in base, so less arrives than was bought. What a sale then leaves
    below one *step* cannot be sold: that sale counts as the end of the trade.
    """
    moved, held = [], 0
    for fill in fills:
        quantity = _scaled(fill["quantity_text"], _QUANTITY_DECIMALS)
        fee = _scaled(fill["fee_base_text"], _QUANTITY_DECIMALS)
        signed = quantity - fee if fill["side"] == Side.BUY else -quantity
        if signed < 0 < held + signed < step:
            signed = -held
        moved.append(signed)
        held += signed
    return moved


def _trade(trip: RoundTrip, fills: Sequence[Row], signed: Sequence[int]) -> ClosedTrade:
    """Return a round trip with the prices and reasons of its fills."""
    side = 1 if trip.quantity > 0 else -1
    within = range(trip.first, trip.last + 1)
    first, last = fills[trip.first], fills[trip.last]
    before, held = [0], list(accumulate(signed))
    before += held
    # Of a fill that turned the position only the part of this trade counts.
    entry = _mean_price(
        (fills[place], min(abs(signed[place]), abs(held[place])))
        for place in within
        if signed[place] * side > 0
    )
    leave = _mean_price(
        (fills[place], min(abs(signed[place]), abs(before[place])))
        for place in within
        if signed[place] * side < 0
    )
    quantity = abs(trip.quantity) / 10**_QUANTITY_DECIMALS
    profit = trip.profit / MONEY_SCALE
    return ClosedTrade(
        instrument=first["instrument"],
        side="LONG" if side > 0 else "SHORT",
        quantity=quantity,
        entered_ms=first["filled_ms"],
        left_ms=last["filled_ms"],
        entry_price=entry,
        exit_price=leave,
        profit=profit,
        fees=trip.fees / MONEY_SCALE,
        return_bp=1e4 * profit / (entry * quantity),
        entry_reason=first["reason"],
        exit_reason=last["reason"],
        entry_sequence=_decided_at(first),
        exit_sequence=_decided_at(last),
    )


def _mean_price(fills: Iterable[tuple[Row, int]]) -> float:
    """Return the mean price of *fills* by the quantity that stands beside each."""
    weighed = [(fill["price"], quantity) for fill, quantity in fills]
    first = float(weighed[0][0])  # so that fills at one price have that price, to the last bit
    moved = sum((price - first) * quantity for price, quantity in weighed)
    return first + float(moved) / sum(quantity for _, quantity in weighed)


def _decided_at(fill: Row) -> int:
    """Return the sequence of the step in which the fill's order was born."""
    return int(str(fill["order_id"]).partition("-")[0])


def _scaled(text: str, decimals: int) -> int:
    """Return exact decimal *text* as an integer of 10^-decimals."""
    return int(Decimal(text).scaleb(decimals))
