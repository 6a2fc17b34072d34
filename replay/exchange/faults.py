"""Faults on request: armed by a control call or a seeded schedule, counted when they hit.

A fault is *scheduled* when it is armed and *fired* when it hit something: a frame, a connection
or a request. An armed fault waits until then. Kinds and their parameters:

==================  ==============================================================================
``drop``            one data frame is never sent (``topic``: a prefix, as for all frame faults)
``delay``           one data frame is sent ``ms`` of market time late, behind later ones
``duplicate``       one data frame is sent twice
``reorder``         one data frame is sent after the next one
``malformed``       one data frame is replaced by text that is no such frame
``stall``           the connections of the moment get no data for ``seconds``; pongs go on
``disconnect``      every stream connection is cut without a closing handshake
``refuse``          as ``disconnect``, and the next ``count`` connections are refused
``retcode_10006``   the next ``count`` REST calls are answered with retCode 10006
``http_403``        the next ``count`` REST calls are answered with HTTP 403 and HTML
``missing_close``   one closed candle is never sent; REST has it
``revised_close``   one closed candle is sent again with other values; REST keeps the first
``late_close``      one closed candle is sent ``ms`` of market time late
==================  ==============================================================================

With ``provoke`` (the schedule sets it), the REST faults also cut the stream, since a client that
is well has no reason to ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from tracepaper.strategies.errors import ConfigInvalid


class FaultKind(StrEnum):
    """Every kind of fault."""

    DROP = "drop"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    MALFORMED = "malformed"
    STALL = "stall"
    DISCONNECT = "disconnect"
    REFUSE = "refuse"
    RETCODE_10006 = "retcode_10006"
    HTTP_403 = "http_403"
    MISSING_CLOSE = "missing_close"
    REVISED_CLOSE = "revised_close"
    LATE_CLOSE = "late_close"


FRAME_KINDS: Final = (
    FaultKind.DROP,
    FaultKind.DELAY,
    FaultKind.DUPLICATE,
    FaultKind.REORDER,
    FaultKind.MALFORMED,
)
REST_KINDS: Final = (FaultKind.RETCODE_10006, FaultKind.HTTP_403)
PENDING_LIMIT: Final = 1_000
DEFAULT_MS: Final = {FaultKind.DELAY: 3_000, FaultKind.LATE_CLOSE: 8_000}


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One armed fault; ``ms`` of 0 means the kind's default."""

    kind: FaultKind
    topic: str = ""
    ms: Annotated[int, Meta(ge=0)] = 0
    seconds: Annotated[float, Meta(ge=0)] = 5.0
    count: Annotated[int, Meta(ge=1, le=PENDING_LIMIT)] = 1
    provoke: bool = False

    @property
    def delay_ms(self) -> int:
        """Market milliseconds by which this fault delays."""
        return self.ms or DEFAULT_MS.get(self.kind, 0)


def fault_from(request: Mapping[str, Any]) -> Fault:
    """Return the fault that *request* describes, or raise ``ConfigInvalid``."""
    try:
        return msgspec.convert(dict(request), Fault)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(
            f"This is no fault ({error}): give a kind of {', '.join(FaultKind)}, and of topic, "
            "ms, seconds, count and provoke what it needs."
        ) from None


@dataclass
class Tally:
    """How often a kind was armed and how often it hit, with the market times of the hits."""

    scheduled: int = 0
    fired: int = 0
    times: list[int] = field(default_factory=list)


class Faults:
    """The armed faults of one exchange, and the tally of each kind."""

    def __init__(self) -> None:
        self._armed: dict[FaultKind, list[Fault]] = {kind: [] for kind in FaultKind}
        self.tally: Final = {kind: Tally() for kind in FaultKind}

    def arm(self, fault: Fault) -> None:
        """Let *fault* wait for something to hit; raises ``ConfigInvalid`` when too many wait."""
        if len(self._armed[fault.kind]) + fault.count > PENDING_LIMIT:
            raise ConfigInvalid(
                f"{PENDING_LIMIT} faults {fault.kind} already wait: connect a client first."
            )
        self._armed[fault.kind].extend([fault] * fault.count)
        self.tally[fault.kind].scheduled += fault.count

    def pending(self, kind: FaultKind) -> int:
        """Return how many faults of *kind* still wait."""
        return len(self._armed[kind])

    @property
    def quiet(self) -> bool:
        """Whether no frame fault waits."""
        return not any(self._armed[kind] for kind in FRAME_KINDS)

    def take(self, kind: FaultKind, now_ms: int, topic: str = "") -> Fault | None:
        """Return the first waiting fault of *kind* that fits *topic*, counted as fired."""
        armed = self._armed[kind]
        for place, fault in enumerate(armed):
            if topic.startswith(fault.topic):
                del armed[place]
                self.tally[kind].fired += 1
                self.tally[kind].times.append(now_ms)
                return fault
        return None

    def take_frame_fault(self, now_ms: int, topic: str) -> Fault | None:
        """Return the first waiting frame fault that fits *topic*, counted as fired."""
        for kind in FRAME_KINDS:
            if fault := self.take(kind, now_ms, topic):
                return fault
        return None

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the tallies as the control call answers them."""
        return {
            kind.value: {"scheduled": t.scheduled, "fired": t.fired, "times": list(t.times)}
            for kind, t in self.tally.items()
        }


def malformed(body: bytes, turn: int) -> bytes:
    """Return *body* broken in one of four ways, each in its turn."""
    topic = msgspec.json.encode({"topic": msgspec.json.decode(body).get("topic")})
    broken = (
        body[: len(body) // 2],  # cut short
        topic[:-1] + b',"data":null}',  # no data where a list or an object belongs
        body.replace(b'":"', b'":"x'),  # words where numbers belong
        b"[]",  # JSON, but no object
    )
    return broken[turn % len(broken)]
