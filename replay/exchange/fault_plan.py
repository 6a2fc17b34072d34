"""When faults come: a list with times, and a seeded schedule without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from tracepaper.replay.exchange.faults import (
    FRAME_KINDS,
    REST_KINDS,
    Fault,
    FaultKind,
    fault_from,
)
from tracepaper.replay.exchange.noise import draws, key
from tracepaper.strategies.errors import ConfigInvalid

KEYS: Final = ("seed", "every_s", "kinds", "faults")
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
    """Return the schedule's fault of *kind*; half of the frame faults aim at candles."""
    topic = CANDLES if kind in FRAME_KINDS and number % 2 else ""
    return Fault(kind, topic=topic, provoke=kind in REST_KINDS)


def plan_from(request: Mapping[str, Any]) -> FaultPlan:
    """Return the plan of a faults file, or raise ``ConfigInvalid``.

    Its keys are ``seed``, ``every_s``, ``kinds``, and ``faults``: a list of faults, each with
    ``after_s``, the machine seconds after the first subscription.
    """
    if unknown := sorted(set(request) - set(KEYS)):
        raise ConfigInvalid(
            f"Unknown key {unknown[0]!r} in the faults file: give {', '.join(KEYS)}."
        )
    listed = [
        (_number(entry, "after_s"), fault_from(_without(entry, "after_s")))
        for entry in request.get("faults", [])
    ]
    listed.sort(key=lambda pair: pair[0])
    moments = [0.0, *(after_s for after_s, _ in listed)]
    waits = [later - earlier for earlier, later in pairwise(moments)]
    return FaultPlan(
        listed=tuple(
            TimedFault(wait_s, fault) for wait_s, (_, fault) in zip(waits, listed, strict=True)
        ),
        seed=int(_number(request, "seed")),
        every_s=_number(request, "every_s"),
        kinds=tuple(fault_from({"kind": kind}).kind for kind in request.get("kinds", FaultKind)),
    )


def _without(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def _number(request: Mapping[str, Any], name: str) -> float:
    value = request.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigInvalid(f"{name} is {value!r} in the faults file: give a number from 0.")
    return value


def read_plan(path: Path | None) -> FaultPlan:
    """Return the plan of a TOML or JSON file, or raise ``ConfigInvalid``; without one, none."""
    if path is None:
        return FaultPlan()
    decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    try:
        return plan_from(decode(path.read_bytes(), type=dict[str, Any]))
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigInvalid(f"{path} is no faults file ({error}): give TOML or .json.") from None
