"""From a configuration to an engine: the same for a live run and for a replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ExecutionSection
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.daemon.engine.state import EngineSettings
from tracepaper.daemon.session.user_class import user_class, user_strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gate_evaluator import (
    GateEvaluator,
    limits,
    threshold_of,
    thresholds_of,
)
from tracepaper.strategies.gates import regime as regime_gate
from tracepaper.strategies.market import BASE_FEES, check_money, scaled
from tracepaper.strategies.regime import RegimeBounds
from tracepaper.strategies.sizing import Sizer, Sizing, SizingMode
from tracepaper.strategies.strategy import (
    AttentionStrategy,
    Forecaster,
    Persistence,
    SmaCross,
    Strategy,
    declared_gates,
    remembered,
)
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    Calibration,
    FillModel,
    Instrument,
    Regime,
)


def needs_forecaster(config: Config) -> bool:
    """Return whether the configured strategy trades a model's forecasts."""
    if config.strategy.name == "attention":
        return True
    return ":" in config.strategy.name and user_class(config.strategy.name).needs_forecast


Strategies = Mapping[str, Strategy]
"""A strategy object for each symbol."""


def make_strategies(config: Config, forecaster: Forecaster | None) -> dict[str, Strategy]:
    """Return a new strategy object for each configured symbol.

    A user's class is imported and made here; raises ``ConfigInvalid`` or ``StrategyFailed``.
    """
    make = _strategy_maker(config, forecaster)
    return {symbol: make() for symbol in config.market.symbols}


def _strategy_maker(config: Config, forecaster: Forecaster | None) -> Callable[[], Strategy]:
    chosen = config.strategy
    match chosen.name:
        case "sma_cross":
            return lambda: SmaCross(fast=chosen.fast, slow=chosen.slow, long_only=chosen.long_only)
        case "persistence":
            return Persistence
        case "attention":
            if forecaster is None:
                raise ConfigInvalid("strategy.name 'attention' needs a model; name a checkpoint.")
            context, index = forecaster.context, horizon_index(config, forecaster)
            return lambda: AttentionStrategy(
                context=context, horizon=config.gate.horizon, horizon_index=index
            )
        case name:
            user_class(name)  # refused at once where it is none
            return lambda: _user_strategy(name, dict(chosen.options), forecaster)


def _user_strategy(
    name: str, options: dict[str, object], forecaster: Forecaster | None
) -> Strategy:
    strategy = user_strategy(user_class(name), options, known_as=name)
    if strategy.needs_forecast and forecaster is not None:
        strategy.warmup = max(strategy.warmup, forecaster.context)
    return strategy


def horizon_index(config: Config, forecaster: Forecaster | None) -> int:
    """Return which of the model's horizons the gates speak of."""
    if forecaster is None:
        return 0
    if config.gate.horizon not in forecaster.horizons:
        known = ", ".join(map(str, forecaster.horizons))
        raise ConfigInvalid(
            f"gate.horizon {config.gate.horizon} is no horizon of the model; choose from {known}."
        )
    return forecaster.horizons.index(config.gate.horizon)


def costs_for(config: Config) -> ExecutionCosts:
    """Return the trading costs of the configuration, with the category's fee as the default."""
    execution: ExecutionSection = config.execution
    fee = execution.taker_fee
    return ExecutionCosts.of(
        taker_fee=Decimal(BASE_FEES[config.market.category][0]) if fee is None else fee,
        slippage_bp=execution.slippage_bp,
        spread_bp=execution.spread_bp,
    )


def _bounds(config: Config, calibration: Calibration | None) -> RegimeBounds:
    rules = config.regime
    return RegimeBounds.between(
        mean_reversion=threshold_of(
            str(rules.mean_reversion), "recent_mass", calibration, key="regime.mean_reversion"
        ),
        momentum=threshold_of(
            str(rules.momentum), "recent_mass", calibration, key="regime.momentum"
        ),
        hysteresis=float(rules.hysteresis),
    )


def _sizer(config: Config, instrument: Instrument, index: int) -> Sizer:
    given = config.sizing
    fixed = given.mode == "fixed"
    return Sizer(
        Sizing(
            mode=SizingMode(given.mode),
            quantity=scaled(given.quantity, instrument.quantity_decimals, name="sizing.quantity")
            if fixed
            else 0,
            notional=check_money(
                scaled(given.notional, MONEY_DECIMALS, name="sizing.notional"),
                name="sizing.notional",
            ),
            scale=float(given.scale),
            target_volatility=float(given.target_volatility),
            rebalance=float(given.rebalance),
        ),
        instrument,
        horizon_index=index,
    )


def build_engine(
    config: Config,
    instruments: Sequence[Instrument],
    *,
    execution: FillModel,
    period_start_ms: int,
    forecaster: Forecaster | None,
    strategies: Strategies | None = None,
) -> Engine:
    """Put an engine together; raise ``ConfigInvalid`` where the configuration cannot serve.

    *strategies*, by symbol, have not seen a bar; new ones are made where none are given.
    """
    calibration = None if forecaster is None else forecaster.calibration
    index = horizon_index(config, forecaster)
    make = _strategy_maker(config, forecaster)
    by_id = {
        item.id: make() if strategies is None else strategies[item.symbol] for item in instruments
    }
    sections = config.model_dump()
    risk = limits(sections)
    gates = {}
    for key, strategy in by_id.items():
        names = declared_gates(strategy, by_quotes=execution is FillModel.QUOTE, risk=risk)
        thresholds = thresholds_of(
            names,
            sections,
            warmup=strategy.warmup,
            interval_ms=config.market.interval_ms,
            calibration=calibration,
        )
        gates[key] = GateEvaluator(frozenset(names), thresholds)
    judged = any(regime_gate.name in declared.gate_set.gates for declared in gates.values())
    slope = 1.0 if calibration is None else calibration.slope.get(config.gate.horizon, 1.0)
    settings = EngineSettings(
        execution=execution,
        costs=costs_for(config),
        interval_ms=config.market.interval_ms,
        cash=check_money(
            scaled(config.account.cash, MONEY_DECIMALS, name="account.cash"), name="account.cash"
        ),
        period_start_ms=period_start_ms,
        latency_ms=config.execution.latency_ms,
        fill_within_ms=round(config.execution.fill_within_ms * config.exchange.time_scale),
        flat_on_refusal=config.gate.on_refusal == "flat",
        horizon_index=index,
        slope=slope,
        regimes=frozenset(Regime(name) for name in config.gate.regimes),
        bounds=_bounds(config, calibration) if judged else None,
        risk=risk,
    )
    sizers = {item.id: _sizer(config, item, index) for item in instruments}
    return Engine(instruments, by_id, sizers, gates, settings)


def resolved(config: Config, execution: FillModel) -> Config:
    """Return *config* with the execution model that the run will use instead of ``auto``."""
    chosen = config.execution.model_copy(update={"model": execution.value})
    return config.model_copy(update={"execution": chosen})


def warmup_bars(strategies: Strategies) -> int:
    """Return how many bars before their first decision *strategies* want."""
    return max(map(remembered, strategies.values()))
