"""Charts of money, prices and trades; the picture of a run's price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from tracepaper.replay.document.charts import (
    BENCHMARK_LINE,
    FULL_HOLD_LINE,
    RUN_LINE,
    BandLayer,
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    HeatLayer,
    Layer,
    LineDash,
    LineLayer,
    MarkLayer,
    MarkShape,
    RuleLayer,
    category_axis,
    percent_axis,
    rounded,
    shadow_line,
    time_axis,
)
from tracepaper.replay.document.pictures import check_picture_file
from tracepaper.replay.report import record as records
from tracepaper.replay.report.benchmarks import (
    BETTER,
    COST,
    SAVED,
    WORSE,
    Refusal,
    exposures,
    sides,
)
from tracepaper.replay.report.metrics import credible_bound
from tracepaper.replay.report.report import BUY_AND_HOLD, Report
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run_columns import Floats, Ints, NoteColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.errors import shown as shortened
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.decisions import Action, OrderRole
from tracepaper.strategies.units import count_of, iso

LINES_FIRST: Final = 4
LEAST_HEIGHT: Final = 0.2
"""Least share of a panel's height for the run; other accounts that leave it less are separate."""


def broken(
    times: Ints, *columns: Floats, calendar: Calendar | None = None
) -> tuple[list[int], list[Floats]]:
    """Return *times* and *columns* with a missing value in every hole, so that no line crosses it.

    A hole is a step longer than five median steps; with a *calendar* steps count session bars, so
    a night is not a hole.
    """
    steps = np.diff(times if calendar is None else calendar.places(times - 1))
    if not steps.size:
        return times.tolist(), list(columns)
    holes = np.flatnonzero(steps > 5 * np.median(steps)) + 1
    cut = [np.insert(column.astype(np.float64), holes, np.nan) for column in columns]
    return np.insert(times, holes, times[holes] - 1).tolist(), cut


def equity_chart(report: Report) -> Chart:
    """Draw the returns of all accounts and random timings, drawdowns and the position."""
    times = report.marks_ms.tolist()
    returns: list[Layer] = [
        RuleLayer(int(part.decisions.open_time_ms.min()), "x", f"run {part.run['run_id']}")
        for part in report.record.parts[1:]
    ]
    for timings in report.random:
        low, high = (100 * (edge / timings.median[0] - 1) for edge in (timings.low, timings.high))
        role: ChartRole = "soft" if timings is report.random[0] else "faint"
        name = f"random timings of {timings.of}, 5–95 %"
        returns.append(BandLayer(name, times, rounded(low), rounded(high), role))
    labels = {account.name: account.label for account in report.accounts}
    curves = [
        AccountCurve(
            replace(_line_of(report, curve.name), name=labels[curve.name]),
            curve.equity / curve.equity[0] - 1,
            curve.drawdown,
        )
        for curve in report.curves
    ]
    share = rounded(100 * exposure_share(report))
    held = LineLayer("position", times, share, width=1.0, is_step=True, is_filled=True)
    calendar = report.record.bar_times.calendar
    return accounts_chart(report.marks_ms, curves, [held], below=returns, calendar=calendar)


class AccountCurve(NamedTuple):
    """An account's line style, return since the start and share lost from the peak."""

    line: LineLayer  # without its points
    change: Floats
    lost: Floats


def accounts_chart(
    times_ms: Ints,
    curves: Sequence[AccountCurve],
    held: Sequence[Layer],
    *,
    below: Sequence[Layer] = (),
    calendar: Calendar | None = None,
) -> Chart:
    """Draw accounts at *times_ms*, the run's first, and the position *held*.

    The layers *below* are drawn under the returns. Accounts that dwarf the run have another panel.
    """
    returns, dwarfed, losses = [*below], list[Layer](), list[Layer]()
    dwarfs = _dwarfing([curve.change for curve in curves])
    for place, curve in reversed(list(enumerate(curves))):
        at, (change, lost) = broken(
            times_ms, 100 * curve.change, -100 * curve.lost, calendar=calendar
        )
        drawn = replace(curve.line, x=at)
        (dwarfed if place in dwarfs else returns).append(replace(drawn, y=rounded(change)))
        losses.append(replace(drawn, y=rounded(lost), width=1.0))
    across = time_axis()
    return_axis = percent_axis("return, %", has_zero=False)
    others_axis = percent_axis("return of accounts with larger moves, %", has_zero=False)
    panels = [
        ChartPanel(returns, across, return_axis, 300),
        *([ChartPanel(dwarfed, across, others_axis, 140)] if dwarfed else []),
        ChartPanel(losses, across, percent_axis("drawdown, %", has_zero=False), 110),
        ChartPanel(held, across, percent_axis("position, %", 1), 90),
    ]
    caption = "Return since the start, share lost from the peak, and the position held."
    return Chart("Equity", caption, panels, is_aligned=True, lines_first=LINES_FIRST)


def _line_of(report: Report, account: str) -> LineLayer:
    """Return the line style of *account*, without points."""
    if account == report.record.account.name:
        return RUN_LINE
    shadows = [shadow.name for shadow in report.record.shadows]
    if account in shadows:
        return shadow_line(shadows.index(account))
    return FULL_HOLD_LINE if account == BUY_AND_HOLD else BENCHMARK_LINE


def _dwarfing(changes: Sequence[Floats]) -> set[int]:
    """Return the indices of *changes* that would leave the first too little of a panel's height."""
    (low, high), *others = ((float(change.min()), float(change.max())) for change in changes)
    ranges = dict(enumerate(others, start=1))
    dwarfing: set[int] = set()
    for place in sorted(ranges, key=lambda index: max(map(abs, ranges[index])), reverse=True):
        kept = [(low, high), *(ends for index, ends in ranges.items() if index not in dwarfing)]
        height = max(top for _, top in kept) - min(bottom for bottom, _ in kept)
        if high > low and high - low < LEAST_HEIGHT * height:
            dwarfing.add(place)
    return dwarfing


def exposure_share(report: Report) -> Floats:
    """Return the run's net position at the report's marks, as a fraction of equity.

    A mark has the largest position since the previous mark, so brief positions are visible.
    """
    record = report.record
    held = sum(exposures(record, record.account).values(), np.zeros(record.times_ms.size))
    share = np.concatenate(([0.0], np.nan_to_num(held)))
    ends = np.searchsorted(record.times_ms, report.marks_ms, side="right")
    starts = np.concatenate(([0], ends[:-1] + 1))
    highest, lowest = np.maximum.reduceat(share, starts), np.minimum.reduceat(share, starts)
    return np.where(highest >= -lowest, highest, lowest)


def refusal_chart(refused: Sequence[Refusal]) -> Chart | None:
    """Draw how much better the signals were that each gate let pass, and the range of random gates.

    None if no gate refused enough signals to be judged.
    """
    rows = [row for row in refused if row.judged.error is not None]
    if not rows:
        return None
    roles: dict[str, ChartRole] = {SAVED: "gain", WORSE: "loss", COST: "loss", BETTER: "gain"}
    places = list(range(len(rows)))
    judged = [row.judged for row in rows]
    measures = [(each.low, each.high, each.difference, each.error) for each in judged]
    low, high, better, error = 1e4 * np.array(measures, dtype=np.float64).T
    layers: list[Layer] = [
        BarLayer("random gate, 95 %", rounded(high - low), places, ("faint",), rounded(low)),
        MarkLayer(
            "this gate, 95 %",
            rounded(better),
            places,
            roles=[roles.get(row.verdict, "muted") for row in rows],
            texts=[row.verdict for row in rows],
            errors=rounded(credible_bound(error)),
        ),
        RuleLayer(0.0, "x"),
    ]
    names = [f"{row.gate}  ({row.judged.days:,} days)" for row in rows]
    panel = ChartPanel(
        layers,
        ChartAxis("passed better by, gross bp", unit=" bp", digits=1, has_zero=True),
        category_axis(names, is_reversed=True),
        50 + 34 * len(rows),
    )
    caption = (
        "Right of zero the gate kept the better signals; for the allowed, the refused were better. "
        "The pale bar is the range of random gates."
    )
    return Chart("What each gate saved or cost", caption, [panel])


POINTS_MAX: Final = 800
TRADES_MAX: Final = 300
NOTES_DRAWN: Final = 6
NOTE_STYLES: Final[tuple[tuple[ChartRole, float, LineDash], ...]] = (
    ("accent", 1.2, "solid"),
    ("ink", 1.2, "dot"),
    ("muted", 1.4, "solid"),
    ("accent", 1.2, "dash"),
    ("ink", 1.2, "dashdot"),
    ("muted", 1.4, "dot"),
)
COLUMNS: Final = 200


def drawn_trades(report: Report, instrument: str, since_ms: int = 0) -> list[ClosedTrade]:
    """Return the trades of *instrument* that its price chart marks: all, or evenly chosen ones.

    Trades closed before *since_ms* are left out.
    """
    trades = [
        trade
        for trade in report.trades[report.shown]
        if trade.instrument == instrument and trade.closed_ms >= since_ms
    ]
    count = min(len(trades), TRADES_MAX)
    return [trades[at] for at in np.linspace(0, len(trades) - 1, count).round().astype(np.int64)]


def price_chart(report: Report, instrument: str, last: int | None = None) -> Chart | None:
    """Draw the price with its trades, and below the refusals of each gate; None for one bar.

    With *last* only so many of the newest bars are drawn.
    """
    record, bars = report.record, report.record.bars[instrument]
    if last is not None:
        newest = {field.name: getattr(bars, field.name)[-last:] for field in fields(bars)}
        bars = records.Bars(**newest)
    if bars.close.size < 2:  # a line needs two points
        return None
    closes_ms = record.bar_times.closes_of(bars.open_time_ms)
    times, low, high, close = _stretches(bars, closes_ms)
    at, (shown,) = broken(times, close, calendar=record.bar_times.calendar)
    over, (low, high) = _folded(times, low, high, close, record.bar_times.calendar)
    above, below = _noted(report, instrument, bars)
    prices: list[Layer] = [
        BandLayer("low to high", over, rounded(low, 8), rounded(high, 8)),
        LineLayer("close", at, rounded(shown, 8), "ink", 1.1),
        *above,
        *_marks(drawn_trades(report, instrument, int(closes_ms[0])), int(closes_ms[0])),
    ]
    price_axis = ChartAxis(f"price, {record.instruments[instrument].quote_coin}")
    panels = [
        ChartPanel(prices, time_axis(), price_axis, 320),
        _asked(report, instrument, bars),
    ]
    if below:
        panels.append(ChartPanel(below, time_axis(), ChartAxis("noted"), 100))
    if (refused := _refused(report, instrument, bars)) is not None:
        panels.append(refused)
    return Chart(instrument, caption(report, instrument), panels, is_aligned=True)


def _stretches(bars: records.Bars, closes_ms: Ints) -> tuple[Ints, Floats, Floats, Floats]:
    """Return the close time, lowest, highest and last price of equal stretches of bars."""
    size = bars.close.size
    starts = np.linspace(0, size, min(size, POINTS_MAX), endpoint=False).astype(np.int64)
    ends = np.append(starts[1:], size) - 1
    return (
        closes_ms[ends],
        np.minimum.reduceat(bars.low, starts),
        np.maximum.reduceat(bars.high, starts),
        bars.close[ends],
    )


def _folded(
    times: Ints, low: Floats, high: Floats, close: Floats, calendar: Calendar | None
) -> tuple[list[int], tuple[Floats, Floats]]:
    """Return the band between *low* and *high* with no height over every hole."""
    _, (shown,) = broken(times, close, calendar=calendar)
    holes = np.flatnonzero(np.isnan(shown))
    holes -= np.arange(holes.size)  # indices in times of the first point after each
    edges = np.concatenate((times[holes - 1] + 1, times[holes] - 1))
    prices = np.concatenate((close[holes - 1], close[holes]))
    places = np.concatenate((holes, holes))
    over = np.insert(times, places, edges).tolist()
    return over, (np.insert(low, places, prices), np.insert(high, places, prices))


def _marks(trades: Sequence[ClosedTrade], since_ms: int) -> list[MarkLayer]:
    """Return marks of entries since *since_ms* by side, and of exits by result."""
    layers = []
    entries: tuple[tuple[str, MarkShape], ...] = (("LONG", "up"), ("SHORT", "down"))
    for side, shape in entries:
        entered = [trade for trade in trades if trade.side == side and trade.opened_ms >= since_ms]
        times = [trade.opened_ms for trade in entered]
        prices = rounded([trade.entry_price for trade in entered], 8)
        texts = [trade.entry_reason for trade in entered]
        layers.append(MarkLayer(f"entry {side.lower()}", times, prices, shape, texts=texts))
    exits: tuple[tuple[str, bool, ChartRole, MarkShape], ...] = (
        ("exit, gain", True, "gain", "ring"),
        ("exit, loss", False, "loss", "cross"),
    )
    for name, won, role, shape in exits:
        left = [trade for trade in trades if (trade.profit > 0) is won]
        times = [trade.closed_ms for trade in left]
        prices = rounded([trade.exit_price for trade in left], 8)
        texts = [f"{trade.exit_reason}, {trade.profit:+,.2f}" for trade in left]
        layers.append(MarkLayer(name, times, prices, shape, (role,), texts))
    return [each for each in layers if each.x]


def _noted(report: Report, instrument: str, bars: records.Bars) -> tuple[list[Layer], list[Layer]]:
    """Return layers of the strategy's notes: numbers as lines, changes of texts as marks.

    The first list is drawn over the price: texts, and numbers in the range of the price. The second
    is drawn below it.
    """
    record = report.record
    notes = record.notes.get(instrument, {})
    low, high = bars.low.min(), bars.high.max()
    above: list[Layer] = []
    below: list[Layer] = []
    for place, (name, column) in enumerate(list(notes.items())[:NOTES_DRAWN]):
        inside = column.open_time_ms >= bars.open_time_ms[0]
        noted = NoteColumns(*(getattr(column, field.name)[inside] for field in fields(column)))
        times = record.bar_times.closes_of(noted.open_time_ms)
        has_number = ~np.isnan(noted.number)
        if has_number.any():
            chosen = np.unique(np.linspace(0, times.size - 1, POINTS_MAX).round().astype(np.int64))
            at, (shown,) = broken(times[chosen], noted.number[chosen])
            is_price = low <= np.median(noted.number[has_number]) <= high
            (above if is_price else below).append(
                LineLayer(name, at, rounded(shown), *NOTE_STYLES[place % len(NOTE_STYLES)])
            )
        text_at = np.flatnonzero(noted.text != "")
        text_at = text_at[
            np.append(True, noted.text[text_at][1:] != noted.text[text_at][:-1])[: text_at.size]
        ]
        if text_at.size:
            text_at = text_at[:: -(-text_at.size // TRADES_MAX)]
            prices = bars.close[np.searchsorted(bars.open_time_ms, noted.open_time_ms[text_at])]
            texts = noted.text[text_at].tolist()
            above.append(
                MarkLayer(
                    name, times[text_at].tolist(), rounded(prices, 8), "tick", ("muted",), texts
                )
            )
    return above, below


def _asked(report: Report, instrument: str, bars: records.Bars) -> ChartPanel:
    """Draw what the strategy asked for: a cell is its last bar, and blank where a gate refused."""
    record, decisions = report.record, report.record.decisions
    places = decisions.places[instrument][-bars.open_time_ms.size :]
    starts = np.linspace(0, places.size, min(places.size, COLUMNS), endpoint=False).astype(np.int64)
    last = places[np.append(starts[1:], places.size) - 1]
    cells = np.array([ASKED.index(action) for action in decisions.action[last]], np.float64)
    cells[~decisions.allowed[last]] = np.nan
    times_ms = record.bar_times.closes_of(decisions.open_time_ms[last]).tolist()
    top = float(len(ASKED) - 1)
    ribbon = HeatLayer(
        "asked for", times_ms, range(1), 0.0, top, [rounded(cells)], palette="steps", names=ASKED
    )
    return ChartPanel([ribbon], time_axis(), category_axis(["asked for"]), 44)


ASKED: Final = (Action.HOLD, Action.FLAT, Action.SHORT, Action.LONG, Action.ORDERS)
"""The actions in the order of their shades, from pale to full."""


def _refused(report: Report, instrument: str, bars: records.Bars) -> ChartPanel | None:
    """Draw the number of signals that each gate refused over time; None without any."""
    record, decisions = report.record, report.record.decisions
    places, opens = decisions.places[instrument], bars.open_time_ms
    places = places[(sides(record)[places] != 0) & (decisions.open_time_ms[places] >= opens[0])]
    refused = decisions.refused_by[places]
    refusing = set(refused.tolist())
    if not (gates := [name for name in gate_order() if name in refusing]):
        return None
    edges = np.linspace(opens[0], opens[-1] + record.bar_times.interval_ms, COLUMNS + 1)
    counts = [
        np.histogram(decisions.open_time_ms[places[refused == name]], edges)[0].tolist()
        for name in gates
    ]
    middles = (0.5 * (edges[1:] + edges[:-1])).round().astype(np.int64).tolist()
    return counts_panel("signals refused", middles, gates, counts)


def counts_panel(
    name: str, times_ms: Sequence[int], gates: Sequence[str], counts: Sequence[Sequence[int]]
) -> ChartPanel:
    """Draw *counts*, by gate and time; darker is more."""
    most = float(max(map(max, counts)))
    cells = HeatLayer(name, times_ms, range(len(gates)), 0.0, most, counts, digits=0)
    height = 30 + 24 * len(gates)
    return ChartPanel([cells], time_axis(), category_axis(gates, is_reversed=True), height)


def rolling_chart(report: Report) -> Chart | None:
    """Draw the Sharpe ratio of the thirty days up to each day's end; None for a shorter run."""
    times, ratio = report.rolling
    if times.size < 2:  # a line needs two points
        return None
    at, (shown,) = broken(times, ratio, calendar=report.record.bar_times.calendar)
    layers: list[Layer] = [RuleLayer(0.0), LineLayer("Sharpe of 30 days", at, rounded(shown))]
    panel = ChartPanel(
        layers, time_axis(), ChartAxis("Sharpe, 30 days", digits=2, has_zero=True), 200
    )
    return Chart("Rolling Sharpe", "The Sharpe ratio of the previous thirty days.", [panel])


def caption(report: Report, instrument: str) -> str:
    """Return the caption of the price chart."""
    count = sum(trade.instrument == instrument for trade in report.trades[report.shown])
    drawn = len(drawn_trades(report, instrument))
    marked = f"{drawn:,} of the {count:,}" if drawn < count else f"the {count:,}"
    first = iso(int(report.record.bars[instrument].open_time_ms[0]))[:10]
    text = f"{instrument} from {first}: {marked} closed trades of {report.shown}"
    if _refused(report, instrument, report.record.bars[instrument]) is None:
        return f"{text}."
    return f"{text}; below, a fuller colour is more signals refused by that gate."


# --- a run's price as a picture

LEVELS: Final[dict[str, ChartRole]] = {
    OrderRole.STOP.value: "loss",
    OrderRole.TRAILING.value: "loss",
    OrderRole.TARGET.value: "gain",
}
"""Order roles whose prices are drawn while the trade was open, with their colours."""
BARS_MIN: Final = 2  # a line needs two points


def check_bars(last: int) -> None:
    """Raise ``ConfigInvalid`` if no picture of *last* bars can be drawn."""
    if type(last) is not int or last < BARS_MIN:
        raise ConfigInvalid(
            f"last is {shortened(last)}; give a number of bars, at least {BARS_MIN}."
        )


def check(path: Path, last: int, option: str = "--chart") -> None:
    """Raise ``ConfigInvalid`` if no picture of *last* bars can be written to *path*.

    *option* is the command's option that requests it.
    """
    check_bars(last)
    check_picture_file(path, option)


def picture_chart(report: Report, *, last: int) -> Chart:
    """Draw the newest *last* bars of the run's first instrument, with trades and their levels.

    Raises ``DataInvalid`` if the run has fewer than two bars.
    """
    record = report.record
    instrument = next(iter(record.bars))
    if (chart := price_chart(report, instrument, last)) is None:
        raise DataInvalid(
            f"Run {record.run['run_id']} has fewer than two bars; choose a longer run."
        )
    since_ms = int(record.bar_times.closes_of(record.bars[instrument].open_time_ms)[-last:][0])
    trades = drawn_trades(report, instrument, since_ms)
    with Reader.open(record.database) as reader:
        views = RunViews(reader.connection, record.run["run_id"])
        orders = views.rows("v_orders", instrument=instrument, role=tuple(LEVELS))
    first, *others = chart.panels
    layers = [*first.layers, *_levels(trades, orders, since_ms)]
    strategy = record.run["strategy"].rpartition(":")[2]
    title = f"{instrument}: {strategy}, {count_of(len(trades), 'trade')}"
    return replace(chart, title=title, panels=[replace(first, layers=layers), *others])


def _levels(
    trades: Sequence[ClosedTrade], orders: Sequence[Row], since_ms: int
) -> Iterator[LineLayer]:
    """Yield the prices of the orders that protected *trades*, by role, while they were open.

    A line begins at *since_ms* at the earliest.
    """
    for role, colour in LEVELS.items():
        x, y = list[float](), list[float | None]()
        for trade in trades:
            for order in orders:
                level = order["trigger_price"] or order["limit_price"]
                is_during = trade.opened_ms <= order["created_ms"] < trade.closed_ms
                if order["role"] == role and level is not None and is_during:
                    x += [max(trade.opened_ms, since_ms), trade.closed_ms, trade.closed_ms]
                    y += [level, level, None]
        if x:
            yield LineLayer(role.lower(), x, y, colour, 1.0, "dot")
