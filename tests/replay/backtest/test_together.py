"""Several symbols: bars of one close in one group; replayed, verified, resumed and compared."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record
from records import check_record, identities, rows, tamper
from rich.console import Console

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.document.terminal import show_document
from tracepaper.replay.report.terminal import summary_document
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.chunks import close_of
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Category

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
        chosen = {"mode", "name"} & section.keys()  # a size goes with its mode, a key with its name
        given[name] = section if chosen else {**given.get(name, {}), **section}
    return load(None, given)


def replayed(
    path: Path, data: list[Candles], mode: str = "scan", **sections: dict[str, Any]
) -> str:
    return record(path, configured(**sections), data, mode=mode)


def test_a_symbol_that_lacks_the_bar_is_named_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    candle, two, three = candles(50)
    replayed(path, [candle, two, _without(three, 20)])
    closes = rows(
        path,
        "SELECT content ->> 'bars', content ->> 'absent', count(*), "
        "sum(market_ms - (content ->> 'open_time_ms')) FROM v_events WHERE kind = 'closed' "
        "GROUP BY 1, 2 ORDER BY 1",
    )
    assert closes == [(2, '["linear:SOLUSDT"]', 1, 60_000), (3, "[]", 49, 49 * 60_000)]
    listed = "SELECT sequence, sequence + (content ->> 'bars') FROM v_events WHERE kind = 'closed'"
    with Reader.open(path) as reader:
        for first, last in rows(path, listed):
            assert close_of(reader.connection, 1, last, 3) == (first, last)
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


def test_a_record_that_lost_a_bar_of_a_close_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run_id = replayed(path, candles(40))
    tamper(
        path,
        "DELETE FROM steps "
        "WHERE sequence = (SELECT max(sequence) FROM steps WHERE instrument IS NOT NULL)",
    )
    with Reader.open(path) as reader:
        assert not verify_chain(reader.connection, run_id).passes
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
        with Reader.open(batched) as reader, Reader.open(path) as two:
            parity = compare_runs(ComparedRun(reader, first), ComparedRun(two, other))
        assert parity.differences == []
    again = tmp_path / "again.db"
    audit = SqlAuditLog.open(again)
    rerun_recorded(f"{batched}#{first}", audit, again, Tally(), started_at_ms=2)
    audit.end(3)
    audit.close()
    assert identities(again) == identities(batched)


@pytest.mark.parametrize("margin", ["none", "isolated"])
def test_symbols_on_one_purse_are_served_by_name_in_whatever_order_they_are_given(
    margin: str, tmp_path: Path
) -> None:
    category = Category.SPOT if margin == "none" else Category.LINEAR
    data = [replace(part, category=category) for part in candles(200)]
    sections: dict[str, Any] = {
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": margin == "none"},
        "account": {"cash": "100000", "margin": margin},
    }
    told = []
    for at, order in enumerate(permutations(range(3))):
        path = tmp_path / f"{at}.db"
        names = [SYMBOLS[place] for place in reversed(order)]
        market = {"symbols": names, "category": category.value}
        run_id = replayed(path, [data[place] for place in order], market=market, **sections)
        fills = rows(
            path, "SELECT instrument, filled_ms, side, quantity_text FROM v_fills ORDER BY sequence"
        )
        check_record(path)
        console = Console(file=io.StringIO(), width=300)
        show_document(console, summary_document(path, run_id), blank_lines=False)
        assert isinstance(console.file, io.StringIO)
        printed = console.file.getvalue().splitlines()
        (line,) = (line for line in printed if line.startswith("Most unfilled"))
        told.append((fills, line))
    assert told.count(told[0]) == len(told)
    fills, line = told[0]
    served = [(filled_ms, name) for name, filled_ms, *_ in fills]
    assert served == sorted(served)
    assert "(BTCUSDT, ETHUSDT, SOLUSDT)" in line
