"""``recursive``: cuts the past off and looks for signals that move; state of a strategy object.

Two objects that should have come to the same place are held against each other with it. The rule
is docs/strategies.md, U3.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from hashlib import sha256
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from msgspec import Struct

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.loop import gathered
from tracepaper.daemon.session.user_class import unguarded
from tracepaper.daemon.session.user_code import own_folder, own_sources
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.make import resumed_replay
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import SHARES, near_measure, predictions_agree
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.compare import Difference, decision_differences, differences_of
from tracepaper.replay.checks.isolation import FreshProcesses, derive_steps, derived
from tracepaper.replay.checks.perturbations import DerivedStep, of_each_strategy
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.gate import GateKind, gate_order
from tracepaper.strategies.types.decisions import Decision

SHOWN_LONGEST: Final = 40
"""Characters of a value that is named with its name; of longer ones a hash is compared."""
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, Enum)
_ABSENT: Final = "absent"

Memory = Mapping[str, str]
"""The name of everything remembered, and its value as text that is equal where values are."""


def memory_of(strategy: Strategy) -> dict[str, str]:
    """Return what *strategy* could remember a bar by, but for its declared state.

    These are its attributes, those of its classes, and the variables of its modules.
    """
    user = unguarded(strategy)
    is_declared = getattr(user, "State", None) is not None
    named = {
        f"self.{name}": value
        for name, value in _attributes(user).items()
        if name != "state" or not is_declared
    }
    for kind in type(user).__mro__:
        if kind in {Strategy, PortfolioStrategy}:
            break
        named |= {f"{kind.__name__}.{name}": value for name, value in _variables(kind)}
    for module in _own_modules(type(user)):
        for name, value in _variables(module):
            if getattr(value, "__module__", module.__name__) == module.__name__:
                named[f"{name} of module {module.__name__}"] = value
    return {name: text for shown, value in named.items() for name, text in _named(shown, value)}


def unlike(first_memory: Memory, second_memory: Memory) -> list[str]:
    """Return the names of what differs, with both values where they are short."""
    differing = [
        (name, first_memory.get(name, _ABSENT), second_memory.get(name, _ABSENT))
        for name in dict.fromkeys((*first_memory, *second_memory))
        if first_memory.get(name) != second_memory.get(name)
    ]
    differing.sort(key=lambda values: max(map(len, values[1:])))
    return [
        f"{name} ({first} and {second})" if len(first + second) <= 2 * SHOWN_LONGEST else name
        for name, first, second in differing
    ]


def _own_modules(kind: type) -> Iterator[ModuleType]:
    """Yield the class's module and those of its own folder that it imports."""
    yield sys.modules[kind.__module__]
    root, file = own_folder(kind), sys.modules[kind.__module__].__file__
    if root is None or file is None:
        return
    paths = set(own_sources(Path(file), root)) - {Path(file).resolve()}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and Path(path).resolve() in paths:
            yield module


def _variables(owner: type | ModuleType) -> Iterator[tuple[str, object]]:
    """Yield what can change of a class or module."""
    for name, value in vars(owner).items():
        is_constant = isinstance(value, (type, ModuleType, property))
        if not name.startswith("__") and not is_constant:
            yield name, value


def _named(shown: str, value: object, depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield the names and the texts of *value*, or of the attributes of which it is made."""
    if depth and (attributes := _attributes(value)):
        for name, part in attributes.items():
            yield from _named(f"{shown}.{name}", part, depth - 1)
    else:
        yield shown, _text(value)


def _attributes(value: Any) -> dict[str, object]:  # noqa: ANN401 - any kind of value
    """Return the attributes of an object; none of what is plain, a function or a class."""
    if isinstance(value, (*_PLAIN, type, ModuleType, FunctionType)):
        return {}
    names = [*getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += (slots,) if isinstance(slots, str) else slots
    if isinstance(value, Struct):
        names += value.__struct_fields__
    hidden = {"__wrapped__", "__dict__", "__weakref__"}
    return {name: getattr(value, name) for name in {*names} - hidden if hasattr(value, name)}


def _text(value: object) -> str:
    """Return *value* as text: itself where that is short, else its kind and a hash."""
    text = _canonical(value, frozenset())
    if len(text) <= SHOWN_LONGEST:
        return text
    return f"{type(value).__name__} {sha256(text.encode()).hexdigest()}"


def _canonical(value: object, above: frozenset[int]) -> str:
    """Return a text, equal for equal values; *above* are the ids of the values around it."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in above:
        return "…"
    kind = type(value).__name__

    def text_of(part: object) -> str:
        return _canonical(part, above | {id(value)})

    match value:
        case np.ndarray():
            text = f"{kind} {value.dtype} {value.shape} {value.tolist()}"
        case list() | tuple() | deque():
            text = f"{kind}({', '.join(map(text_of, value))})"
        case set() | frozenset():  # those that are equal may be in another order
            text = f"{kind}({', '.join(sorted(map(text_of, value)))})"
        case Mapping():
            text = ", ".join(f"{text_of(key)}: {text_of(item)}" for key, item in value.items())
            text = f"{kind}({text})"
        case MethodType() | FunctionType() | type() | ModuleType():
            text = value.__name__
        case _ if attributes := _attributes(value):
            texts = (f"{name}={text_of(attributes[name])}" for name in sorted(attributes))
            text = f"{kind}({', '.join(texts)})"
        case _:
            text = repr(value)
            text = kind if " at 0x" in text else text
    return text


NAMED_MOST: Final = 3
"""Of what differs in memory, the shortest are named."""
_RISK: Final = frozenset(gate_order(GateKind.RISK))


@dataclass
class RecursiveFinding:
    """What was found: how many starts, how many steps compared, the first difference."""

    probes: int = 0
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    undeclared: list[str] = field(default_factory=list)  # what two objects remember otherwise

    @property
    def holds(self) -> bool:
        """Whether something was compared, and nothing differs."""
        return self.compared > 0 and not self.differences

    def sentence(self) -> str:
        """Say the first difference, and what it comes from."""
        if not self.differences:
            return f"{self.probes} probes compared no step: nothing was checked; give more bars."
        first = self.differences[0].sentence()
        if not self.undeclared:
            return f"{first}."
        named = ", ".join(self.undeclared[:NAMED_MOST])
        return (
            f"{first}: it keeps what its warm-up bars do not rebuild and its State does not "
            f"declare, {named}."
        )


def record_until(
    connection: Connection, config: Config, data: MarketData, mode: str, database: Path, end_ms: int
) -> None:
    """Record the run in *database* up to the bars that open at *end_ms*."""
    replay = build(config, data, started_at_ms=0, mode=mode, until_ms=end_ms, database=database)
    with closing(SqlAuditLog.open(database)) as audit:
        run_replay(replay, audit, Tally())
    connection.send(None)


def derive(
    connection: Connection, config: Config, data: MarketData, mode: str, database: Path | None
) -> None:
    """Send each decided step of all bars, or of those after the run that *database* holds.

    None asks for the next one, which is None after the last. The id of an instrument asks what its
    strategy remembers now. After a recorded run it goes on as ``tracepaper replay --resume`` does;
    nothing is stored.
    """
    with ExitStack() as stack:
        if database is None:
            replay = build(config, data, started_at_ms=0, mode=mode)
            engine, steps = replay.engine, derived(replay)
        else:
            audit = stack.enter_context(closing(SqlAuditLog.open(database)))
            _, engine, predictor, events = resumed_replay("last", data, audit, database)
            units = gathered(events)
            steps = (derive_steps(engine, unit, predictor.predict(unit)) for unit in units)
        decided = (each for each in chain.from_iterable(steps) if each.bar and each.step.decision)
        while True:
            instrument = connection.recv()
            connection.send(
                next(decided, None)
                if instrument is None
                else memory_of(engine.states[instrument].strategy)
            )


def recursive(
    config: Config,
    data: MarketData,
    fresh: FreshProcesses,
    *,
    probes: int,
    warmup: int,
    mode: str = "scan",
    report: Callable[[str], None] = lambda _: None,
) -> RecursiveFinding:
    """Start at *probes* later bars, each time in a process that has seen nothing.

    The run until there is recorded and goes on as ``replay --resume`` does: after *warmup* bars,
    and given its account and declared state, nothing may differ. Of several instruments all start
    at the time of a bar of the first.
    """
    finding, candles = RecursiveFinding(), data.candles
    for part in candles:
        if len(part) - warmup < 2:  # one bar to start later by, one to compare
            raise DataInvalid(
                f"{part.path} holds {len(part)} bars and the warm-up alone takes {warmup}; "
                "give more data."
            )
    times = candles[0].open_time_ms
    last_ms = min(int(part.open_time_ms[-warmup - 1]) for part in candles)
    room = int(np.searchsorted(times, last_ms, side="right"))
    if room < 2:
        raise DataInvalid(
            f"After the first bar of {candles[0].path} too few bars of the others follow for the "
            f"warm-up of {warmup}; give candles of one time."
        )
    given = config, data, mode
    rows = sorted({max(1, round(room * (turn + 1) / (probes + 1))) for turn in range(probes)})
    starts = [
        max(
            int(part.open_time_ms[np.searchsorted(part.open_time_ms, times[row]) + warmup])
            for part in candles
        )
        for row in rows
    ]
    with fresh.child(derive, *given, None) as child:
        steps: Iterator[DerivedStep] = iter(partial(child.ask, None), None)
        whole = [(bar, mine) for mine in steps if (bar := mine.bar)]
    for number, from_ms in enumerate(starts):
        report(f"probe {number + 1} of {len(starts)}: starting at bar {rows[number] + warmup}")
        with TemporaryDirectory(prefix="tracepaper-recursive-") as folder:
            database = Path(folder) / "run.db"
            with fresh.child(record_until, *given, database, from_ms) as child:
                child.receive()
            finding.probes += 1
            with fresh.child(derive, *given, database) as child:
                for bar, mine in whole:
                    if bar.open_time_ms < from_ms:
                        continue
                    other: DerivedStep = child.ask(None)
                    finding.compared += 1
                    if same_judgement(mine, other):
                        continue
                    finding.differences.append(difference_of(mine, other))
                    with fresh.child(derive, *given, None) as again:
                        while again.ask(None).step.sequence < mine.step.sequence:
                            pass
                        memories = (each.ask(bar.instrument) for each in (again, child))
                        finding.undeclared = unlike(*memories)
                    return finding
    return finding


@of_each_strategy
def same_judgement(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether two steps forecast, measure and signal the same, whatever was held before.

    What stands, what a limit of the account refuses and what a horizon closes are the account's;
    the signal before all that is the strategy's alone, and HOLD is a signal like the others.
    """
    a, b = mine.step.decision, other.step.decision
    if a is None or b is None:
        return a is b
    if not same_signal(mine, other) or not _notes_agree(mine, other):
        return False
    gates = a.gate_set.gates
    kept = [place for place, gate in enumerate(gates) if gate not in _RISK]
    # The limits of the account measure what was held before.
    if gates != b.gate_set.gates or not all(
        near_measure(a.measures[at], b.measures[at]) for at in kept
    ):
        return False
    judged = a.refused_by not in _RISK and b.refused_by not in _RISK
    same = (a.refused_by, a.regime) == (b.refused_by, b.regime)
    return same or not judged or _at_threshold(a, b)


@of_each_strategy
def same_signal(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether the strategy signalled the same of forecasts that agree."""
    a, b = mine.signal, other.signal
    if a is None or b is None:
        return a is b
    if isinstance(a, Orders) or isinstance(b, Orders):
        return a == b and predictions_agree(mine.step.prediction, other.step.prediction)
    same = a.action is b.action and abs(a.strength - b.strength) <= SHARES
    return same and predictions_agree(mine.step.prediction, other.step.prediction)


def _notes_agree(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether the strategy noted the same: exactly, or of forecasts within 1e-4."""
    a, b = mine.step.decision, other.step.decision
    assert a is not None
    assert b is not None
    if a.note == b.note or a.note is None or b.note is None or mine.step.prediction is None:
        return a.note == b.note
    return list(a.note) == list(b.note) and all(
        near_measure(first, second)
        if not isinstance(first, str) and not isinstance(second, str)
        else first == second
        for first, second in zip(a.note.values(), b.note.values(), strict=True)
    )


def _at_threshold(a: Decision, b: Decision) -> bool:
    """Return whether a gate that only one of the two passes stands within 1e-4 of its threshold."""
    for place, threshold in enumerate(a.gate_set.thresholds):
        bit = 1 << place
        if (a.passed ^ b.passed) & bit:
            first, second = a.measures[place], b.measures[place]
            if first is None or second is None or not near_measure(first, threshold):
                return False
    return True


def _shown(signal: Signal | Orders) -> str:
    if isinstance(signal, Signal):
        return signal.action.value
    return f"{len(signal.requests)} requests, {_text(signal.requests)}"


def difference_of(mine: DerivedStep, other: DerivedStep) -> Difference:
    """Return the first field in which two steps differ: columns, then the signal, then others."""
    for (name, first), (_, second) in zip(mine.columns, other.columns, strict=False):
        if repr(first) != repr(second):
            return Difference.of(mine.step, f"column {name!r}", str(first), str(second))
    every = zip(mine.by_strategy, other.by_strategy, strict=True)
    mine, other = next((pair for pair in every if not same_judgement(*pair)), (mine, other))
    step, a, b = mine.step, mine.signal, other.signal
    if a is not None and b is not None:
        if isinstance(a, Orders) or isinstance(b, Orders):
            return Difference.of(step, "signal", _shown(a), _shown(b))
        if a.action is not b.action:
            return Difference.of(step, "signal", a.action, b.action)
        if a.strength != b.strength:
            return Difference.of(step, "strength", str(a.strength), str(b.strength))
        if step.decision is not None and other.step.decision is not None:
            for name, first, second in decision_differences(step.decision, other.step.decision):
                return Difference.of(step, name, first, second)
    fields = next(differences_of(step, other.step), ("step", "", ""))
    return Difference.of(step, *fields)
