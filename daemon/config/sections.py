"""The sections of the configuration: every key with type, range, default and meaning.

A field defines a key completely: its name in the file, its type and range, its default (or an
example if it is absent by default), and the docstring below it. The environment variables,
``config check``, ``config init`` and ``deploy/config.example.toml`` are derived from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from tracepaper.daemon.config.secrets import labelled_tokens, with_references
from tracepaper.daemon.config.values import (
    BUILT_IN,
    CASH_MAX,
    MODULE_CLASS,
    NO_MODEL,
    NOTIONAL_MAX,
    ORDERBOOK,
    PORTFOLIO_STRATEGIES,
    SQLITE,
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
    ShadowName,
    SizeBy,
    SymbolFees,
    SymbolShares,
    Threshold,
    address,
    host_with_port,
    json_object,
    loopback,
    module_class,
    several,
    sqlite_file,
)
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.shortfall import DAYS_LEAST
from tracepaper.strategies.units import BASE_FEES, DAY_MS, interval_text, percent, time_of

Options = Annotated[
    dict[str, object], BeforeValidator(json_object), AfterValidator(with_references)
]
"""The options of a user's class."""


class ExchangeSection(Section):
    """The exchange: addresses, timeouts and limits."""

    decides = False

    rest_url: Annotated[str, address("http", "https")] = "https://api.bybit.com"
    """Base address of the REST interface; regional hosts and `tracepaper exchange` have other
    addresses."""
    stream_url: Annotated[str, address("ws", "wss")] = "wss://stream.bybit.com"
    """Base address of the websocket, to which /v5/public/CATEGORY is added."""
    time_scale: float = Field(default=1.0, gt=0, le=1_000_000)
    """Market seconds per wall second; above 1 only against the embedded exchange."""
    final_after_ms: int = Field(default=2_000, ge=0, le=600_000)
    """Market milliseconds after its close from which a candle read by REST counts as closed."""
    grace_ms: int = Field(default=5_000, ge=0, le=DAY_MS)
    """How long to wait (market ms) for a closing frame before the candle is requested by REST."""
    ahead_ms: int = Field(default=2_000, ge=100, le=600_000)
    """Messages dated further ahead than this (ms of network time) are rejected and move no
    clock."""
    certain_s: float = Field(default=30.0, ge=0, le=3_600)
    """How long (wall seconds) a candle that REST lacks is requested before it is given up."""
    ban_cooldown_s: float = Field(default=600.0, ge=0, le=86_400)
    """Wall seconds without a request after the exchange has banned the address."""
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
    """Longest wait (wall seconds, full jitter) between two attempts."""
    trades: bool = False
    """Also subscribe to public trades; they are counted, but no decision uses them. On spot they
    are always on, to confirm a quote that jumps."""


class StrategySection(Section):
    """The strategy that decides."""

    name: Annotated[str, BeforeValidator(module_class)] = Field(
        default=TREND, pattern=rf"^({'|'.join(BUILT_IN)})$|{MODULE_CLASS.pattern}"
    )
    """trend (direction from closed hours, sized by volatility), attention (direction from the
    model), crossasset or portfolio (all symbols of a close, by a checkpoint of that kind),
    orderbook (one symbol by its order books, by options.checkpoint), persistence, sma_cross, or a
    class of your own as module:Class."""
    fast: int = Field(default=20, ge=1, le=100_000)
    """Bars in the fast average of sma_cross."""
    slow: int = Field(default=100, ge=2, le=100_000)
    """Bars in the slow average of sma_cross; it does not trade before so many closes are known."""
    long_only: bool = True
    """Whether sma_cross and trend go flat instead of short."""
    trend_windows: Annotated[
        Annotated[tuple[Duration, ...], Field(min_length=1, max_length=WINDOWS_MAX)] | None,
        BeforeValidator(several),
    ] = Field(default=None, examples=[TREND_WINDOWS])
    """Windows of trend, 1 to 8 times: it compares the last close with the mean over each. If
    absent, those shown; a replay or sweep halves them until the longest fits twice into its
    candles."""
    trend_volatility: Annotated[Exact, Field(gt=0, le=10)] = Decimal("0.4")
    """Annual volatility of a full position of trend: its size is this ÷ expected volatility, at
    most 1."""
    trend_sized_by: Literal["auto", "forecast", "ewma", "constant"] = "ewma"
    """Source of the expected volatility of trend: ewma of closed hours, the model's forecast at
    gate.horizon, auto (the forecast if there is one, else ewma), or constant: always full size."""
    trend_risk_aversion: Annotated[Exact, Field(gt=0, le=1_000)] = Decimal(10)
    """Relative risk aversion of trend: the higher, the narrower its no-trade band."""
    options: Options = Field(default_factory=dict)
    """Passed to your own class unchanged. crossasset and portfolio: every, long_only, rule, shrink,
    bound, aversion and cost; orderbook: checkpoint (a folder), horizon (books) and stale_ms."""
    warmup: int | None = Field(default=None, ge=1, le=100_000, examples=[256])
    """Bars of the history of your own class if it names no warmup. If absent, 1 for a class that
    reads no past bars; else 256, in a replay at most a quarter of its bars."""
    frames_warmup: dict[str, int] = Field(default_factory=dict)
    """Bars of each of its timeframes then, {D = 64} for example; if absent, 64, or a quarter."""
    shadows: Annotated[tuple[ShadowName, ...], BeforeValidator(several)] = ()
    """Shadow accounts in addition to those of the strategy: ungated, random_gate, held,
    fixed_band, sized_by_forecast, full_size, uncorrelated, and no_GATE, which leaves that gate out:
    no_edge, no_regime, no_learned_regime, no_tail, no_tail_share, no_expected_drawdown and so
    on."""

    @property
    def windows(self) -> tuple[str, ...]:
        """The windows of trend, shortest first."""
        return self.trend_windows or TREND_WINDOWS

    @property
    def chosen_warmup(self) -> str:
        """The history that a run gave to a class without a warm-up, in words; else empty."""
        if self.warmup is None:
            return ""
        frames = "".join(f", {bars} of {name}" for name, bars in self.frames_warmup.items())
        bars = f"{self.warmup} bar{'s' * (self.warmup > 1)}"
        return f"history of {bars}{frames}, since the class names no warmup"

    @field_validator("trend_windows")
    @classmethod
    def _windows(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        lengths = {time_of(text) or 0 for text in value}
        return tuple(interval_text(length_ms) for length_ms in sorted(lengths))

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

    options: Options = Field(default_factory=dict)
    """Passed to your own class unchanged."""
    files: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(several)] = ()
    """Files that your own class reads, relative to this file; their content is part of the model's
    id."""
    checkpoint: str = Field(default="default", min_length=1)
    """default (flash-15m at 15 minutes, else flash-1m), another bundled one that `tracepaper
    models` lists, a folder, or none."""
    deadline_ms: int = Field(default=1_000, ge=1, le=600_000)
    """Time limit of one forecast (wall ms); a later one is dropped, and the decision is HOLD."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of the model; decisions are bit-equal only with the same number."""
    backend: str = Field(default="auto", pattern=r"^[a-z][a-z0-9_]*$")
    """auto, or one of the attention backends that `tracepaper doctor` lists."""
    covariates: str | None = Field(default=None, min_length=1, examples=["news.csv"])
    """CSV or Parquet file of the covariates that the network was trained with (--covariates). The
    path is looked up beside this file, then in the working folder. A live run reads the file again
    as it grows."""
    dropout_passes: int = Field(default=0, ge=0, le=1_000)
    """Passes with dropout at each bar (2 or more, for a checkpoint trained with dropout);
    gate.max_dropout_spread judges the spread of their means; 0: none."""
    explanation: Annotated[ExplanationSection, BeforeValidator(json_object)] = Field(
        default_factory=ExplanationSection
    )
    """How the record explains each decision: method (rollout, norm, gradient, flow, relevance),
    fusion (mean, max, min), residual, start_layer, discard, head_weights ("1,0,0,0").
    """

    @property
    def by_relevance(self) -> bool:
        """Whether a decision's explanation is its relevance."""
        return self.explanation.method == "relevance"

    @property
    def measured(self) -> ExplanationSection:
        """The explanation that gates measure: a rollout if the method is relevance."""
        update = {"method": "rollout"} if self.by_relevance else {}
        return self.explanation.model_copy(update=update)

    @property
    def custom_class(self) -> str:
        """The name of a user's own class; empty for a checkpoint."""
        return getattr(self, "class") or ""

    @property
    def is_given(self) -> bool:
        """Whether the run has a model."""
        return bool(self.custom_class) or self.checkpoint != NO_MODEL

    @model_validator(mode="after")
    def _of_a_class(self) -> ModelSection:
        if (self.options or self.files) and not self.custom_class:
            raise ValueError("[model] options and files are a class's; name it with [model] class")
        if self.custom_class and (self.explanation != ExplanationSection() or self.dropout_passes):
            name = "dropout_passes" if self.dropout_passes else "explanation"
            raise ValueError(f"[model] {name} is a checkpoint's; take it out for a class")
        return self


class ParitySection(Section):
    """A daily replay of the run's last day from its record, in a background process."""

    decides = False

    daily_at: str = Field(default="00:10", pattern=r"^(([01]\d|2[0-3]):[0-5]\d|off)$")
    """UTC time of day, such as 00:10, after which the last UTC day is replayed; off: never."""
    time_limit: Duration = "6h"
    """Wall time after which a replay is stopped as failed."""


class FeaturesSection(FeatureSchemaName):
    """The features of your own model; a checkpoint's features are on its card."""

    @property
    def custom_schema(self) -> str | None:
        """The value of ``schema``; the attribute of that name is pydantic's."""
        schema: str | None = self.__dict__["schema"]
        return schema


class GateSection(GateThresholds):
    """Thresholds of the gates: numbers, or qX, a quantile of the model's calibration slice."""

    regimes: Annotated[
        tuple[RegimeName, ...],
        Field(min_length=1),
        BeforeValidator(several),
        AfterValidator(lambda names: tuple(name for name in get_args(RegimeName) if name in names)),
    ] = get_args(RegimeName)
    """Regimes in which trading is allowed: MOMENTUM, MIXED, MEAN_REVERSION."""
    learned_regimes: LearnedRegimes = ()
    """The network's own regimes (1: calmest) in which trading is allowed; empty: no gate."""
    horizon: int = Field(default=30, ge=1, le=100_000)
    """Horizon of the gates direction and edge, in bars or as a time such as "30m"; the model must
    forecast it. If absent, the horizon on the checkpoint's card."""
    confidence_by: Literal["auto", "entropy", "calibrated", "margin"] = "auto"
    """The measure of gate.confidence: the entropy of attention, the fitted (calibrated) probability
    that the sign is right, the margin between the directions, or auto: the one that the model's
    card chose."""
    on_refusal: Literal["hold", "flat"] = "hold"
    """What happens to an open position if a judgement gate refuses."""
    drop: DroppedGates = ()
    """Judgement and risk gates that are left out, such as shifted."""


class RegimeSection(Section):
    """When attention counts as recent (MOMENTUM) or distant (MEAN_REVERSION)."""

    momentum: Threshold = "q0.6667"
    """MOMENTUM if the recent mass is at least this."""
    mean_reversion: Threshold = "q0.3333"
    """MEAN_REVERSION if the recent mass is at most this."""
    event_focus: Threshold = "1"
    """MEAN_REVERSION too if the share on event bars is at least this."""
    hysteresis: Fraction = Decimal("0.1")
    """Share of the distance between these two that must be crossed before the regime changes."""


class SizingSection(Section):
    """How an allowed direction becomes a quantity."""

    mode: SizeBy = "notional"
    """notional, fixed (quantity), equity (a fraction), allocation (weights), tanh (of the return),
    volatility, kelly, risk (to the stop), expected_shortfall or network_allocation (of the
    network)."""
    quantity: Positive = Decimal(1)
    """Quantity in base coin for fixed."""
    notional: Annotated[Money, Field(gt=0, le=NOTIONAL_MAX)] = Decimal(10_000)
    """Quote currency of a full position for notional, tanh and volatility."""
    basis: Literal["notional", "equity"] = "notional"
    """Full position of tanh and volatility: notional, or fraction of equity."""
    fraction: Annotated[Exact, Field(gt=0, le=100)] | None = Field(default=None, examples=["1"])
    """Share of equity in a full position of mode equity; the cap of kelly and expected_shortfall.
    If absent, 0.1 for mode equity, else 1."""
    weights: SymbolShares = Field(default_factory=dict)
    """Weight of each symbol for allocation; equal weights if absent."""
    scale: Annotated[Exact, Field(gt=0, le=1_000)] = Decimal(1)
    """Mode tanh takes tanh of this factor times the expected return in standard deviations."""
    kelly: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.25")
    """Share of the Kelly bet (calibrated mean over variance) that kelly takes."""
    risk: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Share of equity that mode risk loses if the price goes from the decided close to the stop."""
    shortfall: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Share of equity that mode expected_shortfall loses on average in the worst 2.5 % of cases."""
    target_volatility: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Target standard deviation of the position's return to the horizon in mode volatility, as a
    fraction."""
    volatility: Literal["forecast", "ewma", "har"] = "forecast"
    """Source of the expected volatility: the model's forecast, or ewma or har of closed bars, which
    need no model."""
    lookback: int = Field(default=660, ge=22, le=50_000)
    """Bars that ewma and har use; the horizons of har are 1/22, 5/22 and all of them."""
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
    """Whether a size shrinks when the model's card expects a large error of the volatility."""
    rebalance: Fraction | None = Field(
        default=None,
        examples=["0.25"],
        description="A position on the same side is kept unless the new target differs by more "
        "than this share of it; if absent, the strategy's no-trade band decides (trend has one), "
        "else 0.25.",
    )

    @property
    def share(self) -> Decimal:
        """``fraction``, or what it is if absent."""
        if self.fraction is not None:
            return self.fraction
        return Decimal("0.1") if self.mode == "equity" else Decimal(1)

    @property
    def chosen_share(self) -> str:
        """The share that mode equity takes without a fraction, in words; else empty."""
        if self.mode != "equity" or self.fraction is not None:
            return ""
        share = percent(float(self.share), 0)
        return f"a full position is {share} of equity, since [sizing] names no fraction"


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
"""Keys of [sizing] that only some modes read."""
CUSTOM: Final = "module:Class"
STRATEGIES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "fast": ("sma_cross",),
    "slow": ("sma_cross",),
    "long_only": ("sma_cross", TREND),
    "trend_windows": (TREND,),
    "trend_volatility": (TREND,),
    "trend_sized_by": (TREND,),
    "trend_risk_aversion": (TREND,),
    "options": (*PORTFOLIO_STRATEGIES, ORDERBOOK, CUSTOM),
    "warmup": (CUSTOM,),
    "frames_warmup": (CUSTOM,),
}
"""Keys of [strategy] that only some strategies read."""
CHOSEN_BY: Final = {"sizing": ("mode", MODES_OF), "strategy": ("name", STRATEGIES_OF)}
"""By section: the key that chooses which other keys are read, and the choices that read each."""


def is_read(
    readers: Mapping[str, tuple[str, ...]], key: str, choices: Collection[str | None]
) -> bool:
    """Return whether one of *choices* (sizing modes or strategy names) reads *key*."""
    kinds = {CUSTOM if ":" in choice else choice for choice in choices if choice is not None}
    return not kinds.isdisjoint(readers.get(key, kinds))


class ExecutionSection(FillKeys):
    """How paper orders are filled."""

    latency_jitter_ms: int = Field(default=0, ge=0, le=60_000)
    """Mean milliseconds of an exponential random delay added to latency_ms, drawn for each
    order."""
    delay_bars: int = Field(default=0, ge=0, le=100)
    """Bars that an order of a decision waits before the latency begins: 1 fills it a bar late."""
    seed: int = Field(default=0, ge=0, le=2**53)
    """Seed of these draws, together with the instrument, the bar and the order's number."""
    fill_within_ms: int = Field(default=10_000, ge=100, le=DAY_MS)
    """Wall milliseconds after the latency, after which an unfilled order is canceled."""
    plausible: float = Field(default=30.0, gt=0, le=1e9)
    """A quote or mark that jumps by more than this many usual ranges waits for another source
    (M34)."""
    agree_within_ms: int = Field(default=5_000, ge=100, le=DAY_MS)
    """The other source may be at most this many wall milliseconds before or after it."""
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
        description="Fee of a limit order that rested, negative for a rebate; if absent "
        f"{BASE_FEES['linear'][1]} linear, {BASE_FEES['spot'][1]} spot.",
    )
    fee_per_share: Annotated[Exact, Field(ge=0, le=1_000)] | None = Field(
        default=None, examples=["0.005"]
    )
    """Fee per share in its currency, instead of taker_fee; only if asset is stock."""
    fee_minimum: Annotated[Money, Field(ge=0, le=1_000_000)] = Decimal(0)
    """Minimum fee of an order, in its currency; only if asset is stock."""
    fees: Annotated[dict[str, SymbolFees], BeforeValidator(json_object)] = Field(
        default_factory=dict
    )
    """Different fees of single symbols: WIFUSDT = {taker = "0.0011", maker = "0.0004"}."""
    slippage_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(0)
    """Basis points paid beyond the reference price."""
    spread_slippage: Annotated[Exact, Field(ge=0, le=100)] = Decimal(0)
    """Additional price that a taker pays, in mean true ranges of the last 60 bars."""
    beyond_best: Literal["wait", "impact", "square_root"] = "wait"
    """If an order exceeds the shown size: wait leaves the rest for the next quote; impact fills it
    at a worse price (impact_bp times the participation), square_root by the root of that. Candles
    show no size."""
    impact_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(1)
    """Basis points of impact at a participation of 1: an order as large as its candle's volume, or
    twice the shown size."""
    spread_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(0)
    """Spread in basis points for next_open; each side pays half."""
    filters: Literal["auto", "full", "data"] = "auto"
    """full: the exchange's limits; data: only tick and step; auto: full if the limits are known."""


class RiskSection(RiskThresholds):
    """Limits of the account; a limit that is absent is not checked."""

    on_breach: Literal["halt", "flatten", "refuse"] = "halt"
    """What happens when a drawdown or daily loss passes its limit. halt: no new exposure until
    RESUME; flatten: also close all positions; refuse: no new exposure while it lasts."""
    book_days: Annotated[int, Field(ge=DAYS_LEAST, le=2_000)] = 250
    """Days of returns by which max_book_shortfall judges the book."""
    book_too_few: Literal["refuse", "allow"] = "refuse"
    """What max_book_shortfall does about a symbol with fewer than 80 of these days. refuse: no new
    exposure in a book with it; allow: the limit leaves it out."""


class AccountSection(Section):
    """The paper account."""

    cash: Annotated[Money, Field(gt=0, le=CASH_MAX)] = Decimal(100_000)
    """Cash at the start, in quote currency."""
    margin: Literal["none", "isolated", "cross"] = "none"
    """Margin of linear positions: none (limited only by [risk]), isolated or cross, with
    liquidation."""
    leverage: Annotated[Exact, Field(ge=1, le=200)] = Decimal(1)
    """Leverage of positions on margin; at most what the risk tier of the position's size allows."""


class ReportSection(Section):
    """How the figures of a run are computed; no decision depends on it."""

    decides = False

    risk_free: Fraction = Decimal(0)
    """Annual risk-free rate, compounded, that Sharpe and Sortino ratios subtract."""


class StorageSection(Section):
    """Where the record is stored."""

    decides = False

    url: Annotated[str, AfterValidator(sqlite_file)] = "sqlite:///tracepaper.db"
    """An SQLite file: three slashes and a path, four for an absolute one."""
    rotate: Literal["never", "month"] = "never"
    """`month`: at the first close of a UTC month it goes on in a new file, as `db rotate` does."""

    @property
    def path(self) -> Path:
        """The database file."""
        return Path(self.url.removeprefix(SQLITE))


class HttpSection(Section):
    """Health, metrics, status and commands, only on this machine."""

    decides = False

    host: Annotated[str, AfterValidator(loopback)] = "127.0.0.1"
    """A loopback address; reach it from elsewhere through a tunnel."""
    port: int = Field(default=8787, ge=0, le=65_535)
    """0 picks a free port; `tracepaper status` finds it."""
    metrics: Annotated[str, AfterValidator(host_with_port)] | None = Field(
        default=None, examples=["0.0.0.0:9187"]
    )
    """Another address and port that serves only /metrics, so that a container can be scraped; none
    if absent."""
    page: Annotated[str, AfterValidator(host_with_port)] | None = Field(
        default=None, examples=["0.0.0.0:9188"]
    )
    """Another address and port for the page, so that a container can publish it; none if absent.
    Every request there needs one of the tokens; `tracepaper ui --link` prints an address with it.
    """
    hosts: Annotated[tuple[str, ...], BeforeValidator(several)] = ("localhost", "127.0.0.1")
    """Host names under which that page may be requested, without a port; the link uses the
    first."""
    tokens: Annotated[
        dict[str, str], BeforeValidator(json_object), AfterValidator(labelled_tokens)
    ] = Field(default_factory=dict, repr=False)
    """Tokens by their label in the record: {anna = "env:ANNA"}. Each is env:NAME, credential:NAME,
    or the text itself of at least 12 characters. No run stores them."""


class LogSection(Section):
    """Structured logging on stderr; it is not part of the record."""

    decides = False

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON lines elsewhere."""
