"""Declared state: stored where it changed, handed back at every start, or refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import present
from forging import verified
from test_recovery import Process, configured, events

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.user_class import make_custom, user_portfolio, user_strategy
from tracepaper.strategies.api.strategy import (
    DeclaredState,
    PortfolioMember,
    PortfolioStrategy,
    Strategy,
)
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed
from tracepaper.strategies.types.decisions import FillModel

COUNTS = """
from msgspec import Struct
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import Action

class Memory(Struct):
    held: int = 0
    seen: int = 0
    closes: list[int] = []

class Counts(Strategy):
    State = Memory

    def __init__(self, options):
        self.state.held = 0

    def observe(self, bar):
        self.state.seen += 1

    def decide(self, outlook):
        self.state.held = (self.state.held + 1) % 9
        self.state.closes = [*self.state.closes[-2:], self.state.seen]
        return Signal(Action.LONG if self.state.held < 5 else Action.FLAT, "counted")
"""

OF_ALL = (
    COUNTS.replace("import Strategy", "import PortfolioStrategy")
    .replace("(Strategy)", "(PortfolioStrategy)")
    .replace("return Signal(", "return dict.fromkeys(outlook, Signal(")
    .replace('"counted")', '"counted"))')
)
"""The same as one object for all instruments."""


@pytest.fixture(params=[COUNTS, OF_ALL], ids=["of one", "of all"])
def counts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "counts.py").write_text(request.param)
    yield tmp_path / "counts.py"
    sys.modules.pop("counts", None)


def config() -> Config:
    return configured("counts:Counts", FillModel.QUOTE)


def declared(process: Process) -> Any:
    (encoded,) = process.opened.engine.state().declared.values()
    return msgspec.msgpack.decode(encoded)


def test_it_is_stored_in_the_step_in_which_it_changed(counts: Path) -> None:
    process = Process(counts.with_name("run.db"), config(), FillModel.QUOTE).through(
        events(30, quotes=True)
    )
    for step in process.steps:
        decided = step.decision is not None
        assert (step.state is not None) >= decided  # it changes at each decision
    assert declared(process)["seen"] == 18  # bars that only warm up leave it as it was


def test_a_new_run_of_the_same_class_takes_it_over_and_of_another_begins_anew(counts: Path) -> None:
    path = counts.with_name("run.db")
    first = Process(path, config(), FillModel.QUOTE).through(events(30, quotes=True))
    other = configured("counts:Counts", FillModel.QUOTE, gate={"late_ms": 30_000})
    second = Process(path, other, FillModel.QUOTE)
    assert not second.opened.resumed
    assert declared(second) == declared(first)
    second.live(events(40, quotes=True)[60:])
    second.stop()
    assert verified(path).differences == []
    counts.write_text(counts.read_text().replace("% 9", "% 8"))
    sys.modules.pop("counts")
    third = Process(path, config(), FillModel.QUOTE)
    third.stop()
    assert third.opened.run.parent_run_id == second.opened.run.run_id
    assert declared(third) == {"held": 0, "seen": 0, "closes": []}


def test_what_does_not_decode_into_a_changed_state_is_one_sentence(counts: Path) -> None:
    strategy = make_custom("counts:Counts", {}, ["BTCUSDT"])["BTCUSDT"]
    owner = strategy.portfolio if isinstance(strategy, PortfolioMember) else strategy
    kept = present(DeclaredState.of(owner))
    with pytest.raises(ConfigInvalid, match=r"state does not fit Memory .*; open a new run, in"):
        kept.restore(msgspec.msgpack.encode({"held": "five"}))


class Plain:
    """No Struct."""


class Needs(msgspec.Struct):
    value: int


class Holds(msgspec.Struct):
    value: Plain = Plain()


class Sets(msgspec.Struct):
    names: dict[str, list[set[str]]] = {}


class Raises(msgspec.Struct):
    value: int = 0

    def __post_init__(self) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", [Plain, 5, Needs, Holds, Sets])
def test_a_state_that_could_not_be_stored_is_refused(kind: Any) -> None:
    class Mine(Strategy):
        State = kind

        def decide(self, outlook: object) -> Any: ...

    class All(PortfolioStrategy):
        State = kind

        def decide(self, context: object) -> Any: ...

    with pytest.raises(ConfigInvalid, match=r"^Mine\.State .*; declare a msgspec Struct"):
        user_strategy(Mine, {})
    with pytest.raises(ConfigInvalid, match=r"^All\.State .*; declare a msgspec Struct"):
        user_portfolio(All, {}, ("BTCUSDT",))


def test_a_state_that_raises_when_it_is_made_is_the_class_s_failure() -> None:
    class Mine(Strategy):
        State = Raises

        def decide(self, outlook: object) -> Any: ...

    with pytest.raises(StrategyFailed, match="Mine failed when its State was made with ZeroDiv"):
        user_strategy(Mine, {})


class Loose(msgspec.Struct):
    count: int = 0
    anything: Any = None


@pytest.mark.parametrize(
    "held",
    [
        Loose(count="many"),  # type: ignore[arg-type]
        Loose(count=2.5),  # type: ignore[arg-type]
        Loose(count=2**70),
        Loose(anything=(1, 2)),
        Loose(anything=object()),
        Needs(3),
        7,
    ],
)
def test_a_state_that_a_restart_would_read_otherwise_stops_the_run(held: Any) -> None:
    class Mine(Strategy):
        State = Loose

        def __init__(self, options: object) -> None: ...

        def decide(self, outlook: object) -> Any: ...

    strategy = user_strategy(Mine, {})
    kept = present(DeclaredState.of(strategy))
    strategy.state = held
    with pytest.raises(StrategyFailed, match=r"(keep it a|give its fields values)"):
        kept.changed()


class Inner(msgspec.Struct):
    level: float = float("nan")


class Outer(msgspec.Struct):
    inner: Inner = msgspec.field(default_factory=Inner)
    by_name: dict[str, tuple[int, float]] = {}


def test_numbers_that_are_not_finite_and_nested_structs_are_kept() -> None:
    class Mine(Strategy):
        State = Outer

        def __init__(self, options: object) -> None: ...

        def decide(self, outlook: object) -> Any: ...

    strategy = user_strategy(Mine, {})
    kept = present(DeclaredState.of(strategy))
    assert not kept.changed()
    strategy.state.by_name["a"] = (1, 2.0)
    assert kept.changed()
    assert not kept.changed()
    strategy.state.by_name.clear()
    kept.restore(kept.encoded)
    assert strategy.state.by_name == {"a": (1, 2.0)}
