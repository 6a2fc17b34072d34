"""The demo's screen: sentences, and on a terminal a progress line below them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.demo.race import Race
from tracepaper.strategies.units import DAY_MS

STYLES: Final = {"▶": "bold yellow", "✓": "bold green", "✗": "bold red"}


class RaceScreen:
    """Prints sentences; on a terminal it redraws the race's progress line below them."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on *console*, by default on standard error."""
        console = console or Terminal(stderr=True, highlight=False)
        is_drawn = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False) if is_drawn else None
        if self._live is not None:
            self._live.start()

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Print *sentence* above the progress line."""
        if self._live is None:
            sys.stderr.write(f"{mark or '-'} {sentence}\n")
            sys.stderr.flush()
            return
        text = Text.assemble((f"{mark or ' '} ", STYLES.get(mark, "")), sentence)
        self._live.console.print(text)

    def show(self, race: Race, *, speed: float, until_ms: int) -> None:
        """Redraw the progress line."""
        if self._live is not None:
            self._live.update(progress(race, speed, until_ms), refresh=True)

    def close(self) -> None:
        """Keep the last progress line and restore the cursor."""
        if self._live is not None:
            self._live.stop()


def progress(race: Race, speed: float, until_ms: int) -> Text:
    """Return the progress line: the date, the day of the race, and the account."""
    text = Text("  tracepaper demo", "bold", no_wrap=True, overflow="ellipsis")
    if race.start_ms:
        now = datetime.fromtimestamp(race.now_ms / 1_000, UTC)
        elapsed_ms, total_ms = race.now_ms - race.start_ms, until_ms - race.start_ms
        text.append(f"  {now:%Y-%m-%d %H:%M} UTC", "cyan")
        text.append(f"  day {elapsed_ms / DAY_MS:.1f} of {total_ms / DAY_MS:.1f}")
        text.append(f"  {race.decisions:,} decisions  {race.fills:,} fills  {race.equity:,.2f}")
        text.append(f"  {speed:,.0f} x real time", "dim")
    return text
