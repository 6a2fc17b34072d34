"""Calendar splits across all files, purged by the label's horizon, with an embargo.

Cut file by file, the untouched span of one file lies inside the training span of another, and
markets move together; so the four parts are spans of the calendar that hold for every file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.training.series import Segment
from tracepaper.strategies.errors import ConfigInvalid


class Part(StrEnum):
    """The four parts of the calendar, in order."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


@dataclass(frozen=True)
class Split:
    """Where each part ends (exclusive, UTC milliseconds); the test part runs to the data's end.

    ``embargo_bars`` at the start of every later part belong to none: their features overlap
    with labels of the part before.
    """

    train_until_ms: int
    validation_until_ms: int
    calibration_until_ms: int
    embargo_bars: int

    def __post_init__(self) -> None:
        """Refuse parts that are not in order."""
        ends = (self.train_until_ms, self.validation_until_ms, self.calibration_until_ms)
        if not ends[0] < ends[1] < ends[2]:
            raise ConfigInvalid(
                "The split must end training before validation and validation before"
                " calibration; put the three dates in that order."
            )

    def span(self, part: Part) -> tuple[int, int]:
        """Return (from, until) of *part* in milliseconds, before purging."""
        match part:
            case Part.TRAIN:
                return -(2**62), self.train_until_ms
            case Part.VALIDATION:
                return self.train_until_ms, self.validation_until_ms
            case Part.CALIBRATION:
                return self.validation_until_ms, self.calibration_until_ms
            case Part.TEST:
                return self.calibration_until_ms, 2**62

    def labelled(self, segment: Segment, horizons: Sequence[int], part: Part) -> NDArray[np.bool_]:
        """Return [time, horizon]: the bar lies in *part*, past its embargo, and so does its label.

        False as well where the features lack their lookback or the label its future.
        """
        start, stop = self.span(part)
        if part is not Part.TRAIN:
            start += self.embargo_bars * segment.interval_ms
        closed = segment.close_time_ms
        inside = closed >= start
        inside[: segment.first] = False
        mask = np.zeros((len(segment), len(horizons)), dtype=np.bool_)
        for column, horizon in enumerate(horizons):
            known = max(len(segment) - horizon, 0)
            mask[:known, column] = inside[:known] & (closed[horizon:] <= stop)
        return mask


def by_shares(
    segments: Sequence[Segment], *, embargo_bars: int, shares: tuple[float, float, float]
) -> Split:
    """Return the split whose first three parts hold these *shares* of all bars, cut at midnights.

    Raises ``ConfigInvalid`` where the data are too short for four parts.
    """
    times = np.sort(np.concatenate([segment.open_time_ms for segment in segments]))
    day_ms = 86_400_000
    ends = []
    for share in np.cumsum(shares):
        at = int(times[min(int(share * len(times)), len(times) - 1)])
        ends.append(at // day_ms * day_ms)
    if not times[0] < ends[0] < ends[1] < ends[2] <= times[-1]:
        raise ConfigInvalid(
            "The candles span too few days for training, validation, calibration and test;"
            " give more data or set the dates."
        )
    return Split(ends[0], ends[1], ends[2], embargo_bars)


def date_ms(text: str) -> int:
    """Return UTC milliseconds of an ISO date or time; raise ``ConfigInvalid`` for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigInvalid(f"{text!r} is no date; write one such as 2024-06-01.") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def iso(ms: int) -> str:
    """Return UTC milliseconds as an ISO text."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
