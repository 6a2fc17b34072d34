"""Steps of a run at which ``verify`` can begin to compute it: ``--from``, or one commit.

After any step the engine's state is the newest stored state plus the confirmations and counts since
then. The rest is restored by feeding the events of a stretch before it, the *run-in*. This module
only queries the database; it uses no engine.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.storage.database.chunks import WITHIN, close_of, find_step

if TYPE_CHECKING:
    import sqlite3

_BAR: Final = "instrument IS NOT NULL AND ignored IS NULL"
_STARTED: Final = (
    f"SELECT sequence, content FROM events WHERE {WITHIN} AND kind = 'model_change' "
    "ORDER BY sequence DESC LIMIT 1"
)
_BOOKS: Final = (
    "SELECT sequence, json_extract(content, '$.count') FROM events "
    f"WHERE {WITHIN} AND kind = 'depth' AND instrument = ? ORDER BY sequence DESC"
)
_INSTRUMENTS: Final = (
    "SELECT instrument, instrument_id FROM instruments WHERE run_key = ? ORDER BY instrument"
)


class RunLookback(Struct, frozen=True):
    """The lookback of a run's decisions."""

    bars: dict[str, int]  # newest bars needed, by instrument id
    books: dict[str, int] = {}  # newest order books needed, by instrument id
    context: int = 0  # bars per instrument that a forecast depends on; 0 without a model


class _StartContent(Struct):
    """The content of a ``model_change`` event: the bars that warmed the model up."""

    warm_from: list[tuple[str, int]] = []


class _Start(NamedTuple):
    """A start of the process."""

    step: int
    warm_from: dict[str, int]  # by instrument: the first bar that warmed it up


class StartingPoint(Struct, frozen=True):
    """A step after which a run can be computed again."""

    after: int  # the last step that is read from the record; the next one is computed
    fed_from: int  # the first step whose event is fed in the run-in
    is_started: bool = False  # whether the model forecasts from there on, or a start warms it up


class StartingPoints:
    """The starting points of one run, for decisions with one *lookback*."""

    def __init__(self, connection: sqlite3.Connection, run_key: int, lookback: RunLookback) -> None:
        self._connection = connection
        self._lookback = lookback
        self._run_key = run_key
        self._find = partial(find_step, connection, run_key)
        instruments = connection.execute(_INSTRUMENTS, (run_key,)).fetchall()
        self._places = {str(name): int(place) for place, name in instruments}
        # At least one bar, because its close values the position.
        self._bars = {key: max(count, 1) for key, count in lookback.bars.items()}

    def before(self, sequence: int) -> StartingPoint | None:
        """Return the last starting point before step *sequence*.

        None if fewer bars precede it than its decision needs.
        """
        step = self._unit(sequence)[0] - 1
        return None if step < 0 else self._fed(step)

    # ------------------------------------------------------------ queries

    @property
    def _model_bars(self) -> int:
        # One more, because a forecast's shift is computed against the forecast before it.
        return self._lookback.context + 1 if self._lookback.context else 0

    def _unit(self, step: int) -> tuple[int, int]:
        """Return the first and last step of the close that holds *step*; without one, *step*."""
        return close_of(self._connection, self._run_key, step, len(self._places))

    def _bar(
        self, first: int, last: int, key: str, *, newest: bool = False, skip: int = 0
    ) -> int | None:
        """Return the step of an instrument's first or *newest* bar, after *skip* others."""
        query = "steps", f"instrument = ? AND {_BAR}", self._places[key]
        return self._find(first, last, *query, newest=newest, skip=skip)

    def _back(self, step: int, key: str, count: int) -> int | None:
        """Return the step of the oldest of an instrument's last *count* bars up to *step*."""
        return self._bar(0, step, key, newest=True, skip=count - 1)

    def _oldest(self, step: int, key: str) -> int:
        """Return the step of an instrument's first bar; *step* if it has none."""
        bar = self._bar(0, step, key)
        return step if bar is None else bar

    def _newest_start(self, step: int) -> _Start | None:
        """Return the newest start up to *step*, if any."""
        row = self._connection.execute(_STARTED, (self._run_key, 0, step)).fetchone()
        if row is None:
            return None
        content = msgspec.json.decode(row[1], type=_StartContent)
        return _Start(int(row[0]), dict(content.warm_from))

    def _fed(self, step: int) -> StartingPoint | None:
        """Return the starting point after *step*; None if too few bars come before it."""
        fed = [self._back(step, key, count) for key, count in self._bars.items()]
        if all(oldest is None for oldest in fed):
            return None
        # An instrument whose bars begin late needs those from its first bar on.
        fed = [
            self._oldest(step, key) if oldest is None else oldest
            for key, oldest in zip(self._bars, fed, strict=True)
        ]
        fed += [self._books(step, key, count) for key, count in self._lookback.books.items()]
        fed += [self._quote(step, key) for key in self._bars]
        is_started = False
        if self._lookback.context:
            of_model, is_started = self._model_fed(step)
            fed += of_model
        steps = [oldest for oldest in fed if oldest is not None]
        if len(steps) < len(fed):
            return None
        fed_from = self._unit(min([step + 1, *steps]))[0]
        return StartingPoint(step, fed_from, is_started)

    def _model_fed(self, step: int) -> tuple[list[int | None], bool]:
        """Return the first steps that the model needs, and whether it forecasts from there on.

        Forecasts over a full context of bars restore its state. If the model started more recently,
        it is warmed up with the bars of its start instead.
        """
        keys = [key for key in self._bars if self._oldest(step, key) < step]
        by_steps = [self._back(step, key, self._model_bars) for key in keys]
        started = self._newest_start(step)
        at = -1 if started is None else started.step
        if started is None or all(oldest is not None and oldest > at for oldest in by_steps):
            return [*by_steps], True
        warm_from = started.warm_from.items()
        return [at, *(self._bar_at(at, key, opened) for key, opened in warm_from)], False

    def _bar_at(self, last: int, key: str, open_time_ms: int) -> int | None:
        """Return the step of the bar of an instrument that opened at *open_time_ms*."""
        where = f"instrument = ? AND {_BAR} AND open_time_ms = ?"
        return self._find(0, last, "steps", where, self._places[key], open_time_ms)

    def _since_start(self, step: int) -> int:
        """Return the first step whose quotes and books still count: a start drops earlier ones."""
        started = self._newest_start(step)
        return 0 if started is None else started.step

    def _quote(self, step: int, key: str) -> int:
        """Return the step of an instrument's newest quote up to *step*; *step* if it has none."""
        quotes = "events", "kind = 'quote' AND instrument = ?", self._places[key]
        quoted = self._find(self._since_start(step), step, *quotes, newest=True)
        return step if quoted is None else quoted

    def _books(self, step: int, key: str, count: int) -> int:
        """Return the step of the oldest of an instrument's last *count* order books."""
        oldest, span = step, (self._run_key, self._since_start(step), step, self._places[key])
        for at, books in self._connection.execute(_BOOKS, span):
            oldest, count = int(at), count - int(books)
            if count <= 0:
                break
        return oldest
