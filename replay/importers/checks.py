"""What a file of candles must be: possible prices, one order, no contradiction, one grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.importers.decimals import Decimals, IntArray
from tracepaper.replay.importers.tables import Table
from tracepaper.replay.importers.times import iso
from tracepaper.strategies.errors import DataInvalid

Say = Callable[[str], None]
OFF_GRID_SHARE_MAX: Final = 0.01
"""Above this share of odd open times the interval itself was misread."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns that are still rows of *table*; ``lines`` of the table name them."""

    table: Table
    times: IntArray
    prices: dict[str, Decimals]
    volume: Decimals
    turnover: Decimals | None

    def take(self, rows: IntArray) -> Rows:
        """Return the given rows, in the given order."""

        def taken(column: Decimals) -> Decimals:
            return Decimals(column.mantissa[rows], column.places)

        return Rows(
            table=replace(self.table, columns={}, lines=self.table.lines[rows]),
            times=self.times[rows],
            prices={name: taken(column) for name, column in self.prices.items()},
            volume=taken(self.volume),
            turnover=taken(self.turnover) if self.turnover else None,
        )


def refuse_impossible(rows: Rows) -> None:
    """Raise at the first candle that no market can print."""
    price = {name: column.mantissa for name, column in rows.prices.items()}
    for name, values in price.items():
        _refuse(rows, values <= 0, f"{name} is not above zero")
    _refuse(rows, price["high"] < price["low"], "high is below low")
    for name in ("open", "close"):
        outside = (price[name] > price["high"]) | (price[name] < price["low"])
        _refuse(rows, outside, f"{name} is outside the range from low to high")
    _refuse(rows, rows.volume.mantissa < 0, "volume is negative")
    if rows.turnover:
        _refuse(rows, rows.turnover.mantissa < 0, "turnover is negative")


def _refuse(rows: Rows, bad: npt.NDArray[np.bool_], what: str) -> None:
    where = np.flatnonzero(bad)
    if where.size:
        raise DataInvalid(f"{rows.table.place(int(where[0]))}: {what}; correct or remove the row.")


def in_order(rows: Rows, say: Say, *, strict: bool) -> Rows:
    """Return *rows* oldest first and each time once.

    A file that is merely newest first is turned; equal repetitions are dropped. Raises where
    rows jump back, or where two rows of one time differ.
    """
    steps = np.diff(rows.times)
    if steps.size and (steps <= 0).all() and (steps < 0).any():
        rows = rows.take(np.arange(rows.times.size)[::-1])
        steps = np.diff(rows.times)
        say("rows are newest first, turned")
    back = np.flatnonzero(steps < 0)
    if back.size:
        row = int(back[0]) + 1
        raise DataInvalid(
            f"{rows.table.place(row)}: the time goes back from {iso(int(rows.times[row - 1]))} to "
            f"{iso(int(rows.times[row]))}; sort the file."
        )
    again = np.flatnonzero(steps == 0) + 1
    if not again.size:
        return rows
    columns = [*(column.mantissa for column in rows.prices.values()), rows.volume.mantissa]
    if rows.turnover:
        columns.append(rows.turnover.mantissa)
    for row in again.tolist():
        if any(column[row] != column[row - 1] for column in columns):
            raise DataInvalid(
                f"{rows.table.place(row)}: contradicts {rows.table.unit} "
                f"{rows.table.lines[row - 1]}, which has the same open time "
                f"{iso(int(rows.times[row]))}; remove one of them."
            )
    if strict:
        raise DataInvalid(
            f"{rows.table.place(int(again[0]))}: repeats the row before it; remove one of them."
        )
    say(f"{again.size} equal repetitions dropped")
    return rows.take(np.delete(np.arange(rows.times.size), again))


def interval_between(rows: Rows, stated: int | None) -> int:
    """Return the interval in ms: the most common step, or *stated* for a single candle."""
    if rows.times.size > 1:
        steps, counts = np.unique(np.diff(rows.times), return_counts=True)
        return int(steps[np.argmax(counts)])
    if stated is None:
        raise DataInvalid(
            f"{rows.table.path} holds one candle, so its interval is not known: name the file "
            "with it, such as BTCUSDT_5m.csv, or give a longer one."
        )
    return stated


def on_grid(rows: Rows, interval_ms: int, say: Say, *, strict: bool) -> Rows:
    """Return the rows whose open time lies on the file's grid.

    A candle that opens off the grid (a venue's restart) covers another span than its
    neighbours and has no place among them: it is dropped, said, and leaves a hole. Raises
    where there are so many that the interval is in doubt, or with *strict* at the first.
    """
    phases = rows.times % interval_ms
    values, counts = np.unique(phases, return_counts=True)
    off = np.flatnonzero(phases != values[np.argmax(counts)])
    if not off.size:
        return rows
    row = int(off[0])
    what = f"opens at {iso(int(rows.times[row]))}, off the file's grid of {interval_ms // 1000} s"
    if strict:
        raise DataInvalid(f"{rows.table.place(row)}: {what}; correct or remove the row.")
    if off.size > OFF_GRID_SHARE_MAX * rows.times.size:
        raise DataInvalid(
            f"{rows.table.place(row)}: {what}, like {off.size} of {rows.times.size} rows; give a "
            "file of one fixed interval."
        )
    say(f"{off.size} candles off the grid dropped, the first at {rows.table.place(row)}")
    return rows.take(np.delete(np.arange(rows.times.size), off))
