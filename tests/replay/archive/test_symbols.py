"""Symbols in names and contents of files, and ``SYMBOL=PATH``."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tracepaper.daemon.config.values import symbol_names
from tracepaper.replay.archive import read_candles
from tracepaper.replay.archive.names import split_argument
from tracepaper.replay.archive.read import NamedFrame
from tracepaper.replay.backtest.run_spec import names_a_run
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

T0 = 1_735_689_600
HEADER = "time,open,high,low,close,volume"


def file(folder: Path, text: str, name: str = "BTCUSDT.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def plain(folder: Path, name: str = "BTCUSDT.csv") -> Path:
    rows = [f"{T0 + 60 * place}000,10,12,9,11,5" for place in range(9)]
    return file(folder, "\n".join([HEADER, *rows]) + "\n", name)


def refusal(path: Path | str) -> str:
    with pytest.raises((ConfigInvalid, DataInvalid)) as caught:
        read_candles(path)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- symbols within


def test_a_column_of_several_symbols_gives_the_one_that_is_meant(tmp_path: Path) -> None:
    rows = [
        f"{symbol},{T0 + 60 * place},{price},{price},{price},{price},5"
        for place in range(4)
        for symbol, price in (("BTC/USDT", 10), ("ETH/USDT", 20))
    ]
    text = "\n".join(["symbol,time,open,high,low,close,volume", *rows]) + "\n"
    candles = read_candles(f"ETHUSDT={file(tmp_path, text, 'two.csv')}")
    assert candles.close.tolist() == [20] * 4


FORMS = {
    "BINANCE:BTCUSDT": "BTCUSDT",
    "X:BTC-USD": "BTCUSD",
    "NASDAQ:TSLA": "TSLA",
    "BTC/USDT:USDT": "BTCUSDT",
    "BTCUSDT:USDT": "BTCUSDT",
    "BTC-USDT-SWAP": "BTCUSDT",
    "BTC_USDT": "BTCUSDT",
    "BTCUSDT.P": "BTCUSDT",
    "AAPL.US": "AAPL",
    "BRK.B": "BRK.B",
    "^GSPC": "GSPC",
}


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("name", ["symbol", "instId", "instrument_name"])
def test_a_symbol_in_a_known_form_is_believed(text: str, name: str, tmp_path: Path) -> None:
    rows = [f"{text},{T0 + 60 * place},10,12,9,11,5" for place in range(4)]
    path = file(tmp_path, "\n".join([f"{name},{HEADER}", *rows]) + "\n", "prices.csv")
    assert read_candles(path).symbol == FORMS[text]


@pytest.mark.parametrize("text", sorted(FORMS.keys() - {"^GSPC"}))
def test_a_form_means_the_same_as_key_argument_and_configuration(text: str, tmp_path: Path) -> None:
    path = plain(tmp_path, "prices.csv")
    assert split_argument(f"{text}={path}") == (FORMS[text], path)
    assert read_candles(NamedFrame(text, pl.read_csv(path))).symbol == FORMS[text]
    assert symbol_names([text]) == [FORMS[text]]


@pytest.mark.parametrize(
    "text", ["BTCUSDT:BINANCE", "BTC:USDT", "BTC USDT", "BTC/USDT:USDT-27", "KRW-BTC"]
)
def test_a_symbol_in_no_known_form_is_asked_for(text: str, tmp_path: Path) -> None:
    rows = [f"{text},{T0 + 60 * place},10,12,9,11,5" for place in range(4)]
    path = file(tmp_path, "\n".join([f"symbol,{HEADER}", *rows]) + "\n", "prices.csv")
    assert "choose one by SYMBOL=" in refusal(path)
    assert read_candles(f"BTCUSDT={path}").symbol == "BTCUSDT"


def test_symbols_in_no_known_form_are_never_joined(tmp_path: Path) -> None:
    rows = [
        f"{symbol},{T0 + 60 * place},10,12,9,11,5"
        for place in range(4)
        for symbol in ("BTC:USDT", "ETH:USDT")
    ]
    path = file(tmp_path, "\n".join([f"symbol,{HEADER}", *rows]) + "\n", "prices.csv")
    assert "holds BTC:USDT, ETH:USDT: choose one" in refusal(path)
    assert "holds BTC:USDT, ETH:USDT" in refusal(f"BTCUSDT={path}")


# ---------------------------------------------------------------- SYMBOL=PATH


@pytest.mark.parametrize(
    ("argument", "symbol"),
    [
        ("F={}", "F"),
        ("btcusdt={}", "BTCUSDT"),
        ("BTC/USDT={}", "BTCUSDT"),
        ("BTC/USDT:USDT={}", "BTCUSDT"),
        ("BTC-PERP={}", "BTC-PERP"),
        ("BRK.B={}", "BRK.B"),
        ("{}", None),
    ],
)
def test_a_symbol_before_a_path_is_told_from_a_path(
    tmp_path: Path, argument: str, symbol: str | None
) -> None:
    path = plain(tmp_path, "prices.csv")
    assert split_argument(argument.format(path)) == (symbol, path)


def test_a_file_that_exists_under_the_whole_name_is_that_file(here: Path) -> None:
    plain(here, "F=BTCUSDT.csv")
    plain(here, "BTCUSDT.csv")
    plain(here / "symbol=ETHUSDT", "part.csv")
    assert split_argument("F=BTCUSDT.csv") == (None, Path("F=BTCUSDT.csv"))
    assert split_argument("X=F=BTCUSDT.csv") == ("X", Path("F=BTCUSDT.csv"))
    assert split_argument("symbol=ETHUSDT/part.csv") == (None, Path("symbol=ETHUSDT/part.csv"))
    assert split_argument("SOLUSDT=symbol=ETHUSDT/part.csv")[0] == "SOLUSDT"
    assert read_candles("F=BTCUSDT.csv").symbol == "BTCUSDT"
    assert read_candles("F=./BTCUSDT.csv").symbol == "F"


@pytest.mark.parametrize(
    "argument",
    [
        *("F=absent.csv", "BTCUSDT=", "=prices.csv", "two words=prices.csv", "folder/other=absent"),
        "BTCUSDT:BINANCE=prices.csv",
    ],
)
def test_what_is_neither_is_one_sentence(here: Path, argument: str) -> None:
    plain(here, "prices.csv")
    assert "write SYMBOL=PATH" in refusal(argument)


# ---------------------------------------------------------------- names against contents


def test_a_frame_of_another_symbol_is_refused() -> None:
    times = [1_000 * (T0 + 60 * place) for place in range(9)]
    frame = {name: [10] * 9 for name in HEADER.split(",")} | {"time": times}
    assert read_candles(NamedFrame("btc/usdt", frame)).symbol == "BTCUSDT"
    with pytest.raises(ConfigInvalid, match="holds BTCUSDT, ETHUSDT"):
        read_candles(NamedFrame("ETHUSDT", {**frame, "symbol": ["BTCUSDT"] * 9}))


def test_a_name_and_a_content_that_differ_are_refused(tmp_path: Path) -> None:
    text = f"symbol,{HEADER}\nETHUSDT,{T0},10,12,9,11,5\nETHUSDT,{T0 + 60},10,12,9,11,5\n"
    path = file(tmp_path, text)
    assert "holds BTCUSDT, ETHUSDT: choose one by SYMBOL=" in refusal(path)
    assert read_candles(f"ETHUSDT={path}").symbol == "ETHUSDT"


def test_a_file_with_a_number_sign_in_its_name_is_candles_and_no_run(here: Path) -> None:
    plain(here, "BTCUSDT#1.csv")
    plain(here / "k=1", "run.db")
    assert not names_a_run("BTCUSDT#1.csv")
    assert not names_a_run("BTCUSDT=BTCUSDT#1.csv")
    assert not names_a_run("BTCUSDT=absent#1.csv")
    assert names_a_run("k=1/run.db#last")
    assert names_a_run("absent.db#last")


def test_what_stands_before_a_path_goes_before_what_its_name_says(tmp_path: Path) -> None:
    path = plain(tmp_path, "prices_spot_ETHUSDT.csv")
    assert read_candles(path).instrument == "spot:ETHUSDT"
    renamed = read_candles(f"sol/usdt={path}", category="linear")
    assert renamed.instrument == "linear:SOLUSDT"
    note = "the file names ETHUSDT; it is read as SOLUSDT because of SYMBOL=PATH"
    assert note in renamed.notes
