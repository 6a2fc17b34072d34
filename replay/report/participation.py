"""How large the fills of a run were beside what traded: quantity ÷ volume of the candle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.document.values import Table, of_field, table
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.run_rows import Columns
from tracepaper.storage.database.run_views import Row

LARGE: Final = 0.1
"""A fill of a larger share of its candle's volume is large: few markets take it unmoved."""


class Participation(NamedTuple):
    """The shares of some fills; *unknown* ones have no candle yet, or one in which nothing traded.

    Shares are fractions, and None without a fill of a known share.
    """

    fills: str
    number: int
    median: float | None
    p95: float | None  # exceeded by one of twenty
    most: float | None
    large: int  # fills above ``LARGE``
    unknown: int


Shares = dict[str, list[float | None]]


def fill_shares(columns: RunColumns, fills: Iterable[Row]) -> Shares:
    """Return the share of each of the *fills* of a run in its candle's volume, by symbol.

    A fill's candle is the one that was open when it was filled.
    """
    by_instrument: dict[str, list[Row]] = {}
    for fill in fills:
        by_instrument.setdefault(fill["instrument"], []).append(fill)
    bars = columns.bars_by_instrument() if by_instrument else {}
    return {
        columns.instruments[key].symbol: list(_shares(columns, bars[key], rows))
        for key, rows in by_instrument.items()
    }


def participations(runs: Sequence[Shares]) -> tuple[Participation, ...]:
    """Return the participation of the fills of *runs*: of all, and of each symbol of several."""
    shares: Shares = {}
    for symbol, each in chain.from_iterable(run.items() for run in runs):
        shares.setdefault(symbol, []).extend(each)
    every = [share for each in shares.values() for share in each]
    groups = [("all", every), *(shares.items() if len(shares) > 1 else ())]
    return tuple(_of(name, each) for name, each in groups if each)


def _shares(columns: RunColumns, bars: Columns, fills: Sequence[Row]) -> Iterator[float | None]:
    """Yield the share of each of the *fills* of one instrument, whose *bars* are given."""
    opens, volumes = bars["open_time_ms"], bars["volume"]
    closes = columns.times.closes_of(opens)
    times = np.array([fill["filled_ms"] for fill in fills])
    for fill, place in zip(fills, np.searchsorted(opens, times, side="right") - 1, strict=True):
        inside = place >= 0 and fill["filled_ms"] < closes[place] and volumes[place] > 0
        yield float(fill["quantity"] / volumes[place]) if inside else None


def _of(name: str, shares: Sequence[float | None]) -> Participation:
    with_volume = np.array([share for share in shares if share is not None])
    large, unknown = int((with_volume > LARGE).sum()), len(shares) - with_volume.size
    if not with_volume.size:
        return Participation(name, len(shares), None, None, None, large, unknown)
    median, p95, most = np.quantile(with_volume, (0.5, 0.95, 1.0)).tolist()
    return Participation(name, len(shares), median, p95, most, large, unknown)


FIGURES: Final = (
    of_field("fills", "fills", "text"),
    of_field("count", "count", "count", "number"),
    of_field("median", "median", "percent"),
    of_field("p95", "95 %", "percent"),
    of_field("most", "most", "percent"),
    of_field("large", "above 10 %", "count"),
    of_field("unknown", "no volume", "count"),
)


def participation_table(rows: Sequence[Participation]) -> Table:
    """Return the table of *rows*."""
    title = "Participation: fills beside the volume of their candles"
    return table("participation", title, FIGURES, rows)
