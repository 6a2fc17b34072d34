"""Builds a replay: the live engine with another feed and no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tracepaper.daemon.config.loading import (
    COMMAND_LINE,
    DATA,
    NOTHING,
    Config,
    Given,
    Sections,
    load_with_origins,
)
from tracepaper.daemon.config.market import MarketSection
from tracepaper.daemon.config.values import STOCK
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.history import DAY_FRAME
from tracepaper.daemon.session.build import (
    Strategies,
    book_days,
    build_engine,
    make_strategies,
    needs_forecaster,
    resolved,
    warmup_bars,
)
from tracepaper.daemon.session.longer_history import Lookback, lengthen
from tracepaper.daemon.session.models import card_of, load_forecaster
from tracepaper.daemon.session.run_row import new_run, reject_size
from tracepaper.daemon.session.user_model import user_model
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.candles import on_joint_sessions
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.backtest.feed import ArchiveFeed
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.tracks import DataLookback, with_depth
from tracepaper.storage.checkpoints import fitted_spans
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.api.timeframes import frame_bars
from tracepaper.strategies.book_features import WANTED, books_read_by
from tracepaper.strategies.builtin import TREND, windows_within
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.decisions import FillModel, RunRow
from tracepaper.strategies.types.market import Category, Event, Instrument, RunKind
from tracepaper.strategies.units import (
    DAY_MS,
    INTERVAL_NAMES,
    MINUTE_MS,
    count_of,
    duration,
    interval_text,
    iso,
    minute_text,
    time_of,
)


@dataclass(frozen=True)
class Replay:
    """A backtest over candle files, ready to run."""

    run: RunRow
    feed: ArchiveFeed
    engine: Engine
    forecaster: Forecaster | None
    instruments: tuple[Instrument, ...]
    config: Config

    def prober(self) -> Forecaster:
        """Return a second, fresh forecaster of the same model."""
        forecaster = load_forecaster(self.config)
        if (model := user_model(forecaster)) is not None:
            model.scale(self.instruments)
        return forecaster


def configuration(
    given: Given,
    data: MarketData,
    overrides: Sections = NOTHING,
    *,
    caller: str = COMMAND_LINE,
) -> Config:
    """Return the configuration for *data*: *given*, a file or sections, under *overrides*.

    Symbols, category and interval come from the data unless *given*, *overrides* or the environment
    set them. Raises ``ConfigInvalid``, naming the source of the setting, if the data contradict it.
    """
    first = data.candles[0]
    from_data: dict[str, object] = {
        "category": first.category.value,
        "symbols": list(dict.fromkeys(part.symbol for part in data.candles)),
    }
    if first.interval_ms in INTERVAL_NAMES:
        from_data["interval"] = INTERVAL_NAMES[first.interval_ms]
    config, origins = load_with_origins(given, overrides, data={"market": from_data}, caller=caller)
    if ("market", "interval") not in origins:
        raise ConfigInvalid(
            f"{first.path} has bars of {first.interval_ms / 60_000:g} minutes, an interval that "
            f"the exchange does not know; {_multiples(first.interval_ms)}."
        )
    _reject_other_assets(config, data, origins.get(("market", "asset"), DATA))
    _reject_other_symbols(config, data, origins.get(("market", "symbols"), DATA))
    finest = max(data.candles, key=lambda part: part.interval_ms)
    if config.market.interval_ms < finest.interval_ms:
        raise ConfigInvalid(
            f"{origins['market', 'interval']} sets market.interval to {config.market.interval}, "
            f"which is finer than the bars of {finest.path} ({finest.interval_ms / 60_000:g} "
            "minutes); choose theirs or a multiple."
        )
    return config


def fit_windows(config: Config, span_ms: int) -> tuple[Config, tuple[str, ...]]:
    """Halve the default trend windows of *config* until the longest is at most half of *span_ms*.

    Windows that the user set stay. Returns the configuration and a sentence for each change.
    """
    chosen = config.strategy
    if chosen.name != TREND or chosen.trend_windows is not None:
        return config, ()
    usual = [length for text in chosen.windows if (length := time_of(text))]
    fitting = windows_within(usual, span_ms, config.market.interval_ms)
    if list(fitting) == usual:
        return config, ()
    windows = tuple(map(interval_text, fitting))
    fitted = chosen.model_copy(update={"trend_windows": windows})
    reason = (
        f"the candles span {duration(span_ms)}, too little for the default"
        if fitting[-1] < usual[-1]
        else f"two bars of {interval_text(config.market.interval_ms)} are longer than some of"
    )
    sentence = (
        f"the trend uses {', '.join(windows)}, since {reason} "
        f"{', '.join(chosen.windows)}; set strategy.trend_windows to choose others"
    )
    if fitting[-1] > span_ms:
        sentence += "; these candles are too few for any, so every bar is held"
    return config.model_copy(update={"strategy": fitted}), (sentence,)


def _multiples(interval_ms: int) -> str:
    """Return advice for bars of an interval that the exchange does not offer."""
    fitting = [
        str(length // MINUTE_MS)
        for length in INTERVAL_NAMES
        if length % interval_ms == 0 and length != MONTH_MS
    ]
    if not fitting:
        return "give a file of bars of another length"
    return f"set market.interval to a multiple of it: {', '.join(fitting)} minutes"


def _reject_other_assets(config: Config, data: MarketData, origin: str) -> None:
    """Reject candles of shares where crypto is traded, and the other way round."""
    is_share = config.market.asset == STOCK
    for part in data.candles:
        if (part.category is Category.STOCK) is not is_share:
            wrong, traded = ("crypto", "shares") if is_share else ("shares", "crypto")
            raise ConfigInvalid(
                f"{part.path} holds {wrong} by its name, and {origin} trades {traded}; set "
                'market.asset = "stock" for files of shares, and replay those of crypto apart.'
            )


def _reject_other_symbols(config: Config, data: MarketData, origin: str) -> None:
    """Reject candles of symbols that are not traded, and traded symbols without candles."""
    wanted = config.market.symbols
    held = tuple(dict.fromkeys(part.symbol for part in data.candles))
    for part in data.candles:
        if part.symbol not in wanted:
            raise ConfigInvalid(
                f"{part.path} holds {part.symbol}, and {origin} trades {', '.join(wanted)}; add "
                "it to market.symbols, or give other data."
            )
    for symbol in wanted:
        if symbol not in held:
            raise ConfigInvalid(
                f"{origin} trades {symbol}, and the data hold {', '.join(held)} alone; give its "
                "candles by another --data, or take it out of market.symbols."
            )


def _traded(data: MarketData, config: Config) -> MarketData:
    """Return *data* in the category of *config*, with candles aggregated to its interval.

    A file's name only tells the market of its recording; the configuration sets the traded market.
    """
    category, interval_ms = Category(config.market.category), config.market.interval_ms
    candles = list(data.candles)
    if category is Category.STOCK and interval_ms > DAY_MS:  # so that their weeks end together
        candles = on_joint_sessions(candles)
    return replace(
        data,
        candles=[replace(part, category=category).resampled(interval_ms) for part in candles],
        frames=[replace(part, category=category) for part in data.frames],
    )


def build(
    config: Config,
    data: MarketData,
    *,
    started_at_ms: int,
    from_ms: int | None = None,
    until_ms: int | None = None,
    mode: str = "scan",
    database: Path | None = None,
    warnings: tuple[str, ...] = (),
) -> Replay:
    """Build a backtest over *data*; times are UTC milliseconds of market time.

    *mode* is how the model reads the bars: ``scan``, all in one pass, or ``step``, bar by bar. The
    run's checkpoint is copied beside *database*. Candles are aggregated to the configured interval.
    Default trend windows are shortened to fit the candles, unless *data* has candles of higher
    timeframes. Of symbols that were chosen by a rule, the other *data* are left out. Raises
    ``ConfigInvalid`` or ``DataInvalid``.
    """
    if config.execution.model == "quote":
        raise ConfigInvalid(
            "execution.model 'quote' needs quotes, which candle files lack; use next_open."
        )
    if config.market.universe is not None:
        data = data.of(config.market.symbols)
    market = with_depth(config.market, data.depth)
    if market.depth and not data.depth:
        raise ConfigInvalid(
            f"market.depth is {market.depth}, and candles hold no order books; give recorded ones "
            "by --depth, or set it to 0."
        )
    config = config.model_copy(update={"market": market})
    fitted: tuple[str, ...] = ()
    if not data.frames:
        config, fitted = fit_windows(config, data.span_ms)
    span_ms = data.span_ms
    if until_ms is not None:
        span_ms = min(span_ms, max(until_ms - int(data.opens_ms[0]), 0))
    config = resolved(config, FillModel.NEXT_OPEN, span_ms=span_ms)
    files = (*data.candles, *data.frames)
    read_as = [f"{Path(part.path).name}: {note}" for part in files for note in part.notes]
    data = _traded(data, config)
    instruments = _instruments(data, config.market)
    for part in data.candles:
        (item,) = (item for item in instruments if item.symbol == part.symbol)
        reject_size(config, item)
    forecaster = None
    if needs_forecaster(config):
        forecaster = load_forecaster(config, database=database, mode=mode)
    strategies = make_strategies(config, forecaster)
    books_read = max(
        WANTED if books_read_by(forecaster) else 0,
        *(strategy.books for strategy in strategies.values()),
    )
    feed = ArchiveFeed(
        data,
        instruments,
        from_ms=from_ms,
        until_ms=until_ms,
        warmup_bars=warmup_bars(strategies, config) if from_ms is not None else 0,
        closes_together=config.market.closes_together,
        lookback=DataLookback(_frames_read(config, strategies, data), books_read, market.depth),
    )
    run, engine = new_run(
        config,
        instruments,
        forecaster,
        strategies,
        kind=RunKind.REPLAY,
        started_at_ms=started_at_ms,
        period_start_ms=feed.period_start_ms,
        warnings=(
            *warnings,
            *(part.torn.rstrip(".") for part in data.depth if part.torn),
            *fitted,
            *read_as,
            *filter(None, map(holes_in, feed.candles)),
            *(
                ()
                if forecaster is None
                else fitted_on(
                    card_of(config, forecaster),
                    replace(data, candles=feed.candles),
                    feed.period_start_ms,
                )
            ),
        ),
        sessions=feed.sessions,
    )
    return Replay(run, feed, engine, forecaster, instruments, config)


def rehearsal(
    replay: Replay, data: MarketData, lookback: Lookback, bars: int
) -> tuple[Strategies, Engine, Iterator[Event]]:
    """Return fresh strategies of *replay* with *lookback*, their engine and its events.

    These are the first *bars* of *data*, from which *replay* was built, without a model.
    """
    config, strategies = replay.config, make_strategies(replay.config, None)
    lengthen(strategies, lookback)
    data = _traded(data.first(bars), config)
    feed = ArchiveFeed(
        data,
        replay.instruments,
        closes_together=config.market.closes_together,
        lookback=DataLookback(_frames_read(config, strategies, data)),
    )
    engine = build_engine(
        config,
        replay.instruments,
        execution=FillModel.NEXT_OPEN,
        period_start_ms=feed.period_start_ms,
        forecaster=None,
        strategies=strategies,
        sessions=feed.sessions,
    )
    return strategies, engine, feed.events()


def holes_in(candles: Candles) -> str:
    """Return a sentence on the bars that *candles* lack; empty if they lack none."""
    if not (holes := candles.gaps):
        return ""
    from_ms, until_ms = max(holes, key=lambda hole: hole[1] - hole[0])
    lacking = count_of(candles.missing, "bar")
    longest = f"{duration(until_ms - from_ms)} from {minute_text(from_ms)}"
    return f"{candles.symbol} lacks {lacking}: the longest hole is of {longest}"


def fitted_on(card: Mapping[str, Any], data: MarketData, from_ms: int) -> tuple[str, ...]:
    """Return a warning if bars from *from_ms* on lie in the time that the model was fitted on."""
    opens = data.opens_ms
    opens = opens[opens >= from_ms]
    counts = {
        span: int(np.count_nonzero((opens >= (span.from_ms or from_ms)) & (opens < span.until_ms)))
        for span in fitted_spans(card)
    }
    inside = [span for span, count in counts.items() if count]
    if not inside:
        return ()
    parts = ", ".join(f"{span.name} until {iso(span.until_ms)}" for span in inside)
    warning = (
        f"{sum(counts.values()):,} of {opens.size:,} bars lie in the time that the model was "
        f"fitted on ({parts}): what the run earned there proves nothing; the report gives its "
        f"parts, and bars from {iso(max(span.until_ms for span in counts))} on are untouched"
    )
    return (warning,)


def _frames_read(config: Config, strategies: Strategies, data: MarketData) -> dict[int, int]:
    """Return how many candles of each higher timeframe are read; reject timeframes nobody reads."""
    wanted: dict[str, int] = {}
    for strategy in strategies.values():
        wanted |= frame_bars(strategy)
    if days := book_days(config):
        wanted[DAY_FRAME] = max(days + 1, wanted.get(DAY_FRAME, 0))
    if data.frames and config.market.asset == STOCK:
        raise ConfigInvalid(
            f"{data.frames[0].path} cannot be used for shares, whose frames are made of the run's "
            "own session bars; give bars from further back."
        )
    for part in data.frames:
        if part.symbol not in config.market.symbols:
            raise ConfigInvalid(
                f"{part.path} holds {part.symbol}, which the run does not trade; leave it out."
            )
        if INTERVAL_NAMES.get(part.interval_ms) not in wanted:
            raise ConfigInvalid(
                f"{part.path} holds candles of {part.interval_ms // 60_000} minutes, and "
                f"{config.strategy.name} declares "
                f"{'frames ' + ', '.join(wanted) if wanted else 'no frames'}; leave it out, or add "
                "the frame."
            )
    return {part.interval_ms: wanted[INTERVAL_NAMES[part.interval_ms]] for part in data.frames}


def _instruments(data: MarketData, market: MarketSection) -> tuple[Instrument, ...]:
    """Return one instrument per symbol, by name, with the finest decimals of its files."""
    by_id: dict[str, Instrument] = {}
    for part in (*data.candles, *data.frames):
        instrument = archive_instrument(
            part, fractional=market.fractional, currency=market.currency
        )
        before = by_id.get(instrument.id, instrument)
        by_id[instrument.id] = msgspec.structs.replace(
            max(before, instrument, key=lambda item: item.price_decimals),
            volume_decimals=max(before.volume_decimals, instrument.volume_decimals),
            turnover_decimals=max(before.turnover_decimals, instrument.turnover_decimals),
        )
    return tuple(by_id[key] for key in sorted(by_id))
