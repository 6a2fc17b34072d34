"""Shortfall of a trader's own fills: each decision as paper and as the account filled it.

A decision's orders of one side are compared with the account's fills that followed. Both results
cover the time from that decision to the next filled one in the same book, so they add up over a
run: the cash flow, and the holding at the marks, which are closes of the run's bars.

Every difference of the two positions has a cause. What the market does with it belongs to that
cause until the positions agree again, and so does the fill that ends it.

The rules are docs/money.md, M107 to M109.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.executions import Execution, Executions
from tracepaper.replay.checks.paper_fills import by_order
from tracepaper.replay.run_columns import Ints, RunColumns
from tracepaper.storage.database.chunks import StoredRun
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.storage.database.writer import in_memory, insert_rows
from tracepaper.storage.record.columns import SHORTFALL_PARTS, Value, stored_columns
from tracepaper.storage.record.encode import StepEncoder
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import LedgerKind, PositionSide
from tracepaper.strategies.types.market import Category, Instrument, Side
from tracepaper.strategies.units import (
    MINUTE_MS,
    MONEY_DECIMALS,
    Notional,
    count_of,
    divide_half_even,
    duration,
    scaled,
)

StoredRow = dict[str, Value]
OUTSIDE: Final = "outside of the run's bars"
BEFORE: Final = "before the run, which give the position at its begin"


@dataclass
class FilledSum:
    """The sum of fills of one side, in integers of the instrument's decimals and of money."""

    quantity: int = 0
    notional: int = 0
    fee: int | None = 0  # in the quote currency; None where one is unknown
    fee_base: int = 0
    opens: int = 0  # sum of quantity x open of the fill's bar
    first_ms: int | None = None

    def add(self, fill: FilledSum) -> None:
        """Add a fill."""
        self.quantity += fill.quantity
        self.notional += fill.notional
        self.fee = None if fill.fee is None or self.fee is None else self.fee + fill.fee
        self.fee_base += fill.fee_base
        self.opens += fill.opens
        times = [time_ms for time_ms in (self.first_ms, fill.first_ms) if time_ms is not None]
        self.first_ms = min(times, default=None)


@dataclass
class OrderedSide:
    """One decision's orders of one side of a book, and their fills."""

    book: tuple[str, str]  # instrument and, in hedge mode, position side
    side: Side
    sequence: int
    decided_ms: int
    ordered: int = 0  # 0 for fills that no decision ordered
    until_ms: int = 0  # close of the bar in which the last of its orders ended
    all_until_ms: int = 0  # the same of all decisions of the book up to this one
    paper: FilledSum = field(default_factory=FilledSum)
    account: FilledSum = field(default_factory=FilledSum)


class Shortfall(NamedTuple):
    """An ordered side, both (result, fees in it), and the parts of the difference."""

    decision: OrderedSide
    paper: tuple[int, int]
    account: tuple[int, int]
    parts: dict[str, int]  # by SHORTFALL_PARTS, whose sum is the difference


@dataclass
class ShortfallFindings:
    """The comparison of a file of fills with the decisions of a run."""

    rows: int
    joined: int  # fills
    shortfalls: list[Shortfall]
    left_out: dict[str, int]
    notes: list[str]


class _Market:
    """The bars of one instrument: their opens, marks, and the money of a holding.

    The opens are those of *finer* candles where these are given.
    """

    def __init__(
        self, columns: RunColumns, instrument: Instrument, finer: Candles | None = None
    ) -> None:
        self.instrument, self.money = instrument, Notional.of(instrument)
        bars = columns.rows.bars(columns.place(instrument.id), WHOLE)
        self.opens_ms: Ints = bars["open_time_ms"]
        self.closes_ms = columns.times.closes_of(self.opens_ms)
        self._sequence, self._open, self._close = bars["sequence"], bars["open"], bars["close"]
        self._last_quantity = int(bars["quantity"][-1]) if self.opens_ms.size else 0
        self.begun_ms = columns.run.period_start_ms  # earlier bars are only lookback
        self.finer = finer

    def covers(self, time_ms: int) -> bool:
        """Return whether a fill at *time_ms* lies within the run's decided bars."""
        if not self.opens_ms.size or time_ms < self.begun_ms:
            return False
        return bool(self.opens_ms[0] <= time_ms < self.closes_ms[-1])

    def open_at(self, time_ms: int) -> int:
        """Return the open of the last candle that had opened at *time_ms*."""
        if self.finer is not None and (price := _open_at(self.finer, time_ms)) is not None:
            return int(price.scaleb(self.instrument.price_decimals))
        return int(self._open[max(_last_until(self.opens_ms, time_ms), 0)])

    def is_inside(self, time_ms: int) -> bool:
        """Return whether finer candles are missing a minute or more after a bar's open."""
        opened_ms = self.opens_ms[max(_last_until(self.opens_ms, time_ms), 0)]
        return self.finer is None and bool(time_ms - opened_ms >= MINUTE_MS)

    def mark(self, time_ms: int | None) -> int:
        """Return the close of the last bar that had closed at *time_ms*; None is the end."""
        if time_ms is None:
            return int(self._close[-1])
        row = _last_until(self.closes_ms, time_ms)
        return int(self._close[row]) if row >= 0 else int(self._open[0])

    def step_at(self, time_ms: int) -> int:
        """Return the sequence of the last bar that had closed at *time_ms*, or the first."""
        return int(self._sequence[max(_last_until(self.closes_ms, time_ms), 0)])

    def close_of_step(self, sequence: int) -> int:
        """Return the close of the first bar at or after the step *sequence*, or of the last."""
        row = int(np.searchsorted(self._sequence, sequence))
        return int(self.closes_ms[min(row, len(self.closes_ms) - 1)])

    def begun_with(self, book: Sequence[OrderedSide]) -> int:
        """Return paper's position before the orders of *book*, the only one of the instrument."""
        return self._last_quantity - sum(_moved(each.side, each.paper) for each in book)

    def result(self, before: int, side: Side, fills: FilledSum, marks: tuple[int, int]) -> int:
        """Return the gain between *marks* of a holding of *before* and then *fills*."""
        sign = 1 if side is Side.BUY else -1
        after = before + _moved(side, fills)
        held = self.money(marks[1], after) - self.money(marks[0], before)
        return held - sign * fills.notional - (fills.fee or 0)


def _moved(side: Side, fills: FilledSum) -> int:
    """Return the change of a position by *fills*, signed."""
    return (fills.quantity if side is Side.BUY else -fills.quantity) - fills.fee_base


def _open_at(candles: Candles, time_ms: int) -> Decimal | None:
    """Return the open of the candle in which *time_ms* lies; None outside of *candles*."""
    row = _last_until(candles.open_time_ms, time_ms)
    if row < 0 or time_ms >= candles.until_ms:
        return None
    return Decimal(int(candles.open[row])).scaleb(-candles.price_decimals)


def _last_until(times_ms: Ints, time_ms: int) -> int:
    return int(np.searchsorted(times_ms, time_ms, side="right")) - 1


def join_fills(
    reader: Reader, run_id: str, executions: Executions, candles: Sequence[Candles] = ()
) -> ShortfallFindings:
    """Join *executions* to the decisions of a run.

    *candles* that are finer than the run's bars tell delay from price; those of a coin in which
    fees were paid convert them. Raises ``DataInvalid`` where no fill can be joined, or the run has
    splits or dividends.
    """
    columns = RunColumns(reader, run_id)
    if actions := reader.actions(columns.run.run_id):
        raise DataInvalid(
            f"Run {run_id} has splits or dividends of {actions[0][1].instrument}, over which fills "
            "are not joined; choose a run without."
        )
    given = {part.symbol: part for part in candles}
    finer = {
        symbol: part for symbol, part in given.items() if part.interval_ms < columns.interval_ms
    }
    markets = {
        item.symbol: _Market(columns, item, finer.get(item.symbol))
        for item in columns.instruments.values()
    }
    left_out, notes = Counter(executions.dropped), list(executions.notes)
    ordered = _ordered(columns, markets, left_out)
    fills, before = _fills_within(executions, markets, left_out)
    if not fills:
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        raise DataInvalid(
            f"No fill of {executions.path} lies within run {run_id} ({why}): give the fills of the "
            "account that followed it."
        )
    if not ordered.by_id:
        raise DataInvalid(f"Run {run_id} has ordered nothing that a fill could follow.")
    account = _AccountFills(executions.path, given)
    for of_order in by_order(sorted(fills, key=attrgetter("time_ms"))):
        market = markets[of_order[0].symbol]
        side = ordered.find(of_order, market)
        for fill in of_order:
            side.account.add(account.filled(fill, market))
    notes += account.notes(columns.interval_ms)
    positions = _begun_with(before, ordered, markets, executions.path)
    settled = _funding(columns, executions, markets, notes)
    shortfalls: list[Shortfall] = []
    for (name, position), book in sorted(ordered.rows().items()):
        market = markets[columns.instruments[name].symbol]
        filled = [each for each in book if each.paper.quantity or each.account.quantity]
        if filled:
            of_symbol = settled.pop(market.instrument.symbol, [])
            shortfalls += _shortfalls(market, filled, positions[name, position], of_symbol)
    shortfalls.sort(key=lambda each: (each.decision.decided_ms, each.decision.sequence))
    notes += _missed_outside(shortfalls)
    return ShortfallFindings(
        executions.rows, len(fills), shortfalls, dict(sorted(left_out.items())), notes
    )


def _fills_within(
    executions: Executions, markets: Mapping[str, _Market], left_out: Counter[str]
) -> tuple[list[Execution], list[Execution]]:
    """Return the fills within the run, and those before it; count the others in *left_out*."""
    within, before = [], []
    for fill in executions.fills:
        market = markets.get(fill.symbol)
        if market is None:
            left_out[f"of {fill.symbol}, which the run does not trade"] += 1
        elif market.covers(fill.time_ms):
            within.append(fill)
        elif fill.time_ms < market.begun_ms:
            before.append(fill)
            left_out[BEFORE] += 1
        else:
            left_out[OUTSIDE] += 1
    return within, before


def _begun_with(
    before: Sequence[Execution],
    ordered: _OrdersOfRun,
    markets: Mapping[str, _Market],
    path: str,
) -> Mapping[tuple[str, str], tuple[int, int]]:
    """Return by book the positions of paper and the account at the run's begin.

    The account's follows from its fills *before*; without any it had paper's.
    """
    positions: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for market in markets.values():
        book = market.instrument.id, ""
        if book in ordered.books and market.opens_ms.size:
            held = market.begun_with(ordered.books[book])
            positions[book] = held, held
    carried: Counter[tuple[str, str]] = Counter()
    account = _AccountFills(path, {})
    for fill in before:
        market = markets[fill.symbol]
        book = market.instrument.id, fill.position_side
        book = book if book in ordered.books else (book[0], "")
        carried[book] += _moved(fill.side, account.filled(fill, market))
    for book, held in carried.items():
        positions[book] = positions[book][0], held
    return positions


def _funding(
    columns: RunColumns, executions: Executions, markets: Mapping[str, _Market], notes: list[str]
) -> dict[str, list[tuple[int, int, int]]]:
    """Return by symbol each settlement: its time, and what paper and the account received.

    Without funding in the file, paper's is left out too.
    """
    settled: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    ledger = [
        row for row in columns.views.rows("v_ledger") if row["kind"] == LedgerKind.FUNDING.value
    ]
    if not executions.funding:
        if ledger:
            notes.append("the file has no funding, so paper's is left out too")
        return settled
    for row in ledger:
        symbol = columns.instruments[row["instrument"]].symbol
        settled[symbol].append((row["market_ms"], _whole(row, "amount", MONEY_DECIMALS), 0))
    for each in executions.funding:
        market = markets.get(each.symbol)
        if market is not None and market.covers(each.time_ms):
            settled[each.symbol].append((each.time_ms, 0, -_money(Fraction(each.amount))))
    return settled


def _missed_outside(shortfalls: Sequence[Shortfall]) -> Iterator[str]:
    """Yield notes on the decisions missed before the file's first fill and after its last."""
    filled = [place for place, each in enumerate(shortfalls) if each.decision.account.quantity]
    for count, where in (
        (filled[0], "before the first fill of the file"),
        (len(shortfalls) - 1 - filled[-1], "after the last fill of the file"),
    ):
        if count:
            yield f"missed: {count_of(count, 'decision')} {where}; export the run's whole time"


class _OrdersOfRun(NamedTuple):
    """The ordered sides of a run: by book in the order of their decisions, and by order id."""

    books: dict[tuple[str, str], list[OrderedSide]]
    by_id: dict[str, OrderedSide]
    strangers: list[OrderedSide]  # fills that no decision ordered

    def rows(self) -> dict[tuple[str, str], list[OrderedSide]]:
        """Return by book its ordered sides and the fills without one, in the order of time."""
        rows = {book: [*sides] for book, sides in self.books.items()}
        for stranger in self.strangers:
            rows.setdefault(stranger.book, []).append(stranger)
        for sides in rows.values():
            sides.sort(key=lambda each: (each.decided_ms, each.sequence, each.side))
        return rows

    def find(self, fills: Sequence[Execution], market: _Market) -> OrderedSide:
        """Return the decision that an order of the account followed, or a new side without one.

        That is the decision whose order id the file has, else the newest one of its side that the
        account has not filled, if it is the book's newest decision or its orders still rested. An
        order id counts only if instrument, side and time fit, since other runs use the same ids.
        """
        first, name = fills[0], market.instrument.id
        sent_ms = min(
            fill.time_ms if fill.created_ms is None else fill.created_ms for fill in fills
        )
        followed = self.by_id.get(first.order)
        if (
            followed is not None
            and (followed.book[0], followed.side) == (name, first.side)
            and followed.decided_ms <= sent_ms
        ):
            return followed
        opening_side = PositionSide.LONG if first.side is Side.BUY else PositionSide.SHORT
        is_hedged = any(position for instrument, position in self.books if instrument == name)
        positions = (first.position_side,) if first.position_side or not is_hedged else PositionSide
        candidates = []
        for position in positions if is_hedged else ("",):
            book = self.books.get((name, position), [])
            end = bisect_right(book, sent_ms, key=attrgetter("decided_ms"))
            for each in map(book.__getitem__, range(end - 1, -1, -1)):
                is_newest = each.decided_ms == book[end - 1].decided_ms
                if not is_newest and each.all_until_ms <= sent_ms:
                    break
                is_followed = each.side is first.side and (is_newest or sent_ms < each.until_ms)
                if is_followed and each.account.quantity < (each.paper.quantity or each.ordered):
                    candidates.append(each)
                    break
        if candidates:
            return max(candidates, key=attrgetter("decided_ms"))
        position = (first.position_side or opening_side.value) if is_hedged else ""
        self.strangers.append(
            OrderedSide((name, position), first.side, market.step_at(sent_ms), sent_ms)
        )
        return self.strangers[-1]


def _ordered(
    columns: RunColumns, markets: Mapping[str, _Market], left_out: Counter[str]
) -> _OrdersOfRun:
    """Return the orders of the run, with paper's fills."""
    books: dict[tuple[str, str], list[OrderedSide]] = defaultdict(list)
    by_id: dict[str, OrderedSide] = {}
    sides: dict[tuple[object, ...], OrderedSide] = {}
    for row in columns.views.rows("v_orders"):
        decided_at, name = int(row["order_id"].partition("-")[0]), row["instrument"]
        market = markets[columns.instruments[name].symbol]
        if not market.opens_ms.size or row["created_ms"] < market.opens_ms[0]:
            continue  # from the parent run, or pruned
        book, side = (name, row["position_side"] or ""), Side(row["side"])
        key = (*book, side, decided_at)
        if key not in sides:
            sides[key] = OrderedSide(book, side, decided_at, row["created_ms"])
            books[book].append(sides[key])
        ordered = sides[key]
        ordered.ordered += _whole(row, "quantity", market.instrument.quantity_decimals)
        ordered.until_ms = max(ordered.until_ms, market.close_of_step(row["sequence"]))
        by_id[row["order_id"]] = ordered
    for row in columns.views.rows("v_fills"):
        decision = by_id.get(row["order_id"])
        if decision is None:
            left_out["of paper, of orders before the run's bars"] += 1
            continue
        market = markets[columns.instruments[row["instrument"]].symbol]
        decimals = market.instrument.quantity_decimals
        quantity = _whole(row, "quantity", decimals)
        decision.paper.add(
            FilledSum(
                quantity,
                _whole(row, "notional", MONEY_DECIMALS),
                _whole(row, "fee", MONEY_DECIMALS),
                _whole(row, "fee_base", decimals),
                quantity * market.open_at(row["filled_ms"]),
                row["filled_ms"],
            )
        )
    for book_sides in books.values():
        book_sides.sort(key=lambda each: (each.decided_ms, each.sequence, each.side))
        ends_ms = accumulate((each.until_ms for each in book_sides), max)
        for each, end_ms in zip(book_sides, ends_ms, strict=True):
            each.all_until_ms = end_ms
    return _OrdersOfRun(books, by_id, [])


def _whole(row: Row, name: str, decimals: int) -> int:
    return int(Decimal(row[f"{name}_text"]).scaleb(decimals))


class _AccountFills:
    """Converts the fills of a file, and counts what it lacks to do so.

    A fee in another coin is converted at the open of that coin's candle, of which *candles* by
    symbol may hold some.
    """

    def __init__(self, path: str, candles: Mapping[str, Candles]) -> None:
        self._path, self._candles = path, candles
        self._unpriced: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._without_fee = self._inside = 0

    def filled(self, fill: Execution, market: _Market) -> FilledSum:
        """Return a fill of the account; raise ``DataInvalid`` for too many decimals."""
        item = market.instrument
        try:
            quantity = scaled(fill.quantity, item.quantity_decimals, name="quantity")
        except ConfigInvalid:
            raise DataInvalid(
                f"{self._path}: {item.id} is traded in {item.quantity_decimals} decimals, and a "
                f"fill has the quantity {fill.quantity}: give the fills of that symbol."
            ) from None
        notional = _money(Fraction(fill.price) * Fraction(fill.quantity))
        fee, fee_base = self._fees(fill, item)
        self._without_fee += fee is None
        self._inside += market.is_inside(fill.time_ms)
        opens = quantity * market.open_at(fill.time_ms)
        return FilledSum(quantity, notional, fee, fee_base, opens, fill.time_ms)

    def _fees(self, fill: Execution, item: Instrument) -> tuple[int | None, int]:
        """Return a fill's fees in money and in base; a spot buy pays its own coin by default."""
        if fill.fee is None and fill.fee_base is None:
            return None, 0
        paid, base = fill.fee or Decimal(0), fill.fee_base or Decimal(0)
        is_spot_buy = item.category is Category.SPOT and fill.side is Side.BUY
        if fill.fee_base is None and is_spot_buy and fill.fee_coin in ("", item.base_coin):
            paid, base = Decimal(0), paid
        elif fill.fee_coin not in ("", item.quote_coin):
            candles = self._candles.get(f"{fill.fee_coin}{item.quote_coin}")
            price = None if candles is None else _open_at(candles, fill.time_ms)
            if price is None:
                self._unpriced[fill.fee_coin, item.quote_coin] += paid
            paid *= price or 0
        return _money(Fraction(paid)), round(Fraction(base) * 10**item.quantity_decimals)

    def notes(self, interval_ms: int) -> Iterator[str]:
        """Yield a sentence about each kind of fill that could not be converted."""
        if self._without_fee:
            yield f"without a fee: {count_of(self._without_fee, 'fill')}; paper's is taken"
        for (coin, quote), amount in sorted(self._unpriced.items()):
            yield f"fees of {amount} {coin} are not counted: give --candles {coin}{quote}=FILE"
        if self._inside:
            yield (
                f"inside a bar of {duration(interval_ms)}: {count_of(self._inside, 'fill')}; give "
                "finer --candles, or the market's move inside it counts as price"
            )


def _money(amount: Fraction) -> int:
    return round(amount * 10**MONEY_DECIMALS)


# ---------------------------------------------------------------- parts of the difference


def _shortfalls(
    market: _Market,
    filled: Sequence[OrderedSide],
    begun_with: tuple[int, int],
    settled: Sequence[tuple[int, int, int]],
) -> Iterator[Shortfall]:
    """Yield each side of *filled*, of one book, with both results and the parts of the difference.

    *begun_with* are the positions of paper and the account at the run's begin; *settled* is each
    time of funding with what both received.
    """
    paper_held, account_held = begun_with
    # How the account's position differs from paper's: cause -> signed quantity, oldest first.
    differences = {"carried": account_held - paper_held} if account_held != paper_held else {}
    times_ms = [market.begun_ms, *(decision.decided_ms for decision in filled[1:])]
    received = [(0, 0)] * len(filled)
    for at_ms, *amounts in settled:
        row = max(bisect_right(times_ms, at_ms) - 1, 0)
        received[row] = received[row][0] + amounts[0], received[row][1] + amounts[1]
    for place, decision in enumerate(filled):
        until = times_ms[place + 1] if place + 1 < len(filled) else None
        marks = market.mark(times_ms[place]), market.mark(until)
        side, paper = decision.side, decision.paper
        account = _complete(decision.account, paper)
        paper_result = market.result(paper_held, side, paper, marks) + received[place][0]
        account_result = market.result(account_held, side, account, marks) + received[place][1]
        parts = Counter({"funding": received[place][1] - received[place][0]})
        for cause, quantity in differences.items():
            parts[cause] += market.money(marks[1], quantity) - market.money(marks[0], quantity)
        is_followed = paper.quantity > 0 and account.quantity > 0
        at_paper_price = _resized(paper, account.quantity) if is_followed else account
        own = "missed" if not account.quantity else "size" if decision.ordered else "own_trades"
        gain = market.result(0, side, at_paper_price, marks) - market.result(0, side, paper, marks)
        _attribute(
            own, _moved(side, at_paper_price) - _moved(side, paper), gain, differences, parts
        )
        if is_followed:
            sign = 1 if side is Side.BUY else -1
            parts["delay"] -= sign * market.money(account.opens - at_paper_price.opens, 1)
            more_base = at_paper_price.fee_base - account.fee_base
            parts["fee"] += (at_paper_price.fee or 0) - (account.fee or 0)
            parts["fee"] += market.money(marks[1], more_base)
            if more_base:
                differences["fee"] = differences.get("fee", 0) + more_base
        shortfall = account_result - paper_result
        parts["price" if is_followed else own] += shortfall - sum(parts.values())
        fees = [
            (each.fee or 0) + market.money(marks[1], each.fee_base) for each in (paper, account)
        ]
        yield Shortfall(
            decision,
            (paper_result, fees[0]),
            (account_result, fees[1]),
            {name: parts[name] for name in SHORTFALL_PARTS},
        )
        paper_held += _moved(side, paper)
        account_held += _moved(side, account)


def _attribute(
    own: str, moved: int, gain: int, differences: dict[str, int], parts: Counter[str]
) -> None:
    """Add the *gain* of fills that only one side made to *parts*, and *moved* to *differences*.

    What brings the positions closer ends a difference: that of the *own* cause, then the newest.
    """
    left = moved
    for cause in dict.fromkeys((own, *reversed(differences))):
        difference = differences.get(cause, 0)
        if difference * left < 0:
            ended = min(abs(difference), abs(left)) * (1 if left > 0 else -1)
            share = divide_half_even(gain * abs(ended), abs(moved))
            parts[cause] += share
            parts[own] -= share
            differences[cause] += ended
            left -= ended
            if not differences[cause]:
                del differences[cause]
    parts[own] += gain
    if left:
        differences[own] = differences.get(own, 0) + left


def _complete(account: FilledSum, paper: FilledSum) -> FilledSum:
    """Return *account*; where its fees are unknown, with paper's in proportion to quantity."""
    if account.fee is not None:
        return account
    like_paper = _resized(paper, account.quantity) if paper.quantity else FilledSum()
    return replace(account, fee=like_paper.fee, fee_base=like_paper.fee_base)


def _resized(paper: FilledSum, quantity: int) -> FilledSum:
    """Return *quantity* filled at the mean price, the mean open and the fees of *paper*."""
    amounts = (paper.notional, paper.fee or 0, paper.fee_base, paper.opens)
    return FilledSum(
        quantity, *(divide_half_even(amount * quantity, paper.quantity) for amount in amounts)
    )


def stored_rows(reader: Reader, run_id: str, findings: ShortfallFindings) -> list[StoredRow]:
    """Return the rows of the table ``shortfalls``."""
    stored = reader.stored_run(run_id)
    places = [item.id for item in stored.run.instruments]
    ordinals: Counter[int] = Counter()
    rows: list[StoredRow] = []
    for each in findings.shortfalls:
        decision = each.decision
        row: StoredRow = {
            "run_key": stored.run_key,
            "sequence": decision.sequence,
            "ordinal": ordinals[decision.sequence],
            "instrument": places.index(decision.book[0]),
            "side": decision.side.value,
            "position_side": decision.book[1] or None,
            "decided_ms": decision.decided_ms,
            "ordered": decision.ordered,
            **each.parts,
        }
        for whose, filled, (result, fee) in (
            ("paper", decision.paper, each.paper),
            ("account", decision.account, each.account),
        ):
            row |= {
                f"{whose}_quantity": filled.quantity,
                f"{whose}_notional": filled.notional,
                f"{whose}_fee": fee,
                f"{whose}_ms": filled.first_ms,
                f"{whose}_result": result,
            }
        ordinals[decision.sequence] += 1
        rows.append(row)
    return rows


def rows_in_view(stored: StoredRun, rows: Sequence[StoredRow]) -> list[Row]:
    """Return *rows* as ``v_shortfall`` shows them; needs no write to the run's database."""
    opening = StepEncoder(stored.run, stored.run_key, ()).opening(stored.run, 0)
    values = [tuple(row[name] for name in stored_columns("shortfalls")) for row in rows]
    with closing(in_memory()) as writer:
        insert_rows(writer.driver, {**opening, "shortfalls": values})
        return RunViews(writer.driver, stored.run.run_id).rows("v_shortfall")
