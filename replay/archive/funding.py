"""Funding rates of a perpetual from a file: settlement times and exact rates."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.daemon.config.values import symbol_name
from tracepaper.replay.archive.decimals import CellInvalidError, Decimals, IntArray, parse
from tracepaper.replay.archive.formats import read_table
from tracepaper.replay.archive.names import MEANINGS, TIME, split_argument
from tracepaper.replay.archive.tables import RawTable, of_one_symbol, symbol_of_table
from tracepaper.replay.archive.times import epoch_ms
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import MONEY_DECIMALS, Category

RATE_NAMES: Final = ("funding_rate", "fundingrate", "last_funding_rate", "rate", "open")
TIME_NAMES: Final = ("funding_time", "fundingratetimestamp", "calc_time", *MEANINGS[TIME])


@dataclass(frozen=True, eq=False)
class FundingRates:
    """Settlements of one perpetual, oldest first; ``rate`` in 10⁻¹⁰, paid by longs if positive."""

    path: str
    symbol: str
    time_ms: IntArray
    rate: IntArray

    @property
    def instrument(self) -> str:
        """The instrument's id, ``linear:BTCUSDT``; only linear contracts have funding here."""
        return f"{Category.LINEAR.value}:{self.symbol}"

    def __len__(self) -> int:
        return int(self.time_ms.size)


NEIGHBOURS: Final = 4
"""A settlement's interval is the median of the distances to so many neighbours either way."""


def missing_settlements(rates: FundingRates, from_ms: int, until_ms: int) -> list[tuple[int, int]]:
    """Return when settlements after *from_ms* and up to *until_ms* were due that *rates* lack.

    Each stands beside the time of the next one that was due. The interval is that of the
    settlements around it, since exchanges change it; of a single settlement there is none.
    """
    times = rates.time_ms
    if times.size < 2:
        return []
    steps = np.diff(times)
    around = [
        int(np.sort(part)[(part.size - 1) // 2])
        for part in (
            steps[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS + 1]
            for place in range(steps.size)
        )
    ]
    dues: list[int] = []
    first, last = int(times[0]), int(times[-1])
    if first > from_ms:
        dues += range(first - (first - from_ms - 1) // around[0] * around[0], first, around[0])
    for at, step, interval in zip(times.tolist(), steps.tolist(), around, strict=False):
        dues += [at + place * interval for place in range(1, round(step / interval))]
    dues += range(last + around[-1], until_ms + 1, around[-1])
    following = np.searchsorted(times, dues, side="right")
    return [
        (due, int(times[place]) if place < times.size else due + around[-1])
        for due, place in zip(dues, following.tolist(), strict=True)
        if from_ms < due <= until_ms
    ]


def read_funding(path: str | Path, *, symbol: str | None = None) -> FundingRates:
    """Return the settlements in a file with a time and a funding rate, as rates not percent.

    A rate of more than ten decimals is rounded half-even to 10⁻¹⁰. Raises ``DataInvalid`` with
    file and line, ``ConfigInvalid`` where no symbol is known.
    """
    named, file = split_argument(path)
    table = read_table(file)
    found, _ = symbol_of_table(table, named, symbol_name(symbol) if symbol else None)
    table = of_one_symbol(table, found)
    times, rates = _columns(table)
    order = np.argsort(times, kind="stable")
    times, mantissa = times[order], rates.mantissa[order]
    again = np.flatnonzero(np.diff(times) == 0) + 1
    clash = again[mantissa[again] != mantissa[again - 1]]
    if clash.size:
        row = int(order[clash[0]])
        raise DataInvalid(f"{table.place(row)}: contradicts another rate of its time; remove one.")
    keep = np.delete(np.arange(times.size), again)
    scale = Decimal(10) ** (MONEY_DECIMALS - rates.places)
    rate = [int((Decimal(value) * scale).to_integral_value()) for value in mantissa[keep].tolist()]
    return FundingRates(str(file), found or "", times[keep], np.array(rate, dtype=np.int64))


def _columns(table: RawTable) -> tuple[IntArray, Decimals]:
    """Return settlement times and rates, checked for sense."""
    time_name = next((name for name in TIME_NAMES if name in table.columns), None)
    rate_name = next((name for name in RATE_NAMES if name in table.columns), None)
    if time_name is None or rate_name is None:
        raise DataInvalid(
            f"{table.path} has no column open_time or funding_rate (found "
            f"{', '.join(table.columns)}): name its columns so."
        )
    name = "the time"
    try:
        times, _ = epoch_ms(table.columns[time_name])
        name = "funding_rate"
        rates = parse(table.columns[rate_name])
    except CellInvalidError as error:
        raise table.refuse(error, name) from None
    wild = np.flatnonzero(np.abs(rates.mantissa) >= 10**rates.places)
    if wild.size:
        raise table.refuse(
            CellInvalidError(int(wild[0]), "is 100 % or more, so it is no rate"), name
        )
    return times, rates
