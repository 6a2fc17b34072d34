"""``MemoryLog``: the log of a run in memory, for results without a stored record."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE, Columns, Ints, OutcomeCount, RunRows, Span
from tracepaper.storage.database.writer import in_memory, insert_rows
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from typing import Self

    from tracepaper.storage.checkpoints import Identity
    from tracepaper.strategies.types.decisions import GateSet, QuietStretch, RunRow, Step

IN_MEMORY: Final = Path(":memory:")
"""Used in place of the path of a database."""
STRETCHES_AT_ONCE: Final = 8
"""Stretches that are converted to arrays together: one by one, NumPy's overhead would dominate."""
_PRICES: Final = ("open_time_ms", "open", "high", "low", "close", "volume")
_OF_BAR: Final = attrgetter(*_PRICES)
_STEPS: Final = ("sequence", "instrument", "like")
"""A bar's step, the index of its instrument, and the stored step with the same decision."""
_HELD: Final = ("equity", "quantity")
"""The account after a bar, and its position in the bar's instrument."""


class MemoryLog(SqlAuditLog):
    """The log of one run in a database in memory, which ends with the object.

    Unless it *keeps_all*, the bars of a stretch without a model are no rows. They repeat the
    decisions before them: they are kept as arrays, which the :attr:`reader` adds to the columns of
    bars and accounts. Views and notes lack them. Of a stretch that ends the run so far the last
    unit is stored.
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
        self._open: QuietStretch | None = None  # the newest stretch, if no step followed it
        self._decided: dict[str, int] = {}  # the newest stored decision, by instrument

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet] = ()) -> None:
        """Open *run*, the only one of this log, with the *gate_sets* of its start."""
        super().begin(run, gate_sets)
        self.run, self._has_decided = run, True  # a failed start leaves nothing anyway
        self._quiet = QuietBars([item.id for item in run.instruments])

    def append_now(self, *steps: Step) -> None:
        """Buffer *steps*, as in a database on disk."""
        self._end_stretch()
        super().append_now(*steps)
        for step in steps:
            if step.decision is not None and type(step.event) is Bar:
                self._decided[step.event.instrument] = step.sequence

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Add the steps of *stretch*."""
        self._end_stretch()
        if not (self._keeps_all or stretch.answers):  # without a decision of each bar
            self._open, self._due, self._last = stretch, stretch.next_sequence, stretch.last
            return
        super().append_stretch(stretch)
        if super().room <= 0:
            self.flush()

    @property
    def room(self) -> int:
        """The most steps of a stretch; those without rows fill no group."""
        return self._group_steps

    def _end_stretch(self, *, is_stored: bool = False) -> None:
        """Keep the newest stretch as arrays; if *is_stored*, its last unit as rows."""
        stretch, self._open = self._open, None
        if stretch is None:
            return
        units = stretch.units - is_stored
        self._quiet.add(stretch, units, [self._decided[key] for key in stretch.repeats])
        if is_stored:
            self._due = stretch.first + units * stretch.width
            self.append_now(*stretch.steps(units))

    @property
    def content(self) -> bytes:
        """The pages of the database, for another process; bars without rows are missing."""
        self._end_stretch(is_stored=True)
        self.flush()
        return self._driver.serialize()

    @property
    def reader(self) -> Reader:
        """A reader of the steps so far; it is closed with the log."""
        self._end_stretch(is_stored=True)
        self.flush()
        return _MemoryReader(self._driver, self._quiet)


class _Kept(NamedTuple):
    """The first *units* of a stretch, and the steps with the same decision, by instrument."""

    stretch: QuietStretch
    units: int
    like: Sequence[int]


class QuietBars:
    """The bars of stretches that have no rows."""

    def __init__(self, instruments: Sequence[str]) -> None:
        self.places = {key: place for place, key in enumerate(instruments)}
        self._added: list[_Kept] = []  # not yet converted to arrays
        self._bars: list[Ints] = []  # [bar, column] of ``_PRICES``
        self._steps: list[Ints] = []  # [bar, column] of ``_STEPS``
        self._account: list[Ints] = []  # [bar, column] of ``_HELD``

    def add(self, stretch: QuietStretch, units: int, like: Sequence[int]) -> None:
        """Keep the values that differ between the bars of the first *units* of *stretch*.

        *like* has the stored step with the same decision, by instrument.
        """
        self._added += [_Kept(stretch, units, like)] if units else []
        if len(self._added) == STRETCHES_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Convert the added stretches to arrays."""
        added, self._added = self._added, []
        if not added:
            return
        stretches = [each.stretch for each in added]
        repeats, count = stretches[0].repeats, len(stretches[0].repeats)
        units = np.array([each.units for each in added])
        nth = np.arange(units.sum()) - np.repeat(np.cumsum(units) - units, units)
        self._bars.append(_prices(added, units, nth))
        first = np.array([stretch.first + bool(stretch.closes) for stretch in stretches])
        at = np.repeat(first, units) + stretches[0].width * nth
        of_steps = (
            at[:, None] + np.arange(count),
            np.tile([self.places[key] for key in repeats], (nth.size, 1)),
            np.repeat([each.like for each in added], units, axis=0),
        )
        self._steps.append(np.stack([each.ravel() for each in of_steps], axis=1))
        profits = chain.from_iterable(
            each.stretch.marks.account_unrealized[: each.units] for each in added
        )
        worth = np.array([stretch.marks.worth for stretch in stretches], np.int64)
        equity = np.repeat(worth, units) + np.fromiter(profits, np.int64)
        quantity = [
            [repeat.position.quantity for repeat in stretch.repeats.values()]
            for stretch in stretches
        ]
        held = np.repeat(np.array(quantity, np.int64), units, axis=0).ravel()
        self._account.append(np.stack((np.repeat(equity, count), held), axis=1))

    def columns(self) -> Columns | None:
        """Return the bars with the account's equity and position after each; None without bars."""
        self.settle()
        if not self._bars:
            return None
        bars: Columns = dict(zip(_PRICES, np.concatenate(self._bars).T, strict=True))
        bars |= zip(_STEPS, np.concatenate(self._steps).T, strict=True)
        bars |= zip(_HELD, np.concatenate(self._account).T, strict=True)
        return bars


def _prices(added: Sequence[_Kept], units: Ints, nth: Ints) -> Ints:
    """Return the columns ``_PRICES`` of the bars of *added*, [bar, column].

    *units* has the number of units of each, *nth* the number of each unit in its stretch.
    """
    count = len(added[0].like)
    if not all(each.stretch.columns for each in added):
        bars = chain.from_iterable(each.stretch.bars[: each.units * count] for each in added)
        numbers = chain.from_iterable(map(_OF_BAR, bars))
        return np.fromiter(numbers, np.int64).reshape(-1, len(_PRICES))
    prices = np.empty((nth.size, count, len(_PRICES)), np.int64)
    for place, (columns, _) in enumerate(added[0].stretch.columns):
        first = np.array([each.stretch.columns[place][1] for each in added])
        at = np.repeat(first, units) + nth
        for field, name in enumerate(_PRICES):
            prices[:, place, field] = getattr(columns, name)[at]
    return prices.reshape(-1, len(_PRICES))


class _MemoryReader(Reader):
    """Reads a run whose quiet bars have no rows."""

    def __init__(self, connection: sqlite3.Connection, quiet: QuietBars) -> None:
        super().__init__(connection)
        self._quiet = quiet

    def run_rows(self, run_key: int) -> RunRows:
        return _MemoryRows(self.connection, run_key, self._quiet)


class _MemoryRows(RunRows):
    """The rows of a run with its quiet bars."""

    def __init__(self, connection: sqlite3.Connection, run_key: int, quiet: QuietBars) -> None:
        super().__init__(connection, run_key)
        self._quiet, self._places = quiet.columns(), quiet.places.values()

    def bars(self, place: int, span: Span) -> Columns:
        stored = super().bars(place, WHOLE)
        if (quiet := self._quiet) is not None:
            is_there = quiet["instrument"] == place
            stored = _with_quiet(stored, {name: column[is_there] for name, column in quiet.items()})
        return _within(stored, span)

    def bars_by_instrument(self, span: Span, instruments: int) -> list[Columns]:
        return [self.bars(place, span) for place in range(instruments)]

    def accounts(self, span: Span) -> dict[str, Columns]:
        stored = super().accounts(WHOLE)
        if self._quiet is not None:
            stored[""] = _with_quiet(stored[""], self._quiet)  # the run's account
        return {name: _within(columns, span) for name, columns in stored.items()}

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
