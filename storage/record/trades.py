"""The closed trades of a run's accounts, computed from rows of fills and holdings; pure.

A trade goes from flat to flat. Its key is that of the fill that closed it; it also stores the key
of the fill that opened it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tracepaper.storage.record.rows import gather
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import Notional, divide_half_even, interval_start

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class TradeBook:
    """The trades of one position, from flat to flat.

    Only a fill that reverses the position is rounded: its amounts are shared between the two
    trades by quantity, half-even. A sale that leaves less than one quantity step, which cannot be
    sold, ends the trade. A quantity *held* at the start belongs to no trade.
    """

    def __init__(self, instrument: Instrument, held: int = 0) -> None:
        self._step, self._worth = instrument.quantity_step, Notional.of(instrument)
        self.held = held if abs(held) >= self._step else 0  # signed
        self._begin(None)

    def _begin(self, opened: tuple[int, int] | None) -> None:
        """Begin a trade; *opened* is the key of the fill that opens it, None if unknown."""
        self._opened = opened
        self._largest = 0
        self._entries, self._exits = [0, 0], [0, 0]  # quantity and notional
        self._gross = self._fees = self._funding = 0

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
        if moved < 0 < held + moved < self._step:
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

    def _closed(self) -> Row | None:
        if self._opened is None:
            return None
        quantity, notional = self._entries
        stake = divide_half_even(notional * self._largest, quantity)
        sums = self._gross, self._fees, self._funding
        return (*self._opened, self._largest, *self._entries, *self._exits, *sums, stake)


class TradeBooks:
    """The trades of a *run*: of its account and of its shadow accounts.

    If the run took over an account, the position is known from the first row of ``holdings`` on;
    fills before it belong to no trade.
    """

    def __init__(self, run: RunRow) -> None:
        self.is_taken_over = run.parent_run_id is not None
        self._instruments = run.instruments
        self._interval_ms = run.interval_ms
        self._places = {instrument.id: at for at, instrument in enumerate(run.instruments)}
        # By shadow account, None for the run's, and instrument:
        self._books: dict[tuple[str | None, int], TradeBook] = {}
        self._paid: dict[tuple[str | None, int], int] = {}  # the funding paid so far

    def fill(self, row: Sequence[Any]) -> Row | None:
        """Apply a row of ``fills``; return the row of ``trades`` if it closes a trade."""
        key = _, instrument = _POSITION_OF_FILL(row)
        if (book := self._books.get(key)) is None:
            if self.is_taken_over:  # it waits for ``hold``
                return None
            book = self._books[key] = TradeBook(self._instruments[instrument])
        closed = book.fill(row)
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
        before = self._paid.get(key, paid if self.is_taken_over else 0)
        if paid == before:
            return
        self._paid[key] = paid
        if (book := self._books.get(key)) is not None:
            book.pay(paid - before)

    def hold(self, row: Sequence[Any]) -> None:
        """Apply a row of ``holdings`` of an account that was taken over, after its step's fills."""
        shadow, instrument, quantity, paid = _HELD(row)
        if instrument is not None and quantity is not None:
            key = shadow, instrument
            self._books.setdefault(key, TradeBook(self._instruments[instrument], quantity))
            self._paid.setdefault(key, paid)
