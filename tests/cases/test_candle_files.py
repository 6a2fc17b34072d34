"""Public reports about candle files: each is read rightly, or refused in a sentence about it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest
from command_line import Cli
from public_cases import DAY, FILES, HOUR, MINUTE, START, columns, play, records
from remedies import followed, written_anew

import tracepaper
from tracepaper import Action, Signal
from tracepaper.replay.archive import Candles, read_candles
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError


def values(candles: Candles, name: str) -> list[float]:
    """Return a column as plain numbers."""
    decimals = candles.volume_decimals if name == "volume" else candles.price_decimals
    return [value / 10**decimals for value in getattr(candles, name).tolist()]


def refusal(path: str | Path, columns: Sequence[str] = ()) -> str:
    with pytest.raises(TracepaperError) as caught:
        read_candles(path, columns=columns)
    return str(caught.value)


def converted(
    name: str, folder: Path, names: Mapping[str, str] = MappingProxyType({}), order: str = ""
) -> Candles:
    """Read a copy of the file *name*, once the lines of pandas that its refusals print were run."""
    path = folder / Path(name).name
    shutil.copy(FILES / name, path)
    return followed(path, names, order.split())


def test_a_seventh_column_of_kraken_counts_trades(tmp_path: Path) -> None:
    """Case 01: freqtrade#8982. The count is no turnover."""
    assert "turnover ÷ volume lies outside low to high" in refusal(FILES / "01-XBTUSD_1.csv")
    candles = converted(
        "01-XBTUSD_1.csv", tmp_path, order="open_time open high low close volume trades"
    )
    assert candles.turnover is None


def test_contracts_that_are_margined_in_coin_are_refused() -> None:
    """Case 02: ccxt#17279, binance-public-data#168. Contracts of 100 USD are no coins."""
    assert "paid in coin (inverse)" in refusal(FILES / "02-BTCUSD_PERP-1m-2024-01.csv")


@pytest.mark.parametrize(
    "name", ["BTCUSDT_240628-1m-2024-05.csv", "BTCUSDT-27JUN25_1m.csv", "BTC-USDT-240628_1m.csv"]
)
def test_a_dated_future_is_no_perpetual(name: str, tmp_path: Path) -> None:
    """Case 04: BitcoinChecker#120, ccxt#8538, binance-public-data#75."""
    shutil.copy(FILES / "31-plain.csv", tmp_path / name)
    assert "delivered on a date" in refusal(tmp_path / name)


def test_a_market_that_trades_in_every_second_minute_has_minutes() -> None:
    """Case 05: ccxt#3254, openalgo#1946. A candle is missing where nothing traded."""
    candles = read_candles(FILES / "05-ACAEUR_1m.csv")
    assert (candles.interval_ms, len(candles), candles.missing) == (MINUTE, 227, 222)


def test_single_precision_counts_as_its_shortest_text() -> None:
    """Case 06: trading-strategy#148, freqtrade#7701."""
    candles = read_candles(FILES / "06-DOGEUSDT_1m.parquet")
    assert (candles.price_decimals, values(candles, "open")[0]) == (2, 0.1)


def test_keys_that_differ_in_case_alone_are_two(tmp_path: Path) -> None:
    """Case 07: ccxt#21783, nautilus_trader#4711. Hyperliquid opens at t and closes at T."""
    path = shutil.copy(FILES / "07-BTCUSDT.json", tmp_path)
    table = written_anew(refusal(path))
    assert "has two columns t" in refusal(table)
    without = refusal(table).replace("'NAME'", "'T'")
    assert read_candles(written_anew(without)).open_time_ms[0] == START
    assert read_candles(table, columns=["open_time=t"]).open_time_ms[0] == START


SECOND_OPENS = {
    "26-BTCUSDT, 1.csv": "TradingView-data-scraper#14: plots of one name repeat",
    "28-bitstamp_BTCUSD.csv": "backtesting.py#1080: a minute without a trade is a row of NaN",
}


@pytest.mark.parametrize("name", SECOND_OPENS)
def test_a_layout_of_a_usual_maker_is_read(name: str) -> None:
    """Cases 26 and 28."""
    assert values(read_candles(FILES / name), "open")[:2] == [42_000.0, 41_996.3]


def test_decimal_commas_and_a_clock_of_twelve_hours_are_converted(tmp_path: Path) -> None:
    """Cases 23 and 27: devbio-napari#46, and older hours of CryptoDataDownload, newest first."""
    assert values(converted("23-BTCUSDT.csv", tmp_path), "open")[:2] == [42_000.0, 41_996.3]
    candles = converted("27-BTCUSDT_1h.csv", tmp_path)
    assert values(candles, "open")[0] == 42_000.0
    assert (candles.open_time_ms[0], candles.interval_ms) == (START, HOUR)


ORDERS = {
    "24-kucoin_BTC-USDT_1m.csv": (
        "open_time open close high low volume turnover",
        [42_000.0, 42_002.6, 41_994.0, 41_996.3, 3.041],
    ),
    "133-BTC_USDT-202401.csv": (
        "open_time volume close high low open",
        [100.0, 102.0, 99.0, 101.0, 5.5],
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_columns_without_names_in_another_order_are_asked_for(name: str, tmp_path: Path) -> None:
    """Cases 24 and 133: kucoin-api-docs#373, gateapi-python#163 and #129."""
    order, first = ORDERS[name]
    candles = converted(name, tmp_path, order=order)
    columns = ("open", "high", "low", "close", "volume")
    assert [values(candles, column)[0] for column in columns] == first


def test_a_symbol_may_be_written_in_any_alphabet(tmp_path: Path) -> None:
    """Case 31: ccxt#27663 and #27194, python-binance#1617."""
    name = "\u5e01\u5b89\u4eba\u751fUSDT"
    path = shutil.copy(FILES / "31-plain.csv", tmp_path / f"{name}_1m.csv")
    assert read_candles(f"{name}={path}").symbol == name


@pytest.mark.parametrize("wrapped", ["results", "bars"])
def test_rows_within_an_answer_are_found(wrapped: str, tmp_path: Path) -> None:
    """Case 33: answers of two vendors, as people save them."""
    rows = [
        {"v": 1.5, "vw": 42_000, "o": 42_000, "c": 42_001, "h": 42_002, "l": 41_999, "n": 3}
        | {"t": START + place * MINUTE}
        for place in range(5)
    ]
    answers: dict[str, object] = {
        "results": {"ticker": "X:BTCUSD", "results": rows},
        "bars": {"bars": {"BTC/USD": rows}},
    }
    path = tmp_path / "saved_BTCUSD.json"
    path.write_text(json.dumps(answers[wrapped]))
    assert len(followed(path)) == 5


def test_what_stands_before_a_colon_is_a_market() -> None:
    """Case 130: polygon-io/issues#203, oscmcompany/fund#1128, backtesting.py#233."""
    assert read_candles(FILES / "130-minute_aggs.csv").symbol == "BTCUSD"
    watchlist = FILES / "130-watchlist.csv"
    assert "holds BTCUSDT, ETHUSDT: choose one by SYMBOL=" in refusal(watchlist)
    assert read_candles(f"ETHUSDT={watchlist}").symbol == "ETHUSDT"


def test_a_volume_and_a_turnover_in_contracts_are_refused(tmp_path: Path) -> None:
    """Case 132: ccxt#6888. Turnover ÷ volume of BitMEX is a price, but both count contracts."""
    assert "count contracts" in refusal(FILES / "132-XBTUSDT_1m.csv")
    candles = converted("132-XBTUSDT_1m.csv", tmp_path)
    assert values(candles, "volume")[0] == 0.5
    assert candles.open_time_ms[0] == START


def test_an_hour_that_comes_twice_is_that_of_a_local_clock(tmp_path: Path) -> None:
    """Case 134: yahooquery#128, homeassistant-statistics#222, PowerwallCompanion#17."""
    assert "comes twice, as on local clocks" in refusal(FILES / "134-BTCUSD_1h.csv")
    candles = converted("134-BTCUSD_1h.csv", tmp_path)
    assert np.diff(candles.open_time_ms).tolist() == [HOUR] * 5
    assert candles.open_time_ms[0] == START + 307 * DAY + 4 * HOUR  # New York is four hours behind


@pytest.mark.parametrize("kind", ["yahoo", "nse", "http", "spreadsheet"])
def test_a_month_in_words_and_days_of_a_spreadsheet_are_converted(
    kind: str, tmp_path: Path
) -> None:
    """Case 136: Yahoo writes Jan 01, 2024, NSE, servers and spreadsheets otherwise (45292)."""
    candles = converted(f"136-{kind}-BTCUSDT.csv", tmp_path)
    step = MINUTE if kind == "http" else DAY
    assert candles.open_time_ms.tolist() == [START + place * step for place in range(len(candles))]


def test_candles_without_a_volume_are_read_by_a_choice() -> None:
    """Case 137: financial-data#2, OKX.Api#50. An index and a mark price have no volume."""
    name = FILES / "137-SPXUSD.csv"
    assert "no volume, which --columns volume= takes as zero" in refusal(name)
    candles = read_candles(name, columns=["volume="])
    assert not candles.volume.any()
    assert "volume is left out, by --columns" in candles.notes


@pytest.mark.parametrize(
    "name", ["138-BTCUSDT-trades-2025-01-01.csv", "138-BTCUSDT-aggTrades-2024-01-01.csv"]
)
def test_trades_are_made_candles(name: str, tmp_path: Path) -> None:
    """Case 138: binance-public-data#386 and #387, freqtrade#4343 and #9232."""
    order = "id price quantity quote_quantity time is_buyer_maker is_best_match"
    candles = converted(name, tmp_path, order=order)
    assert (values(candles, "high")[0], values(candles, "volume")[0]) == (102.0, 3.0)
    assert candles.interval_ms == MINUTE


def test_a_split_without_its_action_is_noted(cli: Cli) -> None:
    """Case 141: finnhub#439 and #502, eod2#134, python-eodhistoricaldata#17."""
    path = FILES / "141-AAPL.csv"
    assert "129 after 499; a split needs adjusted candles" in cli.out(
        "data", "check", f"AAPL={path}"
    )


FIRST_OPENS = {
    "BTC_USD Bitfinex Historical Data.csv": START + 12 * DAY,
    "BTCUSDT-1m-2024-12.csv": START + 366 * DAY - 2 * MINUTE,
}
ROWS: Final = {
    "tardis_bybit_trades_BTCUSDT.csv": [42_000, 42_002, 42_000, 42_002, 1.5],
    "BTCUSD_M1_202401010000_202401010003.csv": [42_000, 42_010, 41_990, 42_005, 0],
}
"""Candles made of trades, and those of a market that counts ticks alone."""
ORDER = "open_time open high low close volume turnover volume_quote confirm"
ORDERS_OF = {"coinbase_BTC-USD.json": "open_time low high open close volume"}
LAYOUTS = sorted((FILES / "layouts").iterdir())


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: path.name)
def test_four_candles_are_the_same_from_each_maker(path: Path, tmp_path: Path) -> None:
    """Cases 180 and 260: OKX, Bitget, Investing, Alpaca, Kite, Stooq, CoinAPI and others.

    And pyalgotrade#16, backtrader#301, dukascopy-node#205.
    Where it is refused, the printed lines lead there. OKX counts a swap's vol in contracts.
    """
    names = {"volume": "vol_ccy"}
    candles = converted(f"layouts/{path.name}", tmp_path, names, ORDERS_OF.get(path.name, ORDER))
    first = [values(candles, name)[0] for name in ("open", "high", "low", "close", "volume")]
    assert first == ROWS.get(path.name, [42_000, 42_010, 41_990, 42_005, 5])
    assert (candles.open_time_ms[0], len(candles)) == (FIRST_OPENS.get(path.name, START), 4)


@pytest.mark.parametrize("name", ["BTCUSDT_1h.xlsx", "BTCUSDT.xls"])
def test_a_workbook_is_called_that_and_led_out_of(name: str, tmp_path: Path) -> None:
    """Public reports: pandas#7056, OpenBB#4040, pybithumb#33, superset#23584, writexl#105."""
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(200))
    told = refusal(tmp_path / name)
    assert "is a workbook of a spreadsheet" in told
    assert f"pandas.read_excel('{tmp_path / name}'); frame.to_csv('" in told


def test_bars_and_trades_that_were_written_come_back(tmp_path: Path) -> None:
    """Public reports: OpenBB#4040, writexl#32, freqtrade#2955, nautilus_trader#532.

    Written as CSV and as Parquet, the bars of a run make the same trades again.
    """
    closes = [round(100 + 3 * math.sin(place / 5), 2) for place in range(200)]
    data: Any = {"BTCUSDT": pd.DataFrame(columns(closes))}
    given: dict[str, Any] = {"params": {"fast": 3, "slow": 9}, "frames": "pandas"}
    run = tracepaper.backtest("sma_cross", data, progress=False, **given)
    bars = run.bars[["open_time_utc", "open", "high", "low", "close", "volume"]]
    for suffix in ("csv", "parquet"):
        path, trades = tmp_path / f"BTCUSDT_1m.{suffix}", tmp_path / f"trades.{suffix}"
        if suffix == "csv":
            bars.to_csv(path, index=False)
            run.trades.to_csv(trades, index=False)
            written = pd.read_csv(trades, parse_dates=["opened_utc"])
        else:
            bars.to_parquet(path)
            run.trades.to_parquet(trades)
            written = pd.read_parquet(trades)
        again = tracepaper.backtest("sma_cross", path, progress=False, **given)
        for one in (written, again.trades):
            assert one["net"].tolist() == run.trades["net"].tolist()
            assert [*one["opened_utc"]] == [*run.trades["opened_utc"]]
    assert len(run.trades) > 5


def test_an_interval_between_those_of_the_exchange_is_advised_rightly() -> None:
    """Case 30: freqtrade#7291. Advice names only multiples of the candles' interval."""
    for step in (8 * HOUR, 10 * MINUTE):
        with pytest.raises(ConfigInvalid) as caught:
            play(lambda _context: None, columns([100.0] * 30, step))
        advised = re.search(r"multiple of it: ([\d, ]+)", str(caught.value))
        minutes = [] if advised is None else [int(part) for part in re.findall(r"\d+", advised[1])]
        assert not [each for each in minutes if each * MINUTE % step]


def test_funding_is_paid_by_the_intervals_that_its_file_names(tmp_path: Path) -> None:
    """Case 19: freqtrade#12583. Settlements come every 8, 4 or 1 hours."""
    hours = [0, 8, 16, 24, 32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80]
    lines = [
        f"{START + hour * HOUR},{hour - before},0.0001"
        for before, hour in zip([-8, *hours], hours, strict=False)
    ]
    path = tmp_path / "BTCUSDT-fundingRate-2024-01.csv"
    head = "calc_time,funding_interval_hours,last_funding_rate"
    path.write_text("\n".join([head, *lines]) + "\n")
    run = play(
        lambda _context: Signal(Action.LONG, "in"),
        columns([100.0] * 86, HOUR),
        {"sizing": {"mode": "fixed", "quantity": "10"}},
        funding=[str(path)],
    )
    assert not [gap for gap in records(run.gaps) if gap["cause"] == "funding"]
    paid = [row for row in records(run.ledger) if row["kind"] == "funding"]
    assert len(paid) == 14
