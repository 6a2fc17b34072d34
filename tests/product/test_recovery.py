"""Recovery: stop after any step, start again, and the tail is identical; nothing is lost."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import bars, explanation, forecast, quote
from fakes import FixedForecaster
from fed_daemon import Process as FedProcess

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine import engine as engine_module
from tracepaper.daemon.engine.state import decode_state
from tracepaper.daemon.session.build import resolved
from tracepaper.replay.checks.diagnosis import Cause
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import FillModel, Forecast
from tracepaper.strategies.types.market import Event, Instrument

pytestmark = pytest.mark.slow

CALIBRATION = Calibration(
    {
        name: tuple(index / 100 for index in range(1, 100))
        for name in ("confidence_entropy", "collapsed", "shift", "recent_mass", "direction", "edge")
    },
    {30: 1.0},
    0.0,
)
WARM = 12
GATES = {"confidence": "0.1", "collapse": "0", "shift": "1", "edge": "0"}


def configured(strategy: str, execution: FillModel, **sections: dict[str, Any]) -> Config:
    keys = {"fast": 3, "slow": 7, "long_only": False} if strategy == "sma_cross" else {}
    return resolved(
        load(
            None,
            {
                "strategy": {"name": strategy, **keys},
                "sizing": {"mode": "fixed", "quantity": "1"},
                "gate": GATES,
                "regime": {"momentum": "0.7", "mean_reversion": "0.3"},
                "execution": {"fill_within_ms": 60_000},  # quotes come just before a close
                **sections,
            },
        ),
        execution,
    )


def says(history: Any) -> Forecast:
    """Forecast the change over the remembered bars: a function of the bars alone."""
    change = history[-1].close - history[0].close
    explained = explanation(recent_mass=history[-1].close % 100 / 100)
    up, down = (0.5, 0.2) if change > 0 else (0.2, 0.5)
    return forecast(change / 1e6, p_up=up, p_down=down, explained=explained)


def model() -> FixedForecaster:
    return FixedForecaster(says, context=5, calibration=CALIBRATION)


def events(count: int, *, quotes: bool) -> list[Event]:
    """Bars with a quote just before each, as a live feed hands them on."""
    made_events: list[Event] = []
    for item in bars(count, seed=4):
        if quotes:
            at = item.close_time_ms - 500
            made_events.append(quote(item.close - 5, item.close + 5, at_ms=at))
        made_events.append(item)
    return made_events


class Process(FedProcess):
    """A process with the model, where its strategy wants one."""

    def __init__(
        self, path: Path, config: Config, execution: FillModel, *, items: Sequence[Instrument] = ()
    ) -> None:
        forecaster = model() if config.strategy.name == "attention" else None
        super().__init__(path, config, execution, warm=WARM, items=items, forecaster=forecaster)


@pytest.mark.parametrize("every", [4, 1_024])
def test_what_no_state_was_stored_for_is_read_back(
    tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "STATE_EVERY_STEPS", every)
    config = configured("attention", FillModel.NEXT_OPEN, gate={**GATES, "edge": "0.9"})
    given = events(60, quotes=False)
    whole = Process(tmp_path / "whole.db", config, FillModel.NEXT_OPEN)
    states = []
    whole.live(given[: WARM + 1])
    for event in given[WARM + 1 :]:
        whole.feed(event)
        states.append(msgspec.msgpack.encode(whole.opened.engine.state()))
    whole.stop()
    confirmed = [step for step in whole.steps if any(shadow.confirmed for shadow in step.shadows)]
    unsaved = [step for step in confirmed if step.state is None]
    assert len(unsaved) > 10
    regimes = [step.decision.regime for step in unsaved if step.decision is not None]
    assert len(set(regimes)) > 1
    for cut in range(WARM + 2, len(given), 15):
        Process(tmp_path / f"{cut}.db", config, FillModel.NEXT_OPEN).through(given[:cut])
        second = Process(tmp_path / f"{cut}.db", config, FillModel.NEXT_OPEN)
        restored = msgspec.msgpack.encode(second.opened.engine.state())
        assert restored == states[cut - WARM - 2], f"stopped after {cut}"
        second.stop()


def test_a_changed_configuration_opens_a_new_run_that_takes_over_the_account(
    tmp_path: Path,
) -> None:
    given = events(30, quotes=True)
    path = tmp_path / "run.db"
    config = configured("sma_cross", FillModel.QUOTE)
    first = Process(path, config, FillModel.QUOTE).through(given)
    other = configured("sma_cross", FillModel.QUOTE, gate={"late_ms": 30_000})
    second = Process(path, other, FillModel.QUOTE)
    assert not second.opened.resumed
    assert second.opened.run.parent_run_id == first.opened.run.run_id
    second.begin()
    second.start()
    second.stop()
    assert second.steps[0].account.cash == first.steps[-1].account.cash
    assert second.steps[0].state is not None
    with Reader.open(path) as reader:
        assert reader.first_state(second.opened.run.run_id) == (second.steps[0].state, 0)


def confirmed_ms(process: Process) -> list[int]:
    """Return the bars that newly confirmed each position, of the run and of its shadow accounts."""
    state = process.opened.engine.state()
    accounts = [state.account, *(state.shadows[name] for name in sorted(state.shadows))]
    return [line.orders.confirmed_ms for of in accounts for line in of.lines.values()]


def test_a_new_run_takes_over_the_last_regime_and_confirmations(tmp_path: Path) -> None:
    path, given = tmp_path / "run.db", events(60, quotes=False)[:44]
    config, other = (
        configured("attention", FillModel.NEXT_OPEN, gate={**GATES, "edge": edge})
        for edge in ("0.9", "0.8")
    )
    first = Process(path, config, FillModel.NEXT_OPEN).through(given)
    last = first.opened.engine.state().regimes
    assert last != decode_state([step.state for step in first.steps if step.state][-1]).regimes
    second = Process(path, other, FillModel.NEXT_OPEN)
    assert second.opened.run.parent_run_id == first.opened.run.run_id
    assert second.opened.engine.state().regimes == last
    assert confirmed_ms(second) == confirmed_ms(first)
    assert any(confirmed_ms(first))
    second.stop()


COUNTS = """
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import Action

class Counts(Strategy):
    files = ("counts.csv",)

    def __init__(self, options):
        self._held = 0

    def decide(self, now):
        self._held = (self._held + 1) % 9
        return Signal(Action.LONG if self._held < 5 else Action.FLAT, "counted")
"""


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a class with a memory that no bar rebuilds into a file of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "counts.py").write_text(COUNTS)
    (tmp_path / "counts.csv").write_text("1")
    yield tmp_path / "counts.py"
    sys.modules.pop("counts", None)


@pytest.mark.parametrize("changed", ["counts.py", "counts.csv"])
def test_a_changed_class_opens_a_new_run_that_takes_over_the_account(
    counts: Path, changed: str
) -> None:
    given = events(30, quotes=True)
    path = counts.with_name("run.db")
    config = configured("counts:Counts", FillModel.QUOTE)
    first = Process(path, config, FillModel.QUOTE).through(given)
    assert first.opened.run.strategy_sha256
    again = Process(path, config, FillModel.QUOTE)
    assert again.opened.resumed
    again.stop()
    with counts.with_name(changed).open("a") as file:
        file.write("# other")
    sys.modules.pop("counts")
    other = Process(path, config, FillModel.QUOTE)
    other.stop()
    assert not other.opened.resumed
    assert other.opened.run.parent_run_id == first.opened.run.run_id
    assert other.opened.run.strategy_sha256 != first.opened.run.strategy_sha256


RESTS = """
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Orders, buy

class Counts(Strategy):
    def decide(self, now):
        tag = f"at {now.exact.open_time_ms}"
        return Orders((buy(1, limit=now.close // 2, tag=tag),), "far below")
"""


def test_an_order_that_a_new_run_takes_over_keeps_an_id_of_its_own(counts: Path) -> None:
    counts.write_text(RESTS)
    given = events(40, quotes=False)
    path = counts.with_name("run.db")
    config = configured("counts:Counts", FillModel.NEXT_OPEN)
    Process(path, config, FillModel.NEXT_OPEN).through(given[:18])
    other = configured("counts:Counts", FillModel.NEXT_OPEN, gate={**GATES, "late_ms": 30_000})
    second = Process(path, other, FillModel.NEXT_OPEN)
    assert not second.opened.resumed
    (line,) = second.opened.engine.broker.account.lines.values()
    before = [order.order_id for order in line.others]
    second.begin()
    second.start()
    for event in given[18:]:
        second.feed(event)
    second.stop()
    after = [order.order_id for order in line.others]
    assert len(before) == 6
    assert len({*after}) == len(after) == 28
    assert {*after} >= {*before}


SINCE = """
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import Action

class Counts(Strategy):
    def __init__(self, options):
        self._since = None

    def decide(self, now):
        if self._since is None and now.exact.open_time_ms // 60_000 % 7 == 0:
            self._since = 0
        if self._since is None:
            return Signal(Action.FLAT, "waits")
        self._since = self._since + 1 if self._since < 20 else None
        return Signal(Action.LONG, "bars since the entry")
"""


@pytest.mark.parametrize("source", [COUNTS, SINCE], ids=["counts", "since its entry"])
def test_state_that_no_bar_rebuilds_is_called_that_after_a_restart(
    counts: Path, source: str
) -> None:
    counts.write_text(source)
    path = counts.with_name("run.db")
    given = events(120, quotes=True)
    config = configured("counts:Counts", FillModel.QUOTE)
    for begin, end in ((0, 160), (160, 166), (166, 240)):
        Process(path, config, FillModel.QUOTE).through(given[begin:end])
    with Reader.open(path) as reader:
        assert verify_chain(reader.connection, reader.find("last")).passes
        verification = verify_run(reader, path, reader.find("last"))
    assert (verification.passes, verification.culprit) == (False, Cause.STRATEGY)
    assert "tracepaper recursive" in verification.likely_cause


LOOKS_BACK = """
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action

class Counts(Strategy):
    warmup = 9
    def __init__(self, options):
        pass

    def decide(self, now):
        before = now.history.close[:-1].mean()
        last = now.verdict
        turn = last is None or last.reason[0] != "a"
        reason = f"{'a' if turn else 'b'} {len(now.history)} {before:.3f}"
        return Signal(Action.LONG if now.close > before or turn else Action.FLAT, reason)
"""


def test_history_and_the_last_verdict_are_the_same_after_a_restart(counts: Path) -> None:
    counts.write_text(LOOKS_BACK)
    given = events(60, quotes=True)
    config = configured("counts:Counts", FillModel.QUOTE)
    reasons = []
    for name, cuts in (("whole.db", [0, 120]), ("cut.db", [0, 54, 88, 90, 120])):
        path = counts.with_name(name)
        for begin, end in pairwise(cuts):
            Process(path, config, FillModel.QUOTE).through(given[begin:end])
        with Reader.open(path) as reader:
            run = reader.find("last")
            steps = list(reader.steps(run))
            assert verify_run(reader, path, run).passes
        reasons.append([step.decision.reason for step in steps if step.decision is not None])
    assert reasons[0] == reasons[1]
    assert {reason[0] for reason in reasons[0]} >= {"a", "b"}


def test_an_account_that_its_ledger_does_not_add_up_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    config = configured("sma_cross", FillModel.QUOTE)
    Process(path, config, FillModel.QUOTE).through(events(40, quotes=True))
    with sqlite3.connect(path) as raw:
        changed = raw.execute(
            "UPDATE fills SET fee = fee + 1 WHERE sequence = (SELECT max(sequence) FROM fills)"
        )
        assert changed.rowcount == 1
    with pytest.raises(InvariantBroken, match="add up"):
        Process(path, config, FillModel.QUOTE)
