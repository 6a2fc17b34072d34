"""``BookShortfall``: what a whole book could lose in a day, for the gate ``risk.book_shortfall``.

The rule is docs/decisions.md, G42.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_not
from typing import TYPE_CHECKING, Protocol

from tracepaper.strategies.shortfall import (
    DAYS_LEAST,
    Returns,
    book_profits,
    common_days,
    day_returns,
    expected_shortfall,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class DayCandles(Protocol):
    """The last days of one instrument, which stay the same object within a day."""

    def closes(self) -> list[tuple[int, int]]:
        """Return (number of the day, close in 10⁻ᵏ), oldest first; a day with a hole is absent."""
        ...


class DaySource(Protocol):
    """An instrument with candles of a day."""

    @property
    def day_candles(self) -> DayCandles:
        """The last closed days."""
        ...


class BookShortfall:
    """Measures the expected shortfall of a book over the days that all its symbols have."""

    def __init__(self, markets: Mapping[str, DaySource], *, ignores_few: bool) -> None:
        """Read the days of *markets*; with *ignores_few* a symbol with too few days is left out."""
        self._markets, self._ignores_few = markets, ignores_few
        self._read: dict[str, tuple[DayCandles, Returns]] = {}
        self._aligned: tuple[list[Returns], list[npt.NDArray[np.float64]] | None] = [], None

    def measure(self, after: Mapping[str, int], before: Mapping[str, int]) -> float | None:
        """Return the shortfall of the book *after* a target, in money; 0 if it does not rise.

        Both are signed notionals by instrument. None if the days are too few.
        """
        new, old = self._shortfall(after), self._shortfall(before)
        return new if new is None or old is None or new > old else 0.0

    def _shortfall(self, exposures: Mapping[str, int]) -> float | None:
        held = [(self._returns(key), exposures[key]) for key in self._markets if exposures.get(key)]
        if self._ignores_few:
            held = [each for each in held if len(each[0]) >= DAYS_LEAST]
        if not held:
            return 0.0
        columns = self._columns([returns for returns, _ in held])
        if columns is None:
            return 0.0 if self._ignores_few else None
        return max(expected_shortfall(book_profits([size for _, size in held], columns)), 0.0)

    def _returns(self, key: str) -> Returns:
        """Return the returns of an instrument by day, which are computed once a day."""
        candles = self._markets[key].day_candles
        read = self._read.get(key)
        if read is None or read[0] is not candles:
            read = self._read[key] = candles, day_returns(candles.closes())
        return read[1]

    def _columns(self, returns: list[Returns]) -> list[npt.NDArray[np.float64]] | None:
        """Return each of *returns* [day] over their common days; None if these are too few."""
        import numpy as np

        known, columns = self._aligned
        if len(known) != len(returns) or any(map(is_not, known, returns)):
            days, columns = common_days(returns), None
            if len(days) >= DAYS_LEAST:
                columns = [np.array([each[day] for day in days]) for each in returns]
            self._aligned = returns, columns
        return columns
