"""Exports of real fills: known layouts are read, and what cannot be believed is one sentence."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path

import pytest

from tracepaper.replay.archive.executions import Executions, read_executions
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Side

AT_MS = 1_748_251_680_000  # 2025-05-26T09:28:00Z
API = "symbol,side,orderId,execId,execPrice,execQty,execTime,execFee,orderType,isMaker,execType"
ROW = f"BTCUSDT,Buy,o1,e1,109905.5,0.091,{AT_MS},5.5,Market,false,Trade"


def read(tmp_path: Path, *lines: str) -> Executions:
    path = tmp_path / ("fills.json" if "".join(lines).startswith("{") else "fills.csv")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_executions(path)


PERPETUAL = (
    "Market,Filled Type,Filled Quantity,Filled Price,Order Price,Fee Rate,Trading Fee,feeCoin,"
    "ExecFeeV2,Direction,Order Type,Trasaction ID,Order No.,Transaction Time(UTC+0)"
)
SPOT = (
    "Uid,Spot Pairs,Order Type,Direction,Filled Value,Filled Price,Filled Quantity,Fees,"
    "Transaction ID,Order No.,Timestamp (UTC)"
)
ANSWER = dict(zip(API.split(","), ROW.split(","), strict=True)) | {"isMaker": False, "markIv": None}
LAYOUTS = {
    "api": (API, ROW),
    "api, its answer": (json.dumps({"retCode": 0, "result": {"list": [ANSWER]}}),),
    "lower case, any order": (
        "EXECTIME,execqty,ExecPrice,SIDE,Symbol",
        f"{AT_MS},0.091,109905.50,SELL,btcusdt",
    ),
    "semicolons and a mark": ("\ufeff" + API.replace(",", ";"), ROW.replace(",", ";")),
    "perpetual": (
        "UID: 1,Company Name: ,Country:",
        PERPETUAL,
        "BTCUSDT,Trade,0.091,109905.5,0,0.0006,5.5,USDT,5.5,Long,Market, e1, o1,09:28 2025-05-26",
    ),
    "spot": (
        SPOT,
        "1,BTCUSDT,MARKET,BUY,10001,109905.50000000,0.09100000,0.1,e1,o1,2025-05-26 09:28:00",
    ),
    "another zone": (
        "Contracts,Direction,Filled Price,Filled Qty,Transaction Time(UTC+8)",
        "BTCUSDT,Close Short,109905.5,0.091,2025-05-26 17:28:00",
    ),
    "west of it": (
        "Contracts,Direction,Filled Price,Filled Qty,Filled Time(UTC-3:30)",
        "BTCUSDT,Buy,109905.5,0.091,2025-05-26 05:58:00",
    ),
    "a record's own": (
        "instrument\tside\tquantity\tprice\tfilled_ms\tliquidity\tmodel",
        f"linear:BTCUSDT\tBUY\t0.091\t109905.5\t{AT_MS}\tTAKER\tnext_open",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_known_layout_is_read(layout: str, tmp_path: Path) -> None:
    file = read(tmp_path, *LAYOUTS[layout])
    (fill,) = file.taken
    assert (fill.symbol, fill.price, fill.quantity) == (
        "BTCUSDT",
        Decimal("109905.5"),
        Decimal("0.091"),
    )
    assert fill.time_ms == AT_MS
    assert fill.side is (Side.SELL if layout.startswith("lower") else Side.BUY)
    is_named = layout in {"perpetual", "spot"} or "mark" in layout or "api" in layout
    assert fill.order == ("o1" if is_named else "")
    assert fill.created_ms is None


def test_the_time_of_the_order_is_read_and_minutes_are_noticed(tmp_path: Path) -> None:
    file = read(tmp_path, API + ",createdTime", f"{ROW},{AT_MS - 250}")
    assert file.taken[0].created_ms == AT_MS - 250
    assert file.in_minutes
    assert not read(tmp_path, API, ROW.replace(str(AT_MS), str(AT_MS + 1))).in_minutes


def test_makers_stops_and_what_is_no_trade_are_counted_apart(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        API + ",stopOrderType",
        f"{ROW},UNKNOWN",
        ROW.replace("e1", "e2").replace("false", "true") + ",",
        ROW.replace("e1", "e3").replace("Trade", "Funding").replace("109905.5", "0") + ",",
        ROW.replace("e1", "e4").replace("Trade", "BustTrade") + ",",
        ROW.replace("e1", "e5") + ",StopLoss",
        f"{ROW},UNKNOWN",
    )
    assert file.rows == 6
    assert len(file.taken) == 1
    assert file.left_out == {
        "of makers": 1,
        "of type Funding": 1,
        "of type BustTrade": 1,
        "of stops, which paper fills along a bar": 1,
        "repeated, the same execution id": 1,
    }
    assert file.notes == []


def test_without_a_column_of_makers_limits_are_left_out(tmp_path: Path) -> None:
    head = "symbol,side,execPrice,execQty,execTime"
    rows = [f"BTCUSDT,Buy,1,1,{AT_MS},{kind}" for kind in ("Market", "Limit", "LIMIT")]
    file = read(tmp_path, f"{head},orderType", *rows)
    assert len(file.taken) == 1
    assert file.left_out == {"of limits that may have been makers": 2}
    file = read(tmp_path, head, f"BTCUSDT,Buy,1,1,{AT_MS}", f"BTCUSDT,Buy,1,1,{AT_MS}")
    assert len(file.taken) == 2  # two equal fills may be two fills
    assert file.notes == ["no column says which fills were makers, so all count as takers"]


def changed(old: str, new: str) -> str:
    return ROW.replace(old, new)


BAD = [
    ((), "is empty"),
    (("", "  ", ""), "is empty"),
    ((API,), "has a header and no rows"),
    (("a,b,c", "1,2,3"), "no column symbol (Contracts, Market), side (Direction), execPrice"),
    (("symbol,side,execQty,execTime", "A,Buy,1,1"), "no column execPrice (Filled Price);"),
    (
        (API, ROW, changed("109905.5", "abc").replace("e1", "e2")),
        "line 3: execPrice is not a number above zero but 'abc'",
    ),
    ((API, changed("109905.5", "0")), "line 2: execPrice is not a number above zero but '0'"),
    ((API, changed("109905.5", "NaN")), "line 2: execPrice is not a number above zero but 'NaN'"),
    ((API, changed("0.091", "1e999999999")), "line 2: execQty"),
    ((API, changed(str(AT_MS), "soon")), "line 2: execTime"),
    ((API, ROW, changed(str(AT_MS), "12").replace("e1", "e2")), "line 3: execTime is 12"),
    ((API, changed(str(AT_MS), "")), "line 2: execTime is empty"),
    ((API + ",createdTime", f"{ROW},{AT_MS + 1}"), "line 2: createdTime is after the fill"),
    ((API + ",createdTime", f"{ROW},"), "line 2: createdTime is empty"),
    ((API, "x" * 200_000 + ROW), "has no column symbol (Contracts, Market);"),
    ((API, changed("Buy", "Up")), "line 2: side is no side but 'Up'"),
    ((API, changed("BTCUSDT", "")), "line 2: symbol is empty"),
    ((API, changed("false", "perhaps")), "line 2: isMaker is neither true nor false"),
    ((API, "BTCUSDT,Buy"), "line 2 has 2 columns where the first has 11"),
    ((API, changed("109905.5", "109,905.5")), "line 2 has 12 columns where the first has 11"),
    ((f"{API},execPrice", f"{ROW},5"), "has two columns execprice"),
    (
        (API, ROW, "", changed("0.091", "0.092")),
        "line 4 contradicts line 2, which has the same execution id e1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), BAD, ids=lambda part: str(part)[:40])
def test_what_cannot_be_believed_is_one_sentence(
    lines: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataInvalid) as refused:
        read(tmp_path, *lines)
    sentence = str(refused.value)
    assert message in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "zip.csv").write_bytes(b"PK\x03\x04\xff\xfe\x80")
    for name in ("zip.csv", "none.csv", "."):
        with pytest.raises(DataInvalid, match=r"check the (file|path)"):
            read_executions(tmp_path / name)


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """Cells, lines and bytes of a good file are changed at random; nothing but a sentence comes."""
    rng = random.Random(5)
    good = ("\n".join([API, *(ROW.replace("e1", f"e{place}") for place in range(5))])).encode()
    path = tmp_path / "fills.csv"
    refused = []
    for _ in range(400):
        content = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(0, 4)] = bytes(
                rng.choice(b'\x00\r\n",;\t-.e9\xc3\xa4(') for _ in range(rng.randint(0, 3))
            )
        path.write_bytes(bytes(content))
        try:
            assert isinstance(read_executions(path), Executions)
        except DataInvalid as error:
            refused.append(str(error))
    assert 100 < len(refused) < 400
    assert [text for text in refused if not text.endswith(".")] == []
