"""What a run is built of, built before the exchange is asked; and sizes that no run could have."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from tracepaper.daemon.bybit.instruments import RECORDED_INSTRUMENTS
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import STOCK, TOGETHER
from tracepaper.daemon.config.values import plain
from tracepaper.daemon.engine.filters import NOTIONAL_MOST
from tracepaper.daemon.session.build import (
    Strategies,
    build_engine,
    make_strategies,
    needs_forecaster,
    resolved,
)
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.run_record import describe_run
from tracepaper.storage.database import open_reader, sqlite_status
from tracepaper.strategies.errors import (
    CheckpointMismatch,
    ConfigInvalid,
    DataInvalid,
    StrategyFailed,
)
from tracepaper.strategies.market import Notional, scaled, unscaled
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    Category,
    FillModel,
    Instrument,
    RunKind,
)

ABSURD: Final = 100
"""So many times the largest order that was recorded is no size, whatever has changed since."""

_MADE: Final = 77
"""How a process ends that came back from the user's code, whatever that raised."""
_MAKE: Final = f"""
import os, pickle, sys
try:
    sys.path[:], config, name = pickle.load(sys.stdin.buffer)
    from tracepaper.daemon.session import user_class, user_model
    if name == config.strategy.name:
        user_class.make_own(name, config.strategy.options, config.market.symbols)
    else:
        user_model.load_model(config)
finally:
    os._exit({_MADE})
"""


def preflight(config: Config, database: Path) -> None:
    """Build all that ``run`` builds, but for what only the exchange knows.

    The checkpoint is loaded, the strategy made with its options, thresholds and sizes worked
    out; *database* is looked at, and nothing is written. Raises what the run would.
    """
    refuse_database(database)
    with usage_errors():
        forecaster = load_forecaster(config, live=True) if needs_forecaster(config) else None
        preflight_engine(config, forecaster)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Raise ``ConfigInvalid`` for a file of the configuration, or a class, that cannot be used.

    No later start mends it. What the disk or the network refused may come back: that is raised as
    it is.
    """
    try:
        yield
    except (CheckpointMismatch, DataInvalid, StrategyFailed) as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise ConfigInvalid(str(error)) from error


def refuse_class_that_exits(config: Config) -> None:
    """Raise where a class of the user's ends the process that imports and makes it.

    A check would end with it, silently and as if it held; so it is done elsewhere first.
    """
    for name in (config.strategy.name, config.model.own_class):
        if ":" in name:
            _refuse_exit(config, name)


def _refuse_exit(config: Config, name: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own words
        [sys.executable, "-B", "-c", _MAKE],
        input=pickle.dumps((sys.path, config, name)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != _MADE:
        raise ConfigInvalid(
            f"{name} ends the process that imports or makes it; let it raise instead, and put what "
            'it runs under if __name__ == "__main__".'
        )


def refuse_shares(config: Config) -> None:
    """Raise where shares are to be traded live: they come from candle files alone."""
    if config.market.asset == STOCK:
        raise ConfigInvalid(
            'market.asset = "stock" has no exchange here; trade its candle files by `tracepaper '
            "replay --data FILE`, or leave the key out."
        )


def _refuse_retraining(config: Config, forecaster: Forecaster | None) -> None:
    """Raise where a model is to be retrained and there is none, or a file is missing for it."""
    if config.model.retrain is None:
        return
    if config.model.own_class:
        raise ConfigInvalid(
            "[model] retrain trains checkpoints, and [model] class names a class of your own; "
            "leave one of them out."
        )
    if forecaster is None:
        raise ConfigInvalid(
            f"[model] retrain trains a model, and the strategy {config.strategy.name} trades none; "
            "take it out."
        )
    if config.strategy.name in TOGETHER:
        raise ConfigInvalid(
            f"[model] retrain trains models of single symbols, and {config.strategy.name} trades "
            "all of them together; take it out, and train by `tracepaper train`."
        )
    given = config.retrain
    files = [*([] if given.recipe is None else [given.recipe]), *given.data]
    for name in files:
        if not Path(name.rpartition("=")[2]).is_file():
            raise ConfigInvalid(f"[retrain] names {name}, which is no file; correct it.")


def preflight_engine(config: Config, forecaster: Forecaster | None) -> Strategies:
    """Build engine and run over instruments that would take any size.

    Returns the strategies that were made, for the run to use: a user's class is made once.
    """
    _refuse_retraining(config, forecaster)
    by_open = config.execution.model == "next_open"
    execution = FillModel.NEXT_OPEN if by_open else FillModel.QUOTE
    config = resolved(config, execution)
    instruments = [_stand_in(config, symbol) for symbol in config.market.symbols]
    strategies = make_strategies(config, forecaster)
    build_engine(
        config,
        instruments,
        execution=execution,
        period_start_ms=0,
        forecaster=forecaster,
        strategies=strategies,
    )
    describe_run(
        config,
        tuple(instruments),
        forecaster,
        kind=RunKind.LIVE,
        started_at_ms=0,
        period_start_ms=0,
    )
    if config.execution.filters != "data":
        _refuse_absurd(config)
    return strategies


def refuse_database(path: Path) -> None:
    """Raise where no run could write its database at *path*; nothing is made or changed."""
    if not (status := sqlite_status()).is_usable:
        raise ConfigInvalid(f"SQLite {status.version} is {status.verdict}; upgrade it.")
    if path.is_dir():
        raise ConfigInvalid(f"{path} is a folder; name a file with storage.url or --db.")
    if path.exists():
        open_reader(path).close()
    place = path.absolute() if path.exists() else _nearest(path.absolute().parent)
    if (place.is_file() and place != path.absolute()) or not os.access(place, os.W_OK):
        raise ConfigInvalid(
            f"{path} cannot be made or written, because of {place}; name another place with "
            "storage.url or --db."
        )


def _nearest(folder: Path) -> Path:
    """Return *folder*, or the nearest one above it that there is."""
    while not folder.exists():
        folder = folder.parent
    return folder


def refuse_size(config: Config, instrument: Instrument, price: Decimal) -> None:
    """Raise where no order of the configured size could ever be taken at about *price*.

    What changes later is no fault of the configuration: then each decision says why it is left
    unfilled.
    """
    sizing = config.sizing
    if sizing.mode != "fixed":
        if (
            scaled(sizing.notional, MONEY_DECIMALS, name="sizing.notional")
            < instrument.min_notional
        ):
            least = unscaled(instrument.min_notional, MONEY_DECIMALS)
            raise ConfigInvalid(
                f"sizing.notional {plain(sizing.notional)} is below {least}, the least order of "
                f"{instrument.id}; raise it."
            )
        return
    decimals = instrument.quantity_decimals
    quantity = scaled(sizing.quantity, decimals, name="sizing.quantity")
    smallest, largest = instrument.min_quantity, instrument.max_quantity
    beyond = None
    if quantity < smallest:
        beyond = f"below {unscaled(smallest, decimals)}, the least"
    elif largest and quantity > largest:
        beyond = f"above {unscaled(largest, decimals)}, the largest"
    if beyond is not None:
        raise ConfigInvalid(
            f"sizing.quantity {plain(sizing.quantity)} is {beyond} order of {instrument.id}; "
            "change it."
        )
    check_range(instrument, price=int(price.scaleb(instrument.price_decimals)), quantity=quantity)


def check_range(instrument: Instrument, *, price: int, quantity: int) -> None:
    """Refuse a *quantity* that at *price* is worth more than one order may be.

    Both are in the instrument's units. Money is an integer of 10⁻¹⁰ in 64 bits, and prices may
    still rise: a quarter of what fits is the most. Raises ``ConfigInvalid``.
    """
    notional = Notional.of(instrument)(price, quantity)
    if notional > NOTIONAL_MOST:
        worth, most = (f"{money // 10**MONEY_DECIMALS:,}" for money in (notional, NOTIONAL_MOST))
        raise ConfigInvalid(
            f"sizing.quantity {unscaled(quantity, instrument.quantity_decimals)} of "
            f"{instrument.id} is worth {worth} {instrument.quote_coin}, and one order may be "
            f"worth {most}; lower it."
        )


def _stand_in(config: Config, symbol: str) -> Instrument:
    """Return an instrument without limits, as fine as the configured quantity."""
    exponent = config.sizing.quantity.normalize().as_tuple().exponent
    decimals = max(-exponent, 0) if isinstance(exponent, int) else 0
    category = Category(config.market.category)
    return Instrument(category, symbol, symbol, "", 2, decimals, 8, 8, 1, 1, 0, 0, 0)


def _refuse_absurd(config: Config) -> None:
    """Refuse a fixed quantity far beyond the largest order that was ever recorded."""
    if config.sizing.mode != "fixed":
        return
    for symbol in config.market.symbols:
        largest = _largest_orders().get(symbol)
        if largest is not None and config.sizing.quantity > ABSURD * largest:
            raise ConfigInvalid(
                f"sizing.quantity {plain(config.sizing.quantity)} is more than {ABSURD} times the "
                f"largest order of {symbol} ({plain(largest)}); lower it."
            )


class _Lot(msgspec.Struct, rename="camel"):
    max_order_qty: str


class _Recorded(msgspec.Struct, rename="camel"):
    lot_size_filter: _Lot


@cache
def _largest_orders() -> dict[str, Decimal]:
    packed = RECORDED_INSTRUMENTS.read_bytes()
    known = msgspec.json.decode(gzip.decompress(packed), type=dict[str, _Recorded])
    return {symbol: Decimal(one.lot_size_filter.max_order_qty) for symbol, one in known.items()}
