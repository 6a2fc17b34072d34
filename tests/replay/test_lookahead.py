"""The checks themselves: honest strategies pass, planted leaks and long memories are caught."""

from __future__ import annotations

from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.config import Config, load
from tracepaper.replay.feed import bars_of
from tracepaper.replay.importers import Candles
from tracepaper.replay.lookahead import lookahead, recursive
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.strategy import Outlook, Strategy
from tracepaper.strategies.types import Action, Bar, Signal


class Peeks(Strategy):
    """Knows the whole file it was made for, and buys before it rises."""

    warmup = 2
    known: tuple[Bar, ...] = ()

    def __init__(self, options: dict[str, object]) -> None:
        self._seen = 0
        self._options = options

    def observe(self, bar: Bar) -> None:
        self._seen += 1

    def decide(self, outlook: Outlook) -> Signal:
        later = type(self).known[self._seen : self._seen + 1]
        rises = bool(later) and later[0].close > outlook.bar.close
        return Signal(Action.LONG if rises else Action.FLAT, "it knows")


class Remembers(Strategy):
    """Says it needs two bars, and counts all it ever saw."""

    warmup = 2

    def __init__(self, options: dict[str, object]) -> None:
        self._count = 0
        self._options = options

    def observe(self, bar: Bar) -> None:
        self._count += 1

    def decide(self, outlook: Outlook) -> Signal:
        return Signal(Action.LONG if self._count % 7 < 3 else Action.FLAT, "a long memory")


@pytest.fixture(scope="module")
def walk() -> Candles:
    return made_candles(walk_rows(160))


def configured(strategy: dict[str, Any]) -> Config:
    return load(None, {"strategy": strategy, "sizing": {"mode": "fixed", "quantity": "1"}})


HONEST: list[dict[str, Any]] = [
    {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
    {"name": "persistence"},
]


@pytest.mark.parametrize("strategy", HONEST)
def test_an_honest_strategy_passes_both_checks(strategy: dict[str, Any], walk: Candles) -> None:
    ahead = lookahead(configured(strategy), walk, probes=8)
    later = recursive(configured(strategy), walk, probes=4, warmup=60)
    assert ahead.holds, ahead.differences
    assert later.holds, later.differences
    assert (ahead.probes, later.probes) == (8, 4)
    assert min(ahead.compared, later.compared) > 100


def test_a_strategy_that_knows_the_file_is_caught(
    monkeypatch: pytest.MonkeyPatch, walk: Candles
) -> None:
    from tracepaper.replay import assembly
    from tracepaper.replay import lookahead as module

    honest_build = assembly.build

    def build(config: Config, candles: list[Candles], **options: Any) -> Any:
        Peeks.known = tuple(bars_of(candles[0]))  # as code that reads ahead in its input would
        return honest_build(config, candles, **options)

    monkeypatch.setattr(module, "build", build)
    found = lookahead(configured({"name": f"{__name__}:Peeks"}), walk, probes=10)
    assert not found.holds
    assert found.differences[0].field in ("action", "target_quantity", "reason")


def test_a_memory_longer_than_the_stated_warm_up_is_caught(walk: Candles) -> None:
    found = recursive(configured({"name": f"{__name__}:Remembers"}), walk, probes=4, warmup=2)
    assert not found.holds


def test_too_little_data_is_refused_with_a_sentence(walk: Candles) -> None:
    with pytest.raises(DataInvalid, match="give more data"):
        recursive(configured(HONEST[0]), walk, probes=1, warmup=160)
