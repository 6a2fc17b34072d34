"""Splits and dividends of shares from a file: applied, stored with the run, and believed later."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli
from records import rows as queried
from stock_files import HOUR_MS, moment, opens, write

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.engine.state import decode_state
from tracepaper.replay.api import backtest
from tracepaper.replay.backtest.build import build, configuration
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.report.book_risk import read_book_risk
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import Orders, Signal, buy
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.corporate_actions import adjusted_bar
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar, CorporateAction, CorporateActionKind

DAY = 24 * HOUR_MS
SHARES = """
[market]
asset = "stock"
[strategy]
name = "sma_cross"
fast = 3
slow = 7
[execution]
taker_fee = "0"
slippage_bp = "0"
[sizing]
mode = "fixed"
quantity = "{}"
"""
EX_DATE = "2014-12-03T09:30"
SPLIT = "ACME,2014-12-03,split,7"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shares.toml").write_text(SHARES.format(10))


def actions(*lines: str) -> str:
    Path("actions.csv").write_text("\n".join(["symbol,date,kind,value", *lines]) + "\n")
    return "actions.csv"


def candles(interval_ms: int = HOUR_MS, *, before: float = 7.0, name: str = "acme.csv") -> int:
    """Write candles whose prices before the 3rd of December are *before* times the later ones."""
    times = opens("2014-11-03", "2014-12-31", interval_ms)
    at = times.index(moment(EX_DATE))
    write(
        Path(name),
        times,
        prices=lambda row: 1.0 if row >= at else before,
        volumes=lambda row: before if row >= at else 1.0,
    )
    return times[at]


def replayed(*words: str, database: str = "run.db", config: str = "shares.toml") -> int:
    given = ["replay", "ACME=acme.csv", "-c", config, "--db", database, "--json"]
    return invoke([*given, *words])


def warnings_of(database: str = "run.db") -> list[str]:
    ((text,),) = queried(database, "SELECT warnings FROM v_runs")
    return list(json.loads(text))


class Holds(Strategy):
    """Buys at the first bar and sells after thirty, over the split of the 22nd."""

    def __init__(self) -> None:
        self._bars = 0

    def observe(self, bar: Bar) -> None:
        self._bars += bar.volume > 0

    def adjust(self, action: object) -> None:
        pass

    first = 1

    def decide(self, _now: object) -> Any:
        if self._bars == self.first:
            return Signal(Action.LONG, "for some weeks")
        return Signal(Action.HOLD if self._bars < 30 else Action.FLAT, "")


class Waits(Holds):
    """Asks for its share at the close before the split, so that its order is filled after it."""

    first = 21


class Stops(Holds):
    """Holds with a stop and a target at prices, and never lets go by itself."""

    shadows = ("held",)

    def decide(self, _now: object) -> Any:
        if self._bars == 10:
            return Signal(Action.LONG, "once", stop=400.0, target=900.0)
        return Signal(Action.HOLD, "")


class Lists(Holds):
    """Leaves a limit order far below."""

    def decide(self, _now: object) -> Any:
        if self._bars == 10:
            return Orders((buy(5, 500.0),), "far below")
        return Signal(Action.HOLD, "")


def held(strategy: type, before: float, quantity: int, *lines: str, interval_ms: int = DAY) -> Any:
    candles(interval_ms, before=before)
    config = {
        "market": {"asset": "stock"},
        "execution": {"taker_fee": "0", "slippage_bp": "0"},
        "sizing": {"mode": "fixed", "quantity": str(quantity)},
    }
    given = [actions(*lines)] if lines else []
    return backtest(strategy, "ACME=acme.csv", config=config, actions=given, db=None)


def curve(run: Any) -> list[float]:
    """Return the equity after every bar: a split's own step rounds its mark alone."""
    query = (
        "SELECT q.equity FROM v_equity q JOIN v_decisions d USING (run_id, sequence) "
        "ORDER BY q.sequence"
    )
    return [row[0] for row in queried(str(run.database), query)]


@pytest.mark.parametrize("strategy", [Holds, Waits], ids=["held", "ordered before"])
def test_equity_over_a_split_is_that_of_adjusted_candles(strategy: type) -> None:
    with held(strategy, 7.0, 10, SPLIT) as run, held(strategy, 1.0, 70) as adjusted:
        assert len(curve(run)) > 40
        assert curve(run) == pytest.approx(curve(adjusted), abs=70 * 0.05)
        summary, other = run.summary, adjusted.summary
        for key in ("return", "max_drawdown", "buy_and_hold_return", "volatility_day"):
            assert summary[key] == pytest.approx(other[key], abs=1e-4)
        assert len(run.trades) == len(adjusted.trades) == 1
        assert run.trades["quantity"][0] == 70
        assert run.report()["sentences"] is not None
        assert "random_timings" in run.report().document
        assert run.verify().passes


def test_a_dividend_and_a_split_of_one_day_are_booked_in_that_order() -> None:
    with held(Holds, 7.0, 10, SPLIT, "ACME,2014-12-03,dividend,0.47") as run:
        query = "SELECT kind, amount_text FROM v_ledger WHERE order_id IS NULL AND kind <> 'opened'"
        assert queried(str(run.database), query) == [("dividend", "4.70000000")]
        query = "SELECT content FROM v_events WHERE kind = 'corporate_action' ORDER BY sequence"
        kinds = [json.loads(text)["kind"] for (text,) in queried(str(run.database), query)]
        assert kinds == ["dividend", "split"]


def test_exit_orders_stand_at_the_adjusted_prices_and_the_shadow_account_holds_as_many() -> None:
    with held(Stops, 7.0, 10, SPLIT) as run:
        database = str(run.database)
        query = (
            "SELECT role, status, quantity, trigger_price, limit_price FROM v_orders "
            "WHERE role <> 'SIGNAL' AND status <> 'CANCELED' ORDER BY role"
        )
        assert queried(database, query) == [
            ("STOP", "ACCEPTED", 70.0, 57.14, None),
            ("TARGET", "ACCEPTED", 70.0, None, 128.57),
        ]
        with Reader.open(Path(database)) as reader:
            stored = reader.state_at(reader.find("last"))
        assert stored is not None
        plan = decode_state(stored[0]).account.books["stock:ACME"].protection.plan
        assert plan is not None
        levels = plan.stop, plan.target
        assert [level and level.value for level in levels] == [5_714, 12_857]
        query = (
            "SELECT quantity, equity FROM v_shadow_equity WHERE shadow = 'held' ORDER BY sequence"
        )
        shadow = [row for row in queried(database, query) if row[0]]
        ratios = [after[0] / before[0] for before, after in pairwise(shadow)]
        assert len([ratio for ratio in ratios if 6 <= ratio <= 8]) == 1
        moved = [after[1] / before[1] - 1 for before, after in pairwise(shadow)]
        assert max(map(abs, moved)) < 0.003  # of a position of some 6 % of the equity
        assert run.verify().passes
        assert invoke(["audit", "verify", "last", "--db", database]) == 0


def test_orders_by_list_are_canceled_by_a_split() -> None:
    with held(Lists, 7.0, 10, SPLIT) as run:
        query = "SELECT status, reason FROM v_orders"
        assert queried(str(run.database), query) == [("CANCELED", "split")]


def test_a_fraction_of_a_share_is_paid_out() -> None:
    with held(Holds, 0.1, 25, "ACME,2014-12-03,split,1:10") as run:
        query = "SELECT kind, amount FROM v_ledger WHERE kind = 'cash_in_lieu'"
        ((_, paid),) = queried(str(run.database), query)
        query = "SELECT content FROM v_events WHERE kind = 'corporate_action'"
        ((text,),) = queried(str(run.database), query)
        close = json.loads(text)["close"] / 100
        assert paid == pytest.approx(0.5 * close * 10)
        query = "SELECT dividends, net FROM v_trades"
        ((dividends, net),) = queried(str(run.database), query)
        assert dividends == pytest.approx(paid)
        profit = curve(run)[-1] - 100_000
        assert net == pytest.approx(profit)
        assert run.trades["profit"][0] == pytest.approx(profit)
        assert run.verify().passes


BAD: Sequence[tuple[Sequence[str], str]] = (
    (("WXYZ,2014-12-03,split,7",), "line 2: names WXYZ, and the run trades ACME"),
    (("ACME,2014-13-03,split,7",), "line 2: 2014-13-03,split,7 is no action"),
    (("ACME,2014-12-03,merger,7",), "line 2: 2014-12-03,merger,7 is no action"),
    ((SPLIT, "ACME,2014-12-04,split,x"), "line 3: 2014-12-04,split,x is no action"),
    (("ACME,2014-12-03,split,7:0",), "line 2: 2014-12-03,split,7:0 is no action"),
    (("ACME,2014-12-03,split,0",), "line 2: 2014-12-03,split,0 is no action"),
    (("ACME,2014-12-03,split,3:3",), "line 2: 2014-12-03,split,3:3 is no action"),
    (("ACME,2014-12-03,dividend,-1",), "line 2: 2014-12-03,dividend,-1 is no action"),
    (
        ("ACME,2014-12-03,dividend,0.00000000001",),
        "line 2: 2014-12-03,dividend,0.00000000001 is no action",
    ),
    (("ACME,2014-12-03,dividend,5000",), "before the dividend of 5000 on 2014-12-03, which is no"),
    ((SPLIT, SPLIT), "line 3: ACME has a split on 2014-12-03 already (actions.csv: line 2)"),
    (("ACME,2014-12-03,split",), "line 2 has 3 columns where the first has 4"),
    (
        ("ACME,2014-12-05,split,7",),
        "line 2: ACME: the split of 7 for 1 on 2014-12-05 contradicts the prices, which went from",
    ),
    (("ACME,2014-12-03,split,10",), "the split of 10 for 1 on 2014-12-03 contradicts the prices"),
)


@pytest.mark.parametrize(("lines", "sentence"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_applied_is_refused_in_one_sentence(
    lines: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    candles(DAY)
    actions(*lines)
    assert replayed("--actions", "actions.csv") == 1
    text = " ".join(capsys.readouterr().err.split())
    assert sentence in text
    assert text.count(". ") == 0
    assert not Path("run.db").exists()


def test_a_file_without_the_columns_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    candles(DAY)
    Path("actions.csv").write_text("when,what\n2014-12-03,7\n")
    assert replayed("--actions", "actions.csv") == 1
    assert "has the columns when, what; name them symbol,date,kind,value" in " ".join(
        capsys.readouterr().err.split()
    )
    assert replayed("--actions", "nowhere.csv") == 1


def test_shares_alone_have_actions(cli: Cli) -> None:
    candles(DAY)
    actions(SPLIT)
    words = ["replay", "ACMEUSDT=acme.csv", "--actions", "actions.csv", "--db", "run.db"]
    Path("linear.toml").write_text('[strategy]\nname = "sma_cross"\n')
    assert "--actions are of shares, and the run trades linear" in " ".join(
        cli.err(*words, "-c", "linear.toml", code=2).split()
    )


class Keeps(Strategy):
    """Keeps closes, and does not say how a split changes them."""

    def __init__(self) -> None:
        self.closes: list[int] = []

    def observe(self, bar: Bar) -> None:
        self.closes.append(bar.close)

    def decide(self, _now: object) -> Signal:
        return Signal(Action.HOLD, "")


def test_a_class_that_keeps_what_it_observes_has_to_adjust_it() -> None:
    with pytest.raises(ConfigInvalid, match="keeps what it observes, and --actions names a split"):
        held(Keeps, 7.0, 1, SPLIT)
    with held(Keeps, 7.0, 1, "ACME,2014-12-05,dividend,0.47"):
        pass


def test_symbols_that_close_together_are_split_one_by_one() -> None:
    candles(before=7.0)
    times = opens("2014-11-03", "2014-12-31", HOUR_MS)
    write(Path("bolt.csv"), times, seed=2)
    actions(SPLIT, "BOLT,2014-12-03,dividend,0.25", "BOLT,2014-12-04,dividend,0.25")
    assert replayed("BOLT=bolt.csv", "--actions", "actions.csv") == 0
    query = "SELECT instrument, kind FROM v_events WHERE kind = 'corporate_action'"
    assert sorted(queried("run.db", query)) == [
        ("stock:ACME", "corporate_action"),
        ("stock:BOLT", "corporate_action"),
        ("stock:BOLT", "corporate_action"),
    ]
    assert invoke(["verify", "last", "--db", "run.db"]) == 0
    assert invoke(["audit", "verify", "last", "--db", "run.db"]) == 0


class Sees(Strategy):
    """Notes what the history says of the bar before."""

    warmup = 5

    def decide(self, context: Any) -> Signal:
        history = context.history
        jump = float(abs(history.close[1:] / history.close[:-1] - 1).max())
        volume = float(history.volume.max() / history.volume.min())
        return Signal(Action.HOLD, "", note={"jump": jump, "volume": volume})


def test_the_history_of_a_strategy_has_no_jump() -> None:
    with held(Sees, 7.0, 1, SPLIT) as run:
        query = "SELECT name, max(number) FROM v_notes GROUP BY name ORDER BY name"
        (_, jump), (_, volume) = queried(str(run.database), query)
        assert 0 < jump < 0.03
        assert 1 < volume < 1.3


@pytest.mark.parametrize("interval_ms", [HOUR_MS, DAY], ids=["hours", "days"])
def test_the_risk_of_a_share_is_by_its_sessions(interval_ms: int) -> None:
    candles(interval_ms)
    actions(SPLIT, "ACME,2014-12-04,dividend,0.47", "ACME,2014-12-02,dividend,7")
    assert replayed("--actions", "actions.csv") == 0
    with Reader.open(Path("run.db")) as reader:
        columns = RunColumns(reader, reader.find("last"))
        assert columns.times.calendar is not None
        sessions = np.unique(
            columns.times.calendar.days_at(
                columns.times.closes_of(columns.bars("stock:ACME")["open_time_ms"])
            )
        )
        risk = read_book_risk(columns)
        assert bool(risk.coins) is (interval_ms == DAY), "by hours it has ended flat"
        assert risk.periods == (sessions.size - 1 if risk.coins else 0)


# ---------------------------------------------------------------- forgotten, and not yet known


def test_a_split_that_is_suspected_soon_after_one_is_judged_by_what_a_start_would_know() -> None:
    """Two sessions lie before the split: too few, then as at a start, to know usual turnovers."""
    times = opens("2014-11-03", "2014-12-31", DAY)
    shares = [7.0 if row < 2 else 1.0 if row < 3 else 0.5 for row in range(len(times))]
    write(Path("acme.csv"), times, prices=shares.__getitem__, volumes=lambda row: 7 / shares[row])
    data = MarketData.read(RunSpec(candles=("ACME=acme.csv",), config=Path("shares.toml")))
    given = configuration(Path("shares.toml"), data)
    bars = data.candles[0].bars()
    split = CorporateAction(
        "stock:ACME", CorporateActionKind.SPLIT, 7, 1, 0, bars[1].close, times[2], times[2]
    )

    def plausible(*events: Bar | CorporateAction) -> float:
        history = build(given, data, started_at_ms=1).engine.markets["stock:ACME"]
        for event in events:
            history.adjust(event) if isinstance(event, CorporateAction) else history.observe(event)
        return history.plausible

    adjusted = [adjusted_bar(split, bar) for bar in bars[:2]]
    over = plausible(*bars[:2], split, *bars[2:4])
    assert over == plausible(*adjusted, *bars[2:4])
    assert not math.isnan(over)  # the fall by half on the fourth day is not called a split yet


def test_lookahead_leaves_out_the_actions_that_a_future_has_yet_to_bring() -> None:
    """At the bar before a split the corrupted one after it would contradict its ratio."""
    times = opens("2014-08-26", "2014-12-10", DAY)
    at = times.index(moment(EX_DATE))
    write(
        Path("acme.csv"),
        times,
        prices=lambda row: 1.0 if row >= at else 7.0,
        volumes=lambda row: 7.0 if row >= at else 1.0,
    )
    actions(SPLIT)
    words = ["lookahead", "--data", "ACME=acme.csv", "-c", "shares.toml"]
    assert invoke([*words, "--actions", "actions.csv", "--probes", str(len(times))]) == 0
