"""The same candles in any style are read to the same integers, and never to others."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather, parquet
from remedies import followed

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.names import NAMES, TIME, category_of, symbol_of
from tracepaper.replay.archive.read import NamedFrame
from tracepaper.replay.backtest.run_spec import inputs_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import Category

SAMPLES = Path(__file__).parents[2] / "data" / "candles"
FIELDS = ("open", "high", "low", "close", "volume")
PRICES = FIELDS[:4]
Row = list[str]


def real_rows() -> list[Row]:
    """Time in ms, open, high, low, close, volume of forty real minutes, as text."""
    with gzip.open(SAMPLES / "binance_um_BTCUSDT_1m_2025-05.csv.gz", "rt") as stream:
        return list(csv.reader(stream))[1:41]


def exact(candles: Candles) -> list[list[Decimal | int]]:
    """Return every row as open time and exact decimals."""
    places = dict.fromkeys(FIELDS, candles.price_decimals) | {"volume": candles.volume_decimals}
    columns = [
        [Decimal(value).scaleb(-places[name]) for value in getattr(candles, name).tolist()]
        for name in FIELDS
    ]
    return [list(row) for row in zip(candles.open_time_ms.tolist(), *columns, strict=True)]


WANTED = [[int(row[0]), *map(Decimal, row[1:])] for row in real_rows()]


def clock(form: str) -> Callable[[int], str]:
    return lambda ms: datetime.fromtimestamp(ms / 1000, tz=UTC).strftime(form)


CLOCKS: dict[str, Callable[[int], str]] = {
    "ms": str,
    "s": lambda ms: str(ms // 1000),
    "s with a fraction": lambda ms: f"{ms / 1000:.3f}",
    "us": lambda ms: str(ms * 1000),
    "ns": lambda ms: str(ms * 10**6),
    "India": lambda ms: clock("%Y-%m-%dT%H:%M:%S+0530")(ms + 19_800_000),
    "half day": clock("%Y-%m-%d %I:%M %p"),
    "Dukascopy": clock("%d.%m.%Y %H:%M:%S.000 GMT+0000"),
    **{
        form: clock(form)
        for form in (
            *("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y.%m.%d %H:%M", "%d.%m.%Y %H:%M:%S"),
            *("%Y%m%d%H%M", "%Y%m%d %H:%M:%S", "%Y-%m-%d %H:%M:%S+00:00", "%Y/%m/%d %H:%M UTC"),
        )
    },
}
NUMBERS: dict[str, Callable[[str], str]] = {
    "point": str,
    "exponent": lambda cell: f"{Decimal(cell):E}",
    "comma": lambda cell: f"{Decimal(cell):f}".replace(".", ","),
    "thousands": lambda cell: f"{Decimal(cell):,.3f}",
}
TEXTS = ("csv", "csv.gz", "zip")
JSON = ("lists", "objects", "wrapped", "split", "lines", "columns", "rows", "whole columns")
PACKINGS = (*TEXTS, *JSON, "parquet", "feather")


def packed(kind: str, names: Row, rows: Sequence[Row], separator: str, bare: bool) -> bytes:
    """Return the content of a file of *kind*."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerows(rows if bare else [names, *rows])
    plain = text.getvalue().encode()
    if kind == "csv.gz":
        return gzip.compress(plain)
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("candles.csv", plain)
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    table = {name: list(cells) for name, *cells in zip(names, *rows, strict=True)}
    if kind == "parquet":
        parquet.write_table(pa.table(table), buffer)
    if kind == "feather":
        feather.write_feather(pa.table(table), buffer)
    documents: dict[str, Any] = {
        "lists": rows,
        "objects": objects,
        "wrapped": {"code": 0, "result": {"category": "linear", "list": objects}},
        "split": {"columns": names, "data": rows},
        "columns": {name: dict(enumerate(cells)) for name, cells in table.items()},
        "rows": dict(enumerate(objects)),
        "whole columns": table,
    }
    if kind == "lines":
        return "\n".join(map(json.dumps, objects)).encode()
    return json.dumps(documents[kind]).encode() if kind in documents else buffer.getvalue() or plain


@pytest.mark.parametrize("seed", range(120))
def test_candles_in_any_style_are_read_to_the_same_integers(seed: int, tmp_path: Path) -> None:
    """Or refused, with lines of pandas that convert them to these integers."""
    draw = random.Random(seed)
    kind, moment = draw.choice(PACKINGS), CLOCKS[draw.choice([*CLOCKS])]
    separator = draw.choice([",", ";", "\t", "|"]) if kind in TEXTS else ","
    styles = ["point", "exponent", "thousands"] if separator == "," else [*NUMBERS][:3]
    number = NUMBERS[draw.choice(styles)]
    rows = [[moment(int(row[0])), *map(number, row[1:])] for row in real_rows()]
    names = [draw.choice(NAMES[field][:5]) for field in (TIME, *FIELDS)]
    names = [draw.choice([name, name.upper(), name.title()]) for name in names]
    bare = kind == "lists" or (kind in TEXTS and draw.random() < 0.4)
    if not bare:
        order = draw.sample(range(6), 6)
        names, *rows = [[row[at] for at in order] for row in (names, *rows)]
    if draw.random() < 0.3:
        rows = rows[::-1]
    suffix = {"csv": "csv", "csv.gz": "csv.gz", "zip": "zip", "parquet": "parquet"}
    path = tmp_path / f"BTCUSDT_1m.{suffix.get(kind, 'feather' if kind == 'feather' else 'json')}"
    path.write_bytes(packed(kind, names, rows, separator, bare))
    candles = followed(path)
    assert (candles.instrument, candles.interval_ms) == ("linear:BTCUSDT", 60_000)
    assert (candles.price_decimals, candles.volume_decimals) == (1, 3)
    assert exact(candles) == WANTED


def test_numbers_of_json_keep_their_digits(tmp_path: Path) -> None:
    """As pandas reads JSON, 6.91422772 is the next double below it."""
    path = tmp_path / "BTCUSDT_1m.json"
    path.write_text(
        json.dumps([[int(row[0]), *[435.47072] * 4, 6.91422772] for row in real_rows()])
    )
    assert exact(followed(path))[0][1:] == [*[Decimal("435.47072")] * 4, Decimal("6.91422772")]


def test_the_printed_lines_name_an_index_without_a_name_as_pandas_does(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT_1m.csv"
    lines = [",open,high,low,close,volume"]
    lines += [",".join([clock("%d.%m.%Y %H:%M")(int(ms)), *cells]) for ms, *cells in real_rows()]
    path.write_text("\n".join(lines))
    assert exact(followed(path)) == WANTED


def test_a_date_and_a_clock_in_two_columns_are_joined_by_the_printed_lines(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT_M1.csv"
    lines = ["<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<VOL>"]
    for ms, *cells in real_rows():
        lines.append("\t".join([*clock("%Y.%m.%d %H:%M:%S")(int(ms)).split(), *cells]))
    path.write_text("\n".join(lines))
    assert exact(followed(path)) == WANTED


def frames() -> dict[str, Any]:
    """Return the candles as libraries and exchanges give them."""
    rows = [[int(row[0]), *map(float, row[1:])] for row in real_rows()]
    names = ["time", *FIELDS]
    plain = pd.DataFrame(rows, columns=names)
    indexed = plain.set_index(pd.to_datetime(plain.pop("time"), unit="ms", utc=True))
    two = dict.fromkeys(("BTC-USD",), indexed)
    after = indexed.tail(1).shift(freq="min") * np.nan
    return {
        "freqtrade": indexed.reset_index(names="date"),
        "Decimal": indexed.map(lambda number: Decimal(str(number))),
        "texts": indexed.astype(str),
        "objects, newest first": indexed.astype(object)[::-1],
        "capital letters": indexed.rename(columns=str.upper),
        "microseconds": indexed.set_index(indexed.index.as_unit("us")),
        "periods": indexed.tz_localize(None).to_period("min"),
        "numbers of rows": indexed.reset_index(names="time").reset_index(names="Unnamed: 0"),
        "the last row twice": pd.concat([indexed, indexed.tail(1)]),
        "a last row of nothing": pd.concat([indexed, after]),
        "an average that begins late": indexed.assign(ema=indexed["close"].rolling(9).mean()),
        "ccxt": rows,
        "pybit, newest first": [[*map(str, row), str(row[4] * row[5])] for row in rows[::-1]],
        "python-binance": pd.DataFrame([[*row, row[0], row[4] * row[5], *"1234"] for row in rows]),
        "records": pd.DataFrame(rows, columns=names).to_dict("records"),
        "records of numpy": pd.DataFrame(rows, columns=names).to_records(index=False),
        "yfinance": pd.concat(two, axis=1).swaplevel(axis=1),
        "yfinance, by ticker": pd.concat(two, axis=1),
        "yfinance, without its index": pd.concat(two, axis=1).swaplevel(axis=1).reset_index(),
        "units": pd.DataFrame(
            rows, columns=["Date", *(f"{n.title()} (USDT)" for n in FIELDS[:4]), "Volume"]
        ),
        "polars": pl.DataFrame(rows, schema=names, orient="row"),
        "pyarrow": pl.DataFrame(rows, schema=names, orient="row").to_arrow(),
    }


@pytest.mark.parametrize("name", frames())
def test_data_in_memory_are_the_same_candles(name: str) -> None:
    """Public reports: backtesting.py#632, #44, #268 and #35, zipline#2048, freqtrade#2948."""
    frame = frames()[name]
    for given in ({"BTCUSDT": frame}, {"BTCUSDT": [frame]}, [{"BTCUSDT": frame}]):
        (one,) = inputs_of(given, "data")
        assert exact(read_candles(one)) == exact(read_candles(given)) == WANTED
    if "yfinance" in name:
        assert read_candles(frame).symbol == read_candles([frame]).symbol == "BTCUSD"
    else:
        assert read_candles(frame, unnamed="ANY").symbol == "ANY"
        with pytest.raises(ConfigInvalid, match="does not name its symbol"):
            read_candles([frame])


def test_months_as_files_are_those_of_a_symbol(tmp_path: Path) -> None:
    paths = [tmp_path / f"{month}.csv" for month in ("may", "june")]
    for path in paths:
        path.write_text("\n".join(map(",".join, real_rows())))
    wanted = tuple(f"BTCUSDT={path}" for path in paths)
    for given in (paths, [*map(str, paths)]):
        assert inputs_of({"BTCUSDT": given}, "data") == wanted
    with pytest.raises(ConfigInvalid, match="holds 2 files or frames; give one"):
        read_candles({"BTCUSDT": paths})


def unread() -> dict[str, Any]:
    """Return frames that are not read as they are."""
    rows = [[clock("%d.%m.%Y %H:%M")(int(ms)), *map(float, cells)] for ms, *cells in real_rows()]
    texts = pd.DataFrame(rows, columns=["time", *FIELDS])
    plain = frames()["polars"].to_pandas()
    negative = pl.DataFrame(plain.assign(turnover=-1))
    return {
        "texts": texts,
        "texts in an index": texts.set_index("time"),
        "texts in an index of another name": texts.set_index("time").rename_axis("Zeit"),
        "texts without names": texts.set_axis(range(6), axis=1),
        "a dictionary": texts.to_dict("list"),
        "records": texts.to_dict("records"),
        "polars": negative,
        "another order": plain.sample(frac=1, random_state=1),
        "an index in another order": frames()["yfinance"].sample(frac=1, random_state=1),
    }


@pytest.mark.parametrize("name", unread())
def test_the_printed_lines_make_a_frame_that_is_read(name: str) -> None:
    given = unread()[name]
    with pytest.raises(DataInvalid):
        read_candles(NamedFrame("BTCUSDT", given))
    assert exact(followed(given, {TIME: "Zeit"})) == WANTED


def test_rows_of_a_symbol_and_a_time_are_read() -> None:
    frame = frames()["yfinance, by ticker"]["BTC-USD"].assign(symbol="BTC/USD")
    for names in (["symbol", None], [None, "symbol"]):
        levels = {name: frame["symbol"] if name else frame.index for name in names}
        index = pd.MultiIndex.from_arrays([*levels.values()], names=[n or "time" for n in names])
        rows = frame[[*FIELDS]].set_axis(index)
        assert exact(read_candles(NamedFrame(None, rows))) == WANTED


def test_two_symbols_side_by_side_are_chosen_from_as_the_refusal_says() -> None:
    frame = pd.concat({symbol: frames()["yfinance"]["close"] for symbol in "AB"}, axis=1)
    frame.columns = pd.MultiIndex.from_tuples([("Close", symbol) for symbol, _ in frame.columns])
    with pytest.raises(DataInvalid, match="several symbols: give one symbol's") as refused:
        read_candles(NamedFrame("BTCUSDT", frame))
    chosen = re.search(r"such as (frame\.xs.*)\.$", str(refused.value))
    assert chosen is not None
    assert [*eval(chosen[1], {"frame": frame}).columns] == ["Close"]


@pytest.mark.parametrize("seed", range(60))
def test_columns_in_another_order_than_their_names_are_never_read(
    seed: int, tmp_path: Path
) -> None:
    """Of a file with a header, without one, and of a frame; exchanged open and close look right."""
    draw = random.Random(seed)
    order = draw.sample(range(1, 6), 5)
    rows = [[row[0], *(row[at] for at in order)] for row in real_rows()]
    path = tmp_path / "BTCUSDT_1m.csv"
    names = ["time", *FIELDS]
    for header in ([], [names]):
        path.write_text("\n".join(map(",".join, [*header, *rows])))
        frame = {name: list(cells) for name, *cells in zip(names, *rows, strict=True)}
        for given in (path, NamedFrame("BTCUSDT", frame)):
            try:
                candles = read_candles(given)
            except DataInvalid:
                continue
            assert order == [4, 2, 3, 1, 5] or exact(candles) == WANTED


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*_1[mhd]_*.csv.gz")), ids=lambda p: p.name)
def test_a_real_file_equals_its_text_decimal_by_decimal(path: Path) -> None:
    candles = read_candles(path)
    with gzip.open(path, "rt") as stream:
        rows = list(csv.DictReader(stream))
    kept = [row for row in rows if "date" not in row or row["date"].endswith(":00:00")]
    wanted = [[Decimal(row[name]) for name in FIELDS] for row in kept]
    assert [row[1:] for row in exact(candles)] == wanted


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
        ("my_btc_1m.csv", None, Category.LINEAR),
        ("bithumb_BTC_KRW_1m.csv", None, Category.LINEAR),
        ("bitcoincharts_bitstampUSD.csv", None, Category.LINEAR),
        ("the_eth_usdt_5m.csv", "ETHUSDT", Category.LINEAR),
        ("eth_btc_1h.csv", "ETHBTC", Category.LINEAR),
    ],
)
def test_symbol_and_category_are_read_from_the_name(
    name: str, symbol: str | None, category: Category
) -> None:
    assert symbol_of(Path(name).name) == symbol
    assert category_of(Path(name)) is category


def test_a_turnover_is_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-1m-2025-05.csv"
    rows = [[*row, "0", str(Decimal(row[5]) * Decimal(row[4])), *"1234"] for row in real_rows()]
    path.write_text("\n".join(map(",".join, rows)))
    candles = read_candles(path)
    assert candles.turnover is not None
    turnover = Decimal(int(candles.turnover[0])).scaleb(-candles.turnover_decimals)
    assert turnover == Decimal("16.536") * Decimal("95502.7")
