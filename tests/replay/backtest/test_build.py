"""What is traded: defaults, then the data, the file, the environment, the command line."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Cli
from programs import ROOT

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.backtest.build import configuration
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.storage.database.connection import REPLAY_PAGE_BYTES, open_reader
from tracepaper.strategies.errors import ConfigInvalid

SOL = ROOT / "tests" / "data" / "candles" / "binance_um_SOLUSDT_1m_2025-05.csv.gz"
BTC = ROOT / "tests" / "data" / "candles" / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
PLAIN = '[strategy]\nname = "sma_cross"\nfast = 3\nslow = 7\n'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sol() -> Candles:
    return read_candles(SOL)


def file(text: str) -> Path:
    path = Path("given.toml")
    path.write_text(text)
    return path


def test_the_data_say_what_nothing_else_names() -> None:
    for given in (None, file(PLAIN)):
        market = configuration(given, MarketData([sol()])).market
        assert (market.symbols, market.interval, market.category) == (("SOLUSDT",), "1", "linear")


def test_the_file_wins_over_the_data_and_the_environment_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = file(PLAIN + '[market]\ninterval = "5"\n')
    assert configuration(given, MarketData([sol()])).market.interval == "5"
    monkeypatch.setenv("TRACEPAPER_MARKET__INTERVAL", "15m")
    assert configuration(given, MarketData([sol()])).market.interval == "15"
    assert configuration(None, MarketData([sol()])).market.interval == "15"


def test_the_command_line_wins_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPAPER_MARKET__CATEGORY", "linear")
    assert (
        configuration(None, MarketData([sol()]), {"market": {"category": "spot"}}).market.category
        == "spot"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("MARKET__INTERVAL", "5"), ("STRATEGY__NAME", "sma_cross"), ("ACCOUNT__CASH", "777")],
)
def test_every_key_of_the_environment_reaches_a_replay_without_a_file(
    key: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TRACEPAPER_{key}", value)
    section, name = key.lower().split("__")
    assert configuration(None, MarketData([sol()])).settings()[section][name] == value


def test_a_symbol_that_the_data_lack_is_refused_with_who_named_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = file(PLAIN + '[market]\nsymbols = ["ETHUSDT"]\n')
    with pytest.raises(ConfigInvalid, match=r"holds SOLUSDT, and given\.toml trades ETHUSDT"):
        configuration(given, MarketData([sol()]))
    both = file(PLAIN + '[market]\nsymbols = ["SOLUSDT", "ETHUSDT"]\n')
    with pytest.raises(ConfigInvalid, match=r"given\.toml trades ETHUSDT, and the data hold SOL"):
        configuration(both, MarketData([sol()]))
    monkeypatch.setenv("TRACEPAPER_MARKET__SYMBOLS", "BTCUSDT")
    with pytest.raises(ConfigInvalid, match="TRACEPAPER_MARKET__SYMBOLS trades BTCUSDT"):
        configuration(None, MarketData([sol()]))


def test_an_interval_finer_than_the_data_is_refused_with_who_named_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hours = replace(sol(), interval_ms=3_600_000)
    monkeypatch.setenv("TRACEPAPER_MARKET__INTERVAL", "1")
    with pytest.raises(ConfigInvalid, match=r"TRACEPAPER_MARKET__INTERVAL sets .* finer than"):
        configuration(None, MarketData([hours]))
    monkeypatch.delenv("TRACEPAPER_MARKET__INTERVAL")
    strange = replace(sol(), interval_ms=420_000)
    with pytest.raises(ConfigInvalid, match=r"bars of 7 minutes.*set market\.interval"):
        configuration(None, MarketData([strange]))


def test_two_symbols_come_from_two_files() -> None:
    config = configuration(None, MarketData([sol(), read_candles(BTC)]))
    assert config.market.symbols == ("BTCUSDT", "SOLUSDT")


def test_a_strategy_is_found_beside_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    (home / "beside_its_file.py").write_text(
        "from tracepaper.strategies.api.strategy import SmaCross\n"
        "class Mine(SmaCross):\n"
        "    def __init__(self, options):\n"
        "        super().__init__(fast=3, slow=7, long_only=True)\n"
    )
    (home / "mine.toml").write_text('[strategy]\nname = "beside_its_file:Mine"\n')
    monkeypatch.setattr("sys.path", list(sys.path))
    called = ["replay", str(SOL), "-c", str(home / "mine.toml"), "--db", "run.db", "--json"]
    assert json.loads(cli.out(*called))["decisions"] == len(sol())


def test_a_file_that_a_replay_makes_has_larger_pages(tmp_path: Path, cli: Cli) -> None:
    cli.out("replay", str(SOL), "-c", str(file(PLAIN)), "--db", "run.db")
    with closing(open_reader(tmp_path / "run.db")) as reader:
        assert reader.execute("PRAGMA page_size").fetchone() == (REPLAY_PAGE_BYTES,)
