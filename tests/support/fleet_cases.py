"""Files for the tests of a fleet, and the comparison of two of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from command_line import Cli
from storage_cases import plain_steps, write_run

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.ship import database_id
from tracepaper.storage.record.columns import TABLES, stored_columns
from tracepaper.storage.record.rows import RUN_TABLES

OF_RUNS: Final = (*RUN_TABLES, "instruments", "gate_sets", "commits", "prunes", "runs")
"""The tables of a fleet whose rows belong to a run."""


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table with the types of its values, in the order of its key."""
    by_table = {}
    with closing(sqlite3.connect(path)) as db:
        for table, columns in TABLES.items():
            keys = ", ".join(column.name for column in columns if column.is_key)
            names = ", ".join(stored_columns(table))
            rows = db.execute(f"SELECT {names} FROM {table} ORDER BY {keys}").fetchall()
            by_table[table] = [tuple((type(value), value) for value in row) for row in rows]
    return by_table


def assert_same(path: Path, other: Path) -> None:
    first, second = contents(path), contents(other)
    for table in TABLES:
        assert first[table] == second[table], table


def grown(path: Path, count: int, *, seed: int, since: int) -> None:
    log = SqlAuditLog.open(path, group_steps=1_000)  # a prune cuts between commits
    log.resume("r-1")
    for step in plain_steps(count, seed=seed)[since:]:
        log.append_now(step)
    log.close()


def shipped(folder: Path, url: str, *, name: str = "a", steps: int = 40) -> Path:
    """Write a run of *steps* steps, and ship it once."""
    path = folder / f"{name}.db"
    write_run(path, plain_steps(steps))
    ship_once(path, url, needed_by="--to")
    return path


def of_command(url: str, cli: Cli) -> Any:
    """Ask ``tracepaper fleet URL --json`` for its rows."""
    return json.loads(cli("fleet", url, "--json").out)


def followed(path: Path, host: str, daemon: Mapping[str, object]) -> str:
    """Return the SQL of a shipper that follows *path* beside a daemon of that status.

    Its last word lies ahead, so that it does not fall silent on a machine that is slow.
    """
    return (
        "INSERT INTO shippers (database_id, host, file, seen_at, lag_steps, lag_s, daemon) VALUES "
        f"('{database_id(path)}', '{host}', '{path.name}', clock_timestamp() + interval '1 day', "
        f"3, 1.5, '{json.dumps(daemon)}')"
    )


def cells(run: dict[str, Any]) -> dict[str, str]:
    """Write a row of ``fleet --json`` as the page must show it, by the titles of its columns."""
    held = (
        f"{row['instrument']} {row['quantity']}, unrealized {_money(row['unrealized_pnl'])}"
        for row in run["positions"]
    )
    lag = f"{run['lag_steps']:,} in {run['lag_s']:.1f} s" if run["lag_steps"] else "0"
    return {
        **{name: run[name] or "–" for name in ("host", "file", "health")},
        "run": run["run_id"],
        "strategy": f"{run['strategy'].rpartition(':')[2]}, {run['kind']}",
        "steps": f"{run['steps']:,}",
        "lag": lag,
        "equity": _money(run["equity"]),
        "positions": "; ".join(held) or "flat",
        "last decision": run["last_decision"] or "–",
        "alarms": " ".join(f"alarm: {alarm}" for alarm in run["alarms"]) or "–",
    }


def _money(text: str | None) -> str:
    return "–" if text is None else f"{float(text):,.2f}".replace("-", "\u2212")
