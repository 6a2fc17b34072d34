"""Layouts that are no plain table: another order, decimal commas, several symbols."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.decimals import CellInvalidError, Column
from tracepaper.replay.archive.names import FIGURES, TIME, symbol_of, symbol_text
from tracepaper.replay.archive.tables import Table
from tracepaper.strategies.errors import ConfigInvalid

BARE: Final = (TIME, "open", "high", "low", "close", "volume")
COINBASE: Final = (TIME, "low", "high", "open", "close", "volume")
SECONDS_MOST: Final = 10.0**11
GROUPED: Final = re.compile(rb"[+-]?[1-9]\d{0,2}(\.\d{3})+,\d+")
SYMBOL_COLUMNS: Final = ("symbol", "pair", "instrument", "ticker")
SYMBOLS_SHOWN: Final = 8


def understood(table: Table, symbol: str | None) -> Table:
    """Return *table* as a plain one: of *symbol*, in the usual order, with decimal points.

    Raises ``DataInvalid`` or ``ConfigInvalid`` where that cannot be told.
    """
    if table.separator != ",":
        table = with_points(table)
    return in_usual_order(of_one_symbol(table, symbol))


def in_usual_order(table: Table) -> Table:
    """Return *table* with Coinbase's rows ([time, low, high, open, close, volume]) named so.

    They name no columns. Their times are in seconds, and more of their rows can be candles in that
    order than in the usual one; where both orders fit a row, they mean the same candle.
    """
    if not table.bare or tuple(table.columns) != BARE:
        return table
    try:
        times, first, second, third, fourth = (
            table.columns[name].astype(np.float64) for name in BARE[:5]
        )
    except ValueError:  # no numbers: what follows says where
        return table
    usual = (second >= np.maximum(first, fourth)) & (third <= np.minimum(first, fourth))
    theirs = (second >= np.maximum(third, fourth)) & (first <= np.minimum(third, fourth))
    if np.any(times >= SECONDS_MOST) or theirs.sum() <= max(usual.sum(), times.size // 2):
        return table
    columns = dict(zip(COINBASE, table.columns.values(), strict=True))
    note = "rows are low, high, open, close, as Coinbase orders them"
    return replace(table, columns=columns, notes=(*table.notes, note))


def with_points(table: Table) -> Table:
    """Return *table* with the decimal commas of its figures written as points.

    Raises ``DataInvalid`` where a cell has both in no known order, or the columns mix them.
    """
    figures = {
        name: cells.astype(np.bytes_)
        for name, cells in table.columns.items()
        if cells.dtype.kind == "S" and (name in FIGURES or name.startswith("volume"))
    }
    commas = {name: np.char.count(cells, b",") for name, cells in figures.items()}
    if not any(count.any() for count in commas.values()):
        return table
    columns: dict[str, Column] = dict(table.columns)
    for name, cells in figures.items():
        points = np.char.count(cells, b".")
        for row in np.flatnonzero((points > 0) | (commas[name] > 1)).tolist():
            cell = bytes(cells[row])
            if not GROUPED.fullmatch(cell):
                what = f"is {cell.decode('utf-8', 'replace')[:40]!r} in a file of decimal commas"
                raise table.refuse(CellInvalidError(row, what), name)
        columns[name] = np.char.replace(np.char.replace(cells, b".", b""), b",", b".")
    note = "figures have decimal commas, read as points"
    return replace(table, columns=columns, notes=(*table.notes, note))


def own_symbols(table: Table) -> tuple[str, ...]:
    """Return the symbols that the content of *table* names, in the order of the alphabet."""
    if table.symbol:
        return (table.symbol,)
    found = {name.partition("@")[2] for name in table.columns if "@" in name}
    for name in SYMBOL_COLUMNS:
        cells = table.columns.get(name)
        if not found and cells is not None and cells.dtype.kind == "S":
            texts = np.unique(cells).tolist()
            found = {symbol_text(bytes(text).decode("utf-8", "replace")) for text in texts}
    return tuple(sorted(found - {""}))


def told_symbol(
    table: Table, named: str | None, given: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return a symbol and what to say: as *named* before the path, else the file's own, or *given*.

    Raises ``ConfigInvalid`` where nothing names one, where name and content differ, and where
    *given* is another than its own: only ``SYMBOL=PATH`` gives another name, and that is said.
    """
    by_name = symbol_of(table.path.name)
    held = own_symbols(table)
    if len(held) > 1:
        return named or given or by_name, ()
    own = by_name or (held[0] if held else None)
    if named:
        if own and named != own:
            return named, (f"what is {own}'s is named {named}, as SYMBOL=PATH says",)
        return named, ()
    if by_name and held and by_name != held[0]:
        raise ConfigInvalid(
            f"{table.path} says {by_name} by its name and {held[0]} by its content: write "
            f"SYMBOL={table.path} to say which it is."
        )
    if given and own and given != own:
        where = "by its name" if by_name else "by its content"
        raise ConfigInvalid(
            f"--symbol is {given}, and {table.path} holds {own} {where}: leave --symbol out, or "
            f"write {given}={table.path} to call it so."
        )
    if not (own or given):
        raise ConfigInvalid(f"{table.path} does not name its symbol: write SYMBOL={table.path}.")
    return own or given, ()


def of_one_symbol(table: Table, symbol: str | None) -> Table:
    """Return the part of *table* that is *symbol*'s, where it holds several.

    Raises ``ConfigInvalid`` where it holds several and *symbol* is none of them.
    """
    held = own_symbols(table)
    if len(held) < 2:  # noqa: PLR2004 (one, or none that is named)
        return table
    if symbol not in held:
        shown = ", ".join(held[:SYMBOLS_SHOWN]) + (" and more" if len(held) > SYMBOLS_SHOWN else "")
        raise ConfigInvalid(
            f"{table.path} holds {shown}: choose one by SYMBOL={table.path}, such as "
            f"{held[0]}={table.path}."
        )
    note = f"{len(held) - 1} other symbols of the file left out"
    if any("@" in name for name in table.columns):
        columns = {
            name.partition("@")[0]: cells
            for name, cells in table.columns.items()
            if "@" not in name or name.partition("@")[2] == symbol
        }
        return _without_empty(replace(table, columns=columns, notes=(*table.notes, note)))
    named = next(name for name in SYMBOL_COLUMNS if name in table.columns)
    texts = [bytes(cell).decode("utf-8", "replace") for cell in table.columns[named].tolist()]
    mine = np.array([symbol_text(text) == symbol for text in texts], dtype=np.bool_)
    return _rows(replace(table, notes=(*table.notes, note)), mine)


def _without_empty(table: Table) -> Table:
    """Return *table* without the rows in which its symbol did not trade: all figures are empty."""
    empty = [
        cells == b""
        for name, cells in table.columns.items()
        if name in FIGURES and cells.dtype.kind == "S"
    ]
    return _rows(table, ~np.logical_and.reduce(empty)) if empty else table


def _rows(table: Table, mine: npt.NDArray[np.bool_]) -> Table:
    columns = {name: cells[mine] for name, cells in table.columns.items()}
    return replace(table, columns=columns, lines=table.lines[mine])
