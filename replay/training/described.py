"""What a training would learn from, in figures: files, bars, parts of the calendar, horizons.

Labels of neighbouring bars share most of their future, so their number says little: beside it
stand how many of them share no bar, by uniqueness, and on how many days of the calendar they lie.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.training.dataset import Dataset
from tracepaper.replay.training.samples import Samples
from tracepaper.replay.training.series import (
    Part,
    Segment,
    iso,
)
from tracepaper.strategies.units import DAY_MS, interval_text


def described(material: Dataset) -> dict[str, Any]:
    """Return what *material* holds; computes features, labels and the baselines' inputs."""
    return {
        "files": [
            asdict(source)
            | {
                "interval": interval_text(source.interval_ms),
                "from": iso(source.from_ms),
                "until": iso(source.until_ms),
            }
            for source in material.sources
        ],
        "features": {
            "schema_id": material.schema.schema_id,
            "columns": len(material.schema.names),
            "lookback": material.schema.lookback,
        },
        "intervals": [_interval(material, interval_ms) for interval_ms in material.intervals],
        "horizons": [
            {"bars": bars, "time": time}
            for bars, time in zip(material.horizons, material.times, strict=True)
        ],
        "parts": {part.value: _part(material, part) for part in Part},
    }


def _interval(material: Dataset, interval_ms: int) -> dict[str, Any]:
    """Return the bars of one interval."""
    every = (*material.segments, *material.others)
    segments = [segment for segment in every if segment.interval_ms == interval_ms]
    return {
        "interval": interval_text(interval_ms),
        "symbols": sorted({segment.candles.symbol for segment in segments}),
        "bars": sum(map(len, segments)),
        "rows": sum(len(segment) - segment.first for segment in segments),
        "pieces": len(segments),
        "longest_piece": max(map(len, segments)),
    }


def _part(material: Dataset, part: Part) -> dict[str, Any]:
    """Return the span of *part* and what is labelled in it, at the model's own interval."""
    samples = material.labelled(part)
    own = [one for one in samples if one.segment.interval_ms == material.interval_ms]
    further = [one for one in samples if one.segment.interval_ms != material.interval_ms]
    return {
        "from": iso(min(map(_first, own))),
        "until": iso(max(map(_last, own))),
        "further_bars": sum(int(one.weights.any(axis=1).sum()) for one in further),
        "horizons": [
            _horizon(own, column, bars * material.interval_ms)
            for column, bars in enumerate(material.horizons)
        ],
    }


def _horizon(samples: list[Samples], column: int, horizon_ms: int) -> dict[str, Any]:
    """Return how much is labelled at one horizon."""
    labelled = [one.weights[:, column] > 0 for one in samples]
    days = [_days(one.segment)[known] for one, known in zip(samples, labelled, strict=True)]
    distinct = np.unique(np.concatenate(days))
    unique = sum(float(one.weights[:, column].sum()) / one.horizons[column] for one in samples)
    return {
        "time": interval_text(horizon_ms),
        "bars": sum(int(known.sum()) for known in labelled),
        "not_overlapping": round(unique),
        "days": len(distinct),
        "independent_days": int(len(distinct) // max(1, horizon_ms / DAY_MS)),
    }


def _days(segment: Segment) -> NDArray[np.int64]:
    days: NDArray[np.int64] = segment.open_time_ms // DAY_MS
    return days


def _first(one: Samples) -> int:
    row = int(np.flatnonzero(one.weights.any(axis=1))[0])
    return int(one.segment.open_time_ms[row])


def _last(one: Samples) -> int:
    return int(one.segment.close_time_ms[one.stop - 1])


def lines(found: dict[str, Any]) -> list[str]:
    """Return what ``described`` found, for people."""
    said = [
        f"{file['name']}: {file['symbol']}, {file['interval']}, {file['bars']:,} bars from"
        f" {file['from']} until {file['until']}"
        + (f", {file['known_already']:,} in an earlier file" if file["known_already"] else "")
        for file in found["files"]
    ]
    features = found["features"]
    said.append(
        f"features {features['schema_id']}: {features['columns']} columns, a row depends on"
        f" {features['lookback']:,} bars"
    )
    said += [
        f"{one['interval']}: {one['bars']:,} bars of {', '.join(one['symbols'])} in"
        f" {one['pieces']} pieces, the longest of {one['longest_piece']:,}; {one['rows']:,} rows"
        for one in found["intervals"]
    ]
    for name, part in found["parts"].items():
        further = f", and {part['further_bars']:,} bars of other intervals"
        said.append(
            f"{name}: {part['from']} until {part['until']}" + further * bool(part["further_bars"])
        )
        said += [
            f"  {one['time']}: {one['bars']:,} labels, {one['not_overlapping']:,} that share no"
            f" bar, {one['days']:,} days ({one['independent_days']:,} independent)"
            for one in part["horizons"]
        ]
    return said
