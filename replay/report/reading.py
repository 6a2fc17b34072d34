"""A run's record out of the stable views, in one snapshot of its database."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.building import terms_for
from tracepaper.daemon.config import restore
from tracepaper.replay.report.record import Bars, Decisions, Floats, Ints, Ledger, Row, RunRecord
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import MONEY_SCALE, Instrument

_DECISIONS: Final = (
    "SELECT sequence, instrument, open_time_ms, action, allowed, coalesce(refused_by, ''), regime, "
    "mean_return, p_up, p_down, confidence, content_free, recent_mass, older_mass, shift "
    "FROM v_decisions WHERE run_id = ? ORDER BY sequence"
)
_BARS: Final = (
    "SELECT sequence, instrument, open_time_ms, open, high, low, close FROM v_bars "
    "WHERE run_id = ? AND accepted ORDER BY sequence"
)
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
            terms=terms_for(config),
            times_ms=times,
            bars=_bars(db, run_id, decisions, int(run["interval_ms"])),
            decisions=decisions,
            account=_account(db, run_id, frame),
            twins=tuple(_twins(db, run_id, frame)),
            gaps=tuple(
                _rows(db, "SELECT * FROM v_gaps WHERE run_id = ? ORDER BY sequence", run_id)
            ),
            thresholds={
                gate.value: threshold
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


def _decisions(db: sqlite3.Connection, run_id: str) -> Decisions:
    rows = db.execute(_DECISIONS, (run_id,)).fetchall()
    columns = list(zip(*rows, strict=True)) if rows else [()] * 15
    texts = [np.array(columns[place], dtype=np.str_) for place in (1, 3, 5, 6)]
    return Decisions(
        sequence=np.array(columns[0], dtype=np.int64),
        instrument=texts[0],
        open_time_ms=np.array(columns[2], dtype=np.int64),
        action=texts[1],
        allowed=np.array(columns[4], dtype=np.bool_),
        refused_by=texts[2],
        regime=texts[3],
        mean_return=_floats(columns[7]),
        p_up=_floats(columns[8]),
        p_down=_floats(columns[9]),
        confidence=_floats(columns[10]),
        content_free=_floats(columns[11]),
        recent_mass=_floats(columns[12]),
        older_mass=_floats(columns[13]),
        shift=_floats(columns[14]),
    )


def _floats(column: Sequence[float | None]) -> Floats:
    """Return *column* with NaN for null."""
    return np.array(column, dtype=np.float64)


def _bars(
    db: sqlite3.Connection, run_id: str, decisions: Decisions, interval_ms: int
) -> dict[str, Bars]:
    """Return the decided bars of every instrument, by its id."""
    decided = set(decisions.sequence.tolist())
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for sequence, instrument, *rest in db.execute(_BARS, (run_id,)):
        if sequence in decided:
            rows.setdefault(instrument, []).append((sequence, *rest))
    settled = db.execute(_SETTLED, (run_id,)).fetchall()
    found = {}
    for name in sorted(rows):
        sequences, opens_ms, opens, highs, lows, closes = zip(*rows[name], strict=True)
        opened = np.array(opens_ms, dtype=np.int64)
        found[name] = Bars(
            np.array(sequences, dtype=np.int64),
            opened,
            _floats(opens),
            _floats(highs),
            _floats(lows),
            _floats(closes),
            _funding(opened + interval_ms, [row[1:] for row in settled if row[0] == name]),
        )
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
    rows = db.execute(
        "SELECT sequence, equity, quantity FROM v_equity WHERE run_id = ? ORDER BY sequence",
        (run_id,),
    ).fetchall()
    last = _rows(
        db, "SELECT * FROM v_equity WHERE run_id = ? ORDER BY sequence DESC LIMIT 1", run_id
    )[0]
    fills = _rows(db, "SELECT * FROM v_fills WHERE run_id = ? ORDER BY sequence, ordinal", run_id)
    return _ledger("this run", rows, fills, last, frame)


def _twins(db: sqlite3.Connection, run_id: str, frame: _Frame) -> list[Ledger]:
    """Return the shadow accounts of the run, by name."""
    query = (
        "SELECT twin, sequence, equity, quantity FROM v_twin_equity WHERE run_id = ? "
        "ORDER BY twin, sequence"
    )
    fills = _rows(
        db, "SELECT * FROM v_twin_fills WHERE run_id = ? ORDER BY sequence, ordinal", run_id
    )
    found = []
    for name, group in groupby(db.execute(query, (run_id,)), key=itemgetter(0)):
        rows = [row[1:] for row in group]
        last = _rows(
            db,
            "SELECT * FROM v_twin_equity WHERE run_id = ? AND twin = ? AND sequence = ?",
            run_id,
            name,
            rows[-1][0],
        )[0]
        own = [fill for fill in fills if fill["twin"] == name]
        found.append(_ledger(name, rows, own, last, frame))
    return found


def _ledger(
    name: str,
    rows: Sequence[tuple[int, float, float | None]],
    fills: Sequence[Row],
    last: Row,
    frame: _Frame,
) -> Ledger:
    """Return one account from its (sequence, equity, position) after each step."""
    decisions, times_ms = frame.decisions, frame.times_ms
    columns = list(zip(*rows, strict=True))
    sequences = np.array(columns[0], dtype=np.int64)
    equity, quantity = _floats(columns[1]), np.nan_to_num(_floats(columns[2]))
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
