"""A network over whole windows in a replay: by scan, by steps, interrupted, and derived again."""

from __future__ import annotations

from pathlib import Path

import explained_runs
import pytest
from models import AnyConfig
from records import identities, rows

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import restore
from tracepaper.replay.archive.read import read_candles
from tracepaper.replay.backtest import predictors
from tracepaper.replay.backtest import run as running
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.networks.informer import InformerConfig

WINDOWED = InformerConfig(dim=16, layers=3, heads=2, window=70, horizons=(5, 30))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained_runs.replayed(tmp_path_factory.mktemp("scanned"), network=WINDOWED)


def test_a_scan_of_whole_windows_decides_what_its_steps_decide_to_the_bit(
    scanned: Path, tmp_path: Path
) -> None:
    stepped = explained_runs.replayed(tmp_path, network=WINDOWED, mode="step")
    assert rows(scanned, "SELECT mode FROM v_runs") == [("scan",)]
    assert rows(stepped, "SELECT mode FROM v_runs") == [("step",)]
    assert identities(scanned) == identities(stepped)
    assert invoke(["parity", f"{scanned}#last", f"{stepped}#last"]) == 0
    for database in (scanned, stepped):
        assert invoke(["verify", "last", "--db", str(database)]) == 0


@pytest.mark.parametrize("network", [WINDOWED, explained_runs.SMALL], ids=["windows", "stream"])
def test_interrupted_it_goes_on_to_the_end_that_is_named(
    network: AnyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PROGRESS_EVENTS", 611)
    monkeypatch.setattr(predictors, "CHUNK_EVENTS", 8)
    whole = explained_runs.replayed(tmp_path, network=network)
    wanted = identities(whole)[:-20]
    end_ms = wanted[-1][0] + 60_000
    [data] = tmp_path.glob("*AAAUSDT*")
    with Reader.open(whole) as reader:
        config = restore(reader.run(reader.find("last")).config)
    cut = tmp_path / "cut.db"
    audit = SqlAuditLog.open(cut)
    replay = build(
        config,
        MarketData([read_candles(data)]),
        started_at_ms=0,
        until_ms=end_ms,
        database=cut,
        mode="scan",
    )
    run_replay(replay, audit, Tally(stopped=lambda: True))
    audit.close()
    assert 600 < len(identities(cut)) < len(wanted)
    again = ["replay", "-c", str(tmp_path / "config.toml"), "--data", str(data)]
    assert invoke([*again, "--db", str(cut), "--to", str(end_ms), "--resume", "last"]) == 0
    assert [at for at, _ in identities(cut)] == [at for at, _ in wanted]
    if network is WINDOWED:
        assert identities(cut) == wanted
    assert invoke(["verify", "last", "--db", str(cut)]) == 0
    with Reader.open(whole) as base, Reader.open(cut) as other:
        first, second = (ComparedRun(reader, reader.find("last")) for reader in (base, other))
        parity = compare_runs(first, second)
        assert compare_runs(first, first).exact
    # What a chunk that begins elsewhere rounds otherwise is no difference.
    assert (parity.exact, parity.differing, parity.compared) == (False, 0, len(wanted))
