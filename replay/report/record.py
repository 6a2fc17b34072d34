"""One run as arrays, read through the stable views in one snapshot of its database."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.daemon.session.build import costs_for
from tracepaper.replay.backtest.run import ACTING_ONLY
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import MONEY_SCALE, Instrument

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Row = dict[str, Any]


@dataclass(frozen=True)
class Bars:
    """The decided bars of one instrument, oldest first; prices in quote currency."""

    sequence: Ints
    open_time_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    funding: Floats  # the rates settled since the bar before closed, summed; longs pay where > 0


@dataclass(frozen=True)
class Decisions:
    """One decision a closed bar, in the order of the run; figures of the model NaN without one."""

    sequence: Ints
    instrument: Texts
    open_time_ms: Ints
    action: Texts
    allowed: npt.NDArray[np.bool_]
    refused_by: Texts  # empty where allowed
    unfilled: Texts  # why no order was sent for the target; empty where one was, or none needed
    regime: Texts
    mean_return: Floats  # at the gate's horizon
    p_up: Floats
    p_down: Floats
    confidence: Floats
    content_free: Floats
    recent_mass: Floats
    older_mass: Floats
    shift: Floats


@dataclass(frozen=True)
class Ledger:
    """One account of the run; money in quote currency.

    ``equity`` has a value before the first decided bar and then one at each of ``times_ms``,
    the closes of the decided bars. ``held`` is the signed position of every instrument after
    each of its own decided bars.
    """

    name: str
    equity: Floats
    held: dict[str, Floats]
    fills: tuple[Row, ...]
    fees_paid: float
    funding_paid: float
    realized_pnl: float
    unrealized_pnl: float


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report says of a run."""

    database: Path
    run: Row
    instruments: dict[str, Instrument]
    config: Config
    terms: ExecutionCosts
    every_bar: bool  # False where only steps that traded, and the ends of days, are kept
    times_ms: Ints
    bars: dict[str, Bars]
    decisions: Decisions
    account: Ledger
    twins: tuple[Ledger, ...]
    gaps: tuple[Row, ...]
    thresholds: dict[str, float]  # of every gate, as they were last

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return int(self.run["interval_ms"])

    @property
    def cost_rate(self) -> float:
        """What one fill costs by configuration, as a fraction of its notional."""
        return self.terms.round_trip / 2


# ---------------------------------------------------------------- reading

_DECISIONS: Final = (
    "SELECT sequence, instrument, open_time_ms, action, allowed, coalesce(refused_by, ''), "
    "coalesce(unfilled_reason, ''), regime, "
    "mean_return, p_up, p_down, confidence, content_free, recent_mass, older_mass, shift "
    "FROM v_decisions WHERE run_id = ? ORDER BY sequence"
)
_BARS: Final = (
    "SELECT sequence, instrument, open_time_ms, open, high, low, close FROM v_bars "
    "WHERE run_id = ? AND accepted ORDER BY sequence"
)
_ROWS_AT_ONCE: Final = 4_096
_SETTLED: Final = (
    "SELECT instrument, market_ms, json_extract(content, '$.rate') FROM v_events "
    "WHERE run_id = ? AND kind = 'funding' ORDER BY sequence"
)


class _Frame(NamedTuple):
    """What every account of the run is laid over."""

    decisions: Decisions
    times_ms: Ints
    steps: dict[str, float]  # the least quantity of each instrument


def read_record(reader: Reader, database: Path, run_id: str) -> RunRecord:
    """Return the record of *run_id*; raise ``DataInvalid`` where it has no decision yet."""
    db = reader.connection
    db.execute("BEGIN")  # one snapshot, though a daemon may be writing
    try:
        run = _rows(db, "SELECT * FROM v_runs WHERE run_id = ?", run_id)[0]
        decisions = _decisions(db, run_id)
        if not decisions.sequence.size:
            raise DataInvalid(
                f"Run {run_id} has decided no bar yet; let it run on, or choose another run."
            )
        times = np.unique(decisions.open_time_ms) + int(run["interval_ms"])
        config = restore(run["config"])
        stored = reader.stored_run(run_id)
        instruments = {known.id: known for known in stored.run.instruments}
        frame = _Frame(decisions, times, _steps(instruments))
        return RunRecord(
            database=database,
            run=run,
            instruments=instruments,
            config=config,
            terms=costs_for(config),
            every_bar=ACTING_ONLY not in stored.run.warnings,
            times_ms=times,
            bars=_bars(db, run_id, decisions, int(run["interval_ms"])),
            decisions=decisions,
            account=_account(db, run_id, frame),
            twins=tuple(_twins(db, run_id, frame)),
            gaps=tuple(
                _rows(db, "SELECT * FROM v_gaps WHERE run_id = ? ORDER BY sequence", run_id)
            ),
            thresholds={
                gate: threshold
                for gates in reader.gate_sets(stored.run_key)
                for gate, threshold in zip(gates.gates, gates.thresholds, strict=True)
            },
        )
    finally:
        db.execute("COMMIT")


def _rows(db: sqlite3.Connection, query: str, *parameters: object) -> list[Row]:
    """Return the rows that *query* answers, each by the names of its columns."""
    cursor = db.execute(query, parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _arrays(db: sqlite3.Connection, query: str, kinds: str, *parameters: object) -> list[Any]:
    """Return the columns that *query* answers as arrays; a letter of *kinds* is one's type.

    ``i`` int64, ``f`` float64 (NaN for null), ``s`` text, ``b`` bool. Read a few thousand rows at
    a time: rows of Python objects take ten times the memory of the arrays.
    """
    types: dict[str, Any] = {"i": np.int64, "f": np.float64, "s": np.str_, "b": np.bool_}
    cursor = db.execute(query, parameters)
    parts: list[list[Any]] = [[np.empty(0, dtype=types[kind])] for kind in kinds]
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        for place, column in enumerate(zip(*rows, strict=True)):
            parts[place].append(np.array(column, dtype=types[kinds[place]]))
    return [np.concatenate(part) for part in parts]


def _decisions(db: sqlite3.Connection, run_id: str) -> Decisions:
    return Decisions(*_arrays(db, _DECISIONS, "isisbsssffffffff", run_id))


def _bars(
    db: sqlite3.Connection, run_id: str, decisions: Decisions, interval_ms: int
) -> dict[str, Bars]:
    """Return the decided bars of every instrument, by its id."""
    columns = _arrays(db, _BARS, "isiffff", run_id)
    decided = np.isin(columns[0], decisions.sequence)
    if np.count_nonzero(decided) != decisions.sequence.size:
        raise DataInvalid(
            f"Run {run_id} holds decisions without their bars; run `tracepaper audit verify` and "
            "restore a backup."
        )
    columns = [column[decided] for column in columns]
    settled = db.execute(_SETTLED, (run_id,)).fetchall()
    found = {}
    for name in np.unique(columns[1]).tolist():
        own = columns[1] == name
        sequence, _, opened, first, high, low, close = (column[own] for column in columns)
        rates = [row[1:] for row in settled if row[0] == name]
        funding = _funding(opened + interval_ms, rates)
        found[name] = Bars(sequence, opened, first, high, low, close, funding)
    return found


def _funding(closes_ms: Ints, settled: Sequence[tuple[int, int]]) -> Floats:
    """Return the rates that were settled within each bar; those after the last are left out."""
    rates = np.zeros(closes_ms.size)
    for market_ms, rate in settled:
        place = int(np.searchsorted(closes_ms, market_ms, side="right"))
        if place < closes_ms.size:
            rates[place] += rate / MONEY_SCALE
    return rates


def _steps(instruments: dict[str, Instrument]) -> dict[str, float]:
    """Return every instrument's quantity step as a quantity."""
    return {
        name: known.quantity_step / 10**known.quantity_decimals
        for name, known in instruments.items()
    }


def _account(db: sqlite3.Connection, run_id: str, frame: _Frame) -> Ledger:
    """Return the run's own account."""
    query = "SELECT sequence, equity, quantity FROM v_equity WHERE run_id = ? ORDER BY sequence"
    steps = _arrays(db, query, "iff", run_id)
    newest = "SELECT * FROM v_equity WHERE run_id = ? AND sequence = ?"
    last = _rows(db, newest, run_id, int(steps[0][-1]))[0]
    fills = _rows(db, "SELECT * FROM v_fills WHERE run_id = ? ORDER BY sequence, ordinal", run_id)
    return _ledger("this run", steps, fills, last, frame)


def _twins(db: sqlite3.Connection, run_id: str, frame: _Frame) -> list[Ledger]:
    """Return the shadow accounts of the run, by name."""
    query = (
        "SELECT twin, sequence, equity, quantity FROM v_twin_equity WHERE run_id = ? "
        "ORDER BY twin, sequence"
    )
    names, *columns = _arrays(db, query, "siff", run_id)
    newest = "SELECT * FROM v_twin_equity WHERE run_id = ? AND sequence = ? AND twin = ?"
    fills = _rows(
        db, "SELECT * FROM v_twin_fills WHERE run_id = ? ORDER BY sequence, ordinal", run_id
    )
    found = []
    for name in np.unique(names).tolist():
        steps = [column[names == name] for column in columns]
        last = _rows(db, newest, run_id, int(steps[0][-1]), name)[0]
        own = [fill for fill in fills if fill["twin"] == name]
        found.append(_ledger(name, steps, own, last, frame))
    return found


def _ledger(
    name: str,
    steps: Sequence[Any],
    fills: Sequence[Row],
    last: Row,
    frame: _Frame,
) -> Ledger:
    """Return one account from its sequence, equity and position after each of its *steps*."""
    decisions, times_ms = frame.decisions, frame.times_ms
    sequences, equity, quantity = steps[0], steps[1], np.nan_to_num(steps[2])
    at = np.searchsorted(sequences, decisions.sequence, side="right") - 1
    # Several instruments close at one time: the last step of that time has the whole account.
    curve = np.empty(times_ms.size)
    curve[np.searchsorted(times_ms, decisions.open_time_ms, side="right")] = equity[at]
    before = max(int(at[0]) - 1, 0)
    held = {}
    for instrument in np.unique(decisions.instrument).tolist():
        own = quantity[at[decisions.instrument == instrument]]
        # Dust that spot fees leave behind cannot be sold and is no position.
        held[instrument] = np.where(np.abs(own) < (1.0 - 1e-9) * frame.steps[instrument], 0.0, own)
    return Ledger(
        name=name,
        equity=np.concatenate((equity[before : before + 1], curve)),
        held=held,
        fills=tuple(fills),
        fees_paid=float(last["fees_paid"]),
        funding_paid=float(last["funding_paid"]),
        realized_pnl=float(last["realized_pnl"]),
        unrealized_pnl=float(last["unrealized_pnl"]),
    )
