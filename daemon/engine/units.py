"""``UnitQueue``: what a run is given, which an engine may look at before it takes it."""

from __future__ import annotations

from collections.abc import Iterable

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.market import Unit


class UnitQueue:
    """Bars, closes and other events of a run, in order; each is drawn when it is asked for."""

    __slots__ = ("_error", "_next", "_source")

    def __init__(self, units: Iterable[Unit]) -> None:
        self._source = iter(units)
        self._next: Unit | None = None
        self._error: Exception | None = None

    def peek(self) -> Unit | None:
        """Return the next unit, which stays the next one; None at the end."""
        if self._next is None:
            if self._error is not None:
                raise self._error
            self._next = next(self._source, None)
        return self._next

    def advance(self) -> Unit | None:
        """Take the next unit, and return the one after it as :meth:`peek` does.

        None as well where that cannot be drawn: ``peek`` says why, when what was taken is dealt
        with.
        """
        try:
            self._next = next(self._source, None)
        except Exception as error:  # noqa: BLE001 - whatever the source raises, later
            self._next, self._error = None, error
        return self._next

    def next(self) -> Unit:
        """Take the next unit; raise ``InvariantBroken`` at the end."""
        if (unit := self.peek()) is None:
            raise InvariantBroken("No unit is left of this run.")
        self._next = None
        return unit
