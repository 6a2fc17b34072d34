"""The value types of a configuration: exact numbers, thresholds, names, addresses."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import threading
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import cache
from ipaddress import ip_address
from itertools import pairwise
from math import isfinite
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    TypeGuard,
    Union,
    get_args,
    get_origin,
)
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic.fields import FieldInfo

from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.gates.gate import (
    AUTO,
    DROPPABLE,
    GATES,
    ThresholdForm,
    ThresholdKey,
    gate_order,
    gates_left_out,
)
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.units import (
    INTERVAL_NAMES,
    MINUTE_MS,
    MONEY_DECIMALS,
    MONEY_MAX,
    RATE_DECIMALS,
    UNITS_MS,
    YEAR_MS,
    interval_text,
    time_of,
)

CASH_MAX: Final = MONEY_MAX // 2
"""Most initial cash, which leaves room for profit."""
NOTIONAL_MAX: Final = MONEY_MAX // 4
"""Most notional of one order, which leaves room for rising prices."""
DIGITS_MAX: Final = 40
PARSING: Final = threading.Lock()
"""Held while Python makes a syntax tree, as it may for a class's source or signature.

Python 3.11 counts the depth of syntax trees for all threads together, and fails where a callback of
its garbage collector lets another thread parse in between.
"""
QUANTILE: Final = re.compile(r"^q(0(\.\d+)?|1(\.0+)?)$")
SYMBOLS_MAX: Final = 200
_EXIT_DISTANCE: Final = re.compile(
    r"(?:(?P<q>q)(?=0\.)|)(?P<number>\d{1,6}(?:\.\d{1,6})?)(?(q)| ?(?P<unit>%|atr|volatility))"
)
PERCENT_MOST: Final = 100_000
INTERVAL: Final = re.compile(r"(?P<count>\d{0,4}) ?(?P<unit>m|min|h|H|d|D|w|W)")
"""A count and a unit; a capital M is a month."""
MONTHS: Final = frozenset({"M", "1M", "1 M", "mo", "1mo", "month", "1month"})
"""Accepted names of the interval of a month."""


def plain(value: Decimal) -> str:
    """Return *value* as the shortest text that reads back exactly: ``0.10`` becomes ``0.1``."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def _exact(value: object) -> object:
    """Read a float by the digits that were written; pydantic would take those of its binary value.

    Its shortest text has them if there are at most 15. With more, some may be lost.
    """
    if not isinstance(value, float):
        return value
    text = repr(value)
    if isfinite(value) and len(Decimal(text).normalize().as_tuple().digits) > sys.float_info.dig:
        raise ValueError(f'write it as text, "{text}", for a float keeps 15 digits')
    return text


def _threshold(value: object) -> object:
    """Parse a threshold: a number, ``qX`` for the quantile X of the calibration slice, or auto."""
    text = repr(value) if isinstance(value, int | float) else value
    text = text.strip() if isinstance(text, str) else ""
    if text == AUTO:
        return text
    if text.startswith("q"):
        if not QUANTILE.match(text) or not 0 < Decimal(text[1:]) < 1:
            raise ValueError('write a quantile between 0 and 1, such as "q0.5"')
        return "q" + plain(Decimal(text[1:]))
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError('write a number such as "0.62" or a quantile such as "q0.5"') from None
    if not number.is_finite():
        raise ValueError("write a finite number")
    _bounded(number)
    return plain(number)


def _bounded(value: Decimal) -> None:
    """Reject a number with too many digits, which could fill the memory."""
    if value and (abs(value.adjusted()) > DIGITS_MAX or len(value.as_tuple().digits) > DIGITS_MAX):
        raise ValueError(f"write a number of at most {DIGITS_MAX} digits")


QUOTES: Final = ("USDT", "USDC", "FDUSD", "BUSD", "PERP", "USD", "EUR", "BTC", "ETH", "BRL", "TRY")
"""Quote coins that identify a symbol; of two with one ending, the longer comes first."""
STOCK_MARKETS: Final = (
    *("NASDAQ", "NYSE", "AMEX", "ARCA", "BATS", "OTC", "LSE", "XETR", "TSX", "ASX"),
    *("NSE", "BSE", "TSE", "HKEX"),
)
"""Markets before a share, as in ``NASDAQ:TSLA``."""


FIAT: Final = ("USD", "EUR", "KRW", "BRL", "TRY", "JPY", "GBP", "AUD", "IDR", "THB")
"""Currencies that no coin prices: ``KRW-BTC`` names the other coin of a pair first."""
_COINS: Final = "|".join(quote for quote in QUOTES if quote != "PERP")
DASHED: Final = re.compile(
    rf"(?!(?:{'|'.join(FIAT)})[-_](?:BTC|ETH))"
    rf"(?P<base>[^\W_]{{1,15}})[-_/](?P<quote>{_COINS})"
    r"([-_](SWAP|SPOT|PERP|PERPETUAL|USDT|USDC|USD))?"
)
"""A pair as other exchanges write it: ``BTC-USDT``, ``BTC_USDT``, ``BTC-USDT-SWAP``."""
VENUE_ENDING: Final = re.compile(r"(\.([D-Z]|[A-Z]{2})|=[A-Z])$")
"""The suffix of a venue or market, as in ``AAPL.US``, ``EURUSD=X`` and ``BTCUSDT.P``; ``.A`` to
``.C`` are classes of shares."""


def symbol_name(text: str) -> str:
    """Return the exchange's name of a symbol: ``btcusdt`` and ``BTC/USDT`` become BTCUSDT.

    So do ``BTC-USDT``, ``BTC_USDT``, ``BTC-USDT-SWAP`` and ``BTCUSDT.P``.

    A colon separates a pair and its settlement coin (``BTC/USDT:USDT``), which the category
    implies, or a market and what it trades (``BINANCE:BTCUSDT``, ``NASDAQ:TSLA``). Other texts with
    a colon keep it, and so are no symbols.
    """
    plain = text.strip().upper()
    head, colon, tail = plain.partition(":")
    if colon and tail.isalnum() and ("/" in head or (head != tail and head.endswith(tail))):
        plain = head
    elif head in STOCK_MARKETS or ("/" not in head and _is_pair(tail)):
        plain = tail
    plain = VENUE_ENDING.sub("", plain)
    if pair := DASHED.fullmatch(plain):
        return pair["base"] + pair["quote"]
    return plain.replace("/", "")


def _is_pair(name: str) -> bool:
    return name.endswith(QUOTES) and name not in QUOTES


def symbol_names(value: object) -> object:
    """Parse symbols in any usual form, from a list or a text separated by commas."""
    value = several(value)
    if isinstance(value, list | tuple):
        return [symbol_name(item) if isinstance(item, str) else item for item in value]
    return value


def interval_name(value: object) -> object:
    """Return the exchange's name of an interval: ``1h`` is 60, ``1d`` and ``1440`` are D."""
    text = str(value).strip()
    if text.isdecimal():
        return INTERVAL_NAMES.get(int(text) * MINUTE_MS, text)
    if text in MONTHS:
        return INTERVAL_NAMES[MONTH_MS]
    match = INTERVAL.fullmatch(text)
    if match is None:
        return text
    length_ms = int(match["count"] or 1) * UNITS_MS[match["unit"].lower()]
    return INTERVAL_NAMES.get(length_ms, str(length_ms // MINUTE_MS))


def several(value: object) -> object:
    """Split a text separated by commas, as an environment variable has it; pass lists through."""
    if isinstance(value, str):
        return [part.strip(" []\"'") for part in value.split(",") if part.strip(" []\"'")]
    return value


def parsed_table(text: str) -> object:
    """Return the table in *text*, of JSON or of TOML; raise ``ValueError`` for other text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return tomllib.loads(f"table = {text}")["table"]


def json_object(value: object) -> object:
    """Parse a table given as text in a setting or an environment variable; pass tables through."""
    if not isinstance(value, str):
        return value
    try:
        return parsed_table(value)
    except ValueError:
        raise ValueError('write a table such as {"fast" = 3} or {"fast": 3}') from None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table *below* with the keys of *above*; a table changes the keys that it names.

    Both may hold tables as text. Options belong to the ``name`` beside them: under another
    name those of *below* are left out.
    """
    result = dict(below)
    if "name" in below and above.get("name", below["name"]) != below["name"]:
        result.pop("options", None)
    for key, value in above.items():
        before, table = _table(result.get(key)), _table(value)
        result[key] = value if before is None or table is None else merged(before, table)
    return result


def nested(path: Sequence[str], value: object) -> dict[str, Any]:
    """Return tables within each other in which the keys of *path* lead to *value*."""
    key, *further = path
    return {key: nested(further, value) if further else value}


def _table(value: object) -> Mapping[str, Any] | None:
    """Return *value* if it is a table, also as text; None for any other value."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError):
            value = parsed_table(value)
    return value if isinstance(value, Mapping) else None


def _duration(value: object) -> object:
    """Check a length of time such as ``7d``: a count and a unit from minutes to weeks."""
    if not isinstance(value, str) or not time_of(value):
        raise ValueError('write a time such as "6h" or "7d"')
    return value.strip()


def _exit_distance(value: object) -> object:
    """Parse an exit's distance from the entry price, in one of four units."""
    parts = _EXIT_DISTANCE.fullmatch(value.strip()) if isinstance(value, str) else None
    if parts is None or not Decimal(parts["number"]):
        raise ValueError('write "2%" of the entry price, "2 atr", "2 volatility" or "q0.05"')
    number, unit = plain(Decimal(parts["number"])), parts["unit"] or ""
    if parts["q"]:
        return _threshold(f"q{number}")
    return f"{number}%" if unit == "%" else f"{number} {unit}"


def _minimal_roi(value: object) -> object:
    """Parse freqtrade's table of an age (minutes or a time) and a return (fraction or percent)."""
    table = json_object(value)
    if not isinstance(table, dict):
        return table
    steps = []
    for age, least in table.items():
        age_ms = int(age) * MINUTE_MS if str(age).strip().isdecimal() else time_of(str(age))
        text = str(least).strip()
        try:
            percent = Decimal(text.removesuffix("%")) * (1 if text.endswith("%") else 100)
        except InvalidOperation:
            percent = Decimal(-1)
        if age_ms is None or isinstance(least, bool) or not 0 <= percent <= PERCENT_MOST:
            raise ValueError(
                'write minutes and returns from 0 on, such as {"0" = 0.04, "30" = 0.02}'
            )
        steps.append((age_ms, percent))
    steps.sort()
    if any(later[0] == sooner[0] or later[1] >= sooner[1] for sooner, later in pairwise(steps)):
        raise ValueError("write returns that fall as time passes")
    if steps and not steps[0][0] and not steps[0][1]:
        raise ValueError('write a return above 0 for "0", the time of the entry')
    return {interval_text(age) if age else "0": f"{plain(least)}%" for age, least in steps}


def address(*schemes: str) -> AfterValidator:
    """Return a validator of addresses of *schemes* that removes a trailing slash."""
    return AfterValidator(lambda value: _check_address(value, schemes))


def _check_address(value: str, schemes: tuple[str, ...]) -> str:
    if not re.match(rf"^({'|'.join(schemes)})://[^/\s]+", value) or not _has_host(value):
        raise ValueError(
            f"write an address that starts with {schemes[-1]}:// and names a host, with a "
            "port from 1 to 65535 if it needs one"
        )
    return value.rstrip("/")


def sqlite_file(value: str) -> str:
    """Reject an address that names no SQLite file."""
    file = value.removeprefix(SQLITE)
    if file == value or not file or ":memory:" in file or "?" in file:
        path = "PATH" if file != value or not file or ":" in file or "?" in file else file
        raise ValueError(f'write "{SQLITE}{path}": the record is in a file of SQLite')
    return value


def host_and_port(listener: str) -> tuple[str, int]:
    """Split ``127.0.0.1:9187`` or ``[::1]:9187``; raise ``ValueError`` for other text."""
    host, _, port = listener.rpartition(":")
    if not (port.isdecimal() and port.isascii()):
        raise ValueError(listener)
    return str(ip_address(host.removeprefix("[").removesuffix("]"))), int(port)


def host_with_port(value: str) -> str:
    """Reject a text that is no address with a port."""
    try:
        is_port = host_and_port(value)[1] < 1 << 16
    except ValueError:
        is_port = False
    if not is_port:
        raise ValueError("write an address and a port such as 0.0.0.0:9187 or [::]:9187")
    return value


def loopback(value: str) -> str:
    """Reject an address that is not loopback."""
    if not is_loopback(value):
        raise ValueError("write a loopback address such as 127.0.0.1")
    return value


def is_loopback(host: str) -> bool:
    """Return whether *host* is ``localhost`` or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


Duration = Annotated[str, BeforeValidator(_duration)]
TimeOfDay = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
ExitDistance = Annotated[str, BeforeValidator(_exit_distance)]
_Digits = Annotated[Decimal, Field(max_digits=DIGITS_MAX, decimal_places=RATE_DECIMALS)]
Exact = Annotated[_Digits, BeforeValidator(_exact)]
Money = Annotated[Exact, Field(decimal_places=MONEY_DECIMALS)]
Positive = Annotated[Exact, Field(gt=0, le=MONEY_MAX)]
Fraction = Annotated[Exact, Field(ge=0, le=1)]
Threshold = Annotated[str, BeforeValidator(_threshold)]


def canonical(value: object) -> object:
    """Return *value* as JSON types, with decimals as their shortest text."""
    match value:
        case Decimal():
            return plain(value)
        case Path():
            return str(value)
        case BaseModel():
            return canonical(value.model_dump())
        case dict():
            return {str(key): canonical(item) for key, item in value.items()}
        case tuple() | list():
            return [canonical(item) for item in value]
        case _:
            return value


def is_table(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Return whether a field with this *annotation* is a table with keys."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def table_of(annotation: object) -> type[BaseModel] | None:
    """Return the table class of a field with this *annotation*, optional or not, else None."""
    parts = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    return next(filter(is_table, parts), None)


def limits(annotation: object, metadata: Iterable[object] = ()) -> str:
    """Describe the bounds or choices of a field, such as ``from 0 to 65535``; '' without any."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return limits(arguments[0], [*arguments[1:], *metadata])
    if origin in {Union, UnionType}:
        return limits(next(item for item in arguments if item is not NoneType), metadata)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    return limits(arguments[0]) if origin is tuple else _range(metadata)


def _range(metadata: Iterable[object]) -> str:
    """Describe the innermost bounds."""
    bounds: dict[str, object] = {}
    for item in metadata:
        parts = item.metadata if isinstance(item, FieldInfo) else [item]
        for part in parts:
            for name in ("ge", "gt", "le", "lt"):
                if (limit := getattr(part, name, None)) is not None:
                    bounds.setdefault(name, limit)
    phrases = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    return " ".join(phrases[name].format(bounds[name]) for name in phrases if name in bounds)


class Section(BaseModel):
    """A frozen table of the configuration file; unknown keys are rejected.

    If ``decides`` is True, its keys are part of ``config_sha256``.
    """

    decides: ClassVar[bool] = True

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("write a value that is not true or false")
        return value


def description(model: type[BaseModel], key: str) -> str:
    """Return the description of *key*: of its field, or the docstring below it in the source.

    Pydantic could read the docstrings at import, but that slows every start by 0.25 s.
    """
    base = next(base for base in model.__mro__ if key in inspect.get_annotations(base))
    return model.model_fields[key].description or _texts(base).get(key, "")


@cache
def _texts(model: type) -> dict[str, str]:
    with PARSING:
        (definition,) = ast.parse(dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): inspect.cleandoc(text.value.value)
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


class FillKeys(Section):
    """The fill model, and the latencies between decisions and the market."""

    model: Literal["auto", "quote", "next_open"] = "auto"
    """quote (first quote after latency), next_open, or auto: quotes if the run has them."""
    latency_ms: int = Field(default=100, ge=0, le=600_000)
    """Market milliseconds from decision to the first quote that may fill."""


_FORMS: Final[dict[ThresholdForm, Any]] = {
    ThresholdForm.MILLISECONDS: Annotated[int, Field(ge=0, le=YEAR_MS)],
    ThresholdForm.NUMBER: Positive,
    ThresholdForm.QUANTILE: Threshold,
    ThresholdForm.SHARE: Annotated[Exact, Field(gt=0, le=1)],
    ThresholdForm.COUNT: Annotated[int, Field(ge=1, le=1_000_000)],
}


def _thresholds(section: str) -> type[Section]:
    """Return a section with the thresholds that the gates declare for *section*."""
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
                Field(default, description=key.description, examples=[key.example]),
            )
    return create_model(f"{section.title()}Thresholds", __base__=Section, **fields)


if TYPE_CHECKING:  # a type checker cannot see these fields
    GateThresholds = Section
    RiskThresholds = Section
else:
    GateThresholds, RiskThresholds = _thresholds("gate"), _thresholds("risk")


def module_class(name: object) -> object:
    """Return *name* as module:Class where it names the file: ``./lib/dip.py:Dip``."""
    file, mark, rest = name.partition(".py:") if isinstance(name, str) else ("", "", "")
    return f"{file.removeprefix('./').replace('/', '.')}:{rest}" if mark else name


MODULE_CLASS: Final = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
SQLITE: Final = "sqlite:///"
STOCK: Final = "stock"
TREND_WINDOWS: Final = ("8d", "16d", "32d", "64d")
"""The default windows of a trend."""
PORTFOLIO_STRATEGIES: Final = ("crossasset", "portfolio")
"""Strategies that trade all symbols of a close, each with a checkpoint of the kind of its name."""
ORDERBOOK: Final = "orderbook"
"""The strategy that trades one symbol by order books; its options name a checkpoint."""
MODEL_INPUTS: Final[Mapping[str, DataSource]] = {
    "attention": DataSource.BARS,
    **dict.fromkeys(PORTFOLIO_STRATEGIES, DataSource.CLOSES),
    ORDERBOOK: DataSource.ORDER_BOOKS,
}
"""The model's input for each built-in strategy that requires a model."""
BUILT_IN: Final = ("attention", TREND, *PORTFOLIO_STRATEGIES, ORDERBOOK, "persistence", "sma_cross")
"""Built-in strategies; any other name is a user's class."""
WINDOWS_MAX: Final = 8
"""Most windows of a trend; each adds a note to every decision."""
NO_MODEL: Final = "none"
"""The checkpoint of a run without a model."""
_SYMBOL: Final = re.compile(r"^[^\W_a-z](?:[^\W_a-z]|-){1,39}$")
_SHARE: Final = re.compile(r"^[A-Z0-9][A-Z0-9.-]{0,39}$")

RegimeName = Literal["MOMENTUM", "MIXED", "MEAN_REVERSION"]
LearnedRegimes = Annotated[tuple[Annotated[int, Field(ge=1, le=7)], ...], BeforeValidator(several)]
SHADOW_NAMES: Final = (
    *("ungated", "random_gate", "held", "fixed_band", "sized_by_forecast", "full_size"),
    *("uncorrelated", *gates_left_out()),
)
"""The names of all shadow accounts."""


def _name_of(names: Sequence[str]) -> AfterValidator:
    """Return a validator that accepts only *names*."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"write {', '.join(names)} instead of {value!r}")
        return value

    return AfterValidator(check)


DroppedGates = Annotated[
    tuple[Annotated[str, _name_of(gate_order(*DROPPABLE))], ...],
    BeforeValidator(several),
    AfterValidator(lambda names: tuple(sorted(set(names)))),
]


ShadowName = Annotated[str, _name_of(SHADOW_NAMES)]
SymbolShares = Annotated[
    dict[str, Annotated[Exact, Field(ge=0, le=1)]], BeforeValidator(json_object)
]
SizeBy = Literal[
    "notional",
    "fixed",
    "equity",
    "allocation",
    "tanh",
    "volatility",
    "kelly",
    "risk",
    "expected_shortfall",
    "network_allocation",
]


def _with_key(name: str, key: str, pattern: str, example: str, description: str) -> type[Section]:
    """Return a section base with a *key* that Python or pydantic reserves as a name."""
    field = Field(None, pattern=pattern, examples=[example], description=description)
    fields: dict[str, Any] = {key: (Annotated[str | None, BeforeValidator(module_class)], field)}
    with warnings.catch_warnings():
        # The field hides a deprecated method of pydantic, which nothing calls.
        warnings.filterwarnings("ignore", message="Field name .* shadows an attribute")
        return create_model(name, __base__=Section, **fields)


if TYPE_CHECKING:  # a type checker cannot see these fields
    ModelClass = Section
    FeatureSchemaName = Section
else:
    ModelClass = _with_key(
        "ModelClass",
        "class",
        MODULE_CLASS.pattern,
        "tree:Tree",
        "Your own model, as module:Class; a checkpoint if absent.",
    )
    FeatureSchemaName = _with_key(
        "FeatureSchemaName",
        "schema",
        rf"^(v2|tree|macd)$|{MODULE_CLASS.pattern}",
        "tree:features",
        "v2, tree or macd, or a function of your own as module:function; if absent, the class's.",
    )


class SymbolFees(Section):
    """The fees of one symbol; what is absent is that of all."""

    taker: Annotated[Exact, Field(ge=0, le=Decimal("0.1"))] | None = None
    """Fraction of notional where an order takes."""
    maker: Annotated[Exact, Field(ge=Decimal("-0.01"), le=Decimal("0.1"))] | None = None
    """Fee of a limit order that rested."""


class ExitsSection(Section):
    """Exits of every position that a signal enters, in addition to those that the signal names."""

    stop_loss: ExitDistance | None = Field(default=None, examples=["2%"])
    """Closes the position at a loss: 2% of the entry price, 2 atr (of a day), 2 volatility (as
    forecast to gate.horizon) or q0.05 (a quantile of the forecast return)."""
    take_profit: ExitDistance | None = Field(default=None, examples=["4%"])
    """Closes the position at a gain, in the same units; q0.9 is a gain that one forecast in ten
    exceeds."""
    trailing: ExitDistance | None = Field(default=None, examples=["3%"])
    """Closes the position at this distance from the best price since the entry."""
    time_limit: Duration | None = Field(default=None, examples=["4h"])
    """Closes the position this long after the entry."""
    minimal_roi: Annotated[dict[str, str], BeforeValidator(_minimal_roi)] = Field(
        default_factory=dict
    )
    """Closes the position at a gain that shrinks with its age: {"0" = 0.04, "30" = 0.02, "60" =
    0.01} at 4 %, from 30 minutes on at 2 %, from 60 on at 1 %."""
    reenter: bool = False
    """Whether the same signal may enter again after such an exit, without a different one
    between."""

    @property
    def has_stop(self) -> bool:
        """Whether every position has a stop, which sizing by risk needs."""
        return self.stop_loss is not None or self.trailing is not None

    @property
    def uses_atr(self) -> bool:
        """Whether an exit needs a day of bars before the first entry."""
        exits = (self.stop_loss, self.take_profit, self.trailing)
        return any("atr" in (distance or "") for distance in exits)
