"""Observes indicators that return no value, or no settled one, while a strategy decides.

An array that is too short for an indicator's period gives only NaN. Every comparison with NaN is
false, so such a strategy silently never trades, or always takes the same side. An infinite
smoothing of few rows has a value that depends on where they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from itertools import chain, count
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.smoothing import rows_to_settle, smoothing_shares
from tracepaper.strategies.units import count_of

Floats = npt.NDArray[np.float64]
Given = ParamSpec("Given")
Returned = TypeVar("Returned")
ROWS_MOST: Final = 2**17
"""Rows of the longest array that :func:`rows_needed` tries."""
_NO_VALUE: Final = " has no value "
NOT_FINITE: Final = "strength is not finite"
"""The reason of a HOLD that replaces a signal whose strength is no finite number."""


def lacked_value(reason: str) -> bool:
    """Return whether the stored *reason* of a decision says that it lacked a value."""
    return _NO_VALUE in reason or reason.startswith(NOT_FINITE)


def says_warmup(reason: str) -> bool:
    """Return whether the *reason* of a decision says which warm-up gives a value."""
    return _NO_VALUE in reason and ": set " in reason


@dataclass(frozen=True)
class IndicatorCall:
    """A call of an indicator, with the rows that it was given and those that it needs."""

    call: str  # such as ``ema(…, 21)``
    rows: int  # of the arrays that it was given
    needed: int  # the fewest rows that give a settled value; 0 if no number of rows gives one
    has_value: bool

    @property
    def is_short(self) -> bool:
        """Whether more rows would give a value, or one that no longer depends on the first row."""
        return self.rows < self.needed


class IndicatorWatch:
    """Calls of indicators since the last :meth:`clear`, while it is entered.

    They are those without a newest value. All calls are kept until it was cleared *turns* times:
    ``kept`` has them by their text and rows.
    """

    def __init__(self, turns: float = 0) -> None:
        self._turns = turns
        self.calls: list[IndicatorCall] = []
        self.kept: dict[tuple[str, int], IndicatorCall] = {}
        self._arrays: list[tuple[object, int]] = []  # of the calls, and the rows each needed
        self._valued: list[tuple[Any, ...]] = []  # calls with a value, of which others may be made
        self._needed: dict[str, int] = {}
        self._token: Any = None

    def __enter__(self) -> None:
        """Observe the indicators that this thread calls."""
        self._token = watching.set(self)

    def __exit__(self, *_error: object) -> None:
        """Stop observing."""
        watching.reset(self._token)

    def clear(self) -> None:
        """Forget the calls, but those that are kept."""
        self._turns -= 1
        if self._valued or self.calls:
            self.calls.clear()
            self._arrays.clear()
            self._valued.clear()

    def add(
        self,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        values: object,
    ) -> None:
        """Add a call of *compute* that returned *values*."""
        has_value = not lacks_value(values, arguments, options)
        if has_value and self._turns < 0:
            self._valued.append((compute, arguments, options, values))
            return
        for valued in self._valued:
            self._measured(*valued)
        self._valued.clear()
        call, rows, needed = self._measured(compute, arguments, options, values)
        self.calls.append(IndicatorCall(call, rows, needed, has_value))
        if self._turns >= 0:
            self.kept[call, rows] = self.calls[-1]

    def _measured(
        self,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        values: object,
    ) -> tuple[str, int, int]:
        """Return a call as text, the rows that it was given, and those that it needs."""
        arrays = _arrays_of(arguments, options)
        named = chain((("", given) for given in arguments), options.items())
        texts = [
            f"{name}={given}" if name else str(given)
            for name, given in named
            if not isinstance(given, np.ndarray)
        ]
        call = f"{compute.__name__}({', '.join(['…', *texts])})"
        if call not in self._needed:
            self._needed[call] = rows_needed(compute, arguments, options)
        # An indicator of an indicator needs the rows of both.
        needed = self._needed[call]
        needed += max(map(self._rows_before, arrays), default=0) if needed else 0
        rows = min((each.size for each in arrays), default=0)
        self._arrays += [(array, needed) for array in _components(values)]
        return call, rows, needed

    def _rows_before(self, array: Floats) -> int:
        """Return the rows that *array* needs before its first settled value, as far as observed."""
        if array.dtype.kind != "f":
            return 0
        known = np.flatnonzero(~np.isnan(array))
        first = int(known[0]) if known.size else 0
        return next((max(needed - 1, 0) for of, needed in self._arrays if of is array), first)

    def sentence(self, warmup: int, frames_warmup: Mapping[str, int]) -> str:
        """Return what had no value and what would give it one, without a full stop; else nothing.

        *warmup* is the number of bars that the strategy declares, *frames_warmup* those of its
        higher timeframes. The call that needs most rows is named.
        """
        if not self.calls or not (lacking := [call for call in self.calls if not call.has_value]):
            return ""
        call = max(lacking, key=lambda each: (each.is_short, each.needed))
        if not call.is_short:
            return f"{call.call}{_NO_VALUE}at this bar"
        if call.rows == warmup:
            had, advice = (
                f"{count_of(call.rows, 'bar')} of history",
                f"set {warmup_of(call.needed, '', {})}",
            )
        elif call.rows in frames_warmup.values():
            name = next(name for name, bars in frames_warmup.items() if bars == call.rows)
            had = f"{count_of(call.rows, 'bar')} of history"
            advice = f"set {warmup_of(call.needed, name, frames_warmup)}"
        else:
            had, advice = count_of(call.rows, "row"), f"give it {call.needed:,}"
        return f"{call.call}{_NO_VALUE}with {had}: {advice} or more"


def warmup_of(bars: int, frame: str, frames_warmup: Mapping[str, int]) -> str:
    """Return the line of a class that declares *bars* of history, or of *frame* beside others."""
    if not frame:
        return f"warmup = {bars}"
    counts = {**frames_warmup, frame: bars}
    listed = ", ".join(f'"{name}": {count}' for name, count in counts.items())
    return f"frames_warmup = {{{listed}}}"


watching: Final[ContextVar[IndicatorWatch | None]] = ContextVar("watching", default=None)


def indicator(compute: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Let *compute* take columns of any type, name its parameters in an error, and be watched.

    Columns are the leading parameters whose annotation begins with ``Floats``: arrays, lists, or
    Series of pandas or polars. An entered :class:`IndicatorWatch` sees the calls.
    """
    parameters = signature(compute).parameters
    columns = [name for name in parameters if _annotation(parameters[name]).startswith("Floats")]
    may_be_number = {name for name in columns if _annotation(parameters[name]) != "Floats"}

    def column(name: str, given: object) -> object:
        if type(given) is np.ndarray and given.dtype == np.float64 and given.ndim == 1:
            return given  # as context.history has them, at no cost
        rows = np.asarray(given, np.float64)
        if rows.ndim == 1:
            return rows
        if rows.ndim == 0 and name in may_be_number:
            return given
        held = f"shape {rows.shape}" if rows.ndim else "one number"
        raise ValueError(f"{name} is {held}; give a column of numbers, as context.history.close is")

    @wraps(compute)
    def observed(*arguments: Given.args, **options: Given.kwargs) -> Returned:
        watch = watching.get()
        token = watching.set(None)  # what an indicator calls is its own affair
        try:
            taken: tuple[Any, ...] = (
                *map(column, columns, arguments),
                *arguments[len(columns) :],
            )
            named: dict[str, Any] = {
                name: column(name, given) if name in columns else given
                for name, given in options.items()
            }
            values = compute(*taken, **named)
            if watch is not None:
                watch.add(compute, taken, named, values)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            listed = ", ".join(map(_parameter_text, parameters.values()))
            raise StrategyFailed(f"{compute.__name__}({listed}) failed: {error}.") from error
        finally:
            watching.reset(token)
        return values

    return observed


def _annotation(parameter: Parameter) -> str:
    return str(parameter.annotation)  # a text, since annotations are postponed


def _parameter_text(parameter: Parameter) -> str:
    if parameter.default is Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default}"


def _arrays_of(arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Floats]:
    return [given for given in (*arguments, *options.values()) if isinstance(given, np.ndarray)]


def _components(values: object) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


def lacks_value(values: object, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Return whether the newest value of an indicator's answer, or of one of its arrays, is NaN.

    Flags such as those of ``crossover`` compare the newest two rows of their *arguments*, and are
    False where one of these is NaN.
    """
    for array in _components(values):
        if not isinstance(array, np.ndarray):
            return False
        if array.dtype.kind == "b":
            compared = [given[-2:] for given in _arrays_of(arguments, options)]
            return any(rows.size < 2 or bool(np.isnan(rows).any()) for rows in compared)
        if not array.size or np.isnan(array[-1]):
            return True
    return False


def rows_needed(
    compute: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> int:
    """Return the fewest rows at which *compute* gives a settled value; 0 if it gives none.

    Each array is replaced by waves that differ, so that no range or deviation is 0. The first value
    needs some rows. An infinite smoothing needs as many more as make the rows that are cut off, or
    that it began with, weigh less than ``WEIGHT_LEFT``.
    """
    bound = signature(compute).bind(*arguments, **options)
    bound.apply_defaults()
    given = bound.arguments
    shares = () if given.get("window") else smoothing_shares(compute.__name__, given)
    rows = 64
    while rows <= ROWS_MOST:
        at = np.arange(rows)
        waves = (100 + np.sin(at * (1 + 0.37 * place) + place) for place in count())
        tried = {
            name: next(waves) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        *_, values = _components(compute(**tried))
        if values.dtype.kind == "b":  # a flag compares two rows
            return 2
        if (known := np.flatnonzero(~np.isnan(values))).size:
            return int(known[0]) + 1 + rows_to_settle(shares)
        rows *= 2
    return 0
