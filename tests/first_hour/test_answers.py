"""What the pages of recipes promise, against the record: sizes, parts, pauses, trailing stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest
from newcomer import CASH, TerminalInProcess, rows
from programs import ROOT
from readme import blocks

DATA = "--data samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
TAKER = Decimal("0.00055")


@pytest.fixture
def recipe(say: TerminalInProcess, tmp_path: Path) -> TerminalInProcess:
    """Return a terminal in a folder with the samples and the programs of the pages of recipes."""
    say("data samples")
    for page in ("averaging", "cooldown", "sizes", "trailing"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        (program,) = (block for block in blocks(text) if block.language == "python")
        name = program.lines[0].removeprefix("# ")
        (tmp_path / name).write_text(program.text)
    return say


SIZES: Final[Mapping[str, Callable[[Decimal], Decimal]]] = {
    "sizing.mode=fixed --set sizing.quantity=0.015": lambda _close: Decimal("0.015"),
    "sizing.notional=500": lambda close: 500 / close,
    "sizing.mode=equity": lambda close: CASH / 10 / close,
    "sizing.mode=equity --set sizing.fraction=1": lambda close: CASH / close / (1 + TAKER),
    "sizing.mode=risk --set sizing.risk=0.01": lambda close: CASH / 100 / (close / 50),
}


def test_a_size_is_what_its_setting_says(recipe: TerminalInProcess, tmp_path: Path) -> None:
    for number, (setting, wanted) in enumerate(SIZES.items()):
        database = tmp_path / f"{number}.db"
        to = "--to 2025-05-26T07:40"
        recipe(f"replay --set strategy.name=sizes:Hold --set {setting} {DATA} {to} --db {database}")
        (text,) = rows(database, "SELECT quantity_text FROM v_fills WHERE side = 'BUY'")[0]
        ((close,),) = rows(database, "SELECT close_text FROM v_bars ORDER BY sequence LIMIT 1")
        exact = wanted(Decimal(close))
        assert exact - Decimal("0.001") < Decimal(text) <= exact  # rounded down to a step


def test_parts_are_bought_and_sold_one_by_one(recipe: TerminalInProcess, tmp_path: Path) -> None:
    recipe(f"replay --set strategy.name=parts:Parts {DATA} --to 2025-05-28 --db parts.db")
    reasons = "CAST(substr(v_fills.reason, 1, 1) AS INTEGER)"
    query = f"SELECT {reasons}, side, quantity * price, price FROM v_fills ORDER BY sequence"
    parts, last = 0, None
    for after, side, notional, price in rows(tmp_path / "parts.db", query):
        assert after - parts == (1 if side == "BUY" else -1)
        assert notional == pytest.approx(2_500, abs=130)  # a step of 0.001 BTC is 110 USDT
        if last is not None:
            assert abs(price / last - 1) > 0.004  # moved by 0.5 % from close to close
        parts, last = after, price
    assert last is not None


def test_a_trade_ends_after_its_bars_and_the_next_one_waits(
    recipe: TerminalInProcess, tmp_path: Path
) -> None:
    recipe(f"replay --set strategy.name=brief:Brief {DATA} --to 2025-05-26T14 --db brief.db")
    trades = rows(
        tmp_path / "brief.db",
        "SELECT bars_held, (opened_ms - lag(closed_ms) OVER (ORDER BY sequence)) / 60000 "
        "FROM v_trades ORDER BY sequence",
    )
    assert len(trades) > 2
    assert {held for held, _ in trades} == {20}
    assert all(minutes >= 60 for _, minutes in trades[1:])


def test_a_trailing_stop_fills_at_its_distance_from_the_best_price(
    recipe: TerminalInProcess, tmp_path: Path
) -> None:
    database = tmp_path / "trail.db"
    recipe(f"replay --set strategy.name=trail:Trail {DATA} --to 2025-05-27 --db {database}")
    trades = rows(
        database,
        "SELECT entry_price, exit_price, exit_reason, (SELECT max(high) FROM v_bars WHERE "
        "v_bars.open_time_ms BETWEEN opened_ms - 60000 AND closed_ms) FROM v_trades",
    )
    assert trades
    for entry, left, reason, best in trades:
        assert reason == "trailing stop 0.5 %"
        followed = left + 0.005 * entry  # the distance is a share of the entry price
        assert entry - 0.1 <= followed <= max(entry, best) + 0.1
