"""Load the validated, frozen ``Config`` from TOML, environment and overrides, and write it.

Later sources win: defaults, the data, the file, ``TRACEPAPER_SECTION__KEY``, the command line. An
invalid value raises ``ConfigInvalid`` with one sentence that names its source and what is allowed.

The rules are docs/configuration.md, C3 to C6.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from tracepaper.daemon.config.market import MarketSection
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import UNSHOWN
from tracepaper.daemon.config.sections import (
    CHOSEN_BY,
    AccountSection,
    ExchangeSection,
    ExecutionSection,
    FeaturesSection,
    GateSection,
    HttpSection,
    LogSection,
    ModelSection,
    ParitySection,
    RegimeSection,
    ReportSection,
    RiskSection,
    SizingSection,
    StorageSection,
    StrategySection,
    is_read,
)
from tracepaper.daemon.config.values import (
    STOCK,
    TREND_WINDOWS,
    ExitsSection,
    Section,
    canonical,
    description,
    interval_name,
    limits,
    merged,
    nested,
    parsed_table,
    table_of,
)
from tracepaper.storage import checkpoints
from tracepaper.storage.paths import with_homes
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.units import DAY_MS, INTERVALS, bars_in, time_of

DEFAULT_FILE: Final = "tracepaper.toml"
PREFIX: Final = "TRACEPAPER_"
DATA: Final = "the data"
INTERVAL: Final = "the interval"
CARD: Final = "the model's card"
ENVIRONMENT: Final = "the environment"
GIVEN: Final = "the configuration that was given"
COMMAND_LINE: Final = "the command line"
SET: Final = "--set"

Tables = dict[str, dict[str, Any]]
Origins = dict[tuple[str, str], str]
"""The source of each key that is not at its default, by section and key."""


class Config(BaseModel):
    """The complete configuration. Constructing it reads no file and no environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    market: MarketSection = Field(default_factory=MarketSection)
    exchange: ExchangeSection = Field(default_factory=ExchangeSection)
    strategy: StrategySection = Field(default_factory=StrategySection)
    model: ModelSection = Field(default_factory=ModelSection)
    parity: ParitySection = Field(default_factory=ParitySection)
    features: FeaturesSection = Field(default_factory=FeaturesSection)
    gate: GateSection = Field(default_factory=GateSection)
    regime: RegimeSection = Field(default_factory=RegimeSection)
    sizing: SizingSection = Field(default_factory=SizingSection)
    exits: ExitsSection = Field(default_factory=ExitsSection)
    execution: ExecutionSection = Field(default_factory=ExecutionSection)
    risk: RiskSection = Field(default_factory=RiskSection)
    account: AccountSection = Field(default_factory=AccountSection)
    report: ReportSection = Field(default_factory=ReportSection)
    storage: StorageSection = Field(default_factory=StorageSection)
    http: HttpSection = Field(default_factory=HttpSection)
    log: LogSection = Field(default_factory=LogSection)
    notify: NotifySection = Field(default_factory=NotifySection)

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """The folder of the configuration file, to which other files are relative, if needed."""
        return self._folder

    @property
    def chosen(self) -> str:
        """What a run chose because its user did not, in words; else empty."""
        return "; ".join(filter(None, (self.strategy.chosen_warmup, self.sizing.chosen_share)))

    def in_folder(self, folder: Path) -> Config:
        """Return a copy whose ``folder`` is *folder*, as if read from a file there."""
        copy = self.model_copy()
        copy._folder = folder  # noqa: SLF001 - its own class
        return copy

    def settings(self) -> dict[str, dict[str, object]]:
        """Return every section as plain values; exact numbers become their shortest text."""
        tables = {
            name: {key: canonical(value) for key, value in table.items()}
            for name, table in self.model_dump().items()
        }
        del tables["http"]["tokens"]  # the only key that may hold secrets
        return tables

    def canonical_json(self) -> str:
        """Return the configuration as JSON; equal configurations give equal text."""
        return _json(self.settings())

    def sha256(self) -> str:
        """Return the hash of the keys on which a run's decisions depend."""
        tables = self.settings()
        decides = {name: table for name, table in tables.items() if name in DECIDES}
        # Wall time is compared with market time at this scale.
        decides["exchange"] = {"time_scale": tables["exchange"]["time_scale"]}
        return hashlib.sha256(_json(decides).encode()).hexdigest()


SECTIONS: Final[dict[str, type[Section]]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
DECIDES: Final = frozenset(name for name, section in SECTIONS.items() if section.decides)
"""The sections on which a run's decisions depend."""


Sections = Mapping[str, Mapping[str, Any]]
NOTHING: Final[Sections] = MappingProxyType({})


class WithSettings(NamedTuple):
    """A configuration, by default the default file, and the keys that ``--set`` overrides."""

    file: Path | Sections | None
    settings: Sections


Given = Path | Sections | WithSettings | None


def with_settings(file: Path | Sections | None, texts: Sequence[str] | None) -> Given:
    """Return *file* with overrides ``section.key=value``, which win over the environment too."""
    settings = settings_of(texts)
    return WithSettings(file, settings) if settings else file


def settings_of(texts: Sequence[str] | None) -> Tables:
    """Return the keys that each ``section.key=value`` of *texts* sets, by section.

    ``section.key.inner=value`` sets one key of a table. A value is text as in an environment
    variable: lists separated by commas, tables as JSON; an option of a class is read as JSON where
    it is JSON; the last of a key wins. Raises ``ConfigInvalid`` for a text of another form.
    """
    settings: Tables = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        path = name.strip().split(".")
        if not (equals and len(path) > 1 and all(path)):
            raise ConfigInvalid(
                f"{SET} {text} sets no key; write section.key=value, such as market.interval=15."
            )
        is_option = "options" in path[1:-1]
        settings = merged(settings, nested(path, _option(value) if is_option else value))
    return settings


def _option(text: str) -> object:
    """Return the value of *text* in JSON, or its table in TOML; *text* itself if it is neither."""
    try:
        return parsed_table(text) if text.lstrip().startswith("{") else json.loads(text)
    except ValueError:
        return text


ELSEWHERE: Final = {
    **dict.fromkeys(("stop", "stoploss", "sl"), "write [exits] stop_loss, such as '2%'"),
    **dict.fromkeys(("target", "takeprofit", "tp"), "write [exits] take_profit, such as '4%'"),
    **dict.fromkeys(("trailing", "trailingstop"), "write [exits] trailing, such as '3%'"),
    "minimalroi": 'write [exits] minimal_roi, such as {"0" = 0.04, "30" = 0.02}',
    **dict.fromkeys(("commission", "fee", "fees"), "write [execution] taker_fee and maker_fee"),
    **dict.fromkeys(("timeframe", "period"), "write [market] interval, such as '5' minutes"),
}
"""Keys of other programs, without underscores, and the advice which key to write instead."""


def load(
    given: Given = None,
    overrides: Sections = NOTHING,
    *,
    data: Sections = NOTHING,
    caller: str = COMMAND_LINE,
) -> Config:
    """Load the configuration; raise ``ConfigInvalid`` if it is invalid.

    *given* is a file, a file ``with_settings``, or a mapping of sections to keys. By default it is
    ``tracepaper.toml`` in the working directory, if it exists. A mapping replaces the file; it and
    settings win over the environment. *overrides* maps sections to keys and wins over everything.
    *data* has keys derived from the data, and wins over the defaults alone. An error names
    *overrides* as *caller*.
    """
    return load_with_origins(given, overrides, data=data, caller=caller)[0]


def load_with_origins(
    given: Given = None,
    overrides: Sections = NOTHING,
    *,
    data: Sections = NOTHING,
    caller: str = COMMAND_LINE,
) -> tuple[Config, Origins]:
    """Load the configuration as ``load`` does; return the source of each key too."""
    settings = NOTHING
    if isinstance(given, WithSettings):
        given, settings = given
    default = Path(DEFAULT_FILE)
    if given is None and (default.exists() or default.is_symlink()):
        given = default  # a broken link or a folder too: an error, not silent defaults
    sources: list[tuple[str, Sections]] = []
    if isinstance(given, Path):
        sources.append((str(given), _read_toml(given)))
    sources.append((ENVIRONMENT, _environment()))
    if given is not None and not isinstance(given, Path):
        sources.append((GIVEN, given))
    sources += [(SET, settings), (caller, overrides)]
    sources = [(origin, with_homes(tables)) for origin, tables in sources]
    config, origins = _merge([(DATA, data), *sources], file=sources[0][0])
    _reject_unread(sources, config, origins)
    named_by = origins.get(("market", "symbols"), DATA)
    if config.market.universe is not None and named_by != DATA:
        raise ConfigInvalid(
            f"{named_by} sets market.symbols, and market.universe chooses them; leave one of them "
            "out, or name those to choose from in the file of market.universe.file."
        )
    config = _with_model_defaults(config, origins)
    if isinstance(given, Path) and custom_classes(config):
        folder = str(given.resolve().parent)
        if folder not in sys.path:  # at the end, so that it hides no package of the same name
            sys.path.append(folder)
    market, model = config.market, config.model
    market_file = market.universe is not None and market.universe.file
    if isinstance(given, Path) and (model.files or model.covariates or market_file):
        config = config.in_folder(given.resolve().parent)
    return config, origins


def _with_model_defaults(config: Config, origins: Origins) -> Config:
    """Set the default checkpoint of the interval, and gate.horizon from the checkpoint's card.

    A checkpoint that cannot be read is ignored here and rejected when it is loaded.
    """
    if config.model.custom_class or not config.model.is_given:
        return config
    name = config.model.checkpoint
    default_of_interval = checkpoints.DEFAULT_BY_INTERVAL.get(config.market.interval)
    if name == checkpoints.DEFAULT and default_of_interval is not None:
        name = default_of_interval
        origins["model", "checkpoint"] = INTERVAL
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"checkpoint": name})}
        )
    if ("gate", "horizon") in origins:
        return config
    try:
        horizon = checkpoints.read_card(checkpoints.locate(name))["calibration"].get("horizon")
    except CheckpointMismatch:
        return config
    if not isinstance(horizon, int) or horizon == config.gate.horizon:
        return config
    origins["gate", "horizon"] = CARD
    gate = type(config.gate).model_validate({**config.gate.model_dump(), "horizon": horizon})
    return config.model_copy(update={"gate": gate})


def custom_classes(config: Config) -> tuple[str, ...]:
    """Return the names of the user's classes and functions in *config*."""
    named = (
        config.strategy.name, config.model.custom_class, config.features.custom_schema or ""
    )  # fmt: skip
    return tuple(name for name in named if ":" in name)


def restore(text: str, settings: Sections = NOTHING) -> Config:
    """Return a run's stored configuration, written by ``canonical_json``.

    The keys of *settings*, from ``--set``, override it.
    """
    try:
        tables = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigInvalid(f"The stored configuration is not JSON: {error}.") from None
    stored = "the stored configuration"
    config, origins = _merge([(stored, tables), (SET, settings)], stored)
    _reject_unread([(SET, settings)], config, origins)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigInvalid(
            f"There is no configuration at {path}; write one with `tracepaper config init {path}`."
        ) from None
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be read ({error.strerror}); name a TOML file."
        ) from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        raise ConfigInvalid(f"{path} is not TOML: {error}; correct that line.") from None


def _environment() -> dict[str, Any]:
    """Read the variables ``TRACEPAPER_SECTION__KEY``; reject a section that does not exist.

    An empty variable is ignored. A variable for a whole table wins over those for its keys.
    """
    tables: dict[str, Any] = {}
    for name in sorted(os.environ, key=lambda name: -name.count("__")):
        section, *keys = name.lower().removeprefix(PREFIX.lower()).split("__")
        if not name.upper().startswith(PREFIX) or (section not in SECTIONS and not keys):
            continue
        if section not in SECTIONS:
            raise ConfigInvalid(
                f"{name} names no section of the configuration{_nearest(section, SECTIONS)}; "
                "correct or unset it."
            )
        if value := os.environ[name]:
            table, path = tables, [section, *keys]
            for key in path[:-1]:
                table = table.setdefault(key, {})
            table[path[-1]] = value
    return tables


def _merge(sources: list[tuple[str, Sections]], file: str) -> tuple[Config, Origins]:
    """Merge the sources, the last winning, and validate the result; an error names its source.

    An error that no single key causes names *file*.
    """
    whole: Tables = {}
    origins: Origins = {}
    for origin, tables in sources:
        if not isinstance(tables, Mapping):
            raise ConfigInvalid(f"{origin} is not a table of sections; write [section] and keys.")
        for section, table in tables.items():
            if section not in SECTIONS:
                raise ConfigInvalid(_unknown_section(origin, section))
            if not isinstance(table, Mapping):
                raise ConfigInvalid(
                    f"{origin}: {section} is a section; write [{section}] and its keys below it."
                )
            whole[section] = merged(whole.get(section, {}), table)
            for key in table:
                origins[section, key] = _origin_of(origin, section, key)
    _convert_horizon(whole, origins)
    try:
        config = Config.model_validate(whole)
    except ValidationError as error:
        raise ConfigInvalid(_first_fault(error, origins, file)) from None
    return config, origins


def _reject_unread(
    sources: Sequence[tuple[str, Sections]], config: Config, origins: Origins
) -> None:
    """Reject a key of [sizing] that its mode does not read, and a key of [strategy] by its name.

    A key is accepted if the choice (mode or name) of its own source or of the run reads it, since a
    later source may change the choice. A file may hold every key, as ``config init`` writes it, so
    a default value is rejected from --set alone.
    """
    for name, (by, readers) in CHOSEN_BY.items():
        section = getattr(config, name)
        choice = SECTIONS[name].model_fields[by].default
        for origin, tables in sources:
            table = tables.get(name, {})
            choice = table.get(by, choice)
            for key in table:
                is_last = origins[name, key] == _origin_of(origin, name, key)
                is_given = origin == SET or _is_changed(section, key)
                chosen = {choice, getattr(section, by)}
                if is_last and is_given and not is_read(readers, key, chosen):
                    raise ConfigInvalid(
                        f"{origins[name, key]}: [{name}] {key} has an effect only if {by} is "
                        f"{' or '.join(readers[key])}; {by} is {getattr(section, by)}; change {by},"
                        f" or remove {key}."
                    )


def _is_changed(section: Section, key: str) -> bool:
    """Return whether *key* differs from its default, or from the windows that a run fills in."""
    default = type(section).model_fields[key].get_default(call_default_factory=True)
    return getattr(section, key) not in (default, TREND_WINDOWS)


def _origin_of(origin: str, section: str, key: str) -> str:
    """Return the source of a key; for the environment, the variable's name."""
    return f"{PREFIX}{section}__{key}".upper() if origin == ENVIRONMENT else origin


def _convert_horizon(merged: Tables, origins: Origins) -> None:
    """Convert a gate.horizon that is a time into bars of the interval.

    An unknown interval is left to the validation of [market].
    """
    horizon = merged.get("gate", {}).get("horizon")
    if not isinstance(horizon, str) or time_of(horizon) is None:
        return
    market = merged.get("market", {})
    interval = interval_name(market.get("interval", MarketSection.model_fields["interval"].default))
    name = f"{origins['gate', 'horizon']}: [gate] horizon"
    is_stock = STOCK in (market.get("asset"), market.get("category"))
    is_short = INTERVALS.get(str(interval), 0) < DAY_MS
    if is_stock and is_short and (time_of(horizon) or 0) % DAY_MS == 0:
        raise ConfigInvalid(
            f"{name} = {horizon!r} is days, and a day of a share has no fixed number of bars; "
            "write bars, or hours."
        )
    if interval in INTERVALS:
        merged["gate"]["horizon"] = bars_in(horizon, INTERVALS[str(interval)], name=name)


def _unknown_section(origin: str, section: str) -> str:
    """Return the error for a section that does not exist, or a key outside its section."""
    if owners := _sections_with(section):
        return f"{origin}: {section} stands outside its section; put it below [{owners[0]}]."
    return f"{origin}: there is no section [{section}]{_nearest(section, SECTIONS)}; correct it."


def _first_fault(error: ValidationError, origins: Origins, file: str) -> str:
    """Return the first error as one sentence: its place, its cause and what is allowed."""
    first = error.errors()[0]
    section, *keys = map(str, first["loc"])
    key = keys[0] if keys else ""
    section_origins = [origin for (name, _), origin in origins.items() if name == section]
    fallback = section_origins[-1] if section_origins and not key else file
    origin = origins.get((section, key), fallback)
    table = SECTIONS[section].model_fields.get(key)
    within = table_of(table.annotation) if table is not None else None
    if keys[1:] and within is not None:
        # A table inside a section, such as [model.explanation].
        section, key, model = f"{section}.{key}", keys[1], within
        suggested = _nearest(key, model.model_fields)
    else:
        model, suggested = SECTIONS[section], _suggest_place(section, key)
    if first["type"] == "extra_forbidden":
        if (advice := ELSEWHERE.get(key.lower().replace("_", ""))) is not None:
            return f"{origin}: [{section}] has no key {key!r}: {advice}."
        return f"{origin}: [{section}] has no key {key!r}{suggested}; correct it."
    reason = re.sub(r"^\w+ should", "it should", first["msg"].removeprefix("Value error, "))
    reason = re.sub(r"Decimal\('(.*?)'\)", r"\1", reason)  # the type of a bound
    if not key:
        return f"{origin}: {reason}."
    if first["type"] == "string_pattern_mismatch":  # a regular expression tells a reader little
        reason = " ".join(f"write {description(model, key)}".split()).rstrip(".")
    given = "…" if key in UNSHOWN else _shortened(first["input"])
    return f"{origin}: [{section}] {key} = {given} cannot be used; {reason}."


def _suggest_place(section: str, key: str) -> str:
    """Name a section that has exactly this key, else the nearest key of *section*."""
    owners = _sections_with(key)
    return f", but [{owners[0]}] has" if owners else _nearest(key, SECTIONS[section].model_fields)


def _sections_with(key: str) -> list[str]:
    return [name for name, model in SECTIONS.items() if key in model.model_fields]


def _nearest(name: str, names: Mapping[str, object]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; the nearest is {near[0]!r}" if near else f" (it knows {', '.join(names)})"


def _shortened(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."  # one line


def _json(document: object) -> str:
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )


WIDTH: Final = 96
HEADER: Final = f"""\
# The configuration of tracepaper: every key with its meaning, its limits and its default.
# Each key can also be given as an environment variable, {PREFIX}SECTION__KEY, which wins.
# Money and rates are written as text, exactly. Keys that stand behind a # are absent by default.
# `tracepaper config check` reads this file without starting anything.
"""


def render(config: Config) -> str:
    """Return *config* as TOML, without comments and without absent keys."""
    sections = (
        f"[{name}]\n"
        + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)
        for name, table in config.settings().items()
    )
    return "\n".join(sections)


def example() -> str:
    """Return a complete configuration file in which every key is documented."""
    return HEADER + "".join(_example_section(name, model) for name, model in SECTIONS.items())


SHORT: Final = {
    "market": ("symbols", "interval"),
    "strategy": ("name",),
    "account": ("cash",),
    "sizing": ("mode", "notional"),
    "storage": ("url",),
    "http": ("port",),
}
"""The keys of a short configuration, by section."""


def short_example() -> str:
    """Return a configuration file of the keys that are changed first, at their defaults."""
    sections = [
        [
            f"\n[{name}]",
            *(
                f"{key} = {_default_or_example(key, SECTIONS[name].model_fields[key])}"
                for key in keys
            ),
        ]
        for name, keys in SHORT.items()
    ]
    head = "# Keys that are absent have their defaults; `tracepaper config init` explains them all."
    return "\n".join([head, *(line for lines in sections for line in lines)]) + "\n"


def _example_section(name: str, model: type[BaseModel]) -> str:
    lines = ["", *_comment(model.__doc__ or ""), f"[{name}]"]
    for key, field in model.model_fields.items():
        text = description(model, key)
        lines += _comment(f"{text} {_further_limits(field, text)}".rstrip())
        absent = "# " if field.default is None else ""
        lines.append(f"{absent}{key} = {_default_or_example(key, field)}")
    return "\n".join(lines) + "\n"


def _default_or_example(key: str, field: FieldInfo) -> str:
    """Return the default of *field* as TOML; without a default, its example."""
    default = canonical(field.get_default(call_default_factory=True))
    if default is None:
        assert field.examples, f"{key} is absent by default: give its field an example"
        default = field.examples[0]
    return _toml(default)


def _toml(value: object) -> str:
    """Return *value* as TOML, which differs from JSON only in tables."""
    match value:
        case dict():
            present = {name: item for name, item in value.items() if item is not None}
            pairs = (f"{json.dumps(name)} = {_toml(item)}" for name, item in present.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _further_limits(field: FieldInfo, text: str) -> str:
    """Return the limits of *field* that the description *text* does not mention."""
    words = limits(field.annotation, field.metadata)
    _, _, rest = words.removeprefix("one ").partition(" ")
    is_described = all(name in text for name in rest.split(", "))
    return "" if is_described else f"{words[0].upper()}{words[1:]}."


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, WIDTH)]
