"""A newcomer's first own strategy: a crossover copied from Pine, which lacks its warm-up.

Every sentence that the user sees is printed (``pytest -s``). The facts in these sentences are
compared with the record by SQL of this file.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

import tracepaper

COPIED = '''\
import tracepaper as tp
from tracepaper.strategies.indicators import ema


class Cross(tp.Strategy):
    """longCondition = ta.ema(close, 9) > ta.ema(close, 21)"""

    def decide(self, context):
        fast = ema(context.history.close, 9)[-1]
        slow = ema(context.history.close, 21)[-1]
        if fast > slow:
            return tp.Signal(tp.Action.LONG, "fast above slow")
        return tp.Signal(tp.Action.FLAT, "fast below slow")
'''
DATA = "--data samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz --to 2025-05-26T12"
BARS = 268
"""Minutes from 07:32 to noon."""
ADVICE = "ema(…, 21) has no value with 1 bar of history: set warmup = 21 or more"
Say = Callable[[str], str]


@pytest.fixture
def say(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Return a function that types a command, prints and returns its answer as one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")

    def typed(words: str) -> str:
        answer = cli(*shlex.split(words))
        sys.stdout.write(f"$ tracepaper {words}\n{answer.err}{answer.out}")
        return " ".join((answer.err + answer.out).split())

    return typed


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as record:
        return record.execute(query).fetchall()


def test_a_copied_crossover_is_told_what_it_lacks_and_then_judged(say: Say, tmp_path: Path) -> None:
    say("data samples")
    (tmp_path / "copied.py").write_text(COPIED)
    corrected = COPIED.replace("    def decide", "    warmup = 21\n\n    def decide")
    (tmp_path / "corrected.py").write_text(corrected)

    # It trades nothing, and every surface says why.
    copied = f"--set strategy.name=copied:Cross {DATA}"
    never = f"The strategy asked for no position on {BARS} of {BARS} bars. Its reason on {BARS}: "
    assert f"{never}fast below slow; {ADVICE}." in say(f"replay {copied} --db copied.db")
    assert f"{never}fast below slow; {ADVICE}." in say("report last --db copied.db")
    assert f"fast below slow; {ADVICE}" in say("explain last --db copied.db")
    checked = say("config check --set strategy.name=copied:Cross")
    assert ADVICE in checked
    ((decided, asked, fills),) = rows(
        "copied.db",
        "SELECT count(*), sum(action IN ('LONG', 'SHORT', 'ORDERS')), "
        "(SELECT count(*) FROM v_fills) FROM v_decisions",
    )
    assert (decided, asked, fills) == (BARS, 0, 0)

    # With the advice it trades, and the sentences agree with the record.
    answer = say(f"replay --set strategy.name=corrected:Cross {DATA} --db corrected.db")
    assert "asked for no position" not in answer
    ((decided, allowed, refused),) = rows(
        "corrected.db",
        "SELECT count(*), sum(allowed), sum(refused_by = 'warm') FROM v_decisions",
    )
    ((fills,),) = rows("corrected.db", "SELECT count(*) FROM v_fills")
    assert refused == 20
    assert f"{decided} bars decided, {allowed} allowed, {fills} fills" in answer
    assert re.search(rf"warm {refused}\b", answer)
    assert "has no value" not in say("config check --set strategy.name=corrected:Cross")

    # Size and profit, from the fills alone.
    cash, held, fees = Decimal(100_000), Decimal(0), Decimal(0)
    for side, quantity, price, fee in rows(
        "corrected.db", "SELECT side, quantity_text, price_text, fee_text FROM v_fills ORDER BY 1=0"
    ):
        sign = 1 if side == "BUY" else -1
        held += sign * Decimal(quantity)
        cash -= sign * Decimal(quantity) * Decimal(price) + Decimal(fee)
        fees += Decimal(fee)
    ((close,),) = rows(
        "corrected.db", "SELECT close_text FROM v_bars ORDER BY sequence DESC LIMIT 1"
    )
    equity = cash + held * Decimal(close)
    assert f"this run {equity:,.2f}" in answer
    assert f"{fees:,.2f}" in answer
    ((largest,),) = rows("corrected.db", "SELECT max(quantity * price) FROM v_fills")
    assert 9_900 < largest < 10_100  # [sizing] notional, 10,000 USDT

    # The same from Python.
    with tracepaper.backtest(
        "corrected:Cross",
        tmp_path / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz",
        end="2025-05-26T12",
    ) as run:
        sys.stdout.write(f"{run}\n")
        trades = rows("corrected.db", "SELECT count(*) FROM v_trades")[0][0]
        assert f"{decided} bars, 0.2 days, {trades} closed trades" in str(run)
        assert f"return {100 * (equity / 100_000 - 1):+.2f} %" in str(run)
    verified = say("verify last --db corrected.db --json")
    assert json.loads(verified)["decisions"] == decided
