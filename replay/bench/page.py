"""``bench page``: what the page costs: first paint, a click, an update, memory, and the daemon.

A recorded year of minutes is served by ``tracepaper ui`` and asked over loopback; a run that is
being written is served by the process that writes it, as a daemon does. Times are of wall time in
milliseconds, medians beside the half of them in the middle. What needs a browser is measured where
Playwright and a Chromium are found.
"""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
from aiohttp import web

from tracepaper.daemon.http.server import ConnectionLimits, listening
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.bench.live import LiveParts, live_config, live_parts, quote_of
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import YEAR_BARS, replay_of, tiled
from tracepaper.replay.page.server import Page
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import Bar, Source

if TYPE_CHECKING:
    from playwright.async_api import Browser, CDPSession
    from playwright.async_api import Page as Tab

REACH_FIRST_PAINT_MS: Final = 1_000.0
REACH_CLICK_P95_MS: Final = 100.0
REACH_UPDATE_MS: Final = 5.0
REACH_EXPORT_MB: Final = 1.5
REACH_EXPORT_CPU_S: Final = 3.0
EXPORT_BARS: Final = 12_000
UPDATES: Final = 3_600
"""An hour of a bar a second."""
STEPS: Final = 2
"""Steps that are told of a bar: a quote, and the bar with its decision."""
READERS: Final = 10
SIZE: Final = {"width": 1440, "height": 900}
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS: Final = 20_000
BATCHES: Final = 30
APART_MS: Final = 150
"""Between two clicks; what the pointer passes on its way is asked for and drawn meanwhile."""

Tell = Callable[[str], None]

_HELPERS: Final = """
window.bench = {
  async until(holds) {
    while (!holds()) await new Promise(requestAnimationFrame);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now();
  },
  card: () => document.querySelector(".card[aria-busy=false] footer code:last-of-type")?.title,
  isDrawn: () => !!document.querySelector("h1.sentence") &&
    !!document.querySelector(".chart[aria-busy=false] ul.rows"),
  start: 0,
};
addEventListener("pointerdown", (event) => (bench.start = event.timeStamp), true);
addEventListener("keydown", (event) => (bench.start = event.timeStamp), true);
bench.painted = bench.until(bench.isDrawn);
bench.explained = bench.until(() => bench.isDrawn() && bench.card());
"""
_FRAMES: Final = """
window.frames_ms = [];
(() => {
  let before = performance.now();
  const next = (now) => { frames_ms.push(now - before); before = now; again(); };
  const again = () => requestAnimationFrame(next);
  again();
})()
"""


def measure_page(
    bars: int = YEAR_BARS,
    *,
    db: Path | None = None,
    export_bars: int = EXPORT_BARS,
    updates: int = UPDATES,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Measure the page over a run of *bars* bars, or over the newest run of *db*.

    *updates* steps are told to a page that is open, and as many decisions are timed with pages
    and without. Without a browser the figures of the server stand alone.
    """
    browser = find_browser()
    figures: dict[str, Any] = {
        "machine": machine_line(),
        "browser": browser or "none was found; these are the figures of the server alone",
    }
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "year.db"
        if db is None:
            tell(f"recording {bars:,} bars")
            record(bars, "sma_cross", database)
        else:
            shutil.copyfile(db, database)  # without its roll-ups
        with Reader.open(database) as reader:
            figures["bars"] = reader.counted(reader.find("last"))[0]
        figures |= asyncio.run(_of_record(database, browser, tell))
        live = Path(folder) / "live.db"
        figures |= asyncio.run(_of_live(live, browser, updates, tell))
        tell(f"exporting {export_bars:,} bars")
        figures |= measure_export(export_bars, Path(folder))
    return figures


def find_browser() -> str | None:
    """Return the path of a Chromium that Playwright can drive, None where either is missing."""
    with suppress(ImportError):
        import playwright.async_api  # noqa: F401

        return next(filter(None, map(shutil.which, BROWSERS)), None)
    return None


def record(bars: int, strategy: str, database: Path) -> None:
    """Replay *bars* bundled bars into the new *database*."""
    audit = SqlAuditLog.open(database)
    run_replay(replay_of([tiled(bars)], strategy), audit, Tally())
    audit.end(0)
    audit.close()


def measure_export(bars: int, folder: Path) -> dict[str, Any]:
    """Return the size and the CPU time of ``report --html`` over *bars* bars of the model."""
    database, page = folder / "export.db", folder / "export.html"
    record(bars, "attention", database)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = (*_TRACEPAPER, "report", "last", "--db", str(database), "--html", str(page))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own words
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "export_bars": bars,
        "export_mb": page.stat().st_size / 1e6,
        "reach_export_mb": REACH_EXPORT_MB,
        "export_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "reach_export_cpu_s": REACH_EXPORT_CPU_S,
    }


# ---------------------------------------------------------------- a recorded run

_TRACEPAPER: Final = (sys.executable, "-u", "-m", "tracepaper.daemon.cli")


@contextmanager
def _served(database: Path) -> Iterator[str]:
    """Serve *database* by ``tracepaper ui``; yield the address."""
    command = (*_TRACEPAPER, "ui", "--db", str(database))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split("The page is ", 1)[1].split("/ ", 1)[0]
        finally:
            process.terminate()


async def _of_record(database: Path, browser: str | None, tell: Tell) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in ("without_rollups", "with_rollups"):
        tell(f"opening the run {name.replace('_', ' ')}")
        with _served(database) as url:
            if browser is not None:
                async with _started(browser) as started:
                    figures[f"first_paint_{name}_ms"] = await _first_paint(started, url, 1)
            began = time.perf_counter()
            async with aiohttp.ClientSession(f"{url}/api/v1/") as session:
                whole = await _whole(session)
                figures[f"whole_run_{name}_ms"] = 1e3 * (time.perf_counter() - began)
                if name == "with_rollups":
                    tell("asking every route")
                    figures["routes_ms"] = await _routes(session, whole)
            if browser is not None and name == "with_rollups":
                async with _started(browser) as started:
                    figures["first_paint_ms"] = await _first_paint(started, url, 7)
                    figures["reach_first_paint_ms"] = REACH_FIRST_PAINT_MS
                    tell("clicks, moves, drags")
                    figures |= await _handled(started, url)
    return figures


async def _whole(session: aiohttp.ClientSession) -> dict[str, Any]:
    """Ask for the candles of the newest run from end to end; return its row."""
    (row, *_) = (await _get(session, "runs"))["runs"]
    await _get(session, f"runs/{row['run_id']}/candles?points=1000")
    return dict(row)


async def _get(session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with session.get(path) as response:
        response.raise_for_status()
        return dict(await response.json())


async def _routes(session: aiohttp.ClientSession, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long every route that the chart and the card ask takes."""
    run, interval_ms, end = f"runs/{row['run_id']}", row["interval_ms"], row["last_ms"]
    day = f"from_ms={end - 1_439 * interval_ms}&until_ms={end + interval_ms}&points=1442"
    newest = (await _get(session, run))["last_sequence"]
    draw = random.Random(0)  # noqa: S311 - no secret
    asked: dict[str, Callable[[], str]] = {
        "runs": lambda: "runs",
        "run": lambda: run,
        **{
            f"{name} of a day": partial(f"{run}/{{}}?{day}".format, name)
            for name in ("candles", "series", "equity")
        },
        **{
            f"{name} of the run": partial(f"{run}/{{}}?points=1000".format, name)
            for name in ("candles", "series", "equity")
        },
        "marks of the run": lambda: f"{run}/marks",
        "decision": lambda: f"{run}/decisions/{draw.randrange(newest // 2, newest)}",
        "health": lambda: f"{run}/health",
    }
    found = {}
    for name, path in asked.items():
        spent = []
        for _ in range(20):
            began = time.perf_counter()
            with suppress(aiohttp.ClientResponseError):  # not every event is a decision
                await _get(session, path())
                spent.append(1e3 * (time.perf_counter() - began))
        found[name] = quantiles(spent)
    return found


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {"p50": statistics.median(values), "p95": statistics.quantiles(values, n=20)[18]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median of *values* and the half of them in the middle."""
    if len(values) < 2:
        return {"median": values[0]}
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "from": low, "to": high}


# ---------------------------------------------------------------- the browser


@asynccontextmanager
async def _started(path: str) -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def _tab(browser: Browser) -> AsyncIterator[tuple[Tab, CDPSession]]:
    """Yield a tab without a cache, and its developer tools."""
    context = await browser.new_context(viewport=SIZE)  # type: ignore[arg-type]
    tab = await context.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    await tab.add_init_script(_HELPERS)
    tools = await context.new_cdp_session(tab)
    await tools.send("Performance.enable")
    yield tab, tools
    await context.close()


async def _first_paint(browser: Browser, url: str, times: int) -> dict[str, Any]:
    """Return milliseconds until sentence and chart are painted, and until the card is."""
    drawn, explained = [], []
    for _ in range(times):
        async with _tab(browser) as (tab, _):
            await tab.goto(f"{url}/")
            drawn.append(await tab.evaluate("bench.painted"))
            explained.append(await tab.evaluate("bench.explained"))
    return {**spread(drawn), "with_the_card": statistics.median(explained)}


async def _handled(browser: Browser, url: str) -> dict[str, Any]:
    """Measure clicks, moves of the pointer, drags and zooms on a page that is open."""
    figures: dict[str, Any] = {}
    async with _tab(browser) as (tab, tools):
        await tab.goto(f"{url}/")
        await tab.evaluate("bench.explained")
        figures["click_to_card_ms"] = quantiles(await _clicks(tab, 40))
        figures["pointer_move"] = await _moves(tab, tools, is_pressed=False)
        figures["pan"] = await _moves(tab, tools, is_pressed=True)
        figures["zoom"] = await _moves(tab, tools, is_wheel=True)
        await tab.keyboard.press("w")
        wide = "bench.until(() => document.querySelector('.chart[aria-busy=false] p.cell'))"
        until = await tab.evaluate(wide)
        figures["whole_run_by_key_ms"] = until - await tab.evaluate("bench.start")
        figures["click_to_card_of_the_whole_run_ms"] = quantiles(await _clicks(tab, 40))
        figures["reach_click_to_card_p95_ms"] = REACH_CLICK_P95_MS
        figures["pan_of_the_whole_run"] = await _moves(tab, tools, is_pressed=True)
    return figures


async def _clicks(tab: Tab, count: int) -> list[float]:
    """Click on bars anywhere; return milliseconds until the card of each is painted."""
    box = await tab.locator(".chart .canvas").bounding_box()
    assert box is not None
    draw, at = random.Random(1), 0.0  # noqa: S311 - no secret
    spent: list[float] = []
    while len(spent) < count:
        x = draw.uniform(box["x"] + 40, box["x"] + box["width"] * 0.75)
        if abs(x - at) < 12:  # the bar before
            continue
        at = x
        await tab.mouse.move(x - 200, box["y"] + 80)
        await tab.wait_for_timeout(APART_MS)
        before = await tab.evaluate("[bench.card(), location.hash]")
        await tab.mouse.click(x, box["y"] + 80)
        shown = (
            "([card, hash]) => bench.until(() => location.hash !== hash && bench.card() && "
            "bench.card() !== card)"
        )
        try:
            async with asyncio.timeout(PATIENCE_MS / 1e3):
                ended = await tab.evaluate(shown, before)
        except TimeoutError:  # the bar that was shown already
            continue
        spent.append(ended - await tab.evaluate("bench.start"))
    return spent


async def _moves(
    tab: Tab, tools: CDPSession, *, is_pressed: bool = False, is_wheel: bool = False
) -> dict[str, float]:
    """Move, drag or turn the wheel over the chart; return the time of a frame and of the page."""
    box = await tab.locator(".chart .canvas").bounding_box()
    assert box is not None
    x, y, count = box["x"] + box["width"] * 0.4, box["y"] + 120, 80
    await tab.mouse.move(x, y)
    await tab.evaluate(_FRAMES)
    before = await _spent(tools)
    if is_pressed:
        await tab.mouse.down()
    for number in range(count):
        if is_wheel:
            await tab.mouse.wheel(0, 40 if number % 40 < 20 else -40)
        else:
            await tab.mouse.move(x + 4 * (number if number < 40 else 80 - number), y)
    frames = await tab.evaluate("frames_ms.splice(0)")
    if is_pressed:
        await tab.mouse.up()
    after = await _spent(tools)
    return {
        "frame_p50_ms": statistics.median(frames),
        "frame_p95_ms": quantiles(frames)["p95"],
        "script_ms_a_move": (after["ScriptDuration"] - before["ScriptDuration"]) * 1e3 / count,
        "page_ms_a_move": (after["TaskDuration"] - before["TaskDuration"]) * 1e3 / count,
    }


async def _spent(tools: CDPSession) -> dict[str, float]:
    """Return the seconds that the page has spent, by kind."""
    listed = (await tools.send("Performance.getMetrics"))["metrics"]
    return {one["name"]: one["value"] for one in listed}


# ---------------------------------------------------------------- a run that is being written


async def _of_live(database: Path, browser: str | None, updates: int, tell: Tell) -> dict[str, Any]:
    """Write a run beside its page, as a daemon does, and return what each costs the other."""
    warm, bars = 200, 200 + 3 * updates
    candles = tiled(bars)
    history = [msgspec.structs.replace(bar, source=Source.STREAM) for bar in bars_of(candles)]
    config = live_config("sma_cross", ["BTCUSDT"])
    start_ms = history[warm].open_time_ms
    figures: dict[str, Any] = {"updates": updates}
    with live_parts(
        config, [archive_instrument(candles)], None, database, start_ms=start_ms
    ) as parts:
        for bar in history[:warm]:
            await parts.audit.append(parts.engine.step(bar, None))
        await parts.audit.append(parts.engine.step(parts.start(), None))
        rest = iter(history[warm:])
        async with _mounted(database) as (page, url):
            for bar in islice(rest, 3):
                await _decided(parts, bar)
            if browser is not None:
                tell(f"telling {updates:,} updates to an open page")
                async with _started(browser) as started:
                    figures |= await _told(parts, page, started, url, islice(rest, updates))
            tell(f"{READERS} pages beside {updates:,} decisions")
            figures["decision_beside_pages_ms"] = await _beside(
                parts, page, url, list(islice(rest, 2 * updates))
            )
    return figures


@asynccontextmanager
async def _mounted(database: Path) -> AsyncIterator[tuple[Page, str]]:
    """Serve *database* by this process, as a daemon serves the run that it writes."""
    with Reader.open(database) as reader:
        page = Page([database], served=reader.find("last"))
    limits = ConnectionLimits()
    application = web.Application(middlewares=[limits.middleware])
    application.add_routes([web.get("/{path:.*}", page.handle)])
    try:
        async with listening(application, limits, "127.0.0.1", 0) as url:
            yield page, url
    finally:
        await page.close()


async def _decided(parts: LiveParts, bar: Bar) -> float:
    """Take a quote and a bar; return the milliseconds from the bar to its commit."""
    await parts.audit.append(parts.engine.step(quote_of(bar), None))
    began = time.perf_counter()
    await parts.audit.append(parts.engine.step(bar, None))
    return 1e3 * (time.perf_counter() - began)


async def _told(
    parts: LiveParts, page: Page, browser: Browser, url: str, bars: Iterator[Bar]
) -> dict[str, Any]:
    """Return the time of a told step on an open page, and its memory before, on the way, after."""
    script: list[float] = []
    whole: list[float] = []
    heap: list[float] = []
    every = list(bars)
    size = max(1, len(every) // BATCHES)
    async with _tab(browser) as (tab, tools):
        await tools.send("HeapProfiler.enable")
        await tab.goto(f"{url}/")
        await tab.evaluate("bench.explained")
        heap.append(await _heap_mb(tools))
        for first in range(0, len(every), size):
            batch = every[first : first + size]
            before = await _spent(tools)
            for bar in batch:
                await _decided(parts, bar)
                page.wake()
                await asyncio.sleep(0.01)
            await _arrived(tab, batch[-1])
            after = await _spent(tools)
            for name, into in (("ScriptDuration", script), ("TaskDuration", whole)):
                into.append((after[name] - before[name]) * 1e3 / (STEPS * len(batch)))
            heap.append(await _heap_mb(tools))
    return {
        "update_script_ms": spread(script),
        "update_page_ms": spread(whole),
        "reach_update_ms": REACH_UPDATE_MS,
        "heap_mb": {"start": heap[0], "middle": heap[len(heap) // 2], "end": heap[-1]},
    }


async def _arrived(tab: Tab, bar: Bar) -> None:
    """Wait until the page shows *bar*, the newest."""
    closed = time.strftime("%H:%M", time.gmtime(bar.open_time_ms // 1_000))
    await tab.evaluate(
        "(text) => bench.until(() => "
        "document.querySelector('.legend')?.textContent.includes(text))",
        closed,
    )


async def _heap_mb(tools: CDPSession) -> float:
    await tools.send("HeapProfiler.collectGarbage")
    return float((await tools.send("Runtime.getHeapUsage"))["usedSize"]) / 1e6


async def _beside(
    parts: LiveParts, page: Page, url: str, bars: Sequence[Bar], stretches: int = 12
) -> dict[str, float]:
    """Return the p99 of a decision without and with pages, in turns, and their difference."""
    size = len(bars) // stretches
    found: dict[bool, list[float]] = {False: [], True: []}
    for number in range(stretches):
        is_watched = number % 2 == 1
        spent = []
        async with _readers(url, READERS if is_watched else 0):
            for bar in bars[number * size : (number + 1) * size]:
                spent.append(await _decided(parts, bar))
                page.wake()
                await asyncio.sleep(0.01)
        found[is_watched].append(statistics.quantiles(spent, n=100)[98])
    apart = [two - one for one, two in zip(found[False], found[True], strict=True)]
    return {
        "p99_without": statistics.median(found[False]),
        "p99_with": statistics.median(found[True]),
        "more": statistics.fmean(apart),
        "error": statistics.stdev(apart) / len(apart) ** 0.5,
    }


@asynccontextmanager
async def _readers(url: str, count: int) -> AsyncIterator[None]:
    """Keep *count* pages connected, by a process of their own that reads what they would."""
    if not count:
        yield
        return
    command = (sys.executable, "-m", __name__, url, str(count))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield
    finally:
        process.terminate()
        await process.wait()


async def _read(url: str, count: int) -> None:
    """Open *count* pages without a browser, and hear the stream."""
    async with aiohttp.ClientSession(f"{url}/api/v1/") as session:
        sockets = []
        for _ in range(count):
            row = await _whole(session)
            await _get(session, f"runs/{row['run_id']}")
            sockets.append(await session.ws_connect("stream"))
        sys.stdout.write("connected\n")
        sys.stdout.flush()
        await asyncio.gather(*(_hear(socket) for socket in sockets))


async def _hear(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


if __name__ == "__main__":
    asyncio.run(_read(sys.argv[1], int(sys.argv[2])))
