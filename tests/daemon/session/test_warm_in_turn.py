"""Symbols are warmed up in turn: those with their bars trade, the others follow without loss."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from builders import instrument
from engines import engine_of
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from fakes import FixedForecaster
from held_answers import HeldAnswers
from models import ONE_LAYER_CONTEXT as CONTEXT
from models import written
from records import check_record, rows
from several_live import SPEED, Live, check_parity, trading
from waiting import deadline

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.feed import warming
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.session.run_row import in_stages
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.other_symbol import RunOtherBars
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import Bar, Gap, ModelChange

NAMES = ["AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT"]
SIXTY = [f"M{number:02d}USDT" for number in range(60)]
PORTFOLIO = "tracepaper.strategies.examples.allocation:Allocation"
PAGE = 100
PAGES = -(-CONTEXT // PAGE)


class Case(NamedTuple):
    """A run of four symbols with a model; the first is warmed up before the start."""

    path: Path
    sections: Mapping[str, Any]
    served: ExchangeSettings
    answers: HeldAnswers


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    written(tmp_path / "model")
    data = tuple(
        made_candles(walk_rows(CONTEXT + 60, seed=seed), symbol=name)
        for seed, name in enumerate(NAMES)
    )
    sections: dict[str, Any] = {
        "strategy": {"name": "attention"},
        "model": {"checkpoint": str(tmp_path / "model"), "deadline_ms": 600_000},
        "gate": {"plausible": "10000"},
        "market": {"symbols": NAMES, "gather_ms": 10_000},
    }
    served = ExchangeSettings(candles=data, manual=True, start=CONTEXT + 10, speed=SPEED)
    return Case(
        tmp_path / "run.db", sections, served, HeldAnswers(monkeypatch, page=PAGE, before=PAGES)
    )


def bars_of(steps: list[Step], symbol: str) -> list[Bar]:
    events = (step.event for step in steps)
    return [
        item for item in events if isinstance(item, Bar) and item.instrument.endswith(f":{symbol}")
    ]


def decided_by_all(live: Live, open_ms: int) -> bool:
    return live.decided(open_ms) == set(NAMES)


async def test_the_first_trades_while_the_others_are_asked_for_and_nothing_is_lost(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = case.answers
    answers.limit(BBBUSDT=2, CCCUSDT=0, DDDUSDT=0)
    async with EmbeddedExchange(case.served) as exchange:
        async with trading(exchange, case.path, **case.sections) as live:
            await live.listening(12)
            closes = [await live.close_bar({"AAAUSDT"}) for _ in range(3)]
            await live.until(lambda: len(bars_of(live.steps, "BBBUSDT")) == 2 * PAGE)
            assert not bars_of(live.steps, "CCCUSDT")
            [start] = [step.event for step in live.steps if isinstance(step.event, ModelChange)]
            assert [key for key, _ in start.warm_from] == ["linear:AAAUSDT"]
            status = await asyncio.to_thread(ask, case.path, "/status")
            text = str(status["not_ready"])
            assert [name for name in NAMES if f"{name} is warming up until 20" in text] == NAMES[1:]
            answers.limit()
            for open_ms in closes:  # bars that closed meanwhile are decided too, late
                await live.until(partial(decided_by_all, live, open_ms))
            async with deadline():
                while (await asyncio.to_thread(ask, case.path, "/status"))["not_ready"]:
                    pass  # the last symbol needs one more request to know that it is complete
            last = await live.close_bar(set(NAMES))
        opened = {name: [bar.open_time_ms for bar in bars_of(live.steps, name)] for name in NAMES}
        assert all(times == opened["AAAUSDT"] for times in opened.values())
        assert not any(isinstance(step.event, Gap) for step in live.steps)
    check_parity(case.path, tmp_path)
    # After its turn each symbol gets the same forecasts as if all had been warm at the start.
    monkeypatch.setattr(warming, "BEFORE_START", 1_000)
    together = tmp_path / "together.db"
    async with (
        EmbeddedExchange(case.served) as exchange,
        trading(exchange, together, **case.sections) as live,
    ):
        await live.listening(12)
        for _ in range(4):
            await live.close_bar(set(NAMES))
    query = f"SELECT mean_return, confidence_entropy FROM v_decisions WHERE open_time_ms = {last}"
    for row, other in zip(rows(case.path, query), rows(together, query), strict=True):
        assert row == pytest.approx(other, rel=1e-4)


async def test_a_run_that_ends_amid_its_turns_goes_on_with_them(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = case.answers
    answers.limit(BBBUSDT=2, CCCUSDT=0, DDDUSDT=0)
    async with EmbeddedExchange(case.served) as exchange:
        async with trading(exchange, case.path, **case.sections) as live:
            await live.listening(12)
            await live.close_bar({"AAAUSDT"})
            await live.until(lambda: len(bars_of(live.steps, "BBBUSDT")) == 2 * PAGE)
        answers.questions.clear()
        answers.limit(DDDUSDT=0)
        monkeypatch.setattr(warming, "BEFORE_START", 1)
        async with trading(exchange, case.path, **case.sections) as again:
            await again.listening(12)
            await again.close_bar(set(NAMES[:3]))
            [start] = [step.event for step in again.steps if isinstance(step.event, ModelChange)]
            assert [key for key, _ in start.warm_from] == ["linear:AAAUSDT"]
            assert answers.questions["BBBUSDT"] < PAGES  # it has two of them
            answers.limit()
            await again.until(lambda: len(bars_of(again.steps, "DDDUSDT")) > CONTEXT)
            await again.close_bar(set(NAMES))
    counted = rows(
        case.path,
        "SELECT instrument, count(*), count(DISTINCT open_time_ms) FROM v_bars GROUP BY 1",
    )
    assert {(bars, different) for _, bars, different in counted} == {(counted[0][1],) * 2}
    check_parity(case.path, tmp_path)


async def test_a_start_names_no_symbol_that_rest_leaves_with_a_part_of_its_past(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.answers.limit(BBBUSDT=2, CCCUSDT=0, DDDUSDT=0)
    waits = {"exchange": {"connect_timeout_s": 0.2, "certain_s": 0.2}}
    async with EmbeddedExchange(case.served) as exchange:
        async with trading(exchange, case.path, **case.sections) as live:
            await live.listening(12)
            await live.until(lambda: len(bars_of(live.steps, "BBBUSDT")) == 2 * PAGE)
            await live.close_bar({"AAAUSDT"})
        case.answers.questions.clear()
        case.answers.limit(BBBUSDT=0)
        monkeypatch.setattr(warming, "BEFORE_START", 1_000)  # so B is requested before the start
        async with trading(exchange, case.path, **case.sections, **waits) as again:
            await again.listening(12)
            [start] = [step.event for step in again.steps if isinstance(step.event, ModelChange)]
            assert [key for key, _ in start.warm_from] == [
                "linear:AAAUSDT",
                "linear:CCCUSDT",
                "linear:DDDUSDT",
            ]
            await again.close_bar({"AAAUSDT", "CCCUSDT", "DDDUSDT"})
            case.answers.limit()
            await again.close_bar(set(NAMES))
    check_parity(case.path, tmp_path)


async def test_a_portfolio_waits_for_the_bars_of_all(case: Case) -> None:
    sections = {**case.sections, "strategy": {"name": PORTFOLIO}, "model": {"checkpoint": "none"}}
    async with EmbeddedExchange(case.served) as exchange:
        async with trading(exchange, case.path, **sections) as live:
            await live.listening(12)
            await live.close_bar(set(NAMES))
        events = [step.event for step in live.steps]
    start = next(at for at, event in enumerate(events) if isinstance(event, ModelChange))
    assert {event.instrument for event in events[:start] if isinstance(event, Bar)} == {
        f"linear:{name}" for name in NAMES
    }


async def test_what_an_account_holds_is_valued_by_its_past_before_the_first_decision(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes over positions in all symbols, and requests the past of each."""
    crossing = {"name": "sma_cross", "fast": 2, "slow": 3, "long_only": False}
    sections = {**case.sections, "strategy": crossing, "model": {"checkpoint": "none"}}
    held = "SELECT DISTINCT instrument FROM v_fills"
    async with EmbeddedExchange(case.served) as exchange:
        async with trading(exchange, case.path, **sections) as live:
            await live.listening(12)
            while len(rows(case.path, held)) < len(NAMES):
                await live.close_bar(set(NAMES))
        monkeypatch.setattr(warming, "BEFORE_START", 1)
        sections["strategy"] = crossing | {"slow": 150}
        async with trading(exchange, case.path, **sections) as live:
            await live.listening(12)
            await live.close_bar(set(NAMES))
    events = [step.event for step in live.steps]
    start = next(at for at, event in enumerate(events) if isinstance(event, ModelChange))
    assert Counter(event.instrument for event in events[:start] if isinstance(event, Bar)) == {
        f"linear:{name}": 150 for name in NAMES
    }
    assert check_record(case.path) > 0


class Reads(FixedForecaster):
    """A model that reads the bars of another symbol of the run."""

    vectors = RunOtherBars("M00USDT", "v2-1m")


def test_a_model_that_reads_another_symbol_waits_for_the_bars_of_all() -> None:
    config = load(None, {"strategy": {"name": "sma_cross"}, "market": {"symbols": SIXTY}})
    engine = engine_of(config, [instrument(name) for name in SIXTY], execution=FillModel.QUOTE)
    assert in_stages(engine, FixedForecaster(lambda _bars: None))
    assert not in_stages(engine, Reads(lambda _bars: None))
