"""Where a run goes on: read from its last step, and checked against its row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from tracepaper.storage.digest import NOTHING, Covered
from tracepaper.storage.reader import Reader, StoredRun
from tracepaper.storage.rows import sequence_of
from tracepaper.storage.stored import latest, run_span
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Account, GateSet, Order, Position, Run, Step

if TYPE_CHECKING:
    import sqlite3


_LAST: Final = (
    "SELECT step, digest FROM steps WHERE step BETWEEN ? AND ? ORDER BY step DESC LIMIT 1"
)
_OPENED: Final = (
    "SELECT instrument, max(open_time_ms) FROM bars WHERE step BETWEEN ? AND ? GROUP BY 1"
)
_FUNDED: Final = (
    "SELECT instrument, max(market_ms) FROM events "
    "WHERE step BETWEEN ? AND ? AND kind = 'funding' GROUP BY 1"
)
_NAMED: Final = (
    "SELECT instrument, max(step) FROM (SELECT step, instrument FROM bars UNION ALL "
    "SELECT step, instrument FROM events WHERE instrument IS NOT NULL) "
    "WHERE step BETWEEN ? AND ? GROUP BY 1"
)


class Resumed(Struct, frozen=True):
    """Everything a run needs to go on; the engine's own memory is in ``state``."""

    run: Run
    run_key: int
    gate_sets: tuple[GateSet, ...]
    next_sequence: int
    head: bytes
    kept_sha256: bytes  # the running hash of what a prune keeps
    state: bytes | None  # the latest that was stored
    last_open_ms: dict[str, int]  # per instrument: of its newest bar
    last_funding_ms: dict[str, int]  # per instrument: of its newest settlement
    last: Step | None  # None before the first, and where all were pruned
    positions: dict[str, Position]  # per instrument: after the last step that named it
    open_orders: tuple[Order, ...]

    @property
    def account(self) -> Account | None:
        """The account after the last step."""
        return None if self.last is None else self.last.account

    @property
    def covered(self) -> Covered:
        """What the last link covers besides its own step."""
        covered = Covered(self.kept_sha256)
        covered.follow(None, self.state)
        return covered


def read_resumed(connection: sqlite3.Connection, run_id: str) -> Resumed:
    """Return where *run_id* goes on; raise ``DataInvalid`` where its end does not fit its row."""
    reader = Reader(connection)
    stored = reader.stored_run(run_id)
    pruned = reader.pruned(stored.run_key)
    last = connection.execute(_LAST, run_span(stored.run_key)).fetchone()
    if last is not None:
        sequence, head = sequence_of(last[0]), last[1]
    elif pruned is not None:
        sequence, head = pruned.until_sequence, pruned.digest
    else:
        sequence, head = -1, stored.opened_digest
    if (sequence + 1, head) != (stored.step_count, stored.head_digest):
        raise DataInvalid(
            f"Run {run_id} does not end as its row says (step {sequence}, {stored.step_count} "
            "counted); run `tracepaper audit verify` and restore a backup."
        )
    state = latest(connection, stored.run_key, "state") or (pruned.state if pruned else None)
    kept = latest(connection, stored.run_key, "kept_sha256") or (
        pruned.kept_sha256 if pruned else NOTHING
    )
    return Resumed(
        run=stored.run,
        run_key=stored.run_key,
        gate_sets=reader.gate_sets(stored.run_key),
        next_sequence=sequence + 1,
        head=head,
        kept_sha256=kept,
        state=state,
        last_open_ms=_latest(connection, stored, _OPENED),
        last_funding_ms=_latest(connection, stored, _FUNDED),
        last=None if last is None else reader.step(run_id, sequence).step,
        positions=_positions(reader, stored),
        open_orders=reader.open_orders(run_id),
    )


def _latest(connection: sqlite3.Connection, stored: StoredRun, query: str) -> dict[str, int]:
    """Return what *query* finds for each instrument of the run, by the instrument's id."""
    rows = connection.execute(query, run_span(stored.run_key))
    return {stored.run.instruments[place].id: value for place, value in rows}


def _positions(reader: Reader, stored: StoredRun) -> dict[str, Position]:
    """Return the position of each instrument after the last step that named it."""
    found: dict[str, Position] = {}
    for instrument, step in _latest(reader.connection, stored, _NAMED).items():
        position = reader.step(stored.run.run_id, sequence_of(step)).step.position
        if position is not None:
            found[instrument] = position
    return found
