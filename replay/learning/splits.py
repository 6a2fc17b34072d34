"""Segments of candles without gaps, and the split of their time into parts.

A label that reaches into a held-out span would carry its outcome into training. Features of the
bars after the span look back into it. So each training label ends before a held-out span begins, or
its bar opens at least an embargo after the span's end. Source: López de Prado, Advances in
Financial Machine Learning, chapters 7 and 12.

The rule is docs/models.md, L5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import CandleArrays, FeatureSchema, compute
from tracepaper.strategies.units import DAY_MS, iso

SYMBOL_BITS: Final = 32
"""The low bits of ``Segment.keys``, which hold the symbol; the bar's number is above them."""
SYMBOL_MASK: Final = (1 << SYMBOL_BITS) - 1


@dataclass(frozen=True)
class TrainingFile:
    """A candle file of the training, as the card lists it."""

    name: str
    sha256: str
    symbol: str
    bars: int
    from_ms: int
    until_ms: int
    interval_ms: int
    columns: tuple[str, ...] = ()
    """The choices of ``--columns``."""
    source: str = ""
    """For order books: who sent them."""


@dataclass(frozen=True)
class Segment:
    """Consecutive bars of one symbol without a gap; arrays over [time].

    ``values`` is float32 [time, feature]; rows before ``first`` lack their lookback and are NaN.
    """

    candles: Candles
    close: Array
    values: NDArray[np.float32]
    sigma: Array
    first: int
    lacks: NDArray[np.bool_] | None = None
    """[time]: the bar lacks side inputs, so it is no sample; None if no bar does."""

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.close)

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return self.candles.interval_ms

    @property
    def open_time_ms(self) -> NDArray[np.int64]:
        """The opening time of each bar."""
        return self.candles.open_time_ms

    @property
    def close_time_ms(self) -> NDArray[np.int64]:
        """The first millisecond after each bar."""
        return self.candles.closes_ms

    @property
    def keys(self) -> NDArray[np.int64]:
        """A unique number of each bar: its number in time, then its instrument's checksum."""
        asset = crc32(self.candles.instrument.encode())
        keys: NDArray[np.int64] = (self.open_time_ms // self.interval_ms << SYMBOL_BITS) + asset
        return keys

    @property
    def bars_a_day(self) -> int:
        """The number of bars of a day; of shares, of a day of sessions."""
        calendar = self.candles.calendar
        return DAY_MS // self.interval_ms if calendar is None else calendar.bars_a_day


@dataclass(frozen=True)
class Panel:
    """Consecutive bars that all assets have: one segment for each, at the same times.

    A single symbol is a panel of one asset.
    """

    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.segments[0])

    @property
    def symbols(self) -> tuple[str, ...]:
        """The assets, in the order of the first axis."""
        return tuple(segment.candles.symbol for segment in self.segments)

    @property
    def first(self) -> int:
        """The first bar at which every asset has a row of features."""
        return max(segment.first for segment in self.segments)

    @property
    def price(self) -> Array:
        """The closes: [asset, time]."""
        return np.stack([segment.close for segment in self.segments])

    @property
    def unit(self) -> Array:
        """The volatility per bar, the unit of labels: [asset, time]."""
        return np.stack([segment.sigma for segment in self.segments])

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the features of the bars from *start* until *stop*: [asset, time, feature]."""
        return np.stack([segment.values[start:stop] for segment in self.segments])

    def decisions(self, rows: NDArray[np.int64], every: int) -> NDArray[np.int64]:
        """Return the *rows* that close at a multiple of *every* bars since 1970."""
        first = int(self.segments[0].open_time_ms[0]) // self.segments[0].interval_ms
        chosen: NDArray[np.int64] = rows[(first + rows + 1) % every == 0]
        return chosen


def segments_of(candles: Candles, schema: FeatureSchema) -> list[Segment]:
    """Cut *candles* at every gap; pieces too short for a row of features are left out.

    The night between two sessions of a share is no gap.
    """
    cuts = np.flatnonzero(candles.steps != 1) + 1
    segments = []
    for start, stop in pairwise([0, *cuts.tolist(), len(candles)]):
        if stop - start < schema.lookback:
            continue
        part = candles[start:stop]
        columns = CandleArrays(  # features do not depend on the units
            open_time_ms=part.open_time_ms,
            open=part.open.astype(np.float64),
            high=part.high.astype(np.float64),
            low=part.low.astype(np.float64),
            close=part.close.astype(np.float64),
            volume=part.volume.astype(np.float64),
            interval_ms=part.interval_ms,
            symbol=part.symbol,
            closed_ms=part.closes_ms,
        )
        block = compute(schema, columns)
        segments.append(Segment(part, columns.close, block.values, block.sigma, block.first))
    return segments


# --- the split


Span = tuple[int, int]
"""Start (inclusive) and end (exclusive) in UTC milliseconds."""


class Part(StrEnum):
    """The four parts of the time, in order."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


@dataclass(frozen=True)
class Split:
    """The end of each part (exclusive, UTC milliseconds); the test part runs to the data's end.

    ``test_from_ms`` and ``test_until_ms`` restrict the test part. The first ``embargo_bars`` of
    every later part belong to none, as their features overlap with labels of the part before. The
    verdict on confidence needs two holdouts. The second begins at ``second_holdout_ms``, by default
    after half of the days of the test part.
    """

    train_until_ms: int
    validation_until_ms: int
    calibration_until_ms: int
    embargo_bars: int
    test_from_ms: int = -(2**62)
    test_until_ms: int = 2**62
    second_holdout_ms: int | None = None

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for parts that are not in order."""
        ends = (self.train_until_ms, self.validation_until_ms, self.calibration_until_ms)
        if not ends[0] < ends[1] < ends[2]:
            raise ConfigInvalid(
                "The split must end training before validation and validation before"
                " calibration; put the three dates in that order."
            )
        if self.second_holdout_ms is not None and self.second_holdout_ms <= ends[2]:
            raise ConfigInvalid(
                "split.second_holdout must be after split.calibration_until; give a later date, or"
                " leave it out for the second half of the days."
            )

    def span(self, part: Part) -> Span:
        """Return (from, until) of *part* in milliseconds, before purging."""
        ends = (self.train_until_ms, self.validation_until_ms, self.calibration_until_ms)
        edges, at = (-(2**62), *ends, self.test_until_ms), list(Part).index(part)
        return edges[at], edges[at + 1]

    def labelled(self, segment: Segment, horizons: Sequence[int], part: Part) -> NDArray[np.bool_]:
        """Return [time, horizon]: whether bar and label lie in *part*, after its embargo.

        False where the features lack their lookback or the label its future.
        """
        start, stop = self.span(part)
        if part is not Part.TRAIN:
            start += self.embargo_bars * segment.interval_ms
        inside = segment.close_time_ms >= start
        if part is Part.TEST:
            inside &= segment.open_time_ms >= self.test_from_ms
        mask = np.zeros((len(segment), len(horizons)), dtype=np.bool_)
        for column, horizon in enumerate(horizons):
            rows = slice(segment.first, max(len(segment) - horizon, segment.first))
            label_ends_ms = segment.close_time_ms[segment.first + horizon :]
            mask[rows, column] = inside[rows] & (label_ends_ms <= stop)
        return mask


def by_shares(
    segments: Sequence[Segment], *, embargo_bars: int, shares: tuple[float, float, float]
) -> Split:
    """Return the split whose first three parts have these *shares* of all bars, cut at midnights.

    Raises ``ConfigInvalid`` if the data are too short for four parts.
    """
    times = np.sort(np.concatenate([segment.open_time_ms for segment in segments]))
    ends = []
    for share in np.cumsum(shares):
        at = int(times[min(int(share * len(times)), len(times) - 1)])
        ends.append(at // DAY_MS * DAY_MS)
    if not times[0] < ends[0] < ends[1] < ends[2] <= times[-1]:
        raise ConfigInvalid(
            "The candles span too few days for training, validation, calibration and test;"
            " give more data or set the dates."
        )
    return Split(ends[0], ends[1], ends[2], embargo_bars)


SHARES: Final = (0.65, 0.1, 0.1)
"""Shares of all bars for training, validation and calibration; the rest is the test part."""


def split_by(
    section: Mapping[str, Any] | None, horizons: Sequence[int]
) -> Callable[[Sequence[Segment]], Split]:
    """Return the split of candles by ``[split]`` of a recipe: at its dates, or by ``SHARES``."""
    section = section or {}
    second = second_holdout(section)
    embargo = int(section.get("embargo_bars", max(horizons)))
    if "train_until" not in section:
        return lambda segments: replace(
            by_shares(segments, embargo_bars=embargo, shares=SHARES), second_holdout_ms=second
        )
    train, validation, calibration = (
        date_ms(str(section.get(name)))
        for name in ("train_until", "validation_until", "calibration_until")
    )
    return lambda _: Split(train, validation, calibration, embargo, second_holdout_ms=second)


def second_holdout(section: Mapping[str, Any]) -> int | None:
    """Return the start of the second holdout; None if ``[split]`` does not set it."""
    return date_ms(str(section["second_holdout"])) if "second_holdout" in section else None


def split_of(card: Mapping[str, Any]) -> Split:
    """Return the split of a card."""
    section = card["split"]
    return Split(
        train_until_ms=date_ms(section["train_until"]),
        validation_until_ms=date_ms(section["validation_until"]),
        calibration_until_ms=date_ms(section["calibration_until"]),
        embargo_bars=int(section["embargo_bars"]),
        second_holdout_ms=second_holdout(section),
    )


def date_ms(text: str) -> int:
    """Return UTC milliseconds of an ISO date or time; raise ``ConfigInvalid`` for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigInvalid(f"{text!r} is no date; write one such as 2024-06-01.") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def date_of(ms: int) -> str:
    """Return UTC milliseconds as a date, with the time unless it is midnight."""
    return iso(ms).removesuffix("T00:00:00Z")


class Holdout(NamedTuple):
    """Start (inclusive) and end (exclusive) in UTC milliseconds; None for no limit."""

    name: str
    from_ms: int | None
    until_ms: int | None

    @property
    def text(self) -> str:
        """The name, and the dates if there are any, as in ``--holdout``."""
        if self.from_ms is None and self.until_ms is None:
            return self.name
        start, until = ("" if ms is None else date_of(ms) for ms in (self.from_ms, self.until_ms))
        return f"{self.name} {start}:{until}".strip()


WHOLE: Final = Holdout("untouched", None, None)
