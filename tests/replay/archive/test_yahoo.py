"""Shares of Yahoo, from frames shaped as yfinance 1.7 returns them."""

from __future__ import annotations

import sys
from datetime import date
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from command_line import Cli
from stock_files import HOUR_MS, opens

from tracepaper.replay.archive import read_candles

NEW_YORK = "America/New_York"
DAY_MS = 24 * HOUR_MS


def frame(interval_ms: int) -> pd.DataFrame:
    """Return candles of two years and a half, as the library does: times of the exchange."""
    times = opens("2014-01-06", "2016-06-30", interval_ms, by_clock=False)
    index = pd.DatetimeIndex(pd.to_datetime(times, unit="ms", utc=True)).tz_convert(NEW_YORK)
    if interval_ms == DAY_MS:
        index = index.normalize().rename("Date")
    rng = np.random.default_rng(3)
    close = 243.60000000000002 * np.exp(np.cumsum(rng.normal(0, 0.01, len(index))))
    first = np.append(close[:1], close[:-1])
    columns = {
        "Open": first,
        "High": np.maximum(first, close) * 1.004,
        "Low": np.minimum(first, close) * 0.996,
        "Close": close,
        "Volume": rng.integers(40_000_000, 60_000_000, len(index)),
        "Dividends": 0.0,
        "Stock Splits": 0.0,
    }
    return pd.DataFrame(columns, index=index)


FRAMES = {"1d": frame(DAY_MS), "1h": frame(HOUR_MS)}
WORDS = ("data", "fetch", "AAPL", "--source", "yahoo", "--interval", "D", "--from", "2014-01-01")


class YFException(Exception):
    """Stands for the library's base of errors."""


class Ticker:
    def __init__(self, symbol: str) -> None:
        self.symbol = symbol

    def history(self, *, start: date, end: date, interval: str) -> pd.DataFrame:
        if self.symbol == "BUSY":
            raise YFException("Too Many Requests. Rate limited. Try after a while.")
        held = FRAMES[interval]
        days = held.index.date
        return held[(days >= start) & (days < end) & (self.symbol != "NONE")]


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("yfinance")
    module.__spec__ = ModuleSpec("yfinance", None)
    vars(module).update(Ticker=Ticker, exceptions=SimpleNamespace(YFException=YFException))
    monkeypatch.setitem(sys.modules, "yfinance", module)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("interval", "name", "ends"),
    [
        ("D", "1d", {"2014-01-09T20:00": 3, "2014-01-10": 4}),
        ("60", "1h", {"2014-01-09T20:00": 3 * 7 + 5, "2014-01-10": 4 * 7}),
    ],
)
def test_days_and_hours_are_written_anew_as_the_library_adjusted_them(
    interval: str, name: str, ends: dict[str, int], cli: Cli
) -> None:
    words = [interval if word == "D" else word for word in WORDS]
    for end, count in ends.items():  # at 20:00 the day and its sixth hour are under way
        (series,) = cli.json(*words, "--to", end)["series"]
        assert (series["instrument"], series["bars"]) == ("stock:AAPL", count)
        assert series["file"] == f"candles/stock_AAPL_{name}.csv"
        candles = read_candles(series["file"])
        assert (candles.instrument, candles.notes) == ("stock:AAPL", ())
        unit = 10.0**candles.price_decimals
        assert (candles.close / unit).tolist() == FRAMES[name]["Close"].round(6).tolist()[:count]
        if name == "1h":
            times = opens("2014-01-06", "2014-01-09", HOUR_MS, by_clock=False)
            assert candles.open_time_ms.tolist() == times[:count]


@pytest.mark.parametrize(
    ("symbol", "read_as"),
    [("BRK-B", "BRKB"), ("SAP.DE", "SAP"), ("7203.T", "7203"), ("^GSPC", "GSPC"), ("aapl", "AAPL")],
)
def test_a_file_is_read_by_its_name_whatever_the_symbol(
    symbol: str, read_as: str, cli: Cli
) -> None:
    (series,) = cli.json("data", "fetch", symbol, *WORDS[3:], "--to", "2014-01-10")["series"]
    assert read_candles(series["file"]).instrument == f"stock:{read_as}"


def test_fetch_train_replay_and_report_are_four_commands(cli: Cli) -> None:
    file, small = "candles/stock_AAPL_1d.csv", []
    for change in (
        "model.kind=lstm", "window=16", "dim=8", "layers=1", "horizons=1d,5d",
        "features.intervals=1d", "training.steps=1", "training.length=64",
    ):  # fmt: skip
        small += ["--set", change]
    cli.out(*WORDS, "--to", "2016-07-01")
    cli.out("train", "--data", file, *small, "--out", "net")
    by = ("--set", "strategy.name=attention", "--set", "model.checkpoint=net")
    assert cli.json("replay", file, *by, "--db", "run.db")["bars"] == len(FRAMES["1d"])
    refused = "SELECT count(*) AS bars FROM v_decisions WHERE refused_by = 'gap'"
    assert cli.json("audit", "sql", refused, "--db", "run.db") == [{"bars": 0}]
    assert cli("verify", "last", "--db", "run.db").code == 0
    assert cli.json("report", "last", "--db", "run.db")["accounts"][0]["days"] == len(FRAMES["1d"])


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((*WORDS[:2], "NONE", *WORDS[3:]), 1, "no candles of NONE from 2014-01-01 to "),
        (
            (*WORDS[:2], "BUSY", *WORDS[3:]),
            1,
            "(Too Many Requests. Rate limited. Try after a while.); try later.",
        ),
        (WORDS[:-2], 2, "give --interval D or 60, and --from"),
        ((*WORDS[:5], *WORDS[7:]), 2, "give --interval D or 60, and --from"),
    ],
)
def test_what_yahoo_has_not_is_refused_and_nothing_is_written(
    words: tuple[str, ...], code: int, sentence: str, tmp_path: Path, cli: Cli
) -> None:
    assert sentence in cli.err(*words, code=code)
    assert list(tmp_path.iterdir()) == []
