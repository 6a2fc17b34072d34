"""Files of splits and dividends, and where their rows lie among candles.

The rules are docs/stocks.md, K16 to K25.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.columns import texts_of
from tracepaper.replay.archive.formats import read_table
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import CorporateAction, CorporateActionKind
from tracepaper.strategies.units import RATE_SCALE, unscaled

COLUMNS: Final = ("symbol", "date", "kind", "value")
TOLERANCE: Final = Fraction(1, 5)
"""How far the first open may be from the close before, adjusted, as a fraction."""
_EPOCH: Final = date(1970, 1, 1)
_NUMBER: Final = r"-?\d{1,12}(?:\.\d{1,10})?"
_AMOUNT: Final = re.compile(_NUMBER)
_RATIO: Final = re.compile(rf"({_NUMBER})(?::({_NUMBER}))?")


class ActionRow(NamedTuple):
    """A row of a file: a split of *value* new shares for an old one, or a dividend a share."""

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
        """What it is, and when: ``split of 7 for 1 on 2014-06-09``."""
        if self.is_split:
            what = f"split of {self.value.numerator} for {self.value.denominator}"
        else:
            what = f"dividend of {unscaled(int(self.value * RATE_SCALE), 10)}"
        return f"{what} on {self.ex_date}"


class PlacedActions(NamedTuple):
    """Actions as events, by instrument and in order, and sentences about the others."""

    events: dict[str, list[CorporateAction]]
    notes: tuple[str, ...]

    @property
    def splits(self) -> list[CorporateAction]:
        """The splits among them."""
        return [event for events in self.events.values() for event in events if event.is_split]


def read_actions(*paths: Path) -> tuple[ActionRow, ...]:
    """Read CSV files with the columns symbol, date, kind and value.

    Raises ``DataInvalid`` with file and line where a row says nothing that can be applied.
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
    except ValueError:
        raise DataInvalid(
            f"{place}: the date is {day!r}; write the ex-date as 2014-06-09."
        ) from None
    try:
        kind = CorporateActionKind(kind_text)
    except ValueError:
        raise DataInvalid(f"{place}: the kind is {kind_text!r}; write split or dividend.") from None
    is_split = kind is CorporateActionKind.SPLIT
    value = (_ratio if is_split else _amount)(place, text)
    return ActionRow(place, symbol, ex_date, kind, value)


def _ratio(place: str, text: str) -> Fraction:
    parts = _RATIO.fullmatch(text)
    old = Decimal(parts.group(2) or 1) if parts else Decimal(0)
    if parts is None or not old:
        raise DataInvalid(
            f"{place}: the ratio is {text!r}; write new shares for old ones, as 7, 7:1 or 3:2."
        )
    ratio = Fraction(Decimal(parts.group(1))) / Fraction(old)
    if ratio <= 0 or ratio == 1 or max(ratio.as_integer_ratio()) > 10**9:
        raise DataInvalid(
            f"{place}: a split of {text} is none; write a ratio above 0 that is not 1."
        )
    return ratio


def _amount(place: str, text: str) -> Fraction:
    if _AMOUNT.fullmatch(text) is None:
        raise DataInvalid(
            f"{place}: the dividend is {text!r}; write the money a share, as 0.47, with ten "
            "decimals at most."
        )
    amount = Fraction(Decimal(text))
    if amount <= 0:
        raise DataInvalid(f"{place}: a dividend of {text} is none; write an amount above 0.")
    return amount


def place_actions(rows: Sequence[ActionRow], candles: Mapping[str, Candles]) -> PlacedActions:
    """Find the bar before which each action is booked; *candles* are whole, by instrument.

    That is the first one of the ex-date's session, or of the next one. Of one bar dividends come
    first. Raises ``DataInvalid`` where a symbol is not traded or prices contradict a split.
    """
    by_symbol = {part.symbol: part for part in candles.values()}
    events: dict[str, list[CorporateAction]] = {}
    notes: list[str] = []
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
        event = _event(row, part, at)
        events.setdefault(part.instrument, []).append(event)
    for actions in events.values():
        _refuse_contradiction(actions, rows, candles)
    return PlacedActions(events, tuple(notes))


def actions_until(
    rows: Sequence[ActionRow], candles: Sequence[Candles], at_ms: int
) -> list[ActionRow]:
    """Return those of *rows* that are booked before a bar of *candles* up to *at_ms*."""
    last = {
        part.symbol: int(part.days[np.searchsorted(part.open_time_ms, at_ms, side="right") - 1])
        for part in candles
        if part.open_time_ms[0] <= at_ms
    }
    return [row for row in rows if (row.ex_date - _EPOCH).days <= last.get(row.symbol, -1)]


def _event(row: ActionRow, candles: Candles, at: int) -> CorporateAction:
    close, opens_ms = int(candles.close[at - 1]), int(candles.open_time_ms[at])
    is_split = row.is_split
    if not is_split and row.value * 10**candles.price_decimals >= close:
        raise DataInvalid(
            f"{row.place}: {row.symbol} closed at {unscaled(close, candles.price_decimals)} before "
            f"the {row.words}, which is no less; correct the amount."
        )
    new, old = row.value.as_integer_ratio() if is_split else (1, 1)
    amount = 0 if is_split else int(row.value * RATE_SCALE)
    return CorporateAction(
        candles.instrument, row.kind, new, old, amount, close, opens_ms, opens_ms
    )


def _refuse_contradiction(
    events: Sequence[CorporateAction], rows: Sequence[ActionRow], candles: Mapping[str, Candles]
) -> None:
    """Refuse splits that the first open after them does not follow within ``TOLERANCE``."""
    for first in events:
        if not first.is_split:
            continue
        ratio = Fraction(1)
        for other in events:
            if other.is_split and other.market_ms == first.market_ms:
                ratio *= Fraction(other.new, other.old)
        part = candles[first.instrument]
        opened = int(part.open[int(np.searchsorted(part.open_time_ms, first.market_ms))])
        if abs(Fraction(opened, first.close) * ratio - 1) > TOLERANCE:
            (row, *_) = (
                row
                for row in rows
                if row.symbol == part.symbol
                and row.kind is first.kind
                and row.value == Fraction(first.new, first.old)
            )
            shown = (unscaled(price, part.price_decimals) for price in (first.close, opened))
            raise DataInvalid(
                f"{row.place}: {row.symbol}: the {row.words} contradicts the prices, which went "
                f"from {' to '.join(shown)} ({float(Fraction(first.close, opened)):.3g} for 1); "
                "correct the file, or give candles that are not adjusted."
            )
