"""The state of a fleet: all files and runs of the server with health, lag, account and alarms.

docs/fleet.md, F16 and F17, has the rules.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from tracepaper.storage.database.views import V_DECISIONS, V_EQUITY, V_POSITIONS
from tracepaper.storage.fleet.server import ONE_SNAPSHOT, check_schema, connect, transaction
from tracepaper.storage.fleet.views import select_step
from tracepaper.strategies.units import minute_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, RowMapping

    from tracepaper.storage.database.view_columns import View

SILENT_S: Final = 30.0
"""Seconds without a report of its shipper after which a file counts as silent."""

_RUNS: Final = (
    "SELECT r.database_id, r.run_key, r.run_id, r.kind, r.strategy, r.model_id, r.step_count, "
    "m.sequence, m.shipped_at, s.host, s.file, s.lag_steps, s.lag_s, s.daemon, "
    "extract(epoch FROM clock_timestamp() - s.seen_at)::double precision AS silent_s, "
    "(SELECT count(*) FROM holes h WHERE h.database_id = r.database_id "
    "AND h.run_key = r.run_key) AS holes, "
    "(SELECT v.ended_iso FROM v_runs v WHERE v.database_id = r.database_id "
    "AND v.run_id = r.run_id) AS ended "
    "FROM runs r JOIN marks m USING (database_id, run_key) "
    "LEFT JOIN shippers s USING (database_id) "
    "ORDER BY s.host, s.file, r.database_id, r.run_key"
)
_DECIDED: Final = (
    "SELECT max(sequence) AS sequence FROM steps WHERE database_id = %s AND run_key = %s "
    "AND outcome IS NOT NULL"
)
_HELD: Final = (
    "SELECT (SELECT max(s.sequence) FROM steps s WHERE s.database_id = i.database_id "
    "AND s.run_key = i.run_key AND s.instrument = i.instrument) AS sequence "
    "FROM instruments i WHERE i.database_id = %s AND i.run_key = %s"
)


class _Daemon(Struct):
    """The status that a daemon reported; None in every field if it could not be asked."""

    halted_by: str | None = None
    ready: bool | None = None
    not_ready: tuple[str, ...] | None = None


class FleetPosition(Struct, frozen=True):
    """An open position."""

    instrument: str
    quantity: str
    unrealized_pnl: str


class FleetRun(Struct, frozen=True, kw_only=True):
    """A run on the server of a fleet."""

    database_id: str
    host: str
    file: str
    run_id: str
    kind: str
    strategy: str
    model_id: str
    health: str = (
        "not ready"  # running, halted, not ready, writing, stopped, ended, silent or shipped
    )
    lag_steps: int = 0
    lag_s: float = 0.0
    steps: int
    equity: str | None = None
    positions: tuple[FleetPosition, ...] = ()
    last_decision: str | None = None
    alarms: tuple[str, ...] = ()


def overview(url: str, *, needed_by: str = "fleet") -> list[FleetRun]:
    """Return every run of the server at *url*, by host and file, the oldest first."""
    with closing(connect(url, needed_by=needed_by)) as server:
        check_schema(url, server)
        server.execution_options(**ONE_SNAPSHOT)
        with transaction(url, server, "read the fleet"):
            rows = server.exec_driver_sql(_RUNS).mappings().all()
            newest = {row["database_id"]: row["run_id"] for row in rows}
            return [_read(server, row, newest[row["database_id"]] == row["run_id"]) for row in rows]


def _read(server: Connection, row: RowMapping, is_newest: bool) -> FleetRun:  # noqa: FBT001 - one call
    """Return the run of *row*, with the fields of its steps and of its daemon's status."""
    return FleetRun(
        database_id=row["database_id"],
        host=row["host"] or "",
        file=row["file"] or "",
        run_id=row["run_id"],
        kind=row["kind"],
        strategy=row["strategy"],
        model_id=row["model_id"],
        steps=row["step_count"],
        **_read_fields(server, row, is_newest),
    )


def _read_fields(server: Connection, row: RowMapping, is_newest: bool) -> dict[str, Any]:  # noqa: FBT001 - one call
    """Return the fields of a run that are read from its steps and its daemon's status."""
    run = row["database_id"], row["run_key"]
    equity = _first_row(server, V_EQUITY, run, row["sequence"])
    decided = server.exec_driver_sql(_DECIDED, run).scalar()
    decision = _first_row(server, V_DECISIONS, run, decided)
    held = []
    for sequence in server.exec_driver_sql(_HELD, run).scalars():
        rows = _all(server, V_POSITIONS, run, sequence)
        held += [
            FleetPosition(row["instrument"], row["quantity_text"], row["unrealized_pnl_text"])
            for row in rows  # two in hedge mode
            if row["quantity"]
        ]
    daemon: _Daemon | None = None
    alarms: list[str] = []
    if is_newest and row["daemon"]:
        daemon = msgspec.json.decode(row["daemon"], type=_Daemon)
        if daemon.halted_by:
            alarms.append(f"halted by {daemon.halted_by}")
        alarms += daemon.not_ready or ()
    if row["holes"]:
        alarms.append(f"{row['holes']} spans pruned before they were shipped")
    is_silent = row["silent_s"] is None or row["silent_s"] > SILENT_S
    if is_newest and is_silent and row["ended"] is None and row["silent_s"] is not None:
        alarms.append(f"no report for {row['silent_s']:.0f} s")
    return {
        "health": _health(row, daemon, is_newest=is_newest, is_silent=is_silent),
        "lag_steps": row["lag_steps"] or 0 if is_newest else 0,
        "lag_s": row["lag_s"] or 0.0 if is_newest else 0.0,
        "equity": None if equity is None else equity["equity_text"],
        "positions": tuple(held),
        "last_decision": None if decision is None else _decided(decision),
        "alarms": tuple(alarms),
    }


def _health(row: RowMapping, daemon: _Daemon | None, *, is_newest: bool, is_silent: bool) -> str:
    if row["ended"] is not None or not is_newest:
        return "ended"
    if row["silent_s"] is None:
        return "shipped"  # once, by a command
    if is_silent:
        return "silent"
    if daemon is None:
        return "stopped"
    if daemon.halted_by:
        return "halted"
    return {True: "running", False: "not ready", None: "writing"}[daemon.ready]


def _decided(decision: RowMapping) -> str:
    at = minute_text(decision["open_time_ms"])
    refused_by = decision["refused_by"]
    refused = f", refused by {refused_by}" if refused_by else ""
    return f"{at} {decision['instrument']} {decision['action']}{refused}"


def _first_row(
    server: Connection, view: View, run: tuple[str, int], sequence: int | None
) -> RowMapping | None:
    return next(iter(_all(server, view, run, sequence)), None)


def _all(
    server: Connection, view: View, run: tuple[str, int], sequence: int | None
) -> Sequence[RowMapping]:
    """Return the rows of *view* at one step of a run; none if *sequence* is None."""
    if sequence is None:
        return []
    return server.exec_driver_sql(select_step(view), (*run, sequence)).mappings().all()
