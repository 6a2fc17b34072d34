"""One decision as a picture: the price, and under it where attention flowed and what moved it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.explain.stored import StoredDecision, flips_of, verdict_of
from tracepaper.replay.explain.terminal import BASIS_POINTS
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.types import BLOCK_BARS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from tracepaper.replay.explain.recomputed import Full

PRICE: Final = "#1f2937"
LOOKED: Final = "#0e7490"
UP: Final = "#15803d"
DOWN: Final = "#b91c1c"
FAINT: Final = "#6b7280"
SHADE_MOST: Final = 0.45
"""Opacity of the heaviest block behind the price."""
DPI: Final = 130

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Blocks:
    """The stored buckets, oldest first; times are days since the epoch, as matplotlib counts."""

    start: Floats
    stop: Floats
    share: Floats  # percent of the rollout
    older: float  # percent, before the oldest block


def draw(database: Path, stored: StoredDecision, full: Full | None, path: Path) -> None:
    """Write the decision to *path* as PNG; *full* adds single bars and what each block added.

    Raises ``DataInvalid`` where the decision has no attribution, or its bars are gone.
    """
    if stored.no_attribution is not None:
        raise DataInvalid(
            f"{stored.no_attribution} There is no attribution to draw; choose another."
        )
    blocks = _blocks(stored)
    times, closes = _closes(database, stored, blocks)
    ratios = (3.0, 2.0) if full is None else (3.0, 2.0, 1.4)
    figure = import_module("matplotlib.figure").Figure(
        figsize=(12, 1.2 + 1.15 * sum(ratios)), layout="constrained"
    )
    panels = figure.subplots(
        len(ratios), 1, sharex=True, gridspec_kw={"height_ratios": ratios}, squeeze=False
    )[:, 0]
    _price(panels[0], stored, blocks, times, closes)
    _looked(panels[1], blocks, full)
    if full is not None:
        _moved(panels[2], blocks, full)
    _finish(panels, times)
    figure.suptitle(_title(stored), x=0.01, ha="left", fontsize=11, color=PRICE)
    figure.savefig(path, format="png", dpi=DPI)


def _blocks(stored: StoredDecision) -> _Blocks:
    """Return the buckets that have a time; the decided bar ends the newest one."""
    rows = [row for row in stored.buckets if row["bucket"] != "older"]
    rows.sort(key=lambda row: row["from_open_time_ms"])
    older = sum(row["weight"] for row in stored.buckets if row["bucket"] == "older")
    return _Blocks(
        _days([row["from_open_time_ms"] for row in rows]),
        _days([row["until_open_time_ms"] for row in rows]),
        100 * np.array([row["weight"] for row in rows]),
        100 * older,
    )


def _closes(database: Path, stored: StoredDecision, blocks: _Blocks) -> tuple[Floats, Floats]:
    """Return when the bars of the blocks closed (days) and at what price."""
    decision = stored.decision
    with Reader.open(database) as reader:
        run = reader.run(stored.run["run_id"])
        bars = reader.bars(
            run.run_id,
            decision["instrument"],
            BLOCK_BARS * len(blocks.start),
            until=decision["sequence"],
        )
    decimals = next(i.price_decimals for i in run.instruments if i.id == decision["instrument"])
    times = _days([bar.close_time_ms for bar in bars])
    closes = np.array([bar.close for bar in bars]) / 10**decimals
    inside = times > blocks.start[0]
    return times[inside], closes[inside]


def _days(times_ms: list[int] | tuple[int, ...]) -> Floats:
    days: Floats = np.array(times_ms, dtype=np.float64) / DAY_MS
    return days


def _price(
    axes: Axes, stored: StoredDecision, blocks: _Blocks, times: Floats, closes: Floats
) -> None:
    """Draw the price, the darker behind it the more of the rollout lay there."""
    most = blocks.share.max() or 1.0
    for start, stop, share in zip(blocks.start, blocks.stop, blocks.share, strict=True):
        axes.axvspan(start, stop, color=LOOKED, alpha=SHADE_MOST * share / most, linewidth=0)
    axes.plot(times, closes, color=PRICE, linewidth=0.9)
    side = flips_of(stored).side
    pointed = "HOLD" if side is None else side.side
    colour = {"LONG": UP, "SHORT": DOWN}.get(pointed, FAINT)
    marker = {"LONG": "^", "SHORT": "v"}.get(pointed, "o")
    axes.plot(times[-1], closes[-1], marker=marker, color=colour, markersize=8, clip_on=False)
    axes.set_ylabel("close")
    direction = {"LONG": "up", "SHORT": "down"}.get(pointed, "nowhere")
    _caption(
        axes, f"price; the darker, the more attention flowed there; the forecast points {direction}"
    )
    axes.yaxis.set_major_formatter("{x:,g}")


def _looked(axes: Axes, blocks: _Blocks, full: Full | None) -> None:
    """Draw the rollout by block and, where it was recomputed, bar by bar on a scale of its own."""
    width = blocks.stop - blocks.start
    axes.bar(blocks.start, blocks.share, width, align="edge", color=LOOKED, alpha=0.35)
    axes.set_ylabel("% in 64 bars", color=LOOKED)
    title = (
        f"rollout: where attention flowed, not why (before the first block: {blocks.older:.1f} %)"
    )
    if full is not None:
        found = full.attribution
        by_bar = axes.twinx()
        by_bar.spines[["top", "left"]].set_visible(False)
        weights = 100 * np.array(found.weights)
        by_bar.plot(_days(found.open_time_ms[:-1]), weights[:-1], color=PRICE, linewidth=0.6)
        by_bar.set_ylabel("% in one bar", fontsize=9)
        by_bar.tick_params(labelsize=8)
        by_bar.set_ylim(bottom=0)
        title += f"; line: bar by bar, the decided bar itself {weights[-1]:.1f} %"
    _caption(axes, title)


def _moved(axes: Axes, blocks: _Blocks, full: Full) -> None:
    """Draw what each block's bars added to the mean, the decided bar apart."""
    moves, times = full.moves, _days(full.attribution.open_time_ms)
    place = np.searchsorted(blocks.start, times[:-1], side="right") - 1
    inside = place >= 0
    added = np.zeros(len(blocks.start))
    np.add.at(added, place[inside], BASIS_POINTS * np.array(moves.by_bar[:-1])[inside])
    colours = [UP if value > 0 else DOWN for value in added]
    axes.bar(blocks.start, added, blocks.stop - blocks.start, align="edge", color=colours)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.set_ylabel("bp in 64 bars")
    own, every = (BASIS_POINTS * x for x in (moves.by_bar[-1], moves.forecast - moves.neutral))
    _caption(
        axes,
        f"what moved the mean (integrated gradients): the past bars {every - own:+.2f} bp, and the "
        f"decided bar itself, not drawn, {own:+.2f} bp",
    )


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9, color=FAINT)


def _finish(panels: Sequence[Axes], times: Floats) -> None:
    """Give the panels one time axis and as little else as possible."""
    dates = import_module("matplotlib.dates")
    locator = dates.AutoDateLocator(maxticks=12)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.margins(x=0)
        axes.yaxis.label.set_fontsize(9)
    panels[-1].xaxis.set_major_locator(locator)
    form = dates.ConciseDateFormatter(locator, show_offset=False)
    panels[-1].xaxis.set_major_formatter(form)
    panels[-1].set_xlim(times[0], times[-1])
    panels[-1].set_xlabel("UTC", fontsize=9)


def _title(stored: StoredDecision) -> str:
    decision = stored.decision
    opened = datetime.fromtimestamp(decision["open_time_ms"] / 1000, tz=UTC)
    verdict, _ = verdict_of(decision)
    side = flips_of(stored).side
    expected = ""
    if side is not None:
        expected = (
            f"; forecast {side.mean_return * BASIS_POINTS:+.2f} bp over {side.horizon} bars, "
            f"up less down {side.lean:+.3f}"
        )
    return (
        f"{decision['instrument']} at {opened:%Y-%m-%d %H:%M} UTC: "
        f"{decision['action']}, {verdict}{expected}"
    )
