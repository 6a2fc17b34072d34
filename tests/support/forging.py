"""Somebody who edits a database and then recomputes every hash of the chain, as our code would."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.resume import take_over
from tracepaper.replay.backtest.recorded import RecordedPredictor, open_recorded
from tracepaper.replay.checks.compare import RowCheck
from tracepaper.replay.checks.verify import Verification, verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.checkpoints import kept_folder
from tracepaper.storage.database.chunks import WITHIN, select
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.hashing import opened_digest, sealed
from tracepaper.storage.record.rows import CHAINED_TABLES, EVENT_TYPES
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import Action, FillModel, Liquidity, OrderStatus, Regime
from tracepaper.strategies.types.market import Category, RunKind, Side

_EXCHANGE: Final = "the exchange's word; nothing that was decided follows from it"
_BAR: Final = "of a bar whose range, close and decision stay as they are; high and close too"
_LATENESS: Final = "of a whole close; of a bar without orders, which stays as late as it was"
_CHANGED_BY: Final = "with the first start's alike: by which code and where is said there alone"
_MADE_BY: Final = f"{_CHANGED_BY}; a model's floats are then held within tolerances, which is said"
_NAME: Final = "a name that nothing else in the run repeats"

_PLACE: Final = ("libraries", "device", "dtype", "backend", "torch_version", "instruction_set")
_FILTERS: Final = (
    *("base_coin", "quote_coin", "volume_decimals", "turnover_decimals", "tick_size"),
    *("min_quantity", "max_quantity", "min_notional", "funding_interval_minutes", "status"),
    *("max_leverage", "risk_tiers"),
)

TAKEN_AS_TOLD: Final[Mapping[str, str]] = {
    "runs.run_id": _NAME,
    "runs.kind": "who fed the run, which leaves no other trace",
    "runs.started_at_ms": "the machine's clock, which no decision reads",
    "runs.period_start_ms": "it may move to wherever no bar lies in between",
    "runs.config": "what had no effect: sections that decide nothing, and with its hash any key",
    "runs.config_sha256": "with runs.config",
    "runs.code_version": _CHANGED_BY,
    **dict.fromkeys((f"runs.{name}" for name in _PLACE), _MADE_BY),
    "runs.warnings": "what the start had to say",
    "runs.sessions": "sessions of days on which no bar lies",
    **dict.fromkeys((f"instruments.{name}" for name in _FILTERS), _EXCHANGE),
    "instruments.quantity_step": "to one that divides every quantity that the run ordered",
    **dict.fromkeys(("steps.open", "steps.low", "steps.volume"), _BAR),
    **dict.fromkeys(("steps.turnover", "steps.source"), _EXCHANGE),
    **dict.fromkeys(("events.market_ms", "events.seen_ms"), _EXCHANGE),
    **dict.fromkeys(("steps.market_delay_ms", "steps.seen_delay_ms"), _LATENESS),
    "events.content": "given from outside; only what a fill or a mark rests on is held to it",
    "events.books": "other books that an exchange can show, where no decision follows from them",
}
"""Columns that follow from nothing else in the record, and why: a forger who recomputes the chain
may change them, and only a head kept elsewhere shows it."""

OUTSIDE: Final[Mapping[str, str]] = {
    "checks": "what checks of a run found, which nothing in it follows from",
}
"""Tables that belong to no run's record, and why."""

COLUMNS = [f"{t.name}.{name}" for t in metadata.sorted_tables for name in stored_columns(t.name)]
KEYS = {f"{t.name}.{c.name}" for t in metadata.sorted_tables for c in t.columns if c.primary_key}
ENUMERATIONS = [
    [str(member.value) for member in of]
    for of in (
        Side, OrderStatus, Action, Regime, Liquidity, FillModel, RunKind, Category,
    )
] + [list(EVENT_TYPES)]  # fmt: skip
"""What may stand in a column of names."""

_A_BAR: Final = "WHERE sequence = (SELECT min(sequence) FROM steps WHERE open > 0)"
CUNNING = {
    "runs.config": """replace(config, '"level":"info"', '"level":"debug"')""",
    "runs.period_start_ms": "period_start_ms - 1",
    "runs.warnings": """'["all is well"]'""",
    "instruments.max_quantity": "1000000000000",
    "instruments.risk_tiers": (
        """'[{"limit":1,"maintenance":1,"max_leverage":1,"deduction":0}]'"""
    ),
    "steps.market_delay_ms": f"-7 {_A_BAR}",
    "steps.seen_delay_ms": f"-7 {_A_BAR}",
    "events.content": "replace(content, 'archive', 'missed') WHERE content LIKE '%archive%'",
}
"""Edits that are chosen to pass: a column that is listed must have one."""

DIGESTS = {
    "runs.opened_digest",
    "runs.head_digest",
    "runs.previous_head",
    "commits.digest",
    "commits.contents",
}
"""What the forger recomputes, so that no edit of these is left standing."""

_NAMES = stored_columns("runs")
_OPENED_AT = _NAMES.index("opened_digest")


def rechain(path: Path) -> None:
    """Recompute every hash of every run in *path*, the links between the runs included."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("PRAGMA synchronous = OFF")
        was: dict[bytes, bytes] = {}
        for (run_key,) in raw.execute("SELECT run_key FROM runs ORDER BY run_key").fetchall():
            _rechain_run(raw, run_key, was)
        raw.commit()


def _rechain_run(raw: sqlite3.Connection, run_key: int, was: dict[bytes, bytes]) -> None:
    """Give one run new hashes; *was* maps old heads to new ones."""
    row = raw.execute(select("runs", "run_key = ?"), (run_key,)).fetchone()
    opened = list(row[:_OPENED_AT])
    at = _NAMES.index("previous_head")
    opened[at] = was.get(opened[at], opened[at])
    raw.execute("UPDATE runs SET previous_head = ? WHERE run_key = ?", (opened[at], run_key))
    instruments = raw.execute(select("instruments", "run_key = ?"), (run_key,)).fetchall()
    sets = raw.execute(
        select("gate_sets", "run_key = ? AND sequence IS NULL"), (run_key,)
    ).fetchall()
    head = opened_digest(tuple(opened), instruments, sets)
    was[row[_OPENED_AT]] = head
    raw.execute("UPDATE runs SET opened_digest = ? WHERE run_key = ?", (head, run_key))
    head = _rechain_commits(raw, run_key, head, was)
    raw.execute("UPDATE runs SET head_digest = ? WHERE run_key = ?", (head, run_key))


def _rechain_commits(
    raw: sqlite3.Connection, run_key: int, head: bytes, was: dict[bytes, bytes]
) -> bytes:
    for key, first, last, digest, *_ in raw.execute(
        select("commits", "run_key = ?"), (run_key,)
    ).fetchall():
        rows = {
            table: raw.execute(select(table, WITHIN), (run_key, first, last)).fetchall()
            for table in CHAINED_TABLES
        }
        commit = sealed(head, first, last, rows)
        head = was[digest] = commit.digest
        raw.execute(
            "UPDATE commits SET digest = ?, contents = ? WHERE run_key = ? AND first_sequence = ?",
            (head, commit.contents, key, first),
        )
    return head


def audited(path: Path, head: bytes | None = None) -> bool:
    """Return whether ``audit verify`` finds nothing."""
    with Reader.open(path) as reader:
        return audit(reader.connection, reader.find("last"), head=head).passes


def verified(
    path: Path, database: Path | None = None, *, wanted: str = "last", **options: Any
) -> Verification:
    """Return what ``verify`` finds; *database* is where the checkpoints lie."""
    with Reader.open(path) as reader:
        return verify_run(reader, database or path, reader.find(wanted), **options)


def believed(path: Path, database: Path | None = None) -> bool:
    """Return whether neither ``audit verify`` nor ``verify`` finds anything."""
    try:
        return audited(path) and verified(path, database).passes
    except TracepaperError:
        return False  # one sentence, and exit 1


def unequal(path: Path, database: Path) -> set[str]:
    """Return every column in which a derived step differs from what is stored."""
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        recorded = open_recorded(reader, database, run_id)
        model = recorded.run.model_id
        prober = model and forecaster_of(kept_folder(database, model), recorded.config, mode="scan")
        predictor, check = (
            RecordedPredictor(recorded, prober or None),
            RowCheck(reader, reader.stored_run(run_id)),
        )
        names = set()
        for event, rows in zip(predictor.events(reader, run_id), reader.rows(run_id), strict=True):
            step = recorded.engine.step(event, *predictor.predict(event))
            names |= {name for name, *_ in check.compare(step, rows, exact=True).unequal}
    return names


def another(value: object, kind: str) -> object:
    """Return a value that is not *value*, of the type of its column."""
    match value:
        case None:
            return {"INTEGER": 7, "REAL": 0.5, "TEXT": "x", "BLOB": b"x"}[kind]
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
        case str():
            for words in ENUMERATIONS:
                if value in words:
                    return words[words.index(value) - 1]
            # The file itself refuses what is no JSON where a column is made of it.
            return f"{value[0]} {value[1:]}" if value[:1] in ("{", "[") else value + "x"
        case float():
            return value + 1e-9 * max(abs(value), 1.0)
        case _:
            assert isinstance(value, int)
            return value + 1


def plantings(path: Path, column: str) -> Iterator[str]:
    """Yield statements that change *column* in a middle and in the last of its rows."""
    table, name = column.split(".")
    meta = metadata.tables[table]
    keys = [c.name for c in meta.primary_key.columns]
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute(
            f"SELECT {', '.join(keys)}, {name} FROM {table} ORDER BY {', '.join(keys)}"
        )
        fetched = rows.fetchall()
    if column in CUNNING:
        yield f"UPDATE {table} SET {name} = {CUNNING[column]}"
    for at in sorted({len(fetched) // 2, len(fetched) - 1}) if fetched else ():
        *key, value = fetched[at]
        changed = another(value, str(meta.c[name].type))
        if column in KEYS and isinstance(value, int):
            changed = value + 2**21  # which no other row has
        elif column == "steps.source":
            changed = 1
        where = " AND ".join(f"{k} = {v!r}" for k, v in zip(keys, key, strict=True))
        yield f"UPDATE {table} SET {name} = {literal(changed)} WHERE {where}"


def literal(value: object) -> str:
    """Return *value* as SQL writes it."""
    match value:
        case bytes():
            return f"x'{value.hex()}'"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case _:
            return repr(value)


def forged(path: Path, target: Path, *statements: str, hide: bool = True) -> Path:
    """Copy *path* to *target* with *statements* done to it, and the chain made to fit."""
    shutil.copy(path, target)
    with closing(sqlite3.connect(target)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("PRAGMA synchronous = OFF")
        for statement in statements:
            assert raw.execute(statement).rowcount > 0, statement
        raw.commit()
    if hide:
        rechain(target)
    return target


def with_child(path: Path) -> None:
    """Add a run to *path* that takes over the account of its last one, and sees its bars again."""
    with Reader.open(path) as reader:
        parent = reader.find("last")
        recorded = open_recorded(reader, path, parent)
        account = CarriedAccount.of(reader, recorded.run)
        events = [event for _, _, event, _ in reader.events(parent)]
    assert account is not None
    child = replace(recorded.run, run_id="child", parent_run_id=parent, account=account.json())
    take_over(recorded.engine, child)
    log = SqlAuditLog.open(path, group_steps=1)
    log.begin(child, recorded.engine.gate_sets)
    for event in events[:-1]:
        log.append_now(recorded.engine.step(event, None))
    log.close()
