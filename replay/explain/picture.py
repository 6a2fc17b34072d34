"""One decision as a picture: price and rollout."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from tracepaper.replay.document.charts import (
    Chart,
    ChartPanel,
    LineLayer,
    MarkLayer,
    close_panel,
    percent_axis,
    rounded,
    step_line,
    time_axis,
)
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.decision_document import ADDED, ATTENDED
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.units import count_of, percent

if TYPE_CHECKING:
    from tracepaper.replay.explain.recompute import FullAttribution


PRICE_BARS: Final = 240
"""Bars before a decision without attribution that its chart shows."""


def stored_chart(database: Path, stored: StoredDecision) -> Chart:
    """Draw the close up to the decided bar, and below it the stored share of each bucket."""
    if stored.no_attribution is not None:
        times, closes = _closes_before(database, stored, PRICE_BARS)
        caption = f"The close of the last {count_of(len(times), 'bar')}. Times are UTC."
        return Chart("", caption, [decided_panel(times, closes, 190)])
    rows = [row for row in stored.buckets if row["bucket"] != "older"]
    rows.sort(key=lambda row: row["from_open_time_ms"])
    starts = [row["from_open_time_ms"] for row in rows]
    times, closes = _closes_before(database, stored, stored.run["bucket_bars"] * len(rows))
    first = bisect_right(times, starts[0])
    shares = rounded([100 * row["weight"] for row in rows])
    name_of_share, words = ("relevance", ADDED) if stored.is_relevance else ("attention", ATTENDED)
    line = step_line(name_of_share, starts, rows[-1]["until_open_time_ms"], shares)
    up = percent_axis(f"{name_of_share} in {count_of(stored.run['bucket_bars'], 'bar')}, %")
    price = decided_panel(times[first:], closes[first:], 190)
    return Chart(
        "",
        f"Price and {'relevance' if stored.is_relevance else 'rollout'}: {words}.",
        [price, ChartPanel([line], time_axis(), up, 150)],
        is_aligned=True,
    )


def shares_chart(attribution: FullAttribution) -> Chart:
    """Draw the close, and below it each past bar's share of attention."""
    caption = (
        "Each past bar's share of attention; the decided bar itself, not drawn, holds "
        f"{percent(attribution.weights[-1], 1)}. Where attention flowed is not why. Times are UTC."
    )
    return Chart("", caption, shares_panels(attribution), is_aligned=True)


def shares_panels(attribution: FullAttribution) -> list[ChartPanel]:
    """Return panels of the close and of each past bar's share of attention."""
    times = list(attribution.open_time_ms[:-1])
    shares = rounded([100 * weight for weight in attribution.weights[:-1]])
    line = LineLayer("attention", times, shares, width=1.0, is_filled=True)
    return [
        decided_panel(attribution.open_time_ms, attribution.close, 170),
        ChartPanel([line], time_axis(), percent_axis("attention, %", 3), 150),
    ]


def _closes_before(
    database: Path, stored: StoredDecision, count: int
) -> tuple[list[int], list[float]]:
    """Return times and prices of the last *count* closes up to the decided bar."""
    decision, run_id = stored.decision, stored.run["run_id"]
    name = decision["instrument"]
    with Reader.open(database) as reader:
        (item,) = (each for each in reader.run(run_id).instruments if each.id == name)
        bars = reader.bars(run_id, name, count, until=decision["sequence"])
    return [bar.closed_ms for bar in bars], [bar.close / 10**item.price_decimals for bar in bars]


def decided_panel(times: Sequence[int], closes: Sequence[float], height: int) -> ChartPanel:
    """Return a panel of the price with a mark at the last bar, the decided one."""
    panel = close_panel(times, closes, height)
    mark = MarkLayer("decided bar", times[-1:], rounded(closes[-1:], 8))
    title = "The dot is the decided bar."
    return structs.replace(panel, layers=[*panel.layers, mark], title=title)
