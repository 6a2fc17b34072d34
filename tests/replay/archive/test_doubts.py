"""No file of candles is read as something else without a word: it is read rightly, or rejected."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from tracepaper.replay.archive import read_candles, read_funding
from tracepaper.replay.archive.read import candles_of_frame
from tracepaper.replay.archive.series import missing_settlements
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

START = 1_704_067_200_000
MINUTE = 60_000
HOUR = 60 * MINUTE
CANDLES = [(100.0 + at, 103.0 + at, 98.0 + at, 101.0 + at, 2.5) for at in range(30)]
HEADER = "open_time,open,high,low,close,volume"


def written(
    folder: Path,
    rows: Sequence[Sequence[object]],
    *,
    header: str = HEADER,
    name: str = "BTCUSDT.csv",
    step: int = MINUTE,
) -> Path:
    """Write *rows* behind their open times, *step* apart."""
    lines = [f"{START + at * step},{','.join(map(str, row))}" for at, row in enumerate(rows)]
    path = folder / name
    path.write_text("\n".join([*([header] if header else []), *lines]) + "\n", encoding="utf-8")
    return path


def opens(path: Path) -> list[float]:
    candles = read_candles(path)
    return [value / 10**candles.price_decimals for value in candles.open.tolist()]


EXPECTED = [row[0] for row in CANDLES]
ORDERS = {
    "open, close, high, low": (0, 3, 1, 2),
    "low, high, open, close": (2, 1, 0, 3),
    "high, low, open, close": (1, 2, 0, 3),
    "open, high, close, low": (0, 1, 3, 2),
}


@pytest.mark.parametrize("order", ORDERS)
def test_rows_without_names_are_read_in_the_only_order_that_can_be(
    order: str, tmp_path: Path
) -> None:
    rows = [[*(row[at] for at in ORDERS[order]), row[4]] for row in CANDLES]
    path = written(tmp_path, rows, header="")
    assert opens(path) == EXPECTED
    assert f"rows are {order}, in that order" in read_candles(path).notes
    named = written(tmp_path, rows)
    with pytest.raises(DataInvalid, match=f"hold {order} where it names them"):
        read_candles(named)


@pytest.mark.parametrize("close", ["Price", "Last", "PRICE"])
def test_a_close_may_have_another_name(close: str, tmp_path: Path) -> None:
    path = written(tmp_path, CANDLES, header=f"Date,Open,High,Low,{close},Vol.")
    assert opens(path) == EXPECTED


def test_a_seventh_column_that_is_no_turnover_is_left_out_or_rejected(tmp_path: Path) -> None:
    counted = [[*row, 7 + at] for at, row in enumerate(CANDLES)]
    bare = read_candles(written(tmp_path, counted, header=""))
    assert bare.turnover is None
    assert "the seventh column counts trades and is no turnover, left out" in bare.notes
    with pytest.raises(DataInvalid, match=r"outside low to high in 30 of 30 rows"):
        read_candles(written(tmp_path, counted, header=f"{HEADER},turnover"))
    paid = [[*row, f"{row[4] * (row[0] + 0.5):.2f}"] for row in CANDLES]
    exchanged = [[*row[:4], row[5], row[4]] for row in paid]
    with pytest.raises(DataInvalid, match="volume and turnover are exchanged"):
        read_candles(written(tmp_path, exchanged, header=f"{HEADER},turnover"))
    assert read_candles(written(tmp_path, paid, header="")).turnover is not None


def test_the_price_of_a_rounded_volume_may_lie_outside_by_its_last_digit(tmp_path: Path) -> None:
    tiny = [[100.0, 100.1, 99.9, 100.0, "0.01", "1.4"] for _ in CANDLES]  # 0.014 was traded
    assert read_candles(written(tmp_path, tiny, header=f"{HEADER},turnover")).turnover is not None


REJECTED = (
    *("BTCUSD_PERP-1m.csv", "PI_XBTUSD_1m.csv", "BTC-USD-SWAP_1m.csv", "BTC-PERPETUAL_1m.csv"),
    *("futures/cm/BTCUSDT-1m.csv", "BTCUSD_240628-1m.csv", "BTCUSD_inverse_1m.csv"),
    *("BTCUSDT_240628-1m.csv", "ETHUSDT-27JUN25_1m.csv", "BTC-USDT-240628_1m.csv"),
    *("BTCUSD_coin_m_1m.csv", "BTC_USD_BTC-1m-futures.csv", "BTCUSDT_CURRENT_QUARTER_1m.csv"),
)
KEPT = (
    *("BTCUSDT_202406_1m.csv", "BTCUSD_201112-1m.csv", "BTCUSDT-1m-2024-05.csv"),
    *("BTC-USDT-SWAP_1m.csv", "PF_XBTUSD_1m.csv", "BTCPERP_1m.csv", "BTCUSDT_1m_20240628.csv"),
)


@pytest.mark.parametrize("name", [*REJECTED, *KEPT])
def test_inverse_and_dated_contracts_are_no_linear_perpetuals(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    path = written(tmp_path, CANDLES, name=name)
    if name in KEPT:
        assert opens(path) == EXPECTED
        return
    with pytest.raises(DataInvalid, match=r"paid in coin|delivered on a date"):
        read_candles(path)


def test_what_a_file_holds_may_show_its_contract_as_well(tmp_path: Path) -> None:
    for symbol in ("BTC/USD:BTC", "BTCUSD_PERP", "BTC-USD-SWAP", "BTCUSDT_240628"):
        rows = [[*row, symbol] for row in CANDLES]
        path = written(tmp_path, rows, header=f"{HEADER},symbol", name="candles_1m.csv")
        with pytest.raises(DataInvalid, match=r"paid in coin|delivered on a date"):
            read_candles(path)
    assert read_candles(f"BTCJUN={path}").symbol == "BTCJUN"
    share = written(tmp_path, [[*row, "CM"] for row in CANDLES], header=f"{HEADER},symbol")
    assert read_candles(share.rename(tmp_path / "CM.csv")).symbol == "CM"
    listed = [[START + at * MINUTE, *row] for at, row in enumerate(CANDLES)]
    body = {"result": {"symbol": "BTCUSD", "category": "inverse", "list": listed}}
    answer = tmp_path / "BTCUSD.json"
    answer.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(DataInvalid, match="paid in coin"):
        read_candles(answer)


@pytest.mark.parametrize("early", [1, 1_000])
def test_times_of_closes_are_rejected(early: int, tmp_path: Path) -> None:
    rows = "\n".join(
        f"{START + (at + 1) * MINUTE - early},{','.join(map(str, row))}"
        for at, row in enumerate(CANDLES)
    )
    path = tmp_path / "BTCUSDT.csv"
    path.write_text(f"{HEADER}\n{rows}\n", encoding="utf-8")
    with pytest.raises(DataInvalid, match="are those of closes: give the open time"):
        read_candles(path)


def test_a_name_gives_the_interval_of_a_market_that_seldom_trades(tmp_path: Path) -> None:
    places = [0, 2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21]
    lines = [f"{START + at * MINUTE},1,1,1,1,1" for at in places]
    for name in ("BTCUSDT_1m.csv", "BTCUSDT_1h.csv"):
        (tmp_path / name).write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    sparse = read_candles(tmp_path / "BTCUSDT_1m.csv")
    assert (sparse.interval_ms, len(sparse), sparse.missing) == (MINUTE, 12, 10)
    with pytest.raises(DataInvalid, match=r"2.0 min apart and names an interval of 60"):
        read_candles(tmp_path / "BTCUSDT_1h.csv")
    regular = written(tmp_path, CANDLES, name="ETHUSDT_1m.csv", step=HOUR)
    with pytest.raises(DataInvalid, match="rename it by the interval"):
        read_candles(regular)


def test_an_interval_that_no_name_gives_may_not_change(tmp_path: Path) -> None:
    times = np.cumsum([0, *[1, 1, 2] * 20, *[5] * 20]) * MINUTE + START
    path = tmp_path / "BTCUSDT.csv"
    path.write_text("\n".join([HEADER, *(f"{time},1,1,1,1,1" for time in times)]) + "\n")
    with pytest.raises(DataInvalid, match=r"5.0 min apart from line"):
        read_candles(path)
    assert read_candles(path.rename(tmp_path / "BTCUSDT_1m.csv")).interval_ms == MINUTE


@pytest.mark.parametrize("steps", [[1] * 60 + [5] * 20, [5] * 20 + [1] * 60, [5] * 60 + [1] * 20])
def test_a_file_whose_interval_changes_is_rejected(steps: list[int], tmp_path: Path) -> None:
    times = np.cumsum([0, *steps]) * MINUTE + START
    path = tmp_path / "BTCUSDT_1m.csv"
    path.write_text("\n".join([HEADER, *(f"{time},1,1,1,1,1" for time in times)]) + "\n")
    with pytest.raises(DataInvalid, match=r"5.0 min apart from line .*: give a file of each"):
        read_candles(path)


def test_dates_before_1973_are_no_numbers_of_another_unit(tmp_path: Path) -> None:
    days = np.arange("1962-01-02", "1962-02-02", dtype="datetime64[D]")
    ones = np.ones(days.size)
    names = ("open", "high", "low", "close", "volume")
    pq.write_table(pa.table({"date": days, **dict.fromkeys(names, ones)}), tmp_path / "KO.parquet")
    candles = read_candles(f"KO={tmp_path / 'KO.parquet'}", category="stock")
    assert candles.open_time_ms.tolist() == days.astype("datetime64[ms]").astype(int).tolist()
    assert candles.interval_ms == 24 * HOUR


def test_an_index_that_counts_rows_is_no_time(tmp_path: Path) -> None:
    rows = "\n".join(f"{at},2024-01-01,1,1,1,1,1" for at in range(3))
    path = tmp_path / "BTCUSDT.csv"
    path.write_text(f",Datum,open,high,low,close,volume\n{rows}\n", encoding="utf-8")
    with pytest.raises(DataInvalid, match=r"no column open_time .*datum"):
        read_candles(path)


def test_names_that_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT.json"
    objects = [
        {
            "T": START + (at + 1) * MINUTE - 1,
            "t": START + at * MINUTE,
            "V": 9,
            "v": row[4],
            "L": 12_345,
            "o": row[0],
            "h": row[1],
            "l": row[2],
            "c": row[3],
        }
        for at, row in enumerate(CANDLES)
    ]
    path.write_text(json.dumps(objects), encoding="utf-8")
    candles = read_candles(path)
    assert (candles.open_time_ms[0], opens(path)) == (START, EXPECTED)
    twice = written(tmp_path, [[*row, 1] for row in CANDLES], header=f"{HEADER},Volume")
    assert opens(twice) == EXPECTED
    (tmp_path / "b_BTCUSDT.csv").write_text(twice.read_text().replace(HEADER, HEADER.upper()))
    with pytest.raises(DataInvalid, match="two columns volume"):
        read_candles(tmp_path / "b_BTCUSDT.csv")


@pytest.mark.parametrize("wrapped", ["results", "bars", "Data", "result.XXBTZUSD", "bars.BTC/USD"])
def test_rows_within_objects_are_found_by_whatever_name(wrapped: str, tmp_path: Path) -> None:
    rows: object = [[START + at * MINUTE, *row] for at, row in enumerate(CANDLES)]
    for name in reversed(wrapped.split(".")):
        rows = {name: rows, "error": [], "count": 30}
    path = tmp_path / "BTCUSD.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert opens(path) == EXPECTED


@pytest.mark.parametrize("blank", ["NaN", "", "null", "-"])
def test_minutes_without_a_trade_are_holes(blank: str, tmp_path: Path) -> None:
    rows: list[Sequence[object]] = [*CANDLES]
    rows[3] = rows[7] = (*[blank] * 4, "0.0")
    candles = read_candles(written(tmp_path, rows))
    assert (len(candles), candles.missing) == (28, 2)
    assert "2 rows without a price left out, as holes" in candles.notes
    rows[3] = (*["missing"] * 4, "0.0")
    with pytest.raises(DataInvalid, match="is not a number but 'missing'"):
        read_candles(written(tmp_path, rows))


TIMES = {
    "2024-01-02 05-AM": "2024-01-02T05:00",
    "2024-01-02 12:30 PM": "2024-01-02T12:30",
    "01/13/2024 12:05:00 AM": "2024-01-13T00:05",
    "13/01/2024 17:00": "2024-01-13T17:00",
    "2.1.2024 05:00": "2024-01-02T05:00",
    "1/13/2024 8:05": "2024-01-13T08:05",
    "2024-1-2 9:30": "2024-01-02T09:30",
}


@pytest.mark.parametrize("text", TIMES)
def test_clocks_of_twelve_hours_and_days_before_months_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT_1h.csv"
    path.write_text(f"{HEADER}\n{text},1,1,1,1,1\n", encoding="utf-8")
    expected = np.datetime64(TIMES[text]).astype("datetime64[ms]").astype(int)
    assert read_candles(path).open_time_ms.tolist() == [expected]


def test_a_day_that_may_be_a_month_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT_1h.csv"
    path.write_text(f"{HEADER}\n02/01/2024 05:00,1,1,1,1,1\n", encoding="utf-8")
    with pytest.raises(DataInvalid, match="day and month cannot be told apart"):
        read_candles(path)


def test_a_spreadsheet_may_name_its_delimiter(tmp_path: Path) -> None:
    plain = written(tmp_path, CANDLES).read_text(encoding="utf-8")
    path = tmp_path / "ETHUSDT.csv"
    path.write_text("sep=;\n" + plain.replace(",", ";").replace(".", ","), encoding="utf-8")
    assert opens(path) == EXPECTED


def test_a_close_that_jumps_and_returns_is_said(tmp_path: Path) -> None:
    rows: list[Sequence[object]] = [*CANDLES]
    rows[12] = (112.0, 1_130.0, 110.0, 1_130.0, 2.5)
    (note,) = read_candles(written(tmp_path, rows)).notes
    assert "line 14: 1130 between 112 and 114" in note
    assert read_candles(written(tmp_path, CANDLES)).notes == ()


def test_a_price_that_jumps_and_stays_is_said(tmp_path: Path) -> None:
    rows: list[Sequence[object]] = [
        *CANDLES[:15],
        *([value / 4 for value in row[:4]] + [2.5] for row in CANDLES[15:]),
    ]
    (note,) = read_candles(written(tmp_path, rows)).notes
    assert "1 jump of the price" in note
    assert "line 17: 28.75 after 115; a split needs its action" in note
    apart = written(tmp_path, rows, step=8 * 24 * HOUR, name="ETHUSDT.csv")
    assert read_candles(apart).notes == ()


def test_single_precision_counts_as_its_shortest_text_wherever_it_comes_from(
    tmp_path: Path,
) -> None:
    polars = pytest.importorskip("polars")
    columns = {
        "open_time": [START + at * MINUTE for at in range(3)],
        **{
            name: np.array([0.1, 0.2, 0.15], dtype=np.float32)
            for name in ("open", "high", "low", "close", "volume")
        },
    }
    unread = {"expiry": [None, datetime(2025, 6, 27, tzinfo=UTC), None]}
    polars.DataFrame(columns | unread).write_parquet(tmp_path / "BTCUSDT.parquet")
    for candles in (
        read_candles(tmp_path / "BTCUSDT.parquet"),
        candles_of_frame(columns, symbol="BTCUSDT"),
    ):
        assert (candles.price_decimals, candles.open.tolist()) == (2, [10, 20, 15])


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


DIGITS = {"%Y%m%d%H": HOUR, "%Y%m%d%H%M": MINUTE, "%Y%m%d%H%M%S": MINUTE}


@pytest.mark.parametrize("form", DIGITS)
def test_digits_of_a_date_and_a_clock_are_no_number_since_1970(form: str, tmp_path: Path) -> None:
    step = DIGITS[form]
    times = [
        datetime.fromtimestamp((START + at * step) // 1000, UTC).strftime(form) for at in range(30)
    ]
    rows = [f"{time},{','.join(map(str, row))}" for time, row in zip(times, CANDLES, strict=True)]
    path = tmp_path / "BTCUSDT.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    candles = read_candles(path)
    assert (candles.open_time_ms[0], candles.interval_ms) == (START, step)


def test_a_volume_among_the_columns_of_prices_is_no_price(tmp_path: Path) -> None:
    rows = [[row[4] + at % 7, row[3], row[1], row[2], row[0]] for at, row in enumerate(CANDLES)]
    with pytest.raises(DataInvalid):  # time, volume, close, high, low, open
        read_candles(written(tmp_path, rows, header=""))


@pytest.mark.parametrize(("flag", "values"), [("confirm", "01"), ("x", ("False", "true"))])
def test_a_candle_that_is_not_closed_yet_is_left_out(
    flag: str, values: Sequence[str], tmp_path: Path
) -> None:
    rows = [[*row, values[at < 29]] for at, row in enumerate(CANDLES)]
    path = written(tmp_path, rows, header=f"t,o,h,l,c,v,{flag}")
    assert opens(path) == EXPECTED[:-1]
    assert "1 candle not closed left out" in read_candles(path).notes


def test_a_volume_of_contracts_is_not_one_of_coins(tmp_path: Path) -> None:
    swap = [[*row[:4], 250, row[4], row[4] * (row[0] + 0.5)] for row in CANDLES]
    path = written(tmp_path, swap, header="open_time,open,high,low,close,vol,volCcy,volCcyQuote")
    candles = read_candles(path)
    assert (candles.volume[0], candles.volume_decimals, len(candles)) == (25, 1, 30)
    spot = [[*row[:4], row[4], *[row[4] * (row[0] + 0.5)] * 2] for row in CANDLES]
    path = written(tmp_path, spot, header="open_time,open,high,low,close,vol,vol_ccy,vol_quote")
    assert read_candles(path).volume[0] == 25
    contracts = [[*row[:4], 250, row[4] * (row[0] + 0.5)] for row in CANDLES]
    with pytest.raises(DataInvalid, match="counts something else"):
        read_candles(written(tmp_path, contracts, header="t,o,h,l,c,v,sum"))


def test_times_of_a_zone_that_the_file_names_are_not_read_as_utc(tmp_path: Path) -> None:
    named = ("open", "high", "low", "close", "volume")
    values = [
        {"datetime": f"2024-01-01 09:{at:02}:00", **dict(zip(named, row, strict=True))}
        for at, row in enumerate(CANDLES)
    ]
    for zone, is_read in (("America/New_York", False), ("UTC", True)):
        path = tmp_path / f"BTCUSDT-{is_read}.json"
        path.write_text(json.dumps({"meta": {"exchange_timezone": zone}, "values": values}))
        lines = [f"{','.join(map(str, row.values()))},{zone}" for row in values]
        sheet = path.with_suffix(".csv")
        sheet.write_text("\n".join([f"{HEADER},timezone", *lines]) + "\n", encoding="utf-8")
        comment = tmp_path / f"b-BTCUSDT-{is_read}.csv"
        bare = [line.rpartition(",")[0] for line in lines]
        comment.write_text("\n".join([f"# Timezone: {zone}", HEADER, *bare]), encoding="utf-8")
        for each in (path, sheet, comment):
            if is_read:
                assert opens(each) == EXPECTED
                continue
            with pytest.raises(DataInvalid, match=r"America/New_York.*export it in UTC"):
                read_candles(each)


def test_thousands_of_a_sheet_are_read_where_a_point_shows_what_commas_are(tmp_path: Path) -> None:
    rows = [[*(f'"{value + 1000:,.1f}"' for value in row[:4]), "1.5K"] for row in CANDLES]
    candles = read_candles(written(tmp_path, rows))
    assert (candles.open[0], candles.price_decimals, candles.volume[0]) == (1100, 0, 1500)
    unclear = [[*(f'"{int(value) + 1000:,}"' for value in row[:4]), 5] for row in CANDLES]
    with pytest.raises(DataInvalid, match="is not a number"):
        read_candles(written(tmp_path, unclear))
    sheet = written(
        tmp_path,
        [
            [*(f"{int(value) + 1000:,}".replace(",", "_") for value in row[:4]), 5]
            for row in CANDLES
        ],
    )
    sheet.write_text(sheet.read_text().replace(",", ";").replace("_", ","), encoding="utf-8")
    with pytest.raises(DataInvalid, match="1,100, whose comma may be a decimal one"):
        read_candles(sheet)


def test_a_user_names_a_column_or_leaves_one_out(tmp_path: Path) -> None:
    two = [(*row, row[3] - 1, 7) for row in CANDLES]  # an adjusted close, and a count of trades
    path = written(tmp_path, two, header="time,Open,High,Low,CLOSE,Vol,Adj Close,Turnover")
    with pytest.raises(DataInvalid, match="--columns turnover="):
        read_candles(path)
    candles = read_candles(path, columns=("close=adj close", "turnover="))
    assert candles.close.tolist() == [int(row[3] - 1) for row in CANDLES]
    assert candles.turnover is None
    assert candles.notes[:1] == ("close is adj_close and turnover is left out, by --columns",)
    frame = {
        name: [row[at] for row in CANDLES]
        for at, name in enumerate(("open", "high", "low", "Price", "last", "volume"))
        if at < 4
    } | {
        "time": [START + at * MINUTE for at in range(len(CANDLES))],
        "last": [row[0] for row in CANDLES],
        "volume": [row[4] for row in CANDLES],
    }
    candles = candles_of_frame(frame, symbol="BTCUSDT", columns=("close=last",))
    assert candles.close.tolist() == candles.open.tolist()
    twice = written(tmp_path, [(*row, row[0]) for row in CANDLES], header="t,o,h,l,CLOSE,v,Close")
    with pytest.raises(DataInvalid, match="--columns close=CLOSE"):
        read_candles(twice)
    chosen = read_candles(twice, columns=("close=Close",))
    assert chosen.close.tolist() == chosen.open.tolist()


@pytest.mark.parametrize(
    ("header", "columns", "reason"),
    [
        (HEADER, ("last=volume",), "no field last"),
        (HEADER, ("close",), "close=COLUMN"),
        (HEADER, ("close=open", "close=high"), "close twice"),
        (HEADER, ("close=",), "close cannot be left out"),
        (HEADER, ("close=Price",), "no column Price.*open_time, open"),
        ("", ("close=open",), "no names"),
    ],
)
def test_a_choice_of_columns_that_means_nothing_is_rejected(
    header: str, columns: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigInvalid, DataInvalid), match=reason):
        read_candles(written(tmp_path, CANDLES, header=header), columns=columns)
