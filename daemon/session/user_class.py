"""Imports a user's strategy class, checks it, and guards its calls.

The rules are docs/strategies.md, U1 to U6, and of the hash docs/identity.md, I15.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType
from typing import Any, Final, Generic, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.config.values import PARSING
from tracepaper.daemon.engine.state import SHADOWS
from tracepaper.daemon.session.default_warmup import USUAL_FRAME_BARS, Warmup, names_one
from tracepaper.daemon.session.user_code import (
    ForeignCode,
    class_line,
    class_sha256,
    declared_files,
    remember,
    short,
)
from tracepaper.daemon.session.user_error import definition, place
from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.api.columns import Column, checked_columns, checked_signals
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    Distance,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    Volatility,
)
from tracepaper.strategies.api.model import ImportedClass
from tracepaper.strategies.api.strategy import (
    ANSWERS,
    SIGNALS,
    PortfolioMember,
    PortfolioStrategy,
    Strategy,
    by_signals,
    check_declared,
)
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed
from tracepaper.strategies.gates.declared import operator
from tracepaper.strategies.gates.gate import GATES, gate_order
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar, Side
from tracepaper.strategies.units import INTERVALS, MONEY_LIMIT, interval_name, tuple_text
from tracepaper.strategies.without_value import NOT_FINITE, IndicatorWatch, watching

WARMUP_MOST: Final = 100_000
REQUESTS_MOST: Final = 200
"""Most requests in one list of orders."""
TAG_LONGEST: Final = 40
"""Most characters of an order's tag."""
REASON_LONGEST: Final = 200
"""Most characters of a reason, which is stored with the decision and shown in one line."""
NOTES_MOST: Final = 16
NOTE_NAME_LONGEST: Final = 40

_UNMEASURED: Final = Signal(Action.HOLD, NOT_FINITE)

Custom = TypeVar("Custom", Strategy, PortfolioStrategy)
_Instance = TypeVar("_Instance")
CustomClass = type[Strategy] | type[PortfolioStrategy]
"""The classes that a configuration may name: one object per instrument, or one for all."""

_passed: Final[ContextVar[Mapping[str, type]]] = ContextVar("_passed", default={})  # noqa: B039
"""Classes that Python code passed as objects, by the names that their runs store; never changed."""


@contextmanager
def known_class(cls: type | None) -> Iterator[str]:
    """Make :func:`user_class` return *cls* for its name, in this thread; yield that name.

    The name is ``module:Class``, whether or not it can be imported (:func:`is_importable`).
    """
    if cls is None:
        yield ""
        return
    remember(cls)
    name = f"{cls.__module__}:{cls.__name__}"
    before = _passed.set({**_passed.get(), name: cls})
    try:
        yield name
    finally:
        _passed.reset(before)


def is_importable(cls: type) -> bool:
    """Return whether another process could import *cls* as ``module:Class``."""
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or getattr(module, cls.__name__, None) is not cls:
        return False
    outermost = cls.__module__.partition(".")[0]
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(outermost, None) for find in finders if find is not None)


def user_class(name: str) -> CustomClass:
    """Return the strategy class ``module:Class``; raise ``ConfigInvalid`` if it is no strategy."""
    cls = imported(name, key="strategy.name")
    if not (isinstance(cls, type) and issubclass(cls, (Strategy, PortfolioStrategy))):
        raise ConfigInvalid(
            f"strategy.name '{name}' is no tracepaper.Strategy; derive from it, or from "
            "tracepaper.PortfolioStrategy."
        )
    return cls


def imported(name: str, *, key: str) -> object:
    """Return the object ``module:Name``, which the configuration names in *key*.

    The module is searched on Python's path, beside the configuration file and in the working
    folder, in this order. A class that was passed as an object (:func:`known_class`) is returned
    itself. Raises ``ConfigInvalid`` if the name does not exist or its module is no Python, and
    ``StrategyFailed`` if importing the module fails.
    """
    if (passed := _passed.get().get(name)) is not None:
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
        with ForeignCode(name, "when it was imported", may_exit=False):
            named: object = getattr(importlib.import_module(module_name), class_name)
    except StrategyFailed as error:
        if isinstance(error.__cause__, SyntaxError):
            raise ConfigInvalid(str(error)) from error  # another start cannot succeed either
        if not isinstance(error.__cause__, (ImportError, AttributeError)):
            raise
        if isinstance(error.__cause__, AttributeError) and module_name in sys.modules:
            raise ConfigInvalid(f"{key} '{name}': {_lacking(module_name)}.") from error
        where = place(error.__cause__)
        remedy = "put its file beside the configuration, or its folder on PYTHONPATH"
        raise ConfigInvalid(
            f"{key} '{name}' cannot be imported ({error.__cause__}{where}); "
            f"{'correct that line, or install what it imports' if where else remedy}."
        ) from error
    if isinstance(named, (type, FunctionType)):
        remember(named)
    return named


def _lacking(module_name: str) -> str:
    """Return what the module *module_name* has, or whose it is, and what to do."""
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        return (
            f"{module_name} is a module of Python itself; give your file another name, such as "
            f"my_{module_name}.py"
        )
    defined = [
        name
        for name, value in vars(sys.modules[module_name]).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == module_name
    ]
    return f"{module_name} has {', '.join(defined) or 'no class'}; correct the name after the colon"


def make_custom(
    name: str, options: dict[str, object], symbols: Sequence[str], warmup: Warmup | None = None
) -> dict[str, Strategy]:
    """Return guarded objects of the user's class *name*, by symbol.

    A portfolio strategy has one object, of which each symbol gets a member. *warmup* is that of a
    class that names none.
    """
    cls = user_class(name)
    if issubclass(cls, PortfolioStrategy):
        portfolio = user_portfolio(cls, options, symbols, warmup)
        return {symbol: PortfolioMember(portfolio) for symbol in symbols}
    return {symbol: user_strategy(cls, dict(options), warmup) for symbol in symbols}


def user_strategy(
    cls: type[Strategy], options: dict[str, object], warmup: Warmup | None = None
) -> Strategy:
    """Return a guarded instance of the user's class, made with *options*.

    The name of its first parameter decides how it gets them (docs/strategies.md, U1). Raises
    ``ConfigInvalid`` if it rejects them or a declaration is invalid, and ``StrategyFailed`` if it
    fails in another way.
    """
    strategy = _instance(cls, options, warmup)
    return (_GuardedSignals if cls.decide is by_signals else _GuardedStrategy)(strategy)


def user_portfolio(
    cls: type[PortfolioStrategy],
    options: dict[str, object],
    symbols: Sequence[str],
    warmup: Warmup | None = None,
) -> PortfolioStrategy:
    """Return the guarded instance of the user's portfolio class over *symbols*, as above."""
    portfolio = _instance(cls, options, warmup)
    portfolio.symbols = tuple(symbols)
    return _GuardedPortfolio(portfolio)


def _instance(cls: type[Custom], options: dict[str, object], warmup: Warmup | None) -> Custom:
    declared_files(cls).require(cls.__name__)
    with ForeignCode(cls.__name__, "when its State was made"):
        check_declared(cls.__name__, cls.State)
    _check_decide(cls)
    instance = make_guarded(
        cls.__name__,
        lambda: _construct(cls, options),
        "[strategy.options]",
        "take them as one dictionary, or by their names",
    )
    check_declarations(instance, _declarations(instance))
    if warmup is not None and not names_one(instance):
        instance.warmup = warmup.bars
        frames = {name: warmup.frames.get(name, USUAL_FRAME_BARS) for name in instance.frames}
        instance.frames_warmup = {**frames, **instance.frames_warmup}
    check_declarations(instance, _declarations(instance))
    return instance


def make_guarded(name: str, make: Callable[[], _Instance], options: str, form: str) -> _Instance:
    """Return the result of *make*, which constructs the user's class *name*.

    Raises ``ConfigInvalid`` if the constructor rejects its arguments; the message names the
    configuration key *options* and the *form* that is expected of ``__init__``. Raises
    ``StrategyFailed`` for any other error.
    """
    try:
        with ForeignCode(name, "when it was made", may_exit=False):
            return make()
    except StrategyFailed as error:
        if not isinstance(error.__cause__, (TypeError, ValueError, KeyError)):
            raise
        raise ConfigInvalid(
            f"{name} refused {options} ({error.__cause__}{place(error.__cause__)}); correct them, "
            f"and let its __init__ {form}."
        ) from error


def _check_decide(cls: CustomClass) -> None:
    """Reject a class without a ``decide`` that can be called with a bar's context."""
    if callable(getattr(cls, "signals", None)) and cls.decide is not by_signals:
        raise ConfigInvalid(
            f"{cls.__name__}{class_line(cls)} has signals beside decide or columns; let signals "
            "give all its answers, or remove it."
        )
    if inspect.isabstract(cls):
        raise ConfigInvalid(
            f"{cls.__name__}{class_line(cls)} has no decide; give it def decide(self, context)."
        )
    try:
        signature = inspect.signature(cls.decide)
    except ValueError:  # compiled code has none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigInvalid(
            f"{cls.__name__} has decide{signature}; let it be decide(self, context)."
        ) from error


def _construct(cls: type[Custom], options: dict[str, object]) -> Custom:
    """Call the constructor: by one dictionary if its first parameter is ``options``."""
    make = cast("Callable[..., Custom]", cls)
    with PARSING:
        is_one = next(iter(inspect.signature(cls).parameters), "") == "options"
    return make(options) if is_one else make(**options)


_DECLARED: Final = (
    *("warmup", "sees_account", "reads_history", "frames", "frames_warmup", "books", "horizon"),
    *("needs_forecast", "exits_freely", "State"),
)


_WATCHED: Final = 16
"""Decisions of which all calls of indicators are kept, to see whether they are settled."""


class Guard(Generic[Custom]):
    """Checks each answer of a user's object."""

    State: type[Struct] | None
    warmup: int
    frames: tuple[str, ...]
    frames_warmup: Mapping[str, int]
    sees_account: bool
    needs_forecast: bool
    books: int

    def __init__(self, guarded: Custom) -> None:
        self.guarded: Custom = guarded
        self._name = type(guarded).__name__
        self._observing = ForeignCode(self._name, "in observe")
        self._deciding = ForeignCode(self._name, "in decide", may_exit=False)
        inherited = (Strategy.observe, PortfolioStrategy.observe)
        self._observes = type(guarded).observe not in inherited
        self._checked_answer: Signal | None = None  # the newest answer that passed unchanged
        self.watch = IndicatorWatch(_WATCHED)
        for name in _DECLARED:
            setattr(self, name, getattr(guarded, name))
        self.gates, self.shadows = frozenset(guarded.gates), tuple(guarded.shadows)

    @property
    def decides_by_history(self) -> bool:
        """Whether a fresh object decides as one that has run: by past bars alone."""
        has_more = self.sees_account or self.needs_forecast or self.books or self._observes
        return self.State is None and not has_more

    @property
    def state(self) -> Struct:
        """The declared state of the user's object."""
        state: Struct = self.guarded.state
        return state

    @state.setter
    def state(self, state: Struct) -> None:
        self.guarded.state = state

    def observe(self, bar: Bar) -> None:
        """Pass *bar* to the user's object, if its class observes bars."""
        if self._observes:
            self.watch.clear()
            self._observing.bars = (bar,)
            with self._observing, self.watch:
                self.guarded.observe(bar)

    def _fault(self, problem: str, advice: str) -> StrategyFailed:
        where = definition(self.guarded.decide) + self._deciding.for_bars
        return StrategyFailed(f"{self._name} {problem}{where}; {advice}.")

    def _with_cause(self, answer: Signal | Orders) -> Signal | Orders:
        """Return *answer*; its reason also names an indicator that had no value.

        A strategy that compares NaN answers as if the comparison were false, and its own reason
        does not say so.
        """
        if not self.watch.calls:
            return answer
        cause = self.watch.sentence(self.guarded.warmup, self.guarded.frames_warmup)
        if not cause:
            return answer
        return replace(answer, reason=f"{answer.reason}; {cause}" if answer.reason else cause)

    def _checked(self, answer: object) -> Signal | Orders:
        if type(answer) is Orders:
            return self._checked_orders(answer)
        if (known := self._checked_answer) is not None and type(answer) is Signal:
            try:
                if answer == known:
                    return known  # a signal without a note is immutable
            except Exception:  # noqa: BLE001, S110 - an array in the place of a number: named below
                pass
        action = answer.action if type(answer) is Signal else None
        if type(answer) is not Signal or not isinstance(action, Action) or action is Action.ORDERS:
            problem = f"answered {short(answer)} in decide"
            raise self._fault(problem, "return a Signal with an Action, or Orders")
        checked = self._checked_signal(answer)
        self._checked_answer = checked if answer.note is None else None
        return checked

    def _checked_orders(self, orders: Orders) -> Orders:
        """Return *orders* with plain numbers, once their types are checked.

        The broker checks the values.
        """
        self._check_text("reason", orders.reason, REASON_LONGEST)
        requests = orders.requests
        if not isinstance(requests, list | tuple) or len(requests) > REQUESTS_MOST:
            problem = f"gave the orders {short(requests)}"
            raise self._fault(problem, f"give a list of at most {REQUESTS_MOST} requests")
        plain = tuple(self._request(request) for request in requests)
        note = None if orders.note is None else self._noted(orders.note)
        return replace(orders, requests=plain, note=note)

    def _request(self, request: object) -> OrderRequest | Cancel:
        """Return one request of a list with plain numbers."""
        if type(request) is Cancel:
            self._check_text("tag", request.tag, TAG_LONGEST)
            return request
        plain = _plain_request(request) if type(request) is OrderRequest else None
        if plain is None:
            raise self._fault(
                f"ordered {short(request)}",
                "use buy(), sell() or Cancel() with numbers, and times in whole milliseconds",
            )
        self._check_text("tag", plain.tag, TAG_LONGEST)
        self._check_text("reason", plain.reason, REASON_LONGEST)
        return plain

    def _check_text(self, noun: str, text: object, longest: int) -> None:
        if type(text) is not str or len(text) > longest or not text.isprintable():
            advice = f"give one line of at most {longest} printable characters"
            raise self._fault(f"gave the {noun} {short(text)}", advice)

    def _checked_signal(self, signal: Signal) -> Signal:
        reason, strength = signal.reason, signal.strength
        self._check_text("reason", reason, REASON_LONGEST)
        if type(strength) is not float or not 0 <= strength <= 1:  # the fast path
            if (number := _plain_float(strength)) is not None and not math.isfinite(number):
                # The market can cause this (a division by zero volatility): hold, do not fail.
                return _UNMEASURED
            signal = replace(signal, strength=self._share("strength", strength))
        names_none = signal.stop is signal.target is signal.trailing is signal.until is None
        if not names_none or signal.reenter is not False:
            signal = self._protection(signal)
        for name in ("band", "by_forecast", "uncorrelated"):
            if (share := getattr(signal, name)) is not None:
                signal = replace(signal, **{name: self._share(name, share)})
        if signal.note is None:
            return signal
        return replace(signal, note=self._noted(signal.note))

    def _share(self, noun: str, value: object) -> float:
        """Return *value* as a share from 0 to 1, allowing for a rounding error."""
        number = _plain_float(value)
        if number is None or not -_ROUNDING <= number <= 1 + _ROUNDING:
            raise self._fault(f"gave the {noun} {short(value)}", "give a number from 0 to 1")
        return min(max(number, 0.0), 1.0)

    def _protection(self, signal: Signal) -> Signal:
        """Return *signal* with plain numbers, once their types are checked.

        The engine checks the values.
        """
        levels = {
            name: self._level(name, level)
            for name in ("stop", "target", "trailing")
            if (level := getattr(signal, name)) is not None
        }
        until = None if signal.until is None else plain_number(signal.until)
        if signal.until is not None and (type(until) is not int or until > MONEY_LIMIT):
            advice = "give whole milliseconds of market time, as context.time has them"
            raise self._fault(f"gave until {short(signal.until)}", advice)
        if type(signal.reenter) is not bool:
            raise self._fault(f"gave reenter {short(signal.reenter)}", "give True or False")
        return replace(signal, **levels, until=until)

    def _level(self, name: str, level: object) -> Distance:
        """Return a stop's, a target's or a trailing stop's *level* with a plain number."""
        kind = type(level) if isinstance(level, (Percent, Volatility)) else float
        value = getattr(level, "value", getattr(level, "multiple", level))
        if (number := _plain_float(level if kind is float else value)) is None:
            advice = "give a price, Percent(2) or Volatility(2)"
            raise self._fault(f"gave the {name} {short(level)}", advice)
        return kind(number)

    def _noted(self, note: object) -> dict[str, float | str | None]:
        """Return *note* as it is stored: a copy with numbers as floats, null if not finite."""
        if not isinstance(note, (dict, Mapping)) or len(note) > NOTES_MOST:
            advice = f"give a dictionary of at most {NOTES_MOST} entries"
            raise self._fault(f"gave the note {short(note)}", advice)
        for name in note:
            if type(name) is not str or not name.isidentifier() or len(name) > NOTE_NAME_LONGEST:
                advice = f"give an identifier of at most {NOTE_NAME_LONGEST} characters"
                raise self._fault(f"named a note {short(name)}", advice)
        return {name: self._note_value(name, value) for name, value in note.items()}

    def _note_value(self, name: object, value: object) -> float | str | None:
        number = value if type(value) is float else plain_number(value, flags=True)
        if number is not None:
            try:
                number = float(number)
            except OverflowError:
                return None
            # The market can cause this (a division by zero volatility): store null, do not fail.
            return number + 0.0 if math.isfinite(number) else None
        if type(value) is str and len(value) <= REASON_LONGEST and value.isprintable():
            return value
        advice = f"give a number, or one line of at most {REASON_LONGEST} printable characters"
        raise self._fault(f"noted {short(value)} as {short(name)}", advice)


def guard_of(strategies: Mapping[str, Strategy]) -> Guard[Any] | None:
    """Return the guard of the first of *strategies*, or of their portfolio; None if built in."""
    first = next(iter(strategies.values()))
    guard = getattr(first, "portfolio", first)
    return guard if isinstance(guard, Guard) else None


class _GuardedStrategy(Guard[Strategy], Strategy):
    """Calls the user's strategy and checks each answer."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy)
        if (compute := strategy.columns) is not None:
            computing = ForeignCode(self._name, "in columns", may_exit=False)

            def columns(history: BarArrays) -> Mapping[str, Column]:
                with computing:
                    answer = compute(history)
                return checked_columns(self._name, answer, len(history))

            self.columns = columns

    def decide(self, context: BarContext) -> Signal | Orders:
        if not self._observes:
            self.watch.clear()
        self._deciding.bars = (context.exact,)
        # Two context managers would cost a microsecond, and this runs at every bar.
        token = watching.set(self.watch)
        try:
            answer = self.guarded.decide(context)
        except BaseException as error:
            self._deciding.translate(error)
            raise
        finally:
            watching.reset(token)
        return self._with_cause(self._checked(answer))


class _GuardedSignals(_GuardedStrategy):
    """Calls the user's ``signals`` and checks them; at a bar no code of the user is called."""

    answers_by_column = True

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy)
        answers = getattr(strategy, "answers", ANSWERS)
        if not isinstance(answers, Mapping) or not all(map(_is_answer, answers.items())):
            raise ConfigInvalid(
                f"{self._name}.answers is {short(answers)}; give a dictionary from whole numbers "
                "of -128 to 127 to Signals."
            )
        self._answers = {code: self._checked(answer) for code, answer in answers.items()}
        self._signalling = ForeignCode(self._name, "in signals", may_exit=False)
        self.columns = self._coded

    def _coded(self, history: BarArrays) -> Mapping[str, Column]:
        signals: Callable[[BarArrays], object] = cast("Any", self.guarded).signals
        with self._signalling:
            given = signals(history)
        codes, problem = checked_signals(given, len(history), self._answers)
        if problem:
            raise StrategyFailed(
                f"{self._name}.signals {problem}{definition(signals)}; return one whole number "
                f"for each bar of history, of {', '.join(map(str, self._answers))}."
            )
        return {SIGNALS: codes}

    def decide(self, context: BarContext) -> Signal | Orders:
        return self._answers[int(context.columns.last(SIGNALS))]


class _GuardedPortfolio(Guard[PortfolioStrategy], PortfolioStrategy):
    """Calls the user's portfolio strategy and checks the answer for each symbol."""

    def __init__(self, portfolio: PortfolioStrategy) -> None:
        super().__init__(portfolio)
        self.symbols = portfolio.symbols

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal | Orders]:
        if not self._observes:
            self.watch.clear()
        self._deciding.bars = [context.exact for context in contexts.values()]
        with self._deciding, self.watch:
            answers = self.guarded.decide(contexts)
            # Reading a user's mapping runs user code too.
            by_symbol = dict(answers) if isinstance(answers, Mapping) else None
        if by_symbol is None:
            advice = "return a mapping from symbols to signals"
            raise self._fault(f"answered {short(answers)} in decide", advice)
        for symbol in by_symbol:
            if symbol not in self.symbols:
                raise self._fault(
                    f"answered for {short(symbol)} in decide, which the run does not trade",
                    f"name symbols of: {', '.join(self.symbols)}",
                )
        return {
            symbol: self._with_cause(self._checked(signal)) for symbol, signal in by_symbol.items()
        }


def _is_answer(pair: tuple[object, object]) -> bool:
    code, answer = pair
    return type(code) is int and -128 <= code <= 127 and type(answer) is Signal


def _plain_request(request: OrderRequest) -> OrderRequest | None:
    """Return *request* with plain numbers, or None if a field has a wrong type."""
    numbers = {
        name: plain_number(value)
        for name in ("quantity", "price", "trigger", "until")
        if (value := getattr(request, name)) is not None
    }
    until = numbers.get("until", 0)
    is_typed = (
        isinstance(request.side, Side)
        and "quantity" in numbers
        and None not in numbers.values()
        and type(request.post_only) is bool
        and type(request.reduce_only) is bool
        and type(until) is int
        and 0 <= until <= MONEY_LIMIT
    )
    return replace(request, **numbers) if is_typed else None


_ROUNDING: Final = 1e-9
"""How far a sum of shares may lie outside 0 to 1: 0.7 + 0.2 + 0.1 is 0.9999999999999999."""


def plain_number(  # noqa: PLR0911 - one return for each kind of number
    value: object, *, flags: bool = False
) -> int | float | Decimal | None:
    """Return *value* as a built-in number, or None if it is none.

    A ``bool`` becomes 0 or 1 if *flags* is set, else it is no number. Scalars of NumPy and other
    libraries are numbers, also in an array without dimensions; one of single precision is read from
    its shortest text. Subclasses of int and float are converted, so that none of their methods is
    called later.
    """
    kind = type(value)
    if kind is float or kind is int:
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or kind.__name__ == "bool_":
        return int(value) if flags else None  # type: ignore[call-overload]
    if isinstance(value, Decimal):
        return None if value.is_snan() else Decimal(value)
    if isinstance(value, Real):
        try:
            if isinstance(value, Integral):
                return int(value)
            is_short = getattr(getattr(value, "dtype", None), "itemsize", 8) < 8
            return float(str(value)) if is_short else float(value)
        except OverflowError:
            return None
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        return plain_number(item(), flags=flags)
    return None


def _plain_float(value: object) -> float | None:
    """Return *value* as a float, or None if it is no number or too large."""
    number = plain_number(value)
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


Declaration = tuple[str, Callable[[Any], bool], str]
"""An attribute of a user's class, a test of its value, and the advice if the test fails."""


def check_declarations(owner: object, declarations: Iterable[Declaration]) -> None:
    """Raise ``ConfigInvalid`` for the first of *declarations* whose test *owner* fails."""
    for name, is_valid, advice in declarations:
        if not is_valid(value := getattr(owner, name)):
            raise ConfigInvalid(f"{type(owner).__name__}.{name} is {short(value)}; {advice}.")


def is_integer(least: int, most: int = sys.maxsize) -> Callable[[object], bool]:
    """Return a test whether a value is an ``int`` from *least* to *most*."""
    return lambda value: type(value) is int and least <= value <= most


def _are_among(names: Collection[str]) -> Callable[[object], bool]:
    """Return a test whether a value is a collection of some of *names*."""
    return lambda values: (
        isinstance(values, Collection)
        and all(isinstance(name, str) and name in names for name in values)
    )


def _declarations(strategy: Strategy | PortfolioStrategy) -> list[Declaration]:
    """Return the tests of a strategy's declarations."""
    is_count, is_positive = is_integer(1, WARMUP_MOST), is_integer(1)
    bars, most = f"of bars from 1 to {WARMUP_MOST:,}", f"{WARMUP_MOST:,}"
    frames, frames_warmup = _frames_meant(strategy.frames, strategy.frames_warmup)
    frames = frames or f"give a tuple of intervals of: {', '.join(INTERVALS)}"
    frames_warmup = frames_warmup or f"map declared frames to whole numbers {bars}"

    def are_frames(value: object) -> bool:
        return isinstance(value, tuple) and _are_among(INTERVALS)(value)

    def are_counts(value: object) -> bool:
        if not isinstance(value, Mapping) or not value.keys() <= set(strategy.frames):
            return False
        return all(map(is_count, value.values()))

    return [
        ("warmup", is_count, f"give a whole number {bars}"),
        ("horizon", lambda n: n is None or is_positive(n), "give a whole number of bars, or None"),
        ("frames", are_frames, frames),
        ("frames_warmup", are_counts, frames_warmup),
        ("books", is_integer(0, WARMUP_MOST), f"give a whole number of order books up to {most}"),
        *((flag, lambda value: type(value) is bool, "give True or False") for flag in _FLAGS),
        ("gates", _are_among(GATES), f"name gates of: {', '.join(gate_order())}"),
        ("gates", lambda names: operator.name in names, f"add {operator.name}: HALT needs it"),
        ("shadows", _are_among(SHADOWS), f"name shadow accounts of: {', '.join(SHADOWS)}"),
    ]


def _frames_meant(frames: object, bars: object) -> tuple[str, str]:
    """Return the lines that declare the *frames* and their *bars* which were meant, or nothing."""
    listed = [frames] if isinstance(frames, str | int) else frames
    if not isinstance(listed, Collection) or not all(names := [*map(interval_name, listed)]):
        return "", ""
    counts = bars if isinstance(bars, Mapping) else dict.fromkeys(names, bars)
    named = {interval_name(name): count for name, count in counts.items()}
    is_meant = named.keys() <= set(names) and all(map(is_integer(1, WARMUP_MOST), named.values()))
    pairs = ", ".join(f'"{name}": {count}' for name, count in named.items())
    of_bars = f"write frames_warmup = {{{pairs}}}" * is_meant
    return f"write frames = {tuple_text(names)}", of_bars


_FLAGS: Final = ("needs_forecast", "exits_freely", "sees_account", "reads_history")


def network_class(name: str) -> ImportedClass:
    """Import the user's class ``module:Class`` of a network; raise as ``imported`` does."""
    cls = imported(name, key="architecture.mechanism")
    if not isinstance(cls, type):
        raise ConfigInvalid(f"architecture.mechanism '{name}' is no class; name one.")
    if cls.__module__.startswith("tracepaper."):  # its file also has code that is irrelevant here
        with PARSING:
            sha256 = hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()
    else:
        sha256 = class_sha256(cls)
    return ImportedClass(cls, sha256, lambda: ForeignCode(name, "in forward", may_exit=False))
