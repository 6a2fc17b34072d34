"""``build`` for replay: the same engine as live, another feed, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tracepaper.daemon.building import build_engine, needs_forecaster, resolved, warmup_bars
from tracepaper.daemon.config import Config
from tracepaper.daemon.describing import describe_run
from tracepaper.daemon.engine import Engine
from tracepaper.daemon.models import load_forecaster, warnings_for
from tracepaper.replay.feed import ArchiveFeed
from tracepaper.replay.importers import Candles, FundingRates
from tracepaper.replay.instruments import archive_instrument
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecaster import Forecaster
from tracepaper.strategies.types import FillModel, Instrument, Run, RunKind


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


def build(  # noqa: PLR0913 - the options of a replay
    config: Config,
    candles: Sequence[Candles],
    *,
    started_at_ms: int,
    from_ms: int | None = None,
    until_ms: int | None = None,
    funding: Sequence[FundingRates] = (),
    path: str = "scan",
    database: Path | None = None,
    warnings: tuple[str, ...] = (),
) -> Replay:
    """Put a backtest over *candles* together; times are UTC milliseconds of market time.

    *path* is how the model goes over the bars, ``scan`` or ``step``; a checkpoint that is used
    is kept beside *database*. Raises ``ConfigInvalid`` or ``DataInvalid`` with one sentence
    where it cannot be done.
    """
    if config.execution.model == "quote":
        raise ConfigInvalid(
            "execution.model 'quote' needs quotes, which candle files lack; use next_open."
        )
    config = resolved(config, FillModel.NEXT_OPEN)
    instruments = _instruments(config, candles)
    forecaster = None
    if needs_forecaster(config):
        forecaster = load_forecaster(config, beside=database, path=path)
    feed = ArchiveFeed(
        candles,
        instruments,
        from_ms=from_ms,
        until_ms=until_ms,
        warmup_bars=warmup_bars(config, forecaster) if from_ms is not None else 0,
        funding=funding,
    )
    engine = build_engine(
        config,
        instruments,
        execution=FillModel.NEXT_OPEN,
        period_start_ms=feed.period_start_ms,
        forecaster=forecaster,
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


def _instruments(config: Config, candles: Sequence[Candles]) -> tuple[Instrument, ...]:
    """Return one instrument a symbol, with the finest decimals of all its files."""
    found: dict[str, Instrument] = {}
    for part in candles:
        made = archive_instrument(part)
        known = found.get(made.id)
        if known is None or made.price_decimals > known.price_decimals:
            found[made.id] = made if known is None else _finest(made, known)
        else:
            found[made.id] = _finest(known, made)
    interval_ms = config.market.interval_ms
    for part in candles:
        if part.interval_ms != interval_ms:
            raise ConfigInvalid(
                f"{part.path} has bars of {part.interval_ms // 60_000} minutes, but "
                f"market.interval is {config.market.interval}; change one of them."
            )
    return tuple(found.values())


def _finest(first: Instrument, second: Instrument) -> Instrument:
    """Return *first*, whose prices are finer, with decimals that also hold *second*'s volumes."""
    return msgspec.structs.replace(
        first,
        volume_decimals=max(first.volume_decimals, second.volume_decimals),
        turnover_decimals=max(first.turnover_decimals, second.turnover_decimals),
    )
