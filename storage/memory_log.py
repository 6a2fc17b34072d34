"""``MemoryLog``: the log of a run in memory, for results without a stored record."""

from __future__ import annotations

from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE, Columns, Ints, OutcomeCount, RunRows, Span
from tracepaper.storage.database.writer import in_memory, insert_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from typing import Self

    from tracepaper.storage.checkpoints import Identity
    from tracepaper.strategies.types.decisions import GateSet, QuietStretch, RunRow

IN_MEMORY: Final = Path(":memory:")
"""Used in place of the path of a database."""
STRETCHES_AT_ONCE: Final = 8
"""Stretches that are converted to arrays together: one by one, NumPy's overhead would dominate."""
_PRICES: Final = ("open_time_ms", "open", "high", "low", "close", "volume")
_OF_BAR: Final = attrgetter(*_PRICES)
_STEPS: Final = ("sequence", "instrument", "like")
"""A bar's step, the index of its instrument, and the stored step with the same decision."""


class MemoryLog(SqlAuditLog):
    """The log of one run in a database in memory, which ends with the object.

    Unless it *keeps_all*, only the last unit of a stretch without a model is stored as rows. The
    bars before it repeat its decisions: they are kept as arrays, which the :attr:`reader` adds to
    the columns of bars and accounts. Views and notes lack them.
    """

    def __init__(
        self,
        model: Identity | None = None,
        *,
        content: bytes | None = None,
        keeps_all: bool = False,
    ) -> None:
        """Start with the identity of the run's *model*, or the :attr:`content` of another log."""
        super().__init__(in_memory(content))
        with self._connection.begin():
            insert_rows(self._driver, {"models": [] if model is None else [tuple(model)]})
        self._keeps_all, self._quiet = keeps_all, QuietBars(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet] = ()) -> None:
        """Open *run*, the only one of this log, with the *gate_sets* of its start."""
        super().begin(run, gate_sets)
        self.run, self._has_decided = run, True  # a failed start leaves nothing anyway
        self._quiet = QuietBars([item.id for item in run.instruments])

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Add the steps of *stretch*."""
        if self._keeps_all or stretch.answers:  # a decision of each bar
            super().append_stretch(stretch)
            return
        last = stretch.units - 1
        self._quiet.add(stretch)
        self._due += last * stretch.width
        self.append_now(*stretch.steps(last))

    @property
    def content(self) -> bytes:
        """The pages of the database, for another process; bars without rows are missing."""
        self.flush()
        return self._driver.serialize()

    @property
    def reader(self) -> Reader:
        """A reader of the steps so far; it is closed with the log."""
        self.flush()
        return _MemoryReader(self._driver, self._quiet)


class QuietBars:
    """The bars of stretches without those of each last unit, whose rows are stored."""

    def __init__(self, instruments: Sequence[str]) -> None:
        self.places = {key: place for place, key in enumerate(instruments)}
        self._added: list[QuietStretch] = []  # not yet converted to arrays
        self._bars: list[Ints] = []  # [bar, column] of ``_PRICES``
        self._steps: list[Ints] = []  # [bar, column] of ``_STEPS``
        self._equity: dict[str, list[Ints]] = {}  # [bar], by the account's name

    def add(self, stretch: QuietStretch) -> None:
        """Keep the values that differ between the bars of *stretch*."""
        self._added.append(stretch)
        if len(self._added) == STRETCHES_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Convert the added stretches to arrays."""
        added = [stretch for stretch in self._added if stretch.units > 1]
        self._added.clear()
        if not added:
            return
        repeats, count = added[0].repeats, len(added[0].repeats)
        units, width = np.array([(stretch.units - 1, stretch.width) for stretch in added]).T
        bars = chain.from_iterable(
            islice(stretch.bars, (stretch.units - 1) * count) for stretch in added
        )
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
        members = [next(iter(span.steps.values())) for span in added[0].shadows]
        names = [shadow.shadow for of_span in members for shadow in of_span]
        for place, name in enumerate(("", *names)):
            marks = [  # without a model nothing is filled in a stretch: it has one span
                (stretch.marks, *chain(*(span.marks for span in stretch.shadows)))[place]
                for stretch in added
            ]
            profits = chain.from_iterable(mark.account_unrealized[:-1] for mark in marks)
            worth = np.repeat(np.array([mark.worth for mark in marks], np.int64), units)
            equity = worth + np.fromiter(profits, np.int64)
            self._equity.setdefault(name, []).append(np.repeat(equity, count))

    def columns(self) -> dict[str, Columns]:
        """Return by account name: the bars with the account's equity after each."""
        self.settle()
        if not self._bars:
            return {}
        bars: Columns = dict(zip(_PRICES, np.concatenate(self._bars).T, strict=True))
        bars |= zip(_STEPS, np.concatenate(self._steps).T, strict=True)
        return {
            name: bars | {"equity": np.concatenate(equity)} for name, equity in self._equity.items()
        }


class _MemoryReader(Reader):
    """Reads a run whose quiet bars have no rows."""

    def __init__(self, connection: sqlite3.Connection, quiet: QuietBars) -> None:
        super().__init__(connection)
        self._quiet = quiet

    def run_rows(self, run_key: int) -> RunRows:
        return _MemoryRows(self.connection, run_key, self._quiet)


class _MemoryRows(RunRows):
    """The rows of a run with its quiet bars, which repeat a stored row but for their prices."""

    def __init__(self, connection: sqlite3.Connection, run_key: int, quiet: QuietBars) -> None:
        super().__init__(connection, run_key)
        self._quiet, self._places = quiet.columns(), quiet.places.values()

    def bars(self, place: int, span: Span) -> Columns:
        stored = super().bars(place, WHOLE)
        for quiet in islice(self._quiet.values(), 1):  # the run's account
            is_there = quiet["instrument"] == place
            stored = _with_quiet(stored, {name: column[is_there] for name, column in quiet.items()})
        return _within(stored, span)

    def bars_by_instrument(self, span: Span, instruments: int) -> list[Columns]:
        return [self.bars(place, span) for place in range(instruments)]

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
    """Return *stored* and the *quiet* bars in order; columns they lack are copied from ``like``."""
    like = np.searchsorted(stored["sequence"], quiet["like"])
    order = np.argsort(np.concatenate((stored["sequence"], quiet["sequence"])))
    return {
        name: np.concatenate((column, quiet[name] if name in quiet else column[like]))[order]
        for name, column in stored.items()
    }


def _within(columns: Columns, span: Span) -> Columns:
    is_within = (columns["sequence"] >= span[0]) & (columns["sequence"] <= span[1])
    return {name: column[is_within] for name, column in columns.items()}
