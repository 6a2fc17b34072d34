"""What a record holds, asked in SQL; and whether all of it holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally
from tracepaper.replay.checks.identity import DecisionIdentity, decision_identity
from tracepaper.replay.checks.parity import ComparedRun, Parity, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import Bar


def rows(path: Path | str, query: str, *values: Any, **named: Any) -> list[tuple[Any, ...]]:
    """Return all rows of *query*."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query, named or values).fetchall()


def tamper(path: Path | str, *statements: str) -> None:
    """Change rows as a stranger with another tool would; the chain is left as it was."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            assert database.execute(statement).rowcount != 0, statement
        database.commit()


def identities(path: Path | str, wanted: str = "last") -> list[tuple[int, DecisionIdentity]]:
    """Return the open time and the identity of every decision, in order."""
    with Reader.open(Path(path)) as reader:
        run_id = reader.find(wanted)
        instruments = {item.id: item for item in reader.run(run_id).instruments}
        return [
            (bar.open_time_ms, decision_identity(step, instruments[bar.instrument]))
            for step in reader.steps(run_id)
            if step.decision is not None and isinstance(bar := step.event, Bar)
        ]


def check_record(path: Path, wanted: str = "last") -> int:
    """Hold a run to its chain, ledger and derivation; return how many decisions agree."""
    with Reader.open(path) as reader:
        run_id = reader.find(wanted)
        assert verify_chain(reader.connection, run_id).passes
        verification = verify_run(reader, path, run_id)
        assert [difference.sentence() for difference in verification.differences] == []
        problem = audit(reader.connection, run_id).problem
        assert problem is None, problem.sentence
        return verification.agreed


def parity_of(first: Path, second: Path, *, wanted: tuple[str, str] = ("last", "last")) -> Parity:
    """Compare two runs of two databases."""
    with Reader.open(first) as reader, Reader.open(second) as other:
        runs = zip((reader, other), wanted, strict=True)
        return compare_runs(*(ComparedRun(of, of.find(name)) for of, name in runs))


def run_again(path: Path, again: Path, wanted: str = "last") -> Parity:
    """Replay what a run recorded into the new database *again*; compare both runs."""
    log = SqlAuditLog.open(again)
    second = rerun_recorded(f"{path}#{wanted}", log, again, Tally(), started_at_ms=0)
    log.end(2)
    log.close()
    return parity_of(path, again, wanted=(wanted, second))
