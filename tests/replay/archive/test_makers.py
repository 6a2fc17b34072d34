"""The same forty candles as every usual maker writes them, read to the same integers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.strategies.types.market import Category

SAMPLES = Path(__file__).parents[2] / "data" / "candles"
ROWS = 40


def real_rows() -> list[list[str]]:
    """Time in ms, open, high, low, close, volume of real minutes, as text."""
    with gzip.open(SAMPLES / "binance_um_BTCUSDT_1m_2025-05.csv.gz", "rt") as stream:
        return list(csv.reader(stream))[1 : ROWS + 1]


def written(rows: list[list[str]], header: str | None = None, delimiter: str = ",") -> bytes:
    lines = [] if header is None else [header]
    lines += [delimiter.join(row) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def moment(ms: str, form: str) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, tz=UTC).strftime(form)


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def paid(row: list[str]) -> str:
    """Return the turnover of a candle that was traded at its close."""
    return str(Decimal(row[5]) * Decimal(row[4]))


def binance(rows: list[list[str]], per_ms: int = 1) -> list[list[str]]:
    def widened(row: list[str]) -> list[str]:
        close_time = (int(row[0]) + 59_999) * per_ms
        more = [str(close_time), paid(row), "12", "1.5", "2.5", "0"]
        return [str(int(row[0]) * per_ms), *row[1:], *more]

    return [widened(row) for row in rows]


def plain_csv(rows: list[list[str]]) -> bytes:
    return written(rows, "open_time,open,high,low,close,volume")


def shuffled_columns(rows: list[list[str]]) -> bytes:
    body = [[r[5], r[4], r[3], r[2], r[1], moment(r[0], "%Y-%m-%dT%H:%M:%SZ")] for r in rows]
    return written(body, "Volume,Close,Low,High,Open,Date")


def seconds_semicolon(rows: list[list[str]]) -> bytes:
    return written([[r[0][:-3], *r[1:]] for r in rows], "timestamp;o;h;l;c;v", ";")


def quoted_windows(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([["time", "open", "high", "low", "close", "volume"], *rows])
    return b"\xef\xbb\xbf" + buffer.getvalue().encode()


def metatrader_5(rows: list[list[str]]) -> bytes:
    body = [
        [moment(r[0], "%Y.%m.%d"), moment(r[0], "%H:%M:%S"), *r[1:5], r[5], "0", "1"] for r in rows
    ]
    header = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    return written(body, header, "\t").decode().encode("utf-16")


def metatrader_4(rows: list[list[str]]) -> bytes:
    return written([[moment(r[0], "%Y.%m.%d"), moment(r[0], "%H:%M"), *r[1:]] for r in rows])


def bybit_metatrader(rows: list[list[str]]) -> bytes:
    return gzip.compress(written([[moment(r[0], "%Y.%m.%d %H:%M"), *r[1:]] for r in rows]))


def titled(rows: list[list[str]]) -> bytes:
    body = [[r[0], "x", "BTCUSDT", *r[1:5], r[5], paid(r), "7"] for r in rows]
    header = "Unix,Note,Symbol,Open,High,Low,Close,Volume BTC,Volume USDT,tradecount"
    return b"# a comment\nhttps://www.example.org\n" + written(body, header)


def numbers(rows: list[list[str]]) -> list[list[float]]:
    return [[int(r[0]), *(float(cell) for cell in r[1:])] for r in rows]


def ccxt_json(rows: list[list[str]]) -> bytes:
    return json.dumps(numbers(rows)).encode()


def records_json(rows: list[list[str]]) -> bytes:
    names = ["date", "open", "high", "low", "close", "volume"]
    return json.dumps([dict(zip(names, row, strict=True)) for row in numbers(rows)]).encode()


def columns_json(rows: list[list[str]]) -> bytes:
    names = ["time", "open", "high", "low", "close", "volume"]
    return json.dumps(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))).encode()


def bybit_rest_json(rows: list[list[str]]) -> bytes:
    newest_first = [[*row, paid(row)] for row in reversed(rows)]
    result = {"category": "linear", "symbol": "BTCUSDT", "list": newest_first}
    return json.dumps({"retCode": 0, "result": result}).encode()


def frame(rows: list[list[str]]) -> pa.Table:
    columns = list(zip(*numbers(rows), strict=True))
    times = pa.array(columns[0], pa.int64()).cast(pa.timestamp("ms", tz="UTC"))
    names = ["open", "high", "low", "close", "volume"]
    return pa.table(
        {"date": times, **{n: list(c) for n, c in zip(names, columns[1:], strict=True)}}
    )


def freqtrade_feather(rows: list[list[str]]) -> bytes:
    buffer = io.BytesIO()
    feather.write_feather(frame(rows), buffer, compression="lz4")
    return buffer.getvalue()


def parquet_file(rows: list[list[str]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(frame(rows), buffer)
    return buffer.getvalue()


def day_first(row: list[str], zone: str = "") -> list[str]:
    """Return *row* with its time as Dukascopy writes it; *zone* is hours east of UTC."""
    shift = int(zone or "0") * 3_600_000
    named = f" GMT{int(zone):+03d}00" if zone else ""
    return [moment(str(int(row[0]) + shift), "%d.%m.%Y %H:%M:%S.000") + named, *row[1:]]


def dukascopy(rows: list[list[str]]) -> bytes:
    return written([day_first(r) for r in rows], "Gmt time,Open,High,Low,Close,Volume ")


def dukascopy_local(rows: list[list[str]]) -> bytes:
    return written([day_first(r, "-5") for r in rows], "Local time,Open,High,Low,Close,Volume")


def dukascopy_utc(rows: list[list[str]]) -> bytes:
    body = [[moment(r[0], "%Y.%m.%d %H:%M:%S"), *r[1:]] for r in rows]
    return written(body, "Time (UTC),Open,High,Low,Close,Volume")


def yfinance(rows: list[list[str]]) -> bytes:
    head = "Price,Close,High,Low,Open,Volume\nTicker" + ",BTC-USDT" * 5 + "\nDatetime,,,,,"
    body = [[moment(r[0], "%Y-%m-%d %H:%M:%S+00:00"), r[4], r[2], r[3], r[1], r[5]] for r in rows]
    return written(body, head)


def yfinance_by_ticker(rows: list[list[str]]) -> bytes:
    head = "Ticker" + ",BTC-USDT" * 6 + "\nPrice,Open,High,Low,Close,Adj Close,Volume\nDate,,,,,,"
    body = [[moment(r[0], "%Y-%m-%d %H:%M:%S"), *r[1:5], "1", r[5]] for r in rows]
    return written(body, head)


def yfinance_without_index(rows: list[list[str]]) -> bytes:
    head = "Datetime,Open,High,Low,Close,Volume\n" + ",BTC-USDT" * 5
    return written([[moment(r[0], "%Y-%m-%d %H:%M:%S"), *r[1:]] for r in rows], head)


STOOQ = "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>"


def stooq(rows: list[list[str]]) -> bytes:
    body = [
        ["BTCUSDT.V", "1", moment(r[0], "%Y%m%d"), moment(r[0], "%H%M%S"), *r[1:], "0"]
        for r in rows
    ]
    return written(body, STOOQ)


def stooq_minutes(rows: list[list[str]]) -> bytes:
    body = [
        ["BTC.V", "1", moment(r[0], "%Y%m%d"), moment(r[0], "%H%M").lstrip("0") or "0", *r[1:], "0"]
        for r in rows
    ]
    return written(body, STOOQ.lower())


def coinbase_order(rows: list[list[str]]) -> list[list[float]]:
    """Return seconds, low, high, open, close, volume, newest first."""
    return [[r[0] // 1000, r[3], r[2], r[1], r[4], r[5]] for r in reversed(numbers(rows))]


def coinbase(rows: list[list[str]]) -> bytes:
    return json.dumps(coinbase_order(rows)).encode()


def coinbase_objects(rows: list[list[str]]) -> bytes:
    names = ["start", "low", "high", "open", "close", "volume"]
    objects = [dict(zip(names, map(str, row), strict=True)) for row in coinbase_order(rows)]
    return json.dumps({"candles": objects}).encode()


def okx_json(rows: list[list[str]]) -> bytes:
    """Volume in contracts, coins and quote coin, and whether a candle was closed."""
    contracts = [[*r[:5], str(Decimal(r[5]) * 100), r[5], paid(r), "1"] for r in reversed(rows)]
    return json.dumps({"code": "0", "data": contracts}).encode()


def names_beside_rows(rows: list[list[str]]) -> bytes:
    names = ["date", "close", "high", "low", "open", "volume"]
    body = [[r[0], r[4], r[2], r[3], r[1], r[5]] for r in numbers(rows)]
    return json.dumps({"columns": names, "data": body}).encode()


def columns_beside_a_state(rows: list[list[str]]) -> bytes:
    """Finnhub, Deribit and the feeds of TradingView, within the answer of a call."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    body = {"s": "ok", **dict(zip("tohlcv", columns, strict=True))}
    return json.dumps({"jsonrpc": "2.0", "result": body}).encode()


def cryptocompare(rows: list[list[str]]) -> bytes:
    names = ["time", "open", "high", "low", "close", "volumefrom", "volumeto"]
    body = [dict(zip(names, [*row, paid(row)], strict=True)) for row in rows]
    return json.dumps({"Response": "Success", "Data": {"TimeTo": 1, "Data": body}}).encode()


def local_dates_beside_seconds(rows: list[list[str]]) -> bytes:
    body = [[day_first(r, "2")[0][:19], r[0][:-3], *r[1:]] for r in rows]
    return written(body, "date,unix,open,high,low,close,volume")


def pandas_index(rows: list[list[str]]) -> bytes:
    body = [[moment(r[0], "%Y-%m-%d %H:%M:%S+00:00"), *r[1:]] for r in rows]
    return written(body, ",open,high,low,close,volume")


def numbered(rows: list[list[str]]) -> bytes:
    body = [[f"{10**9 + n}", moment(r[0], "%Y-%m-%d %H:%M"), *r[1:]] for n, r in enumerate(rows)]
    return written(body, ",start,open,high,low,close,volume")


def pandas_parquet(rows: list[list[str]]) -> bytes:
    table = frame(rows)
    buffer = io.BytesIO()
    names = [*table.column_names[1:], "__index_level_0__"]
    parquet.write_table(table.select([1, 2, 3, 4, 5, 0]).rename_columns(names), buffer)
    return buffer.getvalue()


def metatrader_python(rows: list[list[str]]) -> bytes:
    body = [[r[0][:-3], *r[1:], "12", "0"] for r in rows]
    return written(body, "time,open,high,low,close,tick_volume,spread,real_volume")


def decimal_commas(rows: list[list[str]]) -> bytes:
    body = [[day_first(r)[0], *(cell.replace(".", ",") for cell in r[1:])] for r in rows]
    return written(body, "Date;Open;High;Low;Close;Volume", ";")


def decimal_commas_alone(rows: list[list[str]]) -> bytes:
    body = [[r[0], *(f"{Decimal(cell):f}".replace(".", ",") for cell in r[1:])] for r in rows]
    return written(body, delimiter=";")


def grouped_thousands(rows: list[list[str]]) -> bytes:
    def german(cell: str) -> str:
        return f"{Decimal(cell):,.3f}".replace(",", "_").replace(".", ",").replace("_", ".")

    body = [[r[0], *map(german, r[1:])] for r in rows]
    return written(body, "time\topen\thigh\tlow\tclose\tvolume", "\t")


MAKERS: list[tuple[str, Callable[[list[list[str]]], bytes]]] = [
    ("BTCUSDT.csv", plain_csv),
    ("bybit_linear_BTCUSDT_1m.csv.gz", lambda rows: gzip.compress(plain_csv(rows))),
    ("BTCUSDT_shuffled.csv", shuffled_columns),
    ("BTCUSDT_seconds.txt", seconds_semicolon),
    ("BTCUSDT_windows.csv", quoted_windows),
    ("BTCUSDT_M1.csv", metatrader_5),
    ("BTCUSDT_1_2025-05-01_2025-05-31.csv", metatrader_4),
    ("BTCUSDT_1_2025-05-01.csv.gz", bybit_metatrader),
    ("BTCUSDT-1m-2025-05.csv", lambda rows: written(binance(rows))),
    ("BTCUSDT-1m-2025-06.csv", lambda rows: written(binance(rows, 1000))),
    (
        "BTCUSDT-1m-2025-05.zip",
        lambda rows: zipped("BTCUSDT-1m-2025-05.csv", written(binance(rows))),
    ),
    ("Exchange_BTCUSDT_minute.csv", titled),
    ("BTC_USDT_USDT-1m-futures.json", ccxt_json),
    ("BTC_USDT_USDT-1m-futures.json.gz", lambda rows: gzip.compress(ccxt_json(rows))),
    ("BTCUSDT.json", records_json),
    ("BTCUSDT_columns.json", columns_json),
    ("BTCUSDT_rest.json", bybit_rest_json),
    ("BTC_USDT_USDT-1m-futures.feather", freqtrade_feather),
    ("BTCUSDT.parquet", parquet_file),
    ("BTCUSDT_Candlestick_1_M_BID.csv", dukascopy),
    ("BTCUSDT_local.csv", dukascopy_local),
    ("BTCUSDT_utc.csv", dukascopy_utc),
    ("download.csv", yfinance),
    ("download_by_ticker.csv", yfinance_by_ticker),
    ("download_without_index.csv", yfinance_without_index),
    ("crypto.txt", stooq),
    ("BTCUSDT=crypto.txt", stooq_minutes),
    ("BTCUSDT_60.json", coinbase),
    ("BTCUSDT_objects.json", coinbase_objects),
    ("BTC-USDT-SWAP.json", okx_json),
    ("BTCUSDT_split.json", names_beside_rows),
    ("BTCUSDT_feed.json", columns_beside_a_state),
    ("BTCUSDT_histominute.json", cryptocompare),
    ("BTCUSDT_local_dates.csv", local_dates_beside_seconds),
    ("BTCUSDT_index.csv", pandas_index),
    ("BTCUSDT_index.parquet", pandas_parquet),
    ("BTCUSDT_numbered.csv", numbered),
    ("BTCUSDT_rates.csv", metatrader_python),
    ("BTCUSDT_commas.csv", decimal_commas),
    ("BTCUSDT_commas_alone.csv", decimal_commas_alone),
    ("BTCUSDT_grouped.csv", grouped_thousands),
]


@pytest.mark.parametrize(("name", "write"), MAKERS, ids=[name for name, _ in MAKERS])
def test_every_maker_is_read_to_the_same_integers(
    tmp_path: Path, name: str, write: Callable[[list[list[str]]], bytes]
) -> None:
    rows = real_rows()
    symbol, equals, file = name.rpartition("=")
    (tmp_path / file).write_bytes(write(rows))
    candles = read_candles(f"{symbol}{equals}{tmp_path / file}")
    assert candles.instrument == "linear:BTCUSDT"
    assert candles.interval_ms == 60_000
    assert texts(candles) == [[int(r[0]), *map(Decimal, r[1:])] for r in rows]
    assert (candles.price_decimals, candles.volume_decimals) == (1, 3)


def texts(candles: Candles) -> list[list[Decimal | int]]:
    """Return every row as open time and exact decimals."""
    columns = [
        *((getattr(candles, n), candles.price_decimals) for n in ("open", "high", "low", "close")),
        (candles.volume, candles.volume_decimals),
    ]
    exact = [[Decimal(int(v)).scaleb(-places) for v in column] for column, places in columns]
    times = candles.open_time_ms.tolist()
    return [list(row) for row in zip(times, *exact, strict=True)]


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*_1[mhd]_*.csv.gz")), ids=lambda p: p.name)
def test_a_real_file_equals_its_text_decimal_by_decimal(path: Path) -> None:
    candles = read_candles(path)
    with gzip.open(path, "rt") as stream:
        rows = list(csv.DictReader(stream))
    wanted = {
        name: [Decimal(row[name]) for row in rows]
        for name in ("open", "high", "low", "close", "volume")
    }
    kept = np.ones(len(rows), dtype=np.bool_)
    if "date" in rows[0]:
        kept = np.array([row["date"].endswith(":00:00") for row in rows])
    amounts = texts(candles)
    for place, name in enumerate(wanted, start=1):
        column = [value for value, keep in zip(wanted[name], kept, strict=True) if keep]
        assert [row[place] for row in amounts] == column


def test_turnover_is_read_where_the_maker_has_it(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-1m-2025-05.csv"
    path.write_bytes(written(binance(real_rows())))
    candles = read_candles(path)
    assert candles.turnover is not None
    exact = Decimal(int(candles.turnover[0])).scaleb(-candles.turnover_decimals)
    assert exact == Decimal("16.536") * Decimal("95502.7")


@pytest.mark.parametrize(
    ("name", "symbol", "category"),
    [
        ("bybit_linear_BTCUSDT_5m_2025-06_08.csv.gz", "BTCUSDT", Category.LINEAR),
        ("bybit_spot_ETHUSDT_5m_2025H1.csv.gz", "ETHUSDT", Category.SPOT),
        ("binance_um_1000PEPEUSDT_1m_2024.csv", "1000PEPEUSDT", Category.LINEAR),
        ("BTCUSDT2024-01-01.csv.gz", "BTCUSDT", Category.LINEAR),
        ("BTC_USDT_USDT-5m-futures.feather", "BTCUSDT", Category.LINEAR),
        ("BTC_USDT-5m.feather", "BTCUSDT", Category.SPOT),
        ("ftx_BTC-PERP_1m_2022-01.csv.gz", "BTC-PERP", Category.LINEAR),
        ("btcusdt_1h.csv", "BTCUSDT", Category.LINEAR),
        ("SOLUSDC-1m.zip", "SOLUSDC", Category.LINEAR),
        ("BINANCE_BTCUSDT, 60.csv", "BTCUSDT", Category.LINEAR),
        ("BINANCE_BTC_USDT-1m.csv", "BTCUSDT", Category.SPOT),
        ("spot/futures/um/BTCUSDT-1m.csv", "BTCUSDT", Category.LINEAR),
        ("Binance_BTC_1h.csv", None, Category.LINEAR),
        ("prices_in_usd.csv", None, Category.LINEAR),
    ],
)
def test_symbol_and_category_are_read_from_the_name(
    name: str, symbol: str | None, category: Category
) -> None:
    from tracepaper.replay.archive.layouts import category_of, symbol_of

    assert symbol_of(Path(name).name) == symbol
    assert category_of(Path(name)) is category


def test_what_stands_before_a_path_goes_before_what_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "prices_spot_ETHUSDT.csv"
    path.write_bytes(plain_csv(real_rows()))
    assert read_candles(path).instrument == "spot:ETHUSDT"
    renamed = read_candles(f"sol/usdt={path}", category="linear")
    assert renamed.instrument == "linear:SOLUSDT"
    assert "what is ETHUSDT's is named SOLUSDT, as SYMBOL=PATH says" in renamed.notes
    assert read_candles(path, symbol="ethusdt").instrument == "spot:ETHUSDT"
