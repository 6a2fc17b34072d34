"""Where a run goes on: read from its last step, and checked against its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from tracepaper.storage.reader import Reader
from tracepaper.storage.rows import sequence_of
from tracepaper.storage.stored import run_span
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Account, GateSet, Order, Position, Run

if TYPE_CHECKING:
    import sqlite3


class Resumed(Struct, frozen=True):
    """Everything a run needs to go on; the engine's own memory is in ``state``."""

    run: Run
    run_key: int
    gate_sets: tuple[GateSet, ...]
    next_sequence: int
    head: bytes
    state: bytes | None  # the latest that was stored
    last_open_ms: dict[str, int]  # per instrument: of its newest bar
    last_funding_ms: dict[str, int]  # per instrument: of its newest settlement
    account: Account | None  # after the last step; None before the first
    positions: dict[str, Position]  # per instrument: after the last step that named it
    open_orders: tuple[Order, ...]


def read_resumed(connection: sqlite3.Connection, run_id: str) -> Resumed:
    """Return where *run_id* goes on; raise ``DataInvalid`` where its end does not fit its row."""
    reader = Reader(connection)
    stored = reader.stored_run(run_id)
    run, run_key = stored.run, stored.run_key
    span = run_span(run_key)
    row = connection.execute(
        "SELECT step, digest FROM steps WHERE step BETWEEN ? AND ? ORDER BY step DESC LIMIT 1", span
    ).fetchone()
    pruned = reader.pruned(run_key)
    if row is not None:
        sequence, head = sequence_of(row[0]), row[1]
    elif pruned is not None:
        sequence, head = pruned.until_sequence, pruned.digest
    else:
        sequence, head = -1, stored.opened_digest
    if (sequence + 1, head) != (stored.step_count, stored.head_digest):
        raise DataInvalid(
            f"Run {run_id} does not end as its row says (step {sequence}, {stored.step_count} "
            "counted); run `tracepaper audit verify` and restore a backup."
        )
    state = connection.execute(
        "SELECT state FROM steps WHERE step BETWEEN ? AND ? AND state IS NOT NULL "
        "ORDER BY step DESC LIMIT 1",
        span,
    ).fetchone()
    ids = [instrument.id for instrument in run.instruments]
    opened = connection.execute(
        "SELECT instrument, max(open_time_ms) FROM bars WHERE step BETWEEN ? AND ? GROUP BY 1", span
    )
    funded = connection.execute(
        "SELECT instrument, max(market_ms) FROM events "
        "WHERE step BETWEEN ? AND ? AND kind = 'funding' GROUP BY 1",
        span,
    )
    newest = connection.execute(
        "SELECT instrument, max(step) FROM (SELECT step, instrument FROM bars UNION ALL "
        "SELECT step, instrument FROM events WHERE instrument IS NOT NULL) "
        "WHERE step BETWEEN ? AND ? GROUP BY 1",
        span,
    ).fetchall()
    positions = {}
    for place, step in newest:
        held = reader.step(run_id, sequence_of(step)).step.position
        if held is not None:
            positions[ids[place]] = held
    return Resumed(
        run=run,
        run_key=run_key,
        gate_sets=reader.gate_sets(run_key),
        next_sequence=sequence + 1,
        head=head,
        state=state[0] if state else (pruned.state if pruned else None),
        last_open_ms={ids[place]: open_ms for place, open_ms in opened},
        last_funding_ms={ids[place]: market_ms for place, market_ms in funded},
        account=None if row is None else reader.step(run_id, sequence).step.account,
        positions=positions,
        open_orders=reader.open_orders(run_id),
    )
