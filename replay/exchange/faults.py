"""Faults armed on request or by a seeded schedule, and counted when they hit.

A fault is *scheduled* when it is armed and *fired* when it hits a frame, a connection or a request;
until then it waits. ``fault_kinds`` declares every kind; ``tracepaper exchange --list-faults``
prints them. ``topic`` is a prefix of the topics or REST paths to hit.

``provoke`` (the schedule sets it for REST faults) also cuts the stream, since a client whose stream
works makes no REST request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from tracepaper.replay.exchange.candles import draws, key
from tracepaper.replay.exchange.fault_kinds import FAULTS, Fault, Hit, Stage
from tracepaper.strategies.errors import ConfigInvalid


def fault_from(request: Mapping[str, Any]) -> Fault:
    """Return the fault that *request* describes, or raise ``ConfigInvalid``."""
    try:
        return msgspec.convert(dict(request), Fault)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(
            f"This is no fault ({error}): give a kind of {', '.join(FAULTS)}, and of form, "
            "topic, ms, seconds, count, status, code and provoke what it needs."
        ) from None


@dataclass
class FaultTally:
    """How often a kind was armed and how often it hit, with the market times of the hits."""

    scheduled: int = 0
    fired: int = 0
    times: list[int] = field(default_factory=list)


class Faults:
    """The armed faults of one exchange, and the tally of each kind."""

    def __init__(self, *, speed: float = 1.0) -> None:
        self._speed = speed
        self._armed: list[Fault] = []
        self._tallies: dict[str, FaultTally] = {}

    def tally(self, kind: str) -> FaultTally:
        """Return the tally of *kind*."""
        return self._tallies.setdefault(kind, FaultTally())

    def arm(self, fault: Fault) -> None:
        """Add *fault* to those that wait."""
        self._armed.extend([fault] * fault.count)
        self.tally(fault.kind).scheduled += fault.count

    def pending(self, kind: str) -> int:
        """Return how many faults of *kind* still wait."""
        return sum(fault.kind == kind for fault in self._armed)

    def hit(self, stage: Stage, now_ms: int, topic: str = "") -> Callable[..., Any] | None:
        """Fire the first waiting fault of *stage* that matches *topic*; return its effect, or None.

        The effect takes the arguments of its ``Stage``; the hit is bound already.
        """
        for place, fault in enumerate(self._armed):
            form = fault.strikes
            default = form.default_topic
            aims = (fault.topic, default) if stage == "rows" else (fault.topic or default,)
            if FAULTS[fault.kind].stage == stage and all(map(topic.startswith, aims)):
                del self._armed[place]
                tally = self.tally(fault.kind)
                tally.fired += 1
                tally.times.append(now_ms)
                hit = Hit(fault, tally.fired, self._speed)
                return lambda *arguments: form.effect(*arguments, hit)
        return None

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the tallies as the control call answers them."""
        return {
            name: {"forms": {form: each.meaning for form, each in kind.forms.items()}}
            | asdict(self.tally(name))
            for name, kind in FAULTS.items()
        }


# ------------------------------------------------------------ schedule


class TimedFault(NamedTuple):
    """A fault and the machine seconds to wait after the fault before it."""

    wait_s: float
    fault: Fault


class ListedFault(Fault, frozen=True, forbid_unknown_fields=True):
    """A fault of a faults file, ``after_s`` machine seconds after the first subscription."""

    after_s: Annotated[float, Meta(ge=0)] = 0.0


class FaultPlan(Struct, frozen=True, forbid_unknown_fields=True):
    """The faults to arm and when, counted from the first subscription; the keys of a faults file.

    The seeded schedule runs in rounds: each arms every one of *kinds* (None: all kinds) once, its
    forms in turn and at their defaults, in a shuffled order, with gaps of 0.5 to 1.5 times
    *every_s*. The exchange waits
    for a client, and for each fault to hit before it arms the next, so that every kind fires while
    a client runs.
    """

    seed: int = 0
    every_s: Annotated[float, Meta(ge=0)] = 0.0
    kinds: tuple[str, ...] | None = None
    faults: tuple[ListedFault, ...] = ()

    def __post_init__(self) -> None:
        """Reject unknown kinds; msgspec turns the error into its own."""
        for kind in self.kinds or ():
            if kind not in FAULTS:
                raise ValueError(f"there is no kind {kind!r}")

    def listed(self) -> Iterator[TimedFault]:
        """Yield the listed faults in the order of their times."""
        before_s = 0.0
        for each in sorted(self.faults, key=lambda fault: fault.after_s):
            fault = Fault(*(getattr(each, name) for name in Fault.__struct_fields__))
            yield TimedFault(each.after_s - before_s, fault)
            before_s = each.after_s

    def scheduled(self) -> Iterator[TimedFault]:
        """Yield the seeded schedule, without end; nothing where ``every_s`` is 0."""
        turn = 0
        kinds = tuple(FAULTS) if self.kinds is None else self.kinds
        while self.every_s > 0 and kinds:
            numbers = draws(key("faults", self.seed, turn), 2 * len(kinds))
            order = sorted(zip(numbers, kinds, strict=False))
            for (_, name), number in zip(order, numbers[len(kinds) :], strict=True):
                kind = FAULTS[name]
                fault = Fault(name, tuple(kind.forms)[turn % len(kind.forms)])
                fault = replace(fault, provoke=fault.is_provoked)
                yield TimedFault(self.every_s * (0.5 + number / 2**32), fault)
            turn += 1


def read_plan(path: Path | None) -> FaultPlan:
    """Return the plan of a TOML file, or raise ``ConfigInvalid``; without a file, an empty plan."""
    if path is None:
        return FaultPlan()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=FaultPlan)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigInvalid(
            f"{path} is no faults file ({error}): give TOML with seed, every_s, kinds and a "
            "list faults."
        ) from None
