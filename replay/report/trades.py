"""Closed trades, costs and funding, markouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np

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
from tracepaper.daemon.session.models import NO_SIZE
from tracepaper.replay.document.values import Cells
from tracepaper.replay.report.metrics import mean_by_day, mean_of
from tracepaper.replay.report.record import AccountRecord, RunRecord
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.gate import GATES, ThresholdKey
from tracepaper.strategies.types.decisions import FillModel, Liquidity
from tracepaper.strategies.types.market import Instrument, Side
from tracepaper.strategies.units import DAY_MS, RATE_SCALE, count_of, minute_text, percent

_LARGER: Final = "make the position larger by [sizing]"
_BY_ANOTHER: Final = "choose another mode of [sizing], since the slope of the model's card is 0"
_SMALLER: Final = "make the position smaller by [sizing]"
_ANOTHER: Final = (
    "signal FLAT or the other side in between, or set reenter in the signal or in [exits] "
    "(docs/protection.md, E15)"
)
_WARMER: Final = "let warmup hold a day of bars and one more (docs/protection.md, E9)"


def remedies_for(instruments: Iterable[Instrument], warnings: Iterable[str]) -> dict[str, str]:
    """Return the remedy for each reason of an unfilled target, as the broker writes the reason.

    *warnings* are those of the run.
    """
    larger = _BY_ANOTHER if any(text.startswith(NO_SIZE) for text in warnings) else _LARGER
    remedies = {NO_VOLATILITY: _WARMER, NO_CASH: _SMALLER, NO_MARGIN: _SMALLER}
    remedies |= {waits_after(role): _ANOTHER for role in PROTECTIVE}
    for item in instruments:
        remedies |= {below(item): larger for below in (below_step, below_quantity, below_notional)}
    return remedies


_SYMBOLS_SHOWN: Final = 5
_CAUSE_MIN: Final = 0.01
"""Least share of the bars for the largest cause to be reported."""


class LargestCause(NamedTuple):
    """The gate that refused most bars of a run, or the reason that left most unfilled."""

    kind: str  # "refused" or "unfilled"
    name: str  # the gate, or the reason
    bars: int
    decisions: int
    remedy: str  # empty if none is known
    symbols: tuple[str, ...] = ()  # of a run of several: whose bars these were
    first_ms: int | None = None  # the open of the first such bar, if it is known

    def __str__(self) -> str:
        """Return one line that begins with the count."""
        share = (
            f"{self.bars:,} of {self.decisions:,} bars ({percent(self.bars / self.decisions, 1)})"
        )
        shown, more = self.symbols[:_SYMBOLS_SHOWN], len(self.symbols) - _SYMBOLS_SHOWN
        named = f" ({', '.join(shown)}{f' and {more} more' * (more > 0)})" if shown else ""
        if self.first_ms is not None:
            named = f"{named}, first at {minute_text(self.first_ms)}"
        remedy = f": {self.remedy}" * bool(self.remedy)
        return f"most {self.kind}: {share}, {self.name}{named}{remedy}"


def largest_causes(
    decisions: int,
    refused: Iterable[tuple[str, int]],
    unfilled: Iterable[tuple[str, int]],
    instruments: Collection[Instrument] = (),
    went_without: Callable[[str], Iterable[str]] = lambda _reason: (),
    warnings: Collection[str] = (),
    first_ms: Callable[[str], int | None] = lambda _reason: None,
) -> Iterator[LargestCause]:
    """Yield the gate that refused most *decisions*, and the reason that left most unfilled.

    *refused* has counts by gate, *unfilled* by reason; *instruments* give the reasons their
    remedies. *went_without* maps such a reason to the ids of the instruments that it left without
    an order, *first_ms* to the open of the first bar left so, and *warnings* are those of the run.
    Rare causes are left out, and so is the warm-up,
    which has no signals.
    """
    judged = [(name, count) for name, count in refused if name != warm.name]
    for kind, counts in (("refused", judged), ("unfilled", unfilled)):
        name, count = max(counts, key=lambda pair: pair[1], default=("", 0))
        if count >= max(_CAUSE_MIN * decisions, 1):
            remedy = remedies_for(instruments, warnings).get(name, "")
            if kind == "refused" and isinstance(key := GATES[name].threshold, ThresholdKey):
                remedy = f"its threshold is [{GATES[name].section}] {key.name}"
            symbols: tuple[str, ...] = ()
            since_ms = first_ms(name) if kind == "unfilled" else None
            if kind == "unfilled" and len(instruments) > 1:
                left = set(went_without(name))
                symbols = tuple(sorted(item.symbol for item in instruments if item.id in left))
            yield LargestCause(kind, name, count, decisions, remedy, symbols, since_ms)


@dataclass(frozen=True)
class ClosedTrade:
    """One closed trade, by columns of ``v_trades``; money in quote currency."""

    instrument: str
    side: str  # LONG or SHORT
    quantity: float  # largest position, not negative
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
    entry_sequence: int | None  # of the decision that opened it; None if that is another run's
    exit_sequence: int

    @property
    def return_bp(self) -> float:
        """Profit as a fraction of the stake, in basis points."""
        return 1e4 * self.profit / self.stake

    @property
    def exit_cause(self) -> str:
        """The reason of the exit, without the amounts of a liquidation."""
        return "liquidated" if self.exit_model == FillModel.LIQUIDATION else self.exit_reason

    @property
    def held_ms(self) -> int:
        """Time from entry to exit."""
        return self.closed_ms - self.opened_ms


def groups_of(closed: Sequence[ClosedTrade]) -> dict[str, list[ClosedTrade]]:
    """Return groups of *closed* trades: all, long, short, and one per cause of exit."""
    groups = {"all": list(closed)}
    for side in ("LONG", "SHORT"):
        groups[side.lower()] = [trade for trade in closed if trade.side == side]
    for cause, _ in Counter(trade.exit_cause for trade in closed).most_common():
        groups[f"left: {cause}"] = [trade for trade in closed if trade.exit_cause == cause]
    return groups


def group_row(name: str, trades: Sequence[ClosedTrade]) -> Cells:
    """Return the figures of a group of closed trades; the error is by UTC day of exit."""
    returns = np.array([trade.return_bp for trade in trades]) / 1e4
    profits = np.array([trade.profit for trade in trades])
    days = np.array([trade.closed_ms // DAY_MS for trade in trades], dtype=np.int64)
    return {
        "trades_of": name,
        "count": len(trades),
        "days": len(set(days.tolist())),
        "won": mean_of(profits > 0),
        "mean_return": mean_by_day(returns, days),
        "profit": sum(profits.tolist()),
        "median_held_ms": float(np.median([trade.held_ms for trade in trades])) if trades else None,
    }


@dataclass(frozen=True)
class CostsAndFunding:
    """What lies between gross and net profit, in quote currency: positive if paid.

    Spread and slippage are the distance of each fill from its reference price (the bar's open, or
    the middle of the quote), including rounding to whole ticks. For a liquidation, the distance
    from the price of the call is ``liquidation``, negative if the exchange's fund paid a part.
    ``gross`` is the profit without any of these. ``assumed`` names the costs that the configuration
    sets to 0 where candles, which have no spread, filled orders.
    """

    fee: float
    spread: float
    slippage: float
    liquidation: float
    funding: float
    gross: float
    net: float
    assumed: tuple[str, ...]


def closed_trades(ledger: AccountRecord, run_id: str | None = None) -> list[ClosedTrade]:
    """Return the closed trades of *ledger* in the order of their exits.

    The decisions are those of *run_id*, by default of the run that closed the trade.
    """
    rows = sorted(ledger.trades, key=itemgetter("closed_ms", "instrument"))
    trades = [ClosedTrade(*_TRADE_COLUMNS(row)) for row in rows]
    return [
        trade
        if row["entry_run_id"] == (run_id or row["run_id"])
        else replace(trade, entry_sequence=None)
        for trade, row in zip(trades, rows, strict=True)
    ]


_TRADE_COLUMNS: Final = itemgetter(*(field.name for field in fields(ClosedTrade)))


def costs_of(record: RunRecord, ledger: AccountRecord) -> CostsAndFunding:
    """Return the costs of *ledger*, over several runs the sums of each under its own terms."""
    if not record.parts:
        return costs_and_funding(ledger, record.terms)
    costs = [
        costs_and_funding(each, part.terms)
        for part in record.parts
        for each in (part.account, *part.shadows)
        if each.name == ledger.name
    ]
    amounts = [field.name for field in fields(CostsAndFunding) if field.name != "assumed"]
    sums = {name: sum(getattr(each, name) for each in costs) for name in amounts}
    assumed = dict.fromkeys(name for each in costs for name in each.assumed)
    return CostsAndFunding(**sums, assumed=tuple(assumed))


def costs_and_funding(ledger: AccountRecord, terms: ExecutionCosts) -> CostsAndFunding:
    """Return the costs of the fills of *ledger* under *terms*, and its funding."""
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
    paid = ledger.fees_paid + ledger.funding_paid + spread + slippage + liquidation
    settings = {
        "spread": terms.half_spread,
        "slippage": terms.slippage or terms.ranges or terms.impact,
    }
    by_bars = any(fill["model"] in _BAR_MODELS for fill in ledger.fills)
    return CostsAndFunding(
        ledger.fees_paid,
        spread,
        slippage,
        liquidation,
        ledger.funding_paid,
        ledger.net + paid,
        ledger.net,
        tuple(name for name, setting in settings.items() if by_bars and not setting),
    )


_BAR_MODELS: Final = (FillModel.NEXT_OPEN, FillModel.BAR_PATH)


def _slippage_share(fill: Row, terms: ExecutionCosts) -> float:
    """Return the share of slippage in a fill's distance from its reference; the rest is spread."""
    if not (terms.slippage or terms.ranges or terms.impact):
        return 0.0
    distance = abs(fill["price"] - fill["reference_price"])
    if fill["model"] in _BAR_MODELS:
        if not (terms.ranges or terms.impact):
            return terms.slippage / (terms.slippage + terms.half_spread)
        spread = fill["reference_price"] * terms.half_spread / RATE_SCALE
        return max(0.0, 1.0 - spread / distance) if distance else 0.0
    moved = fill["price"] * terms.slippage / (RATE_SCALE + terms.slippage)
    return min(1.0, moved / distance) if distance else 0.0


AFTER_BARS: Final = (1, 5, 30)
"""Bars from a fill to the close with which a markout compares its price."""


def markouts(record: RunRecord) -> list[Cells]:
    """Return the returns from the run's maker fills to the close some bars later.

    Positive returns are in the maker's favour. Empty without such a fill.
    """
    fills = [fill for fill in record.account.fills if fill["liquidity"] == Liquidity.MAKER]
    closes = {
        key: record.bar_times.closes_of(bars.open_time_ms) for key, bars in record.bars.items()
    }
    rows: list[Cells] = []
    for after in AFTER_BARS if fills else ():
        changes, days = list[float](), list[int]()
        for fill in fills:
            key = fill["instrument"]
            at = int(np.searchsorted(closes[key], fill["filled_ms"], side="right")) + after
            if at < closes[key].size:
                change = float(record.bars[key].close[at]) / fill["price"] - 1.0
                changes.append(change if fill["side"] == Side.BUY else -change)
                days.append(fill["filled_ms"] // DAY_MS)
        moved = np.array(changes)
        rows.append(
            {
                "after": count_of(after, "bar"),
                "count": moved.size,
                "mean": mean_by_day(moved, np.array(days, dtype=np.int64)),
                "against": mean_of(moved < 0),
                "mean_for": mean_of(moved[moved > 0]),
                "mean_against": mean_of(moved[moved < 0]),
            }
        )
    return rows
