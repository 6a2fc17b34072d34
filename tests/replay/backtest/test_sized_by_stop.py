"""``[sizing] mode = "risk"``: what an entry loses at its stop is the configured share of equity."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from walks import straight

from tracepaper import Action, ConfigInvalid, Percent, Signal, Strategy, Volatility
from tracepaper.replay.api import backtest
from tracepaper.replay.run import Run

START_MS = 1_748_246_400_000
FREE = {"taker_fee": "0", "maker_fee": "0"}
SIZED: dict[str, Any] = {
    "sizing": {"mode": "risk", "risk": "0.02"},
    "account": {"cash": "10000"},
    "execution": FREE,
}
ENTRY = 3


class Enters(Strategy):
    """Enters once at the fourth bar, protected as its options say."""

    warmup = 1
    side: ClassVar[Action] = Action.LONG

    def __init__(self, **protection: float) -> None:
        self._protection: dict[str, Any] = dict(protection)
        if "percent" in protection:
            self._protection = {"stop": Percent(protection["percent"])}
        if "volatility" in protection:
            self._protection = {"stop": Volatility(protection["volatility"])}

    def decide(self, context: Any) -> Signal:
        if context.time < START_MS + 60_000 * (ENTRY + 1):
            return Signal(Action.HOLD, "waits")
        return Signal(self.side, "enters", **self._protection)


class Sells(Enters):
    """The same, short."""

    side = Action.SHORT


FALLING = straight(START_MS, [100, 100, 100, 100, 100, 97, 94, 91, 88])
RISING = straight(START_MS, [100, 100, 100, 100, 100, 103, 106, 109, 112])


def run_of(of: type[Strategy], data: Any, **params: float) -> Run[Any]:
    return backtest(of, {"AAAUSDT": data}, params=params, config=SIZED)


@pytest.mark.parametrize(
    ("of", "data", "params", "quantity"),
    [
        (Enters, FALLING, {"stop": 95.0}, 40.0),
        (Enters, FALLING, {"percent": 4}, 50.0),
        (Enters, FALLING, {"trailing": 8.0}, 25.0),
        (Enters, FALLING, {"stop": 90.0, "trailing": 4.0}, 50.0),
        (Sells, RISING, {"stop": 104.0}, 50.0),
    ],
)
def test_an_entry_loses_the_share_of_equity_at_its_stop(
    of: type[Strategy], data: Any, params: dict[str, float], quantity: float
) -> None:
    with run_of(of, data, **params) as run:
        (trade,) = run.trades.to_dicts()
        assert trade["quantity"] == quantity
        assert "stop" in trade["exit_reason"]
        assert trade["profit"] == pytest.approx(-200.0)  # 2 % of 10,000
        assert run.verify().passes


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "needs a stop to size by, and this signal gives none"),
        ({"stop": 101.0}, "is not below the close"),
        ({"volatility": 2.0}, "no volatility yet"),
    ],
)
def test_an_entry_without_a_distance_is_not_sent_and_says_why(
    params: dict[str, float], reason: str
) -> None:
    with run_of(Enters, FALLING, **params) as run:
        assert run.fills.height == run.orders.height == 0
        last = run.decisions.to_dicts()[ENTRY + 1]
        assert last["action"] == "LONG"
        assert reason in last["unfilled_reason"]
        assert reason in run.explain().text.replace("\n", " ")


def test_a_strategy_that_never_gives_a_stop_is_refused_at_the_start() -> None:
    with pytest.raises(
        ConfigInvalid, match="sizes by the stop of each signal, and a built-in strategy sets"
    ):
        backtest("sma_cross", {"AAAUSDT": FALLING}, params={"fast": 1, "slow": 2}, config=SIZED)
