"""The columns of one run in cells of any length; wide ranges come from roll-ups that are kept.

A roll-up lies beside the database, in ``FILE.page/RUN.npz``, else in memory. It is a cache: it is
made anew where it is missing, damaged, of other code, or not of the stored steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from tracepaper.daemon.broker.account import SIDES
from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.replay.page.cells import (
    TIME,
    WORDS,
    Block,
    Floats,
    cell_length,
    filled,
    from_rows,
    joined,
    place_of,
    rolled,
    within,
)
from tracepaper.storage.database.stretch import (
    BAR_FIELDS,
    EquityRow,
    OutcomeCount,
    bar_at,
    bar_rows,
    decided_at,
    equity_rows,
    noted_rows,
    outcome_counts,
    outcomes,
    sequence_opened,
)
from tracepaper.storage.record.rows import step_key
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.sessions import Calendar, closes_of, opens_later
from tracepaper.strategies.units import MONEY_SCALE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from tracepaper.storage.database.reader import Reader
    from tracepaper.strategies.types.market import Instrument

T = TypeVar("T")

VERSION: Final = 4
GRAIN: Final = 15
"""Bars in a cell of a roll-up; longer cells are made of it where they are a multiple."""
SHORT_BARS: Final = 40_000
"""A run of so many steps is held bar by bar, and needs no roll-up."""
AT_ONCE: Final = 20_000
"""Steps that are read before they are rolled up; bounds the memory."""
DIRECT_BARS: Final = 60_000
"""More bars than these are not read for one answer without a roll-up."""
FOLDED_BARS: Final = 256
OWN: Final = "this run"
ACCOUNTS: Final = ""
"""Stands for the accounts where an instrument's id could stand."""


class RollupMissing(Exception):
    """The answer needs a roll-up that is not made yet, which takes longer than a reader may."""


@dataclass
class _Kept:
    """Cells of one instrument, or of the accounts, of all bars that opened before ``until_ms``."""

    block: Block
    until_ms: float = -np.inf
    after: int = -1  # the last sequence that is in it


@dataclass
class Totals:
    """Counts of a run's decisions up to a sequence."""

    after: int = -1
    outcomes: dict[int, OutcomeCount] = field(default_factory=dict)

    @property
    def decisions(self) -> int:
        """How many decisions there are."""
        return sum(one.times for one in self.outcomes.values())


class RunColumns:
    """Columns of one run; lives as long as the process that answers, and follows the run."""

    def __init__(self, database: Path, run_id: str, reader: Reader, *, builds: bool) -> None:
        stored = reader.stored_run(run_id)
        self.run, self.run_key = stored.run, stored.run_key
        self.interval_ms = stored.run.interval_ms
        sessions = sessions_of(stored.run)
        self.calendar = None if sessions is None else Calendar(sessions, self.interval_ms)
        self.instruments: dict[str, Instrument] = {one.id: one for one in stored.run.instruments}
        self._database, self._builds = database, builds
        self._reader = reader
        self._kept: dict[str, _Kept] = {}
        self._loaded: tuple[int, int] | None = None  # which file of roll-ups
        self._saved: dict[str, int] = {}
        self._totals = Totals()
        self._values: tuple[object, dict[str, Any]] = (None, {})
        self._sets: dict[int, dict[str, tuple[int, float]]] = {}
        self.followed: dict[str, Any] = {}
        """What others keep of the run, and bring up to date themselves, until it is pruned."""
        self.span = (0, -1)
        self.gates: tuple[str, ...] = ()
        self.refresh(reader)

    def refresh(self, reader: Reader) -> None:
        """Take note of what the run has by now."""
        self._reader = reader
        _, end = reader.counted(self.run.run_id)
        pruned = reader.pruned(self.run_key)
        first = 0 if pruned is None else pruned.until_sequence + 1
        if first != self.span[0]:
            self._kept.clear()
            self.followed.clear()
            self._totals = Totals()
        self.span = (first, end - 1)
        self._load()
        sets = reader.gate_sets(self.run_key)
        if len(sets) != len(self._sets):
            self._sets = {
                key: {
                    gate: (place, threshold)
                    for place, (gate, threshold) in enumerate(
                        zip(one.gates, one.thresholds, strict=True)
                    )
                }
                for key, one in enumerate(sets)
            }
            self.gates = tuple(dict.fromkeys(gate for one in sets for gate in one.gates))

    @property
    def thresholds(self) -> dict[str, float]:
        """Each gate's threshold as it was last."""
        return {gate: limit for one in self._sets.values() for gate, (_, limit) in one.items()}

    def totals(self) -> Totals:
        """Count the decisions up to now; only what is new is counted.

        Raises ``RollupMissing`` where that is more than this process counts.
        """
        kept = self._totals
        since = (max(kept.after + 1, self.span[0]), self.span[1])
        if since[1] - since[0] > DIRECT_BARS and not self._builds:
            raise RollupMissing
        if since[1] >= since[0]:
            found = outcome_counts(self._reader.connection, self.run_key, since)
            for key, one in found.items():
                before = kept.outcomes.get(key, OutcomeCount(0, one.first, one.last))
                kept.outcomes[key] = OutcomeCount(before.times + one.times, before.first, one.last)
            kept.after = self.span[1]
            if since[1] - since[0] > DIRECT_BARS:
                self._save()
        return kept

    def kept_value(self, name: str, make: Callable[[], T]) -> T:
        """Return the value of *make*, computed once for each state of database and roll-up."""
        (version,) = self._reader.connection.execute("PRAGMA data_version").fetchone()
        state = (version, self.span, self._loaded)
        if state != self._values[0]:
            self._values = (state, {})
        values = self._values[1]
        if name not in values:
            values[name] = make()
        return values[name]

    def known_totals(self) -> Totals | None:
        """Return :meth:`totals`, None where they take a roll-up that is not made yet."""
        try:
            return self.totals()
        except RollupMissing:
            return None

    def refusals(self) -> Counter[str] | None:
        """Count the decisions that each gate refused first; None where that takes a roll-up."""
        if (totals := self.known_totals()) is None:
            return None
        refused: Counter[str] = Counter()
        for one in outcomes(self._reader.connection, self.run_key):
            if one.refused_by and one.key in totals.outcomes:
                refused[one.refused_by] += totals.outcomes[one.key].times
        return refused

    def newest_of(self, keys: Sequence[int]) -> int | None:
        """Return the last decision with one of the outcomes *keys*.

        Where they are not counted yet, only the ``AT_ONCE`` newest steps are looked at.
        """
        if (totals := self.known_totals()) is not None:
            known = [totals.outcomes[key].last for key in keys if key in totals.outcomes]
            return max(known, default=None)
        span = (max(self.span[0], self.span[1] - AT_ONCE), self.span[1])
        return decided_at(self._reader.connection, self.run_key, span, keys, newest=True)

    def warm_sequence(self) -> int | None:
        """Return the first decision that was not refused as cold, None before it."""
        connection = self._reader.connection
        stored = outcomes(connection, self.run_key)
        keys = [one.key for one in stored if one.refused_by != warm.name]
        # An outcome's key is the sequence that first had it; a prune leaves the key.
        if keys and min(keys) >= self.span[0]:
            return min(keys)
        return decided_at(connection, self.run_key, self.span, keys, newest=False)

    def warm_opened_ms(self) -> int | None:
        """Return when the bar of :meth:`warm_sequence` opens."""
        if self.followed.get("warm opened") is None and (at := self.warm_sequence()) is not None:
            query = "SELECT open_time_ms FROM steps WHERE step = ?"
            (opened,) = self._reader.connection.execute(
                query, (step_key(self.run_key, at),)
            ).fetchone()
            self.followed["warm opened"] = opened
        found: int | None = self.followed.get("warm opened")
        return found

    def sequence_at(self, instrument: str, open_ms: int) -> int | None:
        """Return the sequence of the bar of *instrument* that opened at *open_ms*."""
        place, connection = self._place(instrument), self._reader.connection
        edge = sequence_opened(connection, self.run_key, place, self.span, open_ms)
        span = (edge, self.span[1])
        found = bar_at(connection, self.run_key, place, span, newest=False)
        return None if found is None or found.open_time_ms != open_ms else found.sequence

    def bounds_ms(self, instrument: str) -> tuple[int, int] | None:
        """Return when an instrument's first bar opens and when its last one closes."""
        place = self._place(instrument)
        connection = self._reader.connection
        first = bar_at(connection, self.run_key, place, self.span, newest=False)
        last = bar_at(connection, self.run_key, place, self.span, newest=True)
        if first is None or last is None:
            return None
        return first.open_time_ms, self.close_ms(last.open_time_ms)

    def close_ms(self, open_ms: int) -> int:
        """Return when the bar closes that opens at *open_ms*."""
        return int(closes_of(np.array([open_ms]), self.interval_ms, self.calendar)[0])

    def opens_later(self, opens_ms: npt.NDArray[np.int64], bars: int) -> npt.NDArray[np.int64]:
        """Return when the bar opens that is so many *bars* after each of *opens_ms*."""
        return opens_later(opens_ms, bars, self.interval_ms, self.calendar)

    # ------------------------------------------------------------ answers

    def cells(
        self, instrument: str, from_ms: int | None, until_ms: int | None, points: int
    ) -> tuple[int, Block]:
        """Return the length of a cell, in ms, and an instrument's cells of a range.

        The whole run where no range is given; *instrument* may be ``ACCOUNTS``. Raises
        ``RollupMissing`` where that takes a roll-up that this process does not make.
        """
        bounds = [
            self.bounds_ms(name) for name in ([instrument] if instrument else self.instruments)
        ]
        known = [bound for bound in bounds if bound is not None]
        if not known:
            return self.interval_ms, {TIME: np.empty(0)}
        first = max(min(one for one, _ in known), -np.inf if from_ms is None else from_ms)
        end = min(max(two for _, two in known), np.inf if until_ms is None else until_ms)
        if end <= first:
            return self.interval_ms, {TIME: np.empty(0)}
        cell_ms = cell_length(self.interval_ms, int(end - first), points)
        first = first // cell_ms * cell_ms  # a cell at the edge is whole
        if until_ms is not None:
            end = -(-end // cell_ms) * cell_ms
        grain_ms = GRAIN * self.interval_ms
        is_short = self.span[1] - self.span[0] < SHORT_BARS
        if is_short or cell_ms % grain_ms == 0:
            block = self._known(instrument, self.interval_ms if is_short else grain_ms)
        else:
            block = self.read(instrument, self._sequences(first, end))
        return cell_ms, rolled(within(block, first, end), cell_ms)

    def _known(self, instrument: str, grain_ms: int) -> Block:
        """Return the whole run in cells of *grain_ms*: what is kept, and the newest bars."""
        kept = self._kept.get(instrument) or _Kept({TIME: np.empty(0)})
        missing = self.span[1] - max(kept.after, self.span[0] - 1)
        if missing > DIRECT_BARS and not self._builds:
            raise RollupMissing
        tail: Block | None = None
        at = max(kept.after + 1, self.span[0])
        parts: list[Block] = [kept.block]
        while at <= self.span[1]:
            end = min(at + AT_ONCE - 1, self.span[1])
            fresh = within(self.read(instrument, (at, end)), kept.until_ms, np.inf)
            tail = fresh if tail is None else joined([tail, fresh])
            if tail[TIME].size > FOLDED_BARS:
                edge = np.floor(tail[TIME][-1] / grain_ms) * grain_ms
                if grain_ms == self.interval_ms:
                    edge += grain_ms
                whole = within(tail, -np.inf, edge)
                if whole[TIME].size:
                    parts.append(rolled(whole, grain_ms))
                    tail = within(tail, edge, np.inf)
                    kept.until_ms = edge
                    kept.after = (
                        self._sequences(edge, np.inf)[0] if tail[TIME].size else end + 1
                    ) - 1
            at = end + 1
        kept.block = joined(parts)
        self._kept[instrument] = kept
        if self._builds and kept.after - self._saved.get(instrument, -1) > DIRECT_BARS:
            self._save()
        return kept.block if tail is None else joined([kept.block, rolled(tail, grain_ms)])

    def build(self) -> None:
        """Make or extend every roll-up, and write them down."""
        self.totals()
        if self.span[1] - self.span[0] < SHORT_BARS:
            return
        for name in (*self.instruments, ACCOUNTS):
            self._known(name, GRAIN * self.interval_ms)
        self._save()

    def _after(self, name: str) -> int:
        """Return the last sequence that is in the roll-up of an instrument or the accounts."""
        return max(self._kept[name].after if name in self._kept else -1, self.span[0] - 1)

    # ------------------------------------------------------------ reading

    def _sequences(self, from_ms: float, until_ms: float) -> tuple[int, int]:
        """Return the first and the last sequence of the bars that open in a range."""
        connection = self._reader.connection
        firsts, ends = [], []
        for place in range(len(self.instruments)):
            firsts.append(self._opened(connection, place, from_ms))
            ends.append(self._opened(connection, place, until_ms))
        return min(firsts), max(ends) - 1

    def _opened(self, connection: sqlite3.Connection, place: int, at_ms: float) -> int:
        if at_ms == np.inf:
            return self.span[1] + 1
        return sequence_opened(connection, self.run_key, place, self.span, int(at_ms))

    def read(self, instrument: str, span: tuple[int, int]) -> Block:
        """Read the bars of *instrument*, or the accounts, bar by bar."""
        if not instrument:
            return self._accounts(span)
        place, item = self._place(instrument), self.instruments[instrument]
        names = (*BAR_FIELDS, *(f"measure:{gate}" for gate in self.gates))
        parts = []
        for rows in bar_rows(self._reader.connection, self.run_key, place, span, self.gates):
            columns = list(zip(*rows, strict=True))
            for at in (7, 8, 9):
                columns[at] = tuple(map(place_of, columns[at]))
            parts.append(from_rows(names, list(zip(*columns, strict=True))))
        raw = joined(parts) if parts else from_rows(names, [])
        decided = ~np.isnan(raw["gate_set"])
        price, quantity = 10.0**item.price_decimals, 10.0**item.quantity_decimals
        block: Block = {
            TIME: raw[TIME],
            **{name: raw[name] / price for name in ("open", "high", "low", "close")},
            "volume": raw["volume"] / 10.0**item.volume_decimals,
            "sequence": np.where(decided, raw["sequence"], np.nan),
            **{name: raw[name] for name in ("action", "refused_by", "regime")},
            **{name: raw[name] for name in ("confidence", "mean_return", "stdev_return")},
            "quantity": raw["quantity"] / quantity,
        }
        # A decision that was allowed ends what refused the one before it in its cell.
        block["refused_by"] = np.where(decided & np.isnan(raw["refused_by"]), -1, raw["refused_by"])
        self._judge(raw, decided, block)
        for at_ms, name, number in noted_rows(self._reader.connection, self.run_key, place, span):
            column = block.setdefault(f"note:{name}", np.full(raw[TIME].size, np.nan))
            where = int(np.searchsorted(raw[TIME], at_ms))
            if where < column.size:
                column[where] = number
        return block

    def _judge(self, raw: Block, decided: npt.NDArray[np.bool_], block: Block) -> None:
        """Add by how much every gate passed, and where it failed."""
        passed = np.nan_to_num(raw["passed"]).astype(np.int64)
        for gate in self.gates:
            declared, measure = GATES[gate], raw[f"measure:{gate}"]
            spare, failed = np.full(measure.size, np.nan), np.zeros(measure.size)
            for key, places in self._sets.items():
                if gate not in places:
                    continue
                place, threshold = places[gate]
                own = decided & (raw["gate_set"] == key)
                margin = measure - threshold if declared.at_least else threshold - measure
                if length := abs(threshold - declared.starts_at):
                    spare[own] = (margin / length)[own]
                failed[own] = 1 - (passed[own] >> place & 1)
            block[f"spare:{gate}"], block[f"failed:{gate}"] = spare, failed

    def _accounts(self, span: tuple[int, int]) -> Block:
        """Read the equity of every account after each close, and the run's own exposure.

        ``exposure`` is what is held, long and short alike, by the equity; ``exposures`` is its
        sum over the bars from the first that was no warm-up, and ``exposed`` their number. In hedge
        mode ``exposure`` adds up both sides, ``grosses`` is its sum, ``net_exposure`` has the long
        side less the short one, and ``exposures`` that of each symbol without its sign.
        """
        rows = equity_rows(self._reader.connection, self.run_key, span)
        axis = np.unique(np.array([row.open_time_ms for row in rows], dtype=np.float64))
        block: Block = {TIME: axis}
        by_twin: dict[str | None, list[EquityRow]] = {}
        for row in rows:
            by_twin.setdefault(row.twin, []).append(row)
        for twin, own in by_twin.items():
            column, name = np.full(axis.size, np.nan), twin or OWN
            # Several instruments close at one time: the last step of that time stands.
            column[_at(axis, own)] = np.array([row.equity for row in own]) / MONEY_SCALE
            block[f"equity:{name}"], block[f"low:{name}"] = column, column.copy()
        equity = block.get(f"equity:{OWN}", np.ones(axis.size))

        def by_equity(twin: str | None = None, *, net: bool = False) -> Floats:
            worth = self._held(span, axis, by_twin.get(twin, []), twin, net=net)
            return np.divide(worth, equity, out=np.zeros(axis.size), where=equity > 0)

        exposure = by_equity()
        warmed = self.warm_opened_ms()
        counted = axis >= (np.inf if warmed is None else warmed)
        block |= {
            "exposure": exposure,
            "exposures": np.where(counted, exposure, 0.0),
            "exposed": counted.astype(np.float64),
        }
        if sides := [side for side in SIDES if side in by_twin]:
            gross = np.sum([by_equity(side) for side in sides], axis=0)
            block |= {
                "exposure": gross,
                "grosses": np.where(counted, gross, 0.0),
                "net_exposure": by_equity(net=True),
            }
        return block

    def _held(
        self,
        span: tuple[int, int],
        axis: Floats,
        rows: Sequence[EquityRow],
        twin: str | None,
        *,
        net: bool,
    ) -> Floats:
        """Return the value of an account's positions at the times *axis*, each at its last close.

        *rows* are those of *twin*; the value is gross, or *net*.
        """
        worth = np.zeros(axis.size)
        for place, item in enumerate(self.instruments.values()):
            own = [row for row in rows if row.instrument == place]
            step, least = 10.0**item.quantity_decimals, item.quantity_step
            quantity = np.array([row.quantity or 0 for row in own], dtype=np.float64)
            quantity = quantity if net else np.abs(quantity)
            quantity[np.abs(quantity) < least] = 0  # dust of spot fees, which cannot be sold
            column = np.full(axis.size, np.nan)
            closes = np.array([row.close for row in own], dtype=np.float64)
            column[_at(axis, own)] = quantity / step * closes / 10.0**item.price_decimals
            if column.size and np.isnan(column[0]):
                column[0] = 0.0
                before = bar_at(
                    self._reader.connection, self.run_key, place, (self.span[0], span[0] - 1),
                    newest=True,
                )  # fmt: skip
                if before is not None:
                    of = (before.sequence, before.sequence)
                    for row in equity_rows(self._reader.connection, self.run_key, of):
                        if row.twin == twin and abs(row.quantity or 0) >= least:
                            kept = (row.quantity or 0) / step
                            column[0] = kept * row.close / 10.0**item.price_decimals
                            column[0] = column[0] if net else abs(column[0])
            worth += filled(column)
        return worth

    def bar_before(self, instrument: str, sequence: int) -> Block | None:
        """Read the last bar of *instrument* before *sequence*, None where there is none."""
        place, span = self._place(instrument), (self.span[0], sequence - 1)
        last = bar_at(self._reader.connection, self.run_key, place, span, newest=True)
        return None if last is None else self.read(instrument, (last.sequence, last.sequence))

    def _place(self, instrument: str) -> int:
        return list(self.instruments).index(instrument)

    # ------------------------------------------------------------ the file

    @property
    def path(self) -> Path:
        """The file of the roll-ups."""
        return Path(f"{self._database}.page") / f"{self.run.run_id}.npz"

    def _mark(self, after: int) -> dict[str, Any]:
        """Return what a roll-up up to step *after* must say of itself."""
        words = hashlib.sha256("\n".join(WORDS).encode()).hexdigest()
        return {
            "version": VERSION,
            "run_id": self.run.run_id,
            "words": words,
            "after": after,
            "first": self.span[0],
            "digest": self._reader.commit_digest(self.run_key, after).hex(),
        }

    def _save(self) -> None:
        """Write the roll-ups beside the database; where that cannot be they stay in memory."""
        arrays = {
            f"{place}|{name}": column
            for place, kept in enumerate(self._kept.values())
            for name, column in kept.block.items()
        }
        totals = self._totals
        facts = {
            "counted": [self._mark(totals.after), list(totals.outcomes.items())],
            "kept": [
                [name, kept.until_ms, self._mark(kept.after)] for name, kept in self._kept.items()
            ],
        }
        text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, facts=text, **arrays)  # type: ignore[arg-type]
            partial.replace(self.path)
            self._loaded = self._identity()
        except OSError:
            return
        self._saved = {name: kept.after for name, kept in self._kept.items()}

    def _identity(self) -> tuple[int, int]:
        state = self.path.stat()
        return state.st_mtime_ns, state.st_ino

    def _load(self) -> None:
        """Read the roll-ups where another process wrote them, if they are whole and of these steps.

        What is known here is kept where it reaches further.
        """
        if self.span[1] - self.span[0] < SHORT_BARS:
            return
        try:
            if (identity := self._identity()) == self._loaded:
                return
            self._loaded = identity
            with np.load(self.path, allow_pickle=False) as file:
                facts = json.loads(file["facts"].tobytes())
                mark, counts = facts["counted"]
                if self._is_of(mark) and mark["after"] > self._totals.after:
                    outcomes = {key: OutcomeCount(*one) for key, one in counts}
                    self._totals = Totals(mark["after"], outcomes)
                for place, (name, until_ms, mark) in enumerate(facts["kept"]):
                    if not self._is_of(mark) or mark["after"] <= self._after(name):
                        continue
                    block: dict[str, Floats] = {
                        key.partition("|")[2]: file[key]
                        for key in file.files
                        if key.startswith(f"{place}|")
                    }
                    if TIME not in block or len({one.size for one in block.values()}) != 1:
                        return
                    self._kept[name] = _Kept(block, until_ms, mark["after"])
                    self._saved[name] = mark["after"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError):
            return

    def _is_of(self, mark: dict[str, Any]) -> bool:
        """Whether what *mark* says of itself is true of the steps that are stored."""
        return mark["digest"] is not None and mark == self._mark(mark["after"])


def _at(axis: Floats, rows: Sequence[EquityRow]) -> npt.NDArray[np.intp]:
    """Return the places of *rows* in the times *axis*."""
    return np.searchsorted(axis, np.array([row.open_time_ms for row in rows], dtype=np.float64))
