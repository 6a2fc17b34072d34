"""``UnitQueue``: the input of a run, which an engine may peek at before taking it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import Prediction
from tracepaper.strategies.types.market import Unit


class UnitQueue:
    """The bars, closes and other events of a run, in order; each is drawn on request."""

    __slots__ = ("_error", "_next", "_predictions", "_source")

    def __init__(self, units: Iterable[Unit]) -> None:
        self._source = iter(units)
        self._next: Unit | None = None
        self._predictions: Sequence[Prediction] | None = None  # for the next unit, once asked for
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
        self._predictions = None
        try:
            self._next = next(self._source, None)
        except Exception as error:  # noqa: BLE001 - whatever the source raises, later
            self._next, self._error = None, error
        return self._next

    def next(self) -> Unit:
        """Take the next unit; raise ``InvariantBroken`` at the end."""
        if (unit := self.peek()) is None:
            raise InvariantBroken("This run has no more units.")
        self._next = self._predictions = None
        return unit

    def predictions(self, predict: Callable[[Unit], Sequence[Prediction]]) -> Sequence[Prediction]:
        """Return what *predict* gives for the next unit; it is called once for each unit."""
        if self._predictions is None:
            assert self._next is not None
            self._predictions = predict(self._next)
        return self._predictions
