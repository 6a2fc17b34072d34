"""A forgery in every column of every stored table, by somebody who recomputes the whole chain."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import explained_runs
import numpy as np
import pytest
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from forging import (
    COLUMNS,
    DIGESTS,
    KEYS,
    OUTSIDE,
    TAKEN_AS_TOLD,
    audited,
    believed,
    forged,
    plantings,
    rechain,
    unequal,
    verified,
    with_child,
)
from recordings import crossing, record

from tracepaper.replay.archive import FundingRates
from tracepaper.replay.backtest.recorded import open_recorded
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.columns import stored_columns

HOUR = 3_600_000
BARS = 60
OF_A_PAIR = {
    "runs.config_sha256",
    "runs.code_version",
    "runs.libraries",
    "runs.device",
    "runs.dtype",
    "runs.backend",
    "runs.torch_version",
    "runs.instruction_set",
}
"""Believed with what says the same alone: ``test_forged_pairs`` forges them, and books."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without a model, with trades, settlements, a gap and limits of risk."""
    return replayed(tmp_path_factory.mktemp("forgery") / "plain.db", BARS)


def replayed(path: Path, bars: int, **sections: Any) -> Path:
    """Replay so many hours into *path*, with other *sections* of the configuration where given."""
    times = [FIRST_MS + place * HOUR for place in range(bars + 1) if place != 40]
    given = made_candles(walk_rows(bars), interval_ms=HOUR, times_ms=times)
    config = crossing(
        interval="60",
        sizing={"mode": "fixed", "quantity": "0.002"},
        risk={"max_notional": "1000000", "max_drawdown": "0.9", "max_daily_trades": 50},
        **sections,
    )
    paid = FundingRates(
        "builder", "BTCUSDT", np.array(times[8:25:8]), np.array([1_000_000, -2_000_000, 500_000])
    )
    record(path, config, [given], started_at_ms=1, funding=[paid], group_steps=8)
    return path


def test_the_rule_names_what_is_taken_as_told_and_nothing_else() -> None:
    text = (Path(__file__).parents[3] / "docs" / "storage.md").read_text(encoding="utf-8")
    rule = text[text.index("**S12.**") : text.index("**S13.**")]
    named = {name for name in re.findall(r"`([a-z0-9_.]+)`", rule) if name != "verify"}
    assert named == {*TAKEN_AS_TOLD, *OUTSIDE}


def test_what_is_not_forged_is_believed(plain: Path, modelled: Path, tmp_path: Path) -> None:
    for path in (plain, modelled):
        assert audited(path)
        assert verified(path).passes
    rechained = Path(shutil.copy(plain, tmp_path / "a.db"))
    rechain(rechained)
    assert rechained.read_bytes() == plain.read_bytes() or believed(rechained)


def test_a_forgery_in_any_column_is_found_but_for_those_that_are_listed(
    plain: Path, tmp_path: Path
) -> None:
    passed = set()
    for column in COLUMNS:
        for statement in plantings(plain, column):
            if believed(
                forged(plain, tmp_path / "forged.db", statement, hide=column not in DIGESTS)
            ):
                passed.add(column)
    # ``test_stocks`` forges sessions.
    others = {"events.books", "runs.sessions", *OF_A_PAIR}
    outside = {name for name in COLUMNS if name.partition(".")[0] in OUTSIDE}
    assert passed - outside == set(TAKEN_AS_TOLD) - others


def test_a_parent_cannot_be_renamed_or_denied(plain: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(plain, tmp_path / "two.db"))
    with_child(path)
    assert believed(path)
    change = "UPDATE runs SET parent_run_id = {} WHERE run_id = 'child'"
    for name in ("'another'", "NULL", "NULL, account = NULL"):
        assert not believed(forged(path, tmp_path / "forged.db", change.format(name)))


OF_A_MODEL = ("answers", "shadow_steps", "fills")
READ_FIRST = {
    "answers.late_deadline_ms",
    "answers.horizon",
    "answers.horizons",
    "answers.heads",
    "shadow_steps.holding",
}
"""Columns whose forgery changes how the rest is read: each is planted alone."""


def test_forgeries_in_what_a_model_said_and_its_shadows_did_are_found(
    modelled: Path, tmp_path: Path
) -> None:
    columns = [name for name in COLUMNS if name.split(".")[0] in OF_A_MODEL and name not in KEYS]
    together = [name for name in columns if name not in READ_FIRST]
    path = Path(shutil.copy(modelled, tmp_path / "forged.db"))
    with closing(sqlite3.connect(path)) as raw:
        for column in together:
            for statement in plantings(path, column):
                raw.execute(statement)
        raw.commit()
    rechain(path)
    with Reader.open(path) as reader:
        assert verify_chain(reader.connection, reader.find("last")).passes
    assert unequal(path, modelled) >= set(together)
    assert not believed(path, modelled)


@pytest.mark.parametrize("column", sorted(READ_FIRST))
def test_a_forgery_that_changes_how_the_rest_is_read_is_found(
    modelled: Path, tmp_path: Path, column: str
) -> None:
    *_, statement = plantings(modelled, column)
    path = forged(modelled, tmp_path / "forged.db", statement)
    assert audited(path)
    assert not believed(path, modelled)


def test_a_forged_deadline_is_found_where_a_model_was_late(tmp_path: Path) -> None:
    run = explained_runs.recorded(mode="step")
    where = "WHERE sequence = (SELECT max(sequence) FROM answers)"
    path = forged(run, tmp_path / "late.db", f"UPDATE answers SET late_deadline_ms = 7 {where}")
    assert "answers.late_deadline_ms" in unequal(path, run)


LAST = "(SELECT max(sequence) FROM steps WHERE open > 0)"
GHOSTS = {
    "a step without its bar": [f"UPDATE steps SET open_time_ms = NULL WHERE sequence = {LAST}"],
    "a step with a bar and another event": [
        (f"INSERT INTO events SELECT run_key, {LAST}, kind, instrument, market_ms, seen_ms, "
        "content, books, price_verdict FROM events "
        "WHERE sequence = (SELECT min(sequence) FROM events)"),
    ],
    "a gate set": [("INSERT INTO gate_sets SELECT run_key, 1, 0, gate, threshold, sequence "
                   "FROM gate_sets WHERE ordinal = 0")],
    "a gate that is of another step than its set": [
        "UPDATE gate_sets SET sequence = (SELECT min(sequence) FROM outcomes) WHERE ordinal = 2"
    ],
    "an outcome that its step does not use": [
        (f"INSERT INTO outcomes SELECT run_key, {LAST}, "
        f"{', '.join(stored_columns('outcomes')[2:])} "
        "FROM outcomes WHERE sequence = (SELECT min(sequence) FROM outcomes)"),
    ],
    "a holding that its step does not use": [
        (f"INSERT INTO holdings SELECT run_key, {LAST}, "
        f"{', '.join(stored_columns('holdings')[2:])} "
        "FROM holdings WHERE sequence = (SELECT min(sequence) FROM holdings)"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", list(GHOSTS))
def test_what_no_step_means_is_found(plain: Path, tmp_path: Path, what: str) -> None:
    path = Path(shutil.copy(plain, tmp_path / "ghost.db"))
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        for statement in GHOSTS[what]:
            assert raw.execute(statement).rowcount == 1
        raw.commit()
    rechain(path)
    assert not believed(path)


def test_an_outcome_cannot_be_one_of_a_later_step(plain: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(plain, tmp_path / "later.db"))
    with closing(sqlite3.connect(path)) as raw:
        earlier, other, named = raw.execute(
            "SELECT a.sequence, b.sequence, a.outcome FROM steps a "
            "JOIN steps b ON b.run_key = a.run_key AND b.sequence = a.sequence + 1 "
            "AND b.outcome = a.outcome AND NOT EXISTS (SELECT 1 FROM outcomes o "
            "WHERE o.sequence IN (a.sequence, b.sequence)) LIMIT 1"
        ).fetchone()
        raw.execute(
            f"INSERT INTO outcomes SELECT run_key, {other}, "
            f"{', '.join(stored_columns('outcomes')[2:])} "
            f"FROM outcomes WHERE sequence = {named}"
        )
        raw.execute(f"UPDATE steps SET outcome = {other} WHERE sequence IN ({earlier}, {other})")
        raw.commit()
    rechain(path)
    assert not believed(path)


def test_rows_of_a_model_that_were_moved_are_found(modelled: Path, tmp_path: Path) -> None:
    for column in sorted(KEYS):
        if column.split(".")[0] in OF_A_MODEL:
            for statement in plantings(modelled, column):
                path = forged(modelled, tmp_path / "forged.db", statement)
                assert not believed(path, modelled), column


@pytest.mark.parametrize("column", ["model_sha256", "weights_sha256", "card"])
def test_a_forged_card_is_found_without_the_checkpoint(
    modelled: Path, tmp_path: Path, column: str
) -> None:
    for statement in plantings(modelled, f"models.{column}"):
        assert not audited(forged(modelled, tmp_path / "forged.db", statement))


def test_a_history_derived_anew_is_found_by_a_head_kept_elsewhere_and_by_nothing_else(
    plain: Path, tmp_path: Path
) -> None:
    with Reader.open(plain) as reader:
        kept = reader.stored_run(reader.find("last")).head_digest
    where = "WHERE sequence = (SELECT min(sequence) + 20 FROM steps WHERE open > 0)"
    changed = forged(plain, tmp_path / "changed.db", f"UPDATE steps SET close = close + 1 {where}")
    assert not believed(changed)
    again = derived_anew(changed, tmp_path / "again.db")
    assert believed(again)
    assert audited(plain, kept)
    assert not audited(again, kept)


def derived_anew(path: Path, target: Path) -> Path:
    """Write the run of *path* once more, under its own name, with every step derived."""
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        recorded = open_recorded(reader, path, run_id)
        log = SqlAuditLog.open(target)
        log.begin(recorded.run, recorded.engine.gate_sets)
        for _, _, event, _ in reader.events(run_id):
            log.append_now(recorded.engine.step(event, None))
        log.close()
    return target
