"""The status of a run as text, as ``tracepaper status`` and the live view show it."""

from __future__ import annotations

import json
from decimal import Decimal

from builders import account, bar, decision, fill, forecast, instrument, quote, run, step
from fakes import ManualClock
from msgspec import structs

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.build import margin_rules
from tracepaper.daemon.terminal.status import status_text
from tracepaper.strategies.types.decisions import (
    Position,
    PredictionTimeout,
    RunRow,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import Command, CommandKind
from tracepaper.strategies.units import MONEY_SCALE

BTC = instrument()


def monitor_of(*steps: Step, of: RunRow | None = None) -> Monitor:
    row = of or run(instruments=(BTC,))
    margin = margin_rules(restore(row.config), row.instruments)
    monitor = Monitor(run=row, clock=ManualClock(), margin=margin)
    for each in steps:
        monitor.observe(each)
    return monitor


def drawn(*steps: Step, of: RunRow | None = None) -> str:
    return status_text(monitor_of(*steps, of=of).status()).plain


def full_step(name: str = BTC.id) -> Step:
    return step(
        bar(close=6_511_420, instrument_id=name),
        sequence=3,
        decided=decision(),
        prediction=forecast(),
        fills=(fill(),),
        position=Position(-1_500, -1_500 * 6_500_000 * 10**3, 0, 25 * 10**7),
        of=account(100_012),
        shadows=(ShadowStep("ungated", Position(), account(99_930), ()),),
    )


def test_the_text_says_what_was_decided_and_why() -> None:
    text = drawn(full_step())
    for words in (
        "running  run run-7f3a",
        "since this start: 1 bar decided, 0 warm-up bars, 1 fill; the run is at event 3",
        "equity 100,012.00  ungated shadow 99,930.00  fees and funding",
        "BTCUSDT   65,114.20  linear  closed 2023-11-14 22:15 UTC",
        "position  short 1.5 BTC from 65,000",
        "decision  HOLD  refused by edge",
        "gate      ✗ edge  0.4, needs ≥ 1  round-trip costs",
        "gates     ✓ 3 of 4 passed",
        "forecast  in 30 bars: +0.200 % ± 0.400 %, down 30 %, flat 20 %, up 50 %",
        "attention confidence_entropy 0.200  regime MOMENTUM  recent mass 0.600",
    ):
        assert words in text


def test_on_margin_it_says_what_is_bound_and_where_it_ends() -> None:
    config = json.dumps({"account": {"margin": "isolated", "leverage": "10"}})
    of = structs.replace(run(instruments=(BTC,)), config=config)
    held = Position(1_500, 150 * MONEY_SCALE, margin=15 * MONEY_SCALE)
    bought = step(bar(), decided=decision(), position=held)
    facts = monitor_of(bought, of=of).instrument(BTC.id)
    price = Decimal(str(facts["liquidation_price"]))
    text = drawn(bought, of=of)
    assert f"margin    15.00 at 10 x, liquidated at {price:,.2f}" in text
    assert "margin used 15.00" in text
    assert "margin" not in drawn(full_step())


def test_between_bars_marks_move_money_and_position() -> None:
    held = Position(2_000, 2_000 * 6_500_000 * 10**3, 0, -7 * MONEY_SCALE)
    text = drawn(full_step(), step(quote(), sequence=4, position=held, of=account(99_990)))
    assert "long 2 BTC from 65,000" in text
    assert "equity 99,990.00" in text
    assert "ungated shadow 99,930.00" in text


def test_a_late_forecast_a_missing_measure_and_a_warm_up_bar_are_said() -> None:
    rows = (("deadline", 0.0, 1.0, False), ("confidence_entropy", None, 0.18, False))
    late = step(bar(), decided=decision(measures=rows), prediction=PredictionTimeout(1_000))
    assert "forecast  none within 1000 ms" in drawn(late)
    assert "✗ confidence_entropy  –, needs ≥ 0.18" in drawn(late)
    assert "gates" not in drawn(step(bar()))
    assert "1 bar taken in" in drawn(step(bar()))


def test_the_operators_word_is_shown_until_another_lifts_it() -> None:
    halt, resume = (
        step(Command(kind, "news", 0, 0), sequence=9)
        for kind in (CommandKind.HALT, CommandKind.RESUME)
    )
    assert drawn(full_step(), halt).startswith("halted by operator  run")
    assert drawn(full_step(), halt, resume).startswith("running  run")


def test_few_instruments_are_whole_and_of_many_each_has_one_line() -> None:
    for many in (2, 9):
        named = tuple(instrument(f"{letter}USDT") for letter in "ABCDEFGHI"[:many])
        of = run(instruments=named)
        text = drawn(*(full_step(item.id) for item in named), of=of)
        assert all(item.symbol in text for item in named)
        assert text.count("✗ edge") == (many if many == 2 else 0)
        assert text.count("refused by edge") == many
