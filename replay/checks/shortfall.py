"""Shortfall of a trader's own fills: each decision as paper and as the account filled it.

A decision's orders of one side are compared with the account's fills that followed. Both results
cover the time from that decision to the next filled one in the same book, so they add up over a
run: the cash flow, and the holding at the marks, which are closes of the run's bars.

The rules are docs/money.md, M107 to M109.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

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
from tracepaper.strategies.types.decisions import PositionSide
from tracepaper.strategies.types.market import Category, Instrument, Side
from tracepaper.strategies.units import MONEY_DECIMALS, Notional, divide_half_even, scaled

StoredRow = dict[str, Value]
OUTSIDE: Final = "outside of the run's bars"


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
    ordered: int = 0
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
    """The bars of one instrument: their opens, marks, and the money of a holding."""

    def __init__(self, columns: RunColumns, instrument: Instrument) -> None:
        self.instrument, self.money = instrument, Notional.of(instrument)
        bars = columns.rows.bars(columns.place(instrument.id), WHOLE)
        self.opens_ms: Ints = bars["open_time_ms"]
        self._closes_ms = columns.times.closes_of(self.opens_ms)
        self._sequence, self._open, self._close = bars["sequence"], bars["open"], bars["close"]
        self._begun_ms = columns.run.period_start_ms  # earlier bars are only lookback

    def covers(self, time_ms: int) -> bool:
        """Return whether a fill at *time_ms* lies within the run's decided bars."""
        if not self.opens_ms.size or time_ms < self._begun_ms:
            return False
        return bool(self.opens_ms[0] <= time_ms < self._closes_ms[-1])

    def open_at(self, time_ms: int) -> int:
        """Return the open of the last bar that had opened at *time_ms*."""
        return int(self._open[max(_last_until(self.opens_ms, time_ms), 0)])

    def mark(self, time_ms: int | None) -> int:
        """Return the close of the last bar that had closed at *time_ms*; None is the end."""
        if time_ms is None:
            return int(self._close[-1])
        row = _last_until(self._closes_ms, time_ms)
        return int(self._close[row]) if row >= 0 else int(self._open[0])

    def step_at(self, time_ms: int) -> int:
        """Return the sequence of the last bar that had closed at *time_ms*, or the first."""
        return int(self._sequence[max(_last_until(self._closes_ms, time_ms), 0)])

    def result(self, before: int, side: Side, fills: FilledSum, marks: tuple[int, int]) -> int:
        """Return the gain between *marks* of a holding of *before* and then *fills*."""
        sign = 1 if side is Side.BUY else -1
        after = before + sign * fills.quantity - fills.fee_base
        held = self.money(marks[1], after) - self.money(marks[0], before)
        return held - sign * fills.notional - (fills.fee or 0)


def _last_until(times_ms: Ints, time_ms: int) -> int:
    return int(np.searchsorted(times_ms, time_ms, side="right")) - 1


def join_fills(reader: Reader, run_id: str, executions: Executions) -> ShortfallFindings:
    """Join *executions* to the decisions of a run.

    Raises ``DataInvalid`` where none can be joined, or the run has splits or dividends.
    """
    columns = RunColumns(reader, run_id)
    markets = {name: _Market(columns, item) for name, item in columns.instruments.items()}
    if actions := reader.actions(columns.run.run_id):
        raise DataInvalid(
            f"Run {run_id} has splits or dividends of {actions[0][1].instrument}, over which fills "
            "are not joined; choose a run without."
        )
    left_out, notes = Counter(executions.dropped), list(executions.notes)
    ordered = _ordered(columns, markets, left_out)
    fills: list[Execution] = []
    names = {item.symbol: name for name, item in columns.instruments.items()}
    for fill in executions.fills:
        if fill.symbol not in names:
            left_out[f"of {fill.symbol}, which the run does not trade"] += 1
        elif not markets[names[fill.symbol]].covers(fill.time_ms):
            left_out[OUTSIDE] += 1
        else:
            fills.append(fill)
    if not fills:
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        raise DataInvalid(
            f"No fill of {executions.path} lies within run {run_id} ({why}): give the fills of the "
            "account that followed it."
        )
    if not ordered.by_id:
        raise DataInvalid(f"Run {run_id} has ordered nothing that a fill could follow.")
    unknown = 0
    for of_order in by_order(sorted(fills, key=attrgetter("time_ms"))):
        name = names[of_order[0].symbol]
        side = ordered.find(name, of_order, markets[name])
        for fill in of_order:
            filled = _filled(fill, markets[name], executions.path)
            side.account.add(filled)
            unknown += filled.fee is None
    if unknown:
        notes.append(f"{unknown:,} fills name no fee in a coin of their symbol; paper's is taken")
    shortfalls = [
        each
        for (name, _), book in sorted(ordered.books.items())
        for each in _shortfalls(markets[name], book)
    ]
    shortfalls.sort(key=lambda each: (each.decision.decided_ms, each.decision.sequence))
    notes += _missed_outside(shortfalls)
    return ShortfallFindings(
        executions.rows, len(fills), shortfalls, dict(sorted(left_out.items())), notes
    )


def _missed_outside(shortfalls: Sequence[Shortfall]) -> Iterator[str]:
    """Yield notes on the decisions missed before the file's first fill and after its last."""
    filled = [place for place, each in enumerate(shortfalls) if each.decision.account.quantity]
    for count, where in (
        (filled[0], "before the first fill of the file"),
        (len(shortfalls) - 1 - filled[-1], "after the last fill of the file"),
    ):
        if count:
            yield f"{count:,} decisions {where} count as missed; export the run's whole time"


class _OrdersOfRun(NamedTuple):
    """The ordered sides of a run, by book in the order of their decisions, and by order id."""

    books: dict[tuple[str, str], list[OrderedSide]]
    by_id: dict[str, OrderedSide]

    def find(self, name: str, fills: Sequence[Execution], market: _Market) -> OrderedSide:
        """Return the decision that an order of the account followed, or a new side without one.

        That is the decision whose order id the file has, else the newest earlier one that ordered
        the same side, unless the account has filled that already and a later decision ordered the
        other side. An order id counts only if instrument, side and time fit, since other runs use
        the same ids.
        """
        first = fills[0]
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
        newest = None
        for position in positions if is_hedged else ("",):
            book = self.books.get((name, position), [])
            end = bisect_right(book, sent_ms, key=attrgetter("decided_ms"))
            places = range(end - 1, -1, -1)
            candidate = next((book[at] for at in places if book[at].side is first.side), None)
            if candidate is None or (
                candidate.decided_ms < book[end - 1].decided_ms
                and candidate.account.quantity >= candidate.ordered
            ):
                continue
            if newest is None or candidate.decided_ms > newest.decided_ms:
                newest = candidate
        if newest is None:
            position = (first.position_side or opening_side.value) if is_hedged else ""
            newest = OrderedSide((name, position), first.side, market.step_at(sent_ms), sent_ms)
            book = self.books[newest.book]
            book.insert(bisect_right(book, sent_ms, key=attrgetter("decided_ms")), newest)
        return newest


def _ordered(
    columns: RunColumns, markets: Mapping[str, _Market], left_out: Counter[str]
) -> _OrdersOfRun:
    """Return the orders of the run, with paper's fills."""
    books: dict[tuple[str, str], list[OrderedSide]] = defaultdict(list)
    by_id: dict[str, OrderedSide] = {}
    sides: dict[tuple[object, ...], OrderedSide] = {}
    for row in columns.views.rows("v_orders"):
        decided_at, name = int(row["order_id"].partition("-")[0]), row["instrument"]
        market = markets[name]
        if not market.opens_ms.size or row["created_ms"] < market.opens_ms[0]:
            continue  # from the parent run, or pruned
        book, side = (name, row["position_side"] or ""), Side(row["side"])
        key = (*book, side, decided_at)
        if key not in sides:
            sides[key] = OrderedSide(book, side, decided_at, row["created_ms"])
            books[book].append(sides[key])
        sides[key].ordered += _whole(row, "quantity", market.instrument.quantity_decimals)
        by_id[row["order_id"]] = sides[key]
    for row in columns.views.rows("v_fills"):
        decision = by_id.get(row["order_id"])
        if decision is None:
            left_out["of paper, of orders before the run's bars"] += 1
            continue
        market = markets[row["instrument"]]
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
        book_sides.sort(
            key=lambda decision: (decision.decided_ms, decision.sequence, decision.side)
        )
    return _OrdersOfRun(books, by_id)


def _whole(row: Row, name: str, decimals: int) -> int:
    return int(Decimal(row[f"{name}_text"]).scaleb(decimals))


def _filled(fill: Execution, market: _Market, path: str) -> FilledSum:
    """Return a fill of the account; raise ``DataInvalid`` for too many decimals."""
    item = market.instrument
    try:
        quantity = scaled(fill.quantity, item.quantity_decimals, name="quantity")
    except ConfigInvalid:
        raise DataInvalid(
            f"{path}: {item.id} is traded in {item.quantity_decimals} decimals, and a fill has the "
            f"quantity {fill.quantity}: give the fills of that symbol."
        ) from None
    notional = _money(Fraction(fill.price) * Fraction(fill.quantity))
    fee, fee_base = _fees(fill, item)
    opens = quantity * market.open_at(fill.time_ms)
    return FilledSum(quantity, notional, fee, fee_base, opens, fill.time_ms)


def _fees(fill: Execution, item: Instrument) -> tuple[int | None, int]:
    """Return a fill's fees in money and in base, which a spot buy pays unless its coin differs."""
    if fill.fee is None and fill.fee_base is None:
        return None, 0
    paid, base = fill.fee or Decimal(0), fill.fee_base or Decimal(0)
    is_spot_buy = item.category is Category.SPOT and fill.side is Side.BUY
    if fill.fee_base is None and is_spot_buy and fill.fee_coin in ("", item.base_coin):
        paid, base = Decimal(0), paid
    elif fill.fee_coin not in ("", item.quote_coin):
        return None, 0
    return _money(Fraction(paid)), round(Fraction(base) * 10**item.quantity_decimals)


def _money(amount: Fraction) -> int:
    return round(amount * 10**MONEY_DECIMALS)


# ---------------------------------------------------------------- parts of the difference


def _shortfalls(market: _Market, book: Iterable[OrderedSide]) -> Iterator[Shortfall]:
    """Yield the filled sides of one book, with both results and the parts of the difference."""
    filled = [decision for decision in book if decision.paper.quantity or decision.account.quantity]
    paper_held = account_held = 0
    for place, decision in enumerate(filled):
        until = filled[place + 1].decided_ms if place + 1 < len(filled) else None
        marks = market.mark(decision.decided_ms), market.mark(until)
        account = _complete(decision.account, decision.paper)
        results = [market.result(paper_held, decision.side, decision.paper, marks)]
        stages = _stages(decision.paper, account, market)
        results += [market.result(account_held, decision.side, stage, marks) for stage in stages]
        steps = [after - before for before, after in pairwise(results)]
        names = ("size", "delay", "price", "fee")
        if not decision.account.quantity:
            parts = {"missed": results[-1] - results[0]}
        elif not decision.paper.quantity:
            parts = {"size": results[-1] - results[0]}
        else:
            parts = dict(zip(names, steps, strict=True))
        fees = [
            (each.fee or 0) + market.money(marks[1], each.fee_base)
            for each in (decision.paper, account)
        ]
        yield Shortfall(
            decision,
            (results[0], fees[0]),
            (results[-1], fees[1]),
            {name: parts.get(name, 0) for name in SHORTFALL_PARTS},
        )
        sign = 1 if decision.side is Side.BUY else -1
        paper_held += sign * decision.paper.quantity - decision.paper.fee_base
        account_held += sign * account.quantity - account.fee_base


def _complete(account: FilledSum, paper: FilledSum) -> FilledSum:
    """Return *account*; where its fees are unknown, with paper's in proportion to quantity."""
    if account.fee is not None:
        return account
    fee, fee_base = (_part(each, account, paper) for each in (paper.fee or 0, paper.fee_base))
    return replace(account, fee=fee, fee_base=fee_base)


def _part(amount: int, account: FilledSum, paper: FilledSum) -> int:
    """Return paper's *amount* scaled to the account's quantity."""
    return divide_half_even(amount * account.quantity, paper.quantity) if paper.quantity else 0


def _stages(paper: FilledSum, account: FilledSum, market: _Market) -> list[FilledSum]:
    """Return paper's fills with the account's quantity, then also its time, price and fees."""
    notional, fee, fee_base, opens = (
        _part(amount, account, paper)
        for amount in (paper.notional, paper.fee or 0, paper.fee_base, paper.opens)
    )
    delayed = notional + market.money(account.opens - opens, 1)
    return [
        *(
            FilledSum(account.quantity, paid, fee, fee_base)
            for paid in (notional, delayed, account.notional)
        ),
        account,
    ]


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
    with closing(in_memory()) as connection:
        insert_rows(connection, {**opening, "shortfalls": values})
        return RunViews(connection, stored.run.run_id).rows("v_shortfall")
