"""``build`` for replay: the same engine as live, another feed, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import msgspec

from tracepaper.daemon.config.loading import DATA, Config, load_with_origins
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import (
    build_engine,
    make_strategies,
    needs_forecaster,
    resolved,
    warmup_bars,
)
from tracepaper.daemon.session.models import load_forecaster, warnings_for
from tracepaper.daemon.session.preflight import refuse_size
from tracepaper.daemon.session.run_record import describe_run
from tracepaper.replay.archive import Candles, FundingRates
from tracepaper.replay.archive.candles import resample
from tracepaper.replay.archive.instruments import archive_instrument
from tracepaper.replay.backtest.feed import ArchiveFeed
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import INTERVAL_NAMES
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Category, FillModel, Instrument, Run, RunKind


@dataclass(frozen=True)
class Replay:
    """Everything that a backtest over candle files needs, ready to run."""

    run: Run
    feed: ArchiveFeed
    engine: Engine
    forecaster: Forecaster | None
    instruments: tuple[Instrument, ...]
    config: Config

    def prober(self) -> Forecaster:
        """Return a second, fresh forecaster of the same checkpoint."""
        return load_forecaster(self.config)


def configuration(
    file: Path | None, candles: Sequence[Candles], *, category: str | None = None
) -> Config:
    """Return the configuration for *candles*.

    Symbols, category and interval come from the data where neither *file*, the environment nor
    the command line (*category*) names them. Raises ``ConfigInvalid`` where what is configured
    is not what the data hold, and says which source configured it.
    """
    first = candles[0]
    from_data: dict[str, object] = {
        "category": first.category.value,
        "symbols": list(dict.fromkeys(part.symbol for part in candles)),
    }
    if first.interval_ms in INTERVAL_NAMES:
        from_data["interval"] = INTERVAL_NAMES[first.interval_ms]
    overrides = {} if category is None else {"market": {"category": category}}
    config, origins = load_with_origins(file, overrides, data={"market": from_data})
    if ("market", "interval") not in origins:
        raise ConfigInvalid(
            f"{first.path} has bars of {first.interval_ms / 60_000:g} minutes, an interval that "
            "the exchange does not know; set market.interval to a multiple of it: 1, 3, 5, 15, "
            "30, 60 or more."
        )
    _refuse_other_symbols(config, candles, origins.get(("market", "symbols"), DATA))
    finest = max(candles, key=lambda part: part.interval_ms)
    if config.market.interval_ms < finest.interval_ms:
        raise ConfigInvalid(
            f"{origins['market', 'interval']} sets market.interval to {config.market.interval}, "
            f"which is finer than the bars of {finest.path} ({finest.interval_ms / 60_000:g} "
            "minutes); choose theirs or a multiple."
        )
    return config


def _refuse_other_symbols(config: Config, candles: Sequence[Candles], origin: str) -> None:
    """Refuse data that are not traded, and a symbol without data; name who asked for it."""
    wanted = config.market.symbols
    held = tuple(dict.fromkeys(part.symbol for part in candles))
    for part in candles:
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


def _fitted(candles: Candles, config: Config) -> Candles:
    """Return *candles* as *config* trades them: of its category, aggregated to its interval.

    A file's name says only what it was recorded from; the configuration says what is traded.
    """
    return resample(
        replace(candles, category=Category(config.market.category)), config.market.interval_ms
    )


def build(  # noqa: PLR0913 - the options of a replay
    config: Config,
    candles: Sequence[Candles],
    *,
    started_at_ms: int,
    from_ms: int | None = None,
    until_ms: int | None = None,
    funding: Sequence[FundingRates] = (),
    mode: str = "scan",
    database: Path | None = None,
    warnings: tuple[str, ...] = (),
) -> Replay:
    """Put a backtest over *candles* together; times are UTC milliseconds of market time.

    *mode* is how the model goes over the bars, ``scan`` or ``step``; a checkpoint that is used
    is kept beside *database*. Candles are aggregated to the configured interval. Raises
    ``ConfigInvalid`` or ``DataInvalid`` with one sentence where it cannot be done.
    """
    if config.execution.model == "quote":
        raise ConfigInvalid(
            "execution.model 'quote' needs quotes, which candle files lack; use next_open."
        )
    config = resolved(config, FillModel.NEXT_OPEN)
    candles = [_fitted(part, config) for part in candles]
    instruments = _instruments(candles)
    for part in candles:
        (item,) = (item for item in instruments if item.symbol == part.symbol)
        refuse_size(config, item, Decimal(int(part.open[0])).scaleb(-part.price_decimals))
    forecaster = None
    if needs_forecaster(config):
        forecaster = load_forecaster(config, beside=database, mode=mode)
    strategies = make_strategies(config, forecaster)
    feed = ArchiveFeed(
        candles,
        instruments,
        from_ms=from_ms,
        until_ms=until_ms,
        warmup_bars=warmup_bars(strategies) if from_ms is not None else 0,
        funding=funding,
        closes_together=config.market.closes_together,
    )
    engine = build_engine(
        config,
        instruments,
        execution=FillModel.NEXT_OPEN,
        period_start_ms=feed.period_start_ms,
        forecaster=forecaster,
        strategies=strategies,
    )
    run = describe_run(
        config,
        instruments,
        forecaster,
        kind=RunKind.REPLAY,
        started_at_ms=started_at_ms,
        period_start_ms=feed.period_start_ms,
        warnings=(*warnings, *(() if forecaster is None else warnings_for(config))),
    )
    return Replay(run, feed, engine, forecaster, instruments, config)


def _instruments(candles: Sequence[Candles]) -> tuple[Instrument, ...]:
    """Return one instrument a symbol, with the finest decimals of all its files."""
    found: dict[str, Instrument] = {}
    for part in candles:
        made = archive_instrument(part)
        known = found.get(made.id)
        if known is None or made.price_decimals > known.price_decimals:
            found[made.id] = made if known is None else _finest(made, known)
        else:
            found[made.id] = _finest(known, made)
    return tuple(found.values())


def _finest(first: Instrument, second: Instrument) -> Instrument:
    """Return *first*, whose prices are finer, with decimals that also hold *second*'s volumes."""
    return msgspec.structs.replace(
        first,
        volume_decimals=max(first.volume_decimals, second.volume_decimals),
        turnover_decimals=max(first.turnover_decimals, second.turnover_decimals),
    )
