"""What a recorded database has to add up to, by rules of its own.

It imports nothing of the product: a fault of the engine, which ``verify`` repeats, is found here.
The rules are those of docs/money.md, docs/orders.md, docs/protection.md and docs/storage.md, read
again and computed in decimals from the rows of the views.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

MOST_OF_A_LAW: Final = 20
"""Sentences that a law may say: the first ones say enough."""


Candle = tuple[Decimal, Decimal, Decimal, Decimal, Decimal]
"""Open, high, low, close and volume."""


class Served(NamedTuple):
    """One instrument as the exchange served it."""

    interval_ms: int
    candles: Mapping[int, Candle]
    """Open time, and open, high, low, close and volume."""
    settlements: Mapping[int, Decimal]
    """Time and funding rate; empty on spot."""


@dataclass(frozen=True)
class Truth:
    """What was given to the daemon, and what it answered."""

    config: Mapping[str, Any]
    instruments: Mapping[str, Served]
    """By id, such as ``linear:BTCUSDT``."""
    answered: Sequence[tuple[str, str]]
    """Note and kind of each command that was answered with success."""
    sent: Sequence[str]
    """Notes of all commands."""
    altered: Container[tuple[str, int]]
    """Instrument and open time of the candles that a fault served wrongly at first."""


class Violation(NamedTuple):
    """One breach of a law."""

    law: str
    sentence: str


def violations(database: Path, truth: Truth) -> list[Violation]:
    """Return what in *database* breaks a law, given the *truth*; at most 20 of each law."""
    with closing(_connected(database)) as connection:
        judge = _Judge(connection, truth)
        judge.judge()
    return judge.violations


def totals(database: Path) -> dict[str, int]:
    """Return how many bars, decisions, fills and so on *database* holds."""
    counted = {
        "runs": "v_runs",
        "steps": "steps",
        "commits": "v_commits",
        "bars": "v_bars WHERE accepted",
        "revisions": "v_bars WHERE NOT accepted",
        "gaps": "v_gaps",
        "decisions": "v_decisions",
        "orders": "v_orders",
        "fills": "v_fills",
        "stops": "v_orders WHERE role IN ('STOP', 'TRAILING') AND filled > 0",
        "makers": "v_fills WHERE liquidity = 'MAKER'",
        "liquidations": "v_fills WHERE model = 'liquidation'",
        "settlements": "v_ledger WHERE kind = 'funding'",
        "commands": "v_commands",
    }
    with closing(_connected(database)) as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for name, table in counted.items()
        }


def _connected(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


class _Judge:
    """The laws of one database."""

    def __init__(self, connection: sqlite3.Connection, truth: Truth) -> None:
        self.connection, self.truth = connection, truth
        self.violations: list[Violation] = []
        self._counts: Counter[str] = Counter()

    def judge(self) -> None:
        """Hold every run to the laws of runs, and the database to those of commands."""
        self.check_commands()
        for run in self.rows("SELECT * FROM v_runs"):
            run_id = run["run_id"]
            self.check_bars(run_id)
            self.check_decisions(run_id, run["period_start_ms"])
            self.check_ledger(run_id)

    def breach(self, law: str, sentence: str) -> None:
        """Note a breach of *law*."""
        self._counts[law] += 1
        if self._counts[law] <= MOST_OF_A_LAW:
            self.violations.append(Violation(law, sentence))

    def rows(self, query: str, *values: object) -> Iterator[sqlite3.Row]:
        """Return the rows of *query*."""
        return iter(self.connection.execute(query, values).fetchall())

    # ------------------------------------------------------------ bars, decisions, commands

    def check_bars(self, run_id: str) -> None:
        """Check that each bar was accepted once, in order, as served, and what is missing."""
        accepted: dict[str, dict[int, Candle]] = defaultdict(dict)
        for row in self.rows("SELECT * FROM v_bars WHERE run_id = ? ORDER BY sequence", run_id):
            self._check_bar(row, accepted[row["instrument"]])
        gaps: dict[str, list[tuple[int, int]]] = defaultdict(list)
        query = "SELECT * FROM v_gaps WHERE run_id = ? AND cause <> 'funding'"
        for row in self.rows(query, run_id):
            gaps[row["instrument"]].append((row["from_ms"], row["until_ms"]))
        for key, bars in accepted.items():
            step = self.truth.instruments[key].interval_ms
            for at in range(min(bars), max(bars), step):
                if at not in bars and not any(start <= at < end for start, end in gaps[key]):
                    self.breach("bars", f"{key} {at} is missing and lies in no gap")

    def _check_bar(self, row: sqlite3.Row, before: dict[int, Candle]) -> None:
        key, at = row["instrument"], row["open_time_ms"]
        values = candle_of(row)
        if not row["accepted"]:
            if at not in before:
                self.breach("bars", f"{key} {at} was refused as a revision of no bar")
            elif before[at] == values:
                self.breach("bars", f"{key} {at} was stored again with the same values")
            return
        if at in before:
            self.breach("bars", f"{key} {at} was accepted twice")
        elif before and at < max(before):
            self.breach("bars", f"{key} {at} was accepted after {max(before)}")
        before[at] = values
        served = self.truth.instruments[key].candles.get(at)
        if values != served and (key, at) not in self.truth.altered:
            self.breach("bars", f"{key} {at} is {_texts(values)}, served {_texts(served)}")

    def check_decisions(self, run_id: str, first_ms: int) -> None:
        """Check that each accepted bar of the run's period was decided exactly once."""
        decided = Counter(
            (row["instrument"], row["open_time_ms"])
            for row in self.rows("SELECT * FROM v_decisions WHERE run_id = ?", run_id)
        )
        bars = {
            (row["instrument"], row["open_time_ms"])
            for row in self.rows("SELECT * FROM v_bars WHERE run_id = ? AND accepted", run_id)
        }
        for (key, at), count in decided.items():
            if count > 1:
                self.breach("decisions", f"{key} {at} was decided {count} times")
            if (key, at) not in bars:
                self.breach("decisions", f"{key} {at} was decided without a bar")
        for key, at in sorted(bars - decided.keys()):
            if at >= first_ms:
                self.breach("decisions", f"{key} {at} was not decided")

    def check_commands(self) -> None:
        """Check that an answered command is stored once, any other at most once."""
        stored = Counter(
            (row["note"], row["kind"]) for row in self.rows("SELECT * FROM v_commands")
        )
        for note, kind in self.truth.answered:
            if not stored[note, kind]:
                self.breach("commands", f"{kind} {note} was answered and is not stored")
        sent = set(self.truth.sent)
        for (note, kind), count in stored.items():
            if count > 1:
                self.breach("commands", f"{kind} {note} is stored {count} times")
            if note not in sent:
                self.breach("commands", f"{kind} {note} was never sent")

    # ------------------------------------------------------------ money

    def check_ledger(self, run_id: str) -> None:
        """Check that the movements add up to each balance, and to the cash of each step."""
        balance = Decimal(0)
        after: dict[int, Decimal] = {}
        query = "SELECT * FROM v_ledger WHERE run_id = ? ORDER BY sequence, ordinal"
        for row in self.rows(query, run_id):
            balance += Decimal(row["amount_text"])
            if balance != Decimal(row["balance_text"]):
                place = f"{row['sequence']}/{row['ordinal']}"
                self.breach("ledger", f"{place} adds up to {balance}, not {row['balance_text']}")
                balance = Decimal(row["balance_text"])
            after[row["sequence"]] = balance
        newest = Decimal(0)
        query = "SELECT * FROM v_equity WHERE run_id = ? AND cash_text IS NOT NULL"
        for row in self.rows(f"{query} ORDER BY sequence", run_id):
            sequence = row["sequence"]
            while after and next(iter(after)) <= sequence:
                newest = after.pop(next(iter(after)))
            if Decimal(row["cash_text"]) != newest:
                self.breach("ledger", f"at {sequence} cash is {row['cash_text']}, not {newest}")


def candle_of(row: sqlite3.Row) -> Candle:
    """Return open, high, low, close and volume of a row of ``v_bars``."""
    return (
        Decimal(row["open_text"]),
        Decimal(row["high_text"]),
        Decimal(row["low_text"]),
        Decimal(row["close_text"]),
        Decimal(row["volume_text"]),
    )


def _texts(values: Sequence[Decimal] | None) -> str:
    return "nothing" if values is None else " ".join(map(str, values))


def of_json(content: str | None) -> Mapping[str, Any]:
    """Return the fields of an event's *content*."""
    fields: Mapping[str, Any] = json.loads(content) if content else {}
    return fields
