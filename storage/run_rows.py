"""``Run`` and its instruments to rows and back; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Category, Instrument, Run, RunKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracepaper.storage.rows import Row


class Previous(NamedTuple):
    """The run opened before in the same database, as it stood then."""

    run_id: str | None = None
    step_count: int | None = None
    head: bytes | None = None


FIRST: Final = Previous()


def run_row(run: Run, run_key: int, opened_gate_sets: int, previous: Previous = FIRST) -> Row:
    """Return the row of *run* as opened: the columns that never change."""
    return (
        run_key,
        run.run_id,
        run.kind.value,
        run.started_at_ms,
        run.parent_run_id,
        run.period_start_ms,
        run.interval_ms,
        run.config,
        run.config_sha256,
        run.code_version,
        run.strategy,
        run.strategy_sha256,
        run.model_id,
        run.model_sha256,
        run.path,
        run.device,
        run.dtype,
        run.threads,
        run.backend,
        run.torch_version,
        run.instruction_set,
        run.libraries,
        msgspec.json.encode(run.warnings).decode(),
        *previous,
        opened_gate_sets,
    )


def run_of(row: Sequence[Any], instruments: Iterable[Sequence[Any]]) -> Run:
    """Return the run of its row as opened and the rows of its instruments, in their order."""
    try:
        return Run(
            run_id=row[1],
            kind=RunKind(row[2]),
            started_at_ms=row[3],
            parent_run_id=row[4],
            period_start_ms=row[5],
            instruments=tuple(instrument_of(instrument) for instrument in instruments),
            interval_ms=_length(row[6]),
            config=row[7],
            config_sha256=row[8],
            code_version=row[9],
            strategy=row[10],
            strategy_sha256=row[11],
            model_id=row[12],
            model_sha256=row[13],
            path=row[14],
            device=row[15],
            dtype=row[16],
            threads=row[17],
            backend=row[18],
            torch_version=row[19],
            instruction_set=row[20],
            libraries=row[21],
            warnings=tuple(msgspec.json.decode(row[22])),
        )
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise DataInvalid(
            f"The row of run {row[1]} holds what no run has ({error}); run `tracepaper audit "
            "verify` and restore a backup."
        ) from error


def instrument_row(instrument: Instrument, run_key: int, place: int) -> Row:
    """Return the row of *instrument*, the run's instrument number *place*."""
    return (
        run_key,
        place,
        instrument.id,
        instrument.category.value,
        instrument.symbol,
        instrument.base_coin,
        instrument.quote_coin,
        instrument.price_decimals,
        instrument.quantity_decimals,
        instrument.volume_decimals,
        instrument.turnover_decimals,
        instrument.tick_size,
        instrument.quantity_step,
        instrument.min_quantity,
        instrument.max_quantity,
        instrument.min_notional,
        instrument.funding_interval_minutes,
        instrument.status,
    )


def instrument_of(row: Sequence[Any]) -> Instrument:
    """Return the instrument of its row."""
    _, _, _, category, *fields = row
    return Instrument(Category(category), *fields)


def _length(interval_ms: int) -> int:
    if interval_ms <= 0:
        raise ValueError(f"an interval of {interval_ms} ms")
    return interval_ms
