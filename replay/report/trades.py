"""Closed trades, trading costs, markouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np

from tracepaper.daemon.broker.account import SIDES
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.exit_orders import waits_after
from tracepaper.daemon.broker.exit_plans import NO_VOLATILITY
from tracepaper.daemon.broker.orders import PROTECTIVE
from tracepaper.daemon.broker.rules import (
    NO_CASH,
    NO_MARGIN,
    below_notional,
    below_quantity,
    below_step,
)
from tracepaper.replay.report.metrics import mean_by_day
from tracepaper.replay.report.record import AccountRecord, RunRecord
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.gate import GATES, ThresholdKey
from tracepaper.strategies.types.decisions import FillModel, Liquidity
from tracepaper.strategies.types.market import Instrument, Side
from tracepaper.strategies.units import DAY_MS, RATE_SCALE

_LARGER: Final = "make the position larger by [sizing]"
_SMALLER: Final = "make the position smaller by [sizing]"
_ANOTHER: Final = (
    "signal FLAT or the other side in between, or set reenter in the signal or in [exits] "
    "(docs/protection.md, E15)"
)
_WARMER: Final = "let warmup hold a day of bars and one more (docs/protection.md, E9)"


def remedies_for(instruments: Iterable[Instrument]) -> dict[str, str]:
    """Return by an unfilled reason, as the broker writes it, what lets such a target be ordered."""
    remedies = {NO_VOLATILITY: _WARMER, NO_CASH: _SMALLER, NO_MARGIN: _SMALLER}
    remedies |= {waits_after(role): _ANOTHER for role in PROTECTIVE}
    for item in instruments:
        remedies |= {below(item): _LARGER for below in (below_step, below_quantity, below_notional)}
    of_sides = {
        f"{side}: {reason}": remedy for side in SIDES for reason, remedy in remedies.items()
    }
    return remedies | of_sides


_WORTH_SAYING: Final = 0.01
"""Share of the bars below which the largest cause is not named."""


class LargestCause(NamedTuple):
    """What most of a run's bars without a position were refused by, or left unfilled for."""

    kind: str  # "refused" or "unfilled"
    name: str  # the gate, or the reason
    bars: int
    decisions: int
    remedy: str  # what lets such a target be ordered; empty where nothing is known

    def __str__(self) -> str:
        """Return it as a line: the count first."""
        share = (
            f"{self.bars:,} of {self.decisions:,} bars ({100 * self.bars / self.decisions:.1f} %)"
        )
        return f"most {self.kind}: {share}, {self.name}" + (f": {self.remedy}" * bool(self.remedy))


def largest_causes(
    decisions: int,
    refused: Iterable[tuple[str, int]],
    unfilled: Iterable[tuple[str, int]],
    instruments: Iterable[Instrument] = (),
) -> Iterator[LargestCause]:
    """Yield what refused most of so many *decisions*, and what left most unfilled.

    *refused* counts them by gate, *unfilled* by reason, of *instruments*. What was rare is left
    out, and so is the warm-up, in which there is no signal yet.
    """
    judged = [(name, count) for name, count in refused if name != warm.name]
    for kind, counts in (("refused", judged), ("unfilled", unfilled)):
        name, count = max(counts, key=lambda pair: pair[1], default=("", 0))
        if count >= max(_WORTH_SAYING * decisions, 1):
            remedy = (
                _threshold(name) if kind == "refused" else remedies_for(instruments).get(name, "")
            )
            yield LargestCause(kind, name, count, decisions, remedy)


def _threshold(gate: str) -> str:
    threshold = GATES[gate].threshold
    if not isinstance(threshold, ThresholdKey):
        return ""
    return f"its threshold is [{GATES[gate].section}] {threshold.name}"


@dataclass(frozen=True)
class ClosedTrade:
    """One closed trade, by columns of ``v_trades``; money in quote currency."""

    instrument: str
    side: str  # LONG or SHORT
    quantity: float  # the most that it held, not negative
    opened_ms: int
    closed_ms: int
    entry_price: float
    exit_price: float
    profit: float  # after fees, before funding
    fees: float
    stake: float
    entry_reason: str
    exit_reason: str
    exit_model: str
    entry_sequence: int  # of the decision that opened it
    exit_sequence: int

    @property
    def return_bp(self) -> float:
        """Profit by what it held cost, in basis points."""
        return 1e4 * self.profit / self.stake

    @property
    def exit_cause(self) -> str:
        """Why it was left, without the amounts of a liquidation."""
        return "liquidated" if self.exit_model == FillModel.LIQUIDATION else self.exit_reason

    @property
    def held_ms(self) -> int:
        """How long it was held."""
        return self.closed_ms - self.opened_ms


@dataclass(frozen=True)
class TradeGroup:
    """A group of closed trades: all, those of one side, or those of one exit reason."""

    name: str
    trades: tuple[ClosedTrade, ...]

    @property
    def profit(self) -> float:
        """The sum of their profits."""
        return sum(trade.profit for trade in self.trades)

    @property
    def won(self) -> float | None:
        """The share with a profit after costs."""
        if not self.trades:
            return None
        return sum(trade.profit > 0 for trade in self.trades) / len(self.trades)

    @property
    def days(self) -> int:
        """The number of UTC days on which one of them was closed."""
        return len({trade.closed_ms // DAY_MS for trade in self.trades})

    @property
    def mean_return(self) -> tuple[float, float | None] | None:
        """The mean return as a fraction, and its error over the days of the exits."""
        returns = np.array([trade.return_bp for trade in self.trades]) / 1e4
        days = np.array([trade.closed_ms // DAY_MS for trade in self.trades], dtype=np.int64)
        return mean_by_day(returns, days)

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
    causes = Counter(trade.exit_cause for trade in closed)
    exits = [
        TradeGroup(f"left: {why}", tuple(t for t in closed if t.exit_cause == why))
        for why, _ in causes.most_common()
    ]
    return [TradeGroup("all", tuple(closed)), *sides, *exits]


@dataclass(frozen=True)
class Costs:
    """The costs of trading, in quote currency: positive where paid.

    Spread and slippage are the distance from each fill's reference price (the bar's open, or the
    middle of the quote), rounding to whole ticks included; of a liquidation that distance, from the
    price that called it, is ``liquidation``, and below zero where the exchange's fund bore a part.
    ``gross`` is the profit without any.
    """

    fee: float
    spread: float
    slippage: float
    liquidation: float
    funding: float
    gross: float
    net: float


def closed_trades(record: RunRecord, ledger: AccountRecord) -> list[ClosedTrade]:
    """Return the closed trades of *ledger* in the order of their exits.

    Those over an unadjusted split are left out.
    """
    split_ms = {
        name: [int(record.bars[name].open_time_ms[place]) for place, _ in every]
        for name, every in record.splits.items()
    }
    return [
        ClosedTrade(*_OF_TRADE(row))
        for row in sorted(ledger.trades, key=itemgetter("closed_ms", "instrument"))
        if not any(
            row["opened_ms"] < at <= row["closed_ms"] for at in split_ms.get(row["instrument"], ())
        )
    ]


_OF_TRADE: Final = itemgetter(*(of.name for of in fields(ClosedTrade)))


def costs(ledger: AccountRecord, terms: ExecutionCosts) -> Costs:
    """Sum the costs of the fills of *ledger* under *terms*."""
    spread = slippage = liquidation = 0.0
    for fill in ledger.fills:
        if fill["model"] == FillModel.LIQUIDATION:
            sign = 1 if fill["side"] == Side.BUY else -1
            liquidation += sign * (fill["price"] - fill["reference_price"]) * fill["quantity"]
            continue
        distance = abs(fill["price"] - fill["reference_price"]) * fill["quantity"]
        share = _slippage_share(fill, terms)
        slippage += share * distance
        spread += (1.0 - share) * distance
    net = float(ledger.equity[-1] - ledger.equity[0])
    paid = ledger.fees_paid + ledger.funding_paid + spread + slippage + liquidation
    return Costs(
        ledger.fees_paid, spread, slippage, liquidation, ledger.funding_paid, net + paid, net
    )


_BAR_MODELS: Final = (FillModel.NEXT_OPEN, FillModel.BAR_PATH)


def _slippage_share(fill: Row, terms: ExecutionCosts) -> float:
    """Return the share of slippage in a fill's distance from its reference; the rest is spread."""
    if not (terms.slippage or terms.ranges or terms.impact):
        return 0.0
    distance = abs(fill["price"] - fill["reference_price"])
    if fill["model"] in _BAR_MODELS:
        if not terms.ranges:
            return terms.slippage / (terms.slippage + terms.half_spread)
        spread = fill["reference_price"] * terms.half_spread / RATE_SCALE
        return max(0.0, 1.0 - spread / distance) if distance else 0.0
    moved = fill["price"] * terms.slippage / (RATE_SCALE + terms.slippage)
    return min(1.0, moved / distance) if distance else 0.0


AFTER_BARS: Final = (1, 5, 30)
"""After how many bars a markout compares the close with the price of a fill."""


class Markout(NamedTuple):
    """The returns from maker fills to the close some bars later; above 0 in the maker's favour."""

    name: str
    moved: Floats  # fractions of the fill's price, one a fill that has such a close
    days: Ints  # the UTC day of each

    @property
    def mean(self) -> tuple[float, float | None] | None:
        """The mean and its error by the day of the fill, as fractions; None without fills."""
        return mean_by_day(self.moved, self.days)

    @property
    def against(self) -> float | None:
        """The share of fills after which the price was worse than their own."""
        return float((self.moved < 0).mean()) if self.moved.size else None

    @property
    def mean_for(self) -> float | None:
        """The mean of those in the maker's favour, as a fraction."""
        return _mean(self.moved[self.moved > 0])

    @property
    def mean_against(self) -> float | None:
        """The mean of those that were against it."""
        return _mean(self.moved[self.moved < 0])


def markouts(record: RunRecord) -> list[Markout]:
    """Return the markouts of the run's fills as maker; empty where it has none."""
    fills = [fill for fill in record.account.fills if fill["liquidity"] == Liquidity.MAKER]
    closes = {
        key: record.bar_times.closes_of(bars.open_time_ms) for key, bars in record.bars.items()
    }
    results = []
    for after in AFTER_BARS if fills else ():
        moved, days = [], []
        for fill in fills:
            key = fill["instrument"]
            at = int(np.searchsorted(closes[key], fill["filled_ms"], side="right")) + after
            if at < closes[key].size:
                change = float(record.bars[key].close[at]) / fill["price"] - 1.0
                moved.append(change if fill["side"] == Side.BUY else -change)
                days.append(fill["filled_ms"] // DAY_MS)
        name = f"{after} bar{'s' if after > 1 else ''}"
        results.append(Markout(name, np.array(moved), np.array(days, dtype=np.int64)))
    return results


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None
