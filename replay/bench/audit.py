"""``bench audit``: the walk along a chain, beside a bare read, pack and hash of the same rows.

The bare loop reads every row of the run's tables in the order of its key, packs it and hashes it,
and checks nothing. Both are measured in CPU time, in turns; a figure is the median of the rounds.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import replay_of, tiled
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain import verify_chain
from tracepaper.storage.digest import pack
from tracepaper.storage.integrity import check_keys, check_pages
from tracepaper.storage.reader import Reader, run_span, select
from tracepaper.storage.schema import RUN_TABLES

ROUNDS: Final = 5
REACH: Final = {"plain": 1.15, "model": 1.3}
MODEL_BARS: Final = 12_000

Tell = Callable[[str], None]


def measure(
    bars: int = 100_000, *, model: bool = True, tell: Tell = lambda _: None
) -> dict[str, Any]:
    """Return the figures of a run of *bars* bars without a model, and of one with the default."""
    found: dict[str, Any] = {"machine": machine_line(), "rounds": ROUNDS}
    runs = {"plain": ("sma_cross", bars)}
    if model:
        runs["model"] = ("attention", min(bars, MODEL_BARS))
    for name, (strategy, count) in runs.items():
        tell(f"replaying {count:,} bars with {strategy}")
        with tempfile.TemporaryDirectory() as folder:
            database = Path(folder) / "bench.db"
            _write(database, strategy, count)
            tell("checking it")
            found |= {f"{name}_{key}": value for key, value in _checked(database).items()}
        found[f"reach_{name}"] = REACH[name]
    return found


def _write(database: Path, strategy: str, bars: int) -> None:
    audit = SqlAuditLog.open(database)
    run_replay(replay_of([tiled(bars)], strategy), audit, Tally())
    audit.end(0)
    audit.close()


def _checked(database: Path) -> dict[str, float]:
    """Return microseconds a step of each part, and the walk as a multiple of the bare loop."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        stored = reader.stored_run(run_id)
        connection, span = reader.connection, run_span(stored.run_key)
        parts: dict[str, Callable[[], object]] = {
            "bare": lambda: bare(connection, span),
            "walk": lambda: _walked(connection, run_id),
            "pages": lambda: list(check_pages(connection)),
            "keys": lambda: list(check_keys(connection)),
        }
        spent: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(ROUNDS):
            for name, part in parts.items():
                began = time.process_time()
                part()
                spent[name].append(time.process_time() - began)
        median = {name: statistics.median(times) for name, times in spent.items()}
        steps = stored.step_count
    return {
        "steps": steps,
        "walk_us_a_step": median["walk"] / steps * 1e6,
        "times_bare": median["walk"] / median["bare"],
        "integrity_check_us_a_step": median["pages"] / steps * 1e6,
        "foreign_keys_us_a_step": median["keys"] / steps * 1e6,
    }


def bare(connection: sqlite3.Connection, span: tuple[int, int]) -> bytes:
    """Read, pack and hash every row of a run, and return the last hash."""
    last = b""
    for table in RUN_TABLES:
        for row in connection.execute(select(table.name, "step BETWEEN ? AND ?"), span):
            last = sha256(pack(row)).digest()
    return last


def _walked(connection: sqlite3.Connection, run_id: str) -> None:
    assert verify_chain(connection, run_id).holds
