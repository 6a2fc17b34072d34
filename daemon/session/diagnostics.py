"""The checks of ``tracepaper doctor``.

Each check imports what it needs when it runs: the cheap ones do not wait for torch or aiohttp.
"""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final

from msgspec import Struct

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.version import version
from tracepaper.strategies.errors import FeedLost, TracepaperError

DISK_LOW_BYTES: Final = 100 * 1024**2
DISK_SCARCE_BYTES: Final = 1024**3
BYTES_A_BAR: Final = 600
"""A cautious estimate for a bar with its forecast, explanation and gates."""
CLOCK_SKEW_MS: Final = 2_000
MEGABYTE: Final = 1024**2
NO_LOOPS: Final = "none (no C compiler built them; torch computes the same)"


class Verdict(StrEnum):
    """How a check ended; only ``fail`` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Diagnosis(Struct, frozen=True):
    """The result of one check; ``detail`` has the finding and, for a bad one, the remedy."""

    check: str
    verdict: Verdict
    detail: str


Finding = tuple[Verdict, str]
"""The verdict and the detail of a check."""


def diagnose(config: Config, database: Path) -> Iterator[Diagnosis]:
    """Yield the results of all offline checks; one that raises ``TracepaperError`` has failed."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("packages", _packages),
        ("sqlite", _sqlite),
        ("configuration", lambda: _configuration(config)),
        ("database", lambda: _database(database)),
        ("disk", lambda: _disk(database)),
    ]
    if config.model.custom_class:
        checks.append(("model", lambda: _user_model(config)))
    elif config.model.is_given:
        checks += [
            ("attention", lambda: _attention(config)),
            ("checkpoint", lambda: _checkpoint(config)),
        ]
    for name, check in checks:
        try:
            yield Diagnosis(name, *check())
        except TracepaperError as error:
            yield Diagnosis(name, Verdict.FAIL, str(error))


def _python() -> Finding:
    return Verdict.OK, (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


def _packages() -> Finding:
    """List the packages that tracepaper requires, with their installed versions."""
    required = [text for text in metadata.requires("tracepaper") or [] if "extra ==" not in text]
    names = [re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in required]
    try:
        installed = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    except metadata.PackageNotFoundError as error:
        return Verdict.FAIL, f"{error.name} is missing; install tracepaper again with pip"
    return Verdict.OK, f"tracepaper {version()} with {installed}"


def _sqlite() -> Finding:
    from tracepaper.storage.database.connection import sqlite_problem

    if problem := sqlite_problem():
        return Verdict.FAIL, problem
    return Verdict.OK, f"SQLite {sqlite3.sqlite_version}"


def _configuration(config: Config) -> Finding:
    market = config.market
    return Verdict.OK, (
        f"{config.strategy.name} on {', '.join(market.symbols)} ({market.category}, interval "
        f"{market.interval}), hash {config.sha256()[:12]}"
    )


def _database(database: Path) -> Finding:
    from tracepaper.storage.database.connection import open_reader, size_on_disk
    from tracepaper.storage.database.lock import holder_of
    from tracepaper.storage.database.writer import left_log

    folder = database.absolute().parent
    if not os.access(folder, os.W_OK):
        return Verdict.FAIL, f"{folder} is not writable; correct its permissions, or use --db"
    if not database.exists():
        if problem := left_log(database):
            return Verdict.FAIL, problem
        return Verdict.OK, f"{database} does not exist yet and can be created"
    open_reader(database).close()
    holder = holder_of(database)
    usage = f"in use by process {holder.pid}" if holder is not None else "not in use"
    size = size_on_disk(database) / MEGABYTE
    return Verdict.OK, f"{database}, {size:,.1f} MiB, {usage}"


def _disk(database: Path) -> Finding:
    folder = database.absolute().parent
    if not folder.is_dir():
        return Verdict.FAIL, f"{folder} does not exist; create it or use --db"
    free = shutil.disk_usage(folder).free
    bars = free // BYTES_A_BAR
    detail = f"{free / MEGABYTE:,.0f} MiB free in {folder}, room for some {bars:,} bars"
    if free < DISK_LOW_BYTES:
        return Verdict.FAIL, f"{detail}; free some space first"
    return Verdict.WARN if free < DISK_SCARCE_BYTES else Verdict.OK, detail


def _attention(config: Config) -> Finding:
    """List the available attention kernels and the one that the configured checkpoint uses."""
    from tracepaper.daemon.session.models import chosen_backend
    from tracepaper.strategies.attention import compiled, kernels

    threads = f"{config.model.threads} of {os.cpu_count()} cores' threads"
    detail = (
        f"torch {metadata.version('torch')}, kernels on the processor: "
        f"{', '.join(kernels.available('cpu'))}; the model computes attention with "
        f"{chosen_backend(config)} (backend {config.model.backend}) on {config.model.device} with "
        f"{threads}; compiled loops: {', '.join(compiled.available()) or NO_LOOPS}"
    )
    if config.model.threads > (os.cpu_count() or 1):
        return Verdict.WARN, f"{detail}; set [model] threads lower"
    return Verdict.OK, detail


def _checkpoint(config: Config) -> Finding:
    from tracepaper.daemon.session.models import load_checkpoint

    checkpoint = load_checkpoint(config)
    model = checkpoint.card["model"]
    return Verdict.OK, (
        f"{config.model.checkpoint}: {model.get('name', 'unnamed')} {checkpoint.id}, "
        f"interval {checkpoint.card['market'].get('interval', '?')}, SHA-256 equals its card's"
    )


def _user_model(config: Config) -> Finding:
    from tracepaper.daemon.session.user_model import load_model

    model = load_model(config)
    measures = ", ".join(sorted(model.measures))
    detail = f"{config.model.custom_class} {model.model_id}: {measures}, from {model.context} bars"
    return Verdict.OK, detail


async def ask_exchange(config: Config) -> list[Diagnosis]:
    """Request the exchange's time and each configured symbol once, and open the stream."""
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.daemon.feed.client import RestartBudget
    from tracepaper.daemon.session.daemon import ExchangeClient
    from tracepaper.strategies.types.market import Category

    clock = SystemClock()
    exchange = config.exchange.model_copy(update={"ban_cooldown_s": 0.0, "backoff_max_s": 1.0})
    budget = RestartBudget(limit=1, window_s=60.0)
    rng = random.Random(0)  # noqa: S311 - jitter
    diagnoses = []
    client = ExchangeClient(exchange, clock=clock, rng=rng, budget=budget)
    category = Category(config.market.category)
    try:
        async with client:
            skew_ms = await client.server_time_ms() - clock.wall_ms()
            verdict = Verdict.OK if abs(skew_ms) <= CLOCK_SKEW_MS else Verdict.WARN
            detail = f"{exchange.rest_url} answers; this machine's clock is {-skew_ms} ms ahead"
            diagnoses.append(Diagnosis("exchange", verdict, detail))
            for symbol in config.market.symbols:
                item = await client.instrument(category, symbol)
                diagnoses.append(Diagnosis(item.id, Verdict.OK, f"status {item.status}"))
    except FeedLost as error:
        diagnoses.append(Diagnosis("exchange", Verdict.FAIL, str(error)))
    except TracepaperError as error:
        diagnoses.append(Diagnosis("market", Verdict.FAIL, str(error)))
    address = client.stream_url(category)
    diagnoses.append(await _ask_stream(address, exchange.connect_timeout_s))
    return diagnoses


async def _ask_stream(address: str, timeout_s: float) -> Diagnosis:
    """Open a websocket to *address* and close it again."""
    import websockets

    try:
        async with websockets.connect(address, open_timeout=timeout_s, close_timeout=1.0):
            return Diagnosis("stream", Verdict.OK, f"{address} can be reached")
    except (OSError, websockets.WebSocketException) as error:
        return Diagnosis(
            "stream", Verdict.FAIL, f"{address} cannot be reached ({error}); check the network"
        )
