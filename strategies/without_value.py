"""Observes indicators that return no value while a strategy decides.

An array that is too short for an indicator's period gives only NaN. Every comparison with NaN is
false, so such a strategy silently never trades, or always takes the same side.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from itertools import chain
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import StrategyFailed
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


@dataclass(frozen=True)
class WithoutValue:
    """A call of an indicator whose newest value is NaN in every array that it returned."""

    call: str  # such as ``ema(…, 21)``
    rows: int  # of the arrays that it was given
    needed: int  # the fewest rows that give a value; 0 if no number of rows does

    @property
    def is_short(self) -> bool:
        """Whether more rows would have given a value."""
        return self.rows < self.needed


class IndicatorWatch:
    """The calls without a value since the last :meth:`clear`, while it is entered."""

    def __init__(self) -> None:
        self.calls: list[WithoutValue] = []
        self._arrays: list[tuple[object, int]] = []  # without a value, and the rows each needed
        self._needed: dict[str, int] = {}
        self._token: Any = None

    def __enter__(self) -> None:
        """Observe the indicators that this thread calls."""
        self._token = _watching.set(self)

    def __exit__(self, *_error: object) -> None:
        """Stop observing."""
        _watching.reset(self._token)

    def clear(self) -> None:
        """Forget the calls."""
        if self.calls:
            self.calls.clear()
            self._arrays.clear()

    def add(
        self,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        values: object,
    ) -> None:
        """Add a call of *compute* that returned *values* without a newest value."""
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
        self.calls.append(WithoutValue(call, rows, needed))
        self._arrays += [(array, needed) for array in _components(values)]

    def _rows_before(self, array: Floats) -> int:
        """Return the rows that *array* needs before its first value, as far as it is observed."""
        if array.dtype.kind != "f":
            return 0
        known = np.flatnonzero(~np.isnan(array))
        if known.size:
            return int(known[0])
        return next((max(needed - 1, 0) for of, needed in self._arrays if of is array), 0)

    def sentence(self, warmup: int, frames_warmup: frozenset[int] = frozenset()) -> str:
        """Return what had no value and what would give it one, without a full stop; else nothing.

        *warmup* is the number of bars that the strategy declares, *frames_warmup* those of its
        higher timeframes. The call that needs most rows is named.
        """
        if not self.calls:
            return ""
        call = max(self.calls, key=lambda each: (each.is_short, each.needed))
        if not call.is_short:
            return f"{call.call}{_NO_VALUE}at this bar"
        if call.rows == warmup:
            had, advice = f"{count_of(call.rows, 'bar')} of history", "set warmup ="
        elif call.rows in frames_warmup:
            had, advice = f"{count_of(call.rows, 'bar')} of history", "set frames_warmup ="
        else:
            had, advice = count_of(call.rows, "row"), "give it"
        return f"{call.call}{_NO_VALUE}with {had}: {advice} {call.needed:,} or more"


_watching: Final[ContextVar[IndicatorWatch | None]] = ContextVar("_watching", default=None)


def indicator(compute: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Let *compute* take columns of any type, name its parameters in an error, and be watched.

    Columns are the leading parameters whose annotation begins with ``Floats``: arrays, lists, or
    Series of pandas or polars. An entered :class:`IndicatorWatch` sees the calls that return no
    value.
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
        watch = _watching.get()
        token = _watching.set(None)  # what an indicator calls is its own affair
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
            if watch is not None and lacks_value(values, taken, named):
                watch.add(compute, taken, named, values)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            listed = ", ".join(map(_parameter_text, parameters.values()))
            raise StrategyFailed(f"{compute.__name__}({listed}) failed: {error}.") from error
        finally:
            _watching.reset(token)
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
    """Return whether the newest value of an indicator's answer, or of all its arrays, is NaN.

    Flags such as those of ``crossover`` compare the newest two rows of their *arguments*, and are
    False where one of these is NaN.
    """
    for array in _components(values):
        if not isinstance(array, np.ndarray):
            return False
        if array.dtype.kind == "b":
            compared = [given[-2:] for given in _arrays_of(arguments, options)]
            return any(rows.size < 2 or bool(np.isnan(rows).any()) for rows in compared)
        if array.size and not np.isnan(array[-1]):
            return False
    return True


def rows_needed(
    compute: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> int:
    """Return the fewest rows at which *compute* gives a value; 0 if ``ROWS_MOST`` do not suffice.

    Each array is replaced by waves that differ, so that no range or deviation is 0.
    """

    def has_value(rows: int) -> bool:
        at = np.arange(rows)

        def wave(place: int, given: object) -> object:
            return (
                100 + np.sin(at * (1 + 0.37 * place) + place)
                if isinstance(given, np.ndarray)
                else given
            )

        tried = tuple(wave(place, given) for place, given in enumerate(arguments))
        named = {
            name: wave(place, given)
            for place, (name, given) in enumerate(options.items(), len(arguments))
        }
        return not lacks_value(compute(*tried, **named), tried, named)

    rows = 1
    while not has_value(rows):
        rows *= 2
        if rows > ROWS_MOST:
            return 0
    lacking = rows // 2
    while rows - lacking > 1:
        middle = (rows + lacking) // 2
        if has_value(middle):
            rows = middle
        else:
            lacking = middle
    return rows
