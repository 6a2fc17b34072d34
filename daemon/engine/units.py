"""``UnitQueue``: the input of a run, which an engine may peek at before taking it."""

from __future__ import annotations

from collections.abc import Iterable

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.market import Unit


class UnitQueue:
    """The bars, closes and other events of a run, in order; each is drawn on request."""

    __slots__ = ("_error", "_next", "_source")

    def __init__(self, units: Iterable[Unit]) -> None:
        self._source = iter(units)
        self._next: Unit | None = None
        self._error: Exception | None = None

    def peek(self) -> Unit | None:
        """Return the next unit without taking it; None at the end."""
        if self._next is None:
            if self._error is not None:
                raise self._error
            self._next = next(self._source, None)
        return self._next

    def advance(self) -> Unit | None:
        """Take the next unit, and return the one after it without taking it; None at the end.

        If drawing that one fails, the result is None and the following :meth:`peek` raises the
        error, so that the caller can process the unit taken first.
        """
        try:
            self._next = next(self._source, None)
        except Exception as error:  # noqa: BLE001 - whatever the source raises, later
            self._next, self._error = None, error
        return self._next

    def next(self) -> Unit:
        """Take the next unit; raise ``InvariantBroken`` at the end."""
        if (unit := self.peek()) is None:
            raise InvariantBroken("This run has no more units.")
        self._next = None
        return unit
