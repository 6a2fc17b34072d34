"""``UnitQueue``: the input of a run, of which the next unit is known before it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tracepaper.strategies.types.decisions import Prediction
from tracepaper.strategies.types.market import Unit


class UnitQueue:
    """The bars, closes and other events of a run, in order; each is drawn on request.

    ``unit`` is the next one, None at the end. If drawing it fails, it is None as well, and
    ``error`` has the error, so that the caller can first process the unit taken before.
    """

    __slots__ = ("_predictions", "_source", "error", "unit")

    def __init__(self, units: Iterable[Unit]) -> None:
        self._source = iter(units)
        self.unit: Unit | None = None
        self.error: Exception | None = None
        self._predictions: Sequence[Prediction] | None = None  # for ``unit``, once asked for
        self.advance()

    def advance(self) -> Unit | None:
        """Take the next unit, and return the one after it."""
        self.unit = self._predictions = None
        try:
            self.unit = next(self._source, None)
        except Exception as error:  # noqa: BLE001 - whatever the source raises, later
            self.error = error
        return self.unit

    def predictions(self, predict: Callable[[Unit], Sequence[Prediction]]) -> Sequence[Prediction]:
        """Return what *predict* gives for the next unit; it is called once for each unit."""
        if self._predictions is None:
            assert self.unit is not None
            self._predictions = predict(self.unit)
        return self._predictions
