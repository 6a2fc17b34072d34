"""``Daemon``: assembles a live run; the only live module that names concrete classes.

A start locks the database, asks the exchange for its time and filters, builds the engine, resumes
the run of this configuration or opens a new one, and drives the feed.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import FILE_LABEL
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.feed.client import Cooldown, MarketDataClient
from tracepaper.daemon.feed.feed import LiveFeed
from tracepaper.daemon.feed.maintenance import CLOSED, ServerTimeReader, delisted
from tracepaper.daemon.http.access import tokens_of
from tracepaper.daemon.http.client import token_file, write_token
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.http.server import Caller, CommandRequest, HttpServer, MountedPage
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import Companion
from tracepaper.daemon.session.build import margin_rules, needs_forecaster, resolved
from tracepaper.daemon.session.child import ChildProcess, StartProcess
from tracepaper.daemon.session.combinations import reject_combination, traits_of
from tracepaper.daemon.session.covariates import CovariateReader, covariate_reader
from tracepaper.daemon.session.loop import Worker, WorkerPredictor, drive, no_forecast, nothing_new
from tracepaper.daemon.session.messenger import AppriseSender, Messenger, Send
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.parity import OFF, DailyParity
from tracepaper.daemon.session.resume import (
    OpenedRun,
    Opening,
    filters_for,
    last_instruments,
    open_run,
    was_served,
)
from tracepaper.daemon.session.rotation import rotate
from tracepaper.daemon.session.run_row import (
    in_stages,
    live_execution,
    preflight_engine,
    reject_size,
    usage_errors,
)
from tracepaper.daemon.session.supervisor import Supervisor
from tracepaper.daemon.session.universe import known_symbols, new_symbols, with_symbols
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import copied_at_s
from tracepaper.strategies.errors import ConfigInvalid, Fatal
from tracepaper.strategies.gates.declared import operator, plausible
from tracepaper.strategies.gates.evaluator import configured_threshold
from tracepaper.strategies.months import month_of, month_start
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Command,
    Event,
    FrameBar,
    Instrument,
    InstrumentChange,
    ModelChange,
    RunKind,
)
from tracepaper.strategies.units import DAY_MS, interval_start, interval_text, minute_text

ExchangeClient: Final = BybitClient
"""The client of the exchange; only ``replay.archive.download`` names it besides this module."""
PAGES: Final = "tracepaper.pages"
"""The entry-point group of the page at ``/`` of the HTTP server."""
BLOCKED: Final = "another process holds the database's write lock"
BLOCKED_LOG_EVERY_S: Final = 60.0
BLOCKED_DECLARED_S: Final = 30.0
ROTATION_DECLARED_S: Final = 120.0

log = Logger("daemon")


class Daemon:
    """One live or demo run, from its start to its orderly end.

    *opened* is called with the run once it is open, *listening* with the address of the HTTP
    server, and *watch* with every stored step. The daemon stops in order when *watch* returns
    False. All that a machine decides comes in by *clock*, *rng* (pauses between requests),
    *entropy* (ids and tokens), *start_process* (processes beside it) and *sender*, which makes what
    sends the notices.
    """

    def __init__(  # noqa: PLR0913 - what a machine decides comes in by arguments
        self,
        config: Config,
        database: Path,
        *,
        kind: RunKind,
        opened: Callable[[RunRow], None] = lambda _run: None,
        watch: Callable[[Step], bool] = lambda _step: True,
        listening: Callable[[str], None] = lambda _url: None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        start_process: StartProcess = ChildProcess,
        sender: Callable[[NotifySection], Send] = AppriseSender,
    ) -> None:
        reject_combination(traits_of(config, live=True))
        with usage_errors():
            self._config = resolved(config, live_execution(config))
        self._database = database
        self._kind = kind
        self._opened = opened
        self._watch = watch
        self._listening = listening
        self._clock = clock or SystemClock(config.exchange.time_scale)
        self._rng = rng or random.Random()  # noqa: S311 - jitter between retries, never stored
        self._entropy, self._start_process = entropy, start_process
        self._sender = sender
        self._send: Send | None = None
        self._supervisor = Supervisor(clock=self._clock, pulse=lambda: self._progress())  # noqa: PLW0108 - replaced later
        self._cooldown = Cooldown(clock=self._clock, observer=self._supervisor.declare)
        self._submitted: dict[int, asyncio.Future[int]] = {}
        self._worker = Worker("model")
        self._progress: Callable[[], object] = object  # its result changes with all progress
        self._blocked_logged_s = -math.inf
        self._is_rotating, self._rotates_from_ms = False, 0

    async def run(self) -> None:
        """Run until *watch*, a signal or a fatal error ends the run; stored steps are complete.

        Raises ``ConfigInvalid``, ``AuditUnwritable`` and other fatal errors.
        """
        audit = self._open_log()
        try:
            await self._supervisor.run(lambda: self._serve_files(audit))
        finally:
            audit.close()

    def _open_log(self) -> SqlAuditLog:
        with usage_errors():
            audit = SqlAuditLog.open(self._database)
        audit.report_waits(self._declare_blocked)
        return audit

    async def _serve_files(self, audit: SqlAuditLog) -> None:
        """Serve until the end, over the files of a database that is rotated."""
        while True:
            try:
                await self._serve(audit)
            finally:
                audit.close()
            if not self._is_rotating or self._supervisor.stopping.is_set():
                return
            await self._rotate()
            audit = self._open_log()

    async def _rotate(self) -> None:
        """Rotate the database between two runs of it; try again in a day if that is refused."""
        self._supervisor.declare("rotation", ROTATION_DECLARED_S)
        try:
            rotated = await asyncio.to_thread(rotate, self._database, is_own=True)
        except Fatal as error:
            self._rotates_from_ms = self._clock.market_ms() + DAY_MS
            log.warning("not rotated", error=str(error))
        else:
            log.info("rotated", older=str(rotated.older), run_id=rotated.origin.run_id)

    def _rotation_from(self, run: RunRow) -> float:
        """Return the first time at which a close ends this file; infinity without rotation."""
        if self._config.storage.rotate == "never":
            return math.inf
        with Reader.open(self._database) as reader:
            begun_ms = reader.begun_ms(self._kind) or run.period_start_ms
        return max(month_start(month_of(begun_ms) + 1), self._rotates_from_ms)

    def outage(self) -> str | None:
        """Return which host gives no answer, for how long, and when it is asked again, if any."""
        return self._cooldown.outage()

    def stop(self) -> None:
        """Begin an orderly stop."""
        self._supervisor.stop()

    def _declare_blocked(self) -> None:
        """Tell the watchdog that another process's lock blocks the log; warn once a minute."""
        self._supervisor.declare("database", BLOCKED_DECLARED_S)
        now_s = self._clock.network_s()
        if now_s - self._blocked_logged_s >= BLOCKED_LOG_EVERY_S:
            self._blocked_logged_s = now_s
            log.warning(BLOCKED, file=str(self._database), advice="end its transaction")

    async def _serve(self, audit: SqlAuditLog) -> None:
        config, clock, forecaster = self._config, self._clock, None
        symbols = known_symbols(config, self._kind, self._database)
        if symbols:
            config = self._config = with_symbols(config, symbols)
        # Reject wrong usage before the first request to the network.
        with usage_errors():
            if config.notify.addresses:
                self._send = self._sender(config.notify)
            tokens_of(config.http)
            if needs_forecaster(config):
                forecaster = await asyncio.to_thread(
                    load_forecaster, config, database=self._database, live=True
                )
            strategies = preflight_engine(config, forecaster)
        is_served = was_served(config, self._kind, self._database)
        async with ExchangeClient(
            config.exchange,
            clock=clock,
            rng=self._rng,
            cooldown=self._cooldown,
            is_proven=is_served,
            latest_ms=clock.market_ms,
        ) as client:
            time = ServerTimeReader(client, clock, time_scale=config.exchange.time_scale)
            server_ms = await time.first()
            clock.synchronise(server_ms)
            if symbols is not None and not symbols:
                symbols = await new_symbols(config, client, server_ms)
                config = self._config = with_symbols(config, symbols)
                with usage_errors():
                    strategies = preflight_engine(config, forecaster)
            category = Category(config.market.category)
            listed = await self._listed(client, category, is_served=is_served)
            client.prove()  # category and symbols are right: later failures are the network's
            instruments = [filters_for(config, item) for item in listed]
            if config.account.margin != "none":
                instruments = [
                    item  # the exchange answers nothing about it: it keeps what the record has
                    if item.status == CLOSED
                    else replace(item, risk_tiers=await client.risk_tiers(item))
                    for item in instruments
                ]
            for item in () if is_served else instruments:
                reject_size(config, item)  # in a resumed run each decision gives the reason
            with usage_errors():
                opened = open_run(
                    Opening(
                        config=config,
                        kind=self._kind,
                        database=self._database,
                        instruments=tuple(instruments),
                        forecaster=forecaster,
                        strategies=strategies,
                        period_start_ms=interval_start(server_ms, config.market.interval_ms),
                        wall_ms=clock.wall_ms(),
                        is_served=is_served,
                        entropy=self._entropy,
                    ),
                    audit,
                )
            await self._drive(opened, client, audit)

    async def _listed(
        self, client: MarketDataClient, category: Category, *, is_served: bool
    ) -> list[Instrument]:
        """Return the configured instruments with the exchange's present filters.

        An instrument that an earlier run traded and that is no longer listed gets the status
        closed; the others continue.
        """
        symbols = self._config.market.symbols
        if not is_served:
            return [await client.instrument(category, symbol) for symbol in symbols]
        stored = last_instruments(self._database, self._kind)
        listed = {item.symbol: item for item in await client.instruments(category)}
        instruments: list[Instrument] = []
        for symbol in symbols:
            item = listed.get(symbol)
            if item is None and (known := stored.get(symbol)) is not None:
                log.warning(
                    "instrument gone",
                    instrument=known.id,
                    advice="the exchange no longer lists it; other symbols continue",
                )
                item = delisted(known)
            instruments.append(await client.instrument(category, symbol) if item is None else item)
        return instruments

    async def _drive(self, opened: OpenedRun, client: MarketDataClient, audit: SqlAuditLog) -> None:
        config, engine, run = self._config, opened.engine, opened.run
        forecaster = opened.forecaster
        covariates = covariate_reader(config, forecaster, run.period_start_ms)
        first = await self._first_events(covariates)
        async with AsyncExitStack() as stack:
            feed = await stack.enter_async_context(self._feed(opened, client, first))
            predictor = None
            if forecaster is not None:
                predictor = WorkerPredictor(
                    forecaster,
                    opened.history,
                    self._worker,
                    period_start_ms=engine.begun_ms,
                    deadline_ms=config.model.deadline_ms,
                )
            monitor = Monitor(
                run=run,
                clock=self._clock,
                counters=feed.counters,
                newest=feed,
                obstacles=lambda: (BLOCKED,) if audit.is_blocked else (),
                halted_by=operator.name if engine.halted else engine.risk.breach,
                margin=margin_rules(config, run.instruments),
            )
            companions = [*self._companions(opened, feed, monitor)]
            monitor.companions = {each.key: each.status for each in companions if each.key}
            warm_at = partial(self._warm_at, engine, feed)
            monitor.warm_at, monitor.warming = warm_at, engine.warming
            monitor.resting_orders = engine.broker.resting_orders
            monitor.copied_s = partial(copied_at_s, self._database)
            monitor.outage = self.outage
            token = write_token(self._database, self._entropy)
            stack.callback(token_file(self._database).unlink, missing_ok=True)
            server = await stack.enter_async_context(
                HttpServer(
                    config.http,
                    tokens={FILE_LABEL: token, **tokens_of(config.http)},
                    status=monitor.status,
                    submit=lambda request, caller: self._command(feed, request, caller),
                    registry=registry_of(monitor),
                    page=lambda: _page(self._database, run.run_id, monitor.status),
                )
            )
            audit.lock.publish(server.url)
            # The run is announced only now: a start that fails earlier reports no run.
            stack.callback(lambda: audit.end(self._clock.wall_ms()))
            self._opened(run)
            _log_opened(opened)
            log.info("The page is %s/", server.url)
            self._listening(server.url)

            self._is_rotating, rotates_ms = False, self._rotation_from(run)
            self._progress = lambda: (engine.sequence, sum(feed.counters.values()))

            def watch(step: Step) -> bool:
                monitor.observe(step)
                server.wake()
                if isinstance(bar := step.event, FrameBar) and not step.accepted:
                    log.warning(
                        "frame contradicted",
                        instrument=bar.instrument,
                        interval=interval_text(bar.interval_ms),
                        open_time_ms=bar.open_time_ms,
                        advice="the run uses its own bars; the candle is in v_events, not accepted",
                    )
                if isinstance(step.event, ModelChange):
                    self._supervisor.ready()
                    _log_warming(warm_at, run)
                for each in companions:
                    each.observe(step)
                if (waiting := self._submitted.pop(id(step.event), None)) and not waiting.done():
                    waiting.set_result(step.sequence)
                if isinstance(step.event, Bar) and step.event.closed_ms >= rotates_ms:
                    self._is_rotating = self._is_rotating or not feed.is_behind()
                # The watch may stop the daemon.
                goes_on = self._watch(step)
                return goes_on and not (self._is_rotating or self._supervisor.stopping.is_set())

            predict = monitor.timed(
                no_forecast if predictor is None else predictor.predict,
                monitor.model_s,
                lambda predictions: any(each is not None for each in predictions),
            )
            for each in companions:
                await stack.enter_async_context(each.in_background(self._supervisor.stop))
            stack.push(self._supervisor.keep_failure)
            await drive(
                feed,
                predict,
                engine,
                monitor.timed(audit.append, monitor.commit_s),
                watch=watch,
                newly_known=nothing_new if covariates is None else covariates.read_new,
                is_behind=feed.is_behind,
            )

    async def _first_events(self, covariates: CovariateReader | None) -> list[Event]:
        """Return the first events of a run: the known covariates, if it reads any."""
        if covariates is None or covariates.has_rows:
            return []
        now_ms = self._clock.market_ms()
        with usage_errors():
            return [await asyncio.to_thread(covariates.initial, self._config, now_ms)]

    def _companions(
        self,
        opened: OpenedRun,
        feed: LiveFeed,
        monitor: Monitor,
    ) -> Iterator[Companion]:
        """Yield the work beside a run that its configuration selects."""
        config, clock, database = self._config, self._clock, self._database
        run, submit = opened.run, partial(self._submit, feed)
        if config.parity.daily_at != OFF:
            yield DailyParity(
                config.parity, database, run, submit, clock, start_process=self._start_process
            )
        if self._send is not None:
            # What a resumed run took over is no longer what it holds.
            known = replace(run, account=None) if opened.resumed else run
            yield Messenger(config, known, clock, self._send, frame_age_s=monitor.frame_age_s)

    def _feed(
        self, opened: OpenedRun, client: MarketDataClient, first: Sequence[Event]
    ) -> LiveFeed:
        config, clock, engine = self._config, self._clock, opened.engine
        now_ms = clock.market_ms()
        return LiveFeed(
            client=client,
            clock=clock,
            instruments=opened.instruments,
            exchange=config.exchange,
            start=replace(
                opened.known,
                lacking_frames=engine.lacking_frames,
                in_stages=in_stages(engine, opened.forecaster),
                urgent=frozenset(filter(engine.broker.is_engaged, engine.instruments)),
                first=(
                    *(InstrumentChange(item, now_ms, now_ms) for item in opened.instruments),
                    *first,
                ),
                started=lambda waiting: opened.started(clock.market_ms(), waiting),
                gather_ms=config.market.gather_ms,
                depth=config.market.depth,
                depth_every_ms=config.market.depth_every_ms,
                plausible=float(configured_threshold(plausible, config.model_dump())),
            ),
            quote_from_ms=engine.broker.quote_from_ms,
            liquidates=engine.broker.liquidates,
            marks_together=engine.broker.is_cross,
            accepted_prices=engine.accepted_prices,
        )

    def _warm_at(self, engine: Engine, feed: LiveFeed, instrument: str) -> int | None:
        """Return when the full lookback of *instrument* is present; None if it is already.

        Bars that REST is still asked for arrive long before the stream would have made them.
        """
        turn_ms = feed.warm_at(instrument)
        return engine.warm_at(instrument, self._clock.market_ms()) if turn_ms is None else turn_ms

    async def _command(self, feed: LiveFeed, request: CommandRequest, caller: Caller) -> int:
        """Submit an operator's command; return the sequence number of its step."""
        now_ms = self._clock.market_ms()
        command = Command(
            request.kind, request.note, now_ms, now_ms, request.origin, caller.token, caller.user
        )
        return await self._submit(feed, command)

    async def _submit(self, feed: LiveFeed, event: Event) -> int:
        """Submit *event*; return the sequence number of its step once that is stored."""
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._submitted[id(event)] = waiting
        await feed.submit(event)
        return await waiting


def _log_opened(opened: OpenedRun) -> None:
    """Log the warnings of a run, and its start."""
    run, engine, forecaster = opened.run, opened.engine, opened.forecaster
    for warning in run.warnings:
        log.warning(warning)
    more = {}
    if forecaster is not None:
        more = {"model_id": forecaster.model_id, "backend": forecaster.backend}
    if words := restore(run.config).chosen:
        more["chosen"] = words
    log.info(
        "run resumed" if opened.resumed else "run opened",
        run_id=run.run_id,
        kind=run.kind.value,
        strategy=run.strategy,
        instruments=[item.id for item in run.instruments],
        sequence=engine.sequence,
        **more,
    )


def _log_warming(warm_at: Callable[[str], int | None], run: RunRow) -> None:
    """Log how many instruments lack past bars, and until when they are held."""
    held = [at_ms for item in run.instruments if (at_ms := warm_at(item.id)) is not None]
    if held:
        log.warning(
            "warming up",
            instruments=len(held),
            until=minute_text(max(held)),
            advice="`tracepaper status` shows until when each is held; if the exchange has no "
            "older bars, a strategy with a shorter lookback starts sooner",
        )


def _page(database: Path, run_id: str, status: Callable[[], Mapping[str, object]]) -> MountedPage:
    """Import the entry point of ``tracepaper.pages``, and return the page that it makes."""
    for entry in metadata.entry_points(group=PAGES):
        page: MountedPage = entry.load()([database], served=run_id, status=status)
        return page
    raise ConfigInvalid("No page is installed; install tracepaper again.")
