"""Builds the engine from a configuration, for live runs and replays alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from tracepaper.daemon.broker.execution import RANGE_BARS, ExecutionCosts, MeanRange
from tracepaper.daemon.broker.exit_plans import Exits
from tracepaper.daemon.broker.rules import MarginRules, tiers_of
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import GateSection, RegimeSection
from tracepaper.daemon.config.values import MODEL_INPUTS
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.history import DAY_FRAME
from tracepaper.daemon.engine.settings import EngineSettings, EngineTerms, ModelTerms
from tracepaper.daemon.engine.state import SIZED_BY_FORECAST
from tracepaper.daemon.session.combinations import Trait, reject_combination, traits_of
from tracepaper.daemon.session.default_warmup import Warmup, default_warmup
from tracepaper.daemon.session.models import (
    make_orderbook,
    make_together,
    measures_of,
    reject_by_confidence,
    reject_limits,
)
from tracepaper.daemon.session.user_class import is_integer, make_custom, user_class
from tracepaper.daemon.session.user_model import horizons_of, model_class, user_model
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.sizing import NoTradeBand, Sizer, Sizing, SizingMode, VolatilityKind
from tracepaper.strategies.api.strategy import (
    AttentionStrategy,
    Forecaster,
    Persistence,
    PortfolioMember,
    SmaCross,
    Strategy,
    decision_bars,
    declared_gates,
    portfolio_of,
)
from tracepaper.strategies.api.timeframes import frame_bars, frames_reach, reject_frames
from tracepaper.strategies.builtin import TREND, ForecastVolatility, SizedBy, TrendStrategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.declared import (
    learned_regime,
    plausible,
    risk_book_shortfall,
    risk_volatility,
)
from tracepaper.strategies.gates.declared import regime as regime_gate
from tracepaper.strategies.gates.evaluator import (
    GateEvaluator,
    RegimeBounds,
    confidence_by,
    fitted_confidence,
    risk_thresholds,
    threshold_of,
    thresholds_of,
)
from tracepaper.strategies.gates.gate import GATES, MEASURES, GateKind, ThresholdKey
from tracepaper.strategies.sessions import NO_SESSIONS, Calendar, Sessions, calendars_of
from tracepaper.strategies.types.calibration import Calibration, coverage_share
from tracepaper.strategies.types.decisions import FillModel, Regime
from tracepaper.strategies.types.market import LEVERAGE_DECIMALS, Instrument
from tracepaper.strategies.units import (
    BASE_FEES,
    DAY_MS,
    HOUR_MS,
    INTERVAL_NAMES,
    MONEY_DECIMALS,
    RATE_DECIMALS,
    check_money,
    interval_text,
    percent,
    scaled,
    time_of,
    unscaled,
)


def needs_forecaster(config: Config) -> bool:
    """Return whether the configured strategy uses a model's forecasts.

    Every run calls this first. Raises ``ConfigInvalid`` for a combination of settings that no run
    supports, and for a strategy that needs a model where none is configured.
    """
    uses, traits = _uses_forecaster(config), traits_of(config)
    reject_combination(traits if uses else traits | {Trait.WITHOUT_MODEL})
    return uses


def _uses_forecaster(config: Config) -> bool:
    name, has_model = config.strategy.name, config.model.is_given
    needs_model = MODEL_INPUTS.get(name) in (DataSource.BARS, DataSource.CLOSES)
    needs_model = needs_model or (":" in name and user_class(name).needs_forecast)
    if needs_model and not has_model:
        raise ConfigInvalid(
            f"strategy.name '{name}' needs a model, and model.checkpoint is none; name one."
        )
    # Without a model ``trend`` sizes by closed bars and has no gates of a prediction.
    return needs_model or (name == TREND and has_model)


Strategies = Mapping[str, Strategy]
"""A strategy object for each symbol."""


def make_strategies(config: Config, forecaster: Forecaster | None) -> dict[str, Strategy]:
    """Return a new strategy object for each configured symbol, with its shadow accounts.

    The objects of a portfolio strategy are members of one object. A user's class is imported and
    constructed here; raises ``ConfigInvalid`` or ``StrategyFailed``.
    """
    strategies = _strategies_of(config, forecaster)
    if any(strategy.books for strategy in strategies.values()) and not config.market.depth:
        raise ConfigInvalid(
            f"{config.strategy.name} reads order books, and market.depth is 0; set it to the "
            "number of levels a side that the strategy needs."
        )
    for strategy in strategies.values():
        strategy.shadows = tuple(dict.fromkeys((*strategy.shadows, *config.strategy.shadows)))
    return strategies


def _strategies_of(config: Config, forecaster: Forecaster | None) -> dict[str, Strategy]:
    chosen, symbols = config.strategy, config.market.symbols
    match chosen.name:
        case "sma_cross":
            fast, slow, long_only = chosen.fast, chosen.slow, chosen.long_only
            return {
                symbol: SmaCross(fast=fast, slow=slow, long_only=long_only) for symbol in symbols
            }
        case "persistence":
            return {symbol: Persistence() for symbol in symbols}
        case "trend":
            return {symbol: _trend(config, forecaster, symbol) for symbol in symbols}
        case "attention":
            if forecaster is None:
                raise ConfigInvalid("strategy.name 'attention' needs a model; name a checkpoint.")
            context, index = forecaster.context, horizon_index(config, forecaster)
            return {
                symbol: AttentionStrategy(
                    context=context,
                    horizon=config.gate.horizon,
                    horizon_index=index,
                    measures=forecaster.measures,
                )
                for symbol in symbols
            }
        case name:
            strategies = _network_strategies(config, forecaster) or make_custom(
                name,
                dict(chosen.options),
                symbols,
                None if chosen.warmup is None else Warmup(chosen.warmup, chosen.frames_warmup),
            )
    if len(symbols) > 1 and not config.market.closes_together and portfolio_of(strategies.values()):
        raise ConfigInvalid(
            f"{name} decides for all symbols of a close at once, and market.gather_ms = 0 decides "
            "each bar alone; set it to 250, for example."
        )
    if forecaster is not None:
        for strategy in strategies.values():
            if strategy.needs_forecast:
                strategy.warmup = max(strategy.warmup, forecaster.context)
    return strategies


def _network_strategies(
    config: Config, forecaster: Forecaster | None
) -> dict[str, Strategy] | None:
    """Return the strategies of an order book or cross-asset network; None for a user's class."""
    symbols = config.market.symbols
    match MODEL_INPUTS.get(config.strategy.name):
        case DataSource.ORDER_BOOKS:
            return {symbol: make_orderbook(config) for symbol in symbols}
        case DataSource.CLOSES:
            portfolio = make_together(config, forecaster, horizon_index(config, forecaster))
            return {symbol: PortfolioMember(portfolio) for symbol in symbols}
    return None


def _trend(config: Config, forecaster: Forecaster | None, symbol: str) -> TrendStrategy:
    """Return the trend strategy of *symbol*; closes size it if the model has no volatility."""
    chosen, interval_ms = config.strategy, config.market.interval_ms
    volatility = None
    if forecaster is not None and "volatility" in forecaster.measures:
        bars = config.gate.horizon * interval_ms / max(interval_ms, HOUR_MS)
        volatility = ForecastVolatility(horizon_index(config, forecaster), bars)
    if chosen.trend_sized_by == "auto":
        sized_by = SizedBy.EWMA if volatility is None else SizedBy.FORECAST
    else:
        sized_by = SizedBy(chosen.trend_sized_by)
    if SIZED_BY_FORECAST in chosen.shadows and volatility is None:
        raise ConfigInvalid(
            f"strategy.shadows {SIZED_BY_FORECAST} needs a model that gives volatility; name one, "
            "or leave it out."
        )
    costs = fees_of_symbols(config).get(symbol, costs_for(config))
    return TrendStrategy(
        windows_ms=[length for text in chosen.windows if (length := time_of(text))],
        interval_ms=interval_ms,
        long_only=chosen.long_only,
        target_volatility=float(chosen.trend_volatility),
        sized_by=sized_by,
        volatility=volatility,
        context=None if forecaster is None else forecaster.context,
        band=NoTradeBand(costs.round_trip / 2, float(chosen.trend_risk_aversion)),
    )


def horizon_index(config: Config, forecaster: Forecaster | None) -> int:
    """Return the index of ``gate.horizon`` among the model's horizons."""
    if forecaster is None:
        return 0
    if config.gate.horizon not in forecaster.horizons:
        length_ms = config.market.interval_ms
        choices = ", ".join(
            f"{bars} ({interval_text(bars * length_ms)})" for bars in forecaster.horizons
        )
        bars, default = config.gate.horizon, GateSection.model_fields["horizon"].default
        origin = " by default" if bars == default else ""
        raise ConfigInvalid(
            f"gate.horizon is {bars}{origin}, and the model forecasts {choices} bars ahead: set "
            f"gate.horizon = {forecaster.horizons[0]}, or another of these."
        )
    return forecaster.horizons.index(config.gate.horizon)


def leverage_of(config: Config, instruments: Sequence[Instrument]) -> int | None:
    """Return the leverage of positions on margin as an integer of 10⁻²; None without margin.

    Raises ``ConfigInvalid`` if an instrument does not allow it even for the smallest position.
    """
    if config.account.margin == "none":
        return None
    leverage = scaled(config.account.leverage, LEVERAGE_DECIMALS, name="account.leverage")
    for item in instruments:
        most = tiers_of(item)[0].max_leverage
        if leverage > most:
            raise ConfigInvalid(
                f"account.leverage {config.account.leverage} is above "
                f"{unscaled(most, LEVERAGE_DECIMALS)}, the most that {item.id} allows; lower it."
            )
    return leverage


def margin_rules(config: Config, instruments: Sequence[Instrument]) -> dict[str, MarginRules]:
    """Return the margin rules of each instrument, by its id; empty without margin."""
    if (leverage := leverage_of(config, instruments)) is None:
        return {}
    default, by_symbol, rules = costs_for(config), fees_of_symbols(config), {}
    for item in instruments:
        fee = by_symbol.get(item.symbol, default).taker_fee
        rules[item.id] = MarginRules(item, leverage, fee, is_cross=config.account.margin == "cross")
    return rules


def margin_warnings(config: Config, instruments: Sequence[Instrument]) -> tuple[str, ...]:
    """Return the warnings of a run on margin about instruments without known risk tiers."""
    return tuple(
        f"one tier assumed: the risk tiers of {item.id} are not known, so its maintenance margin "
        f"is {unscaled(tiers_of(item)[0].maintenance, RATE_DECIMALS - 2)} % of any position"
        for item in instruments
        if config.account.margin != "none" and not item.risk_tiers
    )


def fees_of_symbols(config: Config) -> dict[str, ExecutionCosts]:
    """Return the trading costs of the symbols with fees in ``execution.fees``.

    Raises ``ConfigInvalid`` for a symbol that is not traded.
    """
    general = costs_for(config)
    costs = {}
    for symbol, fees in config.execution.fees.items():
        if symbol not in config.market.symbols:
            raise ConfigInvalid(
                f"execution.fees names {symbol}, which is not traded; add it to market.symbols or "
                "remove it."
            )
        rates = {
            f"{side}_fee": scaled(fee, RATE_DECIMALS, name=f"execution.fees.{symbol}.{side}")
            for side, fee in (("taker", fees.taker), ("maker", fees.maker))
            if fee is not None
        }
        costs[symbol] = replace(general, **rates)
    return costs


def costs_for(config: Config) -> ExecutionCosts:
    """Return the trading costs of the configuration; the category's fees are the default."""
    execution, per_share = config.execution, config.execution.fee_per_share
    # A fee per share replaces the default fee by notional; both apply if both are configured.
    taker, maker = BASE_FEES[config.market.category] if per_share is None else ("0", "0")

    def units(key: str, value: Decimal) -> int:  # 1 bp is 0.0001
        return scaled(value, RATE_DECIMALS, name=f"execution.{key}")

    has_impact = execution.beyond_best != "wait"
    return ExecutionCosts(
        taker_fee=units(
            "taker_fee", Decimal(taker) if execution.taker_fee is None else execution.taker_fee
        ),
        slippage=units("slippage_bp", execution.slippage_bp.scaleb(-4)),
        half_spread=units("spread_bp", execution.spread_bp.scaleb(-4) / 2),
        per_share=units("fee_per_share", per_share or Decimal(0)),
        minimum=scaled(execution.fee_minimum, MONEY_DECIMALS, name="execution.fee_minimum"),
        maker_fee=units(
            "maker_fee", Decimal(maker) if execution.maker_fee is None else execution.maker_fee
        ),
        ranges=units("spread_slippage", execution.spread_slippage),
        impact=units("impact_bp", execution.impact_bp.scaleb(-4)) if has_impact else None,
        is_root=execution.beyond_best == "square_root",
    )


def _lacks_regimes(config: Config, calibration: Calibration | None) -> bool:
    """Return whether the default thresholds of regimes are quantiles that nobody gave (N5)."""
    rules, default = config.regime, RegimeSection()
    known = calibration is not None and "recent_mass" in calibration.quantiles
    return not known and {rules.momentum, rules.mean_reversion} == {
        default.momentum,
        default.mean_reversion,
    }


def _bounds(config: Config, calibration: Calibration | None, has: frozenset[str]) -> RegimeBounds:
    rules = config.regime
    if "event_focus" not in has and rules.event_focus != RegimeSection().event_focus:
        raise ConfigInvalid("The model gives no event_focus; leave regime.event_focus out.")
    return RegimeBounds.between(
        mean_reversion=threshold_of(
            str(rules.mean_reversion), "recent_mass", calibration, key="regime.mean_reversion"
        ),
        momentum=threshold_of(
            str(rules.momentum), "recent_mass", calibration, key="regime.momentum"
        ),
        hysteresis=float(rules.hysteresis),
        event_focus=threshold_of(
            str(rules.event_focus), "event_focus", calibration, key="regime.event_focus"
        ),
    )


def _weight(config: Config, symbol: str) -> float:
    """Return the weight of *symbol* for allocation; all are equal without ``sizing.weights``."""
    weights = config.sizing.weights
    for name in weights:
        if name not in config.market.symbols:
            raise ConfigInvalid(
                f"sizing.weights names {name}, and market.symbols has "
                f"{', '.join(config.market.symbols)}; correct one of them."
            )
    if not weights:
        return 1 / len(config.market.symbols)
    return float(weights.get(symbol, 0))


def sizing_bars(config: Config) -> int:
    """Return how many bars a size depends on; 0 if it needs only the newest one."""
    sizing = config.sizing
    if sizing.mode != "volatility" or sizing.volatility == "forecast":
        return 0
    return sizing.lookback + 1


def _sizer(config: Config, instrument: Instrument, terms: ModelTerms) -> Sizer:
    keys = config.sizing
    is_fixed = keys.mode == "fixed"
    return Sizer(
        Sizing(
            mode=SizingMode(keys.mode),
            of_equity=keys.basis == "equity",
            fraction=float(keys.share),
            weight=_weight(config, instrument.symbol),
            kelly=float(keys.kelly),
            risk=float(keys.risk),
            shortfall=float(keys.shortfall),
            slope=terms.sizing_slope,
            tails=terms.tails,
            estimate=None if keys.volatility == "forecast" else VolatilityKind(keys.volatility),
            lookback=keys.lookback,
            horizon=config.gate.horizon,
            max_position=0
            if keys.max_position is None
            else scaled(keys.max_position, MONEY_DECIMALS, name="sizing.max_position"),
            max_gross=float(keys.max_gross or 0),
            quantity=scaled(keys.quantity, instrument.quantity_decimals, name="sizing.quantity")
            if is_fixed
            else 0,
            notional=check_money(
                scaled(keys.notional, MONEY_DECIMALS, name="sizing.notional"),
                name="sizing.notional",
            ),
            scale=float(keys.scale),
            target_volatility=float(keys.target_volatility),
            rebalance=None if keys.rebalance is None else float(keys.rebalance),
            confidence=terms.fitted if keys.by_confidence else None,
        ),
        instrument,
        horizon_index=terms.horizon_index,
    )


def build_engine(
    config: Config,
    instruments: Sequence[Instrument],
    *,
    execution: FillModel,
    period_start_ms: int,
    forecaster: Forecaster | None,
    strategies: Strategies | None = None,
    sessions: Mapping[str, Sessions] = NO_SESSIONS,
) -> Engine:
    """Return a new engine; raise ``ConfigInvalid`` for a configuration that cannot be used.

    *strategies*, by symbol, must not have seen a bar; by default they are made here. *sessions*, by
    instrument id, are those of shares, or months; bars are counted by them.
    """
    if strategies is None:
        horizon_index(config, forecaster)
        strategies = make_strategies(config, forecaster)
    terms = engine_terms(
        config,
        instruments,
        execution=execution,
        period_start_ms=period_start_ms,
        forecaster=forecaster,
        strategies=strategies,
        sessions=sessions,
    )
    return Engine(instruments, terms)


def engine_terms(
    config: Config,
    instruments: Sequence[Instrument],
    *,
    execution: FillModel,
    period_start_ms: int,
    forecaster: Forecaster | None,
    strategies: Strategies,
    sessions: Mapping[str, Sessions] = NO_SESSIONS,
) -> EngineTerms:
    """Return the terms of an engine.

    A setting that the run cannot use (a latency where bars fill the orders) is left out, so
    terms are equal where a changed key has no effect.
    """
    if (model := user_model(forecaster)) is not None:
        model.scale(instruments)
    reject_limits(config, forecaster)
    by_id = {item.id: strategies[item.symbol] for item in instruments}
    for strategy in by_id.values():
        reject_frames(config.strategy.name, strategy.frames, config.market.interval_ms)
    risk, days = risk_thresholds(config.model_dump()), book_days(config)
    if days and config.market.interval_ms > DAY_MS:
        raise ConfigInvalid(
            "risk.max_book_shortfall judges days, and a bar of market.interval "
            f"{INTERVAL_NAMES[config.market.interval_ms]} is longer; leave one of them out."
        )
    calendars = calendars_of(sessions, config.market.interval_ms)
    terms = model_terms(config, by_id, forecaster, execution=execution)
    if risk_volatility.name in risk:
        for strategy in by_id.values():
            if plausible.name not in strategy.gates:
                raise ConfigInvalid(
                    "risk.max_range_bp is measured with the gate plausible, which "
                    f"{config.strategy.name} does not declare; add it to its gates."
                )
    fees = fees_of_symbols(config)
    cash = scaled(config.account.cash, MONEY_DECIMALS, name="account.cash")
    # Only a model that takes its place could bring a gate that the strategy does not have now.
    gates = {gate for each in terms.gates.values() for gate in each.gate_set.gates}
    has_model, has_regime = forecaster is not None, regime_gate.name in gates
    has_judgement = any(GATES[gate].kind is GateKind.JUDGEMENT for gate in gates)
    settings = EngineSettings(
        BrokerSettings(
            execution=execution,
            leverage=leverage_of(config, instruments),
            is_cross=config.account.margin == "cross",
            costs=costs_for(config),
            costs_of={item.id: fees[item.symbol] for item in instruments if item.symbol in fees},
            cash=check_money(cash, name="account.cash"),
            exits=Exits.of(config.exits.model_dump(), forecaster),
            **_delays(config, execution, calendars),
        ),
        interval_ms=config.market.interval_ms,
        period_start_ms=period_start_ms,
        usual_ranges=float(config.execution.plausible),
        agree_within_ms=round(config.execution.agree_within_ms * config.exchange.time_scale),
        flat_on_refusal=config.gate.on_refusal == "flat" and (has_model or has_judgement),
        model=terms,
        regimes=frozenset(Regime(name) for name in config.gate.regimes if has_model or has_regime),
        learned_regimes=frozenset(
            cell
            for cell in config.gate.learned_regimes
            if has_model or learned_regime.name in gates
        ),
        hysteresis=float(config.regime.hysteresis) if has_model else 0.0,
        risk=risk,
        book_days=days,
        ignores_few_days=bool(days) and config.risk.book_too_few == "allow",
        flatten_on_breach=config.risk.on_breach == "flatten",
        calendars=calendars,
    )
    sizers = {item.id: _sizer(config, item, terms) for item in instruments}
    return EngineTerms(by_id, sizers, settings)


def _delays(
    config: Config, execution: FillModel, calendars: Mapping[str, Calendar]
) -> dict[str, Any]:
    """Return the fields of ``BrokerSettings`` on time; a bar leaves no order to expire."""
    keys, interval_ms = config.execution, config.market.interval_ms
    jitter_ms, bars = keys.latency_jitter_ms, keys.delay_bars
    latency = Latency(keys.latency_ms, jitter_ms, keys.seed if jitter_ms else 0)
    if bars:
        latency = replace(latency, bars=bars, interval_ms=interval_ms, calendars=calendars)
        if execution is FillModel.NEXT_OPEN:  # it is filled at the open itself
            latency = replace(latency, fixed_ms=0, mean_jitter_ms=0, seed=0)
    delays: dict[str, Any] = {"latency": latency}
    if execution is not FillModel.NEXT_OPEN:
        delays["fill_within_ms"] = round(keys.fill_within_ms * config.exchange.time_scale)
    return delays


def model_terms(
    config: Config, by_id: Strategies, forecaster: Forecaster | None, *, execution: FillModel
) -> ModelTerms:
    """Return the settings that depend on the model's card, for the strategies *by_id*.

    Raises ``ConfigInvalid`` if the configuration needs a calibration that the card lacks.
    """
    calibration = None if forecaster is None else forecaster.calibration
    measures = MEASURES if forecaster is None else measures_of(config, forecaster)
    sections = config.model_dump()
    fitted = fitted_confidence(sections, calibration)
    reject_by_confidence(config, fitted)
    measure, risk = confidence_by(sections, calibration, measures), risk_thresholds(sections)
    gates = {}
    for key, strategy in by_id.items():
        by_quotes = execution is FillModel.QUOTE
        names = declared_gates(
            strategy, by_quotes=by_quotes, risk=risk, measures=measures, confidence_by=measure
        )
        if not config.gate.learned_regimes:
            names.discard(learned_regime.name)
        if _lacks_regimes(config, calibration):
            names.discard(regime_gate.name)
        names.difference_update(config.gate.drop)
        thresholds = thresholds_of(
            names,
            sections,
            warmup=max(strategy.warmup, sizing_bars(config)),
            interval_ms=config.market.interval_ms,
            calibration=calibration,
        )
        gates[key] = GateEvaluator(frozenset(names), thresholds)
    has_regime = any(regime_gate.name in each.gate_set.gates for each in gates.values())
    return ModelTerms(
        gates=gates,
        horizon_index=horizon_index(config, forecaster),
        slope=1.0 if calibration is None else calibration.slope.get(config.gate.horizon, 1.0),
        bounds=_bounds(config, calibration, measures) if has_regime else None,
        cells=None if calibration is None else calibration.cells,
        fitted=fitted,
        tails=None if calibration is None else calibration.tails.get(config.gate.horizon),
        passing=_coverage(config, gates, calibration),
    )


def _coverage(
    config: Config, gates: Mapping[str, GateEvaluator], calibration: Calibration | None
) -> dict[str, float]:
    """Return the coverage from the card, by instrument, if the card counted these same gates."""
    if calibration is None or config.regime != RegimeSection():
        return {}
    shares = {}
    for key, evaluator in gates.items():
        pairs = zip(evaluator.gate_set.gates, evaluator.gate_set.thresholds, strict=True)
        thresholds = {name: at for name, at in pairs if GATES[name].kind is GateKind.JUDGEMENT}
        share = coverage_share(calibration.coverage, thresholds, config.gate.regimes)
        if share is not None:
            shares[key] = share
    return shares


def coverage_warnings(engine: Engine) -> tuple[str, ...]:
    """Return the warning of a run whose random_gate shadows use their card's coverage."""
    shares = sorted(set(engine.shadows.random_shares))
    if not shares:
        return ()
    text = " and ".join(percent(share) for share in shares)
    return (f"random_gate lets {text} of the bars through: the calibration slice's coverage",)


def unread_gate_keys(config: Config, engine: Engine) -> dict[str, list[str]]:
    """Return each changed key of ``[gate]`` that no gate of the run reads, with those that do."""
    declared = {gate for each in engine.gate_sets for gate in each.gates}
    readers = {"regimes": [regime_gate.name], "learned_regimes": [learned_regime.name]}
    for gate in GATES.values():
        if isinstance(gate.threshold, ThresholdKey) and gate.section == "gate":
            readers.setdefault(gate.threshold.name, []).append(gate.name)
        if gate.chosen_by:
            readers.setdefault("confidence_by", []).append(gate.name)
        if gate.kind is GateKind.JUDGEMENT:
            readers.setdefault("on_refusal", []).append(gate.name)
    changed = config.gate.model_dump(exclude_defaults=True)
    return {
        f"gate.{key}": sorted(names)
        for key, names in readers.items()
        if key in changed and declared.isdisjoint(names)
    }


def gate_warnings(config: Config, engine: Engine) -> tuple[str, ...]:
    """Return a warning for each changed key of ``[gate]`` that no gate of the run reads."""
    return tuple(
        f"{key} has no effect, since neither the strategy nor the model declares a gate that reads "
        f"it ({', '.join(names)}); remove the key, or see docs/decisions.md for what declares one"
        for key, names in unread_gate_keys(config, engine).items()
    )


def resolved(config: Config, execution: FillModel, *, span_ms: int | None = None) -> Config:
    """Return *config* with what a run fills in.

    These are the fill model *execution*, the windows of a trend, and the warm-up of a class that
    names none. *span_ms* is the length of a replay's data.
    """
    section = config.execution.model_copy(update={"model": execution.value})
    strategy = config.strategy.model_copy(update={"trend_windows": config.strategy.windows})
    config = config.model_copy(update={"execution": section, "strategy": strategy})
    return with_usual_warmup(config, span_ms)


def with_usual_warmup(config: Config, span_ms: int | None) -> Config:
    """Return *config* with the warm-up of a class that names none, and a model's only horizon.

    *span_ms* is as above.
    """
    config = _with_only_horizon(config)
    chosen = config.strategy
    if ":" not in chosen.name or chosen.warmup is not None:
        return config
    usual = default_warmup(user_class(chosen.name), config.market.interval_ms, span_ms)
    if usual is None:
        return config
    update = {"warmup": usual.bars, "frames_warmup": usual.frames | chosen.frames_warmup}
    return config.model_copy(update={"strategy": chosen.model_copy(update=update)})


def _with_only_horizon(config: Config) -> Config:
    """Return *config* with the horizon of a model's class that declares one, if none is set."""
    name, gate = config.model.custom_class, config.gate
    if not name or "horizon" in gate.model_fields_set:
        return config
    cls = model_class(name)
    declared = horizons_of(cls) if hasattr(cls, "horizons") else ()
    if len(declared) != 1 or not is_integer(1)(declared[0]):
        return config
    only = gate.model_copy(update={"horizon": declared[0]})
    return config.model_copy(update={"gate": only})


def book_days(config: Config) -> int:
    """Return the days of returns that the limit of the whole book looks back; 0 without it."""
    limits = risk_thresholds(config.model_dump())
    return config.risk.book_days if risk_book_shortfall.name in limits else 0


def warmup_bars(
    strategies: Strategies,
    config: Config,
    *,
    sessions: Sessions | None = None,
    makes_frames: bool = True,
) -> int:
    """Return how many bars *strategies*, sizes and costs need before the first decision.

    Higher timeframes need bars only if they are made of them (*makes_frames*), else the exchange
    has their candles. *sessions* reduce the number, because closed hours have no bars.
    """
    of_range = RANGE_BARS + 1 if config.execution.spread_slippage else 0
    of_day = MeanRange.of_day(config.market.interval_ms).bars + 1 if config.exits.uses_atr else 0
    every = strategies.values()
    base_ms, frames = config.market.interval_ms, [frame_bars(strategy) for strategy in every]
    days, is_daily = book_days(config), base_ms == DAY_MS
    if days and not is_daily:
        frames.append({DAY_FRAME: days + 1})
    of_frames = [frames_reach(bars, base_ms, sessions) for bars in frames if makes_frames]
    of_book = days + 1 if is_daily else 0
    of_size = sizing_bars(config)
    return max(of_range, of_day, of_book, of_size, *of_frames, *map(decision_bars, every))
