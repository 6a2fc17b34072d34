"""Makes the row of a run, and checks everything before the run opens."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.values import MODEL_INPUTS, plain
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import (
    Strategies,
    build_engine,
    coverage_warnings,
    gate_warnings,
    make_strategies,
    margin_warnings,
    needs_forecaster,
    resolved,
)
from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.daemon.session.combinations import reject_combination, traits_of
from tracepaper.daemon.session.covariates import (
    RunCovariates,
    covariates_name,
    recorded_covariates_name,
)
from tracepaper.daemon.session.models import (
    checkpoint_sha256,
    computing,
    load_forecaster,
    other_libraries,
    warnings_for,
)
from tracepaper.daemon.session.universe import listed_symbols
from tracepaper.daemon.session.user_class import user_class
from tracepaper.daemon.session.user_code import class_sha256
from tracepaper.daemon.version import version
from tracepaper.storage.database.connection import open_reader, reject_place
from tracepaper.storage.database.remedies import refusal, remedy_of, unusable
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import run_source
from tracepaper.strategies.errors import (
    CheckpointMismatch,
    ConfigInvalid,
    DataInvalid,
    StrategyFailed,
)
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import NO_SESSIONS, Sessions, month_calendar, packed, unpacked
from tracepaper.strategies.types.decisions import BLOCK_BARS, FillModel, RunRow
from tracepaper.strategies.types.market import Category, Instrument, ModelChange, RunKind
from tracepaper.strategies.units import INTERVAL_NAMES, MONEY_DECIMALS, scaled, unscaled

ENVIRONMENT_FIELDS: Final = (
    "code_version",
    "device",
    "dtype",
    "threads",
    "backend",
    "torch_version",
    "instruction_set",
    "libraries",
)
"""Fields of a run, and of each of its starts, that describe the machine and the code."""
NO_MODEL: Final = {
    "model_id": "",
    "model_sha256": "",
    "mode": "",
    "device": "",
    "dtype": "",
    "threads": 0,
    "backend": "",
}
"""Fields of a run that a forecaster has under the same names, with their values without one."""


def new_run(  # noqa: PLR0913 - the fields of a run
    config: Config,
    instruments: Sequence[Instrument],
    forecaster: Forecaster | None,
    strategies: Strategies | None = None,
    *,
    kind: RunKind,
    started_at_ms: int,
    period_start_ms: int,
    account: CarriedAccount | None = None,
    warnings: Iterable[str] = (),
    sessions: Mapping[str, Sessions] = NO_SESSIONS,
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[RunRow, Engine]:
    """Return a new run of a resolved *config* and its engine, for live runs and replays alike.

    It continues *account*, if that is given. Its id, of 8 bytes of *entropy*, makes it unique
    across databases. The warnings about model, margin, shadow accounts and gates are added after
    *warnings*.
    """
    engine = build_engine(
        config,
        instruments,
        execution=FillModel(config.execution.model),
        period_start_ms=period_start_ms,
        forecaster=forecaster,
        strategies=strategies,
        sessions=sessions,
    )
    is_stock = any(item.category is Category.STOCK for item in instruments)
    run = RunRow(
        run_id=entropy(8).hex(),
        kind=kind,
        started_at_ms=started_at_ms,
        parent_run_id=None if account is None else account.origin.run_id,
        period_start_ms=period_start_ms,
        instruments=tuple(instruments),
        interval_ms=config.market.interval_ms,
        config=config.canonical_json(),
        config_sha256=config.sha256(),
        strategy=config.strategy.name,
        gate_horizon=config.gate.horizon,
        bucket_bars=BLOCK_BARS if forecaster is None else forecaster.bucket_bars,
        strategy_sha256=strategy_sha256(config),
        warnings=(
            *warnings,
            *(() if forecaster is None else warnings_for(config, forecaster)),
            *margin_warnings(config, instruments),
            *coverage_warnings(engine),
            *gate_warnings(config, engine),
        ),
        sees_account=engine.sees_account,
        **_environment(forecaster),
        sessions=packed(sessions[item.id] for item in instruments) if is_stock else None,
        account=None if account is None else account.json(),
    )
    return run, engine


def sessions_of(run: RunRow) -> dict[str, Sessions]:
    """Return the sessions of the shares of *run*, or months, by instrument id; else none.

    Raises ``DataInvalid`` if they cannot be read.
    """
    names = [item.id for item in run.instruments]
    if run.sessions is not None:
        return dict(zip(names, unpacked(run.sessions, len(names)), strict=True))
    if run.interval_ms == MONTH_MS:
        return dict.fromkeys(names, month_calendar().sessions)
    return {}


def start_event(
    forecaster: Forecaster | None,
    *,
    warm_from: tuple[tuple[str, int], ...],
    market_ms: int,
) -> ModelChange:
    """Return the event of a start of the process; *warm_from* names the bars that warm the model.

    It has the first bar's open time for each instrument id.
    """
    return ModelChange(
        warm_from=warm_from, market_ms=market_ms, seen_ms=market_ms, **_environment(forecaster)
    )


def _environment(forecaster: Forecaster | None) -> dict[str, Any]:
    """Return the fields that name the model, code, libraries and processor."""
    torch_version, instruction_set = computing(forecaster)
    versions = libraries()
    if others := other_libraries(forecaster):
        versions = json.dumps({**json.loads(versions), **others}, sort_keys=True)
    model = {
        name: empty if forecaster is None else getattr(forecaster, name)
        for name, empty in NO_MODEL.items()
    }
    return {
        **model,
        "code_version": code_version(),
        "torch_version": torch_version,
        "instruction_set": instruction_set,
        "libraries": versions,
    }


def continues(run: RunRow, config: Config, forecaster: Forecaster | None) -> bool:
    """Return whether a start with *config* and *forecaster* resumes *run*."""
    return (
        run.config_sha256 == config.sha256()
        and is_this_code(run.code_version)
        and run.strategy_sha256 == strategy_sha256(config)
        and run.model_sha256 == ("" if forecaster is None else forecaster.model_sha256)
        and recorded_covariates_name(run.libraries) == covariates_name(forecaster)
    )


def strategy_sha256(config: Config) -> str:
    """Return the hash of a user's class, or of a strategy's checkpoint.

    It is empty for built-in strategies without a checkpoint.
    """
    name = config.strategy.name
    if MODEL_INPUTS.get(name) is DataSource.ORDER_BOOKS:
        return checkpoint_sha256(config)
    return class_sha256(user_class(name)) if ":" in name else ""


@cache
def libraries() -> str:
    """Return the versions of machine, Python and NumPy as JSON with sorted keys."""
    versions = {
        "machine": platform.machine(),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }
    return json.dumps(versions, sort_keys=True)


@cache
def code_version() -> str:
    """Return the version with its commit, and a hash of tracepaper's sources.

    ``0.1.0+g1a2b3c4d5.62bb04aab76d``: every edit changes the hash.
    """
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in ("daemon", "replay", "storage", "strategies"):
        for source in sorted((root / package).rglob("*.py")):
            digest.update(str(source.relative_to(root)).encode())
            digest.update(source.read_bytes())
    return f"{version()}.{digest.hexdigest()[:12]}"


def sources_of(code: str) -> str:
    """Return the hash of the sources in *code*, a ``code_version``: commits may share them."""
    return code.rpartition(".")[2]


def is_this_code(code: str) -> bool:
    """Return whether *code*, a ``code_version``, was of these sources, at whichever commit."""
    return sources_of(code) == sources_of(code_version())


def preflight(config: Config, database: Path) -> tuple[str, ...]:
    """Check a configuration by building all that ``run`` builds, without the exchange's data.

    Returns the warnings about its model.

    It loads the checkpoint, makes the strategy with its options, computes thresholds and sizes, and
    reads a universe's list and *database*. It writes nothing. Raises the errors that the run would
    raise, and also an error in the list, which a run that has its symbols does not read.
    """
    with usage_errors():
        reject_database(database)
        forecaster = load_forecaster(config, live=True) if needs_forecaster(config) else None
        preflight_engine(config, forecaster)
        listed_symbols(config)
    return () if forecaster is None else warnings_for(config, forecaster)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn errors in a file, database or class into ``ConfigInvalid``: no later start can succeed.

    An error that may pass stays unchanged (docs/operations.md, O1).
    """
    try:
        yield
    except (CheckpointMismatch, DataInvalid, StrategyFailed) as error:
        cause = error.__cause__
        if isinstance(cause, OSError | sqlite3.Error) and remedy_of(cause).may_heal:
            raise
        raise ConfigInvalid(str(error)) from error
    except sqlite3.Error as error:
        if remedy_of(error).may_heal:
            raise refusal("The database", error) from error
        raise ConfigInvalid(unusable("The database", error)) from error


def live_execution(config: Config) -> FillModel:
    """Return the fill model of a live run: quotes replace the models that use paths of bars."""
    is_by_bars = config.execution.model == "next_open"
    return FillModel.NEXT_OPEN if is_by_bars else FillModel.QUOTE


def preflight_engine(config: Config, forecaster: Forecaster | None) -> Strategies:
    """Check a configuration by building its engine over instruments without limits.

    Returns the strategies for the run to use, so that a user's class is constructed once.
    """
    reject_combination(traits_of(config, live=True))
    config = resolved(config, live_execution(config))
    instruments = [stand_in(config, symbol) for symbol in config.market.symbols]
    strategies = make_strategies(config, forecaster)
    if any(INTERVAL_NAMES[MONTH_MS] in strategy.frames for strategy in strategies.values()):
        raise ConfigInvalid(
            f'{config.strategy.name}.frames name "M", which only a replay supports; leave it out, '
            "or replay candles by `tracepaper replay --data FILE`."
        )
    new_run(
        config,
        instruments,
        forecaster,
        strategies,
        kind=RunKind.LIVE,
        started_at_ms=0,
        period_start_ms=0,
    )
    return strategies


def in_stages(engine: Engine, forecaster: Forecaster | None) -> bool:
    """Return whether a symbol may trade before the other symbols have their past bars.

    A portfolio needs the bars of all symbols, and some models those of another symbol.
    """
    source = run_source(forecaster)
    return not engine.is_portfolio and (source is None or isinstance(source, RunCovariates))


def reject_database(path: Path) -> None:
    """Raise ``ConfigInvalid`` if no database can be written at *path*; change nothing."""
    reject_place(path)
    if path.exists():
        open_reader(path).close()
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    if (existing.is_file() and existing != path.absolute()) or not os.access(existing, os.W_OK):
        raise ConfigInvalid(
            f"{path} cannot be created or written, because of {existing}; name another path with "
            "storage.url or --db."
        )


def reject_size(config: Config, instrument: Instrument) -> None:
    """Raise ``ConfigInvalid`` for a configured size that the exchange would reject in any order.

    If its filters change later, the configuration is not at fault; then each decision gives the
    reason why its order is not filled.
    """
    sizing, key, decimals = config.sizing, "quantity", instrument.quantity_decimals
    configured, least, most = sizing.quantity, instrument.min_quantity, instrument.max_quantity
    if sizing.mode != "fixed":
        key, decimals = "notional", MONEY_DECIMALS
        configured, least, most = sizing.notional, instrument.min_notional, 0
    size = scaled(configured, decimals, name=f"sizing.{key}")
    for is_outside, bound, words in (
        (size < least, least, "below {}, the least"),
        (most and size > most, most, "above {}, the largest"),
    ):
        if is_outside:
            raise ConfigInvalid(
                f"sizing.{key} {plain(configured)} is {words.format(unscaled(bound, decimals))} "
                f"order of {instrument.id}; change it."
            )


STAND_IN_PRICE_DECIMALS: Final = 2
STAND_IN_VOLUME_DECIMALS: Final = 8


def stand_in(config: Config, symbol: str) -> Instrument:
    """Return an instrument without limits, in the decimals of the configured quantity."""
    exponent = config.sizing.quantity.normalize().as_tuple().exponent
    decimals = max(-exponent, 0) if isinstance(exponent, int) else 0
    category = Category(config.market.category)
    return Instrument(
        category, symbol, symbol, "", STAND_IN_PRICE_DECIMALS, decimals,
        STAND_IN_VOLUME_DECIMALS, 8, 1, 1, 0, 0, 0,
    )  # fmt: skip
