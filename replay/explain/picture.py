"""One decision as a picture: price and rollout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import structs

from tracepaper.replay.document.charts import (
    Chart,
    ChartPanel,
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
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import BLOCK_BARS


def blocks_chart(database: Path, stored: StoredDecision) -> Chart:
    """Draw the close, and below it the stored share of each block of bars.

    Raises ``DataInvalid`` if the decision has no attribution.
    """
    if stored.no_attribution is not None:
        raise DataInvalid(
            f"{stored.no_attribution} There is no attribution to draw; choose another."
        )
    rows = [row for row in stored.buckets if row["bucket"] != "older"]
    rows.sort(key=lambda row: row["from_open_time_ms"])
    decision, run_id = stored.decision, stored.run["run_id"]
    name, sequence = decision["instrument"], decision["sequence"]
    with Reader.open(database) as reader:
        (item,) = (each for each in reader.run(run_id).instruments if each.id == name)
        bars = reader.bars(run_id, name, BLOCK_BARS * len(rows), until=sequence)
    starts = [row["from_open_time_ms"] for row in rows]
    bars = [bar for bar in bars if bar.closed_ms > starts[0]]
    times = [bar.closed_ms for bar in bars]
    closes = np.array([bar.close for bar in bars]) / 10**item.price_decimals
    shares = rounded([100 * row["weight"] for row in rows])
    name_of_share, words = ("relevance", ADDED) if stored.is_relevance else ("attention", ATTENDED)
    line = step_line(name_of_share, starts, rows[-1]["until_open_time_ms"], shares)
    up = percent_axis(f"{name_of_share} in 64 bars, %")
    panels = [decided_panel(times, closes.tolist(), 190), ChartPanel([line], time_axis(), up, 150)]
    return Chart(
        "",
        f"Price and {'relevance' if stored.is_relevance else 'rollout'}: {words}.",
        panels,
        is_aligned=True,
    )


def decided_panel(times: Sequence[int], closes: Sequence[float], height: int) -> ChartPanel:
    """Return a panel of the price with a mark at the last bar, the decided one."""
    panel = close_panel(times, closes, height)
    mark = MarkLayer("decided bar", times[-1:], rounded(closes[-1:], 8))
    title = "The dot is the decided bar."
    return structs.replace(panel, layers=[*panel.layers, mark], title=title)
