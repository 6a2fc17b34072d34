"""``MemoryLog``: a run in this process's memory, for figures that keep no record."""

from __future__ import annotations

from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE, Columns, Ints, OutcomeCount, RunRows, Span
from tracepaper.storage.database.writer import Writer, in_memory, insert_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from typing import Self

    from tracepaper.storage.checkpoints import Identity
    from tracepaper.strategies.types.decisions import GateSet, QuietStretch, Run

IN_MEMORY: Final = Path(":memory:")
"""Stands where a record has the path of its database."""
TOGETHER: Final = 8
"""Stretches that become arrays at once: for each alone NumPy takes longer than their bars need."""
_PRICES: Final = ("open_time_ms", "open", "high", "low", "close", "volume")
_OF_BAR: Final = attrgetter(*_PRICES)
_STEPS: Final = ("sequence", "instrument", "like")
"""Of a bar its step, the place of its instrument, and the stored step that it is like."""


class MemoryLog(SqlAuditLog):
    """The log of one run in a database in memory, which is gone with the object.

    Unless it *keeps_all*, it stores of a quiet stretch the last unit alone. The bars before that
    one repeat its decisions: they are kept as arrays, which its :attr:`reader` adds to bars and
    accounts as columns. Views and notes lack them.
    """

    def __init__(
        self,
        model: Identity | None = None,
        *,
        content: bytes | None = None,
        keeps_all: bool = False,
    ) -> None:
        """Take what the run's *model* is known by, or the :attr:`content` of another log."""
        super().__init__(Writer(in_memory(content)))
        insert_rows(self._connection, {"models": [] if model is None else [tuple(model)]})
        self._keeps_all, self._quiet = keeps_all, QuietBars(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def begin(self, run: Run, gate_sets: Sequence[GateSet] = ()) -> None:
        """Open *run*, the one of this log, with the *gate_sets* known at its start."""
        super().begin(run, gate_sets)
        self.run, self._has_decided = run, True  # nothing is kept of a start that fails
        self._quiet = QuietBars([item.id for item in run.instruments])

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Take the steps of *stretch*."""
        if self._keeps_all:
            super().append_stretch(stretch)
            return
        last = stretch.units - 1
        self._quiet.add(stretch)
        self._due += last * stretch.width
        self.append_now(*stretch.steps(last))

    @property
    def content(self) -> bytes:
        """The pages of the database, for another process; without the bars that have no rows."""
        self.flush()
        return self._connection.serialize()

    @property
    def reader(self) -> Reader:
        """What reads the steps so far; it is closed with the log."""
        self.flush()
        return _MemoryReader(self._connection, self._quiet)


class QuietBars:
    """The bars of stretches, all but those of each last unit, whose rows are stored."""

    def __init__(self, instruments: Sequence[str]) -> None:
        self.places = {key: place for place, key in enumerate(instruments)}
        self._added: list[QuietStretch] = []  # since the last bars became arrays
        self._bars: list[Ints] = []  # [bar, column] of ``_PRICES``
        self._steps: list[Ints] = []  # [bar, column] of ``_STEPS``
        self._equity: dict[str, list[Ints]] = {}  # [bar], by the account's name

    def add(self, stretch: QuietStretch) -> None:
        """Keep what differs between the bars of *stretch*."""
        self._added.append(stretch)
        if len(self._added) == TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Make arrays of the stretches added."""
        added = [stretch for stretch in self._added if stretch.units > 1]
        self._added.clear()
        if not added:
            return
        repeats, count = added[0].repeats, len(added[0].repeats)
        units, width = np.array([(of.units - 1, of.width) for of in added]).T
        bars = chain.from_iterable(islice(of.bars, (of.units - 1) * count) for of in added)
        numbers = chain.from_iterable(map(_OF_BAR, bars))
        self._bars.append(np.fromiter(numbers, np.int64).reshape(-1, len(_PRICES)))
        first = np.array([stretch.first + bool(stretch.closes) for stretch in added])
        places = np.array([self.places[key] for key in repeats])
        nth = np.arange(units.sum()) - np.repeat(np.cumsum(units) - units, units)
        at = np.repeat(first, units) + np.repeat(width, units) * nth
        steps = at, np.repeat(first + width * units, units)
        sequences, like = ((of_unit[:, None] + np.arange(count)).ravel() for of_unit in steps)
        of_bars = sequences, np.tile(places, nth.size), like
        self._steps.append(np.stack(of_bars, axis=1))
        (of_members, *_) = (repeat.shadows for repeat in repeats.values())
        for place, name in enumerate(("", *(shadow.shadow for shadow in of_members))):
            marks = [(of.marks, *of.shadows)[place] for of in added]
            profits = chain.from_iterable(of.account_unrealized[:-1] for of in marks)
            worth = np.repeat(np.array([of.worth for of in marks], np.int64), units)
            equity = worth + np.fromiter(profits, np.int64)
            self._equity.setdefault(name, []).append(np.repeat(equity, count))

    def columns(self) -> dict[str, Columns]:
        """Return the bars with the equity of every account after them, by the account's name."""
        self.settle()
        if not self._bars:
            return {}
        bars: Columns = dict(zip(_PRICES, np.concatenate(self._bars).T, strict=True))
        bars |= zip(_STEPS, np.concatenate(self._steps).T, strict=True)
        return {
            name: bars | {"equity": np.concatenate(equity)} for name, equity in self._equity.items()
        }


class _MemoryReader(Reader):
    """Reads a run of which the bars of stretches have no rows."""

    def __init__(self, connection: sqlite3.Connection, quiet: QuietBars) -> None:
        super().__init__(connection)
        self._quiet = quiet

    def run_rows(self, run_key: int) -> RunRows:
        return _MemoryRows(self.connection, run_key, self._quiet)


class _MemoryRows(RunRows):
    """The rows of a run, and the bars that are like one of them but for their prices."""

    def __init__(self, connection: sqlite3.Connection, run_key: int, quiet: QuietBars) -> None:
        super().__init__(connection, run_key)
        self._quiet, self._places = quiet.columns(), quiet.places.values()

    def bars(self, place: int, span: Span) -> Columns:
        stored = super().bars(place, WHOLE)
        for quiet in islice(self._quiet.values(), 1):  # the run's account
            is_there = quiet["instrument"] == place
            stored = _with_quiet(stored, {name: column[is_there] for name, column in quiet.items()})
        return _within(stored, span)

    def accounts(self, span: Span) -> dict[str, Columns]:
        stored = super().accounts(WHOLE)
        merged = {name: _with_quiet(stored[name], quiet) for name, quiet in self._quiet.items()}
        return {name: _within(columns, span) for name, columns in (stored | merged).items()}

    def outcome_counts(self, span: Span) -> dict[int, OutcomeCount]:
        every = [self.bars(place, span) for place in self._places]
        sequence, outcome = (
            np.concatenate([bars[name] for bars in every]) for name in ("sequence", "outcome")
        )
        counts = {}
        for place in np.unique(outcome[outcome >= 0]).tolist():
            at = sequence[outcome == place]
            counts[self.outcomes[place].key] = OutcomeCount(at.size, int(at.min()), int(at.max()))
        return counts


def _with_quiet(stored: Columns, quiet: Columns) -> Columns:
    """Return *stored* and the *quiet* bars in order, in all else like the steps that they name."""
    like = np.searchsorted(stored["sequence"], quiet["like"])
    order = np.argsort(np.concatenate((stored["sequence"], quiet["sequence"])))
    return {
        name: np.concatenate((column, quiet[name] if name in quiet else column[like]))[order]
        for name, column in stored.items()
    }


def _within(columns: Columns, span: Span) -> Columns:
    is_within = (columns["sequence"] >= span[0]) & (columns["sequence"] <= span[1])
    return {name: column[is_within] for name, column in columns.items()}
