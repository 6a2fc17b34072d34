"""What a strategy decides at each bar, derived in a process of its own.

A job runs a replay there and sends a ``DerivedRun``. Two of them are compared bar by bar.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tracepaper.daemon.clock import jump_clocks
from tracepaper.daemon.config.loading import Config, custom_classes
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.loop import KnownPredictor, gathered, steps_of
from tracepaper.daemon.session.user_class import imported, user_class
from tracepaper.daemon.session.user_code import declared_files
from tracepaper.daemon.session.user_model import feature_function, model_class, model_files
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.make import resumed_replay
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import near_measure, predictions_agree
from tracepaper.replay.backtest.run import Tally, predictor_over, run_replay
from tracepaper.replay.checks import cut_files, external_inputs
from tracepaper.replay.checks.compare import Difference, shown
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.strategy import decision_bars
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import Action, Forecast, Step
from tracepaper.strategies.types.market import Bar, Event
from tracepaper.strategies.without_fills import DecisionCounts

NOTE, EVERYTHING = range(2)
"""How much of two decisions is compared: signals, forecasts and notes, or all in every bit.

What lies beyond notes depends on the account.
"""

Decided = dict[tuple[int, str], Any]
"""The values of one decision by depth and name."""

_THREADS: Final = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
"""Variables that stay: another number of threads would round sums differently."""


@dataclass
class DerivedRun:
    """The decisions of one run, or those before its *error*."""

    decisions: dict[tuple[int, str], Decided] = field(default_factory=dict)
    """By open time (UTC ms) and instrument."""
    error: TracepaperError | None = None
    bars: int = 0
    warmup: int = 0  # bars
    is_portfolio: bool = False  # one object decides for all instruments
    idle: str = ""  # why no position was asked for; empty if one was
    opened: Sequence[ExternalInput] = ()  # and not declared
    declared: Sequence[str] = ()  # paths, without those of [model] files
    native: Sequence[str] = ()  # packages whose files are not observed
    ended: Sequence[str] = ()  # files of which it read a copy that ends with the last bar

    def add(self, engine: Engine, events: Iterable[Event], predictor: KnownPredictor) -> None:
        """Run *events* through *engine*, and add what the strategies decide."""
        counts = DecisionCounts()
        try:
            for unit in gathered(events):
                for step in steps_of(engine, unit, predictor.predict(unit)):
                    if type(step.event) is not Bar:
                        continue
                    self.bars += step.accepted
                    key = step.event.instrument
                    if step.decision is not None:
                        self.decisions[step.event.open_time_ms, key] = _decided(step, engine, key)
                        if (signal := engine.deciders[key].signal) is not None:
                            action = signal.action if isinstance(signal, Signal) else Action.ORDERS
                            counts.add(action, None, signal.reason, None)
        except TracepaperError as error:
            self.error = error
        self.idle = "" if counts.asked else counts.why_no_fill()


def _decided(step: Step, engine: Engine, key: str) -> Decided:
    """Return the values of the decision of *step* on instrument *key*."""
    decision = step.decision
    assert decision is not None
    signal = engine.deciders[key].signal
    values: Decided = {
        (EVERYTHING, f"column {name}"): value for name, value in engine.columns_of(key)
    }
    asked: object = signal.requests if isinstance(signal, Orders) else None
    if isinstance(signal, Signal):
        asked, values[NOTE, "strength"] = signal.action.value, signal.strength
    values[NOTE, "signal"] = str(asked)
    values |= {(NOTE, f"note {name}"): value for name, value in (decision.note or {}).items()}
    values[EVERYTHING, "terms of the signal"] = repr(signal)
    if isinstance(step.prediction, Forecast):
        values[NOTE, "forecast"] = step.prediction
    for name in ("action", "target_quantity", "reason", "refused_by", "regime"):
        values[EVERYTHING, name] = getattr(decision, name)
    for gate, measure in zip(decision.gate_set.gates, decision.measures, strict=True):
        values[EVERYTHING, f"gate {gate}"] = measure
    return values


# ---------------------------------------------------------------- comparison


def first_difference(
    base: DerivedRun,
    other: DerivedRun,
    depth: int = EVERYTHING,
    *,
    only: str | None = None,
    from_ms: float = 0,
    until_ms: float = float("inf"),
) -> tuple[Difference | None, int]:
    """Return the first difference of two runs, and how many decisions were compared.

    Bars open from *from_ms* until *until_ms*, both included. Only the instrument *only* is
    compared, if given. Below ``EVERYTHING`` forecasts and numbers agree within 1e-4.
    """
    compared = 0
    for (open_ms, key), first in sorted(base.decisions.items(), key=lambda item: item[0]):
        if not from_ms <= open_ms <= until_ms or only not in {None, key}:
            continue
        compared += 1
        second = other.decisions.get((open_ms, key))
        if second is None:
            why = "missing" if other.error is None else f"refused: {other.error}"
            return Difference(key, open_ms, "decision", "made", why), compared
        for name in dict.fromkeys((*first, *second)):
            values = first.get(name, "absent"), second.get(name, "absent")
            if name[0] <= depth and not _agree(*values, is_exact=depth == EVERYTHING):
                return Difference(key, open_ms, name[1], *map(shown, values)), compared
    return None, compared


def _agree(first: object, second: object, *, is_exact: bool) -> bool:
    """Return whether two values are equal (NaN equals NaN), or agree unless *is_exact*."""
    if first == second or repr(first) == repr(second):
        return True
    if isinstance(first, Forecast) and isinstance(second, Forecast):
        return not is_exact and predictions_agree(first, second)
    if is_exact or not isinstance(first, float) or not isinstance(second, float):
        return False
    return near_measure(first, second)


# ---------------------------------------------------------------- jobs


def send_run(
    connection: Connection,
    config: Config,
    data: MarketData,
    mode: str,
    *,
    times: int = 1,
    one_by_one: bool = False,
    kept: Collection[str] | None = None,
    files: Collection[str] = (),
) -> None:
    """Send the run over *data*, the last of *times* equal ones in this process.

    With *one_by_one* declared columns are computed bar by bar, as live, and not in blocks. With
    *kept* variables, this process has no others, works in another folder unless it keeps some, and
    its clocks jump. Of the candle *files* it can read only what the last bar of *data* knows.
    """
    with TemporaryDirectory() as folder:
        if files:
            cut_files.end_files(files, data.close_of(int(data.opens_ms[-1])), Path(folder))
        connection.send(_run_of(config, data, mode, times, one_by_one, kept))


def _run_of(
    config: Config,
    data: MarketData,
    mode: str,
    times: int,
    one_by_one: bool,  # noqa: FBT001 - as ``send_run`` takes it
    kept: Collection[str] | None,
) -> DerivedRun:
    """Return the run that ``send_run`` sends."""
    external_inputs.listen(custom_classes(config))
    if kept is not None:
        _go_elsewhere(config, kept)
    while True:
        run, replay = DerivedRun(), build(config, data, started_at_ms=0, mode=mode)
        engine, predictions = (
            replay.engine,
            predictor_over(replay, in_blocks=not one_by_one, probes=False),
        )
        # Bars of higher timeframes from files need none of the instrument's own bars.
        run.warmup = max(
            decision_bars(engine.deciders[key].strategy) if data.frames else market.reach
            for key, market in engine.markets.items()
        )
        run.is_portfolio = engine.is_portfolio
        run.declared, of_model = _files(config)
        if kept is not None and not kept:
            sys.path[:] = [str(Path(entry).absolute()) for entry in sys.path]
            os.chdir("/")
        run.add(engine, predictions.events(replay), predictions.predictor)
        times -= 1
        if times < 1:
            break
    run.opened = external_inputs.opened([*run.declared, *of_model])
    run.native, run.ended = external_inputs.native_readers(), cut_files.served()
    return run


def _go_elsewhere(config: Config, kept: Collection[str]) -> None:
    """Delete the variables that are not *kept*, and let clocks jump."""
    for name in set(os.environ) - _THREADS - {*kept}:
        del os.environ[name]
    # Compiled code checks the size of date types as it loads, and crashes on ours. So load all that
    # the classes import, and import their modules again afterwards.
    names = custom_classes(config)
    for name in names:
        imported(name, key="strategy.name")
    jump_clocks()
    for name in names:
        sys.modules.pop(name.partition(":")[0], None)


def send_record(
    connection: Connection, config: Config, data: MarketData, mode: str, until_ms: int
) -> None:
    """Send the record of a replay of *data* that ends before *until_ms*."""
    log = MemoryLog(keeps_all=True)
    run_replay(build(config, data, started_at_ms=0, mode=mode, until_ms=until_ms), log, Tally())
    connection.send(log.content)


def send_resumed(connection: Connection, data: MarketData, content: bytes) -> None:
    """Send the run that resumes the record *content*, as ``replay --resume`` does."""
    run = DerivedRun()
    with MemoryLog(content=content) as audit:
        resumed = resumed_replay("last", data, audit, audit.reader)
        run.add(resumed.engine, resumed.events, resumed.predictor)
    connection.send(run)


def _files(config: Config) -> tuple[list[str], list[str]]:
    """Return the paths that the user's classes in *config* declare, and those of [model] files."""
    declared, of_model = list[str | Path](), list[str | Path]()
    if ":" in (name := config.strategy.name):
        declared += declared_files(user_class(name)).values()
    if config.model.custom_class:
        model = model_class(config.model.custom_class)
        of_model = [*model_files(config, model).values()]
        if (features := feature_function(config, model)) is not None:
            declared += features.files.values()
    return list(map(str, declared)), list(map(str, of_model))
