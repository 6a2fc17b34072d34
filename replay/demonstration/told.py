"""What the daemon's process tells the show of each stored step: one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Struct

from tracepaper.strategies.types import (
    MONEY_SCALE,
    Bar,
    Command,
    Gap,
    Instrument,
    Run,
    Step,
)


class Begun(Struct, frozen=True, tag="begun"):
    """The process has opened its run, or goes on with it."""

    pid: int
    run_id: str
    strategy: str
    model_id: str  # "" without a model
    cash: float  # at the start of the account, quote currency
    warnings: tuple[str, ...]


class Bought(Struct, frozen=True):
    """One fill of the run's own account."""

    side: str  # BUY or SELL
    quantity: float
    price: float
    reason: str


class BarTold(Struct, frozen=True, tag="bar"):
    """One stored bar, and where it left every account; money in quote currency."""

    sequence: int
    instrument: str
    close_ms: int  # market time at which it closed
    close: float
    is_decided: bool  # False while the run warms up
    refused_by: str  # "" where no gate refused
    held: float  # what the run holds of the instrument, in base currency, signed
    equities: dict[str, float]  # the run's own under "", then every twin's
    fills: tuple[Bought, ...]
    twin_fills: dict[str, int]  # how many each twin had in this step


class GapTold(Struct, frozen=True, tag="gap"):
    """A hole, and what filled it."""

    instrument: str
    from_ms: int
    until_ms: int
    cause: str
    repaired_by: str  # "" where nothing ever will


class CommandTold(Struct, frozen=True, tag="command"):
    """The operator's word, as the run took it in."""

    sequence: int
    kind: str


class Paced(Struct, frozen=True, tag="paced"):
    """The process's clock follows a new pace, in market seconds a second."""

    speed: float


Told = Begun | BarTold | GapTold | CommandTold | Paced
"""One line."""

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Told)


def line_of(told: Told) -> bytes:
    """Return *told* as a line."""
    return _ENCODER.encode(told) + b"\n"


def read(line: bytes) -> Told:
    """Return what *line* tells; raise ``msgspec.DecodeError`` where it is cut short."""
    found: Told = _DECODER.decode(line)
    return found


def begun(run: Run, *, pid: int, cash: float) -> Begun:
    """Return what is told of *run* when process *pid* has it open."""
    return Begun(pid, run.run_id, run.strategy, run.model_id, cash, run.warnings)


def told_of(step: Step, instruments: Mapping[str, Instrument]) -> Iterator[Told]:
    """Yield what is told of *step*, which was stored just now."""
    match step.event:
        case Bar() as bar if step.accepted:
            yield _bar(step, bar, instruments[bar.instrument])
        case Gap() as gap:
            yield GapTold(
                gap.instrument, gap.from_ms, gap.until_ms, gap.cause.value, gap.repaired_by
            )
        case Command() as command:
            yield CommandTold(step.sequence, command.kind.value)
        case _:
            pass


def _bar(step: Step, bar: Bar, instrument: Instrument) -> BarTold:
    price, quantity = 10**instrument.price_decimals, 10**instrument.quantity_decimals
    decision, position = step.decision, step.position
    return BarTold(
        sequence=step.sequence,
        instrument=bar.instrument,
        close_ms=bar.close_time_ms,
        close=bar.close / price,
        is_decided=decision is not None,
        refused_by="" if decision is None else decision.refused_by or "",
        held=0.0 if position is None else position.quantity / quantity,
        equities={
            "": step.account.equity / MONEY_SCALE,
            **{twin.twin: twin.account.equity / MONEY_SCALE for twin in step.twins},
        },
        fills=tuple(
            Bought(fill.side.value, fill.quantity / quantity, fill.price / price, fill.reason)
            for fill in step.fills
        ),
        twin_fills={twin.twin: len(twin.fills) for twin in step.twins},
    )
