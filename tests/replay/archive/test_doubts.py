"""No file of candles is read as something else without a word: it is read rightly, or rejected."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from remedies import followed

from tracepaper.replay.archive import Candles, read_candles, read_funding
from tracepaper.replay.archive.read import NamedFrame
from tracepaper.replay.archive.series import missing_settlements
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.months import MONTH_MS

START = 1_704_067_200_000
MINUTE = 60_000
HOUR = 60 * MINUTE
CANDLES = [(100.0 + at, 103.0 + at, 98.0 + at, 101.0 + at, 2.5) for at in range(30)]
HEADER = "open_time,open,high,low,close,volume"
Cells = Sequence[Sequence[object]]


def text(rows: Cells = CANDLES, header: str = HEADER, *, step: int = MINUTE, off: int = 0) -> str:
    """Return *rows* behind their open times, *step* apart, as the text of a file."""
    lines = [",".join(map(str, [START + at * step + off, *row])) for at, row in enumerate(rows)]
    return "\n".join([*([header] if header else []), *lines]) + "\n"


def dated(times: Sequence[object], header: str = HEADER) -> str:
    """Return candles of these *times*."""
    rows = zip(times, CANDLES * 9, strict=False)
    return "\n".join([header, *(f"{at},{','.join(map(str, row))}" for at, row in rows)]) + "\n"


def local(hours: Sequence[str]) -> str:
    return dated([f"2024-11-03 {hour}:00:00" for hour in hours])


def wider(*more: Any, header: str) -> str:
    """Return candles with *more* cells each: values, or functions of the number of the row."""
    cells = [
        [*row, *(cell(at) if callable(cell) else cell for cell in more)]
        for at, row in enumerate(CANDLES)
    ]
    return text(cells, f"{HEADER},{header}" if header else "")


def paid(at: int) -> str:
    return f"{2.5 * (100.5 + at):.2f}"


@dataclass(frozen=True)
class Case:
    """A file of *content*: *error* is a pattern of its refusal; else it is read as ``CANDLES``."""

    content: str
    error: str = ""
    name: str = "BTCUSDT.csv"
    columns: tuple[str, ...] = ()
    note: str = ""
    holds: dict[str, object] = field(default_factory=dict)
    """What else the candles have: attributes, or the first value of a column."""
    lead: dict[str, str] | None = None
    """The columns that the printed lines ask for, with which they lead to the candles."""


def steps(*lengths: int) -> list[int]:
    return (np.cumsum([0, *lengths]) * MINUTE + START).tolist()


CASES = {
    # ---- the order of columns against prices
    "names against prices": Case(
        text([[row[0], row[3], row[1], row[2], row[4]] for row in CANDLES]),
        "high is below low.*--columns close=NAME",
        lead={"order": "open_time open close high low volume"},
    ),
    "KuCoin without names": Case(
        text([[row[0], row[3], row[1], row[2], row[4]] for row in CANDLES], ""),
        r"set_axis\(\['NAME', 'NAME', 'NAME', 'NAME', 'NAME', 'NAME'\]",
        lead={"order": "open_time open close high low volume"},
    ),
    "a volume among the prices": Case(
        text([[row[0], row[1], row[4], row[3], row[2]] for row in CANDLES]), "low is far below",
        lead={"order": "open_time open high volume close low"},
    ),
    "trades of Binance": Case(
        "\n".join(f"{at},10,0.5,5,{START},True,True" for at in range(9)), "time is 0.*set_axis"
    ),
    "trades of Binance whose numbers may be times": Case(
        "\n".join(f"{3 * 10**9 + at},10,0.5,5,{START},True,True" for at in range(9)),
        "volume is not a number but 'True'.*set_axis",
    ),
    "trades with names": Case("id,price,quantity,time\n1,10,2,1704067200000", "trades and no"),
    "Kraken's count": Case(
        wider(lambda at: 7 + at, header=""), "counts something else.*set_axis",
        lead={"order": "open_time open high low close volume trades"},
    ),
    "trades of Bybit": Case(
        "timestamp,symbol,side,size,price,homeNotional\n"
        + "".join(f"{START / 1000 + at},BTCUSDT,Buy,2.5,100,2.5\n" for at in (1.5, 61.5, 122)),
        "trades and no",
        lead={},
    ),
    "a header of numbers, as pandas writes it": Case(
        text(header="0,1,2,3,4,5").replace("\n", "\n7,")[:-2].replace("0,1,", ",0,1,", 1)
    ),
    "an order behind a header of numbers": Case(
        text([[row[0], row[3], row[1], row[2], row[4]] for row in CANDLES], "0,1,2,3,4,5"),
        "high is below low.*set_axis",
        lead={"order": "open_time open close high low volume"},
    ),
    "rows of more columns than names": Case(
        text(header="open,high,low,close,volume"),
        "rows of 6 columns below 5 names",
        lead={"order": "open_time open high low close volume"},
    ),
    # ---- units of volume and turnover
    "no volume of Interactive Brokers": Case(
        text([[*row[:4], -1] for row in CANDLES]),
        "line 2: volume is negative.*--columns volume=,",
        holds={"volume": 0},
        lead={},
    ),
    "prices of Databento": Case(
        text(
            [[1, *(int(price * 10**9) for price in row[:4]), 25] for row in CANDLES],
            "ts_event,publisher_id,open,high,low,close,volume",
        ),
        "whole numbers of a billionth",
        lead={},
    ),
    "a turnover": Case(wider(paid, header="turnover"), holds={"turnover": 25_125}),
    "a count named turnover": Case(
        wider(lambda at: 7 + at, header="turnover"), "30 of 30 rows.*--columns turnover=",
        lead={"volume": "volume"},
    ),
    "turnover and volume exchanged": Case(
        text([[*row[:4], paid(at), 2.5] for at, row in enumerate(CANDLES)], f"{HEADER},turnover"),
        "30 of 30 rows.*--columns volume=NAME --columns turnover=,",
        lead={"volume": "turnover"},
    ),
    "contracts beside coins": Case(
        text(
            [[*row[:4], 250, row[4], paid(at)] for at, row in enumerate(CANDLES)],
            "open_time,open,high,low,close,vol,volCcy,volCcyQuote",
        ),
        "counts something else.*--columns volume=NAME",
        lead={"volume": "volCcy"},
    ),
    "coins chosen": Case(
        text(
            [[*row[:4], 250, row[4], paid(at)] for at, row in enumerate(CANDLES)],
            "open_time,open,high,low,close,vol,volCcy,volCcyQuote",
        ),
        columns=("volume=volCcy",),
    ),
    "spot of OKX": Case(
        text(
            [[*row[:5], paid(at), paid(at)] for at, row in enumerate(CANDLES)],
            "open_time,open,high,low,close,vol,vol_ccy,vol_quote",
        ),
        holds={"turnover": 25_125},
    ),
    "contracts": Case(
        text(
            [[*row[:4], 250, paid(at)] for at, row in enumerate(CANDLES)], "t,o,h,l,c,v,sum"
        ),
        "counts something else",
    ),
    "a volume rounded to its last digit": Case(
        text([[100.0, 100.1, 99.9, 100.0, "0.01", "1.4"]] * 30, f"{HEADER},turnover"),
        holds={"volume": 1},
    ),
    "ticks beside a volume of nothing": Case(
        text([[*row[:4], at, 0] for at, row in enumerate(CANDLES)], "t,o,h,l,c,tickvol,vol"),
        holds={"volume": 0},
    ),
    "no volume in any row": Case(
        text([[*row[:4], ""] for row in CANDLES]), "has no volume, which --columns volume= takes"
    ),
    "no turnover in any row": Case(wider("", header="turnover"), holds={"turnover_decimals": 0}),
    "no volume": Case(text([row[:4] for row in CANDLES], HEADER[:-7]), "--columns volume="),
    "no volume, as chosen": Case(
        text([row[:4] for row in CANDLES], HEADER[:-7]), columns=("volume=",), holds={"volume": 0}
    ),
    "no volume and no names": Case(
        text([row[:4] for row in CANDLES], ""), "5 columns without names.*set_axis"
    ),
    # ---- kinds of contracts
    **{
        f"contract {name}": Case(text(), "paid in coin|delivered on a date", name=name)
        for name in (
            *("BTCUSD_PERP-1m.csv", "PI_XBTUSD_1m.csv", "BTC-USD-SWAP_1m.csv"),
            *("BTCUSD=BTC-PERPETUAL_1m.csv", "futures/cm/BTCUSDT-1m.csv", "BTCUSD_240628-1m.csv"),
            *("BTCUSD_inverse_1m.csv", "BTCUSDT_240628-1m.csv", "ETHUSDT-27JUN25_1m.csv"),
            *("BTC-USDT-240628_1m.csv", "BTCUSD_coin_m_1m.csv", "BTC_USD_BTC-1m-futures.csv"),
            "BTCUSDT_CURRENT_QUARTER_1m.csv",
        )
    },
    **{
        f"perpetual {name}": Case(text(), name=name)
        for name in (
            *("BTCUSDT_202406_1m.csv", "BTCUSD_201112-1m.csv", "BTCUSDT-1m-2024-05.csv"),
            *("BTC-USDT-SWAP_1m.csv", "PF_XBTUSD_1m.csv", "BTCPERP_1m.csv"),
            "BTCUSDT_1m_20240628.csv",
        )
    },
    **{
        f"contract {symbol} within": Case(
            wider(symbol, header="symbol"), "paid in coin|delivered on a date", name="c_1m.csv"
        )
        for symbol in ("BTC/USD:BTC", "BTCUSD_PERP", "BTC-USD-SWAP", "BTCUSDT_240628")
    },
    "a dated contract that the user names": Case(
        text(), name="BTCJUN=BTCUSDT_240628-1m.csv", holds={"symbol": "BTCJUN"}
    ),
    "the share CM": Case(wider("CM", header="symbol"), name="CM.csv", holds={"symbol": "CM"}),
    "an inverse category": Case(
        json.dumps(
            {"category": "inverse", "list": [[START + at, *row] for at, row in enumerate(CANDLES)]}
        ),
        "paid in coin",
        name="BTCUSD.json",
    ),
    # ---- times
    "closes, a millisecond before": Case(text(off=MINUTE - 1), "are those of closes", lead={}),
    "closes, a second before": Case(text(off=MINUTE - 1_000), "are those of closes", lead={}),
    "an index that counts": Case(
        ",Datum,open,high,low,close,volume\n" + "0,2024-01-01,1,1,1,1,1\n" * 3,
        "the open time is 0.*Datum.*--columns open_time=NAME",
    ),
    "two columns that differ in case": Case(
        text([[*row, 1] for row in CANDLES], f"{HEADER.upper()},Volume"), "two columns volume",
        lead={"again": "Volume"},
    ),
    "an hour that comes twice": Case(
        local(["00", "01", "01", "02", "03"]), "comes twice, as on local clocks",
        lead={},
    ),
    "a zone beside the rows": Case(
        "# Timezone: Europe/Berlin\n" + dated([f"2024-01-01 01:{at:02}" for at in range(10, 19)]),
        "a zone, Europe/Berlin.*tz_localize..Europe/Berlin",
        holds={"open_time_ms": START + 10 * MINUTE},
        lead={},
    ),
    "a zone in a column": Case(
        "\n".join(
            f"2024-01-01 01:{at:02},100,103,98,101,2.5,Europe/Berlin" for at in range(9)
        ).join([f"{HEADER},timezone\n", "\n"]),
        "a zone, Europe/Berlin.*tz_localize..Europe/Berlin",
        holds={"open_time_ms": START},
        lead={},
    ),
    "local time": Case(
        dated(["2025-02-01 00:00", "2025-02-01 00:01"], HEADER.replace("open_time", "Local time")),
        "local time",
        lead={},
    ),
    "local dates beside seconds": Case(
        text(
            [[*row, f"2024-01-01 02:{at:02}:00"] for at, row in enumerate(CANDLES)],
            "unix,open,high,low,close,volume,date",
        ),
    ),
    "digits of a date and a clock": Case(
        dated([f"2024010100{at:02}" for at in range(30)]), "digits alone.*format='%Y%m%d%H%M'",
        lead={},
    ),
    "a day or a month": Case(
        dated([f"02/01/2024 05:{at:02}" for at in range(9)]), "dayfirst=DAYFIRST",
        lead={},
    ),
    **{
        f"a day and a month: {date}": Case(
            dated([f"{date} 05:{at:02}" for at in range(9)]),
            f"dayfirst={is_day}",
            holds={"open_time_ms": START + 293 * HOUR},
            lead={},
        )
        for date, is_day in (("13/01/2024", True), ("01/13/2024", False), ("13.01.2024", True))
    },
    "days of a spreadsheet": Case(
        dated(range(45_292, 45_300)),
        "unit='D', origin='1899-12-30'",
        holds={"open_time_ms": START},
        lead={},
    ),
    "a date and a clock joined by a plus": Case(dated(["2025-01-01+01:00"] * 2), "open_time=NAME"),
    "a month in words": Case(dated(["01-Jan-2024"] * 2), "to_datetime"),
    "a clock alone": Case(dated(["05:00:00", "05:01:00"]), "rename.*'NAME': 'open_time'"),
    "a date and a clock of MetaTrader 4, and ticks": Case(
        "\n".join(f"2024.01.01,00:{at:02},100,103,98,101,25" for at in range(9)),
        "has no volume.*ticks_or_coins",
        lead={"volume": "ticks_or_coins"},
    ),
    "a zone behind the clock": Case(
        dated([f"20231231 19:00:{at:02} US/Eastern" for at in range(9)]),
        "tz_localize",
        holds={"open_time_ms": START},
        lead={},
    ),
    "rows above a header": Case(text(CANDLES[:2], "") + text(), "line 3: the open time"),
    # ---- the interval
    "a name that the steps contradict": Case(text(step=HOUR), "rename it", name="BTCUSDT_1m.csv"),
    "a market that seldom trades": Case(
        dated(steps(*[2] * 4, 1, *[2] * 8)),
        name="BTCUSDT_1m.csv",
        holds={"interval_ms": MINUTE, "missing": 12},
    ),
    "an interval that changes": Case(
        dated(steps(*[1] * 60, *[5] * 20)), "5.0 min apart from line", name="BTCUSDT_1m.csv"
    ),
    "an interval that changes first": Case(
        dated(steps(*[5] * 20, *[1] * 60)), "5.0 min apart from line", name="BTCUSDT_1m.csv"
    ),
    "an interval that no name gives": Case(
        dated(steps(*[1, 1, 2] * 20, *[5] * 20)), "5.0 min apart from line"
    ),
    "a month that opens on its second day": Case(
        dated(["2024-01-01", "2024-02-01", "2024-03-02", "2024-04-01"]), "off the file's grid"
    ),
    "months, of unequal lengths": Case(
        dated(["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]),
        holds={"interval_ms": MONTH_MS},
    ),
    "one candle": Case(text(CANDLES[:1]), "holds one candle"),
    "one candle of a named interval": Case(
        text(CANDLES[:1]), name="BTCUSDT_5m.csv", holds={"interval_ms": 5 * MINUTE}
    ),
    # ---- rows
    "minutes without a trade": Case(
        text([*CANDLES[:3], ["NaN"] * 4 + ["0.0"], *CANDLES[4:]]),
        note="1 row without a price",
        holds={"missing": 1},
    ),
    "no numbers": Case(text([*CANDLES[:3], ["gone"] * 4 + [0], *CANDLES[4:]]), "line 5.*'gone'"),
    "a candle that is not closed": Case(
        wider(lambda at: int(at < 29), header="confirm"), note="1 candle not closed left out"
    ),
    "a split": Case(
        text([*CANDLES[:15], *([v / 4 for v in row[:4]] + [2.5] for row in CANDLES[15:])]),
        note="line 17: 28.75 after 115; a split needs adjusted candles",
        holds={"price_decimals": 2, "open": 10_000},
    ),
    # ---- numbers
    "prices of a random walk": Case(
        text([[*(price + 1 / 3 for price in row[:4]), row[4]] for row in CANDLES]),
        note="open, high, low, close: more digits than an exchange sends, rounded to 7 decimals",
        holds={"open": 1_003_333_333},
    ),
    "commas that may be decimal": Case(
        text([["1,100"] * 4 + [5]] * 9).replace(",", ";").replace("1;100", "1,100"),
        "not a number but '1,100'",
    ),
    "commas that nothing tells": Case(text([['"1,100"'] * 4 + [5]] * 9), "'1,100'"),
    "points and commas mixed": Case(
        text([["1,234.5"] * 4 + [5]] * 9).replace(",", ";").replace("1;234", "1,234"), "'1,234.5'"
    ),
    "points between thousands": Case(
        text([["1.234,5"] * 4 + [5]] * 9).replace(",", ";").replace("1.234;5", "1.234,5"),
        "'1.234,5'",
    ),
    # ---- choices
    "a chosen close": Case(
        wider(lambda at: 101 + at, header="Adj Close").replace("close,", "x,"),
        columns=("close=Adj Close",),
    ),
    "a choice that is no field": Case(text(), "last=volume; write", columns=("last=volume",)),
    "a choice without a name": Case(text(), "close; write FIELD=NAME", columns=("close",)),
    "a choice twice": Case(text(), "close=high; write", columns=("close=open", "close=high")),
    "a close left out": Case(text(), "close=; write FIELD=NAME", columns=("close=",)),
    "a choice that is not there": Case(text(), "Price.*found open_time", columns=("close=Price",)),
    # ---- symbols
    "two symbols": Case(
        text([[*row, ["BTC/USDT", "ETH/USDT"][at % 2]] for at, row in enumerate(CANDLES)],
             f"{HEADER},symbol"),
        "holds BTCUSDT, ETHUSDT: choose one",
        name="two.csv",
    ),
    "two columns of symbols": Case(
        wider("BTCUSDT", lambda at: ["BTCUSDT", "ETHUSDT"][at % 2], header="ticker,ticker"),
        "two columns ticker",
        lead={"again": "ticker.1"},
    ),
    "a name against its content": Case(
        wider("ETHUSDT", header="symbol"), "holds BTCUSDT, ETHUSDT: choose one"
    ),
    "no symbol": Case(text(), "write SYMBOL=", name="prices.csv"),
}  # fmt: skip


def written(case: Case, folder: Path) -> Path:
    path = folder / case.name.rpartition("=")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(case.content, encoding="utf-8")
    return path


def read(case: Case, folder: Path) -> Candles:
    symbol, equals, _ = case.name.rpartition("=")
    return read_candles(f"{symbol}{equals}{written(case, folder)}", columns=case.columns)


def check(candles: Candles, case: Case) -> None:
    holds = {"open": 10**candles.price_decimals * 100, "volume": 25} | case.holds
    for attribute, value in holds.items():
        held = getattr(candles, attribute)
        assert (held if isinstance(held, (int, str)) else int(held[0])) == value


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_rightly_or_rejected(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.error:
        with pytest.raises(TracepaperError, match=case.error) as caught:
            read(case, tmp_path)
        assert str(caught.value).endswith(".")
        return
    candles = read(case, tmp_path)
    check(candles, case)
    assert case.note in " ".join(candles.notes)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.lead is not None])
def test_the_printed_lines_lead_to_the_candles(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    lead = {**(case.lead or {})}
    order = lead.pop("order", "").split()
    check(followed(written(case, tmp_path), lead, order), case)


@pytest.mark.parametrize(
    "name",
    [
        *("a count named turnover", "turnover and volume exchanged", "contracts beside coins"),
        *("no volume of Interactive Brokers", "two symbols"),
    ],
)
def test_the_printed_options_lead_to_the_candles(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(TracepaperError) as caught:
        read(case, tmp_path)
    printed = re.findall(r"--columns (\w+)=(NAME)?", str(caught.value))
    columns = [f"{of}={(case.lead or {})[of] if asked else ''}" for of, asked in printed]
    chosen = re.search(r"SYMBOL=\S+(?=,)", str(caught.value))
    path = chosen[0].replace("SYMBOL", "BTCUSDT") if chosen else tmp_path / case.name
    check(read_candles(path, columns=columns), case)


def test_numbers_of_a_random_walk_in_a_frame_are_rounded_with_a_note() -> None:
    cells = zip(*([value + 1 / 3 for value in row] for row in CANDLES), strict=True)
    columns = dict(zip(HEADER.split(",")[1:], map(list, cells), strict=True))
    times = [START + at * MINUTE for at in range(len(CANDLES))]
    candles = read_candles(NamedFrame("BTCUSDT", {"open_time": times, **columns}))
    assert (candles.open[0], candles.volume[0]) == (1_003_333_333, 283_333_333_333)
    assert [note.endswith("decimals") for note in candles.notes] == [True, True]


def test_numbers_of_times_in_a_local_column_take_no_memory(tmp_path: Path) -> None:
    """A number of seconds was once a number of bytes to reserve."""
    columns = {name: [row[at] for row in CANDLES] for at, name in enumerate(HEADER.split(",")[1:])}
    times = [START // 1_000 + 60 * at for at in range(30)]
    parquet.write_table(pa.table({"Local time": times, **columns}), tmp_path / "BTCUSDT.parquet")
    assert int(read_candles(tmp_path / "BTCUSDT.parquet").open_time_ms[0]) == START
    local = {"Local time": np.array(times, dtype="datetime64[s]"), **columns}
    with pytest.raises(TracepaperError, match="local time"):
        read_candles(NamedFrame("BTCUSDT", local))


def test_dates_before_1973_are_no_numbers_of_another_unit(tmp_path: Path) -> None:
    days = np.arange("1962-01-02", "1962-02-02", dtype="datetime64[D]")
    names = ("open", "high", "low", "close", "volume")
    table = pa.table({"date": days, **dict.fromkeys(names, np.ones(days.size))})
    parquet.write_table(table, tmp_path / "KO.parquet")
    candles = read_candles(f"KO={tmp_path / 'KO.parquet'}", category="stock")
    assert candles.open_time_ms.tolist() == days.astype("datetime64[ms]").astype(int).tolist()


def test_a_file_says_how_far_apart_its_settlements_are(tmp_path: Path) -> None:
    hours = [0, 8, 16, 20, 24, 32, 40]
    lines = [
        f"{START + hour * HOUR},{hour - before},0.0001"
        for before, hour in zip([-8, *hours], hours, strict=False)
    ]
    path = tmp_path / "BTCUSDT-fundingRate.csv"
    head = "calc_time,funding_interval_hours,last_funding_rate"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    rates = read_funding(path)
    assert missing_settlements(rates, START, START + 41 * HOUR) == []
    (path.parent / "b-BTCUSDT.csv").write_text("\n".join([head, *lines[:3], *lines[4:]]) + "\n")
    (due,) = missing_settlements(read_funding(tmp_path / "b-BTCUSDT.csv"), START, START + 41 * HOUR)
    assert due[0] == START + 20 * HOUR
