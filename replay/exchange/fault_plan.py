"""When faults come: a list with times, and a seeded schedule without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from tracepaper.replay.exchange.faults import (
    KLINE_PATH,
    LIES_MS,
    PLAIN_FRAME_KINDS,
    REST_KINDS,
    RETCODES,
    STATUSES,
    Fault,
    FaultKind,
)
from tracepaper.replay.exchange.noise import draws, key
from tracepaper.strategies.errors import ConfigInvalid

CANDLES: Final = "kline."


@dataclass(frozen=True)
class TimedFault:
    """A fault and the machine seconds to wait before it, counted from the one before."""

    wait_s: float
    fault: Fault


@dataclass(frozen=True)
class FaultPlan:
    """What to arm and when, counted from the first subscription.

    The seeded schedule deals all *kinds* in a shuffled round, then again, so each comes once a
    round; gaps are half to one and a half times *every_s*. Whoever runs it waits for a client,
    and for each fault to hit before the next, so that every kind fires while a client runs.
    """

    listed: tuple[TimedFault, ...] = ()
    seed: int = 0
    every_s: float = 0.0
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)

    def scheduled(self) -> Iterator[TimedFault]:
        """Yield the seeded schedule, without end; nothing where ``every_s`` is 0."""
        turn = 0
        while self.every_s > 0 and self.kinds:
            numbers = draws(key("faults", self.seed, turn), 2 * len(self.kinds))
            order = sorted(zip(numbers, self.kinds, strict=False))
            for (_, kind), number in zip(order, numbers[len(self.kinds) :], strict=True):
                yield TimedFault(self.every_s * (0.5 + number / 2**32), _dealt(kind, number))
            turn += 1


def _dealt(kind: FaultKind, number: int) -> Fault:
    """Return the schedule's fault of *kind*, *number* choosing its status, code, lie or aim.

    Half of the plain frame faults aim at candles, half of the lies stand on a page of them.
    """
    aim = ""
    if number % 2:
        aim = CANDLES if kind in PLAIN_FRAME_KINDS else aim
        aim = KLINE_PATH if kind is FaultKind.LYING_TIME else aim
    return Fault(
        kind,
        topic=aim,
        ms=LIES_MS[number // 2 % len(LIES_MS)] if kind is FaultKind.LYING_TIME else 0,
        provoke=kind in REST_KINDS,
        status=STATUSES[number % len(STATUSES)] if kind is FaultKind.HTTP_STATUS else 0,
        code=RETCODES[number % len(RETCODES)] if kind is FaultKind.RETCODE else 0,
    )


class ListedFault(Fault, frozen=True, forbid_unknown_fields=True):
    """A fault of a faults file, ``after_s`` machine seconds after the first subscription."""

    after_s: Annotated[float, Meta(ge=0)] = 0.0

    def fault(self) -> Fault:
        """Return the fault without its time."""
        return Fault(**{name: getattr(self, name) for name in Fault.__struct_fields__})


class PlanFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a faults file."""

    seed: int = 0
    every_s: Annotated[float, Meta(ge=0)] = 0.0
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    faults: tuple[ListedFault, ...] = ()


def plan_from(request: Mapping[str, Any]) -> FaultPlan:
    """Return the plan of a faults file's content, or raise ``ConfigInvalid``."""
    try:
        file = msgspec.convert(dict(request), PlanFile)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(
            f"The faults file is wrong ({error}): give seed, every_s, kinds and a list faults."
        ) from None
    listed = sorted(file.faults, key=lambda each: each.after_s)
    moments = [0.0, *(each.after_s for each in listed)]
    return FaultPlan(
        listed=tuple(
            TimedFault(later - earlier, each.fault())
            for (earlier, later), each in zip(pairwise(moments), listed, strict=True)
        ),
        seed=file.seed,
        every_s=file.every_s,
        kinds=file.kinds,
    )


def read_plan(path: Path | None) -> FaultPlan:
    """Return the plan of a TOML or JSON file, or raise ``ConfigInvalid``; without one, none."""
    if path is None:
        return FaultPlan()
    decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    try:
        return plan_from(decode(path.read_bytes(), type=dict[str, Any]))
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigInvalid(f"{path} is no faults file ({error}): give TOML or .json.") from None
