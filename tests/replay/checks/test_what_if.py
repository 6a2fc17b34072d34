"""A run again from its record, changed: it equals a replay of the change; what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
from scenarios import SCENARIOS, Scenario

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles, FundingRates
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.changed_run import changed_run
from tracepaper.replay.checks.decision_log import DecisionLog
from tracepaper.replay.checks.waiting import waiting_of
from tracepaper.replay.checks.what_if import Comparison, as_json, what_if, what_if_document
from tracepaper.replay.document.terminal import show_document
from tracepaper.replay.notebook import text_of
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.rows import RUN_TABLES
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import GateSet, RunRow, Step
from tracepaper.strategies.types.market import Bar, CloseStart

Rows = dict[str, list[tuple[Any, ...]]]
MODEL = "a strict model in one pass"
LONGER = "the same over more bars"
HOURS = "a trend of hours with a model"


def strict() -> dict[str, Any]:
    """Return the sections of a model of which the gates refuse much."""
    sections = dict(SCENARIOS["a model with gates"].sections())
    return sections | {"gate": {**sections["gate"], "direction": "0.6"}}


def hourly() -> dict[str, Any]:
    """Return the sections of a trend that decides each hour, gated by a model near its bounds."""
    return strict() | {
        "strategy": {"name": "trend", "trend_windows": ("2h", "3h"), "long_only": True},
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "regime": {"momentum": "0.95", "mean_reversion": "0.87", "hysteresis": "0.9"},
    }


def minutes() -> list[Candles]:
    return [learning.learnable(1_200, symbol="AAAUSDT")]


def settled() -> dict[str, Any]:
    """Return settlements amid an hour, which pay by the close before them."""
    times = minutes()[0].open_time_ms[310::150]
    rates = np.full(times.size, 1_000_000)
    return {"funding": (FundingRates("builder", "AAAUSDT", times, rates),)}


CASES = SCENARIOS | {
    MODEL: replace(SCENARIOS["a model with gates"], sections=strict, mode="scan"),
    LONGER: replace(SCENARIOS["a model with gates"], sections=strict, candles=minutes, mode="scan"),
    HOURS: replace(
        SCENARIOS["a model with gates"],
        sections=hourly,
        candles=minutes,
        files=settled,
        mode="scan",
    ),
}
EVENTS = {"regime": {"event_focus": "0.07"}, "gate": {"regimes": ["MOMENTUM", "MIXED"]}}
FEE = {"execution": {"taker_fee": "0.0011"}}


class StepsLog(DecisionLog):
    """Keeps the steps that the engine made as well."""

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet]) -> None:
        super().begin(run, gate_sets)
        self.steps: list[Step] = []

    def append_now(self, *steps: Step) -> None:
        super().append_now(*steps)
        self.steps += steps


def caused(step: Step) -> tuple[object, ...]:
    """Return what *step* did to the account, shadows apart."""
    return step.event, step.orders, step.fills, step.position, step.account, step.ledger


def from_of(scenario: Scenario, part: float) -> int | None:
    """Return when the bar opens at *part* of the candles; None at their beginning."""
    opens = scenario.candles()[0].open_time_ms
    return int(opens[int(len(opens) * part)]) if part else None


whole_log = partial(MemoryLog, keeps_all=True)


def rows_of(log: MemoryLog, until: int | None = None) -> Rows:
    """Return the rows of each table, up to the step *until*, and the gate sets."""
    connection = log.reader.connection
    rows = {
        table: connection.execute(
            f"SELECT {', '.join(stored_columns(table))} FROM {table} "
            "WHERE sequence <= coalesce(?, sequence) ORDER BY 1, 2, 3",
            (until,),
        ).fetchall()
        for table in RUN_TABLES
    }
    return rows | {"gate_sets": connection.execute("SELECT * FROM gate_sets").fetchall()}


@pytest.mark.parametrize(
    ("name", "changes", "drop", "part"),
    [
        (MODEL, {"gate": {"direction": "0.52"}}, (), 0),
        (MODEL, {"gate": {"drop": ("shifted",)}}, ("direction",), 0),
        (MODEL, FEE, (), 0),
        (MODEL, {"execution": {"delay_bars": 1}}, (), 0),
        (MODEL, EVENTS, (), 0),
        (MODEL, {"sizing": {"mode": "equity", "fraction": "0.3"}}, (), 0),
        ("a model with gates", FEE, (), 0.9),
        ("crossing", FEE, (), 0.3),
        ("crossing", {}, (), 0.6),
        ("crossing", {"strategy": {"slow": 9}}, ("risk.daily_trades",), 0),
        ("isolated margin", {"account": {"leverage": "10"}}, (), 0),
        ("declared state and columns", FEE, (), 0.6),
        ("a hole", {}, (), 0.8),
        ("drawn signals", FEE, (), 0),
        ("shares", {}, (), 0.6),
        ("a portfolio", {"sizing": {"fraction": "0.5"}}, (), 0),
    ],
)
def test_it_equals_a_replay_of_the_change(
    name: str, changes: dict[str, dict[str, Any]], drop: tuple[str, ...], part: float
) -> None:
    scenario = CASES[name]
    path, from_ms = scenario.recorded(), from_of(scenario, part)
    sections = {section: dict(keys) for section, keys in scenario.sections().items()}
    for section, keys in changes.items():
        given = sections.setdefault(section, {})
        for key, value in keys.items():
            given[key] = {**given[key], **value} if isinstance(value, dict) else value
    if drop:
        gates = sections.setdefault("gate", {})
        gates["drop"] = (*gates.get("drop", ()), *drop)
    replay = build(
        load(None, sections), scenario.data(), started_at_ms=0, from_ms=from_ms, mode=scenario.mode
    )
    with Reader.open(path) as reader, whole_log() as log, whole_log() as expected:
        changed_run(
            reader,
            path,
            reader.find("last"),
            changes=changes,
            drop_gates=drop,
            from_ms=from_ms,
            shadows=True,
        ).derive(log)
        run_replay(replay, expected, Tally())
        derived = rows_of(log)
        replayed = rows_of(expected, derived["steps"][-1][1])
    assert derived["fills"]
    for table, rows in replayed.items():
        assert derived[table] == rows, table


@pytest.mark.parametrize(
    ("name", "changes", "drop", "least"),
    [
        (HOURS, {"gate": {"shift": "0.008"}}, (), 900),
        (HOURS, {"gate": {"plausible": "6"}}, (), 900),
        (HOURS, {"gate": {"late_ms": 1_000}}, (), 900),
        (HOURS, {}, ("shifted", "collapsed"), 900),
        (HOURS, FEE, (), 900),
        (HOURS, {"sizing": {"quantity": "0.2"}}, (), 900),
        (HOURS, {"exits": {"stop_loss": "0.3%"}}, (), 100),
        (HOURS, {"account": {"cash": "50000"}}, (), 900),
        (HOURS, {"account": {"margin": "isolated", "leverage": "20"}}, (), 100),
        # Its second position is not covered: a target stands where nothing is held.
        (HOURS, {"account": {"margin": "isolated", "leverage": "1", "cash": "10.06"}}, (), 100),
        (HOURS, {"strategy": {"trend_windows": ("2h",)}}, (), 0),
        (HOURS, {"strategy": {"long_only": False}}, (), 900),
        (HOURS, {"gate": {"on_refusal": "flat"}}, (), 0),
        (HOURS, {"gate": {"regimes": ["MIXED", "MOMENTUM"]}}, (), 0),
        (HOURS, {"regime": {"event_focus": "0.1"}}, (), 0),
        (HOURS, {"risk": {"max_daily_trades": 3}}, (), 0),
        (MODEL, {"gate": {"direction": "0.58"}}, (), 20),
        (MODEL, {}, ("shifted",), 20),
        (MODEL, FEE, (), 0),
        (LONGER, {"exits": {"stop_loss": "0.1%"}, "gate": {"direction": "0.58"}}, (), 20),
    ],
)
def test_bars_that_are_waited_through_are_decided_as_in_a_replay(
    name: str, changes: dict[str, dict[str, Any]], drop: tuple[str, ...], least: int
) -> None:
    scenario = CASES[name]
    path, sections = scenario.recorded(), dict(scenario.sections())
    for section, keys in {**changes, **({"gate": {"drop": drop}} if drop else {})}.items():
        sections[section] = {**sections.get(section, {}), **keys}
    replay = build(load(None, sections), scenario.data(), started_at_ms=0, mode="scan")
    with Reader.open(path) as reader, MemoryLog() as expected:
        run_id, waited = reader.find("last"), 0
        changed = changed_run(reader, path, run_id, changes=changes, drop_gates=drop)
        log = StepsLog(float(changed.config.account.cash), {})
        columns = RunColumns(reader, run_id)
        wait = waiting_of(changed, columns, columns.rows.decided(), log)

        def counted(sequence: int, ahead: Iterator[Bar | CloseStart]) -> int:
            nonlocal waited
            taken = 0 if wait is None else wait(sequence, ahead)
            waited += taken
            return taken

        changed.derive(log, counted)
        run_replay(replay, expected, Tally())
        decided = log.decided()
        every = list(expected.reader.steps(replay.run.run_id))
        steps = [step for step in every if step.decision]
        assert [*map(decided.decision, range(len(steps)))] == [step.decision for step in steps]
    assert decided.rows["equity"].tolist() == [step.account.equity for step in steps]
    assert any(step.fills for step in steps)
    for step in log.steps[1:]:  # the start names its model's place
        assert caused(step) == caused(every[step.sequence])
    assert waited >= least
    assert bool(waited) is bool(least)


def of(path: Path, **change: Any) -> Comparison:
    with Reader.open(path) as reader:
        return what_if(changed_run(reader, path, reader.find("last"), **change))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (MODEL, {"drop_gates": ["direction"]}),
        ("several symbols", {"changes": {"sizing": {"mode": "equity", "fraction": "0.2"}, **FEE}}),
        ("a hole", {"changes": {"strategy": {"fast": 9, "slow": 30}}}),
    ],
)
def test_each_decision_is_compared_and_what_it_made_is_added_up(
    name: str, change: dict[str, Any]
) -> None:
    path = CASES[name].recorded()
    result = of(path, **change)
    with Reader.open(path) as reader, whole_log() as log:
        changed_run(reader, path, reader.find("last"), shadows=True, **change).derive(log)
        before, after = (
            [step for step in of_run.steps(run_id) if step.decision is not None]
            for of_run, run_id in ((reader, result.run_id), (log.reader, result.run_id))
        )
        decimals = {
            item.id: 10**item.quantity_decimals for item in reader.run(result.run_id).instruments
        }
    others = [
        (first.sequence, _judged(first) != _judged(second))
        for first, second in zip(before, after, strict=True)
    ]
    assert result.decisions == len(others)
    assert result.changed == sum(differs for _, differs in others) > 0
    causes: list[Any] = [cause["decisions"] for cause in result.causes]
    assert sum(causes) == result.changed
    allowed = {
        f"{first.decision.refused_by} does not refuse"
        for first, second in zip(before, after, strict=True)
        if first.decision and first.decision.refused_by
        if second.decision and second.decision.refused_by is None
    }
    whys = {str(cause["why"]) for cause in result.causes}
    assert {why for why in whys if why.endswith(" does not refuse")} == allowed
    begins, last = [], dict[str, object]()
    for first, second in zip(before, after, strict=True):
        assert isinstance(first.event, Bar)
        both = _judged(first), _judged(second)
        if both[0] != both[1] and last.get(first.event.instrument) != both:
            begins.append((first.sequence, both[1][2]))
        last[first.event.instrument] = both
    listed = [
        (
            each["sequence"],
            round(float(str(each["target_after"])) * decimals[str(each["instrument"])]),
        )
        for each in result.changes
    ]
    assert listed == begins[:100]
    recorded, changed, difference = result.accounts
    cash = 100_000.0
    for account, steps in ((recorded, before), (changed, after)):
        assert made_of(account) == pytest.approx(steps[-1].account.equity / 1e8 - cash)
        equity = np.array([cash, *(step.account.equity / 1e8 for step in steps)])
        peaks = np.maximum.accumulate(equity)
        assert account["max_drawdown"] == pytest.approx(float((1 - equity / peaks).max()))
        assert account["fees_paid"] == pytest.approx(steps[-1].account.fees_paid / 1e8)
    assert made_of(difference) == pytest.approx(made_of(changed) - made_of(recorded))


@pytest.mark.parametrize(("name", "shown"), [("several symbols", True), (MODEL, False)])
def test_a_change_of_several_symbols_is_shown_with_its_symbol(name: str, shown: bool) -> None:
    result = of(
        CASES[name].recorded(), changes=FEE | {"sizing": {"mode": "equity", "fraction": "1"}}
    )
    text = text_of(lambda console: show_document(console, what_if_document(result)))
    _, changes = text.split("Where the changes begin")
    ids = {str(each["instrument"]) for each in result.changes[:10]}
    assert len(ids) > 1 or not shown
    assert ("symbol" in changes) is shown
    assert {each for each in ids if each in changes} == (ids if shown else set())


@pytest.mark.parametrize(
    ("name", "changes", "without"),
    [
        (
            "crossing",
            {
                "execution": {"latency_ms": 900, "impact_bp": "5", "fill_within_ms": 900},
                "gate": {"confidence": "0.3", "shift": "0.01"},
            },
            ["gate.confidence", "gate.shift", "execution.impact_bp", "execution.latency_ms",
             "execution.fill_within_ms"],
        ),
        ("crossing", {"execution": {"latency_ms": 900, **FEE["execution"]}},
         ["execution.latency_ms"]),
        ("crossing", {"risk": {"max_notional": "100000000"}}, []),  # read, and never reached
        (MODEL, {"gate": {"shift": "0.9"}}, []),
        (MODEL, {"gate": {"shift": "0.9"}, "execution": {"fill_within_ms": 900}},
         ["execution.fill_within_ms"]),
    ],
)  # fmt: skip
def test_changed_keys_that_the_run_does_not_use_are_named(
    name: str, changes: dict[str, dict[str, Any]], without: list[str]
) -> None:
    notes = [
        note for note in of(CASES[name].recorded(), changes=changes).notes if "no effect" in note
    ]
    names = [word for note in notes for word in note.replace(",", "").split() if "." in word[:-1]]
    assert sorted(names) == sorted(without)


def made_of(account: Mapping[str, Any]) -> float:
    profit, _ = account["profit"]
    return float(profit)


def _judged(step: Step) -> tuple[object, ...]:
    decision = step.decision
    assert decision is not None
    return decision.action, decision.refused_by, decision.target_quantity


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("crossing", {"changes": {"market": {"interval": "15"}}}, "market.interval decides what"),
        ("crossing", {"changes": {"log": {"level": "debug"}}}, "log.level decides nothing"),
        ("crossing", {"changes": {"strategy": {"name": "attention"}}}, "strategy"),
        ("crossing", {"drop_gates": ["edge"]}, "has no gate edge"),
        ("crossing", {}, "The change has no effect"),
        ("crossing", {"from_ms": 1}, "lies outside of run"),
        ("crossing", {"changes": {"sizing": {"mode": "fixed", "quantity": "1e-9"}}}, "quantity"),
        (MODEL, {"changes": {"gate": {"horizon": 7}}}, "gate.horizon is 7, and the model"),
        (MODEL, {"changes": {"model": {"threads": 2}}}, "model.threads decides what"),
        (MODEL, {"changes": {"sizing": {"mode": "network_allocation"}}}, "needs allocation"),
        ("frames", {"from_ms": -1}, "candles of higher timeframes"),
    ],
)
def test_what_the_record_does_not_hold_is_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    path = CASES[name].recorded()
    if change.get("from_ms") == -1:
        change = {"from_ms": from_of(CASES[name], 0.8)}
    with pytest.raises(TracepaperError, match=message) as refused:
        of(path, **change)
    assert str(refused.value).count("\n") == 0


def test_a_run_is_asked_from_later_on() -> None:
    scenario = SCENARIOS["crossing"]
    path = scenario.recorded()
    result = of(path, changes=FEE, from_ms=from_of(scenario, 0.9))
    assert as_json(result)["decisions"] == 10
    with Reader.open(path) as reader:
        later = list(reader.steps(reader.find("last")))[-10:]
    fees = sum(fill.fee for step in later for fill in step.fills)
    assert result.accounts[0]["fees_paid"] == pytest.approx(fees / 1e8)
