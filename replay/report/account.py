"""The record of an account over its runs: the one place where they are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tracepaper.daemon.session.account_chain import AccountRun, account_chain
from tracepaper.replay.report.record import AccountRecord, Bars, RunRecord, read_record
from tracepaper.replay.run_columns import funding_in_bars
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import RunKind
from tracepaper.strategies.units import count_of, minute_text

_RUNS_NAMED = 6
Row = TypeVar("Row")


def account_in(database: Path, run_id: str) -> list[AccountRun]:
    """Return the runs of the account in *database* if *run_id* is its newest; else none."""
    with Reader.open(database) as reader:
        newest = reader.newest(RunKind.LIVE)
    return account_chain([database]) if newest is not None and newest.run_id == run_id else []


def read_account(chain: Sequence[AccountRun]) -> RunRecord:
    """Return the record of the runs of *chain* as one; its newest run gives what is one run's.

    Runs of another interval, or before a run of another interval, are left out, and so are runs
    without a decision. Raises ``DataInvalid`` if nothing is left.
    """
    records, left = list[RunRecord](), list[str]()
    for each in reversed(chain):
        if each.run is None:
            continue
        with Reader.open(each.path) as reader:
            try:
                record = read_record(reader, each.path, each.run.run_id)
            except DataInvalid:
                if each is chain[-1]:
                    raise
                continue
        if records and record.bar_times.interval_ms != records[0].bar_times.interval_ms:
            left.append(
                f"Until {minute_text(int(record.times_ms[-1]))} its bars had another interval: "
                f"`report {record.run['run_id']} --db {each.path}` has those."
            )
            break
        records.insert(0, record)
    origin = chain[0].origin
    if origin is not None and not left:
        left.append(
            f"It goes on with the account of run {origin.run_id} at "
            f"{minute_text(origin.market_ms)}, whose history is in another file: give that file "
            "too, if this version reads it."
        )
    record = joined(records)
    shown = {shadow.name for shadow in record.shadows}
    for name in (each.name for each in records[-1].shadows if each.name not in shown):
        left.append(f"The shadow account {name} is not in all its runs: `report RUN` has it.")
    return replace(record, begins=" ".join(left))


def joined(records: Sequence[RunRecord]) -> RunRecord:
    """Return one record of the *records* of an account's runs, oldest first.

    Steps stay numbered by run. A shadow account that not all runs have is left out.
    """
    last = records[-1]
    if len(records) == 1:
        return last
    names = dict.fromkeys(name for record in records for name in record.bars)
    shadows = [
        of
        for shadow in last.shadows
        if None not in (of := [_shadow(record, shadow.name) for record in records])
    ]
    return replace(
        last,
        parts=tuple(records),
        times_ms=np.concatenate([record.times_ms for record in records]),
        bars={name: _bars(records, name) for name in names},
        decisions=_end_to_end([record.decisions for record in records]),
        account=_one([record.account for record in records]),
        shadows=tuple(_one([each for each in of if each is not None]) for of in shadows),
        gaps=_rows(records, lambda record: record.gaps),
        missing=_rows(records, lambda record: record.missing),
        fitted=tuple(dict.fromkeys(_rows(records, lambda record: record.fitted))),
        without_fills="" if any(record.account.fills for record in records) else last.without_fills,
    )


Arrays = TypeVar("Arrays")


def _end_to_end(parts: Sequence[Arrays]) -> Arrays:
    """Return the arrays of *parts*, one dataclass, end to end."""
    names = [field.name for field in fields(parts[0])]  # type: ignore[arg-type]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **arrays)  # type: ignore[type-var]


def _bars(records: Sequence[RunRecord], name: str) -> Bars:
    """Return the bars of an instrument; what was settled between two runs is in the next bar."""
    bars = _end_to_end([record.bars[name] for record in records if name in record.bars])
    rates = {at: rate for record in records for at, rate in record.rates[name].items()}
    closes_ms = records[-1].bar_times.closes_of(bars.open_time_ms)
    return replace(bars, funding=funding_in_bars(closes_ms, rates.items()))


def _shadow(record: RunRecord, name: str) -> AccountRecord | None:
    return next((shadow for shadow in record.shadows if shadow.name == name), None)


def _one(parts: Sequence[AccountRecord]) -> AccountRecord:
    """Return one account of its *parts* in the runs; each goes on where the one before ended."""
    names = dict.fromkeys(name for part in parts for name in part.held)
    return AccountRecord(
        name=parts[-1].name,
        equity=np.concatenate([parts[0].equity[:1], *(part.equity[1:] for part in parts)]),
        held={
            name: np.concatenate([part.held[name] for part in parts if name in part.held])
            for name in names
        },
        fills=tuple(row for part in parts for row in part.fills),
        trades=tuple(row for part in parts for row in part.trades),
        fees_paid=sum(part.fees_paid for part in parts),
        funding_paid=sum(part.funding_paid for part in parts),
        net=sum(part.net for part in parts),
    )


def _rows(
    records: Sequence[RunRecord], of: Callable[[RunRecord], tuple[Row, ...]]
) -> tuple[Row, ...]:
    return tuple(row for record in records for row in of(record))


def runs_named(record: RunRecord) -> str:
    """Return the runs of *record*, and when each of several began."""
    parts = record.parts
    if not parts:
        return f"run {record.run['run_id']}"
    shown = [*parts[:1], *parts[1:][-_RUNS_NAMED + 1 :]]
    named = ", ".join(
        f"{part.run['run_id']} from {minute_text(int(part.decisions.open_time_ms.min()))}"
        for part in shown
    )
    more = f" and {len(parts) - len(shown)} between" * (len(shown) < len(parts))
    return f"account over {count_of(len(parts), 'run')}: {named}{more}"
