"""Draws the README's pictures from what the program really shows: `make readme`.

`deploy/live.svg` is the status of a daemon that holds a position, as its live view repeats it.
`deploy/chart.svg` is what `tracepaper report --chart` draws of an example. The other pictures are
the page over the README's backtest, in a real browser.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import drawings
from browser import browsing
from PIL import Image
from programs import BIN, ROOT, Program, exchange_on, pointing_at, run
from readme import SAMPLES, Walk
from rich.console import Console

from tracepaper.daemon.http.client import ask
from tracepaper.daemon.terminal.status import status_text
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.position_text import FLAT

LIVE: Final = ROOT / "deploy" / "live.svg"
CHART: Final = ROOT / "deploy" / "chart.svg"
EXAMPLE: Final = ROOT / "strategies" / "examples" / "rsi_reversion.toml"
CANDLES: Final = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
PAGES: Final = {"page": (1320, 800), "page-phone": (390, 844)}
"""Pictures of the page, and the size of the window in CSS pixels."""
PARTS: Final = {
    "card": ("/decision/11968", "Derives this decision", ".card", ""),
    "attention": ("/decision/11968", "Derives this decision", ".chart", "a"),
    "gates": ("/gates", "Refusals by day", "body", ""),
    "account": ("/account", "Positions", "body", ""),
}
"""Pictures of the page: an address in a run, a text to wait for, the part, a key to press."""
MODEL: Final = ROOT / "docs" / "first_model.md"
SCALE: Final = 2
COLOURS: Final = 128
COLUMNS: Final = 100  # of the terminal


def main() -> None:
    """Run the program and draw the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        view(Path(folder))
        chart(Path(folder))
        page(Path(folder))
        model(Path(folder) / "model")
    drawings.main()


def page(folder: Path) -> None:
    """Photograph the page of the README's backtest as it opens."""
    ended = run(["replay", "--data", str(CANDLES), "--db", "run.db", "--verify"], folder)
    if ended.code != 0:
        sys.exit(ended.err)
    (run_id,) = re.findall(r"run ([0-9a-f]{16}) ", ended.out)
    command = [str(BIN / "tracepaper"), "ui", "--db", "run.db", "--port", "0"]
    program = Program(command, folder, name="ui")
    try:
        program.wait_until(lambda: "Ctrl-C" in program.out)
        (url,) = re.findall(r"http://\S+/", program.out)
        with browsing() as browser:
            for name, (width, height) in PAGES.items():
                window = browser.new_page(
                    viewport={"width": width, "height": height}, device_scale_factor=SCALE
                )
                window.goto(url)
                window.wait_for_selector('text="Gates"')
                window.wait_for_load_state("networkidle")
                save(window.screenshot(), name)
            width, height = PAGES["page"]
            window = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=SCALE
            )
            window.goto(url)
            window.wait_for_selector('text="Gates"')
            for name, (path, text, part, key) in PARTS.items():
                window.evaluate("hash => (location.hash = hash)", f"#/run/{run_id}{path}")
                window.wait_for_load_state("networkidle")
                window.wait_for_selector(f"text={text}")
                if key:
                    window.keyboard.press(key)
                clip = window.locator(part).first.bounding_box()
                save(window.screenshot(clip=clip if part != "body" else None), name)
    finally:
        program.kill()


def save(picture: bytes, name: str) -> None:
    """Write a photograph with few colours, so that a clone stays small."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    small = image.quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(ROOT / "deploy" / f"{name}.png", optimize=True)


def model(folder: Path) -> None:
    """Keep the chart of a decision that the commands of the page of a first model write."""
    walk = Walk(folder)
    for _ in walk.outcomes(SAMPLES + MODEL.read_text(encoding="utf-8").split("## Other")[0]):
        pass
    save((folder / "decision.png").read_bytes(), "decision")


def view(folder: Path) -> None:
    """Draw the status of a daemon as soon as it holds a position."""
    command = [str(BIN / "tracepaper"), "run", "-c", str(EXAMPLE), "--db", "live.db"]
    status: dict[str, Any] = {}

    def holds() -> bool:
        with suppress(TracepaperError):
            status.update(ask(folder / "live.db", "/status"))
        held = [facts.get("position", FLAT) for facts in status.get("instruments", {}).values()]
        return any(text != FLAT for text in held)

    with exchange_on(folder, "--data", str(CANDLES), "--hold", "--speed", "120") as exchange:
        program = Program(command, folder, name="daemon", extra=pointing_at(exchange.out))
        try:
            program.wait_until(holds)
        finally:
            program.kill()
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(status_text(status))
    console.save_svg(str(LIVE), title="tracepaper run")


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
