"""A newcomer's first own strategy: a crossover copied from Pine, without and with a warm-up.

The facts in the sentences that the user sees are compared with the record by SQL.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from newcomer import CASH, TerminalInProcess, account_of, rows

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
ADVICE = "ema(…, 21) has no value with 1 bar of history: set warmup = 94 or more"


def test_a_copied_crossover_is_told_what_it_lacks_and_then_judged(
    say: TerminalInProcess, tmp_path: Path
) -> None:
    say("data samples")
    (tmp_path / "unnamed.py").write_text(COPIED)
    for name, bars in (("copied", 1), ("corrected", 94)):
        named = COPIED.replace("    def decide", f"    warmup = {bars}\n\n    def decide")
        (tmp_path / f"{name}.py").write_text(named)

    # As it was copied it gets a quarter of the bars, and trades.
    answer = say(f"replay --set strategy.name=unnamed:Cross {DATA} --db unnamed.db")
    assert f"history of {BARS // 4} bars, since the class names no warmup" in answer
    assert account_of(tmp_path / "unnamed.db").fills > 0

    # With too few it trades nothing, and every surface says why.
    copied = f"--set strategy.name=copied:Cross {DATA}"
    never = f"The strategy asked for no position on {BARS} of {BARS} bars. Its reason on {BARS}: "
    assert f"{never}fast below slow; {ADVICE}." in say(f"replay {copied} --db copied.db")
    assert f"{never}fast below slow; {ADVICE}." in say("report last --db copied.db")
    assert f"fast below slow; {ADVICE}" in say("explain last --db copied.db")
    checked = say("config check --set strategy.name=copied:Cross")
    assert ADVICE in checked
    ((decided, asked, fills),) = rows(
        tmp_path / "copied.db",
        "SELECT count(*), sum(action IN ('LONG', 'SHORT', 'ORDERS')), "
        "(SELECT count(*) FROM v_fills) FROM v_decisions",
    )
    assert (decided, asked, fills) == (BARS, 0, 0)

    # With the advice it trades, and the sentences agree with the record.
    answer = say(f"replay --set strategy.name=corrected:Cross {DATA} --db corrected.db")
    assert "asked for no position" not in answer
    ((decided, allowed, refused),) = rows(
        tmp_path / "corrected.db",
        "SELECT count(*), sum(allowed), sum(refused_by = 'warm') FROM v_decisions",
    )
    account = account_of(tmp_path / "corrected.db")
    assert refused == 93
    assert f"{decided} bars decided, {allowed} allowed, {account.fills} fills" in answer
    assert re.search(rf"warm {refused}\b", answer)
    assert "has no value" not in say("config check --set strategy.name=corrected:Cross")

    # Size and profit, from the fills alone.
    assert f"this run {account.equity:,.2f}" in answer
    assert f"{account.fees:,.2f}" in answer
    assert 9_900 < account.largest < 10_100  # [sizing] notional, 10,000 USDT

    # The same from Python.
    with tracepaper.backtest(
        "corrected:Cross",
        tmp_path / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz",
        end="2025-05-26T12",
    ) as run:
        sys.stdout.write(f"{run}\n")
        trades = rows(tmp_path / "corrected.db", "SELECT count(*) FROM v_trades")[0][0]
        assert f"{decided} bars, 0.2 days, {trades} closed trades" in str(run)
        assert f"return {100 * (account.equity / CASH - 1):+.2f} %" in str(run)
    verified = say("verify last --db corrected.db --json")
    assert json.loads(verified)["decisions"] == decided
