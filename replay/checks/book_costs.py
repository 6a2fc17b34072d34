"""The cost of paper's fills at recorded order books, which shows how optimistic paper was.

A market order of a run is walked through the levels of the book after its latency. The
rules are docs/money.md, M45 to M48.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.archive.events import NOT_RECORDED, EventsFile
from tracepaper.replay.archive.executions import Execution
from tracepaper.replay.archive.recordings import recording_header
from tracepaper.replay.checks.paper_fills import TakenOrder, orders_of
from tracepaper.replay.checks.slippage import (
    FAR,
    SETTING_MOST,
    SlippageFindings,
    bias,
    days_of,
    tables_of,
)
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Liquidity, OrderKind
from tracepaper.strategies.types.market import Depth, Side
from tracepaper.strategies.units import iso

MODEL: Final = "the books"
_RESTED: Final = "orders that waited for a price (limits and stops)"
_UNKNOWN: Final = "orders that another run had sent"
_EMPTY: Final = "orders at a book without a bid or without an ask"
_LARGER: Final = "orders larger than the recorded book"
_OUTSIDE: Final = "orders outside the recorded time"
_GAP: Final = "orders inside gaps of the recording"


class BookLevels(NamedTuple):
    """One book: pairs of price and size from the touch outwards, in the quote and the base."""

    bids: list[tuple[Fraction, Fraction]]
    asks: list[tuple[Fraction, Fraction]]

    def walk(self, side: Side, quantity: Fraction) -> tuple[Fraction, Fraction]:
        """Return the money for *quantity* on the opposite side, and the unfilled quantity."""
        paid, left = Fraction(0), quantity
        for price, size in self.asks if side is Side.BUY else self.bids:
            taken = min(size, left)
            paid, left = paid + price * taken, left - taken
            if not left:
                break
        return paid, left

    @property
    def mid(self) -> Fraction:
        """The mean of the best bid and the best ask."""
        return (self.bids[0][0] + self.asks[0][0]) / 2


class RecordedBooks:
    """A file of events or samples that returns the books at given times."""

    def __init__(self, path: Path) -> None:
        """Open *path*; raise ``DataInvalid`` where it holds no books."""
        header = recording_header(path)
        has_events = header is not None and not header.is_sampled
        self._file = EventsFile(path) if has_events else read_depth(path)
        instrument = self._file.header.instrument
        self.instrument = instrument.id
        decimals = instrument.price_decimals, instrument.quantity_decimals
        self._tick, self._step = (Fraction(1, 10**each) for each in decimals)

    @property
    def torn(self) -> str:
        """The damaged end of the file that was left out, known after reading; else empty."""
        return self._file.torn

    def at(self, times: Sequence[int]) -> Iterator[BookLevels | str]:
        """Yield the book at each of *times*, sorted UTC milliseconds, or why there is none.

        From events it is the book at that time; from samples the next one, unless a gap precedes
        it. The reason is the text under which the order is counted.
        """
        if isinstance(self._file, EventsFile):
            for book in self._file.standing(times):
                if isinstance(book, Depth):
                    sides = (np.frombuffer(side, "<i8") for side in (book.bids, book.asks))
                    yield BookLevels(*(self._pairs(side.reshape(-1, 2)) for side in sides))
                else:
                    yield {NOT_RECORDED: _OUTSIDE, "empty": _EMPTY}.get(book, _GAP)
            return
        for at_ms in times:
            yield self._sample(self._file, at_ms)

    def _sample(self, file: RecordedDepth, at_ms: int) -> BookLevels | str:
        row = int(np.searchsorted(file.times, at_ms))
        if row == len(file.times):
            return _OUTSIDE
        if int(file.times[row]) - at_ms >= file.header.every_ms:
            return _GAP if row else _OUTSIDE
        books = file.part(row, row + 1)
        price, size = books.price[0], books.size[0]
        levels = np.stack([price, size], axis=-1)  # [side, level, price and size]
        bids, asks = (self._pairs(side[side[:, 1] > 0]) for side in levels)
        return BookLevels(bids, asks) if bids and asks else _EMPTY

    def _pairs(self, levels: NDArray[np.int64]) -> list[tuple[Fraction, Fraction]]:
        return [(price * self._tick, size * self._step) for price, size in levels.tolist()]


def compare_with_books(reader: Reader, run_id: str, paths: Sequence[Path]) -> SlippageFindings:
    """Walk the market orders of a run through the books of *paths*; raise ``DataInvalid``.

    Costs are side x (the book's mean price - paper's) / mid, in basis points: above 0 paper was
    optimistic.
    """
    files: dict[str, list[RecordedBooks]] = defaultdict(list)
    for path in paths:
        books = RecordedBooks(path)
        files[books.instrument].append(books)
    traded = {each.id for each in reader.run(run_id).instruments}
    if strange := sorted(files.keys() - traded):
        raise DataInvalid(
            f"--books holds {', '.join(strange)}, and run {run_id} trades "
            f"{', '.join(sorted(traded))}: give recordings of those."
        )
    fills, orders, left_out = _market_orders(RunViews(reader.connection, run_id))
    priced: list[tuple[TakenOrder, float]] = []
    for instrument, held in sorted(orders.items()):
        if instrument not in files:
            name = f"orders of {instrument}, for which no books were given"
            left_out[name] += len(held)
            continue
        for order, book in zip(held, _first_known(files[instrument], held), strict=True):
            if isinstance(book, str):
                left_out[book] += 1
                continue
            paid, unfilled = book.walk(order.side, Fraction(order.quantity))
            if unfilled:
                left_out[_LARGER] += 1
            elif abs(cost := _cost_bp(order, paid, book.mid)) > SETTING_MOST:
                left_out[FAR] += 1
            else:
                priced.append((order, cost))
    times = [order.time_ms for held in orders.values() for order in held]
    if times and not priced:
        first, last = iso(min(times)), iso(max(times))
        why = ", ".join(f"{count:,} {name}" for name, count in sorted(left_out.items()))
        raise DataInvalid(
            f"No order of run {run_id} ({first} to {last}) can be compared ({why}): give books "
            "that were recorded while it traded."
        )
    findings = SlippageFindings(MODEL, fills, len(priced), dict(sorted(left_out.items())))
    findings.notes += [books.torn for held in files.values() for books in held if books.torn]
    _judge(findings, priced)
    return findings


def _market_orders(views: RunViews) -> tuple[int, dict[str, list[TakenOrder]], Counter[str]]:
    """Return the count of all fills, the market orders by instrument, and the others' counts.

    Orders are sorted, oldest first. An order's price is the mean of its fills by quantity; its time
    is the first at which it may fill.
    """
    orders_by_id = {row["order_id"]: row for row in views.rows("v_orders")}
    fills = views.rows("v_fills")
    taken: dict[str, list[Execution]] = defaultdict(list)
    excluded: dict[str, str] = {}
    for fill in fills:
        name, order = fill["order_id"], orders_by_id.get(fill["order_id"])
        if order is None:
            excluded[name] = _UNKNOWN
        elif order["kind"] != OrderKind.MARKET or fill["liquidity"] != Liquidity.TAKER:
            excluded[name] = _RESTED
        else:
            symbol, side = order["instrument"].partition(":")[2], Side(order["side"])
            amounts = Decimal(fill["price_text"]), Decimal(fill["quantity_text"])
            times = order["eligible_ms"], order["eligible_ms"]
            taken[order["instrument"]].append(Execution(symbol, side, *amounts, *times, name))
    orders = {instrument: orders_of(executions) for instrument, executions in taken.items()}
    return len(fills), orders, Counter(excluded.values())


def _first_known(
    files: Sequence[RecordedBooks], orders: Sequence[TakenOrder]
) -> Iterator[BookLevels | str]:
    """Yield the book for each order from the first of *files* that has it, or the reason."""
    times = [order.time_ms for order in orders]
    for answers in zip(*(books.at(times) for books in files), strict=True):
        book = next((answer for answer in answers if isinstance(answer, BookLevels)), None)
        yield book or next((answer for answer in answers if answer != _OUTSIDE), _OUTSIDE)


def _cost_bp(order: TakenOrder, paid: Fraction, mid: Fraction) -> float:
    """Return the cost of an order for which the levels of a book ask *paid*, in basis points."""
    worse = paid / Fraction(order.quantity) - Fraction(order.price)
    return float((worse if order.side is Side.BUY else -worse) / mid * 10_000)


# ---------------------------------------------------------------- verdict


def _judge(findings: SlippageFindings, priced: Sequence[tuple[TakenOrder, float]]) -> None:
    """Add the tables of the *priced* orders, each with its cost in basis points, and a verdict."""
    if not priced:
        findings.sentences.append(
            "The books filled no market order, so there is nothing to compare."
        )
        return
    orders = [order for order, _ in priced]
    costs = np.array([cost for _, cost in priced])
    findings.tables = tables_of(orders, costs)
    of_all = bias(costs, days_of(orders))
    low, high = of_all.interval or (-np.inf, np.inf)
    if low <= 0.0 <= high:
        findings.sentences.append(f"No bias of paper is shown: {of_all.sentence()}.")
        return
    how = "optimistic" if low > 0.0 else "pessimistic"
    findings.sentences.append(
        f"Paper was {how}: a fill at the books costs {of_all.sentence()} more than on paper."
    )
