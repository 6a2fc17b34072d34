"""The sections of the configuration: every key with type, range, default and meaning.

A field is all that a key takes: its name in the file, its type and range, its default (and an
example where it is absent by default), and below it the docstring that documents it. The
environment, ``config check``, ``config init`` and ``deploy/config.example.toml`` follow from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from tracepaper.daemon.config.secrets import labelled_tokens
from tracepaper.daemon.config.values import (
    BUILT_IN,
    CASH_MAX,
    MODULE_CLASS,
    NO_MODEL,
    NOTIONAL_MAX,
    ORDERBOOK,
    SQLITE,
    TOGETHER,
    TREND_WINDOWS,
    WINDOWS_MAX,
    DroppedGates,
    Duration,
    Exact,
    FeatureSchemaName,
    FillKeys,
    Fraction,
    GateThresholds,
    LearnedRegimes,
    ModelClass,
    Money,
    Positive,
    RegimeName,
    RiskThresholds,
    Section,
    ServerAddress,
    ShadowName,
    SizeBy,
    SymbolFees,
    SymbolShares,
    Threshold,
    address,
    host_with_port,
    json_object,
    loopback,
    several,
    sqlite_file,
)
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.units import BASE_FEES, DAY_MS, interval_text, time_of


class ExchangeSection(Section):
    """The exchange: addresses, timeouts and limits."""

    decides = False

    rest_url: Annotated[str, address("http", "https")] = "https://api.bybit.com"
    """Base address of the REST interface; regional hosts and `tracepaper exchange` differ."""
    stream_url: Annotated[str, address("ws", "wss")] = "wss://stream.bybit.com"
    """Base address of the websocket, to which /v5/public/CATEGORY is added."""
    time_scale: float = Field(default=1.0, gt=0, le=1_000_000)
    """Market seconds per wall second; above 1 only against the embedded exchange."""
    final_after_ms: int = Field(default=2_000, ge=0, le=600_000)
    """Market milliseconds after its close from which a candle read by REST counts as closed."""
    grace_ms: int = Field(default=5_000, ge=0, le=DAY_MS)
    """How long to wait (market ms) for a closing frame before REST is asked for the candle."""
    ahead_ms: int = Field(default=2_000, ge=100, le=600_000)
    """Messages dated further ahead than this (ms of network time) are refused and move no clock."""
    certain_s: float = Field(default=30.0, ge=0, le=3_600)
    """How long to ask (wall seconds) for a candle that REST lacks before giving it up."""
    ban_cooldown_s: float = Field(default=600.0, ge=0, le=86_400)
    """Wall seconds without a request after the exchange has refused our address."""
    data_watchdog_s: float = Field(default=30.0, gt=0, le=86_400)
    """Wall seconds without data after which a stream counts as dead."""
    ping_s: float = Field(default=20.0, gt=0, le=600)
    """Wall seconds between heartbeats."""
    requests_per_s: float = Field(default=5.0, gt=0, le=100)
    """REST requests a second, far below the exchange's own limit."""
    request_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Wall seconds before a REST request is given up."""
    connect_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Wall seconds before a connection attempt is given up."""
    backoff_max_s: float = Field(default=30.0, gt=0, le=3_600)
    """The longest full-jitter wait, wall seconds, between two attempts."""
    trades: bool = False
    """Also subscribe to public trades; they are counted and never decided on. On spot always: they
    confirm a quote that jumps."""


class StrategySection(Section):
    """The strategy that decides."""

    name: str = TREND
    """trend (direction from closed hours; the model's volatility sizes it), attention (direction
    from the model), crossasset or portfolio (all symbols of a close, by a checkpoint of that kind),
    orderbook (one symbol by its order books, by options.checkpoint), persistence, sma_cross, or a
    class of your own as module:Class."""
    fast: int = Field(default=20, ge=1, le=100_000)
    """Bars in the fast average of sma_cross."""
    slow: int = Field(default=100, ge=2, le=100_000)
    """Bars in the slow average of sma_cross; no target before so many closes are known."""
    long_only: bool = True
    """sma_cross and trend go flat instead of short."""
    trend_windows: Annotated[tuple[str, ...] | None, BeforeValidator(several)] = Field(
        default=None, examples=[TREND_WINDOWS]
    )
    """Times over which trend compares a closed hour with the mean, 1 to 8 of them: these if absent,
    which a replay or sweep halves until the longest is at most half of its candles' span."""
    trend_volatility: Annotated[Exact, Field(gt=0, le=10)] = Decimal("0.4")
    """Annual volatility that trend gives a full position: its size is this over the expected
    volatility, at most whole."""
    trend_sized_by: Literal["auto", "forecast", "ewma", "constant"] = "ewma"
    """What trend expects volatility by: ewma of closed hours, the model's forecast at gate.horizon,
    auto (the forecast where a model gives one, else ewma), or constant: whole whatever it is."""
    trend_risk_aversion: Annotated[Exact, Field(gt=0, le=1_000)] = Decimal(10)
    """Relative risk aversion: the higher, the narrower the band in which trend does not trade."""
    options: Annotated[dict[str, object], BeforeValidator(json_object)] = Field(
        default_factory=dict
    )
    """Passed to your own class unchanged. crossasset and portfolio: every, long_only, rule, shrink,
    bound, aversion and cost; orderbook: checkpoint (a folder), horizon (books) and stale_ms."""
    shadows: Annotated[tuple[ShadowName, ...], BeforeValidator(several)] = ()
    """Shadow accounts beside the strategy's own ones: ungated, random_gate, buy_and_hold,
    fixed_band, sized_by_forecast, full_size, uncorrelated, and no_GATE without that gate: no_edge,
    no_regime, no_learned_regime, no_tail, no_tail_share, no_expected_drawdown and so on."""

    @property
    def windows(self) -> tuple[str, ...]:
        """The windows of trend, shortest first."""
        return self.trend_windows or TREND_WINDOWS

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value not in BUILT_IN and not MODULE_CLASS.match(value):
            raise ValueError(f"write {', '.join(BUILT_IN)} or module:Class")
        return value

    @field_validator("trend_windows")
    @classmethod
    def _windows(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        lengths = {time_of(text) for text in value}
        if None in lengths or 0 in lengths or len(lengths) < len(value):
            raise ValueError("write different times such as 12h, 8d or 2w")
        if not 1 <= len(lengths) <= WINDOWS_MAX:
            raise ValueError(f"write 1 to {WINDOWS_MAX} times")
        return tuple(interval_text(length_ms) for length_ms in sorted(filter(None, lengths)))

    @model_validator(mode="after")
    def _fast_below_slow(self) -> StrategySection:
        if self.fast >= self.slow:
            raise ValueError(f"[strategy] fast = {self.fast} must be below slow = {self.slow}")
        return self


class ExplanationSection(Section):
    """How every bar's decision is explained in the record; ``explain --method`` asks for others."""

    method: Literal["rollout", "norm", "gradient", "flow", "relevance"] = "rollout"
    """rollout; norm; gradient or flow, of models over whole windows alone; relevance, in which case
    the other keys are of the rollout that the gates measure."""
    fusion: Literal["mean", "max", "min"] = "mean"
    """How rollout fuses the heads: mean, max or min."""
    residual: Fraction = Decimal("0.5")
    """Share of the residual stream."""
    start_layer: int = Field(default=0, ge=0, le=255)
    """The lowest layer that is taken in."""
    discard: Annotated[Exact, Field(ge=0, lt=1)] = Decimal(0)
    """Share of each layer's smallest entries that rollout drops, of models over whole windows."""
    head_weights: str = Field(default="", pattern=r"^$|^[0-9][0-9.,]*(/[0-9][0-9.,]*)*$")
    """1,0,0,0 to weigh the heads of rollout so, or 1,0/0,1 for each layer; all alike if empty."""


class ModelSection(ModelClass):
    """The model whose forecasts are traded: a checkpoint, or a class of your own."""

    options: Annotated[dict[str, object], BeforeValidator(json_object)] = Field(
        default_factory=dict
    )
    """Passed to your own class unchanged."""
    files: Annotated[tuple[str, ...], BeforeValidator(several)] = ()
    """Files that your own class reads, relative to this file; their content is part of its id."""
    checkpoint: str = Field(default="default", min_length=1)
    """default (flash-15m at 15 minutes, else flash-1m), another bundled one that `tracepaper
    models` lists, a folder, or none: without."""
    deadline_ms: int = Field(default=1_000, ge=1, le=600_000)
    """Time limit of one forecast (wall ms); a later forecast is dropped and the bar is held."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of the model; decisions are bit-equal only on an equal number."""
    backend: str = Field(default="auto", pattern=r"^[a-z][a-z0-9_]*$")
    """auto, or one of the attention backends that `tracepaper doctor` lists."""
    covariates: str | None = Field(default=None, min_length=1, examples=["news.csv"])
    """CSV or Parquet with the columns by time that a network was trained with (--covariates). The
    path is looked up beside this file, then in the working folder. A live run reads the file again
    as it grows."""
    dropout_passes: int = Field(default=0, ge=0, le=1_000)
    """Passes with dropout at each bar, whose means' spread gate.max_dropout_spread judges (2 or
    more, of a checkpoint trained with dropout); 0: none."""
    retrain: Duration | None = Field(default=None, examples=["7d"])
    """Market time from one retraining in service to the next, by [retrain]; never if absent."""
    explanation: Annotated[ExplanationSection, BeforeValidator(json_object)] = Field(
        default_factory=ExplanationSection
    )
    """How every decision is explained in the record: method (rollout, norm, gradient, flow,
    relevance), fusion (mean, max, min), residual, start_layer, discard, head_weights ("1,0,0,0").
    """

    @property
    def by_relevance(self) -> bool:
        """Whether a decision's explanation is its relevance."""
        return self.explanation.method == "relevance"

    @property
    def measured(self) -> ExplanationSection:
        """What gates measure: the explanation, beside relevance a rollout."""
        update = {"method": "rollout"} if self.by_relevance else {}
        return self.explanation.model_copy(update=update)

    @property
    def custom_class(self) -> str:
        """The name of a user's own class; empty for a checkpoint."""
        return getattr(self, "class") or ""

    @property
    def is_given(self) -> bool:
        """Whether there is a model at all."""
        return bool(self.custom_class) or self.checkpoint != NO_MODEL

    @field_validator("files")
    @classmethod
    def _files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value) or not all(value):
            raise ValueError("name each file once")
        return value

    @model_validator(mode="after")
    def _of_a_class(self) -> ModelSection:
        if (self.options or self.files) and not self.custom_class:
            raise ValueError("[model] options and files are a class's; name it with [model] class")
        if self.custom_class and (self.explanation != ExplanationSection() or self.dropout_passes):
            name = "dropout_passes" if self.dropout_passes else "explanation"
            raise ValueError(f"[model] {name} is a checkpoint's; take it out for a class")
        return self


class RetrainSection(Section):
    """How a model is trained in service, where [model] retrain says when."""

    decides = False

    at: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d$", examples=["03:30"])
    """UTC time of day, such as 03:30, from which on a retraining that is due begins."""
    recipe: str | None = Field(default=None, min_length=1, examples=["recipe.toml"])
    """Recipe of `tracepaper train`; if absent the running model's own card."""
    data: Annotated[tuple[str, ...], BeforeValidator(several)] = ()
    """Archives or files of candles to learn from beside the database's own bars."""
    judge: Duration = "28d"
    """The newest market time, which is kept untouched: both models are judged on it."""
    min_days: int = Field(default=14, ge=2, le=3_650)
    """Fewer judged days prove nothing: nothing is promoted, and no error is spent."""
    min_bars: int = Field(default=20_000, ge=100, le=100_000_000)
    """Bars of each symbol before the judged time; with fewer nothing is trained."""
    alpha: Annotated[Exact, Field(gt=0, le=Decimal("0.5"))] = Decimal("0.05")
    """Chance of ever promoting a model that is no better, over all judgements together."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of the training process."""
    nice: int = Field(default=19, ge=0, le=19)
    """Niceness of that process; at 19 it runs only on an idle machine (SCHED_IDLE)."""
    time_limit: Duration = "6h"
    """Wall time after which a training is stopped and counts as failed."""
    memory_mb: int | None = Field(default=None, ge=256, le=4_000_000, examples=[1_500])
    """Memory limit of that process (MB); no limit if absent."""
    keep: int = Field(default=3, ge=0, le=1_000)
    """Refused candidates that are kept; promoted ones are kept beside the database for ever."""
    folder: str | None = Field(default=None, min_length=1, examples=["/var/lib/tracepaper/retrain"])
    """Working folder; if absent the database's name with .retrain, beside the database."""


class ParitySection(Section):
    """A daily replay of the run's last day from its own record, in a process behind the daemon."""

    decides = False

    daily_at: str = Field(default="00:10", pattern=r"^(([01]\d|2[0-3]):[0-5]\d|off)$")
    """UTC time of day, such as 00:10, after which the last UTC day is replayed; off: never."""
    time_limit: Duration = "6h"
    """Wall time after which a replay is stopped and counts as failed."""


class FeaturesSection(FeatureSchemaName):
    """What a model of your own sees of each bar; a checkpoint's features are on its card."""

    @property
    def custom_schema(self) -> str | None:
        """The schema that is named here, if one is."""
        named: str | None = self.__dict__["schema"]
        return named


class GateSection(GateThresholds):
    """What a forecast must pass; thresholds are numbers, or qX of the model's calibration slice."""

    regimes: Annotated[tuple[RegimeName, ...], BeforeValidator(several)] = get_args(RegimeName)
    """Regimes in which trading is allowed: MOMENTUM, MIXED, MEAN_REVERSION."""
    learned_regimes: LearnedRegimes = ()
    """Regimes of the network's own (1: calmest) in which trading is allowed; empty: no gate."""
    horizon: int = Field(default=30, ge=1, le=100_000)
    """Bars, or a time such as "30m", ahead of which direction and edge speak; the model must
    forecast them. If absent, what the checkpoint's card was calibrated at."""
    confidence_by: Literal["auto", "entropy", "calibrated", "margin"] = "auto"
    """What the gate of confidence compares: the entropy of attention, the fitted probability that
    the sign is right, the margin of the directions, or auto: what the model's card chose."""
    on_refusal: Literal["hold", "flat"] = "hold"
    """What a refused judgement does to an open position."""
    drop: DroppedGates = ()
    """Gates of judgement and of risk that are left out, such as shifted."""

    @field_validator("regimes")
    @classmethod
    def _regimes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one regime, and each once")
        return tuple(sorted(value, key=get_args(RegimeName).index))


class RegimeSection(Section):
    """Where attention must lie to be called recent (MOMENTUM) or distant (MEAN_REVERSION)."""

    momentum: Threshold = "q0.6667"
    """MOMENTUM from this recent mass on."""
    mean_reversion: Threshold = "q0.3333"
    """MEAN_REVERSION up to this recent mass."""
    hysteresis: Fraction = Decimal("0.1")
    """Share of the distance between the two that must be crossed before the regime changes."""


class SizingSection(Section):
    """From an allowed direction to a quantity."""

    mode: SizeBy = "notional"
    """notional, fixed (quantity), equity (a fraction), allocation (weights), tanh (of the return),
    volatility, kelly, risk (to the stop), expected_shortfall or network_allocation (its own)."""
    quantity: Positive = Decimal(1)
    """Quantity in base coin for fixed."""
    notional: Annotated[Money, Field(gt=0, le=NOTIONAL_MAX)] = Decimal(10_000)
    """Quote currency of a full position for notional, tanh and volatility."""
    basis: Literal["notional", "equity"] = "notional"
    """What a full position of tanh and volatility is: notional, or fraction of equity."""
    fraction: Annotated[Exact, Field(gt=0, le=100)] = Decimal(1)
    """Share of equity in a full position by equity; the cap of kelly and expected_shortfall."""
    weights: SymbolShares = Field(default_factory=dict)
    """Share of each symbol for allocation; equal shares if absent."""
    scale: Annotated[Exact, Field(gt=0, le=1_000)] = Decimal(1)
    """Strength of tanh: expected return in standard deviations is multiplied by it."""
    kelly: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.25")
    """Share of the Kelly bet (calibrated mean over variance) that kelly takes."""
    risk: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Share of equity that mode risk would lose from the close that decided to the stop."""
    shortfall: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Share of equity that expected_shortfall loses in the mean of the worst 2.5 % of cases."""
    target_volatility: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Wanted standard deviation of the position's return to the horizon, as a fraction."""
    volatility: Literal["forecast", "ewma", "har"] = "forecast"
    """Where volatility is expected from: the model's forecast, or closed bars without a model."""
    lookback: int = Field(default=660, ge=22, le=50_000)
    """Bars that ewma and har look at; har's horizons are 1/22, 5/22 and all of them."""
    max_position: Annotated[Money, Field(gt=0, le=NOTIONAL_MAX)] | None = Field(
        default=None,
        examples=[20_000],
        description="Largest position of a symbol in quote currency: a larger target is cut to it.",
    )
    max_gross: Annotated[Exact, Field(gt=0, le=100)] | None = Field(
        default=None,
        examples=[2],
        description="Largest sum of all positions in multiples of equity: a target is cut to it.",
    )
    by_confidence: bool = False
    """Whether a size shrinks where the model's card expects its volatility to be far off."""
    rebalance: Fraction | None = Field(
        default=None,
        examples=["0.25"],
        description="A target of the same side is kept unless the new one differs by more than "
        "this share of it; absent: by the strategy's no-trade band, as trend has, else 0.25.",
    )


MODES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "quantity": ("fixed",),
    "notional": ("notional", "tanh", "volatility"),
    "basis": ("tanh", "volatility"),
    "fraction": ("equity", "allocation", "kelly", "expected_shortfall", "network_allocation",
                 "tanh", "volatility"),
    "weights": ("allocation",),
    "scale": ("tanh",),
    "kelly": ("kelly",),
    "risk": ("risk",),
    "shortfall": ("expected_shortfall",),
    "target_volatility": ("volatility",),
    "volatility": ("volatility",),
    "lookback": ("volatility",),
}  # fmt: skip
"""Keys of [sizing] that count in some modes alone."""
CUSTOM: Final = "module:Class"
STRATEGIES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "fast": ("sma_cross",),
    "slow": ("sma_cross",),
    "long_only": ("sma_cross", TREND),
    "trend_windows": (TREND,),
    "trend_volatility": (TREND,),
    "trend_sized_by": (TREND,),
    "trend_risk_aversion": (TREND,),
    "options": (*TOGETHER, ORDERBOOK, CUSTOM),
}
"""Keys of [strategy] that some strategies alone read."""
CHOSEN_BY: Final = {"sizing": ("mode", MODES_OF), "strategy": ("name", STRATEGIES_OF)}
"""By section the key that says which others count, and what each of them counts with."""


def is_read(
    readers: Mapping[str, tuple[str, ...]], key: str, choices: Collection[str | None]
) -> bool:
    """Return whether one of *choices*, modes or names of strategies, reads *key*."""
    kinds = {CUSTOM if ":" in choice else choice for choice in choices if choice is not None}
    return not kinds.isdisjoint(readers.get(key, kinds))


class ExecutionSection(FillKeys):
    """How paper orders are filled."""

    latency_jitter_ms: int = Field(default=0, ge=0, le=60_000)
    """Mean milliseconds of an exponential draw on top of latency_ms, one for each order."""
    seed: int = Field(default=0, ge=0, le=2**53)
    """What the draws follow from, with the instrument, the bar and the order's number."""
    fill_within_ms: int = Field(default=10_000, ge=100, le=DAY_MS)
    """Wall milliseconds after that: an order that no quote has filled by then is canceled."""
    plausible: float = Field(default=30.0, gt=0, le=1e9)
    """Usual ranges that a quote or mark may jump; beyond, it waits for another source (M34)."""
    agree_within_ms: int = Field(default=5_000, ge=100, le=DAY_MS)
    """Wall milliseconds that the other source may lie before or after it."""
    taker_fee: Annotated[Exact, Field(ge=0, le=Decimal("0.1"))] | None = Field(
        default=None,
        examples=[BASE_FEES["linear"][0]],
        description="Fraction of notional; if absent the category's: "
        f"{BASE_FEES['linear'][0]} linear, {BASE_FEES['spot'][0]} spot, "
        f"{BASE_FEES['stock'][0]} stock.",
    )
    maker_fee: Annotated[Exact, Field(ge=Decimal("-0.01"), le=Decimal("0.1"))] | None = Field(
        default=None,
        examples=[BASE_FEES["linear"][1]],
        description="The same where a limit had rested, negative for a rebate; if absent "
        f"{BASE_FEES['linear'][1]} linear, {BASE_FEES['spot'][1]} spot.",
    )
    fee_per_share: Annotated[Exact, Field(ge=0, le=1_000)] | None = Field(
        default=None, examples=["0.005"]
    )
    """Fee of a share in its currency, instead of taker_fee; only where asset is stock."""
    fee_minimum: Annotated[Money, Field(ge=0, le=1_000_000)] = Decimal(0)
    """Least fee of an order, in its currency; only where asset is stock."""
    fees: Annotated[dict[str, SymbolFees], BeforeValidator(json_object)] = Field(
        default_factory=dict
    )
    """Other fees of single symbols: WIFUSDT = {taker = "0.0011", maker = "0.0004"}."""
    slippage_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(0)
    """Basis points paid beyond the reference price."""
    spread_slippage: Annotated[Exact, Field(ge=0, le=100)] = Decimal(0)
    """Mean true ranges of the last 60 bars that a taker pays beyond that."""
    beyond_best: Literal["wait", "impact"] = "wait"
    """wait: what a quote's size does not cover waits for the next quote; impact: it pays for it."""
    impact_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(1)
    """Basis points that impact moves the price for each further multiple of the shown size."""
    spread_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(0)
    """Whole spread in basis points for next_open; half of it is paid a side."""
    filters: Literal["auto", "full", "data"] = "auto"
    """full: the exchange's limits; data: only tick and step; auto: full where there is one."""


class RiskSection(RiskThresholds):
    """Limits of the account; one that is absent is not a gate."""

    on_breach: Literal["halt", "flatten", "refuse"] = "halt"
    """What a drawdown or a daily loss beyond its limit does: no new exposure until RESUME, the same
    and what is held is closed, or no new exposure while it lasts."""


class AccountSection(Section):
    """The paper account."""

    cash: Annotated[Money, Field(gt=0, le=CASH_MAX)] = Decimal(100_000)
    """Cash at the start, in quote currency."""
    margin: Literal["none", "isolated", "cross"] = "none"
    """Of linear positions: none (limited by [risk] alone), isolated or cross, with liquidation."""
    position_mode: Literal["one_way", "hedge"] = "one_way"
    """Of linear symbols: one position each, or in hedge mode a long and a short one at a time."""
    leverage: Annotated[Exact, Field(ge=1, le=200)] = Decimal(1)
    """Of positions on margin; at most what the risk tier of the position's size allows."""


class ReportSection(Section):
    """How the figures of a run are taken; nothing is decided by it."""

    decides = False

    risk_free: Fraction = Decimal(0)
    """Risk-free rate a year, compounded, that Sharpe and Sortino ratios of a run are taken over."""


class StorageSection(Section):
    """Where everything is remembered."""

    decides = False

    url: Annotated[str, AfterValidator(sqlite_file)] = "sqlite:///tracepaper.db"
    """An SQLite file: three slashes and a path, four for an absolute one."""
    keep_days: int | None = Field(default=None, ge=1, le=100_000, examples=[365])
    """Days that `tracepaper db prune` keeps; everything if absent."""
    ship_to: ServerAddress | None = Field(
        default=None, examples=["postgresql://tracepaper@db.lan/fleet"]
    )
    """A PostgreSQL that committed steps are copied to; its password is PGPASSWORD or in .pgpass."""

    @property
    def path(self) -> Path:
        """The database file."""
        return Path(self.url.removeprefix(SQLITE))


class HttpSection(Section):
    """Health, metrics, status and commands, on this machine alone."""

    decides = False

    host: Annotated[str, AfterValidator(loopback)] = "127.0.0.1"
    """A loopback address; reach it from elsewhere through a tunnel."""
    port: int = Field(default=8787, ge=0, le=65_535)
    """0 picks a free port; `tracepaper status` finds it."""
    metrics: Annotated[str, AfterValidator(host_with_port)] | None = Field(
        default=None, examples=["0.0.0.0:9187"]
    )
    """Another address and port on which /metrics alone is served, so that a container can be
    scraped; none if absent."""
    page: Annotated[str, AfterValidator(host_with_port)] | None = Field(
        default=None, examples=["0.0.0.0:9188"]
    )
    """Another address and port for the page, so that a container can publish it; none if absent.
    Every request there needs one of the tokens; `tracepaper ui --link` prints an address with it.
    """
    hosts: Annotated[tuple[str, ...], BeforeValidator(several)] = ("localhost", "127.0.0.1")
    """Names by which a browser may ask for that page, without a port; the link has the first."""
    tokens: Annotated[
        dict[str, str], BeforeValidator(json_object), AfterValidator(labelled_tokens)
    ] = Field(default_factory=dict, repr=False)
    """Tokens by the label that the record names: {anna = "env:ANNA"}. Each is env:NAME,
    credential:NAME, or the text itself of at least 12 characters. No run stores them."""


class LogSection(Section):
    """Structured logging on stderr; the database is the audit, this is not."""

    decides = False

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON lines elsewhere."""
