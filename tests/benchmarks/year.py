"""Measures what a reader of a long record waits for: what-if, and the page in a browser.

    PYTHONPATH=tests:tests/support python tests/benchmarks/year.py

A what-if is a whole command, in CPU seconds. The page is measured in the browser, in wall time:
over a year of minutes, and over a year of quarters of an hour that a model explains.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from browser import browsing, opened
from long_replays import tiled
from page_cases import serving_apart
from whole_command import cpu_s

from tracepaper import backtest
from tracepaper.replay.bench.machine import machine_line

YEAR: Final = 525_600
MONTH: Final = 31 * 1_440
QUARTERS: Final = YEAR // 15
MINUTES_15: Final = 15 * 60_000
ROUNDS: Final = 3
CLICKS: Final = 60
WATCH: Final = """
() => {
  const shown = () => document.querySelector(".card .when")?.textContent, before = shown();
  window.card = new Promise((resolve) => addEventListener("pointerup", () => {
    const began = performance.now();
    const look = () => shown() !== before ? resolve(performance.now() - began)
      : performance.now() - began > 2000 ? resolve(null) : requestAnimationFrame(look);
    look();
  }, { once: true, capture: true }));
}
"""
"""The time from a click to the card of another bar; none where the click is on the same bar."""
PAINTED: Final = """
() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime
"""


def what_if(database: Path) -> float:
    """Return the median CPU seconds of a what-if of the run's fee."""
    words = ["whatif", "last", "--db", str(database), "--set", "execution.taker_fee=0.0002"]
    return cpu_s(lambda _turn: words, ROUNDS)


def page(database: Path) -> dict[str, Any]:
    """Return the wall times of first paint, of complete pages, of cards and of a verification."""
    paints, complete, cards, verified = [], [], [], []
    with serving_apart(database) as address, browsing() as browser:
        for _ in range(ROUNDS):
            with opened(browser, f"{address}/") as tab:
                tab.wait_for_selector(".card h2")
                tab.wait_for_selector('.chart[aria-busy="false"]')
                paints.append(tab.evaluate(PAINTED))
                complete.append(tab.evaluate("() => performance.now()"))
                box = tab.locator(".chart .canvas").bounding_box()
                assert box is not None
                rng = np.random.default_rng(0)
                for x in rng.uniform(0.05, 0.9, CLICKS) * box["width"]:
                    tab.evaluate(WATCH)
                    tab.mouse.click(box["x"] + x, box["y"] + 60)
                    cards.append(tab.evaluate("() => window.card"))
                began = tab.evaluate("() => performance.now()")
                tab.get_by_role("button", name="Verify").first.click()
                tab.wait_for_selector(".verify b")
                verified.append(tab.evaluate("() => performance.now()") - began)
    opened_cards = [each for each in cards if each is not None]
    return {
        "first_paint_ms": statistics.median(paints),
        "complete_ms": statistics.median(complete),
        "card_p50_ms": statistics.median(opened_cards),
        "card_p95_ms": float(np.percentile(opened_cards, 95)),
        "clicks": len(opened_cards),
        "verify_ms": statistics.median(verified),
    }


def measure() -> dict[str, Any]:
    """Return every figure."""
    with tempfile.TemporaryDirectory(prefix="year-") as folder:
        paths = {name: Path(folder, f"{name}.db") for name in ("month", "year", "explained")}
        backtest("trend", tiled(MONTH), db=paths["month"])
        backtest("sma_cross", tiled(YEAR), db=paths["year"])
        minutes = tiled(QUARTERS)
        quarters = replace(
            minutes,
            interval_ms=MINUTES_15,
            open_time_ms=minutes.open_time_ms[0] + np.arange(QUARTERS) * MINUTES_15,
        )
        backtest(
            "attention",
            quarters,
            db=paths["explained"],
            config={"model": {"checkpoint": "flash-15m"}},
        )
        return {
            "machine": machine_line(),
            "whatif_month_cpu_s": what_if(paths["month"]),
            "whatif_year_cpu_s": what_if(paths["year"]),
            "page_of_a_year": page(paths["year"]),
            "page_of_explained_bars": page(paths["explained"]),
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=1) + "\n")
