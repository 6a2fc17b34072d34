"""The pair at scale: two symbols, one strategy, opposite positions opened at the same close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from killed_replays import killed_and_resumed
from pair_cases import HOUR_MS, cointegrated, configured, replayed
from programs import ROOT
from records import check_record, rows, run_again

from tracepaper.daemon.session.resume import restore_engine
from tracepaper.replay.archive import read_candles, slice_candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.perturbations import Files
from tracepaper.replay.checks.recursive import recursive
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import prune

pytestmark = pytest.mark.slow

CLOSES = 15_000


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
    assert check_record(whole) == 2 * CLOSES
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
    assert check_record(path) == sum(map(len, data))
    opened = rows(path, OPENED)
    assert len(opened) > 5
    assert all(sorted(sides.split()) == ["BUY", "SELL"] for _, sides in opened)


def test_a_hole_in_one_leg_holds_both_and_the_rest_is_traded(tmp_path: Path) -> None:
    first, second = cointegrated(600)
    kept = np.delete(np.arange(600), slice(300, 330))
    path = tmp_path / "hole.db"
    replayed(path, configured(), [first, slice_candles(second, kept)])
    check_record(path)
    start = int(first.open_time_ms[300])
    inside = f"open_time_ms >= {start} AND open_time_ms < {start + 30 * 60_000}"
    actions = rows(path, f"SELECT DISTINCT action FROM v_decisions WHERE {inside}")
    assert actions == [("HOLD",)]
    assert rows(path, f"SELECT count(*) FROM v_decisions WHERE NOT ({inside})")[0][0] == 1_140


def test_a_pair_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, through = cointegrated(900), tmp_path / "through.db"
    replayed(through, configured(), data)
    cut = killed_and_resumed(configured(), data, tmp_path, monkeypatch, bars=800)
    check_record(cut)
    query = "SELECT open_time_ms, instrument, decision_sha256 FROM v_decisions ORDER BY 1, 2"
    assert rows(cut, query) == rows(through, query)
    query = "SELECT side, quantity, price, filled_ms FROM v_fills ORDER BY filled_ms, instrument"
    assert rows(cut, query) == rows(through, query)


def test_a_recorded_pair_is_fed_again_and_every_decision_agrees(
    whole: Path, tmp_path: Path
) -> None:
    small, again = tmp_path / "small.db", tmp_path / "again.db"
    first = replayed(small, configured(), cointegrated(400))
    found = run_again(small, again, first)
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
