"""A user's strategy class: imported, checked, and called under guard.

The rules are docs/strategies.md, U1 to U6, and of the hash docs/identity.md, I15.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from numbers import Real
from pathlib import Path
from types import FunctionType, NoneType
from typing import Final, Generic, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.engine.state import TWINS
from tracepaper.daemon.session import external_inputs
from tracepaper.daemon.session.user_code import ForeignCode, class_sha256, own_folder, short
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    Volatility,
    is_protected,
)
from tracepaper.strategies.api.model import OWN_CLASSES, FeatureFunction, FoundClass
from tracepaper.strategies.api.strategy import (
    PortfolioMember,
    PortfolioStrategy,
    Strategy,
    check_declared,
)
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed
from tracepaper.strategies.gates.declared import operator
from tracepaper.strategies.gates.gate import GATES, gate_order
from tracepaper.strategies.types.decisions import Action, OrderKind, PositionSide
from tracepaper.strategies.types.market import Bar, CorporateAction, Side
from tracepaper.strategies.units import INTERVALS, MONEY_LIMIT

WARMUP_MOST: Final = 100_000
REQUESTS_MOST: Final = 200
"""Requests of one list of orders."""
TAG_LONGEST: Final = 40
"""Characters of an order's tag."""
REASON_LONGEST: Final = 200
"""Characters of a reason; it is stored with the decision and shown in one line."""
NOTES_MOST: Final = 16
NOTE_NAME_LONGEST: Final = 40

_BY_PLACE: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNMEASURED: Final = Signal(Action.HOLD, "strength is not finite")

Own = TypeVar("Own", Strategy, PortfolioStrategy)
OwnClass = type[Strategy] | type[PortfolioStrategy]
"""The classes that a configuration may name: one object an instrument, or one for all."""

_objects: Final[ContextVar[Mapping[str, type]]] = ContextVar("_objects", default={})  # noqa: B039
"""Classes that were passed as objects, by the names that their runs store; never changed."""


@contextmanager
def known_class(made_of: type | None) -> Iterator[str]:
    """Let :func:`user_class` find *made_of* by its name meanwhile, in this thread; yield the name.

    The name is ``module:Class``, whether or not it can be imported (:func:`is_importable`).
    """
    if made_of is None:
        yield ""
        return
    name = f"{made_of.__module__}:{made_of.__name__}"
    before = _objects.set({**_objects.get(), name: made_of})
    try:
        yield name
    finally:
        _objects.reset(before)


def is_importable(made_of: type) -> bool:
    """Return whether another process finds *made_of* by ``module:Class``."""
    module = sys.modules.get(made_of.__module__)
    if made_of.__module__ == "__main__" or getattr(module, made_of.__name__, None) is not made_of:
        return False
    outermost = made_of.__module__.partition(".")[0]
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(outermost, None) for find in finders if find is not None)


def user_class(name: str) -> OwnClass:
    """Return the strategy that ``module:Class`` names; raise ``ConfigInvalid`` where it is none."""
    made_of = imported(name, key="strategy.name")
    if not (isinstance(made_of, type) and issubclass(made_of, (Strategy, PortfolioStrategy))):
        raise ConfigInvalid(
            f"strategy.name '{name}' is no tracepaper.Strategy; derive from it, or from "
            "tracepaper.PortfolioStrategy."
        )
    return made_of


def imported(name: str, *, key: str) -> object:
    """Import ``module:Name``, the value of *key* of the configuration.

    Its module is looked for where Python looks, beside the configuration file and in the working
    folder, in this order. A class that was passed as an object (:func:`known_class`) is itself.
    Raises ``ConfigInvalid`` where there is no such name or its module is no Python, and
    ``StrategyFailed`` where its module fails.
    """
    if (passed := _objects.get().get(name)) is not None:
        external_inputs.belongs(name, own_folder(passed))
        return passed
    module_name, _, class_name = name.partition(":")
    if module_name == "__main__" and not hasattr(sys.modules["__main__"], class_name):
        raise ConfigInvalid(
            f"The class of {key} '{name}' was typed in a session or a script that is not "
            "here; put it into a module of its own and name it module:Class."
        )
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        with ForeignCode(name, "when it was imported"):
            named: object = getattr(importlib.import_module(module_name), class_name)
            code = named.function if isinstance(named, FeatureFunction) else named
            if isinstance(code, type | FunctionType):
                external_inputs.belongs(name, own_folder(code))
    except StrategyFailed as error:
        if isinstance(error.__cause__, SyntaxError):
            raise ConfigInvalid(str(error)) from error  # no start mends it
        if not isinstance(error.__cause__, (ImportError, AttributeError)):
            raise
        if isinstance(error.__cause__, AttributeError) and module_name in sys.modules:
            raise ConfigInvalid(
                f"{key} '{name}': {error.__cause__}; correct the name after the colon."
            ) from error
        raise ConfigInvalid(
            f"{key} '{name}' cannot be imported ({error.__cause__}); put its file "
            "beside the configuration, or its folder on PYTHONPATH."
        ) from error
    except SystemExit as error:
        # Otherwise a check would end silently, as if it held.
        raise StrategyFailed(
            f"{module_name} exits while it is imported; put what it runs under "
            'if __name__ == "__main__".'
        ) from error
    return named


def make_own(name: str, options: dict[str, object], symbols: Sequence[str]) -> dict[str, Strategy]:
    """Return guarded objects of the user's class *name*, by symbol.

    Of a portfolio strategy there is one object, and each symbol has a member of it.
    """
    made_of = user_class(name)
    if issubclass(made_of, PortfolioStrategy):
        portfolio = user_portfolio(made_of, options, symbols, known_as=name)
        return {symbol: PortfolioMember(portfolio) for symbol in symbols}
    return {symbol: user_strategy(made_of, dict(options), known_as=name) for symbol in symbols}


def user_strategy(
    made_of: type[Strategy], options: dict[str, object], *, known_as: str = ""
) -> Strategy:
    """Return an object of the user's class, guarded; its constructor takes *options*.

    They are passed as one dictionary, or as keywords, or not at all, by the constructor's signature
    (docs/strategies.md, U1). *known_as* is its name in the configuration, under which the files
    that it opens are recorded.

    Raises ``ConfigInvalid`` where it refuses them or has an impossible declaration, and
    ``StrategyFailed`` where it fails otherwise.
    """
    strategy = _made(made_of, options, known_as)
    with external_inputs.AttributedTo(known_as):
        _check(strategy)
        return _Guarded(strategy, known_as)


def user_portfolio(
    made_of: type[PortfolioStrategy],
    options: dict[str, object],
    symbols: Sequence[str],
    *,
    known_as: str = "",
) -> PortfolioStrategy:
    """Return the one object of the user's portfolio class over *symbols*, guarded as above."""
    portfolio = _made(made_of, options, known_as)
    with external_inputs.AttributedTo(known_as):
        _check(portfolio)
        portfolio.symbols = tuple(symbols)
        return _GuardedPortfolio(portfolio, known_as)


def _made(made_of: type[Own], options: dict[str, object], known_as: str) -> Own:
    with ForeignCode(made_of.__name__, "when its State was made", known_as):
        check_declared(made_of.__name__, made_of.State)
    _check_decide(made_of)
    try:
        with ForeignCode(made_of.__name__, "when it was made", known_as):
            return _called(made_of, options)
    except StrategyFailed as error:
        if not isinstance(error.__cause__, (TypeError, ValueError, KeyError)):
            raise
        raise ConfigInvalid(
            f"{made_of.__name__} refused [strategy.options] ({error.__cause__}); correct them, and "
            "let its __init__ take them as one dictionary, or by their names."
        ) from error


def _check_decide(made_of: OwnClass) -> None:
    """Refuse a class without a ``decide`` that can be called with a bar's context."""
    if inspect.isabstract(made_of):
        raise ConfigInvalid(f"{made_of.__name__} has no decide; give it def decide(self, context).")
    try:
        signature = inspect.signature(made_of.decide)
    except ValueError:  # compiled code has none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigInvalid(
            f"{made_of.__name__} has decide{signature}; let it be decide(self, context)."
        ) from error


def _called(made_of: type[Own], options: dict[str, object]) -> Own:
    """Call the constructor with the options, in the form of its signature.

    A first argument ``options``, or a single one without a default that the options do not name,
    is the dictionary; else every option is an argument of its name.
    """
    try:
        parameters = list(inspect.signature(made_of).parameters.values())
    except (TypeError, ValueError):  # a constructor in compiled code has no signature
        parameters = []
    by_place = [parameter for parameter in parameters if parameter.kind in _BY_PLACE]
    needed = [parameter for parameter in by_place if parameter.default is parameter.empty]
    make = cast("Callable[..., Own]", made_of)
    if by_place and by_place[0].name == "options":
        return make(options)
    if len(needed) == 1 and needed[0] is by_place[0] and needed[0].name not in options:
        return make(options)
    return make(**options)


def unguarded(strategy: Strategy) -> Strategy | PortfolioStrategy:
    """Return the user's own object behind *strategy*; a built-in strategy as it is."""
    whole = strategy.portfolio if isinstance(strategy, PortfolioMember) else strategy
    return whole.guarded if isinstance(whole, (_Guarded, _GuardedPortfolio)) else whole


class _Checks(Generic[Own]):
    """Checks each answer of a user's object before it is used."""

    def __init__(self, guarded: Own, known_as: str) -> None:
        self.guarded: Own = guarded
        self._name = type(guarded).__name__
        self._observing = ForeignCode(self._name, "in observe", known_as)
        self._deciding = ForeignCode(self._name, "in decide", known_as, may_exit=False)
        self.gates = frozenset(guarded.gates)
        self.warmup = guarded.warmup
        self.sees_account = guarded.sees_account
        self.reads_history = guarded.reads_history
        self.frames = tuple(guarded.frames)
        self.frames_warmup: Mapping[str, int] = dict(guarded.frames_warmup)
        self.books = guarded.books
        self.horizon = guarded.horizon
        self.needs_forecast = guarded.needs_forecast
        self.exits_freely = guarded.exits_freely
        self.twins = tuple(guarded.twins)
        self.State = guarded.State

    @property
    def state(self) -> Struct:
        state: Struct = self.guarded.state
        return state

    @state.setter
    def state(self, given: Struct) -> None:
        self.guarded.state = given

    def _checked(self, answer: object) -> Signal | Orders:
        if type(answer) is Orders:
            return self._checked_orders(answer)
        action = answer.action if type(answer) is Signal else None
        if type(answer) is not Signal or not isinstance(action, Action) or action is Action.ORDERS:
            raise StrategyFailed(
                f"{self._name} answered {short(answer)} in decide; return a Signal with an "
                "Action, or Orders."
            )
        return self._checked_signal(answer)

    def _checked_orders(self, orders: Orders) -> Orders:
        """Return *orders* if they have the right types; the broker checks their values."""
        self._check_text("reason", orders.reason, REASON_LONGEST)
        requests = orders.requests
        if type(requests) is not tuple or len(requests) > REQUESTS_MOST:
            raise StrategyFailed(
                f"{self._name} gave the orders {short(requests)}; give a tuple of at most "
                f"{REQUESTS_MOST} requests."
            )
        for request in requests:
            if type(request) is Cancel:
                self._check_text("tag", request.tag, TAG_LONGEST)
            elif type(request) is not OrderRequest or not _is_well_typed(request):
                raise StrategyFailed(
                    f"{self._name} ordered {short(request)}; use buy(), sell() or Cancel() with "
                    "numbers, and times in whole milliseconds."
                )
            else:
                self._check_text("tag", request.tag, TAG_LONGEST)
                self._check_text("reason", request.reason, REASON_LONGEST)
        return orders if orders.note is None else replace(orders, note=self._noted(orders.note))

    def _check_text(self, noun: str, text: object, longest: int) -> None:
        if type(text) is not str or len(text) > longest or not text.isprintable():
            raise StrategyFailed(
                f"{self._name} gave the {noun} {short(text)}; give one line of at most "
                f"{longest} printable characters."
            )

    def _checked_signal(self, signal: Signal) -> Signal:
        reason, strength = signal.reason, signal.strength
        self._check_text("reason", reason, REASON_LONGEST)
        if not isinstance(strength, (int, float)):
            raise StrategyFailed(
                f"{self._name} gave the strength {short(strength)}; give a number from 0 to 1."
            )
        if not math.isfinite(strength):
            # The market can cause it (a division by no volatility), so it is held, not fatal.
            return _UNMEASURED
        if not 0 <= strength <= 1:
            raise StrategyFailed(
                f"{self._name} gave the strength {strength:g}; give a number from 0 to 1."
            )
        if is_protected(signal) or signal.reenter is not False:
            self._check_protection(signal)
        if not isinstance(signal.position_side, (PositionSide, NoneType)) or (
            signal.position_side is not None and signal.action is not Action.FLAT
        ):
            raise StrategyFailed(
                f"{self._name} gave the position_side {short(signal.position_side)} with "
                f"{signal.action}; a FLAT signal names PositionSide.LONG or SHORT, no other does."
            )
        for name in ("band", "by_forecast"):
            share = getattr(signal, name)
            if share is not None and not (type(share) in (int, float) and 0 <= share <= 1):
                raise StrategyFailed(
                    f"{self._name} gave the {name} {short(share)}; give a number from 0 to 1."
                )
        if signal.note is None:
            return signal
        return replace(signal, note=self._noted(signal.note))

    def _check_protection(self, signal: Signal) -> None:
        """Refuse protection of wrong types; the engine checks its values."""
        for name in ("stop", "target", "trailing"):
            level = getattr(signal, name)
            if level is None:
                continue
            number = level
            if isinstance(level, Percent):
                number = level.value
            elif isinstance(level, Volatility):
                number = level.multiple
            if type(number) is bool or not isinstance(number, Real) or not _fits_float(number):
                raise StrategyFailed(
                    f"{self._name} gave the {name} {short(level)}; give a price, Percent(2) or "
                    "Volatility(2)."
                )
        until = signal.until
        if until is not None and (type(until) is not int or until > MONEY_LIMIT):
            raise StrategyFailed(
                f"{self._name} gave until {short(signal.until)}; give whole milliseconds of market "
                "time, as context.time has them."
            )
        if type(signal.reenter) is not bool:
            raise StrategyFailed(
                f"{self._name} gave reenter {short(signal.reenter)}; give True or False."
            )

    def _noted(self, note: object) -> dict[str, float | str | None]:
        """Return *note* as it is stored: a copy, numbers as floats, null where not finite."""
        if not isinstance(note, (dict, Mapping)) or len(note) > NOTES_MOST:
            raise StrategyFailed(
                f"{self._name} gave the note {short(note)}; give a dictionary of at most "
                f"{NOTES_MOST} entries."
            )
        return {
            self._note_name(name): self._note_value(name, value) for name, value in note.items()
        }

    def _note_name(self, name: object) -> str:
        if type(name) is str and name.isidentifier() and len(name) <= NOTE_NAME_LONGEST:
            return name
        raise StrategyFailed(
            f"{self._name} named a note {short(name)}; give an identifier of at most "
            f"{NOTE_NAME_LONGEST} characters."
        )

    def _note_value(self, name: object, value: object) -> float | str | None:
        if type(value) is float or isinstance(value, Real):  # the usual type is tested quickly
            try:
                number = float(value)
            except OverflowError:
                return None
            # The market can cause it (a division by no volatility), so it is null, not fatal.
            return number + 0.0 if math.isfinite(number) else None
        if type(value) is str and len(value) <= REASON_LONGEST and value.isprintable():
            return value
        raise StrategyFailed(
            f"{self._name} noted {short(value)} as {short(name)}; give a number, or one line of "
            f"at most {REASON_LONGEST} printable characters."
        )


class _Guarded(_Checks[Strategy], Strategy):
    """Calls the user's strategy and checks each answer before it is used."""

    def __init__(self, strategy: Strategy, known_as: str) -> None:
        super().__init__(strategy, known_as)
        self._observes = type(strategy).observe is not Strategy.observe

    def observe(self, bar: Bar) -> None:
        if self._observes:
            with self._observing:
                self.guarded.observe(bar)

    def adjust(self, action: CorporateAction) -> None:
        with self._observing:
            self.guarded.adjust(action)

    def decide(self, context: BarContext) -> Signal | Orders:
        with self._deciding:
            signal = self.guarded.decide(context)
        return self._checked(signal)


class _GuardedPortfolio(_Checks[PortfolioStrategy], PortfolioStrategy):
    """Calls the user's portfolio strategy and checks each part of its answers."""

    def __init__(self, portfolio: PortfolioStrategy, known_as: str) -> None:
        super().__init__(portfolio, known_as)
        self.symbols = portfolio.symbols

    def observe(self, bar: Bar) -> None:
        with self._observing:
            self.guarded.observe(bar)

    def adjust(self, action: CorporateAction) -> None:
        with self._observing:
            self.guarded.adjust(action)

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal | Orders]:
        with self._deciding:
            answers = self.guarded.decide(contexts)
            # A user's mapping is the user's code as well.
            by_symbol = dict(answers) if isinstance(answers, Mapping) else None
        if by_symbol is None:
            raise StrategyFailed(
                f"{self._name} answered {short(answers)} in decide; return a mapping from symbols "
                "to signals."
            )
        for symbol in by_symbol:
            if symbol not in self.symbols:
                raise StrategyFailed(
                    f"{self._name} answered for {short(symbol)} in decide, which the run does not "
                    f"trade; name symbols of: {', '.join(self.symbols)}."
                )
        return {symbol: self._checked(signal) for symbol, signal in by_symbol.items()}


def _is_well_typed(request: OrderRequest) -> bool:
    """Return whether the fields of *request* have their declared types."""
    numbers = (request.quantity, request.price, request.trigger)
    until = request.until
    return (
        isinstance(request.side, Side)
        and isinstance(request.kind, OrderKind)
        and request.quantity is not None
        and all(number is None or _is_number(number) for number in numbers)
        and type(request.post_only) is bool
        and type(request.reduce_only) is bool
        and (until is None or (type(until) is int and 0 <= until <= MONEY_LIMIT))
        and isinstance(request.position_side, (PositionSide, NoneType))
    )


def _is_number(value: object) -> bool:
    if isinstance(value, Decimal):
        return not value.is_snan()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits_float(number: Real) -> bool:
    try:
        float(number)
    except OverflowError:
        return False
    return True


def _check(strategy: Strategy | PortfolioStrategy) -> None:
    """Refuse declarations that the engine could not keep."""
    name = type(strategy).__name__
    warmup, horizon = strategy.warmup, strategy.horizon
    if type(warmup) is not int or not 1 <= warmup <= WARMUP_MOST:
        raise ConfigInvalid(
            f"{name}.warmup is {short(warmup)}; give a whole number of bars from 1 to "
            f"{WARMUP_MOST:,}."
        )
    if horizon is not None and (type(horizon) is not int or horizon < 1):
        raise ConfigInvalid(
            f"{name}.horizon is {short(horizon)}; give a whole number of bars, or None."
        )
    _check_frames(name, strategy)
    if type(strategy.books) is not int or not 0 <= strategy.books <= WARMUP_MOST:
        raise ConfigInvalid(
            f"{name}.books is {short(strategy.books)}; give a whole number of order books up to "
            f"{WARMUP_MOST:,}."
        )
    for flag in ("needs_forecast", "exits_freely", "sees_account", "reads_history"):
        if type(declared := getattr(strategy, flag)) is not bool:
            raise ConfigInvalid(f"{name}.{flag} is {short(declared)}; give True or False.")
    if not _are_names(strategy.gates, GATES):
        raise ConfigInvalid(
            f"{name}.gates are {short(strategy.gates)}; name gates of: {', '.join(gate_order())}."
        )
    if operator.name not in strategy.gates:
        raise ConfigInvalid(
            f"{name}.gates lack {operator.name}, so neither HALT nor FLATTEN would bind it; add it."
        )
    if not _are_names(strategy.twins, TWINS):
        raise ConfigInvalid(
            f"{name}.twins are {short(strategy.twins)}; name twins of: {', '.join(TWINS)}."
        )


def _are_names(declared: object, existing: Mapping[str, object]) -> bool:
    if not isinstance(declared, Collection):
        return False
    return all(isinstance(name, str) and name in existing for name in declared)


def _check_frames(name: str, strategy: Strategy | PortfolioStrategy) -> None:
    """Refuse frames that are no intervals, and impossible counts of their bars."""
    if not isinstance(strategy.frames, tuple) or not _are_names(strategy.frames, INTERVALS):
        raise ConfigInvalid(
            f"{name}.frames are {short(strategy.frames)}; give a tuple of intervals of: "
            f"{', '.join(INTERVALS)}."
        )
    counts = strategy.frames_warmup
    if not isinstance(counts, Mapping) or not set(strategy.frames) >= counts.keys():
        raise ConfigInvalid(
            f"{name}.frames_warmup is {short(counts)}; give a mapping from declared frames to bars."
        )
    if any(type(count) is not int or not 1 <= count <= WARMUP_MOST for count in counts.values()):
        raise ConfigInvalid(
            f"{name}.frames_warmup is {short(counts)}; give whole numbers of bars from 1 to "
            f"{WARMUP_MOST:,}."
        )


def _own_class(name: str) -> FoundClass:
    """Find the class ``module:Class`` that a network is made of; raise as ``imported`` does."""
    made_of = imported(name, key="architecture.mechanism")
    if not isinstance(made_of, type):
        raise ConfigInvalid(f"architecture.mechanism '{name}' is no class; name one.")
    if made_of.__module__.startswith("tracepaper."):  # all else of it changes with each version
        sha256 = hashlib.sha256(inspect.getsource(made_of).encode()).hexdigest()
    else:
        sha256 = class_sha256(made_of)
    return FoundClass(made_of, sha256, lambda: ForeignCode(name, "in forward", may_exit=False))


OWN_CLASSES.find = _own_class
