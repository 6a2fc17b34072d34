"""Says where an exception arose in a user's code, and which names that line may use."""

from __future__ import annotations

import inspect
import linecache
import re
import sysconfig
import traceback
from collections.abc import Mapping
from enum import EnumType
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

from tracepaper.daemon.config.values import PARSING
from tracepaper.strategies.types.decisions import Action

INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
"""Names of the folders of installed packages."""

_STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib")
_PACKAGE: Final = __name__.partition(".")[0]

_WHEN_NONE: Final = {
    "account": "it is None unless the class declares sees_account = True",
    "forecast": "it is None unless the class declares needs_forecast = True and the model answered",
    "explanation": "it is None unless the class declares needs_forecast = True and the model says",
    "verdict": "it is None before the first decision of a run",
}
"""The attributes of a context that may be None, and when."""

SHORT_HISTORY: Final = "; the history has as many bars as warmup says: set a longer warmup"
"""What an index beyond the history is told."""

_ONE_ROW: Final = (
    "; columns and indicators have a row a bar: compare the newest, [-1], also of each of several "
    "lines, as in upper, middle, lower = bbands(close)"
)
_CALL: Final = re.compile(r"([\w.]+)\(")
_NO_MEMBER: Final = re.compile(r"is not a valid (\w+)")


def place(error: BaseException) -> str:
    """Return `` at FILE:LINE`` of the user's line in which *error* arose, or an empty text."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    if (step := _user_step(error.__traceback__)) is None:
        return ""
    return f" at {step.tb_frame.f_code.co_filename}:{step.tb_lineno}"


def definition(method: object) -> str:
    """Return `` at FILE:LINE`` where *method* is defined, or an empty text for compiled code."""
    code = getattr(inspect.unwrap(method), "__code__", None)  # type: ignore[arg-type]
    return f" at {code.co_filename}:{code.co_firstlineno}" if code else ""


def advice(error: BaseException) -> str:
    """Return what the line may use instead, after a semicolon, or an empty text.

    That is when an attribute of the context may be None, the names of an object of tracepaper that
    lacks one, the parameters of what was called with others, or how long the history is.
    """
    if isinstance(error, AttributeError) and error.obj is not None:
        return _names(error.obj)
    if of_rows := _advice_on_rows(error):
        return of_rows
    if (step := _user_step(error.__traceback__)) is None:
        return ""
    lines = _lines(step)
    if isinstance(error, AttributeError):
        for attribute, when in _WHEN_NONE.items():
            if re.search(rf"\b{attribute}\.{re.escape(error.name or '')}\b", lines):
                return f"; context.{attribute} was read: {when}"
    called = _CALL.findall(lines)
    if isinstance(error, ValueError):
        enums = _NO_MEMBER.findall(str(error))
        called = [name for name in called if name.rpartition(".")[2] in enums]
    elif not isinstance(error, TypeError) or "argument" not in str(error):
        return ""
    sentences = (_names(_resolved(name, step.tb_frame), is_called=True) for name in called)
    return next(filter(None, sentences), "")


def _reads_history(trace: TracebackType | None) -> bool:
    """Return whether a function of *trace* names the history or a timeframe."""
    while trace is not None:
        if not {"history", "timeframe"}.isdisjoint(trace.tb_frame.f_code.co_names):
            return True
        trace = trace.tb_next
    return False


def _advice_on_rows(error: BaseException) -> str:
    """Return what is said of a read beyond the history, and of an array where one value is due."""
    if isinstance(error, IndexError) and _reads_history(error.__traceback__):
        return SHORT_HISTORY
    is_array = isinstance(error, ValueError) and "truth value of an array" in str(error)
    return _ONE_ROW if is_array else ""


def _user_step(trace: TracebackType | None) -> TracebackType | None:
    """Return the deepest step of *trace* in a file of the user, or None.

    Python, NumPy and other libraries raise in their own files, below the line that called them. If
    every file is an installed package's, so is the user's class, and the first step is its own.
    """
    installed = custom = None
    while trace is not None:
        names = trace.tb_frame.f_globals
        # Compiled code has file names that exist nowhere; its module's file is real.
        file = str(names.get("__file__") or trace.tb_frame.f_code.co_filename)
        if str(names.get("__name__")).partition(".")[0] == _PACKAGE:
            pass  # an indicator, say, that the user's line called
        elif not INSTALLED.isdisjoint(Path(file).parts):
            installed = installed or trace
        elif not file.startswith(("<frozen", _STANDARD_LIBRARY)):
            custom = trace
        trace = trace.tb_next
    return custom or installed


def _lines(step: TracebackType) -> str:
    """Return the source lines of the statement of *step*; an empty text if Python has none."""
    summary = traceback.extract_tb(step, limit=1)[0]
    first = summary.lineno or 1
    lines = linecache.getlines(summary.filename, step.tb_frame.f_globals)
    return "".join(lines[first - 1 : summary.end_lineno or first])


def _resolved(name: str, frame: FrameType) -> object:
    """Return the object of the dotted *name* in *frame*, or None."""
    first, *rest = name.split(".")
    scope: Mapping[str, Any] = {**frame.f_globals, **frame.f_locals}
    value = scope.get(first)
    for attribute in rest:
        value = getattr(value, attribute, None)
    return value


def _names(value: object, *, is_called: bool = False) -> str:
    """Return the names that *value* has, or takes if it *is_called*; empty if it is not ours."""
    kind = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    if kind.__module__.partition(".")[0] != _PACKAGE:
        return ""
    if isinstance(value, EnumType):
        # A signal may not have ORDERS, which ``Orders`` sets itself.
        members = (name for name in value.__members__ if name != Action.ORDERS.name)
        return f"; {value.__name__} has {', '.join(members)}"
    if is_called:
        try:
            with PARSING:
                parameters = inspect.signature(value).parameters  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return ""
        return f"; {kind.__name__} takes {', '.join(parameters)}"
    names = (name for name in dir(value) if not name.startswith("_"))
    return f"; {kind.__name__} has {', '.join(names)}"
