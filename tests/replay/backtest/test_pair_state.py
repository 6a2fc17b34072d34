"""The state that one object for all symbols declares: stored once, handed back at every start."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import own_strategies as own
import pytest
from killed_replays import resumed
from pair_cases import HOUR_MS, SYMBOLS, cointegrated, configured, replayed
from records import rows, run_again

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.engine.state import EngineState, decode_state
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.perturbations import Files
from tracepaper.replay.checks.recursive import recursive
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import prune

pytestmark = pytest.mark.slow

COUNTING = """
from msgspec import Struct
from tracepaper.strategies.examples.pair import Pair
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types import Action

class Openings(Struct):
    count: int = 0
    is_open: bool = False
    bars: int = 0

class Counting(Pair):
    '''Leaves out every third opening.'''

    State = Openings

    def __init__(self, options):
        super().__init__(options)
        self.other = 0

    def observe(self, bar):
        self.state.bars += 1

    def decide(self, now):
        answers = super().decide(now)
        actions = {signal.action for signal in answers.values()}
        if Action.LONG in actions and not self.state.is_open:
            self.state.is_open = True
            self.state.count += 1
            self.other += 1
        elif Action.FLAT in actions:
            self.state.is_open = False
        said = {"opened": self.COUNT, "bars": self.state.bars}
        if self.COUNT % 3 == 0:
            return {symbol: Signal(Action.FLAT, "left out", note=said) for symbol in answers}
        return {
            symbol: Signal(signal.action, signal.reason, note=said)
            for symbol, signal in answers.items()
        }
"""
DECLARED = COUNTING.replace("self.COUNT", "self.state.count")
UNDECLARED = COUNTING.replace("self.COUNT", "(self.state.count + self.other)")
CLOSES = 450


@pytest.fixture(autouse=True)
def counting(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "counting.py"
    path.write_text(DECLARED)
    with own.importable(tmp_path):
        yield path
        sys.modules.pop("counting", None)


def own_pair(**sections: dict[str, Any]) -> Config:
    options = {"window": 60, "enter": 1.5}
    sections["strategy"] = {"name": "counting:Counting", "options": options}
    return configured(SYMBOLS, **sections)


def newest_state(path: Path) -> EngineState:
    query = "SELECT state FROM states WHERE state IS NOT NULL ORDER BY step DESC LIMIT 1"
    return decode_state(rows(path, query)[0][0])


def openings(path: Path) -> dict[str, Any]:
    """Return the newest stored state; of one object there is one."""
    ((owner, encoded),) = newest_state(path).declared.items()
    assert not owner
    said: dict[str, Any] = msgspec.msgpack.decode(encoded)
    return said


def holdings(path: Path) -> list[Any]:
    account = newest_state(path).account
    return [account.cash, *(book.holding for book in account.books.values())]


def left(path: Path) -> list[Any]:
    return [
        rows(
            path,
            "SELECT open_time_ms, instrument, decision_sha256, action, reason, unfilled_reason, "
            "window_sha256 FROM v_decisions ORDER BY 1, 2",
        ),
        rows(
            path,
            "SELECT filled_ms, instrument, side, quantity_text, price_text FROM v_fills "
            "ORDER BY 1, 2",
        ),
        rows(path, "SELECT open_time_ms, instrument, name, number FROM v_notes ORDER BY 1, 2, 3"),
        openings(path),
        holdings(path),
    ]


def killed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    data: list[Candles],
    bars: list[int],
) -> tuple[Path, list[Path]]:
    """Replay *data*; return the database, and what a kill after *bars* would have left of it."""
    monkeypatch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 1)
    path, waiting, cuts = folder / "whole.db", list(bars), []

    def copy(done: int) -> None:
        while waiting and done >= waiting[0]:
            cuts.append(folder / f"cut-{waiting.pop(0)}.db")
            for suffix in ("", "-wal"):  # what another process would find now
                shutil.copy(f"{path}{suffix}", f"{cuts[-1]}{suffix}")

    audit = SqlAuditLog.open(path, group_steps=1)
    replay = build(config, data, started_at_ms=0, database=path)
    run_replay(replay, audit, Tally(progress=copy))
    audit.end(1)
    audit.close()
    return path, cuts


def test_killed_after_any_close_it_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cointegrated(CLOSES)
    bars = list(range(20, 2 * CLOSES, 110))
    path, cuts = killed(tmp_path, monkeypatch, own_pair(), data, bars)
    expected = left(path)
    assert openings(path)["count"] > 5
    assert openings(path)["bars"] == 2 * CLOSES
    counts = set()
    for cut in cuts:
        counts.add(openings(cut)["count"])
        resumed(cut, data)
        assert left(cut) == expected, cut.name
    assert len(counts) > 3
    with Reader.open(cuts[3]) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).holds
        assert verify_run(reader, cuts[3], run_id).differences == []


def test_it_is_stored_by_the_last_step_of_the_close_in_which_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    replayed(path, own_pair(), cointegrated(200))
    stored = rows(path, "SELECT step FROM states WHERE state IS NOT NULL ORDER BY step")
    closes = rows(
        path, "SELECT max(step) FROM steps WHERE open_time_ms NOT NULL GROUP BY open_time_ms"
    )
    assert {one for (one,) in closes} <= {one for (one,) in stored}


def test_a_record_is_fed_again_with_the_state_that_it_began_with(tmp_path: Path) -> None:
    path, again = tmp_path / "run.db", tmp_path / "again.db"
    first = replayed(path, own_pair(), cointegrated(400))
    assert run_again(path, again, first).holds
    assert openings(path) == openings(again)


def test_a_pruned_run_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = own_pair(market={"interval": "60"}), cointegrated(400, interval_ms=HOUR_MS)
    whole, (cut,) = killed(tmp_path, monkeypatch, config, data, [600])
    before = openings(cut)
    (pruned,) = prune(cut, keep_days=4, pruned_at_ms=5)
    assert pruned.steps > 300
    assert openings(cut) == before
    resumed(cut, data)
    later = f"WHERE open_time_ms > {data[0].open_time_ms[300]}"
    query = f"SELECT instrument, decision_sha256 FROM v_decisions {later} ORDER BY open_time_ms, 1"
    assert rows(cut, query) == rows(whole, query)
    assert (openings(cut), holdings(cut)) == (openings(whole), holdings(whole))


@pytest.mark.parametrize(("text", "holds"), [(DECLARED, True), (UNDECLARED, False)])
def test_a_later_start_is_handed_it_and_what_is_not_declared_is_named(
    counting: Path, text: str, holds: bool
) -> None:
    counting.write_text(text)
    with FreshProcesses() as fresh:
        found = recursive(own_pair(), Files(cointegrated(400)), fresh, probes=3, warmup=60)
    assert found.holds is holds, found.sentence() if found.differences else ""
    if not holds:
        assert "self.other (" in found.sentence()
        assert "its State does not declare" in found.sentence()
    else:
        assert found.compared > 300


def test_it_looks_at_no_later_bar_and_at_no_order_of_its_symbols() -> None:
    with FreshProcesses() as fresh:
        seen = lookahead(own_pair(), Files(cointegrated(300)), fresh, Limits(probes=2))
    assert seen.holds, seen.because
