"""Draws the README's pictures from what the program really shows: `make readme`.

Demos run on a pseudo-terminal. `deploy/live.svg` is a frame of the live view of one with candles of
its own, `deploy/demo.svg` what the demo prints at its end. `deploy/chart.svg` is what
`tracepaper report --chart` draws of an example.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Final

from programs import ROOT, environment, run
from rich.console import Console
from rich.text import Text

LIVE, ENDED = ROOT / "deploy" / "live.svg", ROOT / "deploy" / "demo.svg"
CHART: Final = ROOT / "deploy" / "chart.svg"
EXAMPLE: Final = ROOT / "strategies" / "examples" / "rsi_reversion.toml"
CANDLES: Final = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
RACE: Final = ("tracepaper", "demo")
SERVED: Final = (
    *("tracepaper", "demo", "--data", "replay/samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"),
    *("--bars", "600", "--speed", "1200"),
)
WIDTH, HEIGHT = 100, 50
ENDS_FROM: Final = "What was earned or lost"
"""The first line of the summary."""
REDRAWN: Final = re.compile(r"(?:\x1b\[\?25[lh]|\r|\x1b\[1A|\x1b\[2K)+\n?")
"""What a live display writes between two frames: the cursor goes up, and lines are cleared."""
FRAME_LINES: Final = 8


def on_a_terminal(command: tuple[str, ...], folder: Path) -> str:
    """Run *command* on a pseudo-terminal of 100 columns; return all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    kept = environment({"TERM": "xterm-256color", "COLORTERM": "truecolor"})
    del kept["NO_COLOR"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=kept,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = bytearray()
    while chunk := _read(ours):
        written += chunk
    os.close(ours)
    if process.wait() != 0:
        sys.exit(written.decode()[-2000:])
    return written.decode()


def _read(terminal: int) -> bytes:
    """Return the next bytes, or none once the program has closed the terminal."""
    try:
        return os.read(terminal, 65_536)
    except OSError:  # how Linux reports the end of a pseudo-terminal
        return b""


def frames(written: str) -> list[str]:
    """Return the tall frames among what was *written*, in order; the last is the summary."""
    parts = REDRAWN.split(written.replace("\r\n", "\n"))
    return [part for part in parts if part.count("\n") >= FRAME_LINES]


def draw(text: str, file: Path, title: str) -> None:
    """Export *text*, with its terminal colours, as a picture in *file*."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.from_ansi(text.strip("\n")))
    console.save_svg(str(file), title=title)


def main() -> None:
    """Run the demos and draw the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "replay").mkdir()
        (Path(folder) / "replay" / "samples").symlink_to(CANDLES.parent)
        *_, last, _ = frames(on_a_terminal(SERVED, Path(folder)))
        draw(last, LIVE, "tracepaper demo --data CANDLES")
        written = on_a_terminal(RACE, Path(folder))
    lines = frames(written)[-1].splitlines()
    first = next(place for place, line in enumerate(lines) if ENDS_FROM in line)
    draw("\n".join(lines[first:]), ENDED, f"{' '.join(RACE)}: at its end")
    with tempfile.TemporaryDirectory() as folder:
        chart(Path(folder))


def chart(folder: Path) -> None:
    """Draw the chart of the example that the README shows."""
    for command in (
        ["replay", "-c", str(EXAMPLE), "--data", str(CANDLES), "--db", "rsi.db"],
        ["report", "last", "--db", "rsi.db", "--chart", str(CHART), "--last", "600"],
    ):
        ended = run(command, folder)
        if ended.code != 0:
            sys.exit(ended.err)


if __name__ == "__main__":
    main()
