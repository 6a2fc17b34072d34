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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Final, Generic, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.engine.state import SHADOWS
from tracepaper.daemon.session.user_code import (
    ForeignCode,
    class_sha256,
    declared_files,
    short,
)
from tracepaper.strategies.api.columns import Column, checked_columns
from tracepaper.strategies.api.context import (
    BarArrays,
    BarContext,
    Cancel,
    Distance,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    Volatility,
    is_protected,
)
from tracepaper.strategies.api.model import ImportedClass
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

Custom = TypeVar("Custom", Strategy, PortfolioStrategy)
_Made = TypeVar("_Made")
CustomClass = type[Strategy] | type[PortfolioStrategy]
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


def user_class(name: str) -> CustomClass:
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
    return named


def make_custom(
    name: str, options: dict[str, object], symbols: Sequence[str]
) -> dict[str, Strategy]:
    """Return guarded objects of the user's class *name*, by symbol.

    Of a portfolio strategy there is one object, and each symbol has a member of it.
    """
    made_of = user_class(name)
    if issubclass(made_of, PortfolioStrategy):
        portfolio = user_portfolio(made_of, options, symbols)
        return {symbol: PortfolioMember(portfolio) for symbol in symbols}
    return {symbol: user_strategy(made_of, dict(options)) for symbol in symbols}


def user_strategy(made_of: type[Strategy], options: dict[str, object]) -> Strategy:
    """Return an object of the user's class, guarded; its constructor takes *options*.

    They are passed as one dictionary, or as keywords, or not at all, by the constructor's signature
    (docs/strategies.md, U1).

    Raises ``ConfigInvalid`` where it refuses them or has an impossible declaration, and
    ``StrategyFailed`` where it fails otherwise.
    """
    return _GuardedStrategy(_built(made_of, options))


def user_portfolio(
    made_of: type[PortfolioStrategy],
    options: dict[str, object],
    symbols: Sequence[str],
) -> PortfolioStrategy:
    """Return the one object of the user's portfolio class over *symbols*, guarded as above."""
    portfolio = _built(made_of, options)
    portfolio.symbols = tuple(symbols)
    return _GuardedPortfolio(portfolio)


def _built(made_of: type[Custom], options: dict[str, object]) -> Custom:
    declared_files(made_of).require(made_of.__name__)
    with ForeignCode(made_of.__name__, "when its State was made"):
        check_declared(made_of.__name__, made_of.State)
    _check_decide(made_of)
    instance = made_or_refused(
        made_of.__name__,
        lambda: _called(made_of, options),
        "[strategy.options]",
        "take them as one dictionary, or by their names",
    )
    check_declarations(instance, _declarations(instance))
    return instance


def made_or_refused(name: str, make: Callable[[], _Made], options: str, form: str) -> _Made:
    """Return the result of *make*; raise ``ConfigInvalid`` where it rejects its *options*.

    Its constructor should take them in a *form*. Raises ``StrategyFailed`` where it fails else.
    """
    try:
        with ForeignCode(name, "when it was made", may_exit=False):
            return make()
    except StrategyFailed as error:
        if not isinstance(error.__cause__, (TypeError, ValueError, KeyError)):
            raise
        raise ConfigInvalid(
            f"{name} refused {options} ({error.__cause__}); correct them, and let its __init__ "
            f"{form}."
        ) from error


def reject_coroutines(made_of: type, *hooks: str) -> None:
    """Refuse a class whose *hooks* are coroutines or generators: the engine awaits nothing."""
    for name in hooks:
        hook = getattr(made_of, name, None)
        is_generator = inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook)
        if is_generator or inspect.iscoroutinefunction(hook):
            kind = "a generator (it yields)" if is_generator else "a coroutine (async def)"
            raise ConfigInvalid(
                f"{made_of.__name__}.{name} is {kind}; write it as def {name}, and return its "
                "answer."
            )


def _check_decide(made_of: CustomClass) -> None:
    """Refuse a class without a ``decide`` that can be called with a bar's context."""
    if inspect.isabstract(made_of):
        raise ConfigInvalid(f"{made_of.__name__} has no decide; give it def decide(self, context).")
    reject_coroutines(made_of, "decide", "observe", "adjust", "columns")
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


def _called(made_of: type[Custom], options: dict[str, object]) -> Custom:
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
    make = cast("Callable[..., Custom]", made_of)
    if by_place and by_place[0].name == "options":
        return make(options)
    if len(needed) == 1 and needed[0] is by_place[0] and needed[0].name not in options:
        return make(options)
    return make(**options)


def unguarded(strategy: Strategy) -> Strategy | PortfolioStrategy:
    """Return the user's own object behind *strategy*; a built-in strategy as it is."""
    whole = strategy.portfolio if isinstance(strategy, PortfolioMember) else strategy
    return whole.guarded if isinstance(whole, (_GuardedStrategy, _GuardedPortfolio)) else whole


_DECLARED: Final = (
    *("warmup", "sees_account", "reads_history", "frames", "frames_warmup", "books", "horizon"),
    *("needs_forecast", "exits_freely", "State"),
)


class _Checks(Generic[Custom]):
    """Checks each answer of a user's object before it is used."""

    def __init__(self, guarded: Custom) -> None:
        self.guarded: Custom = guarded
        self._name = type(guarded).__name__
        self._observing = ForeignCode(self._name, "in observe")
        self._deciding = ForeignCode(self._name, "in decide", may_exit=False)
        inherited = (Strategy.observe, PortfolioStrategy.observe)
        self._observes = type(guarded).observe not in inherited
        self._usual: Signal | None = None  # the newest answer, as it was and was passed on
        for name in _DECLARED:
            setattr(self, name, getattr(guarded, name))
        self.gates, self.shadows = frozenset(guarded.gates), tuple(guarded.shadows)

    @property
    def state(self) -> Struct:
        state: Struct = self.guarded.state
        return state

    @state.setter
    def state(self, given: Struct) -> None:
        self.guarded.state = given

    def observe(self, bar: Bar) -> None:
        if self._observes:
            with self._observing:
                self.guarded.observe(bar)

    def adjust(self, action: CorporateAction) -> None:
        with self._observing:
            self.guarded.adjust(action)

    def _fault(self, what: str, advice: str) -> StrategyFailed:
        return StrategyFailed(f"{self._name} {what}; {advice}.")

    def _checked(self, answer: object) -> Signal | Orders:
        if (usual := self._usual) is not None and answer is usual:
            return usual  # a signal without a note never changes
        if type(answer) is Orders:
            return self._checked_orders(answer)
        action = answer.action if type(answer) is Signal else None
        if type(answer) is not Signal or not isinstance(action, Action) or action is Action.ORDERS:
            what = f"answered {short(answer)} in decide"
            raise self._fault(what, "return a Signal with an Action, or Orders")
        checked = self._checked_signal(answer)
        self._usual = checked if checked is answer and answer.note is None else None
        return checked

    def _checked_orders(self, orders: Orders) -> Orders:
        """Return *orders* if they have the right types; the broker checks their values."""
        self._check_text("reason", orders.reason, REASON_LONGEST)
        requests = orders.requests
        if type(requests) is not tuple or len(requests) > REQUESTS_MOST:
            what = f"gave the orders {short(requests)}"
            raise self._fault(what, f"give a tuple of at most {REQUESTS_MOST} requests")
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
        if type(strength) is not float or not 0 <= strength <= 1:  # the usual is tested quickly
            if (number := _plain_float(strength)) is not None and not math.isfinite(number):
                # The market can cause it (a division by no volatility), so it is held, not fatal.
                return _UNMEASURED
            signal = replace(signal, strength=self._share("strength", strength))
        if is_protected(signal) or signal.reenter is not False:
            signal = self._protection(signal)
        if not isinstance(signal.position_side, (PositionSide, NoneType)) or (
            signal.position_side is not None and signal.action is not Action.FLAT
        ):
            what = f"gave the position_side {short(signal.position_side)} with {signal.action}"
            advice = "a FLAT signal names PositionSide.LONG or SHORT, no other does"
            raise self._fault(what, advice)
        for name in ("band", "by_forecast", "uncorrelated"):
            if (share := getattr(signal, name)) is not None:
                signal = replace(signal, **{name: self._share(name, share)})
        if signal.note is None:
            return signal
        return replace(signal, note=self._noted(signal.note))

    def _share(self, noun: str, value: object) -> float:
        """Return *value* as a share; sums of shares may miss 0 or 1 by a rounding."""
        number = _plain_float(value)
        if number is None or not -_ROUNDING <= number <= 1 + _ROUNDING:
            raise self._fault(f"gave the {noun} {short(value)}", "give a number from 0 to 1")
        return min(max(number, 0.0), 1.0)

    def _protection(self, signal: Signal) -> Signal:
        """Return *signal* with plain numbers; refuse wrong types. The engine checks the values."""
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
        of = type(level) if isinstance(level, (Percent, Volatility)) else float
        given = getattr(level, "value", getattr(level, "multiple", level))
        if (number := _plain_float(level if of is float else given)) is None:
            advice = "give a price, Percent(2) or Volatility(2)"
            raise self._fault(f"gave the {name} {short(level)}", advice)
        return of(number)

    def _noted(self, note: object) -> dict[str, float | str | None]:
        """Return *note* as it is stored: a copy, numbers as floats, null where not finite."""
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
            # The market can cause it (a division by no volatility), so it is null, not fatal.
            return number + 0.0 if math.isfinite(number) else None
        if type(value) is str and len(value) <= REASON_LONGEST and value.isprintable():
            return value
        advice = f"give a number, or one line of at most {REASON_LONGEST} printable characters"
        raise self._fault(f"noted {short(value)} as {short(name)}", advice)


class _GuardedStrategy(_Checks[Strategy], Strategy):
    """Calls the user's strategy and checks each answer before it is used."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy)
        if (compute := strategy.columns) is not None:
            computing = ForeignCode(self._name, "in columns", may_exit=False)

            def columns(history: BarArrays) -> Mapping[str, Column]:
                with computing:
                    given = compute(history)
                return checked_columns(self._name, given, len(history))

            self.columns = columns

    def decide(self, context: BarContext) -> Signal | Orders:
        with self._deciding:
            signal = self.guarded.decide(context)
        return self._checked(signal)


class _GuardedPortfolio(_Checks[PortfolioStrategy], PortfolioStrategy):
    """Calls the user's portfolio strategy and checks each part of its answers."""

    def __init__(self, portfolio: PortfolioStrategy) -> None:
        super().__init__(portfolio)
        self.symbols = portfolio.symbols

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal | Orders]:
        with self._deciding:
            answers = self.guarded.decide(contexts)
            # A user's mapping is the user's code as well.
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
        return {symbol: self._checked(signal) for symbol, signal in by_symbol.items()}


def _plain_request(request: OrderRequest) -> OrderRequest | None:
    """Return *request* with plain numbers, or None where a field has a wrong type."""
    numbers = {
        name: plain_number(value)
        for name in ("quantity", "price", "trigger", "until")
        if (value := getattr(request, name)) is not None
    }
    until = numbers.get("until", 0)
    is_typed = (
        isinstance(request.side, Side)
        and isinstance(request.kind, OrderKind)
        and "quantity" in numbers
        and None not in numbers.values()
        and type(request.post_only) is bool
        and type(request.reduce_only) is bool
        and type(until) is int
        and 0 <= until <= MONEY_LIMIT
        and isinstance(request.position_side, (PositionSide, NoneType))
    )
    return replace(request, **numbers) if is_typed else None


_ROUNDING: Final = 1e-9
"""How far a share may lie beyond 0 or 1: 0.7 + 0.2 + 0.1 is 0.9999999999999999."""


def plain_number(  # noqa: PLR0911 - one return a kind of number
    value: object, *, flags: bool = False
) -> int | float | Decimal | None:
    """Return *value* as a plain number, or None where it is none; *flags* are 0 and 1.

    Scalars of NumPy and other libraries count, also those in an array of no dimension; a number of
    single precision counts as its shortest text. Subclasses of int and float become plain, so that
    no method of theirs is called later.
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
    """Return *value* as a float, or None where it is no number or none that a float can hold."""
    number = plain_number(value)
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


Declaration = tuple[str, Callable[[Any], bool], str]
"""An attribute of a user's class, whether its value can be kept, and what to write else."""


def check_declarations(owner: object, rows: Iterable[Declaration]) -> None:
    """Raise ``ConfigInvalid`` for the first of *rows* that *owner* does not keep."""
    for name, is_right, advice in rows:
        if not is_right(value := getattr(owner, name)):
            raise ConfigInvalid(f"{type(owner).__name__}.{name} is {short(value)}; {advice}.")


def whole(least: int, most: int = sys.maxsize) -> Callable[[object], bool]:
    """Return whether a value is a whole number from *least* to *most*."""
    return lambda value: type(value) is int and least <= value <= most


def _named(existing: Collection[str]) -> Callable[[object], bool]:
    return lambda given: (
        isinstance(given, Collection)
        and all(isinstance(name, str) and name in existing for name in given)
    )


def _declarations(strategy: Strategy | PortfolioStrategy) -> list[Declaration]:
    """Return a strategy's declarations in the form that the engine keeps."""
    is_count = whole(1, WARMUP_MOST)
    bars, most = f"of bars from 1 to {WARMUP_MOST:,}", f"{WARMUP_MOST:,}"
    intervals = f"intervals of: {', '.join(INTERVALS)}"

    def are_frames(given: object) -> bool:
        return isinstance(given, tuple) and _named(INTERVALS)(given)

    def are_counts(given: object) -> bool:
        if not isinstance(given, Mapping) or not given.keys() <= set(strategy.frames):
            return False
        return all(map(is_count, given.values()))

    return [
        ("warmup", is_count, f"give a whole number {bars}"),
        ("horizon", lambda of: of is None or whole(1)(of), "give a whole number of bars, or None"),
        ("frames", are_frames, f"give a tuple of {intervals}"),
        ("frames_warmup", are_counts, f"map declared frames to whole numbers {bars}"),
        ("books", whole(0, WARMUP_MOST), f"give a whole number of order books up to {most}"),
        *((flag, lambda of: type(of) is bool, "give True or False") for flag in _FLAGS),
        ("gates", _named(GATES), f"name gates of: {', '.join(gate_order())}"),
        ("gates", lambda of: operator.name in of, f"add {operator.name}: HALT binds by it alone"),
        ("shadows", _named(SHADOWS), f"name shadow accounts of: {', '.join(SHADOWS)}"),
    ]  # fmt: skip


_FLAGS: Final = ("needs_forecast", "exits_freely", "sees_account", "reads_history")


def network_class(name: str) -> ImportedClass:
    """Import the class ``module:Class`` that a network is made of; raise as ``imported`` does."""
    made_of = imported(name, key="architecture.mechanism")
    if not isinstance(made_of, type):
        raise ConfigInvalid(f"architecture.mechanism '{name}' is no class; name one.")
    if made_of.__module__.startswith("tracepaper."):  # all else of it changes with each version
        sha256 = hashlib.sha256(inspect.getsource(made_of).encode()).hexdigest()
    else:
        sha256 = class_sha256(made_of)
    return ImportedClass(made_of, sha256, lambda: ForeignCode(name, "in forward", may_exit=False))
