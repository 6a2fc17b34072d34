"""Files of splits and dividends, and the bars at which they apply.

The rules are docs/stocks.md, K16 to K25.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from fractions import Fraction
from itertools import chain
from math import prod
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.columns import texts_of
from tracepaper.replay.archive.tables import read_table
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import CorporateAction, CorporateActionKind
from tracepaper.strategies.units import RATE_SCALE, unscaled

COLUMNS: Final = ("symbol", "date", "kind", "value")
TOLERANCE: Final = Fraction(1, 5)
"""The maximum relative distance of the first open from the adjusted previous close."""
_EPOCH: Final = date(1970, 1, 1)
_NUMBER: Final = r"\d{1,12}(?:\.\d{1,10})?"
_VALUE: Final = re.compile(rf"({_NUMBER})(?::({_NUMBER}))?")
RATIO_MOST: Final = 10**9
"""The most shares on either side of a split."""


class ActionRow(NamedTuple):
    """A row of a file: a split of *value* new shares per old share, or a dividend per share."""

    place: str  # file and line
    symbol: str
    ex_date: date
    kind: CorporateActionKind
    value: Fraction

    @property
    def is_split(self) -> bool:
        """Whether it is a split."""
        return self.kind is CorporateActionKind.SPLIT

    @property
    def words(self) -> str:
        """The action in words: ``split of 7 for 1 on 2014-06-09``."""
        if self.is_split:
            what = f"split of {self.value.numerator} for {self.value.denominator}"
        else:
            what = f"dividend of {unscaled(int(self.value * RATE_SCALE), 10)}"
        return f"{what} on {self.ex_date}"


class PlacedActions(NamedTuple):
    """Actions as ordered events by instrument, and sentences about skipped actions."""

    events: dict[str, list[CorporateAction]]
    notes: tuple[str, ...]

    @property
    def splits(self) -> list[CorporateAction]:
        """The splits among them."""
        return [event for events in self.events.values() for event in events if event.is_split]


def read_actions(*paths: Path) -> tuple[ActionRow, ...]:
    """Read CSV files with the columns symbol, date, kind and value.

    Raises ``DataInvalid`` with file and line for a row that cannot be applied.
    """
    rows: dict[tuple[str, date, CorporateActionKind], ActionRow] = {}
    for row in chain.from_iterable(map(_rows, paths)):
        if (key := (row.symbol, row.ex_date, row.kind)) in rows:
            raise DataInvalid(
                f"{row.place}: {row.symbol} has a {row.kind} on {row.ex_date} already "
                f"({rows[key].place}); remove one."
            )
        rows[key] = row
    return tuple(rows.values())


def _rows(path: Path) -> Iterator[ActionRow]:
    table = read_table(path)
    if sorted(table.columns) != sorted(COLUMNS):
        raise DataInvalid(
            f"{path} has the columns {', '.join(table.columns)}; name them {','.join(COLUMNS)} in "
            "its first line."
        )
    cells = zip(*(texts_of(table.columns[name]) for name in COLUMNS), strict=True)
    for row, texts in enumerate(cells):
        yield _row(table.place(row), *texts)


def _row(place: str, symbol: str, day: str, kind_text: str, text: str) -> ActionRow:
    try:
        ex_date = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).date()
        kind = CorporateActionKind(kind_text)
        return ActionRow(place, symbol, ex_date, kind, _value(kind, text))
    except (ValueError, ZeroDivisionError):
        raise DataInvalid(
            f"{place}: {day},{kind_text},{text} is no action; write the ex-date as 2014-06-09, "
            "then split and new shares for old ones, as 7, 7:1 or 3:2, or dividend and the money a "
            "share, as 0.47, with ten decimals at most."
        ) from None


def _value(kind: CorporateActionKind, text: str) -> Fraction:
    """Return the ratio of a split or the amount of a dividend; raise ``ValueError``."""
    numbers = _VALUE.fullmatch(text)
    if numbers is None:
        raise ValueError(text)
    value = Fraction(numbers[1]) / Fraction(numbers[2] or 1)
    is_ratio = value != 1 and max(value.as_integer_ratio()) <= RATIO_MOST
    if not value or not (is_ratio if kind is CorporateActionKind.SPLIT else numbers[2] is None):
        raise ValueError(text)
    return value


def place_actions(rows: Sequence[ActionRow], candles: Mapping[str, Candles]) -> PlacedActions:
    """Place each action before a bar of *candles*, which are complete, by instrument.

    The bar is the first of the ex-date's session, or of the next session. At one bar dividends come
    first. Raises ``DataInvalid`` if a symbol is not traded or prices contradict a split.
    """
    by_symbol = {part.symbol: part for part in candles.values()}
    events: dict[str, list[CorporateAction]] = {}
    notes: list[str] = []
    splits: dict[tuple[str, int], list[ActionRow]] = {}  # by symbol and bar
    order = {CorporateActionKind.DIVIDEND: 0, CorporateActionKind.SPLIT: 1}
    for row in sorted(rows, key=lambda row: (row.ex_date, order[row.kind], row.symbol)):
        part = by_symbol.get(row.symbol)
        if part is None:
            raise DataInvalid(
                f"{row.place}: names {row.symbol}, and the run trades {', '.join(by_symbol)}; "
                "remove the line, or add the symbol's candles."
            )
        ex_day, days = (row.ex_date - _EPOCH).days, part.days
        at = int(np.searchsorted(days, ex_day))
        if not 0 < at < len(part):
            notes.append(f"{row.symbol}: the {row.words} lies outside the data and is not applied")
            continue
        if int(days[at]) != ex_day:
            day = date.fromordinal(_EPOCH.toordinal() + int(days[at]))
            notes.append(f"{row.symbol}: the {row.words} is applied on {day}, its next bar")
        close, opens_ms = int(part.close[at - 1]), int(part.open_time_ms[at])
        if not row.is_split and row.value * 10**part.price_decimals >= close:
            raise DataInvalid(
                f"{row.place}: {row.symbol} closed at {unscaled(close, part.price_decimals)} "
                f"before the {row.words}, which is no less; correct the amount."
            )
        new, old = row.value.as_integer_ratio() if row.is_split else (1, 1)
        amount = 0 if row.is_split else int(row.value * RATE_SCALE)
        event = CorporateAction(
            part.instrument, row.kind, new, old, amount, close, opens_ms, opens_ms
        )
        events.setdefault(part.instrument, []).append(event)
        if row.is_split:
            splits.setdefault((row.symbol, at), []).append(row)
    for (symbol, at), (row, *others) in splits.items():
        part = by_symbol[symbol]
        close, opened = int(part.close[at - 1]), int(part.open[at])
        ratio = prod((other.value for other in others), start=row.value)
        if abs(Fraction(opened, close) * ratio - 1) > TOLERANCE:
            shown = (unscaled(price, part.price_decimals) for price in (close, opened))
            raise DataInvalid(
                f"{row.place}: {symbol}: the {row.words} contradicts the prices, which went from "
                f"{' to '.join(shown)} ({float(Fraction(close, opened)):.3g} for 1); correct the "
                "file, or give candles that are not adjusted."
            )
    return PlacedActions(events, tuple(notes))


def actions_until(rows: Sequence[ActionRow], days: Mapping[str, int]) -> list[ActionRow]:
    """Return the *rows* that apply until the day, since 1970, of their symbol in *days*."""
    return [row for row in rows if (row.ex_date - _EPOCH).days <= days.get(row.symbol, -1)]
