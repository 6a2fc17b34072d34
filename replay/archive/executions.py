"""A trader's own fills, as Bybit exports them: one row per execution.

Columns have the names of ``/v5/execution/list`` or of the export "Trade History", in any case;
``v_fills`` of a record is read as well. The rules are docs/money.md, M39.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tracepaper.daemon.config.values import symbol_name
from tracepaper.replay.archive.columns import CellInvalidError, epoch_ms, texts_of
from tracepaper.replay.archive.names import plain_name
from tracepaper.replay.archive.tables import read_table
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Category, Side
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "symbol": ("symbol", "contracts", "contract", "market", "spotpairs", "pair", "instrument"),
    "side": ("side", "direction"),
    "price": ("execprice", "filledprice", "price"),
    "quantity": ("execqty", "filledqty", "filledquantity", "qty", "quantity"),
    "time": ("exectime", "transactiontime", "filledsettlementtime", "filledtime", "executedtime",
             "executiontime", "timestamp", "filledms", "time"),
    "execution": ("execid", "transactionid", "trasactionid", "tradeid"),
    "order": ("orderid", "orderno", "ordernumber"),
    "type": ("exectype", "filledtype"),
    "maker": ("ismaker", "liquidity"),
    "order type": ("ordertype",),
    "stop": ("stopordertype", "model"),
    "created": ("createdtime", "createtime", "ordertime", "createdms"),
    "position": ("positionside",),
    "fee": ("execfee", "tradingfee", "fees", "fee"),
    "fee coin": ("feecurrency", "feecoin"),
    "fee base": ("feebase",),
}  # fmt: skip
"""Meaning → plain names of its column; the first that exists is used."""
REQUIRED: Final = {
    "symbol": "symbol (Contracts, Market)",
    "side": "side (Direction)",
    "price": "execPrice (Filled Price)",
    "quantity": "execQty (Filled Quantity)",
    "time": "execTime (Transaction Time)",
}
DIGITS_MOST: Final = 15
"""The maximum digits before or after the point of a price or quantity."""
_ZONE: Final = re.compile(r"\(?\bUTC\s*([+-]\d{1,2})?(?::?(\d\d))?\)?", re.IGNORECASE)
_CLOCK_FIRST: Final = re.compile(r"(\d\d:\d\d(?::\d\d)?) (\d{4}-\d\d-\d\d)")
_SIDES: Final = {"buy": Side.BUY, "long": Side.BUY, "sell": Side.SELL, "short": Side.SELL}
_TRUE: Final = ("true", "1", "maker", "yes")
_FALSE: Final = ("false", "0", "taker", "no")
_NO_STOP: Final = ("", "unknown", "--", "next_open", "quote")
"""Values of Bybit's ``stopOrderType`` and of ``v_fills.model`` for orders that are no stops."""
_FILLS: Final = ("", "trade", "busttrade", "adltrade")
"""Lower-case values of Bybit's ``execType`` for executions that change a position."""
_FUNDING: Final = "funding"


@dataclass(frozen=True)
class Execution:
    """A fill. Times are UTC ms; an unknown ``order`` is empty."""

    symbol: str
    side: Side
    price: Decimal
    quantity: Decimal
    time_ms: int
    created_ms: int | None  # when its order was created
    order: str
    position_side: str = ""  # `LONG` or `SHORT`, if the file names the side of a hedge
    fee: Decimal | None = None  # in ``fee_coin``, negative if received; None if unknown
    fee_coin: str = ""  # empty if unknown
    fee_base: Decimal | None = None  # in the base coin; only ``v_fills`` has it
    exclusion: str = ""  # why it is no measure of taking liquidity; empty for a taker


class FundingRow(NamedTuple):
    """A settlement of funding at UTC ms; *amount* is in quote currency, negative if received."""

    symbol: str
    time_ms: int
    amount: Decimal


@dataclass
class Executions:
    """The fills and the funding of one file, and the number of dropped rows by reason."""

    path: str
    rows: int
    fills: list[Execution]
    funding: list[FundingRow] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # rows that are no fills, or repeat one
    notes: list[str] = field(default_factory=list)
    in_minutes: bool = False  # no time has seconds

    @property
    def taken(self) -> list[Execution]:
        """The fills that took liquidity, without stop orders."""
        return [execution for execution in self.fills if not execution.exclusion]

    @property
    def left_out(self) -> Counter[str]:
        """The number of rows outside ``taken``, by reason."""
        excluded = Counter(each.exclusion for each in self.fills if each.exclusion)
        return self.dropped + excluded + Counter({"of type Funding": len(self.funding)})


class _Rows:
    """A file's table, and the cells of each meaning that it has."""

    def __init__(self, path: Path) -> None:
        table = read_table(path, NAMES, _plain)
        self.table: Final = table
        self.columns: Final = table.find(NAMES)
        if missing := [words for meaning, words in REQUIRED.items() if meaning not in self.columns]:
            raise DataInvalid(
                f"{path} has no column {', '.join(missing)}; export executions or the trade "
                "history of Bybit as CSV, or rename its columns."
            )
        self._texts = {
            meaning: texts_of(table.columns[name]) for meaning, name in self.columns.items()
        }

    def __len__(self) -> int:
        return int(self.table.lines.size)

    def cell(self, row: int, meaning: str) -> str:
        """Return a stripped cell; empty if the file lacks the column."""
        return self._texts[meaning][row] if meaning in self._texts else ""

    def reject(self, row: int, meaning: str, what: str) -> DataInvalid:
        """Return an error that names line and column."""
        column = self.table.written[self.columns[meaning]]
        return self.table.refuse(f"{column} {what}", row=row)


def _plain(name: str) -> str:
    """Return the plain name of a column; its zone is read apart."""
    return plain_name(_ZONE.sub("", name))


def read_executions(path: Path) -> Executions:
    """Read the fills of the file at *path*: delimited text, or JSON such as an answer of Bybit's.

    Each execution id counts once. Rows of other types than fills and funding are ``dropped``.
    Fills of makers, stops and liquidations have an ``exclusion``. Raises ``DataInvalid`` if the
    file lacks a column or has an invalid number, side or time.
    """
    rows = _Rows(path)
    executions = Executions(str(path), len(rows), [])
    chosen = _distinct(
        rows, [row for row in range(len(rows)) if _is_read(rows, row, executions)], executions
    )
    times = _times(rows, "time", chosen, executions)
    settled = [row for row in chosen if rows.cell(row, "type").lower() == _FUNDING]
    executions.funding = [
        FundingRow(_symbol(rows, row), times[row], _amount(rows, row, "fee") or Decimal(0))
        for row in settled
    ]
    filled = sorted(set(chosen).difference(settled))
    created = _times(rows, "created", filled, executions) if "created" in rows.columns else {}
    for row in filled:
        if created.get(row, 0) > times[row]:
            raise rows.reject(row, "created", "is after the fill")
        executions.fills.append(
            Execution(
                _symbol(rows, row),
                _side(rows, row),
                _number(rows, row, "price"),
                _number(rows, row, "quantity"),
                times[row],
                created.get(row),
                rows.cell(row, "order"),
                _position_side(rows, row),
                _amount(rows, row, "fee"),
                rows.cell(row, "fee coin").upper(),
                _amount(rows, row, "fee base"),
                _exclusion(rows, row),
            )
        )
    executions.in_minutes = bool(times) and not any(at % MINUTE_MS for at in times.values())
    return executions


def _is_read(rows: _Rows, row: int, executions: Executions) -> bool:
    """Return whether the row changed a position or is funding."""
    kind = rows.cell(row, "type")
    if kind.lower() not in (*_FILLS, _FUNDING):
        executions.dropped[f"of type {kind}"] += 1
        return False
    return True


def _exclusion(rows: _Rows, row: int) -> str:
    """Return why the row does not measure taking liquidity; empty if it does."""
    kind = rows.cell(row, "type")
    if kind.lower() not in _FILLS[:2]:
        return f"of type {kind}"
    if rows.cell(row, "stop").lower() not in _NO_STOP:
        return "of stops, which paper fills along a bar"
    maker = rows.cell(row, "maker").lower()
    if maker and maker not in _TRUE + _FALSE:
        raise rows.reject(row, "maker", f"is neither true nor false but {maker[:40]!r}")
    if maker in _TRUE:
        return "of makers"
    if not maker and rows.cell(row, "order type").lower() not in ("", "market"):
        return "of limits that may have been makers"
    return ""


def _distinct(rows: _Rows, chosen: Sequence[int], executions: Executions) -> list[int]:
    """Return the rows with each execution id once; reject two different fills with one id."""
    first: dict[str, int] = {}
    kept = []
    for row in chosen:
        name = rows.cell(row, "execution")
        before = first.setdefault(name, row) if name else row
        if before == row:
            kept.append(row)
            continue
        if any(rows.cell(row, each) != rows.cell(before, each) for each in REQUIRED):
            raise DataInvalid(
                f"{rows.table.place(row)} contradicts line {rows.table.lines[before]}, which "
                f"has the same execution id {name[:40]}; remove one of them."
            )
        executions.dropped["repeated, the same execution id"] += 1
    if "maker" not in rows.columns and "order type" not in rows.columns:
        executions.notes.append("no column says which fills were makers, so all count as takers")
    return kept


def _symbol(rows: _Rows, row: int) -> str:
    text = rows.cell(row, "symbol")
    category, _, rest = text.partition(":")
    symbol = symbol_name(rest if rest and category.lower() in tuple(Category) else text)
    if not symbol:
        raise rows.reject(row, "symbol", "is empty")
    return symbol


def _side(rows: _Rows, row: int) -> Side:
    """Return the side; opening a long and closing a short are buys."""
    words = rows.cell(row, "side").lower().split()
    side = _SIDES.get(words[-1]) if words else None
    if side is None:
        raise rows.reject(row, "side", f"is no side but {rows.cell(row, 'side')[:40]!r}")
    if words[0] in ("close", "closing"):
        return Side.SELL if side is Side.BUY else Side.BUY
    return side


def _position_side(rows: _Rows, row: int) -> str:
    """Return the side of the hedge in the row; "close long" is the long side."""
    words = (rows.cell(row, "position") or rows.cell(row, "side")).upper().split()
    is_named = len(words) > 1 or bool(rows.cell(row, "position"))
    return words[-1] if is_named and words[-1] in ("LONG", "SHORT") else ""


def _amount(rows: _Rows, row: int, meaning: str) -> Decimal | None:
    """Return a fee; None if the cell is empty or the column missing."""
    if rows.cell(row, meaning) in ("", "--"):
        return None
    return _number(rows, row, meaning, is_signed=True)


def _number(rows: _Rows, row: int, meaning: str, *, is_signed: bool = False) -> Decimal:
    text = rows.cell(row, meaning)
    with suppress(InvalidOperation):
        number = Decimal(text)
        is_possible = number.is_finite() and abs(number.adjusted()) <= DIGITS_MOST
        if is_possible and (number > 0 or is_signed):
            return number
    what = "a number" if is_signed else "a number above zero"
    raise rows.reject(row, meaning, f"is not {what} but {text[:40]!r}")


def _times(
    rows: _Rows, meaning: str, chosen: Sequence[int], executions: Executions
) -> dict[int, int]:
    """Return the UTC ms of each row; a header such as ``Time(UTC+8)`` gives the zone."""
    if not chosen:
        return {}
    texts = [_CLOCK_FIRST.sub(r"\2 \1", rows.cell(row, meaning)) for row in chosen]
    try:
        times, notes = epoch_ms(np.array([text.encode() for text in texts]), whole=False)
    except CellInvalidError as error:
        raise rows.reject(chosen[error.row], meaning, error.what) from None
    zone = _ZONE.search(rows.table.written[rows.columns[meaning]])
    hours, minutes = (int(part or 0) for part in zone.groups()) if zone else (0, 0)
    shift = hours * HOUR_MS + (-minutes if hours < 0 else minutes) * MINUTE_MS
    executions.notes += [] if zone else [f"{meaning}: {note}" for note in notes if "zone" in note]
    return dict(zip(chosen, (times - shift).tolist(), strict=True))
