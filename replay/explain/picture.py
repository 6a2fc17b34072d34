"""One decision as a picture: price, rollout, order book map."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Form, Paragraph, Part, Table, Value, table_of
from tracepaper.replay.explain.decision import StoredDecision, flips_of, verdict_of
from tracepaper.replay.explain.order_book import BookMap
from tracepaper.replay.explain.tables import BASIS_POINTS, LOOKED
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.networks.order_book import MOVES
from tracepaper.strategies.order_book import SIDES
from tracepaper.strategies.types.decisions import BLOCK_BARS
from tracepaper.strategies.units import DAY_MS, duration, iso, unscaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from tracepaper.replay.explain.recompute import Full

PRICE: Final = "#1f2937"
ATTENTION_COLOUR: Final = "#0e7490"
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
    times = _days([bar.closed_ms for bar in bars])
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
        axes.axvspan(
            start, stop, color=ATTENTION_COLOUR, alpha=SHADE_MOST * share / most, linewidth=0
        )
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
    axes.bar(blocks.start, blocks.share, width, align="edge", color=ATTENTION_COLOUR, alpha=0.35)
    axes.set_ylabel("% in 64 bars", color=ATTENTION_COLOUR)
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


LEVELS_SHOWN: Final = 7
AGES_SHOWN: Final = 9
SHADES: Final = " ░▒▓█"


def map_document(found: BookMap) -> dict[str, Any]:
    """Return the whole map with prices and sizes as texts, oldest book first."""
    books = found.books
    return {
        "instrument": found.instrument,
        "model": found.model_id,
        "at": iso(found.at_ms),
        "says": list(found.says),
        "every_ms": found.every_ms,
        "answers": [
            {"horizon": horizon, **dict(zip(MOVES, shares, strict=True))}
            for horizon, shares in zip(found.horizons, found.probabilities, strict=True)
        ],
        "seen_ms": books.seen_ms.tolist(),
        **{
            side: {
                "price": _texts(books.price[-1, place], found.price_decimals),
                "size": _texts(books.size[-1, place], found.quantity_decimals),
                "weights": found.weights[:, place].tolist(),
            }
            for place, side in enumerate(SIDES)
        },
        "l1_error": found.l1_error,
    }


def _texts(numbers: NDArray[np.int64], decimals: int) -> list[str]:
    return [unscaled(number, decimals) for number in numbers.tolist()]


def map_parts(found: BookMap) -> Iterator[Part]:
    """Yield the answer and the map: ranges of levels down, the newest books first."""
    yield Paragraph(f"{found.instrument} at {iso(found.at_ms)}, model {found.model_id}", "strong")
    yield from map(Paragraph, found.says)
    forms: dict[str, Form] = {"books ahead": "count", **dict.fromkeys(MOVES, "exact")}
    answers: list[tuple[Value, ...]] = [
        (horizon, *(f"{share:.1%}" for share in shares))
        for horizon, shares in zip(found.horizons, found.probabilities, strict=True)
    ]
    yield table_of("answers", "Which way the mid moves", forms, answers)
    yield _map_table(found)


def _map_table(found: BookMap) -> Table:
    """Return the share of each range of levels and ages, with a shade by the largest of them."""
    ages = ranges(len(found.books), AGES_SHOWN)
    levels = ranges(found.books.levels, LEVELS_SHOWN)
    newest_first = found.weights[::-1]
    shares = {
        (place, row): [
            float(newest_first[start:stop, place, first:last].sum()) for start, stop in ages
        ]
        for place in range(len(SIDES))
        for row, (first, last) in enumerate(levels)
    }
    largest = max(map(max, shares.values()))
    # As a ladder stands: the deepest ask on top, the touch in the middle.
    order = [(1, row) for row in reversed(range(len(levels)))]
    order += [(0, row) for row in range(len(levels))]
    rows: list[tuple[Value, ...]] = []
    for place, row in order:
        first, last = levels[row]
        cells = shares[place, row]
        named = str(first + 1) if last == first + 1 else f"{first + 1}–{last}"
        shaded = [f"{100 * share:.1f}{_shade(share, largest)}" for share in cells]
        rows.append((SIDES[place], named, *shaded, f"{100 * sum(cells):.1f}"))
    columns = [_age(start, stop, found.every_ms) for start, stop in ages]
    forms: dict[str, Form] = {"side": "text", **dict.fromkeys(["level", *columns, "all"], "exact")}
    return table_of("map", f"Where it looked ({LOOKED}), % of all", forms, rows)


def _shade(share: float, largest: float) -> str:
    """Return the sign of a *share*: the darker, the nearer to the largest."""
    return SHADES[round((len(SHADES) - 1) * (share / largest) ** 0.5)] if largest else SHADES[0]


def ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Return *count* places as at most *most* ranges, each about twice as wide as the one before.

    The last holds all that is left.
    """
    found: list[tuple[int, int]] = []
    start, width = 0, 1
    while start < count:
        stop = count if len(found) == most - 1 else min(start + width, count)
        found.append((start, stop))
        start, width = stop, 2 * width
    return found


def _age(start: int, stop: int, every_ms: int) -> str:
    if stop == start + 1:
        return "now" if start == 0 else duration(start * every_ms)
    return f"–{duration((stop - 1) * every_ms)}"
