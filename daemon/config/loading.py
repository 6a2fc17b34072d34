"""``Config``: frozen and checked, from TOML, environment and overrides; its documented text.

Later wins: defaults, what the data say, the file, ``TRACEPAPER_SECTION__KEY``, the command
line. Whatever cannot be used is refused by ``ConfigInvalid`` with one sentence that names where
it stands and what is allowed.

The rules are docs/configuration.md, C3 to C6.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from tracepaper.daemon.config.market import MarketSection
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import TOKENS, faults_of_secrets, secret_in
from tracepaper.daemon.config.sections import (
    CHOSEN_BY,
    STRATEGIES_OF,
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
    RetrainSection,
    RiskSection,
    SizingSection,
    StorageSection,
    StrategySection,
    is_read,
)
from tracepaper.daemon.config.several import StrategiesSection, StrategyShare
from tracepaper.daemon.config.values import (
    TREND_WINDOWS,
    ExitsSection,
    Section,
    allowed,
    canonical,
    description,
    interval_name,
    table_of,
)
from tracepaper.storage import checkpoints
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
    """Everything that can be configured. Constructing it reads nothing but its arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    market: MarketSection = Field(default_factory=MarketSection)
    exchange: ExchangeSection = Field(default_factory=ExchangeSection)
    strategy: StrategySection = Field(default_factory=StrategySection)
    strategies: StrategiesSection = Field(default_factory=StrategiesSection)
    model: ModelSection = Field(default_factory=ModelSection)
    retrain: RetrainSection = Field(default_factory=RetrainSection)
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
        """The folder of the configuration file, where [model] names files."""
        return self._folder

    def in_folder(self, folder: Path) -> Config:
        """Return a copy whose ``folder`` is *folder*, as if it had been read from a file there."""
        copy = self.model_copy()
        copy._folder = folder  # noqa: SLF001 - its own class
        return copy

    def settings(self) -> dict[str, dict[str, object]]:
        """Return every section as plain values; exact numbers become their shortest text.

        A run has either one strategy or several, so the section of the other is left out.
        """
        tables = {
            name: {key: canonical(value) for key, value in table.items()}
            for name, table in self.model_dump().items()
        }
        del tables["strategy" if self.strategies.named else "strategies"]
        section, key = TOKENS
        del tables[section][key]
        return tables

    def canonical_json(self) -> str:
        """Return the whole configuration as JSON that is equal for equal configurations."""
        return _json(self.settings())

    def sha256(self) -> str:
        """Return the hash of the sections that decide a run."""
        tables = self.settings()
        decides = {name: table for name, table in tables.items() if name in DECIDES}
        # Wall time is compared with market time at this scale, so it decides as well.
        decides["exchange"] = {"time_scale": tables["exchange"]["time_scale"]}
        # The time of the next training decides no bar: each change of a model is an event.
        del decides["model"]["retrain"]
        del decides["market"]["record_events"]  # what is recorded beside decides nothing
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
    """A configuration file, else the default one, and the keys that ``--set`` lays over it."""

    file: Path | None
    settings: Sections


Given = Path | Sections | WithSettings | None


def with_settings(file: Path | None, texts: Sequence[str] | None) -> Given:
    """Return *file* with each ``section.key=value`` of *texts* over it and over the environment."""
    settings = settings_of(texts)
    return WithSettings(file, settings) if settings else file


def settings_of(texts: Sequence[str] | None) -> Tables:
    """Return the keys that each ``section.key=value`` of *texts* sets, by section.

    A value is text, as in an environment variable: names with commas between, tables as JSON.
    Raises ``ConfigInvalid`` for a text of another form, an unknown key, and a key given twice.
    """
    settings: Tables = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        section, _, key = name.strip().partition(".")
        if not (equals and key):
            shown = "…" if secret_in(text) else text
            raise ConfigInvalid(
                f"{SET} {shown} sets no key; write section.key=value, such as market.interval=15."
            )
        if key in settings.setdefault(section, {}):
            raise ConfigInvalid(f"{SET} gives {section}.{key} twice; give it once.")
        settings[section][key] = value
    return settings


ELSEWHERE: Final = {
    **dict.fromkeys(("stop", "stoploss", "sl"), "write [exits] stop_loss, such as '2%'"),
    **dict.fromkeys(("target", "takeprofit", "tp"), "write [exits] take_profit, such as '4%'"),
    **dict.fromkeys(("trailing", "trailingstop"), "write [exits] trailing, such as '3%'"),
    "minimalroi": 'write [exits] minimal_roi, such as {"0" = 0.04, "30" = 0.02}',
    **dict.fromkeys(("commission", "fee", "fees"), "write [execution] taker_fee and maker_fee"),
    **dict.fromkeys(("timeframe", "period"), "write [market] interval, such as '5' minutes"),
}
"""Keys of other programs, without underscores, and the place of their meaning here."""


def load(
    given: Given = None,
    overrides: Sections = NOTHING,
    *,
    data: Sections = NOTHING,
    caller: str = COMMAND_LINE,
) -> Config:
    """Read the configuration; raise ``ConfigInvalid`` where it cannot be used.

    *given* is a file, by default ``tracepaper.toml`` in the working directory where there is
    one, or sections and their keys: these stand in place of a file, and over the environment. It
    may be a file ``with_settings``, which lie over the environment.
    *overrides* maps a section to its keys in the same way and wins over everything; *data* has
    the keys that follow from the data, and wins over the defaults alone. An error names the source
    of *overrides* as *caller*.
    """
    return load_with_origins(given, overrides, data=data, caller=caller)[0]


def load_with_origins(
    given: Given = None,
    overrides: Sections = NOTHING,
    *,
    data: Sections = NOTHING,
    caller: str = COMMAND_LINE,
) -> tuple[Config, Origins]:
    """Read the configuration as ``load`` does; return the source of each key too."""
    settings = NOTHING
    if isinstance(given, WithSettings):
        given, settings = given
    default = Path(DEFAULT_FILE)
    if given is None and (default.exists() or default.is_symlink()):
        given = default  # also where it is no file: that is refused, and no default traded
    sources: list[tuple[str, Sections]] = []
    if isinstance(given, Path):
        sources.append((str(given), _read_toml(given)))
    sources.append((ENVIRONMENT, _environment()))
    if given is not None and not isinstance(given, Path):
        sources.append((GIVEN, given))
    sources += [(SET, settings), (caller, overrides)]
    _reject_secrets(sources)
    config, origins = _merge([(DATA, data), *sources], file=sources[0][0])
    _reject_uncounted(sources, config, origins)
    config = _with_model_defaults(config, origins)
    # Checked here and not by the sections: a stored run that says so is still read.
    if config.strategies.named and (both := [at for at in origins if at[0] == "strategy"]):
        raise ConfigInvalid(
            f"{origins[both[0]]} gives [strategy], and [strategies] names several; leave one out."
        )
    if isinstance(given, Path) and custom_classes(config):
        folder = str(given.resolve().parent)
        if folder not in sys.path:  # last: it must not hide a package of the same name
            sys.path.append(folder)
    market = config.market
    lists = (market.universe is not None and market.universe.file) or market.record_events
    if isinstance(given, Path) and (config.model.files or config.model.covariates or lists):
        config = config.in_folder(given.resolve().parent)
    return config, origins


def _with_model_defaults(config: Config, origins: Origins) -> Config:
    """Set the default checkpoint of this interval, and the horizon of its card.

    A checkpoint that cannot be read is refused where it is loaded.
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
    """Return the names of the user's own classes and functions that *config* names."""
    several = [strategy.name for strategy in config.strategies.named.values()]
    chosen = several or [config.strategy.name]
    named = (*chosen, config.model.custom_class, config.features.custom_schema or "")
    return tuple(name for name in named if ":" in name)


def restore(text: str, settings: Sections = NOTHING) -> Config:
    """Return the configuration that ``canonical_json`` wrote, as a run keeps it.

    The keys of *settings* lie over it, as ``--set`` gives them.
    """
    try:
        tables = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigInvalid(f"The stored configuration is not JSON: {error}.") from None
    stored = "the stored configuration"
    config, origins = _merge([(stored, tables), (SET, settings)], stored)
    _reject_uncounted([(SET, settings)], config, origins)
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
    except (ValueError, RecursionError) as error:  # also more digits than a number may have
        raise ConfigInvalid(f"{path} is not TOML: {error}; correct that line.") from None


def _environment() -> dict[str, Any]:
    """Read the variables ``TRACEPAPER_SECTION__KEY``; refuse a section that does not exist.

    A variable without a text is none. One of a whole table wins over those of its keys.
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
    """Lay the sources over one another, check the result, and name the source of a fault.

    An error that no single key causes names *file*.
    """
    merged: Tables = {}
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
            for key, value in table.items():
                merged.setdefault(section, {})[key] = value
                origins[section, key] = _origin_of(origin, section, key)
    _convert_horizon(merged, origins)
    try:
        return Config.model_validate(merged), origins
    except ValidationError as error:
        raise ConfigInvalid(_first_fault(error, origins, file)) from None


def _reject_secrets(sources: Iterable[tuple[str, Sections]]) -> None:
    """Refuse what carries a secret, before an error of its section shows the value.

    A stored run that has one is still read.
    """
    for origin, tables in sources:
        for section, key, fault in faults_of_secrets(tables):
            raise ConfigInvalid(f"{_origin_of(origin, section, key)}: [{section}] {key} {fault}.")


def _reject_uncounted(
    sources: Sequence[tuple[str, Sections]], config: Config, origins: Origins
) -> None:
    """Refuse a key of [sizing] that its mode does not read, and of [strategy] alike by its name.

    It may count with the choice of its source or with one of the run: a choice that a later source
    sets lays aside what goes with the one before it. A file may hold every key, as ``config init``
    writes it: a default is refused by --set alone.
    """
    members = config.strategies.named
    for name, (by, readers) in CHOSEN_BY.items():
        section = getattr(config, name)
        of_run = {getattr(section, by), *(each.sizing.get(by) for each in members.values())}
        choice = SECTIONS[name].model_fields[by].default
        for origin, tables in sources:
            table = tables.get(name, {})
            choice = table.get(by, choice)
            for key in table:
                is_last = origins[name, key] == _origin_of(origin, name, key)
                is_given = origin == SET or _is_changed(section, key)
                if is_last and is_given and not is_read(readers, key, {choice, *of_run}):
                    raise _uncounted(f"{origins[name, key]}: [{name}]", key, section)
    given = {name for _, tables in sources for name in tables.get("strategies", {})}
    for name in sorted(given & members.keys()):
        member = members[name]
        for key in STRATEGIES_OF:
            if _is_changed(member, key) and not is_read(STRATEGIES_OF, key, {member.name}):
                raise _uncounted(f"{origins['strategies', name]}: [strategies.{name}]", key, member)


def _is_changed(section: Section, key: str) -> bool:
    """Return whether *key* has not its default; a run fills in that of a trend's windows."""
    default = type(section).model_fields[key].get_default(call_default_factory=True)
    return getattr(section, key) not in (default, TREND_WINDOWS)


def _uncounted(where: str, key: str, section: Section) -> ConfigInvalid:
    by, readers = CHOSEN_BY["strategy" if isinstance(section, StrategySection) else "sizing"]
    return ConfigInvalid(
        f"{where} {key} counts with {by} {', '.join(readers[key])} alone, and {by} is "
        f"{getattr(section, by)}; change it, or take {key} out."
    )


def _origin_of(origin: str, section: str, key: str) -> str:
    """Return the source of a key: of the environment, the variable."""
    return f"{PREFIX}{section}__{key}".upper() if origin == ENVIRONMENT else origin


def _convert_horizon(merged: Tables, origins: Origins) -> None:
    """Convert a gate.horizon that is a time into bars of the interval.

    The sections refuse an interval that does not exist.
    """
    horizon = merged.get("gate", {}).get("horizon")
    if not isinstance(horizon, str) or time_of(horizon) is None:
        return
    market = merged.get("market", {})
    interval = interval_name(market.get("interval", MarketSection.model_fields["interval"].default))
    name = f"{origins['gate', 'horizon']}: [gate] horizon"
    if market.get("calendar") and (time_of(horizon) or 0) % DAY_MS == 0:
        raise ConfigInvalid(
            f"{name} = {horizon!r} is days, which a calendar of sessions counts in bars of its "
            "own; write bars, or hours."
        )
    if interval in INTERVALS:
        merged["gate"]["horizon"] = bars_in(horizon, INTERVALS[str(interval)], name=name)


def _unknown_section(origin: str, section: str) -> str:
    """Return the error for a section that does not exist, or a key outside its section."""
    having = _sections_having(section)
    if having:
        return f"{origin}: {section} stands outside its section; put it below [{having[0]}]."
    return f"{origin}: there is no section [{section}]{_nearest(section, SECTIONS)}; correct it."


def _first_fault(error: ValidationError, origins: Origins, file: str) -> str:
    """Return the first fault as one sentence: its place, its cause and what is allowed."""
    first = error.errors()[0]
    section, *keys = map(str, first["loc"])
    key = keys[0] if keys else ""
    section_origins = [origin for (name, _), origin in origins.items() if name == section]
    fallback = section_origins[-1] if section_origins and not key else file
    origin = origins.get((section, key), fallback)
    table = SECTIONS[section].model_fields.get(key)
    within = table_of(table.annotation) if table is not None else None
    within = StrategyShare if section == "strategies" else within
    if keys[1:] and within is not None:
        # A table within its section, as [model.explanation] and those of [strategies] are.
        section, key, model = f"{section}.{key}", keys[1], within
        suggested = _nearest(key, model.model_fields)
    else:
        model, suggested = SECTIONS[section], _suggest_place(section, key)
    if first["type"] == "extra_forbidden":
        if (where := ELSEWHERE.get(key.lower().replace("_", ""))) is not None:
            return f"{origin}: [{section}] has no key {key!r}: {where}."
        whole, dot, option = key.partition(".")
        if dot and whole in model.model_fields:
            suggested = f'; {section}.{whole} is set whole: give it as JSON, {{"{option}": …}}'
        return f"{origin}: [{section}] has no key {key!r}{suggested}; correct it."
    reason = first["msg"].removeprefix("Value error, ")
    if not key:
        return f"{origin}: {reason}."
    if first["type"] not in {"value_error", "type_error"}:
        field = model.model_fields[key]
        words = allowed(field.annotation, field.metadata)
        if first["type"] == "string_pattern_mismatch":
            words = (description(model, key) or words).rstrip(".")
        reason = f"write {words}"
    given = "…" if (section, key) == TOKENS else _shortened(first["input"])
    return f"{origin}: [{section}] {key} = {given} cannot be used; {reason}."


def _suggest_place(section: str, key: str) -> str:
    """Name the section that has exactly this key, else the nearest key of this one."""
    having = _sections_having(key)
    return f", but [{having[0]}] has" if having else _nearest(key, SECTIONS[section].model_fields)


def _sections_having(key: str) -> list[str]:
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
    """Return *config* as TOML, without comments and without keys that are absent."""
    sections = (
        f"[{name}]\n"
        + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)
        for name, table in config.settings().items()
    )
    return "\n".join(sections)


def example() -> str:
    """Return a complete configuration file in which every key is documented."""
    return HEADER + "".join(_example_section(name, model) for name, model in SECTIONS.items())


def _example_section(name: str, model: type[BaseModel]) -> str:
    lines = ["", *_comment(model.__doc__ or ""), f"[{name}]"]
    for key, field in model.model_fields.items():
        text = description(model, key)
        lines += _comment(f"{text} {_further_limits(field, text)}".rstrip())
        absent = "# " if field.default is None else ""
        lines.append(f"{absent}{key} = {_default_or_example(key, field)}")
    return "\n".join(lines) + "\n"


def _default_or_example(key: str, field: FieldInfo) -> str:
    """Return the default of *field* as TOML; where there is none, its example."""
    default = canonical(field.get_default(call_default_factory=True))
    if default is None:
        assert field.examples, f"{key} is absent by default: give its field an example"
        default = field.examples[0]
    return _toml(default)


def _toml(value: object) -> str:
    """Write one value; JSON and TOML agree on all but tables."""
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
    """Return the limits that the description *text* leaves out."""
    words = allowed(field.annotation, field.metadata)
    for start in (" from ", " above ", "one of "):
        _, separator, rest = words.partition(start)
        is_described = all(name in text for name in rest.split(", "))
        if separator and not is_described:
            return f"{start.strip().capitalize()} {rest}."
    return ""


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, WIDTH)]
