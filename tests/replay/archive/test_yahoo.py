"""Daily shares of Yahoo, from frames shaped as yfinance 1.7 returns them."""

from __future__ import annotations

import sys
from datetime import date
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from command_line import Cli

from tracepaper.replay.archive import read_candles

DAYS = pd.DatetimeIndex(
    ["2025-01-02", "2025-01-03", "2025-01-06", "2025-01-07"], tz="America/New_York", name="Date"
)
FRAME = pd.DataFrame(
    {
        "Open": [248.674792, 243.11, 244.31, 242.98],
        "High": [248.844618, 243.929158, 247.33, 245.55],
        "Low": [241.572081, 241.64151, 243.2, 241.35],
        "Close": [243.60000000000002, 243.11, 245.0, 242.21],
        "Volume": [55740700, 40244100, 45045600, 40856000],
        "Dividends": [0.0, 0.0, 0.25, 0.0],
        "Stock Splits": [0.0, 0.0, 0.0, 0.0],
    },
    index=DAYS,
)
WORDS = ("data", "fetch", "AAPL", "--source", "yahoo", "--interval", "D", "--from", "2025-01-01")


class YFException(Exception):
    """Stands for the library's base of errors."""


class Ticker:
    def __init__(self, symbol: str) -> None:
        self.symbol = symbol

    def history(self, *, start: date, end: date, interval: str) -> pd.DataFrame:
        assert interval == "1d"
        if self.symbol == "BUSY":
            raise YFException("Too Many Requests. Rate limited. Try after a while.")
        days = FRAME.index.date
        return FRAME[(days >= start) & (days < end) & (self.symbol == "AAPL")]


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("yfinance")
    module.__spec__ = ModuleSpec("yfinance", None)
    vars(module).update(Ticker=Ticker, exceptions=SimpleNamespace(YFException=YFException))
    monkeypatch.setitem(sys.modules, "yfinance", module)
    monkeypatch.chdir(tmp_path)


def test_a_fetch_writes_whole_sessions_anew_as_the_library_adjusted_them(cli: Cli) -> None:
    for end, count in (("2025-01-07T15:00", 3), ("2025-01-08", 4)):  # the 7th is under way
        (series,) = cli.json(*WORDS, "--to", end)["series"]
        assert (series["instrument"], series["bars"]) == ("stock:AAPL", count)
        candles = read_candles(series["file"])
        assert candles.instrument == "stock:AAPL"
        unit = 10.0**candles.price_decimals
        assert (candles.close / unit).tolist() == FRAME["Close"].round(6).tolist()[:count]
        assert candles.notes == ()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((*WORDS[:2], "NONE", *WORDS[3:]), 1, "no candles of NONE from 2025-01-01 to "),
        (
            (*WORDS[:2], "BUSY", *WORDS[3:]),
            1,
            "(Too Many Requests. Rate limited. Try after a while.); try later.",
        ),
        (WORDS[:-2], 2, "give --interval D, and --from"),
        ((*WORDS[:5], *WORDS[7:]), 2, "give --interval D, and --from"),
    ],
)
def test_what_yahoo_has_not_is_refused_and_nothing_is_written(
    words: tuple[str, ...], code: int, sentence: str, tmp_path: Path, cli: Cli
) -> None:
    assert sentence in cli.err(*words, code=code)
    assert list(tmp_path.iterdir()) == []
