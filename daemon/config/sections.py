"""The sections of the configuration: every key with its type, range, default and meaning.

A field is all that a key takes: its name in the file, its type and range, its default (and an
example where it is absent by default), and below it the docstring that documents it. The
environment, ``config check``, ``config init`` and ``deploy/config.example.toml`` follow from it.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from tracepaper.daemon.config.values import (
    CASH_MAX,
    NOTIONAL_MAX,
    SYMBOLS_MAX,
    Exact,
    Fraction,
    Positive,
    Threshold,
    address,
    interval_name,
    json_object,
    several,
    symbol_names,
)
from tracepaper.strategies.gates import GATES, ThresholdForm, ThresholdKey, gate_order
from tracepaper.strategies.market import BASE_FEES, DAY_MS, INTERVALS

YEAR_MS: Final = 31_536_000_000
MODULE_CLASS: Final = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
SQLITE: Final = "sqlite:///"

RegimeName = Literal["MOMENTUM", "MIXED", "MEAN_REVERSION"]


class Section(BaseModel):
    """A frozen table of the file; keys that it does not know are refused.

    ``decides`` says whether its keys decide a run: they are then part of ``config_sha256``.
    """

    decides: ClassVar[bool] = True

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("write a value that is not true or false")
        return value


class MarketSection(Section):
    """What is traded."""

    category: Literal["linear", "spot"] = "linear"
    """Bybit product category."""
    symbols: Annotated[tuple[str, ...], BeforeValidator(symbol_names)] = ("BTCUSDT",)
    """Symbols of that category, up to 50; BTC/USDT and btcusdt are read as BTCUSDT."""
    interval: Annotated[
        Literal["1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D", "W"],
        BeforeValidator(interval_name),
    ] = "1"
    """Candle interval by Bybit's names; 5m, 1h and 1d are read as 5, 60 and D."""
    gather_ms: Annotated[int, Field(ge=0, le=10_000)] = 250
    """Most milliseconds that the first bar of a close waits for those of the other symbols, to be
    predicted and stored with them; 0 takes each bar by itself."""

    @property
    def closes_together(self) -> bool:
        """Whether the bars of one close are dealt with together."""
        return len(self.symbols) > 1 and self.gather_ms > 0

    @property
    def interval_ms(self) -> int:
        """The interval in milliseconds."""
        return INTERVALS[self.interval]

    @field_validator("symbols")
    @classmethod
    def _symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(value) <= SYMBOLS_MAX:
            raise ValueError(f"name 1 to {SYMBOLS_MAX} symbols")
        for symbol in value:
            if not re.match(r"^[A-Z0-9][A-Z0-9-]{1,39}$", symbol):
                raise ValueError(f"write symbols in the exchange's capitals instead of {symbol!r}")
        if len(set(value)) < len(value):
            raise ValueError("name each symbol once")
        return value


class ExchangeSection(Section):
    """Where the market comes from, and how patient we are with it."""

    decides = False

    rest_url: Annotated[str, address("http", "https")] = "https://api.bybit.com"
    """Base address of the REST interface; regional hosts and `tracepaper exchange` differ."""
    stream_url: Annotated[str, address("ws", "wss")] = "wss://stream.bybit.com"
    """Base address of the websocket, to which /v5/public/CATEGORY is added."""
    time_scale: float = Field(default=1.0, gt=0, le=1_000_000)
    """Market seconds per wall second; above 1 only against the embedded exchange."""
    final_after_ms: int = Field(default=2_000, ge=0, le=600_000)
    """A candle read by REST counts as closed this long, market time, after its close."""
    grace_ms: int = Field(default=5_000, ge=0, le=600_000)
    """A closing frame is awaited this long, market time, before REST is asked for the candle."""
    ahead_ms: int = Field(default=2_000, ge=100, le=600_000)
    """What is dated further ahead than this, network time, is refused and moves no clock."""
    certain_s: float = Field(default=30.0, ge=0, le=3_600)
    """A candle that REST lacks is asked for this long, wall seconds, before it is given up."""
    ban_cooldown_s: float = Field(default=600.0, ge=0, le=86_400)
    """No question for so long, wall seconds, after the exchange refused our address."""
    data_watchdog_s: float = Field(default=30.0, gt=0, le=86_400)
    """A stream without data for this many wall seconds is taken for dead."""
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
    """Also subscribe to public trades; they are counted and never decided on."""


class StrategySection(Section):
    """Who decides."""

    name: str = "attention"
    """attention, persistence, sma_cross, or a class of your own as module:Class."""
    fast: int = Field(default=20, ge=1, le=100_000)
    """Bars in the fast average of sma_cross."""
    slow: int = Field(default=100, ge=2, le=100_000)
    """Bars in the slow average of sma_cross; no target before so many closes are known."""
    long_only: bool = True
    """sma_cross goes flat instead of short."""
    options: Annotated[dict[str, object], BeforeValidator(json_object)] = Field(
        default_factory=dict
    )
    """Handed to your own class as it stands."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value not in {"attention", "persistence", "sma_cross"} and not MODULE_CLASS.match(value):
            raise ValueError("write attention, persistence, sma_cross or module:Class")
        return value

    @model_validator(mode="after")
    def _fast_below_slow(self) -> StrategySection:
        if self.fast >= self.slow:
            raise ValueError(f"[strategy] fast = {self.fast} must be below slow = {self.slow}")
        return self


class ModelSection(Section):
    """The network behind the attention strategy."""

    checkpoint: str = Field(default="default", min_length=1)
    """default for the bundled one, or the folder of a checkpoint."""
    deadline_ms: int = Field(default=1_000, ge=1, le=600_000)
    """Wall milliseconds for one forecast; later answers are dropped and the bar is held."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of the model; decisions are bit-equal only on an equal number."""
    backend: str = Field(default="auto", pattern=r"^[a-z][a-z0-9_]*$")
    """auto, or one of the attention backends that `tracepaper doctor` lists."""


_FORMS: Final[dict[ThresholdForm, Any]] = {
    ThresholdForm.MILLISECONDS: Annotated[int, Field(ge=0, le=YEAR_MS)],
    ThresholdForm.NUMBER: Positive,
    ThresholdForm.QUANTILE: Threshold,
    ThresholdForm.SHARE: Annotated[Exact, Field(gt=0, le=1)],
    ThresholdForm.COUNT: Annotated[int, Field(ge=1, le=1_000_000)],
}


def _thresholds(section: str) -> type[Section]:
    """Return the keys of *section* that the gates declare, as fields; absent ones are None."""
    fields: dict[str, Any] = {}
    for name in gate_order():
        key = GATES[name].threshold
        if isinstance(key, ThresholdKey) and GATES[name].section == section:
            form = _FORMS[key.form]
            default: Any = key.default
            if key.default is not None and key.form in {ThresholdForm.NUMBER, ThresholdForm.SHARE}:
                default = Decimal(key.default)
            fields[key.name] = (
                form if key.default is not None else form | None,
                Field(default, description=key.words, examples=[key.example]),
            )
    made: type[Section] = create_model(f"{section.title()}Thresholds", __base__=Section, **fields)
    return made


if TYPE_CHECKING:  # a checker reads no fields that are made
    GateThresholds = Section
    RiskThresholds = Section
else:
    GateThresholds, RiskThresholds = _thresholds("gate"), _thresholds("risk")


class GateSection(GateThresholds):
    """What a forecast must pass; thresholds are numbers, or qX of the model's calibration slice."""

    regimes: Annotated[tuple[RegimeName, ...], BeforeValidator(several)] = ("MOMENTUM", "MIXED")
    """Regimes in which trading is allowed: MOMENTUM, MIXED, MEAN_REVERSION."""
    horizon: int = Field(default=30, ge=1, le=100_000)
    """Bars ahead of which direction and edge speak; the model must forecast them."""
    on_refusal: Literal["hold", "flat"] = "hold"
    """What a refused judgement does to an open position."""

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

    mode: Literal["notional", "fixed", "tanh", "volatility"] = "notional"
    """notional, fixed (quantity), tanh (of the expected return) or volatility (a target)."""
    quantity: Positive = Decimal(1)
    """Quantity in base coin for fixed."""
    notional: Annotated[Exact, Field(gt=0, le=NOTIONAL_MAX)] = Decimal(10_000)
    """Quote currency of a full position for notional, tanh and volatility."""
    scale: Annotated[Exact, Field(gt=0, le=1_000)] = Decimal(1)
    """Strength of tanh: expected return in standard deviations is multiplied by it."""
    target_volatility: Annotated[Exact, Field(gt=0, le=1)] = Decimal("0.01")
    """Wanted standard deviation of the position's return to the horizon, as a fraction."""
    rebalance: Fraction = Decimal("0.25")
    """A standing target of the same side is kept unless the new one differs by more than this."""


class ExecutionSection(Section):
    """How paper orders are filled."""

    model: Literal["auto", "quote", "next_open"] = "auto"
    """quote (first quote after latency), next_open, or auto: quotes where the run has them."""
    latency_ms: int = Field(default=100, ge=0, le=600_000)
    """Market milliseconds from decision to the first quote that may fill."""
    fill_within_ms: int = Field(default=10_000, ge=100, le=DAY_MS)
    """Wall milliseconds after that: an order that no quote has filled by then is canceled."""
    taker_fee: Annotated[Exact, Field(ge=0, le=Decimal("0.1"))] | None = Field(
        default=None,
        examples=[BASE_FEES["linear"][0]],
        description="Fraction of notional; if absent the category's: "
        f"{BASE_FEES['linear'][0]} linear, {BASE_FEES['spot'][0]} spot.",
    )
    slippage_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(0)
    """Basis points paid beyond the reference price."""
    spread_bp: Annotated[Exact, Field(ge=0, le=1_000)] = Decimal(0)
    """Whole spread in basis points for next_open; half of it is paid a side."""
    filters: Literal["auto", "full", "data"] = "auto"
    """full: the exchange's limits; data: only tick and step; auto: full where there is one."""


class RiskSection(RiskThresholds):
    """Limits of the account; one that is absent is not a gate."""


class AccountSection(Section):
    """The paper account."""

    cash: Annotated[Exact, Field(gt=0, le=CASH_MAX)] = Decimal(100_000)
    """Cash at the start, in quote currency."""


class StorageSection(Section):
    """Where everything is remembered."""

    decides = False

    url: str = "sqlite:///tracepaper.db"
    """An SQLite file: three slashes and a path, four for an absolute one."""
    keep_days: int | None = Field(default=None, ge=1, le=100_000, examples=[365])
    """Days that `tracepaper db prune` keeps; everything if absent."""

    @property
    def path(self) -> Path:
        """The database file."""
        return Path(self.url.removeprefix(SQLITE))

    @field_validator("url")
    @classmethod
    def _sqlite_file(cls, value: str) -> str:
        file = value.removeprefix(SQLITE)
        if file == value or not file or ":memory:" in file or "?" in file:
            raise ValueError("write sqlite:/// and the path of a file, for nothing else is kept in")
        return value


class HttpSection(Section):
    """Health, metrics, status and commands, on this machine alone."""

    decides = False

    host: str = "127.0.0.1"
    """A loopback address; reach it from elsewhere through a tunnel."""
    port: int = Field(default=8787, ge=0, le=65_535)
    """0 picks a free port; `tracepaper status` finds it."""

    @field_validator("host")
    @classmethod
    def _loopback(cls, value: str) -> str:
        try:
            is_loopback = value == "localhost" or ipaddress.ip_address(value).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise ValueError("write a loopback address such as 127.0.0.1")
        return value


class LogSection(Section):
    """Structured logging on stderr; the database is the audit, this is not."""

    decides = False

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON lines elsewhere."""
