"""The error tree; its branches say who can mend an error.

::

    TracepaperError            the root
    ├── Recoverable            reconnect, back off, count against the restart budget
    │   ├── FeedLost           the stream or a request ended or was refused
    │   ├── FeedStale          connected, but no data came in time
    │   ├── ServerLost         a fleet's server does not answer, or broke off
    │   └── MessageMalformed   bytes that are not what the exchange documents
    │       └── FrameImpossible   well formed, and cannot be true
    └── Fatal                  record, stop, exit non-zero
        ├── ConfigInvalid      wrong usage or configuration (exit code 2)
        ├── DataInvalid        a file or a stored row that cannot be believed
        ├── AuditUnwritable    the log cannot take the next step
        ├── CheckpointMismatch weights that are not the ones their card names
        ├── StrategyFailed     a user's strategy raised, or answered what is no signal
        ├── AttentionInvalid   a tensor, mask or backend that attention cannot take
        └── InvariantBroken    a bug of ours

Every message is one sentence that says what to do.
"""

from typing import Final

SHOWN_LONGEST: Final = 80


class TracepaperError(Exception):
    """The root of every error that this project raises."""


class Recoverable(TracepaperError):
    """A temporary failure: reconnect, back off, and try again."""


class FeedLost(Recoverable):
    """The stream or a request ended, was refused or timed out."""


class FeedStale(Recoverable):
    """The connection is open, but no data came in time."""


class ServerLost(Recoverable):
    """The PostgreSQL server of a fleet does not answer, refuses for now, or broke off."""


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
    """The record cannot store the next step, so trading must stop."""


class CheckpointMismatch(Fatal):
    """Weights or a card that do not belong together."""


class StrategyFailed(Fatal):
    """A user's strategy raised, or returned something that is not a signal."""


class AttentionInvalid(Fatal):
    """A tensor, mask or backend that attention does not support."""


class InvariantBroken(Fatal):
    """An internal assumption is false: a bug."""


def shown(value: object) -> str:
    """Return *value* as it is written in an error's sentence: one line of some 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN_LONGEST else f"{text[: SHOWN_LONGEST - 1]}…"
