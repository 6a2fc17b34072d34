"""Fresh processes in which ``lookahead`` and ``verify`` derive steps.

Nothing of an earlier run, and no later bar, is in their memory: one server is started by ``exec``,
so that it holds nothing of ours, and forks a child for each job.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import FunctionType
from typing import Any, Concatenate, Final, ParamSpec, Self

import msgspec
import numpy as np

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.daemon.clock import SystemClock, jump_clocks
from tracepaper.daemon.config.loading import Config, own_classes
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine, needs_forecaster
from tracepaper.daemon.session.loop import (
    BarHistory,
    InlinePredictor,
    events_of,
    gathered,
    steps_of,
)
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.run_row import code_version, libraries
from tracepaper.daemon.session.user_class import user_class
from tracepaper.daemon.session.user_code import Code, declared_files, own_folder
from tracepaper.daemon.session.user_model import (
    feature_function,
    model_class,
    model_files,
    user_model,
)
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import predictor_over
from tracepaper.replay.checks import external_inputs, perturbations
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.perturbations import (
    DerivedStep,
)
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.strategy import remembered
from tracepaper.strategies.api.timeframes import Row
from tracepaper.strategies.errors import StrategyFailed, TracepaperError
from tracepaper.strategies.sessions import Sessions
from tracepaper.strategies.types.decisions import FillModel, Prediction
from tracepaper.strategies.types.market import Bar, Instrument, Unit

P = ParamSpec("P")
Job = Callable[Concatenate[Connection, P], None]
"""A function of a module: its first argument is the child's end of the connection."""

_SERVE: Final = "from tracepaper.replay.checks.isolation import serve; serve({}, {!r})"


class Overdue(Exception):
    """A child did not answer in time."""


class FreshProcesses:
    """The server; ``with fresh.child(job, …) as child`` runs *job* in a new process of its own.

    *preload* are modules to import before any child is forked: slow ones that a job needs.
    Answers are waited for without end, unless :meth:`limit_waits` says how long. Its children
    share the hashes of texts, which Python draws unless *hash_seed* says them.
    """

    def __init__(self, *preload: str, hash_seed: int | None = None) -> None:
        self._preload, self._hash_seed = preload, hash_seed
        self._patience_s: Callable[[], float] | None = None
        self._others: dict[int, FreshProcesses] = {}
        self._folder, self._environment = os.getcwd(), dict(os.environ)  # noqa: PTH109 - as text

    def __enter__(self) -> Self:
        """Start the server."""
        self._requests, theirs = socket.socketpair()
        seeded = {} if self._hash_seed is None else {"PYTHONHASHSEED": str(self._hash_seed)}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own words
                [sys.executable, "-c", _SERVE.format(theirs.fileno(), self._preload)],
                pass_fds=[theirs.fileno()],
                cwd=self._folder,
                env={**self._environment, **seeded},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # so that children that hang end with it
            )
        return self

    def __exit__(self, *_error: object) -> None:
        """End the server and its children, also one that hangs."""
        for other in self._others.values():
            other.__exit__()
        self._requests.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def limit_waits(self, patience_s: Callable[[], float]) -> None:
        """Wait for an answer of a later child as many seconds as *patience_s* then returns."""
        self._patience_s = patience_s

    def under(self, hash_seed: int) -> FreshProcesses:
        """Return a server whose children hash texts by *hash_seed*; it ends with this one."""
        if hash_seed not in self._others:
            other = FreshProcesses(*self._preload, hash_seed=hash_seed)
            other._folder, other._environment = self._folder, self._environment
            self._others[hash_seed] = other.__enter__()
        self._others[hash_seed]._patience_s = self._patience_s  # noqa: SLF001 - one of ours
        return self._others[hash_seed]

    @contextmanager
    def child(self, job: Job[P], *given: P.args, **named: P.kwargs) -> Iterator[Child]:
        """Run ``job(connection, *given, **named)`` in a new process; yield our end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._requests, [b"."], [theirs.fileno()])
        with Connection(ours.detach()) as connection:
            connection.send((sys.path, job, given, named))
            yield Child(connection, self._patience_s)


class Child:
    """Our end: what a child sends, its errors raised here."""

    def __init__(
        self, connection: Connection, patience_s: Callable[[], float] | None = None
    ) -> None:
        self._connection = connection
        self._patience_s = patience_s

    def fileno(self) -> int:
        """Return our end, so that several children can be waited for at once."""
        return self._connection.fileno()

    def send(self, value: object) -> None:
        """Send *value* to the child."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(value)

    def receive(self) -> Any:  # noqa: ANN401 - whatever the job sends
        """Receive the child's next answer; raise its error, or ``StrategyFailed`` if it died.

        Raises ``Overdue`` where nothing comes within the server's patience.
        """
        if self._patience_s is not None and not self._connection.poll(self._patience_s()):
            raise Overdue
        try:
            value = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise StrategyFailed(
                "The strategy ended the process in which it was checked; let it raise instead."
            ) from error
        if isinstance(value, TracepaperError):
            raise value
        return value

    def ask(self, value: object) -> Any:  # noqa: ANN401 - whatever the job sends
        """Send *value* and return the answer."""
        self.send(value)
        return self.receive()


def serve(descriptor: int, preload: tuple[str, ...]) -> None:
    """Fork a child for every socket that arrives, until ours is closed: the server's body."""
    __import__("tracepaper.replay.checks.isolation")
    for name in preload:
        with contextlib.suppress(ImportError):  # a class may do without it
            __import__(name)
    for kept in (code_version, libraries, recorded_instruments):
        kept()  # so that no child reads it again
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with our socket
    with socket.socket(fileno=descriptor) as requests:
        while True:
            _, handed, _, _ = socket.recv_fds(requests, 1, 1)
            if not handed:
                return
            if os.fork() == 0:
                requests.close()
                _work(Connection(handed[0]))
                os._exit(0)
            os.close(handed[0])


def _work(connection: Connection) -> None:
    """Do one job; an error of ours is its answer."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    random.seed()  # no two children may draw alike
    np.random.seed()  # noqa: NPY002 - what users draw from
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        path, job, given, named = connection.recv()
        sys.path[:] = path
        try:
            job(connection, *given, **named)
        except TracepaperError as error:
            connection.send(error)


@dataclass(frozen=True)
class Accesses:
    """What a child knows of the class beside its decisions."""

    opened: tuple[ExternalInput, ...]  # and not declared
    declared: tuple[str, ...]  # paths, but for those of [model] files
    modules: tuple[str, ...]  # files of its own that Python imported
    unset: tuple[str, ...]  # variables that were asked for in an empty environment
    native: tuple[str, ...]
    compiled: tuple[str, ...]  # installed modules that must be loaded before clocks jump


@dataclass(frozen=True)
class Whole:
    """A replay of all bars, as any process would make it."""

    setup: Setup
    warmup: int
    steps: list[DerivedStep]
    accesses: Accesses
    is_portfolio: bool  # one object decides for all instruments
    is_cut: bool  # whether the time did not suffice for all bars


@dataclass(frozen=True)
class Setup:
    """What an engine without candles is made of."""

    config: Config
    instruments: tuple[Instrument, ...]
    period_start_ms: int
    mode: str
    sessions: Sessions | None
    jumping: bool = False  # whether this process's clocks jump
    compiled: tuple[str, ...] = ()  # what is then imported before
    around: perturbations.Surroundings | None = None

    def machine(self) -> Callable[[Unit, Sequence[Prediction]], list[DerivedStep]]:
        """Return what steps a unit through the engine as it stood before the replay's first event.

        It is given the predictions, but for those of a user's own model: that is asked again.
        """
        if self.jumping:
            # Compiled code measures the types of dates while it is loaded, and dies of ours.
            for name in self.compiled:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            jump_clocks()
        if self.around is not None:
            self.around.enter()
        forecaster = None
        if needs_forecaster(self.config):
            forecaster = load_forecaster(self.config, mode=self.mode)
        engine = build_engine(
            self.config,
            self.instruments,
            execution=FillModel(self.config.execution.model),
            period_start_ms=self.period_start_ms,
            forecaster=forecaster,
            sessions=self.sessions,
        )
        user = user_model(forecaster)
        if user is None or user.is_outside:
            return partial(derive_steps, engine)
        history = BarHistory([item.id for item in self.instruments], context=user.context)
        start_ms = self.period_start_ms
        model = InlinePredictor(user, history, period_start_ms=start_ms)
        return lambda unit, _stored: derive_steps(engine, unit, model.predict(unit))


EngineInput = tuple[Unit, Sequence[Prediction]]
"""The inputs that an engine takes in at once, with the prediction for each event."""


# ---------------------------------------------------------------- jobs

LEAST_STEPS: Final = 500
"""So many are derived however short the time is."""
ANEW: Final = "anew"
"""Asks ``step_through`` for another engine, in the same process."""


def derive_whole(connection: Connection, *given: Any) -> None:  # noqa: ANN401 - of whole_of
    """Send the replay that ``whole_of`` makes of *given*."""
    connection.send(whole_of(*given))


def whole_of(config: Config, data: MarketData, mode: str, within_s: float) -> Whole:
    """Derive all steps of *data*, or those that are done *within_s*, a few in any case."""
    external_inputs.listen(own_classes(config))
    now_s = SystemClock().network_s
    until_s = now_s() + within_s
    replay = _replay(config, data, mode)
    steps: list[DerivedStep] = []
    is_cut = False
    for together in derived(replay):
        if is_cut := len(steps) >= LEAST_STEPS and now_s() > until_s:
            break
        steps += together
    engine = replay.engine
    # Bars of higher timeframes that come from files need none of the instrument's own.
    warmups = [
        remembered(engine.states[key].strategy) if data.frames else market.reach
        for key, market in engine.markets.items()
    ]
    start_ms = replay.run.period_start_ms
    setup = Setup(replay.config, replay.instruments, start_ms, mode, replay.feed.sessions)
    opened = accesses(config)
    return Whole(setup, max(warmups), steps, opened, engine.is_portfolio, is_cut)


def step_through(connection: Connection, setup: Setup) -> None:
    """Step through the inputs that come: none is in this process before its turn.

    A number asks for that step of the last answer, None for what the class did.
    """
    external_inputs.listen(own_classes(setup.config))
    machine = setup.machine()
    last: list[DerivedStep] = []
    while (request := connection.recv()) is not None:
        if request == ANEW:
            machine = setup.machine()
        elif isinstance(request, int):
            connection.send(last[request])
        else:
            last = [step for inputs in request for step in machine(*inputs)]
            connection.send([packed(step) for step in last])
    connection.send(accesses(setup.config))


# ---------------------------------------------------------------- parts


def derived(replay: Replay) -> Iterator[list[DerivedStep]]:
    """Yield the steps of *replay*, those of one close together; nothing is stored."""
    way = predictor_over(replay)
    for unit in gathered(way.events(replay)):
        yield derive_steps(replay.engine, unit, way.predictor.predict(unit))


def given_of(taken: Sequence[DerivedStep]) -> Iterator[EngineInput]:
    """Yield the engine's inputs at the steps *taken*."""
    predictions = iter([derived_step.prediction for derived_step in taken])
    for unit in gathered(derived_step.step.event for derived_step in taken):
        yield unit, list(islice(predictions, len(events_of(unit))))


def derive_steps(
    engine: Engine, unit: Unit, predictions: Sequence[Prediction]
) -> list[DerivedStep]:
    """Return the steps of *unit*, with what was predicted and signalled at each."""
    derived_steps = []
    for step, prediction in zip(steps_of(engine, unit, predictions), predictions, strict=True):
        signal: Signal | Orders | None = None
        frames: tuple[tuple[int, int, Row | None], ...] = ()
        parts: tuple[Signal | Orders | None, ...] = ()
        columns: tuple[tuple[str, Any], ...] = ()
        if isinstance(step.event, Bar) and step.decision is not None:
            signal = engine.states[step.event.instrument].signal
            key = step.event.instrument
            frames, columns = engine.markets[key].newest_frames, engine.columns_of(key)
            parts = tuple(
                None if member.is_empty and not member.failed else member.states[key].signal
                for member in engine.members
            )
        derived_steps.append(DerivedStep(step, prediction, signal, frames, parts, columns))
    return derived_steps


def packed(derived_step: DerivedStep) -> bytes:
    """Return a step with its columns as bytes, equal where two are."""
    return msgspec.msgpack.encode((derived_step.step, derived_step.columns))


def accesses(config: Config) -> Accesses:
    """Return what the user's classes of *config* did in this process since it listens."""
    declared: list[Path] = []
    codes: list[Code] = []
    named = [strategy.name for strategy in config.strategies.named.values()] or [
        config.strategy.name
    ]
    for name in named:
        if ":" in name:
            codes.append(made_of := user_class(name))
            declared += declared_files(made_of).values()
    exempt = list(declared)
    if config.model.own_class:
        codes.append(model := model_class(config.model.own_class))
        exempt += model_files(config, model).values()
        if (function := feature_function(config, model)) is not None:
            assert isinstance(function.function, FunctionType)
            codes.append(function.function)
            declared += function.files.values()
            exempt += function.files.values()
    folders = [folder for code in codes if (folder := own_folder(code)) is not None]
    return Accesses(
        tuple(external_inputs.opened(folders, exempt)),
        tuple(map(str, declared)),
        tuple(external_inputs.own_modules(folders)),
        perturbations.unset(),
        tuple(external_inputs.native_readers()),
        tuple(external_inputs.compiled_modules()),
    )


def _replay(config: Config, data: MarketData, mode: str) -> Replay:
    """Return the replay of *data*, warmed by the candles of frames that begin before its bars.

    Later ones say what the bars add up to, and would tell a bar of the future.
    """
    first_ms = {part.symbol: int(part.open_time_ms[0]) for part in data.candles}
    before = [
        part[part.open_time_ms < first_ms[part.symbol]]
        for part in data.frames
        if part.symbol in first_ms
    ]
    kept = replace(data, frames=[part for part in before if len(part)])
    return build(config, kept, started_at_ms=0, mode=mode)
