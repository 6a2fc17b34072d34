"""One strategy for all instruments of a close: when it is asked, what its answers do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from builders import START_MS, bars, instrument, present
from engines import engine_of

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import make_strategies
from tracepaper.daemon.session.user_class import user_portfolio
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import PortfolioMember, PortfolioStrategy
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.decisions import Action, Step
from tracepaper.strategies.types.market import Bar, CloseStart

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
KEYS = tuple(f"linear:{symbol}" for symbol in SYMBOLS)
MINUTE = 60_000
LONG, SHORT = Signal(Action.LONG, "up"), Signal(Action.SHORT, "down")
ASKED: list[tuple[tuple[str, ...], int]] = []
"""The symbols of each question, and how many bars were observed before it."""


class Spread(PortfolioStrategy):
    """Long the first symbol, short the second, of the third nothing."""

    warmup = 2

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.answer = options.get("answer", {SYMBOLS[0]: LONG, SYMBOLS[1]: SHORT})
        self.observed = 0

    def observe(self, bar: Bar) -> None:
        assert bar.instrument in KEYS
        self.observed += 1

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal]:
        ASKED.append((tuple(contexts), self.observed))
        answer: Mapping[str, Signal] = self.answer
        return answer


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    ASKED.clear()


def sections(**given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "market": {"symbols": SYMBOLS},
        "strategy": {"name": f"{__name__}:Spread"},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "10000000"},
        **given,
    }


def engine(period_start_ms: int = 0) -> Engine:
    return engine_of(
        sections(), [instrument(symbol) for symbol in SYMBOLS], period_start_ms=period_start_ms
    )


def closes(count: int) -> list[list[Bar]]:
    each = [bars(count, seed=place, instrument_id=key) for place, key in enumerate(KEYS)]
    return [list(together) for together in zip(*each, strict=True)]


def decisions_of(machine: Engine, together: Sequence[Bar]) -> list[Step]:
    at = together[0].close_time_ms
    closed = CloseStart(together[0].open_time_ms, len(together), (), at, at)
    return machine.close(closed, together, [None] * len(together))


def actions(steps: Sequence[Step]) -> list[Action]:
    return [step.decision.action for step in steps if step.decision is not None]


def test_it_is_asked_once_a_close_before_the_first_decision_and_fills_by_symbol() -> None:
    machine = engine()
    first, second, third = closes(3)
    assert actions(decisions_of(machine, first)) == [Action.HOLD] * 3  # not warm
    decided = decisions_of(machine, second)
    assert actions(decided) == [Action.LONG, Action.SHORT, Action.HOLD]
    assert ASKED == [(SYMBOLS, 6)]
    _, btc, eth, sol = decisions_of(machine, third)
    assert [step.fills[0].quantity if step.fills else 0 for step in (btc, eth, sol)] == [
        1_000, 1_000, 0,
    ]  # fmt: skip
    assert present(btc.position).quantity == -present(eth.position).quantity == 1_000
    assert present(sol.decision).reason == "not named by the portfolio"


def test_who_is_absent_is_not_asked_about_and_a_late_bar_is_asked_about_alone() -> None:
    machine = engine()
    decisions_of(machine, closes(2)[0])
    btc, eth, sol = closes(2)[1]
    decisions_of(machine, [btc, sol])
    late = machine.step(eth, None)
    assert [((SYMBOLS[0], SYMBOLS[2]), 5), ((SYMBOLS[1],), 6)] == ASKED
    assert actions([late]) == [Action.SHORT]


def test_bars_that_warm_up_are_observed_and_not_asked_about() -> None:
    machine = engine(period_start_ms=START_MS + MINUTE)
    first, second = closes(2)
    decisions_of(machine, first)
    assert ASKED == []
    decisions_of(machine, second)
    assert ASKED == [(SYMBOLS, 6)]


def test_a_revision_alone_is_not_asked_about() -> None:
    machine = engine()
    first, second = closes(2)
    decisions_of(machine, first)
    decisions_of(machine, second)
    assert not machine.step(second[0], None).accepted
    assert len(ASKED) == 1


class Odd(Mapping[str, Signal]):
    """A mapping of the user's own that fails."""

    def __getitem__(self, symbol: str) -> Signal:
        raise KeyError(symbol)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "return a mapping from symbols to signals"),
        ([LONG], "return a mapping from symbols to signals"),
        ({"XRPUSDT": LONG}, "answered for 'XRPUSDT' in decide, which the run does not trade"),
        ({7: LONG}, "answered for 7 in decide"),
        ({SYMBOLS[0]: "LONG"}, "answered 'LONG' in decide"),
        ({SYMBOLS[0]: Signal(Action.LONG, "two\nlines")}, "gave the reason"),
        ({SYMBOLS[0]: Signal(Action.LONG, "up", 7.0)}, "gave the strength 7"),
        (Odd(), "failed in decide with ZeroDivisionError"),
    ],
)
def test_what_is_no_answer_ends_in_one_sentence(answer: object, words: str) -> None:
    portfolio_strategy = user_portfolio(Spread, {"answer": answer}, SYMBOLS)
    with pytest.raises(StrategyFailed, match=rf"^Spread .*{words}.*\.$"):
        portfolio_strategy.decide({})


def test_all_symbols_share_one_object_which_knows_them() -> None:
    strategies = make_strategies(load(None, sections()), None)
    members = [member for member in strategies.values() if isinstance(member, PortfolioMember)]
    assert len(members) == 3
    assert len({id(member.portfolio) for member in members}) == 1
    assert members[0].portfolio.symbols == SYMBOLS
    assert members[0].warmup == 2
