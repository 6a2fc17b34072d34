"""One decision as its run stored it: found by name, read through the stable views; no torch."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracepaper.daemon.commands.options import located
from tracepaper.replay.summary import reading
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

Row = dict[str, Any]


@dataclass(frozen=True)
class StoredDecision:
    """The rows that one decision left in the views, by column name."""

    run: Row  # of ``v_runs``
    decision: Row  # of ``v_decisions``
    gates: tuple[Row, ...]  # of ``v_gates``, in the order in which they judge
    buckets: tuple[Row, ...]  # of ``v_explanations``, newest first; none without a forecast

    @property
    def has_forecast(self) -> bool:
        """Whether a model answered for this bar."""
        return self.decision["mean_return"] is not None

    @property
    def silence(self) -> str | None:
        """Why the decision has no attribution, in one sentence; None where it has one."""
        if self.buckets:
            return None
        if not self.run["model_id"]:
            return f"The strategy {self.run['strategy']} asks no model, so nothing looked back."
        if (deadline := self.decision["late_deadline_ms"]) is not None:
            return (
                f"The model did not answer within its {deadline:,} ms, so nothing was attributed."
            )
        for gate in self.gates:
            if gate["gate"] == "warm" and not gate["passed"]:
                return (
                    f"The model was not yet warm: {gate['measure']:,.0f} of the "
                    f"{gate['threshold']:,.0f} bars it looks back on were known."
                )
        if self.has_forecast:
            return "This model gives forecasts without an attribution."
        return "The model gave no forecast for this bar, so nothing was attributed."


def locate(decision: str, database: Path | None) -> tuple[Path, str, int]:
    """Return (database, run id, sequence) of ``RUN:SEQUENCE``, where RUN may be ``FILE#RUN``."""
    run, separator, sequence = decision.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,18}", sequence) or not separator:
        raise ConfigInvalid(f"{decision!r} is no decision; write RUN:SEQUENCE, say last:6000.")
    named = located(run, database)
    return named.path, named.run_id, int(sequence)


def read_stored(database: Path, run_id: str, sequence: int) -> StoredDecision:
    """Return what *database* holds of one decision; raise ``DataInvalid`` where it holds none."""
    with reading(database) as db:
        # One transaction: a prune between two reads must not leave half a decision.
        db.execute("BEGIN")
        decisions = _rows(db, "v_decisions", run_id, sequence)
        if not decisions:
            raise DataInvalid(_missing(db, run_id, sequence))
        runs = db.execute("SELECT * FROM v_runs WHERE run_id = ?", (run_id,)).fetchall()
        return StoredDecision(
            dict(runs[0]),
            decisions[0],
            tuple(sorted(_rows(db, "v_gates", run_id, sequence), key=lambda row: row["ordinal"])),
            tuple(_rows(db, "v_explanations", run_id, sequence)),
        )


def _rows(db: sqlite3.Connection, view: str, run_id: str, sequence: int) -> list[Row]:
    query = f"SELECT * FROM {view} WHERE run_id = ? AND sequence = ?"  # noqa: S608 - our own names
    return [dict(row) for row in db.execute(query, (run_id, sequence))]


def _missing(db: sqlite3.Connection, run_id: str, sequence: int) -> str:
    """Return the sentence for a step that is no decision, with the nearest that is one."""
    query = (
        "SELECT sequence FROM v_decisions WHERE run_id = ? ORDER BY abs(sequence - ?), sequence"
        " LIMIT 1"
    )
    row = db.execute(query, (run_id, sequence)).fetchone()
    if row is None:
        return f"Run {run_id} holds no decision yet; choose another run."
    return f"Run {run_id} has no decision {sequence}; the nearest is {run_id}:{row['sequence']}."
