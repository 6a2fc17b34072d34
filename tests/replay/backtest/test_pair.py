"""The pair at scale: two symbols, one strategy, opposite positions opened at the same close."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_cases import HOUR_MS, cointegrated, configured, replayed
from programs import ROOT

from tracepaper.daemon.session.resume import restore_engine
from tracepaper.replay.archive import read_candles, slice_candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally, resume_replay, run_replay
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.perturbations import Files
from tracepaper.replay.checks.recursive import recursive
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import prune

pytestmark = pytest.mark.slow

CLOSES = 15_000


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def check(path: Path) -> int:
    """Hold the newest run to its record; return how many decisions were derived again."""
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).holds
        found = verify_run(reader, path, run_id)
        assert found.differences == []
        return found.agreed


OPENED = (
    "SELECT d.open_time_ms, group_concat(o.side, ' ') FROM v_orders o "
    "JOIN v_decisions d ON d.run_id = o.run_id AND d.sequence = o.decision_sequence "
    "WHERE d.action IN ('LONG', 'SHORT') AND o.status = 'FILLED' GROUP BY 1"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pair") / "pair.db"
    replayed(path, configured(), cointegrated(CLOSES))
    return path


def test_a_pair_trades_thirty_thousand_bars_and_verify_says_yes(whole: Path) -> None:
    assert check(whole) == 2 * CLOSES
    sides = [sides.split() for _, sides in rows(whole, OPENED)]
    assert len(sides) > 100  # one leg at a time would show a single side
    assert all(sorted(both) == ["BUY", "SELL"] for both in sides)


def test_a_pair_of_real_candles_trades_and_verify_says_yes(tmp_path: Path) -> None:
    folder = ROOT / "tests" / "data" / "candles"
    data = [
        slice_candles(read_candles(str(path)), slice(0, 2_000))
        for path in sorted(folder.glob("binance_um_*_1m_2025-05.csv.gz"))
    ]
    symbols = [part.symbol for part in data]
    assert symbols == ["BTCUSDT", "SOLUSDT"]
    path = tmp_path / "real.db"
    replayed(path, configured(symbols), data)
    assert check(path) == sum(map(len, data))
    opened = rows(path, OPENED)
    assert len(opened) > 5
    assert all(sorted(sides.split()) == ["BUY", "SELL"] for _, sides in opened)


def test_a_hole_in_one_leg_holds_both_and_the_rest_is_traded(tmp_path: Path) -> None:
    first, second = cointegrated(600)
    kept = np.delete(np.arange(600), slice(300, 330))
    path = tmp_path / "hole.db"
    replayed(path, configured(), [first, slice_candles(second, kept)])
    check(path)
    start = int(first.open_time_ms[300])
    inside = f"open_time_ms >= {start} AND open_time_ms < {start + 30 * 60_000}"
    actions = rows(path, f"SELECT DISTINCT action FROM v_decisions WHERE {inside}")
    assert actions == [("HOLD",)]
    assert rows(path, f"SELECT count(*) FROM v_decisions WHERE NOT ({inside})")[0][0] == 1_140


class Killed(Exception):
    """The process ended here."""


def test_a_pair_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracepaper.replay.backtest.run as running_module

    monkeypatch.setattr(running_module, "PROGRESS_EVENTS", 64)
    data = cointegrated(900)
    running, cut, through = (tmp_path / f"{name}.db" for name in ("running", "cut", "through"))
    replayed(through, configured(), data)

    def kill(bars: int) -> None:
        if bars > 800 and not cut.exists():
            with closing(sqlite3.connect(running)) as one, closing(sqlite3.connect(cut)) as other:
                one.backup(other)
            raise Killed

    audit = SqlAuditLog.open(running, group_steps=32)
    with pytest.raises(Killed):
        run_replay(
            build(configured(), data, started_at_ms=0, database=running),
            audit,
            Tally(progress=kill),
        )
    audit.close()
    audit = SqlAuditLog.open(cut)
    resume_replay("last", data, (), audit, cut, Tally())
    audit.end(1)
    audit.close()
    check(cut)
    query = "SELECT open_time_ms, instrument, decision_sha256 FROM v_decisions ORDER BY 1, 2"
    assert rows(cut, query) == rows(through, query)
    query = "SELECT side, quantity, price, filled_ms FROM v_fills ORDER BY filled_ms, instrument"
    assert rows(cut, query) == rows(through, query)


def test_a_recorded_pair_is_fed_again_and_every_decision_agrees(
    whole: Path, tmp_path: Path
) -> None:
    small, again = tmp_path / "small.db", tmp_path / "again.db"
    first = replayed(small, configured(), cointegrated(400))
    audit = SqlAuditLog.open(again)
    second = rerun_recorded(f"{small}#{first}", audit, again, Tally(), started_at_ms=0)
    audit.end(2)
    audit.close()
    with Reader.open(small) as one, Reader.open(again) as two:
        found = compare_runs(ComparedRun(one, first), ComparedRun(two, second))
    assert found.differences == []
    assert found.holds


def test_a_pair_is_recursive_and_looks_at_no_later_bar() -> None:
    data = cointegrated(300)
    with FreshProcesses() as fresh:
        found = recursive(configured(), Files(data), fresh, probes=3, warmup=120)
        assert found.holds, found.sentence()
        assert found.compared > 300
        seen = lookahead(configured(), Files(data), fresh, Limits(probes=2))
    assert seen.holds, seen.because
    assert seen.without_later == 600


def test_a_pruned_pair_goes_on_with_the_account_it_had(tmp_path: Path) -> None:
    path, config = tmp_path / "pruned.db", configured(market={"interval": "60"})
    data = cointegrated(300, interval_ms=HOUR_MS)
    audit = SqlAuditLog.open(path)
    run_replay(build(config, data, started_at_ms=0, database=path), audit, Tally())
    audit.close()
    (pruned,) = prune(path, keep_days=6, pruned_at_ms=5)
    assert pruned.steps > 100
    audit = SqlAuditLog.open(path)
    engine = build(config, data, started_at_ms=0, database=path).engine
    with Reader.open(path) as reader:
        restore_engine(engine, reader, audit.resume(reader.find("last")), None)
        assert verify_chain(reader.connection, reader.find("last")).holds
    audit.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enter": 0.5, "leave": 2.0}, "leave 2 must be under enter 0.5"),
        ({"window": 0}, "Pair.warmup is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, float], words: str, tmp_path: Path
) -> None:
    from tracepaper.strategies.errors import ConfigInvalid

    config = configured(strategy={"options": options})
    with pytest.raises(ConfigInvalid, match=words):
        replayed(tmp_path / "a.db", config, cointegrated(10))
