"""A class that answers by one array decides as one that is asked bar by bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import bars, instrument
from command_line import Cli
from forging import verified
from records import rows

from tracepaper.daemon.session.user_class import user_strategy
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed
from tracepaper.strategies.types.decisions import Action

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
HISTORY = BarContext.of(bars(20), instrument()).history
FADING = """
import numpy as np
from tracepaper import Action, Percent, Signal, Strategy
from tracepaper.strategies.indicators import rsi

ANSWERS = {
    -1: Signal(Action.SHORT, "it has risen", stop=Percent(0.2)),
    0: Signal(Action.HOLD, "between the two"),
    7: Signal(Action.LONG, "it has fallen", stop=Percent(0.2), target=Percent(0.4)),
}

def codes_of(strength):
    return np.where(strength < 30, 7, np.where(strength > 65, -1, 0))

class Vectorised(Strategy):
    warmup = 60
    answers = ANSWERS

    def signals(self, history):
        return codes_of(rsi(history.close, 14, window=60))

class Asked(Strategy):
    warmup = 60

    def decide(self, context):
        return ANSWERS[int(codes_of(rsi(context.history.close, 14, window=60)[-1]))]
"""


def test_an_array_of_signals_trades_as_the_same_answers_bar_by_bar(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fading.py").write_text(FADING)
    monkeypatch.chdir(tmp_path)
    names = "Vectorised", "Asked"
    for name in names:
        command = ["replay", "--strategy", f"fading:{name}", "--data", SAMPLE, "--db", f"{name}.db"]
        assert cli(*command, "--to", "2025-05-27").code == 0
        assert verified(Path(f"{name}.db")).exact
    decided = "SELECT open_time_ms, action, reason, refused_by FROM v_decisions ORDER BY sequence"
    filled = "SELECT filled_ms, side, price_text, quantity_text, reason FROM v_fills ORDER BY 1"
    for query in (decided, filled):
        first, second = (rows(f"{name}.db", query) for name in names)
        assert first == second
        assert len(first) > 10


def test_signals_that_look_ahead_are_found(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import numpy as np\nimport tracepaper as tp\n\nclass Peeks(tp.Strategy):\n"
        "    warmup = 9\n    def signals(self, history):\n"
        "        return np.append(history.close[1:], 0) > history.close\n"
    )
    (tmp_path / "peeks.py").write_text(text)
    command = ["lookahead", "--strategy", "peeks:Peeks", "--data", SAMPLE, "--bars", "300"]
    monkeypatch.chdir(tmp_path)
    answer = cli(*command)
    assert answer.code == 1
    assert "column signals is" in answer.out
    replayed = cli("replay", *command[1:-2], "--db", "peeks.db")
    assert replayed.code == 1
    assert "it looks ahead" in replayed.err


@pytest.mark.parametrize(
    ("signals", "words"),
    [
        (lambda _self, history: history.close[1:] > 0, r"the shape \(19,\) for 20 bars at .*py:\d"),
        (lambda _self, history: np.sign(history.close), "returned float64 and no whole numbers"),
        (lambda _self, history: np.full(len(history), 2), "returned 2, which is no key"),
        (lambda _self, _history: None, "returned None for 20 bars"),
        (lambda _self, history: 1 / 0, "failed in signals with ZeroDivisionError"),
    ],
)
def test_what_are_no_signals_is_told_with_its_line(signals: Callable[..., Any], words: str) -> None:
    guard = user_strategy(type("Mine", (Strategy,), {"signals": signals}), {})
    assert guard.columns is not None
    with pytest.raises(StrategyFailed, match=words):
        guard.columns(HISTORY)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"decide": lambda _self, _context: None}, "signals beside decide or columns"),
        ({"columns": lambda _self, _history: {}}, "signals beside decide or columns"),
        ({"answers": [Signal(Action.FLAT, "")]}, "give a dictionary from whole numbers"),
        ({"answers": {300: Signal(Action.FLAT, "")}}, "of -128 to 127 to Signals"),
    ],
)
def test_a_class_with_signals_has_nothing_beside_them(
    attributes: dict[str, Any], words: str
) -> None:
    made = type("Mine", (Strategy,), {"signals": lambda _self, _history: [], **attributes})
    with pytest.raises(ConfigInvalid, match=words):
        user_strategy(made, {})
