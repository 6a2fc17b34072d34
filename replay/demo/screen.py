"""The demo's screen, redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tracepaper.daemon.terminal.console import Terminal
from tracepaper.daemon.terminal.screen import sparkline
from tracepaper.replay.demo.race import ACCOUNT, Race
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import DAY_MS

CHART_ROWS: Final = 10
CHART_LINES_MIN: Final = 30
"""A terminal of fewer lines has no room for the chart."""
EDGE_CELLS: Final = 9
"""Beside the chart stand its highest and its lowest value."""
COLUMNS_MIN: Final = 20
WIDE_COLUMNS: Final = 90
"""From here on two accounts stand beside each other."""
PRICES_SHOWN: Final = 400
"""Bars whose prices a line shows."""


@dataclass(frozen=True)
class AccountMark:
    """How an account is drawn."""

    name: str
    sign: str
    style: str


MARKS: Final = {
    "buy_and_hold": AccountMark("buy and hold at its own exposure", "+", "blue"),
    "random_gate": AccountMark("random gate", "x", "magenta"),
    "ungated": AccountMark("ungated", "o", "yellow"),
    ACCOUNT: AccountMark("this run", "●", "bold green"),
}
"""The accounts in the order in which they are drawn: what comes later lies above."""


class RaceScreen:
    """Redraws the race below what was announced; without a terminal each day is a line."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on *console*, by default on standard error."""
        console = console or Terminal(stderr=True, highlight=False)
        is_drawn = console.is_terminal and not console.is_dumb_terminal
        self._live = (
            Live(console=console, auto_refresh=False, vertical_overflow="crop")
            if is_drawn
            else None
        )
        self._shown: tuple[object, ...] = ()
        self._day: int | None = None  # the one that goes on
        self._fills = 0  # before it
        if self._live is not None:
            self._live.start()

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Print *sentence* above the race, where it stays."""
        if self._live is None:
            sys.stderr.write(f"{mark or '-'} {sentence}\n")
            sys.stderr.flush()
            return
        styles = {"▶": "bold yellow", "✓": "bold green", "✗": "bold red"}
        text = Text.assemble((f"{mark or ' '} ", styles.get(mark, "")), (sentence, ""))
        self._live.console.print(text)

    def show(self, race: Race, *, speed: float, until_ms: int, now: str) -> None:
        """Redraw where something has changed; *now* is what is going on."""
        if self._live is None:
            if race.now_ms and race.day != self._day:
                self._end_day(race)
                self._day = race.day
            return
        size = self._live.console.size
        shown = (race.sequence, speed, now, size)
        if shown == self._shown:
            return
        self._shown = shown
        has_room = size.height >= CHART_LINES_MIN
        drawn = screen(race, speed, until_ms, now, width=size.width, has_chart=has_room)
        self._live.update(drawn, refresh=True)

    def _end_day(self, race: Race) -> None:
        if self._day is not None:
            date = datetime.fromtimestamp(self._day * DAY_MS / 1_000, UTC)
            fills = race.fill_counts[ACCOUNT]
            self.say(f"{date:%Y-%m-%d}: {standings(race)}; {fills - self._fills} fills")
            self._fills = fills

    def close(self, race: Race) -> None:
        """Leave the last frame, and give the cursor back; the last day of *race* is over."""
        if self._live is None:
            self._end_day(race)
        else:
            self._live.stop()


def standings(race: Race) -> str:
    """Return every account's return so far, in a sentence."""
    return ", ".join(
        f"{mark.name} {race.change(name):+.2%}"
        for name, mark in reversed(MARKS.items())
        if name in race.curves
    )


def screen(
    race: Race, speed: float, until_ms: int, now: str, *, width: int, has_chart: bool
) -> RenderableType:
    """Return the whole screen in *width* columns."""
    parts: list[RenderableType] = [_head(race, speed, until_ms)]
    if race.curves:
        parts.append(_prices(race, width))
        if has_chart:
            parts.append(chart(race, until_ms, columns=max(COLUMNS_MIN, width - EDGE_CELLS - 2)))
        parts += [_accounts(race, width), _fills(race)]
    parts.append(Text(f" {now}", "bold yellow"))
    return Group(*parts)


def _head(race: Race, speed: float, until_ms: int) -> Text:
    text = Text.assemble((" tracepaper demo", "bold"), no_wrap=True, overflow="ellipsis")
    if race.start_ms:
        now = datetime.fromtimestamp(race.now_ms / 1_000, UTC)
        past, whole = (at - race.start_ms for at in (race.now_ms, until_ms))
        text.append(f"  {now:%Y-%m-%d %H:%M} UTC", "cyan")
        text.append(f"  day {past / DAY_MS:.1f} of {whole / DAY_MS:.1f}")
        text.append(
            f"  {speed:,.0f} x real time  {race.decisions:,} decisions, {race.late} late",
            "dim",
        )
    return text


def _prices(race: Race, width: int) -> Table:
    """Return a line an instrument: its last price, what is held, and where the price was."""
    grid = Table.grid(padding=(0, 2))
    for name, prices in race.prices.items():
        columns = max(COLUMNS_MIN, width - 50)
        line = sparkline([round(price * 1e6) for price in sampled(prices[-PRICES_SHOWN:], columns)])
        held = race.held.get(name, 0.0)
        holds = f"holds {held:+,.5g}" if held else "holds nothing"
        grid.add_row(
            Text(f" {name.partition(':')[2]}", no_wrap=True),
            Text(f"{prices[-1]:,.6g}", "bold", no_wrap=True),
            Text(f"{holds:<16}", "green" if held > 0 else "red" if held < 0 else "dim"),
            Text(line, "cyan", no_wrap=True, overflow="crop"),
        )
    return grid


def sampled(values: Sequence[float], count: int) -> list[float]:
    """Return at most *count* of *values*, evenly, the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[(place + 1) * len(values) // count - 1] for place in range(count)]


def chart(race: Race, until_ms: int, *, columns: int, rows: int = CHART_ROWS) -> Text:
    """Return every account's return over the whole race, as *rows* lines of *columns* cells.

    Time runs to the right up to *until_ms*, so that the curves are seen to grow.
    """
    points = {
        name: [value / race.cash - 1.0 for value in race.curves[name]]
        for name in MARKS
        if name in race.curves
    }
    low = min(0.0, *(min(values) for values in points.values()))
    high = max(0.0, *(max(values) for values in points.values()))
    span = (high - low) or 1e-6
    cells: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(rows)]
    zero = round((high - 0.0) / span * (rows - 1))
    cells[zero] = [("·", "dim")] * columns
    whole = max(1, until_ms - race.start_ms)
    for name, values in points.items():
        mark = MARKS[name]
        for time_ms, value in zip(race.times_ms[-len(values) :], values, strict=True):
            column = min(columns - 1, (time_ms - race.start_ms) * columns // whole)
            cells[round((high - value) / span * (rows - 1))][column] = (mark.sign, mark.style)
    text = Text(no_wrap=True, overflow="crop")
    for place, line in enumerate(cells):
        edge = {0: f"{high:+.2%}", rows - 1: f"{low:+.2%}"}
        label = edge.get(place, "0" if place == zero else "")
        text.append(f"{label:>{EDGE_CELLS}} ", "dim")
        for sign, style in line:
            text.append(sign, style)
        text.append("\n" if place < rows - 1 else "")
    return text


def _accounts(race: Race, width: int) -> Table:
    """Return every account's equity, its return and its fills; two a line where there is room."""
    beside = 2 if width >= WIDE_COLUMNS else 1
    grid = Table.grid(padding=(0, 2))
    for place in range(beside * 4):
        grid.add_column(no_wrap=True, justify="right" if place % 4 else "left")
    cells: list[Text] = []
    for name, mark in reversed(MARKS.items()):
        if name in race.curves:
            change = race.change(name)
            style = "green" if change > 0 else "red" if change < 0 else "dim"
            cells += [
                Text.assemble((f" {mark.sign} ", mark.style), mark.name),
                Text(f"{change:+.2%}", style),
                Text(f"{race.curves[name][-1]:,.2f}"),
                Text(f"{race.fill_counts[name]:,} fills", "dim"),
            ]
    for start in range(0, len(cells), beside * 4):
        grid.add_row(*cells[start : start + beside * 4])
    return grid


def _fills(race: Race) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for close_ms, fill in race.fills:
        instrument = race.instruments[fill.instrument]
        quantity = fill.quantity / 10**instrument.quantity_decimals
        price = fill.price / 10**instrument.price_decimals
        when = datetime.fromtimestamp(close_ms / 1_000, UTC)
        text.append(f" {when:%m-%d %H:%M} ", "dim")
        text.append(fill.side.value, "green" if fill.side is Side.BUY else "red")
        text.append(f" {quantity:,.5g} {instrument.symbol}")
        text.append(f" at {price:,.6g}  {fill.reason}\n", "dim")
    return text
