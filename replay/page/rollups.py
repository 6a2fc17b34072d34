"""A run in cells of any length; wide ranges are read from stored roll-ups.

A roll-up is a cache beside the database, in ``FILE.page/RUN.npz``, or in memory if that cannot be
written. It is built anew if it is missing, damaged, of another version, or not of the stored steps.

A cell of the run's interval is a bar and opens with it; longer cells begin at multiples of their
length.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from tracepaper.replay.run_columns import Floats, with_usual, without_dust
from tracepaper.storage.database.run_rows import OutcomeCount
from tracepaper.storage.record.columns import measure_name
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from tracepaper.replay.run_columns import RunColumns
    from tracepaper.storage.database.run_rows import Columns, Ints, Span

T = TypeVar("T")
Block = dict[str, Floats]
"""Columns of one length by name; NaN is an unknown value, times are exact as floats."""

TIME: Final = "open_time_ms"
VERSION: Final = 8
GRAIN: Final = 15
"""Bars in a cell of a roll-up; cells of multiples are computed from these."""
SHORT_BARS: Final = 40_000
"""A run with fewer steps is kept bar by bar and needs no roll-up."""
AT_ONCE: Final = 20_000
"""Steps that are read at once, to bound the memory."""
DIRECT_BARS: Final = 60_000
"""Most bars that are read for one answer without a roll-up."""
FOLDED_BARS: Final = 256
OWN: Final = "this run"
ACCOUNTS: Final = ""
"""Names the accounts in place of an instrument's id."""
FORECAST: Final = ("confidence_entropy", "mean_return", "stdev_return")
MULTIPLES: Final = (1, 2, 5, 10, 15, 30, 60, 120, 240, 720, 1440, 2880, 7200, 10080)
"""Lengths of a cell, in intervals of the run."""
_RULES: Final = {
    TIME: "cell",
    "open": "first",
    "high": "max",
    "low": "min",
    "close": "last",
    "volume": "sum",
    "warm": "sum",
    "warm_exposure": "sum",
}
_RULE_OF: Final = {"spare": "min", "failed": "sum", "low": "min"}
"""Rules of columns ``prefix:name``; other columns keep the last known value."""


class RollupMissing(Exception):
    """The answer needs a missing roll-up, and building it takes too long for this process."""


@dataclass
class _CellBlock:
    """Cells of one instrument or of the accounts, for all bars that open before ``until_ms``."""

    block: Block
    until_ms: float = -np.inf
    after: int = -1  # the last included sequence


@dataclass
class OutcomeTotals:
    """Counts of a run's decisions up to a sequence."""

    after: int = -1
    outcomes: dict[int, OutcomeCount] = field(default_factory=dict)

    @property
    def decisions(self) -> int:
        """The number of decisions."""
        return sum(outcome.times for outcome in self.outcomes.values())


class Rollups:
    """Cells and counts of one run, updated as the run grows."""

    def __init__(self, database: Path, columns: RunColumns, *, builds: bool) -> None:
        self.columns = columns
        self._rows = columns.rows
        self._database, self._builds = database, builds
        self._kept: dict[str, _CellBlock] = {}
        self._loaded: tuple[int, int] | None = None  # identity of the loaded file
        self._saved: dict[str, int] = {}
        self._totals = OutcomeTotals()
        self._values: tuple[object, dict[str, Any]] = (None, {})
        self.followed: dict[str, Any] = {}
        """Values that other modules cache and update themselves."""
        self._load()

    def refresh(self) -> None:
        """Update the run's span; load a newer file."""
        self.columns.refresh()
        self._load()

    @property
    def span(self) -> Span:
        """The first and the last stored sequence."""
        return self.columns.span

    def totals(self) -> OutcomeTotals:
        """Return the counts of all decisions; only new decisions are counted.

        Raises ``RollupMissing`` if there are too many for this process.
        """
        kept = self._totals
        since = (kept.after + 1, self.span[1])
        if since[1] - since[0] > DIRECT_BARS and not self._builds:
            raise RollupMissing
        if since[1] >= since[0]:
            counts = self._rows.outcome_counts(since)
            for key, count in counts.items():
                before = kept.outcomes.get(key, OutcomeCount(0, count.first, count.last))
                kept.outcomes[key] = OutcomeCount(
                    before.times + count.times, before.first, count.last
                )
            kept.after = self.span[1]
            if since[1] - since[0] > DIRECT_BARS:
                self._save()
        return kept

    def kept_value(self, name: str, make: Callable[[], T]) -> T:
        """Return the value of *make*, computed once per state of database and roll-up."""
        state = (self._rows.version, self.span, self._loaded)
        if state != self._values[0]:
            self._values = (state, {})
        values = self._values[1]
        if name not in values:
            values[name] = make()
        return values[name]

    def known_totals(self) -> OutcomeTotals | None:
        """Return :meth:`totals`, or None if that needs a missing roll-up."""
        try:
            return self.totals()
        except RollupMissing:
            return None

    def refusals(self) -> Counter[str] | None:
        """Return the number of refusals by gate, or None if that needs a missing roll-up."""
        if (totals := self.known_totals()) is None:
            return None
        refused: Counter[str] = Counter()
        for outcome in self._rows.outcomes:
            if outcome.refused_by and (count := totals.outcomes.get(outcome.key)) is not None:
                refused[outcome.refused_by] += count.times
        return refused

    def newest_of(self, keys: Sequence[int]) -> int | None:
        """Return the last decision with one of the outcomes *keys*.

        Before they are counted, only the newest ``AT_ONCE`` steps are searched.
        """
        if (totals := self.known_totals()) is not None:
            counts = [totals.outcomes[key].last for key in keys if key in totals.outcomes]
            return max(counts, default=None)
        span = (max(0, self.span[1] - AT_ONCE), self.span[1])
        return self._rows.decided_at(span, keys, newest=True)

    def warm_sequence(self) -> int | None:
        """Return the first decision that the gate warm did not refuse, or None."""
        # An outcome's key is its first sequence.
        keys = (each.key for each in self._rows.outcomes if each.refused_by != warm.name)
        return min(keys, default=None)

    # ------------------------------------------------------------ answers

    def cells(
        self, instrument: str, from_ms: int | None, until_ms: int | None, points: int
    ) -> tuple[int, Block]:
        """Return the length of a cell, in ms, and an instrument's cells of a range.

        The default range is the whole run; *instrument* may be ``ACCOUNTS``. Raises
        ``RollupMissing`` if that needs a roll-up that this process does not build.
        """
        columns, interval_ms = self.columns, self.columns.interval_ms
        first, end = self.bounds_ms(instrument) or (0, 0)
        first = first if from_ms is None else max(first, from_ms)
        end = end if until_ms is None else min(end, until_ms)
        if end <= first:
            return interval_ms, {TIME: np.empty(0)}
        cell_ms = cell_length(interval_ms, int(end - first), points)
        # Cells at the edges are complete.
        if cell_ms == interval_ms:
            first = columns.times.open_closing_after(int(first))
        else:
            first = first // cell_ms * cell_ms
            if until_ms is not None:
                end = -(-end // cell_ms) * cell_ms
        span = columns.sequences(first, end)
        if span[1] - span[0] > FOLDED_BARS and cell_ms % self._grain_ms == 0:
            block = self.full_range(instrument)
        else:
            block = self.read(instrument, span)
        return cell_ms, self._rolled(within(block, first, end), cell_ms)

    def bounds_ms(self, instrument: str = ACCOUNTS) -> tuple[int, int] | None:
        """Return the begin and end of the bars of *instrument*, or of all; None without bars."""
        names = [instrument] if instrument else list(self.columns.instruments)
        bounds = [bound for bound in map(self.columns.bounds_ms, names) if bound is not None]
        return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None

    def _rolled(self, block: Block, cell_ms: int) -> Block:
        return block if cell_ms == self.columns.interval_ms else rolled(block, cell_ms)

    @property
    def _grain_ms(self) -> int:
        """The length of a stored cell: a bar, or ``GRAIN`` bars for a long run."""
        is_short = self.span[1] < SHORT_BARS
        return self.columns.interval_ms * (1 if is_short else GRAIN)

    def full_range(self, instrument: str) -> Block:
        """Return the stored cells of the whole run, updated with the newest bars.

        Raises ``RollupMissing`` if more bars are missing than this process reads.
        """
        grain_ms = self._grain_ms
        kept = self._kept.get(instrument) or _CellBlock({TIME: np.empty(0)})
        if self.span[1] - kept.after > DIRECT_BARS and not self._builds:
            raise RollupMissing
        tail: Block | None = None
        at = kept.after + 1
        parts: list[Block] = [kept.block]
        while at <= self.span[1]:
            end = min(at + AT_ONCE - 1, self.span[1])
            fresh = within(self.read(instrument, (at, end)), kept.until_ms, np.inf)
            if tail is not None and fresh[TIME].size:
                # The later part of a split close has the account after the whole close.
                fresh = joined([within(tail, -np.inf, fresh[TIME][0]), fresh])
            tail = fresh if tail is None or fresh[TIME].size else tail
            if tail[TIME].size > FOLDED_BARS:
                edge = tail[TIME][-1]
                if grain_ms != self.columns.interval_ms:
                    edge = np.floor(edge / grain_ms) * grain_ms
                complete, tail = within(tail, -np.inf, edge), within(tail, edge, np.inf)
                if complete[TIME].size:
                    parts.append(self._rolled(complete, grain_ms))
                    kept.until_ms = edge
                    kept.after = self.columns.sequences(edge, np.inf)[0] - 1
            at = end + 1
        kept.block = joined(parts)
        self._kept[instrument] = kept
        if self._builds and kept.after - self._saved.get(instrument, -1) > DIRECT_BARS:
            self._save()
        return kept.block if tail is None else joined([kept.block, self._rolled(tail, grain_ms)])

    def build(self) -> None:
        """Build or extend every roll-up, and write the file."""
        self.totals()
        if self.span[1] < SHORT_BARS:
            return
        for name in (*self.columns.instruments, ACCOUNTS):
            self.full_range(name)
        self._save()

    def _after(self, name: str) -> int:
        """Return the last sequence in the roll-up of an instrument or the accounts."""
        return self._kept[name].after if name in self._kept else -1

    # ------------------------------------------------------------ reading

    def read(self, instrument: str, span: Span) -> Block:
        """Return the bars of *instrument*, or the accounts, bar by bar."""
        if not instrument:
            return self._accounts(span)
        columns, gates = self.columns, self.columns.gates
        bars = columns.bars(instrument, span)
        outcome = bars.pop("outcome")
        decided = outcome >= 0
        measures = {gate: measure_name(gate) for gate in gates}
        names = (*FORECAST, *measures.values())
        values = columns.forecasts(instrument, names, bars["sequence"])
        block: Block = {TIME: bars[TIME].astype(np.float64)} | {
            name: bars[name] for name in ("open", "high", "low", "close", "volume", "quantity")
        }
        block["sequence"] = np.where(decided, bars["sequence"], np.nan)
        block |= {name: values[name] for name in FORECAST}
        block["outcome"] = np.where(decided, outcome, np.nan)
        self._judge(outcome, {gate: values[name] for gate, name in measures.items()}, block)
        for name, noted in columns.notes(instrument, span).items():
            has_number = ~np.isnan(noted.number)
            at = np.searchsorted(block[TIME], noted.open_time_ms[has_number])
            if at.size:
                column = block[f"note:{name}"] = np.full(outcome.size, np.nan)
                column[at] = noted.number[has_number]
        return block

    def _judge(self, outcome: Ints, measures: Block, block: Block) -> None:
        """Add each gate's margin (``spare``) and failures to *block*."""
        decided = outcome >= 0
        sets, passed = (self.columns.of_outcomes(outcome, name) for name in ("gate_set", "passed"))
        for gate, measure in measures.items():
            declared = GATES[gate]
            spare, failed = np.full(measure.size, np.nan), np.zeros(measure.size)
            for key, gates in enumerate(self.columns.gate_sets):
                if gate not in gates.gates:
                    continue
                place = gates.gates.index(gate)
                threshold = gates.thresholds[place]
                judged = decided & (sets == key)
                measured = with_usual(measure, gate, threshold)
                margin = measured - threshold if declared.at_least else threshold - measured
                if length := abs(threshold - declared.starts_at):
                    spare[judged] = (margin / length)[judged]
                failed[judged] = 1 - (passed[judged] >> place & 1)
            block[f"spare:{gate}"], block[f"failed:{gate}"] = spare, failed

    def _accounts(self, span: Span) -> Block:
        """Return every account's equity after each close, and the exposure of the run's account.

        ``exposure`` is the position by equity with its sign, over all symbols; ``warm_exposure`` is
        its sum over the bars after the warm-up, and ``warm`` their number.
        """
        accounts = self.columns.accounts(span)
        times = [columns[TIME] for columns in accounts.values()]
        axis = np.unique(np.concatenate([np.empty(0), *times]))
        block: Block = {TIME: axis}
        for name, account in accounts.items():
            # Several instruments may close at one time: the last of these steps counts.
            column = np.full(axis.size, np.nan)
            column[np.searchsorted(axis, account[TIME])] = account["equity"]
            block[f"equity:{name or OWN}"], block[f"low:{name or OWN}"] = column, column.copy()
        equity = block.get(f"equity:{OWN}", np.ones(axis.size))
        worth = self._worth(span, axis, accounts.get("", {}))
        exposure = np.divide(worth, equity, out=np.zeros(axis.size), where=equity > 0)
        warmed = self.warm_sequence()
        is_warm = axis >= (np.inf if warmed is None else self._rows.open_ms(warmed))
        block |= {
            "exposure": exposure,
            "warm": is_warm.astype(np.float64),
            "warm_exposure": np.where(is_warm, exposure, 0.0),
        }
        return block

    def _worth(self, span: Span, axis: Floats, account: Columns) -> Floats:
        """Return the signed value of all positions at *axis*, by each symbol's last closes.

        *account* is the run's, in *span*.
        """
        worth, values = np.zeros(axis.size), self._holding_value(account)
        for place in range(len(self.columns.instruments)):
            column = np.full(axis.size, np.nan)
            if account:
                mask = account["instrument"] == place
                column[np.searchsorted(axis, account[TIME][mask])] = values[mask]
            if column.size and np.isnan(column[0]):
                at = self._rows.decided_at((0, span[0] - 1), instrument=place, newest=True)
                last = {} if at is None else self.columns.accounts((at, at)).get("", {})
                column[0] = self._holding_value(last).sum()
            worth += filled(column)
        return worth

    def _holding_value(self, account: Columns) -> Floats:
        """Return the signed value of the positions of *account* after each bar, without dust."""
        if not account:
            return np.empty(0)
        steps = np.array([self.columns.quantity_step(name) for name in self.columns.instruments])
        return without_dust(account["quantity"], steps[account["instrument"]]) * account["close"]

    # ------------------------------------------------------------ the file

    @property
    def path(self) -> Path:
        """The file of the roll-ups."""
        return Path(f"{self._database}.page") / f"{self.columns.run.run_id}.npz"

    def _mark(self, after: int) -> dict[str, Any]:
        """Return the identity of a roll-up of the steps until *after*."""
        return {
            "version": VERSION,
            "run_id": self.columns.run.run_id,
            "after": after,
            "digest": self._rows.digest(after),
        }

    def _save(self) -> None:
        """Write the roll-ups beside the database; if that fails they stay in memory."""
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
        """Load the file of another process, if it is complete and of the stored steps.

        Values in memory are kept if they include later steps.
        """
        if self.span[1] < SHORT_BARS:
            return
        try:
            if (identity := self._identity()) == self._loaded:
                return
            self._loaded = identity
            with np.load(self.path, allow_pickle=False) as file:
                facts = json.loads(file["facts"].tobytes())
                mark, counts = facts["counted"]
                if self._is_of(mark) and mark["after"] > self._totals.after:
                    outcomes = {key: OutcomeCount(*count) for key, count in counts}
                    self._totals = OutcomeTotals(mark["after"], outcomes)
                for place, (name, until_ms, mark) in enumerate(facts["kept"]):
                    if not self._is_of(mark) or mark["after"] <= self._after(name):
                        continue
                    block: dict[str, Floats] = {
                        key.partition("|")[2]: file[key]
                        for key in file.files
                        if key.startswith(f"{place}|")
                    }
                    if TIME not in block or len({column.size for column in block.values()}) != 1:
                        return
                    self._kept[name] = _CellBlock(block, until_ms, mark["after"])
                    self._saved[name] = mark["after"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError):
            return

    def _is_of(self, mark: dict[str, Any]) -> bool:
        """Whether *mark* identifies a roll-up of the stored steps."""
        return mark["digest"] is not None and mark == self._mark(mark["after"])


def numbers_of(values: Floats) -> list[float | None]:
    """Return *values* as a list; numbers that are not finite become None."""
    if np.isfinite(values).all():
        return list(values.tolist())
    return [value if math.isfinite(value) else None for value in values.tolist()]


def cell_length(interval_ms: int, span_ms: int, points: int) -> int:
    """Return the shortest cell, in ms, with which *span_ms* has at most *points* cells."""
    for step in MULTIPLES:
        if -(-span_ms // (interval_ms * step)) + 1 <= points:
            return interval_ms * step
    least = -(-span_ms // max(points - 1, 1))
    longest = max(interval_ms * MULTIPLES[-1], DAY_MS)
    return -(-least // longest) * longest


def rolled(block: Block, cell_ms: int) -> Block:
    """Return *block* in cells of *cell_ms*, which begin at multiples of it.

    Rolling up cells gives the same result as rolling up their bars.
    """
    times = block[TIME]
    if not times.size:
        return block
    opens = np.floor(times / cell_ms) * cell_ms
    starts = np.flatnonzero(np.r_[True, np.diff(opens) > 0])
    if starts.size == times.size and np.array_equal(opens, times):
        return block
    ends = np.r_[starts[1:], times.size] - 1
    return {name: _rolled(name, column, starts, ends, opens) for name, column in block.items()}


def _rolled(
    name: str,
    column: Floats,
    starts: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    opens: Floats,
) -> Floats:
    prefix, _, rest = name.partition(":")
    rule = _RULE_OF.get(prefix, "last") if rest else _RULES.get(name, "last")
    match rule:
        case "cell":
            return opens[starts]
        case "first":
            return column[starts]
        case "max":
            return np.fmax.reduceat(column, starts)
        case "min":
            return np.fmin.reduceat(column, starts)
        case "sum":
            return np.add.reduceat(np.nan_to_num(column), starts)
        case _:
            return _last_known(column, starts, ends)


def _last_known(column: Floats, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]) -> Floats:
    if not np.isnan(column).any():
        return column[ends]
    places = np.where(np.isnan(column), -1, np.arange(column.size))
    at = np.maximum.reduceat(places, starts)
    return np.where(at >= starts, column[np.maximum(at, 0)], np.nan)


def filled(column: Floats) -> Floats:
    """Return *column* with each unknown value replaced by the last known one, or by the first."""
    has_value = ~np.isnan(column)
    if has_value.all() or not has_value.any():
        return column
    at = np.maximum.accumulate(np.where(has_value, np.arange(column.size), -1))
    return column[np.where(at < 0, int(np.argmax(has_value)), at)]


def joined(blocks: Sequence[Block]) -> Block:
    """Return the concatenation of *blocks*; a column that a block lacks is unknown there."""
    kept = [block for block in blocks if block[TIME].size] or list(blocks[:1])
    names = dict.fromkeys(name for block in kept for name in block)
    return {
        name: np.concatenate([block.get(name, np.full(block[TIME].size, np.nan)) for block in kept])
        for name in names
    }


def within(block: Block, from_ms: float, until_ms: float) -> Block:
    """Return the rows of *block* with *from_ms* <= open < *until_ms*."""
    first, end = np.searchsorted(block[TIME], [from_ms, until_ms])
    return {name: column[first:end] for name, column in block.items()}
