"""The closed trades of a run's accounts, computed from rows of fills and holdings; pure.

A trade goes from flat to flat. Its key is that of the fill that closed it; it also stores the key
of the fill that opened it. That of a trade which an earlier run opened is (-1 - N, 0): trade N of
the account that the run took over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from tracepaper.storage.record.rows import gather
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Category, Side
from tracepaper.strategies.units import Notional, divide_half_even, interval_start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracepaper.storage.record.columns import Row
    from tracepaper.strategies.types.decisions import RunRow
    from tracepaper.strategies.types.market import Instrument


_POSITION_OF_FILL: Final = gather("fills", "shadow", "instrument")
_FILLED: Final = gather(
    "fills",
    *("sequence", "ordinal", "side", "quantity", "reference_price", "notional", "fee", "fee_base"),
)
_HELD: Final = gather("holdings", "shadow", "instrument", "quantity", "funding_paid")
_DATED: Final = gather("fills", "model", "filled_ms")
_BY_CANDLE: Final = frozenset({FillModel.NEXT_OPEN, FillModel.BAR_PATH})


class OpenTrade(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trade that is open where a run ends: its entry, and its sums until then."""

    shadow: str | None  # the shadow account; None is the run's own
    instrument: str
    run_id: str | None  # the run that decided it; None if its order is older than two runs
    opened_ms: int
    entry_reason: str
    entry_sequence: int | None  # of the step of that run which created the opening order
    bars_held: int
    mean_return: float | None = None  # this and the next three are of the forecast at the entry
    stdev_return: float | None = None
    volatility: float | None = None
    horizon: int | None = None
    held: int  # signed
    largest: int
    entries: tuple[int, int]  # quantity and notional
    exits: tuple[int, int]
    gross: int
    fees: int
    funding: int


class Totals(Struct, frozen=True, forbid_unknown_fields=True):
    """The sums of an account where a run ends, since the account began."""

    equity: int
    realized_pnl: int
    unrealized_pnl: int
    fees_paid: int
    funding_paid: int


class AccountBefore(Struct, frozen=True):
    """What the trades and costs of a run need of the account that it took over."""

    totals: dict[str, Totals]  # by shadow account; "" is the run's own
    funding_paid: dict[str, dict[str, int]]  # the same by instrument
    open_trades: tuple[OpenTrade, ...]


@lru_cache(maxsize=4)
def _decoded(account: str) -> AccountBefore:
    try:
        return msgspec.json.decode(account, type=AccountBefore)
    except msgspec.MsgspecError as error:
        raise DataInvalid(f"The account that a run took over cannot be read: {error}.") from error


def inherited(run: RunRow) -> AccountBefore | None:
    """Return what *run* took over; None if it is the first of its account."""
    return None if run.account is None else _decoded(run.account)


class TradeBook:
    """The trades of one position, from flat to flat.

    Only a fill that reverses the position is rounded: its amounts are shared between the two
    trades by quantity, half-even. A sale that leaves less than one quantity step, which cannot be
    sold, ends the trade.
    """

    def __init__(self, instrument: Instrument) -> None:
        self._step, self._worth = instrument.quantity_step, Notional.of(instrument)
        self._is_spot = instrument.category is Category.SPOT
        self.held = 0  # signed
        self._begin((0, 0))

    def _begin(self, opened: tuple[int, int]) -> None:
        """Begin a trade; *opened* is the key of the fill that opens it."""
        self.opened = opened
        self._largest = 0
        self._entries, self._exits = [0, 0], [0, 0]  # quantity and notional
        self._gross = self._fees = self._funding = 0

    def go_on(self, trade: OpenTrade, number: int) -> None:
        """Continue *trade*, which has this *number* in the account that the run took over."""
        self._begin((-1 - number, 0))
        self.held, self._largest = trade.held, trade.largest
        self._entries, self._exits = [*trade.entries], [*trade.exits]
        self._gross, self._fees, self._funding = trade.gross, trade.fees, trade.funding

    def sums(self) -> dict[str, Any]:
        """Return the fields of :class:`OpenTrade` that the fills since the entry determine."""
        return {
            "held": self.held,
            "largest": self._largest,
            "entries": (self._entries[0], self._entries[1]),
            "exits": (self._exits[0], self._exits[1]),
            "gross": self._gross,
            "fees": self._fees,
            "funding": self._funding,
        }

    def pay(self, amount: int) -> None:
        """Add the *amount* of funding paid."""
        self._funding += amount

    def fill(self, row: Sequence[Any]) -> Row | None:
        """Apply a row of ``fills``; return the row of the trade that it closes, without its key."""
        sequence, ordinal, side, quantity, reference, notional, fee, fee_base = _FILLED(row)
        held, is_buy = self.held, side == Side.BUY
        moved = quantity - fee_base if is_buy else -quantity
        if not moved:
            return None
        if not held:
            self._begin((sequence, ordinal))
        left = held + moved
        # A spot sale may also sell what fees left of earlier trades.
        if moved < 0 < held and left < self._step and (left > 0 or self._is_spot):
            moved = -held
        is_exit = held * moved < 0
        left = abs(moved) - abs(held)
        total = quantity, notional, self._worth(reference, quantity), fee
        if not is_exit or left <= 0:
            self._book(total, is_buy=is_buy, is_exit=is_exit)
            self._hold(held + moved)
            return self._closed() if not self.held else None
        size = abs(moved)
        closing = [divide_half_even(amount * (size - left), size) for amount in total]
        self._book(closing, is_buy=is_buy, is_exit=True)
        closed = self._closed()
        self._begin((sequence, ordinal))
        opening = [amount - used for amount, used in zip(total, closing, strict=True)]
        self._book(opening, is_buy=is_buy, is_exit=False)
        self._hold(held + moved)
        return closed

    def _book(self, amounts: Sequence[int], *, is_buy: bool, is_exit: bool) -> None:
        quantity, notional, worth, fee = amounts
        sums = self._exits if is_exit else self._entries
        sums[0] += quantity
        sums[1] += notional
        self._gross -= worth if is_buy else -worth
        self._fees += fee

    def _hold(self, held: int) -> None:
        self.held = held
        self._largest = max(self._largest, abs(held))

    def _closed(self) -> Row:
        quantity, notional = self._entries
        stake = divide_half_even(notional * self._largest, quantity)
        sums = self._gross, self._fees, self._funding
        return (*self.opened, self._largest, *self._entries, *self._exits, *sums, stake)


class TradeBooks:
    """The trades of a *run*: of its account and of its shadow accounts.

    They begin with the trades that are open in the account which the run took over.
    """

    def __init__(self, run: RunRow) -> None:
        self._instruments = run.instruments
        self._interval_ms = run.interval_ms
        self._places = {instrument.id: at for at, instrument in enumerate(run.instruments)}
        # By shadow account, None for the run's, and instrument:
        self._books: dict[tuple[str | None, int], TradeBook] = {}
        self._paid: dict[tuple[str | None, int], int] = {}  # the funding paid so far
        if (before := inherited(run)) is None:
            return
        try:
            for shadow, paid in before.funding_paid.items():
                for instrument, amount in paid.items():
                    self._paid[shadow or None, self._places[instrument]] = amount
            for number, trade in enumerate(before.open_trades):
                self._book((trade.shadow, self._places[trade.instrument])).go_on(trade, number)
        except KeyError as error:
            raise DataInvalid(f"A run took over {error}, which it does not trade.") from error

    def _book(self, key: tuple[str | None, int]) -> TradeBook:
        if (book := self._books.get(key)) is None:
            book = self._books[key] = TradeBook(self._instruments[key[1]])
        return book

    def open(self) -> Iterator[tuple[str | None, int, TradeBook]]:
        """Yield account, place of the instrument and book of each trade that is open."""
        for (shadow, place), book in sorted(self._books.items(), key=lambda item: str(item[0])):
            if book.held:
                yield shadow, place, book

    def fill(self, row: Sequence[Any]) -> Row | None:
        """Apply a row of ``fills``; return the row of ``trades`` if it closes a trade."""
        closed = self._book(_POSITION_OF_FILL(row)).fill(row)
        return None if closed is None else (*row[:4], *closed)

    def before_settling(self, rows: Sequence[Sequence[Any]]) -> int:
        """Return how many of *rows*, the fills of one account in one step, precede its settlement.

        A settlement inside a bar follows the fills at the bar's open; any other precedes all fills.
        """
        count = len(rows)
        while count and not self._is_at_open(rows[count - 1]):
            count -= 1
        return count

    def _is_at_open(self, row: Sequence[Any]) -> bool:
        model, filled_ms = _DATED(row)
        return model in _BY_CANDLE and interval_start(filled_ms, self._interval_ms) == filled_ms

    def settle(self, row: Sequence[Any]) -> None:
        """Apply the settlement in a row of ``holdings``."""
        shadow, instrument, quantity, paid = _HELD(row)
        if quantity is not None:
            self.pay(shadow, instrument, paid)

    def pay(self, shadow: str | None, instrument: int, paid: int) -> None:
        """Apply the total funding *paid* by the position of an account in *instrument*."""
        key = shadow, instrument
        before = self._paid.get(key, 0)
        if paid == before:
            return
        self._paid[key] = paid
        if (book := self._books.get(key)) is not None:
            book.pay(paid - before)
