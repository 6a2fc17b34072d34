"""The error classes; the two branches are errors to retry and errors that stop a run.

::

    TracepaperError            the root
    ├── Recoverable            reconnect, back off, count against the restart budget
    │   ├── FeedLost           the stream or a request ended, was refused or timed out
    │   ├── FeedStale          connected, but no data came in time
    │   └── MessageMalformed   a message that contradicts the exchange's documentation
    │       └── FrameImpossible   a well-formed frame that cannot be true
    └── Fatal                  record, stop, exit non-zero
        ├── ConfigInvalid      wrong usage or configuration (exit code 2)
        ├── DataInvalid        invalid data in a file or a stored row
        ├── AuditUnwritable    the record, or a file beside it, cannot be written for now
        ├── CheckpointMismatch weights or a card that do not belong together
        ├── StrategyFailed     a user's strategy raised, or returned no signal
        ├── AttentionInvalid   a tensor, mask or backend that attention does not support
        └── InvariantBroken    a bug in tracepaper

Every message is one sentence that says what to do.
"""

import re
from typing import Any, Final

_MAX_SHOWN: Final = 80


class TracepaperError(Exception):
    """The root of every error that this project raises."""


class Recoverable(TracepaperError):
    """A temporary failure: reconnect, back off, and try again."""


class FeedLost(Recoverable):
    """The stream or a request ended, was refused or timed out."""


class FeedStale(Recoverable):
    """The connection is open, but no data came in time."""


class MessageMalformed(Recoverable):
    """A message that does not follow the exchange's documentation; counted, never traded on."""


class FrameImpossible(MessageMalformed):
    """A well-formed frame that cannot be true; *kind* names the fault in counters."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Fatal(TracepaperError):
    """The run cannot go on: record, stop, exit non-zero."""


class ConfigInvalid(Fatal):
    """Wrong usage or configuration; the command line exits with code 2."""


class DataInvalid(Fatal):
    """Invalid data in a file or a stored row."""


class AuditUnwritable(Fatal):
    """The record, a file beside it or a copy of it cannot be written for now; trading must stop."""


class CheckpointMismatch(Fatal):
    """Weights or a card that do not belong together."""


class StrategyFailed(Fatal):
    """A user's strategy raised, or returned something that is not a signal."""


class AttentionInvalid(Fatal):
    """A tensor, mask or backend that attention does not support."""


class InvariantBroken(Fatal):
    """An internal assumption is false: a bug."""


def shown(value: object) -> str:
    """Return *value* as text for an error message: one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def unfit(error: Exception, made_of: object) -> str:
    """Return what msgspec says of a value that is no *made_of*, with the values that it may be."""
    from msgspec import inspect

    text, kind = str(error), inspect.type_info(made_of)
    fields = getattr(kind, "fields", ())
    if fields and (field := re.search(r" - at `\$\.(\w+)`$", text)):
        kind = next(each.type for each in fields if each.encode_name == field[1])
    values = _choices(kind)
    return f"{text}; choose one of {', '.join(map(str, values))}" if values else text


def _choices(kind: Any) -> list[object]:  # noqa: ANN401 - msgspec has no class of all kinds
    """Return the values of an enumeration, a literal, or a union with one."""
    from msgspec import inspect

    match kind:
        case inspect.Metadata():
            return _choices(kind.type)
        case inspect.UnionType():
            return [value for each in kind.types for value in _choices(each)]
        case inspect.LiteralType():
            return list(kind.values)
        case inspect.EnumType():
            return [member.value for member in kind.cls]
    return []
