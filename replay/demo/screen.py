"""The demo's screen: sentences, and on a terminal a line below them that goes on."""

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
    """Prints sentences; on a terminal the race stands below them, redrawn where it changes."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on *console*, by default on standard error."""
        console = console or Terminal(stderr=True, highlight=False)
        is_drawn = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False) if is_drawn else None
        if self._live is not None:
            self._live.start()

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Print *sentence* above the race, where it stays."""
        if self._live is None:
            sys.stderr.write(f"{mark or '-'} {sentence}\n")
            sys.stderr.flush()
            return
        text = Text.assemble((f"{mark or ' '} ", STYLES.get(mark, "")), sentence)
        self._live.console.print(text)

    def show(self, race: Race, *, speed: float, until_ms: int) -> None:
        """Redraw the line of the race."""
        if self._live is not None:
            self._live.update(progress(race, speed, until_ms), refresh=True)

    def close(self) -> None:
        """Leave the last line, and give the cursor back."""
        if self._live is not None:
            self._live.stop()


def progress(race: Race, speed: float, until_ms: int) -> Text:
    """Return the date, how far the race is, and the account, in one line."""
    text = Text("  tracepaper demo", "bold", no_wrap=True, overflow="ellipsis")
    if race.start_ms:
        now = datetime.fromtimestamp(race.now_ms / 1_000, UTC)
        past, whole = (at - race.start_ms for at in (race.now_ms, until_ms))
        text.append(f"  {now:%Y-%m-%d %H:%M} UTC", "cyan")
        text.append(f"  day {past / DAY_MS:.1f} of {whole / DAY_MS:.1f}")
        text.append(f"  {race.decisions:,} decisions  {race.fills:,} fills  {race.equity:,.2f}")
        text.append(f"  {speed:,.0f} x real time", "dim")
    return text
