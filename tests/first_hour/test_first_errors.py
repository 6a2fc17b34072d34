"""What goes wrong in a first class, frame, file or command: one sentence that names the place."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import user_strategies as users
from command_line import Cli

import tracepaper
from tracepaper.replay.archive import read_candles
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, TracepaperError

CLASS = """\
import numpy as np
import pandas as pd
import talib
import tracepaper as tp
from tracepaper.strategies.indicators import ema, sma


def lags(values):
    return np.concatenate([values, np.zeros((2, 2))])


class Mine(tp.Strategy):
    warmup = 5
    bars = 0

    def decide(self, context):
        close = context.history.close
        self.bars += 1
        {line}  # here
        return tp.Signal(tp.Action.HOLD, "waiting")
"""
BARS = 40
MOST = f"{BARS - 4} bars"
"""Those after the warm-up."""


def candles(**columns: Any) -> pd.DataFrame:
    """Return a frame of minutes that rise."""
    close = 30_000.0 + np.arange(BARS)
    times = pd.date_range("2025-01-01", periods=BARS, freq="min")
    prices = {"open": close, "high": close + 1, "low": close - 1, "close": close}
    return pd.DataFrame({"time": times, **prices, "volume": np.full(BARS, 2.0), **columns})


def failure(folder: Path, line: str, source: str = CLASS) -> str:
    """Return the message of a backtest of the class with *line*."""
    (folder / "mine.py").write_text(source.format(line=line))
    with users.importable(folder), pytest.raises(TracepaperError) as raised:
        tracepaper.backtest("mine:Mine", {"BTCUSDT": candles()})
    message = str(raised.value)
    sys.stdout.write(f"{message}\n")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("line", "cause"),
    {
        "tp.Action.BUY": "AttributeError: .*BUY.* at PLACE; Action has LONG, SHORT, FLAT, HOLD",
        "tp.Action('BUY')": "'BUY' is not a valid Action at PLACE; Action has LONG, SHORT",
        "tp.Signal(tp.Action.LONG, 'x', stoploss=2)": "argument 'stoploss' at PLACE; Signal takes "
        "action, reason, strength, stop, target, ",
        "context.price": "no attribute 'price' at PLACE; BarContext has account, close, ",
        "context.history.Close": "no attribute 'Close' at PLACE; BarArrays has close, high, ",
        "context.history['Close']": "'Close' at PLACE; BarArrays has close, high, ",
        "np.convolve(close, np.zeros((2, 2)))": "ValueError: object too deep .* at PLACE; mend",
        "pd.DataFrame({'close': close})['Close']": "KeyError: 'Close' at PLACE; mend",
        "talib.SMA(list(close), 5)": r"TypeError: Argument 'real' .* at PLACE; mend",
        "sma(close, 'five')": r"at PLACE: sma\(values, period=30\) failed: ",
        "ema(close, 0)": "Mine failed in decide at PLACE: An indicator's period of 0",
        "1 / (self.bars - 10)": "ZeroDivisionError: .* at PLACE; mend",
    }.items(),
)
def test_an_error_names_the_line_of_the_users_file_and_the_bar(
    tmp_path: Path, line: str, cause: str
) -> None:
    message = failure(tmp_path, line)
    text = (tmp_path / "mine.py").read_text()
    number = next(i for i, row in enumerate(text.splitlines(), 1) if row.endswith("# here"))
    bar = "00:13Z" if "self.bars" in line else "00:04Z"  # the tenth warm one, or the first
    place = re.escape(f"{tmp_path / 'mine.py'}:{number} for the bar 2025-01-01T{bar} of BTCUSDT")
    assert re.search(cause.replace("PLACE", place), message), message


@pytest.mark.parametrize(
    ("name", "row"), [("mine", "return np.concatenate"), ("lib/site-packages/mine", "lags(close)")]
)
def test_the_deepest_line_is_named_unless_the_class_is_installed(
    tmp_path: Path, name: str, row: str
) -> None:
    folder = (tmp_path / name).parent
    folder.mkdir(parents=True, exist_ok=True)
    message = failure(folder, "lags(close)")
    rows = (folder / "mine.py").read_text().splitlines()
    number = next(i for i, each in enumerate(rows, 1) if row in each)
    # In an installed package every file may be a library's: its first line is the class's.
    assert f"{folder / 'mine.py'}:{number} for the bar" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            CLASS.replace("decide", "next"),
            r"Mine at .*mine\.py:12 has no decide; give it def decide\(self, ",
        ),
        ("import nothing_of_this_name\n", r"No module named 'nothing.* at .*mine\.py:1\); correct"),
        (
            "from tracepaper import Bars\n",
            r"cannot import name 'Bars'.* at .*mine\.py:1\); correct",
        ),
        ("class Mine(\n", r"SyntaxError: .* at .*mine\.py:1; mend"),
        (
            CLASS.replace(
                "def decide", "def __init__(self):\n        np.zeros(-1)\n\n    def decide"
            ),
            r"refused \[strategy\.options\] \(negative .* at .*mine\.py:17\); correct",
        ),
        (
            CLASS.replace("return tp.Signal(tp.Action.HOLD, ", "return ("),
            r"answered 'waiting' in decide at .*mine\.py:16 for the bar .*; return a Signal",
        ),
    ],
)
def test_a_class_that_cannot_decide_is_named(tmp_path: Path, source: str, message: str) -> None:
    assert re.search(message, failure(tmp_path, "pass", source))


def test_a_history_gives_its_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CLASS.format(line="assert context.history['close'] is close"))
    with users.importable(tmp_path):
        run = tracepaper.backtest("mine:Mine", {"BTCUSDT": candles()})
    assert run.summary["bars"] == BARS


@pytest.mark.parametrize(
    ("line", "bars", "cause"),
    [
        ("return tp.Signal(tp.Action.LONG, 'up', np.nan)", MOST, ""),
        (
            "return tp.Signal(tp.Action.LONG, 'up', close[-1] % 7 and 1 or float('nan'))",
            "5 bars",
            "strength is not finite",
        ),
        (
            "return tp.Signal(tp.Action.LONG, 'up', ema(close, 5 if close[-1] % 7 else 9)[-1] > 0)",
            "5 bars",
            r"ema\(…, 9\) has no value with 5 bars of history: set warmup = 40 or more",
        ),
    ],
)
def test_a_strategy_without_a_number_at_some_bars_is_told_so(
    tmp_path: Path, cli: Cli, line: str, bars: str, cause: str
) -> None:
    (tmp_path / "mine.py").write_text(CLASS.format(line=line.replace(" > 0", "> 0 and 1.0 or 0.5")))
    with users.importable(tmp_path):
        tracepaper.backtest("mine:Mine", {"BTCUSDT": candles()}, db=tmp_path / "mine.db").close()
    printed = " ".join(cli.out("report", "last", "--db", tmp_path / "mine.db").split())
    if cause:
        first = "first at 2025-01-01T00:0[0-9]Z"
        assert re.search(f"decided {bars} without a value, {first}. Most often: .*{cause}", printed)
    else:
        assert "asked for no position on 36 of 40 bars. Its reason on 36: strength" in printed


@pytest.mark.parametrize("name", ["open_time", "Date", None])
def test_a_frame_may_have_its_times_as_index(name: str | None) -> None:
    times = candles()["time"].astype("int64") // 10**6
    for index in (times.to_numpy(), candles()["time"].astype(str).to_numpy()):
        frame = candles().drop(columns="time").set_index(pd.Index(index, name=name))
        run = tracepaper.backtest("sma_cross", {"BTCUSDT": frame}, params={"fast": 2, "slow": 4})
        assert run.bars["open_time_utc"][0] == pd.Timestamp("2025-01-01", tz="UTC")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (candles().drop(columns="time"), 'by columns={"open_time": "NAME"}, or convert it'),
        (candles().drop(columns="volume"), 'which columns={"volume": None} takes as zero'),
        (
            candles().drop(columns="time").set_index(pd.Index([f"r{i}" for i in range(BARS)])),
            "row 1: the open time is not a time of ISO 8601 but 'r0'",
        ),
    ],
)
def test_a_frame_with_a_wrong_index_says_what_to_give(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataInvalid, match=re.escape(message)):
        tracepaper.backtest("sma_cross", {"BTCUSDT": frame})


def test_a_number_given_as_a_file_and_a_file_given_as_an_address() -> None:
    with pytest.raises(ConfigInvalid, match=r"^data is 5; give a path, a frame, a dictionary"):
        read_candles(5)
    config = {"storage": {"url": "x.db"}}
    with pytest.raises(ConfigInvalid, match=r'write "sqlite:///x\.db": the record is'):
        tracepaper.backtest("sma_cross", {"BTCUSDT": candles()}, config=config)


@pytest.mark.parametrize("heads", ["Datetime (UTC),{},Volume (BTC)", "Date (UTC),{},Volume [BTC]"])
def test_headings_may_have_units(tmp_path: Path, heads: str) -> None:
    path = tmp_path / "BTCUSDT.csv"
    lines = candles().to_csv(index=False).splitlines()
    path.write_text("\n".join([heads.format("Open,High,Low,Close"), *lines[1:]]))
    assert read_candles(path).volume.size == BARS


class TwoHorizons(tracepaper.Model):
    features = None
    context = 3
    horizons = (5, 8)
    measures = ("mean_return",)

    def predict(self, inputs: Any) -> dict[str, float]:
        return {"mean_return": 0.0}


def test_a_model_without_the_default_horizon_names_its_own() -> None:
    with pytest.raises(ConfigInvalid, match=r"is 30 by default, .* set gate\.horizon = 5,"):
        tracepaper.backtest(
            "attention",
            {"BTCUSDT": candles()},
            config={"model": {"class": f"{__name__}:TwoHorizons"}},
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("backtest",), "tracepaper has no backtest; use tracepaper replay.\n"),
        (("trade", "--dry-run"), "tracepaper has no trade; use tracepaper run.\n"),
        (("download-data",), "tracepaper has no download-data; use tracepaper data fetch.\n"),
        (("data", "download"), "tracepaper has no download; use tracepaper data fetch.\n"),
        (("plot",), "has no plot; use tracepaper report --chart FILE, or tracepaper ui.\n"),
        (
            ("replay", "--timerange", "1-2"),
            "has no --timerange; use --from and --to of tracepaper replay.\n",
        ),
    ],
)
def test_commands_of_other_tools_are_answered_with_ours(
    cli: Cli, words: tuple[str, ...], sentence: str
) -> None:
    assert cli.err(*words, code=2).endswith(sentence)
