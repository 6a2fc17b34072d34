"""Several symbols: bars of one close in one group; replayed, verified, resumed and compared."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import rechain
from recordings import record
from records import check_record, decision_hashes, rows
from storage_cases import prune

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.session.resume import restore_engine
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.diagnosis import Cause
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Action

HOUR_MS = 3_600_000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")


def candles(count: int) -> list[Candles]:
    return [
        replace(made_candles(walk_rows(count, seed=seed)), symbol=symbol)
        for seed, symbol in enumerate(SYMBOLS)
    ]


def configured(**sections: dict[str, Any]) -> Config:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": SYMBOLS},
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "10000000"},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return load(None, given)


def replayed(
    path: Path, data: list[Candles], mode: str = "scan", **sections: dict[str, Any]
) -> str:
    return record(path, configured(**sections), data, mode=mode)


def test_each_close_is_a_group_of_steps_that_verify_derives_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    replayed(path, candles(200))
    kinds = [kind for (kind,) in rows(path, "SELECT kind FROM v_events ORDER BY sequence")]
    assert kinds.count("closed") == 200
    check_record(path)


def test_a_symbol_that_lacks_the_bar_is_named_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    one, two, three = candles(50)
    replayed(path, [one, two, _without(three, 20)])
    told = rows(path, "SELECT content ->> 'absent' FROM v_events WHERE kind = 'closed'")
    assert [absent for (absent,) in told if absent != "[]"] == ['["linear:SOLUSDT"]']
    check_record(path)


def _without(part: Candles, row: int) -> Candles:
    import numpy as np

    def cut(values: Any) -> Any:
        return None if values is None else np.delete(values, row)

    return replace(
        part,
        open_time_ms=cut(part.open_time_ms),
        open=cut(part.open),
        high=cut(part.high),
        low=cut(part.low),
        close=cut(part.close),
        volume=cut(part.volume),
        turnover=cut(part.turnover),
    )


def test_without_gathering_each_bar_is_by_itself_and_decides_the_same(tmp_path: Path) -> None:
    together, alone = tmp_path / "a.db", tmp_path / "b.db"
    data = candles(200)
    first = replayed(together, data)
    second = replayed(alone, data, market={"gather_ms": 0})
    assert not rows(alone, "SELECT * FROM v_events WHERE kind = 'closed'")
    check_record(alone)
    with Reader.open(together) as one, Reader.open(alone) as two:
        found = compare_runs(ComparedRun(one, first), ComparedRun(two, second))
    assert found.differences == []
    assert (found.compared, found.identical) == (600, 600)


class Turning(Strategy):
    """Turns every instrument at the same closes, and confirms at every other one."""

    warmup = 2

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal:
        rises = context.exact.open_time_ms // HOUR_MS // 20 % 2
        return Signal(Action.LONG if rises else Action.SHORT, "it turns")


@pytest.mark.parametrize("bars", [41, 53])
def test_a_prune_cuts_between_closes_and_the_run_goes_on(tmp_path: Path, bars: int) -> None:
    path = tmp_path / "a.db"
    data = [
        replace(made_candles(walk_rows(bars, seed=seed), interval_ms=HOUR_MS), symbol=symbol)
        for seed, symbol in enumerate(SYMBOLS)
    ]
    config = configured(
        strategy={"name": f"{__name__}:Turning"},
        market={"interval": "60"},
    )
    audit = SqlAuditLog.open(path, group_steps=1)
    run_replay(build(config, MarketData(data), started_at_ms=0, database=path), audit, Tally())
    audit.close()
    (pruned,) = prune(path, keep_days=1, pruned_at_ms=5)
    until = pruned.until_sequence
    assert until % 4 == 0  # the start, and whole closes
    assert until > 0
    audit = SqlAuditLog.open(path)
    engine = build(config, MarketData(data), started_at_ms=0, database=path).engine
    with Reader.open(path) as reader:
        resumed = audit.resume(reader.find("last"))
        restore_engine(engine, reader, resumed, None)  # its fills give its account
        assert verify_chain(reader.connection, resumed.run.run_id).holds
    audit.close()


FORGED = {
    "bars": ["0", "-1", "1", "2", "4", "9223372036854775807", "2.5", "NULL"],
    "absent": ["""json('["linear:ETHUSDT"]')""", """json('["spot:ETHUSDT"]')""", "7"],
    "open_time_ms": ["0", "-1", "json_extract(content, '$.open_time_ms') + 60000"],
}


@pytest.mark.parametrize(("key", "value"), [(key, one) for key in FORGED for one in FORGED[key]])
def test_a_forged_close_is_named_by_verify(
    once: tuple[Path, str], tmp_path: Path, key: str, value: str
) -> None:
    whole, run_id = once
    path = Path(shutil.copy(whole, tmp_path / "a.db"))
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            f"UPDATE events SET content = json_set(content, '$.{key}', {value}) "
            "WHERE step = (SELECT max(step) - 40 FROM events WHERE kind = 'closed')"
        )
        database.commit()
    with Reader.open(path) as reader:
        assert not verify_chain(reader.connection, run_id).holds
    rechain(path)
    with Reader.open(path) as reader:
        assert verify_chain(reader.connection, run_id).holds
    assert is_named(path, run_id)


def is_named(path: Path, run_id: str) -> bool:
    """Return whether ``verify`` says of the record that it was changed, or that it is damaged."""
    with Reader.open(path) as reader:
        try:
            return verify_run(reader, path, run_id).culprit is Cause.RECORD
        except DataInvalid:
            return True


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("together") / "a.db"
    return path, replayed(path, candles(40))


def test_a_record_that_lost_a_bar_of_a_close_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run_id = replayed(path, candles(40))
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "UPDATE events SET content = replace(content, '\"bars\":3', '\"bars\":4') "
            "WHERE step = (SELECT max(step) FROM events WHERE kind = 'closed')"
        )
        database.commit()
    with Reader.open(path) as reader:
        assert not verify_chain(reader.connection, run_id).holds
        with pytest.raises(DataInvalid, match="rows are missing"):
            verify_run(reader, path, run_id)


def test_the_model_answers_a_close_in_one_batch_and_verify_repeats_its_bits(tmp_path: Path) -> None:
    batched, single, scanned = (tmp_path / f"{name}.db" for name in ("b", "s", "c"))
    data = candles(640)
    attention: dict[str, dict[str, Any]] = {"strategy": {"name": "attention"}}
    first = replayed(batched, data, "step", **attention)
    second = replayed(single, data, "step", **{**attention, "market": {"gather_ms": 0}})
    third = replayed(scanned, data, "scan", **attention)
    modes = [rows(path, "SELECT mode FROM v_runs")[0][0] for path in (batched, single, scanned)]
    assert modes == ["batched", "step", "scan"]
    check_record(batched)
    for path, other in ((single, second), (scanned, third)):
        with Reader.open(batched) as one, Reader.open(path) as two:
            found = compare_runs(ComparedRun(one, first), ComparedRun(two, other))
        assert found.differences == []
    again = tmp_path / "again.db"
    audit = SqlAuditLog.open(again)
    rerun_recorded(f"{batched}#{first}", audit, again, Tally(), started_at_ms=2)
    audit.end(3)
    audit.close()
    assert decision_hashes(again) == decision_hashes(batched)
