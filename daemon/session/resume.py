"""Resumes the newest run if configuration, code and model are unchanged; else opens a new one."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from tracepaper.daemon.broker.account import AccountState, posting_account
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import EngineState, decode_state, resting_orders
from tracepaper.daemon.feed.client import FeedStart
from tracepaper.daemon.feed.maintenance import rescaled
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.build import Strategies, build_engine
from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.daemon.session.covariates import RunCovariates
from tracepaper.daemon.session.loop import BarHistory
from tracepaper.daemon.session.run_row import continues, new_run, sessions_of, start_event
from tracepaper.storage.chain.starting_point import RunLookback
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import run_source
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.gates.evaluator import YARDSTICK_MEMORY
from tracepaper.strategies.other_symbol import RunOtherBars
from tracepaper.strategies.types.decisions import FillModel, Order, RunRow
from tracepaper.strategies.types.market import (
    Bar,
    CovariatesRead,
    Event,
    Instrument,
    InstrumentChange,
    ModelChange,
    RunKind,
    Side,
)
from tracepaper.strategies.units import MONEY_DECIMALS, scaled

if TYPE_CHECKING:
    from tracepaper.storage.audit import ResumePoint, SqlAuditLog

log = Logger("daemon")


@dataclass(frozen=True)
class Opening:
    """The inputs of a start.

    ``period_start_ms``: the open time of the bar that is open now. ``is_served``: a run of this
    database traded this market at this exchange before. ``strategies`` are those that the checks of
    this start have made.
    """

    config: Config
    kind: RunKind
    database: Path
    instruments: tuple[Instrument, ...]
    forecaster: Forecaster | None
    period_start_ms: int
    wall_ms: int
    strategies: Strategies | None = None
    is_served: bool = False
    entropy: Callable[[int], bytes] = secrets.token_bytes


@dataclass(frozen=True)
class OpenedRun:
    """A run that is open in the log, with an engine in the state of its last step."""

    run: RunRow
    engine: Engine
    instruments: tuple[Instrument, ...]
    forecaster: Forecaster | None
    history: BarHistory
    resumed: bool
    known: FeedStart  # the part of its feed's start that the record determines

    def started(self, market_ms: int, waiting: Collection[str] = ()) -> ModelChange:
        """Return the event of this start, with the bars that warm the model up.

        Instruments of *waiting* that lack bars before the period are left out.
        """
        lacking = self.history.lacking(self.engine.begun_ms).intersection(waiting)
        has_model = self.forecaster is not None
        warm_from = self.history.warm_from(lacking) if has_model else ()
        return start_event(self.forecaster, warm_from=warm_from, market_ms=market_ms)


def filters_for(config: Config, instrument: Instrument) -> Instrument:
    """Return *instrument* with those filters that ``execution.filters`` enforces."""
    if config.execution.filters != "data":
        return instrument
    return replace(instrument, min_quantity=0, max_quantity=0, min_notional=0)


def was_served(config: Config, kind: RunKind, database: Path) -> bool:
    """Return whether a run in *database* already traded this market at this exchange.

    If so, address, category and symbols were right before, and errors about them are retried.
    """
    configured = config.exchange.rest_url, config.market.category
    with Reader.open(database) as reader:
        stored = map(msgspec.json.decode, reader.configurations(kind))
        served = [(each["exchange"]["rest_url"], each["market"]) for each in stored]
        if (account := CarriedAccount.waiting(reader, kind)) is not None:
            served.append((account.rest_url, account.market))
    return any(
        (rest_url, market["category"]) == configured
        and set(config.market.symbols) <= set(market["symbols"])
        for rest_url, market in served
    )


def last_instruments(database: Path, kind: RunKind) -> dict[str, Instrument]:
    """Return the instruments of the newest run of *kind* in *database*, by symbol."""
    with Reader.open(database) as reader:
        last = reader.newest(kind) or CarriedAccount.waiting(reader, kind)
    return {} if last is None else {item.symbol: item for item in last.instruments}


def open_run(opening: Opening, audit: SqlAuditLog) -> OpenedRun:
    """Resume the newest run of the same kind, or open a new one that takes over its account.

    Raises ``ConfigInvalid`` if the exchange's instruments do not fit the run's decimals.
    """
    with Reader.open(opening.database) as reader:
        last = reader.newest(opening.kind)
        if last is not None and continues(last, opening.config, opening.forecaster):
            return _resume(opening, audit, reader, last)
        if last is None:
            return _open_new(opening, audit, CarriedAccount.waiting(reader, opening.kind))
        return _open_new(opening, audit, CarriedAccount.of(reader, last))


def _bar_history(opening: Opening) -> BarHistory:
    context = 1 if opening.forecaster is None else opening.forecaster.context
    return BarHistory([item.id for item in opening.instruments], context=context)


def _resume(opening: Opening, audit: SqlAuditLog, reader: Reader, run: RunRow) -> OpenedRun:
    instruments = _rescaled(opening, run.instruments)
    engine = engine_of(run, opening.config, opening.forecaster, run.instruments, opening.strategies)
    resumed = audit.resume(run.run_id)
    history = _bar_history(opening)
    restore_engine(engine, reader, resumed, history)
    recall_events(opening.forecaster, reader, run.run_id, chain(*history.by_instrument().values()))
    return OpenedRun(
        run=run,
        engine=engine,
        instruments=instruments,
        forecaster=opening.forecaster,
        history=history,
        resumed=True,
        known=replace(
            _feed_start(opening, run, engine),
            last_open_ms=dict(resumed.last_open_ms),
            recent={
                item.id: reader.bars(run.run_id, item.id, YARDSTICK_MEMORY) for item in instruments
            },
        ),
    )


def _open_new(opening: Opening, audit: SqlAuditLog, account: CarriedAccount | None) -> OpenedRun:
    """Open a new run, which takes over *account* and its orders, if there is one.

    It then begins where the run before ended, so that it catches up as a resumed run does.
    """
    instruments, period_start_ms = opening.instruments, opening.period_start_ms
    if account is not None and not account.is_of(instruments):
        _leave(account)
        account = None
    if account is not None:
        instruments = _rescaled(opening, account.instruments)
        first_ms = account.first_ms(opening.config.market.interval_ms, period_start_ms)
        period_start_ms = max(first_ms.values())
    run, engine = new_run(
        opening.config,
        instruments,
        opening.forecaster,
        opening.strategies,
        kind=opening.kind,
        started_at_ms=opening.wall_ms,
        period_start_ms=period_start_ms,
        account=account,
        entropy=opening.entropy,
    )
    take_over(engine, run)
    audit.begin(run, engine.gate_sets)
    return OpenedRun(
        run=run,
        engine=engine,
        instruments=instruments,
        forecaster=opening.forecaster,
        history=_bar_history(opening),
        resumed=False,
        known=_feed_start(opening, run, engine),
    )


def _leave(account: CarriedAccount) -> None:
    """Say that *account* is not continued; raise ``ConfigInvalid`` while something is open."""
    run_id = account.origin.run_id
    symbols = ", ".join(item.symbol for item in account.instruments)
    if account.is_open:
        raise ConfigInvalid(
            f"The account of run {run_id} has a position or an order in {symbols}, and an account "
            "keeps its symbols: close it first (FLATTEN), or begin another database with --db."
        )
    log.warning("account not continued", run_id=run_id, symbols=symbols)


def _feed_start(opening: Opening, run: RunRow, engine: Engine) -> FeedStart:
    """Return where the feed of *run* starts, as far as the state of *engine* says."""
    return FeedStart(
        run.interval_ms,
        run.period_start_ms,
        engine.bars_before,
        first_ms=engine.first_ms,
        takes_over=run.account is not None,
        # Doubted settlements are requested again; without any all since the first bar are.
        known_funding=engine.first_ms | engine.state().settled,
        is_served=opening.is_served,
    )


def take_over(engine: Engine, run: RunRow) -> None:
    """Restore *engine* to the account that *run* took over, if it did."""
    if run.account is not None:
        state = CarriedAccount.read(run.account).first_state(run)
        Restart(engine).restore(state, next_sequence=0, taken_over=True)


def _rescaled(opening: Opening, stored: tuple[Instrument, ...]) -> tuple[Instrument, ...]:
    """Return the exchange's filters in the decimals of the *stored* instruments."""
    by_id = {item.id: item for item in stored}
    instruments = []
    for fresh in opening.instruments:
        try:
            instruments.append(rescaled(fresh, by_id[fresh.id]))
        except ConfigInvalid as error:
            if not opening.is_served:
                raise
            log.warning("filters kept", error=str(error))
            instruments.append(by_id[fresh.id])
    return tuple(instruments)


def engine_lookback(engine: Engine, context: int) -> RunLookback:
    """Return the lookback of *engine*, whose model needs *context* bars; 0 without a model."""
    return RunLookback(
        {key: max(market.lookback, context) for key, market in engine.markets.items()},
        {key: books for key, of in engine.deciders.items() if (books := of.strategy.books)},
        context,
    )


def engine_after(
    reader: Reader, run: RunRow, config: Config, forecaster: Forecaster | None, after: int
) -> Engine:
    """Return an engine in the state of *run* after step *after*.

    Its bars have to be fed separately.
    """
    changes = reader.of_type(run.run_id, InstrumentChange, until=after)
    filters = {item.id: item for item in (*run.instruments, *(of.instrument for of in changes))}
    engine = engine_of(run, config, forecaster, tuple(filters.values()))
    for change in changes:
        engine.broker.settlements.change(change.instrument)
    restore_at(engine, reader, run, after)
    return engine


def engine_of(
    run: RunRow,
    config: Config,
    forecaster: Forecaster | None,
    instruments: Sequence[Instrument],
    strategies: Strategies | None = None,
) -> Engine:
    """Return a new engine for *run*, with the filters of *instruments*."""
    return build_engine(
        config,
        instruments,
        execution=FillModel(config.execution.model),
        period_start_ms=run.period_start_ms,
        forecaster=forecaster,
        strategies=strategies,
        sessions=sessions_of(run),
    )


def restore_engine(
    engine: Engine, reader: Reader, resumed: ResumePoint, history: BarHistory | None
) -> None:
    """Restore *engine* to the end of *resumed*, and *history* to the bars that its model needs.

    Raises ``InvariantBroken`` if the stored state contradicts the stored fills, or if there is
    none: the first step of every run stores a state.
    """
    run = resumed.run
    if resumed.state is None:
        raise _broken(run, f"{resumed.next_sequence} steps store no account")
    newest = resumed.next_sequence - 1
    check_state(reader, run, decode_state(resumed.state), newest)
    restore_at(engine, reader, run, newest)
    recall_bars(engine, reader, run, history)


def restore_at(engine: Engine, reader: Reader, run: RunRow, after: int) -> None:
    """Set *engine* to the state of *run* after step *after*; its bars have to be fed separately.

    Raises ``InvariantBroken`` if no state is stored.
    """
    stored = reader.state_at(run.run_id, until=after)
    if stored is None:
        raise _broken(run, f"step {after} has no state before it")
    restart = Restart(engine)
    verdicts = reader.verdicts_since(run.run_id, stored[1], until=after)
    restart.restore(
        decode_state(stored[0]).after(verdicts),
        next_sequence=after + 1,
        confirmed=reader.confirmations(run.run_id, until=after),
        since=reader.since_decided(run.run_id, until=after),
    )
    if engine.shadows.counts:
        for step in reader.steps_since_state(run.run_id, until=after):
            engine.count(step)


def recall_bars(engine: Engine, reader: Reader, run: RunRow, history: BarHistory | None) -> None:
    """Feed the newest bars of *run* into *engine* and *history* again, in the order of their times.

    A portfolio strategy sees the bars of all instruments, so their order matters.
    """
    restart = Restart(engine)
    for frame_bar in reader.frame_bars(run.run_id):
        restart.recall_frame(frame_bar)
    recalled = []
    for item in run.instruments:
        market = engine.markets[item.id]
        needed = max(market.reach, 1 if history is None else history.context)
        bars = reader.bars(run.run_id, item.id, max(needed, market.lookback))
        for bar in bars[:-needed]:
            restart.recall_range(bar)
        recalled.append(bars[-needed:])
    for bar in heapq.merge(*recalled, key=attrgetter("open_time_ms")):
        restart.recall(bar)
        if history is not None:
            history.push(bar)


def recall_events(
    model: Forecaster | None, reader: Reader, run_id: str, bars: Iterable[Bar]
) -> None:
    """Show *model* again the events of *run_id* that its rows at *bars* depend on.

    A model that reads only bars of its own instrument is left unchanged.
    """
    source, past = run_source(model), list(bars)
    if isinstance(source, RunCovariates):
        events: list[Event] = [*reader.of_type(run_id, CovariatesRead), *past]
        for event in events:
            source.see(event)
        return
    if source is None or not past:
        return
    first = min(bar.open_time_ms for bar in past)
    last = max(bar.open_time_ms for bar in past)
    after = (reader.step_opened(reader.stored_run(run_id).run_key, first) or 0) - 1
    recall_lookback(model, reader, run_id, after)
    for _, _, event, _ in reader.events(run_id, after):
        if isinstance(event, Bar) and event.open_time_ms > last:
            break
        source.see(event)


def recall_lookback(model: Forecaster | None, reader: Reader, run_id: str, until: int) -> None:
    """Show *model* the events up to step *until* that its next row depends on.

    They are the bars of another symbol, or covariates. Other models are left unchanged.
    """
    source = run_source(model)
    if isinstance(source, RunCovariates):
        for reading in reader.of_type(run_id, CovariatesRead, until=until):
            source.see(reading)
    if not isinstance(source, RunOtherBars):
        return
    for item in reader.run(run_id).instruments:
        if item.symbol == source.symbol:
            for bar in reader.bars(run_id, item.id, source.lookback, until=until):
                source.see(bar)


def check_state(reader: Reader, run: RunRow, state: EngineState, until: int) -> None:
    """Compare the *state* after step *until* with the fills, ledger and orders of *run* until then.

    The fills of a run that took over an account are added to its oldest state. Raises
    ``InvariantBroken`` at a difference.
    """
    start = reader.first_state(run.run_id)
    if start is None or start[1] > until:
        return
    opened, after = decode_state(start[0]), start[1]
    if run.account is not None:
        check_fills(reader, run, opened.account, state.account, after=after, until=until)
        return
    cash = restore(run.config).account.cash
    nothing = AccountState(scaled(cash, MONEY_DECIMALS, name="account.cash"), {})
    check_fills(reader, run, nothing, state.account, after=-1, until=until)
    stored = {_key_fields(order) for order in reader.open_orders(run.run_id, until=until)}
    if stored != {_key_fields(order) for order in resting_orders(state)}:
        raise _broken(run, f"resting orders after step {until} differ from those of its state")


def _key_fields(order: Order) -> tuple[str, str, Side, int, int]:
    """Return the fields of a resting order that are stored at each of its changes."""
    return order.order_id, order.instrument, order.side, order.quantity, order.filled


def check_fills(
    reader: Reader,
    run: RunRow,
    opened: AccountState,
    account: AccountState,
    *,
    after: int,
    until: int,
) -> None:
    """Add the fills after step *after* to the account *opened*; the sum must equal *account*.

    Raises ``InvariantBroken``.
    """
    posted = posting_account(run.instruments, opened)
    for fill in reader.fills(run.run_id, after=after, until=until):
        posted.lines[fill.instrument].post(fill)
    cash, funding = opened.cash + posted.ledger.cash, 0
    for key, holding in account.holdings.items():
        added = posted.lines[key].holding
        funding += holding.funding_paid - added.funding_paid
        if _POSTED(added) != _POSTED(holding):
            sums = f"fills add up to {added.quantity} of {key}"
            raise _broken(run, f"{sums}, but its last step holds {holding.quantity}")
    balance = reader.balance(run.run_id, until=until)
    for rows, summed in (("fills", cash - funding), ("ledger rows", balance)):
        if summed not in (None, account.cash):
            sums = f"{rows} leave cash {summed}"
            raise _broken(run, f"{sums}, but its last step has {account.cash}")


_POSTED: Final = attrgetter("quantity", "entry_notional", "realized_pnl", "fees_paid")


def _broken(run: RunRow, contradiction: str) -> InvariantBroken:
    return InvariantBroken(
        f"run {run.run_id}: its {contradiction}; run `tracepaper audit verify` and restore a backup"
    )
